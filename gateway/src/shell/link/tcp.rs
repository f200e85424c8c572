//! A link's transport over TCP: one task that connects, reads into the shard's inbound queue, writes whole batches,
//! and starts over when it is lost.
//!
//! What the bytes mean is the core's business. The rule that keeps it right: connections are numbered, and bytes go
//! out only while the core has been told of the very connection that is up; so nothing meant for an old one is sent
//! on a new one.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use millrace_edge::liveness::bound_silence;
use millrace_edge::wake::Waker;
use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, Splitable};
use monoio::net::TcpStream;

use super::backoff::Backoff;
use super::points::Passing;
use super::resolver::{Answer, Resolver};
use super::signal::Signal;
use crate::core::event::NodeKey;
use crate::shell::log;

/// Batches handed to the writer ahead of the socket (256 KiB each): enough to keep it busy, the rest stays in the
/// core, where it counts against the link's credit.
const BATCHES_AHEAD: usize = 4;
/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;
/// Reads below this are copied, so that a short record kept somewhere does not keep a whole buffer.
const COPY_BELOW_BYTES: usize = 4 << 10;
/// Bytes that all links of a shard may have read ahead of the pump; then they stop reading.
const INBOUND_BYTES_MAX: usize = 4 << 20;
/// A node that does not answer is as good as down after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Name servers take their time.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(15);
/// Failures in a row between log lines, after the first.
const LOG_EVERY: u32 = 30;

/// What a link's task tells the pump.
#[derive(Debug)]
pub(super) enum Incoming {
    /// Connection number so-and-so is up.
    Up(u64),
    /// Bytes of that connection.
    Bytes(u64, Bytes),
    /// The connection is gone.
    Down,
}

/// The queue from all link tasks of a shard to its pump.
#[derive(Debug)]
pub(super) struct Inbound {
    queue: RefCell<VecDeque<(NodeKey, Incoming)>>,
    bytes: Cell<usize>,
    room: Signal,
    waker: Waker,
}

impl Inbound {
    pub(super) fn new(waker: Waker) -> Self {
        Inbound { queue: RefCell::default(), bytes: Cell::new(0), room: Signal::default(), waker }
    }

    fn push(&self, node: NodeKey, incoming: Incoming) {
        if let Incoming::Bytes(_, bytes) = &incoming {
            self.bytes.set(self.bytes.get() + bytes.len());
        }
        self.queue.borrow_mut().push_back((node, incoming));
        self.waker.wake();
    }

    pub(super) fn pop(&self) -> Option<(NodeKey, Incoming)> {
        let (node, incoming) = self.queue.borrow_mut().pop_front()?;
        if let Incoming::Bytes(_, bytes) = &incoming {
            self.bytes.set(self.bytes.get() - bytes.len());
            self.room.raise();
        }
        Some((node, incoming))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.borrow().is_empty()
    }

    async fn room(&self) {
        while self.bytes.get() >= INBOUND_BYTES_MAX {
            self.room.lower();
            self.room.wait().await;
        }
    }
}

/// What the task and the pump share.
#[derive(Debug)]
pub(super) struct Tcp {
    pub(super) node: NodeKey,
    pub(super) name: String,
    pub(super) address: String,
    /// Batches for the connection that is up.
    out: RefCell<VecDeque<Bytes>>,
    out_ready: Signal,
    /// Number of the connection that is up; 0: none.
    up: Cell<u64>,
    /// Raised to drop the connection, with the reason beside it.
    cut: Signal,
    cut_reason: RefCell<Option<String>>,
    stopped: Cell<bool>,
    resolved: RefCell<Option<Answer>>,
    resolved_ready: Signal,
    /// Counters since the start.
    pub(super) connects: Cell<u64>,
    pub(super) failures: Cell<u64>,
    /// Of these, since it last worked.
    pub(super) failures_in_a_row: Cell<u32>,
    pub(super) bytes_in: Cell<u64>,
    pub(super) bytes_out: Cell<u64>,
}

/// Asks for the addresses of a name; the answer comes to [`Tcp::resolved`].
pub(super) type Ask = Rc<dyn Fn(&Resolver, NodeKey, &str) -> bool>;

impl Tcp {
    pub(super) fn new(node: NodeKey, name: String, address: String) -> Rc<Self> {
        Rc::new(Tcp {
            node,
            name,
            address,
            out: RefCell::default(),
            out_ready: Signal::default(),
            up: Cell::new(0),
            cut: Signal::default(),
            cut_reason: RefCell::default(),
            stopped: Cell::new(false),
            resolved: RefCell::default(),
            resolved_ready: Signal::default(),
            connects: Cell::new(0),
            failures: Cell::new(0),
            failures_in_a_row: Cell::new(0),
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
        })
    }

    /// Whether that connection is up and takes another batch.
    pub(super) fn takes(&self, connection: u64) -> bool {
        connection != 0 && self.up.get() == connection && self.out.borrow().len() < BATCHES_AHEAD
    }

    pub(super) fn send(&self, batch: Bytes) {
        self.out.borrow_mut().push_back(batch);
        self.out_ready.raise();
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.out.borrow().is_empty()
    }

    /// Drops the connection, if that one is up; the task logs why.
    pub(super) fn cut(&self, connection: u64, reason: &str) {
        if connection != 0 && self.up.get() == connection {
            *self.cut_reason.borrow_mut() = Some(reason.to_owned());
            self.cut.raise();
        }
    }

    /// Ends the task.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
        self.cut.raise();
    }

    /// The resolver's answer.
    pub(super) fn resolved(&self, answer: Answer) {
        *self.resolved.borrow_mut() = Some(answer);
        self.resolved_ready.raise();
    }

    /// The task: connects until it is stopped.
    pub(super) async fn run(
        self: Rc<Self>,
        inbound: Rc<Inbound>,
        resolver: Option<Resolver>,
        ask: Ask,
        seed: u64,
    ) {
        let mut backoff = Backoff::new(seed);
        // The last connection ended for what the peer said: that the next one stands is no news.
        let mut cut_before = false;
        while !self.stopped.get() {
            let error = match self.connect(resolver.as_ref(), &ask).await {
                Ok(stream) => {
                    let number = self.connects.get() + 1;
                    self.connects.set(number);
                    self.cut.lower();
                    self.cut_reason.take();
                    self.up.set(number);
                    if backoff.failures() > 0 && !cut_before {
                        log::info(format_args!("link to {} ({}): connected again", self.name, self.address));
                    }
                    inbound.push(self.node, Incoming::Up(number));
                    let before = self.bytes_in.get();
                    let error = self.serve(stream, number, &inbound).await;
                    self.up.set(0);
                    self.out.borrow_mut().clear();
                    inbound.push(self.node, Incoming::Down);
                    cut_before = self.cut_reason.borrow().is_some();
                    if self.bytes_in.get() > before && !cut_before {
                        // It said something, and nothing wrong: a peer that works. One that hangs up at once, or that
                        // belongs to another cluster, is not called in a loop.
                        backoff.reset();
                    }
                    error
                }
                Err(error) => error,
            };
            if self.stopped.get() {
                return;
            }
            self.failures.set(self.failures.get() + 1);
            if backoff.failures().is_multiple_of(LOG_EVERY) {
                log::warn(format_args!(
                    "link to {} ({}): {error}; connecting again",
                    self.name, self.address
                ));
            }
            let pause = Duration::from_micros(backoff.next_us());
            self.failures_in_a_row.set(backoff.failures());
            let _ = monoio::time::timeout(pause, self.cut.wait()).await;
        }
    }

    async fn connect(&self, resolver: Option<&Resolver>, ask: &Ask) -> io::Result<TcpStream> {
        let address = match self.address.parse::<SocketAddr>() {
            Ok(address) => address,
            Err(_) => self.resolve(resolver, ask).await?,
        };
        let connecting = TcpStream::connect_addr(address);
        let stream = monoio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer"))??;
        stream.set_nodelay(true)?;
        bound_silence(&stream)?;
        Ok(stream)
    }

    async fn resolve(&self, resolver: Option<&Resolver>, ask: &Ask) -> io::Result<SocketAddr> {
        self.resolved_ready.lower();
        let asked = resolver.is_some_and(|resolver| ask(resolver, self.node, &self.address));
        if !asked {
            return Err(io::Error::other("too many names are being resolved"));
        }
        let answered = monoio::time::timeout(RESOLVE_TIMEOUT, self.resolved_ready.wait()).await;
        answered.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the name was not resolved in time"))?;
        let answer = self.resolved.borrow_mut().take().unwrap_or_else(|| Err("no answer".to_owned()));
        let addresses = answer.map_err(io::Error::other)?;
        // One after the other, when a name has several.
        let turn = self.failures.get() as usize % addresses.len().max(1);
        addresses.get(turn).copied().ok_or_else(|| io::Error::other("the name has no address"))
    }

    /// Reads and writes until the connection ends; why it did.
    async fn serve(&self, stream: TcpStream, number: u64, inbound: &Inbound) -> io::Error {
        let (read, write) = stream.into_split();
        let result = monoio::select! {
            result = self.read(read, number, inbound) => result,
            result = self.write(write, inbound) => result,
            () = self.cut.wait() => {
                let reason = self.cut_reason.borrow().clone().unwrap_or_default();
                Err(io::Error::other(format!("reset: {reason}")))
            }
        };
        result.err().unwrap_or_else(|| io::Error::other("closed by the peer"))
    }

    async fn read(&self, mut half: impl AsyncReadRent, number: u64, inbound: &Inbound) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(READ_BYTES);
        loop {
            inbound.room().await;
            let (result, filled) = half.read(buffer).await;
            let length = result?;
            if length == 0 {
                return Ok(());
            }
            self.bytes_in.set(self.bytes_in.get() + length as u64);
            if length < COPY_BELOW_BYTES {
                inbound.push(self.node, Incoming::Bytes(number, Bytes::copy_from_slice(&filled[..length])));
                buffer = filled;
                buffer.clear();
            } else {
                inbound.push(self.node, Incoming::Bytes(number, Bytes::from(filled)));
                buffer = Vec::with_capacity(READ_BYTES);
            }
        }
    }

    async fn write(&self, mut half: impl AsyncWriteRent, inbound: &Inbound) -> io::Result<()> {
        loop {
            let next = self.out.borrow().front().cloned();
            let Some(batch) = next else {
                self.out_ready.wait().await;
                continue;
            };
            let length = batch.len() as u64;
            let passing = Passing::begin(&batch);
            half.write_all(batch).await.0?;
            passing.end();
            self.bytes_out.set(self.bytes_out.get() + length);
            self.out.borrow_mut().pop_front();
            // There is room for another batch: the pump may have one.
            inbound.waker.wake();
        }
    }
}
