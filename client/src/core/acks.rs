//! When the server is told what the application has taken: soon, and seldom. A DeliverAck is cumulative, so one that
//! waits a little says everything that was taken meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use millrace_protocol::messages::client::Cursor;

/// From taking to telling, ms. Far below the server's patience (seconds), and long enough for a burst.
const DELAY_MS: u64 = 400;

/// Between two for one conversation, ms: the protocol's minimum.
pub(super) const INTERVAL_MS: u64 = 2_000;

const _: () = assert!(DELAY_MS <= INTERVAL_MS);

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Acks {
    due: BTreeSet<(u64, String)>,
    due_of: BTreeMap<String, u64>,
    /// What the server was told on this connection, and when; 0: it knew.
    told: BTreeMap<String, (Cursor, u64)>,
}

impl Acks {
    /// The application has taken up to `cursor`: the server is to know it.
    pub(super) fn schedule(&mut self, conversation: &str, cursor: Cursor, now_ms: u64) {
        let last = self.told.get(conversation);
        if cursor.seq == 0 {
            return;
        }
        if self.due_of.contains_key(conversation) || last.is_some_and(|(told, _)| *told == cursor) {
            return;
        }
        let earliest = last.map_or(0, |(_, at_ms)| at_ms + INTERVAL_MS * u64::from(*at_ms > 0));
        let at_ms = earliest.max(now_ms + DELAY_MS);
        self.due.insert((at_ms, conversation.into()));
        self.due_of.insert(conversation.into(), at_ms);
    }

    /// The server says that it knows `cursor` already.
    pub(super) fn known(&mut self, conversation: &str, cursor: Cursor) {
        self.unschedule(conversation);
        self.told.entry(conversation.into()).or_insert((cursor, 0)).0 = cursor;
    }

    /// The next conversation to be acknowledged now. Call [`Acks::sent`] with what was said.
    pub(super) fn next(&mut self, now_ms: u64) -> Option<String> {
        let (at_ms, _) = self.due.first()?;
        if *at_ms > now_ms {
            return None;
        }
        let (_, conversation) = self.due.pop_first()?;
        self.due_of.remove(&conversation);
        Some(conversation)
    }

    pub(super) fn sent(&mut self, conversation: &str, cursor: Cursor, now_ms: u64) {
        self.told.insert(conversation.into(), (cursor, now_ms));
    }

    /// Everything that waits is due at once: the client is about to leave.
    pub(super) fn hurry(&mut self) {
        self.due_of.values_mut().for_each(|at_ms| *at_ms = 0);
        self.due = self.due_of.keys().map(|name| (0, name.clone())).collect();
    }

    pub(super) fn forget(&mut self, conversation: &str) {
        self.unschedule(conversation);
        self.told.remove(conversation);
    }

    /// The connection is gone, perhaps with what was said last: returns the conversations that it was said of.
    pub(super) fn lost(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told).into_keys().collect()
    }

    pub(super) fn next_ms(&self) -> Option<u64> {
        self.due.first().map(|(at_ms, _)| *at_ms)
    }

    fn unschedule(&mut self, conversation: &str) {
        if let Some(at_ms) = self.due_of.remove(conversation) {
            self.due.remove(&(at_ms, conversation.into()));
        }
    }
}
