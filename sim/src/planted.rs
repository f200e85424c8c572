//! Planted faults: each is played over seeds until a promise is broken that is kept without it.
//!
//! What can be planted stands in `millrace_protocol::planted`. The rule that keeps it right: a seed counts only if it
//! passes when nothing is planted, so that a fault takes no credit for what is broken anyway.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace_protocol::planted::{self, Fault};

use crate::ledger::{Invariant, Violation};
use crate::run::{Options, play};

/// Seeds tried from the known one on before a fault counts as not caught.
pub const CHECK_SEEDS: u64 = 50;

/// How a fault was noticed.
#[derive(Clone, Debug)]
pub struct Caught {
    /// In a world of this plan.
    pub plan: &'static str,
    /// Played from this seed.
    pub seed: u64,
    /// What was broken.
    pub violation: Violation,
}

/// What became of a fault.
#[derive(Clone, Debug)]
pub struct Found {
    /// Which.
    pub fault: Fault,
    /// `None`: nobody noticed.
    pub caught: Option<Caught>,
    /// Seeds played, the one that caught it included.
    pub seeds: u64,
}

impl Found {
    /// The promise that was broken.
    pub fn invariant(&self) -> Option<Invariant> {
        Some(self.caught.as_ref()?.violation.invariant)
    }
}

/// A fault's name on the command line and in tables: `AckBeforeDurable` is `ack-before-durable`.
pub fn name(fault: Fault) -> String {
    let mut name = String::new();
    for letter in format!("{fault:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

/// The fault of a name.
pub fn named(text: &str) -> Option<Fault> {
    Fault::ALL.iter().copied().find(|fault| name(*fault) == text)
}

/// Plans in which a fault can do harm.
fn plans(fault: Fault) -> &'static [&'static str] {
    use Fault as F;
    match fault {
        F::EpochWithoutStored | F::IdsFromTheClock => &["clock"],
        F::AgeByAnyClock | F::StoreClockIgnored | F::TimesFromTheWallClock => &["clock"],
        F::EpochWithoutClock | F::CopyNotCompared => &["failover"],
        F::TruncationNotTold => &["failover"],
        F::OtherCopyGoesOn | F::CutNotCompared | F::EpochsForgotten => &["failover"],
        F::UnknownTakenForDone | F::UnknownTakenForFailed | F::PositionNotCompared => &["store"],
        F::FenceNotCompared | F::PagesByAnybody | F::LeaseNotChecked => &["pause", "mixed"],
        F::OverflowWithoutGap => &["network", "mixed"],
        F::GapMarkLost | F::DirectGapMarkLost => &["tight"],
        F::NoResyncClock | F::ResyncOnce => &["deaf"],
        F::ReleasedTooEarly => &["leave", "moves"],
        F::OldEpochsKept => &["moves"],
        F::LeaseFromAnswer => &["pause", "network", "mixed"],
        F::CloseNotRepeated | F::LosersIgnored => &["copies"],
        // Where devices connect again while their old connections live, or registering is done twice.
        F::GenerationIgnored => &["network", "mixed"],
        F::LowestLoginWins => &["mixed", "store"],
        _ => &["mixed", "crash", "network", "store"],
    }
}

/// The plan and the seed that are known to catch a fault, from the table beside the sources.
pub fn known(fault: Fault) -> Option<(&'static str, u64)> {
    let name = name(fault);
    let line = include_str!("../planted.txt").lines().find(|line| line.split(' ').next() == Some(&name))?;
    let mut words = line.split(' ').skip(1);
    let plan = words.next()?;
    Some((plan, words.next()?.parse().ok()?))
}

/// Plays seeds of all plans that fit, in turn.
fn hunt(fault: Fault, seeds_max: u64) -> Found {
    let plans = plans(fault);
    let tries = (0..seeds_max).map(|n| (plans[n as usize % plans.len()], n / plans.len() as u64));
    try_each(fault, tries)
}

/// Plays the known seed, and some after it.
fn check(fault: Fault) -> Found {
    match known(fault) {
        Some((plan, seed)) => try_each(fault, (seed..seed + CHECK_SEEDS).map(|seed| (plan, seed))),
        None => hunt(fault, CHECK_SEEDS),
    }
}

fn try_each(fault: Fault, tries: impl Iterator<Item = (&'static str, u64)>) -> Found {
    let mut seeds = 0;
    for (plan, seed) in tries {
        seeds += 1;
        let Some(violation) = play_planted(plan, seed, Some(fault)) else { continue };
        if play_planted(plan, seed, None).is_none() {
            return Found { fault, caught: Some(Caught { plan, seed, violation }), seeds };
        }
    }
    Found { fault, caught: None, seeds }
}

fn play_planted(plan: &str, seed: u64, fault: Option<Fault>) -> Option<Violation> {
    planted::plant(fault);
    let outcome = play(plan, seed, Options::default());
    planted::plant(None);
    outcome?.violation
}

/// Hunts for these faults on so many threads; `each` hears of every one as it is done. `seeds_max`: `None` plays the known
/// seeds alone.
pub fn find(
    faults: &[Fault],
    seeds_max: Option<u64>,
    threads: usize,
    each: impl Fn(&Found) + Sync,
) -> Vec<Found> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let one = match seeds_max {
                        Some(seeds_max) => hunt(*fault, seeds_max),
                        None => check(*fault),
                    };
                    each(&one);
                    found.lock().unwrap_or_else(|broken| broken.into_inner()).push(one);
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(|broken| broken.into_inner());
    found.sort_by_key(|found| found.fault);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_table() {
        assert_eq!(name(Fault::AckBeforeDurable), "ack-before-durable");
        for line in include_str!("../planted.txt").lines() {
            let first = line.split(' ').next().unwrap_or_default();
            assert!(Fault::ALL.iter().any(|fault| name(*fault) == first), "{line}");
        }
    }
}
