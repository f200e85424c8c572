//! Logs that are not what they were: cut at their end by a failover, trimmed at their beginning, fanned out with holes.

use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{
    Code, Cursor, Head, Notify, Peeked, Refused, Resync, Standing, SyncPage, notify,
};

use super::scenarios::{answer, fill, seqs, text, until_asked};
use super::world::World;
use crate::core::place::Place;
use crate::core::{Event, Position};
use crate::event::Event as Notice;

#[test]
fn a_log_that_lost_its_end_takes_the_application_back() {
    let mut world = World::new(8, &["g:tea"]);
    fill(&mut world, "g:tea", 10);
    world.settle(20_000);
    world.lose();
    world.server.takeover("g:tea", 4);
    for seq in 7..=12 {
        world.server.append("g:tea", "carol", text(100 + seq));
    }
    world.settle(60_000);
    let to = Cursor { epoch: 1, seq: 6 };
    let cut = |notice: &&Notice| matches!(notice, Notice::Truncated { to: at, .. } if *at == to);
    assert_eq!(world.notices.iter().filter(cut).count(), 1);
    world.check_complete();
    assert_eq!(world.saved["g:tea"].cursor, Cursor { epoch: 2, seq: 12 });
}

/// A log ends at 10; another copy goes on from 6 to 12; then the first is back with all that it had, and goes on to 13.
fn take_turns(between: impl FnOnce(&mut World)) {
    let mut world = World::new(23, &["g:tea"]);
    fill(&mut world, "g:tea", 10);
    world.settle(20_000);
    let first = world.server.log("g:tea").entries.clone();
    world.server.takeover("g:tea", 4);
    for seq in 7..=12 {
        world.server.append("g:tea", "carol", text(100 + seq));
    }
    world.settle(60_000);
    between(&mut world);
    world.server.log("g:tea").entries = first;
    world.server.takeover("g:tea", 0);
    for seq in 11..=13 {
        world.server.append("g:tea", "carol", text(200 + seq));
    }
    world.settle(60_000);
    world.check_complete();
    assert_eq!(world.saved["g:tea"].cursor, Cursor { epoch: 3, seq: 13 });
}

#[test]
fn copies_of_a_log_that_take_turns_are_told_apart() {
    take_turns(World::lose);
}

#[test]
fn copies_of_a_log_that_take_turns_are_told_apart_by_the_next_process_too() {
    take_turns(World::restart);
}

/// The server has 3 as delivered to a device that knows nothing: it begins there, and has no word of what lies below. The log
/// is cut to 1 later, and goes on.
#[test]
fn a_cut_below_where_it_began_takes_the_application_back_to_the_beginning() {
    let mut world = World::new(24, &["g:tea"]);
    fill(&mut world, "g:tea", 10);
    world.server.log("g:tea").delivered = Some(Cursor { epoch: 1, seq: 3 });
    world.started.insert("g:tea".into());
    world.settle(20_000);
    assert_eq!(seqs(&world, "g:tea"), (4..=10).collect::<Vec<_>>());
    world.server.takeover("g:tea", 0);
    world.server.append("g:tea", "carol", text(11));
    world.settle(20_000);
    world.server.log("g:tea").entries.truncate(1);
    world.server.takeover("g:tea", 0);
    for seq in 2..=12 {
        world.server.append("g:tea", "carol", text(100 + seq));
    }
    world.settle(60_000);
    let cut = |notice: &&Notice| matches!(notice, Notice::Truncated { to, .. } if to.seq == 0);
    assert_eq!(world.notices.iter().filter(cut).count(), 1);
    assert_eq!(seqs(&world, "g:tea"), (1..=12).collect::<Vec<_>>());
    assert_eq!(world.saved["g:tea"].cursor, Cursor { epoch: 3, seq: 12 });
}

/// The process ends when the application has taken something from before a cut that it was told of, and not the cut.
#[test]
fn a_process_that_ends_before_it_took_a_cut_knows_the_epochs_before_it() {
    let mut place = Place::new(1);
    place.begin(Cursor { epoch: 1, seq: 6 });
    for seq in 7..=9 {
        place.tell(Cursor { epoch: 2, seq });
    }
    let (told, first) =
        (Cursor { epoch: 2, seq: 8 }, [Cursor { epoch: 1, seq: 6 }, Cursor { epoch: 2, seq: 7 }]);
    place.cut(Cursor { epoch: 1, seq: 6 });
    place.tell(Cursor { epoch: 1, seq: 7 });
    place.took(Cursor { epoch: 2, seq: 7 });
    place.took(told);
    assert_eq!(place.position(), Position { cursor: told, epochs: first.to_vec() });
    place.took(Cursor { epoch: 2, seq: 9 });
    place.took(Cursor { epoch: 1, seq: 6 });
    let epochs = first[..1].to_vec();
    assert_eq!(place.position(), Position { cursor: Cursor { epoch: 1, seq: 6 }, epochs });
}

#[test]
fn a_login_finds_out_that_a_log_lost_its_end_though_nothing_followed() {
    let mut world = World::new(8, &["d:alice:bob"]);
    fill(&mut world, "d:alice:bob", 10);
    world.settle(20_000);
    world.server.takeover("d:alice:bob", 4);
    world.lose();
    world.settle(60_000);
    let to = Cursor { epoch: 1, seq: 6 };
    let cut = |notice: &&Notice| matches!(notice, Notice::Truncated { to: at, .. } if *at == to);
    assert_eq!(world.notices.iter().filter(cut).count(), 1);
    assert_eq!(world.saved["d:alice:bob"].cursor, to);
}

#[test]
fn a_trimmed_log_is_told_as_a_gap() {
    let mut world = World::new(9, &["g:tea"]);
    fill(&mut world, "g:tea", 5);
    world.settle(20_000);
    world.lose();
    fill(&mut world, "g:tea", 20);
    world.server.trim("g:tea", 15);
    world.settle(60_000);
    assert_eq!(world.shown["g:tea"].gaps, [(6, 15)]);
    world.check_complete();
    // To its very end.
    world.lose();
    fill(&mut world, "g:tea", 5);
    world.server.trim("g:tea", 100);
    world.settle(60_000);
    assert_eq!(world.shown["g:tea"].gaps, [(6, 15), (26, 30)]);
}

#[test]
fn a_gap_alone_is_reason_enough_to_read_the_log() {
    let mut world = World::new(14, &["g:tea"]);
    world.settle(10_000);
    world.server.faults.skip_live = 1_000;
    fill(&mut world, "g:tea", 3);
    world.server.gap();
    world.settle(5_000);
    assert_eq!(seqs(&world, "g:tea"), [1, 2, 3]);
    assert!(world.shown["g:tea"].gaps.is_empty(), "the log has them");
}

#[test]
fn a_cut_is_not_overlooked_while_others_are_being_read() {
    let names = ["g:0", "g:1", "g:2", "g:3", "g:4", "g:5", "g:6", "g:7", "g:z"];
    let mut world = World::new(15, &names);
    names.iter().for_each(|name| fill(&mut world, name, 3));
    world.settle(10_000);
    world.server.faults.skip_live = 1_000;
    names[..8].iter().for_each(|name| fill(&mut world, name, 1));
    world.server.faults.skip_live = 0;
    (0..8).for_each(|_| world.server.gap());
    world.server.takeover("g:z", 2);
    for index in 0..3 {
        world.server.append("g:z", "carol", text(100 + index));
    }
    // No page comes before the fourth entry of the new log, which would fit the third of the old one.
    while world.deliver_frame() {}
    world.settle(20_000);
    world.check_complete();
}

#[test]
fn a_standing_from_before_a_head_does_not_vouch_for_the_log() {
    let mut world = World::new(22, &["g:tea"]);
    fill(&mut world, "g:tea", 6);
    world.settle(1_000);
    let earlier = world.server.log("g:tea").entries.clone();
    world.server.takeover("g:tea", 2);
    fill(&mut world, "g:tea", 8);
    world.settle(5_000);
    let ours = Cursor { epoch: 2, seq: 12 };
    assert_eq!(world.saved["g:tea"].cursor, ours);
    world.server.notify(notify::Event::Resync(Resync { conversations: Vec::new() }));
    let peeks = |op: &Op| matches!(op, Op::Peek(_));
    until_asked(&mut world, peeks);
    // The earlier log is the one there is again, and a head of it comes first.
    let log = world.server.log("g:tea");
    (log.entries, log.epoch, log.delivered) = (earlier, 3, None);
    let conn = world.conn.unwrap();
    let head = notify::Event::Head(Head { conversation: "g:tea".into(), epoch: 3, seq: 6 });
    world.step(Event::Notify { conn, notify: Notify { event: Some(head) } });
    let conversation = "g:tea".to_owned();
    let (head, delivered) = (Some(ours), Some(ours));
    let standing = Standing { conversation: conversation.clone(), head, delivered, ..Standing::default() };
    answer(&mut world, Outcome::Peeked(Peeked { standings: vec![standing] }), peeks);
    // It is cut to the end of the earlier log, which is not enough; and going on is refused for now.
    let syncs = |op: &Op| matches!(op, Op::Sync(_));
    let truncated = Some(Cursor { epoch: 1, seq: 6 });
    let page = SyncPage { conversation, truncated, more: true, ..SyncPage::default() };
    answer(&mut world, Outcome::SyncPage(page), syncs);
    let busy = Refused { code: Code::Busy.into(), retry_after_ms: 500, ..Refused::default() };
    answer(&mut world, Outcome::Refused(busy), syncs);
    world.server.append("g:tea", "carol", text(7));
    world.settle(60_000);
    world.check_complete();
}

#[test]
fn a_new_device_does_not_begin_at_a_standing_from_before_a_failover() {
    let mut world = World::new(24, &["d:alice:bob"]);
    fill(&mut world, "d:alice:bob", 8);
    let acked = Some(Cursor { epoch: 1, seq: 8 });
    world.server.log("d:alice:bob").delivered = acked;
    world.started.insert("d:alice:bob".into());
    let peeks = |op: &Op| matches!(op, Op::Peek(_));
    until_asked(&mut world, peeks);
    // What it was asked for is answered by the owner before; the log of the next one has another 7 and 8.
    world.server.takeover("d:alice:bob", 2);
    world.server.append("d:alice:bob", "bob", text(70));
    world.server.append("d:alice:bob", "bob", text(80));
    let conn = world.conn.unwrap();
    let conversation = "d:alice:bob".to_owned();
    let resync = notify::Event::Resync(Resync { conversations: vec![conversation.clone()] });
    world.step(Event::Notify { conn, notify: Notify { event: Some(resync) } });
    let (head, delivered) = (acked, acked);
    let standing = Standing { conversation, head, delivered, ..Standing::default() };
    answer(&mut world, Outcome::Peeked(Peeked { standings: vec![standing] }), peeks);
    world.settle(600_000);
    assert_eq!(seqs(&world, "d:alice:bob"), [7, 8]);
}
