//! After a login: which conversations there are, and where they stand. Pages of the list, each followed by one Peek
//! with this device's cursors; then those that have cursors and are not in the list. One request is in flight.
//!
//! What is learned goes to the inbox, which reads what has news, and to the application as [`Event::Listed`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{
    Code, ConversationItem, ConversationPage, Conversations, Peek, PeekItem, Peeked, Refused,
};

use super::inbox::Inbox;
use super::told::Told;
use crate::event::{Event, Listing};

/// Conversations of one Peek: the protocol's limit.
const PEEK_MAX: usize = 256;

/// Pause after an answer that brings nothing, ms.
const RETRY_MS: u64 = 1_000;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Walk {
    running: bool,
    /// The list is read from here; `None`: to its end.
    after: Option<String>,
    /// Read from the list and not asked about yet.
    items: VecDeque<ConversationItem>,
    /// With cursors, and not seen in the list yet.
    rest: BTreeSet<String>,
    asked: Option<(u64, Asked)>,
    /// Of the conversations that are asked about, those to which the session was attached since. An answer is put together from
    /// several owners': what it says of these may be from before.
    attached: BTreeSet<String>,
    not_before_ms: u64,
    /// Items of the next Peek at most: fewer after one was refused whole, until the item is found that it was for.
    items_max: usize,
    /// Something may be new that was asked about already: from the beginning when this one is over.
    once_more: bool,
}

#[derive(Debug)]
enum Asked {
    List,
    Peek(BTreeMap<String, ConversationItem>),
}

impl Walk {
    /// Logged in: begins.
    pub(super) fn start(&mut self, inbox: &Inbox) {
        *self = Walk {
            running: true,
            after: Some(String::new()),
            rest: inbox.known().cloned().collect(),
            items_max: PEEK_MAX,
            ..Walk::default()
        };
    }

    /// Something may be new anywhere: begins, or goes once more when it is at its end.
    pub(super) fn again(&mut self, inbox: &Inbox) {
        match self.running {
            true => self.once_more = true,
            false => self.start(inbox),
        }
    }

    pub(super) fn disconnected(&mut self) {
        *self = Walk::default();
    }

    pub(super) fn is_over(&self) -> bool {
        !self.running
    }

    /// The next request, as `id`.
    pub(super) fn next(&mut self, now_ms: u64, id: u64, inbox: &Inbox) -> Option<Op> {
        if !self.running || self.asked.is_some() || self.not_before_ms > now_ms {
            return None;
        }
        if self.items.is_empty()
            && let Some(after) = self.after.clone()
        {
            self.asked = Some((id, Asked::List));
            return Some(Op::Conversations(Conversations { after, limit: PEEK_MAX as u32 }));
        }
        while self.items.len() < PEEK_MAX
            && self.after.is_none()
            && let Some(conversation) = self.rest.pop_first()
        {
            self.items.push_back(ConversationItem { conversation, ..ConversationItem::default() });
        }
        let count = self.items.len().min(self.items_max);
        let asked: BTreeMap<String, ConversationItem> =
            self.items.drain(..count).map(|item| (item.conversation.clone(), item)).collect();
        if asked.is_empty() {
            self.running = false;
            if !self.once_more {
                return None;
            }
            self.start(inbox);
            return self.next(now_ms, id, inbox);
        }
        let item = |conversation: &String| PeekItem {
            cursor: inbox.cursor(conversation),
            conversation: conversation.clone(),
        };
        let items = asked.keys().map(item).collect();
        self.asked = Some((id, Asked::Peek(asked)));
        Some(Op::Peek(Peek { items }))
    }

    /// Whether request `id` is of the walk.
    pub(super) fn knows(&self, id: u64) -> bool {
        self.asked.as_ref().is_some_and(|(asked, _)| *asked == id)
    }

    /// The session was attached to a group.
    pub(super) fn attached(&mut self, conversation: &str) {
        if let Some((_, Asked::Peek(asked))) = &self.asked
            && asked.contains_key(conversation)
        {
            self.attached.insert(conversation.into());
        }
    }

    /// A page of the list came.
    pub(super) fn listed(&mut self, page: ConversationPage) {
        self.asked = None;
        let last = page.items.last().map(|item| item.conversation.clone());
        self.after = last.filter(|_| page.more);
        for item in page.items {
            self.rest.remove(&item.conversation);
            self.items.push_back(item);
        }
    }

    /// Standings came. Refusals that may be older than an attachment, those left out, those without the newest message because
    /// the answer was full, and those of owners that were busy are asked for again.
    pub(super) fn peeked(&mut self, peeked: Peeked, inbox: &mut Inbox, told: &mut Told, now_ms: u64) {
        let Some((_, Asked::Peek(mut asked))) = self.asked.take() else { return };
        let attached = std::mem::take(&mut self.attached);
        self.items_max = PEEK_MAX.min(self.items_max * 2);
        let mut listings = Vec::new();
        // One that has no message at all has none in an answer that others did not fill, either.
        let may_be_full = peeked.standings.iter().any(|standing| standing.last.is_some());
        for standing in peeked.standings {
            let Some(item) = asked.remove(&standing.conversation) else { continue };
            let has_entries = standing.head.is_some_and(|head| head.seq > 0);
            let was_trimmed = may_be_full && has_entries && standing.last.is_none();
            let is_old = standing.code() != Code::None && attached.contains(&item.conversation);
            if !is_old && inbox.standing(&standing, told, now_ms) && !was_trimmed {
                listings.push(Listing { item, standing });
            } else {
                asked.insert(item.conversation.clone(), item);
            }
        }
        if listings.is_empty() {
            self.not_before_ms = now_ms + RETRY_MS;
        } else {
            told.tell(Event::Listed(listings));
        }
        self.items.extend(asked.into_values());
    }

    /// The server would not answer. Without a list, what has a cursor here is asked about.
    pub(super) fn refused(&mut self, refused: &Refused, now_ms: u64) {
        self.attached.clear();
        let again = refused.retry_after_ms > 0;
        self.not_before_ms = now_ms + u64::from(refused.retry_after_ms).max(RETRY_MS);
        match self.asked.take() {
            Some((_, Asked::List)) if !again => self.after = None,
            Some((_, Asked::Peek(asked))) if again || asked.len() > 1 => {
                if !again {
                    (self.items_max, self.not_before_ms) = (asked.len() / 2, now_ms);
                }
                // In front, so that the halves are asked about one after the other.
                asked.into_values().rev().for_each(|item| self.items.push_front(item));
            }
            _ => {}
        }
    }

    pub(super) fn next_ms(&self) -> Option<u64> {
        (self.running && self.asked.is_none()).then_some(self.not_before_ms)
    }
}
