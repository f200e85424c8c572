//! What became of direct messages whose sender asked ([`crate::SendOptions::fate_within`]).
//!
//! The server says it once, to the session that sent the message: an owner that stops, a connection that breaks and a
//! link without credit lose it. So the time is counted here too, across connections, and receipts are listened to. The
//! rule that keeps it right: of every message that was acknowledged the application is told once. The first word counts:
//! of the server, of a receipt, or, when the time and [`GRACE_MS`] are over, that it was not delivered. What says
//! otherwise later is not told here; a receipt says it. Who waits is lost with the process.

use std::collections::{BTreeMap, VecDeque};

use millrace_protocol::conversation::Conversation;
use millrace_protocol::messages::client::Fate;

use super::told::Told;
use crate::event::Event;

/// The longest time that the server waits, ms.
const WITHIN_MS_MAX: u32 = 60_000;

/// How long behind its time the server's word is waited for, ms: its way here, on a slow line too.
pub(super) const GRACE_MS: u64 = 5_000;

/// Messages that are waited for. Of a further one it is told at once that it was not delivered in time, as servers do.
pub(super) const WAITING_MAX: usize = 4_096;

/// Fates kept that came before their messages' acknowledgements; the oldest makes room.
const EARLY_MAX: usize = 64;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Fates {
    user: String,
    /// By conversation and seq: until when, ms.
    waiting: BTreeMap<(String, u64), u64>,
    /// No time is over before this.
    low_ms: u64,
    /// Fates of messages that were not acknowledged yet.
    early: VecDeque<Fate>,
    /// The server's word may be in the socket, which was not read until [`GRACE_MS`] before this.
    not_before_ms: u64,
}

impl Default for Fates {
    fn default() -> Self {
        Fates {
            user: String::new(),
            waiting: BTreeMap::new(),
            low_ms: u64::MAX,
            early: VecDeque::new(),
            not_before_ms: 0,
        }
    }
}

impl Fates {
    pub(super) fn connected(&mut self, user: &str) {
        self.user = user.into();
    }

    /// A message whose sender asked was acknowledged just now.
    pub(super) fn asked(
        &mut self,
        conversation: &str,
        seq: u64,
        within_ms: u32,
        now_ms: u64,
        told: &mut Told,
    ) {
        if !matches!(Conversation::parse(conversation), Some(Conversation::Direct(..))) {
            return;
        }
        let is_it = |fate: &Fate| fate.conversation == conversation && fate.seq == seq;
        if let Some(index) = self.early.iter().position(is_it) {
            self.early.remove(index).into_iter().for_each(|fate| told.tell(Event::Fate(fate)));
            return;
        }
        let key = (conversation.to_owned(), seq);
        // Another message had this number, in an end of the log that the store lost.
        if self.waiting.remove(&key).is_some() {
            tell(told, key.clone(), false);
        }
        if self.waiting.len() >= WAITING_MAX {
            return tell(told, key, false);
        }
        let until_ms = now_ms + u64::from(within_ms.min(WITHIN_MS_MAX)) + GRACE_MS;
        self.low_ms = self.low_ms.min(until_ms);
        self.waiting.insert(key, until_ms);
    }

    /// Nothing of this conversation that asks is under way any more: what came early was of another message.
    pub(super) fn forget_early(&mut self, conversation: &str) {
        self.early.retain(|fate| fate.conversation != conversation);
    }

    /// The server's word. `may_be_early`: a message that asks is under way in that conversation.
    pub(super) fn heard(&mut self, fate: Fate, may_be_early: bool, told: &mut Told) {
        let key = (fate.conversation, fate.seq);
        if self.waiting.remove(&key).is_some() {
            tell(told, key, fate.delivered);
        } else if may_be_early {
            if self.early.len() >= EARLY_MAX {
                self.early.pop_front();
            }
            self.early.push_back(Fate { conversation: key.0, seq: key.1, delivered: fate.delivered });
        }
    }

    /// A user has everything of a conversation up to a seq.
    pub(super) fn receipt(&mut self, conversation: &str, user: &str, through: u64, told: &mut Told) {
        if user != self.user {
            self.reached(conversation, through, told);
        }
    }

    /// The other side has everything up to a seq, where there is another one.
    pub(super) fn reached(&mut self, conversation: &str, through: u64, told: &mut Told) {
        if self.waiting.is_empty() {
            return;
        }
        match Conversation::parse(conversation) {
            Some(Conversation::Direct(a, b)) if a != b => {}
            _ => return,
        }
        let reached = (conversation.to_owned(), 0)..=(conversation.to_owned(), through);
        let reached: Vec<_> = self.waiting.range(reached).map(|(key, _)| key.clone()).collect();
        for key in reached {
            self.waiting.remove(&key);
            tell(told, key, true);
        }
    }

    /// Tells those whose time is over; but not while nothing is read, as the server's word may be there.
    pub(super) fn due(&mut self, now_ms: u64, reads: bool, told: &mut Told) {
        if !reads {
            self.not_before_ms = now_ms + GRACE_MS;
        }
        if self.low_ms.max(self.not_before_ms) > now_ms {
            return;
        }
        self.low_ms = u64::MAX;
        self.waiting.retain(|key, until_ms| {
            let waits = *until_ms > now_ms;
            match waits {
                true => self.low_ms = self.low_ms.min(*until_ms),
                false => tell(told, key.clone(), false),
            }
            waits
        });
    }

    /// The client is at its end: nothing more will be heard.
    pub(super) fn abandon(&mut self, told: &mut Told) {
        std::mem::take(&mut self.waiting).into_keys().for_each(|key| tell(told, key, false));
    }

    /// When [`Fates::due`] may have something to tell.
    pub(super) fn next_ms(&self) -> Option<u64> {
        (!self.waiting.is_empty()).then(|| self.low_ms.max(self.not_before_ms))
    }
}

fn tell(told: &mut Told, (conversation, seq): (String, u64), delivered: bool) {
    told.tell(Event::Fate(Fate { conversation, seq, delivered }));
}
