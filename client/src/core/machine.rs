//! One client. It hears every event, lets the neighbour act whose business it is, and sends what has room to be sent.
//!
//! The rules that keep it right: whatever was not answered when a connection broke is sent again on the next, in order,
//! under the same numbers; requests in flight are bounded, so that the server need not refuse them; and every outcome
//! is given to the application once.

use std::collections::BTreeMap;

use millrace_protocol::conversation::Conversation;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Cursor, Logout, Notify, Response, SendAck, notify};
use millrace_protocol::planted::{self, Fault};

use super::calls::{Call, Calls};
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

    fn response(&mut self, response: Response) {
        let Response { id, outcome: Some(outcome) } = response else { return self.unsaid(response.id) };
        if id == LOGIN_ID {
            return match self.link.login(outcome, self.now_ms) {
                Ok(ack) => self.welcome(ack.session, ack.user),
                Err(reason) => self.lost(reason),
            };
        }
        let Some(purpose) = self.unanswered.remove(&id) else { return };
        let (told, now_ms) = (&mut self.told, self.now_ms);
        match (purpose, outcome) {
            (For::Message, outcome) => self.message_answered(id, outcome),
            (For::Call, outcome) => self.call_answered(id, outcome),
            (For::Sync, Outcome::SyncPage(page)) => self.inbox.page(id, page, told, now_ms),
            (For::Sync, Outcome::Refused(refused)) => self.inbox.refused(id, &refused, told, now_ms),
            (For::Walk, Outcome::ConversationPage(page)) if self.walk.knows(id) => self.walk.listed(page),
            (For::Walk, Outcome::Peeked(peeked)) if self.walk.knows(id) => {
                for standing in &peeked.standings {
                    let through = standing.peer_delivered.max(standing.peer_read);
                    self.fates.reached(&standing.conversation, through, told);
                }
                self.walk.peeked(peeked, &mut self.inbox, told, now_ms);
            }
            (For::Walk, Outcome::Refused(refused)) if self.walk.knows(id) => {
                self.walk.refused(&refused, now_ms);
            }
            (For::Replay, Outcome::SyncPage(page)) => drop(self.plain.replayed(id, Some(page), told)),
            (For::Replay, _) => drop(self.plain.replayed(id, None, told)),
            // No answer to what was asked. Its patience runs out.
            (For::Sync | For::Walk, _) => {}
        }
    }

    /// A newer server may answer what this client can't read.
    fn unsaid(&mut self, id: u64) {
        if self.unanswered.get(&id) == Some(&For::Message) {
            self.unanswered.remove(&id);
            let (now_ms, random) = (self.now_ms, self.random.next());
            let settled = self.outbox.unsaid(id, now_ms, random);
            settled.into_iter().for_each(|settled| self.settle_message(settled));
        }
    }

    fn welcome(&mut self, session: u64, user: String) {
        if !self.again {
            self.actions.push(Action::First(Ok(())));
        }
        let deadline_ms = self.now_ms + self.request_deadline_ms;
        let rooms = self.plain.connected(&user);
        let orders = self.standing_orders.values().filter(|_| self.again).cloned();
        for op in orders.chain(rooms) {
            // There is more room for calls than there are rooms; one that finds none is not joined again.
            if let Err(Asker::Again) = self.calls.push(op.clone(), deadline_ms, Asker::Again)
                && let Op::RoomJoin(join) = op
            {
                self.plain.lost(&join.room);
            }
        }
        self.inbox.connected(&user);
        self.fates.connected(&user);
        self.told.tell(Notice::Connected { session, user, again: self.again });
        if self.link.acknowledges() && !planted::is(Fault::NoWalk) {
            self.walk.start(&self.inbox);
        }
        (self.again, self.caught_up) = (true, false);
    }

    fn message_answered(&mut self, id: u64, outcome: Outcome) {
        let (now_ms, random) = (self.now_ms, self.random.next());
        let settled = match outcome {
            Outcome::SendAck(ack) => return self.acknowledged(id, ack),
            Outcome::Refused(refused) => self.outbox.refused(id, &refused, now_ms, random),
            _ => self.outbox.unsaid(id, now_ms, random),
        };
        settled.into_iter().for_each(|settled| self.settle_message(settled));
    }

    fn acknowledged(&mut self, id: u64, ack: SendAck) {
        let Some(conversation) = self.outbox.conversation_of(id).map(str::to_owned) else { return };
        self.own_stored(&conversation, &ack);
        for (sending, outcome) in self.outbox.acknowledged(id, ack) {
            let within_ms = sending.fate_within_ms;
            if let Ok(ack) = &outcome
                && within_ms > 0
            {
                self.fates.asked(&conversation, ack.seq, within_ms, self.now_ms, &mut self.told);
            }
            self.settle_message((sending, outcome));
        }
        if !self.outbox.asks_fate(&conversation) {
            self.fates.forget_early(&conversation);
        }
    }

    fn own_stored(&mut self, conversation: &str, ack: &SendAck) {
        if self.has_cursor(conversation) {
            self.inbox.own(conversation, Cursor { epoch: ack.epoch, seq: ack.seq }, self.now_ms);
        } else {
            self.plain.own(conversation, ack.epoch, ack.seq);
        }
    }

    fn call_answered(&mut self, id: u64, outcome: Outcome) {
        self.calls_in_flight = self.calls_in_flight.saturating_sub(1);
        let now_ms = self.now_ms;
        if let Outcome::Refused(refused) = &outcome {
            if let Some(call) = self.calls.refused(id, refused, now_ms) {
                self.call_failed(call, SendError::from(refused));
            }
            return;
        }
        let Some(call) = self.calls.answered(id) else { return };
        let keeps = self.link.acknowledges();
        match (&call.op, &outcome) {
            (Op::RoomJoin(join), Outcome::Joined(joined)) => {
                self.plain.joined(&join.room, joined);
                if let Asker::Again = call.done {
                    let conversation = joined.conversation.clone();
                    self.told.tell(Notice::Head { conversation, epoch: joined.epoch, seq: joined.head });
                }
            }
            (Op::GroupJoin(_) | Op::GroupCreate(_), Outcome::Joined(joined)) if keeps => {
                let head = Cursor { epoch: joined.epoch, seq: joined.head };
                self.walk.attached(&joined.conversation);
                self.inbox.joined(&joined.conversation, head, now_ms);
            }
            (Op::GroupLeave(_), Outcome::Left(left)) => self.inbox.forget(&left.conversation),
            (Op::PresenceSubscribe(_), Outcome::PresencePage(page)) => {
                if let Asker::Again = call.done {
                    page.users.iter().for_each(|event| self.told.tell(Notice::Presence(event.clone())));
                }
            }
            _ => {}
        }
        self.finish(call.done, Ok(outcome));
    }

    /// A call will not succeed.
    fn call_failed(&mut self, call: Call<Asker>, error: SendError) {
        if let (Asker::Again, Op::RoomJoin(join)) = (&call.done, &call.op) {
            self.plain.lost(&join.room);
            self.told.tell(Notice::Removed { conversation: format!("r:{}", join.room) });
        }
        self.finish(call.done, Err(error));
    }

    fn finish(&mut self, asker: Asker, outcome: Result<Outcome, SendError>) {
        match asker {
            Asker::Application(key) => self.settle(key, outcome),
            Asker::Logout(key) => {
                // Answered or not: the client ends, which is what was asked for.
                self.settle(key, Ok(Outcome::LoggedOut(Default::default())));
                self.end(Reason::Left);
            }
            Asker::Again => {}
        }
    }

    fn notify(&mut self, notify: Notify) {
        let (told, now_ms) = (&mut self.told, self.now_ms);
        let keeps = self.link.acknowledges();
        match notify.event {
            Some(notify::Event::GoAway(away)) => self.link.go_away(away),
            // No gateway does. It would be of no session of ours.
            _ if !self.link.is_up() => {}
            Some(notify::Event::Deliver(deliver)) => {
                if self.has_cursor(&deliver.conversation) {
                    self.inbox.deliver(deliver, &mut self.told, now_ms);
                } else {
                    self.plain.deliver(deliver, &mut self.told);
                }
            }
            Some(notify::Event::Head(head)) => {
                self.walk.attached(&head.conversation);
                let at = Cursor { epoch: head.epoch, seq: head.seq };
                if self.has_cursor(&head.conversation) {
                    self.inbox.head(&head.conversation, at, now_ms);
                }
                let conversation = head.conversation;
                self.told.tell(Notice::Head { conversation, epoch: at.epoch, seq: at.seq });
            }
            Some(notify::Event::Gap(gap)) => {
                if self.has_cursor(&gap.conversation) {
                    self.inbox.resync(&gap.conversation, now_ms);
                } else {
                    let (conversation, from, to) = (gap.conversation, gap.from, gap.to);
                    self.told.tell(Notice::Gap { conversation, from, to });
                }
            }
            Some(notify::Event::Removed(removed)) => {
                self.inbox.forget(&removed.conversation);
                told.tell(Notice::Removed { conversation: removed.conversation });
            }
            Some(notify::Event::Truncated(truncated)) => {
                let to = truncated.to.unwrap_or_default();
                if self.has_cursor(&truncated.conversation) {
                    self.inbox.truncated(&truncated.conversation, to);
                } else {
                    let conversation = truncated.conversation;
                    self.told.tell(Notice::Truncated { conversation, to });
                }
            }
            // No name: it may be any direct conversation, so all are looked at, as after a login.
            Some(notify::Event::Resync(resync)) if keeps && resync.conversations.is_empty() => {
                self.walk.again(&self.inbox);
            }
            Some(notify::Event::Resync(resync)) if keeps => {
                resync.conversations.iter().for_each(|name| self.inbox.resync(name, now_ms));
            }
            Some(notify::Event::Resync(_)) | None => {}
            Some(notify::Event::Receipt(receipt)) => {
                let through = receipt.delivered.max(receipt.read);
                self.fates.receipt(&receipt.conversation, &receipt.user, through, told);
                told.tell(Notice::Receipt(receipt));
            }
            Some(notify::Event::GroupReceipt(receipt)) => told.tell(Notice::GroupReceipt(receipt)),
            Some(notify::Event::Typing(typing)) => told.tell(Notice::Typing(typing)),
            Some(notify::Event::Presence(presence)) => told.tell(Notice::Presence(presence)),
            Some(notify::Event::Friend(friend)) => told.tell(Notice::Friend(friend)),
            Some(notify::Event::Fate(fate)) => {
                let may_be_early = self.outbox.asks_fate(&fate.conversation);
                self.fates.heard(fate, may_be_early, told);
            }
            Some(notify::Event::ConversationChanged(changed)) => {
                told.tell(Notice::ConversationChanged(changed.item.unwrap_or_default()));
            }
            Some(notify::Event::GroupAsked(asked)) => told.tell(Notice::GroupAsked(asked)),
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
