//! From readiness to bytes: arming polls, receiving into pooled buffers, waiting for buffers.
//!
//! A poll says that something may be there; a receive with MSG_DONTWAIT finds out. One receive per connection is in
//! flight. It is repeated while it may have left something: it filled its buffer, readiness came meanwhile, or the
//! peer ended its side (no other readiness follows that). Without a free buffer the connection waits in a queue, and
//! the pool wakes the shard when one returns.

use io_uring::{opcode, types};

use super::UringEdge;
use super::bank::{Completion, Phase, flag};
use crate::limits::RECV_BUFFER_BYTES;
use crate::slot::Kind;
use crate::{Event, Why};

/// What a connection waits for. Errors and hang-ups are reported always.
const INTEREST: u32 = (libc::POLLIN | libc::POLLRDHUP) as u32;
/// After these no other readiness may come.
const LAST_CALL: i32 = (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) as i32;

impl UringEdge {
    pub(super) fn arm_poll(&mut self, number: usize, local: u32) {
        let op = self.op(Kind::Poll, 0, number, local);
        let bank = &mut self.banks[number];
        bank.slot_mut(local).flags |= flag::POLL;
        let entry = opcode::PollAdd::new(types::Fixed(local), INTEREST).multi(true).build();
        // SAFETY: a poll points to no memory.
        unsafe { bank.push(op, entry, &mut self.stats.enters) };
    }

    pub(super) fn on_poll(&mut self, number: usize, done: Completion) {
        let local = done.op.local;
        let slot = self.banks[number].slot_mut(local);
        if !done.more {
            slot.flags &= !flag::POLL;
        }
        if slot.phase != Phase::Open {
            if !done.more {
                self.advance_teardown(number, local);
            }
            return;
        }
        if done.result < 0 {
            return self.begin_close(number, local, Why::Error(-done.result));
        }
        if done.result & LAST_CALL != 0 {
            slot.flags |= flag::HUP;
        }
        if !done.more {
            self.arm_poll(number, local);
        }
        self.want_bytes(number, local);
    }

    /// Receives, or notes that it must be done when the receive in flight is back or a buffer is free.
    pub(super) fn want_bytes(&mut self, number: usize, local: u32) {
        let slot = self.banks[number].slot_mut(local);
        if slot.flags & flag::RECV != 0 {
            slot.flags |= flag::AGAIN;
            return;
        }
        if slot.flags & flag::WAITING != 0 {
            return;
        }
        if !self.receive(number, local) {
            self.banks[number].slot_mut(local).flags |= flag::WAITING;
            self.stats.buffer_waits += 1;
            self.pool.note_starved();
            if self.waiting.len() as u64 > 2 * self.stats.open_now + 64 {
                // Those that closed while they waited are skipped when their turn comes; don't let them pile up.
                let mut waiting = std::mem::take(&mut self.waiting);
                waiting.retain(|&conn| self.find(conn).is_some());
                self.waiting = waiting;
            }
            self.waiting.push_back(self.conn(number, local));
        }
    }

    /// Submits a receive if a buffer is free.
    fn receive(&mut self, number: usize, local: u32) -> bool {
        let Some(buf) = self.pool.lend() else { return false };
        let start = buf.start();
        let op = self.op(Kind::Recv, buf.into_flight(), number, local);
        let bank = &mut self.banks[number];
        let slot = bank.slot_mut(local);
        slot.flags = (slot.flags & !(flag::AGAIN | flag::WAITING)) | flag::RECV;
        let entry = opcode::Recv::new(types::Fixed(local), start, RECV_BUFFER_BYTES as u32)
            .flags(libc::MSG_DONTWAIT)
            .build();
        // SAFETY: the buffer has RECV_BUFFER_BYTES in a chunk that never moves; it stays lent, so nobody else has
        // it, and the pool's memory lives until this receive came back.
        unsafe { bank.push(op, entry, &mut self.stats.enters) };
        true
    }

    pub(super) fn on_recv(&mut self, number: usize, done: Completion, events: &mut Vec<Event>) {
        let local = done.op.local;
        let bytes = self.pool.landed(done.op.index, done.result.max(0) as usize);
        let slot = self.banks[number].slot_mut(local);
        slot.flags &= !flag::RECV;
        if slot.phase != Phase::Open {
            return self.advance_teardown(number, local);
        }
        match done.result {
            0 => return self.begin_close(number, local, Why::Eof),
            // After a last call a receive never says "nothing yet"; should it, don't ask for ever.
            error if error == -libc::EAGAIN => slot.flags &= !flag::HUP,
            error if error == -libc::EINTR => slot.flags |= flag::AGAIN,
            error if error < 0 => return self.begin_close(number, local, Why::Error(-error)),
            received => {
                self.stats.bytes_received += received as u64;
                if received as usize == RECV_BUFFER_BYTES {
                    slot.flags |= flag::AGAIN;
                }
                // After a half-close nobody reads any more; the buffer goes back at once.
                if slot.flags & (flag::SHUT | flag::SHUT_WANTED) == 0 {
                    events.push(Event::Received { conn: self.conn(number, local), bytes });
                }
            }
        }
        if self.banks[number].slot(local).flags & (flag::AGAIN | flag::HUP) != 0 {
            self.want_bytes(number, local);
        }
    }

    /// Gives free buffers to those that wait.
    pub(super) fn serve_waiting(&mut self) {
        while self.pool.has_free() {
            let Some(conn) = self.waiting.pop_front() else { return };
            // Gone or closing meanwhile: nothing to receive.
            let Some((number, local)) = self.find(conn) else { continue };
            self.banks[number].slot_mut(local).flags &= !flag::WAITING;
            self.want_bytes(number, local);
        }
        if !self.waiting.is_empty() {
            self.pool.note_starved();
        }
    }
}
