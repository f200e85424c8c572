//! Sending, repeats, fan-out, gaps, pages.

use millrace_protocol::ids::{MessageId, SessionId};
use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::{self, Code, request};
use millrace_protocol::messages::link as wire;

use super::world::{World, conversation_partition, deliver, session};
use crate::store::model::Fault;

#[test]
fn seq_is_dense_and_ids_never_go_back_whatever_the_clock_does() {
    let mut world = World::serving(1, &[1]);
    let ann = session(1, 1);
    let mut last = MessageId(0);
    for (n, wall_ms) in [0, 5, -60_000, -60_000, 3_600_000_i64, -86_400_000].into_iter().enumerate() {
        world.now.wall_ms = (1_750_000_000_000 + wall_ms) as u64;
        let token = world.send(ann, "ann", "r:a", n as u64 + 1);
        world.run();
        let ack = world.ack(token);
        assert_eq!(ack.seq, n as u64 + 1);
        assert!(ack.message_id > last.0, "step {n}");
        last = MessageId(ack.message_id);
        assert_eq!(ack.server_time_ms, last.wall_ms());
    }
    assert_eq!(world.store.logs["r:a"].entries.len(), 6);
}

#[test]
fn nobody_hears_of_a_message_before_it_is_durable() {
    let mut world = World::serving(1, &[1, 2]);
    world.subscribe(0, 2, "r:a", 1, &[]);
    world.run();
    world.clear();
    world.nodes[0].store_held = true;
    let first = world.send(session(1, 1), "ann", "r:a", 1);
    let second = world.send(session(1, 1), "ann", "r:a", 2);
    world.run();
    assert_eq!(world.held(0), ["append"], "one batch at a time");
    let third = world.send(session(1, 1), "ann", "r:a", 3);
    world.run();
    assert_eq!(world.held(0), ["append"], "one batch at a time");
    assert!(world.kinds(0, 1).is_empty() && world.kinds(0, 2).is_empty());
    world.nodes[0].store_held = false;
    world.run();
    let seqs: Vec<_> = [first, second, third].into_iter().map(|token| world.ack(token).seq).collect();
    assert_eq!(seqs, [1, 2, 3]);
    assert_eq!(world.stats(0).batches, 2);
    let got: Vec<wire::FanOut> = world.take(0, 2, Kind::FanOut);
    let got: Vec<_> = got.iter().map(|message| (message.seq, deliver(&message.notify).seq)).collect();
    assert_eq!(got, [(1, 1), (2, 2), (3, 3)]);
}

#[test]
fn one_more_than_64_unanswered_of_a_stream_is_busy() {
    let mut world = World::serving(1, &[1]);
    let ann = session(1, 1);
    world.subscribe(0, 1, "r:a", 1, &[]);
    world.run();
    world.nodes[0].store_held = true;
    let tokens: Vec<u64> = (1..=66).map(|n| world.send(ann, "ann", "r:a", n)).collect();
    let elsewhere = world.send(ann, "ann", "r:b", 1);
    world.run();
    assert_eq!(world.refused(tokens[64]).code, Code::Busy as i32);
    let behind = world.refused(tokens[65]);
    assert_eq!((behind.code, behind.expected), (Code::OutOfOrder as i32, 65));
    assert_eq!(world.stats(0).crowded, 1);
    world.nodes[0].store_held = false;
    world.run();
    let seqs: Vec<u64> = tokens[..64].iter().map(|token| world.ack(*token).seq).collect();
    assert_eq!(seqs, (1..=64).collect::<Vec<_>>());
    assert_eq!(world.ack(elsewhere).seq, 1);
    let again = world.send(ann, "ann", "r:a", 65);
    world.run();
    assert_eq!(world.ack(again).seq, 65);
}

#[test]
fn a_repeat_gets_the_first_answer_also_while_the_first_is_in_flight() {
    let mut world = World::serving(1, &[1]);
    let ann = session(1, 1);
    world.subscribe(0, 1, "r:a", 1, &[]);
    world.run();
    world.nodes[0].store_held = true;
    let tokens = [world.send(ann, "ann", "r:a", 1), world.send(ann, "ann", "r:a", 1)];
    world.run();
    assert!(world.answer(tokens[0]).is_none() && world.answer(tokens[1]).is_none());
    world.nodes[0].store_held = false;
    world.run();
    let late = world.send(ann, "ann", "r:a", 1);
    world.pass(5_000);
    let first = world.ack(tokens[0]);
    assert_eq!((first, first), (world.ack(tokens[1]), world.ack(late)));
    assert_eq!(world.store.logs["r:a"].entries.len(), 1);
    assert_eq!(world.take::<wire::FanOut>(0, 1, Kind::FanOut).len(), 1);
    assert_eq!(world.stats(0).repeats, 2);
}

#[test]
fn what_is_refused_changes_nothing() {
    let mut world = World::serving(1, &[1]);
    let ann = session(1, 1);
    world.send(ann, "ann", "r:a", 1);
    world.run();
    let long = "x".repeat(70_000);
    let cases = [
        ("r:a", 3, "ann 3", Code::OutOfOrder, 2),
        ("r:a", 0, "ann 0", Code::OutOfOrder, 2),
        ("r:a", 1, "another payload", Code::Conflict, 0),
        ("r:b", 2, "ann 2", Code::OutOfOrder, 1),
        ("r:a", 2, &long, Code::PayloadTooLarge, 0),
        ("d:bob:cid", 1, "ann 1", Code::Forbidden, 0),
        ("g:none", 1, "ann 1", Code::NoSuchGroup, 0),
        ("r:", 1, "ann 1", Code::BadRequest, 0),
    ];
    for (conversation, client_seq, payload, code, expected) in cases {
        let token = world.send_to(0, ann, "ann", conversation, client_seq, payload);
        world.run();
        let refused = world.refused(token);
        assert_eq!((refused.code, refused.expected), (code as i32, expected), "{conversation} {client_seq}");
        assert!(!refused.reason.is_empty());
    }
    let token = world.send(ann, "ann", "r:a", 2);
    world.run();
    assert_eq!(world.ack(token).seq, 2);
}

#[test]
fn an_append_that_fails_is_answered_busy_and_sent_again_once() {
    for (fault, log_before) in [(Fault::Unavailable, 1), (Fault::DoneButUnknown, 2)] {
        let mut world = World::serving(1, &[1]);
        let ann = session(1, 1);
        world.send(ann, "ann", "r:a", 1);
        world.run();
        let epoch = world.nodes[0].claimed[&conversation_partition("r:a")];
        world.store.fail_append = Some(fault);
        let token = world.send(ann, "ann", "r:a", 2);
        world.run();
        let refused = world.refused(token);
        assert!(refused.code == Code::Busy as i32 && refused.retry_after_ms > 0, "{fault:?}");
        assert_eq!(world.store.logs["r:a"].entries.len(), log_before);
        world.pass(2_000);
        assert!(world.nodes[0].claimed[&conversation_partition("r:a")] > epoch, "claimed again");
        let again = world.send(ann, "ann", "r:a", 2);
        world.run();
        assert_eq!(world.ack(again).seq, 2, "{fault:?}");
        assert_eq!(world.store.logs["r:a"].entries.len(), 2);
    }
}

#[test]
fn a_room_reaches_every_subscribed_link_once_and_not_those_that_left() {
    let mut world = World::serving(1, &[1, 2, 3]);
    for gateway in [1, 2, 3] {
        world.subscribe(0, gateway, "r:a", 5, &["anyone"]);
    }
    world.run();
    let answers: Vec<wire::Subscribed> = world.take(0, 2, Kind::Subscribed);
    assert_eq!((answers[0].version, answers[0].head, answers[0].refused.len()), (5, 0, 0));
    let partition = conversation_partition("r:a");
    for (gateway, version) in [(2, 6), (3, 4)] {
        let body = wire::Unsubscribe { conversation: "r:a".into(), version };
        world.say(0, gateway, Kind::Unsubscribe, partition, SessionId::NONE, &body);
    }
    world.run();
    world.send(session(1, 1), "ann", "r:a", 1);
    world.run();
    let count = |world: &mut World, gateway| world.take::<wire::FanOut>(0, gateway, Kind::FanOut).len();
    assert_eq!(count(&mut world, 2), 0, "it left");
    assert_eq!(count(&mut world, 3), 1, "an older Unsubscribe is void");
    let own: Vec<wire::FanOut> = world.take(0, 1, Kind::FanOut);
    assert_eq!((own.len(), own[0].except_session), (1, session(1, 1).0), "the sender has its ack");
    // Joining by request also makes the link listen, before it is answered.
    let op = request::Op::RoomJoin(client::RoomJoin { room: "a".into() });
    let token = world.request(0, session(2, 9), "bob", op);
    world.send(session(1, 1), "ann", "r:a", 2);
    world.run();
    let (reply, _) = world.answer(token).unwrap();
    let head = reply.joined_head;
    let got: Vec<wire::FanOut> = world.take(0, 2, Kind::FanOut);
    assert_eq!(reply.joined, "r:a");
    assert_eq!(got.iter().map(|message| message.seq).collect::<Vec<_>>(), (head + 1..=2).collect::<Vec<_>>());
}

#[test]
fn without_credit_messages_become_one_gap_and_answers_wait() {
    let mut world = World::serving(1, &[1, 2]);
    for room in ["r:a", "r:b"] {
        world.subscribe(0, 2, room, 1, &[]);
    }
    world.run();
    world.clear();
    world.end(0, 2).takes = false;
    let payload = "x".repeat(60_000);
    for n in 1..=200 {
        world.send_to(0, session(1, 1), "ann", "r:a", n, &payload);
        world.run();
    }
    world.send(session(1, 1), "ann", "r:b", 1);
    world.run();
    world.subscribe(0, 2, "r:c", 1, &[]);
    world.run();
    let stats = world.stats(0);
    assert!(stats.gap_marked > 10 && stats.waiting_for_credit == 3, "{stats:?}");
    world.end(0, 2).takes = true;
    world.run();
    let before: Vec<wire::FanOut> = world.take(0, 2, Kind::FanOut);
    assert!(before.len() < 190);
    assert_eq!(world.kinds(0, 2), [Kind::Gap, Kind::Gap, Kind::Subscribed]);
    let gaps: Vec<wire::Gap> = world.take(0, 2, Kind::Gap);
    let gaps: Vec<_> = gaps.iter().map(|gap| (gap.conversation.as_str(), gap.head)).collect();
    assert_eq!(gaps, [("r:a", 200), ("r:b", 1)]);
    assert_eq!(world.kinds(0, 2), [Kind::Subscribed]);
    assert_eq!(world.stats(0).waiting_for_credit, 0);
    // What was missed can be fetched, in pages.
    let after_seq = before.last().unwrap().seq;
    let body = wire::Fetch { conversation: "r:a".into(), after_seq, through_seq: 1_000 };
    world.say(0, 2, Kind::Fetch, conversation_partition("r:a"), SessionId::NONE, &body);
    world.run();
    let pages: Vec<wire::Page> = world.take(0, 2, Kind::Page);
    assert!(pages.len() > 1 && pages.iter().all(|page| page.head == 200 && page.first_seq == 1));
    let seqs: Vec<_> = pages.iter().flat_map(|page| &page.messages).map(|message| message.seq).collect();
    assert_eq!(seqs, (after_seq + 1..=200).collect::<Vec<_>>());
}

#[test]
fn a_link_that_takes_nothing_is_begun_anew_instead_of_growing() {
    let limits = crate::core::limits::Limits { link_waiting_bytes_max: 4_096, ..Default::default() };
    let mut world = World::with_limits(1, 1, limits);
    world.claim_all(0);
    world.connect(0, 1, 1);
    world.connect(0, 2, 1);
    world.subscribe(0, 2, "r:a", 1, &[]);
    world.run();
    world.end(0, 2).takes = false;
    for n in 1..=200 {
        world.send_to(0, session(1, 1), "ann", "r:a", n, &"x".repeat(60_000));
        world.run();
    }
    for n in 0..200 {
        world.subscribe(0, 2, &format!("r:{n}"), 1, &[]);
    }
    world.run();
    assert_eq!(world.resets, ["too much waited for credit"]);
    assert_eq!((world.stats(0).links_overflowed, world.stats(0).links), (1, 1));
    world.end(0, 2).takes = true;
    world.connect(0, 2, 1);
    world.run();
    assert_eq!(world.end(0, 2).ups, [true, true], "fresh both times");
    world.clear();
    world.send(session(1, 1), "bob", "r:a", 1);
    world.run();
    assert!(world.kinds(0, 2).is_empty(), "its subscriptions went with its state");
}

#[test]
fn shards_pass_records_and_answers_to_each_other() {
    let mut world = World::serving(2, &[1, 2]);
    for (n, room) in ["r:a", "r:b", "r:c", "r:d", "r:e", "r:f"].into_iter().enumerate() {
        world.subscribe(0, 2, room, 1, &[]);
        world.run();
        let token = world.send(session(1, 1), "ann", room, 1);
        world.run();
        assert_eq!(world.ack(token).seq, 1, "{room}");
        assert_eq!(world.take::<wire::FanOut>(0, 2, Kind::FanOut).len(), 1, "{room}");
        assert_eq!(world.take::<wire::Subscribed>(0, 2, Kind::Subscribed).len(), 1, "{n}");
    }
    let homes: Vec<_> = world.nodes[0].shards.iter().map(|shard| shard.stats().links).collect();
    assert_eq!(homes.iter().sum::<u64>(), 2);
    let messages: Vec<_> = world.nodes[0].shards.iter().map(|shard| shard.stats().messages).collect();
    assert!(messages.iter().all(|count| *count > 0), "{messages:?}");
    for gateway in [1, 2] {
        let announced: Vec<wire::Announce> = world.take(0, gateway, Kind::Announce);
        let mut partitions: Vec<_> =
            announced.iter().flat_map(|announce| &announce.owned).map(|owned| owned.partition).collect();
        partitions.sort_unstable();
        assert_eq!(partitions, (0..8).collect::<Vec<_>>(), "both shards' partitions");
    }
    // Gone from its home, forgotten everywhere.
    world.disconnect(0, 2);
    world.pass(11_000);
    let messages =
        |world: &World| world.nodes[0].shards.iter().map(|shard| shard.stats().no_link).sum::<u64>();
    for room in ["r:a", "r:b", "r:c", "r:d"] {
        world.send(session(1, 1), "ann", room, 2);
    }
    world.run();
    assert_eq!(messages(&world), 0, "nobody sends to a link that is gone");
}
