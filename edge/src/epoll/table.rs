//! Slots of the epoll backend: descriptor, phase and flags of each connection, in 20 bytes.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::Conn;
use crate::slot::next_generation;

/// How far a slot is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Free,
    Connecting,
    Open,
    /// Its `Closed` is queued; the descriptor is gone.
    Closing,
}

/// Facts about a connection, as bits.
pub(super) mod flag {
    /// In the queue of readable connections.
    pub(crate) const READABLE: u8 = 1;
    /// In the queue of those that wait for a buffer.
    pub(crate) const WAITING: u8 = 1 << 1;
    /// In the queue of connections with something to write.
    pub(crate) const WRITING: u8 = 1 << 2;
    /// Has a send in flight, at `send`.
    pub(crate) const SEND: u8 = 1 << 3;
    /// Half-close when the send in flight is done.
    pub(crate) const SHUT_WANTED: u8 = 1 << 4;
    /// Half-closed: incoming bytes are dropped.
    pub(crate) const SHUT: u8 = 1 << 5;
    /// The peer ended its side or broke: receive until that shows.
    pub(crate) const HUP: u8 = 1 << 6;
    /// Closed by our own call.
    pub(crate) const LOCAL: u8 = 1 << 7;
}

/// One connection.
pub(super) struct Slot {
    pub generation: u32,
    /// Index of the payload in flight; of a free slot, the next free one.
    pub send: u32,
    pub fd: Option<OwnedFd>,
    pub phase: Phase,
    pub flags: u8,
}

const NONE: u32 = u32::MAX;

/// All slots. Those never used are reserved address space, not memory.
pub(super) struct Table {
    slots: Vec<Slot>,
    capacity: u32,
    first_free: u32,
    free: u32,
}

impl Table {
    pub fn new(capacity: u32) -> Self {
        Self { slots: Vec::with_capacity(capacity as usize), capacity, first_free: NONE, free: capacity }
    }

    pub fn free(&self) -> u32 {
        self.free
    }

    pub fn take(&mut self, phase: Phase, fd: OwnedFd) -> Option<Conn> {
        let slot = if self.first_free != NONE {
            let slot = self.first_free;
            self.first_free = self.slots[slot as usize].send;
            slot
        } else if (self.slots.len() as u32) < self.capacity {
            self.slots.push(Slot { generation: 0, send: NONE, fd: None, phase: Phase::Free, flags: 0 });
            self.slots.len() as u32 - 1
        } else {
            return None;
        };
        self.free -= 1;
        let entry = &mut self.slots[slot as usize];
        entry.phase = phase;
        entry.send = NONE;
        entry.fd = Some(fd);
        Some(Conn { slot, generation: entry.generation })
    }

    /// Frees a slot: its next user has the next generation.
    pub fn release(&mut self, conn: Conn) {
        let first_free = self.first_free;
        let entry = &mut self.slots[conn.slot as usize];
        assert!(entry.generation == conn.generation && entry.fd.is_none() && entry.phase == Phase::Closing);
        *entry = Slot {
            generation: next_generation(conn.generation),
            send: first_free,
            fd: None,
            phase: Phase::Free,
            flags: 0,
        };
        self.first_free = conn.slot;
        self.free += 1;
    }

    /// Whether this connection was closed by our own call, and that is not told yet.
    pub fn closed_locally(&self, conn: Conn) -> bool {
        let slot = &self.slots[conn.slot as usize];
        slot.generation == conn.generation && slot.flags & flag::LOCAL != 0
    }

    /// The slot of a connecting or open connection with this generation.
    pub fn live(&mut self, conn: Conn) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(conn.slot as usize)?;
        let live = matches!(slot.phase, Phase::Connecting | Phase::Open);
        (live && slot.generation == conn.generation).then_some(slot)
    }
}

impl Slot {
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}
