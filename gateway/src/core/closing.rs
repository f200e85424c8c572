//! Sending to clients, and how connections end.
//!
//! Every end with a reason goes one way: doomed at once (input is ignored, nothing refers to the session any more),
//! last words queued at the end of the step, a half-close behind them, and a hard close a second later if the peer
//! has not gone by itself.

use std::borrow::Cow;

use millrace_protocol::frame::{self, FrameKind};
use millrace_protocol::messages::client::{Code, Notify, Response, notify, response};
use millrace_protocol::prost::Message;
use millrace_protocol::ws;

use super::action::{Action, Payload};
use super::event::Conn;
use super::limits::*;
use super::outbox::payload_bytes;
use super::session::*;
use super::shard::Shard;
use super::wheel;

/// A session to be closed at the end of the step.
pub(super) struct Doom {
    conn: Conn,
    code: Code,
    reason: Cow<'static, str>,
    retry_after_ms: u32,
    words: Words,
}

enum Words {
    /// GoAway with the code.
    GoAway,
    /// These bytes, then GoAway with the code.
    Before(Vec<u8>),
    /// These bytes alone: the client closed by itself.
    Only(Vec<u8>),
}

/// A drain under way.
pub(super) struct Drain {
    pub deadline_us: u64,
    at: u32,
    spread_ms: u32,
    told: bool,
    pub closed: bool,
}

/// A frame as such a connection speaks it.
pub(super) fn encode(websocket: bool, kind: FrameKind, body: &[u8]) -> Vec<u8> {
    if !websocket {
        return frame::encode_body(kind, body);
    }
    let (prefix, prefix_bytes) = ws::server_binary_header(frame::HEADER_BYTES + body.len());
    let mut out = Vec::with_capacity(prefix_bytes + frame::HEADER_BYTES + body.len());
    out.extend_from_slice(&prefix[..prefix_bytes]);
    out.extend_from_slice(&frame::encode_header(kind, body.len()));
    out.extend_from_slice(body);
    out
}

impl Shard {
    /// Sends, now or behind what is in flight; above the cap the session is closed.
    pub(super) fn send(&mut self, slot: u32, payload: Payload) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        if !session.is_open() || session.is(SHUT) {
            return;
        }
        if !session.is(IN_FLIGHT) {
            return self.send_now(slot, payload);
        }
        if !self.pool.push(&mut session.queue, payload, self.config.outbox_bytes_max) {
            self.stats.slow_consumers += 1;
            self.pool.clear(&mut session.queue);
            self.doom(slot, Code::SlowConsumer, "messages came faster than they were read", 0);
        }
    }

    fn send_now(&mut self, slot: u32, payload: Payload) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        session.flags |= IN_FLIGHT;
        self.stats.sends += 1;
        self.stats.bytes_sent += payload_bytes(&payload).len() as u64;
        let conn = session.conn(slot);
        self.out.push(Action::Send { conn, payload });
    }

    /// Sends a frame with this body.
    pub(super) fn send_frame(&mut self, slot: u32, kind: FrameKind, body: &[u8]) {
        let Some(session) = self.sessions.get(slot) else { return };
        let bytes = encode(session.is(WEBSOCKET), kind, body);
        self.send(slot, Payload::Owned(bytes));
    }

    /// Answers a login: before whatever waits already, because its route was known earlier.
    pub(super) fn send_first(&mut self, slot: u32, response: &Response) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        let bytes = encode(session.is(WEBSOCKET), FrameKind::Response, &response.encode_to_vec());
        if session.is(IN_FLIGHT) {
            self.pool.push_first(&mut session.queue, Payload::Owned(bytes));
        } else {
            self.send_now(slot, Payload::Owned(bytes));
        }
    }

    /// Answers a request.
    pub(super) fn respond(&mut self, slot: u32, id: u64, outcome: response::Outcome) {
        let response = Response { id, outcome: Some(outcome) };
        self.send_frame(slot, FrameKind::Response, &response.encode_to_vec());
    }

    /// Tells one session something.
    pub(super) fn notify(&mut self, slot: u32, event: notify::Event) {
        self.send_frame(slot, FrameKind::Notify, &Notify { event: Some(event) }.encode_to_vec());
    }

    #[inline]
    pub(super) fn on_sent(&mut self, conn: Conn) {
        let Some(session) = self.session(conn) else { return };
        session.flags &= !IN_FLIGHT;
        if session.is(ACKNOWLEDGES) {
            return self.on_sent_owing(conn.slot);
        }
        self.send_queued(conn.slot);
    }

    /// Keeps back what is sent to a session, for [`CORK_US`], so that it goes out together.
    pub(super) fn cork(&mut self, slot: u32) {
        let Some(session) = self.sessions.get_mut(slot).filter(|session| !session.is(IN_FLIGHT)) else {
            return;
        };
        session.flags |= IN_FLIGHT;
        self.corked.push_back((self.now.mono_us + CORK_US, session.conn(slot)));
        self.stats.corks += 1;
    }

    /// Sends what was kept back for long enough.
    pub(super) fn turn_corked(&mut self) {
        while let Some((at, conn)) = self.corked.front().copied() {
            if at > self.now.mono_us {
                break;
            }
            self.corked.pop_front();
            self.on_sent(conn);
        }
    }

    pub(super) fn send_queued(&mut self, slot: u32) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        // What waits while a session is being registered goes out behind its LoginAck.
        if !session.is(IN_FLIGHT)
            && session.state != State::Registering
            && let Some(payload) = self.pool.next_send(&mut session.queue)
        {
            self.send_now(slot, payload);
        }
        let Some(session) = self.sessions.get_mut(slot) else { return };
        if session.state == State::Closing && session.queue.is_empty() && !session.is(SHUT) {
            // The last words are with the edge (or there are none): it half-closes behind them.
            session.flags |= SHUT;
            let conn = session.conn(slot);
            self.out.push(Action::Shutdown { conn });
        }
    }

    /// Closes a session with a reason, at the end of the step.
    pub(super) fn doom(
        &mut self,
        slot: u32,
        code: Code,
        reason: impl Into<Cow<'static, str>>,
        retry_after_ms: u32,
    ) {
        self.doom_with(slot, code, reason.into(), retry_after_ms, Words::GoAway);
    }

    /// The client closed by itself: these bytes are its answer.
    pub(super) fn doom_quietly(&mut self, slot: u32, last: Vec<u8>) {
        self.doom_with(slot, Code::None, Cow::Borrowed(""), 0, Words::Only(last));
    }

    /// Answers a request, then closes the session.
    pub(super) fn doom_after(
        &mut self,
        slot: u32,
        response: Response,
        code: Code,
        reason: impl Into<Cow<'static, str>>,
        retry_after_ms: u32,
    ) {
        let Some(session) = self.sessions.get(slot) else { return };
        let bytes = encode(session.is(WEBSOCKET), FrameKind::Response, &response.encode_to_vec());
        self.doom_with(slot, code, reason.into(), retry_after_ms, Words::Before(bytes));
    }

    fn doom_with(
        &mut self,
        slot: u32,
        code: Code,
        reason: Cow<'static, str>,
        retry_after_ms: u32,
        words: Words,
    ) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        if !session.is_open() {
            return;
        }
        if session.state == State::Registering {
            // What waits for its LoginAck came too early for who never gets one: its client does not know yet who it is, and
            // finds all of it in the logs when it is logged in.
            self.pool.clear(&mut session.queue);
        }
        session.state = State::Closing;
        let conn = session.conn(slot);
        self.doomed.push(Doom { conn, code, reason, retry_after_ms, words });
    }

    /// Sends the last words of the doomed, and takes them out of everything.
    pub(super) fn finish_dooms(&mut self) {
        // Telling one may doom another (a topic that ends tells its listeners).
        while let Some(doom) = self.doomed.pop() {
            let slot = doom.conn.slot;
            if self.session(doom.conn).is_none() {
                continue;
            }
            self.forget(slot);
            let tick = self.wheel().tick_after(self.now.mono_us + CLOSE_DEADLINE_MS * 1_000);
            let Some(session) = self.sessions.get_mut(slot) else { continue };
            session.tick = tick;
            let go_away = |session: &Session| {
                session.transport.close_bytes(doom.code, &doom.reason, doom.retry_after_ms)
            };
            let words = match doom.words {
                Words::GoAway => go_away(session),
                Words::Before(mut bytes) => {
                    bytes.extend(go_away(session));
                    bytes
                }
                Words::Only(bytes) => bytes,
            };
            if !words.is_empty() {
                // Above the cap by one frame of bounded size: the reason must get through.
                self.pool.push(&mut session.queue, Payload::Owned(words), u32::MAX);
            }
            self.arm(slot, tick);
            self.send_queued(slot);
        }
    }

    pub(super) fn on_closed(&mut self, conn: Conn) {
        let Some(session) = self.session(conn) else { return };
        // First, so that nothing that follows from its leaving is sent to it.
        session.state = State::Closed;
        self.forget(conn.slot);
        self.stats.closed += 1;
        if let Some(mut session) = self.sessions.remove(conn.slot) {
            self.pool.clear(&mut session.queue);
        }
    }

    /// Takes a session out of topics, users, counts and the dispatcher's routes. What remains is its connection.
    fn forget(&mut self, slot: u32) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        if session.is(UNAUTHENTICATED) {
            session.flags &= !UNAUTHENTICATED;
            self.admission.settle();
        }
        if session.take_login().is_some() {
            self.admission.end_login();
        }
        if session.aside.take().is_some() {
            self.owing_sessions -= 1;
        }
        for topic in std::mem::take(&mut session.topics).as_slice() {
            self.leave_topic(*topic, slot);
        }
        self.stop_watching(slot);
        self.unregister(slot);
        self.unname(slot);
    }

    pub(super) fn on_drain(&mut self, deadline_us: u64) {
        // A thousandth of a second per session: what a shard takes back without a queue.
        let spread_ms = (self.sessions.len() as u32).clamp(100, DRAIN_SPREAD_MS_MAX);
        self.drain = Some(Drain { deadline_us, at: 0, spread_ms, told: false, closed: false });
    }

    pub(super) fn turn_drain(&mut self) -> bool {
        let Some(mut drain) = self.drain.take() else { return false };
        if self.now.mono_us >= drain.deadline_us && !drain.closed {
            drain.closed = true;
            let mut at = 0;
            while let Some(slot) = self.sessions.next_used(at) {
                at = slot + 1;
                let Some(session) = self.sessions.get_mut(slot) else { continue };
                if session.state != State::Closed {
                    session.state = State::Closed;
                    let conn = session.conn(slot);
                    self.out.push(Action::Close { conn });
                }
                self.forget(slot);
            }
            drain.told = true;
        }
        for _ in 0..DRAIN_PER_TURN {
            if drain.told {
                break;
            }
            let Some(slot) = self.sessions.next_used(drain.at) else {
                drain.told = true;
                break;
            };
            drain.at = slot + 1;
            let retry_after_ms = 1 + wheel::spread(slot, self.config.seed, drain.spread_ms);
            self.doom(slot, Code::GoingAway, "the gateway goes down; connect again", retry_after_ms);
        }
        let more = !drain.told;
        self.drain = Some(drain);
        more
    }
}
