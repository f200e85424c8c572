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
use crate::store::remembered::Unfiled;
use crate::store::{ANSWERS_MAX, Answer, Entry, STREAMS_PER_DEVICE_MAX, StoreError, StreamKey, pack};

/// The streams that have answers filed, oldest first, of the devices that something is filed of.
pub(super) type Devices = HashMap<(String, String), Vec<u64>>;

impl Disk {
    /// What must be known of the devices of these streams.
    pub(super) fn devices(
        &self,
        partition: Partition,
        conversation: &str,
        unfiled: &Unfiled,
    ) -> Result<Devices, StoreError> {
        let mut devices = Devices::new();
        for (StreamKey { user, device, .. }, _) in &unfiled.streams {
            if let hash_map::Entry::Vacant(place) = devices.entry((user.clone(), device.clone())) {
                let key = Kind::Streams.of_device(partition, conversation, user, device);
                place.insert(self.streams(&key)?);
            }
        }
        Ok(devices)
    }

    pub(super) fn file(
        &self,
        batch: &mut OwnedWriteBatch,
        (partition, conversation): (Partition, &str),
        unfiled: Unfiled,
        mut devices: Devices,
    ) {
        let key_of = |user: &str, device: &str, stream: u64| {
            answers_key(partition, conversation, user, device, stream)
        };
        let mut grown = HashMap::new();
        for (key, _) in &unfiled.streams {
            let pair = (key.user.clone(), key.device.clone());
            let Some(known) = devices.get_mut(&pair).filter(|known| !known.contains(&key.stream)) else {
                continue;
            };
            grown.entry(pair).or_insert(known.len());
            known.push(key.stream);
        }
        for ((user, device), before) in grown {
            let key = Kind::Streams.of_device(partition, conversation, &user, &device);
            let known = devices.get_mut(&(user.clone(), device.clone())).expect("it has grown");
            let excess = known.len().saturating_sub(STREAMS_PER_DEVICE_MAX);
            // Those behind are new, and have nothing here yet.
            for gone in known.drain(..excess).take(before) {
                self.remove_answers(batch, &key_of(&user, &device, gone));
            }
            self.put_streams(batch, &key, known);
        }
        for (StreamKey { user, device, stream }, answers) in unfiled.streams {
            let key = key_of(&user, &device, stream);
            if devices.get(&(user, device)).is_some_and(|known| known.contains(&stream)) {
                self.put_answers(batch, &key, &answers);
            }
        }
    }

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
        bounds: &Bounds,
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
        for entry in self.unfiled(partition, conversation, bounds) {
            let entry = entry?;
            answers.extend(entry.filter(|entry| stream.is_of(entry)).as_ref().map(Answer::of));
        }
        answers.sort_unstable_by_key(|answer| answer.client_seq);
        // What older records have beside is of no slot any more.
        answers.drain(..answers.len().saturating_sub(ANSWERS_MAX));
        Ok(answers)
    }

    /// Entries whose answers are in the log alone. One that can't be read any more is named, and nothing is in its place: its
    /// sender's repeat is not known again, but others may go on.
    pub(super) fn unfiled(
        &self,
        partition: Partition,
        conversation: &str,
        bounds: &Bounds,
    ) -> impl Iterator<Item = Result<Option<Entry>, StoreError>> {
        let unfiled = bounds.head.saturating_sub(bounds.filed) as usize;
        let entries = self.entries(partition, conversation, bounds.filed + 1, bounds.head);
        entries.take(unfiled).map(|entry| match entry {
            Err(error @ StoreError::Corrupted(_)) => {
                eprintln!("millrace: {error}");
                Ok(None)
            }
            entry => entry.map(Some),
        })
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
