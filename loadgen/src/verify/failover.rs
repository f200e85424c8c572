//! `failover`: what a failover of Redis loses, by durability level.
//!
//! The replica is cut off from the primary while messages are acknowledged, then the primary is killed and Sentinel
//! promotes the replica. A kill without the cut before it loses nothing and so proves nothing. The rule: levels are run
//! with the same seeds, so that they differ in nothing else.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use millrace_edge::Io;
use serde::Serialize;

use super::faults::{Fault, Kind, Strike};
use super::round::{self, Spec};
use super::{Durability, Run, Store, keep, report};
use crate::args::bad;
use crate::progress::Progress;
use crate::report::html::{Page, document_with_notes};
use crate::report::{self as reports, Shown, columns};
use crate::rig::RunError;
use crate::rng::Rng;

/// From the begin of a schedule to the cut, in ms.
const CUT_AT_MS: u64 = 3_000;

/// From the kill until the old primary comes back, in ms: longer than an election.
const DOWN_MS: u64 = 8_000;

/// Messages go on after that, in ms.
const AFTER_MS: u64 = 3_000;

/// Flags of `failover`.
#[derive(Clone, Debug, clap::Args)]
pub struct FailoverArgs {
    /// Failovers at each level
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub repeat: u32,
    /// Levels
    #[arg(long, value_name = "LEVEL,…", value_delimiter = ',', default_value = "async,fsync,replicated(1)")]
    pub durability: Vec<Durability>,
    /// Between the cut and the kill, in ms
    #[arg(long, value_name = "MS", default_value_t = 3_000)]
    pub cut_ms: u64,
    /// Messages a second
    #[arg(long, value_name = "PER_S", default_value_t = 200)]
    pub rate: u64,
    /// Users
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub users: u16,
    /// The first failover's seed; the next ones follow [default: random]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Keep the logs of all processes
    #[arg(long, value_name = "DIR")]
    pub keep_logs: Option<PathBuf>,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as one HTML page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Sockets of the clients through auto, uring or epoll
    #[arg(long, value_name = "BACKEND", default_value = "auto")]
    pub io: Io,
}

/// One failover.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct One {
    pub seed: u64,
    pub acknowledged: u64,
    /// Acknowledged messages that were not in any log afterwards.
    pub lost: u64,
    /// Of these: without a word to whom sent them.
    pub untold: u64,
    pub promotions: u64,
    /// From the kill until every client was well again, in ms.
    pub well_again_ms: Option<u64>,
    /// Other promises that were broken.
    pub broken: Vec<String>,
}

/// All failovers of a level.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Level {
    pub durability: Durability,
    pub failovers: Vec<One>,
}

/// All levels.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Failovers {
    pub scenario: &'static str,
    pub cut_ms: u64,
    pub rate: u64,
    pub levels: Vec<Level>,
}

/// Runs all failovers.
///
/// # Errors
/// No namespaces, or a fleet that does not become ready.
pub fn run(args: &FailoverArgs, progress: Progress, stop: Arc<AtomicBool>) -> Result<Failovers, RunError> {
    // Beyond ten times Sentinel's patience, a replica is no candidate any more.
    let cut_max_ms = super::redis::DOWN_AFTER_MS * 9;
    if !(500..=cut_max_ms).contains(&args.cut_ms) {
        bad("cut-ms", args.cut_ms, format!("500 to {cut_max_ms}"))?;
    }
    if !(1..=1_000).contains(&args.repeat) {
        bad("repeat", args.repeat, "1 to 1000")?;
    }
    let mut run = Run::new(progress, stop, args.io, args.keep_logs.clone())?;
    let first_seed = args.seed.unwrap_or_else(|| Rng::from_system().bits() >> 16);
    let length_ms = CUT_AT_MS + args.cut_ms + DOWN_MS + AFTER_MS;
    let mut levels = Vec::new();
    for &durability in &args.durability {
        let (mut fleet, mut crowd) = run.fleet(Store::Redis, durability, None)?;
        if fleet.net.tool().is_none() {
            let text = "a replica can be cut off only in network namespaces (see the reason above)";
            return Err(RunError::Stuck(text.into()));
        }
        let mut failovers = Vec::new();
        for number in 0..args.repeat {
            if run.is_stopped() {
                break;
            }
            let fault = Fault::Failover { cut_ms: args.cut_ms, down_ms: DOWN_MS };
            let spec = Spec {
                number,
                seed: first_seed + u64::from(number),
                users: args.users,
                strikes: vec![Strike { at_ms: CUT_AT_MS, kind: Kind::Failover, fault }],
                length_ms,
                messages: args.rate * length_ms / 1_000,
                // What is lost is what is looked for; whether that is a fault is judged below.
                may_lose: true,
            };
            let round = round::run(&mut run, &mut fleet, &mut crowd, &spec)?;
            run.progress.say(&format!("{durability}: {}", report::line(&spec, &round)));
            keep(&run, &fleet, &spec, &round)?;
            let untold = round.verdict.broken.get(&super::check::Broken::LossUntold).copied().unwrap_or(0);
            let mut broken: Vec<String> = round.verdict.examples.clone();
            broken.extend(round.ended.iter().cloned());
            let killed_us = round.struck.first().map(|struck| struck.begun_us + args.cut_ms * 1_000);
            let well_us = round.struck.first().and_then(|struck| struck.well_us);
            failovers.push(One {
                seed: spec.seed,
                acknowledged: round.verdict.acknowledged,
                lost: round.verdict.losses,
                untold,
                promotions: round.promotions,
                well_again_ms: well_us
                    .zip(killed_us)
                    .map(|(well, killed)| well.saturating_sub(killed) / 1_000),
                broken,
            });
        }
        levels.push(Level { durability, failovers });
    }
    Ok(Failovers { scenario: "failover", cut_ms: args.cut_ms, rate: args.rate, levels })
}

const HEADS: [&str; 7] =
    ["durability", "failovers", "acknowledged", "lost", "untold", "most in one", "well again, max"];

impl Failovers {
    fn rows(&self) -> Vec<Vec<String>> {
        let row = |level: &Level| {
            let sum = |value: fn(&One) -> u64| level.failovers.iter().map(value).sum::<u64>();
            let most = level.failovers.iter().map(|one| one.lost).max().unwrap_or(0);
            let slowest = level.failovers.iter().map(|one| one.well_again_ms).max().flatten();
            vec![
                level.durability.to_string(),
                sum(|one| one.promotions.min(1)).to_string(),
                sum(|one| one.acknowledged).to_string(),
                sum(|one| one.lost).to_string(),
                sum(|one| one.untold).to_string(),
                most.to_string(),
                slowest.map_or("not in time".to_owned(), |ms| format!("{:.1} s", ms as f64 / 1e3)),
            ]
        };
        self.levels.iter().map(row).collect()
    }
}

impl Shown for Failovers {
    fn table(&self) -> String {
        let mut text = format!(
            "Redis failovers: the replica cut off for {} ms, then the primary killed; {} messages a second\n",
            self.cut_ms, self.rate
        );
        let mut rows = vec![HEADS.map(str::to_owned).to_vec()];
        rows.extend(self.rows());
        let widths = columns::widths(&rows);
        for row in &rows {
            let _ = writeln!(text, "{}", columns::line(row, &widths));
        }
        for fault in self.faults() {
            let _ = writeln!(text, "{fault}");
        }
        text
    }

    fn json(&self) -> String {
        reports::text(self)
    }

    fn page(&self) -> String {
        let notes: Vec<(&str, String)> = self.faults().into_iter().map(|fault| ("fault", fault)).collect();
        let page = Page {
            title: "millrace: what a failover of Redis loses",
            is_good: notes.is_empty(),
            verdict: if notes.is_empty() { "every loss is one that the level allows" } else { "failed" },
            trouble: None,
            heads: &HEADS,
            rows: &self.rows(),
            curves: &[],
            footer: "millrace-loadgen failover",
        };
        document_with_notes(&page, &notes)
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for level in &self.levels {
            for one in &level.failovers {
                let who = format!("{}, seed {}", level.durability, one.seed);
                if one.lost > 0 && !level.durability.may_lose() {
                    faults.push(format!("{who}: {} acknowledged messages lost", one.lost));
                }
                faults.extend(one.broken.iter().map(|broken| format!("{who}: {broken}")));
                if one.promotions == 0 {
                    faults.push(format!("{who}: no failover happened"));
                }
            }
        }
        faults
    }
}
