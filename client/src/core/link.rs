//! The life of connections: pause, token or ticket, connect, log in, heartbeats, and the end of each.
//!
//! The rules that keep it right: pauses have full jitter and obey what the server asked for; a ticket that is refused
//! is replaced by the token at once; a server is called silent only while it is listened to; and what a server said
//! before it closed is the reason, not the closing.

use std::time::Duration;

use bytes::Bytes;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Code, GoAway, Login, LoginAck};

use super::backoff::Backoff;
use super::event::Action;
use super::random::Random;
use super::settings::Settings;
use crate::error::{ConnectError, Reason};

/// Id of every login's request.
pub(super) const LOGIN_ID: u64 = 1;

/// A session that lasted this long was a good one: the next pauses are short again, ms.
const GOOD_SESSION_MS: u64 = 5_000;

/// Heartbeat if a server names none, ms.
const HEARTBEAT_MS: u64 = 30_000;

/// Why a connection ended, and how long the server wants to be left alone.
#[derive(Clone, Debug)]
struct Failed {
    reason: Reason,
    retry_after: Duration,
}

impl From<Reason> for Failed {
    fn from(reason: Reason) -> Self {
        Failed { reason, retry_after: Duration::ZERO }
    }
}

impl From<GoAway> for Failed {
    fn from(away: GoAway) -> Self {
        let reason = Reason::Server { code: away.code(), reason: away.reason };
        Failed { reason, retry_after: Duration::from_millis(away.retry_after_ms.into()) }
    }
}

#[derive(Debug)]
enum Phase {
    /// Until the next try.
    Pause {
        until_ms: u64,
    },
    /// Of getting a token, connecting and logging in.
    Trying {
        deadline_ms: u64,
        step: Step,
    },
    Up(Up),
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Token,
    Connect,
    Login,
}

#[derive(Debug)]
struct Up {
    beat_ms: u64,
    silence_ms: u64,
    began_ms: u64,
    wrote_ms: u64,
    heard_ms: u64,
}

/// What a failure leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum After {
    /// Another try, later. With the reason if a session ended.
    Again(Option<Reason>),
    /// The client is at its end.
    End(Reason),
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Link {
    settings: Settings,
    phase: Phase,
    conn: u64,
    /// For the login under way.
    token: String,
    ticket: Bytes,
    next_address: usize,
    backoff: Backoff,
    /// Logins refused TOKEN_EXPIRED one after the other.
    expired: u32,
    /// When the first login is given up; `None` when it has succeeded.
    first_deadline_ms: Option<u64>,
    farewell: Option<Failed>,
    /// The connection is to be told nothing of cursors.
    pub(super) deaf: bool,
}

impl Link {
    pub(super) fn new(settings: Settings, now_ms: u64, random: &mut Random) -> Self {
        let (low, high) = settings.backoff_ms;
        Link {
            phase: Phase::Pause { until_ms: 0 },
            conn: 0,
            token: String::new(),
            ticket: Bytes::new(),
            // Many clients with the same list begin at different gateways.
            next_address: (random.next() % settings.addresses.len().max(1) as u64) as usize,
            backoff: Backoff::new(Duration::from_millis(low), Duration::from_millis(high)),
            expired: 0,
            first_deadline_ms: Some(now_ms + settings.connect_deadline_ms),
            farewell: None,
            deaf: false,
            settings,
        }
    }

    /// Whether an event's connection is the present one.
    pub(super) fn is(&self, conn: u64) -> bool {
        self.conn == conn && !matches!(self.phase, Phase::Pause { .. } | Phase::Over)
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up(_))
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// Whether the session acknowledges.
    pub(super) fn acknowledges(&self) -> bool {
        self.settings.acknowledges && !self.deaf
    }

    /// Does what is due. `reads`: the server is listened to.
    pub(super) fn due(&mut self, now_ms: u64, reads: bool, actions: &mut Vec<Action>) -> Option<Reason> {
        match &mut self.phase {
            Phase::Pause { until_ms } if *until_ms <= now_ms => {
                self.conn += 1;
                let deadline_ms = now_ms + self.settings.connect_deadline_ms;
                self.phase = Phase::Trying { deadline_ms, step: Step::Token };
                match self.ticket.is_empty() {
                    true => actions.push(Action::Token { conn: self.conn }),
                    false => self.connect(actions),
                }
                None
            }
            Phase::Trying { deadline_ms, .. } if *deadline_ms <= now_ms => {
                let within = Duration::from_millis(self.settings.connect_deadline_ms);
                Some(Reason::Network(format!("{}: no login within {within:?}", self.address())))
            }
            Phase::Up(up) => {
                if !reads {
                    up.heard_ms = now_ms;
                }
                if now_ms >= up.heard_ms + up.silence_ms {
                    return Some(Reason::Silent(Duration::from_millis(up.silence_ms)));
                }
                if now_ms >= up.wrote_ms + up.beat_ms {
                    up.wrote_ms = now_ms;
                    actions.push(Action::Ping);
                }
                None
            }
            _ => None,
        }
    }

    pub(super) fn next_ms(&self, reads: bool) -> Option<u64> {
        match &self.phase {
            Phase::Pause { until_ms } => Some(*until_ms),
            Phase::Trying { deadline_ms, .. } => Some(*deadline_ms),
            Phase::Up(up) => {
                let beat = up.wrote_ms + up.beat_ms;
                Some(if reads { beat.min(up.heard_ms + up.silence_ms) } else { beat })
            }
            Phase::Over => None,
        }
    }

    /// The token came, or did not.
    pub(super) fn token(
        &mut self,
        token: Result<String, String>,
        actions: &mut Vec<Action>,
    ) -> Option<Reason> {
        match token {
            Ok(token) => {
                self.token = token;
                self.connect(actions);
                None
            }
            Err(error) => Some(Reason::Token(error)),
        }
    }

    /// The transport is open: logs in.
    pub(super) fn opened(&mut self, actions: &mut Vec<Action>) {
        if let Phase::Trying { step: step @ Step::Connect, .. } = &mut self.phase {
            *step = Step::Login;
            let op = Op::Login(Login {
                token: std::mem::take(&mut self.token),
                device: self.settings.device.clone(),
                platform: self.settings.platform.clone(),
                resume_ticket: self.ticket.clone(),
                acknowledges: self.acknowledges(),
            });
            actions.push(Action::Request { id: LOGIN_ID, op });
        }
    }

    /// The login was answered.
    pub(super) fn login(&mut self, outcome: Outcome, now_ms: u64) -> Result<LoginAck, Reason> {
        if !matches!(self.phase, Phase::Trying { step: Step::Login, .. }) {
            return Err(Reason::Network("an answer to a login that was not asked for".into()));
        }
        match outcome {
            Outcome::LoginAck(ack) => {
                let heartbeat_ms = match ack.heartbeat_interval_ms {
                    0 => HEARTBEAT_MS,
                    ms => ms.into(),
                };
                self.ticket = ack.resume_ticket.clone();
                self.expired = 0;
                self.first_deadline_ms = None;
                self.phase = Phase::Up(Up {
                    // Early enough that one that is late still counts.
                    beat_ms: heartbeat_ms * 7 / 10,
                    silence_ms: heartbeat_ms * 2 + 1_000,
                    began_ms: now_ms,
                    wrote_ms: now_ms,
                    heard_ms: now_ms,
                });
                Ok(ack)
            }
            Outcome::Refused(refused) => {
                let reason = Reason::refused(&refused);
                let retry_after = Duration::from_millis(refused.retry_after_ms.into());
                self.farewell = Some(Failed { reason: reason.clone(), retry_after });
                Err(reason)
            }
            other => Err(Reason::Network(format!("an answer to no login: {other:?}"))),
        }
    }

    /// The server is about to close: that is the reason of what follows.
    pub(super) fn go_away(&mut self, away: GoAway) {
        self.farewell = Some(away.into());
    }

    pub(super) fn heard(&mut self, now_ms: u64) {
        if let Phase::Up(up) = &mut self.phase {
            up.heard_ms = now_ms;
        }
    }

    pub(super) fn wrote(&mut self, now_ms: u64) {
        if let Phase::Up(up) = &mut self.phase {
            up.wrote_ms = now_ms;
        }
    }

    /// No ticket will be used any more.
    pub(super) fn drop_ticket(&mut self) {
        self.ticket = Bytes::new();
    }

    /// The present connection, or the attempt at one, is over.
    pub(super) fn lost(
        &mut self,
        reason: Reason,
        now_ms: u64,
        random: &mut Random,
        actions: &mut Vec<Action>,
    ) -> After {
        let Failed { reason, retry_after } = self.farewell.take().unwrap_or(reason.into());
        let session = match &self.phase {
            Phase::Up(up) => {
                if now_ms >= up.began_ms + GOOD_SESSION_MS {
                    self.backoff.reset();
                }
                Some(reason.clone())
            }
            _ => None,
        };
        self.phase = Phase::Pause { until_ms: u64::MAX };
        if self.is_last(&reason) {
            return After::End(reason);
        }
        let mut pause = self.backoff.next(retry_after, random.next());
        // A login that was refused for its ticket is repeated with the token, at once.
        if matches!(reason, Reason::Server { code: Code::TokenExpired | Code::BadToken, .. }) {
            pause = Duration::ZERO;
        } else {
            self.next_address += 1;
        }
        // Never the present millisecond: its work may be done, and nobody wakes up for it again.
        let until_ms = now_ms + (pause.as_millis() as u64).max(1);
        if self.first_deadline_ms.is_some_and(|deadline_ms| until_ms >= deadline_ms) {
            self.first_deadline_ms = None;
            actions.push(Action::First(Err(ConnectError::Deadline(reason.clone()))));
            return After::End(reason);
        }
        self.phase = Phase::Pause { until_ms };
        After::Again(session)
    }

    /// The client is at its end. Returns whether there was a connection, or an attempt at one, to be closed.
    pub(super) fn end(&mut self, reason: &Reason, actions: &mut Vec<Action>) -> bool {
        let open = matches!(self.phase, Phase::Trying { .. } | Phase::Up(_));
        self.phase = Phase::Over;
        if self.first_deadline_ms.take().is_some() {
            actions.push(Action::First(Err(ConnectError::Final(reason.clone()))));
        }
        open
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

    fn connect(&mut self, actions: &mut Vec<Action>) {
        if let Phase::Trying { step: step @ Step::Token, .. } = &mut self.phase {
            *step = Step::Connect;
            actions.push(Action::Connect { conn: self.conn, address: self.address() });
        }
    }

    fn address(&self) -> String {
        self.settings.addresses[self.next_address % self.settings.addresses.len()].clone()
    }
}
