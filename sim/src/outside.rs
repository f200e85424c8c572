//! Everything around the processes: time, network, store, ledger, trace. What a process or device is handed when it
//! does something.

use bytes::Bytes;

use crate::agenda::{Agenda, Due, Seat};
use crate::ledger::Ledger;
use crate::network::{ConnId, Network};
use crate::random::Random;
use crate::store::Store;
use crate::trace::Trace;

/// See the module's head.
#[derive(Debug)]
pub struct Outside {
    /// The world's time, us since its beginning.
    pub now_us: u64,
    /// What is due.
    pub agenda: Agenda,
    /// Connections.
    pub network: Network,
    /// The store.
    pub store: Store,
    /// What was promised, and whether it is kept.
    pub ledger: Ledger,
    /// What happened.
    pub trace: Trace,
    /// For scheduling of threads.
    pub random: Random,
    /// Steps and turns of cores so far.
    pub steps: u64,
    /// Partitions of the cluster.
    pub partitions: u16,
    /// The life of each gateway: who connects, connects to that one.
    pub lives: Vec<u32>,
}

impl Outside {
    /// Bytes from one side of a connection.
    pub fn send(&mut self, id: ConnId, side: usize, bytes: Bytes) {
        self.trace.number(id << 1 | side as u64);
        self.trace.bytes(&bytes);
        self.network.send(&mut self.agenda, self.now_us, id, side, bytes);
    }

    /// One side closes.
    pub fn close(&mut self, id: ConnId, side: usize) {
        self.network.close(&mut self.agenda, self.now_us, id, side);
    }

    /// Something for later.
    pub fn after(&mut self, us: u64, due: Due) {
        self.agenda.at(self.now_us + us, due);
    }

    /// How late a thread is scheduled that was just woken, us.
    pub fn wake_us(&mut self) -> u64 {
        match self.random.below(24) {
            0 => self.random.between(100, 4_000),
            _ => self.random.between(5, 60),
        }
    }

    /// A turn of a thread.
    pub fn turn(&mut self, seat: Seat, at_us: u64) {
        self.agenda.at(at_us, Due::Turn(seat));
    }

    /// One event was handed to a core, or one turn made.
    pub fn stepped(&mut self, seat: Seat, what: u64) {
        self.steps += 1;
        self.trace.number(self.now_us);
        self.trace.number(u64::from(seat.life) << 32 | (seat.thread as u64) << 16 | what);
    }
}
