//! Conversations on their way into memory: read in slices between rounds, so that a group of a hundred thousand, or a
//! thousand groups after a start, keep no append waiting.
//!
//! What a slice reads is committed and durable: it comes after the round's fsync. The rule that keeps it right: a load
//! counts only when its fence was the partition's at its beginning and still is at its end. Nobody writes to a
//! conversation under the fence that it is being loaded under, so that slices read at different times fit together.

use std::collections::VecDeque;

use millrace_protocol::ids::Partition;

use super::conversations::Reading;
use super::round::Engine;
use crate::store::{Done, Fence, Loaded, Outcome, Replies, StoreError, StreamKey};

/// Loads under way at most; further ones are answered Unavailable and come again. As many as a queue of jobs holds.
const LOADS_MAX: usize = super::super::intake::INTAKE_JOBS_MAX;
/// Keys read in one slice: a millisecond or two.
const SLICE_KEYS_MAX: usize = 2_048;
/// Keys that looking for a conversation counts as: half a hundred microseconds, whatever it holds.
const SEEK_KEYS: usize = 64;

/// One of them.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) ticket: u64,
    pub(super) replies: Replies,
    pub(super) partition: Partition,
    pub(super) fence: Fence,
    pub(super) conversation: String,
    pub(super) stream: Option<StreamKey>,
    pub(super) reading: Reading,
}

/// All of them, in turn.
#[derive(Debug, Default)]
pub(super) struct Loads {
    queue: VecDeque<Load>,
}

impl Loads {
    /// Nothing is to be read.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Takes one in, or answers it.
    pub(super) fn push(&mut self, load: Load) -> Option<(Replies, Done)> {
        if self.queue.len() >= LOADS_MAX {
            let outcome = Err(StoreError::Unavailable("too many conversations are being loaded".into()));
            return Some((load.replies, Done { ticket: load.ticket, outcome }));
        }
        self.queue.push_back(load);
        None
    }

    /// Reads one slice; what is finished is answered. A large one goes to the end of the line after each slice.
    pub(super) fn slice(&mut self, engine: &Engine) -> Vec<(Replies, Done)> {
        let mut answers = Vec::new();
        let mut keys_left = SLICE_KEYS_MAX;
        while keys_left > 0
            && let Some(mut load) = self.queue.pop_front()
        {
            match read(engine, &mut load, keys_left) {
                Ok(keys) if keys == keys_left => {
                    self.queue.push_back(load);
                    break;
                }
                Ok(keys) => {
                    keys_left = keys_left.saturating_sub(keys + SEEK_KEYS);
                    answers.push(answer(load, |load| finish(engine, load)));
                }
                Err(error) => answers.push(answer(load, |_| Err(error))),
            }
        }
        answers
    }

    /// The store failed: all of them are answered so.
    pub(super) fn fail(&mut self, reason: &str) -> Vec<(Replies, Done)> {
        let failed = |load| answer(load, |_| Err(StoreError::Unavailable(reason.to_owned())));
        self.queue.drain(..).map(failed).collect()
    }
}

fn read(engine: &Engine, load: &mut Load, keys_max: usize) -> Result<usize, StoreError> {
    engine.fenced(load.partition, load.fence)?;
    engine.disk.read_members(load.partition, &load.conversation, &mut load.reading, keys_max)
}

fn finish(engine: &Engine, load: &mut Load) -> Result<Outcome, StoreError> {
    let Load { partition, conversation, stream, reading, .. } = load;
    let (partition, disk) = (*partition, &engine.disk);
    let bounds = disk.bounds(partition, conversation)?;
    let mut loaded = Loaded {
        members: std::mem::take(reading).finish(conversation)?,
        state: disk.state(partition, conversation)?,
        answers: match stream {
            Some(stream) => disk.answers(partition, conversation, &bounds, stream)?,
            None => Vec::new(),
        },
        ..Loaded::default()
    };
    loaded.first_seq = bounds.first;
    if bounds.head > 0 {
        let newest = disk.entry(partition, conversation, bounds.head)?;
        loaded.head = newest.seq;
        loaded.head_epoch = newest.epoch;
        loaded.messages = newest.messages;
        loaded.bytes = newest.bytes;
    }
    Ok(Outcome::Loaded(loaded))
}

fn answer(mut load: Load, outcome: impl FnOnce(&mut Load) -> Result<Outcome, StoreError>) -> (Replies, Done) {
    let outcome = outcome(&mut load);
    (load.replies, Done { ticket: load.ticket, outcome })
}
