//! The servers of a run, each a process of its own: a dispatcher with its store, and two gateways in front of it.
//!
//! The first gateway holds the sessions, and is killed and started again; the second stays, so that messages through
//! it show what the rest of the fleet notices. The rule: they share one directory, which goes with the last of them.

use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process;
use std::sync::Arc;
use std::time::Duration;

use millrace_edge::clock::boot_us;

use super::Settings;
use super::probe::PAIRS;
use crate::child::{Child, Scratch, flag};
use crate::rig::{RunError, capacity};

/// A gateway takes logins within this time: the lease of one that was killed must lapse first.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// Ports of gateways are taken from here: below the ports of outgoing connections, so that no client takes one while
/// its gateway is away.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// Connections that the second gateway has room for, beside what runs through it.
const SECOND_CAPACITY: u32 = 4_096;

/// All server processes.
pub(super) struct Fleet {
    pub(super) dispatcher: Child,
    pub(super) first: Child,
    pub(super) second: Child,
    first_port: u16,
    links: SocketAddr,
    scratch: Arc<Scratch>,
    /// Threads of a gateway that holds the sessions.
    shards: usize,
    heartbeat_ms: u64,
    sessions: u32,
    io: String,
}

impl Fleet {
    /// Starts all of them; the gateways take logins when this returns.
    pub(super) fn start(settings: &Settings, jwks: &str) -> Result<Self, RunError> {
        let scratch = Scratch::new()?;
        scratch.write_keys(jwks)?;
        let dispatcher = start_dispatcher(&scratch)?;
        let links = dispatcher.address("links").ok_or(RunError::NoAddress("the dispatcher"))?;
        let first_port = free_port()?;
        let (shards, heartbeat_ms, sessions) = (settings.shards, settings.heartbeat_ms, settings.sessions);
        let io = settings.io.to_string();
        let start = |what, id, port, shards, slots| {
            let plan = Plan { id, port, shards, slots, heartbeat_ms, io: &io, links };
            start_gateway(what, &scratch, &plan)
        };
        let first = start("the first gateway", 1, first_port, shards, slots(sessions))?;
        let second = start("the second gateway", 2, free_port()?, 1, SECOND_CAPACITY)?;
        for gateway in [&first, &second] {
            if !gateway.await_ready(READY_WITHIN) {
                let (seconds, log) = (READY_WITHIN.as_secs(), gateway.log_tail());
                return Err(RunError::Stuck(format!("a gateway took no logins within {seconds} s{log}")));
            }
        }
        Ok(Fleet {
            dispatcher,
            first,
            second,
            first_port,
            links,
            scratch,
            shards,
            heartbeat_ms,
            sessions,
            io,
        })
    }

    /// Where clients of the first gateway go.
    pub(super) fn first_address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.first_port).into()
    }

    /// Where clients of the second gateway go.
    pub(super) fn second_address(&self) -> Result<SocketAddr, RunError> {
        self.second.address("tcp").ok_or(RunError::NoAddress("the second gateway"))
    }

    /// Where the dispatcher keeps its store.
    pub(super) fn store(&self) -> std::path::PathBuf {
        self.scratch.path().join("data")
    }

    /// Where all of them keep their files.
    pub(super) fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// Those that must not end by themselves.
    pub(super) fn servers(&mut self) -> [&mut Child; 3] {
        [&mut self.dispatcher, &mut self.first, &mut self.second]
    }

    /// Kills the first gateway, and starts it again as soon as the kernel is through with it, as a supervisor would.
    /// Returns how long that took, in seconds.
    pub(super) fn kill_first(&mut self) -> Result<f64, RunError> {
        let start = boot_us();
        self.first.kill()?;
        let gone_s = (boot_us() - start) as f64 / 1e6;
        let plan = Plan {
            id: 1,
            port: self.first_port,
            shards: self.shards,
            slots: slots(self.sessions),
            heartbeat_ms: self.heartbeat_ms,
            io: &self.io,
            links: self.links,
        };
        self.first = start_gateway("the first gateway", &self.scratch, &plan)?;
        Ok(gone_s)
    }

    /// Ends everything. The gateway with all the sessions is killed: to drain it is no part of this run.
    pub(super) fn stop(mut self) {
        let _ = self.first.kill();
        self.second.stop();
        self.dispatcher.stop();
    }
}

/// Slots of the first gateway: the probes are there too.
fn slots(sessions: u32) -> u32 {
    capacity(sessions + 2 * PAIRS)
}

struct Plan<'a> {
    id: u16,
    port: u16,
    shards: usize,
    slots: u32,
    heartbeat_ms: u64,
    io: &'a str,
    links: SocketAddr,
}

/// The head of the line: which server, and that the directory stays as long as this process does.
fn own(server: &str, scratch: &Scratch) -> Vec<OsString> {
    vec![
        server.into(),
        flag("scratch", scratch.path()),
        flag("kept-by", process::id().to_string()),
        "--".into(),
    ]
}

fn start_dispatcher(scratch: &Arc<Scratch>) -> Result<Child, RunError> {
    let mut args = own("dispatcher", scratch);
    args.extend([
        flag("listen", "127.0.0.1:0"),
        flag("admin", "127.0.0.1:0"),
        flag("name", "d1"),
        flag("store", "embedded"),
        flag("data-dir", scratch.path().join("data")),
        flag("shards", "1"),
    ]);
    Ok(Child::start("the dispatcher", args, Arc::clone(scratch))?)
}

fn start_gateway(what: &'static str, scratch: &Arc<Scratch>, plan: &Plan<'_>) -> Result<Child, RunError> {
    let mut args = own("gateway", scratch);
    args.extend([
        flag("listen", format!("127.0.0.1:{}", plan.port)),
        flag("admin", "127.0.0.1:0"),
        flag("dispatchers", plan.links.to_string()),
        flag("gateway-id", plan.id.to_string()),
        flag("shards", plan.shards.to_string()),
        flag("capacity", plan.slots.to_string()),
        flag("heartbeat-interval-ms", plan.heartbeat_ms.to_string()),
        flag("io", plan.io),
        flag("auth-jwks-file", scratch.path().join("jwks.json")),
        flag("auth-ticket-secret-file", scratch.path().join("tickets")),
    ]);
    Ok(Child::start(what, args, Arc::clone(scratch))?)
}

/// A port that nobody listens on now.
fn free_port() -> Result<u16, RunError> {
    let mut rng = crate::rng::Rng::from_system();
    for _ in 0..100 {
        let port = PORTS.start + rng.below(u64::from(PORTS.end - PORTS.start)) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(RunError::Stuck(format!("no free port from {} to {}", PORTS.start, PORTS.end)))
}
