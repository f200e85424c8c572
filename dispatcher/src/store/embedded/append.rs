//! One batch of one partition: checked whole, then written into the round.
//!
//! When the round is durable is left to [`super::round`]. The rules that keep it right: whatever must be read is read
//! before the first write; and what a write leaves behind is remembered in memory ([`Memory`]), so that the next one need
//! not read it again.

use std::collections::{HashMap, hash_map};

use fjall::OwnedWriteBatch;
use millrace_protocol::ids::Partition;
use rustc_hash::FxHashMap;

use super::conversations::Kind;
use super::disk::FenceRecord;
use super::log::{Bounds, answers_key};
use super::round::{Engine, Failure};
use crate::store::{
    ANSWERS_MAX, Answer, Batch, Cursor, Entry, EventId, Outcome, STREAMS_PER_DEVICE_MAX, StoreError,
    StreamKey, Write, pack,
};

/// Conversations whose bounds are remembered, at about 80 B each; past that all are forgotten and read again.
const BOUNDS_MAX: usize = 131_072;

/// What is known of conversations without reading.
#[derive(Default)]
pub(super) struct Memory {
    bounds: FxHashMap<Partition, FxHashMap<Box<str>, Bounds>>,
    bounds_held: usize,
    /// Cursors written in this round and not committed yet, by key.
    pub(super) cursors: HashMap<Vec<u8>, Cursor>,
}

impl Memory {
    fn bounds(&self, partition: Partition, conversation: &str) -> Option<Bounds> {
        self.bounds.get(&partition)?.get(conversation).copied()
    }

    fn remember(&mut self, partition: Partition, conversation: &str, bounds: Bounds) {
        if self.bounds_held >= BOUNDS_MAX {
            self.bounds.clear();
            self.bounds_held = 0;
        }
        let of_partition = self.bounds.entry(partition).or_default();
        match of_partition.get_mut(conversation) {
            Some(known) => *known = bounds,
            None => {
                of_partition.insert(conversation.into(), bounds);
                self.bounds_held += 1;
            }
        }
    }
}

/// What a batch must know before it writes.
#[derive(Default)]
struct Known<'a> {
    /// Of each conversation whose log it touches, as they are before it.
    bounds: FxHashMap<&'a str, Bounds>,
    /// Streams of each device that begins one, by key.
    streams: HashMap<Vec<u8>, Vec<u64>>,
    /// Cursors that it moves, by key.
    cursors: HashMap<Vec<u8>, Cursor>,
    /// Answers of each stream that it adds to, oldest first.
    answers: HashMap<Stream<'a>, Vec<Answer>>,
}

/// Conversation, user, device, stream.
type Stream<'a> = (&'a str, &'a str, &'a str, u64);

impl Known<'_> {
    /// Of a log that the batch touches.
    fn bounds(&mut self, conversation: &str) -> &mut Bounds {
        self.bounds.get_mut(conversation).expect("the check has looked at every log")
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
        for (conversation, bounds) in &known.bounds {
            self.memory.remember(partition, conversation, *bounds);
        }
        for (key, streams) in &known.streams {
            self.disk.put_streams(&mut self.pending, key, streams);
        }
        for ((conversation, user, device, stream), answers) in &known.answers {
            let key = answers_key(partition, conversation, user, device, *stream);
            self.disk.put_answers(&mut self.pending, &key, answers);
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
        self.set_fence(partition, record);
        Ok(Outcome::Appended)
    }

    /// Reads all that the batch needs, and refuses one that leaves a seq out.
    fn check<'a>(&mut self, batch: &'a Batch, record: &mut FenceRecord) -> Result<Known<'a>, Failure> {
        let partition = batch.partition;
        let mut known = Known::default();
        let mut heads: FxHashMap<&str, u64> = FxHashMap::default();
        for write in &batch.writes {
            match write {
                Write::Message(entry) => {
                    let before = self.know_bounds(&mut known, partition, &entry.conversation)?;
                    let head = heads.entry(&entry.conversation).or_insert(before.head);
                    if entry.seq != *head + 1 {
                        return Err(not_dense(&entry.conversation, *head, entry.seq).into());
                    }
                    *head = entry.seq;
                    record.last_message_id = record.last_message_id.max(entry.message_id);
                    if begins_stream(entry) {
                        let key = streams_key(partition, entry);
                        if let hash_map::Entry::Vacant(place) = known.streams.entry(key) {
                            self.commit()?;
                            let streams = self.disk.streams(place.key())?;
                            place.insert(streams);
                        }
                    }
                }
                Write::Replace(Entry { conversation, .. }) | Write::Trim { conversation, .. } => {
                    self.know_bounds(&mut known, partition, conversation)?;
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
        Ok(known)
    }

    fn know_bounds<'a>(
        &mut self,
        known: &mut Known<'a>,
        partition: Partition,
        conversation: &'a str,
    ) -> Result<Bounds, Failure> {
        if let Some(bounds) = known.bounds.get(conversation) {
            return Ok(*bounds);
        }
        let bounds = match self.memory.bounds(partition, conversation) {
            Some(bounds) => bounds,
            None => {
                // Not remembered: only what is committed can be read.
                self.commit()?;
                self.disk.bounds(partition, conversation)?
            }
        };
        known.bounds.insert(conversation, bounds);
        Ok(bounds)
    }

    fn write<'a>(&mut self, partition: Partition, id: EventId, write: &'a Write, known: &mut Known<'a>) {
        let (disk, pending) = (&self.disk, &mut self.pending);
        let mut event: Option<(&str, &[u8])> = None;
        match write {
            Write::Message(entry) => {
                known.bounds(&entry.conversation).head = entry.seq;
                disk.put_entry(pending, partition, entry);
                if entry.stream != 0 {
                    let Entry { client_seq, payload_hash, seq, message_id, epoch, .. } = *entry;
                    let answer = Answer { client_seq, payload_hash, seq, message_id, epoch };
                    let Entry { conversation, sender, device, stream, .. } = entry;
                    known.answers.entry((conversation, sender, device, *stream)).or_default().push(answer);
                }
                if begins_stream(entry) {
                    let streams = known
                        .streams
                        .get_mut(&streams_key(partition, entry))
                        .expect("the check has looked at every stream");
                    for gone in begin_stream(streams, entry.stream) {
                        let Entry { conversation, sender, device, .. } = entry;
                        known.answers.remove(&(
                            conversation.as_str(),
                            sender.as_str(),
                            device.as_str(),
                            gone,
                        ));
                        let stream = StreamKey { user: sender.clone(), device: device.clone(), stream: gone };
                        disk.remove_answers(pending, partition, conversation, &stream);
                    }
                }
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
                let bounds = known.bounds(conversation);
                let before = *bounds;
                let gone = bounds.trim(*first_seq);
                if *bounds != before {
                    disk.put_beginning(pending, partition, conversation, bounds, gone);
                }
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

/// Numbers are dense from 1: the first one of a stream is where its device gets one stream more.
fn begins_stream(entry: &Entry) -> bool {
    entry.stream != 0 && entry.client_seq == 1
}

fn streams_key(partition: Partition, entry: &Entry) -> Vec<u8> {
    Kind::Streams.of_device(partition, &entry.conversation, &entry.sender, &entry.device)
}

/// Adds the newest stream, and returns those that lost their place.
fn begin_stream(streams: &mut Vec<u64>, stream: u64) -> Vec<u64> {
    streams.retain(|known| *known != stream);
    streams.push(stream);
    let excess = streams.len().saturating_sub(STREAMS_PER_DEVICE_MAX);
    streams.drain(..excess).collect()
}

fn not_dense(conversation: &str, head: u64, given: u64) -> StoreError {
    StoreError::Corrupted(format!("log of {conversation}: it ends at {head}, and {given} was to follow"))
}

const _: () = assert!(ANSWERS_MAX >= 64, "a client may have that many messages in flight");
