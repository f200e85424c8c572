//! Accepting: single-shot, with the peer's address, straight into a free slot.
//!
//! A direct descriptor has no `getpeername`, and a multishot accept gives no address; so some 64 single-shot accepts
//! are outstanding, each with a slot and an address buffer of its own. Without free slots there are none, and
//! connections wait in the kernel's backlog.
//!
//! The rule that keeps it right: a listener's descriptor and an accept's address live until that accept came back.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::{opcode, types};

use super::UringEdge;
use super::addrs::Addr;
use super::bank::{Completion, Phase, flag};
use crate::Event;
use crate::limits::{ACCEPT_PAUSE_MS, ACCEPTS_MAX};
use crate::slot::Kind;

/// A listener and its outstanding accepts. One that ended keeps its place until they came back.
pub(super) struct Listener {
    pub fd: Option<OwnedFd>,
    pub outstanding: u32,
    pub ended: bool,
}

impl UringEdge {
    /// Keeps accepts outstanding while slots are free.
    pub(super) fn top_up_accepts(&mut self) {
        let active = self.listeners.iter().filter(|listener| !listener.ended).count() as u32;
        if active == 0 || self.accepts_held {
            return;
        }
        if let Some(until) = self.accept_pause {
            if Instant::now() < until {
                return;
            }
            self.accept_pause = None;
        }
        let each = (ACCEPTS_MAX / active).max(1);
        for listener in 0..self.listeners.len() {
            while !self.listeners[listener].ended && self.listeners[listener].outstanding < each {
                match self.take_slot(Phase::Accepting) {
                    Ok(Some((number, local))) => {
                        if !self.accept_into(listener, number, local) {
                            return;
                        }
                    }
                    Ok(None) => return,
                    Err(_) => {
                        // No further bank: go on with the slots there are, and try again later.
                        self.stats.accept_failures += 1;
                        self.accept_pause = Some(Instant::now() + Duration::from_millis(ACCEPT_PAUSE_MS));
                        return;
                    }
                }
            }
        }
    }

    fn accept_into(&mut self, listener: usize, number: usize, local: u32) -> bool {
        let Some(fd) = self.listeners[listener].fd.as_ref().map(AsRawFd::as_raw_fd) else { return false };
        let addr = Addr::room();
        let (storage, len) = (addr.storage(), addr.len_place());
        let Ok(index) = self.addrs.insert((addr, listener)) else {
            self.banks[number].release(local);
            return false;
        };
        let op = self.op(Kind::Accept, index, number, local);
        let slot = self.banks[number].slot_mut(local);
        slot.side = index;
        slot.flags = flag::LINK;
        let entry = opcode::Accept::new(types::Fd(fd), storage, len)
            .file_index(types::DestinationSlot::try_from_slot_target(local).ok())
            .build();
        // SAFETY: the address has an allocation of its own that stays in `addrs` until this accept came back, and
        // the listener stays open while accepts are outstanding.
        unsafe { self.banks[number].push(op, entry, &mut self.stats.enters) };
        self.listeners[listener].outstanding += 1;
        true
    }

    pub(super) fn on_accept(&mut self, number: usize, done: Completion, events: &mut Vec<Event>) {
        let local = done.op.local;
        let (addr, listener) = self.addrs.remove(done.op.index).expect("an accept holds its address");
        self.accept_returned(listener);
        let slot = self.banks[number].slot_mut(local);
        slot.flags = 0;
        if done.result < 0 {
            // A cancel of this accept may still be out; then the slot is freed when it came back.
            if slot.ops == 0 {
                self.banks[number].release(local);
            }
            match -done.result {
                libc::ECANCELED | libc::EINTR => {}
                libc::ECONNABORTED | libc::EPROTO => self.stats.accept_failures += 1,
                _ => {
                    self.stats.accept_failures += 1;
                    self.accept_pause = Some(Instant::now() + Duration::from_millis(ACCEPT_PAUSE_MS));
                }
            }
            return;
        }
        slot.phase = Phase::Open;
        self.stats.accepted += 1;
        self.stats.open_now += 1;
        self.arm_poll(number, local);
        events.push(Event::Accepted { conn: self.conn(number, local), peer: addr.read() });
    }

    fn accept_returned(&mut self, listener: usize) {
        self.listeners[listener].outstanding -= 1;
        self.drop_ended_listeners();
    }

    pub(super) fn drop_ended_listeners(&mut self) {
        for listener in &mut self.listeners {
            if listener.ended && listener.outstanding == 0 {
                listener.fd = None;
            }
        }
        if self.listeners.iter().all(|listener| listener.fd.is_none()) {
            self.listeners.clear();
        }
    }

    /// Cancels all accepts; their listeners close when the last came back.
    pub(super) fn cancel_accepts(&mut self) {
        for number in 0..self.banks.len() {
            for local in 0..self.banks[number].touched() {
                let slot = *self.banks[number].slot(local);
                if slot.phase == Phase::Accepting && slot.flags & flag::LINK != 0 {
                    let target = self.op(Kind::Accept, slot.side, number, local);
                    self.banks[number].push_cancel(local, target, &mut self.stats.enters);
                }
            }
        }
    }
}
