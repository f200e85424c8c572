//! Receipts: told to the other side, counted for groups, listed on request; and what became of a message.

use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::{self, Notify, notify, request, response};
use millrace_protocol::messages::link as wire;
use millrace_protocol::prost::Message;

use super::world::{World, conversation_partition, direct, session};
use crate::store::model::Fault;

fn ack(world: &mut World, conversation: &str, user: &str, seq: u64) {
    let partition = conversation_partition(conversation);
    let epoch = world.nodes[0].claimed[&partition];
    let ack = wire::DeviceAck {
        conversation: conversation.into(),
        user: user.into(),
        device: "phone".into(),
        epoch,
        seq,
    };
    world.say(0, 1, Kind::Acks, partition, session(1, 1), &wire::Acks { acks: vec![ack] });
    world.run();
}

fn told(world: &mut World, gateway: u16) -> Vec<notify::Event> {
    let relays: Vec<wire::Relay> = world.take(0, gateway, Kind::Relay);
    relays.into_iter().map(|relay| Notify::decode(relay.notify).unwrap().event.unwrap()).collect()
}

#[test]
fn the_other_side_hears_of_receipts_once_a_window() {
    let mut world = World::serving(1, &[1, 2]);
    world.register(0, session(1, 1), "ann", "phone", "ios");
    world.register(0, session(2, 2), "bob", "phone", "ios");
    world.run();
    let name = direct("ann", "bob");
    for n in 1..=3 {
        world.send(session(1, 1), "ann", &name, n);
    }
    world.run();
    for seq in 1..=3 {
        ack(&mut world, &name, "bob", seq);
    }
    let read = client::Read { conversation: name.clone(), seq: 2 };
    world.request(0, session(2, 2), "bob", request::Op::Read(read));
    world.run();
    assert!(told(&mut world, 1).is_empty(), "not before the window is over");
    world.pass(250);
    let receipt = |delivered, read| {
        notify::Event::Receipt(client::Receipt {
            conversation: name.clone(),
            user: "bob".into(),
            delivered,
            read,
        })
    };
    assert_eq!(told(&mut world, 1), [receipt(3, 2)]);
    assert_eq!(told(&mut world, 2), [receipt(0, 2)], "own devices share what was read");
    world.pass(1_000);
    assert!(told(&mut world, 1).is_empty());
    // An acknowledgement that is not ahead says nothing.
    ack(&mut world, &name, "bob", 2);
    world.pass(1_000);
    assert!(told(&mut world, 1).is_empty());
}

#[test]
fn receipts_are_told_after_the_partition_was_claimed_again() {
    let mut world = World::serving(1, &[1, 2]);
    world.register(0, session(1, 1), "ann", "phone", "ios");
    world.run();
    let name = direct("ann", "bob");
    world.send(session(1, 1), "ann", &name, 1);
    world.run();
    ack(&mut world, &name, "bob", 1);
    // The store fails, and goes on failing until the window is over.
    world.store.fail_append = Some(Fault::Unavailable);
    world.store.fail_claims = 3;
    world.send(session(1, 1), "ann", &name, 2);
    world.run();
    for _ in 0..20 {
        world.pass(200);
    }
    let epoch = world.nodes[0].claimed[&conversation_partition(&name)];
    assert!(told(&mut world, 1).is_empty(), "forgotten with the claim: what was taken is said again");
    world.send(session(1, 1), "ann", &name, 2);
    world.run();
    ack(&mut world, &name, "bob", 2);
    assert_eq!(world.nodes[0].claimed[&conversation_partition(&name)], epoch);
    world.pass(250);
    let receipt = client::Receipt { conversation: name.clone(), user: "bob".into(), delivered: 2, read: 0 };
    assert_eq!(told(&mut world, 1), [notify::Event::Receipt(receipt)]);
    for _ in 0..10 {
        world.pass(200);
    }
    assert!(!world.store.cursors.is_empty(), "and cursors are written");
}

#[test]
fn a_group_counts_for_the_sender_and_lists_for_members() {
    let mut world = World::serving(1, &[1]);
    let members: Vec<String> = (0..30).map(|n| format!("user{n:02}")).collect();
    let create = client::GroupCreate { group: "x".into(), members: members.clone(), ..Default::default() };
    world.request(0, session(1, 1), "ann", request::Op::GroupCreate(create));
    world.register(0, session(1, 1), "ann", "phone", "ios");
    world.run();
    let token = world.send(session(1, 1), "ann", "g:x", 1);
    world.run();
    let seq = world.ack(token).seq;
    for member in &members[..20] {
        ack(&mut world, "g:x", member, seq);
    }
    for member in &members[..5] {
        let read = client::Read { conversation: "g:x".into(), seq };
        world.request(0, session(1, 9), member, request::Op::Read(read));
    }
    world.run();
    world.clear();
    for _ in 0..10 {
        world.pass(300);
    }
    let counts = told(&mut world, 1);
    let expected = client::GroupReceipt { conversation: "g:x".into(), seq, delivered: 20, read: 5 };
    assert_eq!(counts, [notify::Event::GroupReceipt(expected)]);
    let list = |world: &mut World, after: &str, limit| {
        let ask = client::Receipts { conversation: "g:x".into(), seq, after: after.into(), limit };
        let token = world.request(0, session(1, 1), "ann", request::Op::Receipts(ask));
        world.run();
        match world.answer(token).expect("an answer").1 {
            response::Outcome::ReceiptPage(page) => page,
            other => panic!("no page: {other:?}"),
        }
    };
    let first = list(&mut world, "", 12);
    assert_eq!((first.delivered, first.read, first.more), (20, 5, true));
    assert_eq!((first.read_by.len(), first.delivered_to.len()), (5, 7));
    let last = first.delivered_to.last().cloned().unwrap();
    let rest = list(&mut world, &last, 0);
    assert_eq!((rest.delivered_to.len(), rest.more), (8, false));
}

#[test]
fn a_sender_is_told_what_became_of_a_message() {
    let mut world = World::serving(1, &[1]);
    let name = direct("ann", "bob");
    let send = |world: &mut World, client_seq| {
        let ask = client::Send {
            conversation: name.clone(),
            client_seq,
            stream: 1,
            fate_within_ms: 2_000,
            ..Default::default()
        };
        world.request(0, session(1, 1), "ann", request::Op::Send(ask));
        world.run();
    };
    send(&mut world, 1);
    send(&mut world, 2);
    world.clear();
    ack(&mut world, &name, "bob", 1);
    world.pass(1_000);
    let fate =
        |seq, delivered| notify::Event::Fate(client::Fate { conversation: name.clone(), seq, delivered });
    let fates = |world: &mut World| {
        let all = told(world, 1);
        all.into_iter().filter(|event| matches!(event, notify::Event::Fate(_))).collect::<Vec<_>>()
    };
    assert_eq!(fates(&mut world), [fate(1, true)]);
    for _ in 0..10 {
        world.pass(250);
    }
    assert_eq!(fates(&mut world), [fate(2, false)]);
    ack(&mut world, &name, "bob", 2);
    world.pass(1_000);
    assert!(fates(&mut world).is_empty(), "once");
}

#[test]
fn a_handover_within_the_window_stops_no_later_receipt() {
    let mut world = World::serving(1, &[1]);
    world.register(0, session(1, 1), "ann", "phone", "ios");
    world.run();
    let name = direct("ann", "bob");
    world.send(session(1, 1), "ann", &name, 1);
    world.run();
    ack(&mut world, &name, "bob", 1);
    let partition = conversation_partition(&name);
    world.release(0, partition);
    world.run();
    world.pass(1_000);
    world.claim(0, partition);
    world.run();
    let token = world.send(session(1, 1), "ann", &name, 2);
    world.run();
    assert_eq!(world.ack(token).seq, 2);
    world.clear();
    ack(&mut world, &name, "bob", 2);
    world.pass(300);
    assert_eq!(told(&mut world, 1).len(), 1);
}
