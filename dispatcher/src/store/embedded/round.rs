//! One round of the embedded store: everything that was queued, carried out in order, then one fsync for all of it.
//!
//! Queues, answers' way back and routes are left to [`super`], loads to [`super::loads`]. The rules that keep it right: a batch is checked whole
//! before its first write; a read first commits what the round has written; nothing is answered before the fsync; and
//! after a write or an fsync that failed, nothing is believed any more: every answer of the round and every later one
//! says so, because what the disk holds is unknown.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use fjall::{OwnedWriteBatch, PersistMode};
use millrace_protocol::ids::{MessageId, Partition};
use rustc_hash::FxHashMap;

use super::disk::{Disk, FenceRecord};
use super::leases::Leases;
use crate::store::{Batch, Change, Fence, Outcome, StoreError, UserItem, Work, Write};

/// Where a new partition's positions begin.
pub(crate) const FIRST_POSITION: u64 = 1;
/// Conversations whose head is remembered, at about 60 B each; past that all are forgotten and read again.
const HEADS_MAX: usize = 131_072;

/// The state of the store's thread.
pub(super) struct Engine {
    pub(super) disk: Disk,
    /// One per partition, as on disk.
    fences: Vec<Option<FenceRecord>>,
    heads: FxHashMap<Partition, FxHashMap<Box<str>, u64>>,
    heads_held: usize,
    /// Written in this round and not committed yet.
    pending: OwnedWriteBatch,
    /// Users' groups in `pending`.
    pending_groups: HashMap<String, Vec<String>>,
    /// Committed and not on the disk for sure yet.
    unsynced: bool,
    leases: Arc<Mutex<Leases>>,
    /// The owners column of the view.
    owners: Arc<Mutex<Vec<(String, u64)>>>,
    #[cfg(test)]
    pub(super) sync_fails: Arc<std::sync::atomic::AtomicBool>,
}

impl Engine {
    pub(super) fn new(
        disk: Disk,
        partitions: u16,
        leases: Arc<Mutex<Leases>>,
        owners: Arc<Mutex<Vec<(String, u64)>>>,
    ) -> Result<Self, StoreError> {
        let fences = (0..partitions).map(|p| disk.fence(p)).collect::<Result<Vec<_>, _>>()?;
        let row = |fence: &Option<FenceRecord>| {
            fence.as_ref().map_or_else(Default::default, |f| (f.node.clone(), f.fence.epoch))
        };
        *owners.lock().unwrap_or_else(PoisonError::into_inner) = fences.iter().map(row).collect();
        Ok(Self {
            pending: disk.db.batch().durability(None),
            disk,
            fences,
            heads: FxHashMap::default(),
            heads_held: 0,
            pending_groups: HashMap::new(),
            unsynced: false,
            leases,
            owners,
            #[cfg(test)]
            sync_fails: Arc::default(),
        })
    }

    /// Carries out one job; its answer may be sent after [`Engine::finish`] only. The outer error is fatal.
    pub(super) fn execute(&mut self, work: Work) -> Result<Result<Outcome, StoreError>, fjall::Error> {
        Ok(match work {
            Work::Claim { partition, node, incarnation, wall_ms } => {
                self.claim(partition, node, incarnation, wall_ms)
            }
            Work::Release { partition, fence } => self.release(partition, fence),
            Work::Append(batch) => self.append(batch),
            Work::Read { partition, conversation, after, through, limit_bytes, .. } => {
                self.commit()?;
                self.read(partition, &conversation, after, through, limit_bytes)
            }
            Work::UserItems(items) => self.user_items(items),
            other => unreachable!("served on the caller's thread, or loaded between rounds: {other:?}"),
        })
    }

    /// Makes everything of the round durable.
    pub(super) fn finish(&mut self) -> Result<(), fjall::Error> {
        self.commit()?;
        if std::mem::take(&mut self.unsynced) {
            #[cfg(test)]
            if self.sync_fails.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(fjall::Error::Io(std::io::Error::other("injected")));
            }
            self.disk.db.persist(PersistMode::SyncData)?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), fjall::Error> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.pending_groups.clear();
        self.unsynced = true;
        let fresh = self.disk.db.batch().durability(None);
        std::mem::replace(&mut self.pending, fresh).commit()
    }

    fn claim(
        &mut self,
        partition: Partition,
        node: String,
        incarnation: u64,
        wall_ms: u64,
    ) -> Result<Outcome, StoreError> {
        let stored = self.slot(partition)?;
        if let Some(held) = &stored
            && held.node != node
            && self.leases.lock().unwrap_or_else(PoisonError::into_inner).node_lives(
                Instant::now(),
                &held.node,
                held.incarnation,
            )
        {
            return Err(StoreError::Held { partition, holder: held.node.clone() });
        }
        let nonce = getrandom::u64()
            .map_err(|e| StoreError::Unavailable(format!("no randomness for a nonce: {e}")))?;
        let (last_epoch, position, last_message_id) = stored
            .map_or((0, FIRST_POSITION, MessageId(0)), |s| (s.fence.epoch, s.position, s.last_message_id));
        let fence = Fence { epoch: (last_epoch + 1).max(wall_ms), nonce };
        self.set_fence(
            partition,
            FenceRecord { fence, node: node.clone(), incarnation, position, last_message_id },
        );
        self.set_owner(partition, node, fence.epoch);
        Ok(Outcome::Claimed { fence, position, last_message_id, outstanding: Vec::new() })
    }

    fn release(&mut self, partition: Partition, fence: Fence) -> Result<Outcome, StoreError> {
        let mut record = self.fenced(partition, fence)?;
        record.node.clear();
        record.incarnation = 0;
        self.set_fence(partition, record);
        self.set_owner(partition, String::new(), fence.epoch);
        Ok(Outcome::Released)
    }

    fn append(&mut self, batch: Batch) -> Result<Outcome, StoreError> {
        let partition = batch.partition;
        let mut record = self.fenced(partition, batch.fence)?;
        if record.position != batch.position {
            return Err(StoreError::Position { partition, expected: record.position, given: batch.position });
        }
        let mut heads: FxHashMap<&str, u64> = FxHashMap::default();
        for write in &batch.writes {
            let Write::Message(entry) = write else { continue };
            let head = match heads.get(entry.conversation.as_str()) {
                Some(head) => *head,
                None => self.head(partition, &entry.conversation)?,
            };
            if entry.seq != head + 1 {
                return Err(not_dense(&entry.conversation, head, entry.seq));
            }
            heads.insert(&entry.conversation, entry.seq);
            record.last_message_id = record.last_message_id.max(entry.message_id);
        }
        let heads: Vec<(Box<str>, u64)> =
            heads.into_iter().map(|(conversation, head)| (conversation.into(), head)).collect();
        for write in &batch.writes {
            let pending = &mut self.pending;
            match write {
                Write::Message(entry) => self.disk.put_entry(pending, partition, entry),
                Write::GroupCreate { conversation, members, version } => {
                    self.disk.put_members(pending, partition, conversation, (members, &[]), *version);
                }
                Write::Members { conversation, add, remove, version } => {
                    self.disk.put_members(pending, partition, conversation, (add, remove), *version);
                }
                _ => {}
            }
        }
        record.position += batch.writes.len() as u64;
        self.set_fence(partition, record);
        for (conversation, head) in heads {
            self.remember_head(partition, conversation, head);
        }
        Ok(Outcome::Appended)
    }

    fn read(
        &self,
        partition: Partition,
        conversation: &str,
        after: u64,
        through: u64,
        limit_bytes: usize,
    ) -> Result<Outcome, StoreError> {
        let entries = self.disk.range(partition, conversation, after, through, limit_bytes)?;
        let first_seq = self.disk.edge_seq(partition, conversation, false)?.max(1);
        let head = self.disk.head(partition, conversation)?;
        Ok(Outcome::Entries { entries, first_seq, head })
    }

    fn user_items(&mut self, items: Vec<UserItem>) -> Result<Outcome, StoreError> {
        for UserItem { user, item, change, .. } in items {
            let mut groups = match self.pending_groups.get(&user) {
                Some(groups) => groups.clone(),
                None => self.disk.user_groups(&user)?,
            };
            let at = groups.iter().position(|g| *g == item);
            match (at, change) {
                (None, Change::Put(_) | Change::Add(_)) => groups.push(item),
                (Some(at), Change::Remove) => {
                    groups.remove(at);
                }
                _ => continue,
            }
            self.disk.put_user_groups(&mut self.pending, &user, &groups);
            self.pending_groups.insert(user, groups);
        }
        Ok(Outcome::UserItemsDone)
    }

    fn slot(&self, partition: Partition) -> Result<Option<FenceRecord>, StoreError> {
        self.fences.get(usize::from(partition)).cloned().ok_or_else(|| {
            StoreError::Unavailable(format!("partition {partition} of {}: no such one", self.fences.len()))
        })
    }

    /// The partition's fence, if it is this one.
    pub(super) fn fenced(&self, partition: Partition, fence: Fence) -> Result<FenceRecord, StoreError> {
        match self.slot(partition)? {
            Some(record) if record.fence == fence => Ok(record),
            _ => Err(StoreError::Fenced { partition }),
        }
    }

    fn set_fence(&mut self, partition: Partition, record: FenceRecord) {
        self.disk.put_fence(&mut self.pending, partition, &record);
        self.fences[usize::from(partition)] = Some(record);
    }

    fn set_owner(&self, partition: Partition, node: String, epoch: u64) {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners[usize::from(partition)] = (node, epoch);
    }

    /// The head of a conversation, writes of this round included.
    fn head(&mut self, partition: Partition, conversation: &str) -> Result<u64, StoreError> {
        let known = self.heads.get(&partition).and_then(|heads| heads.get(conversation));
        if let Some(head) = known {
            return Ok(*head);
        }
        // Not remembered: only what is committed can be read.
        self.commit().map_err(|e| StoreError::Unavailable(e.to_string()))?;
        let head = self.disk.head(partition, conversation)?;
        self.remember_head(partition, conversation.into(), head);
        Ok(head)
    }

    fn remember_head(&mut self, partition: Partition, conversation: Box<str>, head: u64) {
        if self.heads_held >= HEADS_MAX {
            self.heads.clear();
            self.heads_held = 0;
        }
        if self.heads.entry(partition).or_default().insert(conversation, head).is_none() {
            self.heads_held += 1;
        }
    }
}

fn not_dense(conversation: &str, head: u64, given: u64) -> StoreError {
    StoreError::Corrupted(format!("log of {conversation}: it ends at {head}, and {given} was to follow"))
}
