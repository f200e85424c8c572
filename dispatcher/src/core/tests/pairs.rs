//! Friends and blocks: who may write to whom, what lists show, what the other hears, and what a crash leaves.

use bytes::Bytes;
use millrace_protocol::ids::SessionId;
use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::friend_event::Kind as Event;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{self, Code, response};
use millrace_protocol::messages::link as wire;
use millrace_protocol::prost::Message;

use super::world::{World, conversation_partition, direct, session};
use crate::core::limits::Limits;
use crate::store::List;
use crate::store::model::Fault;

const ANN: &str = "ann";
const BOB: &str = "bob";

fn at(slot: u32) -> SessionId {
    session(1, slot)
}

fn request(user: &str) -> Op {
    Op::FriendRequest(client::FriendRequest { user: user.into(), greeting: Bytes::from_static(b"hello") })
}

fn answer(user: &str, accept: bool) -> Op {
    Op::FriendAnswer(client::FriendAnswer { user: user.into(), accept })
}

fn end(user: &str) -> Op {
    Op::FriendRemove(client::FriendRemove { user: user.into() })
}

fn block(user: &str, block: bool) -> Op {
    Op::Block(client::Block { user: user.into(), block })
}

/// Asks, and says what came of it: the code of a refusal, or 0.
fn ask(world: &mut World, user: &str, op: Op) -> i32 {
    let token = world.request(0, at(90), user, op);
    world.run();
    match world.answer(token).expect("an answer").1 {
        response::Outcome::Refused(refused) => refused.code,
        response::Outcome::Done(_) => 0,
        other => panic!("{other:?}"),
    }
}

/// Sends the next message of a user, and says what came of it.
fn write(world: &mut World, user: &str, client_seq: u64) -> i32 {
    let token = world.send(at(80), user, &direct(ANN, BOB), client_seq);
    world.run();
    match world.answer(token).expect("an answer").1 {
        response::Outcome::Refused(refused) => refused.code,
        _ => 0,
    }
}

fn list(world: &World, user: &str, list: List) -> Vec<String> {
    let items = world.store.lists.get(&(user.to_owned(), list));
    items.into_iter().flat_map(|items| items.keys().cloned()).collect()
}

fn events(world: &mut World, gateway: u16) -> Vec<(Event, String, String)> {
    let relays: Vec<wire::Relay> = world.take(0, gateway, Kind::Relay);
    let event = |relay: wire::Relay| match client::Notify::decode(relay.notify).unwrap().event.unwrap() {
        client::notify::Event::Friend(event) => {
            (event.kind(), event.user, String::from_utf8(event.greeting.to_vec()).unwrap())
        }
        other => panic!("{other:?}"),
    };
    relays.into_iter().map(event).collect()
}

/// Ann's sessions are on gateway 1, Bob's on gateway 2.
fn world() -> World {
    let limits = Limits { strangers_may_write: false, ..Limits::default() };
    let mut world = World::with_limits(1, 1, limits);
    world.claim_all(0);
    for (gateway, user) in [(1, ANN), (2, BOB)] {
        world.connect(0, gateway, 1);
        world.run();
        world.register(0, session(gateway, 1), user, "phone", "ios");
    }
    world.run();
    world.clear();
    world
}

#[test]
fn a_friendship_from_the_request_to_its_end() {
    let mut world = world();
    assert_eq!(write(&mut world, ANN, 1), Code::Stranger as i32);
    assert_eq!(ask(&mut world, ANN, request(BOB)), 0);
    assert_eq!(events(&mut world, 2), [(Event::Asked, ANN.into(), "hello".into())]);
    assert_eq!(list(&world, BOB, List::FriendRequests), [ANN]);
    assert_eq!(ask(&mut world, ANN, request(BOB)), 0, "once more");
    assert!(events(&mut world, 2).is_empty(), "told once");
    assert_eq!(write(&mut world, ANN, 1), Code::Stranger as i32);
    assert_eq!(ask(&mut world, BOB, answer(ANN, true)), 0);
    assert_eq!(events(&mut world, 1), [(Event::Accepted, BOB.into(), String::new())]);
    assert_eq!(
        (list(&world, ANN, List::Friends), list(&world, BOB, List::Friends)),
        (vec![BOB.into()], vec![ANN.into()])
    );
    assert!(list(&world, BOB, List::FriendRequests).is_empty());
    assert_eq!(world.store.states[&direct(ANN, BOB)].keys().collect::<Vec<_>>(), ["f"]);
    assert_eq!((write(&mut world, ANN, 1), write(&mut world, BOB, 1)), (0, 0));
    assert_eq!(ask(&mut world, ANN, end(BOB)), 0);
    assert_eq!(events(&mut world, 2), [(Event::Ended, ANN.into(), String::new())]);
    assert!(list(&world, ANN, List::Friends).is_empty() && list(&world, BOB, List::Friends).is_empty());
    assert_eq!(write(&mut world, BOB, 2), Code::Stranger as i32);
    assert_eq!(write(&mut world, BOB, 1), 0, "a repeat is answered as before");
}

#[test]
fn two_who_ask_each_other_are_friends_and_a_refusal_is_told() {
    let mut world = world();
    ask(&mut world, ANN, request(BOB));
    assert_eq!(ask(&mut world, BOB, answer(ANN, false)), 0);
    assert_eq!(events(&mut world, 1), [(Event::Declined, BOB.into(), String::new())]);
    assert!(list(&world, BOB, List::FriendRequests).is_empty());
    assert_eq!(ask(&mut world, BOB, answer(ANN, true)), Code::BadRequest as i32, "nobody asks");
    ask(&mut world, ANN, request(BOB));
    assert_eq!(ask(&mut world, BOB, request(ANN)), 0);
    assert_eq!(list(&world, ANN, List::Friends), [BOB]);
    assert!(list(&world, BOB, List::FriendRequests).is_empty());
    assert_eq!(events(&mut world, 1), [(Event::Accepted, BOB.into(), String::new())]);
    // What was asked can be taken back.
    ask(&mut world, ANN, end(BOB));
    ask(&mut world, ANN, request(BOB));
    assert_eq!(ask(&mut world, ANN, end(BOB)), 0);
    assert!(list(&world, BOB, List::FriendRequests).is_empty());
}

#[test]
fn while_one_blocks_neither_writes() {
    let mut world = world();
    ask(&mut world, ANN, request(BOB));
    ask(&mut world, BOB, answer(ANN, true));
    world.clear();
    let blocked = Code::Blocked as i32;
    assert_eq!(ask(&mut world, ANN, block(BOB, true)), 0);
    assert!(world.kinds(0, 2).is_empty(), "who is blocked is not told");
    assert_eq!(
        (list(&world, ANN, List::Blocks), list(&world, BOB, List::Blocks)),
        (vec![BOB.into()], vec![])
    );
    assert_eq!((write(&mut world, ANN, 1), write(&mut world, BOB, 1)), (blocked, blocked));
    assert_eq!(ask(&mut world, BOB, block(ANN, true)), 0);
    assert_eq!(ask(&mut world, ANN, block(BOB, false)), 0);
    assert_eq!(write(&mut world, ANN, 1), blocked, "the other still does");
    assert_eq!(ask(&mut world, BOB, block(ANN, false)), 0);
    assert_eq!((write(&mut world, ANN, 1), write(&mut world, BOB, 1)), (0, 0), "still friends");
    ask(&mut world, ANN, end(BOB));
    ask(&mut world, ANN, block(BOB, true));
    assert_eq!(ask(&mut world, BOB, request(ANN)), blocked);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut world = world();
    let greeting = Bytes::from(vec![0; 257]);
    let long = Op::FriendRequest(client::FriendRequest { user: BOB.into(), greeting });
    for (op, code) in [
        (request(ANN), Code::BadRequest),
        (block(ANN, true), Code::BadRequest),
        (request("no name"), Code::BadRequest),
        (long, Code::PayloadTooLarge),
        (answer(BOB, true), Code::BadRequest),
    ] {
        let case = format!("{op:?}");
        assert_eq!(ask(&mut world, ANN, op), code as i32, "{case}");
    }
    assert_eq!(ask(&mut world, ANN, end(BOB)), 0, "so already");
    // By default anyone writes to anyone.
    let mut world = World::serving(1, &[1]);
    assert_eq!(write(&mut world, ANN, 1), 0);
}

#[test]
fn a_block_holds_for_what_comes_behind_it_and_is_told_when_it_is_durable() {
    let mut world = world();
    ask(&mut world, ANN, request(BOB));
    ask(&mut world, BOB, answer(ANN, true));
    write(&mut world, ANN, 1);
    world.clear();
    world.nodes[0].store_held = true;
    let before = world.send(at(80), BOB, &direct(ANN, BOB), 1);
    world.run();
    let blocking = world.request(0, at(1), ANN, block(BOB, true));
    let after = world.send(at(80), BOB, &direct(ANN, BOB), 2);
    world.run();
    assert!(world.answer(before).is_none() && world.answer(blocking).is_none());
    world.nodes[0].store_held = false;
    world.run();
    assert_eq!(world.ack(before).seq, 2);
    assert_eq!(world.refused(after).code, Code::Blocked as i32);
    assert_eq!(world.answer(blocking).unwrap().1, response::Outcome::Done(client::Done {}));
}

#[test]
fn a_crash_between_state_and_lists_is_healed_by_asking_again() {
    for fault in [Fault::Unavailable, Fault::DoneButUnknown] {
        let mut world = world();
        let op = || block(BOB, true);
        world.store.fail_append = Some(fault);
        assert_eq!(ask(&mut world, ANN, op()), Code::Busy as i32);
        world.pass(2_000);
        assert!(list(&world, ANN, List::Blocks).is_empty(), "{fault:?}");
        assert_eq!(ask(&mut world, ANN, op()), 0);
        assert_eq!(list(&world, ANN, List::Blocks), [BOB], "{fault:?}");
        assert_eq!(write(&mut world, BOB, 1), Code::Blocked as i32);
    }
    // The owner hands over with the change in its batch: the batch is finished, and so are the lists.
    let mut world = world();
    world.send(at(80), ANN, &direct(ANN, BOB), 1);
    world.run();
    world.nodes[0].store_held = true;
    let first = world.request(0, at(1), ANN, request(BOB));
    let second = world.request(0, at(1), ANN, end(BOB));
    world.run();
    let partition = conversation_partition(&direct(ANN, BOB));
    world.release(0, partition);
    world.run();
    assert_eq!(world.refused(second).code, Code::Busy as i32);
    world.nodes[0].store_held = false;
    world.run();
    assert_eq!(world.answer(first).unwrap().1, response::Outcome::Done(client::Done {}));
    world.claim(0, partition);
    world.run();
    assert_eq!(ask(&mut world, BOB, answer(ANN, true)), 0);
    assert_eq!(list(&world, ANN, List::Friends), [BOB]);
}

#[test]
fn changes_of_a_pair_go_one_by_one_and_in_bounds() {
    let mut world = world();
    ask(&mut world, ANN, end(BOB));
    world.nodes[0].store_held = true;
    let tokens: Vec<_> = (0..20).map(|n| world.request(0, at(n), ANN, block(BOB, n % 2 == 0))).collect();
    world.run();
    assert_eq!(world.held(0), ["append"]);
    world.nodes[0].store_held = false;
    world.run();
    let outcomes: Vec<_> = tokens.into_iter().map(|token| world.answer(token).unwrap().1).collect();
    let done = outcomes.iter().filter(|outcome| matches!(outcome, response::Outcome::Done(_))).count();
    assert_eq!(done, 17, "one under way and 16 that wait");
    assert_eq!(list(&world, ANN, List::Blocks), [BOB], "the last of them: the 17th");
}
