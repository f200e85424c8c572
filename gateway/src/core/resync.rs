//! Direct messages that may have been lost with a link: sessions are told to look.
//!
//! A shard that listens to a group finds out what it missed when it subscribes again. Nobody subscribes to a direct
//! conversation: its owner sends each message to the sessions that it knows of. When the state of a link was dropped (it
//! stayed away too long, or too much waited for it) such messages may be gone, though both processes live on. The rule
//! that keeps it right: whenever a link begins anew and its records were not all taken over by its peer's successor, every
//! session that acknowledges is told, at a bounded rate, to look at its direct conversations. So it is when an owner has its
//! claim from another copy of the store than the one before: what that one acknowledged or said last may be lost, and a
//! session that looked earlier, when it registered again, may have been answered by it. Routes are lost like that, too: the
//! sessions of its users are registered again.

use millrace_protocol::ids::user_partition;
use millrace_protocol::messages::client::{Resync, notify};

use super::limits::{LINK_STATE_KEPT_US, RESYNC_PER_S};
use super::partitions::Partitions;
use super::session::*;
use super::shard::Shard;
use super::uplink::Node;

/// The sweep over a shard's sessions: round and round, until all were told since it was last asked for.
#[derive(Debug)]
pub(super) struct Sweep {
    /// The next slot.
    next: u32,
    /// So many slots, from there on, are still to be looked at.
    left: u32,
    /// Partitions whose users' sessions are registered again.
    moved: Partitions,
    rate: super::admission::Rate,
}

impl Sweep {
    pub(super) fn new() -> Self {
        Sweep {
            next: 0,
            left: 0,
            moved: Partitions::default(),
            rate: super::admission::Rate::new(RESYNC_PER_S),
        }
    }

    /// All sessions are to be told from now on, those again that were a moment ago.
    pub(super) fn begin(&mut self, slots: u32) {
        self.left = slots;
    }

    /// The same, and those of this partition's users are to be registered again.
    pub(super) fn begin_moved(&mut self, partition: u16, slots: u32) {
        self.moved.insert(partition);
        self.begin(slots);
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.left > 0
    }
}

/// What a shard remembers of a node's last connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Last {
    /// The node's process; 0: it was never up.
    incarnation: u64,
    /// Since when it is away: it was lost, or first heard of.
    away_since_us: u64,
}

impl Node {
    /// The transport is gone.
    pub(super) fn note_lost(&mut self, now_us: u64) {
        if self.link.is_up() {
            self.last.away_since_us = now_us;
        }
    }

    /// The node was heard of.
    pub(super) fn note_found(&mut self, now_us: u64) {
        self.last.away_since_us = now_us;
    }

    /// The link is up, anew. Returns whether messages for single sessions may be gone: not when the node died soon after the
    /// connection, as whoever took its partitions over fans out again what it had not; and not when it is another process
    /// that was found in time, as it keeps what it has for this shard as long.
    pub(super) fn may_have_lost(&mut self, incarnation: u64, now_us: u64) -> bool {
        let last = std::mem::replace(&mut self.last, Last { incarnation, away_since_us: 0 });
        let kept = now_us.saturating_sub(last.away_since_us) < LINK_STATE_KEPT_US;
        last.incarnation == incarnation || !kept
    }
}

impl Shard {
    /// Tells a few sessions more.
    pub(super) fn turn_resync(&mut self) {
        while self.resync.is_under_way() && self.resync.rate.take(self.now.mono_us) {
            let Sweep { next, left, .. } = self.resync;
            let (passed, next) = match self.sessions.next_used(next) {
                Some(slot) => (slot + 1 - next, slot + 1),
                None => (self.sessions.end().saturating_sub(next), 0),
            };
            self.resync.next = next;
            self.resync.left = left.saturating_sub(passed.max(1));
            if next > 0 && passed <= left {
                match self.is_of_moved(next - 1) {
                    // It is told to look when that is done.
                    true => self.register_live(next - 1),
                    false => self.look_at_directs(next - 1),
                }
            }
        }
        if !self.resync.is_under_way() {
            self.resync.moved = Partitions::default();
        }
    }

    /// Whether a session's route was in a copy of the store that was given up.
    fn is_of_moved(&self, slot: u32) -> bool {
        if self.resync.moved.is_empty() {
            return false;
        }
        let named = self.sessions.get(slot).filter(|session| session.is_named());
        named.is_some_and(|session| {
            let user = self.users.text(session.user);
            self.resync.moved.contains(user_partition(user, self.config.partitions))
        })
    }

    /// A session may have missed messages of direct conversations: it is told to look.
    pub(super) fn look_at_directs(&mut self, slot: u32) {
        let Some(session) = self.sessions.get(slot) else { return };
        if session.state == State::Live && session.is(ACKNOWLEDGES) {
            self.stats.resyncs_swept += 1;
            self.notify(slot, notify::Event::Resync(Resync { conversations: Vec::new() }));
        }
    }
}
