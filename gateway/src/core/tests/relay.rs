//! Relays: whoever has room gets them, and nobody's messages wait for them. And direct messages that were skipped.

use super::super::limits::{FAN_OUT_SENDS_PER_TURN, RELAY_BYTES_MAX, RELAY_QUEUE_BYTES_MAX, RELAYS_MAX};
use super::*;

fn typing(conversation: &str, targets: Vec<wire::Target>, except_session: u64) -> wire::Relay {
    let event = TypingEvent { conversation: conversation.into(), user: "zoe".into(), what: 1 };
    let notify = Notify { event: Some(notify::Event::Typing(event)) }.encode_to_vec().into();
    wire::Relay { targets, conversation: conversation.into(), except_session, notify }
}

fn say(world: &mut World, relay: &wire::Relay) {
    world.say(0, Kind::Relay, partition_of(&relay.conversation, PARTITIONS), 10, 0, relay);
}

fn target(world: &World, conn: Conn, user: &str) -> wire::Target {
    wire::Target { session: world.id(conn), user: user.into(), ..Default::default() }
}

fn typings(world: &mut World, conn: Conn) -> usize {
    let seen = world.seen(conn);
    seen.iter().filter(|seen| matches!(seen, Seen::Notify(notify::Event::Typing(_)))).count()
}

#[test]
fn named_sessions_and_listeners_get_it() {
    let mut world = World::ready();
    let conns: Vec<Conn> = (0..200).map(|slot| world.session(slot, &format!("user{slot}"))).collect();
    for conn in &conns[..150] {
        world.join(*conn, "hall", 0);
    }
    let targets =
        vec![target(&world, conns[199], "user199"), target(&world, conns[3], "somebody"), Default::default()];
    say(&mut world, &typing("d:zoe:user199", targets, 0));
    let except = world.id(conns[7]);
    say(&mut world, &typing("r:hall", vec![], except));
    say(&mut world, &typing("r:nobody", vec![], 0));
    world.pump();
    assert!(world.turn().more, "no more than fan-out may send");
    let turned: usize = conns[..150].iter().map(|conn| typings(&mut world, *conn)).sum();
    assert!(turned <= FAN_OUT_SENDS_PER_TURN);
    world.run();
    let rest: usize = conns[..150].iter().map(|conn| typings(&mut world, *conn)).sum();
    assert_eq!((turned + rest, typings(&mut world, conns[7]), typings(&mut world, conns[199])), (149, 0, 1));
    let stats = world.shard.stats();
    assert_eq!((stats.relays, stats.relays_dropped, stats.no_sessions), (150, 2, 0));
}

#[test]
fn messages_come_first_and_what_is_late_is_dropped() {
    let mut world = World::ready();
    let [slow, quick] = [0, 1].map(|slot| world.session(slot, &format!("user{slot}")));
    for conn in [slow, quick] {
        world.join(conn, "hall", 0);
    }
    world.clients.get_mut(&slow).unwrap().stalled = true;
    for seq in 1..=2 {
        let body = fan_out("r:hall", seq, 10, 0, RELAY_QUEUE_BYTES_MAX as usize);
        world.say(0, Kind::FanOut, partition_of("r:hall", PARTITIONS), 10, 0, &body);
        world.run();
    }
    say(&mut world, &typing("r:hall", vec![], 0));
    world.run();
    assert_eq!((typings(&mut world, quick), world.shard.stats().relays_dropped), (1, 1));
    world.resume(slow);
    assert_eq!(typings(&mut world, slow), 0);
    // A flood of them is bounded, and old ones are worth nothing.
    for _ in 0..RELAYS_MAX + 3 {
        say(&mut world, &typing("r:hall", vec![], 0));
    }
    let large = wire::Relay { notify: vec![0; RELAY_BYTES_MAX + 1].into(), ..typing("r:hall", vec![], 0) };
    say(&mut world, &large);
    world.pump();
    let stats = world.shard.stats();
    assert_eq!((stats.relays_waiting, stats.relays_dropped), (RELAYS_MAX as u64, 5));
    world.now.mono_us += 3 * SECOND;
    world.run();
    let stats = world.shard.stats();
    assert_eq!((stats.relays_waiting, stats.relays_dropped), (0, RELAYS_MAX as u64 + 5));
    // The last listener leaves while one is on its way.
    say(&mut world, &typing("r:hall", vec![], 0));
    world.pump();
    for conn in [slow, quick] {
        world.closed(conn);
    }
    world.run();
    world.assert_empty();
}

#[test]
fn fan_out_goes_before_relays() {
    let mut world = World::ready();
    let conns: Vec<Conn> = (0..100).map(|slot| world.session(slot, &format!("user{slot}"))).collect();
    for conn in &conns {
        world.join(*conn, "hall", 0);
    }
    say(&mut world, &typing("r:hall", vec![], 0));
    world.fan_out(0, 10, "r:hall", 1, 0);
    world.pump();
    assert!(world.turn().more);
    assert_eq!(conns.iter().map(|conn| typings(&mut world, *conn)).sum::<usize>(), 0);
    world.run();
    assert_eq!(conns.iter().map(|conn| typings(&mut world, *conn)).sum::<usize>(), 100);
}

#[test]
fn skipped_direct_messages_are_asked_for() {
    let mut world = World::ready();
    let conn = world.session(0, "ann");
    // One is still logging in: it is told behind its LoginAck.
    let early = world.accept(1, 1, ClientSession::tcp());
    world.request(early, 1, login("bob"));
    let targets =
        vec![target(&world, conn, "ann"), target(&world, early, "bob"), target(&world, conn, "carl")];
    let gap = wire::DirectGap { targets, conversation: "d:ann:bob".into(), head: 9 };
    world.say(0, Kind::DirectGap, partition_of("d:ann:bob", PARTITIONS), 10, 0, &gap);
    world.run();
    let resync = Seen::Notify(notify::Event::Resync(Resync { conversations: vec!["d:ann:bob".into()] }));
    assert_eq!(world.seen(conn), [resync.clone()]);
    assert_eq!(world.take(0, Kind::NoSession).len(), 1);
    assert!(world.seen(early).is_empty());
    world.registered(&[], 4);
    assert_eq!(world.seen(early)[1..], [resync]);
    assert_eq!(world.shard.stats().direct_gaps, 2);
}
