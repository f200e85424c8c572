//! What clients send: bytes into frames, frames into requests, each to where it is served.
//!
//! The rule: where that is follows from [`Key::of`] alone, which the dispatchers check by. What a single partition serves
//! is passed on verbatim (`pending`); rooms, acknowledgements and what is cut into parts have files of their own.

use millrace_protocol::bytes::Bytes;
use millrace_protocol::frame::{self, FrameKind};
use millrace_protocol::ids::{Partition, partition_of};
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{Code, LoggedOut, Refused, Request, Response, response};
use millrace_protocol::prost::Message;
use millrace_protocol::request::{Key, may_be_silent};
use millrace_protocol::transport::{Input, Limits, Received};

use super::action::Payload;
use super::checks::BAD_NAME;
use super::closing::encode;
use super::event::Conn;
use super::limits::*;
use super::session::*;
use super::shard::Shard;

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
        if state == State::New && !matches!(request.op, Some(Op::Login(_))) {
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
        let Some(op) = request.op else {
            return self.refuse(slot, id, Refuse(Code::BadRequest, "a request without an operation", 0));
        };
        if id == 0 && !may_be_silent(&op) {
            let reason = "only DeliverAck, Read and Typing may have id 0";
            return self.refuse(slot, id, Refuse(Code::BadRequest, reason, 0));
        }
        if let Op::Login(login) = op {
            return match state {
                State::New => self.on_login(slot, id, login),
                _ => self.refuse(slot, id, Refuse(Code::AlreadyLoggedIn, "logged in once already", 0)),
            };
        }
        match state {
            State::Live => self.serve(slot, id, op, body),
            State::Verifying | State::Registering if self.hold_early(slot, &body) => {}
            _ => self.refuse(slot, id, Refuse(Code::LoginRequired, "wait for LoginAck", 0)),
        }
    }

    /// A request of a session that is logged in.
    #[inline]
    fn serve(&mut self, slot: u32, id: u64, op: Op, body: Bytes) {
        let partitions = self.config.partitions;
        if let Op::Send(send) = &op {
            // What its key says, without a copy of the id: most requests are this.
            let partition = partition_of(&send.conversation, partitions);
            let checked = self.check_send(slot, send);
            return self.pass_on_if(checked, slot, id, partition, body);
        }
        let Some(session) = self.sessions.get(slot) else { return };
        let user = self.users.text(session.user);
        let Some(key) = Key::of(&op, user) else { return self.refuse(slot, id, BAD_NAME) };
        if let Some(partition) = key.partition(user, partitions).filter(|_| !served_here(&op)) {
            let checked = self.check(slot, &op);
            return self.pass_on_if(checked, slot, id, partition, body);
        }
        match (op, key) {
            (Op::RoomJoin(_), Key::Conversation(room)) => self.join_room(slot, id, room),
            (Op::RoomLeave(_), Key::Conversation(room)) => self.leave_room(slot, id, room),
            (Op::DeliverAck(ask), _) => self.on_deliver_ack(slot, id, ask),
            (Op::Peek(ask), _) => self.on_peek(slot, id, ask),
            (Op::PresenceSubscribe(ask), _) => self.on_presence_subscribe(slot, id, ask),
            (Op::Logout(_), _) => {
                let response = Response { id, outcome: Some(response::Outcome::LoggedOut(LoggedOut {})) };
                self.doom_after(slot, response, Code::LoggedOut, "logged out", 0);
            }
            _ => self.refuse(slot, id, Refuse(Code::BadRequest, "not asked of a gateway", 0)),
        }
    }

    #[inline]
    fn pass_on_if(
        &mut self,
        checked: Result<(), Refuse>,
        slot: u32,
        id: u64,
        partition: Partition,
        body: Bytes,
    ) {
        match checked {
            Ok(()) => self.pass_on(slot, id, partition, body),
            Err(refuse) => self.refuse(slot, id, refuse),
        }
    }

    /// Keeps a request that came behind a Login for after its answer, within limits.
    fn hold_early(&mut self, slot: u32, body: &Bytes) -> bool {
        let login = self.sessions.get_mut(slot).and_then(Session::login_mut);
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

    pub(super) fn refuse(&mut self, slot: u32, id: u64, refuse: Refuse) {
        let Refuse(code, reason, retry_after_ms) = refuse;
        if code != Code::Busy {
            self.stats.requests_refused += 1;
        }
        let refused = Refused { code: code.into(), reason: reason.into(), retry_after_ms, expected: 0 };
        self.respond(slot, id, response::Outcome::Refused(refused));
    }

    pub(super) fn busy(&mut self, slot: u32, id: u64, reason: &'static str) {
        self.refuse(slot, id, Refuse(Code::Busy, reason, RETRY_AFTER_BUSY_MS));
    }
}

/// What this shard does itself, though it concerns a conversation: rooms have no members beyond who listens, and
/// acknowledgements go on together.
fn served_here(op: &Op) -> bool {
    matches!(op, Op::RoomJoin(_) | Op::RoomLeave(_) | Op::DeliverAck(_))
}

/// The answer to a WebSocket ping: a control frame carries at most 125 bytes.
fn ws_pong(payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(125)];
    let mut out = vec![0x8a, payload.len() as u8];
    out.extend_from_slice(payload);
    out
}
