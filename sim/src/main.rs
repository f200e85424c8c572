//! The command line of the simulation.

use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use millrace_sim::plan::{NAMES, Plan};
use millrace_sim::record;
use millrace_sim::report::{Summary, failure};
use millrace_sim::run::{Options, play, play_many};
use millrace_sim::shrink::shrink;
use serde_json::Value;

/// Plays gateways, dispatchers and clients in one deterministic world, and breaks it.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Plays many seeds.
    Run {
        /// A..B, B excluded.
        #[arg(long, default_value = "0..100")]
        seeds: String,
        /// One of docs/VERIFICATION.md; or all of them in turn.
        #[arg(long, default_value = "all")]
        plan: String,
        /// Play seeds from A on until so many hours are over.
        #[arg(long)]
        hours: Option<f64>,
        /// End each seed after so many steps.
        #[arg(long, default_value_t = 0)]
        steps: u64,
        /// Failures after which to stop; 0: go on.
        #[arg(long, default_value_t = 10)]
        failures: usize,
        /// Go on from the report that is there: with the seeds after its last, adding to its sums.
        #[arg(long, requires = "json")]
        continues: bool,
        /// What is played, for the report: a version of the sources.
        #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
        label: String,
        #[command(flatten)]
        work: Work,
    },
    /// Plays one seed, twice, and compares.
    Replay(One),
    /// Leaves out the faults that a failure does not need.
    Shrink(One),
    /// Plants faults into the cores, each in turn, and plays seeds until it is noticed.
    #[cfg(feature = "planted")]
    Faults(Faults),
}

/// One seed.
#[derive(clap::Args)]
struct One {
    /// Which.
    seed: u64,
    /// As for run.
    #[arg(long, default_value = "mixed")]
    plan: String,
    /// Print everything that happens; of a shrunk seed, with the faults that are left.
    #[arg(long)]
    trace: bool,
    /// With this fault planted.
    #[cfg(feature = "planted")]
    #[arg(long)]
    fault: Option<String>,
}

/// How many seeds are played.
#[derive(clap::Args)]
struct Work {
    /// Threads; 0: one for each core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// A report as JSON in this file; -: on stdout.
    #[arg(long)]
    json: Option<String>,
}

impl Work {
    fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            asked => asked,
        }
    }

    /// The report that is there, if it is to be gone on from.
    fn record(&self, continues: bool) -> Result<Value, String> {
        let path = self.json.as_deref().unwrap_or_default();
        if !continues || !std::path::Path::new(path).exists() {
            return Ok(Value::Null);
        }
        let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
        let record: Value = serde_json::from_str(&text).map_err(|error| format!("{path}: {error}"))?;
        match record["parts"].is_array() {
            true => Ok(record),
            false => Err(format!("{path} has no parts: it is of no run that can be gone on from")),
        }
    }

    /// Writes the report, if one is wanted.
    fn report(&self, report: impl FnOnce() -> Value) -> std::io::Result<()> {
        match self.json.as_deref() {
            None => Ok(()),
            Some("-") => {
                println!("{:#}", report());
                Ok(())
            }
            Some(path) => {
                if let Some(directory) = std::path::Path::new(path).parent() {
                    std::fs::create_dir_all(directory)?;
                }
                // Beside it first: should this process be ended, the record of earlier runs is still there.
                let beside = format!("{path}.new");
                std::fs::write(&beside, format!("{:#}\n", report()))?;
                std::fs::rename(&beside, path)
            }
        }
    }
}

#[cfg(feature = "planted")]
#[derive(clap::Args)]
struct Faults {
    /// These alone, by name, with commas between.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Seeds after which a fault counts as not caught.
    #[arg(long, default_value_t = 3_000)]
    seeds_max: u64,
    /// Only the seeds that are known to catch them, and a few after those.
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    work: Work,
    /// A report as markdown.
    #[arg(long)]
    markdown: Option<std::path::PathBuf>,
    /// The table of known seeds.
    #[arg(long)]
    known: Option<std::path::PathBuf>,
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Run { seeds, plan, hours, steps, failures, continues, label, work } => {
            let Some(mut seeds) = range(&seeds) else { return usage("--seeds is A..B") };
            let plans: Vec<&'static str> =
                NAMES.iter().copied().filter(|name| plan == "all" || plan == *name).collect();
            if plans.is_empty() {
                return usage(&format!("plans are {} and all", NAMES.join(", ")));
            }
            let record = match work.record(continues) {
                Ok(record) => record,
                Err(error) => return usage(&error),
            };
            if continues && !record::goes_on(&record, &plans) {
                return usage("the report that is there is also of other plans");
            }
            if continues {
                seeds.start = seeds.start.max(record::next_seed(&record));
            }
            let limits = Limits {
                seeds: if hours.is_some() { seeds.start..u64::MAX } else { seeds },
                time: hours.map(|hours| Duration::from_secs_f64(hours.max(0.0) * 3_600.0)),
                failures: if failures == 0 { usize::MAX } else { failures },
            };
            run(&plans, Options { steps_max: steps, ..Options::default() }, limits, &work, (&record, &label))
        }
        Command::Replay(one) => with_fault(&one, replay),
        Command::Shrink(one) => with_fault(&one, shrunk),
        #[cfg(feature = "planted")]
        Command::Faults(ask) => faults(&ask),
    }
}

fn usage(what: &str) -> ExitCode {
    eprintln!("{what}");
    ExitCode::from(2)
}

/// Plays it with the fault that is asked for.
fn with_fault(one: &One, play: impl FnOnce(&One) -> ExitCode) -> ExitCode {
    #[cfg(feature = "planted")]
    {
        let fault = one.fault.as_deref().map(|name| millrace_sim::planted::named(name).ok_or(name));
        let Ok(fault) = fault.transpose() else { return usage("no fault has this name") };
        millrace_protocol::planted::plant(fault);
    }
    play(one)
}

fn range(text: &str) -> Option<std::ops::Range<u64>> {
    let (from, to) = text.split_once("..")?;
    Some(from.parse().ok()?..to.parse().ok()?)
}

/// Time on processors of this process so far, s; 0 where the kernel does not say.
fn cpu_s() -> f64 {
    // Behind the name, which may have spaces: fields 14 and 15 of proc_pid_stat(5), in hundredths of a second.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// How far a run goes.
struct Limits {
    seeds: std::ops::Range<u64>,
    time: Option<Duration>,
    failures: usize,
}

/// `record`: what earlier runs found, and what this one calls its sources.
fn run(
    plans: &[&'static str],
    options: Options,
    limits: Limits,
    work: &Work,
    (record, label): (&Value, &str),
) -> ExitCode {
    let began = Instant::now();
    let from = limits.seeds.start;
    let report = |summary: &Summary| {
        let to = summary.highest.map_or(from, |seed| seed + 1);
        let part = record::Part { label, from, to, cpu_s: cpu_s() };
        work.report(|| record::joined(record, &summary.json(began.elapsed()), part))
    };
    let state = Mutex::new((Summary::default(), began));
    play_many(plans, limits.seeds, work.threads(), options, |played| {
        let mut state = state.lock().unwrap_or_else(|broken| broken.into_inner());
        let (summary, told) = &mut *state;
        summary.add(played);
        if played.outcome.violation.is_some() {
            eprintln!("{}", failure(played));
        }
        if told.elapsed() > Duration::from_secs(10) {
            *told = Instant::now();
            eprintln!("{}", summary.line(began.elapsed()));
            // What was played is kept should this run be cut off; whether it can be written is told at the end.
            if work.json.as_deref() != Some("-") {
                let _ = report(summary);
            }
        }
        summary.failed.len() < limits.failures && limits.time.is_none_or(|time| began.elapsed() < time)
    });
    let (summary, _) = state.into_inner().unwrap_or_else(|broken| broken.into_inner());
    eprintln!("plans {}: {}", plans.join(", "), summary.line(began.elapsed()));
    if let Err(error) = report(&summary) {
        return usage(&format!("{}: {error}", work.json.as_deref().unwrap_or_default()));
    }
    if summary.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn replay(One { seed, plan, trace, .. }: &One) -> ExitCode {
    let (seed, trace) = (*seed, *trace);
    let Some(outcome) = play(plan, seed, Options { print: trace, ..Options::default() }) else {
        return usage(&format!("plans are {}", NAMES.join(", ")));
    };
    let again = play(plan, seed, Options::default()).map_or(0, |outcome| outcome.hash);
    println!(
        "seed {seed} of plan {plan}: {} steps, {:.3} s of world time, hash {:016x}",
        outcome.steps,
        outcome.world_us as f64 / 1e6,
        outcome.hash
    );
    if again != outcome.hash {
        println!("played again, its hash is {again:016x}: something is not deterministic");
        return ExitCode::FAILURE;
    }
    match outcome.violation {
        None => ExitCode::SUCCESS,
        Some(violation) => {
            println!(
                "{:?} at {:.6} s: {}",
                violation.invariant,
                violation.at_us as f64 / 1e6,
                violation.detail
            );
            ExitCode::FAILURE
        }
    }
}

fn shrunk(one: &One) -> ExitCode {
    let One { seed, plan: plan_name, .. } = one;
    let Some(plan) = Plan::named(plan_name, *seed) else {
        return usage(&format!("plans are {}", NAMES.join(", ")));
    };
    let Some(shrunk) = shrink(&plan, *seed) else {
        println!("seed {seed} of plan {plan_name} does not fail");
        return ExitCode::SUCCESS;
    };
    if one.trace {
        let options = Options { print: true, ..Options::default() };
        millrace_sim::run::play_with(&plan, &shrunk.faults, *seed, options);
    }
    println!("{} of {} faults are needed:", shrunk.faults.len(), shrunk.of);
    for fault in &shrunk.faults {
        println!("  {:.6} s: {:?}", fault.at_us as f64 / 1e6, fault.kind);
    }
    if let Some(violation) = &shrunk.outcome.violation {
        println!("{:?} at {:.6} s: {}", violation.invariant, violation.at_us as f64 / 1e6, violation.detail);
    }
    ExitCode::FAILURE
}

#[cfg(feature = "planted")]
fn faults(ask: &Faults) -> ExitCode {
    use millrace_protocol::planted::Fault;
    use millrace_sim::{findings, planted};

    let named = |fault: &Fault| ask.only.is_empty() || ask.only.contains(&planted::name(*fault));
    let chosen: Vec<Fault> = Fault::ALL.iter().copied().filter(named).collect();
    if chosen.is_empty() {
        return usage("no fault has this name");
    }
    let began = Instant::now();
    let seeds_max = (!ask.check).then_some(ask.seeds_max);
    let found = planted::find(&chosen, seeds_max, ask.work.threads(), |one| {
        eprintln!("{}", findings::line(one));
    });
    for one in &found {
        println!("{}", findings::line(one));
    }
    let missed = findings::missed(&found);
    println!("{} faults, {missed} not caught, {:.0} s", found.len(), began.elapsed().as_secs_f64());
    if let Err(error) = ask.work.report(|| findings::json(&found)) {
        return usage(&format!("{}: {error}", ask.work.json.as_deref().unwrap_or_default()));
    }
    let files = [(&ask.markdown, findings::markdown(&found)), (&ask.known, findings::known(&found))];
    for (path, text) in files {
        if let Some(path) = path
            && let Err(error) = std::fs::write(path, text)
        {
            return usage(&format!("{}: {error}", path.display()));
        }
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
