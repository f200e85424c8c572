//! The one control thread of a process: signals, the lease, keys, admin HTTP. Never on the path of a message.
//!
//! SIGTERM and SIGINT drain: nothing new is accepted, clients are told to go, links are flushed, and the process ends
//! with 0 before the deadline. A second one ends it at once (that is done in the signal's handler, so that it works
//! whatever this thread does). SIGHUP reads the key files again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_edge::clock;
use signal_hook::consts::{SIGINT, SIGTERM};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;

use super::admin::{self, Admin};
use super::auth::Keys;
use super::config::Settings;
use super::lease::{Change, Keeper};
use super::log;
use super::signing::{Signer, random};
use super::talk::{ToControl, ToShard};

/// Of the drain's time, the share that is kept for flushing links and stopping the dispatcher in this process.
const RESERVE_SHARE: u32 = 5;

/// Refused renewals in a row for each line of the log.
const REFUSALS_PER_LINE: u32 = 30;

/// Why the control thread ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// Drained; the dispatcher in this process has so long to stop.
    Drained(Duration),
    /// A shard can't go on.
    Failed,
}

/// Makes the second SIGTERM or SIGINT exit at once, with 128 and its number. The first one sets the flag.
///
/// # Errors
/// The kernel refuses the handlers.
pub fn arm_signals() -> io::Result<Arc<AtomicBool>> {
    let draining = Arc::new(AtomicBool::new(false));
    for number in [SIGTERM, SIGINT] {
        // In this order: the first signal finds the flag unset, then sets it.
        signal_hook::flag::register_conditional_shutdown(number, 128 + number, Arc::clone(&draining))?;
        signal_hook::flag::register(number, Arc::clone(&draining))?;
    }
    Ok(draining)
}

/// The control thread's state.
pub struct Control {
    /// What admin sees.
    pub admin: Arc<Admin>,
    /// The configuration.
    pub settings: Arc<Settings>,
    /// The own key of a standalone gateway.
    pub own: Option<Signer>,
    /// Judges lease answers.
    pub keeper: Keeper,
    /// From the shards.
    pub inbox: Receiver<ToControl>,
    /// Renewals refused in a row.
    pub refusals: u32,
}

impl Control {
    /// Runs until a drain is complete or a shard fails. `listener` serves admin HTTP; `draining` is the flag of
    /// [`arm_signals`].
    ///
    /// # Errors
    /// Signals can't be awaited.
    pub async fn run(mut self, listener: TcpListener, draining: &AtomicBool) -> io::Result<End> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let router = admin::router(Arc::clone(&self.admin));
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                log::error(format_args!("admin HTTP ended: {error}"));
            }
        });
        if draining.load(Ordering::Relaxed) {
            return self.drain("a signal during the start").await;
        }
        loop {
            tokio::select! {
                _ = terminate.recv() => return self.drain("SIGTERM").await,
                _ = interrupt.recv() => return self.drain("SIGINT").await,
                _ = hangup.recv() => self.reload_keys(),
                Some(message) = self.inbox.recv() => match message {
                    ToControl::Lease(answer) => self.lease(&answer),
                    ToControl::Drained(_) => {}
                    ToControl::Failed(shard, error) => return Ok(failed(shard, &error)),
                },
            }
        }
    }

    fn broadcast(&self, message: impl Fn() -> ToShard) {
        for (index, shard) in self.admin.shards.iter().enumerate() {
            if shard.send(message()).is_err() {
                log::error(format_args!("shard {index} hangs: its inbox is full"));
            }
        }
    }

    fn lease(&mut self, answer: &super::lease::LeaseAnswer) {
        let first = self.keeper.lease().until_us == 0;
        // Random numbers don't fail once the process has started; a repeated one would at worst be refused.
        let draw = || random().map_or_else(|_| clock::boot_us(), u64::from_ne_bytes);
        match self.keeper.answer(answer, draw) {
            Change::None => {
                if answer.grant == 0 && answer.incarnation == self.keeper.lease().incarnation {
                    self.refused(&answer.reason);
                }
            }
            Change::Extended(lease) => {
                self.refusals = 0;
                if first {
                    log::info(format_args!("the gateway's lease is granted: taking logins"));
                }
                self.broadcast(|| ToShard::Lease(lease));
            }
            Change::Renewed(lease) => {
                log::warn(format_args!(
                    "the gateway's lease was lost ({}): registering all sessions again",
                    if answer.grant == 0 { &answer.reason } else { "it was granted anew" }
                ));
                self.admin.counts.incarnation_changes.fetch_add(1, Ordering::Relaxed);
                self.broadcast(|| ToShard::Lease(lease));
            }
        }
    }

    fn refused(&mut self, reason: &str) {
        if self.refusals.is_multiple_of(REFUSALS_PER_LINE) {
            let ttl = self.settings.lease_ttl;
            let ours = match self.admin.counts.incarnation_changes.load(Ordering::Relaxed) {
                0 => "or an earlier process with this id ended without a drain",
                _ => "or it is this process's own, from before it was lost",
            };
            log::warn(format_args!(
                "no lease yet: {reason}; {ours}, then it lapses within {ttl:?}. No logins are taken until then"
            ));
        }
        self.refusals = self.refusals.wrapping_add(1);
    }

    fn reload_keys(&self) {
        let counts = &self.admin.counts;
        match Keys::load(&self.settings.auth, self.own.as_ref()) {
            Ok(keys) => {
                let keys = Arc::new(keys);
                counts.keys.store(keys.len() as u64, Ordering::Relaxed);
                counts.key_reloads.fetch_add(1, Ordering::Relaxed);
                log::info(format_args!("SIGHUP: tokens are checked against {} keys now", keys.len()));
                self.broadcast(|| ToShard::Keys(Arc::clone(&keys)));
            }
            Err(error) => {
                counts.key_reload_failures.fetch_add(1, Ordering::Relaxed);
                log::error(format_args!("SIGHUP: the old keys stay, the new ones can't be used: {error}"));
            }
        }
    }

    async fn drain(mut self, signal: &str) -> io::Result<End> {
        let time = self.settings.drain;
        let reserve = time / RESERVE_SHARE;
        let ends = Instant::now() + time;
        log::info(format_args!("{signal}: draining for at most {time:?}; a second signal exits at once"));
        self.admin.draining.store(true, Ordering::Relaxed);
        let deadline_us = clock::boot_us() + (time - reserve).as_micros() as u64;
        self.broadcast(|| ToShard::Drain { deadline_us });
        let mut left: Vec<u8> = (0..self.admin.shards.len() as u8).collect();
        // Half of the reserve for shards to flush their links, half for the dispatcher in this process.
        let flushed_by = ends - reserve / 2;
        while !left.is_empty() {
            match tokio::time::timeout_at(flushed_by, self.inbox.recv()).await {
                Ok(Some(ToControl::Drained(shard))) => left.retain(|other| *other != shard),
                Ok(Some(ToControl::Lease(answer))) => self.lease(&answer),
                Ok(Some(ToControl::Failed(shard, error))) => return Ok(failed(shard, &error)),
                Ok(None) | Err(_) => {
                    log::warn(format_args!(
                        "shards {left:?} did not finish in time; what they hold is cut off"
                    ));
                    break;
                }
            }
        }
        Ok(End::Drained(ends.saturating_duration_since(Instant::now())))
    }
}

fn failed(shard: u8, error: &str) -> End {
    log::error(format_args!("shard {shard} can't go on: {error}"));
    End::Failed
}
