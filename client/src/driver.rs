//! The task behind a client: connects, logs in, keeps the connection alive, and connects again. It owns the socket and
//! all state; handles talk to it over a bounded channel.
//!
//! The rules that keep it right: nothing is read from the socket while an event waits for the application, so a slow
//! application slows its server and grows nothing here; and whatever was not answered when a connection broke is sent
//! again on the next, in order, under the same numbers.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{
    Code, Deliver, Login, LoginAck, Logout, Notify, Response, RoomJoin, notify,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use crate::backoff::Backoff;
use crate::calls::{Call, Calls};
use crate::config::Config;
use crate::error::{ConnectError, Reason, SendError};
use crate::event::{Event, Message};
use crate::outbox::{Outbox, Settled};
use crate::seen::Seen;
use crate::wire::{Failed, Incoming, LOGIN_ID, Wire};

/// A session that lasted this long was a good one: the next pauses are short again.
const GOOD_SESSION: Duration = Duration::from_secs(5);

/// Heartbeat if a server names none.
const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(30);

/// Rooms that are joined again after a reconnect; joining more is refused.
const ROOMS_MAX: usize = 1_024;

/// What handles ask for.
#[derive(Debug)]
pub(crate) enum Command {
    Send { conversation: String, payload: Bytes, content_kind: u32, deadline: Instant, done: Acknowledge },
    Call { op: Op, deadline: Instant, done: Answer },
    Logout { done: oneshot::Sender<()> },
}

/// Who waits for a message's acknowledgement.
pub(crate) type Acknowledge =
    oneshot::Sender<Result<millrace_protocol::messages::client::SendAck, SendError>>;

/// Who waits for a request's answer.
pub(crate) type Answer = oneshot::Sender<Result<Outcome, SendError>>;

/// Who made a request.
#[derive(Debug)]
enum Asker {
    Application(Answer),
    /// A room joined again after a reconnect.
    Rejoin,
    Logout(oneshot::Sender<()>),
}

/// See the module's head.
pub(crate) struct Driver {
    config: Config,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    /// Told once, when the first login succeeded or was given up.
    first: Option<(oneshot::Sender<Result<(), ConnectError>>, Instant)>,
    outbox: Outbox<Acknowledge>,
    calls: Calls<Asker>,
    seen: Seen,
    rooms: BTreeSet<String>,
    /// Rooms whose joining after a reconnect was not answered yet: messages to them wait.
    rejoining: BTreeSet<String>,
    ticket: Bytes,
    user: String,
    next_id: u64,
    next_address: usize,
    backoff: Backoff,
    /// Logins refused TOKEN_EXPIRED one after the other.
    expired: u32,
    start: Instant,
    leaving: bool,
    /// The event that the application has not made room for.
    held: Option<Event>,
}

fn random() -> u64 {
    // Numbers only spread load and tell streams apart. Without a source of them (no kernel here lacks one), the clock.
    getrandom::u64().unwrap_or_else(|_| {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |since| since.as_nanos() as u64)
    })
}

impl Driver {
    pub(crate) fn new(
        config: Config,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
        first: oneshot::Sender<Result<(), ConnectError>>,
    ) -> Self {
        let start = Instant::now();
        let deadline = start + config.connect_deadline;
        let backoff = Backoff::new(config.backoff.0, config.backoff.1);
        // Many clients with the same list begin at different gateways.
        let next_address = random() as usize % config.addresses.len().max(1);
        Driver {
            config,
            commands,
            events,
            first: Some((first, deadline)),
            outbox: Outbox::default(),
            calls: Calls::default(),
            seen: Seen::default(),
            rooms: BTreeSet::new(),
            rejoining: BTreeSet::new(),
            ticket: Bytes::new(),
            user: String::new(),
            next_id: LOGIN_ID + 1,
            next_address,
            backoff,
            expired: 0,
            start,
            leaving: false,
            held: None,
        }
    }

    /// Runs until the client is at its end.
    pub(crate) async fn run(mut self) {
        let reason = self.connections().await;
        // Handles learn it at once, also while the application takes no events. What is dropped is answered "ended".
        self.commands.close();
        while self.commands.try_recv().is_ok() {}
        for done in self.outbox.abandon() {
            // Whoever waited may have gone.
            let _ = done.send(Err(SendError::Ended));
        }
        for call in self.calls.abandon() {
            finish(call, Err(SendError::Ended));
        }
        if let Some((first, _)) = self.first.take() {
            let _ = first.send(Err(ConnectError::Final(reason.clone())));
        }
        if let Some(held) = self.held.take() {
            let _ = self.events.send(held).await;
        }
        let _ = self.events.send(Event::Ended { reason }).await;
    }

    /// One connection after the other. Returns why there is no next one.
    async fn connections(&mut self) -> Reason {
        let mut again = false;
        loop {
            let address = self.config.addresses[self.next_address % self.config.addresses.len()].clone();
            let login = connect(self.config.clone(), address, self.ticket.clone());
            let Some(outcome) = self.beside(login).await else { return Reason::Left };
            let (failed, last) = match outcome {
                Ok((wire, ack)) => {
                    self.expired = 0;
                    self.welcome(ack.clone(), again);
                    again = true;
                    let began = Instant::now();
                    let failed = self.session(wire, &ack).await;
                    if began.elapsed() >= GOOD_SESSION {
                        self.backoff.reset();
                    }
                    self.outbox.disconnected();
                    self.calls.disconnected();
                    let last = self.leaving || self.is_last(&failed.reason);
                    if !last && !self.tell(Event::Disconnected { reason: failed.reason.clone() }).await {
                        return Reason::Left;
                    }
                    (failed, last)
                }
                Err(failed) => {
                    let last = self.is_last(&failed.reason);
                    (failed, last)
                }
            };
            if last || self.leaving {
                return if self.leaving { Reason::Left } else { failed.reason };
            }
            let mut pause = self.backoff.next(failed.retry_after, random());
            // A login that was refused for its ticket is repeated with the token, at once.
            if matches!(failed.reason, Reason::Server { code: Code::TokenExpired | Code::BadToken, .. }) {
                pause = Duration::ZERO;
            } else {
                self.next_address += 1;
            }
            if let Some((_, deadline)) = &self.first
                && Instant::now() + pause >= *deadline
                && let Some((first, _)) = self.first.take()
            {
                let _ = first.send(Err(ConnectError::Deadline(failed.reason.clone())));
                return failed.reason;
            }
            if self.beside(tokio::time::sleep(pause)).await.is_none() {
                return Reason::Left;
            }
        }
    }

    /// Whether this ends the client. A ticket that is refused does not: the token is tried; nor does one expired token,
    /// as its source may have a new one.
    fn is_last(&mut self, reason: &Reason) -> bool {
        let Reason::Server { code, .. } = reason else { return reason.is_final() };
        if matches!(code, Code::TokenExpired | Code::BadToken | Code::Forbidden) {
            let had_ticket = !std::mem::take(&mut self.ticket).is_empty();
            self.expired += u32::from(*code == Code::TokenExpired && !had_ticket);
            if had_ticket || (*code == Code::TokenExpired && self.expired < 2) {
                return false;
            }
        }
        reason.is_final()
    }

    fn welcome(&mut self, ack: LoginAck, again: bool) {
        self.ticket = ack.resume_ticket;
        self.user = ack.user.clone();
        if let Some((first, _)) = self.first.take() {
            let _ = first.send(Ok(()));
        }
        self.rejoining = if again { self.rooms.clone() } else { BTreeSet::new() };
        let deadline_ms = self.now_ms() + self.config.request_deadline.as_millis() as u64;
        for room in self.rejoining.clone() {
            // There are fewer rooms than room for calls; one that finds none is not joined again.
            if self
                .calls
                .push(Op::RoomJoin(RoomJoin { room: room.clone() }), deadline_ms, Asker::Rejoin)
                .is_err()
            {
                self.rejoining.remove(&room);
            }
        }
        self.held = Some(Event::Connected { session: ack.session, user: ack.user, again });
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    /// Runs a future, taking commands and minding deadlines beside it. `None`: the application has left.
    async fn beside<F: Future>(&mut self, future: F) -> Option<F::Output> {
        tokio::pin!(future);
        loop {
            if self.leaving {
                return None;
            }
            let next = self.next_deadline();
            let outcome = tokio::select! {
                output = &mut future => Some(output),
                command = self.commands.recv() => { self.take(command, false); None }
                () = sleep_until(next) => { self.expire(); None }
            };
            if outcome.is_some() {
                return outcome;
            }
        }
    }

    /// Gives the application an event, taking commands meanwhile. False: the application has left.
    async fn tell(&mut self, event: Event) -> bool {
        for event in self.held.take().into_iter().chain([event]) {
            let events = self.events.clone();
            // Nobody listens to events: then they are not kept either.
            let sending = async move { drop(events.send(event).await) };
            if self.beside(sending).await.is_none() {
                return false;
            }
        }
        true
    }

    fn next_deadline(&self) -> Instant {
        let far = self.now_ms() + 3_600_000;
        let next = [self.outbox.next_ms(), self.calls.next_ms()].into_iter().flatten().min();
        // A retry that is due while there is no connection must not become a loop.
        self.at(next.unwrap_or(far).max(self.now_ms() + 1))
    }

    fn expire(&mut self) {
        let now_ms = self.now_ms();
        self.outbox.expire(now_ms).into_iter().for_each(settle);
        for call in self.calls.expire(now_ms) {
            self.forget_rejoin(&call);
            finish(call, Err(SendError::Deadline));
        }
    }

    /// Takes a command; `None` says that all handles are gone.
    fn take(&mut self, command: Option<Command>, connected: bool) {
        let ms = |deadline: Instant| deadline.saturating_duration_since(self.start).as_millis() as u64;
        match command {
            None => self.leaving = true,
            Some(Command::Send { conversation, payload, content_kind, deadline, done }) => {
                let deadline_ms = ms(deadline);
                if let Err(done) =
                    self.outbox.push(&conversation, payload, content_kind, deadline_ms, random(), done)
                {
                    let _ = done.send(Err(SendError::TooManyPending));
                }
            }
            Some(Command::Call { op, deadline, done }) => {
                let deadline_ms = ms(deadline);
                if let Op::RoomLeave(leave) = &op {
                    self.rooms.remove(&leave.room);
                }
                let full = matches!(&op, Op::RoomJoin(_)) && self.rooms.len() >= ROOMS_MAX;
                let pushed = match full {
                    true => Err(Asker::Application(done)),
                    false => self.calls.push(op, deadline_ms, Asker::Application(done)),
                };
                if let Err(Asker::Application(done)) = pushed {
                    let _ = done.send(Err(SendError::TooManyPending));
                }
            }
            Some(Command::Logout { done }) => {
                self.ticket = Bytes::new();
                let deadline_ms = self.now_ms() + 2_000;
                let asked = connected
                    && self.calls.push(Op::Logout(Logout {}), deadline_ms, Asker::Logout(done)).is_ok();
                self.leaving |= !asked;
            }
        }
    }

    /// One session, from its login to its end.
    async fn session(&mut self, mut wire: Wire, ack: &LoginAck) -> Failed {
        let heartbeat = match ack.heartbeat_interval_ms {
            0 => HEARTBEAT_DEFAULT,
            ms => Duration::from_millis(ms.into()),
        };
        // Early enough that one that is late still counts.
        let (beat, silence) = (heartbeat.mul_f32(0.7), heartbeat * 2 + Duration::from_secs(1));
        let (mut wrote, mut heard) = (Instant::now(), Instant::now());
        let mut farewell: Option<Failed> = None;
        loop {
            if self.leaving {
                wire.close().await;
                return Reason::Left.into();
            }
            while self.held.is_none()
                && let Some(incoming) = wire.incoming.pop_front()
            {
                if let Some(failed) = self.received(incoming, &mut farewell) {
                    return failed;
                }
            }
            self.transmit(&mut wire);
            if wire.has_output() {
                if let Err(reason) = wire.write() {
                    return farewell.unwrap_or(reason.into());
                }
                wrote = Instant::now();
            }
            // While the application is slow the server is not listened to, and cannot be called silent.
            let reads = self.held.is_none() && wire.incoming.is_empty();
            let silent_at = if reads { heard + silence } else { Instant::now() + silence };
            let next = self.next_deadline().min(wrote + beat).min(silent_at);
            let events = self.events.clone();
            tokio::select! {
                ready = wire.readable(), if reads => {
                    match ready.map_err(|error| Reason::Network(error.to_string())).and_then(|()| wire.read()) {
                        Ok(true) => heard = Instant::now(),
                        Ok(false) => {}
                        // What the server said before it closed is the better reason.
                        Err(reason) => return farewell.unwrap_or(reason.into()),
                    }
                }
                ready = wire.writable(), if wire.has_output() => {
                    if let Err(error) = ready {
                        return farewell.unwrap_or(Reason::Network(error.to_string()).into());
                    }
                }
                permit = events.reserve(), if self.held.is_some() => {
                    let event = self.held.take();
                    if let (Ok(permit), Some(event)) = (permit, event) {
                        permit.send(event);
                    }
                    heard = Instant::now();
                }
                command = self.commands.recv() => self.take(command, true),
                () = sleep_until(next) => {
                    let now = Instant::now();
                    self.expire();
                    if reads && now >= heard + silence {
                        return farewell.unwrap_or(Reason::Silent(silence).into());
                    }
                    if now >= wrote + beat && !wire.has_output() {
                        wire.ping();
                    }
                }
            }
        }
    }

    /// Puts what may be sent into the connection's buffer. Joining again comes before messages.
    fn transmit(&mut self, wire: &mut Wire) {
        let now_ms = self.now_ms();
        while wire.has_room() {
            let id = self.next_id;
            let rejoining = &self.rejoining;
            let held = |conversation: &str| {
                conversation.strip_prefix("r:").is_some_and(|room| rejoining.contains(room))
            };
            let op = self.calls.transmit(now_ms, id).or_else(|| self.outbox.transmit(now_ms, id, held));
            let Some(op) = op else { return };
            self.next_id += 1;
            wire.request(id, op);
        }
    }

    /// Acts on what the server sent. Returns why the session is over, if it is.
    fn received(&mut self, incoming: Incoming, farewell: &mut Option<Failed>) -> Option<Failed> {
        match incoming {
            Incoming::Open => {}
            Incoming::Response(Response { id, outcome: Some(outcome) }) => self.answered(id, outcome),
            Incoming::Response(Response { outcome: None, .. }) => {}
            Incoming::Notify(Notify { event }) => match event? {
                notify::Event::Deliver(deliver) => self.held = self.delivered(deliver),
                notify::Event::Head(head) => {
                    let notify_head =
                        Event::Head { conversation: head.conversation, epoch: head.epoch, seq: head.seq };
                    self.held = Some(notify_head);
                }
                notify::Event::Gap(gap) => {
                    self.held =
                        Some(Event::Gap { conversation: gap.conversation, from: gap.from, to: gap.to });
                }
                notify::Event::Removed(removed) => {
                    self.held = Some(Event::Removed { conversation: removed.conversation });
                }
                notify::Event::GoAway(away) => {
                    let retry_after = Duration::from_millis(away.retry_after_ms.into());
                    let reason = Reason::Server { code: away.code(), reason: away.reason };
                    *farewell = Some(Failed { reason, retry_after });
                }
                _ => {}
            },
            Incoming::Closed(reason) => return Some(farewell.take().unwrap_or(reason.into())),
        }
        self.leaving.then(|| Reason::Left.into())
    }

    fn delivered(&mut self, deliver: Deliver) -> Option<Event> {
        if !self.seen.note(&deliver.conversation, deliver.epoch, deliver.seq) {
            return None;
        }
        // This device sent it, on an earlier connection whose answer was lost: `send` answers the application.
        if deliver.sender == self.user && deliver.sender_device == self.config.device {
            return None;
        }
        Some(Event::Message(Message {
            conversation: deliver.conversation,
            seq: deliver.seq,
            epoch: deliver.epoch,
            message_id: deliver.message_id,
            sender: deliver.sender,
            sender_device: deliver.sender_device,
            server_time_ms: deliver.server_time_ms,
            content_kind: deliver.content_kind,
            payload: deliver.payload,
        }))
    }

    fn answered(&mut self, id: u64, outcome: Outcome) {
        let now_ms = self.now_ms();
        if self.outbox.knows(id) {
            let settled = match outcome {
                Outcome::SendAck(ack) => {
                    if let Some(conversation) = self.outbox.conversation_of(id) {
                        self.seen.note(conversation, ack.epoch, ack.seq);
                    }
                    self.outbox.acknowledged(id, ack)
                }
                Outcome::Refused(refused) => self.outbox.refused(id, &refused, now_ms, random()),
                // No answer to a message: its deadline settles it.
                _ => None,
            };
            settled.into_iter().for_each(settle);
            return;
        }
        if let Outcome::Refused(refused) = &outcome {
            if let Some(call) = self.calls.refused(id, refused, now_ms) {
                self.rejoined(&call, None);
                finish(call, Err(SendError::from(refused)));
            }
            return;
        }
        let Some(call) = self.calls.answered(id) else { return };
        if let (Op::RoomJoin(join), Outcome::Joined(joined)) = (&call.op, &outcome) {
            self.rooms.insert(join.room.clone());
            let head = Event::Head {
                conversation: joined.conversation.clone(),
                epoch: joined.epoch,
                seq: joined.head,
            };
            self.rejoined(&call, Some(head));
        }
        self.leaving |= matches!(call.done, Asker::Logout(_));
        finish(call, Ok(outcome));
    }

    /// A room was joined again, or could not be.
    fn rejoined(&mut self, call: &Call<Asker>, head: Option<Event>) {
        let (Asker::Rejoin, Op::RoomJoin(join)) = (&call.done, &call.op) else { return };
        if head.is_none() {
            self.rooms.remove(&join.room);
        }
        let removed = || Event::Removed { conversation: format!("r:{}", join.room) };
        self.held = Some(head.unwrap_or_else(removed));
        self.forget_rejoin(call);
    }

    fn forget_rejoin(&mut self, call: &Call<Asker>) {
        if let (Asker::Rejoin, Op::RoomJoin(join)) = (&call.done, &call.op) {
            self.rejoining.remove(&join.room);
        }
    }
}

/// Connects and logs in, within the configured time.
async fn connect(config: Config, address: String, ticket: Bytes) -> Result<(Wire, LoginAck), Failed> {
    let all = async {
        let token = match ticket.is_empty() {
            true => config.token.get().await.map_err(Reason::Token)?,
            false => String::new(),
        };
        let mut wire = Wire::open(&address, &config).await?;
        let (device, platform) = (config.device.clone(), config.platform.clone());
        let ack =
            wire.login(Login { token, device, platform, resume_ticket: ticket, acknowledges: false }).await?;
        Ok((wire, ack))
    };
    match timeout(config.connect_deadline, all).await {
        Ok(outcome) => outcome,
        Err(_) => {
            Err(Reason::Network(format!("{address}: no login within {:?}", config.connect_deadline)).into())
        }
    }
}

/// Tells whoever waits for a message; they may have gone.
fn settle((done, outcome): Settled<Acknowledge>) {
    let _ = done.send(outcome);
}

/// Tells whoever waits for an answer; they may have gone.
fn finish(call: Call<Asker>, outcome: Result<Outcome, SendError>) {
    match call.done {
        Asker::Application(done) => drop(done.send(outcome)),
        Asker::Logout(done) => drop(done.send(())),
        Asker::Rejoin => {}
    }
}
