//! What was promised, and whether it is kept: every append, acknowledgement and message shown is noted here and judged
//! at once.
//!
//! It looks at the world from outside: at what the store accepted ([`Ledger::appended`]), what gateways answered
//! ([`crate::answers`]) and sent ([`crate::listening`]), and what applications were shown ([`crate::shelf`]). The first
//! broken promise ends the run. The names of the promises are those of [`Invariant`].

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use millrace_dispatcher::store::model::ModelStore;
use millrace_dispatcher::store::{Batch, Entry, Write};
use millrace_protocol::conversation::Conversation;
use millrace_protocol::ids::Partition;
use millrace_protocol::messages::client::{Action, Deliver, Notify, SendAck, notify};
use millrace_protocol::prost::Message;

use crate::agenda::{Seat, Who};
use crate::answers::{Given, Number};
use crate::listening::Listening;
use crate::membership::Membership;
use crate::shelf::Shelf;

/// What must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// What was acknowledged is in the log, as it was sent.
    AckedIsStored,
    /// What anybody is sent or shown is in the log, as it is there.
    ShownIsStored,
    /// A message is in the log once.
    StoredOnce,
    /// Messages of a stream are stored in the order in which they were sent.
    StoredInOrder,
    /// Numbers of a stream are stored without holes: 1, 2, 3, …
    NumbersDense,
    /// What was stored is answered as it was at first, and nothing else under its number is taken.
    RepeatsAnswered,
    /// A direct conversation is in both users' lists before its first message.
    ListedFirst,
    /// A session's route is in the store before it is told that it is logged in.
    RoutedFirst,
    /// A session is told nothing before it is told that it is logged in, but why it is closed.
    LoggedInFirst,
    /// A partition is given up when everything that its owner began to write is answered.
    HandedOver,
    /// Nobody begins anything without a lease, and nobody loses a partition while it has one.
    LeaseHolds,
    /// Nobody is shown a message twice by one process, nor again below the cursor that was saved.
    ShownOnce,
    /// Nobody is shown a message before those below it.
    ShownInOrder,
    /// A session listens to a group without holes, in order.
    Contiguous,
    /// Only members say something in a group, and only they are shown it.
    MembersOnly,
    /// Cursors go back only when the log was cut, those at the server too; it knows of none that was not saved first.
    CursorsGrow,
    /// Nobody is told that something is lost which is not, and nothing is trimmed before its time.
    NothingLost,
    /// A partition has one writer per epoch, and that is the latest.
    OneWriter,
    /// Epochs grow.
    EpochsGrow,
    /// Queues and tables keep to their limits.
    Bounded,
    /// No assertion of a core or of the model fails.
    NoPanic,
    /// Everything is acknowledged or refused in the end.
    AnsweredAtLast,
    /// Every device is connected and attached to its groups in the end.
    AttachedAtLast,
    /// A session whose place a newer one took is closed, and soon.
    ClosedAtLast,
    /// Everything is shown to everyone in the end.
    DeliveredAtLast,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// When, us of the world.
    pub at_us: u64,
    /// What happened.
    pub detail: String,
}

/// An entry of the log, as accepted.
#[derive(Clone, Debug)]
pub struct Kept {
    /// What receivers get.
    pub deliver: Deliver,
    /// The sender's stream.
    stream: u64,
    /// Members of the group when it was appended.
    pub members: Option<Rc<BTreeSet<String>>>,
    /// When it was appended, us of the world.
    at_us: u64,
}

impl Kept {
    /// One that is there though it was written to a copy of the store that was given up by then. Who was a member is not
    /// known, nor when it was written.
    fn found(entry: &Entry) -> Option<Kept> {
        Some(Kept { deliver: deliver_of(&entry.notify)?, stream: entry.stream, members: None, at_us: 0 })
    }
}

/// A message that a device sends.
#[derive(Clone, Debug)]
struct Sent {
    device: usize,
    conversation: String,
    payload: Bytes,
    settled: bool,
}

/// Counts for reports.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Messages sent by devices.
    pub sent: u64,
    /// Acknowledged.
    pub acked: u64,
    /// Refused for good.
    pub refused: u64,
    /// Shown to devices.
    pub shown: u64,
    /// Shown again after a crash.
    pub repeated: u64,
    /// Gaps told.
    pub gaps: u64,
    /// Cuts of the log told.
    pub truncated: u64,
    /// Pages of logs read.
    pub pages: u64,
    /// Resyncs told.
    pub resyncs: u64,
    /// Claims that held.
    pub claims: u64,
    /// Links reset for an error.
    pub link_resets: u64,
    /// Logins that succeeded.
    pub logins: u64,
    /// Clients that ended because a newer login took their place.
    pub displaced: u64,
    /// Processes of clients that started.
    pub starts: u64,
}

type SaidKey = (String, String, String, u64);

/// See the module's head.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The first broken promise.
    pub violation: Option<Violation>,
    /// For reports.
    pub counts: Counts,
    /// Age at which messages may be trimmed, us; 0: never.
    pub retention_us: u64,
    pub(crate) logs: BTreeMap<String, BTreeMap<u64, Kept>>,
    /// Everything in the log that somebody sent, and where it stands.
    pub(crate) keys: BTreeMap<Number, u64>,
    pub(crate) given: Given,
    /// The highest number that a device gave to a message of (conversation, user, device, stream).
    said: BTreeMap<SaidKey, u64>,
    pub(crate) membership: Membership,
    /// The highest epoch that was ever given.
    claimed: BTreeMap<Partition, u64>,
    /// The epoch under which the present copy of the store takes batches: that of the last claim there.
    current: BTreeMap<Partition, u64>,
    writers: BTreeMap<(Partition, u64), (Who, u32)>,
    /// Another copy of it took over at least once.
    pub(crate) has_fallen_back: bool,
    /// It lost something at least once, though that may be back.
    pub(crate) has_lost: bool,
    /// Ids of messages that the store lost though it had promised to keep them.
    pub(crate) lost: BTreeSet<u64>,
    /// The messages themselves, by id, if they were in the log: the copy that has them may come back.
    graves: BTreeMap<u64, Kept>,
    /// Ids of those that came back. Their sender may have been told meanwhile that they are to be sent again.
    pub(crate) restored: BTreeSet<u64>,
    /// Where devices' own messages stood that the store lost: (device, conversation, seq).
    lost_own: BTreeSet<(usize, String, u64)>,
    /// User and name of each device.
    pub(crate) names: Vec<(String, String)>,
    pub(crate) listening: Vec<Listening>,
    pub(crate) shelves: Vec<Shelf>,
    /// Sessions that ever had a route.
    pub(crate) routed: BTreeSet<u64>,
    sent: Vec<Sent>,
    /// How far each user marked each conversation as read.
    pub(crate) read: BTreeMap<(String, String), u64>,
    /// When and why the last link was reset.
    pub last_reset: Option<(u64, String)>,
}

impl Ledger {
    /// A device of a user.
    pub fn add_device(&mut self, user: &str, device: &str) {
        self.names.push((user.into(), device.into()));
        self.listening.push(Listening::default());
        self.shelves.push(Shelf::default());
    }

    /// Notes a broken promise; the first one stays.
    pub fn broken(&mut self, invariant: Invariant, at_us: u64, detail: String) {
        self.violation.get_or_insert(Violation { invariant, at_us, detail });
    }

    /// A link was reset for a protocol error.
    pub fn link_reset(&mut self, at_us: u64, reason: &str) {
        self.counts.link_resets += 1;
        self.last_reset = Some((at_us, reason.into()));
    }

    // ---- the store ----

    /// A claim holds.
    pub fn claimed(&mut self, now_us: u64, seat: Seat, partition: Partition, epoch: u64) {
        self.counts.claims += 1;
        let highest = self.claimed.entry(partition).or_default();
        if epoch <= *highest {
            let detail = format!("{seat:?} claimed partition {partition} under {epoch}, after {highest}");
            return self.broken(Invariant::EpochsGrow, now_us, detail);
        }
        *highest = epoch;
        self.current.insert(partition, epoch);
    }

    /// The store accepted a batch.
    pub fn appended(&mut self, now_us: u64, seat: Seat, batch: &Batch) {
        let (partition, epoch) = (batch.partition, batch.fence.epoch);
        let current = self.current.get(&partition).copied().unwrap_or(0);
        if epoch != current {
            let detail = format!("{seat:?} wrote partition {partition} under {epoch}; claimed is {current}");
            self.broken(Invariant::OneWriter, now_us, detail);
        }
        let writer = *self.writers.entry((partition, epoch)).or_insert((seat.who, seat.life));
        if writer != (seat.who, seat.life) {
            let detail = format!("{seat:?} wrote partition {partition} under {epoch}, as {writer:?} did");
            self.broken(Invariant::OneWriter, now_us, detail);
        }
        for write in &batch.writes {
            match write {
                Write::Message(entry) => self.entry(now_us, epoch, entry),
                Write::GroupCreate { conversation, members, .. } => {
                    self.members_change(conversation, members, &[]);
                }
                Write::Members { conversation, add, remove, .. } => {
                    self.members_change(conversation, add, remove);
                }
                Write::Cursor { conversation, user, device, cursor } => {
                    self.stored_cursor(now_us, conversation, (user, device), cursor.seq);
                }
                Write::Trim { conversation, first_seq } => {
                    self.trimmed(now_us, seat, conversation, *first_seq)
                }
                _ => {}
            }
        }
    }

    /// What is trimmed was kept for as long as was promised, by the world's own time.
    fn trimmed(&mut self, now_us: u64, seat: Seat, conversation: &str, first_seq: u64) {
        let log = self.logs.get(conversation);
        let mut gone = log.into_iter().flat_map(|log| log.range(..first_seq));
        let kept = |at_us| self.retention_us == 0 || at_us + self.retention_us > now_us;
        if let Some((seq, early)) = gone.find(|(_, entry)| kept(entry.at_us)) {
            let age_ms = (now_us - early.at_us) / 1_000;
            let detail = format!("{seat:?} trims {conversation} below {first_seq}; {seq} is {age_ms} ms old");
            self.broken(Invariant::NothingLost, now_us, detail);
        }
    }

    /// The same, in a copy of the store that was given up.
    pub fn appended_in_vain(&mut self, batch: &Batch) {
        for write in &batch.writes {
            match write {
                Write::Message(entry) => {
                    if let Some(deliver) = deliver_of(&entry.notify) {
                        self.loses(&deliver);
                    }
                }
                Write::GroupCreate { conversation, members: add, .. }
                | Write::Members { conversation, add, .. } => {
                    self.membership.change_in_vain(conversation, add);
                }
                _ => {}
            }
        }
    }

    fn loses(&mut self, deliver: &Deliver) {
        self.has_lost = true;
        self.lost.insert(deliver.message_id);
        if let Some(device) = self.device_of(deliver) {
            self.lost_own.insert((device, deliver.conversation.clone(), deliver.seq));
        }
    }

    fn regains(&mut self, deliver: &Deliver) {
        self.lost.remove(&deliver.message_id);
        self.restored.insert(deliver.message_id);
        if let Some(device) = self.device_of(deliver) {
            self.lost_own.remove(&(device, deliver.conversation.clone(), deliver.seq));
        }
    }

    fn device_of(&self, deliver: &Deliver) -> Option<usize> {
        let of = (&deliver.sender, &deliver.sender_device);
        self.names.iter().position(|(user, name)| (user, name) == of)
    }

    fn entry(&mut self, now_us: u64, epoch: u64, entry: &Entry) {
        let Entry { conversation, sender, device, stream, client_seq, seq, .. } = entry;
        if entry.epoch != epoch {
            let detail = format!("entry {seq} of {conversation} under {epoch}");
            self.broken(Invariant::OneWriter, now_us, detail);
        }
        let Some(deliver) = deliver_of(&entry.notify) else {
            let detail = format!("entry {seq} of {conversation} is no Deliver");
            return self.broken(Invariant::ShownIsStored, now_us, detail);
        };
        if *stream != 0 {
            let key = number_in(entry);
            let last = self.last_number(&key);
            if *client_seq > last + 1 {
                let detail = format!("{key:?} is stored after {last}");
                self.broken(Invariant::NumbersDense, now_us, detail);
            }
            if let Some(first) = self.keys.insert(key.clone(), *seq) {
                let detail = format!("{key:?} is stored as {first} and as {seq}");
                self.broken(Invariant::StoredOnce, now_us, detail);
            }
            let key = (conversation.clone(), sender.clone(), device.clone(), *stream);
            let number = number_of(&deliver.payload);
            let before = self.said.insert(key, number).unwrap_or(0);
            if before >= number {
                let detail =
                    format!("{sender}/{device}'s message {number} follows its {before} in {conversation}");
                self.broken(Invariant::StoredInOrder, now_us, detail);
            }
        }
        let members = self.membership.of(conversation).cloned();
        if *stream != 0 && members.as_ref().is_some_and(|members| !members.contains(sender)) {
            let detail = format!("{sender} says {seq} in {conversation} but is no member");
            self.broken(Invariant::MembersOnly, now_us, detail);
        }
        let kept = Kept { deliver, stream: *stream, members, at_us: now_us };
        self.logs.entry(conversation.clone()).or_default().insert(*seq, kept);
    }

    fn members_change(&mut self, conversation: &str, add: &[String], remove: &[String]) {
        self.membership.change(conversation, add, remove, self.logs.get(conversation));
    }

    /// Another copy of the store counts now: what is not in it is lost, and promises about that are void. What was lost before
    /// and is in it is back. It takes batches under claims of its own alone.
    pub fn fell_back(&mut self, model: &ModelStore) {
        self.has_fallen_back = true;
        self.current.clear();
        self.membership.gives_up(&self.logs);
        let mut before: BTreeMap<u64, Kept> = std::mem::take(&mut self.logs)
            .into_values()
            .flat_map(BTreeMap::into_values)
            .map(|kept| (kept.deliver.message_id, kept))
            .collect();
        self.keys.clear();
        for entry in model.logs.values().flat_map(|log| &log.entries) {
            let id = entry.message_id.0;
            let kept = before.remove(&id).or_else(|| {
                let grave = self.graves.remove(&id);
                let kept = grave.or_else(|| Kept::found(entry));
                kept.iter().for_each(|kept| self.regains(&kept.deliver));
                kept
            });
            let Some(kept) = kept else { continue };
            if entry.stream != 0 {
                self.keys.insert(number_in(entry), entry.seq);
            }
            self.logs.entry(entry.conversation.clone()).or_default().insert(entry.seq, kept);
        }
        for (id, kept) in before {
            self.loses(&kept.deliver);
            self.graves.insert(id, kept);
        }
        self.said.clear();
        for (conversation, log) in &self.logs {
            for Kept { deliver, stream, .. } in log.values().filter(|kept| kept.stream != 0) {
                let (sender, device) = (deliver.sender.clone(), deliver.sender_device.clone());
                self.said
                    .insert((conversation.clone(), sender, device, *stream), number_of(&deliver.payload));
            }
        }
        let Self { membership, logs, .. } = self;
        membership.fell_back(model, |group| head_of(logs.get(group)));
    }

    /// The end of a log.
    pub(crate) fn head(&self, conversation: &str) -> u64 {
        head_of(self.logs.get(conversation))
    }

    // ---- what devices send ----

    /// A device sends a message; the number by which it is settled.
    pub fn sends(&mut self, device: usize, conversation: &str, payload: Bytes) -> u64 {
        self.counts.sent += 1;
        self.sent.push(Sent { device, conversation: conversation.into(), payload, settled: false });
        self.sent.len() as u64 - 1
    }

    /// A message was acknowledged.
    pub fn acked(&mut self, now_us: u64, number: u64, ack: &SendAck) {
        self.counts.acked += 1;
        let Some(sent) = self.sent.get_mut(number as usize) else { return };
        sent.settled = true;
        let sent = sent.clone();
        self.own_acked(sent.device, &sent.conversation, ack.seq, ack.message_id);
        let (user, device) = &self.names[sent.device];
        if self.lost.contains(&ack.message_id) {
            return;
        }
        let kept = self.logs.get(&sent.conversation).and_then(|log| log.get(&ack.seq));
        let same = kept.is_some_and(|Kept { deliver, .. }| {
            (deliver.message_id, deliver.epoch) == (ack.message_id, ack.epoch)
                && (&deliver.sender, &deliver.sender_device) == (user, device)
                && deliver.payload == sent.payload
        });
        if !same {
            let detail = format!("{user}/{device} in {}: {ack:?}, the log has {kept:?}", sent.conversation);
            self.broken(Invariant::AckedIsStored, now_us, detail);
        }
    }

    /// A message was refused for good.
    pub fn refused(&mut self, number: u64) {
        self.counts.refused += 1;
        self.abandoned(number);
    }

    /// Whoever waited for the answer is gone.
    pub fn abandoned(&mut self, number: u64) {
        if let Some(sent) = self.sent.get_mut(number as usize) {
            sent.settled = true;
        }
    }

    // ---- what devices get ----

    /// What a device is sent or shown is in the log, and its user's business.
    pub(crate) fn judge(&mut self, now_us: u64, device: usize, deliver: &Deliver) {
        let (user, name) = self.names[device].clone();
        let kept = self.logs.get(&deliver.conversation).and_then(|log| log.get(&deliver.seq));
        let Some(kept) = kept.filter(|kept| kept.deliver == *deliver) else {
            if !self.lost.contains(&deliver.message_id) {
                let detail = format!("{user}/{name} got {deliver:?}, the log has {kept:?}");
                self.broken(Invariant::ShownIsStored, now_us, detail);
            }
            return;
        };
        let outside = match Conversation::parse(&deliver.conversation) {
            Some(Conversation::Direct(a, b)) => a != user && b != user,
            Some(Conversation::Group(_)) => !self.membership.may_be_shown(&user, kept),
            _ => false,
        };
        if outside {
            let (seq, conversation) = (deliver.seq, &deliver.conversation);
            let detail = format!("{user}/{name} got {seq} of {conversation} but was no member then");
            self.broken(Invariant::MembersOnly, now_us, detail);
        }
    }

    /// Whether an entry was sent by this device, which has the acknowledgement; or is in no log any more. What is read
    /// late may have been sent before the store lost its end: there it goes by what stood there then.
    pub(crate) fn is_own(&self, device: usize, conversation: &str, seq: u64) -> bool {
        let kept = self.logs.get(conversation).and_then(|log| log.get(&seq));
        kept.is_none_or(|kept| self.is_by(device, &kept.deliver))
            || self.lost_own.contains(&(device, conversation.to_owned(), seq))
    }

    pub(crate) fn is_by(&self, device: usize, deliver: &Deliver) -> bool {
        let (user, name) = &self.names[device];
        (&deliver.sender, &deliver.sender_device) == (user, name) && deliver.action() != Action::System
    }

    // ---- the end ----

    /// What is not right yet; `online`: devices that are logged in.
    pub fn unfinished(&self, online: &[bool]) -> Option<(Invariant, String)> {
        if let Some(sent) = self.sent.iter().find(|sent| !sent.settled) {
            let (user, device) = &self.names[sent.device];
            let detail =
                format!("{user}/{device} has no answer to {:?} in {}", sent.payload, sent.conversation);
            return Some((Invariant::AnsweredAtLast, detail));
        }
        for (device, (user, name)) in self.names.iter().enumerate() {
            if !online[device] {
                return Some((Invariant::AttachedAtLast, format!("{user}/{name} is not logged in")));
            }
            if let Some(group) = self.not_attached(device) {
                let detail = format!("{user}/{name} is not attached to {group}");
                return Some((Invariant::AttachedAtLast, detail));
            }
            if let Some(missing) = self.not_shown(device).or_else(|| self.not_told(device)) {
                return Some((Invariant::DeliveredAtLast, missing));
            }
        }
        None
    }
}

/// Where a log ends.
pub(crate) fn head_of(log: Option<&BTreeMap<u64, Kept>>) -> u64 {
    log.and_then(|log| log.last_key_value()).map_or(0, |(seq, _)| *seq)
}

fn number_in(entry: &Entry) -> Number {
    let Entry { conversation, sender, device, stream, client_seq, .. } = entry;
    (conversation.clone(), sender.clone(), device.clone(), *stream, *client_seq)
}

/// What the body of a Notify delivers.
fn deliver_of(body: &Bytes) -> Option<Deliver> {
    match Notify::decode(body.clone()).ok()?.event {
        Some(notify::Event::Deliver(deliver)) => Some(deliver),
        _ => None,
    }
}

/// The number that a device gave to a message: `user/device#number;`.
fn number_of(payload: &[u8]) -> u64 {
    let text = payload.split(|byte| *byte == b';').next().unwrap_or_default();
    let number = text.rsplit(|byte| *byte == b'#').next().and_then(|number| str::from_utf8(number).ok());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{GROUP, append, append_at, entry};

    #[test]
    fn what_is_trimmed_is_old() {
        for (retention_us, at_us, broken) in [(10, 9, true), (10, 10, false), (0, 10, true)] {
            let mut ledger = Ledger { retention_us, ..Ledger::default() };
            append(&mut ledger, 1, vec![Write::Message(entry((1, 1, 1)))]);
            append_at(&mut ledger, at_us, 2, vec![Write::Message(entry((2, 2, 2)))]);
            let trim = Write::Trim { conversation: GROUP.into(), first_seq: 2 };
            append_at(&mut ledger, at_us, 3, vec![trim]);
            let found = ledger.violation.map(|it| it.invariant);
            assert_eq!(found, broken.then_some(Invariant::NothingLost), "{retention_us} {at_us}");
        }
    }
}
