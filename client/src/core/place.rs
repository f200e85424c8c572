//! One conversation as this device has it: how far the application was told, how far it took, and which of its own
//! messages lie above.
//!
//! The rules that keep it right:
//! 1. `told` moves up by one, over a message that is told or one of this device's own; or over a gap that the log
//!    really has. It moves down only when the log was cut.
//! 2. `taken` follows `told` through what the application took. It is what is saved and acknowledged.
//! 3. The next seq under the same epoch continues what is here: one writer appended both. A store that lost its tail
//!    goes on with the same seqs under another epoch. So there the next seq continues what is here only in a group
//!    whose log was found to hold our cursor since the login (`checked`): its sessions are told of a cut before anything
//!    else. The sessions of a direct conversation are not attached to it, and look into the log.
//! 4. A page answers the cursor that it was asked with, so `told` stays there until it has come.

use std::collections::{BTreeMap, VecDeque};

use millrace_protocol::messages::client::Cursor;
use millrace_protocol::planted::{self, Fault};

use super::event::{EPOCHS_MAX, Position};

/// Own messages above `told` that are remembered; with more the log is read instead.
const OWN_MAX: usize = 1_024;

/// What an entry is to a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The next one.
    Next,
    /// The application was told already, or a server that lost the conversation still speaks.
    Repeat,
    /// Something is missing, or the log is another: read it.
    Hole,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Place {
    /// Tells apart the places that a conversation had.
    pub(super) born: u64,
    /// Whether there is a cursor at all. Without, the server's is where to begin.
    pub(super) begun: bool,
    pub(super) checked: bool,
    /// The highest seq that was heard of.
    pub(super) heard: u64,
    /// Something says that the log was cut, since a page of it was asked for: that page may be from before.
    pub(super) suspect: bool,
    /// The log was read and had less than was heard of.
    doubted: bool,
    told: Cursor,
    taken: Cursor,
    untaken: u32,
    /// Own messages above `told`: their epochs by seq.
    own: BTreeMap<u64, u64>,
    /// The highest of them when the log was last asked for.
    own_asked: u64,
    /// The lowest of this device's own messages that are lost, or contradict what is here, and the application was not told.
    lost: Option<u64>,
    /// The first entry that was seen of each epoch, lowest first.
    epochs: Vec<Cursor>,
    /// Cuts that were told and are not taken: how many events are to be taken until then, and `epochs` before it.
    cuts: VecDeque<(u32, Vec<Cursor>)>,
}

impl Place {
    pub(super) fn new(born: u64) -> Self {
        Place {
            born,
            begun: false,
            checked: false,
            heard: 0,
            suspect: false,
            doubted: false,
            told: Cursor::default(),
            taken: Cursor::default(),
            untaken: 0,
            own: BTreeMap::new(),
            own_asked: 0,
            lost: None,
            epochs: Vec::new(),
            cuts: VecDeque::new(),
        }
    }

    pub(super) fn told(&self) -> Cursor {
        self.told
    }

    pub(super) fn taken(&self) -> Cursor {
        if planted::is(Fault::AckBeforeTaken) { self.told } else { self.taken }
    }

    /// There was no cursor: everything up to `at` counts as taken.
    pub(super) fn begin(&mut self, at: Cursor) {
        (self.begun, self.told, self.taken) = (true, at, at);
        self.heard = self.heard.max(at.seq);
        self.epochs.clear();
        self.note(at);
    }

    /// The server has `at` for the place to begin. Own messages that lie up to there are not in what it sends: whether the log
    /// still has them, only reading on from the first of them tells. Returns whether it begins there instead.
    pub(super) fn begin_at_own(&mut self, at: Cursor) -> bool {
        let own = self.own.first_key_value().filter(|(seq, _)| **seq <= at.seq);
        let Some(own) = own.map(|(&seq, &epoch)| Cursor { epoch, seq }) else {
            self.begin(at);
            return false;
        };
        self.own.remove(&own.seq);
        self.begin(own);
        true
    }

    /// The place that was kept of an earlier process.
    pub(super) fn resume(&mut self, kept: Position) {
        let Position { cursor, epochs } = kept;
        self.begin(cursor);
        let fits = epochs.last().is_some_and(|last| last.epoch == cursor.epoch && last.seq <= cursor.seq);
        if fits && !planted::is(Fault::EpochsForgotten) {
            self.epochs = epochs;
        }
    }

    /// What is to be kept for the next process.
    pub(super) fn position(&self) -> Position {
        let cursor = self.taken();
        let mut epochs = self.cuts.front().map_or(&self.epochs, |(_, before)| before).clone();
        epochs.retain(|first| first.seq <= cursor.seq);
        Position { cursor, epochs }
    }

    /// Whether it began in the midst of the log, after an entry of which only the seq was said.
    pub(super) fn began_within(&self) -> bool {
        self.epochs.first().is_some_and(|first| first.epoch == 0)
    }

    /// The epoch of the entry that is here under this seq, if it is remembered.
    pub(super) fn epoch_at(&self, seq: u64) -> Option<u64> {
        self.epochs.iter().rev().find(|first| first.seq <= seq).map(|first| first.epoch)
    }

    fn note(&mut self, at: Cursor) {
        if at.seq == 0 || self.epochs.last().is_some_and(|last| last.epoch == at.epoch) {
            return;
        }
        if self.epochs.len() == EPOCHS_MAX {
            self.epochs.remove(0);
        }
        self.epochs.push(at);
    }

    /// What a live entry is.
    pub(super) fn judge(&self, epoch: u64, seq: u64, is_group: bool) -> Verdict {
        let Cursor { epoch: known, seq: last } = self.told;
        if seq <= last {
            if planted::is(Fault::RepeatShown) {
                return Verdict::Next;
            }
            return if epoch > known { Verdict::Hole } else { Verdict::Repeat };
        }
        if epoch < known {
            return Verdict::Repeat;
        }
        if self.lost.is_some() || self.replaces_own(Cursor { epoch, seq }) {
            // The application is to be told of a cut before that.
            return Verdict::Hole;
        }
        let continues = epoch == known || last == 0 || (self.checked && is_group);
        if (seq == last + 1 && continues) || planted::is(Fault::CursorOverHole) {
            Verdict::Next
        } else {
            Verdict::Hole
        }
    }

    /// The application is being told what moves the cursor to `at`.
    pub(super) fn tell(&mut self, at: Cursor) {
        self.pass(at);
        self.untaken += 1;
    }

    /// `at` needs no telling: an own message.
    pub(super) fn pass(&mut self, at: Cursor) {
        self.told = at;
        self.heard = self.heard.max(at.seq);
        self.note(at);
    }

    /// The log ends at `to` after all.
    pub(super) fn cut(&mut self, to: Cursor) {
        let own = self.own.last_key_value().map_or(0, |(seq, _)| *seq);
        (self.told, self.heard) = (to, to.seq.max(own));
        self.lost = self.lost.filter(|lost| *lost <= to.seq);
        self.untaken += 1;
        self.cuts.push_back((self.untaken, self.epochs.clone()));
        self.epochs.retain(|first| first.seq <= to.seq);
        self.note(to);
    }

    /// An own message was stored. It counts when everything below has come.
    pub(super) fn own(&mut self, at: Cursor) {
        if at.seq > self.told.seq && self.own.len() < OWN_MAX {
            let epoch = self.own.entry(at.seq).or_default();
            *epoch = at.epoch.max(*epoch);
        }
        self.heard = self.heard.max(at.seq);
    }

    /// Own messages above this are not in the log any more. The application was told that they were stored.
    pub(super) fn disown(&mut self, seq: u64) {
        if let Some((&lowest, _)) = self.own.split_off(&(seq + 1)).first_key_value() {
            self.lose(lowest);
        }
    }

    fn lose(&mut self, seq: u64) {
        self.lost = Some(self.lost.map_or(seq, |lost| lost.min(seq)));
    }

    /// An own message was stored where something else is here, or another one of its own. One of the two is lost: the
    /// application can't have both. Returns whether it is so.
    pub(super) fn contradicts(&mut self, at: Cursor) -> bool {
        let contradicts = if at.seq > self.told.seq {
            self.replaces_own(at)
        } else {
            match self.epoch_at(at.seq) {
                _ if !self.begun => false,
                Some(here) => here != at.epoch && here != 0,
                None => at.epoch > self.told.epoch,
            }
        };
        if contradicts {
            self.lose(at.seq);
        }
        contradicts
    }

    /// Whether this entry of the log is in the place of an own message that was stored under another epoch.
    fn replaces_own(&self, at: Cursor) -> bool {
        self.own.get(&at.seq).is_some_and(|epoch| *epoch != at.epoch)
    }

    /// The log has this entry. An own message in its place is lost, and those that were stored with or before it.
    pub(super) fn replace_own(&mut self, at: Cursor) {
        if self.replaces_own(at)
            && let Some(lost) = self.own.remove(&at.seq)
        {
            self.own.retain(|seq, epoch| *seq < at.seq || *epoch > lost);
            self.lose(at.seq);
        }
    }

    /// Where the application is to be told that the log is cut to, before it is told of anything up to `next`, for own messages
    /// that are lost: what was told, or below.
    pub(super) fn owed_cut(&self, next: u64) -> Option<Cursor> {
        let seq = self.lost.filter(|lost| *lost <= next)?.saturating_sub(1);
        if seq >= self.told.seq {
            return Some(self.told);
        }
        Some(self.epoch_at(seq).map_or(Cursor::default(), |epoch| Cursor { epoch, seq }))
    }

    /// Whether something is here of which only the log can tell what became of it.
    pub(super) fn is_unsettled(&self) -> bool {
        self.lost.is_some() || !self.own.is_empty()
    }

    /// The log is asked for, what this device stored so far included.
    pub(super) fn ask(&mut self) {
        self.own_asked = self.own.last_key_value().map_or(0, |(seq, _)| *seq);
    }

    /// The log was read to its end, and ends at `head`. Own messages above that, which were stored when it was asked for, are
    /// lost.
    pub(super) fn ends(&mut self, head: u64) {
        if self.own_asked > head {
            let later = self.own.split_off(&(self.own_asked + 1));
            self.disown(head);
            self.own.extend(later);
        }
    }

    /// Passes over own messages that are next. Of another epoch they are not: rule 3, and the log can be asked.
    pub(super) fn absorb(&mut self) {
        while self.lost.is_none()
            && let Some((&seq, &epoch)) = self.own.first_key_value()
        {
            if seq > self.told.seq + 1 || (seq == self.told.seq + 1 && epoch != self.told.epoch && seq > 1) {
                return;
            }
            self.own.remove(&seq);
            if seq == self.told.seq + 1 {
                self.pass(Cursor { epoch, seq });
            }
        }
    }

    /// Whether own messages, or others that were heard of, lie above what was told.
    pub(super) fn is_behind(&self) -> bool {
        self.heard > self.told.seq
    }

    /// The log was read to its end: whether to read it again, for what was heard of and is not in it.
    pub(super) fn doubts(&mut self) -> bool {
        self.doubted = self.is_behind() && !self.doubted;
        if !self.doubted {
            self.heard = self.told.seq;
        }
        self.doubted
    }

    /// The application took what moved the cursor to `at`.
    pub(super) fn took(&mut self, at: Cursor) {
        self.untaken = self.untaken.saturating_sub(1);
        self.taken = at;
        for (events, _) in &mut self.cuts {
            *events = events.saturating_sub(1);
        }
        self.cuts.retain(|(events, _)| *events > 0);
    }

    /// Own messages above the last taken event count as taken with it. Returns whether that moved anything.
    pub(super) fn settle(&mut self) -> bool {
        let moves = self.untaken == 0 && self.taken != self.told;
        if moves {
            self.taken = self.told;
        }
        moves
    }
}
