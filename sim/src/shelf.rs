//! What a device's application was shown, and what of it is saved: judged against the log.
//!
//! | promise | how it is judged |
//! |---|---|
//! | once, in order, nothing left out | each message is the next one of its conversation that is not the device's own |
//! | a crash repeats, and loses nothing | after a start the next one is that after the saved cursor |
//! | losses are told | without a cut, what was shown stays in the log to the end |
//! | all of it, at last | everything since the user became a member, or the conversation began, was shown; a device that is new there goes on from what its user has read, one that was told that its user had left from what the server has for it |
//!
//! Rooms have no cursors: they are in order while the session is in them, with gaps where they were told.

use std::collections::{BTreeMap, BTreeSet};

use millrace_client::core::{Position, Saved};
use millrace_client::{Event, Message};
use millrace_protocol::conversation::Conversation;
use millrace_protocol::messages::client::{Deliver, Read};

use crate::cuts::Cuts;
use crate::ledger::{Invariant, Ledger};

/// One conversation on a device.
#[derive(Debug, Default)]
struct Place {
    /// Message ids by seq, over all lives of the process.
    shown: BTreeMap<u64, u64>,
    /// The ids of all that was ever shown, what was cut since included.
    ever: BTreeSet<u64>,
    /// Its user was no member any more: what it had is forgotten, until there is a cursor again.
    gave_up: bool,
    cuts: Cuts,
    /// How far this process was shown it, or began with.
    at: Option<u64>,
    /// What lies below was not missed: the user became a member there through this device, or had read it on another.
    from: u64,
    /// The cursor that was last to be saved.
    saved: Option<u64>,
    /// The highest one ever.
    saved_max: u64,
    /// Messages, and cuts of the log, that were told and not taken.
    untaken: u64,
    /// Of them, those from before the user left: they come late, and count for nothing.
    stale: u64,
    /// The device's own messages that were acknowledged to this process, by seq and id, unless it was told since that the log
    /// was cut.
    acked: BTreeSet<(u64, u64)>,
}

/// What one device was shown.
#[derive(Debug, Default)]
pub struct Shelf {
    places: BTreeMap<String, Place>,
    /// Rooms that the session is in, and how far it was sent them: under which epoch, and to which seq.
    rooms: BTreeMap<String, (u64, u64)>,
    /// What this process was shown in rooms: it is not shown again, though it may be sent again.
    seen: BTreeSet<(String, u64)>,
}

impl Shelf {
    fn place(&mut self, conversation: &str) -> &mut Place {
        self.places.entry(conversation.into()).or_default()
    }

    /// What was told is taken. Returns whether it counts.
    fn takes(&mut self, conversation: &str) -> bool {
        let place = self.place(conversation);
        place.untaken = place.untaken.saturating_sub(1);
        let stale = place.stale > 0;
        place.stale = place.stale.saturating_sub(1);
        !stale
    }
}

impl Ledger {
    /// A device's process starts with what was kept.
    pub fn device_starts(&mut self, device: usize, kept: &[(String, Position)]) {
        self.counts.starts += 1;
        let shelf = &mut self.shelves[device];
        shelf.rooms.clear();
        shelf.seen.clear();
        for (conversation, place) in &mut shelf.places {
            (place.at, place.saved) = (None, None);
            (place.untaken, place.stale) = (0, 0);
            place.acked.clear();
            let position = kept.iter().find(|(name, _)| name == conversation).map(|(_, position)| position);
            place.gave_up &= position.is_none();
            if let Some(before) = place.cuts.restart(position) {
                place.shown = before;
            }
        }
        for (conversation, Position { cursor, .. }) in kept {
            let place = shelf.place(conversation);
            (place.at, place.saved) = (Some(cursor.seq), Some(cursor.seq));
        }
    }

    /// The user became a member through this device, which knew nothing of the group: it begins after `head`.
    pub(crate) fn begins_at(&mut self, device: usize, conversation: &str, head: u64) {
        self.shelves[device].place(conversation).from = head;
    }

    /// A device without a cursor is told to begin after `seq`: where its user has read so far on another device, this one need
    /// not be shown it.
    ///
    /// Nor need it be shown again what it once took of this log, if its cursor is gone because its user left. The copy of the
    /// store that has these messages has the device's word that it took them. Another copy took turns with that one, to
    /// which the log was cut, and where the user left: what was cut there was forgotten with the cursor.
    pub(crate) fn goes_on_from(&mut self, device: usize, conversation: &str, seq: u64) {
        let (user, _) = self.names[device].clone();
        let read = self.read.get(&(conversation.to_owned(), user)).copied().unwrap_or(0);
        let place = self.shelves[device].place(conversation);
        place.from = place.from.max(seq.min(read));
        if let Some(log) = self.logs.get(conversation).filter(|_| place.gave_up) {
            let ids = log.range(..=seq).map(|(seq, kept)| (*seq, kept.deliver.message_id));
            place.shown.extend(ids.filter(|(_, id)| place.ever.contains(id)));
        }
    }

    /// The session is in a room: everything after `head` is sent to it. Where the store lost something, a head under a higher
    /// epoch is that of another log, however far that has come; under the same one the lower is the older.
    pub fn in_room(&mut self, device: usize, room: &str, (epoch, head): (u64, u64)) {
        let at = self.shelves[device].rooms.entry(room.into()).or_insert((epoch, head));
        if self.has_lost {
            *at = if epoch > at.0 { (epoch, head) } else { (at.0, head.min(at.1)) };
        }
    }

    /// The user is no member any more; what was told before may still be taken.
    pub(crate) fn left(&mut self, device: usize, conversation: &str) {
        let place = self.shelves[device].place(conversation);
        place.stale = place.untaken;
        (place.at, place.saved, place.gave_up) = (None, None, true);
        place.acked.clear();
    }

    /// It left a room.
    pub fn out_of_room(&mut self, device: usize, room: &str) {
        self.shelves[device].rooms.remove(room);
    }

    /// A device's client tells its application something, which takes it later.
    pub fn told(&mut self, now_us: u64, device: usize, event: &Event) {
        match event {
            Event::Connected { .. } | Event::Disconnected { .. } => self.shelves[device].rooms.clear(),
            Event::Head { conversation, epoch, seq } if conversation.starts_with("r:") => {
                self.in_room(device, conversation, (*epoch, *seq));
            }
            Event::Removed { conversation } if conversation.starts_with("r:") => {
                self.out_of_room(device, conversation);
            }
            Event::Removed { conversation } => self.left(device, conversation),
            Event::Gap { conversation, to, .. } => {
                if let Some(at) = self.shelves[device].rooms.get_mut(conversation) {
                    at.1 = at.1.max(*to);
                }
            }
            Event::Message(message) if message.conversation.starts_with("r:") => {
                self.judge(now_us, device, &deliver_of(message));
                self.in_order(now_us, device, message);
            }
            Event::Message(Message { conversation, .. }) | Event::Truncated { conversation, .. } => {
                self.shelves[device].place(conversation).untaken += 1;
            }
            _ => {}
        }
    }

    fn in_order(&mut self, now_us: u64, device: usize, message: &Message) {
        let Message { conversation, seq, .. } = message;
        let (user, name) = &self.names[device];
        let Some((epoch, at)) = self.shelves[device].rooms.get(conversation).copied() else {
            let detail = format!("{user}/{name} got {seq} of {conversation}, in which it is not");
            return self.broken(Invariant::ShownInOrder, now_us, detail);
        };
        let seen = &self.shelves[device].seen;
        let is_seen = |seq: u64| seen.contains(&(conversation.clone(), seq));
        let hole = (at + 1..*seq).find(|seq| !self.is_own(device, conversation, *seq) && !is_seen(*seq));
        if *seq <= at && !self.has_lost || hole.is_some() {
            let detail = format!("{user}/{name} got {seq} of {conversation} after {at}; missing {hole:?}");
            self.broken(Invariant::ShownInOrder, now_us, detail);
        }
        let shelf = &mut self.shelves[device];
        shelf.rooms.insert(conversation.clone(), (epoch.max(message.epoch), *seq));
        if !shelf.seen.insert((conversation.clone(), *seq)) && !self.has_lost {
            let (user, name) = &self.names[device];
            let detail = format!("{user}/{name} is shown {seq} of {conversation} again");
            self.broken(Invariant::ShownOnce, now_us, detail);
        }
        self.counts.shown += 1;
    }

    /// A device's application takes what it was told.
    pub fn shown(&mut self, now_us: u64, device: usize, event: Event) {
        match event {
            Event::Message(message) if !message.conversation.starts_with("r:") => {
                self.message(now_us, device, &message);
            }
            Event::Truncated { conversation, to } => {
                self.counts.truncated += 1;
                if !self.has_lost {
                    let (user, name) = &self.names[device];
                    let detail = format!("{user}/{name} is told that {conversation} was cut at {to:?}");
                    return self.broken(Invariant::NothingLost, now_us, detail);
                }
                if !self.shelves[device].takes(&conversation) {
                    return;
                }
                let place = self.shelves[device].place(&conversation);
                place.cuts.add(&place.shown);
                place.shown.split_off(&(to.seq + 1));
                place.acked.split_off(&(to.seq + 1, 0));
                place.at = place.at.map(|at| at.min(to.seq));
                place.saved = place.saved.map(|saved| saved.min(to.seq));
            }
            // Nothing is past its retention here.
            Event::Gap { conversation, from, to } if !conversation.starts_with("r:") && !self.has_lost => {
                let (user, name) = &self.names[device];
                let detail = format!("{user}/{name} is told that {conversation} has no {from} to {to}");
                self.broken(Invariant::NothingLost, now_us, detail);
            }
            _ => {}
        }
    }

    fn message(&mut self, now_us: u64, device: usize, message: &Message) {
        let Message { conversation, seq, message_id, .. } = message;
        let (user, name) = self.names[device].clone();
        if !self.shelves[device].takes(conversation) {
            return;
        }
        let at = self.shelves[device].place(conversation).at;
        self.judge(now_us, device, &deliver_of(message));
        if at.is_some_and(|at| *seq <= at) {
            let detail = format!("{user}/{name} is shown {seq} of {conversation} after {at:?}");
            return self.broken(Invariant::ShownOnce, now_us, detail);
        }
        let missing = (at.unwrap_or(*seq) + 1..*seq).find(|seq| !self.is_own(device, conversation, *seq));
        if missing.is_some() && !self.lost.contains(message_id) {
            let detail =
                format!("{user}/{name} is shown {seq} of {conversation} after {at:?}, not {missing:?}");
            return self.broken(Invariant::ShownInOrder, now_us, detail);
        }
        if self.is_by(device, &deliver_of(message)) {
            let detail = format!("{user}/{name} is shown its own {seq} of {conversation}");
            return self.broken(Invariant::ShownOnce, now_us, detail);
        }
        self.counts.shown += 1;
        let place = self.shelves[device].place(conversation);
        place.at = Some(*seq);
        place.ever.insert(*message_id);
        self.counts.repeated += u64::from(place.shown.insert(*seq, *message_id) == Some(*message_id));
    }

    // ---- cursors ----

    /// A device's client wants these saved.
    pub fn saved(&mut self, now_us: u64, device: usize, batch: &[Saved]) {
        let (user, name) = self.names[device].clone();
        for (conversation, position) in batch {
            let cuts = self.has_lost;
            let place = self.shelves[device].place(conversation);
            let seq = position.as_ref().map(|position| position.cursor.seq);
            if let Some((saved, seq)) = place.saved.zip(seq).filter(|(saved, seq)| seq < saved && !cuts) {
                let detail = format!("{user}/{name}'s cursor of {conversation} goes from {saved} to {seq}");
                self.broken(Invariant::CursorsGrow, now_us, detail);
                continue;
            }
            match position {
                Some(position) => place.cuts.save(position),
                None => place.cuts = Cuts::default(),
            }
            place.gave_up &= position.is_none();
            place.saved = seq;
            place.saved_max = place.saved_max.max(seq.unwrap_or(0));
            // Own messages move it, and what the server knew at the beginning.
            if let Some(seq) = seq {
                place.at = Some(place.at.map_or(seq, |at| at.max(seq)));
            }
        }
    }

    /// A user marks what it was shown as read.
    pub fn reads(&mut self, user: &str, read: &Read) {
        let at = self.read.entry((read.conversation.clone(), user.into())).or_default();
        *at = read.seq.max(*at);
    }

    /// The server keeps a device's cursor, or (without a device) what its user has read.
    pub(crate) fn stored_cursor(&mut self, now_us: u64, conversation: &str, of: (&str, &str), seq: u64) {
        let read = self.read.get(&(conversation.to_owned(), of.0.to_owned())).copied().unwrap_or(0);
        if of.1.is_empty() && seq > read {
            let detail =
                format!("the server has {seq} of {conversation} as read by {}, who read {read}", of.0);
            return self.broken(Invariant::CursorsGrow, now_us, detail);
        }
        let device = self.names.iter().position(|(user, device)| (user.as_str(), device.as_str()) == of);
        let Some(place) = device.and_then(|device| self.shelves[device].places.get(conversation)) else {
            return;
        };
        if seq > place.saved_max {
            let saved = place.saved_max;
            let detail = format!("the server has {seq} of {conversation} for {of:?}, which saved {saved}");
            self.broken(Invariant::CursorsGrow, now_us, detail);
        }
    }

    /// A device was told that a message of its own is stored.
    pub(crate) fn own_acked(&mut self, device: usize, conversation: &str, seq: u64, message_id: u64) {
        if !conversation.starts_with("r:") {
            self.shelves[device].place(conversation).acked.insert((seq, message_id));
        }
    }

    // ---- the end ----

    /// A message of a device's own that was acknowledged, is not in the log, and was not taken back.
    pub(crate) fn not_told(&self, device: usize) -> Option<String> {
        let (user, name) = &self.names[device];
        let is_there = |conversation: &str, seq: &u64, id: &u64| {
            let kept = self.logs.get(conversation).and_then(|log| log.get(seq));
            kept.is_some_and(|kept| kept.deliver.message_id == *id)
        };
        self.shelves[device].places.iter().find_map(|(conversation, place)| {
            let (seq, _) = place.acked.iter().find(|(seq, id)| !is_there(conversation, seq, id))?;
            Some(format!("{user}/{name} was not told that its own {seq} of {conversation} is lost"))
        })
    }

    /// Something that a device was not shown, or was and is not there any more.
    pub(crate) fn not_shown(&self, device: usize) -> Option<String> {
        let (user, name) = &self.names[device];
        let nothing = Place::default();
        for (conversation, log) in &self.logs {
            let begun = match Conversation::parse(conversation) {
                Some(Conversation::Direct(a, b)) if a == user || b == user => 0,
                Some(Conversation::Group(_)) => match self.membership.joined_at(conversation, user) {
                    Some(joined_at) => joined_at,
                    None => continue,
                },
                _ => continue,
            };
            let place = self.shelves[device].places.get(conversation).unwrap_or(&nothing);
            let head = self.head(conversation);
            if let Some(at) = place.at.filter(|at| *at > head) {
                return Some(format!("{user}/{name} is at {at} of {conversation}, which ends at {head}"));
            }
            for (seq, kept) in log.range(begun.max(place.from) + 1..) {
                let shown = place.shown.get(seq).copied();
                if !self.is_by(device, &kept.deliver) && shown != Some(kept.deliver.message_id) {
                    let other = shown.map_or("", |_| ", but another one");
                    return Some(format!("{user}/{name} was not shown {seq} of {conversation}{other}"));
                }
            }
        }
        None
    }
}

fn deliver_of(message: &Message) -> Deliver {
    Deliver {
        conversation: message.conversation.clone(),
        seq: message.seq,
        message_id: message.message_id,
        sender: message.sender.clone(),
        sender_device: message.sender_device.clone(),
        server_time_ms: message.server_time_ms,
        epoch: message.epoch,
        payload: message.payload.clone(),
        content_kind: message.content_kind,
        action: message.action as i32,
        refers_to: message.refers_to,
    }
}

#[cfg(test)]
mod tests {
    use millrace_dispatcher::store::Write;
    use millrace_protocol::messages::client::response::Outcome;
    use millrace_protocol::messages::client::{Cursor, Left, Notify, Response, SyncPage, notify};

    use super::*;
    use crate::fixtures::{GROUP, append, deliver, entry, members};

    fn page(entries: Vec<Deliver>, head: u64) -> Response {
        let body = |entry| Notify { event: Some(notify::Event::Deliver(entry)) };
        let entries = entries.into_iter().map(body).collect();
        let page = SyncPage { conversation: GROUP.into(), entries, epoch: 1, head, ..SyncPage::default() };
        Response { id: 1, outcome: Some(Outcome::SyncPage(page)) }
    }

    /// Ann's phone is shown these, by epoch, seq and id.
    fn show(ledger: &mut Ledger, messages: impl IntoIterator<Item = (u64, u64, u64)>) {
        for at in messages {
            let event = Event::Message(Message::from(deliver(at)));
            ledger.told(0, 0, &event);
            ledger.shown(0, 0, event);
        }
    }

    /// Ann's phone was shown 1 to `shown` of a log that has 1 to 4, and knows nothing above 1 in the other copy of the store,
    /// where it was shown another 2 and 3.
    fn two_copies(shown: u64) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.add_device("ann", "phone");
        let log = (1..=4).map(|seq| Write::Message(entry((1, seq, 10 + seq))));
        append(&mut ledger, 1, [members(&["ann", "bob"], 1)].into_iter().chain(log).collect());
        show(&mut ledger, (1..=shown).map(|seq| (1, seq, 10 + seq)));
        ledger.has_lost = true;
        ledger.lost.extend([22, 23]);
        let cut = Event::Truncated { conversation: GROUP.into(), to: Cursor { epoch: 1, seq: 1 } };
        ledger.told(0, 0, &cut);
        ledger.shown(0, 0, cut);
        show(&mut ledger, [(2, 2, 22), (2, 3, 23)]);
        ledger
    }

    /// It begins after 3, where the copy that came back has its cursor.
    fn begins_after_3(mut ledger: Ledger, leaves: bool) -> Option<String> {
        if leaves {
            let left = Outcome::Left(Left { conversation: GROUP.into() });
            ledger.answered(0, 0, &Response { id: 1, outcome: Some(left) }, |_| true);
        }
        ledger.answered(0, 0, &page(vec![deliver((1, 4, 14))], 4), |_| !leaves);
        show(&mut ledger, [(1, 4, 14)]);
        assert_eq!(ledger.violation, None);
        ledger.not_shown(0)
    }

    #[test]
    fn who_left_in_vain_goes_on_from_what_it_once_took() {
        assert_eq!(begins_after_3(two_copies(3), true), None);
        let missed = |seq: u64| Some(format!("ann/phone was not shown {seq} of {GROUP}, but another one"));
        assert_eq!(
            begins_after_3(two_copies(3), false),
            missed(2),
            "it has a cursor, and was to be cut back"
        );
        assert_eq!(begins_after_3(two_copies(2), true), missed(3), "it never took 3");
    }
}
