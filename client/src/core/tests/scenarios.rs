//! One thing at a time.

use bytes::Bytes;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{
    Code, Cursor, Deliver, Head, Joined, LoginAck, Notify, Peeked, PresenceSubscribe, Removed, Response,
    Resync, RoomJoin, Standing, SyncPage, Typing, notify,
};

use super::server::Frame;
use super::world::World;
use crate::Reason;
use crate::core::{Action, Event, Machine, Position, Settings, Start};
use crate::event::Event as Notice;

pub(super) fn text(seq: u64) -> Bytes {
    Bytes::from(format!("message {seq}"))
}

pub(super) fn fill(world: &mut World, conversation: &str, count: u64) {
    for seq in 1..=count {
        world.server.append(conversation, "bob", text(seq));
    }
}

pub(super) fn seqs(world: &World, conversation: &str) -> Vec<u64> {
    world.shown.get(conversation).map_or(Vec::new(), |shown| shown.messages.keys().copied().collect())
}

#[test]
fn a_hundred_thousand_missed_messages_are_shown_with_little_in_memory() {
    let mut world = World::new(1, &["g:tea", "d:alice:bob"]);
    fill(&mut world, "g:tea", 100_000);
    fill(&mut world, "d:alice:bob", 10);
    world.settle(600_000);
    world.check_complete();
    assert_eq!(world.shown["g:tea"].messages.len(), 100_000);
    assert!(world.waiting_max <= world.settings.events_max + 8, "{} waited", world.waiting_max);
    assert_eq!(world.notices.iter().filter(|notice| **notice == Notice::CaughtUp).count(), 1);

    // An application that takes nothing is asked for nothing more.
    let mut world = World::new(2, &["g:tea"]);
    fill(&mut world, "g:tea", 100_000);
    for _ in 0..10_000 {
        world.tick(10);
        world.deliver_request();
        world.deliver_frame();
    }
    assert!(world.waiting.len() <= world.settings.events_max + 8, "{} wait", world.waiting.len());
    assert!(world.server.syncs < 10 && world.server.acks == 0);
}

#[test]
fn many_conversations_are_read_a_few_at_a_time() {
    let names: Vec<String> = (0..600).map(|index| format!("g:{index:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::new(3, &names);
    for name in &names {
        fill(&mut world, name, 9);
    }
    // The world asserts that there are at most eight.
    world.settle(600_000);
    world.check_complete();
    // A second process has nothing to read: what Peek says is enough.
    let syncs = world.server.syncs;
    world.restart();
    world.settle(60_000);
    assert_eq!(world.server.syncs, syncs);
    assert!(world.server.asked.iter().filter(|op| matches!(op, Op::Peek(_))).count() >= 6);
}

#[test]
fn a_new_device_begins_where_it_is_told_to() {
    // The server's cursor.
    let mut world = World::new(4, &["g:tea", "g:new"]);
    fill(&mut world, "g:tea", 10);
    world.server.log("g:tea").delivered = Some(Cursor { epoch: 1, seq: 7 });
    world.started.extend(["g:tea".to_owned()]);
    world.settle(20_000);
    assert_eq!(seqs(&world, "g:tea"), [8, 9, 10]);
    // The newest; what comes then is shown.
    let mut world =
        World::with(5, &["g:tea", "g:new", "d:alice:bob"], |settings| settings.start = Start::Newest);
    fill(&mut world, "g:tea", 10);
    world.started.extend(["g:tea".to_owned(), "d:alice:bob".to_owned()]);
    world.settle(20_000);
    assert_eq!(world.server.log("g:tea").delivered.map(|cursor| cursor.seq), Some(10));
    assert_eq!(world.server.syncs, 0);
    world.server.append("g:tea", "bob", text(11));
    world.server.append("d:alice:bob", "bob", text(1));
    world.server.append("g:new", "bob", text(1));
    world.settle(20_000);
    assert_eq!(
        (seqs(&world, "g:tea"), seqs(&world, "d:alice:bob"), seqs(&world, "g:new")),
        (vec![11], vec![1], vec![1])
    );
}

#[test]
fn an_own_message_is_passed_over_when_everything_before_it_has_come() {
    let mut world = World::new(6, &["g:tea"]);
    world.settle(10_000);
    let syncs = world.server.syncs;
    // Its answer overtakes the two messages before it.
    world.server.append("g:tea", "bob", text(1));
    world.server.append("g:tea", "bob", text(2));
    let key = world.send("g:tea", 10_000);
    while world.deliver_request() {}
    let conn = world.conn.unwrap();
    let Some(Frame::Response(response)) = world.server.answers.pop_front() else { panic!("an answer") };
    world.step(Event::Response { conn, response });
    assert_eq!(world.settled[&key].as_ref().map(|ack| ack.seq), Ok(3));
    assert_eq!(world.machine.cursor("g:tea"), Some(Cursor { epoch: 0, seq: 0 }));
    world.settle(100);
    assert_eq!(world.machine.cursor("g:tea"), Some(Cursor { epoch: 1, seq: 3 }));
    world.settle(10_000);
    assert_eq!((world.server.syncs, world.server.log("g:tea").delivered.unwrap().seq), (syncs, 3));
    // When they don't come, the log is looked into.
    world.server.faults.skip_live = 1_000;
    world.server.append("g:tea", "bob", text(4));
    world.send("g:tea", 10_000);
    world.settle(10_000);
    assert_eq!((seqs(&world, "g:tea"), world.server.syncs), (vec![1, 2, 4], syncs + 1));
}

#[test]
fn what_was_told_and_not_taken_is_neither_saved_nor_acknowledged() {
    let mut world = World::new(7, &["g:tea"]);
    world.settle(10_000);
    for seq in 1..=5 {
        world.server.append("g:tea", "bob", text(seq));
    }
    for _ in 0..100 {
        world.tick(100);
        world.deliver_request();
        world.deliver_frame();
    }
    assert_eq!((world.waiting.len(), world.saved["g:tea"].cursor.seq, world.server.acks), (5, 0, 0));
    let took_ms = world.now_ms;
    world.take();
    world.take();
    assert_eq!(world.saved["g:tea"].cursor.seq, 2, "in the same step");
    while world.server.acks == 0 {
        world.tick(50);
        world.deliver_request();
    }
    assert!(world.now_ms - took_ms <= 2_000, "promptly");
    assert_eq!(world.server.log("g:tea").delivered.unwrap().seq, 2);
    world.restart();
    world.settle(20_000);
    assert_eq!(seqs(&world, "g:tea"), [1, 2, 3, 4, 5], "twice would have been noticed");
}

#[test]
fn nobody_who_listens_means_that_nothing_is_acknowledged() {
    let mut world = World::new(10, &["g:tea"]);
    world.settle(10_000);
    world.step(Event::Deaf);
    fill(&mut world, "g:tea", 50);
    world.settle(10_000);
    assert_eq!((world.server.acks, world.server.log("g:tea").delivered.unwrap_or_default().seq), (0, 0));
    assert!(world.machine.reads(), "messages can still be sent");
    let key = world.send("g:tea", 10_000);
    world.server.go_away(Code::NotAcknowledged, 0);
    world.settle(1_000);
    assert!(world.settled[&key].is_ok());
    world.lose();
    world.settle(60_000);
    let logins =
        world.server.asked.iter().filter_map(|op| if let Op::Login(login) = op { Some(login) } else { None });
    assert_eq!(logins.map(|login| login.acknowledges).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn who_is_no_member_any_more_has_no_cursor() {
    let mut world = World::new(11, &["g:tea"]);
    fill(&mut world, "g:tea", 5);
    world.settle(20_000);
    assert_eq!(world.saved["g:tea"].cursor.seq, 5);
    world.server.notify(notify::Event::Removed(Removed { conversation: "g:tea".into() }));
    world.settle(100);
    assert!(world.saved.is_empty());
    assert!(world.notices.contains(&Notice::Removed { conversation: "g:tea".into() }));
    // Back again: from where it is then, not from where it was; whatever is still to be taken of before.
    world.server.append("g:tea", "bob", text(6));
    world.server.append("g:tea", "bob", text(7));
    let conn = world.conn.unwrap();
    let again = Joined { conversation: "g:tea".into(), epoch: 1, head: 5, members: 2 };
    let joins = |op: &Op| matches!(op, Op::GroupJoin(_));
    let op = Op::GroupJoin(millrace_protocol::messages::client::GroupJoin { group: "tea".into() });
    world.step(Event::Call { key: 999, op, deadline_ms: world.now_ms + 1_000 });
    answer(&mut world, Outcome::Joined(again), joins);
    while world.deliver_frame() {}
    assert_eq!(world.waiting.len(), 2);
    let removed = notify::Event::Removed(Removed { conversation: "g:tea".into() });
    world.step(Event::Notify { conn, notify: Notify { event: Some(removed) } });
    let op = Op::GroupJoin(millrace_protocol::messages::client::GroupJoin { group: "tea".into() });
    world.step(Event::Call { key: 1_000, op, deadline_ms: world.now_ms + 1_000 });
    let joined = Joined { conversation: "g:tea".into(), epoch: 1, head: 40, members: 2 };
    answer(&mut world, Outcome::Joined(joined), joins);
    while world.take() {}
    assert_eq!(world.saved["g:tea"].cursor, Cursor { epoch: 1, seq: 40 });
}

/// Answers the next request, which `takes` recognizes.
pub(super) fn answer(world: &mut World, outcome: Outcome, takes: impl Fn(&Op) -> bool) {
    world.tick(0);
    let index = world.to_server.iter().position(|(_, _, op)| takes(op)).expect("asked");
    let (conn, id, _) = world.to_server.remove(index).unwrap();
    world.step(Event::Response { conn, response: Response { id, outcome: Some(outcome) } });
}

#[test]
fn a_room_shows_its_past_first_when_asked_to() {
    let mut world = World::with(12, &[], |settings| settings.room_replay = 3);
    world.settle(1_000);
    let deliver = |seq: u64| Notify {
        event: Some(notify::Event::Deliver(Deliver {
            conversation: "r:lobby".into(),
            seq,
            epoch: 1,
            sender: "bob".into(),
            ..Deliver::default()
        })),
    };
    let op = Op::RoomJoin(RoomJoin { room: "lobby".into() });
    world.step(Event::Call { key: 1_000, op, deadline_ms: world.now_ms + 1_000 });
    let joined = Joined { conversation: "r:lobby".into(), epoch: 1, head: 20, members: 0 };
    answer(&mut world, Outcome::Joined(joined), |op| matches!(op, Op::RoomJoin(_)));
    let conn = world.conn.unwrap();
    world.step(Event::Notify { conn, notify: deliver(21) });
    let page = SyncPage { entries: vec![deliver(20), deliver(19), deliver(18)], ..SyncPage::default() };
    answer(
        &mut world,
        Outcome::SyncPage(page),
        |op| matches!(op, Op::History(ask) if ask.before == 21 && ask.limit == 3),
    );
    world.step(Event::Notify { conn, notify: deliver(22) });
    let shown = world.waiting.iter().filter_map(|(_, notice)| match notice {
        Notice::Message(message) => Some(message.seq),
        _ => None,
    });
    assert_eq!(shown.collect::<Vec<_>>(), [18, 19, 20, 21, 22]);
}

#[test]
fn typing_is_seldom_and_presence_is_asked_for_again() {
    let mut world = World::new(13, &["d:alice:bob"]);
    world.settle(1_000);
    let said = |world: &World| {
        let typing = world.server.asked.iter().filter_map(|op| match op {
            Op::Typing(Typing { what, .. }) => Some(*what),
            _ => None,
        });
        typing.collect::<Vec<_>>()
    };
    for what in 1..=5 {
        world.step(Event::Typing { conversation: "d:alice:bob".into(), what });
        world.settle(100);
    }
    assert_eq!(said(&world), [1]);
    world.settle(2_000);
    assert_eq!(said(&world), [1, 5], "the last word");
    world.step(Event::Typing { conversation: "d:alice:bob".into(), what: 6 });
    world.send("d:alice:bob", 10_000);
    world.settle(5_000);
    assert_eq!(said(&world), [1, 5], "nobody types what is sent");
    let op = Op::PresenceSubscribe(PresenceSubscribe { users: vec!["bob".into()] });
    world.step(Event::Call { key: 1_000, op: op.clone(), deadline_ms: world.now_ms + 1_000 });
    world.settle(100);
    world.lose();
    world.settle(10_000);
    assert_eq!(world.server.asked.iter().filter(|asked| **asked == op).count(), 2);
}

#[test]
fn one_conversation_that_is_refused_does_not_hide_the_others() {
    let mut world = World::new(16, &["d:alice:bob", "d:alice:carol", "g:a", "g:b", "g:c"]);
    let cursor = Cursor { epoch: 1, seq: 7 };
    world.saved.insert("d:eve:stranger".into(), Position { cursor, ..Position::default() });
    world.restart();
    fill(&mut world, "d:alice:bob", 3);
    fill(&mut world, "d:alice:carol", 3);
    world.settle(60_000);
    world.check_complete();
    assert!(world.notices.contains(&Notice::CaughtUp));
}

#[test]
fn what_a_busy_owner_did_not_say_is_asked_again() {
    for seed in 20..40 {
        let mut world = World::new(seed, &["d:alice:bob", "d:alice:carol", "d:alice:dave"]);
        for name in ["d:alice:bob", "d:alice:carol", "d:alice:dave"] {
            fill(&mut world, name, 20);
        }
        world.server.faults.busy = 600;
        world.settle(120_000);
        world.server.faults.busy = 0;
        // Nobody asks for acknowledgements, and nothing is sent that would tell.
        world.settle(60_000);
        world.check_complete();
    }
}

#[test]
fn what_pages_leave_out_is_asked_for_again_before_it_counts_as_gone() {
    let mut world = World::new(17, &["g:tea"]);
    fill(&mut world, "g:tea", 3);
    world.settle(10_000);
    let conn = world.conn.unwrap();
    let entry = |seq| Notify {
        event: Some(notify::Event::Deliver(Deliver {
            conversation: "g:tea".into(),
            seq,
            epoch: 1,
            sender: "bob".into(),
            ..Deliver::default()
        })),
    };
    world.step(Event::Notify { conn, notify: entry(6) });
    let began_ms = world.now_ms;
    let mut pages = 0;
    while world.waiting.is_empty() {
        world.tick(100);
        if world.to_server.iter().any(|(_, _, op)| matches!(op, Op::Sync(_))) {
            let page = SyncPage { entries: vec![entry(6)], epoch: 1, head: 6, ..SyncPage::default() };
            answer(&mut world, Outcome::SyncPage(page), |op| matches!(op, Op::Sync(_)));
            pages += 1;
        }
        world.to_server.retain(|(_, _, op)| matches!(op, Op::Sync(_)));
        world.step(Event::Heard { conn });
    }
    assert_eq!(pages, 9);
    assert!(world.now_ms - began_ms > 20_000);
    assert!(matches!(&world.waiting[0].1, Notice::Gap { from: 4, to: 5, .. }), "{:?}", world.waiting);
    assert!(matches!(&world.waiting[1].1, Notice::Message(message) if message.seq == 6));
}

#[test]
fn a_page_says_nothing_of_what_came_while_it_was_asked_for() {
    let mut world = World::new(18, &["g:tea"]);
    fill(&mut world, "g:tea", 3);
    world.settle(10_000);
    world.server.head("g:tea");
    // A repeated look at the log is on its way; a live entry overtakes it, and then the store loses that entry.
    world.server.append("g:tea", "bob", text(4));
    let lost = world.server.flow.pop_back().unwrap();
    world.server.gap();
    world.server.notify(notify::Event::Resync(millrace_protocol::messages::client::Resync {
        conversations: vec!["g:tea".into()],
    }));
    while world.deliver_frame() {}
    world.server.flow.push_back(lost);
    world.server.takeover("g:tea", 1);
    while world.deliver_frame() {}
    world.settle(100);
    world.server.append("g:tea", "carol", text(104));
    world.server.append("g:tea", "carol", text(105));
    world.settle(20_000);
    world.check_complete();
}

#[test]
fn a_resync_that_names_nothing_looks_at_everything() {
    let mut world = World::new(5, &["d:alice:bob", "d:alice:cid"]);
    fill(&mut world, "d:alice:bob", 2);
    world.settle(5_000);
    world.check_complete();
    // Messages that never came.
    for (conversation, seq) in [("d:alice:bob", 3), ("d:alice:cid", 1)] {
        world.server.append(conversation, "bob", text(seq));
    }
    world.server.flow.clear();
    world.settle(5_000);
    assert_eq!(world.shown["d:alice:bob"].messages.len(), 2, "nobody has said so");
    // Twice, as links come up one by one: the first walk may have passed what is new since.
    for _ in 0..2 {
        world.server.notify(notify::Event::Resync(Resync { conversations: Vec::new() }));
    }
    world.settle(5_000);
    world.check_complete();
}

#[test]
fn newest_messages_that_an_answer_had_no_room_for_are_asked_for_again() {
    let names = ["d:alice:bob", "d:alice:carol", "d:alice:dave", "g:a", "g:b"];
    let mut world = World::new(21, &names);
    for name in &names[..4] {
        fill(&mut world, name, 3);
    }
    world.settle(20_000);
    let listed = world.notices.iter().filter_map(|notice| match notice {
        Notice::Listed(listings) => Some(listings),
        _ => None,
    });
    let mut listed: Vec<(String, bool)> = listed
        .flatten()
        .map(|listing| (listing.item.conversation.clone(), listing.standing.last.is_some()))
        .collect();
    listed.sort();
    let expected = names.map(|name| (name.to_owned(), name != "g:b"));
    assert_eq!(listed, expected, "each once, with what is newest");
}

#[test]
fn who_joined_meanwhile_is_not_removed_by_what_was_so_before() {
    let join = || Op::GroupJoin(millrace_protocol::messages::client::GroupJoin { group: "tea".into() });
    let joined = Outcome::Joined(Joined { conversation: "g:tea".into(), epoch: 1, head: 5, members: 2 });
    let head = Head { conversation: "g:tea".into(), epoch: 1, seq: 5 };
    // Through this session, or through another one of the user.
    for here in [true, false] {
        let mut world = World::new(20, &["g:tea"]);
        fill(&mut world, "g:tea", 5);
        world.settle(20_000);
        world.lose();
        for _ in 0..10_000 {
            world.tick(10);
            if world.to_server.iter().any(|(_, _, op)| matches!(op, Op::Peek(_))) {
                break;
            }
            world.deliver_request();
            world.deliver_frame();
        }
        let conn = world.conn.unwrap();
        match here {
            true => {
                world.step(Event::Call { key: 1_000, op: join(), deadline_ms: world.now_ms + 1_000 });
                answer(&mut world, joined.clone(), |op| matches!(op, Op::GroupJoin(_)));
            }
            false => {
                let notify = Notify { event: Some(notify::Event::Head(head.clone())) };
                world.step(Event::Notify { conn, notify });
            }
        }
        let outside =
            Standing { conversation: "g:tea".into(), code: Code::NotMember.into(), ..Standing::default() };
        let peeked = Outcome::Peeked(Peeked { standings: vec![outside.clone()] });
        answer(&mut world, peeked, |op| matches!(op, Op::Peek(_)));
        world.settle(20_000);
        let peeks = world.server.asked.iter().filter(|op| matches!(op, Op::Peek(_))).count();
        assert_eq!(peeks, 2, "asked again");
        assert!(!world.notices.contains(&Notice::Removed { conversation: "g:tea".into() }));
        assert_eq!(world.saved["g:tea"].cursor.seq, 5);
    }
}

#[test]
fn a_page_that_comes_after_a_removal_says_that_the_user_is_a_member_again() {
    let removed = Notify { event: Some(notify::Event::Removed(Removed { conversation: "g:tea".into() })) };
    for is_again in [true, false] {
        let mut world = World::new(31, &["g:tea"]);
        fill(&mut world, "g:tea", 5);
        world.settle(20_000);
        let conn = world.conn.unwrap();
        // It reads what it was told of, and is removed before the page is there.
        let head = Head { conversation: "g:tea".into(), epoch: 1, seq: 6 };
        world.step(Event::Notify { conn, notify: Notify { event: Some(notify::Event::Head(head)) } });
        let syncs = world.server.syncs;
        world.step(Event::Notify { conn, notify: removed.clone() });
        let outcome = match is_again {
            true => Outcome::SyncPage(SyncPage {
                conversation: "g:tea".into(),
                epoch: 1,
                head: 6,
                ..SyncPage::default()
            }),
            false => Outcome::Refused(millrace_protocol::messages::client::Refused {
                code: Code::NotMember.into(),
                ..Default::default()
            }),
        };
        answer(&mut world, outcome, |op| matches!(op, Op::Sync(_)));
        world.settle(20_000);
        assert!(world.notices.contains(&Notice::Removed { conversation: "g:tea".into() }));
        assert_eq!(world.server.syncs > syncs, is_again, "read from where the server has it");
    }
}

#[test]
fn who_joins_with_a_cursor_looks_whether_the_log_is_the_one_that_it_knows() {
    let at = |epoch, seq| Joined { conversation: "g:tea".into(), epoch, head: seq, members: 2 };
    // Where it is; before what came since; and of a copy of the store that its own last entry is not in.
    for (joined, looks) in [(at(1, 5), false), (at(1, 4), false), (at(1, 6), true), (at(0, 5), true)] {
        let mut world = World::new(32, &["g:tea"]);
        fill(&mut world, "g:tea", 5);
        world.settle(20_000);
        let syncs = world.server.syncs;
        let op = Op::GroupJoin(millrace_protocol::messages::client::GroupJoin { group: "tea".into() });
        world.step(Event::Call { key: 999, op, deadline_ms: world.now_ms + 1_000 });
        answer(&mut world, Outcome::Joined(joined.clone()), |op| matches!(op, Op::GroupJoin(_)));
        world.settle(1_000);
        assert_eq!(world.server.syncs > syncs, looks, "{joined:?}");
        world.check_complete();
    }
}

#[test]
fn a_login_that_is_given_up_is_tried_again_though_the_pause_is_none() {
    let mut settings = Settings::new("gateway:1", "device0");
    // Less than a millisecond, always.
    settings.backoff_ms = (1, 1);
    settings.connect_deadline_ms = 1_000;
    let mut machine = Machine::new(settings, 22, Vec::new(), 0);
    let dials = |actions: Vec<Action>| actions.iter().any(|it| matches!(it, Action::Connect { .. }));
    let asked = machine.step(0, Event::Tick);
    let [Action::Token { conn }] = asked[..] else { panic!("{asked:?}") };
    assert!(dials(machine.step(0, Event::Token { conn, token: Ok("me".into()) })));
    machine.step(0, Event::Opened { conn });
    let ack = Outcome::LoginAck(LoginAck { resume_ticket: "ticket".into(), ..LoginAck::default() });
    machine.step(0, Event::Response { conn, response: Response { id: 1, outcome: Some(ack) } });
    machine.step(1, Event::Lost { conn, reason: Reason::Network("cut".into()) });
    let mut dialled = 0;
    for _ in 0..6 {
        let at_ms = machine.next_ms().expect("it pauses, or waits for an answer");
        dialled += u32::from(dials(machine.step(at_ms, Event::Tick)));
    }
    assert_eq!(dialled, 3);
}

/// Until such a request is on its way to the server.
pub(super) fn until_asked(world: &mut World, asks: impl Fn(&Op) -> bool) {
    for _ in 0..1_000 {
        world.tick(1);
        if world.to_server.iter().any(|(_, _, op)| asks(op)) {
            break;
        }
        world.deliver_request();
        world.deliver_frame();
    }
}

#[test]
fn a_new_device_does_not_begin_at_a_head_that_came_while_its_page_was_read() {
    let mut world = World::new(21, &["g:tea"]);
    fill(&mut world, "g:tea", 20);
    let asks = |op: &Op| matches!(op, Op::Sync(sync) if sync.after.is_none());
    until_asked(&mut world, asks);
    let conversation = "g:tea".into();
    let page = SyncPage { conversation, epoch: 1, head: 20, more: true, ..SyncPage::default() };
    answer(&mut world, Outcome::SyncPage(page), asks);
    world.settle(20_000);
    assert_eq!(seqs(&world, "g:tea"), (1..=20).collect::<Vec<_>>());
}

#[test]
fn a_page_that_nobody_waits_for_any_more_still_ends_what_comes_live() {
    let mut world = World::new(19, &["g:tea"]);
    world.started.extend(["g:tea".to_owned()]);
    fill(&mut world, "g:tea", 20);
    let asks = |op: &Op| matches!(op, Op::Sync(_));
    until_asked(&mut world, asks);
    // It begins at the head by joining, while a page from further back is on its way.
    let join = Op::GroupJoin(millrace_protocol::messages::client::GroupJoin { group: "tea".into() });
    world.step(Event::Call { key: 1_000, op: join, deadline_ms: world.now_ms + 1_000 });
    let joined = Joined { conversation: "g:tea".into(), epoch: 1, head: 20, members: 2 };
    answer(&mut world, Outcome::Joined(joined), |op| matches!(op, Op::GroupJoin(_)));
    world.settle(5_000);
    world.server.append("g:tea", "bob", text(21));
    world.settle(5_000);
    assert_eq!(seqs(&world, "g:tea"), [21]);
}

#[test]
fn a_servers_cursor_that_was_lost_is_no_place_to_begin() {
    let mut world = World::new(20, &["g:tea"]);
    fill(&mut world, "g:tea", 3);
    let asks = |op: &Op| matches!(op, Op::Sync(sync) if sync.after.is_none());
    until_asked(&mut world, asks);
    let page = SyncPage {
        conversation: "g:tea".into(),
        truncated: Some(Cursor::default()),
        more: true,
        ..SyncPage::default()
    };
    answer(&mut world, Outcome::SyncPage(page), asks);
    world.settle(1_000);
    assert_eq!(seqs(&world, "g:tea"), [1, 2, 3]);
    assert!(
        !world.notices.iter().any(|notice| matches!(notice, Notice::Truncated { .. })),
        "nothing was shown"
    );
}

#[test]
fn nothing_counts_before_the_login_is_answered() {
    let mut world = World::new(23, &["g:tea"]);
    fill(&mut world, "g:tea", 3);
    until_asked(&mut world, |op| matches!(op, Op::Login(_)));
    let conn = world.conn.unwrap();
    let message = |conversation: &str| {
        let (conversation, sender) = (conversation.to_owned(), "bob".to_owned());
        let deliver = Deliver { conversation, sender, seq: 1, epoch: 1, ..Deliver::default() };
        Notify { event: Some(notify::Event::Deliver(deliver)) }
    };
    for conversation in ["g:tea", "r:lobby"] {
        world.step(Event::Notify { conn, notify: message(conversation) });
    }
    assert!(world.waiting.is_empty() && world.shown.is_empty());
    world.settle(5_000);
    world.check_complete();
    assert!(!world.shown.contains_key("r:lobby"));
}
