//! What clients send: bytes into frames, frames into requests, checked here and passed on verbatim.
//!
//! A request that goes on costs the shard a token and its size until it is answered. Every way in which the answer
//! may never come (no owner, no credit, a lost link, a new owner, silence) ends in BUSY: the client sends it again
//! under the same number, and the owner knows whether it had been taken.

use millrace_protocol::bytes::Bytes;
use millrace_protocol::conversation::{Conversation, is_name};
use millrace_protocol::frame::{self, FrameKind};
use millrace_protocol::ids::{SessionId, partition_of};
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::client::{
    Code, Joined, Left, LoggedOut, Refused, Request, Response, Send, request, response,
};
use millrace_protocol::messages::link::{ClientRequest, Reply};
use millrace_protocol::prost::Message;
use millrace_protocol::transport::{Input, Limits, Received};

use super::action::Payload;
use super::closing::encode;
use super::event::{Conn, NodeKey};
use super::limits::*;
use super::session::*;
use super::shard::Shard;
use super::uplink::{Unsent, record};

/// A request that a dispatcher has not answered.
pub(super) struct Pending {
    pub conn: Conn,
    /// The client's id.
    pub id: u64,
    /// Bytes that it counts for.
    pub bytes: usize,
    pub partition: u16,
    /// On whose link it is; `None` while it waits for an owner.
    pub node: Option<NodeKey>,
}

/// A room join that waits for its subscription.
pub(super) struct PendingJoin {
    pub deadline_us: u64,
    pub conn: Conn,
    pub id: u64,
    pub topic: u32,
}

/// Why a request is refused.
pub(super) struct Refuse(pub Code, pub &'static str, pub u32);

impl Shard {
    pub(super) fn on_received(&mut self, conn: Conn, bytes: &mut [u8]) {
        let tick = self.wheel().tick(self.now.mono_us);
        let limits = Limits {
            frame_body_bytes_max: self.config.payload_bytes_max + frame::ENVELOPE_BYTES_MAX,
            message_bytes_max: self.config.payload_bytes_max
                + frame::ENVELOPE_BYTES_MAX
                + frame::HEADER_BYTES,
        };
        self.stats.bytes_received += bytes.len() as u64;
        let Some(session) = self.session(conn).filter(|session| session.is_open()) else { return };
        if session.state == State::Live {
            session.tick = tick;
        }
        // Taken out, so that what it lends (the body of a frame) can be handled by the whole shard.
        let mut transport = std::mem::take(&mut session.transport);
        let mut input = Received::new(bytes);
        let mut violation = None;
        loop {
            match transport.next(&mut input, &limits) {
                Ok(None) => break,
                Ok(Some(input)) => self.on_input(conn.slot, input),
                Err(found) => {
                    violation = Some(found);
                    break;
                }
            }
            if !self.sessions.get(conn.slot).is_some_and(Session::is_open) {
                break;
            }
        }
        let Some(session) = self.session(conn) else { return };
        session.transport = transport;
        if let Some(found) = violation {
            self.stats.violations += 1;
            self.doom(conn.slot, found.code, found.reason, 0);
        }
    }

    fn on_input(&mut self, slot: u32, input: Input<'_>) {
        match input {
            Input::Frame { kind: FrameKind::Request, body } => {
                self.stats.frames_received += 1;
                // Copied once, off the edge's buffer.
                self.on_request(slot, Bytes::copy_from_slice(body));
            }
            Input::Frame { kind: FrameKind::Ping, .. } => {
                self.stats.frames_received += 1;
                self.stats.pings += 1;
                self.pong(slot, |websocket| encode(websocket, FrameKind::Pong, &[]));
            }
            Input::Frame { .. } => self.stats.frames_received += 1,
            Input::WsPing(payload) => {
                self.stats.pings += 1;
                let payload = payload.to_vec();
                self.pong(slot, |_| ws_pong(&payload));
            }
            Input::WsPong => {}
            Input::WsClose { reply, .. } => self.doom_quietly(slot, reply),
            Input::Upgrade(answer) => {
                self.send(slot, Payload::Owned(answer));
                if let Some(session) = self.sessions.get_mut(slot) {
                    session.flags |= WEBSOCKET;
                }
            }
        }
    }

    fn pong(&mut self, slot: u32, bytes: impl FnOnce(bool) -> Vec<u8>) {
        let Some(session) = self.sessions.get(slot) else { return };
        if session.queue.bytes() > PONG_QUEUE_BYTES_MAX {
            self.stats.pongs_skipped += 1;
            return;
        }
        let bytes = bytes(session.is(WEBSOCKET));
        self.send(slot, Payload::Owned(bytes));
    }

    /// A request. Payloads are slices of its body.
    pub(super) fn on_request(&mut self, slot: u32, body: Bytes) {
        let Some(session) = self.sessions.get(slot) else { return };
        let state = session.state;
        let Ok(request) = Request::decode(body.clone()) else {
            self.stats.violations += 1;
            return self.doom(slot, Code::BadBody, "the body is no Request", 0);
        };
        let id = request.id;
        if state == State::New && !matches!(request.op, Some(request::Op::Login(_))) {
            self.stats.login_required += 1;
            let reason = "the first request must be a Login";
            let refused =
                Refused { code: Code::LoginRequired.into(), reason: reason.into(), ..Refused::default() };
            let response = Response { id, outcome: Some(response::Outcome::Refused(refused)) };
            return self.doom_after(slot, response, Code::LoginRequired, reason, 0);
        }
        if id == 0 && state == State::New {
            // Its answer could not be told from others: the login is over before it began.
            return self.doom(slot, Code::BadRequest, "request ids start at 1", 0);
        }
        if id == 0 {
            return self.refuse(slot, id, Refuse(Code::BadRequest, "request ids start at 1", 0));
        }
        let Some(op) = request.op else {
            return self.refuse(slot, id, Refuse(Code::BadRequest, "a request without an operation", 0));
        };
        let op = match (state, op) {
            (State::New, request::Op::Login(login)) => return self.on_login(slot, id, login),
            (_, request::Op::Login(_)) => {
                return self.refuse(slot, id, Refuse(Code::AlreadyLoggedIn, "logged in once already", 0));
            }
            (State::Live, op) => op,
            (State::Verifying | State::Registering, _) if self.hold_early(slot, &body) => return,
            _ => return self.refuse(slot, id, Refuse(Code::LoginRequired, "wait for LoginAck", 0)),
        };
        let bad_name = Refuse(Code::BadRequest, "names are 1-64 of A-Z a-z 0-9 . _ - @ +", 0);
        let checked = match op {
            request::Op::Send(send) => self.check_send(slot, &send).map(|()| send.conversation),
            request::Op::GroupCreate(create) => {
                let valid = is_name(&create.group) && create.members.iter().all(|member| is_name(member));
                valid.then(|| format!("g:{}", create.group)).ok_or(bad_name)
            }
            request::Op::GroupJoin(join) => is_group(&join.group).ok_or(bad_name),
            request::Op::GroupLeave(leave) => is_group(&leave.group).ok_or(bad_name),
            request::Op::GroupMembers(members) => is_group(&members.group).ok_or(bad_name),
            request::Op::RoomJoin(join) if is_name(&join.room) => {
                return self.join_room(slot, id, format!("r:{}", join.room));
            }
            request::Op::RoomLeave(leave) if is_name(&leave.room) => {
                return self.leave_room(slot, id, format!("r:{}", leave.room));
            }
            request::Op::RoomJoin(_) | request::Op::RoomLeave(_) => Err(bad_name),
            request::Op::Logout(_) => {
                let response = Response { id, outcome: Some(response::Outcome::LoggedOut(LoggedOut {})) };
                return self.doom_after(slot, response, Code::LoggedOut, "logged out", 0);
            }
            request::Op::Login(_) => return,
            _ => Err(Refuse(Code::Unavailable, "not served yet", 0)),
        };
        match checked {
            Ok(conversation) => self.pass_on(slot, id, &conversation, body),
            Err(refuse) => self.refuse(slot, id, refuse),
        }
    }

    /// Keeps a request that came behind a Login for after its answer, within limits.
    fn hold_early(&mut self, slot: u32, body: &Bytes) -> bool {
        let login = self.sessions.get_mut(slot).and_then(|session| session.login.as_mut());
        let Some(login) = login else { return false };
        let bytes: usize = login.early.iter().map(Bytes::len).sum();
        if login.early.len() == EARLY_REQUESTS_MAX || bytes + body.len() > EARLY_BYTES_MAX {
            self.stats.early_refused += 1;
            return false;
        }
        self.stats.early_requests += 1;
        login.early.push(body.clone());
        true
    }

    fn check_send(&self, slot: u32, send: &Send) -> Result<(), Refuse> {
        let session = self.sessions.get(slot).expect("the asker");
        let Some(conversation) = Conversation::parse(&send.conversation) else {
            return Err(Refuse(Code::BadRequest, "no such form of conversation id", 0));
        };
        if send.client_seq == 0 || send.stream == 0 {
            return Err(Refuse(Code::BadRequest, "client_seq and stream are never 0", 0));
        }
        if send.payload.len() > self.config.payload_bytes_max {
            return Err(Refuse(Code::PayloadTooLarge, "the payload is above the limit", 0));
        }
        match conversation {
            Conversation::Direct(..) if conversation.peer_of(self.users.text(session.user)).is_none() => {
                Err(Refuse(Code::Forbidden, "a direct conversation of other users", 0))
            }
            Conversation::Room(_) if !self.listens(slot, &send.conversation) => {
                Err(Refuse(Code::NotJoined, "join the room first", 0))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn refuse(&mut self, slot: u32, id: u64, refuse: Refuse) {
        let Refuse(code, reason, retry_after_ms) = refuse;
        if code != Code::Busy {
            self.stats.requests_refused += 1;
        }
        let refused = Refused { code: code.into(), reason: reason.into(), retry_after_ms, expected: 0 };
        self.respond(slot, id, response::Outcome::Refused(refused));
    }

    fn busy(&mut self, slot: u32, id: u64, reason: &'static str) {
        self.refuse(slot, id, Refuse(Code::Busy, reason, RETRY_AFTER_BUSY_MS));
    }

    /// Whether one more unanswered request is allowed; it is counted then.
    fn admit(&mut self, slot: u32, id: u64, bytes: usize) -> bool {
        let full = self.pending.len() >= self.config.requests_max
            || self.pending_bytes + bytes > self.config.request_bytes_max;
        let Some(session) = self.sessions.get_mut(slot) else { return false };
        if full || session.requests >= self.config.requests_per_session_max {
            self.stats.busy_limit += 1;
            self.busy(slot, id, "too many unanswered requests");
            return false;
        }
        session.requests += 1;
        true
    }

    fn settle(&mut self, conn: Conn) {
        if let Some(session) = self.session(conn) {
            session.requests = session.requests.saturating_sub(1);
        }
    }

    fn pass_on(&mut self, slot: u32, id: u64, conversation: &str, request: Bytes) {
        let bytes = request.len() + RECORD_ENVELOPE_BYTES;
        if !self.admit(slot, id, bytes) {
            return;
        }
        let session = self.sessions.get(slot).expect("admitted");
        let conn = session.conn(slot);
        let token = self.next_token;
        let body = ClientRequest {
            token,
            user: self.users.text(session.user).into(),
            device: self.device_of(session).0.into(),
            request,
        };
        let partition = partition_of(conversation, self.config.partitions);
        let header = session.id(&self.config, slot);
        match self.uplink.send(record(Kind::ClientRequest, partition, header, &body)) {
            Ok(node) => {
                self.stats.requests += 1;
                self.next_token += 1;
                self.pending_bytes += bytes;
                self.pending.insert(token, Pending { conn, id, bytes, partition, node: Some(node) });
                self.pending_timers.push_back((self.now.mono_us + REQUEST_TIMEOUT_US, token));
            }
            Err(unsent) => {
                self.settle(conn);
                match unsent {
                    Unsent::NoOwner(_) => {
                        self.stats.busy_no_owner += 1;
                        self.busy(slot, id, "the conversation moves to another server");
                    }
                    Unsent::NoCredit(_) => {
                        self.stats.busy_no_credit += 1;
                        self.busy(slot, id, "the server behind is behind");
                    }
                }
            }
        }
    }

    fn take_pending(&mut self, token: u64) -> Option<Pending> {
        let pending = self.pending.remove(&token)?;
        self.pending_bytes -= pending.bytes;
        self.settle(pending.conn);
        Some(pending)
    }

    /// Answers a request BUSY: nobody will answer it any more.
    pub(super) fn give_up(&mut self, token: u64, timeout: bool) {
        let Some(pending) = self.take_pending(token) else { return };
        if timeout {
            self.stats.busy_timeout += 1;
        } else {
            self.stats.busy_lost += 1;
        }
        if self.session(pending.conn).is_some() {
            self.busy(pending.conn.slot, pending.id, "no answer from the server behind; send it again");
        }
    }

    pub(super) fn on_reply(&mut self, header: SessionId, epoch: u64, body: Reply) {
        let pending = self.take_pending(body.token);
        let slot = self.slot_of(header).or_else(|| {
            let conn = pending.as_ref()?.conn;
            self.session(conn).filter(|session| session.is_open()).map(|_| conn.slot)
        });
        // A client that was told BUSY meanwhile learns from a notification what became of it all the same.
        let told = slot.filter(|_| pending.is_some());
        let mut missed = None;
        if !body.joined.is_empty() {
            missed = self.joined(slot, &body, epoch, told.is_some());
        }
        if !body.left.is_empty() {
            self.left(slot, &body.left, &body.user, told);
        }
        match (pending, slot) {
            (Some(_), Some(slot)) => self.send_frame(slot, FrameKind::Response, &body.response),
            _ => self.stats.replies_late += 1,
        }
        if let (Some(slot), Some(gap)) = (slot, missed) {
            self.notify(slot, gap);
        }
    }

    pub(super) fn turn_requests(&mut self) {
        let now_us = self.now.mono_us;
        while let Some((at, token)) = self.pending_timers.front().copied() {
            let waits = self.pending.contains_key(&token);
            if at > now_us && waits {
                break;
            }
            self.pending_timers.pop_front();
            if waits {
                self.give_up(token, true);
            }
        }
        while self.joins.front().is_some_and(|join| join.deadline_us <= now_us) {
            let Some(join) = self.joins.pop_front() else { break };
            if self.forget_waiter(join.topic, join.conn, join.id) {
                self.settle(join.conn);
                self.stats.busy_timeout += 1;
                self.busy(join.conn.slot, join.id, "no answer from the server behind; join again");
                self.unlist_if_gone(join.topic, join.conn.slot);
            }
        }
    }

    /// Requests that a node took and will not answer any more, of these partitions.
    pub(super) fn give_up_sent(&mut self, partitions: &dyn Fn(u16, Option<NodeKey>) -> bool) {
        let lost: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.node.is_some() && partitions(pending.partition, pending.node))
            .map(|(token, _)| *token)
            .collect();
        for token in lost {
            self.give_up(token, false);
        }
    }

    fn join_room(&mut self, slot: u32, id: u64, conversation: String) {
        let Some(session) = self.sessions.get(slot) else { return };
        let conn = session.conn(slot);
        let known = self.conversations.find(&conversation);
        let listed = known.is_some_and(|topic| session.topics.as_slice().contains(&topic));
        if !listed && session.topics.as_slice().len() >= self.config.topics_per_session_max as usize {
            self.stats.topic_limit += 1;
            return self.refuse(slot, id, Refuse(Code::LimitReached, "too many rooms and groups", 0));
        }
        if let Some((epoch, head, members)) = known.and_then(|topic| self.join_subscribed(slot, topic)) {
            let joined = Joined { conversation, epoch, head, members };
            return self.respond(slot, id, response::Outcome::Joined(joined));
        }
        if !self.admit(slot, id, RECORD_ENVELOPE_BYTES) {
            return;
        }
        let topic = self.wait_for(slot, &conversation, id);
        let deadline_us = self.now.mono_us + REQUEST_TIMEOUT_US;
        self.joins.push_back(PendingJoin { deadline_us, conn, id, topic });
    }

    /// The subscription that a room join waited for is there, or refused.
    pub(super) fn answer_join(&mut self, conn: Conn, id: u64, outcome: Result<Joined, Refuse>) {
        if self.session(conn).is_none() {
            return;
        }
        self.settle(conn);
        match outcome {
            Ok(joined) => self.respond(conn.slot, id, response::Outcome::Joined(joined)),
            Err(refuse) => self.refuse(conn.slot, id, refuse),
        }
    }

    fn leave_room(&mut self, slot: u32, id: u64, conversation: String) {
        let topic = self.conversations.find(&conversation);
        let listed = topic.filter(|topic| {
            self.sessions.get(slot).is_some_and(|session| session.topics.as_slice().contains(topic))
        });
        let Some(topic) = listed else {
            return self.refuse(slot, id, Refuse(Code::NotJoined, "not in this room", 0));
        };
        if let Some(session) = self.sessions.get_mut(slot) {
            session.topics.remove(topic);
        }
        self.leave_topic(topic, slot);
        self.respond(slot, id, response::Outcome::Left(Left { conversation }));
    }

    /// NotOwner brought a request back: on to the owner, or waiting for one.
    pub(super) fn reroute_request(&mut self, mut back: Record) {
        let Ok(body) = ClientRequest::decode(back.body.clone()) else { return };
        let Some(pending) = self.pending.get(&body.token) else { return };
        let conn = pending.conn;
        back.session = SessionId::new(self.config.gateway, self.config.shard, conn.slot, conn.generation);
        back.partition = pending.partition;
        match self.uplink.send(back) {
            Ok(node) => self.pending.get_mut(&body.token).expect("found above").node = Some(node),
            Err(Unsent::NoOwner(back) | Unsent::NoCredit(back)) => {
                self.pending.get_mut(&body.token).expect("found above").node = None;
                self.stats.parked += 1;
                if self.uplink.park(self.now.mono_us, back).is_err() {
                    self.stats.parked_dropped += 1;
                    self.give_up(body.token, false);
                }
            }
        }
    }
}

fn is_group(name: &str) -> Option<String> {
    is_name(name).then(|| format!("g:{name}"))
}

/// The answer to a WebSocket ping: a control frame carries at most 125 bytes.
fn ws_pong(payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(125)];
    let mut out = vec![0x8a, payload.len() as u8];
    out.extend_from_slice(payload);
    out
}
