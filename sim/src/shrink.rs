//! Fewer faults that still break the same promise: each is left out in turn, as long as the run fails without it.

use crate::plan::Plan;
use crate::run::{Options, play_with};
use crate::schedule::{self, Fault};
use crate::world::Outcome;

/// A smaller schedule.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// Faults that are needed.
    pub faults: Vec<Fault>,
    /// Faults that there were.
    pub of: usize,
    /// How the run goes with them.
    pub outcome: Outcome,
}

/// Shrinks a seed's schedule. `None`: it does not fail.
pub fn shrink(plan: &Plan, seed: u64) -> Option<Shrunk> {
    let mut faults = schedule::draw(plan, seed);
    let of = faults.len();
    let fails = |faults: &[Fault]| {
        let outcome = play_with(plan, faults, seed, Options::default());
        outcome.violation.clone().map(|violation| (violation.invariant, outcome))
    };
    let (invariant, mut outcome) = fails(&faults)?;
    let mut shorter = true;
    while shorter {
        shorter = false;
        for at in (0..faults.len()).rev() {
            let mut fewer = faults.clone();
            fewer.remove(at);
            if let Some((same, smaller)) = fails(&fewer).filter(|(found, _)| *found == invariant) {
                debug_assert_eq!(same, invariant);
                (faults, outcome, shorter) = (fewer, smaller, true);
            }
        }
    }
    Some(Shrunk { faults, of, outcome })
}
