//! What a device missed: durable answers, cursors, pages, standings, retention.

use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::{self, Code, Cursor, SyncPage, notify, request, response};
use millrace_protocol::messages::link as wire;

use super::world::{World, conversation_partition, direct, session};
use crate::core::limits::{Limits, Retention};
use crate::store::model::ModelStore;
use crate::store::{Entry, List};

fn group(world: &mut World, members: &[&str]) {
    let members = members.iter().map(|member| (*member).to_owned()).collect();
    let op =
        request::Op::GroupCreate(client::GroupCreate { group: "x".into(), members, ..Default::default() });
    world.request(0, session(1, 1), "ann", op);
    world.run();
}

fn sync(world: &mut World, user: &str, conversation: &str, after: Option<(u64, u64)>, limit: u32) -> u64 {
    let after = after.map(|(epoch, seq)| Cursor { epoch, seq });
    let ask = client::Sync { conversation: conversation.into(), after, limit };
    let token = world.request(0, session(1, 9), user, request::Op::Sync(ask));
    world.run();
    token
}

fn page(world: &mut World, token: u64) -> (wire::Reply, SyncPage) {
    match world.answer(token).expect("an answer") {
        (reply, response::Outcome::SyncPage(page)) => (reply, page),
        other => panic!("no page: {other:?}"),
    }
}

fn seqs(page: &SyncPage) -> Vec<u64> {
    let seq = |notify: &client::Notify| match &notify.event {
        Some(notify::Event::Deliver(deliver)) => deliver.seq,
        other => panic!("no entry: {other:?}"),
    };
    page.entries.iter().map(seq).collect()
}

fn epoch(world: &World, conversation: &str) -> u64 {
    world.nodes[0].claimed[&conversation_partition(conversation)]
}

#[test]
fn a_repeat_gets_the_first_answer_after_a_takeover_however_much_others_sent_meanwhile() {
    let mut world = World::serving(1, &[1]);
    let first = world.send(session(1, 1), "ann", "r:a", 1);
    world.run();
    for n in 1..=200 {
        world.send(session(1, 2), "bob", "r:a", n);
        world.run();
    }
    let ack = world.ack(first);
    let partition = conversation_partition("r:a");
    world.release(0, partition);
    world.run();
    world.claim(0, partition);
    world.run();
    let again = world.send(session(1, 1), "ann", "r:a", 1);
    world.run();
    assert_eq!(world.ack(again), ack);
    let next = world.send(session(1, 1), "ann", "r:a", 3);
    world.run();
    assert_eq!(world.refused(next).expected, 2);
    let next = world.send(session(1, 1), "ann", "r:a", 2);
    world.run();
    assert_eq!(world.ack(next).seq, 202);
}

#[test]
fn messages_of_one_stream_keep_their_order_while_its_answers_are_read() {
    let mut world = World::serving(1, &[1]);
    let send = |world: &mut World, user: &str, n| world.send(session(1, 1), user, "r:a", n);
    send(&mut world, "ann", 1);
    world.run();
    world.release(0, conversation_partition("r:a"));
    world.run();
    world.claim(0, conversation_partition("r:a"));
    world.run();
    send(&mut world, "bob", 1);
    world.run();
    // The conversation is in memory now, ann's stream is not.
    world.nodes[0].store_held = true;
    let tokens: Vec<u64> = (1..=5).map(|n| send(&mut world, "ann", n)).collect();
    world.run();
    world.nodes[0].store_held = false;
    world.run();
    let seqs: Vec<u64> = tokens.into_iter().map(|token| world.ack(token).seq).collect();
    assert_eq!(seqs, [1, 3, 4, 5, 6]);
}

#[test]
fn a_direct_conversation_is_in_both_lists_before_its_first_message() {
    let mut world = World::serving(1, &[1]);
    let name = direct("ann", "bob");
    world.nodes[0].store_held = true;
    let token = world.send(session(1, 1), "ann", &name, 1);
    for _ in 0..3 {
        world.run();
        let jobs = world.held(0);
        assert!(!jobs.contains(&"append"), "{jobs:?}");
        world.nodes[0].store_held = false;
        world.tick();
        world.nodes[0].store_held = true;
        if world.held(0).contains(&"append") {
            break;
        }
    }
    for user in ["ann", "bob"] {
        assert!(world.store.lists[&(user.to_owned(), List::Directs)].contains_key(&name), "{user}");
    }
    world.nodes[0].store_held = false;
    world.run();
    assert_eq!(world.ack(token).seq, 1);
}

#[test]
fn pages_reach_the_head_and_then_the_session_listens() {
    let mut world = World::serving(1, &[1]);
    group(&mut world, &["bob"]);
    for n in 1..=10 {
        world.send(session(1, 1), "ann", "g:x", n);
    }
    world.run();
    let head = world.store.logs["g:x"].head();
    let token = sync(&mut world, "bob", "g:x", Some((0, 0)), 6);
    let (reply, first) = page(&mut world, token);
    assert_eq!((seqs(&first), first.more, first.head), ((1..=6).collect(), true, head));
    assert_eq!((reply.syncing.as_str(), reply.joined.as_str()), ("g:x", ""));
    let after = (epoch(&world, "g:x"), 6);
    let token = sync(&mut world, "bob", "g:x", Some(after), 0);
    let (reply, last) = page(&mut world, token);
    assert_eq!((seqs(&last), last.more), ((7..=head).collect(), false));
    assert_eq!((reply.joined.as_str(), reply.joined_head), ("g:x", head));
    // Whoever is no member gets nothing.
    let token = sync(&mut world, "eve", "g:x", None, 0);
    assert_eq!(world.refused(token).code(), Code::NotMember);
    let token = sync(&mut world, "eve", &direct("ann", "bob"), None, 0);
    assert_eq!(world.refused(token).code(), Code::Forbidden);
}

#[test]
fn without_a_cursor_a_page_begins_at_the_servers() {
    let mut world = World::serving(1, &[1]);
    group(&mut world, &["bob"]);
    for n in 1..=5 {
        world.send(session(1, 1), "ann", "g:x", n);
    }
    world.run();
    let epoch = epoch(&world, "g:x");
    let ack = |seq| wire::DeviceAck {
        conversation: "g:x".into(),
        user: "bob".into(),
        device: "bob-9".into(),
        epoch,
        seq,
    };
    let acks =
        wire::Acks { acks: vec![ack(3), ack(2), ack(99), wire::DeviceAck { user: "eve".into(), ..ack(4) }] };
    let partition = conversation_partition("g:x");
    world.say(0, 1, Kind::Acks, partition, session(1, 9), &acks);
    world.run();
    assert_eq!((world.stats(0).acks, world.stats(0).acks_refused), (2, 2));
    assert!(world.store.cursors.is_empty(), "gathered");
    let token = sync(&mut world, "bob", "g:x", None, 2);
    assert_eq!(seqs(&page(&mut world, token).1), [4, 5], "what moved counts before it is written");
    world.pass(300);
    world.pass(1_100);
    let key = ("g:x".to_owned(), "bob".to_owned(), "bob-9".to_owned());
    assert_eq!(world.store.cursors.get(&key).map(|cursor| cursor.seq), Some(3));
    world.release(0, partition);
    world.run();
    world.claim(0, partition);
    world.run();
    let token = sync(&mut world, "bob", "g:x", None, 0);
    assert_eq!(seqs(&page(&mut world, token).1)[0], 4, "also for a new owner");
    let read = client::Read { conversation: "g:x".into(), seq: 2 };
    world.request(0, session(1, 9), "bob", request::Op::Read(read));
    world.run();
    let ask = client::Sync { conversation: "g:x".into(), after: None, limit: 0 };
    let token = world.request(0, session(1, 8), "bob", request::Op::Sync(ask));
    world.run();
    assert_eq!(seqs(&page(&mut world, token).1)[0], 3, "a new device goes on from what was read");
}

#[test]
fn a_handover_writes_the_cursors_that_moved() {
    let mut world = World::serving(1, &[1]);
    group(&mut world, &["bob"]);
    world.send(session(1, 1), "ann", "g:x", 1);
    world.run();
    let epoch = epoch(&world, "g:x");
    let ack = wire::DeviceAck {
        conversation: "g:x".into(),
        user: "bob".into(),
        device: "phone".into(),
        epoch,
        seq: 1,
    };
    let partition = conversation_partition("g:x");
    world.say(0, 1, Kind::Acks, partition, session(1, 9), &wire::Acks { acks: vec![ack] });
    world.run();
    world.release(0, partition);
    world.run();
    assert!(!world.nodes[0].claimed.contains_key(&partition), "handed over");
    assert_eq!(world.store.cursors.len(), 1);
}

#[test]
fn a_cursor_that_the_log_does_not_have_is_cut_back_to_where_the_logs_part() {
    let mut world = World::serving(1, &[1]);
    for n in 1..=8 {
        world.send(session(1, 1), "ann", "r:a", n);
    }
    world.run();
    let partition = conversation_partition("r:a");
    let old = epoch(&world, "r:a");
    // The store loses its end, and another owner writes on.
    world.release(0, partition);
    world.run();
    world.store.logs.get_mut("r:a").unwrap().entries.truncate(5);
    world.store.answers.clear();
    world.pass(10);
    world.claim(0, partition);
    world.run();
    let new = epoch(&world, "r:a");
    assert!(new > old);
    for n in 1..=2 {
        world.send(session(1, 2), "bob", "r:a", n);
        world.run();
    }
    for (cursor, expected) in [
        ((old, 8), Some((old, 5))),
        ((old, 7), Some((old, 5))),
        ((old, 6), Some((old, 5))),
        ((old, 5), None),
        ((new, 6), None),
        ((new, 7), None),
        ((new, 9), Some((new, 7))),
        // Of a copy of the store that was given up since: what the log has in its place is not of its device.
        ((new + 5, 6), Some((old, 5))),
        ((new + 5, 7), Some((new, 6))),
    ] {
        let token = sync(&mut world, "bob", "r:a", Some(cursor), 0);
        let (_, page) = page(&mut world, token);
        assert_eq!(page.truncated.map(|to| (to.epoch, to.seq)), expected, "{cursor:?}");
        if expected.is_none() {
            assert_eq!(seqs(&page), (cursor.1 + 1..=7).collect::<Vec<_>>(), "{cursor:?}");
        }
    }
}

#[test]
fn what_is_beyond_the_retention_is_told_as_a_gap() {
    let limits = Limits { retention: Retention { count: 10, ..Retention::default() }, ..Limits::default() };
    let mut world = World::with_limits(1, 1, limits);
    world.claim_all(0);
    world.connect(0, 1, 1);
    world.run();
    group(&mut world, &["bob"]);
    for n in 1..=200 {
        world.send(session(1, 1), "ann", "g:x", n);
        world.run();
    }
    let log = &world.store.logs["g:x"];
    let (first, head) = (log.trimmed + 1, log.head());
    assert!((10..=10 + 65).contains(&(head + 1 - first)), "{first}..={head}");
    let token = sync(&mut world, "bob", "g:x", Some((0, 3)), 0);
    let (_, page) = page(&mut world, token);
    assert_eq!(page.gap.as_ref().map(|gap| (gap.from, gap.to)), Some((4, first - 1)));
    assert_eq!(seqs(&page), (first..=head).collect::<Vec<_>>());
}

#[test]
fn bytes_beyond_the_retention_go_from_the_oldest_on_and_the_newest_stays() {
    for limit in [1, 4_000] {
        let retention = Retention { bytes: limit, ..Retention::default() };
        let mut world = World::with_limits(1, 1, Limits { retention, ..Limits::default() });
        world.claim_all(0);
        world.connect(0, 1, 1);
        world.run();
        group(&mut world, &["bob"]);
        let (mut trimmed, mut trims) = (0, 0);
        for n in 1..=300_u64 {
            let payload = "x".repeat((n * 37 % 100) as usize);
            world.send_to(0, session(1, 1), "ann", "g:x", n, &payload);
            // Some come together, and are at the store while the oldest are looked at.
            if n > 200 && !n.is_multiple_of(10) {
                continue;
            }
            world.run();
            let log = &world.store.logs["g:x"];
            assert_eq!(log.head(), n + 1, "behind the entry about the creation");
            let newest = log.entries.last().expect("the newest entry");
            assert_eq!(newest.seq, n + 1);
            if log.trimmed == trimmed || n > 200 {
                continue;
            }
            (trimmed, trims) = (log.trimmed, trims + 1);
            let kept: u64 = log.entries.iter().map(|entry| entry.notify.len() as u64).sum();
            let oldest = log.entries[0].notify.len() as u64;
            assert!(kept >= limit, "limit {limit}: {kept} bytes are kept");
            assert!(kept - oldest < limit, "limit {limit}: {kept} bytes are kept, {oldest} too many");
        }
        assert!(trims >= 2, "limit {limit}: trimmed {trims} times");
        let log = &world.store.logs["g:x"];
        assert_eq!(
            world.stats(0).trimmed,
            log.trimmed,
            "limit {limit}: what the owner dropped is what is gone"
        );
        // Who is below what is kept is told.
        let (first, head) = (log.trimmed + 1, log.head());
        let token = sync(&mut world, "bob", "g:x", Some((0, 3)), 256);
        let (_, page) = page(&mut world, token);
        assert_eq!(page.gap.as_ref().map(|gap| (gap.from, gap.to)), Some((4, first - 1)));
        assert_eq!(seqs(&page), (first..=head).collect::<Vec<_>>());
    }
}

#[test]
fn old_entries_go_by_age_unless_the_clock_jumped() {
    let hour = 3_600_000;
    let retention = Retention { age_ms: hour, ..Retention::default() };
    let limits = Limits { retention_rooms: retention, ..Limits::default() };
    for jump_ms in [0, 5 * hour] {
        let mut world = World::with_limits(1, 1, limits);
        world.claim_all(0);
        world.connect(0, 1, 1);
        world.run();
        let mut n = 0;
        for _ in 0..2 {
            for _ in 0..70 {
                n += 1;
                world.send(session(1, 1), "ann", "r:a", n);
                world.run();
            }
            world.now.wall_ms += jump_ms;
            if jump_ms == 0 {
                world.now.mono_us += 2 * hour * 1_000;
                world.now.wall_ms += 2 * hour;
                world.view();
                world.run();
            }
        }
        world.send(session(1, 1), "ann", "r:a", n + 1);
        world.run();
        let trimmed = world.store.logs["r:a"].trimmed;
        assert_eq!(trimmed > 0, jump_ms == 0, "{trimmed} after a jump of {jump_ms} ms");
        assert_eq!(world.stats(0).trims_held > 0, jump_ms > 0);
    }
}

#[test]
fn a_node_that_starts_with_its_clock_off_trims_nothing_by_age_until_it_is_put_right() {
    let hour = 3_600_000;
    let retention = Retention { age_ms: hour, ..Retention::default() };
    let limits = Limits { retention_rooms: retention, ..Limits::default() };
    let started = |store: &ModelStore, off_ms: i64| {
        let mut world = World::with_limits(1, 1, limits);
        world.nodes[0].events[0].clear();
        world.store = store.clone();
        world.store.clock_ms = Some(world.now.wall_ms);
        world.now.wall_ms = world.now.wall_ms.strict_add_signed(off_ms);
        world.view();
        world.claim_all(0);
        world.connect(0, 1, 1);
        world.run();
        world
    };
    let send = |world: &mut World, numbers: std::ops::RangeInclusive<u64>| {
        for n in numbers {
            world.send(session(1, 1), "ann", "r:a", n);
            world.run();
        }
    };
    for off_ms in [5 * hour as i64, -5 * hour as i64] {
        // No earlier id of the partition keeps up those of an owner that is behind.
        let mut world = started(&ModelStore::default(), off_ms.min(0));
        send(&mut world, 1..=10);
        let mut world = started(&world.store, off_ms);
        send(&mut world, 11..=80);
        assert_eq!(world.store.logs["r:a"].trimmed, 0, "all are seconds old, {off_ms} ms");
        assert!(world.stats(0).trims_held > 0);

        world.now.wall_ms = world.now.wall_ms.strict_add_signed(-off_ms);
        world.view();
        world.run();
        send(&mut world, 81..=150);
        assert_eq!(world.store.logs["r:a"].trimmed, 0, "nor later, {off_ms} ms");

        let passed_ms = 2 * hour;
        world.now.mono_us += passed_ms * 1_000;
        world.now.wall_ms += passed_ms;
        world.store.clock_ms = Some(world.now.wall_ms);
        world.view();
        world.run();
        let held = world.stats(0).trims_held;
        send(&mut world, 151..=220);
        assert!(world.store.logs["r:a"].trimmed >= 10, "what is old goes, {off_ms} ms");
        assert_eq!(world.stats(0).trims_held, held);
    }
}

#[test]
fn history_reads_both_ways() {
    let mut world = World::serving(1, &[1]);
    for n in 1..=10 {
        world.send(session(1, 1), "ann", "r:a", n);
    }
    world.run();
    let cases = [
        (0, 0, 3, vec![10, 9, 8], true),
        (8, 0, 3, vec![7, 6, 5], true),
        (3, 0, 9, vec![2, 1], false),
        (0, 7, 2, vec![8, 9], true),
        (0, 8, 0, vec![9, 10], false),
        (1, 0, 0, vec![], false),
    ];
    for (before, after, limit, expected, more) in cases {
        let ask = client::History { conversation: "r:a".into(), before, after, limit };
        let token = world.request(0, session(1, 9), "bob", request::Op::History(ask));
        world.run();
        let (reply, page) = page(&mut world, token);
        assert_eq!((seqs(&page), page.more), (expected, more), "{before} {after} {limit}");
        assert!(reply.joined.is_empty() && reply.syncing.is_empty());
    }
}

#[test]
fn a_standing_tells_head_cursors_unread_and_the_newest_message() {
    let mut world = World::serving(1, &[1]);
    let name = direct("ann", "bob");
    for n in 1..=4 {
        world.send(session(1, 1), "ann", &name, n);
        world.run();
    }
    let read = client::Read { conversation: name.clone(), seq: 3 };
    world.request(0, session(1, 9), "bob", request::Op::Read(read));
    world.run();
    let react = client::Send {
        conversation: name.clone(),
        client_seq: 5,
        stream: 1,
        payload: "+1".into(),
        action: client::Action::React as i32,
        refers_to: 2,
        ..Default::default()
    };
    world.request(0, session(1, 1), "ann", request::Op::Send(react));
    world.run();
    let partition = conversation_partition(&name);
    for reloaded in [false, true] {
        if reloaded {
            world.release(0, partition);
            world.run();
            world.claim(0, partition);
            world.run();
        }
        let items = vec![client::PeekItem { conversation: name.clone(), cursor: None }];
        let token = world.request(0, session(1, 9), "bob", request::Op::Peek(client::Peek { items }));
        world.run();
        let Some((_, response::Outcome::Peeked(peeked))) = world.answer(token) else { panic!("no standing") };
        let standing = &peeked.standings[0];
        assert_eq!(standing.head.as_ref().map(|head| head.seq), Some(5));
        assert_eq!(standing.read.as_ref().map(|read| read.seq), Some(3));
        assert_eq!((standing.unread, standing.news), (1, true), "the reaction is no message");
        let Some(notify::Event::Deliver(last)) = standing.last.as_ref().and_then(|last| last.event.as_ref())
        else {
            panic!("no newest message");
        };
        assert_eq!(last.seq, 4);
    }
    let items = vec![client::PeekItem { conversation: name.clone(), cursor: None }];
    let token = world.request(0, session(1, 9), "eve", request::Op::Peek(client::Peek { items }));
    world.run();
    let Some((_, response::Outcome::Peeked(peeked))) = world.answer(token) else { panic!("no standing") };
    assert_eq!(peeked.standings[0].code(), Code::Forbidden);
}

#[test]
fn pages_are_answered_when_the_partition_is_claimed_again_meanwhile() {
    let mut world = World::serving(1, &[1]);
    world.send(session(1, 1), "ann", "r:a", 1);
    world.run();
    world.nodes[0].store_held = true;
    let token = sync(&mut world, "bob", "r:a", Some((0, 0)), 0);
    world.store.fences.clear();
    world.nodes[0].store_held = false;
    world.run();
    world.pass(2_000);
    assert_eq!(world.refused(token).code(), Code::Busy);
    let token = sync(&mut world, "bob", "r:a", Some((0, 0)), 0);
    assert_eq!(seqs(&page(&mut world, token).1), [1]);
    let entries: Vec<&Entry> = world.store.logs["r:a"].entries.iter().collect();
    assert_eq!(entries.len(), 1);
}

#[test]
fn a_cursor_above_what_is_durable_is_of_another_log() {
    let mut world = World::serving(1, &[1]);
    let name = direct("ann", "bob");
    for n in 1..=2 {
        world.send(session(1, 1), "ann", &name, n);
        world.run();
    }
    let epoch = epoch(&world, &name);
    // The store has the third already when it is asked, and this owner does not know it yet.
    world.nodes[0].store_held = true;
    world.send(session(1, 1), "ann", &name, 3);
    world.run();
    let token = sync(&mut world, "bob", &name, Some((epoch - 1, 3)), 0);
    world.nodes[0].store_held = false;
    world.run();
    let (_, page) = page(&mut world, token);
    assert!(page.truncated.is_some() && page.entries.is_empty(), "{page:?}");
}

#[test]
fn who_joins_is_told_the_epoch_of_the_entry() {
    let mut world = World::serving(1, &[1]);
    group(&mut world, &[]);
    let before = epoch(&world, "g:x");
    let partition = conversation_partition("g:x");
    world.release(0, partition);
    world.run();
    world.pass(1_000);
    world.claim(0, partition);
    world.run();
    assert!(epoch(&world, "g:x") > before);
    let join = request::Op::GroupJoin(client::GroupJoin { group: "x".into() });
    let token = world.request(0, session(1, 1), "ann", join);
    world.run();
    let (_, outcome) = world.answer(token).unwrap();
    let response::Outcome::Joined(joined) = outcome else { panic!("{outcome:?}") };
    assert_eq!((joined.epoch, joined.head), (before, 1), "a cursor that the log has");
    // Gateways learn where this owner began.
    world.send(session(1, 1), "ann", "g:x", 1);
    world.run();
    world.clear();
    world.subscribe(0, 1, "g:x", 1, &["ann"]);
    world.run();
    let answer: Vec<wire::Subscribed> = world.take(0, 1, Kind::Subscribed);
    assert_eq!((answer[0].head, answer[0].base, answer[0].base_epoch), (2, 1, before));
}
