//! Sockets, and nothing that knows what is said on them.
//!
//! An [`Edge`] holds the client connections of one shard thread: it accepts, connects, receives into pooled
//! buffers, sends, and closes. Three backends keep the same promises: [`uring`] (banks of io_uring with direct
//! descriptors), [`epoll`] (where io_uring is refused) and [`sim`] (seeded, for tests). [`open()`] picks one. This is the one crate with
//! `unsafe`; it leaves framing, sessions, timers and fairness between conversations to its callers.
//!
//! An edge belongs to the thread that opened it: its ring takes operations from no other. The loop of that thread is
//! `turn`, handle the events, `flush`, and then, unless [`Turn::more`], sleep on [`Edge::wait_fd`]; [`wait::wait`]
//! does the sleeping where there is no runtime. A turn now and then without a wake (a timer's) is needed too: it
//! resumes accepting after the machine was short of something.
//!
//! # What every backend promises
//! 1. A [`Conn`] is a slot and a generation. A slot is reused only after every operation submitted for it came
//!    back; an event never carries a stale generation; a call with a stale `Conn` changes nothing.
//! 2. At most one send per connection is in flight. A [`Event::Sent`] means that *all* its bytes were handed to
//!    the kernel; the connection is dead otherwise ([`Event::Closed`] follows and no `Sent` comes).
//! 3. For each connection: one `Accepted` or `Connected` first, then any `Received` and `Sent`, then exactly one
//!    `Closed`, after which nothing more comes and the slot is free. An end of stream or an error from the
//!    peer makes the edge tear the connection down by itself.
//! 4. `Received` bytes come in order; a connection holds a pool buffer only while its event is being handled.
//! 5. A turn is bounded in completions; what remains is reported by [`Turn::more`], and the edge never spins.
//! 6. Dropping or closing gives every buffer and payload back: `stats()` returns to zero lent and in flight.

pub mod affinity;
pub mod clock;
pub mod epoll;
pub mod failpoint;
pub mod limits;
pub mod liveness;
pub mod mailbox;
pub mod memory;
mod open;
pub mod pool;
pub mod priority;
#[doc(hidden)]
pub mod process;
pub mod rlimit;
pub mod sim;
mod slot;
mod socket;
pub mod uring;
pub mod wait;
pub mod wake;

pub use open::{Config, Io, UnknownIo, open};

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::rc::Rc;

/// One connection of this edge: a slot, and how often that slot had been used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Conn {
    /// Dense index, below [`Shape::capacity`]; the upper layers index their slabs by it.
    pub slot: u32,
    /// Grows by one at each reuse, modulo 2^20 (it has 20 bits in a session id).
    pub generation: u32,
}

/// What a send carries. Handed over whole, and dropped by the edge when the operation has completed.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Bytes shared by many receivers; sending starts at `start` (WebSocket receivers take a prefix that TCP skips).
    Shared {
        /// The frame with all its prefixes.
        bytes: Rc<[u8]>,
        /// First byte to send.
        start: u32,
    },
    /// Bytes of this receiver alone.
    Owned(Vec<u8>),
}

impl Payload {
    /// The bytes to send. A start beyond the end leaves none.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Shared { bytes, start } => bytes.get(*start as usize..).unwrap_or_default(),
            Self::Owned(bytes) => bytes,
        }
    }
}

/// What happened on a connection.
#[derive(Debug)]
pub enum Event {
    /// A client connected to a listener.
    Accepted {
        /// Its new name.
        conn: Conn,
        /// Where it comes from.
        peer: SocketAddr,
    },
    /// An own [`Edge::connect`] succeeded.
    Connected {
        /// What `connect` returned.
        conn: Conn,
    },
    /// Bytes arrived.
    Received {
        /// From whom.
        conn: Conn,
        /// At least one byte. The buffer returns to the pool when dropped; it may be changed in place (WebSocket
        /// unmask).
        bytes: pool::Buf,
    },
    /// The send in flight was taken by the kernel, whole.
    Sent {
        /// Whose.
        conn: Conn,
    },
    /// The connection is gone and its slot is free.
    Closed {
        /// Which.
        conn: Conn,
        /// What ended it.
        why: Why,
    },
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Our own [`Edge::close`].
    Local,
    /// The peer ended the stream.
    Eof,
    /// An errno from the kernel: a reset, a refused connect, …
    Error(i32),
}

/// A call that the edge can't take; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Refused<T> {
    /// The connection is gone, or closing.
    #[error("the connection is gone")]
    Gone(T),
    /// A send is in flight already: wait for [`Event::Sent`]. Also the answer before [`Event::Connected`].
    #[error("a send (or the connect) is in flight on this connection")]
    InFlight(T),
    /// No free slot.
    #[error("no free slot: all {capacity} are in use")]
    Full {
        /// Slots of this edge.
        capacity: u32,
        /// What the caller passed in.
        back: T,
    },
    /// The operating system refused.
    #[error("{0}")]
    Os(io::Error, T),
}

/// Bounds of one turn.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Completions taken at most.
    pub completions: u32,
}

/// What a turn left behind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    /// Work remains: run another turn before sleeping.
    pub more: bool,
    /// Completions handled.
    pub completions: u32,
}

/// The connections of one shard thread. See the module's promises.
pub trait Edge {
    /// Listens on `addr` (SO_REUSEPORT, so that each shard has a listener of its own). Returns the bound address.
    fn listen(&mut self, addr: SocketAddr) -> io::Result<SocketAddr>;
    /// Ends all accepting and closes the listeners; what was accepted stays.
    fn stop_listening(&mut self);
    /// While `held`, no more connections are accepted than what is under way already; others wait in the kernel's
    /// backlog. The listeners stay.
    fn hold_accepts(&mut self, held: bool);
    /// Opens a connection, from `from` if given. `Connected` or `Closed` follows.
    fn connect(&mut self, to: SocketAddr, from: Option<IpAddr>) -> Result<Conn, Refused<()>>;
    /// Queues the one send of a connection; it is submitted with the next turn or [`Edge::flush`].
    fn send(&mut self, conn: Conn, payload: Payload) -> Result<(), Refused<Payload>>;
    /// Half-closes after the send in flight: the peer sees the end of stream after everything sent. What it still
    /// sends is dropped. `Closed` follows when it closes too; the caller sets a deadline and then calls `close`.
    fn shutdown(&mut self, conn: Conn);
    /// Cancels what is in flight, then closes. `Closed { why: Local }` follows, and nothing else: not the `Sent` of
    /// a send that was in flight (whether it went out is unknown), nor bytes not told yet.
    fn close(&mut self, conn: Conn);
    /// Submits what is queued, reaps at most `budget.completions`, and appends events in order.
    fn turn(&mut self, budget: Budget, events: &mut Vec<Event>) -> io::Result<Turn>;
    /// Submits what is queued without reaping. Call it (or a turn) after the last call and before sleeping.
    fn flush(&mut self) -> io::Result<()>;
    /// [`Edge::flush`] for a caller that may run another turn at once: returns whether that turn would find work
    /// already, as sends usually complete while they are submitted. What it answers `true` for may stay untold on
    /// [`Edge::wait_fd`]: run a turn before sleeping then.
    fn flush_and_look(&mut self) -> io::Result<bool> {
        self.flush().map(|()| false)
    }
    /// Keeps sockets from making [`Edge::wait_fd`] readable until the next turn, for a caller that takes a nap on
    /// purpose: only wakers do then. Returns false, and changes nothing, where the backend can't.
    fn mute(&mut self) -> bool {
        false
    }
    /// Readable when a turn would find work. The caller drains its waker ([`wake::Waker::drain`]) after each wake,
    /// and always runs one turn before sleeping again.
    fn wait_fd(&self) -> BorrowedFd<'_>;
    /// Slots in all, and how they are divided.
    fn shape(&self) -> Shape;
    /// Counters since the start.
    fn stats(&self) -> Stats;
}

/// How an edge is divided.
#[derive(Clone, Debug)]
pub struct Shape {
    /// `io_uring`, `epoll` or `sim`.
    pub backend: &'static str,
    /// Rings (1 for the others).
    pub banks: u32,
    /// Slots over all banks.
    pub capacity: u32,
}

/// Counters of an edge. Those that say "now" are gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections accepted.
    pub accepted: u64,
    /// Accepts that failed (out of slots or descriptors, aborted by the peer).
    pub accept_failures: u64,
    /// Connections open now (connecting and closing ones included).
    pub open_now: u64,
    /// Pool buffers lent now.
    pub buffers_lent_now: u64,
    /// Times that a readable connection had to wait for a buffer.
    pub buffer_waits: u64,
    /// Sends completed whole.
    pub sends: u64,
    /// Bytes sent and received.
    pub bytes_sent: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Sends in flight now.
    pub sends_in_flight_now: u64,
    /// Operations in flight now, armed polls included.
    pub operations_now: u64,
    /// System calls that submitted or reaped.
    pub enters: u64,
    /// Times that a completion queue overflowed (nothing is lost then).
    pub overflows: u64,
}
