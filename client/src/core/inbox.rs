//! What comes in from conversations with a log: groups and direct ones. Every entry is told once, in order; what is
//! missing is read from the log ([`super::sync`]); what was taken is saved and acknowledged ([`super::acks`]).
//!
//! The rule that keeps it right: the application is told the entry after the cursor, or a gap that the log has, or that
//! the log was cut; nothing else moves a cursor. See [`super::place`].

mod pages;

use std::collections::{BTreeMap, BTreeSet};

use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{self, Code, Cursor, Deliver, DeliverAck, Standing, Sync};

use super::acks::Acks;
use super::event::{Position, Saved};
use super::place::{Place, Verdict};
use super::settings::{Settings, Start};
use super::sync::Syncs;
use super::told::Told;
use crate::event::{Event, Message};

/// How long an own message may lie above what came before it is looked up, ms: answers overtake deliveries by less.
const HOLE_MS: u64 = 3_000;

/// Entries of a page at most. Frames bound it too; this bounds what small messages add up to.
const PAGE_ENTRIES_MAX: u32 = 256;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Inbox {
    user: String,
    device: String,
    start: Start,
    places: BTreeMap<String, Place>,
    born: u64,
    syncs: Syncs,
    acks: Acks,
    /// Conversations where something heard of has not come, and when to ask for it.
    holes: BTreeMap<String, u64>,
    /// Pages with unexplained holes, one after the other.
    useless: BTreeMap<String, u32>,
    /// To be saved at the end of the step.
    dirty: BTreeSet<String>,
}

impl Inbox {
    pub(super) fn new(settings: &Settings, kept: impl IntoIterator<Item = (String, Position)>) -> Self {
        let mut inbox = Inbox {
            user: String::new(),
            device: settings.device.clone(),
            start: settings.start,
            places: BTreeMap::new(),
            born: 0,
            syncs: Syncs::default(),
            acks: Acks::default(),
            holes: BTreeMap::new(),
            useless: BTreeMap::new(),
            dirty: BTreeSet::new(),
        };
        for (conversation, position) in kept {
            inbox.place(&conversation).resume(position);
        }
        inbox
    }

    /// Logged in: nothing is known to be in order before the server said so.
    pub(super) fn connected(&mut self, user: &str) {
        self.user = user.into();
    }

    /// What was asked is gone, and perhaps what was acknowledged last.
    pub(super) fn disconnected(&mut self, now_ms: u64) {
        self.syncs.clear();
        self.holes.clear();
        for conversation in self.acks.lost() {
            if let Some(place) = self.places.get(&conversation) {
                self.acks.schedule(&conversation, place.taken(), now_ms);
            }
        }
        for place in self.places.values_mut() {
            place.checked = false;
        }
    }

    /// Conversations with a cursor, or where this device stored something.
    pub(super) fn known(&self) -> impl Iterator<Item = &String> {
        let known = |place: &Place| place.begun || place.is_unsettled();
        self.places.iter().filter(move |(_, place)| known(place)).map(|(conversation, _)| conversation)
    }

    /// What this device has of a conversation.
    pub(super) fn cursor(&self, conversation: &str) -> Option<Cursor> {
        self.places.get(conversation).filter(|place| place.begun).map(Place::told)
    }

    /// What the application has taken of a conversation.
    pub(super) fn taken(&self, conversation: &str) -> Option<Cursor> {
        self.places.get(conversation).filter(|place| place.begun).map(Place::taken)
    }

    /// A live entry.
    pub(super) fn deliver(&mut self, deliver: Deliver, told: &mut Told, now_ms: u64) {
        let newest = self.start == Start::Newest;
        let conversation = deliver.conversation.clone();
        let asked = self.syncs.is_asked(&conversation);
        let place = self.place(&conversation);
        place.heard = place.heard.max(deliver.seq);
        if asked {
            // The pages reach it.
            return;
        }
        if !place.begun && (deliver.seq == 1 || newest) {
            place.begin(Cursor { epoch: deliver.epoch, seq: deliver.seq.saturating_sub(1) });
        }
        if !place.begun {
            return self.syncs.want(&conversation);
        }
        match place.judge(deliver.epoch, deliver.seq, conversation.starts_with("g:")) {
            Verdict::Repeat => {}
            Verdict::Hole => self.want(&conversation),
            Verdict::Next => {
                self.show(deliver, told);
                self.settle(&conversation, now_ms);
            }
        }
    }

    /// A message of this device was stored.
    pub(super) fn own(&mut self, conversation: &str, at: Cursor, now_ms: u64) {
        let newest = self.start == Start::Newest;
        let place = self.place(conversation);
        if !place.begun && (at.seq == 1 || newest) {
            place.begin(Cursor { epoch: at.epoch, seq: at.seq.saturating_sub(1) });
        }
        let contradicts = place.contradicts(at);
        place.own(at);
        if contradicts {
            return self.want(conversation);
        }
        if !place.begun {
            return self.syncs.want(conversation);
        }
        self.settle(conversation, now_ms);
    }

    /// The user became a member through this session: everything after `head` is delivered, and nothing is said of what lies
    /// up to there. `head` is an entry of the log: what is here may be of another one, whatever the order of the epochs.
    pub(super) fn joined(&mut self, conversation: &str, head: Cursor, now_ms: u64) {
        let place = self.place(conversation);
        let told = place.told();
        if !place.begun {
            place.begin(head);
            place.checked = true;
            self.syncs.forget(conversation);
            self.keep(conversation, now_ms);
        } else if head.epoch != told.epoch || head.seq > told.seq {
            place.heard = place.heard.max(head.seq);
            place.suspect |= head.epoch != told.epoch;
            self.want(conversation);
        }
    }

    /// Where the log ends, from a Head or a Standing.
    pub(super) fn head(&mut self, conversation: &str, head: Cursor, now_ms: u64) {
        let newest = self.start == Start::Newest;
        let vouches = self.vouches(conversation);
        let place = self.place(conversation);
        let told = place.told();
        if !place.begun {
            if vouches && (newest || head.seq == 0) && !place.is_unsettled() {
                place.begin(head);
                place.checked = true;
                return self.keep(conversation, now_ms);
            }
        } else if head == told && place.is_unsettled() {
            return self.want(conversation);
        } else if head == told {
            place.checked |= vouches;
            return;
        } else if head.epoch < told.epoch || (head.epoch == told.epoch && head.seq < told.seq) {
            // Read before what has come since.
            return;
        }
        place.heard = place.heard.max(head.seq);
        place.suspect |= head.epoch > told.epoch;
        self.want(conversation);
    }

    /// How a conversation stands, as asked after a login. False: it has to be asked again.
    pub(super) fn standing(&mut self, standing: &Standing, told: &mut Told, now_ms: u64) -> bool {
        let conversation = &standing.conversation;
        match standing.code() {
            Code::None => {}
            Code::Busy | Code::Unavailable => return false,
            _ => {
                self.gone(conversation, told);
                return true;
            }
        }
        let head = standing.head.unwrap_or_default();
        let vouches = self.vouches(conversation);
        let place = self.place(conversation);
        if !place.begun && !standing.news && !place.is_unsettled() {
            if !vouches {
                return true;
            }
            place.begin(head);
            place.checked = true;
            self.acks.known(conversation, head);
            self.dirty.insert(conversation.clone());
            return true;
        }
        let taken = place.taken();
        if place.begun && standing.delivered == Some(taken) {
            self.acks.known(conversation, taken);
        } else if place.begun {
            self.acks.schedule(conversation, taken, now_ms);
        }
        let told = self.place(conversation).told();
        self.head(conversation, head, now_ms);
        if (head.epoch, head.seq) < (told.epoch, told.seq) {
            // Read before what has come since; or the log lost its end. Reading on from the cursor tells.
            self.want(conversation);
        }
        true
    }

    /// Something was not delivered, or not acknowledged in time: the log has it.
    pub(super) fn resync(&mut self, conversation: &str, now_ms: u64) {
        let Some(place) = self.places.get(conversation) else {
            self.place(conversation);
            return self.syncs.want(conversation);
        };
        if place.begun {
            self.acks.doubt(conversation);
            self.acks.schedule(conversation, place.taken(), now_ms);
        }
        self.want(conversation);
    }

    /// The log ends at `to` after all. How far back it agrees with what is here, reading it tells: an earlier cut may not
    /// have been heard of.
    pub(super) fn truncated(&mut self, conversation: &str, to: Cursor) {
        if let Some(place) = self.places.get_mut(conversation) {
            place.disown(to.seq);
            place.suspect = true;
            self.want(conversation);
        }
    }

    /// The user is no member any more: what was here is forgotten.
    pub(super) fn forget(&mut self, conversation: &str) {
        self.syncs.forget(conversation);
        self.acks.forget(conversation);
        self.holes.remove(conversation);
        self.useless.remove(conversation);
        if self.places.remove(conversation).is_some() {
            self.dirty.insert(conversation.into());
        }
    }

    /// The application took what it was told.
    pub(super) fn took(&mut self, told: &mut Told, now_ms: u64) {
        while let Some(mark) = told.next_taken() {
            let Some(place) = self.places.get_mut(&mark.conversation) else { continue };
            if place.born == mark.born {
                place.took(mark.cursor);
                self.keep(&mark.conversation, now_ms);
            }
        }
    }

    /// The next request to read a log, as `id`.
    pub(super) fn next_sync(&mut self, now_ms: u64, id: u64) -> Option<Op> {
        let conversation = self.syncs.next(now_ms, id)?;
        let place = self.place(&conversation);
        place.suspect = false;
        place.ask();
        let after = self.cursor(&conversation);
        Some(Op::Sync(Sync { conversation, after, limit: PAGE_ENTRIES_MAX }))
    }

    /// The next acknowledgement that is due.
    pub(super) fn next_ack(&mut self, now_ms: u64) -> Option<Op> {
        while let Some(conversation) = self.acks.next(now_ms) {
            let Some(cursor) = self.taken(&conversation) else { continue };
            self.acks.sent(&conversation, cursor, now_ms);
            return Some(Op::DeliverAck(DeliverAck { conversation, cursor: Some(cursor) }));
        }
        None
    }

    /// Everything taken is to be acknowledged at once.
    pub(super) fn hurry(&mut self) {
        self.acks.hurry();
    }

    /// Does what is due. `reads`: answers are being read.
    pub(super) fn due(&mut self, now_ms: u64, reads: bool) {
        if !reads {
            self.syncs.postpone(now_ms);
        }
        self.syncs.due(now_ms);
        if self.holes.values().all(|at_ms| *at_ms > now_ms) {
            return;
        }
        let due: Vec<String> =
            self.holes.iter().filter(|(_, at_ms)| **at_ms <= now_ms).map(|(name, _)| name.clone()).collect();
        for conversation in due {
            self.holes.remove(&conversation);
            if self.places.get(&conversation).is_some_and(Place::is_behind) {
                self.want(&conversation);
            }
        }
    }

    /// When there is something to do.
    pub(super) fn next_ms(&self) -> Option<u64> {
        let hole = self.holes.values().copied().min();
        [self.syncs.next_ms(), self.acks.next_ms(), hole].into_iter().flatten().min()
    }

    /// Whether nothing waits to be read.
    pub(super) fn is_caught_up(&self) -> bool {
        self.syncs.is_empty()
    }

    /// What is to be saved, as of now.
    pub(super) fn saves(&mut self) -> Vec<Saved> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty
            .into_iter()
            .map(|conversation| {
                let place = self.places.get(&conversation).filter(|place| place.begun);
                let position = place.map(Place::position);
                (conversation, position)
            })
            .collect()
    }

    /// The next entry: told, or passed over if this device sent it.
    fn show(&mut self, deliver: Deliver, told: &mut Told) {
        let at = Cursor { epoch: deliver.epoch, seq: deliver.seq };
        let conversation = deliver.conversation.clone();
        // What the server wrote on this device's behalf is news; what it sent is not: its SendAck said it all.
        let own = deliver.sender == self.user
            && deliver.sender_device == self.device
            && deliver.action() != client::Action::System;
        let Some(place) = self.places.get_mut(&conversation) else { return };
        if own {
            place.pass(at);
        } else {
            place.tell(at);
            told.tell_at(&conversation, place.born, at, Event::Message(Message::from(deliver)));
        }
    }

    /// The server no longer shows this conversation to the user.
    fn gone(&mut self, conversation: &str, told: &mut Told) {
        if self.places.get(conversation).is_some_and(|place| place.begun || place.is_unsettled()) {
            told.tell(Event::Removed { conversation: conversation.into() });
        }
        self.forget(conversation);
    }

    /// Whether a head that is ours tells that the log is ours, and one may begin there. Where the log is to be read it does
    /// not: it may be from before what that is for, and reading it tells.
    fn vouches(&self, conversation: &str) -> bool {
        !self.syncs.is_wanted(conversation)
    }

    /// The log is to be read. Until then it may be another one than ours.
    fn want(&mut self, conversation: &str) {
        self.place(conversation).checked = false;
        self.syncs.want(conversation);
    }

    /// After something was told or passed.
    fn settle(&mut self, conversation: &str, now_ms: u64) {
        let asked = self.syncs.is_asked(conversation);
        let Some(place) = self.places.get_mut(conversation) else { return };
        if !asked {
            place.absorb();
        }
        let moved = place.settle();
        if place.is_behind() {
            self.holes.entry(conversation.into()).or_insert(now_ms + HOLE_MS);
        }
        if moved {
            self.keep(conversation, now_ms);
        }
    }

    /// The cursor of what was taken has moved.
    fn keep(&mut self, conversation: &str, now_ms: u64) {
        let Some(place) = self.places.get_mut(conversation) else { return };
        place.settle();
        self.acks.schedule(conversation, place.taken(), now_ms);
        self.dirty.insert(conversation.into());
    }

    fn place(&mut self, conversation: &str) -> &mut Place {
        if !self.places.contains_key(conversation) {
            self.born += 1;
            self.places.insert(conversation.into(), Place::new(self.born));
        }
        self.places.get_mut(conversation).expect("it was put there")
    }
}
