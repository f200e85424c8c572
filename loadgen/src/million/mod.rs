//! The million run: so many live sessions on one machine, and what everything about them costs.
//!
//! Servers are processes of their own ([`fleet`]), so that each one's memory and CPU can be told apart. What is done
//! to them is in [`run`], what it showed in [`report`]. The rule: a figure that could not be measured is absent, never
//! guessed, and each target is told as met or missed.

mod disk;
mod fan_out;
mod fleet;
mod kernel;
mod probe;
mod report;
mod run;
mod storm;
mod table;

use std::path::PathBuf;

use clap::Args;
use millrace_edge::{Io, affinity};

use crate::args::{ArgsError, can_be_written};
use crate::clients::Transport;
use crate::limits::{CONNECTIONS_MAX, THREADS_MAX};
use crate::payload;

pub use self::report::MillionReport;
pub use self::run::run;

/// Sizes of groups that everyone is in one of each of, where they fit.
const GROUPS: [u32; 3] = [1_000, 10_000, 100_000];

/// Fewer sessions show nothing that the other scenarios don't.
const SESSIONS_MIN: u32 = 100;

/// Flags of the million run.
#[derive(Args, Clone, Debug)]
pub struct MillionArgs {
    /// Sessions
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    pub sessions: u32,
    /// Sizes of the groups that everyone is in one of each of [default: 1000, 10000 and 100000, as they fit]
    #[arg(long, value_name = "SIZE,…", value_delimiter = ',')]
    pub groups: Option<Vec<u32>>,
    /// Bytes of a message's payload
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    pub payload_bytes: usize,
    /// Direct messages a second that show how the others fare
    #[arg(long, value_name = "PER_S", default_value_t = 200.0, allow_negative_numbers = true)]
    pub probe_rate: f64,
    /// How long the idle sessions are watched, then how long direct messages are sent among them; groups of each size
    /// are sent to for two thirds of it
    #[arg(long, value_name = "S", default_value_t = 30.0, allow_negative_numbers = true)]
    pub seconds: f64,
    /// Heartbeat interval
    #[arg(long, value_name = "S", default_value_t = 30.0, allow_negative_numbers = true)]
    pub heartbeat: f64,
    /// Threads of the gateway that holds the sessions [default: one per core]
    #[arg(long, value_name = "N")]
    pub shards: Option<usize>,
    /// Threads that hold the clients [default: one per core, at most 4]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// What frames travel in
    #[arg(long, value_enum, default_value_t)]
    pub transport: Transport,
    /// Sockets through auto, uring or epoll
    #[arg(long, value_name = "BACKEND", default_value = "auto")]
    pub io: Io,
    /// Leave out the bare send loop over as many sockets
    #[arg(long)]
    pub no_floor: bool,
    /// Leave out the kill of the gateway
    #[arg(long)]
    pub no_storm: bool,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as one HTML page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// The flags, checked and completed.
#[derive(Clone, Debug)]
struct Settings {
    sessions: u32,
    groups: Vec<u32>,
    payload_bytes: usize,
    probe_rate: f64,
    seconds: f64,
    heartbeat_ms: u64,
    shards: usize,
    threads: usize,
    transport: Transport,
    io: Io,
    floor: bool,
    storm: bool,
}

impl Settings {
    fn new(args: &MillionArgs) -> Result<Self, ArgsError> {
        let bad = |flag, given: String, expected: String| Err(ArgsError::Bad { flag, given, expected });
        let cores = affinity::cpu_count();
        if !(SESSIONS_MIN..=CONNECTIONS_MAX).contains(&args.sessions) {
            let expected = format!("{SESSIONS_MIN} to {CONNECTIONS_MAX}");
            return bad("sessions", args.sessions.to_string(), expected);
        }
        let groups = match &args.groups {
            None => GROUPS.into_iter().filter(|size| *size <= args.sessions).collect(),
            Some(sizes) => {
                if let Some(size) = sizes.iter().find(|size| !(2..=args.sessions).contains(size)) {
                    return bad("groups", size.to_string(), format!("2 to --sessions ({})", args.sessions));
                }
                sizes.clone()
            }
        };
        let payload_max = millrace_protocol::frame::PAYLOAD_BYTES_MAX;
        if !(payload::HEADER_BYTES..=payload_max).contains(&args.payload_bytes) {
            let expected = format!("{} to {payload_max}", payload::HEADER_BYTES);
            return bad("payload-bytes", args.payload_bytes.to_string(), expected);
        }
        for (flag, value, most) in [
            ("probe-rate", args.probe_rate, 100_000.0),
            ("seconds", args.seconds, 3_600.0),
            ("heartbeat", args.heartbeat, 3_600.0),
        ] {
            if !(value > 0.0 && value <= most) {
                return bad(flag, value.to_string(), format!("more than 0, at most {most}"));
            }
        }
        let shards = args.shards.unwrap_or(cores);
        let threads = args.threads.unwrap_or(cores.min(4));
        for (flag, value, most) in [("shards", shards, 255), ("threads", threads, THREADS_MAX)] {
            if !(1..=most).contains(&value) {
                return bad(flag, value.to_string(), format!("1 to {most}"));
            }
        }
        for (flag, path) in [("json", &args.json), ("html", &args.html)] {
            if let Some(path) = path.as_deref().filter(|path| !can_be_written(path)) {
                let expected = "a file in a directory that exists".to_owned();
                return bad(flag, path.display().to_string(), expected);
            }
        }
        Ok(Settings {
            sessions: args.sessions,
            groups,
            payload_bytes: args.payload_bytes,
            probe_rate: args.probe_rate,
            seconds: args.seconds,
            heartbeat_ms: (args.heartbeat * 1e3).ceil() as u64,
            shards,
            threads,
            transport: args.transport,
            io: args.io,
            floor: !args.no_floor,
            storm: !args.no_storm,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: MillionArgs,
    }

    fn settings(flags: &[&str]) -> Result<Settings, ArgsError> {
        Settings::new(&Line::parse_from(["million"].iter().chain(flags)).args)
    }

    #[test]
    fn a_smaller_run_leaves_out_groups_that_do_not_fit() {
        assert_eq!(settings(&[]).unwrap().groups, [1_000, 10_000, 100_000]);
        assert_eq!(settings(&["--sessions", "20000"]).unwrap().groups, [1_000, 10_000]);
        assert_eq!(settings(&["--groups", "7,9"]).unwrap().groups, [7, 9]);
    }

    #[test]
    fn nonsense_is_refused_by_its_flag() {
        for flags in [
            ["--sessions", "99"],
            ["--groups", "1"],
            ["--groups", "1000001"],
            ["--payload-bytes", "3"],
            ["--probe-rate", "0"],
            ["--seconds", "-1"],
            ["--heartbeat", "nan"],
            ["--shards", "0"],
            ["--threads", "0"],
            ["--json", "/no/such/directory/report.json"],
        ] {
            let error = settings(&flags).unwrap_err().to_string();
            assert!(error.starts_with(flags[0]), "{error}");
        }
    }
}
