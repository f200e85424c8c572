//! A run's parts, put up and taken down: tokens, the gateway, the clients, and the phases that scenarios are made of.
//!
//! Phases block the main thread, which looks at counters, shows progress, and notices Ctrl-C and children that die.
//! The rule: an interrupted phase ends early and leaves what was measured so far.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_edge::Io;
use millrace_edge::clock::boot_us;
use serde::Serialize;

use crate::args::Settings;
use crate::child::{Child, ChildError, Scratch, flag};
use crate::clients::{Crew, CrewError, Manner, Order, Setup, Totals};
use crate::ledger::Ledger;
use crate::limits::STRAGGLERS_US;
use crate::measure;
use crate::progress::Progress;
use crate::schedule::{Schedule, ScheduleError};
use crate::tokens::{Signer, TokenError};
use crate::watch::{Ended, LOOK, Watch};
use crate::world::World;

/// Why a run has no result.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RunError {
    #[error(transparent)]
    Args(#[from] crate::args::ArgsError),
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error(transparent)]
    Crew(#[from] CrewError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0} said nothing of where it listens")]
    NoAddress(&'static str),
    #[error("--target {0}: nobody takes connections there: {1}")]
    NoTarget(SocketAddr, io::Error),
    #[error("interrupted before anything was measured")]
    Interrupted,
    #[error("{0}")]
    Stuck(String),
    #[error("no load thread kept books")]
    NoBooks,
    #[error("can't write {0}: {1}")]
    Write(std::path::PathBuf, io::Error),
}

/// Slots that a server is given for so many connections: some are closing while others come.
pub fn capacity(connections: u32) -> u32 {
    connections + connections / 8 + 64
}

/// Shares of the clients at which memory is read. The first is not 0: what a gateway makes once, when its first
/// clients come (pools, tables, the groups that they are in), belongs to the fixed part.
const MEMORY_STEPS: [f64; 5] = [0.2, 0.4, 0.6, 0.8, 1.0];

/// Quiet before memory is read: allocators give pages back a moment later.
const SETTLE: Duration = Duration::from_millis(1_000);

/// All groups are made within this time.
const FOUNDING_WITHIN: Duration = Duration::from_secs(60);

/// A gateway of somebody else takes a connection within this time.
const TARGET_WITHIN: Duration = Duration::from_secs(5);

/// A gateway of our own takes logins within this time.
const READY_WITHIN: Duration = Duration::from_secs(5);

/// Memory of the gateway with so many idle clients.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MemoryPoint {
    /// Logged in, in their conversations, silent.
    pub connections: u64,
    /// PSS.
    pub bytes: u64,
}

/// What bringing all clients up showed.
#[derive(Clone, Debug, Default)]
pub struct Ramp {
    /// Connects with login per second, joins apart.
    pub connects_per_s: f64,
    /// At each step.
    pub memory: Vec<MemoryPoint>,
    /// CPU of the gateway per connect, login and joins, in microseconds.
    pub cpu_us_per_connection: Option<f64>,
    /// Interrupted or timed out on the way.
    pub is_partial: bool,
}

/// What a phase of sending showed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// From the first message's time to the last delivery.
    pub seconds: f64,
    /// The span that `cpu_us` was taken over, which begins a little earlier.
    pub cpu_seconds: f64,
    /// Deliveries in that time.
    pub deliveries: u64,
    /// CPU of the gateway in that time, in microseconds.
    pub cpu_us: Option<f64>,
}

/// All parts of a run.
pub struct Rig {
    /// The flags.
    pub settings: Settings,
    /// Who talks where.
    pub world: Arc<World>,
    /// The display, and Ctrl-C.
    pub watch: Watch,
    /// The clients.
    pub crew: Crew,
    child: Option<Child>,
    pid: Option<u32>,
}

impl Rig {
    /// Signs tokens, starts a gateway unless `--target` names some, and the load threads.
    pub fn start(
        settings: Settings,
        world: World,
        tickets: bool,
        mut progress: Progress,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, RunError> {
        let common = &settings.common;
        let interrupted = || match stop.load(Ordering::Relaxed) {
            true => Err(RunError::Interrupted),
            false => Ok(()),
        };
        interrupted()?;
        let (signer, jwks) = if settings.targets.is_empty() {
            let (signer, jwks) = Signer::generate()?;
            (signer, Some(jwks))
        } else {
            let (ed25519, hs256) = (&common.ed25519_key_file, &common.hs256_secret_file);
            let signer = Signer::from_files(ed25519.as_deref(), hs256.as_deref(), common.key_id.clone())?;
            (signer.naming(common.audience.clone(), common.issuer.clone()), None)
        };
        for &target in &settings.targets {
            // Clients would try for a minute, as they must where a gateway restarts.
            std::net::TcpStream::connect_timeout(&target, TARGET_WITHIN)
                .map_err(|error| RunError::NoTarget(target, error))?;
        }
        progress.phase("signing tokens", settings.connections.into());
        let tokens = signer.sign_all(&world, |_| {})?;
        interrupted()?;
        let world = Arc::new(world);
        let setup = |tokens: Vec<Box<str>>, targets, clients, founded| Setup {
            world: Arc::clone(&world),
            tokens,
            targets,
            transport: common.transport,
            manner: Manner::Session,
            io: common.io,
            clients,
            threads: settings.threads,
            cpus: settings.cores.load.clone(),
            payload_bytes: common.payload_bytes,
            tickets,
            founded,
            niceness: 0,
        };
        let (child, targets) = match jwks {
            Some(jwks) => {
                let scratch = Scratch::new()?;
                let makers = world.makers();
                if makers > 0 {
                    progress.phase("making groups", makers.into());
                    let (mut maker, address) = start_gateway(&settings, &jwks, &scratch, true)?;
                    let makers_tokens = tokens[..makers as usize].to_vec();
                    found_groups(setup(makers_tokens, vec![address], makers, false), &mut maker, &stop)?;
                    maker.stop();
                    interrupted()?;
                }
                let (child, address) = start_gateway(&settings, &jwks, &scratch, false)?;
                (Some(child), vec![address])
            }
            None => (None, settings.targets.clone()),
        };
        let pid = child.as_ref().map(Child::pid).or(settings.common.gateway_pid);
        let founded = child.is_some();
        let crew = Crew::start(setup(tokens, targets, settings.connections, founded))?;
        progress.done();
        Ok(Rig { settings, world, watch: Watch { progress, stop }, crew, child, pid })
    }

    /// Whether Ctrl-C was pressed.
    pub fn is_interrupted(&self) -> bool {
        self.watch.is_interrupted()
    }

    /// CPU that the gateway has used, in microseconds, where it can be seen.
    pub fn gateway_cpu_us(&self) -> Option<u64> {
        measure::cpu_us(self.pid?).ok()
    }

    /// Memory of the gateway in bytes, where it can be seen.
    pub fn gateway_bytes(&self) -> Option<u64> {
        measure::pss_bytes(self.pid?).ok()
    }

    /// Looks at the counters until `done`, showing `position` on the way.
    pub fn until(
        &mut self,
        limit: Duration,
        position: impl Fn(&Totals) -> u64,
        words: impl Fn(&Totals) -> String,
        done: impl Fn(&Totals) -> bool,
    ) -> Result<Ended, RunError> {
        self.watch.until(&self.crew, &mut self.child, limit, position, words, done)
    }

    /// Sleeps, unless Ctrl-C is pressed.
    pub fn pause(&mut self, time: Duration) -> Result<Ended, RunError> {
        let ended = self.until(time, |_| 0, |_| String::new(), |_| false)?;
        Ok(if ended == Ended::TimedOut { Ended::Done } else { ended })
    }

    /// Brings all clients up and into their conversations, in steps with a rest after each to read the gateway's
    /// memory.
    ///
    /// # Errors
    /// Not all came in: there is nothing to measure then.
    pub fn ramp(&mut self) -> Result<Ramp, RunError> {
        let all = self.settings.connections;
        let steps: &[f64] = if self.pid.is_some() { &MEMORY_STEPS } else { &[1.0] };
        let mut ramp = Ramp::default();
        let (mut connecting_us, cpu_before) = (0, self.gateway_cpu_us());
        ramp.memory.extend(self.gateway_bytes().map(|bytes| MemoryPoint { connections: 0, bytes }));
        for share in steps {
            let to = ((f64::from(all) * share) as u32).max(1);
            let offered = self.settings.common.connect_rate;
            self.watch.progress.phase(&format!("connecting to {to}"), all.into());
            let start = boot_us();
            let before = self.crew.totals();
            self.crew.order(|| Order::Up { to, per_s: offered })?;
            let patience = Duration::from_secs(60)
                + Duration::from_secs_f64(f64::from(to) * if offered > 0.0 { 1.0 / offered } else { 0.001 });
            let rate = move |totals: &Totals| {
                let seconds = (boot_us() - start) as f64 / 1e6;
                format!("{:.0} logins/s", (totals.logins - before.logins) as f64 / seconds.max(1e-3))
            };
            let mut ended = self.until(
                patience,
                |t| t.inside,
                rate,
                |t| t.inside + t.given_up + t.disconnects >= u64::from(to),
            )?;
            connecting_us += boot_us() - start;
            if ended == Ended::Done {
                self.watch.progress.phase(&format!("joining up to {to}"), all.into());
                self.crew.order(|| Order::Join)?;
                let done =
                    |t: &Totals| t.ready + t.given_up + t.join_failures + t.disconnects >= u64::from(to);
                ended = self.until(patience, |t| t.ready, |_| String::new(), done)?;
            }
            let totals = self.crew.totals();
            if ended == Ended::Interrupted {
                ramp.is_partial = true;
                break;
            }
            if totals.ready < u64::from(to) {
                let why = self.crew.first_trouble().unwrap_or_else(|| "no answer".to_owned());
                let (ready, inside) = (totals.ready, totals.inside);
                return Err(RunError::Stuck(format!(
                    "only {ready} of {to} clients are in their conversations ({inside} logged in): {why}"
                )));
            }
            self.pause(SETTLE)?;
            if let Some(bytes) = self.gateway_bytes() {
                ramp.memory.push(MemoryPoint { connections: to.into(), bytes });
            }
        }
        let logins = self.crew.totals().logins;
        ramp.connects_per_s = logins as f64 / (connecting_us as f64 / 1e6).max(1e-6);
        if let (Some(before), Some(after)) = (cpu_before, self.gateway_cpu_us()) {
            ramp.cpu_us_per_connection = Some((after - before) as f64 / (logins as f64).max(1.0));
        }
        self.watch.progress.done();
        Ok(ramp)
    }

    /// Watches for a while. Returns what CPU the gateway used, in microseconds per second.
    pub fn idle(&mut self, seconds: f64) -> Result<Option<f64>, RunError> {
        let (start, before) = (boot_us(), self.gateway_cpu_us());
        self.watch.progress.phase("heartbeating", (seconds * 1e3) as u64);
        let at = move |_: &Totals| (boot_us() - start) / 1_000;
        self.until(Duration::from_secs_f64(seconds), at, |t| format!("ms, {} clients", t.ready), |_| false)?;
        let after = self.gateway_cpu_us();
        let elapsed = (boot_us() - start) as f64 / 1e6;
        self.watch.progress.done();
        Ok(before.zip(after).map(|(before, after)| (after - before) as f64 / elapsed))
    }

    /// Sends the schedule and waits for its deliveries, for stragglers up to a bound.
    pub fn send(&mut self, schedule: &Arc<Schedule>) -> Result<Sent, RunError> {
        let (before, cpu_before, cpu_since) = (self.crew.totals(), self.gateway_cpu_us(), boot_us());
        let (start_us, _) = self.watch.send(&self.crew, &mut self.child, schedule, STRAGGLERS_US)?;
        let after = self.crew.totals();
        self.watch.progress.done();
        Ok(Sent {
            seconds: boot_us().saturating_sub(start_us) as f64 / 1e6,
            cpu_seconds: (boot_us() - cpu_since) as f64 / 1e6,
            deliveries: after.deliveries - before.deliveries,
            cpu_us: cpu_before.zip(self.gateway_cpu_us()).map(|(before, after)| (after - before) as f64),
        })
    }

    /// Takes everything down. Returns the last counters, the books if any, and the first trouble.
    pub fn finish(self) -> Result<(Totals, Option<Ledger>, Option<String>), RunError> {
        let Rig { crew, child, mut watch, .. } = self;
        let (totals, trouble) = (crew.totals(), crew.first_trouble());
        watch.progress.phase("closing", 1);
        let books = crew.finish()?;
        if let Some(mut child) = child {
            child.stop();
        }
        Ok((totals, books, trouble))
    }
}

/// Has the groups' makers make them on a gateway that is ended then. The one that is measured starts with them in its
/// store, as gateways do: what making them leaves in memory is no cost of a connection.
fn found_groups(setup: Setup, maker: &mut Child, stop: &AtomicBool) -> Result<(), RunError> {
    let makers = u64::from(setup.clients);
    let crew = Crew::start(setup)?;
    let mut wait = |done: &dyn Fn(&Totals) -> u64| {
        let end = boot_us() + FOUNDING_WITHIN.as_micros() as u64;
        while done(&crew.totals()) < makers && boot_us() < end && !crew.has_failed() {
            if stop.load(Ordering::Relaxed) {
                return Err(RunError::Interrupted);
            }
            maker.check()?;
            std::thread::sleep(LOOK);
        }
        Ok(())
    };
    crew.order(|| Order::Up { to: makers as u32, per_s: 0.0 })?;
    wait(&|totals| totals.inside + totals.given_up + totals.disconnects)?;
    crew.order(|| Order::Join)?;
    wait(&|totals| totals.ready + totals.given_up + totals.join_failures + totals.disconnects)?;
    let ready = crew.totals().ready;
    if ready < makers {
        let why = crew.first_trouble().unwrap_or_else(|| "no answer".to_owned());
        return Err(RunError::Stuck(format!("only {ready} of {makers} clients made their groups: {why}")));
    }
    crew.finish()?;
    Ok(())
}

/// Starts a gateway on the store in `scratch`. Should this process be gone at its end, it removes that directory; one
/// that `is_maker` leaves it to the gateway after it otherwise.
pub(crate) fn start_gateway(
    settings: &Settings,
    jwks: &str,
    scratch: &Arc<Scratch>,
    is_maker: bool,
) -> Result<(Child, SocketAddr), RunError> {
    let key_file = scratch.path().join("jwks.json");
    std::fs::write(&key_file, jwks)?;
    let cpus: Vec<String> = settings.cores.server.iter().map(usize::to_string).collect();
    let shards = settings.cores.server.len().clamp(1, 255).to_string();
    let mut args =
        vec![OsString::from("gateway"), flag("cpus", cpus.join(",")), flag("scratch", scratch.path())];
    if is_maker {
        args.push(flag("kept-by", std::process::id().to_string()));
    }
    args.extend([
        OsString::from("--"),
        flag("listen", "127.0.0.1:0"),
        flag("admin", "127.0.0.1:0"),
        flag("data-dir", scratch.path().join("data")),
        flag("auth-jwks-file", key_file),
        flag("shards", shards),
        flag("capacity", capacity(settings.connections).to_string()),
    ]);
    if settings.common.io != Io::Auto {
        args.push(flag("io", settings.common.io.to_string()));
    }
    let child = Child::start("the gateway", args, Arc::clone(scratch))?;
    // One that never says so is tried all the same, and its refusals tell why.
    child.await_ready(READY_WITHIN);
    let address = child.address("tcp").ok_or(RunError::NoAddress("the gateway"))?;
    Ok((child, address))
}
