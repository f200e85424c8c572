//! The clients: load threads, each with one edge that holds thousands of them.
//!
//! A scenario gives [`Order`]s and watches [`Totals`]; what a client does by itself (log in, join, beat, come back)
//! is in [`arrival`], [`dialogue`] and [`worker`]. A client's number is global; thread `t` of `n` has those with
//! number % n == t. The rule: threads share nothing but counters, and every one keeps its own books.

mod arrival;
mod board;
mod client;
mod dialogue;
mod sending;
mod worker;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use hdrhistogram::Histogram;
use millrace_edge::mailbox::{self, Sender};
use millrace_edge::wake::Waker;
use millrace_edge::{Io, rlimit};

pub(crate) use self::arrival::source;
use self::board::Board;
pub use self::board::Totals;
use self::worker::Worker;
use crate::ledger::Ledger;
use crate::limits::ORDERS_MAX;
use crate::schedule::Schedule;
use crate::world::World;

/// What travels below frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// Framed TCP.
    #[default]
    Tcp,
    /// WebSocket.
    Ws,
}

/// What clients do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Log in and talk.
    Session,
    /// Only read what comes (the floor has no logins). Every message of the schedule counts as acknowledged.
    Listener {
        /// It sends a heartbeat so often, in milliseconds; 0: never.
        heartbeat_ms: u64,
    },
}

/// What all load threads are told at their start.
#[derive(Debug)]
pub struct Setup {
    /// Who talks where.
    pub world: Arc<World>,
    /// By client number; empty for listeners.
    pub tokens: Vec<Box<str>>,
    /// Gateways; clients go to them in turn.
    pub targets: Vec<SocketAddr>,
    /// Below frames.
    pub transport: Transport,
    /// What for.
    pub manner: Manner,
    /// Sockets through.
    pub io: Io,
    /// Clients in all, over all threads.
    pub clients: u32,
    /// How many threads.
    pub threads: usize,
    /// CPU of each thread; fewer than threads: the rest roams.
    pub cpus: Vec<usize>,
    /// Bytes of a message's payload.
    pub payload_bytes: usize,
    /// Clients keep resume tickets, to come back without a signature check.
    pub tickets: bool,
    /// The groups exist: nobody makes them.
    pub founded: bool,
    /// What the load threads add to their niceness, so that servers on the same cores go before them, until everyone
    /// is to come back.
    pub niceness: u8,
}

/// What a scenario asks of the clients.
#[derive(Debug)]
pub enum Order {
    /// Clients with numbers below `to` connect and log in, `per_s` a second (0: as fast as the window lets).
    Up {
        /// Above the highest client number.
        to: u32,
        /// Offered, over all threads.
        per_s: f64,
    },
    /// Everyone who is logged in now joins their conversations; who comes back later does so without being told.
    Join,
    /// Messages are sent at their times from `start_us` since boot.
    Send {
        /// What and when.
        schedule: Arc<Schedule>,
        /// Where its 0 is.
        start_us: u64,
    },
    /// Nothing more is sent.
    StopSending,
    /// The books of the last schedule, of every thread, are closed and handed over.
    Books(mpsc::Sender<Ledger>),
    /// Clients whose connection ends from now on come back on their own.
    ComeBack,
    /// All connections are dropped, at once and without a word; if `back`, clients come back on their own.
    Drop {
        /// Whether they come back.
        back: bool,
    },
    /// Times from due to logged in since the last asking, in microseconds.
    LoginTimes(mpsc::Sender<Histogram<u64>>),
}

/// Why clients can't be had.
#[derive(Debug, thiserror::Error)]
pub enum CrewError {
    /// Sockets or threads are refused.
    #[error("can't open the clients' edge: {0}")]
    Io(#[from] io::Error),
    /// epoll needs a descriptor for each.
    #[error(
        "{clients} connections need as many descriptors on the epoll backend, and the limit is {limit}: raise it \
         (ulimit -n), or run where io_uring is allowed ({why})"
    )]
    Descriptors {
        /// Asked for.
        clients: u32,
        /// RLIMIT_NOFILE.
        limit: u64,
        /// Why it is epoll.
        why: String,
    },
    /// A load thread ended early.
    #[error("a load thread failed: {0}")]
    Failed(String),
}

struct Hand {
    orders: Sender<Order>,
    board: Arc<Board>,
    thread: Option<JoinHandle<Result<Option<Ledger>, String>>>,
}

/// All load threads.
pub struct Crew {
    hands: Vec<Hand>,
    backend: String,
}

/// Descriptors that a process needs beside its clients' (threads, rings, files).
const DESCRIPTORS_ASIDE: u64 = 64;

impl Crew {
    /// Starts the threads; nobody connects yet.
    pub fn start(setup: Setup) -> Result<Self, CrewError> {
        let setup = Arc::new(setup);
        let limit = rlimit::raise_nofile()?.soft;
        let mut crew = Crew { hands: Vec::new(), backend: String::new() };
        for index in 0..setup.threads {
            let waker = Waker::new()?;
            let (orders, inbox) = mailbox::mailbox(ORDERS_MAX, waker.clone());
            let board = Arc::new(Board::default());
            let (said, opened) = mpsc::channel();
            let (its_setup, its_board) = (Arc::clone(&setup), Arc::clone(&board));
            let thread = std::thread::Builder::new().name(format!("load-{index}")).spawn(move || {
                // Edges stay on the thread that opened them.
                let worker = match Worker::open(index, its_setup, waker, inbox, its_board) {
                    Ok((worker, backend, why)) => {
                        let _ = said.send(Ok((backend, why)));
                        worker
                    }
                    Err(error) => {
                        let _ = said.send(Err(error));
                        return Ok(None);
                    }
                };
                worker.run().map_err(|error| error.to_string())
            })?;
            crew.hands.push(Hand { orders, board, thread: Some(thread) });
            let (backend, why) = opened
                .recv()
                .map_err(|_| CrewError::Failed(format!("load thread {index} ended at its start")))??;
            if backend == "epoll" && u64::from(setup.clients) + DESCRIPTORS_ASIDE > limit {
                return Err(CrewError::Descriptors { clients: setup.clients, limit, why });
            }
            crew.backend = why;
        }
        Ok(crew)
    }

    /// The backend of the clients' sockets, with the reason for it.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Tells every thread.
    pub fn order(&self, order: impl Fn() -> Order) -> Result<(), CrewError> {
        for hand in &self.hands {
            if hand.orders.send(order()).is_err() {
                return Err(CrewError::Failed(
                    hand.board.first_trouble().unwrap_or_else(|| "it takes no more orders".to_owned()),
                ));
            }
        }
        Ok(())
    }

    /// Counters over all threads.
    pub fn totals(&self) -> Totals {
        self.hands.iter().map(|hand| hand.board.totals()).fold(Totals::default(), Totals::plus)
    }

    /// GoAways that clients were told, by their code.
    pub fn went_away(&self) -> BTreeMap<&'static str, u64> {
        let mut sum = BTreeMap::new();
        for (code, count) in self.hands.iter().flat_map(|hand| hand.board.all_went_away()) {
            *sum.entry(code).or_default() += count;
        }
        sum
    }

    /// The first thing that went wrong, in words.
    pub fn first_trouble(&self) -> Option<String> {
        self.hands.iter().find_map(|hand| hand.board.first_trouble())
    }

    /// Whether a thread has ended although nobody told it to.
    pub fn has_failed(&self) -> bool {
        self.hands.iter().any(|hand| hand.thread.as_ref().is_none_or(JoinHandle::is_finished))
    }

    /// Closes the books of the last schedule and merges them; `None` when nothing was to be sent.
    pub fn books(&self) -> Result<Option<Ledger>, CrewError> {
        let (sender, receiver) = mpsc::channel();
        self.order(|| Order::Books(sender.clone()))?;
        drop(sender);
        Ok(receiver.into_iter().reduce(|mut all, theirs| {
            all.merge(&theirs);
            all
        }))
    }

    /// Times from due to logged in since the last asking.
    pub fn login_times(&self) -> Result<Histogram<u64>, CrewError> {
        let (sender, receiver) = mpsc::channel();
        self.order(|| Order::LoginTimes(sender.clone()))?;
        drop(sender);
        let mut all = crate::measure::histogram();
        for times in receiver {
            all.add(&times).expect("histograms of the same shape");
        }
        Ok(all)
    }

    /// Closes everything and returns the books, merged; `None` when nothing was sent.
    pub fn finish(mut self) -> Result<Option<Ledger>, CrewError> {
        self.close()
    }

    fn close(&mut self) -> Result<Option<Ledger>, CrewError> {
        let mut books: Option<Ledger> = None;
        let mut failed = None;
        for hand in std::mem::take(&mut self.hands) {
            let Hand { orders, thread, .. } = hand;
            // The end of its orders is the order to end.
            drop(orders);
            let Some(thread) = thread else { continue };
            match thread.join() {
                Ok(Ok(Some(theirs))) => match &mut books {
                    Some(mine) => mine.merge(&theirs),
                    None => books = Some(theirs),
                },
                Ok(Ok(None)) => {}
                Ok(Err(error)) => failed = Some(error),
                Err(_) => failed = Some("it panicked".to_owned()),
            }
        }
        match failed {
            Some(error) => Err(CrewError::Failed(error)),
            None => Ok(books),
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        // What a finished crew had to say was said; here it only must not outlive its owner.
        let _ = self.close();
    }
}
