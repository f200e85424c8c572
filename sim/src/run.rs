//! One seed, and many: a panic of a core is a finding like any other.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::ledger::{Counts, Invariant, Violation};
use crate::plan::Plan;
use crate::schedule::{self, Fault};
use crate::trace::Trace;
use crate::world::{Outcome, World};

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
    /// How to play again what is being played.
    static PLAYING: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Panics are kept for the report instead of being printed in the middle of it; where they end the process, as in release
/// builds, they are printed with the seed.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        panic::set_hook(Box::new(|info| {
            PANIC.with(|kept| *kept.borrow_mut() = info.to_string());
            if cfg!(panic = "abort") {
                PLAYING.with(|playing| eprintln!("{info}\n  {}", playing.borrow()));
            }
        }));
    });
}

/// How a seed is played.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Print everything that happens.
    pub print: bool,
    /// End after so many steps; 0: when it is over.
    pub steps_max: u64,
}

/// Plays a seed of a plan with its own faults.
pub fn play(plan_name: &str, seed: u64, options: Options) -> Option<Outcome> {
    let plan = Plan::named(plan_name, seed)?;
    let faults = schedule::draw(&plan, seed);
    PLAYING.with(|playing| *playing.borrow_mut() = crate::report::replay(plan_name, seed));
    Some(play_with(&plan, &faults, seed, options))
}

/// Plays a seed with these faults.
pub fn play_with(plan: &Plan, faults: &[Fault], seed: u64, options: Options) -> Outcome {
    keep_panics();
    let mut trace = Trace::default();
    trace.print = options.print;
    let played = panic::catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(plan, faults, seed, trace);
        if options.steps_max > 0 {
            world.limit_steps(options.steps_max);
        }
        world.run()
    }));
    played.unwrap_or_else(|_| {
        let detail = PANIC.with(|kept| kept.borrow().clone());
        let violation = Violation { invariant: Invariant::NoPanic, at_us: 0, detail };
        Outcome { violation: Some(violation), hash: 0, steps: 0, world_us: 0, counts: Counts::default() }
    })
}

/// A seed of a plan and how it went.
#[derive(Clone, Debug)]
pub struct Played {
    /// Of which plan.
    pub plan: &'static str,
    /// Which.
    pub seed: u64,
    /// How.
    pub outcome: Outcome,
}

/// Plays each seed of each plan, the plans in turn, on this many threads; `each` is told of every one as it ends, and says
/// whether to go on.
pub fn play_many(
    plans: &[&'static str],
    seeds: std::ops::Range<u64>,
    threads: usize,
    options: Options,
    each: impl Fn(&Played) -> bool + Sync,
) {
    let next = AtomicU64::new(0);
    let over = AtomicBool::new(plans.is_empty());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let plan = plans[(number % plans.len() as u64) as usize];
                    let seed = seeds.start.saturating_add(number / plans.len() as u64);
                    if seed >= seeds.end {
                        return;
                    }
                    let Some(outcome) = play(plan, seed, options) else { return };
                    if !each(&Played { plan, seed, outcome }) {
                        over.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}
