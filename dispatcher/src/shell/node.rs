//! A running node: its shard threads, its store, and its control thread. Assembled here for the binary and for
//! standalone gateways alike; what they differ in (listeners, signals) is passed in.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use millrace_edge::clock;
use millrace_edge::mailbox::{Receiver, Sender, mailbox};
use millrace_edge::wake::Waker;
use millrace_protocol::ids::Partition;
use millrace_protocol::link::end::{LINK_VERSION, LinkLimits};
use millrace_protocol::messages::link::Hello;
use tokio::sync::mpsc;

use super::cluster::{Ask, Cluster};
use super::front::{self, Front, Surroundings};
use super::limits::{REPORT_QUEUE, STORE_REPLIES};
use super::log;
use super::shard::{self, Command, Reported, Seat};
use crate::core::event::LinkKey;
use crate::core::limits::Limits;
use crate::core::shard::{Config, Shard};
use crate::store::{Node as Member, Store};

/// What every part of a node must know.
#[derive(Clone, Debug)]
pub(crate) struct NodeConfig {
    pub(crate) member: Member,
    pub(crate) cluster: String,
    pub(crate) partitions: u16,
    pub(crate) shards: usize,
    pub(crate) lease_ttl_ms: u32,
    pub(crate) lease_renew_ms: u32,
    pub(crate) link_window_bytes: u64,
    pub(crate) sibling_queue: usize,
    pub(crate) limits: Limits,
}

impl NodeConfig {
    /// What this node says on links.
    pub(crate) fn hello(&self) -> Hello {
        Hello {
            version: LINK_VERSION,
            cluster: self.cluster.clone(),
            role: "dispatcher".into(),
            node: self.member.name.clone(),
            incarnation: self.member.incarnation,
            window_bytes: self.link_window_bytes,
            partitions: u32::from(self.partitions),
            ..Hello::default()
        }
    }

    /// What the core of one shard is told.
    fn core(&self, shard: usize) -> Config {
        Config {
            shard,
            shards: self.shards,
            node: self.member.name.clone(),
            incarnation: self.member.incarnation,
            cluster: self.cluster.clone(),
            partitions: self.partitions,
            limits: self.limits,
            link: LinkLimits { window_bytes: self.link_window_bytes, ..LinkLimits::default() },
            // The incarnation is random already; shards must differ.
            seed: self.member.incarnation ^ shard as u64,
        }
    }
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file with policies is wrong.
    #[error("policies: {0}")]
    Policies(String),
    /// The store.
    #[error("the store: {0}")]
    Store(String),
    /// A listener.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Where.
        address: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Descriptors, threads or random numbers ran out.
    #[error("{what}: {error}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// What the system said.
        error: std::io::Error,
    },
}

impl StartError {
    pub(crate) fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |error| StartError::System { what, error }
    }
}

/// An incarnation: random, so that no two starts of any process share one.
pub(crate) fn draw_incarnation() -> Result<u64, StartError> {
    loop {
        let drawn = getrandom::u64().map_err(|error| StartError::System {
            what: "random numbers",
            error: std::io::Error::other(error.to_string()),
        })?;
        // 0 means "never seen" in a hello.
        if drawn != 0 {
            return Ok(drawn);
        }
    }
}

/// The shards as others see them.
#[derive(Debug)]
pub(crate) struct Shards {
    handles: Vec<Handle>,
}

#[derive(Debug)]
struct Handle {
    commands: Sender<Command>,
    waker: Waker,
    turned_us: Arc<AtomicU64>,
}

impl Shards {
    pub(crate) fn count(&self) -> usize {
        self.handles.len()
    }

    /// Where a link is at home.
    pub(crate) fn home(&self, link: LinkKey) -> &Sender<Command> {
        &self.handles[link.home(self.handles.len())].commands
    }

    /// The waker of a link's home, for queues that end there.
    pub(crate) fn home_waker(&self, link: LinkKey) -> &Waker {
        &self.handles[link.home(self.handles.len())].waker
    }

    /// Whose partition this is.
    pub(crate) fn of(&self, partition: Partition) -> &Sender<Command> {
        &self.handles[usize::from(partition) % self.handles.len()].commands
    }

    /// Every shard's commands.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Sender<Command>> {
        self.handles.iter().map(|handle| &handle.commands)
    }

    /// Makes every shard that is alive turn once.
    pub(crate) fn poke(&self) {
        for handle in &self.handles {
            handle.waker.wake();
        }
    }

    /// One shard without a thread: its commands, and its time of the latest turn.
    #[cfg(test)]
    pub(crate) fn one_for_test() -> (Self, Receiver<Command>, Arc<AtomicU64>) {
        let waker = Waker::new().unwrap();
        let (commands, receiver) = shard::command_queue(&waker);
        let turned_us = Arc::new(AtomicU64::new(clock::boot_us()));
        let handle = Handle { commands, waker, turned_us: Arc::clone(&turned_us) };
        (Shards { handles: vec![handle] }, receiver, turned_us)
    }

    /// The first shard that has not turned since then, if any.
    pub(crate) fn hung_since(&self, since_us: u64) -> Option<usize> {
        self.handles.iter().position(|handle| handle.turned_us.load(Ordering::Relaxed) < since_us)
    }
}

/// A node that runs.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) shards: Arc<Shards>,
    asks: mpsc::Sender<Ask>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Node {
    /// Starts everything. `front` is what the outside sees, if anything: listeners, admin and signals.
    pub(crate) fn start(
        config: NodeConfig,
        store: Arc<dyn Store>,
        front: Option<Front>,
    ) -> Result<Node, StartError> {
        let control_waker = Waker::new().map_err(StartError::system("an eventfd"))?;
        let (reports, from_shards) = mailbox(REPORT_QUEUE, control_waker.clone());
        let (shards, mut threads) = start_shards(&config, &store, &reports)?;
        let shards = Arc::new(shards);
        // Asks are few: a stop, and what admin wants to know. More wait at the asker.
        let (asks, from_admin) = mpsc::channel(64);
        let surroundings = Surroundings {
            front,
            shards: Arc::clone(&shards),
            store: Arc::clone(&store),
            hello: config.hello(),
            asks: asks.clone(),
        };
        let cluster = Cluster::new(config, Arc::clone(&shards), store, control_waker, from_shards);
        let run = move || {
            if let Err(error) = front::control(cluster, surroundings, from_admin) {
                // The lease is renewed no more: another node takes over.
                log::error(format_args!("the control thread ended: {error}"));
            }
        };
        let thread = std::thread::Builder::new()
            .name("millrace-ctl".into())
            .spawn(run)
            .map_err(StartError::system("the control thread"))?;
        threads.push(thread);
        Ok(Node { shards, asks, threads: Mutex::new(threads) })
    }

    /// Hands over, flushes and ends all threads within about `timeout`. Later calls do nothing.
    pub(crate) fn stop(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        // A control thread that is gone, or so busy that it takes no ask, is not waited for politely.
        let _ = self.asks.try_send(Ask::Stop(timeout));
        self.wait(Some(deadline));
    }

    /// Waits until all threads have ended, or the deadline.
    pub(crate) fn wait(&self, deadline: Option<Instant>) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(|broken| broken.into_inner()));
        for thread in threads {
            while deadline.is_some_and(|deadline| Instant::now() < deadline) && !thread.is_finished() {
                std::thread::sleep(Duration::from_millis(2));
            }
            if deadline.is_some() && !thread.is_finished() {
                continue;
            }
            if thread.join().is_err() {
                log::error("a thread panicked");
            }
        }
    }
}

fn start_shards(
    config: &NodeConfig,
    store: &Arc<dyn Store>,
    reports: &Sender<Reported>,
) -> Result<(Shards, Vec<JoinHandle<()>>), StartError> {
    let count = config.shards;
    let wakers: Vec<Waker> = (0..count)
        .map(|_| Waker::new().map_err(StartError::system("an eventfd")))
        .collect::<Result<_, _>>()?;
    // queues[to][from]
    let mut senders: Vec<Vec<_>> = (0..count).map(|_| Vec::with_capacity(count)).collect();
    let mut receivers: Vec<Vec<Receiver<_>>> = Vec::with_capacity(count);
    for waker in &wakers {
        let mut own = Vec::with_capacity(count);
        for from in &mut senders {
            let (sender, receiver) = mailbox(config.sibling_queue, waker.clone());
            from.push(sender);
            own.push(receiver);
        }
        receivers.push(own);
    }
    let (mut handles, mut threads) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for (index, ((waker, to_siblings), from_siblings)) in
        wakers.into_iter().zip(senders).zip(receivers).enumerate()
    {
        let (commands, from_control) = shard::command_queue(&waker);
        let (replies, answers) = mailbox(STORE_REPLIES, waker.clone());
        let turned_us = Arc::new(AtomicU64::new(clock::boot_us()));
        handles.push(Handle { commands, waker: waker.clone(), turned_us: Arc::clone(&turned_us) });
        let core = config.core(index);
        let (store, reports) = (Arc::clone(store), reports.clone());
        let run = move || {
            // Made on its own thread: a core need not be able to move between threads.
            let seat = Seat {
                index,
                core: Shard::new(core),
                waker,
                commands: from_control,
                from_siblings,
                to_siblings,
                reports,
                store,
                replies,
                answers,
                turned_us,
            };
            if let Err(error) = shard::run(seat) {
                // Its lease is renewed no more: another node takes over.
                log::error(format_args!("shard {index} ended: {error}"));
            }
        };
        let thread = std::thread::Builder::new()
            .name(format!("millrace-d{index}"))
            .spawn(run)
            .map_err(StartError::system("a shard thread"))?;
        threads.push(thread);
    }
    Ok((Shards { handles }, threads))
}
