//! Login storms: tokens wait here for their signature check, so that a turn does only a few.
//!
//! A check costs some 50 us, a thousand clients that come at once would stop all traffic of a shard for as long. The
//! rule: at most [`CHECKS_PER_TURN`] a turn, first come first served; what does not fit into the queue is told to
//! come back. Tickets cost a microsecond and are checked at once.

use std::collections::VecDeque;
use std::sync::Arc;

use millrace_protocol::messages::client::Code;

use super::auth::Keys;
use super::ticket::Tickets;
use crate::core::action::Credential;
use crate::core::event::{Conn, Identity, Refusal};

/// Signature checks of one turn, about half a millisecond.
pub const CHECKS_PER_TURN: usize = 8;
/// Tokens that wait at most: about a second of checks. Whoever waits longer has given up.
pub const QUEUE_MAX: usize = 16_384;
/// Bytes of tokens that wait at most.
pub const QUEUE_BYTES_MAX: usize = 16 << 20;
/// A refused client comes back after this, plus as much again spread over the refused.
const RETRY_AFTER_MS: u32 = 1_000;

/// The answer to a credential.
pub type Verdict = Result<Identity, Refusal>;

/// The credentials of one shard's logins.
#[derive(Debug)]
pub struct Logins {
    keys: Arc<Keys>,
    tickets: Tickets,
    waiting: VecDeque<(Conn, String)>,
    waiting_bytes: usize,
    counts: Counts,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Signatures checked.
    pub tokens_checked: u64,
    /// Tickets checked.
    pub tickets_checked: u64,
    /// Credentials that proved nothing.
    pub refused: u64,
    /// Logins turned away because the queue was full.
    pub overflowed: u64,
}

impl Logins {
    /// With these keys until [`Logins::set_keys`].
    pub fn new(keys: Arc<Keys>, tickets: Tickets) -> Self {
        Logins { keys, tickets, waiting: VecDeque::new(), waiting_bytes: 0, counts: Counts::default() }
    }

    /// Keys were read again. What waits is checked against the new ones.
    pub fn set_keys(&mut self, keys: Arc<Keys>) {
        self.keys = keys;
    }

    /// Takes a credential: an answer now, or `None` and one from [`Logins::check_next`] later.
    pub fn offer(&mut self, conn: Conn, credential: Credential, wall_ms: u64) -> Option<Verdict> {
        match credential {
            Credential::Ticket { ticket, device, platform } => {
                self.counts.tickets_checked += 1;
                let verdict = self.tickets.check(&ticket, &device, &platform, wall_ms);
                self.counts.refused += u64::from(verdict.is_err());
                Some(verdict)
            }
            // Refused for its length alone, so that it does not take room in the queue.
            Credential::Token(token) if token.len() > self.keys.token_bytes_max() => {
                self.counts.refused += 1;
                Some(self.keys.check(&token))
            }
            Credential::Token(token) => {
                if self.waiting.len() >= QUEUE_MAX || self.waiting_bytes + token.len() > QUEUE_BYTES_MAX {
                    self.counts.overflowed += 1;
                    let spread = (self.counts.overflowed % u64::from(RETRY_AFTER_MS)) as u32;
                    let reason = "too many logins at once".to_owned();
                    return Some(Err(Refusal {
                        code: Code::Busy,
                        reason,
                        retry_after_ms: RETRY_AFTER_MS + spread,
                    }));
                }
                self.waiting_bytes += token.len();
                self.waiting.push_back((conn, token));
                None
            }
        }
    }

    /// Checks the token that waited longest. Call at most [`CHECKS_PER_TURN`] times a turn.
    pub fn check_next(&mut self) -> Option<(Conn, Verdict)> {
        let (conn, token) = self.waiting.pop_front()?;
        self.waiting_bytes -= token.len();
        self.counts.tokens_checked += 1;
        let verdict = self.keys.check(&token);
        self.counts.refused += u64::from(verdict.is_err());
        Some((conn, verdict))
    }

    /// Tokens waiting.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Counters since the start.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}
