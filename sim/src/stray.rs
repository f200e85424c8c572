//! A client that is not the SDK, and breaks its own promises about numbers: one that was installed again, or restored from
//! a backup, or skips. It speaks the protocol by itself, logs in as one more device of a user, and asks again and again.
//!
//! | what it does | what it must be answered |
//! |---|---|
//! | the next number; some in a row | its message is stored |
//! | a number that was stored, with the same payload | the first answer |
//! | a number that was stored, with another payload | CONFLICT |
//! | a number above the next | OUT_OF_ORDER |
//! | 1 on a new stream | its message is stored |
//!
//! What it is answered is judged as for everyone: [`crate::answers`]. The rule that keeps it fair: it waits for all answers
//! before it does the next thing, and what it says in order it repeats in order, so that the order of its messages in the
//! log is promised. A number that it skips to has a later message than it said under the numbers above: where that may be
//! stored (a connection took the answer with it, or the number was due after all), it begins a new stream.

use std::collections::BTreeMap;

use bytes::Bytes;
use millrace_protocol::client_session::{ClientSession, Limits, Received, ServerFrame, decode_response};
use millrace_protocol::conversation;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Code, Login, Send};

use crate::agenda::{Due, Seat, Who};
use crate::answers::Asked;
use crate::clock::SECOND;
use crate::network::{ConnId, End, Item};
use crate::outside::Outside;
use crate::plan::Plan;
use crate::random::Random;
use crate::work::user;

/// Its name as a device.
const NAME: &str = "stray";

/// It waits no longer for anything before it tries another connection, us.
const PATIENCE_US: u64 = 3 * SECOND;

/// Request of its login; others have higher numbers.
const LOGIN_ID: u64 = 1;

/// A stream of one conversation.
#[derive(Debug)]
struct Lane {
    stream: u64,
    /// The number that is due, as far as it knows.
    next: u64,
    /// What it said under each number.
    said: BTreeMap<u64, Bytes>,
    /// A number that is not due is under way.
    skips: bool,
}

/// A connection, from when it is asked for.
#[derive(Debug)]
struct Wire {
    id: ConnId,
    speaks: ClientSession,
    logged_in: bool,
    asked: BTreeMap<u64, (String, u64, Asked)>,
    /// When it last wrote.
    since_us: u64,
}

/// See the module's head.
#[derive(Debug)]
pub struct Stray {
    index: usize,
    user: String,
    wire: Option<Wire>,
    lanes: BTreeMap<String, Lane>,
    next_id: u64,
    messages: u64,
    plan: Plan,
    random: Random,
}

impl Stray {
    /// One of the user with this index.
    pub fn new(index: usize, of: usize, plan: &Plan, random: Random) -> Self {
        let (wire, lanes) = (None, BTreeMap::new());
        let (next_id, messages) = (LOGIN_ID, 0);
        Stray { index, user: user(of), wire, lanes, next_id, messages, plan: plan.clone(), random }
    }

    /// It does something, and something else later.
    pub fn turn(&mut self, out: &mut Outside) {
        if out.now_us >= self.plan.busy_until_us() {
            return;
        }
        out.after(1 + self.random.below(2 * self.plan.think_us), Due::Stray(self.index));
        let Some(wire) = &self.wire else { return self.dial(out) };
        let waits = !wire.logged_in || !wire.asked.is_empty();
        if waits && wire.since_us + PATIENCE_US < out.now_us {
            return self.hang_up(out);
        }
        if !waits {
            self.say(out);
        }
    }

    // ---- what it says ----

    fn say(&mut self, out: &mut Outside) {
        let conversation = match self.random.chance(600) {
            true => conversation::direct(&self.user, &user(self.random.index(self.plan.users))),
            false => format!("g:group{}", self.random.index(self.plan.groups)),
        };
        let stream = self.random.nonzero();
        let new = Lane { stream, next: 1, said: BTreeMap::new(), skips: false };
        let lane = self.lanes.entry(conversation.clone()).or_insert(new);
        let next = lane.next;
        let before = 1 + self.random.below(next);
        match self.random.below(100) {
            0..35 => self.send(out, &conversation, next, None),
            35..55 => (next..next + 4).for_each(|number| self.send(out, &conversation, number, None)),
            55..70 if before < next => self.send(out, &conversation, before, None),
            70..85 if before < next => {
                let other = self.text();
                self.send(out, &conversation, before, Some(other));
            }
            85..93 => {
                lane.skips = true;
                let (number, other) = (next + 1 + self.random.below(3), self.text());
                self.send(out, &conversation, number, Some(other));
            }
            93..100 => {
                (lane.stream, lane.next) = (stream, 1);
                lane.said.clear();
                self.send(out, &conversation, 1, None);
            }
            _ => {}
        }
    }

    /// Sends a number, with what it said under it before unless it is to be something else.
    fn send(&mut self, out: &mut Outside, conversation: &str, client_seq: u64, other: Option<Bytes>) {
        let text = self.text();
        let (Some(lane), Some(wire)) = (self.lanes.get_mut(conversation), &mut self.wire) else { return };
        let payload = other.unwrap_or_else(|| lane.said.entry(client_seq).or_insert(text).clone());
        let conversation = conversation.to_owned();
        let send = Send { conversation, client_seq, stream: lane.stream, payload, ..Send::default() };
        let asked = out.ledger.asks((&self.user, NAME), &send);
        self.next_id += 1;
        wire.asked.insert(self.next_id, (send.conversation.clone(), client_seq, asked));
        self.request(out, self.next_id, Op::Send(send));
    }

    fn text(&mut self) -> Bytes {
        self.messages += 1;
        format!("{}/{NAME}#{};", self.user, self.messages).into()
    }

    fn answered(&mut self, out: &mut Outside, id: u64, outcome: &Outcome) {
        let Some(wire) = &mut self.wire else { return };
        if id == LOGIN_ID {
            match outcome {
                Outcome::LoginAck(_) => wire.logged_in = true,
                _ => self.hang_up(out),
            }
            return;
        }
        let Some((conversation, client_seq, asked)) = wire.asked.remove(&id) else { return };
        out.ledger.answers(out.now_us, &asked, outcome);
        let Some(lane) = self.lanes.get_mut(&conversation) else { return };
        let skipped = std::mem::take(&mut lane.skips);
        match outcome {
            Outcome::Refused(refused) if refused.code() == Code::OutOfOrder => lane.next = refused.expected,
            Outcome::Refused(refused) if refused.code() == Code::Conflict => {
                lane.next = lane.next.max(client_seq + 1);
            }
            // Its message may be stored: the number before it was, and only the answer to that was lost. What it said
            // under later numbers is older, and would follow.
            _ if skipped => drop(self.lanes.remove(&conversation)),
            Outcome::SendAck(_) => lane.next = lane.next.max(client_seq + 1),
            _ => {}
        }
    }

    // ---- its connection ----

    fn dial(&mut self, out: &mut Outside) {
        let gateway = self.random.index(self.plan.gateways);
        let thread = self.random.index(self.plan.gateway_shards);
        let to = End::GatewayClient(Seat { who: Who::Gateway(gateway), life: out.lives[gateway], thread });
        let id = out.network.connect(&mut out.agenda, out.now_us, End::Stray(self.index), to);
        let (speaks, asked) = (ClientSession::tcp(), BTreeMap::new());
        self.wire = Some(Wire { id, speaks, logged_in: false, asked, since_us: out.now_us });
    }

    fn hang_up(&mut self, out: &mut Outside) {
        if let Some(wire) = self.wire.take() {
            out.close(wire.id, 0);
        }
        self.lanes.retain(|_, lane| !lane.skips);
    }

    fn request(&mut self, out: &mut Outside, id: u64, op: Op) {
        let Some(wire) = &mut self.wire else { return };
        out.trace.say(out.now_us, |text| *text += &format!("{}/{NAME} > {id} {op:?}", self.user));
        let mut bytes = Vec::new();
        wire.speaks.request(id, op, &mut bytes);
        wire.since_us = out.now_us;
        out.send(wire.id, 0, bytes.into());
    }

    /// Something arrived on a connection of it, perhaps on one that it gave up.
    pub fn arrived(&mut self, out: &mut Outside, id: ConnId, item: Item) {
        let is_present = self.wire.as_ref().is_some_and(|wire| wire.id == id);
        match item {
            Item::Accepted if !is_present => out.close(id, 0),
            _ if !is_present => {}
            Item::Accepted => {
                let (token, device) = (self.user.clone(), NAME.into());
                let login = Login { token, device, platform: "desktop".into(), ..Login::default() };
                self.request(out, LOGIN_ID, Op::Login(login));
            }
            Item::Bytes(bytes) => self.heard(out, bytes.to_vec()),
            Item::Closed => self.hang_up(out),
        }
    }

    fn heard(&mut self, out: &mut Outside, mut bytes: Vec<u8>) {
        let Some(wire) = &mut self.wire else { return };
        let (mut input, limits) = (Received::new(&mut bytes), Limits::default());
        let (mut responses, mut pong) = (Vec::new(), Vec::new());
        loop {
            match wire.speaks.next(&mut input, &limits) {
                Ok(Some(ServerFrame::Response(body))) => responses.extend(decode_response(body).ok()),
                Ok(Some(ServerFrame::Ping)) => pong.push(()),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        if !pong.is_empty() {
            let mut bytes = Vec::new();
            pong.iter().for_each(|()| wire.speaks.pong(&mut bytes));
            out.send(wire.id, 0, bytes.into());
        }
        for response in responses {
            out.trace.say(out.now_us, |text| *text += &format!("{}/{NAME} < {response:?}", self.user));
            if let Some(outcome) = &response.outcome {
                self.answered(out, response.id, outcome);
            }
        }
    }
}
