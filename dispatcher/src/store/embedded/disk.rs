//! What lies on disk: four keyspaces, their keys, and how each record is read.
//!
//! Who may write and when it is durable is left to [`super::round`]. The rule that keeps it right: every variable part of
//! a key is preceded by its length, so that no conversation's keys lie between another's; and whatever can't be read is
//! named by what it is, never skipped.

use bytes::{Buf, BufMut, Bytes};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch};
use millrace_protocol::ids::{MessageId, Partition};

use crate::store::{Entry, Fence, StoreError, record};

/// Version of this layout, kept under [`FORMAT_KEY`] with the number of partitions.
const FORMAT: u16 = 1;
const FORMAT_KEY: &[u8] = b"format";
/// What a keyspace keeps in memory before it is written out, bytes: a fixed part of the process's memory.
const MEMTABLE_BYTES_MAX: u64 = 16 << 20;

/// The open database. Cheap to clone.
#[derive(Clone)]
pub(super) struct Disk {
    pub(super) db: Database,
    /// partition, conversation, seq -> record.
    pub(super) log: Keyspace,
    /// "format"; "f" and partition -> fence.
    pub(super) meta: Keyspace,
    /// partition, conversation, member -> nothing; with an empty member -> membership version.
    pub(super) members: Keyspace,
    /// user -> the groups it is in.
    pub(super) groups: Keyspace,
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
    pub(super) fn keyspaces(db: Database) -> fjall::Result<Self> {
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES_MAX);
        let open = |name| db.keyspace(name, options);
        Ok(Self {
            log: open("log")?,
            meta: open("meta")?,
            members: open("members")?,
            groups: open("groups")?,
            db: db.clone(),
        })
    }

    /// The partitions that this store was made for, or writes them down in a new one. `Err` says what was found.
    pub(super) fn check_format(&self, partitions: u16) -> Result<(), FormatError> {
        match self.meta.get(FORMAT_KEY)? {
            None => {
                let mut value = Vec::new();
                value.put_u16(FORMAT);
                value.put_u16(partitions);
                self.meta.insert(FORMAT_KEY, value)?;
                self.db.persist(fjall::PersistMode::SyncAll)?;
                Ok(())
            }
            Some(value) => {
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
        }
    }

    pub(super) fn fence(&self, partition: Partition) -> Result<Option<FenceRecord>, StoreError> {
        let Some(value) = self.meta.get(fence_key(partition)).map_err(|e| read_error(&e))? else {
            return Ok(None);
        };
        decode_fence(&value)
            .map(Some)
            .ok_or_else(|| StoreError::Corrupted(format!("the fence of partition {partition}")))
    }

    pub(super) fn head(&self, partition: Partition, conversation: &str) -> Result<u64, StoreError> {
        self.edge_seq(partition, conversation, true)
    }

    /// The highest or lowest seq of a conversation; 0 if there is none.
    pub(super) fn edge_seq(
        &self,
        partition: Partition,
        conversation: &str,
        highest: bool,
    ) -> Result<u64, StoreError> {
        let mut all = self.log.prefix(conversation_key(partition, conversation));
        let guard = if highest { all.next_back() } else { all.next() };
        match guard {
            None => Ok(0),
            Some(guard) => {
                let key = guard.key().map_err(|e| read_error(&e))?;
                seq_of(&key).ok_or_else(|| StoreError::Corrupted(format!("a log key of {conversation}")))
            }
        }
    }

    /// The newest entries, oldest first.
    pub(super) fn newest(
        &self,
        partition: Partition,
        conversation: &str,
        entries_max: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let all = self.log.prefix(conversation_key(partition, conversation));
        let mut newest = Vec::new();
        for guard in all.rev().take(entries_max) {
            let (key, value) = guard.into_inner().map_err(|e| read_error(&e))?;
            newest.push(entry(partition, conversation, &key, &value)?);
        }
        newest.reverse();
        Ok(newest)
    }

    /// Entries with `after < seq <= through` while their bodies fit `limit_bytes`; one at least.
    pub(super) fn range(
        &self,
        partition: Partition,
        conversation: &str,
        after: u64,
        through: u64,
        limit_bytes: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut entries: Vec<Entry> = Vec::new();
        if after >= through {
            return Ok(entries);
        }
        let from = log_key(partition, conversation, after + 1);
        let to = log_key(partition, conversation, through);
        let mut bytes = 0;
        for guard in self.log.range(from..=to) {
            let (key, value) = guard.into_inner().map_err(|e| read_error(&e))?;
            let entry = entry(partition, conversation, &key, &value)?;
            bytes += entry.notify.len();
            if bytes > limit_bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Goes on reading the members of a group, through at most `keys_max` keys. Returns how many there were: fewer mean
    /// that all are read.
    pub(super) fn read_members(
        &self,
        partition: Partition,
        conversation: &str,
        reading: &mut Reading,
        keys_max: usize,
    ) -> Result<usize, StoreError> {
        let damaged = || StoreError::Corrupted(format!("the members of {conversation}"));
        let prefix = conversation_key(partition, conversation);
        let mut from = prefix.clone();
        // After the last one: no name is between it and it with a zero byte.
        from.extend(reading.last.iter().flat_map(|last| last.bytes().chain([0])));
        let mut keys = 0;
        for guard in self.members.range(from..).take(keys_max) {
            let (key, value) = guard.into_inner().map_err(|e| read_error(&e))?;
            let Some(member) = key.strip_prefix(&prefix[..]) else { break };
            keys += 1;
            if member.is_empty() {
                reading.version = Some((&value[..]).try_get_u64().map_err(|_| damaged())?);
                reading.last = Some(String::new());
            } else {
                reading.members.extend(reading.last.take().filter(|last| !last.is_empty()));
                reading.last = Some(String::from_utf8(member.to_vec()).map_err(|_| damaged())?);
            }
        }
        Ok(keys)
    }

    pub(super) fn user_groups(&self, user: &str) -> Result<Vec<String>, StoreError> {
        let damaged = || StoreError::Corrupted(format!("the groups of user {user}"));
        let Some(value) = self.groups.get(user).map_err(|e| read_error(&e))? else {
            return Ok(Vec::new());
        };
        let mut rest = &value[..];
        let mut groups = Vec::new();
        while rest.has_remaining() {
            let length = rest.try_get_u16().map_err(|_| damaged())? as usize;
            if rest.len() < length {
                return Err(damaged());
            }
            let (group, tail) = rest.split_at(length);
            groups.push(String::from_utf8(group.to_vec()).map_err(|_| damaged())?);
            rest = tail;
        }
        Ok(groups)
    }

    pub(super) fn put_user_groups(&self, batch: &mut OwnedWriteBatch, user: &str, groups: &[String]) {
        if groups.is_empty() {
            batch.remove(&self.groups, user);
            return;
        }
        let mut value = Vec::new();
        for group in groups {
            value.put_u16(group.len() as u16);
            value.put_slice(group.as_bytes());
        }
        batch.insert(&self.groups, user, value);
    }

    pub(super) fn put_fence(&self, batch: &mut OwnedWriteBatch, partition: Partition, fence: &FenceRecord) {
        batch.insert(&self.meta, fence_key(partition), encode_fence(fence));
    }

    pub(super) fn put_entry(&self, batch: &mut OwnedWriteBatch, partition: Partition, entry: &Entry) {
        batch.insert(&self.log, log_key(partition, &entry.conversation, entry.seq), record::encode(entry));
    }

    pub(super) fn put_members(
        &self,
        batch: &mut OwnedWriteBatch,
        partition: Partition,
        conversation: &str,
        (add, remove): (&[String], &[String]),
        version: u64,
    ) {
        let prefix = conversation_key(partition, conversation);
        let key = |member: &str| [&prefix[..], member.as_bytes()].concat();
        for member in add {
            batch.insert(&self.members, key(member), []);
        }
        for member in remove {
            batch.remove(&self.members, key(member));
        }
        batch.insert(&self.members, key(""), version.to_be_bytes());
    }
}

/// Members of a group that is being read, and how far.
#[derive(Debug, Default)]
pub(super) struct Reading {
    version: Option<u64>,
    members: Vec<String>,
    /// The name that was read last, not yet among `members`; empty: the version was.
    last: Option<String>,
}

impl Reading {
    /// All of them, sorted, and the membership version; `None`: there is no such group.
    pub(super) fn finish(self, conversation: &str) -> Result<Option<(Vec<String>, u64)>, StoreError> {
        let mut members = self.members;
        members.extend(self.last.filter(|last| !last.is_empty()));
        match self.version {
            Some(version) => Ok(Some((members, version))),
            None if members.is_empty() => Ok(None),
            None => Err(StoreError::Corrupted(format!("the members of {conversation}"))),
        }
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

fn entry(partition: Partition, conversation: &str, key: &[u8], value: &[u8]) -> Result<Entry, StoreError> {
    let seq = seq_of(key).unwrap_or(0);
    let named = |what: &dyn std::fmt::Display| {
        StoreError::Corrupted(format!("log of {conversation} (partition {partition}), seq {seq}: {what}"))
    };
    let entry = record::decode(conversation, Bytes::copy_from_slice(value)).map_err(|e| named(&e))?;
    if entry.seq != seq {
        return Err(named(&format_args!("it holds seq {}", entry.seq)));
    }
    Ok(entry)
}

/// A read that failed: damage is told apart from a disk that does not answer.
pub(super) fn read_error(error: &fjall::Error) -> StoreError {
    match error {
        fjall::Error::Io(_) | fjall::Error::Poisoned => StoreError::Unavailable(format!("reading: {error}")),
        _ => StoreError::Corrupted(error.to_string()),
    }
}

fn fence_key(partition: Partition) -> [u8; 3] {
    let [high, low] = partition.to_be_bytes();
    [b'f', high, low]
}

fn conversation_key(partition: Partition, conversation: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(4 + conversation.len() + 8);
    key.put_u16(partition);
    key.put_u16(conversation.len() as u16);
    key.put_slice(conversation.as_bytes());
    key
}

fn log_key(partition: Partition, conversation: &str, seq: u64) -> Vec<u8> {
    let mut key = conversation_key(partition, conversation);
    key.put_u64(seq);
    key
}

fn seq_of(key: &[u8]) -> Option<u64> {
    key.last_chunk().map(|seq| u64::from_be_bytes(*seq))
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
