//! One ring with its direct descriptors and the compact state of their slots.
//!
//! A bank queues operations, enters the kernel when it has a reason to, and hands completions out. It counts
//! operations and knows which slots are free; what an operation means is told by its parent module.
//!
//! The rule that keeps it right: an operation that was pushed is submitted once, in order, whatever is full; and
//! `operations` reaches zero only when the kernel holds no pointer of ours.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use io_uring::{IoUring, cqueue, opcode, squeue};

use super::probe;
use crate::slot::{Kind, Op, next_generation};

/// How far a slot is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    Free,
    /// An accept that may fill it is outstanding.
    Accepting,
    Connecting,
    Open,
    /// Cancels are out; the descriptor is closed when every operation came back.
    Cancelling,
    /// The descriptor's close is out, alone.
    Closing,
}

/// Facts about a slot's operations, as bits.
pub(super) mod flag {
    /// A multishot poll is armed.
    pub(crate) const POLL: u16 = 1;
    /// A receive is in flight.
    pub(crate) const RECV: u16 = 1 << 1;
    /// A send is in flight; its payload is at `side`.
    pub(crate) const SEND: u16 = 1 << 2;
    /// A connect or an accept is in flight; its address is at `side`.
    pub(crate) const LINK: u16 = 1 << 3;
    /// Half-close when the send in flight is done.
    pub(crate) const SHUT_WANTED: u16 = 1 << 4;
    /// The half-close was submitted: incoming bytes are dropped.
    pub(crate) const SHUT: u16 = 1 << 5;
    /// Readiness came while a receive was in flight.
    pub(crate) const AGAIN: u16 = 1 << 6;
    /// The peer ended its side or broke: receive until that shows, as no other readiness may come.
    pub(crate) const HUP: u16 = 1 << 7;
    /// Waits for a buffer.
    pub(crate) const WAITING: u16 = 1 << 8;
}

/// State of one slot: 16 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub generation: u32,
    /// Index of what the operation in flight holds (payload or address); of a free slot, the next free one.
    pub side: u32,
    pub flags: u16,
    /// Why it closes: 0 local, -1 end of stream, otherwise an errno.
    pub why: i16,
    /// Operations in flight.
    pub ops: u8,
    pub phase: Phase,
}

const _: () = assert!(std::mem::size_of::<Slot>() == 16);
const NONE: u32 = u32::MAX;

/// Muting is sound where the kernel's "completions wait" is visible before it looks whether the eventfd is wanted.
/// The kernel has an atomic without ordering there: a full barrier on x86, but not everywhere.
pub const MUTES: bool = cfg!(target_arch = "x86_64");

/// What a bank is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct BankShape {
    /// Global number of the first slot.
    pub base: u32,
    pub slots: u32,
    pub sq_entries: u32,
    pub cq_entries: u32,
}

/// A completion, copied out of the ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub bank: u32,
    pub op: Op,
    pub result: i32,
    /// The operation stays armed.
    pub more: bool,
}

pub(super) struct Bank {
    ring: IoUring,
    /// Slots used so far, in order of first use: memory of slots never used is reserved, not touched.
    slots: Vec<Slot>,
    shape: BankShape,
    first_free: u32,
    free: u32,
    /// Operations that did not fit the submission queue while the kernel took no more.
    backlog: VecDeque<squeue::Entry>,
    /// Pushed and not yet come back for good.
    operations: u32,
    /// The eventfd is muted, as the edge is taking completions anyway.
    muted: bool,
}

impl Bank {
    /// A ring with `shape.slots` direct descriptors that writes `eventfd` when it has news.
    pub fn open(shape: BankShape, eventfd: BorrowedFd<'_>) -> io::Result<Self> {
        let ring = probe::build(shape.sq_entries, shape.cq_entries)?;
        ring.submitter().register_files_sparse(shape.slots)?;
        ring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        probe::restrict_and_enable(&ring)?;
        Ok(Self {
            ring,
            slots: Vec::with_capacity(shape.slots as usize),
            shape,
            first_free: NONE,
            free: shape.slots,
            backlog: VecDeque::new(),
            operations: 0,
            muted: false,
        })
    }

    pub fn shape(&self) -> BankShape {
        self.shape
    }

    /// Slots that nobody uses.
    pub fn free(&self) -> u32 {
        self.free
    }

    /// Operations that have not come back.
    pub fn operations(&self) -> u32 {
        self.operations
    }

    /// Takes a free slot, in phase `phase` and without operations.
    pub fn take(&mut self, phase: Phase) -> Option<u32> {
        let local = if self.first_free != NONE {
            let local = self.first_free;
            self.first_free = self.slots[local as usize].side;
            local
        } else if (self.slots.len() as u32) < self.shape.slots {
            self.slots.push(Slot { generation: 0, side: NONE, flags: 0, why: 0, ops: 0, phase: Phase::Free });
            self.slots.len() as u32 - 1
        } else {
            return None;
        };
        self.free -= 1;
        let slot = &mut self.slots[local as usize];
        assert!(slot.phase == Phase::Free && slot.ops == 0, "a slot was freed with operations in flight");
        slot.phase = phase;
        slot.side = NONE;
        Some(local)
    }

    /// Frees a slot: its next user has the next generation.
    pub fn release(&mut self, local: u32) {
        let first_free = self.first_free;
        let slot = &mut self.slots[local as usize];
        assert!(slot.phase != Phase::Free && slot.ops == 0, "operations are in flight");
        *slot = Slot {
            generation: next_generation(slot.generation),
            side: first_free,
            flags: 0,
            why: 0,
            ops: 0,
            phase: Phase::Free,
        };
        self.first_free = local;
        self.free += 1;
    }

    pub fn slot(&self, local: u32) -> &Slot {
        &self.slots[local as usize]
    }

    pub fn slot_mut(&mut self, local: u32) -> &mut Slot {
        &mut self.slots[local as usize]
    }

    /// The slot if it was ever used.
    pub fn slot_get(&self, local: u32) -> Option<&Slot> {
        self.slots.get(local as usize)
    }

    /// Slots used so far; those above never were.
    pub fn touched(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Puts a socket into a slot's direct descriptor. The caller closes its own descriptor afterwards.
    pub fn adopt(&mut self, local: u32, fd: RawFd) -> io::Result<()> {
        self.ring.submitter().register_files_update(local, &[fd]).map(drop)
    }

    /// Queues an operation of `local` under the user data of `op`, and counts it on both the bank and the slot.
    ///
    /// # Safety
    /// What the entry points to stays alive and unmoved until the operation's last completion was reaped.
    pub unsafe fn push(&mut self, op: Op, entry: squeue::Entry, enters: &mut u64) {
        self.operations += 1;
        self.slots[op.local as usize].ops += 1;
        let entry = entry.user_data(op.pack());
        if self.backlog.is_empty() {
            // SAFETY: the caller's promise.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // Full: submit the batch and go on. An error here shows again at the next enter.
            *enters += 1;
            let _ = self.ring.submit();
            // SAFETY: the caller's promise.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    /// Cancels the operation of `local` that has this user data.
    pub fn push_cancel(&mut self, local: u32, target: Op, enters: &mut u64) {
        let op =
            Op { kind: Kind::Cancel, index: 0, generation: self.slots[local as usize].generation, local };
        let entry = opcode::AsyncCancel::new(target.pack()).build();
        // SAFETY: a cancel points to no memory.
        unsafe { self.push(op, entry, enters) };
    }

    /// Cancels what is in flight for a slot and might wait. A receive is not cancelled: it never waits.
    pub fn cancel_all_of(&mut self, local: u32, enters: &mut u64) {
        let Slot { generation, side, flags, phase, .. } = self.slots[local as usize];
        let link = if phase == Phase::Accepting { Kind::Accept } else { Kind::Connect };
        for (bit, kind, index) in
            [(flag::POLL, Kind::Poll, 0), (flag::SEND, Kind::Send, side), (flag::LINK, link, side)]
        {
            if flags & bit != 0 {
                self.push_cancel(local, Op { kind, index, generation, local }, enters);
            }
        }
    }

    /// Whether a turn would find anything here: something to submit, to run in the kernel, or to reap.
    pub fn has_work(&mut self) -> bool {
        !self.backlog.is_empty() || self.must_enter() || !self.ring.completion().is_empty()
    }

    /// Whether something waits for a submit.
    pub fn has_queued(&mut self) -> bool {
        !self.backlog.is_empty() || !self.ring.submission().is_empty()
    }

    /// Whether completions overflowed into the kernel's own list.
    pub fn overflowed(&mut self) -> bool {
        self.ring.submission().cq_overflow()
    }

    fn must_enter(&mut self) -> bool {
        let queue = self.ring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// Submits what is queued, and runs what the kernel deferred to us. Does nothing without a reason to.
    pub fn enter(&mut self, enters: &mut u64) -> io::Result<()> {
        while self.must_enter() || !self.backlog.is_empty() {
            self.refill();
            *enters += 1;
            match self.ring.submit() {
                Ok(_) if self.backlog.is_empty() => return Ok(()),
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // The kernel wants its completions taken, or is short of memory for a moment: reap first.
                    Some(libc::EBUSY | libc::EAGAIN) => return Ok(()),
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    fn refill(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: promised by the caller of the `push` that put it here.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    /// Copies at most `max` completions out, and counts those that are the last of their operation.
    pub fn reap(&mut self, number: u32, max: u32, out: &mut Vec<Completion>) {
        let mut completions = self.ring.completion();
        for _ in 0..max {
            let Some(entry) = completions.next() else { break };
            let op = Op::unpack(entry.user_data()).expect("user data is of our own making");
            let more = cqueue::more(entry.flags());
            if !more {
                self.operations -= 1;
                self.slots[op.local as usize].ops -= 1;
            }
            out.push(Completion { bank: number, op, result: entry.result(), more });
        }
    }

    /// Keeps the eventfd quiet during a turn, which takes the completions anyway.
    pub fn mute(&mut self) {
        if MUTES && !self.muted {
            self.ring.completion().disable_eventfd();
            self.muted = true;
        }
    }

    /// Lets the eventfd tell again. Look for work once more after this (and a fence).
    pub fn unmute(&mut self) {
        if self.muted {
            self.ring.completion().enable_eventfd();
            self.muted = false;
        }
    }

    /// Closes all direct descriptors now; dropping the ring alone would do it at some later time.
    pub fn close_all(&mut self) {
        // The ring goes next and would close them too, so an error changes nothing.
        let _ = self.ring.submitter().unregister_files();
    }
}
