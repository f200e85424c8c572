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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Command;

    use super::*;
    use crate::shell::config;
    use crate::shell::signing::Signer;

    /// Logins of a standalone gateway with its data in `directory`, and what signs for it.
    fn logins(directory: &std::path::Path) -> (Logins, Signer) {
        let command = config::with_flags(Command::new("gateway"));
        let arguments = ["gateway", "--data-dir", directory.to_str().unwrap()];
        let settings = config::load(&command.get_matches_from(arguments), std::iter::empty()).unwrap();
        let signer = Signer::for_settings(&settings).unwrap().unwrap();
        let keys = Keys::load(&settings.auth, Some(&signer)).unwrap();
        (Logins::new(Arc::new(keys), Tickets::load(&settings).unwrap()), signer)
    }

    fn conn(slot: u32) -> Conn {
        Conn { slot, generation: 0 }
    }

    #[test]
    fn tokens_wait_in_order_and_each_gets_its_answer() {
        let directory = tempfile::tempdir().unwrap();
        let (mut logins, signer) = logins(directory.path());
        for slot in 0..3 {
            let token = match slot {
                1 => "nonsense".to_owned(),
                _ => signer.token(&format!("user-{slot}"), Duration::from_secs(60)).unwrap(),
            };
            assert_eq!(logins.offer(conn(slot), Credential::Token(token), 0), None);
        }
        assert_eq!(logins.waiting(), 3);
        for slot in 0..3 {
            let (who, verdict) = logins.check_next().unwrap();
            assert_eq!(who, conn(slot));
            assert_eq!(
                verdict.ok().map(|identity| identity.user),
                (slot != 1).then(|| format!("user-{slot}"))
            );
        }
        assert!(logins.check_next().is_none());
        assert_eq!(
            (logins.waiting_bytes, logins.counts().tokens_checked, logins.counts().refused),
            (0, 3, 1)
        );
    }

    #[test]
    fn what_does_not_fit_is_answered_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let (mut logins, _) = logins(directory.path());
        let long = "x".repeat(8_193);
        let refusal = logins.offer(conn(0), Credential::Token(long), 0).unwrap().unwrap_err();
        assert_eq!((refusal.code, logins.waiting()), (Code::BadToken, 0));
        let mut refusals = Vec::new();
        for slot in 0..QUEUE_MAX as u32 + 2 {
            refusals.extend(logins.offer(conn(slot), Credential::Token("x".to_owned()), 0));
        }
        assert_eq!((logins.waiting(), refusals.len(), logins.counts().overflowed), (QUEUE_MAX, 2, 2));
        for refusal in refusals {
            let refusal = refusal.unwrap_err();
            assert_eq!(refusal.code, Code::Busy);
            assert!((RETRY_AFTER_MS..2 * RETRY_AFTER_MS).contains(&refusal.retry_after_ms));
        }
        // Bytes are bounded too: long tokens fill the queue sooner.
        while logins.check_next().is_some() {}
        let token = "x".repeat(8_192);
        let taken = (0..QUEUE_MAX as u32)
            .take_while(|slot| logins.offer(conn(*slot), Credential::Token(token.clone()), 0).is_none());
        assert_eq!(taken.count(), QUEUE_BYTES_MAX / token.len());
    }

    #[test]
    fn tickets_are_checked_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let (mut logins, _) = logins(directory.path());
        let credential = Credential::Ticket {
            ticket: vec![1; 80],
            device: "phone".to_owned(),
            platform: "ios".to_owned(),
        };
        let verdict = logins.offer(conn(0), credential, 0).expect("an answer at once");
        assert_eq!(verdict.unwrap_err().code, Code::BadToken);
        assert_eq!((logins.counts().tickets_checked, logins.waiting()), (1, 0));
    }
}
