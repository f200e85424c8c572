//! Looks at the fleet's processes in every phase of a schedule, and starts again who ended by itself: of a fail point, or of a
//! disk that is full.

use std::sync::Mutex;

use millrace_edge::clock::boot_us;

use super::faults::Kind;
use super::fleet::Fleet;
use super::net::Node;
use super::strike::Told;
use crate::rig::RunError;

/// A process that ended by itself is started again after this time, in us.
const RESTART_US: u64 = 300_000;

/// The Sentinels are asked so often who the primary is, in us.
const ASK_US: u64 = 300_000;

/// What a gateway whose store found the disk full must have said, and a Redis: of a write that was cut short it says no more.
const NO_SPACE: [&str; 2] = ["No space left on device", "AOF write error"];

/// Who ended by itself and is not back, and since when.
#[derive(Debug, Default)]
pub(super) struct Watch {
    dead: Vec<(Node, u64)>,
    failed: Option<RunError>,
    /// As the Sentinels last said, and when they were asked.
    primary: Option<Node>,
    asked_us: u64,
}

impl Watch {
    /// Looks, tells who ended though no fault explains it, and starts those again whose time has come. Returns whether one
    /// could not be started: see [`Self::outcome`].
    pub(super) fn look(&mut self, fleet: &mut Fleet, told: &Mutex<Told>) -> bool {
        if let Err(error) = self.try_look(fleet, told) {
            self.failed.get_or_insert(error);
        }
        self.failed.is_some()
    }

    /// How it went so far.
    ///
    /// # Errors
    /// A process could not be started.
    pub(super) fn outcome(&mut self) -> Result<(), RunError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Counts failovers: one may come at any time, also after the last fault.
    fn look_for_primary(&mut self, fleet: &Fleet, told: &Mutex<Told>) {
        let now_us = boot_us();
        if now_us < self.asked_us + ASK_US {
            return;
        }
        self.asked_us = now_us;
        if let Some(now) = fleet.primary() {
            if self.primary.is_some_and(|before| before != now) {
                let mut told = told.lock().expect("not poisoned");
                told.promotions += 1;
                told.promoted_us = now_us;
            }
            self.primary = Some(now);
        }
    }

    fn try_look(&mut self, fleet: &mut Fleet, told: &Mutex<Told>) -> Result<(), RunError> {
        self.look_for_primary(fleet, told);
        for ended in fleet.tend() {
            let mut told = told.lock().expect("not poisoned");
            // A store that can't write its files ends itself: that is what the full disk is for.
            let is_full = told.struck.iter().any(|s| s.kind == Kind::DiskFull);
            let said_full = NO_SPACE.iter().any(|said| ended.contains(said));
            if ended.contains("failpoint ") {
                told.crashes += 1;
            } else if is_full && said_full {
                told.full_ends += 1;
            } else {
                told.ended.push(ended);
            }
        }
        let now_us = boot_us();
        // Also those who ended as the schedule before was over.
        for node in fleet.missing() {
            if self.dead.iter().all(|(dead, _)| *dead != node) {
                self.dead.push((node, now_us));
            }
        }
        if self.dead.is_empty() {
            return Ok(());
        }
        let is_full = told.lock().expect("not poisoned").struck.iter().any(|struck| {
            struck.kind == Kind::DiskFull && struck.ended_us.is_none() && struck.failed.is_none()
        });
        for (node, at_us) in std::mem::take(&mut self.dead) {
            // A gateway is started all the same, again and again, as a machine's supervisor would.
            let must_wait = is_full && matches!(node, Node::Redis(_));
            if now_us < at_us + RESTART_US || must_wait {
                self.dead.push((node, at_us));
            } else if fleet.missing().contains(&node) {
                fleet.start_node(node)?;
            }
        }
        Ok(())
    }
}
