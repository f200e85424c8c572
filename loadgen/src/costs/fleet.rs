//! The servers of one store: a gateway, a dispatcher, and Redis where it is the store; each a process of its own, so
//! that the CPU of each can be told apart.
//!
//! The rule: what is not the store's business is the same for all of them, one shard each and the same limits.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::report::Cpu;
use super::store::Store;
use crate::child::{Child, Scratch, Surroundings, flag};
use crate::measure;
use crate::rig::RunError;
use crate::verify::{Durability, redis};

/// All of it is ready within this time.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// The admin port answers within this time.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Connections that the gateway has room for.
const CAPACITY: u32 = 4_096;

/// Long enough that clients which are busy all the time send none.
const HEARTBEAT_MS: u32 = 120_000;

/// Ports for Redis: below the ports of outgoing connections, so that no client has one.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// The dispatcher's counters that batches are told by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) messages: u64,
    pub(super) batches: u64,
    pub(super) rounds: u64,
}

/// All server processes. They end when this is dropped, clients' first.
pub(super) struct Fleet {
    gateway: Child,
    dispatcher: Child,
    redis: Vec<Child>,
    stop: Arc<AtomicBool>,
}

impl Fleet {
    /// Starts all of them; logins are taken when this returns.
    ///
    /// # Errors
    /// A process that does not start, with the end of its log.
    pub(super) fn start(store: Store, jwks: &str, stop: &Arc<AtomicBool>) -> Result<Self, RunError> {
        let scratch = Scratch::new()?;
        scratch.write_keys(jwks)?;
        let mut redis = Vec::new();
        let mut primary = None;
        for name in ["the Redis", "the replica"].into_iter().take(store.redis_servers()) {
            let (child, address) = start_redis(name, store, primary, &scratch, stop)?;
            redis.push(child);
            await_true(stop, "Redis", || primary.is_none() || redis::is_in_step(address))?;
            primary = primary.or(Some(address));
        }
        let dispatcher =
            Child::start("the dispatcher", dispatcher(store, primary, &scratch), scratch.clone())?;
        let links = dispatcher.address("links").ok_or(RunError::NoAddress("the dispatcher"))?;
        let gateway = Child::start("the gateway", gateway(links, &scratch), scratch)?;
        if !gateway.await_ready(READY_WITHIN) {
            let (seconds, log) = (READY_WITHIN.as_secs(), gateway.log_tail());
            return Err(RunError::Stuck(format!("the gateway took no logins within {seconds} s{log}")));
        }
        Ok(Fleet { gateway, dispatcher, redis, stop: Arc::clone(stop) })
    }

    /// Where clients go.
    ///
    /// # Errors
    /// The gateway did not say so.
    pub(super) fn address(&self) -> Result<SocketAddr, RunError> {
        self.gateway.address("tcp").ok_or(RunError::NoAddress("the gateway"))
    }

    /// Whether all is as it should be.
    ///
    /// # Errors
    /// Ctrl-C was pressed, or a server has ended.
    pub(super) fn look(&mut self) -> Result<(), RunError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(RunError::Interrupted);
        }
        for child in self.redis.iter_mut().chain([&mut self.dispatcher, &mut self.gateway]) {
            child.check()?;
        }
        Ok(())
    }

    /// CPU that each has used since its start.
    ///
    /// # Errors
    /// One is gone.
    pub(super) fn cpu(&self) -> Result<Cpu, RunError> {
        let mut redis_us = 0;
        for warden in &self.redis {
            // The warden is none of it.
            let pid = warden.said("pid").and_then(|pid| pid.parse().ok());
            redis_us += measure::cpu_us(pid.ok_or(RunError::NoAddress("a Redis"))?)?;
        }
        Ok(Cpu {
            gateway_us: measure::cpu_us(self.gateway.pid())?,
            dispatcher_us: measure::cpu_us(self.dispatcher.pid())?,
            redis_us,
        })
    }

    /// The dispatcher's counters.
    ///
    /// # Errors
    /// Its admin port does not answer, or not with them.
    pub(super) fn counters(&self) -> Result<Counters, RunError> {
        let admin = self.dispatcher.address("admin").ok_or(RunError::NoAddress("the dispatcher"))?;
        let mut stream = TcpStream::connect_timeout(&admin, ANSWER_WITHIN)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: dispatcher\r\nConnection: close\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        let missing = || RunError::Stuck("the dispatcher's metrics lack what batches are told by".into());
        parse(&page).ok_or_else(missing)
    }
}

/// Reads the counters from a page of metrics, shards added up.
fn parse(page: &str) -> Option<Counters> {
    let sum = |name: &str| {
        let values = page.lines().filter_map(|line| {
            let rest = line.strip_prefix("millrace_dispatcher_")?.strip_prefix(name)?;
            rest.strip_prefix('{').map_or(Some(rest), |labels| labels.split_once('}').map(|(_, rest)| rest))
        });
        values.map(|value| value.trim().parse::<u64>().ok()).reduce(|sum, value| Some(sum? + value?))?
    };
    Some(Counters {
        messages: sum("messages_total")?,
        batches: sum("batches_total")?,
        rounds: sum("store_rounds_total")?,
    })
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

fn dispatcher(store: Store, redis: Option<SocketAddr>, scratch: &Scratch) -> Vec<OsString> {
    let mut args = own("dispatcher", scratch);
    args.extend([
        flag("listen", "127.0.0.1:0"),
        flag("admin", "127.0.0.1:0"),
        flag("name", "d1"),
        flag("shards", "1"),
        flag("durability", store.durability()),
    ]);
    match redis {
        Some(at) => args.push(flag("redis", format!("redis://{at}"))),
        None => args.extend([flag("store", "embedded"), flag("data-dir", scratch.path().join("data"))]),
    }
    args
}

fn gateway(links: SocketAddr, scratch: &Scratch) -> Vec<OsString> {
    let mut args = own("gateway", scratch);
    args.extend([
        flag("listen", "127.0.0.1:0"),
        flag("admin", "127.0.0.1:0"),
        flag("dispatchers", links.to_string()),
        flag("gateway-id", "1"),
        flag("shards", "1"),
        flag("capacity", CAPACITY.to_string()),
        flag("heartbeat-interval-ms", HEARTBEAT_MS.to_string()),
        flag("auth-jwks-file", scratch.path().join("jwks.json")),
        flag("auth-ticket-secret-file", scratch.path().join("tickets")),
    ]);
    args
}

fn start_redis(
    name: &'static str,
    store: Store,
    primary: Option<SocketAddr>,
    scratch: &Arc<Scratch>,
    stop: &Arc<AtomicBool>,
) -> Result<(Child, SocketAddr), RunError> {
    let program = redis::server().ok_or_else(|| RunError::Stuck("redis-server is missing".into()))?;
    let address = free_address()?;
    let dir = scratch.path().join(format!("redis-{}", address.port()));
    std::fs::create_dir_all(&dir)?;
    let mut args = vec![
        OsString::from("warden"),
        flag("scratch", scratch.path()),
        flag("address", address.to_string()),
        "--".into(),
        program.into(),
    ];
    args.extend(redis_line(store, address, &dir, primary).into_iter().map(OsString::from));
    let child = Child::spawn_in(name, args, Arc::clone(scratch), &Surroundings::default())?;
    await_true(stop, name, || child.said("pid").is_some())?;
    Ok((child, address))
}

fn redis_line(store: Store, at: SocketAddr, dir: &Path, primary: Option<SocketAddr>) -> Vec<String> {
    // What a replica adds is WAIT alone: its syncs are those of `async`.
    let durability = if store == Store::RedisFsync { Durability::Fsync } else { Durability::Async };
    let mut line = redis::line(at, dir, primary, durability);
    // A rewrite in the middle of a part would be a child's CPU, in one part and not in the next.
    line.extend(["--auto-aof-rewrite-percentage", "0"].map(str::to_owned));
    line
}

fn await_true(stop: &AtomicBool, what: &str, is_true: impl Fn() -> bool) -> Result<(), RunError> {
    let end = Instant::now() + READY_WITHIN;
    while !is_true() {
        if stop.load(Ordering::Relaxed) {
            return Err(RunError::Interrupted);
        }
        if Instant::now() > end {
            return Err(RunError::Stuck(format!("{what} is not ready within {} s", READY_WITHIN.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A port that nobody listens on now.
fn free_address() -> Result<SocketAddr, RunError> {
    let mut rng = crate::rng::Rng::from_system();
    for _ in 0..100 {
        let port = PORTS.start + rng.below(u64::from(PORTS.end - PORTS.start)) as u16;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err(RunError::Stuck(format!("no free port from {} to {}", PORTS.start, PORTS.end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_added_up_over_shards() {
        let page = "# HELP millrace_dispatcher_messages_total x\n\
                    millrace_dispatcher_messages_total{shard=\"0\"} 11\n\
                    millrace_dispatcher_messages_total{shard=\"1\"} 2\n\
                    millrace_dispatcher_batches_total{shard=\"0\"} 5\n\
                    millrace_dispatcher_store_rounds_total 3\n";
        assert_eq!(parse(page), Some(Counters { messages: 13, batches: 5, rounds: 3 }));
        assert_eq!(parse("millrace_dispatcher_messages_total 1\n"), None);
        assert_eq!(parse(""), None);
    }
}
