//! The store of a node that is alone: logs and groups in fjall, routes and leases in memory.
//!
//! One thread takes everything that is queued, carries it out ([`round`]) and answers after one fsync for all of it;
//! between two rounds it reads a slice of what is to be loaded ([`loads`]).
//! Routes and leases are answered at once on the caller's thread ([`directory`]). What a process that is alone needs no
//! store for ends with it: after a start nobody is connected and every partition is claimed anew, under a greater epoch.
//!
//! The rules that keep it right: one process has the directory, by a lock that ends with it; and a failed write is
//! the end: the store refuses everything and says so, once, to `on_fatal`.

mod answers;
mod append;
mod conversations;
mod directory;
mod disk;
mod leases;
mod lists;
mod loads;
mod lock;
mod log;
mod room;
mod round;
pub mod routes;

use std::fs::File;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use self::conversations::Reading;
use self::directory::Directory;
use self::disk::{Disk, FormatError};
use self::loads::{Load, Loads};
use self::room::Room;
use self::round::{Engine, Failure};
use super::intake::{Intake, LATE_RETRY, Submission};
use super::{ASYNC_SYNC_MS, Done, Durability, Job, Replies, Store, StoreError, Work};

/// Jobs of one round at about most: enough to fill an fsync, few enough to bound how long the first one waits.
const ROUND_JOBS_MAX: usize = 4_096;
/// How often an idle thread looks for leases that have ended.
const IDLE_TICK: Duration = Duration::from_millis(250);
/// Threads of the engine that flush and compact. With more than one, the first keeps itself for flushes, and while another
/// compacts it passes the compaction that it was asked for back to the queue, as fast as a core can.
const WORKERS: usize = 1;
/// Blocks read from disk that are kept in memory, bytes. Catching up reads the newest pages again and again.
const CACHE_BYTES: u64 = 32 << 20;
/// Journals at most, bytes, before the engine flushes keyspaces that hold old ones back. Its smallest is 64 MiB.
const JOURNAL_BYTES_MAX: u64 = 256 << 20;
/// [`Settings::disk_reserve_bytes`] unless said otherwise: the journals' limit, which is also what a compaction or two need.
const DISK_RESERVE_BYTES: u64 = 256 << 20;
/// How long dropping the store waits for its thread.
const DROP_WAIT: Duration = Duration::from_secs(5);

/// How to open a store.
#[derive(Clone)]
pub struct Settings {
    /// Partitions of the cluster; fixed when the directory is new.
    pub partitions: u16,
    /// [`Durability::Fsync`], or [`Durability::Async`].
    pub durability: Durability,
    /// With less room than this on its file system, bytes, the store takes in nothing that makes it grow, and says so. What
    /// it has taken in still needs room when it is put in order.
    pub disk_reserve_bytes: u64,
    /// Events are kept for this many positions of each partition (every write takes one); 0: none are kept.
    pub events_max: u64,
    /// Called once, from the store's thread, when the disk failed: the process must say so and exit.
    pub on_fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Settings {
    /// Settings whose `on_fatal` prints to stderr and aborts the process.
    pub fn new(partitions: u16) -> Self {
        let on_fatal = |reason: &str| {
            eprintln!("millrace: {reason}");
            std::process::abort();
        };
        Self {
            partitions,
            durability: Durability::Fsync,
            disk_reserve_bytes: DISK_RESERVE_BYTES,
            events_max: 0,
            on_fatal: Arc::new(on_fatal),
        }
    }
}

/// Why a directory can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{path} is in use by another millrace process (pid {pid}); one process has a store at a time")]
    Locked {
        /// The directory.
        path: PathBuf,
        /// What the lock file says; "unknown" if nothing.
        pid: String,
    },
    /// It was made by another version of millrace.
    #[error(
        "{path} has store format {found}, and this version reads format {wanted} alone; nothing there was changed: go on \
         with the version that made it, or begin with an empty directory"
    )]
    Format {
        /// The directory.
        path: PathBuf,
        /// What was found.
        found: u16,
        /// What could be read.
        wanted: u16,
    },
    /// It was made for another number of partitions.
    #[error(
        "{path} was made for {found} partitions, the configuration says {wanted}; the number can't be changed"
    )]
    Partitions {
        /// The directory.
        path: PathBuf,
        /// What the directory holds.
        found: u16,
        /// What was asked for.
        wanted: u16,
    },
    /// The directory can't be used.
    #[error("{path}: {error}")]
    Io {
        /// What could not be used.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The engine can't read it, or a record in it.
    #[error("{path} can't be opened: {reason}")]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// What the engine says.
        reason: String,
    },
}

/// See the module's head.
pub struct Embedded {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Last field: given up when everything else is gone.
    _lock: File,
}

struct Shared {
    intake: Intake,
    directory: Arc<Directory>,
    disk: Disk,
    room: Arc<Room>,
    failed: AtomicBool,
    failure: OnceLock<String>,
    rounds: AtomicU64,
    appends: AtomicU64,
}

impl Embedded {
    /// Opens the store in `dir`, which is made if it isn't there.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(dir: &Path, settings: Settings) -> Result<Self, OpenError> {
        Self::open_with(dir, settings, |_| ())
    }

    fn open_with(
        dir: &Path,
        settings: Settings,
        prepare: impl FnOnce(&mut Engine),
    ) -> Result<Self, OpenError> {
        let io = |error| OpenError::Io { path: dir.to_owned(), error };
        let unreadable = |reason: String| OpenError::Unreadable { path: dir.to_owned(), reason };
        std::fs::create_dir_all(dir).map_err(io)?;
        let lock = lock::lock(dir)?;
        let db = fjall::Database::builder(dir.join("db"))
            .cache_size(CACHE_BYTES)
            .worker_threads(WORKERS)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .open()
            .map_err(|e| unreadable(e.to_string()))?;
        let disk = Disk::open(db, settings.partitions).map_err(|error| match error {
            FormatError::Version(found) => {
                OpenError::Format { path: dir.to_owned(), found, wanted: disk::FORMAT }
            }
            FormatError::Partitions(found) => {
                OpenError::Partitions { path: dir.to_owned(), found, wanted: settings.partitions }
            }
            FormatError::Engine(error) => unreadable(error.to_string()),
        })?;
        let sync_within = match settings.durability {
            Durability::Async => Some(Duration::from_millis(ASYNC_SYNC_MS)),
            // There are no replicas: what is on the disk is the most that can be had.
            Durability::Fsync | Durability::Replicated(_) => None,
        };
        let directory = Arc::<Directory>::default();
        let room = Arc::new(Room::new(dir.to_owned(), settings.disk_reserve_bytes));
        let mut engine = Engine::new(
            disk.clone(),
            settings.partitions,
            NonZeroU64::new(settings.events_max),
            sync_within,
            Arc::clone(&room),
            Arc::clone(&directory),
        )
        .map_err(|e| unreadable(e.to_string()))?;
        prepare(&mut engine);
        let thread: Arc<OnceLock<Thread>> = Arc::default();
        let bell = Arc::clone(&thread);
        let ring = move || {
            if let Some(thread) = bell.get() {
                thread.unpark();
            }
        };
        let shared = Arc::new(Shared {
            intake: Intake::new(Box::new(ring)),
            directory,
            disk,
            room,
            failed: AtomicBool::new(false),
            failure: OnceLock::new(),
            rounds: AtomicU64::new(0),
            appends: AtomicU64::new(0),
        });
        let own = Arc::clone(&shared);
        let handle = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || run(&own, engine, &*settings.on_fatal))
            .map_err(io)?;
        // What was pushed before this was set is found when the thread first looks.
        let _ = thread.set(handle.thread().clone());
        handle.thread().unpark();
        Ok(Self { shared, thread: Mutex::new(Some(handle)), _lock: lock })
    }
}

impl Store for Embedded {
    fn submit(&self, jobs: Vec<Job>, replies: &Replies) {
        let shared = &*self.shared;
        if shared.failed.load(Ordering::Acquire) {
            shared.intake.refuse(jobs, replies, shared.failure());
            return;
        }
        if shared.intake.is_closed() {
            shared.intake.refuse(jobs, replies, "it is closed");
            return;
        }
        let (mut answers, mut queued) = (Vec::new(), Vec::new());
        for Job { ticket, work } in jobs {
            match shared.directory.at_once(&shared.disk, work) {
                Ok(outcome) => answers.push(Done { ticket, outcome }),
                Err(work) => queued.push(Job { ticket, work }),
            }
        }
        shared.intake.answer(replies, answers);
        shared.intake.push(queued, replies);
    }

    fn name(&self) -> &'static str {
        "embedded"
    }

    fn trouble(&self) -> Option<String> {
        if self.shared.failed.load(Ordering::Acquire) {
            return Some(self.shared.failure().to_owned());
        }
        self.shared.room.shortage()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut counters = vec![
            ("store_rounds_total", self.shared.rounds.load(Ordering::Relaxed)),
            ("store_appends_total", self.shared.appends.load(Ordering::Relaxed)),
        ];
        counters.extend(self.shared.intake.counters());
        counters.extend(self.shared.directory.counters());
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

impl Drop for Embedded {
    fn drop(&mut self) {
        self.close(DROP_WAIT);
    }
}

impl Shared {
    fn failure(&self) -> &str {
        self.failure.get().map_or("it failed", String::as_str)
    }
}

/// The store's thread: rounds while there is work, sweeps of dead gateways' routes in between, until closed and empty.
fn run(shared: &Shared, mut engine: Engine, on_fatal: &(dyn Fn(&str) + Send + Sync)) {
    let mut sweep = None;
    let mut loads = Loads::default();
    loop {
        let late = shared.intake.deliver_late();
        // Read before taking: what was pushed before the close is then taken too.
        let closed = shared.intake.is_closed();
        let submissions = shared.intake.take(ROUND_JOBS_MAX);
        let idle = submissions.is_empty();
        if !idle {
            round(shared, &mut engine, &mut loads, submissions, on_fatal);
        }
        let loaded = match shared.failure.get() {
            None => loads.slice(&engine),
            Some(reason) => loads.fail(reason),
        };
        for (replies, done) in loaded {
            shared.intake.answer(&replies, vec![done]);
        }
        sweep = shared.directory.sweep(sweep);
        if idle && closed && loads.is_empty() {
            // Mailboxes that stay full now belong to shards that have stopped.
            shared.intake.deliver_late();
            if shared.failure.get().is_none()
                && let Err(error) = engine.sync()
            {
                fail(shared, on_fatal, &error);
            }
            return;
        }
        if idle && sweep.is_none() && loads.is_empty() {
            let rest = if late { LATE_RETRY } else { IDLE_TICK };
            std::thread::park_timeout(engine.sync_due_in().map_or(rest, |due| due.min(rest)));
            if shared.failure.get().is_none()
                && let Err(error) = engine.sync_if_due()
            {
                fail(shared, on_fatal, &error);
            }
        }
    }
}

fn round(
    shared: &Shared,
    engine: &mut Engine,
    loads: &mut Loads,
    submissions: Vec<Submission>,
    on_fatal: &(dyn Fn(&str) + Send + Sync),
) {
    let mut answers: Vec<(Replies, Vec<Done>)> = Vec::with_capacity(submissions.len());
    let mut fatal = shared.failure.get().cloned();
    for Submission { jobs, replies } in submissions {
        let mut done = Vec::with_capacity(jobs.len());
        for Job { ticket, work } in jobs {
            if let Work::Load { partition, fence, conversation, stream } = work {
                let (replies, reading) = (replies.clone(), Reading::default());
                let load = Load { ticket, replies, partition, fence, conversation, stream, reading };
                if let Some((_, refused)) = loads.push(load) {
                    done.push(refused);
                }
                continue;
            }
            shared.appends.fetch_add(u64::from(matches!(work, Work::Append(_))), Ordering::Relaxed);
            let executed = match &fatal {
                Some(reason) => Err(StoreError::Unavailable(reason.clone()).into()),
                None => engine.execute(work),
            };
            let outcome = executed.map_err(|failure| match failure {
                Failure::Refused(error) => error,
                Failure::Fatal(error) => {
                    fatal = Some(fail(shared, on_fatal, &error));
                    StoreError::Unavailable(error.to_string())
                }
            });
            done.push(Done { ticket, outcome });
        }
        answers.push((replies, done));
    }
    if fatal.is_none()
        && let Err(error) = engine.finish()
    {
        fatal = Some(fail(shared, on_fatal, &error));
    }
    shared.rounds.fetch_add(1, Ordering::Relaxed);
    for (replies, mut done) in answers {
        if let Some(reason) = &fatal {
            for done in &mut done {
                done.outcome = Err(StoreError::Unavailable(reason.clone()));
            }
        }
        shared.intake.answer(&replies, done);
    }
    engine.spent.clear();
}

/// From here on everything is refused.
fn fail(shared: &Shared, on_fatal: &(dyn Fn(&str) + Send + Sync), error: &fjall::Error) -> String {
    let reason =
        format!("the store's disk failed, and what it holds is unknown until it is opened again: {error}");
    let first = shared.failure.set(reason.clone()).is_ok();
    shared.failed.store(true, Ordering::Release);
    if first {
        on_fatal(&reason);
    }
    reason
}

#[cfg(test)]
mod tests {
    use millrace_edge::mailbox::mailbox;
    use millrace_edge::wake::Waker;

    use super::*;
    use crate::store::{Batch, Outcome, Write};

    #[test]
    fn a_failed_fsync_is_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let (told, hear) = std::sync::mpsc::channel();
        let settings = Settings {
            partitions: 4,
            durability: Durability::Fsync,
            disk_reserve_bytes: 0,
            events_max: 0,
            on_fatal: Arc::new(move |reason: &str| told.send(reason.to_owned()).unwrap()),
        };
        let mut fails = None;
        let store = Embedded::open_with(dir.path(), settings, |engine| {
            fails = Some(Arc::clone(&engine.sync_fails));
        })
        .unwrap();
        let (replies, answers) = mailbox(64, Waker::new().unwrap());
        let claim = |ticket| {
            let work = Work::Claim { partition: 1, node: "a".into(), incarnation: 1, wall_ms: 5, above: 0 };
            store.submit(vec![Job { ticket, work }], &replies);
            let deadline = Instant::now() + Duration::from_secs(10);
            while Instant::now() < deadline {
                if let Some(done) = answers.recv() {
                    return done.into_iter().next().unwrap().outcome;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            panic!("no answer");
        };
        assert!(claim(1).is_ok());
        assert_eq!(store.trouble(), None);
        fails.unwrap().store(true, Ordering::Relaxed);
        assert!(matches!(claim(2), Err(StoreError::Unavailable(_))));
        assert!(matches!(claim(3), Err(StoreError::Unavailable(_))), "and so is everything after it");
        assert!(store.trouble().unwrap().contains("injected"));
        assert!(hear.recv_timeout(Duration::from_secs(5)).unwrap().contains("injected"));
        assert!(hear.try_recv().is_err(), "said once");
    }

    #[test]
    fn a_large_load_keeps_nobody_waiting_and_counts_under_its_own_fence_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(dir.path(), Settings::new(4)).unwrap();
        let (replies, answers) = mailbox(64, Waker::new().unwrap());
        // Tickets and outcomes in the order in which they come.
        let call = |works: Vec<Work>| {
            let count = works.len();
            let jobs = (1..).zip(works).map(|(ticket, work)| Job { ticket, work }).collect();
            store.submit(jobs, &replies);
            let deadline = Instant::now() + Duration::from_secs(20);
            let mut all: Vec<Done> = Vec::new();
            while all.len() < count && Instant::now() < deadline {
                all.extend(answers.recv().unwrap_or_default());
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(all.len(), count, "an answer to each");
            all
        };
        let claim = || Work::Claim { partition: 1, node: "a".into(), incarnation: 1, wall_ms: 5, above: 0 };
        let Ok(Outcome::Claimed { fence, position, .. }) = call(vec![claim()]).remove(0).outcome else {
            panic!()
        };
        let members: Vec<String> = (0..10_000).map(|user| format!("user-{user:05}")).collect();
        let conversation = || "g:all".to_owned();
        let append = |position, members: &[String], conversation: &str| {
            let write = Write::GroupCreate {
                conversation: conversation.to_owned(),
                members: members.to_vec(),
                version: 1,
            };
            Work::Append(Batch {
                partition: 1,
                fence,
                position,
                writes: vec![write],
                outstanding: Vec::new(),
                fanned_out: 0,
            })
        };
        // Its neighbours' names begin like its own.
        for (n, name) in (0..).zip(["g:al", "g:all", "g:allo"]) {
            let some = if name == "g:all" { &members[..] } else { &members[..3] };
            assert_eq!(call(vec![append(position + n, some, name)]).remove(0).outcome, Ok(Outcome::Appended));
        }
        let load = || Work::Load { partition: 1, fence, conversation: conversation(), stream: None };
        let mut done = call(vec![load(), append(position + 3, &members[..1], "g:other")]);
        assert_eq!((done[0].ticket, &done[0].outcome), (2, &Ok(Outcome::Appended)), "not after the load");
        let Ok(Outcome::Loaded(loaded)) = done.remove(1).outcome else { panic!() };
        assert_eq!(loaded.members, Some((members, 1)));
        let done = call(vec![load(), claim()]);
        assert_eq!((done[1].ticket, &done[1].outcome), (1, &Err(StoreError::Fenced { partition: 1 })));
    }
}
