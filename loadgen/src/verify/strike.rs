//! Carries a schedule of faults out, on a thread of its own: starting a server takes seconds, and clients go on.
//!
//! The rule: whatever is begun is ended, also when the run is interrupted; and what could not be done is told, not
//! passed over.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_edge::clock::boot_us;
use serde::Serialize;

use super::faults::{Fault, Kind, Strike};
use super::fleet::Fleet;
use super::net::Node;
use super::watch::Watch;
use crate::rig::RunError;

/// Between two looks at the processes.
const LOOK: Duration = Duration::from_millis(50);

/// One fault as it was done.
#[derive(Clone, Debug, Serialize)]
pub struct Struck {
    /// Its kind.
    pub kind: Kind,
    /// In words, with the processes that it hit.
    pub what: String,
    /// When it began and ended, in us of CLOCK_BOOTTIME.
    pub begun_us: u64,
    /// See `begun_us`; `None`: not yet.
    pub ended_us: Option<u64>,
    /// When all clients were well again after its end.
    pub well_us: Option<u64>,
    /// How long clients were not well between its begin and that, in us.
    pub unwell_us: u64,
    /// Why it could not be done.
    pub failed: Option<String>,
}

/// What the thread tells while it goes on.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) struck: Vec<Struck>,
    /// Processes that ended by themselves, with the ends of their logs, though no fault explains it.
    pub(super) ended: Vec<String>,
    /// Processes that a fail point ended.
    pub(super) crashes: u64,
    /// Ends of processes that found the disk full.
    pub(super) full_ends: u64,
    /// Times that another Redis was the primary than before.
    pub(super) promotions: u64,
    /// When that was seen last.
    pub(super) promoted_us: u64,
}

/// What a step does to a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Begin,
    /// Of a failover: the primary is killed.
    Middle,
    End,
}

/// Carries it out. Returns when all is ended and everyone was started again.
pub(super) fn carry_out(
    fleet: &mut Fleet,
    strikes: &[Strike],
    watch: &mut Watch,
    told: &Mutex<Told>,
    stop: &AtomicBool,
) -> Result<(), RunError> {
    let start_us = boot_us();
    let mut steps: Vec<(u64, usize, Step)> = Vec::new();
    for (at, strike) in strikes.iter().enumerate() {
        let begin_ms = strike.at_ms;
        steps.push((begin_ms, at, Step::Begin));
        if let Fault::Failover { cut_ms, .. } = strike.fault {
            steps.push((begin_ms + cut_ms, at, Step::Middle));
        }
        steps.push((begin_ms + strike.fault.length_ms(), at, Step::End));
    }
    // In the order of time; of one fault in the order above.
    steps.sort_by_key(|(at_ms, ..)| *at_ms);
    let mut hand = Hand { targets: vec![None; strikes.len()], numbers: vec![0; strikes.len()], told };
    for (at_ms, at, step) in steps {
        while boot_us() < start_us + at_ms * 1_000 && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK);
            watch.look(fleet, told);
            watch.outcome()?;
        }
        if step == Step::Begin && stop.load(Ordering::Relaxed) {
            continue;
        }
        hand.step(fleet, at, &strikes[at], step)?;
    }
    while !fleet.missing().is_empty() {
        watch.look(fleet, told);
        watch.outcome()?;
        std::thread::sleep(LOOK);
    }
    Ok(())
}

struct Hand<'a> {
    /// Whom each fault hit, as Redis changes its roles.
    targets: Vec<Option<(Node, Node)>>,
    /// Its place in what was told.
    numbers: Vec<usize>,
    told: &'a Mutex<Told>,
}

impl Hand<'_> {
    fn step(&mut self, fleet: &mut Fleet, at: usize, strike: &Strike, step: Step) -> Result<(), RunError> {
        if step == Step::Begin {
            let primary = fleet.primary().unwrap_or(Node::Redis(1));
            let role = |node: Node| match node {
                Node::Redis(1) => primary,
                Node::Redis(_) if primary == Node::Redis(1) => Node::Redis(2),
                Node::Redis(_) => Node::Redis(1),
                node => node,
            };
            let (from, to) = match strike.fault {
                Fault::Kill { node, .. } | Fault::Pause { node, .. } | Fault::Clock { node, .. } => {
                    (node, node)
                }
                Fault::Net { from, to, .. } => (from, to),
                Fault::Full { .. } | Fault::Failover { .. } => (Node::Redis(1), Node::Redis(2)),
            };
            let (from, to) = (role(from), role(to));
            self.targets[at] = Some((from, to));
            let mut told = self.told.lock().expect("not poisoned");
            self.numbers[at] = told.struck.len();
            let what = named(&strike.fault, from, to).to_string();
            let (begun_us, kind) = (boot_us(), strike.kind);
            told.struck.push(Struck {
                kind,
                what,
                begun_us,
                ended_us: None,
                well_us: None,
                unwell_us: 0,
                failed: None,
            });
        }
        // Interrupted before it began.
        let Some((from, to)) = self.targets[at] else { return Ok(()) };
        let outcome = act(fleet, &named(&strike.fault, from, to), step);
        let mut told = self.told.lock().expect("not poisoned");
        let struck = &mut told.struck[self.numbers[at]];
        if let Err(error) = outcome {
            struck.failed.get_or_insert(error.to_string());
        }
        if step == Step::End {
            struck.ended_us = Some(boot_us());
        }
        Ok(())
    }
}

/// The fault with the processes that it hits in this fleet.
fn named(fault: &Fault, from: Node, to: Node) -> Fault {
    match fault.clone() {
        Fault::Kill { down_ms, .. } => Fault::Kill { node: from, down_ms },
        Fault::Pause { for_ms, .. } => Fault::Pause { node: from, for_ms },
        Fault::Net { harm, both, for_ms, .. } => Fault::Net { from, to, harm, both, for_ms },
        Fault::Clock { by_s, for_ms, .. } => Fault::Clock { node: from, by_s, for_ms },
        other => other,
    }
}

fn act(fleet: &mut Fleet, fault: &Fault, step: Step) -> Result<(), RunError> {
    let is_begin = step == Step::Begin;
    match *fault {
        Fault::Kill { node, .. } if is_begin => fleet.kill(node),
        Fault::Kill { node, .. } => fleet.start_node(node)?,
        Fault::Pause { node, .. } => fleet.signal(node, if is_begin { "STOP" } else { "CONT" }),
        Fault::Net { from, to, harm, both, .. } => {
            fleet.net.harm(from, to, harm, is_begin)?;
            if both {
                fleet.net.harm(to, from, harm, is_begin)?;
            }
        }
        Fault::Full { left_mib, .. } => fleet.fill_disk(is_begin.then_some(left_mib))?,
        Fault::Clock { node, by_s, .. } => fleet.set_clock(node, if is_begin { by_s } else { 0 })?,
        Fault::Failover { .. } => return failover(fleet, step),
    }
    Ok(())
}

/// The cut, the kill, and the return of the old primary as a replica.
fn failover(fleet: &mut Fleet, step: Step) -> Result<(), RunError> {
    use super::net::Harm::Drop;
    let (one, other) = (Node::Redis(1), Node::Redis(2));
    match step {
        Step::Begin => {
            fleet.net.harm(one, other, Drop, true)?;
            fleet.net.harm(other, one, Drop, true)?;
        }
        Step::Middle => {
            if let Some(primary) = fleet.primary() {
                fleet.kill(primary);
            }
        }
        Step::End => {
            fleet.net.harm(one, other, Drop, false)?;
            fleet.net.harm(other, one, Drop, false)?;
            for node in [one, other] {
                if fleet.is_down(node) {
                    fleet.start_node(node)?;
                }
            }
        }
    }
    Ok(())
}
