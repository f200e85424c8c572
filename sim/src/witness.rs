//! What only somebody sees who looks at the store and at processes at the same moment: whether what a device said is stored
//! once whatever stream it went on, lists before messages, cursors that the store keeps, and what is begun without a lease.
//!
//! Leases are judged by the store's time, which is the world's: whoever counts right stops before that. Where the store may
//! lose leases they are not judged, as nobody can know of it at once.

use std::collections::BTreeMap;

use millrace_dispatcher::core::action::Action;
use millrace_dispatcher::store::model::ModelStore;
use millrace_dispatcher::store::{Batch, Cursor, Entry, List, Work, Write};
use millrace_protocol::conversation::Conversation;
use millrace_protocol::ids::Partition;
use millrace_protocol::messages::client::{Notify, notify};
use millrace_protocol::prost::Message;

use crate::agenda::Seat;
use crate::ledger::{Invariant, Ledger};
use crate::outside::Outside;

/// The messages that are stored: where, whose, from which device, and the number that the device gave it.
#[derive(Debug, Default)]
pub struct Witness {
    stored: BTreeMap<(String, String, String, u64), u64>,
    /// By conversation, user and device (empty: what the user has read).
    cursors: BTreeMap<(String, String, String), Cursor>,
}

impl Witness {
    /// A batch was written; the model has it.
    pub fn appended(&mut self, ledger: &mut Ledger, model: &ModelStore, now_us: u64, batch: &Batch) {
        for write in &batch.writes {
            match write {
                Write::Message(entry) if entry.stream != 0 => {
                    self.judge_once(ledger, now_us, entry);
                    judge_lists(ledger, model, now_us, entry);
                }
                Write::Cursor { conversation, user, device, .. } => {
                    let key = (conversation.clone(), user.clone(), device.clone());
                    self.judge_cursor(ledger, model, now_us, key);
                }
                _ => {}
            }
        }
    }

    /// Another copy of the store counts now.
    pub fn fell_back(&mut self, ledger: &Ledger, model: &ModelStore) {
        let entries = model.logs.values().flat_map(|log| &log.entries);
        // What came back may have been sent anew meanwhile, on a stream that this copy does not know.
        let entries = entries.filter(|entry| !ledger.restored.contains(&entry.message_id.0));
        self.stored = entries.filter_map(|entry| Some((key(entry)?, entry.seq))).collect();
        self.cursors = model.cursors.clone();
    }

    fn judge_cursor(
        &mut self,
        ledger: &mut Ledger,
        model: &ModelStore,
        now_us: u64,
        key: (String, String, String),
    ) {
        let Some(kept) = model.cursors.get(&key).copied() else { return };
        let before = self.cursors.insert(key.clone(), kept).unwrap_or_default();
        if kept < before {
            let detail = format!("the store had {before:?} of {key:?}, and has {kept:?}");
            ledger.broken(Invariant::CursorsGrow, now_us, detail);
        }
    }

    fn judge_once(&mut self, ledger: &mut Ledger, now_us: u64, entry: &Entry) {
        let Some(key) = key(entry) else { return };
        if let Some(first) = self.stored.insert(key.clone(), entry.seq) {
            let detail = format!("{key:?} is stored as {first} and as {}", entry.seq);
            ledger.broken(Invariant::StoredOnce, now_us, detail);
        }
    }
}

fn key(entry: &Entry) -> Option<(String, String, String, u64)> {
    Some((entry.conversation.clone(), entry.sender.clone(), entry.device.clone(), number(entry)?))
}

/// The number in a text like "ann/phone#7;...": devices number what they say, whatever stream it goes on.
fn number(entry: &Entry) -> Option<u64> {
    let event = Notify::decode(entry.notify.clone()).ok()?.event?;
    let notify::Event::Deliver(deliver) = event else { return None };
    let text = std::str::from_utf8(&deliver.payload).ok()?;
    text.split_once('#')?.1.split(';').next()?.parse().ok()
}

fn judge_lists(ledger: &mut Ledger, model: &ModelStore, now_us: u64, entry: &Entry) {
    let Some(Conversation::Direct(a, b)) = Conversation::parse(&entry.conversation) else { return };
    let lists = |user: &str| {
        let list = model.lists.get(&(user.to_owned(), List::Directs));
        list.is_some_and(|list| list.contains_key(&entry.conversation))
    };
    if !(lists(a) && lists(b)) {
        let detail = format!("{} {} is in the log, and not in both lists", entry.conversation, entry.seq);
        ledger.broken(Invariant::ListedFirst, now_us, detail);
    }
}

/// A partition was taken from a holder who lives.
pub fn preempted(ledger: &mut Ledger, now_us: u64, partition: Partition, holder: &str, by: &str) {
    let detail = format!("{by} took partition {partition} from {holder}, which lives");
    ledger.broken(Invariant::LeaseHolds, now_us, detail);
}

/// A node's shard took something in and wants this done: nothing new is loaded without a lease.
pub fn node_acts(out: &mut Outside, node: &str, incarnation: u64, actions: &[Action]) {
    let loads =
        |action: &&Action| matches!(action, Action::Store(job) if matches!(job.work, Work::Load { .. }));
    if let Some(action) = actions.iter().find(loads)
        && !out.store.node_lease_is_live(out.now_us, node, incarnation)
    {
        let detail = format!("{node} has no lease and does {action:?}");
        out.ledger.broken(Invariant::LeaseHolds, out.now_us, detail);
    }
}

/// A partition is given up: its owner's last batch was to be answered before that.
pub fn gives_up(ledger: &mut Ledger, now_us: u64, seat: Seat, partition: Partition, answered_us: u64) {
    if answered_us > now_us {
        let detail = format!("{seat:?} gives partition {partition} up, a batch of which is not answered");
        ledger.broken(Invariant::HandedOver, now_us, detail);
    }
}

/// Somebody believes in its lease until a time of the world: no longer than the store does.
pub fn believes(out: &mut Outside, holder: &str, incarnation: u64, until_us: u64) {
    let granted_us = out.store.granted_until_us(holder, incarnation);
    if until_us > granted_us {
        let detail = format!("{holder} believes in its lease until {until_us}, the store until {granted_us}");
        out.ledger.broken(Invariant::LeaseHolds, out.now_us, detail);
    }
}

/// A gateway answered logins.
pub fn gateway_takes_logins(out: &mut Outside, gateway: u16) {
    if !out.store.gateway_lease_is_live(out.now_us, gateway) {
        let detail = format!("gateway {gateway} has no lease and takes a login");
        out.ledger.broken(Invariant::LeaseHolds, out.now_us, detail);
    }
}
