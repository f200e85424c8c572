//! A few worlds of every plan, played twice: every promise holds, and the same seed plays the same way. `tests/run` plays a
//! thousand of them, optimised.

use millrace_sim::plan::NAMES;
use millrace_sim::report::failure;
use millrace_sim::run::{Options, play, play_many};

#[test]
fn promises_are_kept_in_a_few_worlds_of_every_plan() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    play_many(NAMES, 0..3, threads, Options::default(), |played| {
        assert_eq!(failure(played), "");
        true
    });
}

#[test]
fn a_seed_plays_the_same_way_again() {
    let played = |plan, seed| play(plan, seed, Options::default()).expect("a plan").hash;
    for (plan, seed) in [("mixed", 7), ("failover", 8), ("network", 33)] {
        assert_eq!(played(plan, seed), played(plan, seed), "seed {seed} of plan {plan}");
    }
}
