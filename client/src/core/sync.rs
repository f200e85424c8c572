//! Which conversations are read from the server's log, and when.
//!
//! The rules that keep it right: one request in flight per conversation and [`SYNCS_MAX`] in all, so that what was
//! missed costs time and not memory; and a conversation that has more pages goes on before another begins.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Conversations that are read at once.
pub(super) const SYNCS_MAX: usize = 8;

/// An answer that takes longer is not waited for any more, ms.
const PATIENCE_MS: u64 = 30_000;

/// Shortest and longest pause after a failure that says no time itself, ms.
const PAUSE_MS: (u64, u64) = (200, 30_000);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Wanted,
    Asked { id: u64, until_ms: u64 },
    Paused { until_ms: u64 },
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    states: BTreeMap<String, State>,
    queue: VecDeque<String>,
    asked: BTreeMap<u64, String>,
    /// When what is asked or paused is wanted again.
    timers: BTreeSet<(u64, String)>,
    failures: BTreeMap<String, u32>,
}

impl Syncs {
    /// A conversation is to be read. One that is being read is left at that: pages reach the head.
    pub(super) fn want(&mut self, conversation: &str) {
        if !self.states.contains_key(conversation) {
            self.states.insert(conversation.into(), State::Wanted);
            self.queue.push_back(conversation.into());
        }
    }

    /// Another page is to be read at once.
    pub(super) fn go_on(&mut self, conversation: &str) {
        self.failures.remove(conversation);
        if self.states.insert(conversation.into(), State::Wanted).is_none() {
            self.queue.push_front(conversation.into());
        }
    }

    /// Reading failed: again later, not before `retry_after_ms`.
    pub(super) fn pause(&mut self, conversation: &str, now_ms: u64, retry_after_ms: u64) {
        let failures = self.failures.entry(conversation.into()).or_default();
        let pause = (PAUSE_MS.0 << (*failures).min(10)).min(PAUSE_MS.1).max(retry_after_ms);
        *failures += 1;
        self.drop_state(conversation);
        let until_ms = now_ms + pause;
        self.states.insert(conversation.into(), State::Paused { until_ms });
        self.timers.insert((until_ms, conversation.into()));
    }

    /// It need not be read any more.
    pub(super) fn forget(&mut self, conversation: &str) {
        self.failures.remove(conversation);
        self.drop_state(conversation);
    }

    /// The next conversation to ask for, as request `id`.
    pub(super) fn next(&mut self, now_ms: u64, id: u64) -> Option<String> {
        if self.asked.len() >= SYNCS_MAX {
            return None;
        }
        let conversation = self.queue.pop_front()?;
        let until_ms = now_ms + PATIENCE_MS;
        self.states.insert(conversation.clone(), State::Asked { id, until_ms });
        self.timers.insert((until_ms, conversation.clone()));
        self.asked.insert(id, conversation.clone());
        Some(conversation)
    }

    /// Request `id` was answered: which conversation it was for.
    pub(super) fn answered(&mut self, id: u64) -> Option<String> {
        let conversation = self.asked.get(&id)?.clone();
        self.drop_state(&conversation);
        Some(conversation)
    }

    /// Answers are not being read: patience begins anew.
    pub(super) fn postpone(&mut self, now_ms: u64) {
        for (id, conversation) in &self.asked {
            let until_ms = now_ms + PATIENCE_MS;
            if let Some(State::Asked { until_ms: old, .. }) =
                self.states.insert(conversation.clone(), State::Asked { id: *id, until_ms })
            {
                self.timers.remove(&(old, conversation.clone()));
                self.timers.insert((until_ms, conversation.clone()));
            }
        }
    }

    /// Moves on what has waited long enough.
    pub(super) fn due(&mut self, now_ms: u64) {
        while self.timers.first().is_some_and(|(until_ms, _)| *until_ms <= now_ms)
            && let Some((_, conversation)) = self.timers.pop_first()
        {
            self.drop_state(&conversation);
            self.want(&conversation);
        }
    }

    /// When [`Syncs::due`] has something to do.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.timers.first().map(|(until_ms, _)| *until_ms)
    }

    /// The connection is gone, and with it what was asked. The next login says what has news.
    pub(super) fn clear(&mut self) {
        *self = Syncs::default();
    }

    /// Whether a page is on its way, or will be asked for.
    pub(super) fn is_wanted(&self, conversation: &str) -> bool {
        self.states.contains_key(conversation)
    }

    /// Whether a page is on its way.
    pub(super) fn is_asked(&self, conversation: &str) -> bool {
        matches!(self.states.get(conversation), Some(State::Asked { .. }))
    }

    /// Whether nothing is being read or waits for it.
    pub(super) fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    fn drop_state(&mut self, conversation: &str) {
        let until_ms = match self.states.remove(conversation) {
            Some(State::Wanted) => return self.queue.retain(|name| name != conversation),
            Some(State::Asked { id, until_ms }) => {
                self.asked.remove(&id);
                until_ms
            }
            Some(State::Paused { until_ms }) => until_ms,
            None => return,
        };
        self.timers.remove(&(until_ms, conversation.into()));
    }
}
