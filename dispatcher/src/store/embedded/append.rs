//! One batch of one partition: checked whole, then written into the round.
//!
//! When the round is durable is left to [`super::round`], what is filed of a log to [`super::answers`]. The rules that keep it right: whatever must be read is read
//! before the first write; and what a write leaves behind is remembered in memory ([`Memory`]), so that the next one need
//! not read it again.

use std::collections::{HashMap, hash_map};

use fjall::OwnedWriteBatch;
use millrace_protocol::ids::Partition;
use rustc_hash::{FxHashMap, FxHashSet};

use super::answers::Devices;
use super::conversations::Kind;
use super::disk::FenceRecord;
use super::log::Bounds;
use super::round::{Engine, Failure};
use crate::store::remembered::{Logs, Unfiled};
use crate::store::{Batch, Cursor, Entry, EventId, Outcome, StoreError, UNFILED_MAX, Write, pack};

/// What is known without reading.
#[derive(Default)]
pub(super) struct Memory {
    logs: Logs<Bounds>,
    /// Cursors written in this round and not committed yet, by key.
    pub(super) cursors: HashMap<Vec<u8>, Cursor>,
    /// Partitions that were written to in this round, and what was written is not committed yet.
    pub(super) uncommitted: FxHashSet<Partition>,
}

/// What a batch must know before it writes.
#[derive(Default)]
struct Known<'a> {
    logs: FxHashMap<&'a str, Log>,
    /// Cursors that it moves, by key.
    cursors: HashMap<Vec<u8>, Cursor>,
}

/// A log that a batch touches.
struct Log {
    /// Where it begins and ends: as it was before the batch, and then as each write leaves it.
    bounds: Bounds,
    was: Bounds,
    /// Where it ends after the batch.
    head: u64,
    /// The highest seq that a trim of the batch names.
    trim: u64,
    /// What is not filed of it, with the batch; `None`: that was not remembered.
    unfiled: Option<Unfiled>,
    /// What must be known to file it.
    devices: Devices,
}

impl Known<'_> {
    fn bounds(&mut self, conversation: &str) -> &mut Bounds {
        &mut self.logs.get_mut(conversation).expect("the check has looked at every log").bounds
    }
}

impl Log {
    /// Whether so much is not filed that it is to be, or a trim would take it away.
    fn is_to_be_filed(&self) -> bool {
        self.head >= self.was.filed + UNFILED_MAX || self.trim.min(self.head) > self.was.filed + 1
    }
}

impl Engine {
    pub(super) fn append(&mut self, batch: Batch) -> Result<Outcome, Failure> {
        let partition = batch.partition;
        let mut record = self.fenced(partition, batch.fence)?;
        if record.position != batch.position {
            let expected = record.position;
            return Err(StoreError::Position { partition, expected, given: batch.position }.into());
        }
        let mut known = self.check(&batch, &mut record)?;
        for (id, write) in (batch.position..).zip(&batch.writes) {
            self.write(partition, id, write, &mut known);
        }
        for (conversation, log) in known.logs {
            let files = log.is_to_be_filed();
            let Log { mut bounds, was, mut unfiled, devices, .. } = log;
            if files {
                let filing =
                    unfiled.replace(Unfiled::default()).expect("the check has read what is to be filed");
                self.disk.file(&mut self.pending, (partition, conversation), filing, devices);
                bounds.filed = bounds.head;
            }
            if (Bounds { head: was.head, ..bounds }) != was {
                self.disk.put_bounds(&mut self.pending, partition, conversation, &bounds);
            }
            self.memory.logs.remember(partition, conversation, bounds, unfiled);
        }
        for (key, cursor) in known.cursors {
            self.disk.put_cursor(&mut self.pending, &key, &cursor);
            self.memory.cursors.insert(key, cursor);
        }
        let open = &mut self.outstanding[usize::from(partition)];
        while let Some(position) = open.front().copied().filter(|position| *position < batch.fanned_out) {
            self.disk.remove_outstanding(&mut self.pending, partition, position);
            open.pop_front();
        }
        if !batch.outstanding.is_empty() {
            open.push_back(batch.position);
            self.disk.put_outstanding(&mut self.pending, partition, batch.position, &batch.outstanding);
        }
        record.position += batch.writes.len() as u64;
        self.memory.uncommitted.insert(partition);
        self.set_fence(partition, record);
        self.spent.push(batch);
        Ok(Outcome::Appended)
    }

    /// Reads all that the batch needs, and refuses one that leaves a seq out.
    fn check<'a>(&mut self, batch: &'a Batch, record: &mut FenceRecord) -> Result<Known<'a>, Failure> {
        let partition = batch.partition;
        let mut known = Known::default();
        for write in &batch.writes {
            match write {
                Write::Message(entry) => {
                    let log = self.log(&mut known, partition, &entry.conversation)?;
                    if entry.seq != log.head + 1 {
                        return Err(not_dense(&entry.conversation, log.head, entry.seq).into());
                    }
                    log.head = entry.seq;
                    if let Some(unfiled) = &mut log.unfiled {
                        unfiled.add(entry);
                    }
                    record.last_message_id = record.last_message_id.max(entry.message_id);
                }
                Write::Replace(Entry { conversation, .. }) => {
                    self.log(&mut known, partition, conversation)?;
                }
                Write::Trim { conversation, first_seq } => {
                    let log = self.log(&mut known, partition, conversation)?;
                    log.trim = log.trim.max(*first_seq);
                }
                Write::Cursor { conversation, user, device, cursor } => {
                    let key = Kind::Cursor.of_device(partition, conversation, user, device);
                    let stored = match (known.cursors.get(&key), self.memory.cursors.get(&key)) {
                        (Some(stored), _) | (None, Some(stored)) => Some(*stored),
                        (None, None) => self.disk.cursor(&key)?,
                    };
                    if stored.is_none_or(|stored| *cursor > stored) {
                        known.cursors.insert(key, *cursor);
                    }
                }
                Write::GroupCreate { .. }
                | Write::Members { .. }
                | Write::State { .. }
                | Write::Event { .. } => {}
            }
        }
        for (conversation, log) in known.logs.iter_mut().filter(|(_, log)| log.is_to_be_filed()) {
            self.make_readable(partition)?;
            let unfiled = match &mut log.unfiled {
                Some(unfiled) => unfiled,
                None => {
                    let mut unfiled = self.read_unfiled(partition, conversation, &log.was)?;
                    for write in &batch.writes {
                        if let Write::Message(entry) = write
                            && entry.conversation == *conversation
                        {
                            unfiled.add(entry);
                        }
                    }
                    log.unfiled.insert(unfiled)
                }
            };
            log.devices = self.disk.devices(partition, conversation, unfiled)?;
        }
        Ok(known)
    }

    /// What is known of a log, read if it was not.
    fn log<'a, 'k>(
        &mut self,
        known: &'k mut Known<'a>,
        partition: Partition,
        conversation: &'a str,
    ) -> Result<&'k mut Log, Failure> {
        Ok(match known.logs.entry(conversation) {
            hash_map::Entry::Occupied(place) => place.into_mut(),
            hash_map::Entry::Vacant(place) => {
                let (bounds, unfiled) = match self.memory.logs.take(partition, conversation) {
                    Some(known) => known,
                    None => {
                        self.make_readable(partition)?;
                        let bounds = self.disk.bounds(partition, conversation)?;
                        (bounds, (bounds.filed == bounds.head).then(Unfiled::default))
                    }
                };
                let devices = Devices::new();
                place.insert(Log { bounds, was: bounds, head: bounds.head, trim: 0, unfiled, devices })
            }
        })
    }

    /// What was written to a partition can be read: only what is committed can.
    fn make_readable(&mut self, partition: Partition) -> Result<(), Failure> {
        if self.memory.uncommitted.contains(&partition) {
            self.commit()?;
        }
        Ok(())
    }

    /// What is in a log alone.
    fn read_unfiled(
        &self,
        partition: Partition,
        conversation: &str,
        bounds: &Bounds,
    ) -> Result<Unfiled, Failure> {
        let mut unfiled = Unfiled::default();
        for entry in self.disk.unfiled(partition, conversation, bounds) {
            unfiled.extend(entry?.as_ref());
        }
        Ok(unfiled)
    }

    fn write(&mut self, partition: Partition, id: EventId, write: &Write, known: &mut Known<'_>) {
        let (disk, pending) = (&self.disk, &mut self.pending);
        let mut event: Option<(&str, &[u8])> = None;
        match write {
            Write::Message(entry) => {
                known.bounds(&entry.conversation).head = entry.seq;
                disk.put_entry(pending, partition, entry);
                event = Some(("message", &entry.notify));
            }
            Write::Replace(entry) => {
                if known.bounds(&entry.conversation).hold(entry.seq) {
                    disk.put_entry(pending, partition, entry);
                }
            }
            Write::GroupCreate { conversation, members, version } => {
                disk.put_members(pending, partition, conversation, (members, &[]), *version);
            }
            Write::Members { conversation, add, remove, version } => {
                disk.put_members(pending, partition, conversation, (add, remove), *version);
            }
            Write::State { conversation, key, value } => {
                disk.put_state(pending, partition, conversation, key, value.as_ref());
            }
            // Merged when it was checked.
            Write::Cursor { .. } => {}
            Write::Trim { conversation, first_seq } => {
                let gone = known.bounds(conversation).trim(*first_seq);
                disk.remove_entries(pending, partition, conversation, gone);
            }
            Write::Event { kind, body } => event = Some((kind, body)),
        }
        self.event(partition, id, event);
    }

    /// Keeps the event of a write, if it is one, and drops the one that is as many positions behind it as are kept:
    /// without looking whether there is one.
    fn event(&mut self, partition: Partition, id: EventId, event: Option<(&str, &[u8])>) {
        let Some(kept) = self.events_kept else { return };
        if let Some((kind, body)) = event {
            self.disk.put_event(&mut self.pending, partition, id, kind, body);
        }
        if let Some(gone) = id.checked_sub(kept.get()) {
            self.disk.remove_event(&mut self.pending, partition, gone);
        }
    }
}

impl super::disk::Disk {
    fn put_cursor(&self, batch: &mut OwnedWriteBatch, key: &[u8], cursor: &Cursor) {
        batch.insert(&self.conversations, key, pack::cursor(cursor));
    }
}

fn not_dense(conversation: &str, head: u64, given: u64) -> StoreError {
    StoreError::Corrupted(format!("log of {conversation}: it ends at {head}, and {given} was to follow"))
}
