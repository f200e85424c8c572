//! What becomes of messages of this device that were stored, and that a failover lost.

use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Code, Cursor, Refused, Resync, SendAck, notify};

use super::scenarios::{answer, fill, seqs, text, until_asked};
use super::server::{DEVICE, USER};
use super::world::World;
use crate::event::Event as Notice;

#[test]
fn own_messages_that_a_failover_lost_are_told_also_when_something_before_them_is_missing() {
    for (count, end) in [(1, 4), (2, 3)] {
        let mut world = World::new(25, &["d:alice:bob"]);
        fill(&mut world, "d:alice:bob", 3);
        world.settle(5_000);
        world.server.faults.skip_live = 1_000;
        world.server.append("d:alice:bob", "bob", text(4));
        world.server.faults.skip_live = 0;
        world.send("d:alice:bob", 60_000);
        for _ in 0..20 {
            world.tick(1);
            world.deliver_request();
            world.deliver_frame();
            world.take();
        }
        assert_eq!(world.settled.len(), 1, "it is acknowledged, as 5");
        assert_eq!(seqs(&world, "d:alice:bob"), [1, 2, 3], "4 is missing");
        world.server.takeover("d:alice:bob", count);
        world.server.notify(notify::Event::Resync(Resync { conversations: Vec::new() }));
        world.settle(600_000);
        let told: Vec<Cursor> = world
            .notices
            .iter()
            .filter_map(|notice| match notice {
                Notice::Truncated { to, .. } => Some(*to),
                _ => None,
            })
            .collect();
        assert_eq!(told, [Cursor { epoch: 1, seq: end }], "5 is lost");
        assert_eq!(world.machine.cursor("d:alice:bob"), Some(Cursor { epoch: 1, seq: end }));
    }
}

/// An own message is stored in a copy of the log that has 1 to `end`; then the one from before is back, with 4. That is here
/// already if the own message lies below it.
fn own_in_a_copy_that_goes_away(conversation: &str, end: usize, disconnects: bool) -> World {
    let mut world = World::new(26, &[conversation]);
    fill(&mut world, conversation, 3);
    world.settle(5_000);
    let mut first = world.server.log(conversation).entries.clone();
    let bob = world.server.append(conversation, "bob", text(4));
    first.push_back(world.server.log(conversation).entry(bob.seq).unwrap().clone());
    if end < 3 {
        world.settle(5_000);
    } else {
        world.server.flow.clear();
    }
    world.server.log(conversation).entries.truncate(end);
    world.server.log(conversation).epoch = 2;
    world.send(conversation, 60_000);
    world.tick(1);
    while world.settled.is_empty() {
        assert!(world.deliver_request() | world.deliver_frame() | world.take(), "it is acknowledged");
    }
    if disconnects {
        world.lose();
    }
    world.server.log(conversation).entries = first;
    world.server.takeover(conversation, 0);
    world.server.notify(notify::Event::Resync(Resync { conversations: Vec::new() }));
    world.settle(600_000);
    world
}

fn cuts(world: &World) -> Vec<u64> {
    let to = |notice: &Notice| match notice {
        Notice::Truncated { to, .. } => Some(to.seq),
        _ => None,
    };
    world.notices.iter().filter_map(to).collect()
}

#[test]
fn an_own_message_that_another_one_replaces_is_told_to_be_lost() {
    for conversation in ["d:alice:bob", "g:tea"] {
        for disconnects in [false, true] {
            let mut world = own_in_a_copy_that_goes_away(conversation, 3, disconnects);
            let ack = world.settled[&1].as_ref().unwrap();
            assert_eq!((ack.epoch, ack.seq), (2, 4), "{conversation}");
            assert_eq!(cuts(&world), [3], "{conversation} {disconnects}");
            assert_eq!(seqs(&world, conversation), [1, 2, 3, 4]);
            world.server.log(conversation).delivered = Some(Cursor { epoch: 1, seq: 4 });
            world.check_complete();
        }
    }
}

#[test]
fn an_own_message_below_what_is_here_is_told_to_be_lost_when_that_comes_back() {
    for disconnects in [false, true] {
        let mut world = own_in_a_copy_that_goes_away("d:alice:bob", 1, disconnects);
        let ack = world.settled[&1].as_ref().unwrap();
        assert_eq!((ack.epoch, ack.seq), (2, 2));
        assert_eq!(cuts(&world), [1], "{disconnects}");
        assert_eq!(seqs(&world, "d:alice:bob"), [1, 2, 3, 4]);
        assert_eq!(world.machine.cursor("d:alice:bob"), Some(Cursor { epoch: 1, seq: 4 }));
        world.check_complete();
    }
}

#[test]
fn an_own_message_above_an_end_that_is_back_is_told_to_be_lost_after_a_login() {
    let mut world = own_in_a_copy_that_ends_where_we_are();
    assert_eq!(cuts(&world), [3]);
    world.check_complete();
}

/// What it stored lies above the end of a log that is back just as it is here.
fn own_in_a_copy_that_ends_where_we_are() -> World {
    let mut world = World::new(27, &["d:alice:bob"]);
    fill(&mut world, "d:alice:bob", 3);
    world.settle(5_000);
    world.server.log("d:alice:bob").epoch = 2;
    world.send("d:alice:bob", 60_000);
    world.tick(1);
    while world.settled.is_empty() {
        assert!(world.deliver_request() | world.deliver_frame() | world.take(), "it is acknowledged");
    }
    world.lose();
    world.server.takeover("d:alice:bob", 1);
    world.settle(600_000);
    world
}

/// A device without a cursor is told that it stored `at`, and hears nothing of the log before the connection is gone.
fn own_before_it_began(conversation: &str, at: Cursor) -> World {
    let mut world = World::new(28, &[]);
    world.settle(5_000);
    world.send(conversation, 60_000);
    let ack = SendAck { seq: at.seq, epoch: at.epoch, ..SendAck::default() };
    answer(&mut world, Outcome::SendAck(ack), |op| matches!(op, Op::Send(_)));
    assert_eq!(world.settled.len(), 1, "it is acknowledged");
    world.lose();
    world
}

#[test]
fn an_own_message_of_a_conversation_that_is_gone_altogether_is_told_to_be_lost() {
    let mut world = own_before_it_began("d:alice:bob", Cursor { epoch: 1, seq: 16 });
    world.settle(60_000);
    assert_eq!(cuts(&world), [0]);
    assert_eq!(world.machine.cursor("d:alice:bob"), Some(Cursor::default()));
    assert!(world.acked.is_empty());
}

#[test]
fn own_messages_below_where_the_server_has_one_begin_are_looked_up() {
    for is_there in [false, true] {
        let mut world = own_before_it_began("d:alice:bob", Cursor { epoch: 1, seq: 2 });
        world.started.insert("d:alice:bob".into());
        fill(&mut world, "d:alice:bob", if is_there { 2 } else { 1 });
        if is_there {
            let log = world.server.log("d:alice:bob");
            let entry = log.entries.back_mut().unwrap();
            (entry.sender, entry.device) = (USER, DEVICE);
            log.owned.insert(2);
        }
        world.server.takeover("d:alice:bob", 0);
        for seq in world.server.log("d:alice:bob").head().seq + 1..=5 {
            world.server.append("d:alice:bob", "bob", text(seq));
        }
        // Another device of the user was further.
        world.server.log("d:alice:bob").delivered = Some(Cursor { epoch: 2, seq: 3 });
        world.settle(60_000);
        assert_eq!(cuts(&world), if is_there { vec![] } else { vec![1] });
        assert_eq!(seqs(&world, "d:alice:bob"), if is_there { vec![3, 4, 5] } else { vec![2, 3, 4, 5] });
        assert_eq!(world.machine.cursor("d:alice:bob"), Some(Cursor { epoch: 2, seq: 5 }));
    }
}

#[test]
fn who_stored_something_in_a_group_that_is_gone_is_told_so_also_without_a_cursor() {
    let mut world = own_before_it_began("g:tea", Cursor { epoch: 1, seq: 2 });
    let syncs = |op: &Op| matches!(op, Op::Sync(_));
    until_asked(&mut world, syncs);
    answer(
        &mut world,
        Outcome::Refused(Refused { code: Code::NotMember.into(), ..Refused::default() }),
        syncs,
    );
    world.settle(1_000);
    assert!(world.notices.contains(&Notice::Removed { conversation: "g:tea".into() }));
}

#[test]
fn own_messages_below_where_a_log_was_cut_before_it_began_are_looked_up() {
    let mut world = own_before_it_began("d:alice:bob", Cursor { epoch: 2, seq: 2 });
    world.started.insert("d:alice:bob".into());
    fill(&mut world, "d:alice:bob", 3);
    // The server's cursor is of neither copy.
    world.server.log("d:alice:bob").delivered = Some(Cursor { epoch: 4, seq: 7 });
    world.settle(60_000);
    assert_eq!(cuts(&world), [1]);
    assert_eq!(seqs(&world, "d:alice:bob"), [2, 3]);
}
