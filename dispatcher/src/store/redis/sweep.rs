//! Removing what dead gateways left behind: all routes are looked through in bounded steps.
//!
//! Void they are as soon as the lease ends; this only gives the memory back and spares readers the judging. The rules that
//! keep it right: a life is swept while it is listed and its lease is gone, and unlisted only after a whole pass, so
//! that a sweeper that dies is followed by another; one sweeper at a time, by a lock that expires.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fred::types::Value;
use fred::types::config::Server;

use super::command::{Command, ScriptId, fixed, list, number, text, to_number, to_text};
use super::keys::Keys;
use super::session::{Session, unavailable};
use crate::store::{Gateway, StoreError};

/// Keys looked at in one step, about: some 2 ms of the server's time.
const STEP_KEYS: u64 = 512;
/// How long the lock outlives its sweeper, ms. Renewed at each step.
const LOCK_MS: u64 = 5_000;

/// The sweeper of this process.
#[derive(Clone, Default)]
pub(super) struct Sweeper {
    running: Arc<AtomicBool>,
    swept: Arc<AtomicU64>,
}

impl Sweeper {
    /// Starts a sweep of these lives' routes on the current runtime, unless one is running.
    pub(super) fn start(&self, session: &Session, keys: &Keys, dead: Vec<Gateway>) {
        if dead.is_empty() || self.running.swap(true, Ordering::AcqRel) {
            return;
        }
        let (own, session, keys) = (self.clone(), session.clone(), keys.clone());
        tokio::spawn(async move {
            // What fails here is tried again after a later heartbeat, which lists the same lives.
            let _ = own.sweep(&session, &keys, dead).await;
            own.running.store(false, Ordering::Release);
        });
    }

    pub(super) fn swept(&self) -> u64 {
        self.swept.load(Ordering::Relaxed)
    }

    async fn sweep(&self, session: &Session, keys: &Keys, mut dead: Vec<Gateway>) -> Result<(), StoreError> {
        let token = format!("{:016x}", getrandom::u64().unwrap_or_default());
        let args = vec![text(&token), text("NX"), text("PX"), number(LOCK_MS)];
        if to_text(one(session, Command::plain("SET", keys.sweep(), args)).await?)? != "OK" {
            return Ok(());
        }
        for server in session.servers() {
            dead = self.sweep_server(session, keys, server.as_ref(), dead).await?;
        }
        let mut commands: Vec<Command> = dead
            .iter()
            .map(|life| {
                let life = format!("{}:{}", life.gateway, life.incarnation);
                Command::plain("SREM", keys.lives(), vec![text(&life)])
            })
            .collect();
        commands.push(Command::plain("DEL", keys.sweep(), Vec::new()));
        session.run(&commands).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(())
    }

    /// Looks through all routes of one server; returns the lives that were dead to the end.
    async fn sweep_server(
        &self,
        session: &Session,
        keys: &Keys,
        server: Option<&Server>,
        mut dead: Vec<Gateway>,
    ) -> Result<Vec<Gateway>, StoreError> {
        let mut cursor = "0".to_owned();
        loop {
            dead = self.still_dead(session, keys, dead).await?;
            if dead.is_empty() {
                return Ok(dead);
            }
            let pattern = keys.routes_pattern();
            let args = vec![text(&cursor), text("MATCH"), text(&pattern), text("COUNT"), number(STEP_KEYS)];
            let found = session.ask(server, "SCAN", args).await.map_err(|e| unavailable(&e))?;
            let [next, found] = fixed(found)?;
            let lives: Vec<Value> =
                dead.iter().map(|life| text(&format!("{:03x}:{}", life.gateway, life.incarnation))).collect();
            let mut commands = list(found)?
                .into_iter()
                .map(|key| Ok(Command::script(ScriptId::Sweep, vec![to_text(key)?], lives.clone())))
                .collect::<Result<Vec<_>, StoreError>>()?;
            commands.push(Command::plain("PEXPIRE", keys.sweep(), vec![number(LOCK_MS)]));
            let mut replies = session.run(&commands).await;
            replies.pop();
            for reply in replies {
                self.swept.fetch_add(to_number(reply?)?, Ordering::Relaxed);
            }
            cursor = to_text(next)?;
            if cursor == "0" {
                return Ok(dead);
            }
        }
    }

    /// A gateway may have taken its lease again in this very life.
    async fn still_dead(
        &self,
        session: &Session,
        keys: &Keys,
        dead: Vec<Gateway>,
    ) -> Result<Vec<Gateway>, StoreError> {
        let lease =
            |life: &Gateway| Command::plain("GET", keys.gateway(&life.gateway.to_string()), Vec::new());
        let commands: Vec<Command> = dead.iter().map(lease).collect();
        let mut still = Vec::new();
        for (life, lease) in dead.into_iter().zip(session.run(&commands).await) {
            let lease = to_text(lease?)?;
            let holder = lease.split(':').next().unwrap_or_default();
            if holder != life.incarnation.to_string() {
                still.push(life);
            }
        }
        Ok(still)
    }
}

async fn one(session: &Session, command: Command) -> Result<Value, StoreError> {
    let missing = || Err(StoreError::Corrupted("a command without a reply".into()));
    session.run(&[command]).await.pop().unwrap_or_else(missing)
}
