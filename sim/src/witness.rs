//! What only somebody sees who looks at the store and at processes at the same moment: lists before messages, cursors that
//! move back, and what is begun without a lease.
//!
//! Leases are judged by the store's time, which is the world's: whoever counts right stops before that.

use std::collections::BTreeMap;

use millrace_dispatcher::core::action::Action;
use millrace_dispatcher::store::model::ModelStore;
use millrace_dispatcher::store::{Batch, Cursor, List, Work, Write};
use millrace_protocol::conversation::Conversation;
use millrace_protocol::ids::Partition;

use crate::ledger::{Invariant, Ledger};
use crate::outside::Outside;

/// The cursors that a batch writes, as they were before it.
pub type Before = BTreeMap<(String, String, String), Cursor>;

/// Those cursors.
pub fn before(model: &ModelStore, batch: &Batch) -> Before {
    let mut before = Before::new();
    for write in &batch.writes {
        if let Write::Cursor { conversation, user, device, .. } = write {
            let key = (conversation.clone(), user.clone(), device.clone());
            let cursor = model.cursors.get(&key).copied().unwrap_or_default();
            before.insert(key, cursor);
        }
    }
    before
}

/// A batch was written.
pub fn appended(ledger: &mut Ledger, model: &ModelStore, now_us: u64, batch: &Batch, before: &Before) {
    for write in &batch.writes {
        let Write::Message(entry) = write else { continue };
        let Some(Conversation::Direct(a, b)) = Conversation::parse(&entry.conversation) else { continue };
        let lists = |user: &str| {
            let list = model.lists.get(&(user.to_owned(), List::Directs));
            list.is_some_and(|list| list.contains_key(&entry.conversation))
        };
        if entry.stream != 0 && !(lists(a) && lists(b)) {
            let detail = format!("{} {} is in the log, and not in both lists", entry.conversation, entry.seq);
            ledger.broken(Invariant::ListedFirst, now_us, detail);
        }
    }
    for (key, before) in before {
        let after = model.cursors.get(key).copied().unwrap_or_default();
        if after < *before {
            let detail = format!("{key:?} was {before:?} and is {after:?}");
            ledger.broken(Invariant::CursorsGrow, now_us, detail);
        }
    }
}

/// A partition was taken from a holder who lives.
pub fn preempted(ledger: &mut Ledger, now_us: u64, partition: Partition, holder: &str, by: &str) {
    let detail = format!("{by} took partition {partition} from {holder}, which lives");
    ledger.broken(Invariant::LeaseHolds, now_us, detail);
}

/// A node's shard took something in and wants this done: nothing new is loaded without a lease.
pub fn node_acts(out: &mut Outside, node: &str, incarnation: u64, actions: &[Action]) {
    let loads = |action: &&Action| matches!(action, Action::Store(job) if matches!(job.work, Work::Load { .. }));
    if let Some(action) = actions.iter().find(loads)
        && !out.store.node_lease_is_live(out.now_us, node, incarnation)
    {
        let detail = format!("{node} has no lease and does {action:?}");
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
