//! A seeded network in memory: [`SimEdge`]s, and peers that a test plays by hand.
//!
//! The same seed, faults and calls give the same run. Receives and sends come in pieces, completions late and in
//! any order across connections (never within one), connections break in the middle. There is no time in it: a
//! caller turns the edges when it likes.
//!
//! ```
//! use millrace_edge::{Budget, Config, Edge, Event, sim::{Faults, SimNet}, wake::Waker};
//! let net = SimNet::new(7, Faults::NONE);
//! let mut edge = net.edge(Config::new(10, Waker::new()?));
//! let addr = edge.listen("10.0.0.1:80".parse().unwrap())?;
//! let mut peer = net.dial(addr)?;
//! peer.write(b"hello")?;
//! let mut events = Vec::new();
//! while edge.turn(Budget { completions: 100 }, &mut events)?.more {}
//! assert!(matches!(&events[..], [Event::Accepted { .. }, Event::Received { bytes, .. }] if &**bytes == b"hello"));
//! # Ok::<(), std::io::Error>(())
//! ```

mod edge;
mod world;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

pub use self::edge::SimEdge;
pub use self::world::{Dice, Faults};
use self::world::{EndId, World};
use crate::Config;

/// The network. Clones are the same one; all of it lives on one thread.
#[derive(Clone)]
pub struct SimNet {
    world: Rc<RefCell<World>>,
}

impl SimNet {
    /// A network that behaves as `seed` and `faults` say.
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self { world: Rc::new(RefCell::new(World::new(seed, faults))) }
    }

    /// Changes the faults from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.world.borrow_mut().faults = faults;
    }

    /// An edge on this network. Of the config it uses the capacity, the waker and the number of buffers.
    pub fn edge(&self, config: Config) -> SimEdge {
        SimEdge::new(Rc::clone(&self.world), config)
    }

    /// Connects a peer played by hand.
    ///
    /// # Errors
    /// ECONNREFUSED: nobody listens there, or the listener's queue is full.
    pub fn dial(&self, to: SocketAddr) -> io::Result<SimPeer> {
        let end = self.world.borrow_mut().dial(to, None, None)?;
        Ok(SimPeer { world: Rc::clone(&self.world), end })
    }

    /// Listens by hand.
    pub fn listen(&self, addr: SocketAddr) -> SimListener {
        let (listener, addr) = self.world.borrow_mut().listen(addr, None);
        SimListener { world: Rc::clone(&self.world), listener, addr }
    }

    /// Ends of streams that are open now, those of edges included.
    pub fn open_ends(&self) -> usize {
        self.world.borrow().open_ends()
    }
}

/// The far end of a connection, played by hand. Never blocks. Dropping it closes it.
pub struct SimPeer {
    world: Rc<RefCell<World>>,
    end: EndId,
}

impl SimPeer {
    /// Writes what fits, at least one byte.
    ///
    /// # Errors
    /// WouldBlock when the window is full; EPIPE or ECONNRESET when the stream is broken.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.world.borrow_mut().write(self.end, bytes)
    }

    /// Reads what is there; 0 is the end of the stream.
    ///
    /// # Errors
    /// WouldBlock when nothing is there; ECONNRESET when the stream is broken.
    pub fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.world.borrow_mut().read(self.end, into)
    }

    /// Sends no more.
    pub fn shutdown_write(&mut self) {
        self.world.borrow_mut().shutdown(self.end);
    }

    /// Breaks the connection.
    pub fn reset(self) {
        self.world.borrow_mut().reset(self.end);
    }
}

impl Drop for SimPeer {
    fn drop(&mut self) {
        self.world.borrow_mut().close(self.end);
    }
}

/// A listener played by hand.
pub struct SimListener {
    world: Rc<RefCell<World>>,
    listener: u64,
    addr: SocketAddr,
}

impl SimListener {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Takes a waiting connection.
    pub fn accept(&mut self) -> Option<SimPeer> {
        let (end, _) = self.world.borrow_mut().accept(self.listener)?;
        Some(SimPeer { world: Rc::clone(&self.world), end })
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.world.borrow_mut().unlisten(self.listener);
    }
}
