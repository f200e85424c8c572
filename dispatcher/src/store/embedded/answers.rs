//! What senders were answered, for repeats.
//!
//! A log's newest entries say it themselves. The rest has records of its own, filed some dozens of entries at a time: one
//! for each stream in them, where an append would need one for each message. The rules that keep it right: an entry leaves
//! the log only when it is filed ([`Bounds::filed`]); and a stream's records take turns in a fixed number of slots, so that
//! none has to be deleted.

use std::collections::{HashMap, hash_map};

use bytes::BufMut;
use fjall::OwnedWriteBatch;
use millrace_protocol::ids::Partition;

use super::conversations::Kind;
use super::disk::{Disk, conversation_key, put_text, read_error};
use super::log::Bounds;
use crate::store::{ANSWERS_MAX, Answer, Entry, STREAMS_PER_DEVICE_MAX, StoreError, StreamKey, pack};

/// What of one conversation is not filed.
#[derive(Debug, Default)]
pub(super) struct Unfiled {
    /// In order of their first message here.
    streams: Vec<(StreamKey, Vec<Answer>)>,
    /// Answers of all of them.
    pub(super) count: usize,
    /// Streams that have answers, oldest first, by user and device: read before it is filed.
    known: HashMap<(String, String), Vec<u64>>,
}

impl Unfiled {
    /// The next entry of the log.
    pub(super) fn add(&mut self, entry: &Entry) {
        if entry.stream == 0 {
            return;
        }
        self.count += 1;
        let answer = Answer::of(entry);
        // They are some dozens, and who spoke last speaks again.
        match self.streams.iter_mut().rev().find(|(key, _)| key.is_of(entry)) {
            Some((_, answers)) => answers.push(answer),
            None => self.streams.push((StreamKey::of(entry), vec![answer])),
        }
    }

    /// Reads what is known of these streams' devices.
    pub(super) fn read(
        &mut self,
        disk: &Disk,
        partition: Partition,
        conversation: &str,
    ) -> Result<(), StoreError> {
        for (StreamKey { user, device, .. }, _) in &self.streams {
            if let hash_map::Entry::Vacant(place) = self.known.entry((user.clone(), device.clone())) {
                let key = Kind::Streams.of_device(partition, conversation, user, device);
                place.insert(disk.streams(&key)?);
            }
        }
        Ok(())
    }

    /// Files it.
    pub(super) fn write(
        mut self,
        disk: &Disk,
        batch: &mut OwnedWriteBatch,
        partition: Partition,
        conversation: &str,
    ) {
        let key_of = |user: &str, device: &str, stream: u64| {
            answers_key(partition, conversation, user, device, stream)
        };
        for ((user, device), known) in &mut self.known {
            let of_device = self.streams.iter().map(|(key, _)| key);
            let ours = of_device.filter(|key| (&key.user, &key.device) == (user, device));
            let before = known.len();
            for key in ours {
                if !known.contains(&key.stream) {
                    known.push(key.stream);
                }
            }
            if known.len() == before {
                continue;
            }
            let excess = known.len().saturating_sub(STREAMS_PER_DEVICE_MAX);
            for gone in known.drain(..excess).take(before) {
                disk.remove_answers(batch, &key_of(user, device, gone));
            }
            let key = Kind::Streams.of_device(partition, conversation, user, device);
            disk.put_streams(batch, &key, known);
        }
        for (StreamKey { user, device, stream }, answers) in self.streams {
            let is_kept = self.known.get(&(user.clone(), device.clone()));
            if is_kept.is_some_and(|known| known.contains(&stream)) {
                disk.put_answers(batch, &key_of(&user, &device, stream), &answers);
            }
        }
    }
}

impl Disk {
    /// Adds to a stream's answers. A record has those that were filed together, in the slot of the last: what is
    /// overwritten there has numbers that are lower by the number of slots at least.
    fn put_answers(&self, batch: &mut OwnedWriteBatch, stream: &[u8], answers: &[Answer]) {
        let newest = &answers[answers.len().saturating_sub(ANSWERS_MAX)..];
        let Some(last) = newest.last() else { return };
        let record: Vec<u8> = newest.iter().flat_map(pack::answer).collect();
        batch.insert(&self.answers, [stream, &[slot(last.client_seq)]].concat(), record);
    }

    /// A stream's answers, oldest first: those that are filed, and those in the log.
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
        let bounds = self.bounds(partition, conversation)?;
        for entry in self.unfiled(partition, conversation, &bounds) {
            let entry = entry?;
            answers.extend(stream.is_of(&entry).then(|| Answer::of(&entry)));
        }
        answers.sort_unstable_by_key(|answer| answer.client_seq);
        // What older records have beside is of no slot any more.
        answers.drain(..answers.len().saturating_sub(ANSWERS_MAX));
        Ok(answers)
    }

    /// Entries whose answers are in the log alone.
    pub(super) fn unfiled(
        &self,
        partition: Partition,
        conversation: &str,
        bounds: &Bounds,
    ) -> impl Iterator<Item = Result<Entry, StoreError>> {
        let unfiled = bounds.head.saturating_sub(bounds.filed) as usize;
        self.entries(partition, conversation, bounds.filed + 1, bounds.head).take(unfiled)
    }

    /// Removes all slots of a stream.
    fn remove_answers(&self, batch: &mut OwnedWriteBatch, stream: &[u8]) {
        for slot in 0..ANSWERS_MAX as u8 {
            batch.remove(&self.answers, [stream, &[slot]].concat());
        }
    }
}

fn answers_key(partition: Partition, conversation: &str, user: &str, device: &str, stream: u64) -> Vec<u8> {
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

const _: () = assert!(ANSWERS_MAX >= 64, "a client may have that many messages in flight");
