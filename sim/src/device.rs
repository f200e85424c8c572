//! One device of a user: connects somewhere, logs in, sends, joins and leaves, takes in what comes, and starts over when
//! its connection ends.
//!
//! Bytes go through the production client session, messages through the production outbox and what was seen through the
//! production table; reconnecting, heartbeats and calls are this driver's own, after docs/PROTOCOL.md. Everything that
//! it is told goes to the ledger, which judges it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use millrace_client::core::Outgoing;
use millrace_client::core::outbox::{Outbox, Settled};
use millrace_client::core::seen::Seen;
use millrace_protocol::client_session::{
    ClientSession, Limits, Received, ServerFrame, decode_notify, decode_response,
};
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Code, Login, Notify, Refused, Response, notify};

use crate::agenda::Due;
use crate::clock::{MS, SECOND};
use crate::ledger::Invariant;
use crate::network::{ConnId, End, Item};
use crate::outside::Outside;
use crate::random::Random;

/// Outboxes never give a message up.
const NO_DEADLINE_MS: u64 = u64::MAX;

/// Without a LoginAck for so long the connection is given up.
const LOGIN_US: u64 = 6 * SECOND;

/// One connection, logged in or on its way there.
struct Session {
    conn: ConnId,
    speaks: ClientSession,
    accepted: bool,
    login: u64,
    logged_in: bool,
    begun_us: u64,
    heard_us: u64,
    said_us: u64,
    heartbeat_us: u64,
    retry_us: u64,
    displaced: bool,
}

/// A request that is no message.
struct Call {
    op: Op,
    id: Option<u64>,
    not_before_us: u64,
}

/// One device.
pub struct Device {
    /// Its index.
    pub index: usize,
    /// Whose.
    pub user: String,
    /// Its name.
    pub name: String,
    platform: String,
    websocket: bool,
    session: Option<Session>,
    outboxes: BTreeMap<String, Outbox<u64>>,
    seen: Seen,
    calls: Vec<Call>,
    /// Groups that it believes to be in.
    pub groups: BTreeSet<String>,
    /// Rooms that it wants to be in; true: it is.
    pub rooms: BTreeMap<String, bool>,
    ticket: Bytes,
    next_id: u64,
    tries: u32,
    dial_at_us: u64,
    wake_at_us: Option<u64>,
    heartbeat_ms: u32,
    /// Heads count anew: the store may lose what it had.
    pub forgiving: bool,
    random: Random,
    messages: u64,
}

impl Device {
    /// A device that connects soon.
    pub fn new(index: usize, user: String, name: String, heartbeat_ms: u32, mut random: Random) -> Self {
        // On phones the newest session of a user wins: a user has one.
        let platform = if name == "device0" { "phone" } else { "desktop" }.to_owned();
        let (websocket, dial_at_us) = (random.chance(400), random.below(300 * MS));
        Device {
            index,
            user,
            name,
            platform,
            websocket,
            session: None,
            outboxes: BTreeMap::new(),
            seen: Seen::default(),
            calls: Vec::new(),
            groups: BTreeSet::new(),
            rooms: BTreeMap::new(),
            ticket: Bytes::new(),
            next_id: 1,
            tries: 0,
            dial_at_us,
            wake_at_us: None,
            heartbeat_ms,
            forgiving: false,
            random,
            messages: 0,
        }
    }

    /// Whether it is logged in.
    pub fn is_online(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.logged_in)
    }

    /// Its connection, if it has one.
    pub fn connection(&self) -> Option<ConnId> {
        self.session.as_ref().map(|session| session.conn)
    }

    // ---- what the user wants ----

    /// Sends a message.
    pub fn say(&mut self, out: &mut Outside, conversation: &str, filler: usize) {
        self.messages += 1;
        let text = format!("{}/{}#{};{}", self.user, self.name, self.messages, ".".repeat(filler));
        let payload = Bytes::from(text);
        let number = out.ledger.sends(self.index, conversation, payload.clone());
        let random = self.random.nonzero();
        let outbox = self.outboxes.entry(conversation.into()).or_default();
        if let Err(number) = outbox.push(conversation, Outgoing { payload, ..Outgoing::default() }, NO_DEADLINE_MS, random, number) {
            out.ledger.refused(number);
        }
        self.flush(out);
    }

    /// Asks for something else.
    pub fn call(&mut self, out: &mut Outside, op: Op) {
        if self.calls.len() < 8 {
            self.calls.push(Call { op, id: None, not_before_us: 0 });
            self.flush(out);
        }
    }

    /// Hangs up, and connects again.
    pub fn hang_up(&mut self, out: &mut Outside) {
        if let Some(session) = &self.session {
            let conn = session.conn;
            out.close(conn, 0);
            self.disconnected(out, 0);
        }
    }

    /// Forgets its connection, which lives on for a while, and connects again.
    pub fn double(&mut self, out: &mut Outside) {
        if let Some(session) = &self.session {
            let conn = session.conn;
            out.network.vanish(&mut out.agenda, out.now_us, conn, 0, 3 * SECOND);
            self.disconnected(out, 0);
            self.dial_at_us = out.now_us;
            self.wake(out);
        }
    }

    // ---- time ----

    /// Asks to be woken when something is due.
    fn wake(&mut self, out: &mut Outside) {
        let now_us = out.now_us;
        let at_us = match &self.session {
            None => self.dial_at_us,
            Some(session) if !session.logged_in => session.begun_us + LOGIN_US,
            Some(session) => {
                let beat_us = (session.said_us + session.heartbeat_us)
                    .min(session.heard_us + session.heartbeat_us * 5 / 2);
                let outbox = self.outboxes.values().filter_map(Outbox::next_ms).map(|ms| ms.saturating_mul(MS));
                let calls = self.calls.iter().filter(|call| call.id.is_none()).map(|call| call.not_before_us);
                outbox.chain(calls).filter(|at| *at > now_us).min().unwrap_or(u64::MAX).min(beat_us)
            }
        };
        let at_us = at_us.max(now_us + 1);
        if self.wake_at_us.is_none_or(|noted| noted > at_us || noted <= now_us) {
            self.wake_at_us = Some(at_us);
            out.agenda.at(at_us, Due::Device(self.index));
        }
    }

    /// The time that it asked for, or an earlier wish of it. `gateways`: each with its number of shards and its life.
    pub fn woken(&mut self, out: &mut Outside, choose: impl FnOnce(&mut Random) -> End) {
        if self.wake_at_us.is_some_and(|at_us| at_us <= out.now_us) {
            self.wake_at_us = None;
        }
        let now_us = out.now_us;
        match &mut self.session {
            None if self.dial_at_us <= now_us => self.dial(out, choose),
            None => {}
            Some(session) => {
                let silent = now_us >= session.heard_us + session.heartbeat_us * 5 / 2;
                let late = !session.logged_in && now_us >= session.begun_us + LOGIN_US;
                if late || session.logged_in && silent {
                    let conn = session.conn;
                    out.close(conn, 0);
                    self.disconnected(out, 0);
                } else if session.logged_in && now_us >= session.said_us + session.heartbeat_us {
                    let mut bytes = Vec::new();
                    session.speaks.ping(&mut bytes);
                    self.write(out, bytes);
                }
            }
        }
        self.flush(out);
        self.wake(out);
    }

    fn dial(&mut self, out: &mut Outside, choose: impl FnOnce(&mut Random) -> End) {
        let to = choose(&mut self.random);
        let conn = out.network.connect(&mut out.agenda, out.now_us, End::Device(self.index), to);
        self.session = Some(Session {
            conn,
            speaks: ClientSession::tcp(),
            accepted: false,
            login: 0,
            logged_in: false,
            begun_us: out.now_us,
            heard_us: out.now_us,
            said_us: out.now_us,
            heartbeat_us: u64::from(self.heartbeat_ms) * MS,
            retry_us: 0,
            displaced: false,
        });
    }

    fn disconnected(&mut self, out: &mut Outside, retry_us: u64) {
        let Some(session) = self.session.take() else { return };
        self.tries = if session.logged_in { 0 } else { self.tries + 1 };
        let longest_us = (100 * MS << self.tries.min(6)).min(3 * SECOND);
        let pause_us = self.random.below(longest_us).max(retry_us).max(session.retry_us);
        self.dial_at_us = out.now_us + pause_us;
        for outbox in self.outboxes.values_mut() {
            outbox.disconnected();
        }
        for call in &mut self.calls {
            (call.id, call.not_before_us) = (None, 0);
        }
        // Rooms end with the session.
        for joined in self.rooms.values_mut() {
            *joined = false;
        }
        self.wake(out);
    }

    // ---- bytes ----

    fn write(&mut self, out: &mut Outside, bytes: Vec<u8>) {
        if let Some(session) = &mut self.session
            && !bytes.is_empty()
        {
            session.said_us = out.now_us;
            let conn = session.conn;
            out.send(conn, 0, bytes.into());
        }
    }

    /// Something arrived on a connection of this device, perhaps on one that it gave up.
    pub fn arrived(&mut self, out: &mut Outside, id: ConnId, item: Item) {
        let Some(session) = self.session.as_mut().filter(|session| session.conn == id) else {
            if matches!(item, Item::Accepted) {
                out.close(id, 0);
            }
            return;
        };
        match item {
            Item::Accepted => {
                session.accepted = true;
                if self.websocket {
                    let mut nonce = [0; 16];
                    nonce[..8].copy_from_slice(&self.random.nonzero().to_le_bytes());
                    nonce[8..].copy_from_slice(&self.random.nonzero().to_le_bytes());
                    let (speaks, bytes) = ClientSession::websocket("sim", "/", nonce);
                    session.speaks = speaks;
                    self.write(out, bytes);
                } else {
                    self.log_in(out);
                }
            }
            Item::Bytes(bytes) => {
                session.heard_us = out.now_us;
                self.read(out, bytes.to_vec());
            }
            Item::Closed => {
                let displaced = session.displaced;
                out.close(id, 0);
                if displaced {
                    out.ledger.counts.displaced += 1;
                }
                self.disconnected(out, 0);
            }
        }
        self.flush(out);
        self.wake(out);
    }

    fn read(&mut self, out: &mut Outside, mut bytes: Vec<u8>) {
        let mut input = Received::new(&mut bytes);
        let limits = Limits::default();
        loop {
            // What a frame lends is decoded before anything is done about it.
            let mut answer = Vec::new();
            let Some(session) = &mut self.session else { return };
            let got = match session.speaks.next(&mut input, &limits) {
                Ok(None) => return,
                Ok(Some(ServerFrame::Open)) => Got::Open,
                Ok(Some(ServerFrame::Response(body))) => decode_response(body).map_or(Got::Broken, Got::Response),
                Ok(Some(ServerFrame::Notify(body))) => decode_notify(body).map_or(Got::Broken, Got::Notify),
                Ok(Some(ServerFrame::Ping)) => Got::Ping,
                Ok(Some(ServerFrame::Pong | ServerFrame::WsPing(_))) => Got::Nothing,
                Ok(Some(ServerFrame::WsClose { .. })) => Got::Nothing,
                Err(_) => Got::Broken,
            };
            match got {
                Got::Nothing => {}
                Got::Open => self.log_in(out),
                Got::Ping => {
                    session.speaks.pong(&mut answer);
                    self.write(out, answer);
                }
                Got::Response(response) => self.answered(out, response),
                Got::Notify(notify) => self.notified(out, notify),
                Got::Broken => {
                    let detail = format!("{}/{} can't read what the gateway sent", self.user, self.name);
                    out.ledger.broken(Invariant::NoPanic, out.now_us, detail);
                    return;
                }
            }
        }
    }

    fn log_in(&mut self, out: &mut Outside) {
        let id = self.next_id;
        self.next_id += 1;
        let by_ticket = !self.ticket.is_empty() && self.random.chance(700);
        let login = Login {
            token: if by_ticket { String::new() } else { self.user.clone() },
            device: self.name.clone(),
            platform: self.platform.clone(),
            resume_ticket: if by_ticket { self.ticket.clone() } else { Bytes::new() },
            acknowledges: false,
        };
        let Some(session) = &mut self.session else { return };
        session.login = id;
        let mut bytes = Vec::new();
        session.speaks.request(id, Op::Login(login), &mut bytes);
        self.write(out, bytes);
    }

    /// Sends whatever may go now.
    fn flush(&mut self, out: &mut Outside) {
        let now_us = out.now_us;
        let Some(session) = self.session.as_mut().filter(|session| session.logged_in) else { return };
        let mut bytes = Vec::new();
        for call in self.calls.iter_mut().filter(|call| call.id.is_none() && call.not_before_us <= now_us) {
            call.id = Some(self.next_id);
            session.speaks.request(self.next_id, call.op.clone(), &mut bytes);
            self.next_id += 1;
        }
        for (conversation, outbox) in &mut self.outboxes {
            let waits = conversation.starts_with("r:") && self.rooms.get(conversation) != Some(&true);
            if waits && self.rooms.contains_key(conversation) {
                continue;
            }
            while let Some(op) = outbox.transmit(now_us / MS, self.next_id, |_| false) {
                session.speaks.request(self.next_id, op, &mut bytes);
                self.next_id += 1;
            }
        }
        self.write(out, bytes);
    }

    // ---- what it is told ----

    fn answered(&mut self, out: &mut Outside, response: Response) {
        let Response { id, outcome: Some(outcome) } = response else { return };
        out.trace.say(out.now_us, |text| {
            *text += &format!("{}/{} < {id} {outcome:?}", self.user, self.name);
        });
        let Some(session) = &mut self.session else { return };
        if id == session.login && !session.logged_in {
            return self.login_answered(out, outcome);
        }
        let carrier = self.outboxes.iter().find(|(_, outbox)| outbox.knows(id)).map(|(name, _)| name.clone());
        if let Some(conversation) = carrier {
            return self.message_answered(out, &conversation, id, outcome);
        }
        let Some(at) = self.calls.iter().position(|call| call.id == Some(id)) else { return };
        match outcome {
            Outcome::Refused(refused) if again(&refused) => {
                self.calls[at].id = None;
                let pause_us = u64::from(refused.retry_after_ms.max(50)) * MS;
                self.calls[at].not_before_us = out.now_us + pause_us;
            }
            outcome => {
                let call = self.calls.remove(at);
                self.call_answered(out, &call.op, outcome);
            }
        }
    }

    fn login_answered(&mut self, out: &mut Outside, outcome: Outcome) {
        let Some(session) = &mut self.session else { return };
        match outcome {
            Outcome::LoginAck(ack) => {
                session.logged_in = true;
                session.heartbeat_us = u64::from(ack.heartbeat_interval_ms) * MS;
                self.tries = 0;
                self.ticket = ack.resume_ticket;
                out.ledger.session_begins(self.index);
                let rooms: Vec<String> = self.rooms.keys().cloned().collect();
                for room in rooms {
                    let room = room.trim_start_matches("r:").to_owned();
                    let op = Op::RoomJoin(millrace_protocol::messages::client::RoomJoin { room });
                    self.calls.push(Call { op, id: None, not_before_us: 0 });
                }
            }
            Outcome::Refused(refused) => {
                session.retry_us = u64::from(refused.retry_after_ms) * MS;
                if matches!(refused.code(), Code::BadToken | Code::TokenExpired) {
                    self.ticket = Bytes::new();
                }
            }
            _ => {}
        }
    }

    fn message_answered(&mut self, out: &mut Outside, conversation: &str, id: u64, outcome: Outcome) {
        let (now_us, random) = (out.now_us, self.random.nonzero());
        let Some(outbox) = self.outboxes.get_mut(conversation) else { return };
        let settled: Option<Settled<u64>> = match outcome {
            Outcome::SendAck(ack) => {
                self.seen.note(conversation, ack.epoch, ack.seq);
                outbox.acknowledged(id, ack)
            }
            Outcome::Refused(refused) => outbox.refused(id, &refused, now_us / MS, random),
            _ => None,
        };
        match settled {
            Some((number, Ok(ack))) => out.ledger.acked(now_us, number, &ack),
            Some((number, Err(_))) => out.ledger.refused(number),
            None => {}
        }
    }

    fn call_answered(&mut self, out: &mut Outside, op: &Op, outcome: Outcome) {
        match (op, outcome) {
            (Op::RoomJoin(_), Outcome::Joined(joined)) => {
                out.ledger.attached(self.index, &joined.conversation, joined.head, self.forgiving);
                self.rooms.insert(joined.conversation, true);
            }
            (Op::RoomLeave(ask), _) => {
                let room = format!("r:{}", ask.room);
                out.ledger.detached(self.index, &room);
                self.rooms.remove(&room);
            }
            (Op::GroupCreate(_) | Op::GroupJoin(_), Outcome::Joined(joined)) => {
                out.ledger.attached(self.index, &joined.conversation, joined.head, self.forgiving);
                self.groups.insert(joined.conversation);
            }
            (Op::GroupLeave(ask), Outcome::Left(_)) => {
                let group = format!("g:{}", ask.group);
                out.ledger.detached(self.index, &group);
                self.groups.remove(&group);
            }
            _ => {}
        }
    }

    fn notified(&mut self, out: &mut Outside, notify: Notify) {
        let now_us = out.now_us;
        out.trace.say(now_us, |text| *text += &format!("{}/{} < {}", self.user, self.name, brief(&notify)));
        match notify.event {
            Some(notify::Event::Deliver(deliver)) => {
                let fresh = self.seen.note(&deliver.conversation, deliver.epoch, deliver.seq);
                let own = deliver.sender == self.user && deliver.sender_device == self.name;
                out.ledger.delivered(now_us, self.index, &deliver, fresh && !own);
            }
            Some(notify::Event::Head(head)) => {
                out.ledger.attached(self.index, &head.conversation, head.seq, self.forgiving);
                if head.conversation.starts_with("g:") {
                    self.groups.insert(head.conversation);
                }
            }
            Some(notify::Event::Gap(gap)) => out.ledger.gap(self.index, &gap.conversation, gap.to),
            Some(notify::Event::Removed(removed)) => {
                out.ledger.detached(self.index, &removed.conversation);
                self.groups.remove(&removed.conversation);
            }
            Some(notify::Event::GoAway(away)) => {
                if let Some(session) = &mut self.session {
                    session.retry_us = u64::from(away.retry_after_ms) * MS;
                    session.displaced = away.code() == Code::Displaced;
                }
            }
            _ => {}
        }
    }
}

/// What was read of one frame.
enum Got {
    Nothing,
    Open,
    Ping,
    Response(Response),
    Notify(Notify),
    Broken,
}

/// Whether the same request may succeed later.
fn again(refused: &Refused) -> bool {
    matches!(refused.code(), Code::Busy | Code::Unavailable) || refused.retry_after_ms > 0
}

fn brief(notify: &Notify) -> String {
    match &notify.event {
        Some(notify::Event::Deliver(it)) => {
            let payload = String::from_utf8_lossy(&it.payload);
            let text = payload.split(';').next().unwrap_or_default();
            format!("Deliver {} {} under {} {text}", it.conversation, it.seq, it.epoch)
        }
        other => format!("{other:?}"),
    }
}
