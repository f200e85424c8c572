//! Partitions: claims, handovers, takeovers, lost fences and leases.

use bytes::Bytes;
use millrace_protocol::ids::SessionId;
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::client::{self, Code, request};
use millrace_protocol::messages::link as wire;

use super::world::{World, conversation_partition, link, session};
use crate::core::event::Event;
use crate::core::limits::{Limits, SUPERSEDED_US};
use crate::store::model::ModelStore;

fn two_nodes() -> World {
    let mut world = World::new(2, 1);
    world.connect(0, 1, 1);
    world.connect(1, 1, 1);
    world.claim_all(0);
    world.clear();
    world
}

#[test]
fn a_takeover_goes_on_where_the_dead_owner_stopped_and_the_fence_keeps_it_out() {
    let mut world = two_nodes();
    let partition = conversation_partition("g:x");
    let members = vec!["bob".to_owned()];
    let op =
        request::Op::GroupCreate(client::GroupCreate { group: "x".into(), members, ..Default::default() });
    world.request(0, session(1, 1), "ann", op);
    world.run();
    for n in 1..=3 {
        world.send(session(1, 1), "ann", "g:x", n);
    }
    world.run();
    let epoch = world.nodes[0].claimed[&partition];

    // Not while it lives.
    world.claim(1, partition);
    world.run();
    assert_eq!(world.nodes[1].not_served, [partition]);
    // It stops turning, its lease ends, and the other one claims.
    world.nodes[0].alive = false;
    world.store.nodes.retain(|node| node.name == "node-1");
    world.view();
    world.claim(1, partition);
    world.run();
    assert!(world.nodes[1].claimed[&partition] > epoch);
    let announced: Vec<wire::Announce> = world.take(1, 1, Kind::Announce);
    assert_eq!(announced.last().unwrap().owned[0].partition, u32::from(partition));
    let repeat = world.send_to(1, session(1, 1), "ann", "g:x", 3, "ann 3");
    let next = world.send_to(1, session(1, 1), "ann", "g:x", 4, "ann 4");
    let stranger = world.send_to(1, session(1, 5), "eve", "g:x", 1, "eve 1");
    world.run();
    // The group's first entry is about its creation.
    assert_eq!((world.ack(repeat).seq, world.ack(repeat).epoch), (4, epoch), "its first answer");
    assert_eq!(world.ack(next).seq, 5);
    assert!(world.ack(next).message_id > world.ack(repeat).message_id);
    assert_eq!(world.refused(stranger).code, Code::NotMember as i32);

    // The former owner wakes up, and believes in its fence.
    world.nodes[0].alive = true;
    let late = world.send(session(1, 1), "ann", "g:x", 4);
    world.run();
    assert_eq!(world.refused(late).code, Code::Busy as i32);
    assert_eq!(world.store.logs["g:x"].entries.len(), 5);
    world.pass(500);
    assert!(!world.nodes[0].claimed.contains_key(&partition), "the store names the other");
}

#[test]
fn a_partition_of_which_a_gateway_knows_a_higher_epoch_is_claimed_above_that() {
    let mut world = two_nodes();
    let partition = conversation_partition("g:x");
    let epoch = world.nodes[0].claimed[&partition];
    let tell = |world: &mut World, epoch| {
        let (session, body) = (SessionId::NONE, Bytes::new());
        let record = Record { kind: Kind::Superseded, partition, epoch, session, body };
        world.ends.get_mut(&(0, link(1))).unwrap().link.queue(record).unwrap();
        world.run();
    };
    tell(&mut world, epoch);
    world.pass(SUPERSEDED_US / 1_000 + 500);
    assert_eq!(world.nodes[0].claimed[&partition], epoch, "it is its own");
    tell(&mut world, epoch + 1_000_000);
    tell(&mut world, epoch + 900_000);
    world.pass(SUPERSEDED_US / 1_000 - 500);
    assert_eq!(world.nodes[0].claimed[&partition], epoch, "the other may be the one that is given up");
    world.pass(1_000);
    world.pass(100);
    let above = world.nodes[0].claimed[&partition];
    assert!(above > epoch + 1_000_000);
    let announced: Vec<wire::Announce> = world.take(0, 1, Kind::Announce);
    assert_eq!(announced.last().unwrap().owned[0].epoch, above);
    // A node that does not serve it has nothing to do.
    let record = Record {
        kind: Kind::Superseded,
        partition,
        epoch: 1 << 60,
        session: SessionId::NONE,
        body: Bytes::new(),
    };
    world.ends.get_mut(&(1, link(1))).unwrap().link.queue(record).unwrap();
    world.pass(SUPERSEDED_US / 1_000 + 500);
    assert!(world.nodes[1].claimed.is_empty());
}

#[test]
fn a_handover_finishes_what_was_taken_and_names_the_new_owner() {
    let mut world = two_nodes();
    let partition = conversation_partition("r:a");
    world.subscribe(0, 1, "r:a", 1, &[]);
    world.run();
    world.nodes[0].store_held = true;
    let first = world.send(session(1, 1), "ann", "r:a", 1);
    world.run();
    let second = world.send(session(1, 1), "ann", "r:a", 2);
    world.run();
    world.release(0, partition);
    world.run();
    world.clear();
    world.send(session(1, 1), "ann", "r:a", 3);
    world.run();
    let back: Vec<wire::NotOwner> = world.take(0, 1, Kind::NotOwner);
    assert_eq!((back[0].partition, back[0].kind), (u32::from(partition), Kind::ClientRequest as u32));
    assert!(world.nodes[0].not_served.is_empty(), "the batch comes first");
    world.nodes[0].store_held = false;
    world.run();
    assert_eq!((world.ack(first).seq, world.ack(second).seq), (1, 2));
    assert_eq!(world.take::<wire::FanOut>(0, 1, Kind::FanOut).len(), 2);
    assert_eq!(world.nodes[0].not_served, [partition]);
    world.claim(1, partition);
    world.run();
    let third = world.send_to(1, session(1, 1), "ann", "r:a", 3, "ann 3");
    world.run();
    assert_eq!(world.ack(third).seq, 3);
    world.view();
    world.run();
    world.subscribe(0, 1, "r:a", 2, &[]);
    world.run();
    let back: Vec<wire::NotOwner> = world.take(0, 1, Kind::NotOwner);
    assert_eq!((back[0].hint.as_str(), back[0].epoch), ("node-1", world.nodes[1].claimed[&partition]));
    let again = wire::Subscribe { conversation: "r:a".into(), version: 2, ..wire::Subscribe::default() };
    use millrace_protocol::prost::Message;
    assert_eq!(wire::Subscribe::decode(back[0].body.clone()).unwrap(), again, "whole");
}

#[test]
fn a_handover_waits_for_the_batch_at_the_store_also_when_the_lease_was_lost() {
    let mut world = two_nodes();
    let partition = conversation_partition("r:a");
    world.send(session(1, 1), "ann", "r:a", 1);
    world.run();
    world.nodes[0].store_held = true;
    let tokens = [2, 3].map(|n| {
        let token = world.send(session(1, 1), "ann", "r:a", n);
        world.run();
        token
    });
    assert_eq!(world.held(0), ["append"]);
    world.release(0, partition);
    world.run();
    for _ in 0..2 {
        let view = std::sync::Arc::new(world.store.view(8, true));
        world.event(0, 0, Event::View(view));
        world.run();
        let held = world.held(0);
        assert!(held.contains(&"append") && !held.contains(&"release"), "{held:?}");
    }
    assert_eq!(tokens.map(|token| world.refused(token).code), [Code::Busy as i32; 2]);
    assert!(!world.nodes[0].not_served.contains(&partition));

    // What was at the store is there; what gathered behind it is not.
    world.nodes[0].store_held = false;
    world.run();
    assert_eq!(world.store.logs["r:a"].entries.len(), 2);
    assert!(world.nodes[0].not_served.contains(&partition));
    world.claim(1, partition);
    world.run();
    let again = [2, 3].map(|n| world.send_to(1, session(1, 1), "ann", "r:a", n, &format!("ann {n}")));
    world.run();
    assert_eq!(again.map(|token| world.ack(token).seq), [2, 3]);
}

#[test]
fn records_wait_for_a_claim_and_for_a_load() {
    let mut world = World::new(1, 1);
    world.connect(0, 1, 1);
    world.run();
    world.nodes[0].store_held = true;
    for partition in 0..8 {
        world.claim(0, partition);
    }
    world.run();
    let token = world.send(session(1, 1), "ann", "r:a", 1);
    world.register(0, session(1, 1), "ann", "phone", "ios");
    world.run();
    assert!(world.answer(token).is_none() && !world.kinds(0, 1).contains(&Kind::NotOwner));
    world.nodes[0].store_held = false;
    world.run();
    assert_eq!(world.ack(token).seq, 1);
    assert_eq!(world.take::<wire::Registered>(0, 1, Kind::Registered)[0].refused, 0);
}

#[test]
fn a_store_out_of_reach_is_asked_again_until_the_claim_holds() {
    let mut world = World::new(1, 1);
    world.connect(0, 1, 1);
    world.store.fail_claims = 3;
    world.claim(0, conversation_partition("r:a"));
    world.run();
    assert!(world.nodes[0].claimed.is_empty() && world.nodes[0].not_served.is_empty());
    for _ in 0..10 {
        world.pass(500);
    }
    assert_eq!((world.nodes[0].claimed.len(), world.stats(0).claims_failed), (1, 3));
}

#[test]
fn past_its_lease_a_node_serves_nothing_until_it_is_renewed() {
    let mut world = World::serving(1, &[1]);
    world.event(0, 0, Event::LeaseUntil { until_us: world.now.mono_us });
    let token = world.send(session(1, 1), "ann", "r:a", 1);
    world.subscribe(0, 1, "r:a", 1, &[]);
    world.run();
    assert_eq!(world.refused(token).code, Code::Busy as i32);
    assert_eq!(world.take::<wire::NotOwner>(0, 1, Kind::NotOwner).len(), 1);
    world.take::<wire::Announce>(0, 1, Kind::Announce);
    world.pass(200);
    assert!(world.take::<wire::Announce>(0, 1, Kind::Announce).is_empty());
    world.view();
    world.run();
    // At once: what is sent from now on would be missed by those who were told that nobody serves it.
    let announced: Vec<wire::Announce> = world.take(0, 1, Kind::Announce);
    assert_eq!(announced[0].owned[0].partition, u32::from(conversation_partition("r:a")), "told again");
    let token = world.send(session(1, 1), "ann", "r:a", 1);
    world.run();
    assert_eq!(world.ack(token).seq, 1);
}

#[test]
fn what_an_owner_reads_and_writes_is_of_the_copy_that_granted_its_claim() {
    let mut world =
        World::with_limits(1, 1, Limits { conversations_per_partition_max: 2, ..Limits::default() });
    world.claim_all(0);
    world.connect(0, 1, 1);
    world.run();
    let partition = conversation_partition("r:a");
    let epoch = world.nodes[0].claimed[&partition];
    let behind = world.store.clone();
    let first = world.send(session(1, 1), "ann", "r:a", 1);
    world.run();
    // The owner forgets it for others.
    let others = (0..).map(|n| format!("r:b{n}")).filter(|name| conversation_partition(name) == partition);
    for other in others.take(3) {
        world.send(session(1, 1), "ann", &other, 1);
        world.run();
    }
    // A replica takes over that has the claim and not the message, and then the former primary is back, all before a heartbeat
    // says so. Its next number there must not be made of what was read in between.
    let former = std::mem::replace(&mut world.store, ModelStore { copy: 2, ..behind });
    world.subscribe(0, 1, "r:a", 1, &[]);
    world.run();
    world.store = ModelStore { copy: 3, ..former };
    let next = world.send(session(1, 2), "bob", "r:a", 1);
    world.run();
    world.pass(500);
    world.run();
    assert!(world.nodes[0].claimed[&partition] > epoch);
    let again = world.send(session(1, 1), "ann", "r:a", 1);
    world.run();
    assert_eq!((world.ack(again).seq, world.ack(again).message_id), (1, world.ack(first).message_id));
    assert_eq!(world.ack(next).seq, 2);
}

#[test]
fn a_store_that_was_emptied_is_loaded_anew() {
    let mut world = World::serving(1, &[1]);
    let op = request::Op::GroupCreate(client::GroupCreate { group: "x".into(), ..Default::default() });
    world.request(0, session(1, 1), "ann", op);
    world.run();
    let epochs = world.nodes[0].claimed.clone();
    let nodes = world.store.nodes.clone();
    world.store = ModelStore { nodes, nonce: 99, ..Default::default() };
    world.now.wall_ms += 10;
    let view = std::sync::Arc::new(world.store.view(8, true));
    world.event(0, 0, Event::View(view));
    world.run();
    world.pass(2_000);
    assert!(world.nodes[0].claimed.iter().all(|(partition, epoch)| *epoch > epochs[partition]));
    let token = world.send(session(1, 1), "ann", "g:x", 1);
    world.run();
    assert_eq!(world.refused(token).code, Code::NoSuchGroup as i32);
    let token = world.send(session(1, 1), "ann", "r:a", 1);
    world.run();
    assert_eq!(world.ack(token).seq, 1);
}

#[test]
fn an_idle_owner_learns_that_its_fence_is_void_also_when_nobody_holds_the_partition_now() {
    let mut world = two_nodes();
    let partition = conversation_partition("r:a");
    let epoch = world.nodes[0].claimed[&partition];
    world.nodes[0].alive = false;
    let sleeper = world.store.nodes.remove(0);
    world.claim(1, partition);
    world.run();
    world.release(1, partition);
    world.run();
    world.nodes[0].alive = true;
    world.store.nodes.push(sleeper);
    world.view();
    world.run();
    world.pass(1_000);
    assert!(world.nodes[0].claimed[&partition] > epoch + 1, "claimed again without a write");
}

#[test]
fn a_fetch_that_meets_a_new_epoch_is_answered_under_it() {
    let mut world = World::serving(1, &[1]);
    let partition = conversation_partition("r:a");
    world.send(session(1, 1), "ann", "r:a", 1);
    world.run();
    world.nodes[0].store_held = true;
    let body = wire::Fetch { conversation: "r:a".into(), after_seq: 0, through_seq: 1 };
    world.say(0, 1, Kind::Fetch, partition, SessionId::NONE, &body);
    world.run();
    let view = std::sync::Arc::new(world.store.view(8, true));
    world.event(0, 0, Event::View(view));
    world.run();
    world.nodes[0].store_held = false;
    world.pass(1_000);
    let epoch = world.nodes[0].claimed[&partition];
    let pages: Vec<_> = world
        .end(0, 1)
        .got
        .iter()
        .filter(|record| record.kind == Kind::Page)
        .map(|page| page.epoch)
        .collect();
    assert_eq!(pages, [epoch]);
}

#[test]
fn a_link_is_told_the_cluster_at_once_and_as_it_changes() {
    let mut world = two_nodes();
    world.connect(0, 2, 1);
    world.run();
    assert_eq!(world.kinds(0, 2), [Kind::ClusterMap, Kind::Announce]);
    let maps: Vec<wire::ClusterMap> = world.take(0, 2, Kind::ClusterMap);
    assert_eq!(maps[0].nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["node-0", "node-1"]);
    world.store.nodes.pop();
    world.view();
    world.view();
    world.run();
    let maps: Vec<wire::ClusterMap> = world.take(0, 2, Kind::ClusterMap);
    assert_eq!(maps.iter().map(|map| map.nodes.len()).collect::<Vec<_>>(), [1], "once per change");
}

#[test]
fn a_short_absence_loses_nothing_and_a_long_one_the_subscriptions() {
    let mut world = World::serving(1, &[1, 2]);
    world.subscribe(0, 2, "r:a", 1, &[]);
    world.run();
    for (away_ms, expected, fresh) in [(5_000, 1, false), (11_000, 0, true)] {
        world.disconnect(0, 2);
        world.pass(10);
        let client_seq = world.store.logs.get("r:a").map_or(0, |log| log.head()) + 1;
        if away_ms > 10_000 {
            world.pass(away_ms);
        }
        world.send(session(1, 1), "ann", "r:a", client_seq);
        world.run();
        world.connect(0, 2, 1);
        world.run();
        assert_eq!(world.take::<wire::FanOut>(0, 2, Kind::FanOut).len(), expected, "{away_ms}");
        assert_eq!(world.end(0, 2).ups.last(), Some(&fresh), "{away_ms}");
    }
    assert_eq!(world.stats(0).links_expired, 1);
}

#[test]
fn idle_conversations_are_evicted_and_found_again() {
    let limits = crate::core::limits::Limits { conversations_per_partition_max: 8, ..Default::default() };
    let mut world = World::with_limits(1, 1, limits);
    world.claim_all(0);
    world.connect(0, 1, 1);
    for n in 0..300 {
        world.send(session(1, 1), "ann", &format!("r:{n}"), 1);
        world.run();
    }
    assert!(world.stats(0).evicted > 200 && world.stats(0).conversations <= 8 * 8);
    let repeat = world.send(session(1, 1), "ann", "r:0", 1);
    let next = world.send(session(1, 1), "ann", "r:0", 2);
    world.run();
    assert_eq!((world.ack(repeat).seq, world.ack(next).seq), (1, 2));
    // Full of conversations that are listened to: the next one is told to come again.
    for n in 0..200 {
        world.subscribe(0, 1, &format!("r:x{n}"), 1, &[]);
    }
    world.run();
    assert!(!world.take::<wire::NotOwner>(0, 1, Kind::NotOwner).is_empty());
    let tokens: Vec<_> = (0..50).map(|n| world.send(session(1, 1), "ann", &format!("r:y{n}"), 1)).collect();
    world.run();
    assert!(tokens.iter().any(|token| world.answer(*token).is_some_and(|(_, outcome)| {
        matches!(outcome, client::response::Outcome::Refused(refused) if refused.code == Code::Busy as i32)
    })));
}

#[test]
fn nonsense_is_answered_or_counted_and_never_fatal() {
    let mut world = World::serving(1, &[1]);
    let mut random = 1_u64;
    for n in 0..2_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let kinds = [10, 11, 12, 13, 14, 15, 16, 17, 18, 40, 45, 53];
        let kind = Kind::from_byte(kinds[n % kinds.len()]).unwrap();
        let body: Vec<u8> = (0..random % 40).map(|i| (random >> (i % 57)) as u8 ^ i as u8).collect();
        let partition = (random >> 50) as u16;
        let record = millrace_protocol::link::Record {
            kind,
            partition,
            epoch: random,
            session: SessionId(random),
            body: body.into(),
        };
        world.end(0, 1).link.queue(record).unwrap();
        if n % 50 == 0 {
            world.run();
        }
    }
    world.run();
    assert!(world.stats(0).malformed > 500);
    let token = world.send(session(1, 1), "ann", "r:a", 1);
    world.run();
    assert_eq!(world.ack(token).seq, 1);
}
