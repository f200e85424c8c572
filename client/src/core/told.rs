//! What the application was told and has not taken.
//!
//! The rule that keeps it right: events are taken in the order in which they were told, so a conversation's cursor
//! moves through the values that stand beside its events, and never ahead of them.

use std::collections::VecDeque;

use millrace_protocol::messages::client::Cursor;

use super::event::Action;
use crate::event::Event;

/// An event that moves a cursor when it is taken.
#[derive(Debug)]
pub(super) struct Mark {
    number: u64,
    pub(super) conversation: String,
    /// Of the place that told it: one that was forgotten and began anew is another.
    pub(super) born: u64,
    pub(super) cursor: Cursor,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Told {
    last: u64,
    taken: u64,
    marks: VecDeque<Mark>,
    /// For the step under way.
    actions: Vec<Action>,
    deaf: bool,
}

impl Told {
    /// Tells something that has no cursor.
    pub(super) fn tell(&mut self, event: Event) {
        if !self.deaf {
            self.last += 1;
            self.actions.push(Action::Tell { number: self.last, event });
        }
    }

    /// Tells something of a conversation whose cursor is at `cursor` when it is taken.
    pub(super) fn tell_at(&mut self, conversation: &str, born: u64, cursor: Cursor, event: Event) {
        self.tell(event);
        if !self.deaf {
            let mark = Mark { number: self.last, conversation: conversation.into(), born, cursor };
            self.marks.push_back(mark);
        }
    }

    /// Nobody listens any more: what was told stays untaken.
    pub(super) fn deafen(&mut self) {
        self.deaf = true;
        self.taken = self.last;
        self.marks.clear();
    }

    /// Everything up to `number` was taken. Call [`Told::next_taken`] until `None`.
    pub(super) fn take(&mut self, number: u64) {
        self.taken = self.taken.max(number.min(self.last));
    }

    /// The next mark that was taken.
    pub(super) fn next_taken(&mut self) -> Option<Mark> {
        let taken = self.marks.front().is_some_and(|mark| mark.number <= self.taken);
        if taken { self.marks.pop_front() } else { None }
    }

    /// Events that wait for the application.
    pub(super) fn waiting(&self) -> usize {
        (self.last - self.taken) as usize
    }

    /// What was told in this step.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Action> + '_ {
        self.actions.drain(..)
    }
}
