//! Looking at the clients' counters while a phase lasts, with progress shown, and an eye on Ctrl-C and on servers that
//! die.
//!
//! The rule: an interrupted phase ends early and leaves what was measured so far; a server that died is named at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_edge::clock::boot_us;

use crate::child::Child;
use crate::clients::{Crew, Order, Totals};
use crate::progress::Progress;
use crate::rig::RunError;
use crate::schedule::Schedule;

/// How often counters are looked at.
pub const LOOK: Duration = Duration::from_millis(5);

/// How a phase ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As planned.
    Done,
    /// By Ctrl-C.
    Interrupted,
    /// Its time was up.
    TimedOut,
}

/// The display, and Ctrl-C.
pub struct Watch {
    /// The display.
    pub progress: Progress,
    /// Ctrl-C was pressed.
    pub stop: Arc<AtomicBool>,
}

impl Watch {
    /// Whether Ctrl-C was pressed.
    pub fn is_interrupted(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Looks at the counters until `done`, showing `position` on the way. All of `servers` must live that long.
    pub fn until<'a>(
        &mut self,
        crew: &Crew,
        servers: impl IntoIterator<Item = &'a mut Child>,
        limit: Duration,
        position: impl Fn(&Totals) -> u64,
        words: impl Fn(&Totals) -> String,
        done: impl Fn(&Totals) -> bool,
    ) -> Result<Ended, RunError> {
        let mut servers: Vec<&mut Child> = servers.into_iter().collect();
        let end = boot_us() + limit.as_micros() as u64;
        loop {
            let totals = crew.totals();
            self.progress.at(position(&totals), || words(&totals));
            if done(&totals) {
                return Ok(Ended::Done);
            }
            if self.is_interrupted() {
                return Ok(Ended::Interrupted);
            }
            if boot_us() >= end {
                return Ok(Ended::TimedOut);
            }
            for server in &mut servers {
                server.check()?;
            }
            if crew.has_failed() {
                let why = crew.first_trouble().unwrap_or_default();
                return Err(RunError::Stuck(format!("a load thread ended in the middle of the run: {why}")));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Has the schedule sent, and waits for its deliveries, `patience_us` beyond the last message. Returns when it began, in
    /// microseconds since boot, and how it ended.
    pub fn send<'a>(
        &mut self,
        crew: &Crew,
        servers: impl IntoIterator<Item = &'a mut Child>,
        schedule: &Arc<Schedule>,
        patience_us: u64,
    ) -> Result<(u64, Ended), RunError> {
        let count = schedule.messages.len() as u64;
        let length_us = schedule.messages.last().map_or(0, |due| due.at_us);
        // All threads have the schedule before its first message is due.
        let start_us = boot_us() + 200_000 + count / 10;
        let before = crew.totals();
        self.progress.phase("sending", count);
        crew.order(|| Order::Send { schedule: Arc::clone(schedule), start_us })?;
        let words = move |t: &Totals| {
            let seconds = boot_us().saturating_sub(start_us) as f64 / 1e6;
            let deliveries = t.deliveries - before.deliveries;
            format!("messages, {deliveries} deliveries, {:.0}/s", deliveries as f64 / seconds.max(0.1))
        };
        let arrived = |t: &Totals| {
            t.due == t.planned
                && t.answered - before.answered == t.due - before.due
                && t.deliveries - before.deliveries >= t.expected - before.expected
        };
        let limit = Duration::from_micros(length_us + patience_us + 200_000 + count / 10);
        let ended = self.until(
            crew,
            servers,
            limit,
            |t| t.sent - before.sent,
            words,
            |t| t.planned - before.planned == count && arrived(t),
        )?;
        if ended == Ended::Interrupted {
            crew.order(|| Order::StopSending)?;
            let end = boot_us() + patience_us;
            // The flag is up, so `until` would return at once.
            while boot_us() < end && !arrived(&crew.totals()) {
                std::thread::sleep(LOOK);
            }
        }
        Ok((start_us, ended))
    }
}
