//! Waiting until replicas have what was written, and looking at what servers do with it.
//!
//! When a wait is owed is left to [`super::round`]. WAIT speaks of what was written on its own connection and on no other:
//! on a fresh one it is content at once. The rule that keeps it right: every connection is named with a word that is drawn
//! when it is looked at, before anything is written on it; a wait counts only when the connection still has that name
//! behind it. So it was there all the time, and no other took its place. The name is also that by which a connection that
//! was given up is known again, and ended, before anything that is written on the one that replaces it counts: every
//! pipeline has the name behind it.

use std::time::Duration;

use fred::error::{Error, ErrorKind};
use fred::types::Value;
use fred::types::config::Server;

use super::Trouble;
use super::command::{list, number, text, to_number, to_text};
use super::session::{Reached, Session};
use crate::store::{Durability, StoreError};

/// How long replicas may take: longer than one that forks for a snapshot. Replicas that are gone must not hold up leases,
/// which are renewed in the next round at the latest.
const REPLICA_WAIT: Duration = Duration::from_secs(1);

/// The word that connections are named with, and what the servers call them.
#[derive(Clone, Debug, Default)]
pub(super) struct Mark {
    word: String,
    known: Vec<Known>,
}

/// A connection that was named.
#[derive(Clone, Debug)]
struct Known {
    server: Option<Server>,
    id: u64,
    word: String,
}

impl Mark {
    /// The name.
    pub(super) fn word(&self) -> &str {
        &self.word
    }

    /// Names all connections anew, and ends those that they replace.
    pub(super) async fn set(session: &Session, former: &Mark) -> Result<Self, StoreError> {
        let word = format!("millrace-{:016x}", super::job::draw_nonce()?);
        let mut mark = Mark { word, known: Vec::new() };
        let mut reached = Reached::default();
        let mut named = Vec::new();
        for server in session.servers() {
            let name = mark.name(session, server.clone(), former).await;
            named.extend(name.is_ok().then_some(server));
            reached.note(session, name)?;
        }
        reached.any()?;
        // Those that are away are ended when their servers are back.
        mark.known.extend(former.known.iter().filter(|known| !named.contains(&known.server)).cloned());
        Ok(mark)
    }

    async fn name(&mut self, session: &Session, server: Option<Server>, former: &Mark) -> Result<(), Error> {
        let ask = async |args: &[&str]| {
            let args = args.iter().map(|arg| text(arg)).collect();
            session.ask(server.as_ref(), "CLIENT", args).await
        };
        // A server that does not allow it, or is too old for it, can't be helped.
        let allowed = |reply: Result<Value, Error>| match reply {
            Err(error) if !is_refusal(&error) => Err(error),
            reply => Ok(reply.ok()),
        };
        let id = allowed(ask(&["ID"]).await)?.and_then(|id| to_number(id).ok());
        // What was sent on a connection that was given up may still be on its way. Carried out after what is sent on this one,
        // it would be out of order: of one user's logins, the earlier would stay.
        for known in former.known.iter().filter(|known| known.server == server && Some(known.id) != id) {
            let (id, name) = (known.id.to_string(), format!(" name={} ", known.word));
            let listed = allowed(ask(&["LIST", "ID", &id]).await)?.map(to_text);
            if matches!(listed, Some(Ok(line)) if line.contains(&name)) {
                allowed(ask(&["KILL", "ID", &id]).await)?;
            }
        }
        ask(&["SETNAME", &self.word]).await?;
        let Some(id) = id else { return Ok(()) };
        if allowed(ask(&["ID"]).await)?.and_then(|id| to_number(id).ok()) != Some(id) {
            return Err(Error::new(ErrorKind::Canceled, "the connection was replaced"));
        }
        self.known.push(Known { server, id, word: self.word.clone() });
        Ok(())
    }

    /// Waits until so many replicas of a server have all that was written to it on its connection.
    pub(super) async fn wait(
        &self,
        session: &Session,
        server: Option<&Server>,
        replicas: u32,
    ) -> Result<(), Unmet> {
        let args = vec![number(u64::from(replicas)), number(REPLICA_WAIT.as_millis() as u64)];
        let failed = |error: &Error| Unmet::Connection(error.to_string());
        let reply = session.ask(server, "WAIT", args).await.map_err(|e| failed(&e))?;
        let found = to_number(reply).map_err(|e| Unmet::Connection(e.to_string()))?;
        let reply = session.ask(server, "CLIENT", vec![text("GETNAME")]).await.map_err(|e| failed(&e))?;
        if to_text(reply).unwrap_or_default() != self.word {
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
    let mut reached = Reached::default();
    for server in session.servers() {
        let looked_at = look_at(session, server.as_ref(), durability, &mut trouble).await;
        reached.note(session, looked_at)?;
    }
    reached.any()?;
    Ok(trouble)
}

async fn look_at(
    session: &Session,
    server: Option<&Server>,
    durability: Durability,
    trouble: &mut Trouble,
) -> Result<(), Error> {
    let memory = session.ask(server, "INFO", vec![text("memory")]).await?;
    let memory = to_text(memory).unwrap_or_default();
    let policy = memory.lines().find_map(|line| line.strip_prefix("maxmemory_policy:"));
    let policy = policy.unwrap_or("unknown").trim();
    if policy != "noeviction" {
        trouble.eviction_policy = policy.to_owned();
    }
    if durability == Durability::Fsync && trouble.not_synced.is_none() {
        trouble.not_synced = not_synced(session, server).await?;
    }
    Ok(())
}

/// Why a server may answer before it has synced.
async fn not_synced(session: &Session, server: Option<&Server>) -> Result<Option<String>, Error> {
    for (name, wanted) in [("appendonly", "yes"), ("appendfsync", "always")] {
        let found = match session.ask(server, "CONFIG", vec![text("GET"), text(name)]).await {
            Ok(reply) => list(reply).ok().and_then(|reply| reply.into_iter().nth(1)).unwrap_or(Value::Null),
            // Of a connection that fails nothing is known; a command that is refused is refused for ever.
            Err(error) if is_refusal(&error) => {
                return Ok(Some(format!(
                    "whether it syncs before it answers can't be checked, because CONFIG is not allowed there ({})",
                    error.details()
                )));
            }
            Err(error) => return Err(error),
        };
        let found = to_text(found).unwrap_or_default();
        if found != wanted {
            return Ok(Some(format!("it has {name} «{found}»; with durability fsync it must be {wanted}")));
        }
    }
    Ok(None)
}

fn is_refusal(error: &Error) -> bool {
    ["NOPERM", "ERR"].iter().any(|word| error.details().starts_with(word))
}
