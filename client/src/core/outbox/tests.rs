//! Lanes against a server that keeps the rules of numbering and loses what it is told to lose.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::*;

fn text(index: u32) -> Bytes {
    Bytes::from(format!("message {index}"))
}

fn refusal(code: Code, expected: u64, retry_after_ms: u32) -> Refused {
    Refused { code: code.into(), reason: String::new(), retry_after_ms, expected }
}

/// What a partition's owner does with client_seq: answers repeats with the first answer, takes last + 1, and refuses
/// the rest.
#[derive(Default)]
struct Server {
    last: HashMap<(String, u64), u64>,
    log: Vec<Bytes>,
    answers: HashMap<(String, u64, u64), (u64, Bytes)>,
}

impl Server {
    fn take(&mut self, op: Op) -> Result<SendAck, Refused> {
        let Op::Send(send) = op else { panic!("not a send") };
        let key = (send.conversation.clone(), send.stream, send.client_seq);
        if let Some((seq, payload)) = self.answers.get(&key) {
            if *payload != send.payload {
                return Err(refusal(Code::Conflict, 0, 0));
            }
            return Ok(SendAck { seq: *seq, ..Default::default() });
        }
        let last = self.last.entry((send.conversation, send.stream)).or_default();
        if send.client_seq != *last + 1 {
            return Err(refusal(Code::OutOfOrder, *last + 1, 0));
        }
        *last += 1;
        self.log.push(send.payload.clone());
        self.answers.insert(key, (self.log.len() as u64, send.payload));
        Ok(SendAck { seq: self.log.len() as u64, ..Default::default() })
    }
}

fn send(outbox: &mut Outbox<u32>, now_ms: u64, id: u64) -> Option<Op> {
    outbox.transmit(now_ms, id, |_| false)
}

fn message(index: u32) -> Outgoing {
    Outgoing { payload: text(index), ..Outgoing::default() }
}

fn push(outbox: &mut Outbox<u32>, index: u32) {
    outbox.push("g:a", message(index), 1_000_000, 77, index).unwrap();
}

#[test]
fn at_most_so_many_are_in_flight_and_pending() {
    let mut outbox = Outbox::default();
    for index in 0..PENDING_MAX as u32 {
        push(&mut outbox, index);
    }
    assert_eq!(outbox.push("g:a", message(0), 1, 0, 9_999), Err(9_999));
    let sent = (1..).map_while(|id| send(&mut outbox, 0, id)).count();
    assert_eq!(sent, IN_FLIGHT_MAX);
    assert_eq!(outbox.acknowledged(1, SendAck::default()), [(0, Ok(SendAck::default()))]);
    assert!(send(&mut outbox, 0, 1_000).is_some(), "an answer makes room for one more");
    assert!(send(&mut outbox, 0, 1_001).is_none());
}

#[test]
fn after_busy_everything_from_there_goes_again_in_order() {
    let (mut outbox, mut server) = (Outbox::default(), Server::default());
    for index in 0..5 {
        push(&mut outbox, index);
    }
    let ops: Vec<Op> = (1..=5).map(|id| send(&mut outbox, 0, id).unwrap()).collect();
    let mut settled = Vec::new();
    for (id, op) in (1..).zip(ops) {
        // The third finds the server busy: what follows is out of order, and says so.
        let answer = if id == 3 { Err(refusal(Code::Busy, 0, 500)) } else { server.take(op) };
        match answer {
            Ok(ack) => settled.extend(outbox.acknowledged(id, ack)),
            Err(refused) => settled.extend(outbox.refused(id, &refused, 0, 0)),
        }
    }
    assert_eq!(settled.len(), 2);
    assert!(send(&mut outbox, 499, 6).is_none(), "not before the time that the server named");
    assert_eq!(outbox.next_ms(0), Some(500));
    for id in 6..=8 {
        let op = send(&mut outbox, 500, id).unwrap();
        let ack = server.take(op).unwrap();
        settled.extend(outbox.acknowledged(id, ack));
    }
    let order: Vec<u32> = settled.iter().map(|(done, _)| *done).collect();
    assert_eq!(order, [0, 1, 2, 3, 4]);
    assert_eq!(server.log, (0..5).map(text).collect::<Vec<_>>());
}

#[test]
fn a_refusal_that_changed_nothing_frees_its_number() {
    let (mut outbox, mut server) = (Outbox::default(), Server::default());
    for index in 0..3 {
        push(&mut outbox, index);
    }
    let first: Vec<Op> = (1..=3).map(|id| send(&mut outbox, 0, id).unwrap()).collect();
    let too_large = refusal(Code::PayloadTooLarge, 0, 0);
    let (done, outcome) = outbox.refused(1, &too_large, 0, 0).remove(0);
    assert_eq!(done, 0);
    assert!(matches!(outcome, Err(SendError::Refused { code: Code::PayloadTooLarge, .. })));
    for (id, op) in (2..).zip(first.into_iter().skip(1)) {
        let refused = server.take(op).unwrap_err();
        assert_eq!(refused.expected, 1);
        assert!(outbox.refused(id, &refused, 0, 0).is_empty());
    }
    for (id, index) in (4..).zip([1, 2]) {
        let ack = server.take(send(&mut outbox, 0, id).unwrap()).unwrap();
        assert_eq!(outbox.acknowledged(id, ack)[0].0, index);
    }
}

#[test]
fn when_numbers_cannot_be_brought_together_the_lane_takes_a_new_stream() {
    // The server forgot everything (an emptied store) after the first answer.
    let (mut outbox, mut server) = (Outbox::default(), Server::default());
    for index in 0..3 {
        push(&mut outbox, index);
    }
    let ack = server.take(send(&mut outbox, 0, 1).unwrap()).unwrap();
    assert!(matches!(outbox.acknowledged(1, ack)[..], [(0, Ok(_))]));
    let mut server = Server::default();
    let refused = server.take(send(&mut outbox, 0, 2).unwrap()).unwrap_err();
    assert!(outbox.refused(2, &refused, 0, 4_711).is_empty());
    for id in 3..=4 {
        let ack = server.take(send(&mut outbox, 0, id).unwrap()).unwrap();
        assert_eq!(outbox.acknowledged(id, ack).len(), 1);
    }
    assert_eq!(server.log, [text(1), text(2)]);

    // A message that was given up, but had been taken: the next one uses another number and goes on.
    let (mut outbox, mut server) = (Outbox::default(), Server::default());
    outbox.push("g:a", message(0), 100, 1, 0).unwrap();
    server.take(send(&mut outbox, 0, 1).unwrap()).unwrap();
    assert_eq!(outbox.next_ms(0), Some(100));
    assert!(matches!(outbox.expire(100)[..], [(0, Err(SendError::Deadline))]));
    push(&mut outbox, 1);
    assert!(server.take(send(&mut outbox, 0, 2).unwrap()).is_ok());

    // Given up before it was taken: the server misses a number, and a new stream mends it.
    let (mut outbox, mut server) = (Outbox::default(), Server::default());
    outbox.push("g:a", message(0), 100, 1, 0).unwrap();
    outbox.expire(100);
    push(&mut outbox, 1);
    let refused = server.take(send(&mut outbox, 0, 1).unwrap()).unwrap_err();
    assert!(outbox.refused(1, &refused, 0, 2).is_empty());
    assert!(server.take(send(&mut outbox, 0, 2).unwrap()).is_ok());
    assert_eq!(server.log, [text(1)]);
}

#[test]
fn a_message_taken_long_ago_is_not_sent_again() {
    let mut outbox = Outbox::default();
    push(&mut outbox, 0);
    send(&mut outbox, 0, 1).unwrap();
    let (_, outcome) = outbox.refused(1, &refusal(Code::OutOfOrder, 70, 0), 0, 0).remove(0);
    assert!(matches!(outcome, Err(SendError::Refused { code: Code::OutOfOrder, .. })));
    assert!(send(&mut outbox, 0, 2).is_none());
}

#[test]
fn whatever_is_lost_on_the_way_each_message_is_taken_once_and_in_order() {
    for seed in 1..=200_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let (mut outbox, mut server) = (Outbox::default(), Server::default());
        let (mut next, mut id, mut now) = (0, 0, 0);
        let mut settled = Vec::new();
        let mut wire: VecDeque<(u64, Op)> = VecDeque::new();
        while settled.len() < 100 {
            now += random() % 50;
            if next < 100 && random() % 3 > 0 {
                push(&mut outbox, next);
                next += 1;
            }
            while let Some(op) = send(&mut outbox, now, id + 1) {
                id += 1;
                wire.push_back((id, op));
            }
            match random() % 20 {
                0 => {
                    // The connection breaks; some requests arrived, their answers did not.
                    for (_, op) in wire.drain(..).take((random() % 8) as usize) {
                        drop(server.take(op));
                    }
                    outbox.disconnected();
                }
                _ => {
                    let Some((id, op)) = wire.pop_front() else { continue };
                    let answer = match random() % 10 {
                        0 => Err(refusal(Code::Busy, 0, (random() % 300) as u32)),
                        _ => server.take(op),
                    };
                    match answer {
                        Ok(ack) => settled.extend(outbox.acknowledged(id, ack)),
                        Err(refused) => settled.extend(outbox.refused(id, &refused, now, random())),
                    }
                }
            }
            assert!(now < 1_000_000, "seed {seed}: stuck");
        }
        assert!(settled.iter().all(|(_, outcome)| outcome.is_ok()), "seed {seed}");
        assert_eq!(server.log, (0..100).map(text).collect::<Vec<_>>(), "seed {seed}");
    }
}

#[test]
fn what_was_taken_on_the_old_stream_is_not_sent_on_the_new_one() {
    let mut outbox = Outbox::default();
    for index in 0..3 {
        push(&mut outbox, index);
    }
    for id in 1..=3 {
        send(&mut outbox, 0, id).unwrap();
    }
    // The first number was used up; the second message was taken all the same.
    assert!(outbox.refused(1, &refusal(Code::Conflict, 0, 0), 0, 4_711).is_empty());
    assert!(send(&mut outbox, 0, 4).is_none(), "what is under way is answered first");
    assert_eq!(outbox.acknowledged(2, SendAck::default()), [(1, Ok(SendAck::default()))]);
    assert!(outbox.refused(3, &refusal(Code::OutOfOrder, 3, 0), 0, 5).is_empty());
    let again: Vec<(u64, Bytes)> = (4..)
        .map_while(|id| match send(&mut outbox, 0, id) {
            Some(Op::Send(send)) => Some((send.client_seq, send.payload)),
            _ => None,
        })
        .collect();
    assert_eq!(again, [(1, text(0)), (2, text(2))]);
}

#[test]
fn a_number_that_may_have_been_used_is_given_to_no_other_message() {
    let (mut outbox, mut server) = (Outbox::default(), Server::default());
    for index in 0..3 {
        push(&mut outbox, index);
    }
    // The first was taken, and its answer lost; then the user is no member, and is one again.
    server.take(send(&mut outbox, 0, 1).unwrap()).unwrap();
    outbox.disconnected();
    let ops: Vec<Op> = (2..=4).map(|id| send(&mut outbox, 0, id).unwrap()).collect();
    let refused = refusal(Code::NotMember, 0, 0);
    assert_eq!(outbox.refused(2, &refused, 0, 5), [(0, Err(SendError::Unknown))], "it was taken");
    assert_eq!(outbox.refused(3, &refused, 0, 5), [(1, Err(SendError::from(&refused)))]);
    assert!(send(&mut outbox, 0, 5).is_none(), "a copy of the third is under way");
    let refused = server.take(ops[2].clone()).unwrap_err();
    assert_eq!(refused.expected, 2);
    assert!(outbox.refused(4, &refused, 0, 5).is_empty());
    let op = send(&mut outbox, 0, 5).unwrap();
    assert!(matches!(&op, Op::Send(send) if (send.client_seq, send.stream) == (2, 77)), "the number is free");
    assert_eq!(outbox.acknowledged(5, server.take(op).unwrap()).len(), 1);
    assert_eq!(server.log, [text(0), text(2)]);
}

#[test]
fn a_refusal_settles_all_that_are_refused_with_it() {
    let mut outbox = Outbox::default();
    for index in 0..70 {
        push(&mut outbox, index);
    }
    let ids: Vec<u64> = (1..).map_while(|id| send(&mut outbox, 0, id).map(|_| id)).collect();
    let refused = refusal(Code::NotMember, 0, 0);
    for (index, id) in ids.iter().enumerate() {
        assert_eq!(outbox.refused(*id, &refused, 0, 5), [(index as u32, Err(SendError::from(&refused)))]);
        assert_eq!(send(&mut outbox, 0, 1_000).is_some(), index == 63, "the rest waits for all answers");
    }
}

#[test]
fn what_may_be_taken_under_its_old_number_goes_on_under_a_new_stream() {
    // The connection breaks while the second is under way behind a refused one: it is behind a hole for good.
    let (mut outbox, mut server) = (Outbox::default(), Server::default());
    for index in 0..2 {
        push(&mut outbox, index);
    }
    let ops: Vec<Op> = (1..=2).map(|id| send(&mut outbox, 0, id).unwrap()).collect();
    let refused = refusal(Code::PayloadTooLarge, 0, 0);
    assert_eq!(outbox.refused(1, &refused, 0, 5).len(), 1);
    outbox.disconnected();
    let op = send(&mut outbox, 0, 3).unwrap();
    assert!(matches!(&op, Op::Send(send) if (send.client_seq, send.stream) == (1, 5)));
    assert_eq!(outbox.acknowledged(3, server.take(op).unwrap()).len(), 1);
    server.take(ops[1].clone()).unwrap_err();
    assert_eq!(server.log, [text(1)]);

    // The same with BUSY, of which a client can't tell whether somebody holds the request still.
    let mut outbox = Outbox::default();
    for index in 0..2 {
        push(&mut outbox, index);
        send(&mut outbox, 0, u64::from(index)).unwrap();
    }
    outbox.refused(0, &refused, 0, 5);
    assert!(outbox.refused(1, &refusal(Code::Busy, 0, 300), 0, 5).is_empty());
    assert!(send(&mut outbox, 299, 2).is_none());
    assert!(
        matches!(send(&mut outbox, 300, 2), Some(Op::Send(send)) if (send.client_seq, send.stream) == (1, 5))
    );
}

#[test]
fn a_stray_copy_of_what_was_refused_is_held_back_for_good() {
    let (mut outbox, mut server) = (Outbox::default(), Server::default());
    // The first goes to a gateway that hangs, and its deadline passes.
    outbox.push("g:a", message(0), 100, 77, 0).unwrap();
    let first = send(&mut outbox, 0, 1).unwrap();
    outbox.disconnected();
    assert!(matches!(outbox.expire(100)[..], [(0, Err(SendError::Deadline))]));
    // On the next connection the second is out of order, and the third is held.
    push(&mut outbox, 1);
    push(&mut outbox, 2);
    let second = send(&mut outbox, 100, 2).unwrap();
    let third = send(&mut outbox, 100, 3).unwrap();
    let refused = server.take(second).unwrap_err();
    assert_eq!(refused.expected, 1);
    assert!(outbox.refused(2, &refused, 100, 5).is_empty());
    outbox.disconnected();
    // Then the user is no member for a moment.
    let no_member = refusal(Code::NotMember, 0, 0);
    send(&mut outbox, 100, 4).unwrap();
    send(&mut outbox, 100, 5).unwrap();
    assert_eq!(outbox.refused(4, &no_member, 100, 6), [(1, Err(SendError::from(&no_member)))]);
    assert_eq!(outbox.refused(5, &no_member, 100, 7), [(2, Err(SendError::from(&no_member)))]);
    // What was held goes on, and finds the number before its own not taken.
    push(&mut outbox, 3);
    server.take(first).unwrap();
    let fourth = send(&mut outbox, 100, 6).unwrap();
    assert_eq!(outbox.acknowledged(6, server.take(fourth).unwrap()).len(), 1);
    server.take(third).unwrap_err();
    assert!(!server.log.contains(&text(2)), "it was refused");
}

#[test]
fn a_pause_that_is_over_hides_no_other() {
    let mut outbox = Outbox::default();
    for index in 0..3 {
        push(&mut outbox, index);
    }
    send(&mut outbox, 0, 1).unwrap();
    outbox.refused(1, &refusal(Code::Busy, 0, 300), 0, 9);
    for id in 2..=4 {
        send(&mut outbox, 300, id).unwrap();
    }
    outbox.acknowledged(2, SendAck::default());
    // The last one waits for the answer to the third, whatever the time.
    outbox.refused(3, &refusal(Code::PayloadTooLarge, 0, 0), 300, 9);
    push(&mut outbox, 3);
    outbox.push("g:b", message(9), 5_000, 78, 9).unwrap();
    send(&mut outbox, 400, 5).unwrap();
    outbox.refused(5, &refusal(Code::Busy, 0, 500), 400, 9);
    assert_eq!(outbox.next_ms(400), Some(900));
}

/// Requests that went one way, with what came back for each. They are taken in order, at any time.
#[derive(Default)]
struct Path {
    there: VecDeque<(u64, Op)>,
    back: VecDeque<(u64, Result<SendAck, Refused>)>,
}

/// A server behind several paths: one that is left may hold requests, which the server takes at any later time.
struct World {
    outbox: Outbox<u32>,
    server: Server,
    paths: Vec<Path>,
    state: u64,
    id: u64,
    now: u64,
    settled: HashMap<u32, Result<SendAck, SendError>>,
}

impl World {
    fn random(&mut self, below: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % below
    }

    fn settle(&mut self, settled: impl IntoIterator<Item = Settled<u32>>) {
        for (index, outcome) in settled {
            assert!(self.settled.insert(index, outcome).is_none(), "message {index} is settled twice");
        }
    }

    fn transmit(&mut self) {
        while let Some(op) = send(&mut self.outbox, self.now, self.id + 1) {
            self.id += 1;
            self.paths.last_mut().unwrap().there.push_back((self.id, op));
        }
    }

    /// The server takes the oldest request of a path. Its user is no member now and then.
    fn take(&mut self, path: usize, is_member: bool) {
        let Some((id, op)) = self.paths[path].there.pop_front() else { return };
        let answer = match is_member {
            true => self.server.take(op),
            false => Err(refusal(Code::NotMember, 0, 0)),
        };
        self.paths[path].back.push_back((id, answer));
    }

    fn hear(&mut self) {
        let Some((id, answer)) = self.paths.last_mut().unwrap().back.pop_front() else { return };
        self.answered(id, answer);
    }

    fn answered(&mut self, id: u64, answer: Result<SendAck, Refused>) {
        let (random, now) = (self.random(u64::MAX), self.now);
        match answer {
            Ok(ack) => {
                let settled = self.outbox.acknowledged(id, ack);
                self.settle(settled);
            }
            Err(refused) => {
                let settled = self.outbox.refused(id, &refused, now, random);
                self.settle(settled);
            }
        }
    }

    /// The gateway loses its link: what was not answered is answered BUSY, and may be taken yet.
    fn reroute(&mut self) {
        let last = self.paths.last_mut().unwrap();
        let (back, there) = (std::mem::take(&mut last.back), last.there.iter());
        let busy: Vec<u64> = back.into_iter().map(|(id, _)| id).chain(there.map(|(id, _)| *id)).collect();
        self.paths.push(Path::default());
        for id in busy {
            self.answered(id, Err(refusal(Code::Busy, 0, 50)));
        }
    }

    fn reconnect(&mut self) {
        self.paths.push(Path::default());
        self.outbox.disconnected();
    }
}

#[test]
fn whatever_is_refused_and_whichever_way_it_went_no_message_is_taken_twice_or_denied() {
    for seed in 1..=3_000_u64 {
        let mut world = World {
            outbox: Outbox::default(),
            server: Server::default(),
            paths: vec![Path::default()],
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            id: 0,
            now: 0,
            settled: HashMap::new(),
        };
        let (mut next, mut is_member) = (0, true);
        while world.settled.len() < 60 {
            world.now += world.random(30);
            if next < 60 && world.random(3) > 0 {
                let deadline_ms = if world.random(10) == 0 { world.now + 200 } else { 1_000_000 };
                world.outbox.push("g:a", message(next), deadline_ms, 77, next).unwrap();
                next += 1;
            }
            let expired = world.outbox.expire(world.now);
            world.settle(expired);
            world.transmit();
            let present = world.paths.len() - 1;
            match world.random(60) {
                0 => world.reconnect(),
                1 => world.reroute(),
                2..8 => is_member = !is_member,
                8..20 => world.hear(),
                20..30 => {
                    let path = world.random(present as u64 + 1) as usize;
                    world.take(path, is_member);
                }
                _ => world.take(present, is_member),
            }
            if world.random(2) == 0 {
                world.hear();
            }
            assert!(world.now < 1_000_000, "seed {seed}: stuck");
        }
        for path in 0..world.paths.len() {
            while !world.paths[path].there.is_empty() {
                world.take(path, true);
            }
        }
        for index in 0..60 {
            let taken = world.server.log.iter().filter(|payload| **payload == text(index)).count();
            match &world.settled[&index] {
                Ok(_) => assert_eq!(taken, 1, "seed {seed}: message {index} is acknowledged"),
                Err(SendError::Refused { code, .. }) => {
                    assert_eq!(taken, 0, "seed {seed}: message {index} is refused: {code:?}");
                }
                Err(_) => assert!(taken <= 1, "seed {seed}: message {index}"),
            }
        }
    }
}

#[test]
fn what_went_astray_is_sent_on_no_other_stream_and_its_outcome_is_unknown() {
    let (mut outbox, mut server) = (Outbox::default(), Server::default());
    for index in 0..3 {
        push(&mut outbox, index);
    }
    // A gateway that hangs holds two of them; the third is sent on the next connection alone.
    let held: Vec<Op> = (1..=2).map(|id| send(&mut outbox, 0, id).unwrap()).collect();
    outbox.disconnected();
    for id in 3..=5 {
        send(&mut outbox, 0, id).unwrap();
    }
    let refused = refusal(Code::NotJoined, 0, 0);
    assert_eq!(outbox.refused(3, &refused, 0, 5), [(0, Err(SendError::Unknown))], "it may be taken yet");
    let refused = server.take(send_of(2, 1)).unwrap_err();
    assert!(outbox.refused(4, &refused, 0, 5).is_empty(), "what is under way is answered first");
    assert_eq!(outbox.refused(5, &refused, 0, 6), [(1, Err(SendError::Unknown))]);
    let op = send(&mut outbox, 0, 6).unwrap();
    assert!(matches!(&op, Op::Send(send) if (send.client_seq, send.stream) == (1, 5)));
    server.take(op).unwrap();
    for op in held {
        server.take(op).unwrap();
    }
    assert_eq!(server.log, [text(2), text(0), text(1)], "each once");
}

/// The message of this index under a number.
fn send_of(client_seq: u64, index: u32) -> Op {
    let (conversation, stream) = ("g:a".to_owned(), 77);
    Op::Send(Send { conversation, client_seq, stream, payload: text(index), ..Send::default() })
}
