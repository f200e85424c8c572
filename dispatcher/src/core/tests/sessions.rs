//! Registering, routes, losers, direct messages, gateways' leases.

use std::collections::BTreeSet;

use bytes::Bytes;
use millrace_protocol::ids::{SessionId, user_partition};
use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::{self, Code};
use millrace_protocol::messages::link as wire;

use super::world::{PARTITIONS, World, deliver, direct, session};
use crate::core::limits::Limits;
use crate::store::List;

#[test]
fn a_direct_message_goes_to_all_sessions_of_both_but_the_senders() {
    for shards in [1, 2] {
        let mut world = World::serving(shards, &[1, 2]);
        let (ann_1, ann_2, bob) = (session(1, 1), session(2, 1), session(2, 2));
        world.register(0, ann_1, "ann", "ann-1", "ios");
        world.register(0, ann_2, "ann", "ann-2", "web");
        world.register(0, bob, "bob", "bob-1", "ios");
        world.run();
        assert_eq!(world.take::<wire::Registered>(0, 2, Kind::Registered).len(), 2);
        world.clear();
        let name = direct("ann", "bob");
        for n in 1..=3 {
            let token = world.send(ann_1, "ann", &name, n);
            world.run();
            assert_eq!(world.ack(token).seq, n);
        }
        assert!(world.take::<wire::Direct>(0, 1, Kind::Direct).is_empty(), "the sender has its ack");
        let got: Vec<wire::Direct> = world.take(0, 2, Kind::Direct);
        let seqs: Vec<_> = got.iter().map(|direct| deliver(&direct.notify).seq).collect();
        assert_eq!(seqs, [1, 2, 3], "one record per gateway shard and message");
        let mut sessions: Vec<_> = got[0].targets.iter().map(|target| target.session).collect();
        sessions.sort_unstable();
        assert_eq!(sessions, [ann_2.0, bob.0]);
    }
}

#[test]
fn routes_that_cannot_be_read_are_asked_again_in_order() {
    let mut world = World::serving(1, &[1]);
    let (ann, bob) = (session(1, 1), session(1, 2));
    world.register(0, bob, "bob", "bob-1", "ios");
    world.run();
    world.clear();
    world.store.fail_routes = 2;
    let name = direct("ann", "bob");
    for n in 1..=3 {
        world.send(ann, "ann", &name, n);
        world.run();
    }
    let before: Vec<wire::Direct> = world.take(0, 1, Kind::Direct);
    assert!(before.is_empty(), "the first failed, and the later ones wait behind it");
    for _ in 0..10 {
        world.pass(300);
    }
    let got: Vec<wire::Direct> = world.take(0, 1, Kind::Direct);
    assert_eq!(got.iter().map(|direct| deliver(&direct.notify).seq).collect::<Vec<_>>(), [1, 2, 3]);
    world.store.fail_routes = 1_000;
    world.send(ann, "ann", &name, 4);
    for _ in 0..60 {
        world.pass(500);
    }
    let failed = world.stats(0).routes_failed;
    assert!(failed >= 1, "counted, and tried again");
    world.store.fail_routes = 0;
    for _ in 0..10 {
        world.pass(500);
    }
    let got: Vec<wire::Direct> = world.take(0, 1, Kind::Direct);
    assert_eq!(got.iter().map(|direct| deliver(&direct.notify).seq).collect::<Vec<_>>(), [4]);
}

#[test]
fn losers_are_closed_again_and_again_until_they_answer() {
    let mut world = World::serving(1, &[1, 2]);
    world.store.gateways.insert(1, 1);
    world.store.gateways.insert(2, 1);
    world.view();
    world.register(0, session(1, 1), "ann", "phone", "ios");
    world.run();
    let first: Vec<wire::Registered> = world.take(0, 1, Kind::Registered);
    world.register(0, session(2, 1), "ann", "phone", "ios");
    world.run();
    let second: Vec<wire::Registered> = world.take(0, 2, Kind::Registered);
    assert!(second[0].login_number > first[0].login_number && second[0].refused == 0);
    for round in 0..4 {
        let closes: Vec<wire::Close> = world.take(0, 1, Kind::Close);
        assert_eq!(closes.len(), 1, "round {round}");
        assert_eq!((closes[0].login_number, closes[0].code), (first[0].login_number, Code::Displaced as u32));
        world.pass(1_001);
    }
    let closed =
        wire::Closed { user: "ann".into(), device: "phone".into(), login_number: first[0].login_number };
    world.say(0, 1, Kind::Closed, user_partition("ann", PARTITIONS), session(1, 1), &closed);
    world.run();
    world.clear();
    world.pass(5_000);
    assert!(world.kinds(0, 1).is_empty());
    assert_eq!(world.stats(0).closes, 0);

    // A gateway that dies ends the repeating with its lease.
    world.register(0, session(1, 2), "ann", "phone", "ios");
    world.run();
    assert_eq!(world.stats(0).closes, 1);
    world.store.gateways.remove(&2);
    world.view();
    for _ in 0..8 {
        world.pass(1_001);
    }
    assert_eq!(world.stats(0).closes, 0);
}

#[test]
fn sessions_of_one_id_in_two_lives_of_a_gateway_are_closed_each() {
    let mut world = World::serving(1, &[1, 2]);
    world.store.gateways.insert(1, 1);
    world.store.gateways.insert(2, 1);
    world.view();
    let said = |world: &mut World, user: &str, login_number| {
        let closed = wire::Closed { user: user.into(), device: "phone".into(), login_number };
        world.say(0, 1, Kind::Closed, user_partition(user, PARTITIONS), session(1, 1), &closed);
        world.run();
    };
    let closes = |world: &mut World| {
        let closes: Vec<wire::Close> = world.take(0, 1, Kind::Close);
        let mut users: Vec<(String, u64)> =
            closes.into_iter().map(|close| (close.user, close.login_number)).collect();
        users.sort();
        users
    };
    for user in ["ann", "bob"] {
        // Under the same id, the second in the gateway's next life; and each loses to a login elsewhere.
        world.register(0, session(1, 1), user, "phone", "ios");
        world.run();
    }
    for user in ["bob", "ann"] {
        world.register(0, session(2, 1), user, "phone", "ios");
        world.run();
    }
    let both = closes(&mut world);
    assert_eq!(both.iter().map(|(user, _)| user.as_str()).collect::<Vec<_>>(), ["ann", "bob"]);
    world.pass(1_001);
    assert_eq!(closes(&mut world), both, "both again");
    said(&mut world, "ann", both[0].1);
    world.pass(1_001);
    assert_eq!(closes(&mut world), both[1..], "the other one has not answered");
    said(&mut world, "bob", both[1].1 + 7);
    world.pass(1_001);
    assert_eq!(closes(&mut world), both[1..], "nor has this login of it");
    said(&mut world, "bob", both[1].1);
    world.pass(1_001);
    assert!(closes(&mut world).is_empty());
    assert_eq!(world.stats(0).closes, 0);
}

#[test]
fn who_lost_is_closed_by_the_next_owner_if_the_one_that_knew_it_is_gone() {
    let mut world = World::new(2, 1);
    let partition = user_partition("ann", PARTITIONS);
    for node in 0..2 {
        world.connect(node, 1, 1);
    }
    world.store.gateways.insert(1, 1);
    world.view();
    world.claim(0, partition);
    world.run();
    world.register(0, session(1, 1), "ann", "phone", "ios");
    world.run();
    world.register(0, session(1, 2), "ann", "phone", "ios");
    world.run();
    let first: Vec<wire::Close> = world.take(0, 1, Kind::Close);
    world.nodes[0].alive = false;
    world.store.nodes.retain(|node| node.name == "node-1");
    world.claim(1, partition);
    world.run();
    let second: Vec<wire::Close> = world.take(1, 1, Kind::Close);
    assert_eq!((first.len(), &first), (1, &second));
    let closed =
        wire::Closed { user: "ann".into(), device: "phone".into(), login_number: first[0].login_number };
    world.say(1, 1, Kind::Closed, partition, session(1, 1), &closed);
    world.run();
    world.release(1, partition);
    world.run();
    world.clear();
    world.claim(1, partition);
    world.run();
    assert!(world.take::<wire::Close>(1, 1, Kind::Close).is_empty(), "closed once and for all");
}

#[test]
fn an_older_login_is_refused_and_one_that_registers_again_keeps_its_number() {
    let mut world = World::serving(1, &[1]);
    let partition = user_partition("ann", PARTITIONS);
    let register = |login_number| wire::Register {
        user: "ann".into(),
        device: "phone".into(),
        platform: "ios".into(),
        login_number,
        gateway: 1,
        gateway_incarnation: 1,
        newest_wins: false,
        acknowledges: false,
    };
    let displaced = Code::Displaced as u32;
    for (slot, login_number, refused) in [(1, 0, 0), (1, 1, 0), (2, 0, 0), (1, 1, displaced)] {
        world.clear();
        world.say(0, 1, Kind::Register, partition, session(1, slot), &register(login_number));
        world.run();
        let answer: Vec<wire::Registered> = world.take(0, 1, Kind::Registered);
        assert_eq!(answer[0].refused, refused, "{login_number}");
        assert!(login_number == 0 || answer[0].login_number == login_number);
    }
    assert!(world.take::<wire::Close>(0, 1, Kind::Close).is_empty(), "who is refused needs no Close");
}

#[test]
fn wrong_routes_are_removed_and_void_ones_not_used() {
    let mut world = World::serving(1, &[1, 2]);
    world.register(0, session(2, 1), "bob", "bob-1", "ios");
    world.register(0, session(2, 2), "cid", "cid-1", "ios");
    world.run();
    let partition = user_partition("bob", PARTITIONS);
    let login_number = world.store.routes["bob"][0].login_number;
    // The route of a former process of the gateway, which gave the same session id and login number, is another one.
    let gateway_incarnation = world.store.routes["bob"][0].incarnation;
    let named = [(login_number + 1, 0, 1), (login_number, 1, 1), (login_number, 0, 0)];
    for (login_number, later, left) in named {
        let answer = wire::NoSession {
            user: "bob".into(),
            device: "bob-1".into(),
            login_number,
            session: session(2, 1).0,
            gateway_incarnation: gateway_incarnation - later,
        };
        world.say(0, 2, Kind::NoSession, partition, SessionId::NONE, &answer);
        world.run();
        assert_eq!(world.store.routes["bob"].len(), left);
    }
    // The gateway comes back as another incarnation: its routes are void.
    world.store.gateways.insert(2, 9);
    world.view();
    world.disconnect(0, 2);
    world.ends.remove(&(0, super::world::link(2)));
    world.connect(0, 2, 9);
    world.run();
    world.clear();
    world.send(session(1, 1), "ann", &direct("ann", "cid"), 1);
    world.run();
    assert!(world.kinds(0, 2).is_empty());
}

#[test]
fn a_gateways_lease_is_answered_with_what_it_sent() {
    let mut world = World::serving(2, &[1]);
    let lease = wire::Lease { gateway: 1, incarnation: 5, sent_us: 77, ttl_ms: 3_000, replaces: 4, grant: 0 };
    world.say(0, 1, Kind::Lease, 0, SessionId::NONE, &lease);
    world.run();
    let answers: Vec<wire::LeaseAnswer> = world.take(0, 1, Kind::LeaseAnswer);
    assert_eq!((answers[0].incarnation, answers[0].sent_us), (5, 77));
    assert!(answers[0].grant != 0 && answers[0].reason.is_empty());
    let lease = wire::Lease { gateway: 2, ..wire::Lease::default() };
    world.say(0, 1, Kind::Lease, 0, SessionId::NONE, &lease);
    world.run();
    assert!(world.take::<wire::LeaseAnswer>(0, 1, Kind::LeaseAnswer).is_empty(), "another gateway's");
}

#[test]
fn groups_come_with_the_registration() {
    let mut world = World::serving(1, &[1]);
    world.store.lists.entry(("ann".into(), List::Groups)).or_default().insert("g:x".into(), Bytes::new());
    world.register(0, session(1, 1), "ann", "phone", "ios");
    world.run();
    let answer: Vec<wire::Registered> = world.take(0, 1, Kind::Registered);
    assert_eq!(answer[0].groups, ["g:x"]);
}

#[test]
fn who_lost_its_claim_registers_nobody_and_claims_again() {
    let mut world = World::serving(1, &[1]);
    let partition = user_partition("ann", PARTITIONS);
    let claimed = world.nodes[0].claimed[&partition];
    world.store.fences.remove(&partition);
    world.register(0, session(1, 1), "ann", "phone", "ios");
    world.run();
    let answer: Vec<wire::Registered> = world.take(0, 1, Kind::Registered);
    assert_eq!(answer[0].refused, Code::Busy as u32);
    assert!(world.store.routes.get("ann").is_none_or(Vec::is_empty));
    world.pass(200);
    world.run();
    assert!(world.nodes[0].claimed[&partition] > claimed);
    world.register(0, session(1, 1), "ann", "phone", "ios");
    world.run();
    assert_eq!(world.take::<wire::Registered>(0, 1, Kind::Registered)[0].refused, 0);
}

#[test]
fn a_session_that_resumed_keeps_its_route_when_the_one_before_ends() {
    let mut world = World::serving(1, &[1]);
    world.store.gateways.insert(1, 1);
    world.view();
    let partition = user_partition("ann", PARTITIONS);
    let (old, new) = (session(1, 1), session(1, 2));
    world.register(0, old, "ann", "phone", "ios");
    world.run();
    let first: Vec<wire::Registered> = world.take(0, 1, Kind::Registered);
    let login_number = first[0].login_number;
    // A resume ticket keeps the number, and the gateway is the same.
    let resume = wire::Register {
        user: "ann".into(),
        device: "phone".into(),
        platform: "ios".into(),
        login_number,
        gateway: 1,
        gateway_incarnation: 1,
        ..wire::Register::default()
    };
    world.say(0, 1, Kind::Register, partition, new, &resume);
    world.run();
    assert_eq!(world.take::<wire::Registered>(0, 1, Kind::Registered)[0].refused, 0);
    assert_eq!(world.take::<wire::Close>(0, 1, Kind::Close).len(), 1, "the one before is to end");
    let (user, device) = ("ann".to_owned(), "phone".to_owned());
    let unregister =
        wire::Unregister { user: user.clone(), device: device.clone(), login_number, gateway_incarnation: 1 };
    world.say(0, 1, Kind::Unregister, partition, old, &unregister);
    let no_session = wire::NoSession {
        user: user.clone(),
        device: device.clone(),
        login_number,
        session: old.0,
        gateway_incarnation: 1,
    };
    world.say(0, 1, Kind::NoSession, partition, old, &no_session);
    world.run();
    assert_eq!(world.store.routes["ann"].len(), 1, "what the old one says touches its own route alone");
    let closed = wire::Closed { user, device, login_number };
    world.say(0, 1, Kind::Closed, partition, new, &closed);
    world.run();
    assert_eq!(world.stats(0).closes, 1, "another one's answer");
    world.say(0, 1, Kind::Closed, partition, old, &closed);
    world.run();
    assert_eq!(world.stats(0).closes, 0);
    world.say(0, 1, Kind::Unregister, partition, new, &unregister);
    world.run();
    assert!(world.store.routes["ann"].is_empty());
}

#[test]
fn logins_logouts_and_receipts_are_events_when_they_are_switched_on() {
    for on in [false, true] {
        let limits = Limits { events: on, ..Limits::default() };
        let mut world = World::with_limits(1, 1, limits);
        world.claim_all(0);
        world.connect(0, 1, 1);
        world.run();
        let ann = session(1, 1);
        world.register(0, ann, "ann", "phone", "ios");
        world.run();
        let unregister = wire::Unregister {
            user: "ann".into(),
            device: "phone".into(),
            login_number: 1,
            gateway_incarnation: 1,
        };
        world.say(0, 1, Kind::Unregister, user_partition("ann", PARTITIONS), ann, &unregister);
        let name = direct("ann", "bob");
        world.send(ann, "ann", &name, 1);
        world.run();
        let read = client::Read { conversation: name, seq: 1 };
        world.request(0, session(1, 2), "bob", client::request::Op::Read(read));
        world.run();
        world.pass(300);
        let kinds: BTreeSet<String> = world.store.events.values().map(|event| event.kind.clone()).collect();
        let expected: &[&str] = if on { &["login", "logout", "message", "receipt"] } else { &["message"] };
        assert!(kinds.iter().eq(expected), "{kinds:?}");
    }
}
