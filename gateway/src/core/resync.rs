//! Direct messages that may have been lost with a link: sessions are told to look.
//!
//! A shard that listens to a group finds out what it missed when it subscribes again. Nobody subscribes to a direct
//! conversation: its owner sends each message to the sessions that it knows of. When the state of a link was dropped (it
//! stayed away too long, or too much waited for it) such messages may be gone, though both processes live on. The rule
//! that keeps it right: whenever a link begins anew and its records were not all taken over by its peer's successor, every
//! session that acknowledges is told, at a bounded rate, to look at its direct conversations.

use millrace_protocol::messages::client::{Resync, notify};

use super::limits::{LINK_STATE_KEPT_US, RESYNC_PER_S};
use super::session::*;
use super::shard::Shard;
use super::uplink::Node;

/// The sweep over a shard's sessions.
#[derive(Debug)]
pub(super) struct Sweep {
    /// The next slot; `None`: nothing is to be told.
    at: Option<u32>,
    rate: super::admission::Rate,
}

impl Sweep {
    pub(super) fn new() -> Self {
        Sweep { at: None, rate: super::admission::Rate::new(RESYNC_PER_S) }
    }

    /// From the first session on, again if it is under way.
    pub(super) fn begin(&mut self) {
        self.at = Some(0);
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.at.is_some()
    }
}

/// What a shard remembers of a node's last connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Last {
    /// The node's process; 0: it was never up.
    incarnation: u64,
    /// When it was lost, or first heard of.
    lost_us: u64,
}

impl Node {
    /// The transport is gone.
    pub(super) fn note_lost(&mut self, now_us: u64) {
        if self.link.is_up() {
            self.last.lost_us = now_us;
        }
    }

    /// The node was heard of.
    pub(super) fn note_found(&mut self, now_us: u64) {
        self.last.lost_us = now_us;
    }

    /// The link is up, anew. Returns whether messages for single sessions may be gone: not when the node died soon after the
    /// connection, as whoever took its partitions over fans out again what it had not; and not when it is another process
    /// that was found in time, as it keeps what it has for this shard as long.
    pub(super) fn may_have_lost(&mut self, incarnation: u64, now_us: u64) -> bool {
        let last = std::mem::replace(&mut self.last, Last { incarnation, lost_us: 0 });
        let kept = now_us.saturating_sub(last.lost_us) < LINK_STATE_KEPT_US;
        last.incarnation == incarnation || !kept
    }
}

impl Shard {
    /// Tells a few sessions more.
    pub(super) fn turn_resync(&mut self) {
        let Some(mut at) = self.resync.at.take() else { return };
        while self.resync.rate.take(self.now.mono_us) {
            let Some(slot) = self.sessions.next_used(at) else { return };
            at = slot + 1;
            let session = self.sessions.get(slot).expect("used");
            if session.state == State::Live && session.is(ACKNOWLEDGES) {
                self.stats.resyncs_swept += 1;
                self.notify(slot, notify::Event::Resync(Resync { conversations: Vec::new() }));
            }
        }
        self.resync.at = Some(at);
    }
}
