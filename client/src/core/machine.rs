//! One client. It hears every event, lets the neighbour act whose business it is, and sends what has room to be sent.
//!
//! The rules that keep it right: whatever was not answered when a connection broke is sent again on the next, in order,
//! under the same numbers; requests in flight are bounded, so that the server need not refuse them; and every outcome
//! is given to the application once.

mod heard;

use std::collections::BTreeMap;

use millrace_protocol::conversation::Conversation;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Cursor, Logout};

use super::calls::Calls;
use super::event::{Action, Event, Outgoing, Position};
use super::fates::Fates;
use super::inbox::Inbox;
use super::link::{After, LOGIN_ID, Link};
use super::outbox::{Outbox, Settled};
use super::plain::Plain;
use super::random::Random;
use super::settings::Settings;
use super::sync::SYNCS_MAX;
use super::told::Told;
use super::typing::TypingOut;
use super::walk::Walk;
use crate::error::{Reason, SendError};
use crate::event::Event as Notice;

/// Requests in flight. Servers take 64 by default.
const UNANSWERED_MAX: usize = 60;

/// Of these, requests that are neither messages nor pages of logs.
const CALLS_IN_FLIGHT_MAX: usize = 16;

const _: () = assert!(SYNCS_MAX + CALLS_IN_FLIGHT_MAX < UNANSWERED_MAX);

/// How long a logout is waited for, ms.
const LOGOUT_MS: u64 = 2_000;

/// Who made a request.
#[derive(Debug)]
enum Asker {
    Application(u64),
    /// Done again after a reconnect: a room joined, presence.
    Again,
    Logout(u64),
}

/// What comes back with the outcome of a message.
#[derive(Debug)]
struct Sending {
    key: u64,
    fate_within_ms: u32,
}

/// What a request in flight is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    Message,
    Call,
    Sync,
    Walk,
    Replay,
}

/// See the module's head, and the head of [`super`] for how to drive it.
#[derive(Debug)]
pub struct Machine {
    events_max: usize,
    request_deadline_ms: u64,
    link: Link,
    outbox: Outbox<Sending>,
    fates: Fates,
    calls: Calls<Asker>,
    inbox: Inbox,
    plain: Plain,
    walk: Walk,
    typing: TypingOut,
    told: Told,
    random: Random,
    unanswered: BTreeMap<u64, For>,
    calls_in_flight: usize,
    next_id: u64,
    now_ms: u64,
    /// Whether there was a login before.
    again: bool,
    /// Whether the application was told, since the login, that nothing is missing any more.
    caught_up: bool,
    leaving: bool,
    /// What the application last asked of presence, by kind of request: asked again after a login.
    standing_orders: BTreeMap<&'static str, Op>,
    actions: Vec<Action>,
}

impl Machine {
    /// A client that begins to connect at its first step. `kept`: what was saved.
    pub fn new(
        settings: Settings,
        seed: u64,
        kept: impl IntoIterator<Item = (String, Position)>,
        now_ms: u64,
    ) -> Self {
        let mut random = Random::new(seed);
        Machine {
            events_max: settings.events_max,
            request_deadline_ms: settings.request_deadline_ms,
            inbox: Inbox::new(&settings, kept),
            plain: Plain::new(&settings.device, settings.room_replay),
            link: Link::new(settings, now_ms, &mut random),
            outbox: Outbox::default(),
            fates: Fates::default(),
            calls: Calls::default(),
            walk: Walk::default(),
            typing: TypingOut::default(),
            told: Told::default(),
            random,
            unanswered: BTreeMap::new(),
            calls_in_flight: 0,
            next_id: LOGIN_ID + 1,
            now_ms,
            again: false,
            caught_up: false,
            leaving: false,
            standing_orders: BTreeMap::new(),
            actions: Vec::new(),
        }
    }

    /// Something happened. Returns what is to be done, in order. `now_ms` is monotonic, from any start.
    pub fn step(&mut self, now_ms: u64, event: Event) -> Vec<Action> {
        self.now_ms = self.now_ms.max(now_ms);
        match event {
            Event::Taken { number } => {
                self.told.take(number);
                self.inbox.took(&mut self.told, self.now_ms);
            }
            Event::Deaf => {
                self.told.deafen();
                self.link.deaf = true;
            }
            event if self.link.is_over() => self.refuse(event),
            event => self.hear(event),
        }
        if !self.link.is_over() {
            self.due();
            self.transmit();
        }
        self.actions.extend(self.told.drain());
        let saves = self.inbox.saves();
        if !saves.is_empty() {
            self.actions.push(Action::Save(saves));
        }
        std::mem::take(&mut self.actions)
    }

    /// When to step with [`Event::Tick`] if nothing happens before.
    pub fn next_ms(&self) -> Option<u64> {
        if self.link.is_over() {
            return None;
        }
        let up = self.link.is_up();
        let only_up = [self.inbox.next_ms(), self.walk.next_ms(), self.typing.next_ms()];
        let always = [
            self.link.next_ms(self.reads()),
            self.outbox.next_ms(self.now_ms),
            self.calls.next_ms(),
            self.fates.next_ms(),
        ];
        let next = only_up.into_iter().filter(|_| up).chain(always).flatten();
        // What was due and could not be done waits for room, or for a connection: an event.
        next.filter(|at_ms| *at_ms > self.now_ms).min()
    }

    /// Whether the socket is to be read. False while as much waits for the application as may.
    pub fn reads(&self) -> bool {
        self.told.waiting() < self.events_max
    }

    /// Whether something is told and not taken.
    pub fn has_untaken(&self) -> bool {
        self.told.waiting() > 0
    }

    /// What the application has taken of a conversation, if there is a cursor.
    pub fn cursor(&self, conversation: &str) -> Option<Cursor> {
        self.inbox.taken(conversation)
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Tick | Event::Taken { .. } | Event::Deaf => {}
            Event::Token { conn, token } => {
                if self.link.is(conn)
                    && let Some(reason) = self.link.token(token, &mut self.actions)
                {
                    self.lost(reason);
                }
            }
            Event::Opened { conn } if self.link.is(conn) => self.link.opened(&mut self.actions),
            Event::Heard { conn } if self.link.is(conn) => self.link.heard(self.now_ms),
            Event::Response { conn, response } if self.link.is(conn) => {
                self.link.heard(self.now_ms);
                self.response(response);
            }
            Event::Notify { conn, notify } if self.link.is(conn) => {
                self.link.heard(self.now_ms);
                self.notify(notify);
            }
            Event::Lost { conn, reason } if self.link.is(conn) => self.lost(reason),
            Event::Opened { .. }
            | Event::Heard { .. }
            | Event::Response { .. }
            | Event::Notify { .. }
            | Event::Lost { .. } => {}
            Event::Send { key, conversation, message, deadline_ms } => {
                self.send(key, &conversation, message, deadline_ms);
            }
            Event::Call { key, op, deadline_ms } => self.call(key, op, deadline_ms),
            Event::Typing { conversation, what } => {
                if self.link.is_up() {
                    self.typing.push(&conversation, what, self.now_ms);
                }
            }
            Event::Logout { key } => self.logout(key),
            Event::Leave => self.end(Reason::Left),
        }
    }

    /// Of a client at its end.
    fn refuse(&mut self, event: Event) {
        if let Event::Send { key, .. } | Event::Call { key, .. } | Event::Logout { key } = event {
            self.settle(key, Err(SendError::Ended));
        }
    }

    fn send(&mut self, key: u64, conversation: &str, message: Outgoing, deadline_ms: u64) {
        let random = self.random.next();
        self.typing.sent(conversation);
        let sending = Sending { key, fate_within_ms: message.fate_within_ms };
        if let Err(sending) = self.outbox.push(conversation, message, deadline_ms, random, sending) {
            self.settle(sending.key, Err(SendError::TooManyPending));
        }
    }

    fn call(&mut self, key: u64, op: Op, deadline_ms: u64) {
        let mut full = false;
        match &op {
            Op::RoomLeave(leave) => self.plain.leaves(&leave.room),
            Op::RoomJoin(_) => full = self.plain.is_full(),
            Op::PresenceSet(_) => drop(self.standing_orders.insert("set", op.clone())),
            Op::PresenceSubscribe(_) => drop(self.standing_orders.insert("subscribe", op.clone())),
            _ => {}
        }
        if full || self.calls.push(op, deadline_ms, Asker::Application(key)).is_err() {
            self.settle(key, Err(SendError::TooManyPending));
        }
    }

    fn logout(&mut self, key: u64) {
        self.leaving = true;
        self.link.drop_ticket();
        self.inbox.hurry();
        let deadline_ms = self.now_ms + LOGOUT_MS;
        let up = self.link.is_up();
        if !up || self.calls.push(Op::Logout(Logout {}), deadline_ms, Asker::Logout(key)).is_err() {
            self.settle(key, Ok(Outcome::LoggedOut(Default::default())));
            self.end(Reason::Left);
        }
    }

    /// Whether a cursor is kept of this conversation.
    fn has_cursor(&self, conversation: &str) -> bool {
        let kind = Conversation::parse(conversation);
        self.link.acknowledges() && matches!(kind, Some(Conversation::Direct(..) | Conversation::Group(_)))
    }

    /// Does what its time has come for.
    fn due(&mut self) {
        let now_ms = self.now_ms;
        for settled in self.outbox.expire(now_ms) {
            self.settle_message(settled);
        }
        for call in self.calls.expire(now_ms) {
            self.call_failed(call, SendError::Deadline);
        }
        let reads = self.reads();
        self.fates.due(now_ms, reads, &mut self.told);
        if let Some(reason) = self.link.due(now_ms, reads, &mut self.actions) {
            self.lost(reason);
        }
        if self.link.is_up() {
            self.inbox.due(now_ms, reads);
            if !self.caught_up && self.walk.is_over() && self.inbox.is_caught_up() {
                self.caught_up = true;
                self.told.tell(Notice::CaughtUp);
            }
        }
    }

    /// Sends what may be sent. Joining again comes before messages.
    fn transmit(&mut self) {
        if !self.link.is_up() {
            return;
        }
        let now_ms = self.now_ms;
        while let Some(op) = self.inbox.next_ack(now_ms).or_else(|| self.typing.next(now_ms)) {
            self.request(0, op);
        }
        // Pages wait for the application: what was missed must not pile up here.
        let reads = self.reads();
        loop {
            let id = self.next_id;
            let free = self.unanswered.len() < UNANSWERED_MAX;
            let call = match free && self.calls_in_flight < CALLS_IN_FLIGHT_MAX {
                true => self.calls.transmit(now_ms, id),
                false => None,
            };
            let next = if let Some(op) = call {
                self.calls_in_flight += 1;
                Some((For::Call, op))
            } else if reads && let Some(op) = self.walk.next(now_ms, id, &self.inbox) {
                Some((For::Walk, op))
            } else if free && let Some(op) = self.plain.next_replay(id) {
                Some((For::Replay, op))
            } else if reads && let Some(op) = self.inbox.next_sync(now_ms, id) {
                Some((For::Sync, op))
            } else if free {
                let plain = &self.plain;
                let op = self.outbox.transmit(now_ms, id, |conversation| plain.holds(conversation));
                op.map(|op| (For::Message, op))
            } else {
                None
            };
            let Some((purpose, op)) = next else { return };
            self.next_id += 1;
            self.unanswered.insert(id, purpose);
            self.request(id, op);
        }
    }

    fn request(&mut self, id: u64, op: Op) {
        self.link.wrote(self.now_ms);
        self.actions.push(Action::Request { id, op });
    }

    fn settle(&mut self, key: u64, outcome: Result<Outcome, SendError>) {
        self.actions.push(Action::Settle { key, outcome });
    }

    fn settle_message(&mut self, (sending, outcome): Settled<Sending>) {
        self.settle(sending.key, outcome.map(Outcome::SendAck));
    }

    /// The connection, or the attempt at one, is over.
    fn lost(&mut self, reason: Reason) {
        let now_ms = self.now_ms;
        let after = self.link.lost(reason, now_ms, &mut self.random, &mut self.actions);
        self.actions.push(Action::Close);
        self.unanswered.clear();
        self.calls_in_flight = 0;
        self.outbox.disconnected();
        self.calls.disconnected();
        self.inbox.disconnected(now_ms);
        self.plain.disconnected(&mut self.told);
        self.walk.disconnected();
        self.typing.disconnected();
        match after {
            After::End(reason) => self.end(reason),
            After::Again(_) if self.leaving => self.end(Reason::Left),
            After::Again(Some(reason)) => self.told.tell(Notice::Disconnected { reason }),
            After::Again(None) => {}
        }
    }

    fn end(&mut self, reason: Reason) {
        if self.link.is_over() {
            return;
        }
        let reason = if self.leaving { Reason::Left } else { reason };
        if self.link.is_up() {
            self.inbox.hurry();
            while let Some(op) = self.inbox.next_ack(self.now_ms) {
                self.request(0, op);
            }
        }
        if self.link.end(&reason, &mut self.actions) {
            self.actions.push(Action::Close);
        }
        for sending in self.outbox.abandon() {
            self.settle(sending.key, Err(SendError::Ended));
        }
        for call in self.calls.abandon() {
            self.finish(call.done, Err(SendError::Ended));
        }
        self.fates.abandon(&mut self.told);
        self.told.tell(Notice::Ended { reason: reason.clone() });
        self.actions.push(Action::End(reason));
    }
}
