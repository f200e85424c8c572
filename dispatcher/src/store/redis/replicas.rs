//! Waiting until replicas have what was written, and looking at what servers do with it.
//!
//! When a wait is owed is left to [`super::round`]. WAIT speaks of what was written on its own connection and on no other:
//! on a fresh one it is content at once. The rule that keeps it right: every connection is named with a word that is drawn
//! when it is looked at, before anything is written on it; a wait counts only when the connection still has that name
//! behind it. So it was there all the time, and no other took its place.

use std::time::Duration;

use fred::types::Value;
use fred::types::config::Server;

use super::Trouble;
use super::command::{list, number, text, to_number, to_text};
use super::session::{Session, unavailable};
use crate::store::{Durability, StoreError};

/// How long replicas may take. An answer that is late is Unavailable; replicas that are gone must not hold up leases.
const REPLICA_WAIT: Duration = Duration::from_millis(500);

/// The word that connections are named with.
#[derive(Clone, Debug, Default)]
pub(super) struct Mark(String);

impl Mark {
    /// Names all connections anew.
    pub(super) async fn set(session: &Session) -> Result<Self, StoreError> {
        let word = format!("millrace-{:016x}", super::job::draw_nonce()?);
        for server in session.servers() {
            let args = vec![text("SETNAME"), text(&word)];
            session.ask(server.as_ref(), "CLIENT", args).await.map_err(|e| unavailable(&e))?;
        }
        Ok(Self(word))
    }

    /// Waits until so many replicas of a server have all that was written to it on its connection.
    pub(super) async fn wait(
        &self,
        session: &Session,
        server: Option<&Server>,
        replicas: u32,
    ) -> Result<(), Unmet> {
        let args = vec![number(u64::from(replicas)), number(REPLICA_WAIT.as_millis() as u64)];
        let failed = |error: &fred::error::Error| Unmet::Connection(error.to_string());
        let reply = session.ask(server, "WAIT", args).await.map_err(|e| failed(&e))?;
        let found = to_number(reply).map_err(|e| Unmet::Connection(e.to_string()))?;
        let reply = session.ask(server, "CLIENT", vec![text("GETNAME")]).await.map_err(|e| failed(&e))?;
        if to_text(reply).unwrap_or_default() != self.0 {
            return Err(Unmet::Connection("the connection was replaced".into()));
        }
        if found < u64::from(replicas) {
            return Err(Unmet::Replicas { found, wanted: replicas });
        }
        Ok(())
    }
}

/// Why a wait does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unmet {
    /// The server or its connection are not what they were.
    #[error("{0}")]
    Connection(String),
    /// Too few of them in time.
    #[error("{found} of {wanted} replicas have received it")]
    Replicas { found: u64, wanted: u32 },
}

/// What is wrong with the servers' settings, at this level of durability.
pub(super) async fn look(session: &Session, durability: Durability) -> Result<Trouble, StoreError> {
    let mut trouble = Trouble { eviction_policy: "noeviction".into(), ..Trouble::default() };
    for server in session.servers() {
        let server = server.as_ref();
        let memory = session.ask(server, "INFO", vec![text("memory")]).await.map_err(|e| unavailable(&e))?;
        let memory = to_text(memory)?;
        let policy = memory.lines().find_map(|line| line.strip_prefix("maxmemory_policy:"));
        let policy = policy.unwrap_or("unknown").trim();
        if policy != "noeviction" {
            trouble.eviction_policy = policy.to_owned();
        }
        if durability == Durability::Fsync {
            trouble.not_synced = trouble.not_synced.or(not_synced(session, server).await?);
        }
    }
    Ok(trouble)
}

/// Why a server may answer before it has synced.
async fn not_synced(session: &Session, server: Option<&Server>) -> Result<Option<String>, StoreError> {
    for (name, wanted) in [("appendonly", "yes"), ("appendfsync", "always")] {
        let found = match session.ask(server, "CONFIG", vec![text("GET"), text(name)]).await {
            Ok(reply) => list(reply)?.into_iter().nth(1).unwrap_or(Value::Null),
            // Of a connection that fails nothing is known; a command that is refused is refused for ever.
            Err(error) if is_refusal(&error) => {
                return Ok(Some(format!(
                    "whether it syncs before it answers can't be checked, because CONFIG is not allowed there ({})",
                    error.details()
                )));
            }
            Err(error) => return Err(unavailable(&error)),
        };
        let found = to_text(found)?;
        if found != wanted {
            return Ok(Some(format!("it has {name} {found}; with durability fsync it must be {wanted}")));
        }
    }
    Ok(None)
}

fn is_refusal(error: &fred::error::Error) -> bool {
    ["NOPERM", "ERR"].iter().any(|word| error.details().starts_with(word))
}
