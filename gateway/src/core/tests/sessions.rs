//! Clients: login, heartbeats, refusals, closing, drain.

use super::*;

fn open_ws() -> (ClientSession, Vec<u8>) {
    ClientSession::websocket("localhost", "/", [7; 16])
}

/// Logs in with the bytes cut at `cut`; 0: not at all.
fn check_login(websocket: bool, cut: usize) {
    let mut world = World::ready();
    let (speaks, hello) = if websocket { open_ws() } else { (ClientSession::tcp(), Vec::new()) };
    let conn = world.accept(5, 2, speaks);
    if websocket {
        let (a, b) = hello.split_at(cut.min(hello.len()));
        world.receive(conn, a.to_vec());
        world.receive(conn, b.to_vec());
        world.run();
        assert_eq!(world.seen(conn), [Seen::Open]);
    }
    let request = Request { id: 9, op: Some(login("alice")) };
    let bytes = frame_of(&mut world.clients.get_mut(&conn).unwrap().speaks, &request);
    let (a, b) = bytes.split_at(cut.min(bytes.len()));
    world.receive(conn, a.to_vec());
    world.receive(conn, b.to_vec());
    world.run();
    world.registered(&[], 41);
    let seen = world.seen(conn);
    let response::Outcome::LoginAck(ack) = response(&seen) else { panic!("{seen:?}") };
    assert_eq!((ack.session, ack.user.as_str()), (world.id(conn), "alice"));
    assert_eq!((ack.heartbeat_interval_ms, &ack.resume_ticket[..]), (30_000, &b"alice/phone/41"[..]));
    let infos = world.shard.sessions_of("alice");
    assert_eq!((infos.len(), infos[0].websocket, infos[0].login_number), (1, websocket, 41));
    assert_eq!((infos[0].device.as_str(), infos[0].platform.as_str()), ("phone", "ios"));
    world.request(conn, 10, request::Op::Logout(Logout {}));
    let seen = world.seen(conn);
    assert_eq!(
        (response(&seen), go_away(&seen)),
        (response::Outcome::LoggedOut(LoggedOut {}), Some(Code::LoggedOut))
    );
    assert_eq!(seen.iter().any(|seen| matches!(seen, Seen::WsClose(4025))), websocket);
    assert!(world.clients[&conn].shut);
    let (record, unregister) = world.take_one::<wire::Unregister>(0, Kind::Unregister);
    assert_eq!((record.session.0, unregister.login_number), (world.id(conn), 41));
    assert_eq!(unregister.gateway_incarnation, config().incarnation);
    // It does not leave by itself: closed a second later.
    world.later(2 * SECOND);
    assert!(world.clients.is_empty() && world.closes == [conn]);
    world.assert_empty();
}

#[test]
fn a_login_over_tcp_and_websocket_cut_anywhere() {
    for cut in 0..60 {
        check_login(false, cut);
        check_login(true, cut);
    }
}

#[test]
fn what_is_not_a_login_is_refused() {
    let send = request::Op::Send(Send { conversation: "r:x".into(), ..Default::default() });
    let cases: [(Vec<u8>, Code); 7] = [
        (frame_of(&mut ClientSession::tcp(), &Request { id: 0, op: Some(login("alice")) }), Code::BadRequest),
        (frame_of(&mut ClientSession::tcp(), &Request { id: 1, op: Some(send) }), Code::LoginRequired),
        (frame_of(&mut ClientSession::tcp(), &Request { id: 1, op: None }), Code::LoginRequired),
        (vec![9, 0, 0, 0], Code::UnknownKind),
        (vec![1, 0xff, 0xff, 0xff], Code::TooBig),
        (vec![1, 0, 0, 2, 0xff, 0xff], Code::BadBody),
        (vec![4, 0, 0, 1, 0], Code::ProtocolError),
    ];
    for (bytes, code) in cases {
        let mut world = World::ready();
        let conn = world.accept(0, 0, ClientSession::tcp());
        world.receive(conn, vec![4, 0, 0, 0]);
        world.run();
        assert_eq!(world.seen(conn), [Seen::Pong], "a heartbeat is allowed");
        world.receive(conn, bytes);
        world.run();
        assert_eq!(go_away(&world.seen(conn)), Some(code));
        assert!(world.clients[&conn].shut);
        world.receive(conn, vec![4, 0, 0, 0]);
        world.run();
        assert!(world.seen(conn).is_empty(), "input after that is ignored");
        world.closed(conn);
        world.assert_empty();
    }
}

#[test]
fn logins_are_refused_with_a_reason() {
    let bad_device = || match login("alice") {
        request::Op::Login(login) => request::Op::Login(client::Login { device: "a/b".into(), ..login }),
        other => other,
    };
    type Prepare = fn(&mut World);
    let cases: [(Prepare, request::Op, Code); 4] = [
        (|_| {}, login("bad"), Code::BadToken),
        (|world| world.lease(77, 1), login("alice"), Code::Unavailable),
        (|_| {}, bad_device(), Code::BadRequest),
        (|world| world.step(Event::Drain { deadline_us: u64::MAX }), login("alice"), Code::GoingAway),
    ];
    for (prepare, op, code) in cases {
        let mut world = World::ready();
        prepare(&mut world);
        world.run();
        let conn = world.accept(0, 0, ClientSession::tcp());
        world.request(conn, 1, op);
        let seen = world.seen(conn);
        assert_eq!((refused(&seen), go_away(&seen)), (code, Some(code)));
        world.closed(conn);
        world.assert_empty();
    }
}

#[test]
fn a_login_waits_for_its_route_and_its_deadline_is_absolute() {
    let mut world = World::with(config());
    world.lease(77, 1 << 40);
    let [silent, waiting] = [0, 1].map(|slot| world.accept(slot, 0, ClientSession::tcp()));
    world.request(waiting, 1, login("alice"));
    world.later(8 * SECOND);
    world.receive(silent, vec![4, 0, 0, 0]);
    world.later(SECOND);
    assert_eq!(world.seen(silent), [Seen::Pong], "a heartbeat does not move the deadline");
    world.later(3 * SECOND / 2);
    assert_eq!(go_away(&world.seen(silent)), Some(Code::LoginTimeout));
    assert_eq!(refused(&world.seen(waiting)), Code::Unavailable);
    world.later(2 * SECOND);
    assert!(world.clients.is_empty());
    world.assert_empty();
    assert_eq!(world.shard.stats().login_timeouts, 2);
}

#[test]
fn heartbeats_store_a_tick_and_the_wheel_looks_late() {
    let mut world = World::ready();
    let conns: Vec<Conn> = (0..50).map(|slot| world.session(slot, &format!("user{slot}"))).collect();
    let begin = world.now.mono_us;
    for beat in 1..=20 {
        world.later(20 * SECOND);
        for conn in &conns {
            world.receive(*conn, vec![4, 0, 0, 0]);
        }
        world.run();
        assert_eq!(world.shard.stats().wheel_entries, 50, "beat {beat}: no entry per beat");
    }
    assert_eq!(world.now.mono_us - begin, 400 * SECOND);
    assert_eq!(world.shard.stats().heartbeat_timeouts, 0);
    conns.iter().for_each(|conn| assert!(world.seen(*conn).iter().all(|seen| *seen == Seen::Pong)));
    // Silence: closed after 75 s at the earliest, spread over the ninth that follows.
    world.later(75 * SECOND - SECOND / 2);
    assert_eq!(world.shard.stats().heartbeat_timeouts, 0);
    let mut counts = Vec::new();
    for _ in 0..24 {
        world.later(SECOND / 2);
        counts.push(world.shard.stats().heartbeat_timeouts);
    }
    assert_eq!(*counts.last().unwrap(), 50);
    let steps = counts.windows(2).filter(|pair| pair[1] > pair[0]).count();
    assert!(steps >= 8, "spread: {counts:?}");
    world.later(2 * SECOND);
    world.assert_empty();
}

#[test]
fn heartbeats_shorter_than_the_login_deadline_are_kept_to() {
    let mut world = World::ready_with(Config { heartbeat_interval_ms: 400, ..config() });
    let (silent, beating) = (world.session(0, "alice"), world.session(1, "bob"));
    for _ in 0..8 {
        world.later(SECOND / 4);
        world.receive(beating, vec![4, 0, 0, 0]);
        world.run();
    }
    assert_eq!(world.shard.stats().heartbeat_timeouts, 1, "after 2 s, long before the login's 10 s");
    assert!(matches!(&world.seen(silent)[..], [Seen::Notify(notify::Event::GoAway(away))]
        if away.code() == Code::HeartbeatTimeout));
    assert!(world.seen(beating).iter().all(|seen| *seen == Seen::Pong));
}

#[test]
fn a_used_slot_starts_afresh() {
    let mut world = World::ready();
    let old = world.session(4, "alice");
    world.join(old, "r1", 3);
    world.request(
        old,
        7,
        request::Op::Send(Send {
            conversation: "r:r1".into(),
            client_seq: 1,
            stream: 1,
            ..Default::default()
        }),
    );
    let (record, asked) = world.take_one::<wire::ClientRequest>(0, Kind::ClientRequest);
    let old_id = world.id(old);
    world.closed(old);
    let new = world.accept(4, 2, ClientSession::tcp());
    world.request(new, 1, login("bob"));
    let (register, _) = world.take_one::<wire::Register>(0, Kind::Register);
    // Everything that was for the former session.
    let reply = wire::Reply {
        token: asked.token,
        response: Response { id: 7, outcome: Some(response::Outcome::SendAck(SendAck::default())) }
            .encode_to_vec()
            .into(),
        ..Default::default()
    };
    world.say(0, Kind::Reply, record.partition, 10, old_id, &reply);
    let target = wire::Target {
        session: old_id,
        user: "alice".into(),
        device: "phone".into(),
        login_number: 5,
        gateway_incarnation: 9,
    };
    let direct = wire::Direct { targets: vec![target], notify: fan_out("d:a:b", 1, 10, 0, 1).notify };
    world.say(0, Kind::Direct, 0, 10, 0, &direct);
    world.fan_out(0, 10, "r:r1", 4, 0);
    let registered = wire::Registered { user: "alice".into(), device: "phone".into(), ..Default::default() };
    world.say(0, Kind::Registered, 0, 10, old_id, &registered);
    world.step(Event::Sent { conn: old });
    world.step(Event::Verified {
        conn: old,
        verdict: Err(Refusal { code: Code::BadToken, reason: "".into(), retry_after_ms: 0 }),
    });
    world.step(Event::Received { conn: old, bytes: &mut [9, 9, 9, 9] });
    world.step(Event::Closed { conn: old });
    world.run();
    assert_eq!(world.seen(new), []);
    let (_, no_session) = world.take_one::<wire::NoSession>(0, Kind::NoSession);
    assert_eq!((no_session.session, no_session.user.as_str()), (old_id, "alice"));
    assert_eq!((no_session.login_number, no_session.gateway_incarnation), (5, 9));
    let body = wire::Registered {
        user: "bob".into(),
        device: "phone".into(),
        login_number: 6,
        gateway_incarnation: config().incarnation,
        ..Default::default()
    };
    world.say(0, Kind::Registered, register.partition, 10, register.session.0, &body);
    world.run();
    assert!(matches!(response(&world.seen(new)), response::Outcome::LoginAck(_)));
    world.closed(new);
    world.run();
    world.assert_empty();
}

#[test]
fn a_displaced_session_is_told_and_close_is_answered_always() {
    let mut world = World::ready();
    let conn = world.session(1, "alice");
    let close = wire::Close {
        user: "alice".into(),
        device: "phone".into(),
        login_number: 2,
        code: Code::Displaced as u32,
        reason: "newer".into(),
    };
    let resumed = SessionId(world.id(conn) + (1 << 20));
    world.say(0, Kind::Close, 0, 10, resumed.0, &close);
    world.run();
    assert!(world.seen(conn).is_empty(), "another session, whatever its number");
    let closed = world.take(0, Kind::Closed);
    assert_eq!(closed.iter().map(|closed| closed.session).collect::<Vec<_>>(), [resumed]);
    let id = world.id(conn);
    world.say(0, Kind::Close, 0, 10, id, &close);
    world.run();
    assert_eq!(go_away(&world.seen(conn)), Some(Code::Displaced));
    assert_eq!(world.take(0, Kind::Closed).len(), 1);
    assert!(world.take(0, Kind::Unregister).is_empty(), "the route is the winner's by now");
    world.closed(conn);
    world.assert_empty();
}

/// A message for alice's phone, at this connection.
fn direct_to_alice(world: &mut World, conn: Conn) {
    let target = wire::Target {
        session: world.id(conn),
        user: "alice".into(),
        device: "phone".into(),
        ..Default::default()
    };
    let direct = wire::Direct { targets: vec![target], notify: fan_out("d:alice:b", 1, 10, 0, 1).notify };
    world.say(0, Kind::Direct, 0, 10, 0, &direct);
}

#[test]
fn a_direct_message_waits_for_login_ack() {
    let mut world = World::ready();
    let conn = world.accept(1, 1, ClientSession::tcp());
    world.request(conn, 1, login("alice"));
    direct_to_alice(&mut world, conn);
    world.receive(conn, vec![4, 0, 0, 0]);
    world.run();
    assert_eq!(world.seen(conn), [Seen::Pong]);
    world.registered(&[], 5);
    let seen = world.seen(conn);
    assert!(matches!(&seen[..], [Seen::Response(_), Seen::Notify(notify::Event::Deliver(_))]), "{seen:?}");
}

#[test]
fn a_direct_message_that_waits_for_login_ack_is_dropped_without_one() {
    for (sending, displaced) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut world = World::ready();
        let conn = world.accept(1, 1, ClientSession::tcp());
        world.request(conn, 1, login("alice"));
        let (record, register) = world.take_one::<wire::Register>(0, Kind::Register);
        if sending {
            // An answer is with the edge when the login fails: what is behind it is dropped all the same.
            world.clients.get_mut(&conn).unwrap().stalled = true;
            world.receive(conn, vec![4, 0, 0, 0]);
        }
        direct_to_alice(&mut world, conn);
        world.run();
        let (user, device) = (register.user, register.device);
        if displaced {
            let (code, reason) = (Code::Displaced as u32, "newer".into());
            let close = wire::Close { user, device, login_number: 2, code, reason };
            world.say(0, Kind::Close, record.partition, 10, record.session.0, &close);
        } else {
            let body = wire::Registered { user, device, refused: Code::Busy as u32, ..Default::default() };
            world.say(0, Kind::Registered, record.partition, 10, record.session.0, &body);
        }
        world.run();
        world.resume(conn);
        world.run();
        let seen = world.seen(conn);
        assert_eq!(told(&seen), [], "{sending} {displaced}: {seen:?}");
        let code = if displaced { Code::Displaced } else { refused(&seen) };
        assert_eq!(go_away(&seen), Some(code), "{sending} {displaced}: {seen:?}");
        assert_eq!(seen.contains(&Seen::Pong), sending);
        world.closed(conn);
        world.assert_empty();
    }
}

#[test]
fn requests_are_checked_here() {
    let send = |conversation: &str, client_seq, stream, bytes: usize| {
        request::Op::Send(Send {
            conversation: conversation.into(),
            client_seq,
            stream,
            payload: vec![0; bytes].into(),
            ..Default::default()
        })
    };
    let group = |name: &str| request::Op::GroupJoin(GroupJoin { group: name.into() });
    let cases = [
        (2, send("d:bob:carol", 1, 1, 1), Code::Forbidden),
        (2, send("d:bob:alice", 1, 1, 1), Code::BadRequest),
        (2, send("x:y", 1, 1, 1), Code::BadRequest),
        (2, send("r:lobby", 1, 1, 1), Code::NotJoined),
        (2, send("d:alice:bob", 0, 1, 1), Code::BadRequest),
        (2, send("d:alice:bob", 1, 0, 1), Code::BadRequest),
        (2, send("d:alice:bob", 1, 1, (64 << 10) + 1), Code::PayloadTooLarge),
        (0, send("d:alice:bob", 1, 1, 1), Code::BadRequest),
        (2, group("no name"), Code::BadRequest),
        (2, request::Op::RoomJoin(RoomJoin { room: "".into() }), Code::BadRequest),
        (2, request::Op::RoomLeave(RoomLeave { room: "lobby".into() }), Code::NotJoined),
        (2, login("alice"), Code::AlreadyLoggedIn),
    ];
    let mut world = World::ready();
    let conn = world.session(0, "alice");
    let count = cases.len() as u64;
    for (id, op, code) in cases {
        world.request(conn, id, op.clone());
        assert_eq!(refused(&world.seen(conn)), code, "{op:?}");
    }
    assert_eq!(world.shard.stats().requests_refused, count);
    assert!(world.take(0, Kind::ClientRequest).is_empty());
    world.request(conn, 3, send("d:alice:bob", 1, 1, 64 << 10));
    assert_eq!(world.take(0, Kind::ClientRequest).len(), 1);
}

#[test]
fn a_drain_tells_everybody_and_spreads_their_return() {
    let mut world = World::ready();
    for slot in 0..300 {
        world.session(slot, &format!("user{slot}"));
    }
    let deadline_us = world.now.mono_us + 3 * SECOND;
    world.step(Event::Drain { deadline_us });
    world.run();
    let mut waits = Vec::new();
    for conn in world.clients.keys().copied().collect::<Vec<_>>() {
        let seen = world.seen(conn);
        let Some(Seen::Notify(notify::Event::GoAway(away))) = seen.last() else { panic!("{seen:?}") };
        assert_eq!(away.code(), Code::GoingAway);
        waits.push(away.retry_after_ms);
        assert!(world.clients[&conn].shut);
    }
    assert!(waits.iter().all(|ms| (1..=300).contains(ms)));
    assert!(waits.iter().filter(|ms| **ms <= 150).count() > 100, "{waits:?}");
    assert_eq!(world.take(0, Kind::Unregister).len(), 300);
    world.later(4 * SECOND);
    assert!(world.clients.is_empty());
    world.assert_empty();
}

#[test]
fn a_drain_within_a_websocket_s_handshake_is_told_in_http() {
    let mut world = World::ready();
    let (speaks, hello) = open_ws();
    let conn = world.accept(5, 2, speaks);
    world.receive(conn, hello[..64].to_vec());
    world.step(Event::Drain { deadline_us: world.now.mono_us + 3 * SECOND });
    world.run();
    let seen = world.seen(conn);
    let [Seen::Notify(notify::Event::GoAway(away))] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!((away.code(), away.retry_after_ms), (Code::Unavailable, 1_000));
    assert!(world.clients[&conn].shut);
    world.closed(conn);
    world.assert_empty();
}

#[test]
fn a_new_incarnation_registers_everybody_again_at_a_bounded_rate() {
    let config = Config { seed: 1, ..config() };
    let mut world = World::ready_with(config);
    let conns: Vec<Conn> = (0..3_000).map(|slot| world.session(slot, &format!("user{slot}"))).collect();
    world.join(conns[0], "lobby", 4);
    world.later(2 * SECOND);
    world.lease(78, 1 << 40);
    assert_eq!(world.nodes[0].ups, [true, true], "the link starts afresh");
    let renewals = world.take(0, Kind::Lease);
    let renewals = renewals.into_iter().map(|record| wire::Lease::decode(record.body.clone()).unwrap());
    let renewals: Vec<_> = renewals.map(|lease| (lease.incarnation, lease.replaces)).collect();
    assert!(renewals.contains(&(77, 0)) && renewals.contains(&(78, 77)), "{renewals:?}");
    world.announce(0, 0..PARTITIONS, 10);
    let again = world.subscribed(0, 10, 4);
    assert_eq!((again.len(), again[0].last_seq), (1, 4));
    let first = world.take(0, Kind::Register);
    assert!((1..=2_000).contains(&first.len()), "{}", first.len());
    world.later(SECOND);
    let second = world.take(0, Kind::Register);
    assert_eq!(first.len() + second.len(), 3_000);
    for (at, record) in first.into_iter().chain(second).enumerate() {
        let register = wire::Register::decode(record.body).unwrap();
        assert_eq!(register.gateway_incarnation, 78);
        assert_eq!(register.login_number, u64::from(record.session.slot()) + 1, "it keeps its number");
        let lost = at == 7;
        let busy = at == 9;
        let body = wire::Registered {
            user: register.user,
            device: register.device,
            login_number: register.login_number,
            refused: match (lost, busy) {
                (true, _) => Code::Displaced as u32,
                (_, true) => Code::Busy as u32,
                _ => 0,
            },
            gateway_incarnation: register.gateway_incarnation,
            ..Default::default()
        };
        world.say(0, Kind::Registered, record.partition, 10, record.session.0, &body);
    }
    world.run();
    assert_eq!(world.shard.stats().displaced, 1);
    world.later(5 * SECOND);
    let mut again = world.take(0, Kind::Register);
    again.dedup_by_key(|record| record.session);
    assert_eq!(again.len(), 1, "only what could not be written is sent again");
    assert_eq!(world.clients.len(), 2_999);
}

#[test]
fn a_late_answer_to_a_former_incarnation_has_the_session_registered_once_more() {
    let mut world = World::ready();
    let conn = world.session(0, "alice");
    world.lease(78, 1 << 40);
    world.announce(0, 0..PARTITIONS, 10);
    let answer = |world: &mut World, incarnation| {
        let registered = wire::Registered {
            user: "alice".into(),
            device: "phone".into(),
            login_number: 1,
            gateway_incarnation: incarnation,
            ..Default::default()
        };
        let partition = user_partition("alice", PARTITIONS);
        world.say(0, Kind::Registered, partition, 10, world.id(conn), &registered);
        world.run();
    };
    let asked = |world: &mut World| {
        world.later(SECOND / 2);
        let asked = world.take(0, Kind::Register).into_iter();
        asked.map(|it| wire::Register::decode(it.body).unwrap().gateway_incarnation).collect::<Vec<_>>()
    };
    assert_eq!(asked(&mut world), [78]);
    answer(&mut world, 78);
    assert!(asked(&mut world).is_empty(), "it is answered");
    // What was sent under the former incarnation was on its way all the time, and is carried out now.
    answer(&mut world, 77);
    assert_eq!(asked(&mut world), [78], "its route is void, and has taken the place of the other one");
    answer(&mut world, 78);
    assert!(asked(&mut world).is_empty());
}

#[test]
fn shard_0_renews_the_lease_by_another_node_when_one_is_silent() {
    let config = Config { seeds: vec![("".into(), "a:1".into()), ("".into(), "b:1".into())], ..config() };
    let mut world = World::with(config);
    world.connect(0);
    world.connect(1);
    for _ in 0..5 {
        world.later(SECOND);
    }
    let [a, b] = [0, 1].map(|node| world.take(node, Kind::Lease));
    assert!(a.len() >= 2 && b.len() >= 2, "{} {}", a.len(), b.len());
    let lease = wire::Lease::decode(a[0].body.clone()).unwrap();
    let answer = wire::LeaseAnswer {
        gateway: lease.gateway,
        incarnation: lease.incarnation,
        sent_us: lease.sent_us,
        grant: 1,
        ..Default::default()
    };
    world.say(0, Kind::LeaseAnswer, 0, 0, 0, &answer);
    world.run();
    assert_eq!(world.lease_answers, 1);
    let other = wire::LeaseAnswer { incarnation: 1, ..answer };
    world.say(0, Kind::LeaseAnswer, 0, 0, 0, &other);
    world.run();
    assert_eq!(world.lease_answers, 1, "of another incarnation");
}

#[test]
fn limits_at_the_door() {
    let mut world = World::ready_with(Config { unauthenticated_max: 2, logins_per_s: 1, ..config() });
    let conns = [0, 1, 2].map(|slot| world.accept(slot, 0, ClientSession::tcp()));
    world.run();
    assert_eq!(world.closes, [conns[2]]);
    world.request(conns[0], 1, login("alice"));
    world.request(conns[1], 1, login("bob"));
    assert_eq!(refused(&world.seen(conns[1])), Code::Busy);
    let stats = world.shard.stats();
    assert_eq!((stats.accept_refused, stats.login_rate_limited, stats.unauthenticated), (1, 1, 1));
}
