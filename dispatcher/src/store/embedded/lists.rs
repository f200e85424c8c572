//! Users' lists, and events for the business behind.
//!
//! The rule that keeps it right: a list's items lie in their byte order, an event under the position of its write; both
//! are read in pages from a key that needs no looking for.

use bytes::{BufMut, Bytes};
use fjall::OwnedWriteBatch;
use millrace_protocol::ids::Partition;

use super::disk::{Disk, end_of, last_u64, put_text, read_error, take_text};
use crate::store::{Event, EventId, List, StoreError};

impl Disk {
    /// Items after this one.
    pub(super) fn list(
        &self,
        user: &str,
        list: List,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(String, Bytes)>, StoreError> {
        let prefix = list_key(user, list);
        let mut from = prefix.clone();
        if !after.is_empty() {
            from.put_slice(after.as_bytes());
            from.put_u8(0);
        }
        let read = |guard: fjall::Guard| {
            let (key, value) = guard.into_inner().map_err(|e| read_error(&e))?;
            let item = String::from_utf8(key[prefix.len()..].to_vec())
                .map_err(|_| StoreError::Corrupted(format!("the list {list:?} of user {user}")))?;
            Ok((item, Bytes::copy_from_slice(&value)))
        };
        self.lists.range(from..end_of(&prefix)).take(limit).map(read).collect()
    }

    /// Items of [`List::Groups`].
    pub(super) fn user_groups(&self, user: &str) -> Result<Vec<String>, StoreError> {
        Ok(self.list(user, List::Groups, "", usize::MAX)?.into_iter().map(|(item, _)| item).collect())
    }

    /// The events of a partition after a position.
    pub(super) fn events(
        &self,
        partition: Partition,
        after: EventId,
        limit: usize,
    ) -> Result<Vec<Event>, StoreError> {
        let Some(first) = after.checked_add(1) else { return Ok(Vec::new()) };
        let read = |guard: fjall::Guard| {
            let (key, value) = guard.into_inner().map_err(|e| read_error(&e))?;
            let id = last_u64(&key).unwrap_or(0);
            let mut rest = &value[..];
            let kind = take_text(&mut rest)
                .ok_or_else(|| StoreError::Corrupted(format!("event {id} of partition {partition}")))?;
            Ok(Event { id, kind: kind.to_owned(), body: Bytes::copy_from_slice(rest) })
        };
        let range = event_key(partition, first)..=event_key(partition, u64::MAX);
        self.events.range(range).take(limit).map(read).collect()
    }

    /// The newest event of every partition that has some.
    pub(super) fn event_heads(&self) -> Result<Vec<(Partition, EventId)>, StoreError> {
        let key_of = |guard: fjall::Guard| guard.key().map_err(|e| read_error(&e));
        let mut heads = Vec::new();
        let mut from = event_key(0, 0);
        while let Some(first) = self.events.range(from..).next() {
            let first = key_of(first)?;
            let partition = Partition::from_be_bytes([first[0], first[1]]);
            let last =
                self.events.range(event_key(partition, 0)..=event_key(partition, u64::MAX)).next_back();
            if let Some(last) = last {
                heads.push((partition, last_u64(&key_of(last)?).unwrap_or(0)));
            }
            let Some(next) = partition.checked_add(1) else { break };
            from = event_key(next, 0);
        }
        Ok(heads)
    }

    pub(super) fn put_event(
        &self,
        batch: &mut OwnedWriteBatch,
        partition: Partition,
        id: EventId,
        kind: &str,
        body: &[u8],
    ) {
        let mut value = Vec::with_capacity(2 + kind.len() + body.len());
        put_text(&mut value, kind);
        value.put_slice(body);
        batch.insert(&self.events, event_key(partition, id), value);
    }

    pub(super) fn remove_event(&self, batch: &mut OwnedWriteBatch, partition: Partition, id: EventId) {
        batch.remove(&self.events, event_key(partition, id));
    }
}

/// The key of an item.
pub(super) fn item_key(user: &str, list: List, item: &str) -> Vec<u8> {
    let mut key = list_key(user, list);
    key.put_slice(item.as_bytes());
    key
}

fn list_key(user: &str, list: List) -> Vec<u8> {
    let mut key = Vec::with_capacity(3 + user.len() + 32);
    key.put_u8(match list {
        List::Groups => b'g',
        List::Directs => b'd',
        List::Friends => b'f',
        List::FriendRequests => b'r',
        List::Blocks => b'b',
        List::Settings => b's',
    });
    put_text(&mut key, user);
    key
}

fn event_key(partition: Partition, id: EventId) -> [u8; 10] {
    let mut key = [0; 10];
    key[..2].copy_from_slice(&partition.to_be_bytes());
    key[2..].copy_from_slice(&id.to_be_bytes());
    key
}
