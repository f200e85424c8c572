//! Acknowledgements: gathered and sent on together, and asked for when they don't come.

use super::super::limits::{ACKS_FLUSH_US, ACKS_RECORD_MAX, OWED_CONVERSATIONS_MAX, RESYNC_PER_S};
use super::*;

fn ack(conversation: &str, seq: u64) -> request::Op {
    let cursor = Some(Cursor { epoch: 10, seq });
    request::Op::DeliverAck(DeliverAck { conversation: conversation.into(), cursor })
}

/// A session that acknowledges, in these groups, subscribed at head 0.
fn owing(world: &mut World, slot: u32, user: &str, groups: &[&str]) -> Conn {
    let conn = world.accept(slot, 1, ClientSession::tcp());
    let request::Op::Login(login) = login(user) else { unreachable!() };
    world.request(conn, 1, request::Op::Login(client::Login { acknowledges: true, ..login }));
    let (record, register) = world.take_one::<wire::Register>(0, Kind::Register);
    assert!(register.acknowledges);
    world.register(record, groups, u64::from(slot) + 1);
    world.subscribed(0, 10, 0);
    world.seen(conn);
    conn
}

fn direct(world: &mut World, conn: Conn, user: &str, conversation: &str, seq: u64) {
    let target = wire::Target { session: world.id(conn), user: user.into(), ..Default::default() };
    let notify = fan_out(conversation, seq, 10, 0, 9).notify;
    world.say(0, Kind::Direct, 0, 10, 0, &wire::Direct { targets: vec![target], notify });
    world.run();
}

fn deliver(world: &mut World, conversation: &str, seq: u64) {
    world.fan_out(0, 10, conversation, seq, 0);
    world.run();
}

/// The conversations of each Resync among what was seen.
fn resyncs(seen: &[Seen]) -> Vec<Vec<String>> {
    seen.iter()
        .filter_map(|seen| match seen {
            Seen::Notify(notify::Event::Resync(resync)) => Some(resync.conversations.clone()),
            _ => None,
        })
        .collect()
}

fn acks_of(world: &mut World) -> Vec<(String, String, String, u64)> {
    let records = world.take(0, Kind::Acks);
    let bodies = records.into_iter().map(|record| wire::Acks::decode(record.body).unwrap());
    let one = |ack: wire::DeviceAck| (ack.conversation, ack.user, ack.device, ack.seq);
    bodies.flat_map(|body| body.acks.into_iter().map(one)).collect()
}

#[test]
fn acks_are_gathered_for_a_second_and_merged() {
    let mut world = World::ready();
    let [ann, bob] = [(0, "ann"), (1, "bob")].map(|(slot, user)| owing(&mut world, slot, user, &["tea"]));
    let plain = world.session(2, "carl");
    (1..=5).for_each(|seq| deliver(&mut world, "g:tea", seq));
    for (conn, id, seq) in [(ann, 0, 2), (ann, 7, 4), (ann, 0, 3), (bob, 8, 5), (ann, 0, 5)] {
        world.seen(conn);
        world.request(conn, id, ack("g:tea", seq));
        let seen = world.seen(conn);
        match id {
            0 => assert!(seen.is_empty(), "{seen:?}"),
            _ => assert_eq!(response(&seen), response::Outcome::Done(Done {})),
        }
    }
    // One that is not asked to acknowledge may: its cursor is kept all the same.
    world.request(plain, 0, ack("d:ann:carl", 44));
    assert!(world.take(0, Kind::Acks).is_empty());
    assert_eq!(world.shard.stats().acks_gathered, 3);
    world.at(world.now.mono_us + ACKS_FLUSH_US);
    let mut acks = acks_of(&mut world);
    acks.sort();
    let expected = [("d:ann:carl", "carl", 44), ("g:tea", "ann", 5), ("g:tea", "bob", 5)];
    assert_eq!(acks, expected.map(|(id, user, seq)| (id.into(), user.into(), "phone".into(), seq)));
    let stats = world.shard.stats();
    assert_eq!((stats.acks, stats.acks_gathered, stats.acks_dropped), (6, 0, 0));
    assert!((1..=2).contains(&stats.ack_records));
    world.later(20 * SECOND);
    assert_eq!((resyncs(&world.seen(ann)).len(), world.shard.stats().owing), (0, 0));
    for conn in [ann, bob, plain] {
        world.closed(conn);
    }
    world.run();
    world.assert_empty();
}

#[test]
fn a_full_record_goes_at_once_and_without_credit_the_oldest_gives_way() {
    let mut world = World::ready();
    let conn = world.session(0, "ann");
    // One partition, so that they come together.
    let ids = (0..).map(|i| format!("d:ann:u{i}")).filter(|id| partition_of(id, PARTITIONS) == 3);
    let ids: Vec<String> = ids.take(2 * ACKS_RECORD_MAX + 5).collect();
    let send = |world: &mut World, ids: &[String]| {
        for id in ids {
            let request = Request { id: 0, op: Some(ack(id, 1)) };
            let bytes = frame_of(&mut world.clients.get_mut(&conn).unwrap().speaks, &request);
            world.receive(conn, bytes);
        }
        world.run();
    };
    send(&mut world, &ids[..ACKS_RECORD_MAX]);
    assert_eq!(acks_of(&mut world).len(), ACKS_RECORD_MAX);
    // Nobody owns them for a while.
    world.announce(0, [3], 11);
    let back = wire::NotOwner { partition: 3, epoch: 12, kind: Kind::Acks as u32, ..Default::default() };
    world.say(0, Kind::NotOwner, 3, 0, 0, &back);
    world.run();
    send(&mut world, &ids[ACKS_RECORD_MAX..]);
    let stats = world.shard.stats();
    assert_eq!((stats.acks_gathered, stats.acks_dropped), (ACKS_RECORD_MAX as u64, 5));
    world.later(3 * SECOND);
    assert!(!world.wait.more && acks_of(&mut world).iter().all(|(id, ..)| id.is_empty()));
    world.announce(0, [3], 12);
    world.later(2 * SECOND);
    let mut acks: Vec<String> = acks_of(&mut world).into_iter().map(|(id, ..)| id).collect();
    let mut expected = ids[ACKS_RECORD_MAX + 5..].to_vec();
    acks.sort();
    expected.sort();
    assert_eq!(acks, expected);
    world.closed(conn);
    world.run();
    world.assert_empty();
}

#[test]
fn what_cannot_be_acknowledged_is_refused_and_changes_nothing() {
    let mut world = World::ready();
    let conn = owing(&mut world, 0, "ann", &["tea"]);
    deliver(&mut world, "g:tea", 1);
    world.seen(conn);
    let without = request::Op::DeliverAck(DeliverAck { conversation: "g:tea".into(), cursor: None });
    for (op, code) in [
        (ack("g:tea", 2), Code::BadRequest),
        (ack("r:hall", 1), Code::BadRequest),
        (ack("tea", 1), Code::BadRequest),
        (ack("d:bob:carl", 1), Code::Forbidden),
        (without, Code::BadRequest),
    ] {
        for id in [0, 5] {
            world.request(conn, id, op.clone());
            let seen = world.seen(conn);
            assert!(matches!(&seen[..], [Seen::Response(response)] if response.id == id), "{seen:?}");
            assert_eq!(refused(&seen), code, "{op:?}");
        }
    }
    world.later(2 * SECOND);
    assert!(acks_of(&mut world).is_empty());
    world.later(3 * SECOND);
    assert_eq!(resyncs(&world.seen(conn)), [["g:tea"]], "still owed");
    // Ids that ask for no answer are for three operations alone.
    world.request(conn, 0, request::Op::GroupInfo(GroupInfo { group: "tea".into() }));
    assert_eq!(refused(&world.seen(conn)), Code::BadRequest);
}

#[test]
fn silence_is_asked_about_three_times_and_then_closed() {
    let mut world = World::ready();
    let ann = owing(&mut world, 0, "ann", &["tea", "cup"]);
    let plain = world.session(1, "bob");
    world.join(ann, "hall", 0);
    deliver(&mut world, "r:hall", 1);
    world.later(6 * SECOND);
    assert_eq!((resyncs(&world.seen(ann)).len(), world.shard.stats().owing), (0, 0), "rooms owe nothing");
    let begin = world.now.mono_us;
    deliver(&mut world, "g:tea", 1);
    direct(&mut world, ann, "ann", "d:ann:bob", 7);
    direct(&mut world, plain, "bob", "d:ann:bob", 7);
    assert_eq!(world.shard.stats().owing, 1);
    let mut told = Vec::new();
    while !world.clients[&ann].shut {
        assert!(world.now.mono_us - begin < 30 * SECOND);
        world.at(world.now.mono_us + SECOND / 4);
        let seen = world.seen(ann);
        let at_ms = (world.now.mono_us - begin) / 1_000;
        told.extend(resyncs(&seen).into_iter().map(|it| (at_ms, it.join(" "))));
        if let Some(code) = go_away(&seen) {
            told.push((at_ms, format!("{code:?}")));
        }
        // Own sends and pages say nothing about what was delivered, heartbeats neither.
        world.receive(ann, vec![4, 0, 0, 0]);
    }
    let expected = ["g:tea d:ann:bob", "g:tea d:ann:bob", "g:tea d:ann:bob", "NotAcknowledged"];
    assert_eq!(told.iter().map(|(_, what)| what.as_str()).collect::<Vec<_>>(), expected);
    for (nth, (at_ms, _)) in (1u64..).zip(&told) {
        assert!((nth * 4_000..=nth * 4_000 + 300 * nth).contains(at_ms), "{told:?}");
    }
    let stats = world.shard.stats();
    assert_eq!((stats.resyncs, stats.not_acknowledged, stats.owing), (3, 1, 0));
    assert!(resyncs(&world.seen(plain)).is_empty());
    world.closed(ann);
    world.closed(plain);
    world.run();
    world.assert_empty();
}

#[test]
fn any_acknowledgement_starts_the_clock_again() {
    let mut world = World::ready();
    let ann = owing(&mut world, 0, "ann", &["tea", "cup"]);
    deliver(&mut world, "g:cup", 1);
    for seq in 1..=8 {
        deliver(&mut world, "g:tea", seq);
        world.later(3 * SECOND);
        world.request(ann, 0, ack("g:tea", seq));
        assert!(resyncs(&world.seen(ann)).is_empty());
    }
    world.later(5 * SECOND);
    assert_eq!(resyncs(&world.seen(ann)), [["g:cup"]]);
    world.request(ann, 0, ack("g:cup", 1));
    world.later(6 * SECOND);
    assert_eq!((resyncs(&world.seen(ann)).len(), world.shard.stats().owing), (0, 0));
}

#[test]
fn the_clock_waits_for_the_send() {
    let mut world = World::ready();
    let ann = owing(&mut world, 0, "ann", &["tea"]);
    world.clients.get_mut(&ann).unwrap().stalled = true;
    deliver(&mut world, "g:tea", 1);
    world.later(20 * SECOND);
    assert!(resyncs(&world.seen(ann)).is_empty(), "it has not been sent");
    world.resume(ann);
    world.later(7 * SECOND / 2);
    assert!(resyncs(&world.seen(ann)).is_empty());
    world.later(SECOND);
    assert_eq!(resyncs(&world.seen(ann)), [["g:tea"]]);
}

#[test]
fn who_leaves_owes_nothing() {
    let mut world = World::ready();
    let ann = owing(&mut world, 0, "ann", &["tea"]);
    deliver(&mut world, "g:tea", 1);
    let remove = wire::Remove { conversation: "g:tea".into(), users: vec!["ann".into()], members_version: 9 };
    world.say(0, Kind::Remove, partition_of("g:tea", PARTITIONS), 10, 0, &remove);
    world.run();
    // The number of the topic goes to another one, in which nothing is owed.
    world.join(ann, "hall", 5);
    world.later(6 * SECOND);
    assert_eq!((resyncs(&world.seen(ann)).len(), world.shard.stats().owing), (0, 0));
    world.closed(ann);
    world.run();
    world.assert_empty();
}

#[test]
fn what_is_kept_track_of_is_bounded() {
    let mut world = World::ready();
    let ann = owing(&mut world, 0, "ann", &[]);
    for i in 0..=OWED_CONVERSATIONS_MAX {
        direct(&mut world, ann, "ann", &format!("d:ann:u{i}"), 1);
    }
    assert_eq!(world.shard.stats().owed_overflowed, 1);
    world.later(5 * SECOND);
    assert_eq!(resyncs(&world.seen(ann))[0].len(), OWED_CONVERSATIONS_MAX);
}

#[test]
fn sessions_look_at_their_direct_conversations_when_a_link_began_anew() {
    // How long the link was away, the dispatcher's incarnation after it, whether it forgot the link: told or not.
    let cases = [
        (SECOND, 900, false, false),
        (SECOND, 900, true, true),
        (SECOND, 502, true, false),
        (20 * SECOND, 502, true, true),
    ];
    for (away_us, incarnation, forgot, expected) in cases {
        let mut world = World::ready();
        let conn = owing(&mut world, 1, "alice", &[]);
        let silent = world.session(2, "bob");
        world.cut(0);
        world.later(away_us);
        if forgot {
            world.nodes[0].link = node_link("n0", incarnation, 8 << 20);
        }
        world.connect(0);
        world.announce(0, 0..PARTITIONS, 11);
        world.run();
        let told = resyncs(&world.seen(conn));
        assert_eq!(told.len(), usize::from(expected), "{away_us} us, {incarnation}, forgot {forgot}");
        assert!(told.iter().all(Vec::is_empty), "no conversation is named");
        assert!(resyncs(&world.seen(silent)).is_empty(), "who does not acknowledge knows itself");
    }
}

#[test]
fn sessions_look_at_their_direct_conversations_when_an_owner_is_of_another_copy_of_the_store() {
    let mut world = World::ready();
    let ann = owing(&mut world, 1, "ann", &[]);
    let silent = world.session(2, "bob");
    let told = |world: &mut World, epoch, partitions: std::ops::Range<u16>, copy| {
        world.announce_from(0, partitions, epoch, copy);
        assert!(resyncs(&world.seen(silent)).is_empty(), "who does not acknowledge knows itself");
        resyncs(&world.seen(ann)).len()
    };
    assert_eq!(told(&mut world, 11, 0..PARTITIONS, 1), 0, "the same copy");
    assert_eq!(told(&mut world, 12, 0..PARTITIONS, 0), 0, "a dispatcher that does not say");
    assert_eq!(told(&mut world, 14, 3..4, 2), 1);
    assert_eq!(told(&mut world, 14, 3..4, 2), 0, "it is known");
    assert_eq!(told(&mut world, 11, 4..5, 2), 0, "of a former owner");
    assert_eq!(told(&mut world, 15, 4..6, 2), 1, "each time, as they may have looked too early");
    assert_eq!(told(&mut world, 16, 3..6, 2), 0);
}

#[test]
fn sessions_are_registered_again_where_the_owner_of_their_routes_is_of_another_copy() {
    let mut world = World::ready();
    let (ann, bob) = (user_in(3), user_in(4));
    let conns = [owing(&mut world, 0, &ann, &[]), world.session(1, &bob)];
    for conn in conns {
        world.seen(conn);
    }
    world.announce_from(0, 3..5, 11, 2);
    let records = world.take(0, Kind::Register);
    let users = records.iter().map(|record| wire::Register::decode(record.body.clone()).unwrap().user);
    assert_eq!(users.collect::<Vec<_>>(), [ann.clone(), bob], "also who does not acknowledge");
    assert!(resyncs(&world.seen(conns[0])).is_empty(), "not before it can be reached");
    let answer = |world: &mut World, record: &Record, epoch| {
        let wire::Register { user, device, login_number, .. } =
            wire::Register::decode(record.body.clone()).unwrap();
        let gateway_incarnation = 77;
        let body = wire::Registered { user, device, login_number, gateway_incarnation, ..Default::default() };
        world.say(0, Kind::Registered, record.partition, epoch, record.session.0, &body);
        world.run();
    };
    answer(&mut world, &records[0], 10);
    assert!(resyncs(&world.seen(conns[0])).is_empty(), "a former owner's answer");
    assert_eq!(world.shard.stats().stale_epochs, 1);
    let again = world.take(0, Kind::Register);
    assert_eq!(again.len(), 1, "is none: asked again");
    answer(&mut world, &again[0], 11);
    assert_eq!(resyncs(&world.seen(conns[0])).len(), 1);
}

#[test]
fn every_session_is_told_to_look_again_though_a_sweep_is_under_way() {
    let mut world = World::ready();
    let count = RESYNC_PER_S as u32 + 500;
    let all: Vec<Conn> = (0..count).map(|slot| owing(&mut world, slot, &format!("u{slot}"), &[])).collect();
    let told = |world: &mut World| -> Vec<usize> {
        // Those whose own partition it is register again, and look when that is answered.
        let registers: Vec<u64> =
            world.take(0, Kind::Register).iter().map(|record| record.session.0).collect();
        let is_registered = |world: &World, conn| usize::from(registers.contains(&world.id(conn)));
        all.iter().map(|conn| is_registered(world, *conn) + resyncs(&world.seen(*conn)).len()).collect()
    };
    told(&mut world);
    world.announce_from(0, 0..1, 11, 2);
    let first = told(&mut world);
    assert!(first.contains(&1) && first.contains(&0), "some of them, at a bounded rate");
    world.announce_from(0, 1..2, 11, 2);
    for _ in 0..30 {
        world.later(SECOND / 10);
    }
    let since = told(&mut world);
    assert_eq!(since.iter().position(|times| *times == 0), None, "everyone since the second announcement");
    let swept = world.shard.stats().resyncs_swept;
    world.later(5 * SECOND);
    assert_eq!(world.shard.stats().resyncs_swept, swept, "and then it ends");
}

#[test]
fn a_message_of_a_former_owner_makes_the_session_ask_the_present_one() {
    let mut world = World::ready();
    let ann = owing(&mut world, 1, "ann", &[]);
    let conversation = "d:ann:bob".to_owned();
    let partition = partition_of(&conversation, PARTITIONS);
    let target = wire::Target { session: world.id(ann), user: "ann".into(), ..Default::default() };
    let deliver = Deliver { conversation: conversation.clone(), seq: 7, epoch: 10, ..Default::default() };
    let notify = Notify { event: Some(notify::Event::Deliver(deliver)) }.encode_to_vec();
    let direct = wire::Direct { targets: vec![target], notify: notify.into() };
    world.say(0, Kind::Direct, partition, 10, 0, &direct);
    world.run();
    assert!(matches!(world.seen(ann)[..], [Seen::Notify(notify::Event::Deliver(_))]));
    world.announce(0, 0..PARTITIONS, 11);
    world.say(0, Kind::Direct, partition, 10, 0, &direct);
    world.run();
    assert_eq!(resyncs(&world.seen(ann)), [[conversation]]);
    assert_eq!(world.shard.stats().stale_epochs, 1);
}

#[test]
fn a_session_that_was_registered_again_looks_at_what_it_missed() {
    let mut world = World::ready();
    let ann = owing(&mut world, 0, "ann", &[]);
    let plain = world.session(1, "bob");
    world.seen(ann);
    world.lease(78, 1 << 40);
    world.announce(0, 0..PARTITIONS, 10);
    world.run();
    world.seen(ann);
    let records = world.take(0, Kind::Register);
    // The first answers come late, to what was asked under an incarnation of before.
    for incarnation in [77, 78] {
        for record in &records {
            let register = wire::Register::decode(record.body.clone()).unwrap();
            let wire::Register { user, device, login_number, .. } = register;
            let gateway_incarnation = incarnation;
            let body =
                wire::Registered { user, device, login_number, gateway_incarnation, ..Default::default() };
            world.say(0, Kind::Registered, record.partition, 10, record.session.0, &body);
        }
        world.run();
        let expected = if incarnation == 77 { vec![] } else { vec![Vec::<String>::new()] };
        assert_eq!(resyncs(&world.seen(ann)), expected, "nobody found its route meanwhile");
    }
    assert!(resyncs(&world.seen(plain)).is_empty(), "who does not acknowledge looks for itself");
}
