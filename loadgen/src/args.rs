//! The command line: one place that parses it, checks it whole, and freezes it in [`Settings`].

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use millrace_edge::{Io, affinity};

use crate::clients::Transport;
use crate::compare::CompareArgs;
use crate::costs::CostsArgs;
use crate::limits::{CONNECTIONS_MAX, THREADS_MAX};
use crate::million::MillionArgs;
use crate::verify::VerifyArgs;
use crate::verify::failover::FailoverArgs;
use crate::{measure, payload};

/// Load, measurement and reports for millrace gateways.
#[derive(Debug, Parser)]
#[command(name = "millrace-loadgen", version)]
pub struct Cli {
    /// What to run.
    #[command(subcommand)]
    pub scenario: Scenario,
}

/// What to run. Every one starts a gateway of its own unless `--target` names some.
#[derive(Clone, Debug, Subcommand)]
pub enum Scenario {
    /// Everything at once: connect, log in, join, heartbeat, and messages to a room, groups and pairs.
    Demo(Common),
    /// A ramp of connects and logins: offered against achieved.
    Connect(Common),
    /// Connections that do nothing: what they cost.
    Idle(Common),
    /// Direct messages between pairs of people who think before they answer.
    Chat {
        /// Flags of every scenario.
        #[command(flatten)]
        common: Common,
        /// Mean pause in a conversation, in seconds [default: from --rate]
        #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
        think: Option<f64>,
    },
    /// Messages to groups of some sizes.
    Fanout(Common),
    /// Everyone is dropped at once and comes back.
    Storm(Common),
    /// A million live sessions on one machine, and what everything about them costs.
    Million(MillionArgs),
    /// The same fan-out against other servers that are installed, and against floors.
    Compare(CompareArgs),
    /// What messages cost on each store and durability level: direct, group, catching up, login.
    Costs(CostsArgs),
    /// A real fleet under a seeded schedule of faults, and whether every promise held.
    Verify(VerifyArgs),
    /// What a failover of Redis loses, by durability level.
    Failover(FailoverArgs),
}

/// Flags of every scenario.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Clients
    #[arg(long, value_name = "N")]
    pub connections: Option<u32>,
    /// How long messages are sent (idle: how long is watched; connect: the whole ramp)
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    pub seconds: Option<f64>,
    /// Messages a second in all, sent open-loop (connect: logins a second at the top of the ramp)
    #[arg(long, value_name = "PER_S", allow_negative_numbers = true)]
    pub rate: Option<f64>,
    /// Bytes of a message's payload
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    pub payload_bytes: usize,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as one HTML page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Gateways that run already; clients go to them in turn
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',')]
    pub target: Vec<String>,
    /// Process id of the one gateway on this machine, to measure its memory and CPU
    #[arg(long, value_name = "PID", requires = "target")]
    pub gateway_pid: Option<u32>,
    /// Threads that hold the clients [default: half the cores, at most 2]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// What frames travel in
    #[arg(long, value_enum, default_value_t)]
    pub transport: Transport,
    /// Sizes of the groups that clients are in
    #[arg(long, value_name = "SIZE,…", value_delimiter = ',')]
    pub groups: Option<Vec<u32>>,
    /// Connects offered a second; 0: as fast as logins are answered
    #[arg(long, value_name = "PER_S", default_value_t = 0.0, allow_negative_numbers = true)]
    pub connect_rate: f64,
    /// Sockets through auto, uring or epoll (the own gateway's too)
    #[arg(long, value_name = "BACKEND", default_value = "auto")]
    pub io: Io,
    /// Leave out the bare send loop that CPU per delivery is compared with
    #[arg(long)]
    pub no_floor: bool,
    /// Ed25519 private key (PEM) that signs tokens for --target
    #[arg(long, value_name = "FILE", conflicts_with = "hs256_secret_file")]
    pub ed25519_key_file: Option<PathBuf>,
    /// Name of that key in the gateway's JWKS
    #[arg(long, value_name = "KID")]
    pub key_id: Option<String>,
    /// Shared secret that signs tokens for --target
    #[arg(long, value_name = "FILE")]
    pub hs256_secret_file: Option<PathBuf>,
    /// `aud` of the tokens
    #[arg(long)]
    pub audience: Option<String>,
    /// `iss` of the tokens
    #[arg(long)]
    pub issuer: Option<String>,
}

/// What a scenario takes where the command line says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// Clients.
    pub connections: u32,
    /// Seconds.
    pub seconds: f64,
    /// Sizes of groups.
    pub groups: &'static [u32],
}

/// Which cores do what, so that the gateway, the floor and the clients never share one where it can be helped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cores {
    /// For the server process. Empty: not pinned.
    pub server: Vec<usize>,
    /// One for each load thread. Empty: not pinned.
    pub load: Vec<usize>,
}

impl Cores {
    /// The first half for the server, the second for the load; one core alone is shared.
    fn split(allowed: &[usize]) -> Self {
        let (server, load) = allowed.split_at(allowed.len() / 2);
        if server.is_empty() {
            return Cores { server: Vec::new(), load: Vec::new() };
        }
        Cores { server: server.to_vec(), load: load.to_vec() }
    }
}

/// The command line, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// As it is called.
    pub scenario: &'static str,
    /// Clients.
    pub connections: u32,
    /// Seconds.
    pub seconds: f64,
    /// Messages (or logins) a second, if said.
    pub rate: Option<f64>,
    /// Sizes of groups.
    pub groups: Vec<u32>,
    /// Gateways that run already. Empty: start one.
    pub targets: Vec<SocketAddr>,
    /// Load threads.
    pub threads: usize,
    /// Who runs where.
    pub cores: Cores,
    /// The flags as they were given.
    pub common: Common,
}

/// A command line that makes no run.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// A flag with a value that can't be.
    #[error("--{flag} {given}: expected {expected}")]
    Bad {
        /// Which.
        flag: &'static str,
        /// What was given.
        given: String,
        /// What would do.
        expected: String,
    },
}

pub(crate) fn bad<T>(
    flag: &'static str,
    given: impl ToString,
    expected: impl ToString,
) -> Result<T, ArgsError> {
    Err(ArgsError::Bad { flag, given: given.to_string(), expected: expected.to_string() })
}

pub(crate) fn can_be_written(path: &Path) -> bool {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    parent.is_dir() && !path.is_dir()
}

impl Settings {
    /// Checks and completes the flags.
    pub fn new(scenario: &'static str, common: Common, defaults: Defaults) -> Result<Self, ArgsError> {
        let connections = common.connections.unwrap_or(defaults.connections);
        if !(2..=CONNECTIONS_MAX).contains(&connections) {
            return bad("connections", connections, format!("2 to {CONNECTIONS_MAX}"));
        }
        let seconds = common.seconds.unwrap_or(defaults.seconds);
        if !(seconds > 0.0 && seconds <= 86_400.0) {
            return bad("seconds", seconds, "more than 0, at most 86400");
        }
        if let Some(rate) = common.rate.filter(|rate| !(*rate > 0.0 && rate.is_finite())) {
            return bad("rate", rate, "more than 0");
        }
        if !(common.connect_rate >= 0.0 && common.connect_rate.is_finite()) {
            return bad("connect-rate", common.connect_rate, "0 or more");
        }
        let payload_max = millrace_protocol::frame::PAYLOAD_BYTES_MAX;
        if !(payload::HEADER_BYTES..=payload_max).contains(&common.payload_bytes) {
            let expected =
                format!("{} (a message's number and time) to {payload_max}", payload::HEADER_BYTES);
            return bad("payload-bytes", common.payload_bytes, expected);
        }
        let sizes = common.groups.as_deref().unwrap_or_default();
        if let Some(size) = sizes.iter().find(|size| !(2..=connections).contains(size)) {
            return bad("groups", size, format!("2 to the number of connections ({connections})"));
        }
        for (flag, path) in [("json", &common.json), ("html", &common.html)] {
            // Better now than after the run.
            if let Some(path) = path.as_deref().filter(|path| !can_be_written(path)) {
                return bad(flag, path.display(), "a file in a directory that exists");
            }
        }
        let mut targets = Vec::new();
        for target in &common.target {
            match target.to_socket_addrs().map(|mut found| found.next()) {
                Ok(Some(address)) => targets.push(address),
                _ => return bad("target", target, "HOST:PORT that resolves"),
            }
        }
        if let Some(pid) = common.gateway_pid.filter(|pid| measure::cpu_us(*pid).is_err()) {
            return bad("gateway-pid", pid, "a process of this machine");
        }
        let allowed = affinity::allowed_cpus().unwrap_or_default();
        let cores = Cores::split(&allowed);
        let threads = common.threads.unwrap_or_else(|| cores.load.len().clamp(1, 2));
        if !(1..=THREADS_MAX).contains(&threads) {
            return bad("threads", threads, format!("1 to {THREADS_MAX}"));
        }
        Ok(Settings {
            scenario,
            connections,
            seconds,
            rate: common.rate,
            groups: common.groups.clone().unwrap_or_else(|| defaults.groups.to_vec()),
            targets,
            threads,
            cores,
            common,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(flags: &[&str]) -> Result<Settings, ArgsError> {
        let line = ["millrace-loadgen", "demo"].iter().chain(flags);
        let Scenario::Demo(common) = Cli::try_parse_from(line).unwrap().scenario else { unreachable!() };
        Settings::new("demo", common, Defaults { connections: 100, seconds: 1.0, groups: &[10] })
    }

    #[test]
    fn defaults_hold_and_nonsense_is_refused() {
        let plain = settings(&[]).unwrap();
        assert_eq!((plain.connections, plain.seconds, plain.groups), (100, 1.0, vec![10]));
        let given = settings(&["--connections", "7", "--groups", "2,3", "--target", "127.0.0.1:9"]).unwrap();
        assert_eq!((given.connections, given.groups, given.targets.len()), (7, vec![2, 3], 1));
        for flags in [
            ["--connections", "1"],
            ["--seconds", "0"],
            ["--seconds", "nan"],
            ["--rate", "0"],
            ["--rate", "-3"],
            ["--connect-rate", "-1"],
            ["--payload-bytes", "65537"],
            ["--groups", "10,1"],
            ["--groups", "101"],
            ["--json", "/no/such/directory/report.json"],
            ["--html", "/tmp"],
            ["--payload-bytes", "10"],
            ["--target", "nowhere"],
            ["--threads", "0"],
        ] {
            let error = settings(&flags).unwrap_err().to_string();
            assert!(error.starts_with(flags[0]), "{error}");
        }
    }

    #[test]
    fn server_and_load_are_apart() {
        let split = |cpus: &[usize]| Cores::split(cpus);
        assert_eq!(split(&[3]), Cores { server: vec![], load: vec![] });
        assert_eq!(split(&[0, 1]), Cores { server: vec![0], load: vec![1] });
        assert_eq!(split(&[0, 1, 4]), Cores { server: vec![0], load: vec![1, 4] });
    }
}
