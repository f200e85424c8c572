//! How connections end: cancel what is in flight, then close, then free the slot; and how a whole edge ends.
//!
//! A close alone succeeds while a poll is armed, and the peer never sees an end of stream: the armed operation keeps
//! the socket. So everything armed is cancelled first, by its user data (by descriptor the kernel would scan), the
//! descriptor is closed when all operations came back, and the slot is free when the close came back.

use std::time::{Duration, Instant};

use io_uring::{opcode, types};

use super::UringEdge;
use super::bank::{Completion, Phase, flag};
use crate::limits::DROP_WAIT_MS;
use crate::slot::Kind;
use crate::{Event, Why};

fn encode(why: Why) -> i16 {
    match why {
        Why::Local => 0,
        Why::Eof => -1,
        // An errno is below 4096, and never 0.
        Why::Error(errno) => i16::try_from(errno).unwrap_or(i16::MAX).max(1),
    }
}

fn decode(why: i16) -> Why {
    match why {
        0 => Why::Local,
        -1 => Why::Eof,
        errno => Why::Error(i32::from(errno)),
    }
}

impl UringEdge {
    /// Ends an open or connecting slot. The first reason stays.
    pub(super) fn begin_close(&mut self, number: usize, local: u32, why: Why) {
        let bank = &mut self.banks[number];
        debug_assert!(matches!(bank.slot(local).phase, Phase::Open | Phase::Connecting));
        bank.cancel_all_of(local, &mut self.stats.enters);
        let slot = bank.slot_mut(local);
        slot.phase = Phase::Cancelling;
        slot.why = encode(why);
        self.advance_teardown(number, local);
    }

    /// A cancel came back: the slot may have nothing left in flight.
    pub(super) fn cancel_returned(&mut self, number: usize, local: u32) {
        // Cancels of accepts are counted on slots that another completion may have opened meanwhile.
        match self.banks[number].slot(local).phase {
            Phase::Cancelling => self.advance_teardown(number, local),
            Phase::Accepting if self.banks[number].slot(local).flags & flag::LINK == 0 => {
                self.banks[number].release(local);
            }
            _ => {}
        }
    }

    /// Closes the descriptor once nothing else is in flight.
    pub(super) fn advance_teardown(&mut self, number: usize, local: u32) {
        let op = self.op(Kind::Close, 0, number, local);
        let bank = &mut self.banks[number];
        let slot = bank.slot_mut(local);
        if slot.phase != Phase::Cancelling || slot.ops > 0 {
            return;
        }
        slot.phase = Phase::Closing;
        let entry = opcode::Close::new(types::Fixed(local)).build();
        // SAFETY: a close points to no memory.
        unsafe { bank.push(op, entry, &mut self.stats.enters) };
    }

    /// The descriptor is closed: frees the slot and tells so.
    pub(super) fn on_closed(&mut self, number: usize, local: u32, events: &mut Vec<Event>) {
        let conn = self.conn(number, local);
        let why = decode(self.banks[number].slot(local).why);
        self.banks[number].release(local);
        self.stats.open_now -= 1;
        events.push(Event::Closed { conn, why });
    }

    /// Takes everything back from the kernel without telling anyone. Returns whether that succeeded.
    fn reclaim(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_millis(DROP_WAIT_MS);
        for bank in &mut self.banks {
            // One by one: a cancel of everything looks at those that it has cancelled already again for each further
            // one, which takes the kernel a second for a full bank.
            for local in 0..bank.touched() {
                bank.cancel_all_of(local, &mut self.stats.enters);
            }
        }
        let mut reaped: Vec<Completion> = Vec::new();
        loop {
            for (number, bank) in self.banks.iter_mut().enumerate() {
                if bank.enter(&mut self.stats.enters).is_err() {
                    return false;
                }
                bank.reap(number as u32, u32::MAX, &mut reaped);
            }
            let idle = reaped.is_empty();
            for done in reaped.drain(..).filter(|done| !done.more) {
                match done.op.kind {
                    Kind::Recv => drop(self.pool.landed(done.op.index, 0)),
                    Kind::Send => drop(self.sends.remove(done.op.index)),
                    Kind::Accept | Kind::Connect => drop(self.addrs.remove(done.op.index)),
                    Kind::Poll | Kind::Shutdown | Kind::Cancel | Kind::Close => {}
                }
            }
            if self.banks.iter().all(|bank| bank.operations() == 0) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            if idle {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Drop for UringEdge {
    fn drop(&mut self) {
        if self.reclaim() {
            self.banks.iter_mut().for_each(|bank| bank.close_all());
            return;
        }
        // The kernel still holds pointers into these. A leak is harmless; freed memory that it writes to is not.
        self.pool.leak();
        std::mem::forget(std::mem::replace(&mut self.sends, crate::slot::Slab::new()));
        std::mem::forget(std::mem::replace(&mut self.addrs, crate::slot::Slab::new()));
    }
}
