//! One round of the embedded store: everything that was queued, carried out in order, then one fsync for all of it.
//!
//! Queues, answers' way back and routes are left to [`super`], loads to [`super::loads`]. The rules that keep it right: a batch is checked whole
//! before its first write; a read first commits what the round has written; nothing is answered before its [`super::super::Durability`]
//! is met; and
//! after a write or an fsync that failed, nothing is believed any more: every answer of the round and every later one
//! says so, because what the disk holds is unknown.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fjall::{OwnedWriteBatch, PersistMode};
use millrace_edge::failpoint::{self, Point};
use millrace_protocol::ids::{MessageId, Partition};

use super::append::Memory;
use super::directory::Directory;
use super::disk::{Disk, FenceRecord, read_error};
use super::lists::item_key;
use super::room::Room;
use crate::store::{Batch, Change, FIRST_POSITION, Fence, Outcome, StoreError, UserItem, Work};

/// Why a job was not carried out.
#[derive(Debug)]
pub(super) enum Failure {
    /// It is refused, and nothing of it was done.
    Refused(StoreError),
    /// The disk failed: what it holds is unknown.
    Fatal(fjall::Error),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::Refused(error)
    }
}

impl From<fjall::Error> for Failure {
    fn from(error: fjall::Error) -> Self {
        Failure::Fatal(error)
    }
}

/// The state of the store's thread.
pub(super) struct Engine {
    pub(super) disk: Disk,
    /// One per partition, as on disk.
    fences: Vec<Option<FenceRecord>>,
    /// Per partition: positions of batches that name messages to be fanned out, oldest first.
    pub(super) outstanding: Vec<VecDeque<u64>>,
    pub(super) memory: Memory,
    /// Events are kept for this many positions of a partition; `None`: there are none.
    pub(super) events_kept: Option<NonZeroU64>,
    /// Batches of this round that were carried out. To free their memory takes time, which their senders need not wait for.
    pub(super) spent: Vec<Batch>,
    /// Written in this round and not committed yet.
    pub(super) pending: OwnedWriteBatch,
    /// Keys of users' items in `pending`, and whether they are there.
    pending_items: HashMap<Vec<u8>, bool>,
    /// When it was that something was committed which is not on the disk for sure yet.
    unsynced_since: Option<Instant>,
    /// How long that may be; none: not beyond the round.
    sync_within: Option<Duration>,
    room: Arc<Room>,
    directory: Arc<Directory>,
    #[cfg(test)]
    pub(super) sync_fails: Arc<std::sync::atomic::AtomicBool>,
}

impl Engine {
    pub(super) fn new(
        disk: Disk,
        partitions: u16,
        events_kept: Option<NonZeroU64>,
        sync_within: Option<Duration>,
        room: Arc<Room>,
        directory: Arc<Directory>,
    ) -> Result<Self, StoreError> {
        let fences = (0..partitions).map(|p| disk.fence(p)).collect::<Result<Vec<_>, _>>()?;
        let outstanding = (0..partitions)
            .map(|p| disk.outstanding_positions(p).map(VecDeque::from))
            .collect::<Result<Vec<_>, _>>()?;
        let row = |fence: &Option<FenceRecord>| {
            fence.as_ref().map_or_else(Default::default, |f| (f.node.clone(), f.fence.epoch))
        };
        *directory.owners() = fences.iter().map(row).collect();
        Ok(Self {
            pending: disk.db.batch().durability(None),
            disk,
            fences,
            outstanding,
            memory: Memory::default(),
            spent: Vec::new(),
            events_kept,
            pending_items: HashMap::new(),
            unsynced_since: None,
            sync_within,
            room,
            directory,
            #[cfg(test)]
            sync_fails: Arc::default(),
        })
    }

    /// Carries out one job; its answer may be sent after [`Engine::finish`] only.
    pub(super) fn execute(&mut self, work: Work) -> Result<Outcome, Failure> {
        match work {
            Work::Claim { partition, node, incarnation, wall_ms, above } => {
                self.room.admit_owner()?;
                self.claim(partition, node, incarnation, wall_ms.max(above + 1))
            }
            Work::Release { partition, fence } => {
                self.room.admit_owner()?;
                self.release(partition, fence)
            }
            Work::Append(batch) => {
                self.room.admit(&batch)?;
                self.append(batch)
            }
            Work::UserItems { items, claim } => {
                self.room.admit_items(&items)?;
                if let Some((partition, fence)) = claim {
                    self.fenced(partition, fence)?;
                }
                self.user_items(items)
            }
            reading => {
                self.commit()?;
                Ok(self.read(reading)?)
            }
        }
    }

    /// Makes everything of the round durable: on the disk, or in the kernel's hands for a while.
    pub(super) fn finish(&mut self) -> Result<(), fjall::Error> {
        self.commit()?;
        if self.sync_within.is_none() {
            return self.sync();
        }
        if self.unsynced_since.is_some() {
            self.disk.db.persist(PersistMode::Buffer)?;
        }
        self.sync_if_due()
    }

    /// How long until something must be synced; `None`: nothing has to be.
    pub(super) fn sync_due_in(&self) -> Option<Duration> {
        Some(self.sync_within?.saturating_sub(self.unsynced_since?.elapsed()))
    }

    pub(super) fn sync_if_due(&mut self) -> Result<(), fjall::Error> {
        if self.sync_due_in().is_some_and(|left| left.is_zero()) { self.sync() } else { Ok(()) }
    }

    /// Everything that is committed is on the disk after this.
    pub(super) fn sync(&mut self) -> Result<(), fjall::Error> {
        if self.unsynced_since.take().is_some() {
            #[cfg(test)]
            if self.sync_fails.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(fjall::Error::Io(std::io::Error::other("injected")));
            }
            failpoint::hit(Point::BeforeFsync);
            self.disk.db.persist(PersistMode::SyncData)?;
            failpoint::hit(Point::AfterFsync);
        }
        Ok(())
    }

    /// Makes what the round has written readable.
    pub(super) fn commit(&mut self) -> Result<(), fjall::Error> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.pending_items.clear();
        self.memory.cursors.clear();
        self.memory.uncommitted.clear();
        self.unsynced_since.get_or_insert_with(Instant::now);
        let fresh = self.disk.db.batch().durability(None);
        std::mem::replace(&mut self.pending, fresh).commit()
    }

    fn claim(
        &mut self,
        partition: Partition,
        node: String,
        incarnation: u64,
        least: u64,
    ) -> Result<Outcome, Failure> {
        let stored = self.slot(partition)?;
        if let Some(held) = &stored
            && held.node != node
            && self.directory.leases().node_lives(Instant::now(), &held.node, held.incarnation)
        {
            return Err(StoreError::Held { partition, holder: held.node.clone() }.into());
        }
        let nonce = draw_nonce()?;
        self.commit()?;
        let mut outstanding = Vec::new();
        for position in &self.outstanding[usize::from(partition)] {
            outstanding.extend(self.disk.outstanding(partition, *position)?);
        }
        let (last_epoch, position, last_message_id) = stored
            .map_or((0, FIRST_POSITION, MessageId(0)), |s| (s.fence.epoch, s.position, s.last_message_id));
        let fence = Fence { epoch: (last_epoch + 1).max(least), nonce };
        self.set_fence(
            partition,
            FenceRecord { fence, node: node.clone(), incarnation, position, last_message_id },
        );
        self.set_owner(partition, node, fence.epoch);
        let losers = self.directory.losers().of(partition);
        Ok(Outcome::Claimed { fence, position, last_message_id, outstanding, losers, copy: 1 })
    }

    /// Another nonce under the same epoch: the fence is nobody's from now on.
    fn release(&mut self, partition: Partition, fence: Fence) -> Result<Outcome, Failure> {
        let mut record = self.fenced(partition, fence)?;
        record.fence.nonce = draw_nonce()?;
        record.node.clear();
        record.incarnation = 0;
        self.set_fence(partition, record);
        self.set_owner(partition, String::new(), fence.epoch);
        Ok(Outcome::Released)
    }

    /// Jobs that only read; everything before them is committed.
    fn read(&self, work: Work) -> Result<Outcome, StoreError> {
        let disk = &self.disk;
        Ok(match work {
            Work::Read {
                partition,
                fence,
                conversation,
                after,
                through,
                limit_bytes,
                entries_max,
                newest_first,
            } => {
                if let Some(fence) = fence {
                    self.fenced(partition, fence)?;
                }
                let bounds = disk.bounds(partition, &conversation)?;
                let seqs = (bounds.first.max(after.saturating_add(1)), bounds.head.min(through));
                let limits = (limit_bytes, entries_max);
                let entries = disk.range(partition, &conversation, seqs, limits, newest_first)?;
                Outcome::Entries { entries, first_seq: bounds.first, head: bounds.head }
            }
            Work::Answers { partition, fence, conversation, stream } => {
                self.fenced(partition, fence)?;
                let bounds = disk.bounds(partition, &conversation)?;
                Outcome::Answers(disk.answers(partition, &conversation, &bounds, &stream)?)
            }
            Work::Cursors { partition, fence, conversation, of } => {
                self.fenced(partition, fence)?;
                Outcome::Cursors(disk.cursors(partition, &conversation, &of)?)
            }
            Work::UserList { user, list, after, limit } => {
                let mut items = disk.list(&user, list, &after, limit.saturating_add(1))?;
                let more = items.len() > limit;
                items.truncate(limit);
                Outcome::UserList { items, more }
            }
            Work::Events { partition, after, limit } => {
                Outcome::Events(disk.events(partition, after, limit)?)
            }
            Work::EventHeads => Outcome::EventHeads(disk.event_heads()?),
            other => unreachable!("served on the caller's thread, written, or loaded: {other:?}"),
        })
    }

    fn user_items(&mut self, items: Vec<UserItem>) -> Result<Outcome, Failure> {
        for UserItem { user, list, item, change } in items {
            let key = item_key(&user, list, &item);
            match change {
                Change::Put(value) => self.put_item(key, &value),
                Change::Add(value) => {
                    let is_there = match self.pending_items.get(&key) {
                        Some(is_there) => *is_there,
                        None => self.disk.lists.contains_key(&key).map_err(|e| read_error(&e))?,
                    };
                    if !is_there {
                        self.put_item(key, &value);
                    }
                }
                Change::Remove => {
                    self.pending.remove(&self.disk.lists, &key[..]);
                    self.pending_items.insert(key, false);
                }
            }
        }
        Ok(Outcome::UserItemsDone)
    }

    fn put_item(&mut self, key: Vec<u8>, value: &[u8]) {
        self.pending.insert(&self.disk.lists, &key[..], value);
        self.pending_items.insert(key, true);
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

    pub(super) fn set_fence(&mut self, partition: Partition, record: FenceRecord) {
        self.disk.put_fence(&mut self.pending, partition, &record);
        self.fences[usize::from(partition)] = Some(record);
    }

    fn set_owner(&self, partition: Partition, node: String, epoch: u64) {
        let mut owners = self.directory.owners();
        owners[usize::from(partition)] = (node, epoch);
    }
}

/// What tells two holders of one epoch apart.
fn draw_nonce() -> Result<u64, StoreError> {
    getrandom::u64().map_err(|e| StoreError::Unavailable(format!("no randomness for a nonce: {e}")))
}
