//! From arguments to a running gateway: the order in which its parts start, and what it says meanwhile.
//!
//! The dispatcher of a standalone process is not known here: the caller's `main.rs` hands in how to start one.

use std::error::Error;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use clap::{Arg, ArgMatches, Command};
use millrace_edge::mailbox::mailbox;
use millrace_edge::wake::Waker;
use millrace_edge::{affinity, clock, memory, rlimit};
use millrace_protocol::conversation::is_name;
use millrace_protocol::ids::Partition;

use super::admin::{Admin, ControlCounts};
use super::auth::Keys;
use super::config::{self, Settings};
use super::control::{self, Control, End};
use super::lease::Keeper;
use super::link::{LocalConnect, Resolver};
use super::log;
use super::shard::{self, Spec, Started};
use super::signing::{self, Signer};
use super::talk::{TO_CONTROL_MAX, TO_SHARD_MAX};
use super::ticket::Tickets;

/// The exit status for a configuration that can't be used.
const EXIT_CONFIG: u8 = 2;

/// What the dispatcher of a standalone process needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandaloneSettings {
    /// Directory of its store; made if it is not there.
    pub data_dir: PathBuf,
    /// Name of the cluster, as in the gateway's hellos.
    pub cluster: String,
    /// Slices of the key space.
    pub partitions: u16,
    /// A file that says what messages may do.
    pub policies: Option<PathBuf>,
    /// Events that each partition keeps, about; 0: none.
    pub events_max: u64,
}

/// How the dispatcher in this process is doing.
#[derive(Clone)]
pub struct LocalProbe {
    /// Why it can't be relied on, if so.
    pub trouble: Arc<dyn Fn() -> Option<String> + Send + Sync>,
    /// Its store's counters, for metrics: names end in `_total` for those that only grow.
    pub counters: Arc<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>,
    /// Its events as JSON: the newest of each partition, or those of a partition after an id. Waits for the store.
    pub events: EventFeed,
}

/// See [`LocalProbe::events`].
pub type EventFeed = Arc<dyn Fn(Option<(Partition, u64)>) -> Result<String, String> + Send + Sync>;

/// A dispatcher in this process.
pub struct LocalDispatcher {
    /// Connects a shard.
    pub connect: LocalConnect,
    /// Watches it.
    pub probe: LocalProbe,
    /// Finishes what is under way and closes the store, within that time.
    pub stop: Box<dyn FnOnce(Duration)>,
}

/// Anything that keeps a gateway from starting.
type Failure = Box<dyn Error>;

/// Runs the program: the gateway, or one of its subcommands. `start_local` starts the dispatcher of a standalone
/// process; it is called only then.
pub fn run(
    arguments: impl Iterator<Item = OsString>,
    start_local: impl FnOnce(&StandaloneSettings) -> Result<LocalDispatcher, Box<dyn Error>>,
) -> ExitCode {
    // A kernel without the switch costs memory, nothing else.
    let _ = memory::use_small_pages();
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => {
            // Help and version are no errors, and go to standard output.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_CONFIG } else { 0 });
        }
    };
    let (ours, token) = match matches.subcommand() {
        Some(("token", ours)) => (ours, true),
        _ => (&matches, false),
    };
    let settings = match config::load(ours, std::env::vars_os()) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let result = if token { print_token(ours, &settings) } else { serve(settings, start_local) };
    result.unwrap_or_else(|error| {
        log::error(format_args!("{error}"));
        ExitCode::FAILURE
    })
}

fn command() -> Command {
    let token = Command::new("token")
        .about("Prints a login token, signed with the key of a standalone gateway or the configured HS256 secret")
        .arg(Arg::new("user").long("user").required(true).value_name("NAME").help("Whom the token is for"))
        .arg(Arg::new("ttl").long("ttl").default_value("24h").value_name("TIME").help("90s, 15m, 24h, 30d"));
    let gateway = Command::new("millrace-gateway")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Holds client connections and forwards them to dispatchers; without any configured, runs one itself")
        .after_help(
            "Settings come from --config FILE (TOML), then environment variables (MILLRACE_LISTEN, …), then flags.\n\
             The first token: millrace-gateway token --user alice",
        );
    config::with_flags(gateway).subcommand(config::with_flags(token))
}

fn print_token(matches: &ArgMatches, settings: &Settings) -> Result<ExitCode, Failure> {
    let user = matches.get_one::<String>("user").map_or("", String::as_str);
    if !is_name(user) {
        return Err(format!("--user {user:?}: expected 1-64 of A-Z a-z 0-9 . _ - @ +").into());
    }
    let ttl = signing::parse_ttl(matches.get_one::<String>("ttl").map_or("", String::as_str));
    let ttl = ttl.map_err(|error| format!("--ttl {error}"))?;
    let signer = Signer::for_settings(settings)?
        .ok_or("this configuration holds public keys only: tokens come from whoever has the private ones")?;
    println!("{}", signer.token(user, ttl)?);
    Ok(ExitCode::SUCCESS)
}

fn serve(
    settings: Settings,
    start_local: impl FnOnce(&StandaloneSettings) -> Result<LocalDispatcher, Box<dyn Error>>,
) -> Result<ExitCode, Failure> {
    let settings = Arc::new(settings);
    // Before any thread starts, so that the handlers are there for a signal that comes early.
    let draining = control::arm_signals()?;
    match rlimit::raise_nofile() {
        Ok(limit) => log::info(format_args!("open files: at most {}", limit.soft)),
        Err(error) => log::warn(format_args!("the limit of open files can't be raised: {error}")),
    }
    let own = Signer::for_settings(&settings)?;
    let keys = Arc::new(Keys::load(&settings.auth, own.as_ref())?);
    let tickets = Tickets::load(&settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // The admin port first: when it is taken, nothing else has begun.
    let listener = std::net::TcpListener::bind(settings.admin)
        .map_err(|error| format!("admin: can't listen on {}: {error}", settings.admin))?;
    listener.set_nonblocking(true)?;
    let admin_address = listener.local_addr()?;
    if settings.listen.port() != 0 {
        await_port(settings.listen)?;
    }
    let local = match settings.is_standalone() {
        true => Some(start_standalone(&settings, start_local)?),
        false => None,
    };
    let (control, inbox) = tokio::sync::mpsc::channel(TO_CONTROL_MAX);
    let incarnation = u64::from_ne_bytes(signing::random()?);
    let parts =
        Parts { settings: &settings, keys: &keys, tickets: &tickets, incarnation, control, local: &local };
    let (shards, started) = start_shards(&parts)?;
    drop(parts);
    announce(&settings, &started, admin_address, keys.len());
    let counts = ControlCounts::default();
    counts.keys.store(keys.len() as u64, std::sync::atomic::Ordering::Relaxed);
    let admin = Admin {
        shards,
        started_us: clock::boot_us(),
        draining: AtomicBool::new(false),
        local: local.as_ref().map(|local| local.probe.clone()),
        counts,
    };
    let keeper = Keeper::new(incarnation, settings.lease_ttl);
    let control =
        Control { admin: Arc::new(admin), settings: Arc::clone(&settings), own, keeper, inbox, refusals: 0 };
    let end = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        control.run(listener, &draining).await
    })?;
    // The shards' threads end with the process: their rings are best closed by the kernel.
    match end {
        End::Drained(left) => {
            if let Some(local) = local {
                (local.stop)(left);
            }
            log::info(format_args!("drained, exiting"));
            Ok(ExitCode::SUCCESS)
        }
        End::Failed => Ok(ExitCode::FAILURE),
    }
}

/// How long a port that somebody holds is waited for: after a gateway with a million connections was killed, the kernel
/// takes its rings apart for up to some 20 s beyond its end, and listeners lie in them.
const PORT_WITHIN: Duration = Duration::from_secs(30);

/// Waits until nobody listens on `address`. The shards' listeners share their port among themselves, and would with
/// another gateway's: half of the clients would then be at the other one. The socket here shares with nobody.
fn await_port(address: SocketAddr) -> Result<(), String> {
    let end = Instant::now() + PORT_WITHIN;
    let mut told = false;
    loop {
        match std::net::TcpListener::bind(address) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                if !told {
                    told = true;
                    log::warn(format_args!(
                        "listen: {address} is in use; waiting up to {} s, in case a killed gateway still holds it",
                        PORT_WITHIN.as_secs()
                    ));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(format!("listen: can't listen on {address}: {error}")),
        }
    }
}

fn start_standalone(
    settings: &Settings,
    start_local: impl FnOnce(&StandaloneSettings) -> Result<LocalDispatcher, Box<dyn Error>>,
) -> Result<LocalDispatcher, Failure> {
    let standalone = StandaloneSettings {
        data_dir: settings.data_dir.join("store"),
        cluster: settings.cluster.clone(),
        partitions: settings.partitions,
        policies: settings.policies.clone(),
        events_max: settings.events_max,
    };
    let local =
        start_local(&standalone).map_err(|error| format!("the dispatcher in this process: {error}"))?;
    log::info(format_args!("standalone: messages are stored in {}", standalone.data_dir.display()));
    Ok(local)
}

/// What all shards are started with.
struct Parts<'a> {
    settings: &'a Arc<Settings>,
    keys: &'a Arc<Keys>,
    tickets: &'a Tickets,
    incarnation: u64,
    control: tokio::sync::mpsc::Sender<super::talk::ToControl>,
    local: &'a Option<LocalDispatcher>,
}

type Inbox = millrace_edge::mailbox::Sender<super::talk::ToShard>;

/// Starts the shards one after the other: the first may choose the port that the others then share.
fn start_shards(parts: &Parts<'_>) -> Result<(Vec<Inbox>, Vec<Started>), Failure> {
    let settings = parts.settings;
    let cpus = affinity::allowed_cpus().unwrap_or_default();
    let resolver = if settings.is_standalone() { None } else { Some(Resolver::start()?) };
    let mut inboxes = Vec::new();
    let mut all: Vec<Started> = Vec::new();
    for shard in 0..settings.shards {
        let waker = Waker::new()?;
        let (inbox_sender, inbox) = mailbox(TO_SHARD_MAX, waker.clone());
        inboxes.push(inbox_sender.clone());
        let listen = all.first().map_or(settings.listen, |first| first.address);
        let started = shard::start(Spec {
            shard,
            // More shards than CPUs (for tests) are left to the scheduler.
            cpu: if usize::from(settings.shards) <= cpus.len() {
                cpus.get(usize::from(shard)).copied()
            } else {
                None
            },
            listen,
            settings: Arc::clone(settings),
            incarnation: parts.incarnation,
            keys: Arc::clone(parts.keys),
            tickets: parts.tickets.clone(),
            waker,
            inbox,
            inbox_sender,
            control: parts.control.clone(),
            local: parts.local.as_ref().map(|local| Arc::clone(&local.connect)),
            resolver: resolver.clone(),
        });
        all.push(started.map_err(|error| format!("shard {shard}, listening on {listen}: {error}"))?);
    }
    Ok((inboxes, all))
}

/// Descriptors beside those of connections: rings, links, the store's files, admin HTTP.
const FILES_BESIDE: u64 = 128;

/// What to say when the limit of open files holds fewer connections than there are slots. On io_uring connections take
/// none, but each bank does.
fn files_short(backend: &str, slots: u64, banks: u64, files_max: u64) -> Option<String> {
    let uring = backend == "io_uring";
    let wanted = FILES_BESIDE + if uring { banks } else { slots };
    (files_max < wanted).then(|| {
        format!(
            "{slots} slots, but with {backend} they need {wanted} open files, and {files_max} are allowed: further \
             clients will wait unanswered. Raise the limit (ulimit -n, LimitNOFILE=) or lower `capacity`"
        )
    })
}

/// Says what runs: for people on stderr, and in one line for programs on stdout.
fn announce(settings: &Settings, started: &[Started], admin: SocketAddr, keys: usize) {
    let Some(first) = started.first() else { return };
    let banks: u32 = started.iter().map(|shard| shard.shape.banks).sum();
    let slots: u64 = started.iter().map(|shard| u64::from(shard.shape.capacity)).sum();
    log::info(format_args!("clients: {} (framed TCP and WebSocket); admin: http://{admin}", first.address));
    log::info(format_args!("I/O: {}", first.why));
    log::info(format_args!(
        "{} shards, {banks} banks, {slots} slots; links and timers on {}",
        started.len(),
        first.driver
    ));
    let files_max = rlimit::nofile().map_or(u64::MAX, |limit| limit.soft);
    if let Some(warning) = files_short(first.shape.backend, slots, banks.into(), files_max) {
        log::warn(format_args!("{warning}"));
    }
    match settings.is_standalone() {
        true => log::info(format_args!(
            "gateway {} of cluster {}, standalone",
            settings.gateway_id, settings.cluster
        )),
        false => log::info(format_args!(
            "gateway {} of cluster {}, dispatchers: {}",
            settings.gateway_id,
            settings.cluster,
            settings.dispatchers.join(", ")
        )),
    }
    let can_sign = settings.auth.hs256_secret_file.is_some() || settings.auth.jwks_file.is_none();
    let hint = if can_sign { "; the first one: millrace-gateway token --user alice" } else { "" };
    log::info(format_args!("tokens are checked against {keys} keys{hint}"));
    println!("listening tcp={} admin={admin}", first.address);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_limit_that_is_too_low_is_said() {
        assert_eq!(files_short("epoll", 200_000, 2, 1_000_000), None);
        assert!(
            files_short("epoll", 200_000, 2, 20_000).is_some_and(|text| text.contains("200128 open files"))
        );
        // With direct descriptors only the banks count, which are smaller under a low limit, and so many.
        assert_eq!(files_short("io_uring", 200_000, 14, 20_000), None);
        assert!(files_short("io_uring", 200_000, 3_126, 64).is_some());
    }
}
