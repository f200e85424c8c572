//! Who asked what became of a message is told once, whatever the server's word does.

use bytes::Bytes;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{
    Code, Fate, Notify, Peeked, Receipt, Refused, Response, SendAck, Standing, notify,
};

use super::server::Frame;
use super::world::World;
use crate::core::fates::{GRACE_MS, WAITING_MAX};
use crate::core::{Event, Outgoing};
use crate::error::SendError;
use crate::event::Event as Notice;

const NAME: &str = "d:alice:bob";
const WITHIN_MS: u32 = 2_000;
const OVER_MS: u64 = WITHIN_MS as u64 + GRACE_MS;

fn fate(seq: u64, delivered: bool) -> Fate {
    Fate { conversation: NAME.into(), seq, delivered }
}

/// What the application has been told of fates.
fn told(world: &World) -> Vec<(u64, bool)> {
    let fates = world.notices.iter().filter_map(|notice| match notice {
        Notice::Fate(fate) => Some((fate.seq, fate.delivered)),
        _ => None,
    });
    fates.collect()
}

fn ask(world: &mut World, conversation: &str, deadline_ms: u64) -> u64 {
    world.sends += 1;
    let key = world.sends;
    let payload = Bytes::from(format!("own {key}"));
    let message = Outgoing { payload, fate_within_ms: WITHIN_MS, ..Outgoing::default() };
    let deadline_ms = world.now_ms + deadline_ms;
    world.step(Event::Send { key, conversation: conversation.into(), message, deadline_ms });
    key
}

fn connected() -> World {
    let mut world = World::new(21, &[NAME, "g:tea"]);
    world.settle(1_000);
    world
}

#[test]
fn the_servers_word_is_told_once() {
    for delivered in [true, false] {
        let mut world = connected();
        ask(&mut world, NAME, 10_000);
        world.settle(100);
        world.server.notify(notify::Event::Fate(fate(1, delivered)));
        world.settle(100);
        assert_eq!(told(&world), [(1, delivered)]);
        // What else is said of it later changes nothing.
        world.server.notify(notify::Event::Fate(fate(1, true)));
        world.settle(2 * OVER_MS);
        assert_eq!(told(&world), [(1, delivered)]);
    }
}

#[test]
fn a_word_that_never_comes_is_given_by_the_client_also_across_connections() {
    for lost in [false, true] {
        let mut world = connected();
        let key = ask(&mut world, NAME, 10_000);
        world.settle(100);
        assert!(world.settled[&key].is_ok());
        if lost {
            world.lose();
        }
        world.settle(OVER_MS - 200);
        assert_eq!(told(&world), [], "its time is not over");
        world.settle(200);
        assert_eq!(told(&world), [(1, false)]);
        // A late one is not told; that the other side has it, a receipt says.
        world.server.notify(notify::Event::Fate(fate(1, true)));
        world.settle(2 * OVER_MS);
        assert_eq!(told(&world), [(1, false)]);
    }
}

#[test]
fn it_is_told_while_there_is_no_connection() {
    let mut world = connected();
    ask(&mut world, NAME, 10_000);
    world.settle(100);
    world.lose();
    for _ in 0..OVER_MS / 100 {
        world.tick(100);
        world.lose();
        while world.take() {}
    }
    assert_eq!(told(&world), [(1, false)]);
}

#[test]
fn a_receipt_says_it_too() {
    let receipt = |user: &str, delivered, read| {
        let (conversation, user) = (NAME.into(), user.into());
        notify::Event::Receipt(Receipt { conversation, user, delivered, read })
    };
    let mut world = connected();
    for _ in 0..3 {
        ask(&mut world, NAME, 10_000);
    }
    world.settle(100);
    world.server.notify(receipt("alice", 0, 3));
    world.server.notify(receipt("bob", 1, 0));
    world.settle(100);
    assert_eq!(told(&world), [(1, true)], "what the user itself has read is none");
    world.server.notify(receipt("bob", 0, 2));
    world.settle(2 * OVER_MS);
    assert_eq!(told(&world), [(1, true), (2, true), (3, false)]);
}

#[test]
fn a_login_asks_how_far_the_other_side_is() {
    let mut world = connected();
    ask(&mut world, NAME, 10_000);
    world.settle(100);
    world.lose();
    let asked = loop {
        world.tick(100);
        world.deliver_request();
        let peeked = world.server.answers.iter_mut().find_map(|frame| match frame {
            Frame::Response(Response { outcome: Some(Outcome::Peeked(Peeked { standings })), .. }) => {
                standings.iter_mut().find(|standing| standing.conversation == NAME)
            }
            _ => None,
        });
        match peeked {
            Some(standing) => break standing,
            None => drop(world.deliver_frame()),
        }
    };
    *asked = Standing { peer_delivered: 1, ..asked.clone() };
    world.settle(100);
    assert_eq!(told(&world), [(1, true)]);
}

#[test]
fn a_word_that_comes_before_the_acknowledgement_waits_for_it() {
    let mut world = connected();
    let key = ask(&mut world, NAME, 10_000);
    world.deliver_request();
    let conn = world.conn.unwrap();
    let notify = Notify { event: Some(notify::Event::Fate(fate(1, true))) };
    world.step(Event::Notify { conn, notify });
    while world.take() {}
    assert_eq!((told(&world), world.settled.contains_key(&key)), (vec![], false));
    world.settle(2 * OVER_MS);
    assert_eq!(told(&world), [(1, true)]);
}

#[test]
fn of_what_was_not_acknowledged_and_of_groups_nothing_is_told() {
    let mut world = connected();
    world.settle(100);
    let refused = ask(&mut world, NAME, 10_000);
    world.tick(1);
    let (conn, id, _) = world.to_server.pop_front().unwrap();
    let outcome = Outcome::Refused(Refused { code: Code::Blocked.into(), ..Refused::default() });
    world.step(Event::Response { conn, response: Response { id, outcome: Some(outcome) } });
    assert!(matches!(world.settled[&refused], Err(SendError::Refused { code: Code::Blocked, .. })));
    // It is stored, and its answer is too late.
    let late = ask(&mut world, NAME, 500);
    world.deliver_request();
    world.tick(1_000);
    assert_eq!(world.settled[&late], Err(SendError::Deadline));
    world.server.notify(notify::Event::Fate(fate(1, true)));
    let group = ask(&mut world, "g:tea", 10_000);
    world.settle(2 * OVER_MS);
    assert!(world.settled[&group].is_ok());
    assert_eq!(told(&world), []);
}

#[test]
fn an_application_that_takes_nothing_keeps_no_word_from_being_read() {
    let mut world = connected();
    ask(&mut world, NAME, 10_000);
    world.deliver_request();
    world.deliver_frame();
    for seq in 0..world.settings.events_max as u64 {
        world.server.append(NAME, "bob", Bytes::from(format!("message {seq}")));
    }
    while world.deliver_frame() {}
    assert!(!world.machine.reads());
    world.server.notify(notify::Event::Fate(fate(1, true)));
    for _ in 0..100 {
        world.tick(100);
    }
    world.settle(100);
    assert_eq!(told(&world), [(1, true)]);
}

#[test]
fn who_asks_too_much_is_told_at_once_and_everyone_at_the_end() {
    let mut world = connected();
    for seq in 1..=WAITING_MAX as u64 + 1 {
        ask(&mut world, NAME, 10_000);
        world.tick(0);
        let (conn, id, _) = world.to_server.pop_front().unwrap();
        let outcome = Outcome::SendAck(SendAck { seq, epoch: 1, ..SendAck::default() });
        world.step(Event::Response { conn, response: Response { id, outcome: Some(outcome) } });
    }
    while world.take() {}
    assert_eq!(told(&world), [(WAITING_MAX as u64 + 1, false)]);
    world.step(Event::Leave);
    while world.take() {}
    assert_eq!(told(&world).len(), WAITING_MAX + 1);
    assert!(matches!(world.notices.last(), Some(Notice::Ended { .. })));
}
