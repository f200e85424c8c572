//! The simulated network itself: streams in memory, listeners, and the seeded dice that decide what goes wrong.
//!
//! A stream has two ends, each with an inbox of bounded size. What one end writes lands in the other's inbox at once;
//! the edges decide how late and in what pieces it is told. It leaves connections, slots and events to
//! [`super::SimEdge`].

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::wake::Waker;

/// A small generator (splitmix64): the same seed gives the same run everywhere.
#[derive(Clone, Debug)]
pub struct Dice {
    state: u64,
}

impl Dice {
    /// Dice that roll what `seed` says.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub fn roll(&mut self) -> u64 {
        // Constants from Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound` (0 for a bound of 0).
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.roll() % bound }
    }

    /// True `per_mille` times in a thousand.
    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1_000) < u64::from(per_mille)
    }

    /// Puts a list into random order.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

/// How often things go wrong, in a thousand.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// A receive brings only some of what is there; a send moves only some of what fits.
    pub partial_per_mille: u32,
    /// A completion comes a turn later than it could.
    pub late_per_mille: u32,
    /// A connection is reset while one of its operations is worked on.
    pub reset_per_mille: u32,
    /// Bytes that an end holds before its peer must wait.
    pub window_bytes: usize,
}

impl Faults {
    /// Partial and late, but nothing breaks.
    pub const UNTIDY: Self =
        Self { partial_per_mille: 300, late_per_mille: 300, reset_per_mille: 0, window_bytes: 64 << 10 };
    /// Everything comes at once and whole.
    pub const NONE: Self =
        Self { partial_per_mille: 0, late_per_mille: 0, reset_per_mille: 0, window_bytes: 64 << 10 };
}

pub(super) type EndId = u64;

/// One end of a stream.
#[derive(Default)]
pub(super) struct End {
    /// The other end, until it was closed.
    pub peer: Option<EndId>,
    /// Arrived and not read yet.
    pub inbox: VecDeque<u8>,
    /// The peer sends no more.
    pub eof: bool,
    /// The stream broke, with this errno.
    pub broken: Option<i32>,
    /// Half-closed by its owner.
    pub shut: bool,
    owner: Option<Waker>,
}

struct Listener {
    addr: SocketAddr,
    owner: Option<Waker>,
    backlog: VecDeque<(EndId, SocketAddr)>,
}

pub(super) struct World {
    pub dice: Dice,
    pub faults: Faults,
    ends: HashMap<EndId, End>,
    listeners: HashMap<u64, Listener>,
    next_id: u64,
    next_port: u16,
}

/// Connections that wait in a listener at most: more are refused.
const BACKLOG_MAX: usize = 4_096;

impl World {
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self {
            dice: Dice::new(seed),
            faults,
            ends: HashMap::new(),
            listeners: HashMap::new(),
            next_id: 1,
            next_port: 10_000,
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn port(&mut self) -> u16 {
        self.next_port = if self.next_port == u16::MAX { 10_000 } else { self.next_port + 1 };
        self.next_port
    }

    pub fn listen(&mut self, mut addr: SocketAddr, owner: Option<Waker>) -> (u64, SocketAddr) {
        if addr.port() == 0 {
            addr.set_port(self.port());
        }
        let id = self.id();
        self.listeners.insert(id, Listener { addr, owner, backlog: VecDeque::new() });
        (id, addr)
    }

    pub fn unlisten(&mut self, listener: u64) {
        for (end, _) in self.listeners.remove(&listener).into_iter().flat_map(|listener| listener.backlog) {
            self.reset(end);
            self.close(end);
        }
    }

    pub fn accept(&mut self, listener: u64) -> Option<(EndId, SocketAddr)> {
        self.listeners.get_mut(&listener)?.backlog.pop_front()
    }

    pub fn has_backlog(&self, listener: u64) -> bool {
        self.listeners.get(&listener).is_some_and(|listener| !listener.backlog.is_empty())
    }

    /// Connects to one of the listeners at `to`. The stream stands at once; whoever asked tells it later.
    pub fn dial(&mut self, to: SocketAddr, from: Option<IpAddr>, owner: Option<Waker>) -> io::Result<EndId> {
        let mut found: Vec<u64> =
            self.listeners.iter().filter(|(_, l)| l.addr == to).map(|(&id, _)| id).collect();
        // A map's order is not from the seed.
        found.sort_unstable();
        let refused = || io::Error::from_raw_os_error(libc::ECONNREFUSED);
        if found.is_empty() {
            return Err(refused());
        }
        let listener = found[self.dice.below(found.len() as u64) as usize];
        let from = SocketAddr::new(from.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), self.port());
        let (near, far) = (self.id(), self.id());
        let listening = self.listeners.get_mut(&listener).ok_or_else(refused)?;
        if listening.backlog.len() >= BACKLOG_MAX {
            return Err(refused());
        }
        listening.backlog.push_back((far, from));
        let waker = listening.owner.clone();
        if let Some(waker) = &waker {
            waker.wake();
        }
        self.ends.insert(near, End { peer: Some(far), owner, ..End::default() });
        self.ends.insert(far, End { peer: Some(near), owner: waker, ..End::default() });
        Ok(near)
    }

    pub fn end(&self, id: EndId) -> Option<&End> {
        self.ends.get(&id)
    }

    /// How much `id` could write now.
    pub fn room(&self, id: EndId) -> usize {
        let peer = self.ends.get(&id).and_then(|end| end.peer).and_then(|peer| self.ends.get(&peer));
        peer.map_or(0, |peer| self.faults.window_bytes.saturating_sub(peer.inbox.len()))
    }

    /// Writes up to `bytes` and returns how much fit.
    pub fn write(&mut self, id: EndId, bytes: &[u8]) -> io::Result<usize> {
        let end = self.ends.get(&id).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        if let Some(errno) = end.broken {
            return Err(io::Error::from_raw_os_error(errno));
        }
        if end.shut {
            return Err(io::Error::from_raw_os_error(libc::EPIPE));
        }
        let Some(peer) = end.peer else {
            // Nobody reads any more: the answer to these bytes is a reset.
            self.break_end(id, libc::ECONNRESET);
            return Err(io::Error::from_raw_os_error(libc::EPIPE));
        };
        let taken = bytes.len().min(self.room(id));
        if taken == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if let Some(peer) = self.ends.get_mut(&peer) {
            peer.inbox.extend(&bytes[..taken]);
        }
        self.wake(peer);
        Ok(taken)
    }

    /// Reads up to `into.len()` bytes; 0 is the end of the stream.
    pub fn read(&mut self, id: EndId, into: &mut [u8]) -> io::Result<usize> {
        let end = self.ends.get_mut(&id).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        if let Some(errno) = end.broken {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let taken = into.len().min(end.inbox.len());
        if taken == 0 {
            return if end.eof { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        for (place, byte) in into.iter_mut().zip(end.inbox.drain(..taken)) {
            *place = byte;
        }
        // The peer has room again.
        if let Some(peer) = end.peer {
            self.wake(peer);
        }
        Ok(taken)
    }

    /// Ends this end's sending.
    pub fn shutdown(&mut self, id: EndId) {
        let Some(end) = self.ends.get_mut(&id) else { return };
        end.shut = true;
        if let Some(peer) = end.peer
            && let Some(other) = self.ends.get_mut(&peer)
        {
            other.eof = true;
            self.wake(peer);
        }
    }

    /// Breaks the stream for both.
    pub fn reset(&mut self, id: EndId) {
        let peer = self.ends.get(&id).and_then(|end| end.peer);
        self.break_end(id, libc::ECONNRESET);
        if let Some(peer) = peer {
            self.break_end(peer, libc::ECONNRESET);
        }
    }

    fn break_end(&mut self, id: EndId, errno: i32) {
        if let Some(end) = self.ends.get_mut(&id) {
            end.broken.get_or_insert(errno);
            end.inbox.clear();
            self.wake(id);
        }
    }

    /// Closes an end: the peer sees the end of the stream, or a reset if unread bytes were thrown away.
    pub fn close(&mut self, id: EndId) {
        let unread = self.ends.get(&id).is_some_and(|end| !end.inbox.is_empty());
        if unread {
            self.reset(id);
        } else {
            self.shutdown(id);
        }
        let Some(end) = self.ends.remove(&id) else { return };
        if let Some(peer) = end.peer
            && let Some(other) = self.ends.get_mut(&peer)
        {
            other.peer = None;
            self.wake(peer);
        }
    }

    /// Streams' ends that nobody closed.
    pub fn open_ends(&self) -> usize {
        self.ends.len()
    }

    fn wake(&self, id: EndId) {
        if let Some(waker) = self.ends.get(&id).and_then(|end| end.owner.as_ref()) {
            waker.wake();
        }
    }
}
