//! Telling who has what: receipts of direct conversations to the other side, counts of groups to the newest message's
//! sender, and the list of both on request.
//!
//! Everything is coalesced over a window, so that a receipt costs a group of ten thousand no more messages than a pair.
//! What is told here is soft: it can be computed again from the cursors. The rule that keeps it right: positions only
//! grow, so whoever is told merges by maximum and misses nothing by missing one.

use std::collections::BTreeMap;

use bytes::Bytes;
use millrace_protocol::conversation::Conversation as Id;
use millrace_protocol::messages::client::{
    Code, GroupReceipt, Notify, Receipt, ReceiptPage, Receipts, notify, response,
};
use millrace_protocol::messages::link::Reply;
use millrace_protocol::prost::Message;

use super::batch::Owner;
use super::conversation::Conversation;
use super::cursors::outsider;
use super::delivery::{Ask, What};
use super::events;
use super::hub::{Asker, Cx, PartitionJob, Pending};
use super::limits::{MEMBERS_PAGE_MAX, TALLY_PAGE, TALLY_PUSHED_MAX};
use crate::store::{CursorsOf, Work};

/// How far a user is: the highest seq over its devices, and what it has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Received on some device.
    pub delivered: u64,
    /// Read.
    pub read: u64,
}

/// What a conversation has to tell about positions.
#[derive(Debug, Default)]
pub struct Positions {
    /// Everyone's, once they were read.
    tally: Option<BTreeMap<String, Position>>,
    /// Pages are being read.
    loading: bool,
    /// What moved while they were, or since they were last told.
    moved: BTreeMap<String, Position>,
    /// Direct conversations: what was told of its two users.
    told: BTreeMap<String, Position>,
    /// Groups: the newest message and its sender, and what that one was told.
    newest: Option<(u64, String, Position)>,
    /// Who waits for the tally.
    waiting: Vec<(Asker, String, Receipts)>,
}

impl Positions {
    /// Nothing is to be told, and nobody waits.
    pub fn is_idle(&self) -> bool {
        self.moved.is_empty() && !self.loading && self.waiting.is_empty()
    }

    /// A message is the newest of its group now.
    pub fn sent(&mut self, seq: u64, user: String) {
        self.newest = Some((seq, user, Position::default()));
    }

    /// Who waits for an answer: the partition stops.
    pub fn stop(&mut self) -> Vec<Asker> {
        self.waiting.drain(..).map(|(asker, ..)| asker).collect()
    }

    fn note(&mut self, user: &str, position: Position) {
        for map in self.tally.iter_mut().chain([&mut self.moved]) {
            let noted = map.entry(user.to_owned()).or_default();
            noted.delivered = noted.delivered.max(position.delivered);
            noted.read = noted.read.max(position.read);
        }
    }
}

/// A device of a user has received up to a seq.
pub fn delivered(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    name: &str,
    user: &str,
    seq: u64,
) {
    conversation.positions.note(user, Position { delivered: seq, read: 0 });
    super::fates::delivered(cx, owner, conversation, name, user, seq);
    cx.touched(owner, name);
}

/// A user has read up to a seq.
pub fn read(cx: &mut Cx, owner: &Owner, conversation: &mut Conversation, name: &str, user: &str, seq: u64) {
    conversation.positions.note(user, Position { delivered: 0, read: seq });
    cx.touched(owner, name);
}

/// The window is over: who wants to know is told what moved.
pub fn tell(cx: &mut Cx, owner: &Owner, conversation: &mut Conversation, name: &str) {
    if conversation.positions.moved.is_empty() {
        return;
    }
    match Id::parse(name) {
        Some(Id::Direct(a, b)) => {
            for (user, position) in std::mem::take(&mut conversation.positions.moved) {
                let other = if a == user { b } else { a };
                let told = conversation.positions.told.entry(user.clone()).or_default();
                if position.delivered <= told.delivered && position.read <= told.read {
                    continue;
                }
                told.delivered = told.delivered.max(position.delivered);
                told.read = told.read.max(position.read);
                tell_pair(cx, owner, name, &user, other, position);
            }
        }
        _ => tell_group(cx, owner, conversation, name),
    }
}

fn tell_pair(cx: &mut Cx, owner: &Owner, name: &str, user: &str, other: &str, position: Position) {
    let Position { delivered, read } = position;
    events::receipt(cx, owner.from.partition, name, user, delivered, read);
    let receipt = |delivered| {
        let (conversation, user) = (name.to_owned(), user.to_owned());
        notify::Event::Receipt(Receipt { conversation, user, delivered, read })
    };
    if other != user {
        relay(cx, owner, name, other, receipt(delivered));
    }
    // The user's own devices share what was read.
    if read > 0 {
        relay(cx, owner, name, user, receipt(0));
    }
}

fn relay(cx: &mut Cx, owner: &Owner, name: &str, user: &str, event: notify::Event) {
    let notify: Bytes = Notify { event: Some(event) }.encode_to_vec().into();
    let what = What::Relay { conversation: name.to_owned(), notify };
    let ask = Ask { users: vec![user.to_owned()], except: Vec::new(), from: owner.from, what };
    if !cx.hub.delivery.ask_soft(ask) {
        cx.hub.stats.relays_dropped += 1;
    }
}

/// Counts for the sender of the newest message, and what was read to the readers' own devices.
fn tell_group(cx: &mut Cx, owner: &Owner, conversation: &mut Conversation, name: &str) {
    let positions = &mut conversation.positions;
    if positions.loading {
        return;
    }
    let counted = conversation.members.as_ref().is_some_and(|members| members.count() <= TALLY_PUSHED_MAX);
    let newest = positions.newest.is_some();
    if counted && newest && positions.tally.is_none() {
        return load(cx, owner, conversation, name, (String::new(), String::new()));
    }
    for (user, position) in std::mem::take(&mut positions.moved) {
        events::receipt(cx, owner.from.partition, name, &user, position.delivered, position.read);
        if position.read > 0 {
            let (conversation, own) = (name.to_owned(), user.clone());
            let receipt = Receipt { conversation, user: own, delivered: 0, read: position.read };
            relay(cx, owner, name, &user, notify::Event::Receipt(receipt));
        }
    }
    let Some((tally, (seq, sender, told))) =
        positions.tally.as_ref().filter(|_| counted).zip(positions.newest.as_mut())
    else {
        return;
    };
    let counts = count(tally, *seq, sender);
    if counts == *told {
        return;
    }
    *told = counts;
    let (seq, sender) = (*seq, sender.clone());
    let Position { delivered, read } = counts;
    let conversation = name.to_owned();
    let receipt = GroupReceipt { conversation, seq, delivered: delivered as u32, read: read as u32 };
    relay(cx, owner, name, &sender, notify::Event::GroupReceipt(receipt));
}

/// How many others have received and read a message.
fn count(tally: &BTreeMap<String, Position>, seq: u64, sender: &str) -> Position {
    let mut counts = Position::default();
    for (_, position) in tally.iter().filter(|(user, _)| *user != sender) {
        // Who has read it has received it, whatever its acknowledgements say.
        counts.delivered += u64::from(position.delivered.max(position.read) >= seq);
        counts.read += u64::from(position.read >= seq);
    }
    counts
}

// ---- the list ----

/// Who has read a message, and who received it.
pub fn list(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    name: &str,
    asker: Asker,
    user: String,
    ask: Receipts,
) {
    let id = Id::parse(name);
    if let Some((code, reason)) = outsider(id, conversation, &user) {
        return cx.refuse(owner.from, asker, code, reason);
    }
    if ask.seq == 0 || ask.seq > conversation.durable || matches!(id, Some(Id::Room(_))) {
        return cx.refuse(owner.from, asker, Code::NoSuchMessage, "there is no such message");
    }
    let Some(tally) = &conversation.positions.tally else {
        if conversation.positions.waiting.len() >= super::limits::REPEATS_MAX {
            return cx.busy(owner.from, asker, "too many wait for the receipts");
        }
        conversation.positions.waiting.push((asker, user, ask));
        if !conversation.positions.loading {
            load(cx, owner, conversation, name, (String::new(), String::new()));
        }
        return;
    };
    let counts = count(tally, ask.seq, "");
    let limit = match ask.limit {
        0 => MEMBERS_PAGE_MAX,
        limit => limit.min(MEMBERS_PAGE_MAX),
    } as usize;
    let mut page = ReceiptPage {
        delivered: counts.delivered as u32,
        read: counts.read as u32,
        ..ReceiptPage::default()
    };
    let reached = tally
        .range::<str, _>((std::ops::Bound::Excluded(ask.after.as_str()), std::ops::Bound::Unbounded))
        .filter(|(_, position)| position.delivered.max(position.read) >= ask.seq);
    for (n, (user, position)) in reached.enumerate() {
        if n == limit {
            page.more = true;
            break;
        }
        match position.read >= ask.seq {
            true => page.read_by.push(user.clone()),
            false => page.delivered_to.push(user.clone()),
        }
    }
    cx.reply(owner.from, asker, response::Outcome::ReceiptPage(page), Reply::default());
}

fn load(cx: &mut Cx, owner: &Owner, conversation: &mut Conversation, name: &str, after: (String, String)) {
    conversation.positions.loading = true;
    let work = Work::Cursors {
        partition: owner.from.partition,
        fence: owner.fence,
        conversation: name.to_owned(),
        of: CursorsOf::All { after, limit: TALLY_PAGE },
    };
    let job = PartitionJob::Tally(name.to_owned(), BTreeMap::new());
    cx.store(work, Pending::Partition { partition: owner.from.partition, generation: owner.generation, job });
}

/// A page of cursors was read (`None`: it could not be). The next one is asked for, or who waits is answered.
pub fn loaded(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    name: &str,
    mut so_far: BTreeMap<String, Position>,
    page: Option<Vec<(String, String, crate::store::Cursor)>>,
) {
    let Some(page) = page else {
        conversation.positions.loading = false;
        for asker in conversation.positions.stop() {
            cx.busy(owner.from, asker, "the receipts can't be read now");
        }
        return;
    };
    let full = page.len() >= TALLY_PAGE;
    let last = page.last().map(|(user, device, _)| (user.clone(), device.clone()));
    for (user, device, cursor) in page {
        let position = so_far.entry(user).or_default();
        match device.is_empty() {
            true => position.read = position.read.max(cursor.seq),
            false => position.delivered = position.delivered.max(cursor.seq),
        }
    }
    if let Some(after) = last.filter(|_| full) {
        let work = Work::Cursors {
            partition: owner.from.partition,
            fence: owner.fence,
            conversation: name.to_owned(),
            of: CursorsOf::All { after, limit: TALLY_PAGE },
        };
        let job = PartitionJob::Tally(name.to_owned(), so_far);
        let (partition, generation) = (owner.from.partition, owner.generation);
        return cx.store(work, Pending::Partition { partition, generation, job });
    }
    let positions = &mut conversation.positions;
    positions.loading = false;
    positions.tally = Some(so_far);
    for (user, position) in positions.moved.clone() {
        positions.note(&user, position);
    }
    for (user, device, cursor) in conversation.moved.iter() {
        let position = match device.is_empty() {
            true => Position { delivered: 0, read: cursor.seq },
            false => Position { delivered: cursor.seq, read: 0 },
        };
        if let Some(tally) = &mut conversation.positions.tally {
            let noted = tally.entry(user.to_owned()).or_default();
            noted.delivered = noted.delivered.max(position.delivered);
            noted.read = noted.read.max(position.read);
        }
    }
    for (asker, user, ask) in std::mem::take(&mut conversation.positions.waiting) {
        list(cx, owner, conversation, name, asker, user, ask);
    }
    tell(cx, owner, conversation, name);
}
