//! Logs and what their senders were answered: where a log begins and ends, its pages, the slots of answers.
//!
//! The rules that keep it right: a log is dense from where it begins ([`Bounds`]) to its head, and what still lies below
//! its beginning is not there for anybody; a stream's answers take turns in a fixed number of slots, so that none has to
//! be deleted.

use bytes::{BufMut, Bytes};
use fjall::OwnedWriteBatch;
use millrace_protocol::ids::Partition;

use super::conversations::Kind;
use super::disk::{Disk, conversation_key, last_u64, put_text, read_error};
use crate::store::{ANSWERS_MAX, Answer, Entry, StoreError, StreamKey, pack, record};

/// Records that one trim removes from the disk at most: some ten milliseconds. The log begins where the trim says all the
/// same; what is left lies below that, unseen, and goes with the next trims.
pub(super) const SWEEP_MAX: u64 = 16_384;

/// Where a log begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Highest seq; 0: nothing was ever written.
    pub(super) head: u64,
    /// Lowest seq that is there.
    pub(super) first: u64,
    /// No record below it is left on the disk; at most `first`.
    pub(super) swept: u64,
}

impl Bounds {
    /// Whether there is an entry of this seq.
    pub(super) fn hold(&self, seq: u64) -> bool {
        (self.first..=self.head).contains(&seq)
    }

    /// Drops entries below `first_seq`, but for the newest; returns the seqs whose records are to be removed now.
    pub(super) fn trim(&mut self, first_seq: u64) -> std::ops::Range<u64> {
        self.first = self.first.max(first_seq.min(self.head));
        let from = self.swept;
        self.swept = self.first.min(from + SWEEP_MAX);
        from..self.swept
    }
}

impl Disk {
    pub(super) fn bounds(&self, partition: Partition, conversation: &str) -> Result<Bounds, StoreError> {
        let damaged =
            |what| StoreError::Corrupted(format!("{what} of {conversation} (partition {partition})"));
        let mut all = self.log.prefix(conversation_key(partition, conversation));
        let head = match all.next_back() {
            None => 0,
            Some(guard) => {
                let key = guard.key().map_err(|e| read_error(&e))?;
                last_u64(&key).ok_or_else(|| damaged("a log key"))?
            }
        };
        let key = Kind::Begin.key(partition, conversation);
        let (first, swept) = match self.conversations.get(key).map_err(|e| read_error(&e))? {
            None => (1, 1),
            Some(record) => {
                let (first, swept) = record.split_first_chunk().ok_or_else(|| damaged("the beginning"))?;
                let swept = swept.try_into().map_err(|_| damaged("the beginning"))?;
                (u64::from_be_bytes(*first), u64::from_be_bytes(swept))
            }
        };
        Ok(Bounds { head, first, swept })
    }

    /// Moves the beginning of a log, and removes `gone`.
    pub(super) fn put_beginning(
        &self,
        batch: &mut OwnedWriteBatch,
        partition: Partition,
        conversation: &str,
        bounds: &Bounds,
        gone: std::ops::Range<u64>,
    ) {
        for seq in gone {
            batch.remove(&self.log, log_key(partition, conversation, seq));
        }
        let record = [bounds.first.to_be_bytes(), bounds.swept.to_be_bytes()].concat();
        batch.insert(&self.conversations, Kind::Begin.key(partition, conversation), record);
    }

    pub(super) fn entry(
        &self,
        partition: Partition,
        conversation: &str,
        seq: u64,
    ) -> Result<Entry, StoreError> {
        let key = log_key(partition, conversation, seq);
        let missing = || corrupted(partition, conversation, seq, &"it is missing");
        let value = self.log.get(&key).map_err(|e| read_error(&e))?.ok_or_else(missing)?;
        entry(partition, conversation, &key, &value)
    }

    /// Entries with these seqs while they are no more than `entries_max` and their bodies fit `limit_bytes`; one at
    /// least, if there is one.
    pub(super) fn range(
        &self,
        partition: Partition,
        conversation: &str,
        (first, last): (u64, u64),
        (limit_bytes, entries_max): (usize, usize),
        newest_first: bool,
    ) -> Result<Vec<Entry>, StoreError> {
        if first > last {
            return Ok(Vec::new());
        }
        let from = log_key(partition, conversation, first);
        let to = log_key(partition, conversation, last);
        let range = self.log.range(from..=to);
        let read = |guard: fjall::Guard| {
            let (key, value) = guard.into_inner().map_err(|e| read_error(&e))?;
            entry(partition, conversation, &key, &value)
        };
        if newest_first {
            fill(range.rev().map(read), limit_bytes, entries_max)
        } else {
            fill(range.map(read), limit_bytes, entries_max)
        }
    }

    pub(super) fn put_entry(&self, batch: &mut OwnedWriteBatch, partition: Partition, entry: &Entry) {
        batch.insert(&self.log, log_key(partition, &entry.conversation, entry.seq), record::encode(entry));
    }

    /// Adds to a stream's answers. A record has the answers of a batch, in the slot of the last: what is overwritten there
    /// has numbers that are lower by the number of slots at least.
    pub(super) fn put_answers(&self, batch: &mut OwnedWriteBatch, stream: &[u8], answers: &[Answer]) {
        for answers in answers.chunks(ANSWERS_MAX) {
            let Some(last) = answers.last() else { continue };
            let record: Vec<u8> = answers.iter().flat_map(pack::answer).collect();
            batch.insert(&self.answers, [stream, &[slot(last.client_seq)]].concat(), record);
        }
    }

    /// A stream's answers, oldest first.
    pub(super) fn answers(
        &self,
        partition: Partition,
        conversation: &str,
        stream: &StreamKey,
    ) -> Result<Vec<Answer>, StoreError> {
        let key = answers_key(partition, conversation, &stream.user, &stream.device, stream.stream);
        let damaged = || {
            let StreamKey { user, device, stream } = stream;
            StoreError::Corrupted(format!("answers in {conversation} to {user}, {device}, {stream:x}"))
        };
        let mut answers = Vec::new();
        for guard in self.answers.prefix(key) {
            let (_, value) = guard.into_inner().map_err(|e| read_error(&e))?;
            let (records, []) = value.as_chunks::<{ pack::ANSWER_BYTES }>() else { return Err(damaged()) };
            for record in records {
                answers.push(pack::to_answer(record).ok_or_else(damaged)?);
            }
        }
        answers.sort_unstable_by_key(|answer| answer.client_seq);
        // What older records have beside is of no slot any more.
        answers.drain(..answers.len().saturating_sub(ANSWERS_MAX));
        Ok(answers)
    }

    /// Removes all slots of a stream.
    pub(super) fn remove_answers(
        &self,
        batch: &mut OwnedWriteBatch,
        partition: Partition,
        conversation: &str,
        stream: &StreamKey,
    ) {
        let key = answers_key(partition, conversation, &stream.user, &stream.device, stream.stream);
        for slot in 0..ANSWERS_MAX as u8 {
            batch.remove(&self.answers, [&key[..], &[slot]].concat());
        }
    }
}

/// Takes entries while they fit.
fn fill(
    entries: impl Iterator<Item = Result<Entry, StoreError>>,
    limit_bytes: usize,
    entries_max: usize,
) -> Result<Vec<Entry>, StoreError> {
    let (mut taken, mut bytes) = (Vec::new(), 0);
    for entry in entries.take(entries_max) {
        let entry = entry?;
        bytes += entry.notify.len();
        if bytes > limit_bytes && !taken.is_empty() {
            break;
        }
        taken.push(entry);
    }
    Ok(taken)
}

fn entry(partition: Partition, conversation: &str, key: &[u8], value: &[u8]) -> Result<Entry, StoreError> {
    let seq = last_u64(key).unwrap_or(0);
    let named = |what: &dyn std::fmt::Display| corrupted(partition, conversation, seq, what);
    let entry = record::decode(conversation, Bytes::copy_from_slice(value)).map_err(|e| named(&e))?;
    if entry.seq != seq {
        return Err(named(&format_args!("it holds seq {}", entry.seq)));
    }
    Ok(entry)
}

fn corrupted(partition: Partition, conversation: &str, seq: u64, what: &dyn std::fmt::Display) -> StoreError {
    StoreError::Corrupted(format!("log of {conversation} (partition {partition}), seq {seq}: {what}"))
}

fn log_key(partition: Partition, conversation: &str, seq: u64) -> Vec<u8> {
    let mut key = conversation_key(partition, conversation);
    key.put_u64(seq);
    key
}

pub(super) fn answers_key(
    partition: Partition,
    conversation: &str,
    user: &str,
    device: &str,
    stream: u64,
) -> Vec<u8> {
    let mut key = conversation_key(partition, conversation);
    key.reserve(user.len() + device.len() + 4 + 8 + 1);
    put_text(&mut key, user);
    put_text(&mut key, device);
    key.put_u64(stream);
    key
}

/// Numbers are dense, so that the newest answers have a slot each.
fn slot(client_seq: u64) -> u8 {
    const { assert!(ANSWERS_MAX <= 256) }
    (client_seq % ANSWERS_MAX as u64) as u8
}
