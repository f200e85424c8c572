//! The comparison: the same open-loop fan-out against each server that is installed, and against two floors.
//!
//! Servers run one at a time on the same cores; rounds go over all of them in turn (A B C, A B C), so that a drift of
//! the machine hits all alike. One thread on the load cores holds all subscribers and the publisher. The rule: what is
//! measured, and how, does not depend on which server it is.

pub mod bare;
pub mod codec;
mod round;
mod servers;
mod swarm;
mod tally;
pub mod warden;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use millrace_edge::{Io, affinity};

pub use self::round::Sample;
pub use self::servers::{Found, Missing, Server};
use crate::args::{ArgsError, Common, Defaults, Settings, bad};
use crate::measure::Machine;
use crate::progress::Progress;
use crate::report::compare::{Comparison, Outcome};
use crate::rig::RunError;

/// Messages of one round at most: each costs 20 B in the books, and more belong in more rounds.
const MESSAGES_MAX: u32 = 1_000_000;

/// Rounds at most.
const REPEAT_MAX: u32 = 100;

/// Messages when neither --messages nor --seconds is given.
const MESSAGES: u32 = 50;

/// Flags of the comparison.
#[derive(Clone, Debug, clap::Args)]
pub struct CompareArgs {
    /// Subscribers of the one topic
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub subscribers: u32,
    /// Bytes of a message's payload
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    pub payload_bytes: usize,
    /// Messages a second, sent open-loop
    #[arg(long, value_name = "PER_S", default_value_t = 2.0, allow_negative_numbers = true)]
    pub rate: f64,
    /// Messages in each round [default: 50]
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    pub messages: Option<u32>,
    /// How long messages are sent in each round, instead of their number
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    pub seconds: Option<f64>,
    /// Rounds over all servers; medians are reported
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub repeat: u32,
    /// What to compare [default: all]
    #[arg(long, value_enum, value_name = "NAME,…", value_delimiter = ',')]
    pub servers: Vec<Server>,
    /// How long all subscribers are idle before memory is read, in seconds (Redis gives buffers back for the first 15)
    #[arg(long, value_name = "S", default_value_t = 20.0, allow_negative_numbers = true)]
    pub settle: f64,
    /// Pause before memory without subscribers is read, and how long silence is watched, in seconds
    #[arg(long, value_name = "S", default_value_t = 3.0, allow_negative_numbers = true)]
    pub rest: f64,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as one HTML page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Sockets of clients, of the io_uring floor and of millrace through auto, uring or epoll
    #[arg(long, value_name = "BACKEND", default_value = "auto")]
    pub io: Io,
}

/// The flags of a scenario as they are when none is given.
#[derive(Parser)]
struct Bare {
    #[command(flatten)]
    common: Common,
}

/// The flags, checked.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What to compare, in this order.
    pub servers: Vec<Server>,
    /// Messages of a round.
    pub messages: u32,
    /// Between two of them, in microseconds.
    pub gap_us: u64,
    /// Rounds.
    pub repeat: u32,
    /// Seconds of idleness before memory is read.
    pub settle: f64,
    /// Seconds of rest.
    pub rest: f64,
    /// Subscribers, payload and cores, as gateway and floor take them.
    pub settings: Settings,
}

impl Plan {
    /// Checks and completes the flags.
    pub fn new(args: &CompareArgs) -> Result<Self, ArgsError> {
        let subscribers_max = crate::limits::CONNECTIONS_MAX - 1;
        if !(2..=subscribers_max).contains(&args.subscribers) {
            return bad("subscribers", args.subscribers, format!("2 to {subscribers_max}"));
        }
        if !(args.rate > 0.0 && args.rate <= 1e6) {
            return bad("rate", args.rate, "more than 0, at most 1000000");
        }
        if let Some(seconds) = args.seconds.filter(|s| !(*s > 0.0 && *s <= 86_400.0)) {
            return bad("seconds", seconds, "more than 0, at most 86400");
        }
        let wanted = match (args.messages, args.seconds) {
            (Some(messages), _) => u64::from(messages),
            (None, Some(seconds)) => ((seconds * args.rate) as u64).max(1),
            (None, None) => u64::from(MESSAGES),
        };
        if !(1..=u64::from(MESSAGES_MAX)).contains(&wanted) {
            let flag = if args.seconds.is_some() { "seconds" } else { "messages" };
            return bad(flag, wanted, format!("1 to {MESSAGES_MAX} messages"));
        }
        if !(1..=REPEAT_MAX).contains(&args.repeat) {
            return bad("repeat", args.repeat, format!("1 to {REPEAT_MAX}"));
        }
        for (flag, seconds) in [("rest", args.rest), ("settle", args.settle)] {
            if !(0.0..=600.0).contains(&seconds) {
                return bad(flag, seconds, "0 to 600");
            }
        }
        let mut common = Bare::parse_from(["compare"]).common;
        common.connections = Some(args.subscribers);
        common.payload_bytes = args.payload_bytes;
        common.threads = Some(1);
        common.io = args.io;
        common.json = args.json.clone();
        common.html = args.html.clone();
        let defaults = Defaults { connections: args.subscribers, seconds: 1.0, groups: &[] };
        let settings = Settings::new("compare", common, defaults)?;
        let mut servers = args.servers.clone();
        if servers.is_empty() {
            servers.extend(Server::ALL);
        }
        let mut seen = Vec::new();
        servers.retain(|server| {
            !seen.contains(server) && {
                seen.push(*server);
                true
            }
        });
        let (messages, gap_us) = (wanted as u32, ((1e6 / args.rate) as u64).max(1));
        let (settle, rest) = (args.settle, args.rest);
        Ok(Plan { servers, messages, gap_us, repeat: args.repeat, settle, rest, settings })
    }
}

/// Measures all that is here, round by round.
///
/// # Errors
/// Flags that make no run, or Ctrl-C before there was anything to report. A server that fails is a row of the report.
pub fn run(
    args: &CompareArgs,
    mut progress: Progress,
    stop: &Arc<AtomicBool>,
) -> Result<Comparison, RunError> {
    let plan = Plan::new(args)?;
    let machine = Machine::here();
    // What clients cost each other must not be what servers cost: one thread, one core.
    if let Some(&cpu) = plan.settings.cores.load.first() {
        affinity::pin_current_thread(cpu)?;
    }
    let mut rows: Vec<(Server, Outcome)> =
        plan.servers.iter().map(|&server| (server, Outcome::of(server))).collect();
    for nth in 1..=plan.repeat {
        for (server, outcome) in &mut rows {
            let Outcome::Here { found, samples, failures, .. } = outcome else { continue };
            if stop.load(Ordering::Relaxed) {
                continue;
            }
            let title = format!("{} ({nth}/{})", server.title(), plan.repeat);
            match round::measure(*server, found, &plan, &title, &mut progress, stop) {
                Ok(sample) => samples.push(sample),
                Err(RunError::Interrupted) => {}
                Err(error) => {
                    progress.say(&format!("{title}: {error}"));
                    failures.push(error.to_string());
                }
            }
        }
    }
    progress.done();
    let is_empty = |outcome: &Outcome| match outcome {
        Outcome::Here { samples, failures, .. } => samples.is_empty() && failures.is_empty(),
        Outcome::Missing(_) => true,
    };
    if stop.load(Ordering::Relaxed) && rows.iter().all(|(_, outcome)| is_empty(outcome)) {
        return Err(RunError::Interrupted);
    }
    Ok(Comparison::new(&plan, machine, rows, stop.load(Ordering::Relaxed)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Scenario};

    fn plan(flags: &[&str]) -> Result<Plan, String> {
        let line = ["millrace-loadgen", "compare"].iter().chain(flags);
        let cli = Cli::try_parse_from(line).map_err(|error| error.to_string())?;
        let Scenario::Compare(args) = cli.scenario else { unreachable!() };
        Plan::new(&args).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_hold_and_nonsense_is_refused() {
        let plain = plan(&[]).unwrap();
        assert_eq!((plain.servers.len(), plain.messages, plain.gap_us), (10, 50, 500_000));
        assert_eq!((plain.settings.connections, plain.repeat), (10_000, 3));
        let given = plan(&["--servers", "redis,nats,redis", "--seconds=3", "--rate=10"]).unwrap();
        assert_eq!((given.servers, given.messages), (vec![Server::Redis, Server::Nats], 30));
        for flags in [
            ["--subscribers", "1"],
            ["--payload-bytes", "23"],
            ["--payload-bytes", "65537"],
            ["--rate", "0"],
            ["--rate", "nan"],
            ["--messages", "0"],
            ["--messages", "1000001"],
            ["--seconds", "-1"],
            ["--repeat", "0"],
            ["--rest", "-1"],
            ["--settle", "601"],
            ["--json", "/no/such/directory/report.json"],
        ] {
            let error = plan(&flags).unwrap_err();
            assert!(error.starts_with(flags[0]), "{flags:?}: {error}");
        }
        let error = plan(&["--servers", "redis,kafka"]).unwrap_err();
        assert!(error.contains("kafka") && error.contains("mosquitto-qos1"), "{error}");
        assert!(plan(&["--messages=1", "--seconds=1"]).is_err());
    }
}
