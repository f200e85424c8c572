//! The store of a fleet: everything in Redis, by scripts that check the fence before they write.
//!
//! One thread of its own runs the client (fred, on a current-thread tokio runtime) and carries out rounds
//! ([`round`]); [`keys`] says where everything lies. What a script must do is in `scripts/`.
//!
//! The rules that keep it right: nothing is ever sent twice on a guess (an append whose outcome is unknown is found out by
//! its position); every wait is bounded; and while the server is away, jobs are refused rather than kept.

mod append;
mod claim;
mod command;
mod job;
mod keys;
mod replicas;
mod reply;
mod round;
mod sentinels;
mod session;
mod sweep;
mod topology;
mod view;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::Builder;
use fred::types::config::{Config, ReconnectPolicy, UnresponsiveConfig};
use tokio::sync::Notify;

use self::keys::Keys;
use self::replicas::Mark;
use self::round::Rounds;
use self::sentinels::Sentinels;
use self::session::{REPLY_WAIT, Session};
use self::sweep::Sweeper;
pub use self::topology::Topology;
use self::topology::without_password;
use super::intake::Intake;
use super::{Durability, Job, Replies, Store};

/// Between tries to connect: this much at first, doubling to the other, with jitter.
const RECONNECT_MS_MIN: u32 = 50;
/// See above: a fleet that lost its Redis must not storm it when it is back, and service must be back within seconds.
const RECONNECT_MS_MAX: u32 = 1_000;
/// Added to each wait at most, at random.
const RECONNECT_JITTER_MS: u32 = 250;
/// Between tries of the first connection.
const FIRST_RETRY: Duration = Duration::from_millis(200);
/// How long dropping the store waits for its thread.
const DROP_WAIT: Duration = Duration::from_secs(5);

/// How to use a Redis.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the cluster: several may share a Redis. `A-Z a-z 0-9 . _ -`, 1-64 bytes.
    pub cluster: String,
    /// Partitions of the cluster; fixed when it is new.
    pub partitions: u16,
    /// What the addresses are.
    pub topology: Topology,
    /// What an answer waits for.
    pub durability: Durability,
    /// Events kept in each partition's stream, about; 0: none are written.
    pub events_max: u64,
    /// How long [`RedisStore::connect`] tries.
    pub connect_timeout: Duration,
}

impl Settings {
    /// Settings for one server that answers as it likes, with 5 s for the first connection.
    pub fn new(cluster: impl Into<String>, partitions: u16) -> Self {
        Self {
            cluster: cluster.into(),
            partitions,
            topology: Topology::Single,
            durability: Durability::Async,
            events_max: 0,
            connect_timeout: Duration::from_secs(5),
        }
    }
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address can't be used.
    #[error(
        "{url} is no address of a Redis (redis://[user:password@]host:port[,host:port…][/database]): {reason}"
    )]
    Url {
        /// Without user and password.
        url: String,
        /// Why.
        reason: String,
    },
    /// The cluster's name can't be part of a key.
    #[error("the cluster name «{0}» must be 1-64 of A-Z a-z 0-9 . _ -")]
    Cluster(String),
    /// Nobody answered, or not as a Redis does.
    #[error("no Redis at {url} within {} ms: {reason}", .waited.as_millis())]
    Unreachable {
        /// Without user and password.
        url: String,
        /// How long it was tried.
        waited: Duration,
        /// What the last try met.
        reason: String,
    },
    /// The cluster there is of another format or number of partitions.
    #[error(
        "the cluster in {url} is «{found}» (format:partitions), the configuration says «{wanted}»; it can't be changed"
    )]
    Foreign {
        /// Without user and password.
        url: String,
        /// What was found.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// The system refused a thread or its runtime.
    #[error("the store's thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// What is wrong with a server that answers.
#[derive(Clone, Debug, Default)]
struct Trouble {
    /// Another format or number of partitions.
    foreign: Option<String>,
    eviction_policy: String,
    /// Why it may answer before it has synced, where that was asked for.
    not_synced: Option<String>,
    /// Why the last round did not get its replicas, where that was asked for.
    unmet: Option<String>,
}

/// See the module's head.
pub struct RedisStore {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    intake: Intake,
    bell: Arc<Notify>,
    connected: AtomicBool,
    trouble: Mutex<Trouble>,
    sweeper: Sweeper,
    rounds: AtomicU64,
    appends: AtomicU64,
    events_max: u64,
    durability: Durability,
    address: String,
}

impl RedisStore {
    /// Connects to the Redis at `url` (`redis://[user:password@]host[:port][,host[:port]…][/database]`, several as
    /// `settings.topology` has it) and waits until it answers.
    ///
    /// # Errors
    /// See [`ConnectError`]; nobody answering is one after `settings.connect_timeout`.
    pub fn connect(url: &str, settings: Settings) -> Result<Self, ConnectError> {
        let address = without_password(url);
        let config = topology::config(url, &settings.topology)
            .map_err(|e| ConnectError::Url { url: address.clone(), reason: e.details().to_owned() })?;
        if !is_cluster_name(&settings.cluster) {
            return Err(ConnectError::Cluster(settings.cluster));
        }
        let bell = Arc::new(Notify::new());
        let ring = Arc::clone(&bell);
        let shared = Arc::new(Shared {
            intake: Intake::new(Box::new(move || ring.notify_one())),
            bell,
            connected: AtomicBool::new(true),
            trouble: Mutex::default(),
            sweeper: Sweeper::default(),
            rounds: AtomicU64::new(0),
            appends: AtomicU64::new(0),
            events_max: settings.events_max,
            durability: settings.durability,
            address,
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (tell, hear) = std::sync::mpsc::sync_channel(1);
        let own = Arc::clone(&shared);
        let keys = Keys::new(&settings.cluster, settings.partitions);
        let thread = std::thread::Builder::new().name("store".into()).spawn(move || {
            runtime.block_on(async move {
                match first(&own, config, &keys, settings.connect_timeout).await {
                    Err(error) => drop(tell.send(Err(error))),
                    Ok((session, mark)) => {
                        let config = session.client.client_config();
                        let sentinels = Sentinels::of(&config, |config| self::client(config).ok());
                        if let Some(sentinels) = &sentinels {
                            sentinels.ask().await;
                        }
                        drop(tell.send(Ok(())));
                        let client = session.client.clone();
                        match sentinels {
                            None => Rounds::new(own, session, keys, mark, None).run().await,
                            Some(sentinels) => tokio::select! {
                                () = Rounds::new(own, session, keys, mark, Some(sentinels.agreement())).run() => {}
                                () = sentinels.watch(client.clone()) => {}
                            },
                        }
                        let _ = tokio::time::timeout(REPLY_WAIT, client.quit()).await;
                    }
                }
            });
        })?;
        match hear.recv() {
            Ok(Ok(())) => Ok(Self { shared, thread: Mutex::new(Some(thread)) }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ConnectError::Thread(std::io::Error::other("it panicked"))),
        }
    }

    /// What the server does when its memory is full; anything but "noeviction" can throw away fences and messages.
    pub fn eviction_policy(&self) -> String {
        self.shared.trouble_now().eviction_policy.clone()
    }
}

impl Store for RedisStore {
    fn submit(&self, jobs: Vec<Job>, replies: &Replies) {
        if self.shared.connected.load(Ordering::Acquire) {
            self.shared.intake.push(jobs, replies);
        } else {
            let reason = self.shared.trouble().unwrap_or_else(|| "it is not connected".into());
            self.shared.intake.refuse(jobs, replies, &reason);
        }
    }

    fn name(&self) -> &'static str {
        "redis"
    }

    fn trouble(&self) -> Option<String> {
        self.shared.trouble()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut counters = vec![
            ("store_rounds_total", self.shared.rounds.load(Ordering::Relaxed)),
            ("store_appends_total", self.shared.appends.load(Ordering::Relaxed)),
            ("store_routes_swept_total", self.shared.sweeper.swept()),
        ];
        counters.extend(self.shared.intake.counters());
        counters
    }

    fn close(&self, timeout: Duration) {
        self.shared.intake.close();
        let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let deadline = Instant::now() + timeout;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
    }
}

impl Drop for RedisStore {
    fn drop(&mut self) {
        self.close(DROP_WAIT);
    }
}

impl Shared {
    fn trouble_now(&self) -> std::sync::MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_trouble(&self, trouble: Trouble) {
        *self.trouble_now() = trouble;
    }

    fn set_unmet(&self, unmet: Option<String>) {
        self.trouble_now().unmet = unmet;
    }

    fn is_foreign(&self) -> bool {
        self.trouble_now().foreign.is_some()
    }

    fn trouble(&self) -> Option<String> {
        let address = &self.address;
        if !self.connected.load(Ordering::Acquire) {
            return Some(format!("the Redis at {address} is out of reach"));
        }
        let trouble = self.trouble_now();
        if let Some(found) = &trouble.foreign {
            return Some(format!("the Redis at {address} holds another cluster of this name: «{found}»"));
        }
        let policy = &trouble.eviction_policy;
        if policy != "noeviction" {
            return Some(format!(
                "the Redis at {address} has maxmemory-policy {policy}; it must be noeviction, or messages get lost"
            ));
        }
        if let Some(what) = &trouble.not_synced {
            return Some(format!("the Redis at {address}: {what}"));
        }
        let unmet = trouble.unmet.as_ref()?;
        Some(format!("the Redis at {address}: nothing is answered, because {unmet}"))
    }
}

/// The first connection, tried until it works or the time is up.
async fn first(
    shared: &Shared,
    config: Config,
    keys: &Keys,
    wait: Duration,
) -> Result<(Session, Mark), ConnectError> {
    let url = || shared.address.clone();
    let begun = Instant::now();
    let mut reason = "no answer".to_owned();
    while let Some(left) = wait.checked_sub(begun.elapsed()) {
        let unreachable = |e: &Error| ConnectError::Unreachable {
            url: url(),
            waited: begun.elapsed(),
            reason: e.to_string(),
        };
        let client = client(config.clone()).map_err(|e| unreachable(&e))?;
        match tokio::time::timeout(left, client.init()).await {
            Err(_) => break,
            Ok(Err(error)) if matches!(error.kind(), ErrorKind::Auth | ErrorKind::Config) => {
                return Err(unreachable(&error));
            }
            Ok(Err(error)) => reason = error.to_string(),
            Ok(Ok(_)) => {
                let session = Session::new(client);
                match round::look(&session, keys, shared.durability, &Mark::default()).await {
                    Err(error) => reason = error.to_string(),
                    Ok((Trouble { foreign: Some(found), .. }, _)) => {
                        let wanted = format!("{}:{}", keys::FORMAT, keys.partitions());
                        return Err(ConnectError::Foreign { url: url(), found, wanted });
                    }
                    Ok((trouble, mark)) => {
                        shared.set_trouble(trouble);
                        return Ok((session, mark));
                    }
                }
            }
        }
        tokio::time::sleep(FIRST_RETRY.min(wait.saturating_sub(begun.elapsed()))).await;
    }
    Err(ConnectError::Unreachable { url: url(), waited: begun.elapsed(), reason })
}

/// A client that never sends a command twice, and never gives up reconnecting.
fn client(config: Config) -> Result<Client, Error> {
    let mut policy = ReconnectPolicy::new_exponential(0, RECONNECT_MS_MIN, RECONNECT_MS_MAX, 2);
    policy.set_jitter(RECONNECT_JITTER_MS);
    Builder::from_config(config)
        .with_connection_config(|connection| {
            connection.connection_timeout = REPLY_WAIT;
            connection.internal_command_timeout = REPLY_WAIT;
            connection.max_command_attempts = 1;
            // Whoever follows a redirection may come after another that did not have to.
            connection.max_redirections = 0;
            // A connection that is silent for that long is dropped: what was sent on it must not be answered later.
            connection.unresponsive =
                UnresponsiveConfig { max_timeout: Some(REPLY_WAIT), interval: REPLY_WAIT / 4 };
        })
        .with_performance_config(|performance| performance.default_command_timeout = REPLY_WAIT)
        .set_policy(policy)
        .build()
}

fn is_cluster_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_there_is_an_error_in_time() {
        // Bound and dropped: nothing listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("redis://:secret@127.0.0.1:{port}");
        let settings = Settings { connect_timeout: Duration::from_millis(600), ..Settings::new("t", 4) };
        let begun = Instant::now();
        let error = RedisStore::connect(&url, settings).err().expect("nobody is there").to_string();
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        assert!(error.contains(&format!("redis://127.0.0.1:{port}")) && !error.contains("secret"), "{error}");
        assert!(matches!(
            RedisStore::connect("redis://127.0.0.1:1", Settings::new("{x}", 4)),
            Err(ConnectError::Cluster(_))
        ));
    }
}
