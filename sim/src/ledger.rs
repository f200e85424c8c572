//! What was promised, and whether it is kept: every append, acknowledgement and message shown is noted here and judged
//! at once.
//!
//! It looks at the world from outside: at what the store accepted and what devices were told. The first broken promise
//! ends the run. The names of the invariants are those of [`Invariant`].

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use millrace_dispatcher::store::model::ModelStore;
use millrace_dispatcher::store::{Batch, Write};
use millrace_protocol::conversation::Conversation;
use millrace_protocol::ids::Partition;
use millrace_protocol::messages::client::{Deliver, SendAck};

use crate::agenda::{Seat, Who};

/// What must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// What was acknowledged is in the log, as it was sent.
    AckedIsStored,
    /// What anybody is shown is in the log, as it is there.
    ShownIsStored,
    /// A message is in the log once.
    StoredOnce,
    /// A direct conversation is in both users' lists before its first message.
    ListedFirst,
    /// Nobody begins anything without a lease, and nobody loses a partition while it has one.
    LeaseHolds,
    /// Nobody is shown a message twice.
    ShownOnce,
    /// A session is told of a conversation without holes, in order.
    Contiguous,
    /// Only members are shown what is said among members.
    MembersOnly,
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
    /// Everything reaches everyone in the end.
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
struct Kept {
    message_id: u64,
    epoch: u64,
    sender: String,
    device: String,
    notify: Bytes,
    members: Option<Rc<BTreeSet<String>>>,
}

/// A message that a device sends.
#[derive(Clone, Debug)]
struct Sent {
    device: usize,
    conversation: String,
    payload: Bytes,
    settled: bool,
}

/// Where a session stands in a conversation that it listens to.
#[derive(Clone, Copy, Debug)]
struct Attached {
    at: u64,
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
    /// Delivered again and not shown.
    pub repeated: u64,
    /// Gaps told.
    pub gaps: u64,
    /// Claims that held.
    pub claims: u64,
    /// Links reset for an error.
    pub link_resets: u64,
    /// Logins that succeeded.
    pub logins: u64,
    /// Sessions closed because a newer login took their place, while they were their device's newest.
    pub displaced: u64,
}

type LogKey = (String, u64);

/// See the module's head.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The first broken promise.
    pub violation: Option<Violation>,
    /// For reports.
    pub counts: Counts,
    log: BTreeMap<LogKey, Kept>,
    heads: BTreeMap<String, u64>,
    /// (conversation, user, device, stream, client_seq) of everything in the log.
    keys: BTreeMap<(String, String, String, u64, u64), u64>,
    members: BTreeMap<String, Rc<BTreeSet<String>>>,
    writers: BTreeMap<(Partition, u64), (Who, u32)>,
    claimed: BTreeMap<Partition, u64>,
    /// Message ids that a failover took out of the log.
    lost: BTreeSet<u64>,
    sent: Vec<Sent>,
    shown: Vec<BTreeSet<u64>>,
    /// By device: its present session's conversations.
    attached: Vec<BTreeMap<String, Attached>>,
    names: Vec<(String, String)>,
    /// The last reason for which a link was reset.
    pub last_reset: Option<(u64, String)>,
}

impl Ledger {
    /// A device of a user.
    pub fn add_device(&mut self, user: &str, device: &str) {
        self.names.push((user.into(), device.into()));
        self.shown.push(BTreeSet::new());
        self.attached.push(BTreeMap::new());
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
    }

    /// The store accepted a batch.
    pub fn appended(&mut self, now_us: u64, seat: Seat, batch: &Batch) {
        let (partition, epoch) = (batch.partition, batch.fence.epoch);
        let highest = self.claimed.get(&partition).copied().unwrap_or(0);
        if epoch != highest {
            let detail = format!("{seat:?} wrote partition {partition} under {epoch}; claimed is {highest}");
            self.broken(Invariant::OneWriter, now_us, detail);
        }
        let writer = *self.writers.entry((partition, epoch)).or_insert((seat.who, seat.life));
        if writer != (seat.who, seat.life) {
            let detail = format!("{seat:?} wrote partition {partition} under {epoch}, as {writer:?} did");
            self.broken(Invariant::OneWriter, now_us, detail);
        }
        for write in &batch.writes {
            match write {
                Write::Message(entry) => {
                    if entry.epoch != epoch {
                        let detail = format!("entry {} of {} under {epoch}", entry.seq, entry.conversation);
                        self.broken(Invariant::OneWriter, now_us, detail);
                    }
                    if entry.stream != 0 {
                        let key = (
                            entry.conversation.clone(),
                            entry.sender.clone(),
                            entry.device.clone(),
                            entry.stream,
                            entry.client_seq,
                        );
                        if let Some(first) = self.keys.insert(key.clone(), entry.seq) {
                            let detail = format!("{key:?} is stored as {first} and as {}", entry.seq);
                            self.broken(Invariant::StoredOnce, now_us, detail);
                        }
                    }
                    let kept = Kept {
                        message_id: entry.message_id.0,
                        epoch: entry.epoch,
                        sender: entry.sender.clone(),
                        device: entry.device.clone(),
                        notify: entry.notify.clone(),
                        members: self.members.get(&entry.conversation).cloned(),
                    };
                    self.heads.insert(entry.conversation.clone(), entry.seq);
                    self.log.insert((entry.conversation.clone(), entry.seq), kept);
                }
                Write::GroupCreate { conversation, members, .. } => {
                    self.members.insert(conversation.clone(), Rc::new(members.iter().cloned().collect()));
                }
                Write::Members { conversation, add, remove, .. } => {
                    let mut members =
                        self.members.get(conversation).map(|members| (**members).clone()).unwrap_or_default();
                    members.extend(add.iter().cloned());
                    members.retain(|member| !remove.contains(member));
                    self.members.insert(conversation.clone(), Rc::new(members));
                }
                _ => {}
            }
        }
    }

    /// The store lost what is not in this copy of it. Promises about that are void.
    pub fn fell_back(&mut self, model: &ModelStore) {
        let there = |conversation: &str, seq: u64, id: u64| {
            model.logs.get(conversation).is_some_and(|log| {
                let index = seq.checked_sub(log.trimmed + 1);
                index
                    .and_then(|index| log.entries.get(index as usize))
                    .is_some_and(|entry| entry.message_id.0 == id)
            })
        };
        let lost = &mut self.lost;
        self.log.retain(|(conversation, seq), kept| {
            let stays = there(conversation, *seq, kept.message_id);
            if !stays {
                lost.insert(kept.message_id);
            }
            stays
        });
        let log = &self.log;
        self.keys.retain(|key, seq| log.contains_key(&(key.0.clone(), *seq)));
        self.heads = model.logs.iter().map(|(name, log)| (name.clone(), log.head())).collect();
        self.members =
            model.groups.iter().map(|(name, (members, _))| (name.clone(), Rc::new(members.clone()))).collect();
    }

    // ---- devices ----

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
        let (user, device) = &self.names[sent.device];
        if self.lost.contains(&ack.message_id) {
            return;
        }
        let kept = self.log.get(&(sent.conversation.clone(), ack.seq));
        let same = kept.is_some_and(|kept| {
            kept.message_id == ack.message_id
                && kept.epoch == ack.epoch
                && (&kept.sender, &kept.device) == (user, device)
                && contains(&kept.notify, &sent.payload)
        });
        if !same {
            let detail = format!("{user}/{device} in {}: {ack:?}, the log has {kept:?}", sent.conversation);
            self.broken(Invariant::AckedIsStored, now_us, detail);
        }
    }

    /// A message was refused for good.
    pub fn refused(&mut self, number: u64) {
        self.counts.refused += 1;
        if let Some(sent) = self.sent.get_mut(number as usize) {
            sent.settled = true;
        }
    }

    /// A device's new session begins.
    pub fn session_begins(&mut self, device: usize) {
        self.counts.logins += 1;
        self.attached[device].clear();
    }

    /// Everything after `head` will be delivered to this session.
    pub fn attached(&mut self, device: usize, conversation: &str, head: u64, anew: bool) {
        let at = self.attached[device].entry(conversation.into()).or_insert(Attached { at: head });
        if anew {
            at.at = head;
        }
    }

    /// Nothing more will come.
    pub fn detached(&mut self, device: usize, conversation: &str) {
        self.attached[device].remove(conversation);
    }

    /// These will not come.
    pub fn gap(&mut self, device: usize, conversation: &str, to: u64) {
        self.counts.gaps += 1;
        if let Some(attached) = self.attached[device].get_mut(conversation) {
            attached.at = attached.at.max(to);
        }
    }

    /// A device is sent a message; `new`: it shows it.
    pub fn delivered(&mut self, now_us: u64, device: usize, deliver: &Deliver, new: bool) {
        let (user, name) = self.names[device].clone();
        let key = (deliver.conversation.clone(), deliver.seq);
        let is_lost = self.lost.contains(&deliver.message_id);
        if let Some(kept) = self.log.get(&key).filter(|kept| kept.message_id == deliver.message_id) {
            let same = (&kept.sender, &kept.device, kept.epoch)
                == (&deliver.sender, &deliver.sender_device, deliver.epoch)
                && contains(&kept.notify, &deliver.payload);
            if !same {
                let detail = format!("{user}/{name} got {deliver:?}, the log has {kept:?}");
                self.broken(Invariant::ShownIsStored, now_us, detail);
            }
        } else if !is_lost {
            let detail = format!("{user}/{name} got {deliver:?}, the log has {:?}", self.log.get(&key));
            return self.broken(Invariant::ShownIsStored, now_us, detail);
        }
        self.judge_audience(now_us, device, deliver);
        self.judge_order(now_us, device, deliver);
        if !new {
            self.counts.repeated += 1;
            return;
        }
        self.counts.shown += 1;
        if !self.shown[device].insert(deliver.message_id) {
            let detail = format!("{user}/{name} is shown {} {} again", deliver.conversation, deliver.seq);
            self.broken(Invariant::ShownOnce, now_us, detail);
        }
    }

    fn judge_audience(&mut self, now_us: u64, device: usize, deliver: &Deliver) {
        let (user, name) = &self.names[device];
        // A member again may be shown what was said while it was away: it could read that up as well.
        let again = self.members.get(&deliver.conversation).is_some_and(|members| members.contains(user));
        let members = self
            .log
            .get(&(deliver.conversation.clone(), deliver.seq))
            .and_then(|kept| kept.members.clone())
            .filter(|_| !again);
        let outside = match Conversation::parse(&deliver.conversation) {
            Some(Conversation::Direct(a, b)) => a != user && b != user,
            Some(Conversation::Group(_)) => members.is_some_and(|members| !members.contains(user)),
            _ => false,
        };
        if outside {
            let detail = format!(
                "{user}/{name} got {} of {} but was no member then",
                deliver.seq, deliver.conversation
            );
            self.broken(Invariant::MembersOnly, now_us, detail);
        }
    }

    fn judge_order(&mut self, now_us: u64, device: usize, deliver: &Deliver) {
        if deliver.conversation.starts_with("d:") {
            return;
        }
        let (user, name) = self.names[device].clone();
        let Some(Attached { at }) = self.attached[device].get(&deliver.conversation).copied() else {
            let detail =
                format!("{user}/{name} got {} of {}, not attached", deliver.seq, deliver.conversation);
            return self.broken(Invariant::Contiguous, now_us, detail);
        };
        let hole = (at + 1..deliver.seq).find(|seq| !self.is_own(device, &deliver.conversation, *seq));
        if deliver.seq <= at && self.lost.is_empty() || hole.is_some() {
            let detail = format!(
                "{user}/{name} got {} of {} after {at}; missing {hole:?}",
                deliver.seq, deliver.conversation
            );
            self.broken(Invariant::Contiguous, now_us, detail);
        }
        self.attached[device].insert(deliver.conversation.clone(), Attached { at: deliver.seq });
    }

    /// Sent by this device: it has the acknowledgement.
    fn is_own(&self, device: usize, conversation: &str, seq: u64) -> bool {
        let (user, name) = &self.names[device];
        self.log
            .get(&(conversation.to_owned(), seq))
            .is_none_or(|kept| (&kept.sender, &kept.device) == (user, name))
    }

    // ---- the end ----

    /// What is not right yet; `online`: devices that are logged in. Groups that a user is in: as the store has them.
    pub fn unfinished(&self, online: &[bool], groups: bool) -> Option<(Invariant, String)> {
        if let Some(sent) = self.sent.iter().find(|sent| !sent.settled) {
            let (user, device) = &self.names[sent.device];
            let detail = format!("{user}/{device} has no answer to {:?} in {}", sent.payload, sent.conversation);
            return Some((Invariant::AnsweredAtLast, detail));
        }
        for (device, (user, name)) in self.names.iter().enumerate() {
            if !online[device] {
                return Some((Invariant::AttachedAtLast, format!("{user}/{name} is not logged in")));
            }
            for (group, members) in &self.members {
                let should = members.contains(user);
                if groups && should && !self.attached[device].contains_key(group) {
                    return Some((
                        Invariant::AttachedAtLast,
                        format!("{user}/{name} is not attached to {group}"),
                    ));
                }
            }
            for (conversation, Attached { at }) in &self.attached[device] {
                let head = self.heads.get(conversation).copied().unwrap_or(0);
                let missing = (at + 1..=head).find(|seq| !self.is_own(device, conversation, *seq));
                if let Some(seq) = missing {
                    let detail = format!("{user}/{name} was not sent {seq} of {conversation}");
                    return Some((Invariant::DeliveredAtLast, detail));
                }
            }
        }
        None
    }

    /// Messages sent so far.
    pub fn sent_count(&self) -> usize {
        self.sent.len()
    }

    /// Of the direct messages sent from number `from` on: one that some device of its users was not shown.
    pub fn undelivered_direct(&self, from: usize) -> Option<String> {
        let recent: BTreeMap<&[u8], &Sent> =
            self.sent[from..].iter().map(|sent| (&sent.payload[..], sent)).collect();
        for ((conversation, seq), kept) in &self.log {
            let Some(Conversation::Direct(a, b)) = Conversation::parse(conversation) else { continue };
            let ours = recent
                .iter()
                .any(|(payload, sent)| &sent.conversation == conversation && contains(&kept.notify, payload));
            if !ours {
                continue;
            }
            for (device, (user, name)) in self.names.iter().enumerate() {
                let own = (user, name) == (&kept.sender, &kept.device);
                if (user == a || user == b) && !own && !self.shown[device].contains(&kept.message_id) {
                    return Some(format!("{user}/{name} was not shown {seq} of {conversation}"));
                }
            }
        }
        None
    }
}

fn contains(body: &Bytes, payload: &[u8]) -> bool {
    payload.is_empty() || body.windows(payload.len()).any(|window| window == payload)
}
