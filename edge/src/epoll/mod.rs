//! The epoll backend: the same promises where io_uring is refused.
//!
//! Each connection is a non-blocking socket, registered once, edge-triggered, for everything. Readiness puts it into
//! a queue; turns work the queues off within their budget. A send is tried when it is submitted and continued as the
//! socket drains; `Sent` is told only when all of it went. The shard's eventfd sits in the same epoll, so that one
//! descriptor wakes for both. `table` holds the slots, `accept` and `bytes` do what their names say.
//!
//! The rule that keeps it right: edge-triggered readiness comes once, so a connection leaves a queue only when the
//! kernel said EAGAIN, a receive came back short, or the connection ended.

mod accept;
mod bytes;
mod table;

use std::collections::VecDeque;
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Instant;

use self::table::{Phase, Table, flag};
use crate::limits::{EPOLL_EVENTS, SEND_BYTES_MAX};
use crate::pool::Pool;
use crate::slot::Slab;
use crate::{Budget, Config, Conn, Edge, Event, Payload, Refused, Shape, Stats, Turn, Why, socket};

const CONNECTION: u32 = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32;
const LISTENER: u32 = libc::EPOLLIN as u32;
/// After these no other readiness may come.
const LAST_CALL: u32 = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32;
/// Tags of what is no connection: a connection's tag is its slot and its generation of 20 bits.
const WAKER_TAG: u64 = u64::MAX;
const LISTENER_TAG: u64 = 1 << 63;

fn tag(conn: Conn) -> u64 {
    u64::from(conn.generation) << 32 | u64::from(conn.slot)
}

struct Outgoing {
    payload: Payload,
    sent: usize,
}

/// Connections as plain sockets under one epoll. See the module's head.
pub struct EpollEdge {
    config: Config,
    epoll: OwnedFd,
    table: Table,
    pool: Pool,
    sends: Slab<Outgoing>,
    listeners: Vec<OwnedFd>,
    /// Listeners are in the epoll with their interest.
    accepting: bool,
    accept_pause: Option<Instant>,
    /// By [`Edge::hold_accepts`].
    accepts_held: bool,
    /// Listeners that have a connection to take.
    knocking: VecDeque<usize>,
    readable: VecDeque<Conn>,
    waiting: VecDeque<Conn>,
    writing: VecDeque<Conn>,
    /// To be told, in order: by the end of this turn, or by the next one for what is done outside of turns.
    told: VecDeque<Event>,
    connecting: u32,
    stats: Stats,
}

impl EpollEdge {
    /// An edge without connections.
    ///
    /// # Errors
    /// The process or the system is out of descriptors.
    pub fn new(config: Config) -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and owned by nobody else.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        let edge = Self {
            table: Table::new(config.capacity),
            pool: Pool::new(config.buffers, Some(config.waker.clone())),
            epoll,
            config,
            sends: Slab::new(),
            listeners: Vec::new(),
            accepting: false,
            accept_pause: None,
            accepts_held: false,
            knocking: VecDeque::new(),
            readable: VecDeque::new(),
            waiting: VecDeque::new(),
            writing: VecDeque::new(),
            told: VecDeque::new(),
            connecting: 0,
            stats: Stats::default(),
        };
        // Level-triggered: it shows as long as nobody drained the waker.
        edge.register(libc::EPOLL_CTL_ADD, edge.config.waker.fd().as_raw_fd(), LISTENER, WAKER_TAG)?;
        Ok(edge)
    }

    fn register(&self, action: libc::c_int, fd: RawFd, events: u32, tag: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: tag };
        // SAFETY: the event lives on this stack, and the kernel copies it.
        if unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), action, fd, &mut event) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Takes readiness from the kernel into the queues. Returns whether there may be more.
    fn collect(&mut self) -> io::Result<bool> {
        let mut list = [libc::epoll_event { events: 0, u64: 0 }; EPOLL_EVENTS];
        self.stats.enters += 1;
        // SAFETY: the list has EPOLL_EVENTS writable entries on this stack.
        let count = unsafe {
            libc::epoll_wait(self.epoll.as_raw_fd(), list.as_mut_ptr(), EPOLL_EVENTS as libc::c_int, 0)
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(true) } else { Err(error) };
        }
        for event in &list[..count as usize] {
            let (events, tag) = (event.events, event.u64);
            if tag == WAKER_TAG {
                continue;
            }
            if tag & LISTENER_TAG != 0 {
                let number = (tag & !LISTENER_TAG) as usize;
                if !self.knocking.contains(&number) {
                    self.knocking.push_back(number);
                }
                continue;
            }
            self.note(Conn { slot: tag as u32, generation: (tag >> 32) as u32 }, events);
        }
        Ok(count as usize == EPOLL_EVENTS)
    }

    fn note(&mut self, conn: Conn, events: u32) {
        let Some(slot) = self.table.live(conn) else { return };
        if slot.phase == Phase::Connecting {
            if events & (libc::EPOLLOUT as u32 | LAST_CALL) != 0 {
                self.connected(conn);
            }
            return;
        }
        if events & LAST_CALL != 0 {
            slot.flags |= flag::HUP;
        }
        if events & (libc::EPOLLIN as u32 | LAST_CALL) != 0
            && slot.flags & (flag::READABLE | flag::WAITING) == 0
        {
            slot.flags |= flag::READABLE;
            self.readable.push_back(conn);
        }
        if events & libc::EPOLLOUT as u32 != 0 {
            self.want_write(conn);
        }
    }

    fn connected(&mut self, conn: Conn) {
        let Some(slot) = self.table.live(conn) else { return };
        let mut error: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: both out-parameters live on this stack, and `len` says how large the first is.
        let result = unsafe {
            libc::getsockopt(
                slot.raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ERROR,
                (&raw mut error).cast(),
                &mut len,
            )
        };
        if result != 0 {
            error = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        }
        if error != 0 {
            return self.end(conn, Why::Error(error));
        }
        slot.phase = Phase::Open;
        // What came with the handshake's end is looked for, as this readiness is used up.
        slot.flags |= flag::READABLE;
        let shut = slot.flags & flag::SHUT_WANTED != 0;
        self.readable.push_back(conn);
        self.connecting -= 1;
        self.told.push_back(Event::Connected { conn });
        if shut {
            self.half_close(conn);
        }
    }

    /// Ends a connection now; `Closed` is told by the turn, and frees the slot then.
    fn end(&mut self, conn: Conn, why: Why) {
        let Some(slot) = self.table.live(conn) else { return };
        if slot.phase == Phase::Connecting {
            self.connecting -= 1;
        }
        slot.phase = Phase::Closing;
        // The last descriptor of the socket: closing it takes it out of the epoll too.
        slot.fd = None;
        if slot.flags & flag::SEND != 0 {
            drop(self.sends.remove(slot.send));
        }
        if why == Why::Local {
            slot.flags |= flag::LOCAL;
        }
        self.told.push_back(Event::Closed { conn, why });
    }

    /// Hands out what is to be told, and frees the slots of those that closed. Nothing but `Closed` follows our own
    /// close, not even a result that was queued already.
    fn tell(&mut self, events: &mut Vec<Event>) {
        for event in self.told.drain(..) {
            match event {
                Event::Closed { conn, .. } => {
                    self.table.release(conn);
                    self.stats.open_now -= 1;
                }
                Event::Sent { conn } | Event::Connected { conn } if self.table.closed_locally(conn) => {
                    continue;
                }
                _ => {}
            }
            events.push(event);
        }
    }

    fn has_work(&self) -> bool {
        !(self.told.is_empty()
            && self.writing.is_empty()
            && self.readable.is_empty()
            && (self.knocking.is_empty() || !self.accepting)
            && (self.waiting.is_empty() || !self.pool.has_free()))
    }

    /// Makes those that waited for a buffer readable again, if there are buffers. Those beyond wait again, in order.
    fn serve_waiting(&mut self) {
        if !self.pool.has_free() {
            return;
        }
        for conn in self.waiting.drain(..) {
            if let Some(slot) = self.table.live(conn) {
                slot.flags = (slot.flags & !flag::WAITING) | flag::READABLE;
                self.readable.push_back(conn);
            }
        }
    }

    fn work(&mut self, left: &mut u32) {
        while *left > 0
            && let Some(conn) = self.writing.pop_front()
        {
            *left -= 1;
            self.write(conn);
        }
        // The queue's length now: a connection that has more goes behind the others, and to the next round.
        for _ in 0..self.readable.len().min(*left as usize) {
            let Some(conn) = self.readable.pop_front() else { break };
            *left -= 1;
            self.read(conn);
        }
        while *left > 0
            && let Some(number) = self.knocking.pop_front()
        {
            *left -= 1;
            if self.accept(number) {
                self.knocking.push_front(number);
            }
        }
    }
}

impl Edge for EpollEdge {
    fn listen(&mut self, addr: SocketAddr) -> io::Result<SocketAddr> {
        let (fd, bound) = socket::listener(addr, true)?;
        let tag = LISTENER_TAG | self.listeners.len() as u64;
        let events = if self.listeners.is_empty() || self.accepting { LISTENER } else { 0 };
        self.register(libc::EPOLL_CTL_ADD, fd.as_raw_fd(), events, tag)?;
        self.accepting |= self.listeners.is_empty();
        self.listeners.push(fd);
        self.update_accepting();
        Ok(bound)
    }

    fn hold_accepts(&mut self, held: bool) {
        if std::mem::replace(&mut self.accepts_held, held) != held {
            self.update_accepting();
        }
    }

    fn stop_listening(&mut self) {
        self.listeners.clear();
        self.knocking.clear();
        self.accepting = false;
    }

    fn connect(&mut self, to: SocketAddr, from: Option<IpAddr>) -> Result<Conn, Refused<()>> {
        if self.table.free() == 0 {
            return Err(Refused::Full { capacity: self.config.capacity, back: () });
        }
        let fd = socket::client(to, from, true).map_err(|error| Refused::Os(error, ()))?;
        let (storage, len) = socket::to_raw(to);
        self.stats.enters += 1;
        // SAFETY: the storage lives on this stack and holds an address of `len` bytes.
        let result = unsafe { libc::connect(fd.as_raw_fd(), (&raw const storage).cast(), len) };
        let error =
            if result == 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) };
        let raw = fd.as_raw_fd();
        let Some(conn) = self.table.take(Phase::Connecting, fd) else {
            return Err(Refused::Full { capacity: self.config.capacity, back: () });
        };
        self.connecting += 1;
        self.stats.open_now += 1;
        let failed = match error {
            // Both ways the first readiness tells how it ended.
            0 | libc::EINPROGRESS => self
                .register(libc::EPOLL_CTL_ADD, raw, CONNECTION, tag(conn))
                .err()
                .map(|error| error.raw_os_error().unwrap_or(libc::EIO)),
            errno => Some(errno),
        };
        if let Some(errno) = failed {
            self.end(conn, Why::Error(errno));
        }
        Ok(conn)
    }

    fn send(&mut self, conn: Conn, payload: Payload) -> Result<(), Refused<Payload>> {
        let Some(slot) = self.table.live(conn) else { return Err(Refused::Gone(payload)) };
        if slot.flags & (flag::SHUT | flag::SHUT_WANTED) != 0 {
            return Err(Refused::Gone(payload));
        }
        if slot.phase != Phase::Open || slot.flags & flag::SEND != 0 {
            return Err(Refused::InFlight(payload));
        }
        if payload.as_slice().len() > SEND_BYTES_MAX {
            return Err(Refused::Os(io::Error::from_raw_os_error(libc::EMSGSIZE), payload));
        }
        slot.send = self
            .sends
            .insert(Outgoing { payload, sent: 0 })
            .map_err(|outgoing| Refused::Os(io::Error::from_raw_os_error(libc::ENOBUFS), outgoing.payload))?;
        slot.flags |= flag::SEND | flag::WRITING;
        self.writing.push_back(conn);
        Ok(())
    }

    fn shutdown(&mut self, conn: Conn) {
        let Some(slot) = self.table.live(conn) else { return };
        if slot.flags & (flag::SHUT | flag::SHUT_WANTED) != 0 {
            return;
        }
        slot.flags |= flag::SHUT_WANTED;
        if slot.phase == Phase::Open && slot.flags & flag::SEND == 0 {
            self.half_close(conn);
        }
    }

    fn close(&mut self, conn: Conn) {
        self.end(conn, Why::Local);
    }

    fn turn(&mut self, budget: Budget, events: &mut Vec<Event>) -> io::Result<Turn> {
        let mut left = budget.completions.max(1);
        self.tell(events);
        self.update_accepting();
        let mut more_ready = true;
        while left > 0 && (more_ready || self.has_work()) {
            more_ready = more_ready && self.collect()?;
            self.serve_waiting();
            self.work(&mut left);
            self.tell(events);
            self.update_accepting();
        }
        if !self.waiting.is_empty() {
            self.pool.note_starved();
        }
        Ok(Turn { more: more_ready || self.has_work(), completions: budget.completions.max(1) - left })
    }

    fn flush(&mut self) -> io::Result<()> {
        for _ in 0..self.writing.len() {
            if let Some(conn) = self.writing.pop_front() {
                self.write(conn);
            }
        }
        if !self.told.is_empty() {
            // The kernel knows nothing of these: without a wake the thread would sleep over them.
            self.config.waker.wake();
        }
        Ok(())
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn shape(&self) -> Shape {
        Shape { backend: "epoll", banks: 1, capacity: self.config.capacity }
    }

    fn stats(&self) -> Stats {
        Stats {
            buffers_lent_now: u64::from(self.pool.lent()),
            sends_in_flight_now: u64::from(self.sends.len()),
            operations_now: u64::from(self.sends.len()) + u64::from(self.connecting),
            ..self.stats
        }
    }
}
