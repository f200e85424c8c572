//! One device's connection: handshake, login with ticket or token, heartbeats, requests with their answers, and coming
//! back after a loss. Bytes and times in, bytes out; sockets are [`super::crowd`]'s.
//!
//! The rule: an answer is matched to what was asked on this very connection, and nothing of one connection is believed
//! on the next.

use millrace_protocol::bytes::Bytes;
use millrace_protocol::client_session::{self, ClientSession, Limits, Received, ServerFrame};
use millrace_protocol::messages::client::notify::Event as Told;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Code, GoAway, Login, LoginAck, Refused};
use rustc_hash::FxHashMap;

use crate::rng::Rng;

/// From connecting to LoginAck, in us: beyond it the gateway is taken for unreachable.
const LOGIN_WITHIN_US: u64 = 6_000_000;

/// First and longest pause before another attempt, in us. Shorter than what the protocol asks of a million clients: how
/// long *servers* take to recover is what is looked at.
const BACKOFF_FIRST_US: u64 = 100_000;
/// See [`BACKOFF_FIRST_US`].
const BACKOFF_MAX_US: u64 = 1_600_000;

/// Every request has an answer within this time, in us, or the connection is given up.
const ANSWER_WITHIN_US: u64 = 20_000_000;

/// The heartbeat until the server says another.
const HEARTBEAT_US: u64 = 30_000_000;

/// The id of the login.
const LOGIN_ID: u64 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Away,
    Connecting,
    Opening,
    LoggingIn,
    In,
}

/// Who logs in, and on what.
#[derive(Clone, Debug)]
pub struct Who {
    /// The user.
    pub user: String,
    /// The device.
    pub device: String,
    /// A signed token.
    pub token: Box<str>,
    /// Framed TCP otherwise.
    pub websocket: bool,
}

/// What a line heard that concerns its owner.
#[derive(Debug)]
pub enum Heard<A> {
    /// Logged in.
    In(LoginAck),
    /// The answer to what was asked.
    Answer(A, Outcome),
    /// Unasked; a GoAway is the line's own business.
    Told(Told),
}

/// A connection and its next ones. `A` says what a request was for.
#[derive(Debug)]
pub struct Line<A> {
    who: Who,
    session: ClientSession,
    phase: Phase,
    /// To be sent.
    pub out: Vec<u8>,
    /// Which of the gateways is tried next, or in use.
    pub target: usize,
    asked: FxHashMap<u64, (A, u64)>,
    next_id: u64,
    ticket: Bytes,
    heartbeat_us: u64,
    heard_us: u64,
    sent_us: u64,
    since_us: u64,
    back_us: u64,
    tries: u32,
    retry_after_ms: u32,
    /// Logins that succeeded.
    pub logins: u64,
    /// Connections that ended before their owner wanted it.
    pub losses: u64,
    /// Requests that had no answer in time.
    pub unanswered: u64,
    /// The last reason that a connection ended, in words.
    pub trouble: String,
}

impl<A> Line<A> {
    /// Away, to connect at once to the gateway with this number.
    pub fn new(who: Who, target: usize) -> Self {
        Line {
            who,
            session: ClientSession::tcp(),
            phase: Phase::Away,
            out: Vec::new(),
            target,
            asked: FxHashMap::default(),
            next_id: LOGIN_ID + 1,
            ticket: Bytes::new(),
            heartbeat_us: HEARTBEAT_US,
            heard_us: 0,
            sent_us: 0,
            since_us: 0,
            back_us: 0,
            tries: 0,
            retry_after_ms: 0,
            logins: 0,
            losses: 0,
            unanswered: 0,
            trouble: String::new(),
        }
    }

    /// Whether requests can be sent.
    pub fn is_in(&self) -> bool {
        self.phase == Phase::In
    }

    /// Whether it wants a connection now.
    pub fn wants_connection(&self, now_us: u64) -> bool {
        self.phase == Phase::Away && now_us >= self.back_us
    }

    /// A connect is under way.
    pub fn connecting(&mut self, now_us: u64) {
        (self.phase, self.since_us, self.heard_us) = (Phase::Connecting, now_us, now_us);
    }

    /// The connection is up.
    pub fn connected(&mut self, now_us: u64, rng: &mut Rng) {
        self.out.clear();
        self.heard_us = now_us;
        if self.who.websocket {
            let mut nonce = [0; 16];
            nonce[..8].copy_from_slice(&rng.bits().to_le_bytes());
            nonce[8..].copy_from_slice(&rng.bits().to_le_bytes());
            let (session, hello) = ClientSession::websocket("localhost", "/", nonce);
            (self.session, self.phase) = (session, Phase::Opening);
            self.out.extend_from_slice(&hello);
        } else {
            self.session = ClientSession::tcp();
            self.log_in();
        }
    }

    fn log_in(&mut self) {
        self.phase = Phase::LoggingIn;
        let token = if self.ticket.is_empty() { self.who.token.to_string() } else { String::new() };
        let login = Login {
            token,
            device: self.who.device.clone(),
            platform: "verify".to_owned(),
            resume_ticket: self.ticket.clone(),
            acknowledges: true,
        };
        self.session.request(LOGIN_ID, Op::Login(login), &mut self.out);
    }

    /// Asks, and remembers what for.
    pub fn ask(&mut self, now_us: u64, what: A, op: Op) {
        let id = self.next_id;
        self.next_id += 1;
        self.asked.insert(id, (what, now_us));
        self.session.request(id, op, &mut self.out);
    }

    /// Says something that has no answer.
    pub fn tell(&mut self, op: Op) {
        self.session.request(0, op, &mut self.out);
    }

    /// The connection is gone, or never came up; the next one goes to another gateway, after a pause.
    pub fn lost(&mut self, now_us: u64, gateways: usize, why: &str, rng: &mut Rng) {
        if self.phase == Phase::Away {
            return;
        }
        self.losses += 1;
        why.clone_into(&mut self.trouble);
        self.phase = Phase::Away;
        self.out.clear();
        self.asked.clear();
        self.target = (self.target + 1) % gateways.max(1);
        let ceiling = (BACKOFF_FIRST_US << self.tries.min(8)).min(BACKOFF_MAX_US);
        self.tries += 1;
        self.back_us = now_us + u64::from(self.retry_after_ms) * 1_000 + rng.below(ceiling);
        self.retry_after_ms = 0;
    }

    /// Heartbeats and time limits. `Err`: the connection is to be closed, and why.
    pub fn turn(&mut self, now_us: u64) -> Result<(), String> {
        match self.phase {
            Phase::Away => return Ok(()),
            Phase::In => {}
            phase if now_us > self.since_us + LOGIN_WITHIN_US => {
                return Err(format!("no login in time ({phase:?})"));
            }
            _ => return Ok(()),
        }
        if now_us > self.heard_us + self.heartbeat_us * 5 / 2 {
            return Err("the gateway is silent".to_owned());
        }
        if now_us > self.sent_us + self.heartbeat_us {
            self.session.ping(&mut self.out);
            self.sent_us = now_us;
        }
        if self.asked.values().any(|(_, at_us)| now_us > at_us + ANSWER_WITHIN_US) {
            self.unanswered += 1;
            return Err("a request has no answer".to_owned());
        }
        Ok(())
    }

    /// Takes in bytes. `Err`: the connection is to be closed, and why; what was heard before counts.
    pub fn hear(&mut self, now_us: u64, bytes: &mut [u8], heard: &mut Vec<Heard<A>>) -> Result<(), String> {
        self.heard_us = now_us;
        let (mut input, limits) = (Received::new(bytes), Limits::default());
        loop {
            let frame = self.session.next(&mut input, &limits).map_err(|violation| violation.to_string())?;
            match frame {
                None => return Ok(()),
                Some(ServerFrame::Open) => self.log_in(),
                Some(ServerFrame::Pong) => {}
                Some(ServerFrame::Ping) => self.session.pong(&mut self.out),
                Some(ServerFrame::WsPing(payload)) => {
                    let payload = payload.to_vec();
                    self.session.ws_pong(&payload, &mut self.out);
                }
                Some(ServerFrame::WsClose { code, reason }) => {
                    return Err(format!("closed with {code}: {reason}"));
                }
                Some(ServerFrame::Response(body)) => {
                    let response = client_session::decode_response(body).map_err(|v| v.to_string())?;
                    let outcome = response.outcome.ok_or("a response without an outcome")?;
                    self.answered(response.id, outcome, heard)?;
                }
                Some(ServerFrame::Notify(body)) => {
                    let notify = client_session::decode_notify(body).map_err(|v| v.to_string())?;
                    match notify.event {
                        Some(Told::GoAway(told)) => {
                            let GoAway { code, reason, retry_after_ms } = told;
                            self.retry_after_ms = retry_after_ms.min(1_000);
                            return Err(format!("sent away with {code}: {reason}"));
                        }
                        Some(event) => heard.push(Heard::Told(event)),
                        None => {}
                    }
                }
            }
        }
    }

    fn answered(&mut self, id: u64, outcome: Outcome, heard: &mut Vec<Heard<A>>) -> Result<(), String> {
        if id == LOGIN_ID {
            return match outcome {
                Outcome::LoginAck(ack) => {
                    self.phase = Phase::In;
                    (self.tries, self.sent_us) = (0, self.heard_us);
                    self.logins += 1;
                    self.ticket = ack.resume_ticket.clone();
                    self.heartbeat_us = u64::from(ack.heartbeat_interval_ms.max(1)) * 1_000;
                    heard.push(Heard::In(ack));
                    Ok(())
                }
                Outcome::Refused(Refused { code, reason, retry_after_ms, .. }) => {
                    self.retry_after_ms = retry_after_ms.min(1_000);
                    if matches!(Code::try_from(code), Ok(Code::BadToken | Code::TokenExpired)) {
                        self.ticket = Bytes::new();
                    }
                    Err(format!("the login was refused with {code}: {reason}"))
                }
                other => Err(format!("a login was answered with {other:?}")),
            };
        }
        // Refusals of what has no answer come with 0.
        if let Some((what, _)) = self.asked.remove(&id) {
            heard.push(Heard::Answer(what, outcome));
        } else if id != 0 {
            return Err(format!("an answer to {id}, which was not asked"));
        }
        Ok(())
    }
}
