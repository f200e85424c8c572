//! A device in one conversation: what it has, what it syncs, and what it sends.
//!
//! These are the rules that docs/PROTOCOL.md gives to clients, written down once more, apart from the client SDK, so
//! that a mistake there can't hide one of the servers: show only the next entry, drop and sync otherwise, drop what a
//! truncation takes back; send in dense numbers, and after any refusal again from the oldest.

use std::collections::{BTreeMap, VecDeque};

use millrace_protocol::messages::client::notify::Event as Told;
use millrace_protocol::messages::client::{Action, Code, Cursor, Deliver, Refused, SendAck, SyncPage};

use crate::rng::Rng;
use crate::verify::history::{Content, History, Note, Place, Tag};

/// Messages on the wire without an answer: less than the 64 answers that a stream keeps.
pub(super) const WINDOW: usize = 16;

/// Messages that an application gives without an answer: it stops when the service does.
const OUTBOX_MAX: usize = 32;

/// An own message that is acknowledged out of turn waits this long for those before it, in us; then they are synced.
const OWN_WAIT_US: u64 = 700_000;

/// A refusal without a time is tried again after this, in us.
const HOLD_US: u64 = 20_000;

/// OUT_OF_ORDER so often in a row means that two sides will never agree.
const DISAGREEMENTS_MAX: u32 = 200;

/// What was counted, over all conversations of all devices.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
#[allow(missing_docs)]
pub struct Counts {
    /// Live copies that arrived.
    pub live: u64,
    /// Of these: of an entry that the device had.
    pub repeats: u64,
    /// Of these: dropped because an earlier entry was missing, or while the device synced.
    pub dropped_early: u64,
    pub pages: u64,
    pub page_entries: u64,
    pub gaps: u64,
    pub truncations: u64,
    pub sends: u64,
    pub busy: u64,
    pub out_of_order: u64,
    pub new_streams: u64,
    pub peeks: u64,
    pub peeks_with_news: u64,
    pub resyncs: u64,
}

impl Counts {
    /// Adds another device's.
    pub fn add(&mut self, other: &Counts) {
        self.live += other.live;
        self.repeats += other.repeats;
        self.dropped_early += other.dropped_early;
        self.pages += other.pages;
        self.page_entries += other.page_entries;
        self.gaps += other.gaps;
        self.truncations += other.truncations;
        self.sends += other.sends;
        self.busy += other.busy;
        self.out_of_order += other.out_of_order;
        self.new_streams += other.new_streams;
        self.peeks += other.peeks;
        self.peeks_with_news += other.peeks_with_news;
        self.resyncs += other.resyncs;
    }
}

/// Where a device and a conversation meet the rest.
pub(super) struct Desk<'a> {
    pub(super) history: &'a mut History,
    pub(super) counts: &'a mut Counts,
    pub(super) now_us: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sync {
    /// Entries arrive by themselves.
    Attached,
    /// A page is to be asked for, not before this time.
    Wanted(u64),
    /// Asked at this time.
    Asked(u64),
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    tag: Tag,
    client_seq: u64,
    is_acked: bool,
    since_us: u64,
}

/// A device in a conversation.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) name: String,
    pub(super) talk: u16,
    pub(super) is_group: bool,
    device: u16,
    run: u32,
    cursor: (u64, u64),
    /// The highest epoch under which the cursor is known to be in the log. What comes under a higher one says nothing of
    /// what is below it: an owner whose store lost the end may have written other entries there.
    known_epoch: u64,
    /// Own messages, acknowledged above the cursor: by seq, with the time.
    own: BTreeMap<u64, (Place, Tag, u64)>,
    sync: Sync,
    told_seq: u64,
    tell_at_us: u64,
    stream: u64,
    next_client_seq: u64,
    next_serial: u32,
    outbox: VecDeque<Pending>,
    submitted: usize,
    /// Grows with every refusal and loss: answers to earlier rounds refuse nothing any more.
    round: u32,
    hold_until_us: u64,
    disagreements: u32,
}

impl Seat {
    pub(super) fn new(name: String, talk: u16, is_group: bool, device: u16, run: u32, rng: &mut Rng) -> Self {
        Seat {
            name,
            talk,
            is_group,
            device,
            run,
            cursor: (0, 0),
            known_epoch: 0,
            own: BTreeMap::new(),
            sync: Sync::Wanted(0),
            told_seq: 0,
            tell_at_us: 0,
            stream: rng.bits() | 1,
            next_client_seq: 1,
            next_serial: 1,
            outbox: VecDeque::new(),
            submitted: 0,
            round: 0,
            hold_until_us: 0,
            disagreements: 0,
        }
    }

    pub(super) fn cursor(&self) -> Cursor {
        Cursor { epoch: self.cursor.0, seq: self.cursor.1 }
    }

    pub(super) fn seq(&self) -> u64 {
        self.cursor.1
    }

    pub(super) fn is_attached(&self) -> bool {
        self.sync == Sync::Attached
    }

    /// The oldest message without an answer: when the application gave it.
    pub(super) fn oldest_us(&self) -> Option<u64> {
        self.outbox.front().map(|pending| pending.since_us)
    }

    pub(super) fn unanswered(&self) -> impl Iterator<Item = Tag> + '_ {
        self.outbox.iter().filter(|pending| !pending.is_acked).map(|pending| pending.tag)
    }

    // ---- receiving ----

    /// Whether a page is to be asked for now; the caller asks.
    pub(super) fn wants_page(&mut self, now_us: u64) -> bool {
        let waited = |(_, _, at_us): &(Place, Tag, u64)| now_us > at_us + OWN_WAIT_US;
        if self.sync == Sync::Attached && self.own.values().next().is_some_and(waited) {
            self.sync = Sync::Wanted(now_us);
        }
        match self.sync {
            Sync::Wanted(at_us) if at_us <= now_us => {
                self.sync = Sync::Asked(now_us);
                true
            }
            _ => false,
        }
    }

    pub(super) fn want_sync(&mut self, at_us: u64) {
        if self.sync == Sync::Attached {
            self.sync = Sync::Wanted(at_us);
        }
    }

    /// The page that was asked for was refused.
    pub(super) fn page_refused(&mut self, at_us: u64) {
        self.sync = Sync::Wanted(at_us);
    }

    /// A live copy.
    pub(super) fn deliver(&mut self, desk: &mut Desk<'_>, deliver: &Deliver) {
        desk.counts.live += 1;
        if self.sync != Sync::Attached {
            desk.counts.dropped_early += 1;
            return;
        }
        let (epoch, seq) = self.cursor;
        if deliver.seq <= seq && deliver.epoch <= epoch {
            desk.counts.repeats += 1;
        } else if deliver.seq == seq + 1 && deliver.epoch == self.known_epoch {
            self.show(desk, deliver);
            self.absorb(desk);
        } else {
            // One before it is missing, or is not known to be what it was.
            desk.counts.dropped_early += 1;
            self.want_sync(desk.now_us);
        }
    }

    fn show(&mut self, desk: &mut Desk<'_>, deliver: &Deliver) {
        let place = Place { epoch: deliver.epoch, seq: deliver.seq, id: deliver.message_id };
        let tag = match content(deliver) {
            Content::Message(tag) => Some(tag),
            Content::System => None,
            Content::Unknown => {
                let sender = &deliver.sender;
                desk.history.odd.push(format!("{}: {place} from {sender} can't be read", self.name));
                None
            }
        };
        self.took(desk, place, tag);
    }

    fn took(&mut self, desk: &mut Desk<'_>, place: Place, tag: Option<Tag>) {
        if let Some((_, own, _)) = self.own.remove(&place.seq)
            && tag != Some(own)
        {
            desk.history.note(desk.now_us, Note::Rescinded { tag: own });
        }
        let (device, conversation) = (self.device, self.talk);
        desk.history.note(desk.now_us, Note::Shown { device, conversation, place, tag });
        self.cursor = (place.epoch, place.seq);
        self.known_epoch = self.known_epoch.max(place.epoch);
    }

    /// Own messages that are next.
    fn absorb(&mut self, desk: &mut Desk<'_>) {
        while self.sync == Sync::Attached
            && let Some(&(place, tag, _)) = self.own.get(&(self.cursor.1 + 1))
        {
            if place.epoch != self.known_epoch {
                self.want_sync(desk.now_us);
                return;
            }
            self.took(desk, place, Some(tag));
        }
    }

    /// The page that was asked for.
    pub(super) fn page(&mut self, desk: &mut Desk<'_>, page: &SyncPage) {
        desk.counts.pages += 1;
        let Sync::Asked(asked_us) = self.sync else { return };
        if let Some(to) = page.truncated {
            self.truncate(desk, to);
            self.sync = Sync::Wanted(desk.now_us);
            return;
        }
        if let Some(gap) = &page.gap {
            desk.counts.gaps += 1;
            let (from, to) = (gap.from.max(self.cursor.1 + 1), gap.to);
            let (device, conversation) = (self.device, self.talk);
            if from <= to {
                desk.history.note(desk.now_us, Note::Missed { device, conversation, from, to });
                self.cursor.1 = to;
            }
        }
        for entry in &page.entries {
            let Some(Told::Deliver(deliver)) = &entry.event else { continue };
            desk.counts.page_entries += 1;
            if deliver.seq != self.cursor.1 + 1 {
                let (seq, cursor) = (deliver.seq, self.cursor.1);
                desk.history.odd.push(format!("{}: a page goes from {cursor} to {seq}", self.name));
            }
            if deliver.seq > self.cursor.1 {
                self.show(desk, deliver);
            }
        }
        if page.more {
            self.sync = Sync::Wanted(desk.now_us);
            return;
        }
        if page.head != self.cursor.1 {
            let (device, cursor, head) = (self.device, self.cursor.1, page.head);
            desk.history.odd.push(format!(
                "device {device}, {}: the last page ends at {cursor}, and the log at {head}",
                self.name
            ));
        }
        self.sync = Sync::Attached;
        self.known_epoch = self.known_epoch.max(page.epoch);
        // What was acknowledged before the page was read, and is above its head, is gone.
        while let Some(last) = self.own.last_entry()
            && last.get().2 < asked_us
            && *last.key() > page.head
        {
            let (_, tag, _) = last.remove();
            desk.history.note(desk.now_us, Note::Rescinded { tag });
        }
        self.absorb(desk);
    }

    /// The log ends here after all.
    pub(super) fn truncate(&mut self, desk: &mut Desk<'_>, to: Cursor) {
        desk.counts.truncations += 1;
        let (device, conversation) = (self.device, self.talk);
        if to.seq < self.cursor.1 {
            desk.history.note(desk.now_us, Note::Truncated { device, conversation, seq: to.seq });
        }
        self.cursor = (to.epoch, to.seq.min(self.cursor.1));
        for (_, (_, tag, _)) in self.own.split_off(&(to.seq + 1)) {
            desk.history.note(desk.now_us, Note::Rescinded { tag });
        }
        self.told_seq = self.told_seq.min(to.seq);
    }

    /// The cursor, if it is time to tell it to the server.
    pub(super) fn take_told(&mut self, now_us: u64, every_us: u64) -> Option<Cursor> {
        if self.cursor.1 == self.told_seq || now_us < self.tell_at_us {
            return None;
        }
        (self.told_seq, self.tell_at_us) = (self.cursor.1, now_us + every_us);
        Some(self.cursor())
    }

    // ---- sending ----

    /// The application sends a message. False: too many have no answer.
    pub(super) fn send(&mut self, desk: &mut Desk<'_>) -> bool {
        if self.outbox.len() >= OUTBOX_MAX {
            return false;
        }
        let tag =
            Tag { device: self.device, conversation: self.talk, serial: self.next_serial, run: self.run };
        desk.history.note(desk.now_us, Note::Sent { tag });
        self.next_serial += 1;
        let client_seq = self.next_client_seq;
        self.next_client_seq += 1;
        self.outbox.push_back(Pending { tag, client_seq, is_acked: false, since_us: desk.now_us });
        true
    }

    /// The next message for the wire: its round, stream, number and payload.
    pub(super) fn next_out(&mut self, now_us: u64) -> Option<(u32, u64, u64, Vec<u8>)> {
        if now_us < self.hold_until_us {
            return None;
        }
        while self.submitted < WINDOW.min(self.outbox.len()) {
            let pending = self.outbox[self.submitted];
            self.submitted += 1;
            if !pending.is_acked {
                return Some((self.round, self.stream, pending.client_seq, pending.tag.payload()));
            }
        }
        None
    }

    /// A message was stored.
    pub(super) fn acked(&mut self, desk: &mut Desk<'_>, stream: u64, client_seq: u64, ack: SendAck) {
        self.disagreements = 0;
        let place = Place { epoch: ack.epoch, seq: ack.seq, id: ack.message_id };
        let found = self.outbox.iter_mut().find(|pending| pending.client_seq == client_seq);
        let Some(pending) = found.filter(|_| stream == self.stream) else { return };
        if pending.is_acked {
            return;
        }
        pending.is_acked = true;
        let tag = pending.tag;
        desk.history.note(desk.now_us, Note::Acked { tag, place });
        while self.outbox.front().is_some_and(|pending| pending.is_acked) {
            self.outbox.pop_front();
            self.submitted = self.submitted.saturating_sub(1);
        }
        if place.seq > self.cursor.1 {
            if let Some((_, before, _)) = self.own.insert(place.seq, (place, tag, desk.now_us))
                && before != tag
            {
                // Another one has its number: the log was cut below it.
                desk.history.note(desk.now_us, Note::Rescinded { tag: before });
            }
            self.absorb(desk);
        } else if place.epoch > self.cursor.0 {
            // The log was written anew below the cursor.
            self.want_sync(desk.now_us);
        }
    }

    /// A message was not stored.
    pub(super) fn refused(&mut self, desk: &mut Desk<'_>, round: u32, refused: &Refused, rng: &mut Rng) {
        let code = Code::try_from(refused.code).unwrap_or(Code::None);
        match code {
            Code::Busy | Code::Unavailable => desk.counts.busy += 1,
            Code::OutOfOrder => desk.counts.out_of_order += 1,
            _ => {
                let (name, reason) = (&self.name, &refused.reason);
                desk.history.odd.push(format!("{name}: a message was refused with {code:?}: {reason}"));
            }
        }
        if round != self.round {
            return;
        }
        self.again(desk.now_us + (u64::from(refused.retry_after_ms) * 1_000).max(HOLD_US));
        let oldest = self.outbox.front().map_or(self.next_client_seq, |pending| pending.client_seq);
        match code {
            Code::OutOfOrder if refused.expected < oldest => {
                // The server has lost what it acknowledged; nothing from `expected` on is stored under this stream.
                self.draw_stream(desk, rng);
            }
            Code::OutOfOrder => {
                self.disagreements += 1;
                if self.disagreements > DISAGREEMENTS_MAX {
                    let (name, expected) = (&self.name, refused.expected);
                    let text = format!("{name}: the server goes on expecting {expected}, sent was {oldest}");
                    desk.history.odd.push(text);
                    self.draw_stream(desk, rng);
                }
            }
            Code::Conflict => self.draw_stream(desk, rng),
            _ => {}
        }
    }

    /// Sends everything without an answer again, from the oldest, not before that time.
    pub(super) fn again(&mut self, at_us: u64) {
        self.round += 1;
        self.submitted = 0;
        self.hold_until_us = at_us;
    }

    fn draw_stream(&mut self, desk: &mut Desk<'_>, rng: &mut Rng) {
        desk.counts.new_streams += 1;
        self.outbox.retain(|pending| !pending.is_acked);
        self.stream = rng.bits() | 1;
        self.next_client_seq = 1;
        self.disagreements = 0;
        for pending in &mut self.outbox {
            pending.client_seq = self.next_client_seq;
            self.next_client_seq += 1;
        }
    }

    /// The connection is gone.
    pub(super) fn lost(&mut self) {
        self.again(0);
        self.sync = Sync::Wanted(0);
    }

    /// A reinstall: the counter starts again, under another stream. Only with nothing under way.
    pub(super) fn reinstall(&mut self, desk: &mut Desk<'_>, rng: &mut Rng) {
        if self.outbox.is_empty() {
            self.draw_stream(desk, rng);
        }
    }
}

/// What an entry holds.
pub(super) fn content(deliver: &Deliver) -> Content {
    if deliver.action() == Action::System {
        return Content::System;
    }
    Tag::parse(&deliver.payload).map_or(Content::Unknown, Content::Message)
}
