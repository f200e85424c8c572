//! A client, an application, a server and the time between them. Everything comes from one seed. The application writes
//! down what it takes, and complains at once when a rule is broken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use millrace_protocol::messages::client::SendAck;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;

use super::server::{DEVICE, Frame, Server};
use crate::core::random::Random;
use crate::core::{Action, Event, Machine, Outgoing, Position, Settings};
use crate::error::{Reason, SendError};
use crate::event::Event as Notice;

/// What the application has of one conversation.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// Everything up to here was taken, or is this device's own.
    pub(super) place: u64,
    pub(super) messages: BTreeMap<u64, (u64, Bytes)>,
    pub(super) gaps: Vec<(u64, u64)>,
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) now_ms: u64,
    pub(super) settings: Settings,
    pub(super) machine: Machine,
    pub(super) server: Server,
    pub(super) random: Random,
    /// The connection that the client has, or is making.
    pub(super) conn: Option<u64>,
    opening: bool,
    pub(super) to_server: VecDeque<(u64, u64, Op)>,
    /// Told and not taken.
    pub(super) waiting: VecDeque<(u64, Notice)>,
    pub(super) shown: BTreeMap<String, Shown>,
    pub(super) notices: Vec<Notice>,
    /// The cursor store.
    pub(super) saved: BTreeMap<String, Position>,
    pub(super) settled: BTreeMap<u64, Result<SendAck, SendError>>,
    pub(super) sends: u64,
    /// To which conversations.
    sent: BTreeMap<u64, String>,
    /// Own messages that were acknowledged to this process, unless it took a cut below them since.
    pub(super) acked: BTreeMap<(String, u64), u64>,
    in_flight_syncs: BTreeMap<u64, String>,
    /// When each conversation was acknowledged last on this connection.
    acked_ms: BTreeMap<String, u64>,
    pub(super) waiting_max: usize,
    pub(super) ended: Option<Reason>,
    /// Start places, where the server's is not the log's beginning.
    pub(super) started: BTreeSet<String>,
    /// Not all groups are attached right after the login.
    pub(super) heads_late: bool,
    /// Everything that the machine wanted, if it is to be written down.
    pub(super) trace: Option<Vec<String>>,
}

impl World {
    pub(super) fn new(seed: u64, conversations: &[&str]) -> Self {
        Self::with(seed, conversations, |_| {})
    }

    pub(super) fn with(seed: u64, conversations: &[&str], change: impl Fn(&mut Settings)) -> Self {
        let mut settings = Settings::new("server:1", DEVICE);
        settings.events_max = 16;
        change(&mut settings);
        World {
            seed,
            now_ms: 0,
            machine: Machine::new(settings.clone(), seed, [], 0),
            settings,
            server: Server::new(seed ^ 0xabcd, conversations),
            random: Random::new(seed ^ 0x1234),
            conn: None,
            opening: false,
            to_server: VecDeque::new(),
            waiting: VecDeque::new(),
            shown: BTreeMap::new(),
            notices: Vec::new(),
            saved: BTreeMap::new(),
            settled: BTreeMap::new(),
            sends: 0,
            sent: BTreeMap::new(),
            acked: BTreeMap::new(),
            in_flight_syncs: BTreeMap::new(),
            acked_ms: BTreeMap::new(),
            waiting_max: 0,
            ended: None,
            started: BTreeSet::new(),
            heads_late: false,
            trace: None,
        }
    }

    pub(super) fn step(&mut self, event: Event) {
        if let Event::Response { response, .. } = &event {
            self.in_flight_syncs.remove(&response.id);
        }
        for action in self.machine.step(self.now_ms, event) {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{} {action:?}", self.now_ms));
        }
        match action {
            Action::Token { conn } => self.step(Event::Token { conn, token: Ok("token".into()) }),
            Action::Connect { conn, .. } => (self.conn, self.opening) = (Some(conn), true),
            Action::Request { id, op } => {
                if let Op::Sync(sync) = &op {
                    let twice = self.in_flight_syncs.values().any(|name| *name == sync.conversation);
                    assert!(!twice, "{}: two at once", sync.conversation);
                    self.in_flight_syncs.insert(id, sync.conversation.clone());
                    assert!(self.in_flight_syncs.len() <= 8, "too many are read at once");
                }
                if let Op::DeliverAck(ack) = &op {
                    let place = self.shown.get(&ack.conversation).map_or(0, |shown| shown.place);
                    let seq = ack.cursor.unwrap_or_default().seq;
                    let started = self.started.contains(&ack.conversation);
                    assert!(
                        started || self.covers(&ack.conversation, place, seq),
                        "{}: {seq} acknowledged at {place}",
                        ack.conversation
                    );
                }
                if let Op::DeliverAck(ack) = &op
                    && let Some(last_ms) = self.acked_ms.insert(ack.conversation.clone(), self.now_ms)
                {
                    let ms = self.now_ms - last_ms;
                    assert!(ms >= 2_000, "{}: two acknowledgements within {ms} ms", ack.conversation);
                }
                let conn = self.conn.expect("connected");
                self.to_server.push_back((conn, id, op));
            }
            Action::Ping => {
                if let Some(conn) = self.conn {
                    self.step(Event::Heard { conn });
                }
            }
            Action::First(_) => {}
            Action::Close => self.cut(),
            Action::Tell { number, event } => {
                self.waiting.push_back((number, event));
                self.waiting_max = self.waiting_max.max(self.waiting.len());
            }
            Action::Settle { key, outcome } => {
                let outcome = outcome.map(|outcome| match outcome {
                    Outcome::SendAck(ack) => ack,
                    _ => SendAck::default(),
                });
                if let (Some(conversation), Ok(ack)) = (self.sent.get(&key), &outcome) {
                    self.acked.insert((conversation.clone(), ack.seq), key);
                }
                assert!(self.settled.insert(key, outcome).is_none(), "settled twice");
            }
            Action::Save(batch) => {
                for (conversation, cursor) in batch {
                    match cursor {
                        Some(position) => drop(self.saved.insert(conversation, position)),
                        None => drop(self.saved.remove(&conversation)),
                    }
                }
            }
            Action::End(reason) => self.ended = Some(reason),
        }
    }

    /// The connection breaks; what was under way is gone.
    pub(super) fn cut(&mut self) {
        self.conn = None;
        self.to_server.clear();
        self.in_flight_syncs.clear();
        self.acked_ms.clear();
        self.server.disconnected();
    }

    pub(super) fn lose(&mut self) {
        if let Some(conn) = self.conn {
            self.cut();
            self.step(Event::Lost { conn, reason: Reason::Network("as ordered".into()) });
        }
    }

    pub(super) fn tick(&mut self, ms: u64) {
        self.now_ms += ms;
        self.step(Event::Tick);
        if self.opening
            && let Some(conn) = self.conn
        {
            self.opening = false;
            self.step(Event::Opened { conn });
        }
    }

    /// The next request reaches the server.
    pub(super) fn deliver_request(&mut self) -> bool {
        let Some((conn, id, op)) = self.to_server.pop_front() else { return false };
        let login = matches!(op, Op::Login(_));
        self.server.request(conn, id, op);
        if login {
            for group in self.server.groups() {
                if !self.heads_late || !self.server.random.next().is_multiple_of(4) {
                    self.server.head(&group);
                }
            }
        }
        true
    }

    /// Whether everything between is, or was, this device's own, or is cut.
    fn covers(&self, conversation: &str, place: u64, seq: u64) -> bool {
        let log = &self.server.logs[conversation];
        (place + 1..=seq).all(|seq| log.owned.contains(&seq) || log.entry(seq).is_none())
    }

    /// The next frame reaches the client, if it reads. Either the next of conversations, or an answer.
    pub(super) fn deliver_frame(&mut self) -> bool {
        let Some(conn) = self.conn.filter(|_| self.machine.reads()) else { return false };
        let first = self.random.next().is_multiple_of(2);
        let (flow, answers) = (&mut self.server.flow, &mut self.server.answers);
        let frame = match first {
            true => answers.pop_front().or_else(|| flow.pop_front()),
            false => flow.pop_front().or_else(|| answers.pop_front()),
        };
        match frame {
            Some(Frame::Response(response)) => self.step(Event::Response { conn, response }),
            Some(Frame::Notify(notify)) => self.step(Event::Notify { conn, notify }),
            None => return false,
        }
        true
    }

    /// The application takes its next event.
    pub(super) fn take(&mut self) -> bool {
        let Some((number, notice)) = self.waiting.pop_front() else { return false };
        self.note(&notice);
        self.notices.push(notice);
        self.step(Event::Taken { number });
        true
    }

    fn note(&mut self, notice: &Notice) {
        let seed = self.seed;
        match notice {
            Notice::Message(message) => {
                let (conversation, seq) = (&message.conversation, message.seq);
                let place = self.shown.get(conversation).map_or(0, |shown| shown.place);
                let begins = place == 0 && self.started.remove(conversation);
                assert!(begins || seq > place, "seed {seed}: {conversation} {seq} after {place}");
                assert!(
                    begins || self.covers(conversation, place, seq - 1),
                    "seed {seed}: {conversation} {seq} after {place}: something is missing"
                );
                let shown = self.shown.entry(conversation.clone()).or_default();
                shown.place = seq;
                let before = shown.messages.insert(seq, (message.epoch, message.payload.clone()));
                assert!(before.is_none(), "seed {seed}: {conversation} {seq} twice");
            }
            Notice::Gap { conversation, from, to } => {
                let place = self.shown.get(conversation).map_or(0, |shown| shown.place);
                let begins = place == 0 && self.started.remove(conversation);
                let first = self.server.log(conversation).first;
                assert!(first > *to, "seed {seed}: {conversation}: no gap to {to} in the log");
                assert!(
                    begins || self.covers(conversation, place, from - 1),
                    "seed {seed}: {conversation}: gap from {from} after {place}"
                );
                let shown = self.shown.entry(conversation.clone()).or_default();
                assert!(*from > shown.place && to >= from, "seed {seed}");
                shown.place = *to;
                shown.gaps.push((*from, *to));
            }
            Notice::Truncated { conversation, to } => {
                let shown = self.shown.entry(conversation.clone()).or_default();
                shown.messages.split_off(&(to.seq + 1));
                self.acked.retain(|(name, seq), _| name != conversation || *seq <= to.seq);
                shown.place = shown.place.min(to.seq);
            }
            _ => {}
        }
    }

    /// The process dies and starts again with what was saved. What it had not taken is gone.
    pub(super) fn restart(&mut self) {
        self.cut();
        self.waiting.clear();
        self.acked.clear();
        let saved = self.saved.clone();
        let seed = self.random.next();
        self.machine = Machine::new(self.settings.clone(), seed, saved, self.now_ms);
        self.ended = None;
    }

    pub(super) fn send(&mut self, conversation: &str, deadline_ms: u64) -> u64 {
        self.sends += 1;
        let key = self.sends;
        self.sent.insert(key, conversation.into());
        let payload = Bytes::from(format!("own {key}"));
        let message = Outgoing { payload, ..Outgoing::default() };
        let deadline_ms = self.now_ms + deadline_ms;
        self.step(Event::Send { key, conversation: conversation.into(), message, deadline_ms });
        key
    }

    /// Lets everything happen that is under way, until nothing is, or for this long.
    pub(super) fn settle(&mut self, for_ms: u64) {
        let until_ms = self.now_ms + for_ms;
        while self.now_ms < until_ms {
            self.tick(0);
            let mut busy = self.deliver_request();
            busy |= self.deliver_frame();
            busy |= self.take();
            if !busy {
                let next = self.machine.next_ms().unwrap_or(until_ms);
                self.now_ms = next.clamp(self.now_ms + 1, until_ms);
            }
        }
    }

    /// What the application believes to be stored of its own, against the log.
    pub(super) fn check_own(&self) {
        let seed = self.seed;
        for ((conversation, seq), key) in &self.acked {
            let log = &self.server.logs[conversation];
            let payload = Bytes::from(format!("own {key}"));
            let is_there = log.entry(*seq).is_some_and(|entry| entry.payload == payload);
            assert!(is_there || *seq < log.first, "seed {seed}: {conversation} has no own {seq}: {key}");
        }
    }

    /// What the application has, against the log.
    pub(super) fn check_complete(&mut self) {
        let seed = self.seed;
        for (conversation, log) in &self.server.logs {
            let empty = Shown::default();
            let shown = self.shown.get(conversation).unwrap_or(&empty);
            for entry in log.entries.iter().filter(|entry| !entry.is_own()) {
                let seq = entry.at.seq;
                if shown.gaps.iter().any(|(from, to)| (*from..=*to).contains(&seq)) {
                    continue;
                }
                let had = shown.messages.get(&seq);
                let wanted = (entry.at.epoch, entry.payload.clone());
                assert_eq!(had, Some(&wanted), "seed {seed}: {conversation} {seq} of {:?}", log.head());
            }
            assert_eq!(
                log.delivered.unwrap_or_default().seq,
                log.head().seq,
                "seed {seed}: {conversation} is not acknowledged"
            );
        }
    }
}
