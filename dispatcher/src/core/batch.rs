//! The writes of one partition: one batch at the store, the next one gathering, and what follows when they are
//! durable.
//!
//! The rule that keeps it right: an effect is carried out only when its batch was answered Appended, in the order of
//! the writes.

use bytes::Bytes;
use millrace_protocol::ids::MessageId;

use super::hub::From;
use super::limits::{BATCH_BYTES_MAX, BATCH_WRITES_MAX};
use super::send::Sent;
use crate::store::{Batch, Fence, Write};

/// What follows a write.
#[derive(Debug)]
pub enum Effect {
    /// A message: its sender is answered, others get it.
    Sent {
        /// Where.
        conversation: String,
        /// What follows.
        sent: Sent,
        /// The Notify body.
        notify: Bytes,
    },
    /// An entry about a change of a group: everyone who listens gets it.
    Noted {
        /// Where.
        conversation: String,
        /// Its number there.
        seq: u64,
        /// The Notify body.
        notify: Bytes,
    },
    /// A change between the two users of this direct conversation.
    Pair {
        /// Which.
        conversation: String,
    },
    /// Nobody waits for it.
    None,
    /// The round of membership changes of this group.
    Round {
        /// Which.
        conversation: String,
    },
}

/// What an owner knows of its partition besides conversations.
#[derive(Debug)]
pub struct Owner {
    /// Partition and epoch, as records and entries carry them.
    pub from: From,
    /// Shown with every write.
    pub fence: Fence,
    /// Tells answers for this claim from those for an earlier one.
    pub generation: u64,
    last_message_id: MessageId,
    position: u64,
    /// Effects and number of writes of the batch at the store.
    in_flight: Option<(Vec<Effect>, u64)>,
    writes: Vec<Write>,
    effects: Vec<Effect>,
    bytes: usize,
    /// Direct messages of the batch that gathers, and entries about new members.
    outstanding: Vec<(String, u64)>,
    /// Whether the batch at the store has some.
    outstanding_in_flight: bool,
    /// Batches before this position were fanned out.
    fanned_out: u64,
}

impl Owner {
    /// From the answer to a claim.
    pub fn new(from: From, fence: Fence, generation: u64, last_message_id: MessageId, position: u64) -> Self {
        Owner {
            from,
            fence,
            generation,
            last_message_id,
            position,
            in_flight: None,
            writes: Vec::new(),
            effects: Vec::new(),
            bytes: 0,
            outstanding: Vec::new(),
            outstanding_in_flight: false,
            fanned_out: 0,
        }
    }

    /// Whether the next batch takes one more message.
    pub fn has_room(&self) -> bool {
        self.writes.len() < BATCH_WRITES_MAX && self.bytes < BATCH_BYTES_MAX
    }

    /// Nothing at the store and nothing to be written.
    pub fn is_quiet(&self) -> bool {
        self.in_flight.is_none() && self.writes.is_empty()
    }

    /// The next message id: above all earlier ones of the partition, whatever time it is given.
    pub fn next_message_id(&mut self, given_ms: u64) -> MessageId {
        self.last_message_id = self.last_message_id.next(given_ms, self.from.partition);
        self.last_message_id
    }

    /// What an entry of the next batch tells sessions that don't subscribe must be told by the next owner if this one does
    /// not get to it.
    pub fn outstanding(&mut self, conversation: &str, seq: u64) {
        self.outstanding.push((conversation.to_owned(), seq));
    }

    /// Puts a write into the next batch.
    pub fn push(&mut self, write: Write, effect: Effect) {
        self.bytes += match &write {
            Write::Message(entry) => entry.notify.len(),
            Write::Event { body, .. } => body.len(),
            _ => 0,
        };
        self.writes.push(write);
        self.effects.push(effect);
    }

    /// The next batch, if there is one and none is at the store.
    pub fn start(&mut self) -> Option<Batch> {
        if self.in_flight.is_some() || self.writes.is_empty() {
            return None;
        }
        let writes = std::mem::take(&mut self.writes);
        self.outstanding_in_flight = !self.outstanding.is_empty();
        self.in_flight = Some((std::mem::take(&mut self.effects), writes.len() as u64));
        self.bytes = 0;
        Some(Batch {
            partition: self.from.partition,
            fence: self.fence,
            position: self.position,
            writes,
            outstanding: std::mem::take(&mut self.outstanding),
            fanned_out: self.fanned_out,
        })
    }

    /// The batch at the store is durable: what follows.
    pub fn appended(&mut self) -> Vec<Effect> {
        let (effects, writes) = self.in_flight.take().expect("one batch at the store per partition");
        self.position += writes;
        effects
    }

    /// As if the batch at the store had not been written: what would have followed it.
    pub fn failed(&mut self) -> Vec<Effect> {
        self.in_flight.take().map(|(effects, _)| effects).unwrap_or_default()
    }

    /// Where the next batch begins.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether the batch that was just appended has messages whose fan-out must be followed.
    pub fn is_to_be_followed(&mut self) -> bool {
        std::mem::take(&mut self.outstanding_in_flight)
    }

    /// Batches before this position were fanned out: the next batch says so.
    pub fn fanned_out(&mut self, position: u64) {
        self.fanned_out = self.fanned_out.max(position);
    }

    /// The batch at the store was answered, and may not have been written: its effects go with those that gather.
    pub fn not_appended(&mut self) {
        let mut effects = self.failed();
        effects.append(&mut self.effects);
        self.effects = effects;
    }

    /// The partition stops: the effects of everything that was not answered, in order. A batch that is at the store is there
    /// still, and nothing follows it.
    pub fn stop(&mut self) -> Vec<Effect> {
        let in_flight = self.in_flight.as_mut().map(|(effects, _)| std::mem::take(effects));
        let mut effects = in_flight.unwrap_or_default();
        self.writes.clear();
        self.outstanding.clear();
        effects.append(&mut self.effects);
        effects
    }
}
