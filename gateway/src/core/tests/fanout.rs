//! Conversations: order, slow readers, fairness, holes, membership.

use super::*;

#[test]
fn everybody_gets_everything_in_order_but_the_sender() {
    let mut world = World::ready();
    let conns: Vec<Conn> = (0..10).map(|slot| world.session(slot, &format!("user{slot}"))).collect();
    for conn in &conns {
        world.join(*conn, "lobby", 7);
    }
    assert_eq!(world.shard.stats().subscribes, 1);
    world.clients.get_mut(&conns[3]).unwrap().stalled = true;
    let sender = world.id(conns[5]);
    for seq in 8..=20 {
        world.fan_out(0, 10, "r:lobby", seq, if seq == 9 { sender } else { 0 });
        world.run();
    }
    world.fan_out(0, 10, "r:lobby", 20, 0);
    world.fan_out(0, 9, "r:lobby", 21, 0);
    world.run();
    let stats = world.shard.stats();
    assert_eq!((stats.duplicates, stats.stale_epochs), (1, 1));
    let all: Vec<Told> = (8..=20).map(Told::Seq).collect();
    for conn in &conns {
        let expected: Vec<Told> = match conn.slot {
            3 => vec![Told::Seq(8)],
            5 => all.iter().filter(|told| **told != Told::Seq(9)).copied().collect(),
            _ => all.clone(),
        };
        assert_eq!(told(&world.seen(*conn)), expected, "{conn:?}");
    }
    let sends = world.clients[&conns[3]].sends;
    world.resume(conns[3]);
    assert_eq!(told(&world.seen(conns[3])), all[1..]);
    assert_eq!(world.clients[&conns[3]].sends, sends + 1, "what waited goes in one send");
    for conn in conns {
        world.closed(conn);
    }
    world.run();
    let (_, unsubscribe) = world.take_one::<wire::Unsubscribe>(0, Kind::Unsubscribe);
    assert_eq!(unsubscribe.conversation, "r:lobby");
    world.assert_empty();
}

#[test]
fn a_slow_consumer_costs_its_cap_and_nobody_else() {
    let mut world = World::ready();
    let [slow, quick] = [0, 1].map(|slot| world.session(slot, &format!("user{slot}")));
    world.join(slow, "lobby", 0);
    world.join(quick, "lobby", 0);
    world.clients.get_mut(&slow).unwrap().stalled = true;
    for seq in 1..=20 {
        let body = fan_out("r:lobby", seq, 10, 0, 32 << 10);
        world.say(0, Kind::FanOut, partition_of("r:lobby", PARTITIONS), 10, 0, &body);
        world.run();
        assert!(world.shard.stats().outbox_bytes <= 257 << 10);
    }
    assert_eq!(told(&world.seen(quick)).len(), 20);
    assert_eq!(world.shard.stats().slow_consumers, 1);
    world.clients.get_mut(&slow).unwrap().stalled = false;
    assert_eq!(told(&world.seen(slow)), [Told::Seq(1)]);
    world.sent(slow);
    world.run();
    assert_eq!(go_away(&world.seen(slow)), Some(Code::SlowConsumer));
    world.closed(slow);
    world.closed(quick);
    world.run();
    world.assert_empty();
}

#[test]
fn passes_share_the_turn() {
    let mut world = World::ready();
    let crowd: Vec<Conn> = (0..300).map(|slot| world.session(slot, &format!("user{slot}"))).collect();
    for conn in &crowd {
        world.join(*conn, "big", 0);
    }
    let few: Vec<Conn> = (300..304).map(|slot| world.session(slot, &format!("user{slot}"))).collect();
    for conn in &few {
        world.join(*conn, "small", 0);
    }
    let before: usize = world.clients.values().map(|client| client.sends).sum();
    for room in ["r:big", "r:small"] {
        world.fan_out(0, 10, room, 1, 0);
    }
    // Carries the records over; the shard has not turned yet.
    world.pump();
    let wait = world.turn();
    assert!(wait.more);
    let after: usize = world.clients.values().map(|client| client.sends).sum();
    assert_eq!(after - before, 64, "a turn's budget");
    for conn in &few {
        assert_eq!(told(&world.seen(*conn)), [Told::Seq(1)], "the small room does not wait for the big one");
    }
    // A second message of the big room waits for its pass, and nobody gets it first.
    world.fan_out(0, 10, "r:big", 2, 0);
    world.run();
    for conn in &crowd {
        assert_eq!(told(&world.seen(*conn)), [Told::Seq(1), Told::Seq(2)]);
    }
    // A bitmap by now: 300 members of 4096 slots.
    for conn in crowd.iter().take(299) {
        world.closed(*conn);
    }
    world.fan_out(0, 10, "r:big", 3, 0);
    world.run();
    assert_eq!(told(&world.seen(crowd[299])), [Told::Seq(3)]);
}

#[test]
fn who_joins_during_a_pass_gets_what_comes_after_its_head() {
    let mut world = World::ready();
    let conns: Vec<Conn> = (0..200).map(|slot| world.session(2 * slot, &format!("user{slot}"))).collect();
    let late = world.session(301, "late");
    let early = world.session(1, "early");
    for conn in &conns {
        world.join(*conn, "lobby", 0);
    }
    world.fan_out(0, 10, "r:lobby", 1, 0);
    world.pump();
    assert!(world.turn().more);
    for conn in [late, early] {
        let op = request::Op::RoomJoin(RoomJoin { room: "lobby".into() });
        let bytes =
            frame_of(&mut world.clients.get_mut(&conn).unwrap().speaks, &Request { id: 3, op: Some(op) });
        world.receive(conn, bytes);
    }
    world.fan_out(0, 10, "r:lobby", 2, 0);
    world.run();
    for conn in [late, early] {
        let seen = world.seen(conn);
        let response::Outcome::Joined(joined) = response(&seen) else { panic!("{seen:?}") };
        assert_eq!((joined.head, told(&seen)), (1, vec![Told::Seq(2)]));
    }
    for conn in conns {
        assert_eq!(told(&world.seen(conn)), [Told::Seq(1), Told::Seq(2)]);
    }
}

/// Logs a session into group g1, subscribed at `head`.
fn member(world: &mut World, slot: u32, user: &str, head: u64) -> Conn {
    let conn = world.accept(slot, 1, ClientSession::tcp());
    world.request(conn, 1, login(user));
    world.registered(&["g1"], u64::from(slot) + 1);
    let response::Outcome::LoginAck(ack) = response(&world.seen(conn)) else { panic!() };
    assert_eq!(ack.groups, 1);
    let asked = world.subscribed(0, 10, head);
    assert_eq!((asked.len(), &asked[0].users[..]), (1, &[user.to_owned()][..]));
    assert_eq!(told(&world.seen(conn)), [Told::Head(10, head)]);
    conn
}

#[test]
fn a_hole_is_fetched_and_nothing_overtakes_it() {
    let mut world = World::ready();
    let conn = member(&mut world, 0, "alice", 4);
    for seq in [5, 8, 9, 11] {
        world.fan_out(0, 10, "g:g1", seq, 0);
    }
    world.run();
    assert_eq!(told(&world.seen(conn)), [Told::Seq(5)]);
    let (record, fetch) = world.take_one::<wire::Fetch>(0, Kind::Fetch);
    assert_eq!((fetch.after_seq, fetch.through_seq), (5, 7));
    let page = |seqs: &[u64], first_seq, head| wire::Page {
        conversation: "g:g1".into(),
        messages: seqs.iter().map(|seq| fan_out("g:g1", *seq, 10, 0, 8)).collect(),
        first_seq,
        head,
    };
    world.say(0, Kind::Page, record.partition, 10, 0, &page(&[6], 1, 11));
    world.run();
    let (_, fetch) = world.take_one::<wire::Fetch>(0, Kind::Fetch);
    assert_eq!((fetch.after_seq, fetch.through_seq), (6, 7), "a page may hold less");
    assert_eq!(told(&world.seen(conn)), [Told::Seq(6)]);
    world.say(0, Kind::Page, record.partition, 10, 0, &page(&[7], 1, 11));
    world.run();
    assert_eq!(told(&world.seen(conn)), [7, 8, 9].map(Told::Seq));
    let (_, fetch) = world.take_one::<wire::Fetch>(0, Kind::Fetch);
    assert_eq!((fetch.after_seq, fetch.through_seq), (9, 10));
    // The log was trimmed: 10 is nowhere.
    world.say(0, Kind::Page, record.partition, 10, 0, &page(&[], 11, 11));
    world.run();
    assert_eq!(told(&world.seen(conn)), [Told::Gap(10, 10), Told::Seq(11)]);
    // The link had no credit: only a mark came.
    let gap = wire::Gap { conversation: "g:g1".into(), head: 13 };
    world.say(0, Kind::Gap, record.partition, 10, 0, &gap);
    world.run();
    let (_, fetch) = world.take_one::<wire::Fetch>(0, Kind::Fetch);
    assert_eq!((fetch.after_seq, fetch.through_seq), (11, 13));
    // No answer, three times: told as missing.
    world.later(10 * SECOND);
    assert_eq!(world.take(0, Kind::Fetch).len(), 2);
    assert_eq!(told(&world.seen(conn)), [Told::Gap(12, 13)]);
    world.fan_out(0, 10, "g:g1", 14, 0);
    world.run();
    assert_eq!(told(&world.seen(conn)), [Told::Seq(14)]);
    world.closed(conn);
    world.run();
    world.assert_empty();
}

#[test]
fn a_room_tells_its_gaps() {
    let mut world = World::ready();
    let conn = world.session(0, "alice");
    world.join(conn, "lobby", 0);
    for seq in [1, 5] {
        world.fan_out(0, 10, "r:lobby", seq, 0);
    }
    let gap = wire::Gap { conversation: "r:lobby".into(), head: 8 };
    world.say(0, Kind::Gap, partition_of("r:lobby", PARTITIONS), 10, 0, &gap);
    world.fan_out(0, 10, "r:lobby", 7, 0);
    world.fan_out(0, 10, "r:lobby", 9, 0);
    world.run();
    let expected = [Told::Seq(1), Told::Gap(2, 4), Told::Seq(5), Told::Gap(6, 8), Told::Seq(9)];
    assert_eq!(told(&world.seen(conn)), expected);
    assert!(world.take(0, Kind::Fetch).is_empty());
}

#[test]
fn members_come_and_go() {
    let mut world = World::ready();
    let alice = member(&mut world, 0, "alice", 4);
    let bob = world.session(1, "bob");
    // Bob creates nothing and is added elsewhere: attached on the owner's word.
    let target = |conn: Conn, user: &str, world: &World| wire::Target {
        session: world.id(conn),
        user: user.into(),
        device: "phone".into(),
        ..Default::default()
    };
    let partition = partition_of("g:g1", PARTITIONS);
    let attach = wire::Attach {
        conversation: "g:g1".into(),
        targets: vec![target(bob, "bob", &world), target(bob, "carol", &world)],
    };
    world.say(0, Kind::Attach, partition, 10, 0, &attach);
    world.run();
    assert_eq!(world.take(0, Kind::NoSession).len(), 1, "not carol's session");
    world.subscribed(0, 10, 4);
    assert_eq!(told(&world.seen(bob)), [Told::Head(10, 4)]);
    world.fan_out(0, 10, "g:g1", 5, 0);
    world.run();
    assert_eq!((told(&world.seen(alice)), told(&world.seen(bob))), (vec![Told::Seq(5)], vec![Told::Seq(5)]));
    let remove = wire::Remove { conversation: "g:g1".into(), users: vec!["bob".into()], members_version: 9 };
    world.say(0, Kind::Remove, partition, 10, 0, &remove);
    world.fan_out(0, 10, "g:g1", 6, 0);
    world.run();
    assert_eq!((told(&world.seen(alice)), told(&world.seen(bob))), (vec![Told::Seq(6)], vec![Told::Removed]));
    // A client joins by request: attached before its answer, as of the owner's head.
    world.request(bob, 8, request::Op::GroupJoin(GroupJoin { group: "g1".into() }));
    let (record, asked) = world.take_one::<wire::ClientRequest>(0, Kind::ClientRequest);
    let joined = Joined { conversation: "g:g1".into(), epoch: 10, head: 7, members: 2 };
    let reply = wire::Reply {
        token: asked.token,
        response: Response { id: 8, outcome: Some(response::Outcome::Joined(joined)) }.encode_to_vec().into(),
        joined: "g:g1".into(),
        joined_head: 7,
        ..Default::default()
    };
    world.say(0, Kind::Reply, partition, 10, record.session.0, &reply);
    world.fan_out(0, 10, "g:g1", 7, 0);
    world.fan_out(0, 10, "g:g1", 8, 0);
    world.run();
    let seen = world.seen(bob);
    assert!(matches!(response(&seen), response::Outcome::Joined(_)));
    assert_eq!((told(&world.seen(alice)), told(&seen)), ([7, 8].map(Told::Seq).to_vec(), vec![Told::Seq(8)]));
    // And leaves.
    world.request(bob, 9, request::Op::GroupLeave(GroupLeave { group: "g1".into() }));
    let (record, asked) = world.take_one::<wire::ClientRequest>(0, Kind::ClientRequest);
    let left = Left { conversation: "g:g1".into() };
    let reply = wire::Reply {
        token: asked.token,
        response: Response { id: 9, outcome: Some(response::Outcome::Left(left)) }.encode_to_vec().into(),
        left: "g:g1".into(),
        user: "bob".into(),
        ..Default::default()
    };
    world.say(0, Kind::Reply, partition, 10, record.session.0, &reply);
    world.fan_out(0, 10, "g:g1", 9, 0);
    world.run();
    assert!(told(&world.seen(bob)).is_empty());
    // The membership is not what the shard knew: all are asked about, and alice may not stay.
    world.closed(bob);
    let carol = world.accept(2, 1, ClientSession::tcp());
    world.request(carol, 1, login("carol"));
    world.registered(&["g:g1"], 3);
    let (_, asked) = world.take_one::<wire::Subscribe>(0, Kind::Subscribe);
    assert_eq!((asked.users, asked.members_version), (vec!["carol".to_owned()], 9));
    let answer = wire::Subscribed {
        conversation: "g:g1".into(),
        version: asked.version,
        head: 9,
        recheck: true,
        ..Default::default()
    };
    world.say(0, Kind::Subscribed, partition, 10, 0, &answer);
    world.run();
    let (_, asked) = world.take_one::<wire::Subscribe>(0, Kind::Subscribe);
    assert_eq!((asked.users.len(), asked.members_version), (2, 0));
    let answer = wire::Subscribed {
        version: asked.version,
        recheck: false,
        refused: vec!["alice".into()],
        members_version: 12,
        ..answer
    };
    world.say(0, Kind::Subscribed, partition, 10, 0, &answer);
    world.run();
    assert_eq!(told(&world.seen(alice)), [Told::Seq(9), Told::Removed]);
    assert_eq!(told(&world.seen(carol)), [Told::Head(10, 9)]);
    // The group ends.
    world.closed(alice);
    let target = target(carol, "carol", &world);
    world.say(
        0,
        Kind::Attach,
        partition,
        10,
        0,
        &wire::Attach { conversation: "g:g2".into(), targets: vec![target] },
    );
    world.run();
    let (record, asked) = world.take_one::<wire::Subscribe>(0, Kind::Subscribe);
    let gone = wire::Subscribed {
        conversation: "g:g2".into(),
        version: asked.version,
        gone: true,
        ..Default::default()
    };
    world.say(0, Kind::Subscribed, record.partition, 10, 0, &gone);
    world.run();
    assert_eq!(told(&world.seen(carol)), [Told::Removed]);
    world.closed(carol);
    world.run();
    world.assert_empty();
}

#[test]
fn overflow_of_a_group_is_fetched_when_passes_caught_up() {
    let mut world = World::ready();
    let conn = member(&mut world, 0, "alice", 0);
    let partition = partition_of("g:g1", PARTITIONS);
    // One burst of 2 MiB between two turns.
    for seq in 1..=34 {
        world.say(0, Kind::FanOut, partition, 10, 0, &fan_out("g:g1", seq, 10, 0, 60 << 10));
    }
    world.pump();
    assert!(world.shard.stats().fan_outs_overflowed > 0);
    world.run();
    for _ in 0..10 {
        for record in world.take(0, Kind::Fetch) {
            let fetch = wire::Fetch::decode(record.body).unwrap();
            let messages = (fetch.after_seq + 1..=fetch.through_seq.min(fetch.after_seq + 10))
                .map(|seq| fan_out("g:g1", seq, 10, 0, 60 << 10))
                .collect();
            let page = wire::Page { conversation: "g:g1".into(), messages, first_seq: 1, head: 34 };
            world.say(0, Kind::Page, partition, 10, 0, &page);
        }
        world.run();
    }
    assert_eq!(told(&world.seen(conn)), (1..=34).map(Told::Seq).collect::<Vec<_>>());
    assert_eq!(world.shard.stats().held_bytes, 0);
}
