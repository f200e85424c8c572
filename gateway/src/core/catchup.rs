//! Sessions that catch up with a group by pages (Sync).
//!
//! The rule: a session is sent seq n only after n - 1. While pages bring what it missed, live copies would come too early:
//! so it listens no more from the first page that says that there are more, and again as of the head of the last one
//! (`joined`). Nothing is kept of it in between: a client that never asks for the rest, is removed or leaves has left
//! nothing to be cleared up. Rooms and direct conversations have nobody to take out.

use millrace_protocol::planted::{self, Fault};

use super::shard::Shard;
use super::subscriptions::group_id;

impl Shard {
    /// A page with more to come is on its way to this session.
    pub(super) fn syncing(&mut self, slot: u32, conversation: &str) {
        if planted::is(Fault::LiveWhileSyncing) {
            return;
        }
        let Some(conversation) = group_id(conversation) else { return };
        let Some(topic) = self.conversations.find(&conversation) else { return };
        let capacity = self.config.slots_max;
        let Some(it) = self.topics.get_mut(topic) else { return };
        let mut waits = false;
        for waiter in it.waiters.iter_mut().filter(|waiter| waiter.conn.slot == slot) {
            (waiter.catches_up, waits) = (true, true);
        }
        if waits {
            // It was promised a Head at login, and is told it; but not attached by that.
            it.members.remove(slot, capacity);
            it.fan.left(slot);
            self.owed_forget(slot, topic);
        }
        if waits || self.detach(topic, slot) {
            self.stats.syncing += 1;
        }
    }
}
