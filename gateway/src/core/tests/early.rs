//! What comes right behind a login, and what goes out right behind its answer.

use super::super::limits::{CORK_LOGINS, CORK_US, EARLY_BYTES_MAX, EARLY_REQUESTS_MAX};
use super::*;

#[test]
fn requests_behind_a_login_are_done_after_its_answer() {
    let mut world = World::ready();
    let mut speaks = ClientSession::tcp();
    let join = |room: &str| request::Op::RoomJoin(RoomJoin { room: room.into() });
    let mut bytes = frame_of(&mut speaks, &Request { id: 1, op: Some(login("alice")) });
    for (id, room) in [(2, "hall"), (3, "attic")] {
        bytes.extend(frame_of(&mut speaks, &Request { id, op: Some(join(room)) }));
    }
    let conn = world.accept(0, 1, speaks);
    world.receive(conn, bytes);
    world.run();
    assert!(world.seen(conn).is_empty() && world.take(0, Kind::Subscribe).is_empty());
    world.registered(&[], 1);
    assert!(matches!(response(&world.seen(conn)), response::Outcome::LoginAck(_)));
    world.subscribed(0, 10, 7);
    let answers: Vec<u64> = world
        .seen(conn)
        .into_iter()
        .map(|seen| match seen {
            Seen::Response(Response { id, outcome: Some(response::Outcome::Joined(joined)) }) => {
                assert_eq!(joined.head, 7);
                id
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(answers, [2, 3]);
    assert_eq!(world.shard.stats().early_requests, 2);
}

#[test]
fn requests_behind_a_login_have_limits_and_go_with_it() {
    for (rooms, name_bytes) in [(EARLY_REQUESTS_MAX, 1), (EARLY_BYTES_MAX / 500, 480)] {
        let mut world = World::ready();
        let conn = world.accept(0, 1, ClientSession::tcp());
        world.request(conn, 1, login("alice"));
        let room = "r".repeat(name_bytes);
        for id in 0..=rooms as u64 {
            assert!(world.seen(conn).is_empty());
            world.request(conn, 2 + id, request::Op::RoomJoin(RoomJoin { room: room.clone() }));
        }
        assert_eq!(refused(&world.seen(conn)), Code::LoginRequired);
        let stats = world.shard.stats();
        assert_eq!((stats.early_requests, stats.early_refused), (rooms as u64, 1));
        world.closed(conn);
        world.run();
        world.take(0, Kind::Register);
        world.assert_empty();
    }
}

/// As many logins under way.
fn log_in(world: &mut World, count: u32) -> Vec<Conn> {
    let log_in = |slot| {
        let conn = world.accept(slot, 1, ClientSession::tcp());
        world.request(conn, 1, login(&format!("u{slot}")));
        conn
    };
    (0..count).map(log_in).collect()
}

#[test]
fn what_follows_a_login_is_sent_with_it_when_many_come() {
    let mut world = World::ready();
    let crowd = CORK_LOGINS + 2;
    let conns = log_in(&mut world, crowd);
    let registers = world.take(0, Kind::Register);
    assert_eq!(registers.len(), crowd as usize);
    for (nth, record) in registers.into_iter().enumerate() {
        world.register(record, &["team"], 1 + nth as u64);
        world.subscribed(0, 10, 5);
    }
    // The first two found a crowd behind them; the others did not, and got two sends at once.
    let of = |seen: Vec<Seen>| (seen.len(), seen.iter().any(|seen| matches!(seen, Seen::Notify(_))));
    for (nth, &conn) in conns.iter().enumerate() {
        let corked = nth < 2;
        let sends = world.clients[&conn].sends;
        assert_eq!((of(world.seen(conn)), sends), if corked { ((0, false), 0) } else { ((2, true), 2) });
    }
    // A heartbeat meanwhile waits with the rest.
    world.receive(conns[0], vec![4, 0, 0, 0]);
    world.run();
    assert_eq!(world.clients[&conns[0]].sends, 0);
    world.at(world.now.mono_us + CORK_US);
    let seen = world.seen(conns[0]);
    assert!(matches!(
        &seen[..],
        [
            Seen::Response(Response { outcome: Some(response::Outcome::LoginAck(_)), .. }),
            Seen::Notify(notify::Event::Head(_)),
            Seen::Pong
        ]
    ));
    assert_eq!((world.seen(conns[1]).len(), world.clients[&conns[0]].sends), (2, 1));
    assert_eq!(world.shard.stats().corks, 2);
}

/// A session with a crowd behind it, so that it is corked; it is in a group.
fn corked() -> (World, Conn) {
    let mut world = World::ready();
    let conns = log_in(&mut world, CORK_LOGINS + 1);
    let record = world.take(0, Kind::Register).remove(0);
    world.register(record, &["team"], 1);
    assert_eq!((world.shard.stats().corks, world.clients[&conns[0]].sends), (1, 0));
    (world, conns[0])
}

#[test]
fn a_corked_session_that_logs_out_hears_everything_first() {
    let (mut world, conn) = corked();
    world.request(conn, 9, request::Op::Logout(Logout {}));
    assert!(world.seen(conn).is_empty() && !world.clients[&conn].shut);
    world.at(world.now.mono_us + CORK_US);
    let seen = world.seen(conn);
    assert!(matches!(&seen[0], Seen::Response(Response { id: 1, .. })));
    assert_eq!(go_away(&seen), Some(Code::LoggedOut));
    assert!(world.clients[&conn].shut);
}

#[test]
fn a_cork_is_not_for_the_next_user_of_its_slot() {
    let (mut world, conn) = corked();
    world.closed(conn);
    world.run();
    let next = world.accept(conn.slot, 2, ClientSession::tcp());
    world.clients.get_mut(&next).unwrap().stalled = true;
    // Its first answer is in flight, and must not be taken for sent when the cork of the other one is over.
    world.receive(next, vec![4, 0, 0, 0]);
    world.run();
    world.receive(next, vec![4, 0, 0, 0]);
    world.at(world.now.mono_us + CORK_US);
    assert_eq!(world.clients[&next].sends, 1);
}

#[test]
fn nothing_behind_a_refused_login_is_done() {
    let join = || request::Op::RoomJoin(RoomJoin { room: "hall".into() });
    // Refused by its credential, and by its partition.
    for user in ["bad", "alice"] {
        let mut world = World::ready();
        let conn = world.accept(0, 1, ClientSession::tcp());
        let speaks = &mut world.clients.get_mut(&conn).unwrap().speaks;
        let mut bytes = frame_of(speaks, &Request { id: 1, op: Some(login(user)) });
        bytes.extend(frame_of(speaks, &Request { id: 2, op: Some(join()) }));
        world.receive(conn, bytes);
        world.run();
        if user == "alice" {
            let (record, register) = world.take_one::<wire::Register>(0, Kind::Register);
            let body = wire::Registered {
                user: register.user,
                device: register.device,
                refused: Code::LimitReached as u32,
                reason: "too many".into(),
                ..Default::default()
            };
            world.say(0, Kind::Registered, record.partition, 10, record.session.0, &body);
            world.run();
        }
        let seen = world.seen(conn);
        let ids: Vec<u64> = seen
            .iter()
            .filter_map(|seen| match seen {
                Seen::Response(response) => Some(response.id),
                _ => None,
            })
            .collect();
        assert_eq!((ids, go_away(&seen).is_some()), (vec![1], true), "{user}");
        assert!(world.take(0, Kind::Subscribe).is_empty());
    }
}

#[test]
fn what_comes_behind_a_logout_is_not_done() {
    let mut world = World::ready();
    let conn = world.accept(0, 1, ClientSession::tcp());
    world.request(conn, 1, login("alice"));
    world.request(conn, 2, request::Op::Logout(Logout {}));
    world.request(conn, 3, request::Op::RoomJoin(RoomJoin { room: "hall".into() }));
    assert!(world.seen(conn).is_empty());
    world.registered(&[], 1);
    let seen = world.seen(conn);
    assert_eq!(go_away(&seen), Some(Code::LoggedOut));
    assert!(world.take(0, Kind::Subscribe).is_empty());
}
