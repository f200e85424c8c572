//! What lies on disk: six keyspaces and their keys; the format and the fences.
//!
//! How logs, conversations, lists and events are read is in the files of those names; who may write and when it is
//! durable is left to [`super::round`]. The rule that keeps it right: every variable part of a key that another follows
//! is preceded by its length, so that no conversation's keys lie between another's; and whatever can't be read is named
//! by what it is, never skipped.

use bytes::{Buf, BufMut};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch};
use millrace_protocol::ids::{MessageId, Partition};

use crate::store::{Fence, StoreError, pack};

/// Version of this layout, kept under [`FORMAT_KEY`] with the number of partitions.
pub(super) const FORMAT: u16 = 3;
const FORMAT_KEY: &[u8] = b"format";
/// What a keyspace keeps in memory before it is written out, bytes: a fixed part of the process's memory.
const MEMTABLE_BYTES_MAX: u64 = 16 << 20;

/// The open database. Cheap to clone.
#[derive(Clone)]
pub(super) struct Disk {
    pub(super) db: Database,
    /// partition, conversation, seq -> record.
    pub(super) log: Keyspace,
    /// partition, conversation, user, device, stream, client_seq modulo the answers kept -> answers that are filed.
    pub(super) answers: Keyspace,
    /// partition, conversation, kind, name -> members, state, cursors, streams, where the log begins and what is filed of it.
    pub(super) conversations: Keyspace,
    /// list, user, item -> value.
    pub(super) lists: Keyspace,
    /// partition, position -> event.
    pub(super) events: Keyspace,
    /// "format"; "f" and partition -> fence; "o", partition and position -> what may not have been fanned out.
    pub(super) meta: Keyspace,
}

/// The fence of one partition, with what a claimer must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FenceRecord {
    pub(super) fence: Fence,
    /// Empty when released.
    pub(super) node: String,
    pub(super) incarnation: u64,
    pub(super) position: u64,
    pub(super) last_message_id: MessageId,
}

impl Disk {
    /// Opens all keyspaces of a store that was made for so many partitions. One that was made otherwise is left as it is.
    pub(super) fn open(db: Database, partitions: u16) -> Result<Self, FormatError> {
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES_MAX);
        let open = |name| db.keyspace(name, options);
        let meta = open("meta")?;
        check_format(&db, &meta, partitions)?;
        Ok(Self {
            log: open("log")?,
            answers: open("answers")?,
            conversations: open("conversations")?,
            lists: open("lists")?,
            events: open("events")?,
            meta,
            db: db.clone(),
        })
    }

    pub(super) fn fence(&self, partition: Partition) -> Result<Option<FenceRecord>, StoreError> {
        let Some(value) = self.meta.get(fence_key(partition)).map_err(|e| read_error(&e))? else {
            return Ok(None);
        };
        decode_fence(&value)
            .map(Some)
            .ok_or_else(|| StoreError::Corrupted(format!("the fence of partition {partition}")))
    }

    pub(super) fn put_fence(&self, batch: &mut OwnedWriteBatch, partition: Partition, fence: &FenceRecord) {
        batch.insert(&self.meta, fence_key(partition), encode_fence(fence));
    }

    /// Positions of a partition's batches that name messages to be fanned out, oldest first.
    pub(super) fn outstanding_positions(&self, partition: Partition) -> Result<Vec<u64>, StoreError> {
        let position = |guard: fjall::Guard| {
            let key = guard.key().map_err(|e| read_error(&e))?;
            last_u64(&key).ok_or_else(|| outstanding_damaged(partition))
        };
        self.meta.prefix(outstanding_prefix(partition)).map(position).collect()
    }

    /// The messages that one batch named.
    pub(super) fn outstanding(
        &self,
        partition: Partition,
        position: u64,
    ) -> Result<Vec<(String, u64)>, StoreError> {
        let found = self.meta.get(outstanding_key(partition, position)).map_err(|e| read_error(&e))?;
        found.and_then(|record| pack::to_outstanding(&record)).ok_or_else(|| outstanding_damaged(partition))
    }

    pub(super) fn put_outstanding(
        &self,
        batch: &mut OwnedWriteBatch,
        partition: Partition,
        position: u64,
        messages: &[(String, u64)],
    ) {
        batch.insert(&self.meta, outstanding_key(partition, position), pack::outstanding(messages));
    }

    pub(super) fn remove_outstanding(
        &self,
        batch: &mut OwnedWriteBatch,
        partition: Partition,
        position: u64,
    ) {
        batch.remove(&self.meta, outstanding_key(partition, position));
    }
}

/// Why a directory can't be served with these settings.
#[derive(Debug, thiserror::Error)]
pub(super) enum FormatError {
    #[error("format version {0}")]
    Version(u16),
    #[error("{0} partitions")]
    Partitions(u16),
    #[error(transparent)]
    Engine(#[from] fjall::Error),
}

/// Compares the format and the number of partitions with what is written down, or writes them down in a new store.
fn check_format(db: &Database, meta: &Keyspace, partitions: u16) -> Result<(), FormatError> {
    let Some(value) = meta.get(FORMAT_KEY)? else {
        let mut value = Vec::new();
        value.put_u16(FORMAT);
        value.put_u16(partitions);
        meta.insert(FORMAT_KEY, value)?;
        db.persist(fjall::PersistMode::SyncAll)?;
        return Ok(());
    };
    let mut value = &value[..];
    let format = value.try_get_u16().unwrap_or(0);
    let stored = value.try_get_u16().unwrap_or(0);
    if format != FORMAT {
        return Err(FormatError::Version(format));
    }
    if stored != partitions {
        return Err(FormatError::Partitions(stored));
    }
    Ok(())
}

/// A read that failed: damage is told apart from a disk that does not answer.
pub(super) fn read_error(error: &fjall::Error) -> StoreError {
    match error {
        fjall::Error::Io(_) | fjall::Error::Poisoned => StoreError::Unavailable(format!("reading: {error}")),
        _ => StoreError::Corrupted(error.to_string()),
    }
}

/// What all keys of a conversation begin with, in the keyspaces that have any.
pub(super) fn conversation_key(partition: Partition, conversation: &str) -> Vec<u8> {
    // With room for a kind and a name, or for a seq.
    let mut key = Vec::with_capacity(4 + conversation.len() + 32);
    key.put_u16(partition);
    put_text(&mut key, conversation);
    key
}

/// A text that another part of the key follows.
pub(super) fn put_text(key: &mut Vec<u8>, text: &str) {
    key.put_u16(text.len() as u16);
    key.put_slice(text.as_bytes());
}

/// Takes a text off that [`put_text`] wrote.
pub(super) fn take_text<'a>(key: &mut &'a [u8]) -> Option<&'a str> {
    let length = usize::from(key.try_get_u16().ok()?);
    let (text, rest) = key.split_at_checked(length)?;
    *key = rest;
    std::str::from_utf8(text).ok()
}

/// The number that a key ends with.
pub(super) fn last_u64(key: &[u8]) -> Option<u64> {
    key.last_chunk().map(|number| u64::from_be_bytes(*number))
}

/// Just above every key that begins with `prefix`.
pub(super) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}

fn outstanding_damaged(partition: Partition) -> StoreError {
    StoreError::Corrupted(format!("what is to be fanned out of partition {partition}"))
}

fn fence_key(partition: Partition) -> [u8; 3] {
    let [high, low] = partition.to_be_bytes();
    [b'f', high, low]
}

fn outstanding_prefix(partition: Partition) -> [u8; 3] {
    let [high, low] = partition.to_be_bytes();
    [b'o', high, low]
}

fn outstanding_key(partition: Partition, position: u64) -> Vec<u8> {
    [&outstanding_prefix(partition)[..], &position.to_be_bytes()].concat()
}

fn encode_fence(record: &FenceRecord) -> Vec<u8> {
    let mut out = Vec::with_capacity(40 + record.node.len());
    for number in [
        record.fence.epoch,
        record.fence.nonce,
        record.incarnation,
        record.position,
        record.last_message_id.0,
    ] {
        out.put_u64(number);
    }
    out.put_slice(record.node.as_bytes());
    out
}

fn decode_fence(mut value: &[u8]) -> Option<FenceRecord> {
    let mut number = || value.try_get_u64().ok();
    let (epoch, nonce, incarnation, position, last) = (number()?, number()?, number()?, number()?, number()?);
    Some(FenceRecord {
        fence: Fence { epoch, nonce },
        node: String::from_utf8(value.to_vec()).ok()?,
        incarnation,
        position,
        last_message_id: MessageId(last),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversations_keys_end_where_anothers_begin() {
        for (prefix, end) in [(&b"a\x01"[..], &b"a\x02"[..]), (b"a\xff", b"b"), (b"\xff\xff", b"")] {
            assert_eq!(end_of(prefix), end);
        }
    }
}
