//! Resume tickets: a MAC of our own that replaces the signature when a client comes back.
//!
//! A ticket binds user, device, platform and login number to two times: its own expiry, and that of the token that
//! it began with, beyond which no chain of tickets reaches. It is checked in about a microsecond, without a table.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | version, 1 |
//! | 8 | the ticket expires: ms since 1970, big-endian, as the numbers below |
//! | 8 | the token expires |
//! | 8 | login number |
//! | 1 + n | user, then device, then platform, each with its length |
//! | 32 | HMAC-SHA256 over all before |

use std::path::Path;
use std::time::Duration;

use hmac::{Hmac, Mac};
use millrace_protocol::messages::client::Code;
use sha2::Sha256;

use super::auth::{AuthError, read_secret};
use super::config::Settings;
use super::log;
use super::signing::{private_file, random};
use crate::core::event::{Identity, Refusal};

const VERSION: u8 = 1;
const MAC_BYTES: usize = 32;
const FIXED_BYTES: usize = 1 + 3 * 8;
/// Three names of 64 bytes at most: anything longer is none of ours.
const TICKET_BYTES_MAX: usize = FIXED_BYTES + 3 * 65 + MAC_BYTES;
/// A standalone gateway's secret, in its data directory.
const OWN_SECRET_FILE: &str = "ticket-secret";

/// What a ticket says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims<'a> {
    /// Whose session.
    pub user: &'a str,
    /// On which device.
    pub device: &'a str,
    /// Of which platform.
    pub platform: &'a str,
    /// Under which it was registered.
    pub login_number: u64,
    /// When the token expires (ms since 1970).
    pub token_expires_ms: u64,
}

/// Makes and checks tickets.
#[derive(Clone)]
pub struct Tickets {
    mac: Hmac<Sha256>,
    lifetime: Duration,
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tickets").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

impl Tickets {
    /// With the configured secret; standalone with one kept in the data directory, so that tickets survive a
    /// restart; otherwise with a random one, good for this process alone.
    ///
    /// # Errors
    /// The secret can't be read, or is too short, or can't be made.
    pub fn load(settings: &Settings) -> Result<Self, AuthError> {
        let secret = match &settings.auth.ticket_secret_file {
            Some(path) => read_secret(path)?,
            None if settings.is_standalone() => {
                let path = settings.data_dir.join(OWN_SECRET_FILE);
                private_file(&path, || Ok(random::<32>()?.to_vec()))
                    .map_err(|error| AuthError::Io { path, error })?
            }
            None => {
                log::warn(format_args!(
                    "auth.ticket_secret_file is not set: resume tickets are good at this process only"
                ));
                let made = random::<32>();
                made.map_err(|error| AuthError::Io { path: Path::new("/dev/urandom").to_owned(), error })?
                    .to_vec()
            }
        };
        Ok(Self::new(&secret, settings.auth.ticket_lifetime))
    }

    /// With this secret, for tickets that last this long.
    pub fn new(secret: &[u8], lifetime: Duration) -> Self {
        Tickets { mac: Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"), lifetime }
    }

    /// A new ticket. Names longer than 255 bytes don't occur: the core checked them.
    pub fn make(&self, claims: &Claims<'_>, wall_ms: u64) -> Vec<u8> {
        let lifetime_ms = u64::try_from(self.lifetime.as_millis()).unwrap_or(u64::MAX);
        let expires_ms = wall_ms.saturating_add(lifetime_ms).min(claims.token_expires_ms);
        let mut ticket = Vec::with_capacity(TICKET_BYTES_MAX);
        ticket.push(VERSION);
        for number in [expires_ms, claims.token_expires_ms, claims.login_number] {
            ticket.extend(number.to_be_bytes());
        }
        for name in [claims.user, claims.device, claims.platform] {
            let length = u8::try_from(name.len()).expect("names have at most 64 bytes");
            ticket.push(length);
            ticket.extend(name.as_bytes());
        }
        let mac = self.mac.clone().chain_update(&ticket).finalize().into_bytes();
        ticket.extend(mac);
        ticket
    }

    /// Who comes back with a ticket.
    ///
    /// # Errors
    /// BAD_TOKEN or TOKEN_EXPIRED; the client logs in with a token then.
    pub fn check(
        &self,
        ticket: &[u8],
        device: &str,
        platform: &str,
        wall_ms: u64,
    ) -> Result<Identity, Refusal> {
        let bad = |reason: &str| Refusal {
            code: Code::BadToken,
            reason: format!("{reason}: log in with a token"),
            retry_after_ms: 0,
        };
        if !(FIXED_BYTES + MAC_BYTES..=TICKET_BYTES_MAX).contains(&ticket.len()) {
            return Err(bad("this is no resume ticket"));
        }
        let (body, mac) = ticket.split_at(ticket.len() - MAC_BYTES);
        // Constant-time, and before anything in the ticket is believed.
        if self.mac.clone().chain_update(body).verify_slice(mac).is_err() {
            return Err(bad("the resume ticket is not from here, or its secret was changed"));
        }
        let (claims, expires_ms) =
            read(body).ok_or_else(|| bad("the resume ticket is of another version"))?;
        if claims.device != device || claims.platform != platform {
            return Err(bad("the resume ticket is for another device or platform"));
        }
        if expires_ms <= wall_ms {
            let reason = "the resume ticket has expired: log in with a token".to_owned();
            return Err(Refusal { code: Code::TokenExpired, reason, retry_after_ms: 0 });
        }
        Ok(Identity {
            user: claims.user.to_owned(),
            expires_wall_ms: claims.token_expires_ms,
            login_number: claims.login_number,
        })
    }
}

/// Takes a ticket apart: its claims and its expiry.
fn read(body: &[u8]) -> Option<(Claims<'_>, u64)> {
    let (&version, rest) = body.split_first()?;
    let (numbers, mut rest) = rest.split_at_checked(FIXED_BYTES - 1)?;
    let number = |at: usize| u64::from_be_bytes(numbers[at * 8..at * 8 + 8].try_into().expect("8 bytes"));
    let mut name = || {
        let (&length, after) = rest.split_first()?;
        let (name, after) = after.split_at_checked(usize::from(length))?;
        rest = after;
        std::str::from_utf8(name).ok()
    };
    let (user, device, platform) = (name()?, name()?, name()?);
    let claims = Claims { user, device, platform, login_number: number(2), token_expires_ms: number(1) };
    (version == VERSION && rest.is_empty()).then_some((claims, number(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;
    const CLAIMS: Claims<'static> = Claims {
        user: "alice",
        device: "phone",
        platform: "ios",
        login_number: 42,
        token_expires_ms: NOW + 5_000,
    };

    fn tickets(lifetime_ms: u64) -> Tickets {
        Tickets::new(&[7; 32], Duration::from_millis(lifetime_ms))
    }

    #[test]
    fn a_ticket_says_who_it_was() {
        let ticket = tickets(60_000).make(&CLAIMS, NOW);
        let identity = tickets(60_000).check(&ticket, "phone", "ios", NOW).unwrap();
        assert_eq!(
            identity,
            Identity { user: "alice".into(), expires_wall_ms: NOW + 5_000, login_number: 42 }
        );
    }

    #[test]
    fn it_ends_with_its_lifetime_or_its_token() {
        for (lifetime_ms, good_for_ms) in [(1_000, 1_000), (60_000, 5_000)] {
            let ticket = tickets(lifetime_ms).make(&CLAIMS, NOW);
            let check =
                |at| tickets(lifetime_ms).check(&ticket, "phone", "ios", at).map_err(|refusal| refusal.code);
            assert!(check(NOW + good_for_ms - 1).is_ok());
            assert_eq!(check(NOW + good_for_ms), Err(Code::TokenExpired));
        }
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_refused() {
        let tickets = tickets(60_000);
        let ticket = tickets.make(&CLAIMS, NOW);
        for at in 0..ticket.len() * 8 {
            let mut changed = ticket.clone();
            changed[at / 8] ^= 1 << (at % 8);
            assert_eq!(
                tickets.check(&changed, "phone", "ios", NOW).unwrap_err().code,
                Code::BadToken,
                "bit {at}"
            );
        }
        for length in 0..ticket.len() {
            assert!(tickets.check(&ticket[..length], "phone", "ios", NOW).is_err(), "{length} bytes");
        }
        assert!(tickets.check(&[0; 4_096], "phone", "ios", NOW).is_err());
    }

    #[test]
    fn it_is_bound_to_device_platform_and_secret() {
        let ticket = tickets(60_000).make(&CLAIMS, NOW);
        assert!(tickets(60_000).check(&ticket, "tablet", "ios", NOW).is_err());
        assert!(tickets(60_000).check(&ticket, "phone", "web", NOW).is_err());
        let other = Tickets::new(&[8; 32], Duration::from_secs(60));
        assert_eq!(other.check(&ticket, "phone", "ios", NOW).unwrap_err().code, Code::BadToken);
    }
}
