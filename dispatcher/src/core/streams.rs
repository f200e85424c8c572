//! Repeats: what each sender's streams have sent to one conversation, and the answers they got.
//!
//! The rule that keeps it right: a message is new only as the successor of its stream's last one; a repeat gets the
//! first answer; anything else changes nothing.

use std::collections::VecDeque;

use millrace_protocol::ids::MessageId;
use rustc_hash::FxHashMap;

use super::limits::{ANSWERS_MAX, STREAMS_MAX};
use crate::store::Entry;

/// Whose counter it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StreamKey {
    /// The sender.
    pub user: String,
    /// From which device.
    pub device: String,
    /// Drawn by the client.
    pub stream: u64,
}

/// What was answered, or will be once the entry is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The sender's number.
    pub client_seq: u64,
    /// Of the payload.
    pub payload_hash: u64,
    /// Given to it.
    pub seq: u64,
    /// Given to it; its time is the server time of the answer.
    pub message_id: MessageId,
    /// Of the owner that gave them.
    pub epoch: u64,
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
}

/// The streams of one conversation.
#[derive(Debug, Default)]
pub struct Streams {
    map: FxHashMap<StreamKey, VecDeque<Answer>>,
    /// In order of their first message here, for forgetting.
    order: VecDeque<StreamKey>,
    /// Some streams may have sent before without being known here.
    incomplete: bool,
}

impl Streams {
    /// From the newest entries of a conversation whose highest seq is `head`.
    pub fn load(recent: &[Entry], head: u64) -> Self {
        let mut streams = Streams { incomplete: head > recent.len() as u64, ..Streams::default() };
        for entry in recent {
            let key =
                StreamKey { user: entry.sender.clone(), device: entry.device.clone(), stream: entry.stream };
            let answer = Answer {
                client_seq: entry.client_seq,
                payload_hash: entry.payload_hash,
                seq: entry.seq,
                message_id: entry.message_id,
                epoch: entry.epoch,
            };
            streams.insert(key, answer);
        }
        streams
    }

    /// Judges a number.
    pub fn check(&self, key: &StreamKey, client_seq: u64, payload_hash: u64) -> Check {
        let Some(answers) = self.map.get(key) else {
            // Durable answers of every stream come with a later feature: until then a stream that may have sent
            // before the reload is taken at its word.
            let taken = client_seq == 1 || self.incomplete && client_seq > 0;
            return if taken { Check::New } else { Check::OutOfOrder { expected: 1 } };
        };
        let last = answers.back().map_or(0, |answer| answer.client_seq);
        if client_seq > last {
            return match client_seq - last {
                1 => Check::New,
                _ => Check::OutOfOrder { expected: last + 1 },
            };
        }
        match answers.iter().rev().find(|answer| answer.client_seq == client_seq) {
            Some(answer) if answer.payload_hash == payload_hash => Check::Repeat(*answer),
            Some(_) => Check::Conflict,
            None => Check::OutOfOrder { expected: last.saturating_add(1) },
        }
    }

    /// Remembers an answer. `true`: another stream was forgotten for it.
    pub fn insert(&mut self, key: StreamKey, answer: Answer) -> bool {
        if let Some(answers) = self.map.get_mut(&key) {
            if answers.len() == ANSWERS_MAX {
                answers.pop_front();
            }
            answers.push_back(answer);
            return false;
        }
        let full = self.map.len() >= STREAMS_MAX;
        if full && let Some(oldest) = self.order.pop_front() {
            self.map.remove(&oldest);
            self.incomplete = true;
        }
        self.order.push_back(key.clone());
        self.map.insert(key, VecDeque::from([answer]));
        full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(stream: u64) -> StreamKey {
        StreamKey { user: "ann".into(), device: "phone".into(), stream }
    }

    fn answer(client_seq: u64, payload_hash: u64) -> Answer {
        Answer {
            client_seq,
            payload_hash,
            seq: client_seq + 100,
            message_id: MessageId(client_seq),
            epoch: 1,
        }
    }

    #[test]
    fn a_number_is_new_a_repeat_a_conflict_or_out_of_order() {
        let mut streams = Streams::default();
        for n in 1..=70 {
            assert_eq!(streams.check(&key(1), n, n), Check::New, "{n}");
            streams.insert(key(1), answer(n, n));
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
            assert_eq!(streams.check(&key(1), client_seq, hash), expected, "{client_seq} {hash}");
        }
        assert_eq!(streams.check(&key(2), 1, 1), Check::New);
        assert_eq!(streams.check(&key(2), 2, 1), Check::OutOfOrder { expected: 1 });
    }

    #[test]
    fn unknown_streams_are_taken_at_their_word_only_when_some_may_be_unknown() {
        let entry = Entry {
            conversation: "r:a".into(),
            seq: 5,
            message_id: MessageId(8),
            epoch: 2,
            sender: "ann".into(),
            device: "phone".into(),
            stream: 1,
            client_seq: 3,
            payload_hash: 33,
            notify: Default::default(),
        };
        let whole = Streams::load(std::slice::from_ref(&entry), 1);
        let part = Streams::load(std::slice::from_ref(&entry), 5);
        for streams in [&whole, &part] {
            assert_eq!(streams.check(&key(1), 4, 0), Check::New);
            assert!(matches!(streams.check(&key(1), 3, 33), Check::Repeat(Answer { seq: 5, .. })));
        }
        assert_eq!(whole.check(&key(2), 9, 0), Check::OutOfOrder { expected: 1 });
        assert_eq!(part.check(&key(2), 9, 0), Check::New);
        assert_eq!(part.check(&key(2), 0, 0), Check::OutOfOrder { expected: 1 });
    }

    #[test]
    fn streams_are_bounded() {
        let mut streams = Streams::default();
        for n in 0..STREAMS_MAX as u64 {
            assert!(!streams.insert(key(n), answer(1, 1)));
        }
        assert!(streams.insert(key(u64::MAX), answer(1, 1)));
        assert_eq!(streams.map.len(), STREAMS_MAX);
        assert_eq!(streams.check(&key(0), 2, 0), Check::New);
        assert_eq!(streams.check(&key(1), 2, 0), Check::New);
    }
}
