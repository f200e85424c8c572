//! Logs: where one begins and ends, and its pages. What their senders were answered is left to [`super::answers`].
//!
//! The rule that keeps it right: a log is dense from where it begins ([`Bounds`]) to its head, and what still lies below
//! its beginning is not there for anybody.

use bytes::{BufMut, Bytes};
use fjall::OwnedWriteBatch;
use millrace_protocol::ids::Partition;

use super::conversations::Kind;
use super::disk::{Disk, conversation_key, last_u64, read_error};
use crate::store::{Entry, StoreError, record};

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
    /// What the senders of all entries up to here were answered has records of its own.
    pub(super) filed: u64,
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
        let (first, swept, filed) = match self.conversations.get(key).map_err(|e| read_error(&e))? {
            None => (1, 1, 0),
            Some(record) => {
                let ([first, swept, filed], []) = record.as_chunks() else {
                    return Err(damaged("the beginning"));
                };
                (u64::from_be_bytes(*first), u64::from_be_bytes(*swept), u64::from_be_bytes(*filed))
            }
        };
        Ok(Bounds { head, first, swept, filed })
    }

    /// Writes down where a log begins, and what is filed.
    pub(super) fn put_bounds(
        &self,
        batch: &mut OwnedWriteBatch,
        partition: Partition,
        conversation: &str,
        bounds: &Bounds,
    ) {
        let record: Vec<u8> =
            [bounds.first, bounds.swept, bounds.filed].into_iter().flat_map(u64::to_be_bytes).collect();
        batch.insert(&self.conversations, Kind::Begin.key(partition, conversation), record);
    }

    pub(super) fn remove_entries(
        &self,
        batch: &mut OwnedWriteBatch,
        partition: Partition,
        conversation: &str,
        gone: std::ops::Range<u64>,
    ) {
        for seq in gone {
            batch.remove(&self.log, log_key(partition, conversation, seq));
        }
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
        let entries = self.entries(partition, conversation, first, last);
        if newest_first {
            fill(entries.rev(), limit_bytes, entries_max)
        } else {
            fill(entries, limit_bytes, entries_max)
        }
    }

    /// Entries with these seqs; `first` is not above `last` by more than one.
    pub(super) fn entries(
        &self,
        partition: Partition,
        conversation: &str,
        first: u64,
        last: u64,
    ) -> impl DoubleEndedIterator<Item = Result<Entry, StoreError>> {
        let from = log_key(partition, conversation, first);
        // Exclusive: nothing is between a seq and the next.
        let to = log_key(partition, conversation, last.saturating_add(1));
        self.log.range(from..to).map(move |guard| {
            let (key, value) = guard.into_inner().map_err(|e| read_error(&e))?;
            entry(partition, conversation, &key, &value)
        })
    }

    pub(super) fn put_entry(&self, batch: &mut OwnedWriteBatch, partition: Partition, entry: &Entry) {
        batch.insert(&self.log, log_key(partition, &entry.conversation, entry.seq), record::encode(entry));
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
