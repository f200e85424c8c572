//! Dispatchers: an owner that changes, links that break, credit that runs out.

use super::*;
use crate::core::limits::REFUSED_MAX;

/// Two dispatchers; the first has everything.
pub(super) fn two_nodes() -> World {
    let config = Config { seeds: vec![("".into(), "a:1".into()), ("".into(), "b:1".into())], ..config() };
    let mut world = World::with(config);
    world.connect(0);
    world.connect(1);
    world.announce(0, 0..PARTITIONS, 10);
    world.lease(77, 1 << 40);
    world
}

/// Alice logged in, at the first of two dispatchers that must say yet how her group stands.
pub(super) fn member() -> (World, Conn) {
    let mut world = two_nodes();
    let conn = world.accept(0, 1, ClientSession::tcp());
    world.request(conn, 1, login("alice"));
    world.registered(&["g1"], 1);
    (world, conn)
}

fn send(conversation: &str) -> request::Op {
    request::Op::Send(Send {
        conversation: conversation.into(),
        client_seq: 1,
        stream: 1,
        ..Default::default()
    })
}

#[test]
fn a_new_owner_is_subscribed_to_and_asked_for_the_hole() {
    let (mut world, conn) = member();
    world.subscribed(0, 10, 4);
    world.seen(conn);
    world.join(conn, "lobby", 6);
    world.fan_out(0, 10, "g:g1", 5, 0);
    world.run();
    world.request(conn, 2, send("g:g1"));
    world.seen(conn);
    let (group, room) = (partition_of("g:g1", PARTITIONS), partition_of("r:lobby", PARTITIONS));
    world.announce(1, 0..PARTITIONS, 11);
    assert_eq!(refused(&world.seen(conn)), Code::Busy, "what the old owner was sent");
    let mut asked = world.take(1, Kind::Subscribe);
    asked.sort_by_key(|record| record.partition != group);
    let bodies: Vec<_> =
        asked.iter().map(|record| wire::Subscribe::decode(record.body.clone()).unwrap()).collect();
    assert_eq!(
        (bodies[0].last_epoch, bodies[0].last_seq, &bodies[0].users[..]),
        (10, 5, &["alice".to_owned()][..])
    );
    assert_eq!((bodies[1].conversation.as_str(), bodies[1].last_seq), ("r:lobby", 6));
    // The old owner still talks.
    world.fan_out(0, 10, "g:g1", 6, 0);
    world.run();
    assert_eq!(world.shard.stats().stale_epochs, 1);
    for (body, partition, head) in [(&bodies[0], group, 8), (&bodies[1], room, 9)] {
        let answer = wire::Subscribed {
            conversation: body.conversation.clone(),
            version: body.version,
            head,
            base: head,
            base_epoch: 10,
            ..Default::default()
        };
        world.say(1, Kind::Subscribed, partition, 11, 0, &answer);
    }
    world.run();
    let (_, fetch) = world.take_one::<wire::Fetch>(1, Kind::Fetch);
    assert_eq!((fetch.after_seq, fetch.through_seq), (5, 8));
    assert_eq!(told(&world.seen(conn)), [Told::Gap(7, 9)], "a room has no log to fetch from");
    world.fan_out(1, 11, "g:g1", 9, 0);
    let messages = (6..=8).map(|seq| fan_out("g:g1", seq, 11, 0, 1)).collect();
    let page = wire::Page { conversation: "g:g1".into(), messages, first_seq: 1, head: 9 };
    world.say(1, Kind::Page, group, 11, 0, &page);
    world.run();
    assert_eq!(told(&world.seen(conn)), [6, 7, 8, 9].map(Told::Seq));
    // The store is emptied: the owner begins again.
    world.announce(1, 0..PARTITIONS, 12);
    for record in world.take(1, Kind::Subscribe) {
        let body = wire::Subscribe::decode(record.body).unwrap();
        let conversation = body.conversation;
        let answer = wire::Subscribed { conversation, version: body.version, head: 0, ..Default::default() };
        world.say(1, Kind::Subscribed, record.partition, 12, 0, &answer);
    }
    world.run();
    world.fan_out(1, 12, "g:g1", 1, 0);
    world.fan_out(1, 12, "r:lobby", 1, 0);
    world.run();
    let mut seen = told(&world.seen(conn));
    seen.sort_by_key(|told| matches!(told, Told::Seq(_)));
    assert_eq!(seen, [Told::Head(12, 0), Told::Head(12, 0), Told::Seq(1), Told::Seq(1)]);
    world.closed(conn);
    world.run();
    world.assert_empty();
}

/// The new owner's log is another one than what the shard knows up to 4. Alice has heard that; bob joins by the new owner.
#[test]
fn who_joins_by_the_new_owner_is_told_no_head_below_the_one_that_it_joined_at() {
    for joins_first in [true, false] {
        let (mut world, alice) = member();
        world.subscribed(0, 10, 4);
        let bob = world.session(1, "bob");
        world.seen(alice);
        world.announce(1, 0..PARTITIONS, 11);
        let (record, body) = world.take_one::<wire::Subscribe>(1, Kind::Subscribe);
        let partition = record.partition;
        let answer = wire::Subscribed {
            conversation: body.conversation,
            version: body.version,
            head: 9,
            base: 9,
            base_epoch: 8,
            ..Default::default()
        };
        world.request(bob, 8, request::Op::GroupJoin(GroupJoin { group: "g1".into() }));
        let (record, asked) = world.take_one::<wire::ClientRequest>(1, Kind::ClientRequest);
        let joined = Joined { conversation: "g:g1".into(), epoch: 8, head: 9, members: 2 };
        let joined = Response { id: 8, outcome: Some(response::Outcome::Joined(joined)) };
        let reply = wire::Reply {
            token: asked.token,
            response: joined.encode_to_vec().into(),
            joined: "g:g1".into(),
            joined_head: 9,
            ..Default::default()
        };
        if !joins_first {
            world.say(1, Kind::Subscribed, partition, 11, 0, &answer);
        }
        world.say(1, Kind::Reply, partition, 11, record.session.0, &reply);
        if joins_first {
            world.say(1, Kind::Subscribed, partition, 11, 0, &answer);
        }
        world.run();
        let messages = (5..=9).map(|seq| fan_out("g:g1", seq, 8, 0, 1)).collect();
        let page = wire::Page { conversation: "g:g1".into(), messages, first_seq: 1, head: 9 };
        world.say(1, Kind::Page, partition, 11, 0, &page);
        world.fan_out(1, 11, "g:g1", 10, 0);
        world.run();
        let mut expected = vec![Told::Head(11, 4)];
        expected.extend((5..=10).map(Told::Seq));
        assert_eq!(told(&world.seen(alice)), expected);
        assert_eq!(told(&world.seen(bob)), [Told::Seq(10)], "its join is the first: {joins_first}");
        world.closed(alice);
        world.closed(bob);
        world.run();
        world.assert_empty();
    }
}

#[test]
fn not_owner_goes_to_the_owner_known_now_or_waits_for_one() {
    let mut world = two_nodes();
    let conn = world.session(0, "alice");
    let partition = partition_of("d:alice:bob", PARTITIONS);
    let bounce = |world: &mut World, node: usize| {
        let (record, _) = world.take_one::<wire::ClientRequest>(node, Kind::ClientRequest);
        let back = wire::NotOwner {
            partition: partition.into(),
            epoch: 11,
            hint: String::new(),
            kind: Kind::ClientRequest as u32,
            body: record.body,
        };
        world.say(node, Kind::NotOwner, partition, 0, record.session.0, &back);
        world.run();
    };
    // Nobody else is known: it waits, and goes when somebody announces.
    world.request(conn, 2, send("d:alice:bob"));
    bounce(&mut world, 0);
    assert!(world.seen(conn).is_empty());
    assert!(world.wait.deadline_us.is_some() && !world.wait.more, "waiting does not spin");
    world.request(conn, 3, send("d:alice:bob"));
    assert_eq!(refused(&world.seen(conn)), Code::Busy, "a fresh one does not wait");
    world.announce(1, [partition], 11);
    let (record, asked) = world.take_one::<wire::ClientRequest>(1, Kind::ClientRequest);
    assert_eq!((record.session.0, asked.user.as_str()), (world.id(conn), "alice"));
    assert_eq!(Request::decode(asked.request).unwrap().op, Some(send("d:alice:bob")), "verbatim");
    let response = Response { id: 2, outcome: Some(response::Outcome::SendAck(SendAck::default())) };
    let reply =
        wire::Reply { token: asked.token, response: response.encode_to_vec().into(), ..Default::default() };
    world.say(1, Kind::Reply, partition, 11, record.session.0, &reply);
    world.run();
    assert_eq!(world.seen(conn), [Seen::Response(response)]);
    // Nobody ever announces: BUSY.
    world.request(conn, 4, send("d:alice:bob"));
    bounce(&mut world, 1);
    world.later(6 * SECOND);
    assert_eq!(refused(&world.seen(conn)), Code::Busy);
    let stats = world.shard.stats();
    assert_eq!((stats.not_owners, stats.busy_no_owner, stats.busy_lost), (2, 1, 1));
    world.closed(conn);
    world.announce(0, 0..PARTITIONS, 20);
    world.assert_empty();
}

#[test]
fn a_request_without_an_answer_is_busy() {
    let mut world = World::ready();
    let conn = world.session(0, "alice");
    world.request(conn, 2, send("d:alice:bob"));
    world.later(10 * SECOND + SECOND / 2);
    assert_eq!(refused(&world.seen(conn)), Code::Busy);
    // The answer comes late: it is for nobody.
    let (record, asked) = world.take_one::<wire::ClientRequest>(0, Kind::ClientRequest);
    let response = Response { id: 2, outcome: Some(response::Outcome::SendAck(SendAck::default())) };
    let reply =
        wire::Reply { token: asked.token, response: response.encode_to_vec().into(), ..Default::default() };
    world.say(0, Kind::Reply, record.partition, 10, record.session.0, &reply);
    world.run();
    assert!(world.seen(conn).is_empty());
    // One that breaks off for good: the dispatcher is another process afterwards.
    world.request(conn, 3, send("d:alice:bob"));
    world.cut(0);
    world.request(conn, 4, send("d:alice:bob"));
    assert!(world.seen(conn).is_empty(), "kept for the next connection");
    world.nodes[0].link = node_link("n0", 5_000, 8 << 20);
    world.connect(0);
    let seen = world.seen(conn);
    let busy = seen.iter().filter(|seen| matches!(seen, Seen::Response(r) if matches!(&r.outcome, Some(response::Outcome::Refused(r)) if r.code() == Code::Busy)));
    assert_eq!(busy.count(), 2, "{seen:?}");
    world.request(conn, 5, send("d:alice:bob"));
    assert_eq!(refused(&world.seen(conn)), Code::Busy, "not announced yet");
    world.announce(0, 0..PARTITIONS, 11);
    world.nodes[0].inbox.clear();
    world.request(conn, 6, send("d:alice:bob"));
    assert_eq!(world.take(0, Kind::ClientRequest).len(), 1);
}

#[test]
fn a_link_that_breaks_and_comes_back_goes_on() {
    let mut world = World::ready();
    let conn = world.session(0, "alice");
    world.join(conn, "lobby", 0);
    world.cut(0);
    world.request(conn, 2, send("d:alice:bob"));
    world.connect(0);
    assert_eq!(world.nodes[0].ups, [true, false]);
    assert_eq!(world.take(0, Kind::ClientRequest).len(), 1);
    assert!(world.take(0, Kind::Subscribe).is_empty());
    world.fan_out(0, 10, "r:lobby", 1, 0);
    world.run();
    assert_eq!(told(&world.seen(conn)), [Told::Seq(1)]);
}

#[test]
fn nothing_is_passed_on_before_an_owner_that_is_asked_again_said_who_left() {
    for left in [true, false] {
        let (mut world, conn) = member();
        world.subscribed(0, 10, 4);
        world.seen(conn);
        // The link began anew, and with it went the Remove of who left; the owner is the same.
        world.cut(0);
        world.nodes[0].link = node_link("n0", 900, 8 << 20);
        world.connect(0);
        world.announce(0, 0..PARTITIONS, 10);
        let (record, again) = world.take_one::<wire::Subscribe>(0, Kind::Subscribe);
        assert_eq!((again.members_version, &again.users[..]), (0, &["alice".to_owned()][..]));
        world.fan_out(0, 10, "g:g1", 5, 0);
        world.fan_out(0, 10, "g:g1", 7, 0);
        world.run();
        assert_eq!(told(&world.seen(conn)), []);
        assert!(world.take(0, Kind::Fetch).is_empty(), "nor is what is missing asked for");
        let answer = wire::Subscribed {
            conversation: again.conversation,
            version: again.version,
            head: 7,
            members_version: 2,
            refused: if left { again.users } else { Vec::new() },
            ..Default::default()
        };
        world.say(0, Kind::Subscribed, record.partition, 10, 0, &answer);
        world.run();
        if left {
            assert_eq!(told(&world.seen(conn)), [Told::Removed]);
            continue;
        }
        let (_, fetch) = world.take_one::<wire::Fetch>(0, Kind::Fetch);
        assert_eq!((fetch.after_seq, fetch.through_seq), (4, 7));
        let messages = (5..=7).map(|seq| fan_out("g:g1", seq, 10, 0, 1)).collect();
        let page = wire::Page { conversation: "g:g1".into(), messages, first_seq: 1, head: 7 };
        world.say(0, Kind::Page, record.partition, 10, 0, &page);
        world.fan_out(0, 10, "g:g1", 8, 0);
        world.run();
        assert_eq!(told(&world.seen(conn)), [5, 6, 7, 8].map(Told::Seq));
    }
}

#[test]
fn without_credit_busy() {
    let mut world = World::ready_with(Config { requests_per_session_max: 4, ..config() });
    let busy = world.session(1, "user1");
    for id in 2..=5 {
        world.request(busy, id, send("d:user1:user2"));
    }
    assert!(world.seen(busy).is_empty());
    world.request(busy, 6, send("d:user1:user2"));
    assert_eq!(refused(&world.seen(busy)), Code::Busy, "too many unanswered");
    // A node that acknowledges nothing while it is cut off: its window fills.
    world.cut(0);
    let big = |bytes: usize| {
        request::Op::Send(Send {
            conversation: "d:user0:user1".into(),
            client_seq: 1,
            stream: 1,
            payload: vec![1; bytes].into(),
            ..Default::default()
        })
    };
    world.connect(0);
    let conns: Vec<Conn> = (2..80).map(|slot| world.session(slot, "user0")).collect();
    world.cut(0);
    let mut asks = conns.iter().flat_map(|conn| (2..=5).map(|id| (*conn, id)));
    // Down to where not even a small record fits.
    for bytes in [60 << 10, 6 << 10, 600, 10] {
        loop {
            let (conn, id) = asks.next().expect("the window is smaller than that");
            world.request(conn, id, big(bytes));
            let seen = world.seen(conn);
            if !seen.is_empty() {
                assert_eq!(refused(&seen), Code::Busy);
                break;
            }
        }
    }
    assert_eq!(world.shard.stats().busy_no_credit, 4);
    // Control records wait instead.
    for conn in &conns[..20] {
        world.closed(*conn);
    }
    world.run();
    assert!(world.shard.stats().parked_bytes > 0);
    assert!(!world.wait.more, "waiting does not spin");
    world.connect(0);
    world.run();
    assert_eq!(world.take(0, Kind::Unregister).len(), 20);
    assert_eq!(world.shard.stats().parked_bytes, 0);
}

#[test]
fn nodes_come_and_go_by_the_cluster_map() {
    let mut world = World::ready();
    let map = |nodes: &[(&str, &str)]| wire::ClusterMap {
        nodes: nodes
            .iter()
            .map(|(name, address)| wire::Node { name: (*name).into(), address: (*address).into() })
            .collect(),
    };
    // The seed under the name that its hello gave, and under its address; and two others.
    world.say(
        0,
        Kind::ClusterMap,
        0,
        0,
        0,
        &map(&[("n0", "10.0.0.1:1"), ("nX", "one:1"), ("n1", "two:1"), ("n2", "three:1")]),
    );
    world.run();
    assert_eq!(
        world.nodes.iter().map(|node| node.address.as_str()).collect::<Vec<_>>(),
        ["one:1", "two:1", "three:1"]
    );
    world.connect(1);
    world.announce(1, [3], 12);
    world.say(0, Kind::ClusterMap, 0, 0, 0, &map(&[("n0", "one:1")]));
    world.run();
    world.later(20 * SECOND);
    world.cut(1);
    assert!(world.disconnected.is_empty());
    world.later(15 * SECOND);
    world.disconnected.sort();
    assert_eq!(world.disconnected, [NodeKey(1), NodeKey(2)]);
    assert_eq!(world.shard.stats().nodes, 1);
    // One node under two addresses keeps one link.
    world.say(0, Kind::ClusterMap, 0, 0, 0, &map(&[("", "alias:1"), ("n0", "one:1")]));
    world.run();
    let alias = world.nodes.len() - 1;
    world.nodes[alias].link = node_link("n0", 900, 8 << 20);
    world.connect(alias);
    assert_eq!(
        world.disconnected.last(),
        Some(&NodeKey(0)),
        "the newer connection is the one that counts there"
    );
    assert_eq!(world.shard.stats().links_up, 1);
}

#[test]
fn registrations_find_the_new_owner() {
    let mut world = two_nodes();
    let user = user_in(3);
    let conn = world.accept(0, 1, ClientSession::tcp());
    world.request(conn, 1, login(&user));
    let (record, _) = world.take_one::<wire::Register>(0, Kind::Register);
    assert_eq!(record.partition, 3);
    let back = wire::NotOwner {
        partition: 3,
        epoch: 11,
        hint: "n1".into(),
        kind: Kind::Register as u32,
        body: record.body,
    };
    world.say(0, Kind::NotOwner, 3, 0, 0, &back);
    world.run();
    world.announce(1, [3], 11);
    let (record, register) = world.take_one::<wire::Register>(1, Kind::Register);
    assert_eq!((record.session.0, &register.user), (world.id(conn), &user));
    // No answer: asked again.
    world.later(4 * SECOND);
    assert_eq!(world.take(1, Kind::Register).len(), 1);
    world.closed(conn);
    world.run();
    assert_eq!(world.take(1, Kind::Unregister).len(), 1);
    // It was registered after all: taken back, now with the number.
    let late = wire::Registered {
        user,
        device: "phone".into(),
        login_number: 8,
        gateway_incarnation: 12,
        ..Default::default()
    };
    world.say(1, Kind::Registered, 3, 11, record.session.0, &late);
    world.run();
    let (_, unregister) = world.take_one::<wire::Unregister>(1, Kind::Unregister);
    assert_eq!((unregister.login_number, unregister.gateway_incarnation), (8, 12));
    world.assert_empty();
}

#[test]
fn a_denial_names_the_route_that_was_used() {
    let mut world = World::with(config());
    world.connect(0);
    world.lease(77, 1 << 40);
    // A route of an earlier process, whose ids begin where this one's do; and no owner is known who could be told.
    let session = SessionId::new(config().gateway, 0, 0, 1).0;
    let (user, device) = ("alice".to_owned(), "phone".to_owned());
    let target = wire::Target { session, user, device, login_number: 1, gateway_incarnation: 76 };
    let direct = wire::Direct { targets: vec![target], notify: fan_out("d:a:b", 1, 10, 0, 1).notify };
    world.say(0, Kind::Direct, 0, 10, 0, &direct);
    world.run();
    assert_eq!(world.take(0, Kind::NoSession).len(), 0);
    let conn = world.accept(0, 1, ClientSession::tcp());
    world.request(conn, 1, login("alice"));
    assert_eq!(world.id(conn), session);
    world.announce(0, 0..PARTITIONS, 10);
    world.registered(&[], 1);
    world.later(SECOND);
    let (_, denied) = world.take_one::<wire::NoSession>(0, Kind::NoSession);
    assert_eq!(
        (denied.session, denied.gateway_incarnation),
        (session, 76),
        "not the one of the session that came"
    );
}

#[test]
fn of_too_many_refusals_the_oldest_is_forgotten_and_counted() {
    const GROUPS_EACH: usize = 500;
    let mut world = two_nodes();
    let mut groups = (0..REFUSED_MAX + 1).map(|n| format!("g{n}"));
    for slot in 0..=REFUSED_MAX / GROUPS_EACH {
        let conn = world.accept(slot as u32, 1, ClientSession::tcp());
        world.request(conn, 1, login(&format!("user{slot}")));
        let listed: Vec<String> = groups.by_ref().take(GROUPS_EACH).collect();
        world.registered(&listed.iter().map(String::as_str).collect::<Vec<_>>(), 1);
        loop {
            let asked = world.take(0, Kind::Subscribe);
            if asked.is_empty() {
                break;
            }
            for record in asked {
                let body = wire::Subscribe::decode(record.body).unwrap();
                let refusal = wire::Subscribed {
                    conversation: body.conversation,
                    version: body.version,
                    refused: body.users,
                    ..Default::default()
                };
                world.say(0, Kind::Subscribed, record.partition, 10, 0, &refusal);
            }
            world.run();
        }
    }
    assert!(groups.next().is_none(), "all were listed");
    assert_eq!(world.shard.stats().refused_forgotten, 1);
}
