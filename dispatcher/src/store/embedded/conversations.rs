//! What a conversation has beside its log: members, state, cursors, and the streams that have answers.
//!
//! The rule that keeps it right: what is loaded with a conversation (members, state) lies apart from what grows with its
//! readers and senders (cursors, streams), by a byte that says the kind.

use bytes::{Buf, BufMut, Bytes};
use fjall::OwnedWriteBatch;
use millrace_protocol::ids::Partition;

use super::disk::{Disk, conversation_key, end_of, read_error};
use crate::store::{Cursor, CursorsOf, StoreError, pack};

/// The byte behind a conversation's name.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Nothing -> where the log begins, what is swept, and what is filed.
    Begin = b'b' as isize,
    /// user, device -> cursor.
    Cursor = b'c' as isize,
    /// member -> nothing; the empty one -> membership version.
    Member = b'm' as isize,
    /// user, device -> streams that have answers, oldest first.
    Streams = b'r' as isize,
    /// key -> value.
    State = b's' as isize,
}

impl Kind {
    /// What all keys of this kind of a conversation begin with.
    pub(super) fn key(self, partition: Partition, conversation: &str) -> Vec<u8> {
        let mut key = conversation_key(partition, conversation);
        key.put_u8(self as u8);
        key
    }

    /// The key of one device. The user ends with a byte that no name has, so that pairs are in their byte order.
    pub(super) fn of_device(
        self,
        partition: Partition,
        conversation: &str,
        user: &str,
        device: &str,
    ) -> Vec<u8> {
        let mut key = self.key(partition, conversation);
        put_pair(&mut key, user, device);
        key
    }
}

fn put_pair(key: &mut Vec<u8>, user: &str, device: &str) {
    key.put_slice(user.as_bytes());
    key.put_u8(0);
    key.put_slice(device.as_bytes());
}

impl Disk {
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
        let prefix = Kind::Member.key(partition, conversation);
        let mut from = prefix.clone();
        // After the last one: no name is between it and it with a zero byte.
        from.extend(reading.last.iter().flat_map(|last| last.bytes().chain([0])));
        let mut keys = 0;
        for guard in self.conversations.range(from..end_of(&prefix)).take(keys_max) {
            let (key, value) = guard.into_inner().map_err(|e| read_error(&e))?;
            let member = key.strip_prefix(&prefix[..]).ok_or_else(damaged)?;
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

    pub(super) fn put_members(
        &self,
        batch: &mut OwnedWriteBatch,
        partition: Partition,
        conversation: &str,
        (add, remove): (&[String], &[String]),
        version: u64,
    ) {
        let prefix = Kind::Member.key(partition, conversation);
        let key = |member: &str| [&prefix[..], member.as_bytes()].concat();
        for member in add {
            batch.insert(&self.conversations, key(member), []);
        }
        for member in remove {
            batch.remove(&self.conversations, key(member));
        }
        batch.insert(&self.conversations, key(""), version.to_be_bytes());
    }

    /// All state of a conversation, in byte order of the keys.
    pub(super) fn state(
        &self,
        partition: Partition,
        conversation: &str,
    ) -> Result<Vec<(String, Bytes)>, StoreError> {
        let prefix = Kind::State.key(partition, conversation);
        let read = |guard: fjall::Guard| {
            let (key, value) = guard.into_inner().map_err(|e| read_error(&e))?;
            let key = String::from_utf8(key[prefix.len()..].to_vec())
                .map_err(|_| StoreError::Corrupted(format!("the state of {conversation}")))?;
            Ok((key, Bytes::copy_from_slice(&value)))
        };
        self.conversations.prefix(&prefix).map(read).collect()
    }

    pub(super) fn put_state(
        &self,
        batch: &mut OwnedWriteBatch,
        partition: Partition,
        conversation: &str,
        name: &str,
        value: Option<&Bytes>,
    ) {
        let mut key = Kind::State.key(partition, conversation);
        key.put_slice(name.as_bytes());
        match value {
            Some(value) => batch.insert(&self.conversations, key, &value[..]),
            None => batch.remove(&self.conversations, key),
        }
    }

    /// The cursor under a key of [`Kind::Cursor`].
    pub(super) fn cursor(&self, key: &[u8]) -> Result<Option<Cursor>, StoreError> {
        let Some(record) = self.conversations.get(key).map_err(|e| read_error(&e))? else { return Ok(None) };
        let damaged = || StoreError::Corrupted(format!("the cursor «{}»", String::from_utf8_lossy(key)));
        pack::to_cursor(&record).map(Some).ok_or_else(damaged)
    }

    pub(super) fn cursors(
        &self,
        partition: Partition,
        conversation: &str,
        of: &CursorsOf,
    ) -> Result<Vec<(String, String, Cursor)>, StoreError> {
        let damaged = || StoreError::Corrupted(format!("the cursors of {conversation}"));
        let prefix = Kind::Cursor.key(partition, conversation);
        let (mut from, limit) =
            (prefix.clone(), if let CursorsOf::All { limit, .. } = of { *limit } else { usize::MAX });
        let mut end = end_of(&prefix);
        match of {
            CursorsOf::User(user) => {
                put_pair(&mut from, user, "");
                end = end_of(&from);
            }
            CursorsOf::All { after: (user, device), .. } if !user.is_empty() || !device.is_empty() => {
                put_pair(&mut from, user, device);
                // Exclusive: no name is between it and it with a zero byte.
                from.put_u8(0);
            }
            CursorsOf::All { .. } => {}
        }
        let mut cursors = Vec::new();
        for guard in self.conversations.range(from..end).take(limit) {
            let (key, value) = guard.into_inner().map_err(|e| read_error(&e))?;
            let pair = std::str::from_utf8(&key[prefix.len()..]).map_err(|_| damaged())?;
            let (user, device) = pair.split_once('\0').ok_or_else(damaged)?;
            let cursor = pack::to_cursor(&value).ok_or_else(damaged)?;
            cursors.push((user.to_owned(), device.to_owned(), cursor));
        }
        Ok(cursors)
    }

    /// The streams under a key of [`Kind::Streams`], oldest first.
    pub(super) fn streams(&self, key: &[u8]) -> Result<Vec<u64>, StoreError> {
        let Some(record) = self.conversations.get(key).map_err(|e| read_error(&e))? else {
            return Ok(Vec::new());
        };
        let (streams, rest) = record.as_chunks();
        if !rest.is_empty() {
            return Err(StoreError::Corrupted(format!("the streams «{}»", String::from_utf8_lossy(key))));
        }
        Ok(streams.iter().map(|stream| u64::from_be_bytes(*stream)).collect())
    }

    pub(super) fn put_streams(&self, batch: &mut OwnedWriteBatch, key: &[u8], streams: &[u64]) {
        let record: Vec<u8> = streams.iter().flat_map(|stream| stream.to_be_bytes()).collect();
        batch.insert(&self.conversations, key, record);
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
