//! Typing goes out at most every [`INTERVAL_MS`] per conversation: the last word is sent when its time has come, and
//! nothing is kept over a broken connection.

use std::collections::BTreeMap;

use millrace_protocol::messages::client::Typing;
use millrace_protocol::messages::client::request::Op;

/// The protocol's minimum, ms.
const INTERVAL_MS: u64 = 2_000;

/// Conversations remembered; typing in more at once is not sent.
const CONVERSATIONS_MAX: usize = 64;

#[derive(Debug)]
struct Line {
    free_ms: u64,
    next: Option<u32>,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct TypingOut {
    lines: BTreeMap<String, Line>,
}

impl TypingOut {
    pub(super) fn push(&mut self, conversation: &str, what: u32, now_ms: u64) {
        self.lines.retain(|_, line| line.next.is_some() || line.free_ms > now_ms);
        if self.lines.len() < CONVERSATIONS_MAX || self.lines.contains_key(conversation) {
            let line = self.lines.entry(conversation.into()).or_insert(Line { free_ms: 0, next: None });
            line.next = Some(what);
        }
    }

    pub(super) fn next(&mut self, now_ms: u64) -> Option<Op> {
        let (conversation, line) =
            self.lines.iter_mut().find(|(_, line)| line.next.is_some() && line.free_ms <= now_ms)?;
        let what = line.next.take()?;
        line.free_ms = now_ms + INTERVAL_MS;
        Some(Op::Typing(Typing { conversation: conversation.clone(), what }))
    }

    pub(super) fn disconnected(&mut self) {
        self.lines.clear();
    }

    pub(super) fn next_ms(&self) -> Option<u64> {
        self.lines.values().filter(|line| line.next.is_some()).map(|line| line.free_ms).min()
    }
}
