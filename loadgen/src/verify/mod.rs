//! `verify`: a real fleet, real clients on TCP and WebSocket, a seeded schedule of faults, and a judge.
//!
//! The fleet ([`fleet`]), or a gateway alone, runs in namespaces of its own ([`inside`], [`net`]) where the machine allows
//! it. While [`strike`]
//! does to it what [`faults`] planned, the clients ([`clients`]) talk and write down what people saw ([`history`]); at the
//! end everything is read back, and [`check`] says which promises were broken. The rule: the same seed plans the same
//! faults, conversations and messages, so that a schedule that found something can be run again.

pub mod check;
pub mod clients;
pub mod failover;
pub mod faults;
mod fleet;
pub mod history;
pub mod inside;
pub mod net;
pub(crate) mod redis;
pub mod report;
mod round;
mod strike;
mod watch;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millrace_edge::Io;

use self::clients::crowd::Crowd;
use self::faults::Kind;
use self::fleet::{Fleet, Plan};
use self::report::Report;
use self::round::{Round, Spec};
use crate::args::{ArgsError, bad};
use crate::progress::Progress;
use crate::rig::RunError;
use crate::rng::Rng;
use crate::tokens::Signer;

/// Schedules on one fleet; then another one begins with empty stores, as memory-backed disks are small.
const SCHEDULES_PER_FLEET: u32 = 20;

/// Messages a second when their number is not given.
const MESSAGES_PER_S: f64 = 50.0;

/// When a message is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(into = "String")]
pub enum Durability {
    /// Redis has it.
    Async,
    /// Redis has synced it to its disk.
    Fsync,
    /// So many replicas have it too.
    Replicated(u8),
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Durability::Async => f.write_str("async"),
            Durability::Fsync => f.write_str("fsync"),
            Durability::Replicated(replicas) => write!(f, "replicated({replicas})"),
        }
    }
}

impl From<Durability> for String {
    fn from(durability: Durability) -> Self {
        durability.to_string()
    }
}

impl std::str::FromStr for Durability {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "async" => Ok(Durability::Async),
            "fsync" => Ok(Durability::Fsync),
            // The fleet has one replica.
            "replicated" | "replicated(1)" => Ok(Durability::Replicated(1)),
            _ => Err("expected async, fsync or replicated(1)".to_owned()),
        }
    }
}

/// Where messages are, which makes the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    /// Two gateways, three dispatchers, Redis with a replica and Sentinels.
    Redis,
    /// One standalone gateway on the embedded store.
    Embedded,
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Store::Redis => "redis",
            Store::Embedded => "embedded",
        })
    }
}

impl Durability {
    /// Whether acknowledged messages may be lost when another Redis becomes the primary.
    pub fn may_lose(self) -> bool {
        !matches!(self, Durability::Replicated(_))
    }
}

/// Flags of `verify`.
#[derive(Clone, Debug, clap::Args)]
pub struct VerifyArgs {
    /// Schedules of faults, one after the other
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub schedules: u32,
    /// Length of a schedule, its quiet end apart
    #[arg(long, value_name = "S", default_value_t = 20)]
    pub seconds: u32,
    /// Messages of all schedules together [default: 50 a second]
    #[arg(long, value_name = "N")]
    pub messages: Option<u64>,
    /// Users; every fourth has a second device
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub users: u16,
    /// The first schedule's seed; the next ones follow [default: random]
    #[arg(long)]
    pub seed: Option<u64>,
    /// The fleet: gateways, dispatchers and Redis, or one standalone gateway on its embedded store, which keeps what it
    /// acknowledged on its disk (fsync), and to which only faults of a single process happen
    #[arg(long, value_enum, default_value_t = Store::Redis)]
    pub store: Store,
    /// When messages are acknowledged: async, fsync or replicated(1); with --store embedded fsync
    #[arg(long, value_name = "LEVEL", default_value = "fsync")]
    pub durability: Durability,
    /// Kinds of faults [default: all that this machine allows]
    #[arg(long, value_name = "KIND,…", value_delimiter = ',')]
    pub faults: Option<Vec<String>>,
    /// Fail points of gateways and dispatchers, such as before_append=crash@1/500 (needs a build with `--features
    /// failpoints`)
    #[arg(long, value_name = "POINT=WHAT,…")]
    pub failpoints: Option<String>,
    /// Stay on loopback: no partitions, no full disks
    #[arg(long)]
    pub no_namespaces: bool,
    /// Keep the logs of all processes, and the history of schedules that broke a promise
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

impl VerifyArgs {
    fn check(&self) -> Result<(), ArgsError> {
        if !(1..=10_000).contains(&self.schedules) {
            return bad("schedules", self.schedules, "1 to 10000");
        }
        if !(5..=3_600).contains(&self.seconds) {
            return bad("seconds", self.seconds, "5 to 3600");
        }
        if !(2..=400).contains(&self.users) {
            return bad("users", self.users, "2 to 400");
        }
        // The notes of one schedule are in memory: some 100 B for each that was shown one.
        let each = self.messages.unwrap_or(0) / u64::from(self.schedules);
        if each > 1_000_000 {
            return bad("messages", self.messages.unwrap_or(0), "at most 1000000 in each schedule");
        }
        if self.store == Store::Embedded && self.durability != Durability::Fsync {
            return bad("durability", self.durability, "fsync: a standalone gateway has no other");
        }
        if self.failpoints.is_some() && !cfg!(feature = "failpoints") {
            return bad("failpoints", self.failpoints.clone().unwrap_or_default(), BUILD_WITH_FAILPOINTS);
        }
        for (flag, path) in [("json", &self.json), ("html", &self.html)] {
            if let Some(path) = path.as_deref().filter(|path| !crate::args::can_be_written(path)) {
                return bad(flag, path.display(), "a file in a directory that exists");
            }
        }
        self.kinds().map(drop)
    }

    fn kinds(&self) -> Result<Option<Vec<Kind>>, ArgsError> {
        let Some(names) = &self.faults else { return Ok(None) };
        let mut kinds = Vec::new();
        for name in names.iter().filter(|name| *name != "none") {
            match Kind::ALL.into_iter().find(|kind| kind.name() == *name) {
                Some(kind) => kinds.push(kind),
                None => {
                    let all: Vec<String> = Kind::ALL.into_iter().map(Kind::name).collect();
                    return bad("faults", name, format!("none, or of {}", all.join(", ")));
                }
            }
        }
        Ok(Some(kinds))
    }
}

/// What `--failpoints` needs.
const BUILD_WITH_FAILPOINTS: &str =
    "a build with fail points: cargo build -p millrace-loadgen --features failpoints";

/// Which kinds of faults this fleet can have, and why not the others.
fn possible(fleet: &Fleet) -> (Vec<Kind>, Vec<(Kind, String)>) {
    let (mut kinds, mut left_out) = (Vec::new(), Vec::new());
    for kind in Kind::ALL {
        match why_not(kind, fleet.store(), fleet.net.tool(), fleet.has_disk(), fleet.has_clock()) {
            None => kinds.push(kind),
            Some(why) => left_out.push((kind, why.to_owned())),
        }
    }
    (kinds, left_out)
}

/// Why a fault can't be: of the store, what drops packets, and whether there are a disk and a clock of the fleet's own.
fn why_not(
    kind: Kind,
    store: Store,
    tool: Option<net::Tool>,
    has_disk: bool,
    has_clock: bool,
) -> Option<&'static str> {
    match kind {
        _ if store == Store::Embedded && !kind.is_of_one_process() => {
            Some("a standalone gateway is one process (--store redis has more)")
        }
        Kind::CutGatewayDispatcher
        | Kind::CutGatewayDispatcherOneWay
        | Kind::CutDispatcherRedis
        | Kind::CutDispatcherRedisOneWay
        | Kind::CutPrimaryReplica
        | Kind::CutClients
        | Kind::ResetConnections
        | Kind::Failover
            if tool.is_none() =>
        {
            Some("needs network namespaces")
        }
        Kind::ResetConnections | Kind::CutClients if tool == Some(net::Tool::Routes) => {
            Some("needs nft or iptables (Debian package nftables)")
        }
        Kind::DiskFull if !has_disk => Some("needs a mount namespace"),
        Kind::ClockJump if !has_clock => Some("needs libfaketime (Debian package libfaketime)"),
        _ => None,
    }
}

/// What all rounds of a run share.
struct Run {
    progress: Progress,
    stop: Arc<AtomicBool>,
    signer: Signer,
    jwks: String,
    io: Io,
    keep_logs: Option<PathBuf>,
}

impl Run {
    fn new(
        progress: Progress,
        stop: Arc<AtomicBool>,
        io: Io,
        keep_logs: Option<PathBuf>,
    ) -> Result<Self, RunError> {
        let (signer, jwks) = Signer::generate()?;
        Ok(Run { progress, stop, signer, jwks, io, keep_logs })
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn fleet(
        &mut self,
        store: Store,
        durability: Durability,
        failpoints: Option<String>,
    ) -> Result<(Fleet, Crowd), RunError> {
        self.progress.phase("starting the fleet", 1);
        let plan = Plan { store, durability, failpoints, jwks: self.jwks.clone() };
        let stop = Arc::clone(&self.stop);
        let fleet = Fleet::start(plan, &move || stop.load(Ordering::Relaxed))?;
        let crowd = Crowd::open(self.io, fleet.gateways())?;
        Ok((fleet, crowd))
    }
}

/// Runs all schedules.
///
/// # Errors
/// A fleet that does not start, or does not become ready again: nothing can be judged then.
pub fn run(args: &VerifyArgs, progress: Progress, stop: Arc<AtomicBool>) -> Result<Report, RunError> {
    args.check()?;
    let only = args.kinds()?;
    let first_seed = args.seed.unwrap_or_else(|| Rng::from_system().bits() >> 16);
    let mut run = Run::new(progress, stop, args.io, args.keep_logs.clone())?;
    let messages = args
        .messages
        .unwrap_or((MESSAGES_PER_S * f64::from(args.seconds) * f64::from(args.schedules)) as u64);
    let each = messages / u64::from(args.schedules);
    let mut report = Report::new(first_seed, args);
    if !cfg!(feature = "failpoints") {
        report.notes.push(format!("no fail points: they need {BUILD_WITH_FAILPOINTS}"));
    }
    let mut up: Option<(Fleet, Crowd)> = None;
    for number in 0..args.schedules {
        if run.is_stopped() {
            break;
        }
        if number % SCHEDULES_PER_FLEET == 0
            && let Some((fleet, _)) = up.take()
        {
            report.add_failpoints(&fleet.failpoint_counts());
        }
        let (fleet, crowd) = match &mut up {
            Some((fleet, crowd)) => (fleet, crowd),
            None => {
                let (fleet, crowd) =
                    up.insert(run.fleet(args.store, args.durability, args.failpoints.clone())?);
                (fleet, crowd)
            }
        };
        let (kinds, left_out) = possible(fleet);
        report.left_out(&left_out, fleet.net.tool());
        let kinds = only
            .as_ref()
            .map_or(kinds.clone(), |only| kinds.iter().copied().filter(|kind| only.contains(kind)).collect());
        let seed = first_seed + u64::from(number);
        let mut rng = Rng::new(seed);
        let length_ms = u64::from(args.seconds) * 1_000;
        let spec = Spec {
            number,
            seed,
            users: args.users,
            strikes: faults::schedule(&mut rng, length_ms, &kinds, args.store),
            length_ms,
            messages: each,
            may_lose: args.durability.may_lose(),
        };
        let round = match round::run(&mut run, fleet, crowd, &spec) {
            // What was not read back can't be judged.
            Err(RunError::Interrupted) => break,
            done => done?,
        };
        let is_clean = round.is_clean();
        run.progress.say(&report::line(&spec, &round));
        keep(&run, fleet, &spec, &round)?;
        report.add(round);
        if !is_clean && !run.is_stopped() {
            // What follows a broken promise on the same fleet says little.
            report.add_failpoints(&fleet.failpoint_counts());
            up = None;
        }
    }
    if let Some((fleet, _)) = up.take() {
        report.add_failpoints(&fleet.failpoint_counts());
    }
    report.interrupted = run.is_stopped();
    Ok(report)
}

/// Keeps logs, and what happened in a schedule that broke a promise.
fn keep(run: &Run, fleet: &Fleet, spec: &Spec, round: &Round) -> Result<(), RunError> {
    let Some(dir) = &run.keep_logs else { return Ok(()) };
    fleet.keep_logs(dir)?;
    if !round.is_clean() {
        let dir = dir.join(format!("seed-{}", spec.seed));
        fleet.keep_logs(&dir)?;
        std::fs::write(dir.join("history.txt"), round.history.text())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_fleet_can_have_follows_from_its_store_and_the_machine() {
        let count = |store, tool, own: bool| {
            let can = |kind: &Kind| why_not(*kind, store, tool, own, own).is_none();
            Kind::ALL.iter().filter(|kind| can(kind)).count()
        };
        for (store, tool, own, expected) in [
            (Store::Redis, Some(net::Tool::Nft), true, Kind::ALL.len()),
            (Store::Redis, None, false, 8),
            (Store::Embedded, Some(net::Tool::Nft), true, 6),
            (Store::Embedded, Some(net::Tool::Routes), true, 4),
            (Store::Embedded, None, false, 2),
        ] {
            assert_eq!(count(store, tool, own), expected, "{store}, {tool:?}, {own}");
        }
        let why = why_not(Kind::KillRedis, Store::Embedded, Some(net::Tool::Nft), true, true);
        assert!(why.is_some_and(|why| why.contains("--store redis")), "{why:?}");
    }
}
