//! A server for tests: logs, cursors and one session, by the rules of the protocol and with the faults that they allow.
//! Frames of conversations leave in order; answers of other kinds overtake them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{
    Code, ConversationItem, ConversationPage, Cursor, Deliver, Done, Gap, GoAway, Head, LoginAck, Notify,
    Peeked, Refused, Response, Resync, SendAck, Standing, Sync, SyncPage, Truncated, notify,
};

use crate::core::random::Random;

/// Who the client under test is.
pub(super) const USER: &str = "alice";
pub(super) const DEVICE: &str = "phone";

/// Most entries of a page, whatever is asked.
const PAGE_MAX: usize = 7;

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) at: Cursor,
    pub(super) sender: &'static str,
    pub(super) device: &'static str,
    pub(super) payload: Bytes,
    key: Option<(u64, u64)>,
}

impl Entry {
    pub(super) fn is_own(&self) -> bool {
        (self.sender, self.device) == (USER, DEVICE)
    }

    fn deliver(&self, conversation: &str) -> Notify {
        Notify {
            event: Some(notify::Event::Deliver(Deliver {
                conversation: conversation.into(),
                seq: self.at.seq,
                epoch: self.at.epoch,
                sender: self.sender.into(),
                sender_device: self.device.into(),
                payload: self.payload.clone(),
                ..Deliver::default()
            })),
        }
    }
}

#[derive(Debug)]
pub(super) struct Log {
    pub(super) epoch: u64,
    /// Those below were trimmed.
    pub(super) first: u64,
    /// Of the last one trimmed.
    trimmed_epoch: u64,
    pub(super) entries: VecDeque<Entry>,
    /// By stream: the last number taken.
    streams: BTreeMap<u64, u64>,
    kept: Option<(u64, VecDeque<Entry>, BTreeMap<u64, u64>)>,
    /// The device's, as acknowledged.
    pub(super) delivered: Option<Cursor>,
    /// Seqs that were this device's own, also if they were cut since.
    pub(super) owned: BTreeSet<u64>,
}

impl Log {
    fn new() -> Self {
        Log {
            epoch: 1,
            first: 1,
            trimmed_epoch: 0,
            entries: VecDeque::new(),
            streams: BTreeMap::new(),
            kept: None,
            delivered: None,
            owned: BTreeSet::new(),
        }
    }

    pub(super) fn head(&self) -> Cursor {
        let trimmed = Cursor { epoch: self.trimmed_epoch, seq: self.first - 1 };
        self.entries.back().map_or(trimmed, |entry| entry.at)
    }

    pub(super) fn entry(&self, seq: u64) -> Option<&Entry> {
        self.entries.get(seq.checked_sub(self.first)? as usize)
    }

    /// Whether a cursor is in the log, or below what is left of it.
    fn holds(&self, cursor: Cursor) -> bool {
        cursor.seq < self.first || self.entry(cursor.seq).is_some_and(|entry| entry.at == cursor)
    }
}

/// One session.
#[derive(Debug, Default)]
struct Session {
    conn: u64,
    acknowledges: bool,
    attached: BTreeSet<String>,
    syncing: BTreeSet<String>,
    /// What was not sent live, and not told either.
    skipped: BTreeMap<String, (u64, u64)>,
}

/// How often things go wrong, in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) busy: u64,
    pub(super) skip_live: u64,
    pub(super) repeat_live: u64,
}

pub(super) struct Server {
    pub(super) logs: BTreeMap<String, Log>,
    session: Option<Session>,
    /// In order: what conversations send.
    pub(super) flow: VecDeque<Frame>,
    /// Answers that overtake it.
    pub(super) answers: VecDeque<Frame>,
    pub(super) faults: Faults,
    pub(super) random: Random,
    pub(super) syncs: u64,
    pub(super) acks: u64,
    pub(super) asked: Vec<Op>,
}

#[derive(Clone, Debug)]
pub(super) enum Frame {
    Response(Response),
    Notify(Notify),
}

fn refused(code: Code, retry_after_ms: u32, expected: u64) -> Outcome {
    Outcome::Refused(Refused { code: code.into(), reason: "as ordered".into(), retry_after_ms, expected })
}

impl Server {
    pub(super) fn new(seed: u64, conversations: &[&str]) -> Self {
        let logs = conversations.iter().map(|name| (name.to_string(), Log::new())).collect();
        Server {
            logs,
            session: None,
            flow: VecDeque::new(),
            answers: VecDeque::new(),
            faults: Faults::default(),
            random: Random::new(seed),
            syncs: 0,
            acks: 0,
            asked: Vec::new(),
        }
    }

    pub(super) fn log(&mut self, conversation: &str) -> &mut Log {
        self.logs.entry(conversation.into()).or_insert_with(Log::new)
    }

    pub(super) fn chance(&mut self, in_thousand: u64) -> bool {
        self.random.next() % 1_000 < in_thousand
    }

    pub(super) fn notify(&mut self, event: notify::Event) {
        self.flow.push_back(Frame::Notify(Notify { event: Some(event) }));
    }

    fn answer(&mut self, id: u64, outcome: Outcome) {
        self.answers.push_back(Frame::Response(Response { id, outcome: Some(outcome) }));
    }

    /// The connection is gone.
    pub(super) fn disconnected(&mut self) {
        self.session = None;
        self.flow.clear();
        self.answers.clear();
    }

    pub(super) fn go_away(&mut self, code: Code, retry_after_ms: u32) {
        let reason = "as ordered".into();
        self.notify(notify::Event::GoAway(GoAway { code: code.into(), reason, retry_after_ms }));
    }

    /// Someone sends; or this client's user on another device.
    pub(super) fn append(&mut self, conversation: &str, sender: &'static str, payload: Bytes) -> Cursor {
        self.append_entry(conversation, sender, "laptop", payload, None)
    }

    fn append_entry(
        &mut self,
        conversation: &str,
        sender: &'static str,
        device: &'static str,
        payload: Bytes,
        key: Option<(u64, u64)>,
    ) -> Cursor {
        let log = self.log(conversation);
        let at = Cursor { epoch: log.epoch, seq: log.head().seq + 1 };
        let entry = Entry { at, sender, device, payload, key };
        log.entries.push_back(entry.clone());
        if entry.is_own() {
            log.owned.insert(at.seq);
        }
        self.live(conversation, &entry);
        at
    }

    fn live(&mut self, conversation: &str, entry: &Entry) {
        let (skip, twice) = (self.chance(self.faults.skip_live), self.chance(self.faults.repeat_live));
        let Some(session) = &mut self.session else { return };
        let is_live = session.attached.contains(conversation) || conversation.starts_with("d:");
        if entry.is_own() || !is_live || session.syncing.contains(conversation) {
            return;
        }
        if skip {
            let seq = entry.at.seq;
            session.skipped.entry(conversation.into()).or_insert((seq, seq)).1 = seq;
            return;
        }
        for _ in 0..=u32::from(twice) {
            self.flow.push_back(Frame::Notify(entry.deliver(conversation)));
        }
    }

    /// Says what was skipped, of some conversation.
    pub(super) fn gap(&mut self) {
        let skipped = self.session.as_mut().and_then(|session| session.skipped.pop_first());
        if let Some((conversation, (from, to))) = skipped {
            self.notify(notify::Event::Gap(Gap { conversation, from, to }));
        }
    }

    /// Asks for what is not acknowledged.
    pub(super) fn resync(&mut self) {
        let behind: Vec<String> = self
            .logs
            .iter()
            .filter(|(_, log)| log.delivered.unwrap_or_default() != log.head())
            .map(|(conversation, _)| conversation.clone())
            .collect();
        if self.session.as_ref().is_some_and(|session| session.acknowledges) && !behind.is_empty() {
            self.notify(notify::Event::Resync(Resync { conversations: behind }));
        }
    }

    /// A Head, now or again.
    pub(super) fn head(&mut self, conversation: &str) {
        let at = self.log(conversation).head();
        if let Some(session) = &mut self.session {
            session.attached.insert(conversation.into());
            let conversation = conversation.into();
            self.notify(notify::Event::Head(Head { conversation, epoch: at.epoch, seq: at.seq }));
        }
    }

    /// The log's start is gone.
    pub(super) fn trim(&mut self, conversation: &str, count: u64) {
        let log = self.log(conversation);
        for _ in 0..count {
            if let Some(gone) = log.entries.pop_front() {
                (log.first, log.trimmed_epoch) = (log.first + 1, gone.at.epoch);
            }
        }
    }

    /// Another owner, whose store lost the newest `count`. Whoever is attached is told.
    pub(super) fn takeover(&mut self, conversation: &str, count: u64) {
        let log = self.log(conversation);
        log.epoch += 1;
        for _ in 0..count {
            if let Some(gone) = log.entries.pop_back()
                && let Some((stream, client_seq)) = gone.key
            {
                // Its answer was in the same write.
                match client_seq {
                    1 => drop(log.streams.remove(&stream)),
                    _ => drop(log.streams.insert(stream, client_seq - 1)),
                }
            }
        }
        let (to, cut) = (log.head(), count > 0);
        if cut && log.delivered.is_some_and(|delivered| delivered.seq > to.seq) {
            log.delivered = Some(to);
        }
        if cut && self.session.as_ref().is_some_and(|session| session.attached.contains(conversation)) {
            let conversation = conversation.into();
            self.notify(notify::Event::Truncated(Truncated { conversation, to: Some(to) }));
        }
    }

    /// Another copy of the store serves this: what was kept of it at the last time, and has not changed since.
    pub(super) fn turn(&mut self, conversation: &str) {
        let log = self.log(conversation);
        let now = (log.first, log.entries.clone(), log.streams.clone());
        let (epoch, kept) = (log.epoch, log.kept.replace(now));
        if let Some((first, entries, streams)) = kept.filter(|(first, ..)| *first == log.first) {
            (log.first, log.entries, log.streams, log.epoch) = (first, entries, streams, epoch);
            log.delivered = log.delivered.filter(|at| log.holds(*at));
            log.epoch += 1;
            let (to, conversation) = (log.head(), conversation.to_owned());
            if self.session.as_ref().is_some_and(|session| session.attached.contains(&conversation)) {
                if conversation.starts_with("g:") {
                    self.notify(notify::Event::Truncated(Truncated { conversation, to: Some(to) }));
                } else {
                    self.notify(notify::Event::Resync(Resync { conversations: vec![conversation] }));
                }
            }
        }
    }

    /// A request arrived.
    pub(super) fn request(&mut self, conn: u64, id: u64, op: Op) {
        self.asked.push(op.clone());
        if let Op::Login(login) = op {
            self.session = Some(Session { conn, acknowledges: login.acknowledges, ..Session::default() });
            let ack = LoginAck {
                session: conn,
                user: USER.into(),
                heartbeat_interval_ms: 30_000,
                resume_ticket: Bytes::from_static(b"ticket"),
                ..LoginAck::default()
            };
            self.flow.push_back(Frame::Response(Response { id, outcome: Some(Outcome::LoginAck(ack)) }));
            return;
        }
        assert!(self.session.as_ref().is_some_and(|session| session.conn == conn), "a login comes first");
        if id != 0 && self.chance(self.faults.busy) {
            if let Op::Sync(sync) = op {
                let session = self.session.as_mut().expect("logged in");
                session.syncing.remove(&sync.conversation);
            }
            return self.answer(id, refused(Code::Busy, 100, 0));
        }
        match op {
            Op::Send(send) => {
                let log = self.log(&send.conversation);
                let last = log.streams.get(&send.stream).copied().unwrap_or(0);
                let key = (send.stream, send.client_seq);
                let stored = log.entries.iter().find(|entry| entry.key == Some(key)).cloned();
                let at = match stored {
                    Some(entry) if entry.payload != send.payload => {
                        return self.answer(id, refused(Code::Conflict, 0, 0));
                    }
                    Some(entry) => entry.at,
                    None if send.client_seq != last + 1 => {
                        return self.answer(id, refused(Code::OutOfOrder, 0, last + 1));
                    }
                    None => {
                        log.streams.insert(send.stream, send.client_seq);
                        self.append_entry(&send.conversation, USER, DEVICE, send.payload, Some(key))
                    }
                };
                self.answer(
                    id,
                    Outcome::SendAck(SendAck { seq: at.seq, epoch: at.epoch, ..SendAck::default() }),
                );
            }
            Op::Sync(sync) => self.sync(id, sync),
            Op::DeliverAck(ack) => {
                let (at, cursor) = (ack.conversation, ack.cursor.expect("a cursor"));
                self.acks += 1;
                self.log(&at).delivered = Some(cursor);
            }
            Op::Conversations(ask) => {
                let mut items: Vec<ConversationItem> = self
                    .logs
                    .keys()
                    .filter(|name| **name > ask.after)
                    .take(4)
                    .map(|name| ConversationItem { conversation: name.clone(), ..Default::default() })
                    .collect();
                let more = items.len() == 4;
                items.truncate(3);
                self.answer(id, Outcome::ConversationPage(ConversationPage { items, more }));
            }
            Op::Peek(peek) => {
                assert!(peek.items.len() <= 256);
                if peek.items.iter().any(|item| item.conversation.contains("stranger")) {
                    return self.answer(id, refused(Code::Forbidden, 0, 0));
                }
                let mut standings = Vec::new();
                // An answer is full with the newest messages of two.
                let mut room = 2;
                for item in peek.items {
                    if self.chance(self.faults.busy) {
                        let code = Code::Busy.into();
                        standings.push(Standing {
                            conversation: item.conversation,
                            code,
                            ..Default::default()
                        });
                        continue;
                    }
                    let log = self.log(&item.conversation);
                    let (head, delivered) = (log.head(), log.delivered);
                    let last = log.entries.back().filter(|_| room > 0);
                    let last = last.map(|entry| entry.deliver(&item.conversation));
                    room -= usize::from(last.is_some());
                    standings.push(Standing {
                        conversation: item.conversation,
                        head: Some(head),
                        delivered,
                        last,
                        news: item.cursor.or(delivered).unwrap_or_default().seq < head.seq,
                        ..Default::default()
                    });
                }
                self.answer(id, Outcome::Peeked(Peeked { standings }));
            }
            _ => self.answer(id, Outcome::Done(Done {})),
        }
    }

    fn sync(&mut self, id: u64, sync: Sync) {
        self.syncs += 1;
        let conversation = sync.conversation;
        let log = self.log(&conversation);
        let after = sync.after.or(log.delivered).unwrap_or_default();
        let head = log.head();
        let mut page = SyncPage {
            conversation: conversation.clone(),
            epoch: head.epoch,
            head: head.seq,
            ..Default::default()
        };
        if !log.holds(after) {
            let below = log
                .entries
                .iter()
                .rev()
                .find(|entry| entry.at.epoch <= after.epoch && entry.at.seq < after.seq);
            page.truncated = Some(below.map_or(Cursor { epoch: 0, seq: log.first - 1 }, |entry| entry.at));
        } else {
            if after.seq + 1 < log.first {
                let (from, to) = (after.seq + 1, log.first - 1);
                page.gap = Some(Gap { conversation: conversation.clone(), from, to });
            }
            let limit = (sync.limit as usize).min(PAGE_MAX);
            let from = (after.seq + 1).max(log.first);
            let entries: Vec<&Entry> = (from..).map_while(|seq| log.entry(seq)).take(limit).collect();
            page.more = entries.last().is_some_and(|entry| entry.at.seq < head.seq);
            page.entries = entries.into_iter().map(|entry| entry.deliver(&conversation)).collect();
        }
        let session = self.session.as_mut().expect("logged in");
        if page.more || page.truncated.is_some() {
            session.syncing.insert(conversation);
        } else {
            session.syncing.remove(&conversation);
            session.skipped.remove(&conversation);
            session.attached.insert(conversation);
        }
        self.flow.push_back(Frame::Response(Response { id, outcome: Some(Outcome::SyncPage(page)) }));
    }

    pub(super) fn groups(&self) -> Vec<String> {
        self.logs.keys().filter(|name| name.starts_with("g:")).cloned().collect()
    }
}
