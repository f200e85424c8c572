//! What pages of a log bring: the entries that were missed, gaps that the log has, and that it was cut.
//!
//! The rule that keeps it right: a page is believed because it answers our cursor. What it leaves out unexplained is
//! asked for again, and counts as gone only when asking is of no use.

use millrace_protocol::messages::client::{Code, Cursor, Deliver, Refused, SyncPage, notify};
use millrace_protocol::planted::{self, Fault};

use super::{HOLE_MS, Inbox};
use crate::core::told::Told;
use crate::event::Event;

/// Useless pages in a row before what they leave out counts as gone. With the pauses between them that is a minute.
const USELESS_MAX: u32 = 8;

impl Inbox {
    /// A page came.
    pub(in crate::core) fn page(&mut self, id: u64, page: SyncPage, told: &mut Told, now_ms: u64) {
        let Some(conversation) = self.syncs.answered(id) else { return self.unawaited(&page) };
        if let Some(to) = page.truncated {
            return match self.cut(&conversation, to, told) {
                true => self.syncs.go_on(&conversation),
                false => self.syncs.pause(&conversation, now_ms, 0),
            };
        }
        let head = Cursor { epoch: page.epoch, seq: page.head };
        let (more, gap) = (page.more, page.gap);
        let entries: Vec<Deliver> = page
            .entries
            .into_iter()
            .filter_map(|entry| match entry.event {
                Some(notify::Event::Deliver(deliver)) => Some(deliver),
                _ => None,
            })
            .collect();
        let place = self.place(&conversation);
        let before = place.told();
        if !place.begun {
            let first = gap.as_ref().map(|gap| gap.from).or(entries.first().map(|entry| entry.seq));
            if first.is_none() && more {
                // The head came while it was read: what lies below it is not ours yet, and where we begin was not said.
                return self.syncs.pause(&conversation, now_ms, 0);
            }
            let at = first.map_or(head, |first| Cursor { epoch: 0, seq: first.saturating_sub(1) });
            if place.begin_at_own(at) {
                // The page answers another cursor. It may be acknowledged after a login, so it is saved.
                self.dirty.insert(conversation.clone());
                return self.syncs.go_on(&conversation);
            }
            if first.is_none() {
                self.keep(&conversation, now_ms);
            }
        }
        let place = self.place(&conversation);
        if let Some(to) = place.owed_cut(place.told().seq) {
            // The page answers another cursor.
            self.cut_to(&conversation, to, told);
            return self.syncs.go_on(&conversation);
        }
        if let Some(gap) = gap {
            let epoch = if gap.to == head.seq { head.epoch } else { before.epoch };
            self.gap(&conversation, Cursor { epoch, seq: gap.to }, told);
        }
        let hopeless = self.useless.get(&conversation).is_some_and(|count| *count >= USELESS_MAX);
        let whole = self.entries(&conversation, entries, hopeless, told);
        if hopeless && !more {
            self.gap(&conversation, head, told);
        }
        let last = self.place(&conversation).told();
        let useful = if more { last != before } else { last.seq >= head.seq };
        match (whole && useful, more) {
            (false, _) => {
                *self.useless.entry(conversation.clone()).or_default() += 1;
                self.syncs.pause(&conversation, now_ms, 0);
            }
            (true, true) => {
                self.useless.remove(&conversation);
                self.syncs.go_on(&conversation);
            }
            (true, false) => {
                let place = self.place(&conversation);
                place.ends(head.seq);
                if let Some(to) = place.owed_cut(u64::MAX) {
                    self.cut_to(&conversation, to, told);
                }
                self.reached(&conversation, now_ms);
            }
        }
        self.settle(&conversation, now_ms);
    }

    /// Nobody waits for this page any more. One of a group has its effect on what is delivered live all the same: one that
    /// has more to come ended that. And where the user was no member meanwhile, so that what was here is forgotten, it says
    /// that the user is one again: nobody else may say so, as the session listens already.
    fn unawaited(&mut self, page: &SyncPage) {
        let conversation = &page.conversation;
        if conversation.starts_with("g:") && (page.more || !self.places.contains_key(conversation)) {
            self.want(conversation);
        }
    }

    /// Tells the entries of a page. Returns whether nothing is left out between them.
    fn entries(
        &mut self,
        conversation: &str,
        entries: Vec<Deliver>,
        hopeless: bool,
        told: &mut Told,
    ) -> bool {
        for mut entry in entries {
            entry.conversation = conversation.to_owned();
            let Some(place) = self.places.get_mut(conversation) else { return false };
            if entry.seq > place.told().seq + 1 && entry.epoch == place.told().epoch {
                // A page may leave out own messages. Between two of one epoch they are what they were.
                place.absorb();
            }
            let last = place.told();
            if entry.seq > last.seq + 1 && !hopeless {
                return false;
            }
            if entry.seq > last.seq + 1 {
                self.gap(conversation, Cursor { epoch: last.epoch, seq: entry.seq - 1 }, told);
            }
            if entry.seq > last.seq {
                let place = self.place(conversation);
                place.replace_own(Cursor { epoch: entry.epoch, seq: entry.seq });
                if let Some(to) = place.owed_cut(entry.seq) {
                    // Before the application is told what there is instead.
                    self.cut_to(conversation, to, told);
                }
                self.show(entry, told);
            }
        }
        true
    }

    /// Reading a log was refused.
    pub(in crate::core) fn refused(&mut self, id: u64, refused: &Refused, told: &mut Told, now_ms: u64) {
        let Some(conversation) = self.syncs.answered(id) else { return };
        match refused.code() {
            Code::NotMember | Code::NoSuchGroup | Code::Forbidden => self.gone(&conversation, told),
            _ => self.syncs.pause(&conversation, now_ms, refused.retry_after_ms.into()),
        }
    }

    /// The log was cut above `to`, which is below what is known. Returns whether it is so. Without a cursor here, it was
    /// the server's that the log does not have: the place begins where that is cut to.
    ///
    /// The server takes the newest entry that is not of a later epoch for common. What is here under its seq may be of
    /// another one, if two copies of the store have taken turns: then asking on from that finds what lies further back.
    fn cut(&mut self, conversation: &str, to: Cursor, told: &mut Told) -> bool {
        let Some(place) = self.places.get_mut(conversation) else { return false };
        place.disown(to.seq);
        if !place.begun {
            if place.begin_at_own(to) {
                self.dirty.insert(conversation.into());
            }
            return true;
        }
        let to = match place.epoch_at(to.seq) {
            _ if planted::is(Fault::CutNotCompared) => to,
            Some(here) => Cursor { epoch: here, ..to },
            // It began above that, where it was told to: what the application may have from before is not known to agree.
            None if place.began_within() => Cursor::default(),
            None => to,
        };
        let known = place.told();
        let below = to.seq < known.seq || (to.seq == known.seq && to.epoch != known.epoch);
        if below {
            self.cut_to(conversation, to, told);
        }
        below
    }

    /// The application is told that the log ends at `to`.
    fn cut_to(&mut self, conversation: &str, to: Cursor, told: &mut Told) {
        let Some(place) = self.places.get_mut(conversation) else { return };
        place.cut(to);
        let event = Event::Truncated { conversation: conversation.into(), to };
        told.tell_at(conversation, place.born, to, event);
    }

    /// The log was read to its end: what comes now is live.
    fn reached(&mut self, conversation: &str, now_ms: u64) {
        self.useless.remove(conversation);
        self.syncs.forget(conversation);
        let place = self.place(conversation);
        if place.suspect {
            return self.want(conversation);
        }
        place.checked = true;
        place.absorb();
        // What was heard of above the head is on its way; if not, the log is read once more, and no oftener.
        if place.doubts() {
            self.holes.insert(conversation.into(), now_ms + HOLE_MS);
        }
    }

    /// The log has nothing up to `to`.
    fn gap(&mut self, conversation: &str, to: Cursor, told: &mut Told) {
        if let Some(to) = self.place(conversation).owed_cut(to.seq) {
            self.cut_to(conversation, to, told);
        }
        let Some(place) = self.places.get_mut(conversation) else { return };
        let from = place.told().seq + 1;
        if to.seq >= from {
            place.tell(to);
            let event = Event::Gap { conversation: conversation.into(), from, to: to.seq };
            told.tell_at(conversation, place.born, to, event);
        }
    }
}
