//! What a run of many seeds is told as: a line now and then, a summary, JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::run::Played;

/// Sums over seeds.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Seeds played.
    pub seeds: u64,
    /// The highest of them.
    pub highest: Option<u64>,
    /// Core steps.
    pub steps: u64,
    /// Time of the worlds, us.
    pub world_us: u64,
    /// Counters by name.
    pub counts: BTreeMap<&'static str, u64>,
    /// Seeds that failed.
    pub failed: Vec<Played>,
    /// Seeds and steps of each plan.
    pub plans: BTreeMap<&'static str, (u64, u64)>,
}

impl Summary {
    /// Takes a seed in.
    pub fn add(&mut self, played: &Played) {
        self.seeds += 1;
        self.highest = self.highest.max(Some(played.seed));
        self.steps += played.outcome.steps;
        self.world_us += played.outcome.world_us;
        let plan = self.plans.entry(played.plan).or_default();
        *plan = (plan.0 + 1, plan.1 + played.outcome.steps);
        let counts = played.outcome.counts;
        for (name, count) in [
            ("sent", counts.sent),
            ("acked", counts.acked),
            ("refused", counts.refused),
            ("shown", counts.shown),
            ("repeated", counts.repeated),
            ("gaps", counts.gaps),
            ("truncated", counts.truncated),
            ("pages", counts.pages),
            ("resyncs", counts.resyncs),
            ("starts", counts.starts),
            ("claims", counts.claims),
            ("link_resets", counts.link_resets),
            ("logins", counts.logins),
            ("displaced", counts.displaced),
        ] {
            *self.counts.entry(name).or_default() += count;
        }
        if played.outcome.violation.is_some() {
            self.failed.push(played.clone());
        }
    }

    /// One line.
    pub fn line(&self, took: Duration) -> String {
        let seconds = took.as_secs_f64().max(1e-9);
        let counts: Vec<String> = self.counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        format!(
            "{} seeds, {} failed, {:.0} steps/s, {} steps, {:.0} s of world time; {}",
            self.seeds,
            self.failed.len(),
            self.steps as f64 / seconds,
            self.steps,
            self.world_us as f64 / 1e6,
            counts.join(", ")
        )
    }

    /// Everything, for machines.
    pub fn json(&self, took: Duration) -> Value {
        let failed = self.failed.iter().filter_map(|played| {
            let violation = played.outcome.violation.as_ref()?;
            Some(json!({
                "plan": played.plan,
                "seed": played.seed,
                "invariant": format!("{:?}", violation.invariant),
                "at_us": violation.at_us,
                "detail": violation.detail,
                "replay": replay(played.plan, played.seed),
            }))
        });
        let plans = self.plans.iter().map(|(name, (seeds, steps))| {
            let failed = self.failed.iter().filter(|played| played.plan == *name).count();
            ((*name).to_owned(), json!({ "seeds": seeds, "steps": steps, "failed": failed }))
        });
        json!({
            "plans": plans.collect::<serde_json::Map<String, Value>>(),
            "seeds": self.seeds,
            "steps": self.steps,
            "steps_per_s": (self.steps as f64 / took.as_secs_f64().max(1e-9)) as u64,
            "world_s": self.world_us / 1_000_000,
            "took_s": took.as_secs_f64(),
            "counts": self.counts,
            "failed": failed.collect::<Vec<Value>>(),
        })
    }
}

/// The one command that plays a seed again.
pub fn replay(plan: &str, seed: u64) -> String {
    format!("cargo run --profile sim -p millrace-sim -- replay {seed} --plan {plan}")
}

/// What broke, and how to see it again.
pub fn failure(played: &Played) -> String {
    let Some(violation) = &played.outcome.violation else { return String::new() };
    format!(
        "seed {} of plan {}: {:?} at {:.6} s: {}\n  {}",
        played.seed,
        played.plan,
        violation.invariant,
        violation.at_us as f64 / 1e6,
        violation.detail,
        replay(played.plan, played.seed)
    )
}
