//! DeliverAcks of many sessions, gathered for each partition and sent on together.
//!
//! A cursor only grows, so of one device in one conversation the highest is all that matters, and losing some means
//! that a client is sent something twice, never that it misses something. That is why they may wait, and why the
//! oldest are dropped when there is nowhere to send them.

use std::hash::{Hash, Hasher};

use millrace_protocol::conversation::Conversation;
use millrace_protocol::ids::{Partition, SessionId, partition_of};
use millrace_protocol::link::Kind;
use millrace_protocol::link::record::RECORD_BYTES_MAX;
use millrace_protocol::messages::client::{Code, DeliverAck, Done, response};
use millrace_protocol::messages::link::{Acks, DeviceAck};
use rustc_hash::{FxHashMap, FxHasher};

use super::limits::*;
use super::requests::Refuse;
use super::shard::Shard;
use super::uplink::record;

// A conversation id, a user and a device of full length, two numbers and their tags.
const _: () = assert!(ACKS_RECORD_MAX * 320 < RECORD_BYTES_MAX);

/// What waits for one partition.
pub(super) struct Gathered {
    acks: Vec<DeviceAck>,
    /// By a hash of what they are about; two that share one are both kept.
    index: FxHashMap<u64, u32>,
    due_us: u64,
    /// The oldest: the next to be dropped when all are kept for want of credit.
    oldest: usize,
}

fn hash(ack: &DeviceAck) -> u64 {
    let mut hasher = FxHasher::default();
    (&ack.conversation, &ack.user, &ack.device).hash(&mut hasher);
    hasher.finish()
}

impl Gathered {
    fn new(due_us: u64) -> Self {
        Gathered { acks: Vec::new(), index: FxHashMap::default(), due_us, oldest: 0 }
    }

    /// Raises what is there of the same device and conversation. Returns it when there is nothing.
    fn merge(&mut self, ack: DeviceAck) -> Option<DeviceAck> {
        let Some(at) = self.index.get(&hash(&ack)) else { return Some(ack) };
        let there = &mut self.acks[*at as usize];
        if (&there.conversation, &there.user, &there.device) != (&ack.conversation, &ack.user, &ack.device) {
            return Some(ack);
        }
        (there.epoch, there.seq) = (there.epoch, there.seq).max((ack.epoch, ack.seq));
        None
    }

    fn push(&mut self, ack: DeviceAck) {
        self.index.insert(hash(&ack), self.acks.len() as u32);
        self.acks.push(ack);
    }

    /// Takes the place of the oldest.
    fn replace(&mut self, ack: DeviceAck) {
        let at = self.oldest;
        self.oldest = (at + 1) % self.acks.len();
        self.index.remove(&hash(&self.acks[at]));
        self.index.insert(hash(&ack), at as u32);
        self.acks[at] = ack;
    }
}

impl Shard {
    pub(super) fn on_deliver_ack(&mut self, slot: u32, id: u64, ask: DeliverAck) {
        match self.check_ack(slot, &ask) {
            Ok(ack) => {
                self.stats.acks += 1;
                self.owed_acknowledged(slot, &ack.conversation, ack.seq);
                self.gather(ack);
                if id != 0 {
                    self.respond(slot, id, response::Outcome::Done(Done {}));
                }
            }
            Err(refuse) => self.refuse(slot, id, refuse),
        }
    }

    fn check_ack(&self, slot: u32, ask: &DeliverAck) -> Result<DeviceAck, Refuse> {
        let conversation = self.check_conversation(slot, &ask.conversation)?;
        if matches!(conversation, Conversation::Room(_)) {
            return Err(Refuse(Code::BadRequest, "rooms are not acknowledged", 0));
        }
        let Some(cursor) = ask.cursor else {
            return Err(Refuse(Code::BadRequest, "an acknowledgement without a cursor", 0));
        };
        if self.sent_in(slot, &ask.conversation).is_some_and(|seq| cursor.seq > seq) {
            return Err(Refuse(Code::BadRequest, "this session was never sent that", 0));
        }
        let session = self.sessions.get(slot).expect("the asker");
        Ok(DeviceAck {
            conversation: ask.conversation.clone(),
            user: self.users.text(session.user).into(),
            device: self.device_of(session).0.into(),
            epoch: cursor.epoch,
            seq: cursor.seq,
        })
    }

    /// The highest seq of a group that a session can have, if the shard knows: it listens, and nothing is missing here.
    /// What it was answered (pages, its own sends) is not looked into, so of all else nothing is known. A message of
    /// its own may be acknowledged before its pass came by, so what was taken in counts, not what was sent on.
    fn sent_in(&self, slot: u32, conversation: &str) -> Option<u64> {
        let topic = self.topics.get(self.conversations.find(conversation)?)?;
        let knows = topic.known && topic.hole.is_none() && topic.members.contains(slot);
        knows.then(|| topic.last.max(topic.fan.delivered_to(slot, topic.last)))
    }

    fn gather(&mut self, ack: DeviceAck) {
        let partition = partition_of(&ack.conversation, self.config.partitions);
        let due_us = self.now.mono_us + ACKS_FLUSH_US;
        let gathered = self.gathered.entry(partition).or_insert_with(|| {
            self.gathered_due.push_back((due_us, partition));
            Gathered::new(due_us)
        });
        let Some(ack) = gathered.merge(ack) else { return };
        if gathered.acks.len() >= ACKS_RECORD_MAX || self.gathered_acks >= ACKS_GATHERED_MAX {
            // Its record could not be sent when it became full, or too many partitions wait.
            self.stats.acks_dropped += 1;
            if !gathered.acks.is_empty() {
                gathered.replace(ack);
            }
            return;
        }
        gathered.push(ack);
        self.gathered_acks += 1;
        if gathered.acks.len() == ACKS_RECORD_MAX {
            self.flush_acks(partition);
        }
    }

    /// Sends on what waits for a partition, if it has an owner with credit. Returns whether it did.
    fn flush_acks(&mut self, partition: Partition) -> bool {
        let Some(gathered) = self.gathered.get_mut(&partition) else { return true };
        let body = Acks { acks: std::mem::take(&mut gathered.acks) };
        if self.uplink.send(record(Kind::Acks, partition, SessionId::NONE, &body)).is_err() {
            gathered.acks = body.acks;
            return false;
        }
        self.stats.ack_records += u64::from(!body.acks.is_empty());
        self.gathered_acks -= body.acks.len();
        self.gathered.remove(&partition);
        true
    }

    /// Sends on what waited long enough. Returns whether the budget ended it.
    pub(super) fn turn_gathered(&mut self) -> bool {
        let now_us = self.now.mono_us;
        for _ in 0..ACK_FLUSHES_PER_TURN {
            let Some((due_us, partition)) = self.gathered_due.front().copied() else { return false };
            if due_us > now_us {
                return false;
            }
            self.gathered_due.pop_front();
            let current = self.gathered.get(&partition).is_some_and(|gathered| gathered.due_us == due_us);
            // One that was full went earlier.
            if current && !self.flush_acks(partition) {
                let again_us = now_us + ACKS_FLUSH_US;
                self.gathered.get_mut(&partition).expect("kept").due_us = again_us;
                self.gathered_due.push_back((again_us, partition));
            }
        }
        self.gathered_due.front().is_some_and(|(due_us, _)| *due_us <= now_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(user: &str, seq: u64) -> DeviceAck {
        DeviceAck { conversation: "g:a".into(), user: user.into(), device: "x".into(), epoch: 1, seq }
    }

    #[test]
    fn merged_by_the_highest_and_the_oldest_gives_way() {
        let mut gathered = Gathered::new(0);
        for (user, seq) in [("a", 5), ("b", 1), ("a", 7), ("a", 6)] {
            if let Some(ack) = gathered.merge(ack(user, seq)) {
                gathered.push(ack);
            }
        }
        assert_eq!(gathered.acks, [ack("a", 7), ack("b", 1)]);
        gathered.merge(DeviceAck { epoch: 2, ..ack("a", 3) });
        assert_eq!((gathered.acks[0].epoch, gathered.acks[0].seq), (2, 3), "a new life begins below");
        gathered.replace(ack("c", 1));
        gathered.replace(ack("d", 1));
        gathered.replace(ack("e", 1));
        assert_eq!(gathered.acks, [ack("e", 1), ack("d", 1)]);
        assert!(gathered.merge(ack("c", 2)).is_some() && gathered.merge(ack("e", 2)).is_none());
    }
}
