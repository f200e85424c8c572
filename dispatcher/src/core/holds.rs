//! Messages that can't be judged before something was read: their stream's answers, the entry that they refer to, or
//! the lists of a direct conversation's users, which must name it before its first message.
//!
//! A stream waits as a whole, so that its messages keep their order. The rule that keeps it right: what waited is
//! handled as if it came only now; whoever can't wait is told to come again.

use rustc_hash::FxHashMap;

use millrace_protocol::link::Record;

use super::conversation::Backlog;
use super::event::LinkKey;
use super::limits::{HELD_STREAMS_MAX, LOAD_WAITING_MAX};
use crate::store::StreamKey;

/// What a message waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// The answers of its stream.
    Answers,
    /// The entry with this seq.
    Entry(u64),
    /// Both users' lists to name the conversation.
    Listed,
}

/// Streams of one conversation that wait.
#[derive(Debug, Default)]
pub struct Holds {
    streams: FxHashMap<StreamKey, Backlog>,
}

impl Holds {
    /// Whether a stream's messages wait.
    pub fn holds(&self, key: &StreamKey) -> bool {
        self.streams.contains_key(key)
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Keeps a message behind those of its stream, or as the first. It comes back when there is no room.
    pub fn push(&mut self, key: StreamKey, link: LinkKey, record: Record) -> Result<(), Record> {
        if self.streams.len() >= HELD_STREAMS_MAX && !self.streams.contains_key(&key) {
            return Err(record);
        }
        self.streams.entry(key).or_default().push(link, record, LOAD_WAITING_MAX)
    }

    /// What waited in a stream, in order.
    pub fn take(&mut self, key: &StreamKey) -> Vec<(LinkKey, Record)> {
        self.streams.remove(key).map(|mut backlog| backlog.take()).unwrap_or_default()
    }

    /// Everything, by stream.
    pub fn drain(&mut self) -> Vec<(LinkKey, Record)> {
        let mut streams: Vec<_> = self.streams.drain().collect();
        streams.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        streams.into_iter().flat_map(|(_, mut backlog)| backlog.take()).collect()
    }
}
