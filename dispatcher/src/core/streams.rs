//! Repeats: what each sender's streams have sent to one conversation, and the answers they got.
//!
//! The store keeps them with the log; here are those of the streams that are in use. The rule that keeps it right: a
//! message is new only as the successor of its stream's last one, a repeat gets the first answer, anything else
//! changes nothing; and nothing is said of a stream before its answers were read.

use std::collections::VecDeque;

use millrace_protocol::planted::{self, Fault};
use rustc_hash::FxHashMap;

use super::limits::STREAMS_MAX;
use crate::store::{ANSWERS_MAX, Answer, StreamKey};

/// Whose number a message has.
pub fn stream_of(user: String, device: String, stream: u64) -> StreamKey {
    let stream = if planted::is(Fault::StreamIgnored) { 1 } else { stream };
    StreamKey { user, device, stream }
}

/// What a number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Append it.
    New,
    /// It was appended before.
    Repeat(Answer),
    /// It was appended before with another payload.
    Conflict,
    /// Neither the next nor one that is remembered.
    OutOfOrder {
        /// What would be taken.
        expected: u64,
    },
    /// As many of the stream as are remembered are not durable yet: one more, and a repeat of the oldest had no answer.
    Crowded,
    /// The stream's answers must be read first.
    Unknown,
}

/// The streams of one conversation.
#[derive(Debug, Default)]
pub struct Streams {
    map: FxHashMap<StreamKey, VecDeque<Answer>>,
    /// In order of their first message here, for forgetting.
    order: VecDeque<StreamKey>,
    /// Streams that are not here have sent nothing.
    complete: bool,
}

impl Streams {
    /// None are here yet. `complete`: because there are none, as nothing was ever written to the conversation.
    pub fn new(complete: bool) -> Self {
        Streams { complete, ..Streams::default() }
    }

    /// Whether a stream's answers are here.
    pub fn knows(&self, key: &StreamKey) -> bool {
        self.complete || self.map.contains_key(key)
    }

    /// Judges a number. What is durable ends at `durable`.
    pub fn check(&self, key: &StreamKey, client_seq: u64, payload_hash: u64, durable: u64) -> Check {
        let none = VecDeque::new();
        let answers = match self.map.get(key) {
            Some(answers) => answers,
            None if self.complete => &none,
            None => return Check::Unknown,
        };
        let last = answers.back().map_or(0, |answer| answer.client_seq);
        if client_seq > last {
            return match client_seq - last {
                1 if is_crowded(answers, durable) => Check::Crowded,
                1 => Check::New,
                _ if planted::is(Fault::NumbersNotDense) => Check::New,
                _ if planted::is(Fault::WrongExpected) => Check::OutOfOrder { expected: last + 2 },
                _ => Check::OutOfOrder { expected: last + 1 },
            };
        }
        match answers.iter().rev().find(|answer| answer.client_seq == client_seq) {
            Some(answer) if answer.payload_hash == payload_hash => Check::Repeat(*answer),
            Some(answer) if planted::is(Fault::PayloadHashIgnored) => Check::Repeat(*answer),
            Some(_) => Check::Conflict,
            None => Check::OutOfOrder { expected: last.saturating_add(1) },
        }
    }

    /// A stream's answers were read. What is durable ends at `durable`. Returns whether another stream was forgotten.
    pub fn loaded(&mut self, key: StreamKey, answers: Vec<Answer>, durable: u64) -> bool {
        if self.map.contains_key(&key) {
            return false;
        }
        let forgotten = self.make_room(durable);
        self.order.push_back(key.clone());
        self.map.insert(key, answers.into());
        forgotten
    }

    /// Remembers an answer. `true`: another stream was forgotten for it.
    pub fn insert(&mut self, key: StreamKey, answer: Answer, durable: u64) -> bool {
        if let Some(answers) = self.map.get_mut(&key) {
            remember(answers, answer);
            return false;
        }
        let forgotten = self.loaded(key.clone(), Vec::new(), durable);
        remember(self.map.entry(key).or_default(), answer);
        forgotten
    }

    /// Forgets the oldest stream of which the store has everything.
    fn make_room(&mut self, durable: u64) -> bool {
        if self.map.len() < STREAMS_MAX {
            return false;
        }
        let is_stored = |key: &StreamKey| self.map[key].back().is_none_or(|answer| answer.seq <= durable);
        let Some(at) = self.order.iter().position(is_stored) else { return false };
        let Some(oldest) = self.order.remove(at) else { return false };
        self.map.remove(&oldest);
        self.complete = false;
        true
    }
}

fn is_crowded(answers: &VecDeque<Answer>, durable: u64) -> bool {
    answers.len() >= ANSWERS_MAX && answers.front().is_some_and(|oldest| oldest.seq > durable)
}

fn remember(answers: &mut VecDeque<Answer>, answer: Answer) {
    let answers_max = if planted::is(Fault::AnswersForgottenSoon) { 2 } else { ANSWERS_MAX };
    if answers.len() == answers_max {
        answers.pop_front();
    }
    answers.push_back(answer);
}

#[cfg(test)]
mod tests {
    use millrace_protocol::ids::MessageId;

    use super::*;

    const DURABLE: u64 = 1_000;

    fn key(stream: u64) -> StreamKey {
        StreamKey { user: "ann".into(), device: "phone".into(), stream }
    }

    fn answer(client_seq: u64, payload_hash: u64) -> Answer {
        let seq = client_seq + 100;
        Answer { client_seq, payload_hash, seq, message_id: MessageId(client_seq), epoch: 1 }
    }

    #[test]
    fn a_number_is_new_a_repeat_a_conflict_or_out_of_order() {
        let mut streams = Streams::new(true);
        for n in 1..=70 {
            assert_eq!(streams.check(&key(1), n, n, DURABLE), Check::New, "{n}");
            streams.insert(key(1), answer(n, n), 0);
        }
        let cases = [
            (71, 71, Check::New),
            (72, 72, Check::OutOfOrder { expected: 71 }),
            (70, 70, Check::Repeat(answer(70, 70))),
            (7, 7, Check::Repeat(answer(7, 7))),
            (7, 8, Check::Conflict),
            (6, 6, Check::OutOfOrder { expected: 71 }),
            (0, 0, Check::OutOfOrder { expected: 71 }),
        ];
        for (client_seq, hash, expected) in cases {
            assert_eq!(streams.check(&key(1), client_seq, hash, DURABLE), expected, "{client_seq} {hash}");
        }
        assert_eq!(streams.check(&key(2), 1, 1, DURABLE), Check::New);
        assert_eq!(streams.check(&key(2), 2, 1, DURABLE), Check::OutOfOrder { expected: 1 });
    }

    #[test]
    fn as_many_as_are_remembered_may_be_under_way() {
        let mut streams = Streams::new(true);
        for n in 1..=ANSWERS_MAX as u64 {
            assert_eq!(streams.check(&key(1), n, n, 100), Check::New, "{n}");
            streams.insert(key(1), answer(n, n), 100);
        }
        let next = ANSWERS_MAX as u64 + 1;
        assert_eq!(streams.check(&key(1), next, next, 100), Check::Crowded);
        assert_eq!(streams.check(&key(1), next + 1, 0, 100), Check::OutOfOrder { expected: next });
        assert_eq!(streams.check(&key(1), 1, 1, 100), Check::Repeat(answer(1, 1)));
        assert_eq!(streams.check(&key(2), 1, 1, 100), Check::New, "another stream");
        assert_eq!(streams.check(&key(1), next, next, 101), Check::New, "the oldest is answered");
    }

    #[test]
    fn nothing_is_said_of_a_stream_before_its_answers_were_read() {
        let mut streams = Streams::new(false);
        assert_eq!(streams.check(&key(1), 1, 1, DURABLE), Check::Unknown);
        streams.loaded(key(1), vec![answer(1, 1), answer(2, 2)], 200);
        streams.loaded(key(2), Vec::new(), 200);
        assert_eq!(streams.check(&key(1), 3, 3, DURABLE), Check::New);
        assert_eq!(streams.check(&key(1), 2, 2, DURABLE), Check::Repeat(answer(2, 2)));
        assert_eq!(streams.check(&key(1), 9, 9, DURABLE), Check::OutOfOrder { expected: 3 });
        assert_eq!(streams.check(&key(2), 1, 1, DURABLE), Check::New);
        // A second reading changes nothing: an answer may have come meanwhile.
        streams.insert(key(1), answer(3, 3), 200);
        streams.loaded(key(1), vec![answer(1, 1)], 200);
        assert_eq!(streams.check(&key(1), 4, 4, DURABLE), Check::New);
    }

    #[test]
    fn streams_are_bounded_and_those_with_answers_on_their_way_stay() {
        let mut streams = Streams::new(true);
        for n in 0..STREAMS_MAX as u64 {
            assert!(!streams.insert(key(n), answer(1, 1), 0));
        }
        // Nothing is durable: nobody is forgotten.
        assert!(!streams.insert(key(u64::MAX), answer(1, 1), 100));
        assert!(streams.insert(key(u64::MAX - 1), answer(1, 1), 101));
        assert_eq!(streams.check(&key(0), 2, 0, DURABLE), Check::Unknown);
        assert_eq!(streams.check(&key(1), 2, 0, DURABLE), Check::New);
    }
}
