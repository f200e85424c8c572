//! What every torture test stands on: three networks behind one trait, and a rig that checks the promises of the
//! edge on each event it sees.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use millrace_edge::sim::{Dice, Faults, SimListener, SimNet, SimPeer};
use millrace_edge::wake::Waker;
use millrace_edge::{Budget, Config, Conn, Edge, Event, Io, Payload, Refused, Why, open, wait};

/// No test takes longer than this, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// The far end of a connection. Never blocks; dropping it closes it.
pub trait Peer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize>;
    fn shutdown_write(&mut self);
    fn reset(self: Box<Self>);
}

/// A listener on the far side.
pub trait Door {
    fn addr(&self) -> SocketAddr;
    fn accept(&mut self) -> Option<Box<dyn Peer>>;
}

/// Where edges and peers meet.
pub trait Net {
    fn edge(&self, config: Config) -> Box<dyn Edge>;
    fn dial(&self, to: SocketAddr) -> Box<dyn Peer>;
    fn listen(&self) -> Box<dyn Door>;
    /// From here on operations fail by themselves, where the network can do that.
    fn break_things(&self) {}
    fn name(&self) -> &'static str;
}

pub struct Kernel(pub Io);

impl Net for Kernel {
    fn edge(&self, config: Config) -> Box<dyn Edge> {
        open(self.0, config).expect("this machine has the backend under test").0
    }
    fn dial(&self, to: SocketAddr) -> Box<dyn Peer> {
        let stream = TcpStream::connect(to).expect("the backlog has room");
        stream.set_nonblocking(true).unwrap();
        Box::new(stream)
    }
    fn listen(&self) -> Box<dyn Door> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Box::new(listener)
    }
    fn name(&self) -> &'static str {
        if self.0 == Io::Epoll { "epoll" } else { "io_uring" }
    }
}

impl Peer for TcpStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(self, bytes)
    }
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Read::read(self, into)
    }
    fn shutdown_write(&mut self) {
        // The other side may have reset already.
        let _ = self.shutdown(Shutdown::Write);
    }
    fn reset(self: Box<Self>) {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        // SAFETY: the option lives on this stack, and its size is passed.
        let result = unsafe {
            libc::setsockopt(
                self.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const linger).cast(),
                size_of::<libc::linger>() as libc::socklen_t,
            )
        };
        assert_eq!(result, 0);
    }
}

impl Door for TcpListener {
    fn addr(&self) -> SocketAddr {
        self.local_addr().unwrap()
    }
    fn accept(&mut self) -> Option<Box<dyn Peer>> {
        let (stream, _) = TcpListener::accept(self).ok()?;
        stream.set_nonblocking(true).unwrap();
        Some(Box::new(stream))
    }
}

impl Net for SimNet {
    fn edge(&self, config: Config) -> Box<dyn Edge> {
        Box::new(SimNet::edge(self, config))
    }
    fn dial(&self, to: SocketAddr) -> Box<dyn Peer> {
        Box::new(SimNet::dial(self, to).expect("the backlog has room"))
    }
    fn listen(&self) -> Box<dyn Door> {
        Box::new(SimNet::listen(self, "10.0.0.9:0".parse().unwrap()))
    }
    fn break_things(&self) {
        self.set_faults(Faults { reset_per_mille: 20, ..Faults::UNTIDY });
    }
    fn name(&self) -> &'static str {
        "sim"
    }
}

impl Peer for SimPeer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        SimPeer::write(self, bytes)
    }
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        SimPeer::read(self, into)
    }
    fn shutdown_write(&mut self) {
        SimPeer::shutdown_write(self);
    }
    fn reset(self: Box<Self>) {
        SimPeer::reset(*self);
    }
}

impl Door for SimListener {
    fn addr(&self) -> SocketAddr {
        SimListener::addr(self)
    }
    fn accept(&mut self) -> Option<Box<dyn Peer>> {
        Some(Box::new(SimListener::accept(self)?))
    }
}

/// The three networks, for a test that runs on each.
pub fn nets(seed: u64) -> Vec<Box<dyn Net>> {
    vec![
        Box::new(SimNet::new(seed, Faults::UNTIDY)),
        Box::new(Kernel(Io::Uring)),
        Box::new(Kernel(Io::Epoll)),
    ]
}

/// Runs `test` on the three networks with some seeds, and prints them.
pub fn on_all(name: &str, seeds: u64, test: impl Fn(&dyn Net, Dice)) {
    let first = std::env::var("TORTURE_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in first.map_or(1..seeds + 1, |seed: u64| seed..seed + 1) {
        for net in nets(seed) {
            println!("{name} on {}: TORTURE_SEED={seed}", net.name());
            test(&*net, Dice::new(seed));
        }
    }
}

/// What the rig knows of a connection.
#[derive(Debug, PartialEq, Eq)]
enum Life {
    Connecting,
    Open {
        sending: bool,
    },
    /// We closed it: only `Closed` may come.
    Closing,
}

/// An edge under test, with a checker of its promises.
pub struct Rig {
    pub edge: Box<dyn Edge>,
    pub waker: Waker,
    pub dice: Dice,
    lives: HashMap<Conn, Life>,
    /// The last generation that closed, of each slot.
    last: HashMap<u32, u32>,
    pub closed: u64,
}

impl Rig {
    pub fn new(net: &dyn Net, capacity: u32, dice: Dice, change: impl FnOnce(&mut Config)) -> Self {
        let waker = Waker::new().unwrap();
        let mut config = Config::new(capacity, waker.clone());
        change(&mut config);
        let edge = net.edge(config);
        Self { edge, waker, dice, lives: HashMap::new(), last: HashMap::new(), closed: 0 }
    }

    pub fn listen(&mut self) -> SocketAddr {
        self.edge.listen("127.0.0.1:0".parse().unwrap()).unwrap()
    }

    pub fn connect(&mut self, to: SocketAddr) -> Conn {
        self.connect_from(to, None)
    }

    pub fn connect_from(&mut self, to: SocketAddr, from: impl Into<Option<IpAddr>>) -> Conn {
        let conn = self.edge.connect(to, from.into()).unwrap();
        assert!(self.lives.insert(conn, Life::Connecting).is_none(), "{conn:?} is in use");
        conn
    }

    pub fn send(&mut self, conn: Conn, payload: Payload) {
        self.edge.send(conn, payload).expect("the connection is open and idle");
        assert_eq!(
            self.lives.insert(conn, Life::Open { sending: true }),
            Some(Life::Open { sending: false })
        );
    }

    /// As `connect`, but a full edge is no surprise.
    pub fn try_connect(&mut self, to: SocketAddr) {
        match self.edge.connect(to, None) {
            Ok(conn) => assert!(self.lives.insert(conn, Life::Connecting).is_none(), "{conn:?} is in use"),
            Err(Refused::Full { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// As `send`, but the edge may know already that the connection is gone, or half-closed.
    pub fn try_send(&mut self, conn: Conn, payload: Payload) {
        match self.edge.send(conn, payload) {
            Ok(()) => drop(self.lives.insert(conn, Life::Open { sending: true })),
            Err(Refused::Gone(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }

    pub fn is_idle(&self, conn: Conn) -> bool {
        self.lives.get(&conn) == Some(&Life::Open { sending: false })
    }

    /// Closes; the edge may know already of another end, and keeps that reason then.
    pub fn close(&mut self, conn: Conn) {
        self.edge.close(conn);
        *self.lives.get_mut(&conn).expect("open") = Life::Closing;
    }

    pub fn open(&self) -> Vec<Conn> {
        let mut open: Vec<Conn> = self.lives.keys().copied().collect();
        open.sort_unstable();
        open
    }

    /// One turn with a random budget, checked.
    pub fn turn(&mut self) -> (Vec<Event>, bool) {
        let completions = 1 + self.dice.below(40) as u32;
        let mut events = Vec::new();
        let turn = self.edge.turn(Budget { completions }, &mut events).unwrap();
        assert!(turn.completions <= completions, "{turn:?} of {completions}");
        events.iter().for_each(|event| self.check(event));
        (events, turn.more)
    }

    fn check(&mut self, event: &Event) {
        match *event {
            Event::Accepted { conn, .. } => {
                let before = self.lives.insert(conn, Life::Open { sending: false });
                assert_eq!(before, None, "{conn:?} was accepted into a slot in use");
                if let Some(&last) = self.last.get(&conn.slot) {
                    assert_eq!(conn.generation, (last + 1) % (1 << 20), "each use has the next generation");
                }
            }
            Event::Connected { conn } => {
                let before = self.lives.insert(conn, Life::Open { sending: false });
                assert_eq!(before, Some(Life::Connecting), "{conn:?}");
            }
            Event::Received { conn, ref bytes } => {
                assert!(
                    matches!(self.lives[&conn], Life::Open { .. }),
                    "{conn:?} is {:?}",
                    self.lives[&conn]
                );
                assert!(!bytes.is_empty());
            }
            Event::Sent { conn } => {
                let before = self.lives.insert(conn, Life::Open { sending: false });
                assert_eq!(before, Some(Life::Open { sending: true }), "{conn:?}");
            }
            Event::Closed { conn, why } => {
                let before = self.lives.remove(&conn).unwrap_or_else(|| panic!("{conn:?} closed twice"));
                assert!(why != Why::Local || before == Life::Closing, "{conn:?} was not closed by us");
                self.last.insert(conn.slot, conn.generation);
                self.closed += 1;
            }
        }
    }

    /// Turns until `done` says so, sleeping when the edge says that there is nothing.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self, Vec<Event>) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (events, more) = self.turn();
            if done(self, events) {
                return;
            }
            assert!(Instant::now() < deadline, "never: {what}; {:?}", self.edge.stats());
            if !more {
                self.edge.flush().unwrap();
                wait::wait(&*self.edge, &self.waker, Duration::from_millis(2));
            }
        }
    }

    /// Turns until an accept.
    pub fn accepted(&mut self) -> Conn {
        let mut found = None;
        self.until("a connection is accepted", |_, events| {
            for event in events {
                if let Event::Accepted { conn, .. } = event {
                    found = Some(conn);
                }
            }
            found.is_some()
        });
        found.unwrap()
    }

    /// Turns until `conn` is closed, and says why; other events are dropped.
    pub fn closed(&mut self, conn: Conn) -> Why {
        let mut found = None;
        self.until("a connection is closed", |_, events| {
            for event in events {
                if let Event::Closed { conn: closed, why } = event
                    && closed == conn
                {
                    found = Some(why);
                }
            }
            found.is_some()
        });
        found.unwrap()
    }

    /// Closes everything and checks that nothing is left.
    pub fn finish(mut self) {
        self.edge.stop_listening();
        for conn in self.open() {
            if self.lives[&conn] != Life::Closing {
                self.close(conn);
            }
        }
        self.until("everything is closed", |rig, _| {
            // An accept may have won against the end of listening.
            for conn in rig.open() {
                if matches!(rig.lives[&conn], Life::Open { .. }) {
                    rig.close(conn);
                }
            }
            let stats = rig.edge.stats();
            rig.lives.is_empty() && stats.operations_now == 0
        });
        let stats = self.edge.stats();
        let left = (stats.open_now, stats.buffers_lent_now, stats.sends_in_flight_now, stats.operations_now);
        assert_eq!(left, (0, 0, 0, 0), "{stats:?}");
    }
}

/// Reads what a peer has now. The result is its end, if that came: `Ok` for an end of stream, or the error.
pub fn drain(peer: &mut dyn Peer, into: &mut Vec<u8>) -> Option<io::Result<()>> {
    let mut bytes = [0u8; 16 << 10];
    loop {
        match peer.read(&mut bytes) {
            Ok(0) => return Some(Ok(())),
            Ok(count) => into.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => return Some(Err(error)),
        }
    }
}

/// Bytes that differ from place to place, so that a loss or a swap shows.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&dice.roll().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
