//! The io_uring backend: banks of direct descriptors, and the order of a turn.
//!
//! Connections are direct descriptors in rings of at most 16,384 slots each; banks are opened one at a time as the
//! earlier ones fill, and all write one eventfd. Every connection waits in one multishot poll; readiness submits a
//! receive that never waits, into a pooled buffer. Sends have MSG_WAITALL and a completion always.
//! `bank` is one ring, `accept`, `ready` and `teardown` are a connection's beginning, its bytes and its end, and
//! [`probe`] says whether all this works here.
//!
//! The order of a turn: submit and run deferred work, copy completions out, then act on them one by one; again until
//! nothing is left or the budget is used. Only banks with work cost a system call.
//!
//! The rule that keeps it right: memory that an operation points to sits in a side table (buffers, payloads,
//! addresses) under the index in its user data, and leaves it only when the operation's completion was reaped.

mod accept;
mod addrs;
mod bank;
pub mod probe;
mod ready;
mod teardown;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use io_uring::{opcode, types};

use self::accept::Listener;
use self::addrs::Addr;
use self::bank::{Bank, BankShape, Completion, Phase, flag};
use crate::limits::{BANK_SLOTS_MAX, SEND_BYTES_MAX, TURN_ROUNDS_MAX};
use crate::pool::Pool;
use crate::slot::{Kind, Op, Slab};
use crate::{Budget, Config, Conn, Edge, Event, Payload, Refused, Shape, Stats, Turn, Why, rlimit, socket};

/// Connections in banks of io_uring. See the module's head.
pub struct UringEdge {
    config: Config,
    /// Slots of each bank but the last, which may have fewer.
    bank_slots: u32,
    banks: Vec<Bank>,
    pool: Pool,
    /// Payloads of sends in flight.
    sends: Slab<Payload>,
    /// Addresses of accepts and connects in flight, with the listener's number for accepts.
    addrs: Slab<(Addr, usize)>,
    listeners: Vec<Listener>,
    /// After a failure of our own machine: no accepts before this.
    accept_pause: Option<Instant>,
    /// By [`Edge::hold_accepts`].
    accepts_held: bool,
    /// Readable connections that found no buffer, first in first out.
    waiting: VecDeque<Conn>,
    /// Completions copied out and not yet acted on.
    reaped: Vec<Completion>,
    /// Bank that the next turn looks at first.
    first_bank: usize,
    stats: Stats,
}

impl UringEdge {
    /// An edge with one bank; the others follow when needed.
    ///
    /// # Errors
    /// What the kernel says to the ring, its descriptors or its restrictions.
    pub fn new(config: Config) -> io::Result<Self> {
        let files_max = u32::try_from(rlimit::nofile()?.soft).unwrap_or(u32::MAX);
        let bank_slots = config
            .bank_slots
            .unwrap_or(BANK_SLOTS_MAX)
            .min(BANK_SLOTS_MAX)
            .min(files_max)
            .min(config.capacity)
            .max(1);
        let pool = Pool::new(config.buffers, Some(config.waker.clone()));
        let mut edge = Self {
            config,
            bank_slots,
            banks: Vec::new(),
            pool,
            sends: Slab::new(),
            addrs: Slab::new(),
            listeners: Vec::new(),
            accept_pause: None,
            accepts_held: false,
            waiting: VecDeque::new(),
            reaped: Vec::new(),
            first_bank: 0,
            stats: Stats::default(),
        };
        edge.open_bank()?;
        Ok(edge)
    }

    fn open_bank(&mut self) -> io::Result<()> {
        let base = self.banks.len() as u32 * self.bank_slots;
        let shape = BankShape {
            base,
            slots: self.bank_slots.min(self.config.capacity - base),
            sq_entries: self.config.sq_entries,
            cq_entries: self.config.cq_entries,
        };
        self.banks.push(Bank::open(shape, self.config.waker.fd())?);
        Ok(())
    }

    /// Takes a slot in the first bank with room, opening the next bank if there is none.
    fn take_slot(&mut self, phase: Phase) -> io::Result<Option<(usize, u32)>> {
        let number = match self.banks.iter().position(|bank| bank.free() > 0) {
            Some(number) => number,
            None if self.banks.len() as u32 * self.bank_slots < self.config.capacity => {
                self.open_bank()?;
                self.banks.len() - 1
            }
            None => return Ok(None),
        };
        Ok(self.banks[number].take(phase).map(|local| (number, local)))
    }

    /// Bank and place of a connection whose generation is current.
    fn find(&self, conn: Conn) -> Option<(usize, u32)> {
        let number = (conn.slot / self.bank_slots) as usize;
        let local = conn.slot % self.bank_slots;
        let slot = self.banks.get(number)?.slot_get(local)?;
        let live = matches!(slot.phase, Phase::Connecting | Phase::Open);
        (live && slot.generation == conn.generation).then_some((number, local))
    }

    fn conn(&self, number: usize, local: u32) -> Conn {
        let bank = &self.banks[number];
        Conn { slot: bank.shape().base + local, generation: bank.slot(local).generation }
    }

    fn op(&self, kind: Kind, index: u32, number: usize, local: u32) -> Op {
        Op { kind, index, generation: self.banks[number].slot(local).generation, local }
    }

    fn on_connect(&mut self, number: usize, done: Completion, events: &mut Vec<Event>) {
        let local = done.op.local;
        drop(self.addrs.remove(done.op.index).expect("a connect holds its address"));
        let slot = self.banks[number].slot_mut(local);
        slot.flags &= !flag::LINK;
        if slot.phase != Phase::Connecting {
            return self.advance_teardown(number, local);
        }
        if done.result < 0 {
            return self.begin_close(number, local, Why::Error(-done.result));
        }
        slot.phase = Phase::Open;
        self.arm_poll(number, local);
        events.push(Event::Connected { conn: self.conn(number, local) });
        if self.banks[number].slot(local).flags & flag::SHUT_WANTED != 0 {
            self.submit_shutdown(number, local);
        }
    }

    fn on_send(&mut self, number: usize, done: Completion, events: &mut Vec<Event>) {
        let local = done.op.local;
        let payload = self.sends.remove(done.op.index).expect("a send holds its payload");
        let bytes = payload.as_slice().len();
        drop(payload);
        let slot = self.banks[number].slot_mut(local);
        slot.flags &= !flag::SEND;
        if done.result > 0 {
            self.stats.bytes_sent += done.result as u64;
        }
        if slot.phase != Phase::Open {
            return self.advance_teardown(number, local);
        }
        let flags = slot.flags;
        match done.result {
            result if result >= 0 && result as usize == bytes => {
                self.stats.sends += 1;
                events.push(Event::Sent { conn: self.conn(number, local) });
                if flags & flag::SHUT_WANTED != 0 {
                    self.submit_shutdown(number, local);
                }
            }
            // Some bytes went and the rest never will: the stream is broken.
            result if result >= 0 => self.begin_close(number, local, Why::Error(libc::EPIPE)),
            error => self.begin_close(number, local, Why::Error(-error)),
        }
    }

    fn submit_shutdown(&mut self, number: usize, local: u32) {
        let op = self.op(Kind::Shutdown, 0, number, local);
        let slot = self.banks[number].slot_mut(local);
        slot.flags = (slot.flags & !flag::SHUT_WANTED) | flag::SHUT;
        let entry = opcode::Shutdown::new(types::Fixed(local), libc::SHUT_WR).build();
        // SAFETY: a shutdown points to no memory.
        unsafe { self.banks[number].push(op, entry, &mut self.stats.enters) };
    }

    fn on_shutdown(&mut self, number: usize, done: Completion) {
        let local = done.op.local;
        if self.banks[number].slot(local).phase != Phase::Open {
            return self.advance_teardown(number, local);
        }
        // ENOTCONN: the peer has reset already, and the poll tells so too.
        if done.result < 0 && done.result != -libc::ENOTCONN {
            self.begin_close(number, local, Why::Error(-done.result));
        }
    }

    fn act(&mut self, done: Completion, events: &mut Vec<Event>) {
        let number = done.bank as usize;
        match done.op.kind {
            Kind::Poll => self.on_poll(number, done),
            Kind::Recv => self.on_recv(number, done, events),
            Kind::Send => self.on_send(number, done, events),
            Kind::Connect => self.on_connect(number, done, events),
            Kind::Accept => self.on_accept(number, done, events),
            Kind::Shutdown => self.on_shutdown(number, done),
            // Whether the target was found or not, its own completion tells.
            Kind::Cancel => self.cancel_returned(number, done.op.local),
            Kind::Close => self.on_closed(number, done.op.local, events),
        }
    }

    /// Submits, reaps and acts until nothing is left or the budget is used.
    fn rounds(&mut self, left: &mut u32, events: &mut Vec<Event>) -> io::Result<()> {
        self.serve_waiting();
        for _ in 0..TURN_ROUNDS_MAX {
            self.top_up_accepts();
            let banks = self.banks.len();
            let mut worked = false;
            for step in 0..banks {
                let number = (self.first_bank + step) % banks;
                let bank = &mut self.banks[number];
                if !bank.has_work() {
                    continue;
                }
                worked = true;
                bank.mute();
                self.stats.overflows += u64::from(bank.overflowed());
                bank.enter(&mut self.stats.enters)?;
                bank.reap(number as u32, *left, &mut self.reaped);
                *left -= self.reaped.len() as u32;
                let mut reaped = std::mem::take(&mut self.reaped);
                for done in reaped.drain(..) {
                    self.act(done, events);
                }
                self.reaped = reaped;
                if *left == 0 {
                    // The others come first next time.
                    self.first_bank = (number + 1) % banks;
                    break;
                }
            }
            if !worked || *left == 0 {
                break;
            }
            self.serve_waiting();
        }
        Ok(())
    }

    /// Lets the eventfd tell again what comes from now on, and returns whether there is work already.
    fn unmute_and_look(&mut self) -> bool {
        self.banks.iter_mut().for_each(Bank::unmute);
        // Between the unmuting and the look: either the kernel sees the eventfd wanted, or we see its news.
        fence(Ordering::SeqCst);
        self.banks.iter_mut().any(Bank::has_work)
    }
}

impl Edge for UringEdge {
    fn listen(&mut self, addr: SocketAddr) -> io::Result<SocketAddr> {
        let (fd, bound) = socket::listener(addr, false)?;
        self.listeners.push(Listener { fd: Some(fd), outstanding: 0, ended: false });
        self.top_up_accepts();
        self.flush()?;
        Ok(bound)
    }

    fn hold_accepts(&mut self, held: bool) {
        if std::mem::replace(&mut self.accepts_held, held) && !held {
            self.top_up_accepts();
        }
    }

    fn stop_listening(&mut self) {
        for listener in &mut self.listeners {
            listener.ended = true;
        }
        self.cancel_accepts();
        self.drop_ended_listeners();
        // An error shows again in the next turn.
        let _ = self.flush();
    }

    fn connect(&mut self, to: SocketAddr, from: Option<IpAddr>) -> Result<Conn, Refused<()>> {
        let (number, local) = match self.take_slot(Phase::Connecting) {
            Ok(Some(place)) => place,
            Ok(None) => return Err(Refused::Full { capacity: self.config.capacity, back: () }),
            Err(error) => return Err(Refused::Os(error, ())),
        };
        // The socket has a normal descriptor for a moment only: RLIMIT_NOFILE does not bound the connections.
        let adopted =
            socket::client(to, from, false).and_then(|fd| self.banks[number].adopt(local, fd.as_raw_fd()));
        if let Err(error) = adopted {
            self.banks[number].release(local);
            return Err(Refused::Os(error, ()));
        }
        let addr = Addr::of(to);
        let (storage, len) = (addr.storage(), addr.len());
        let index = match self.addrs.insert((addr, 0)) {
            Ok(index) => index,
            Err(_) => unreachable!("connects in flight are bounded by the capacity, which fits an index"),
        };
        let op = self.op(Kind::Connect, index, number, local);
        let slot = self.banks[number].slot_mut(local);
        slot.side = index;
        slot.flags = flag::LINK;
        let entry = opcode::Connect::new(types::Fixed(local), storage, len).build();
        // SAFETY: the address has an allocation of its own that stays in `addrs` until this connect came back.
        unsafe { self.banks[number].push(op, entry, &mut self.stats.enters) };
        self.stats.open_now += 1;
        Ok(self.conn(number, local))
    }

    fn send(&mut self, conn: Conn, payload: Payload) -> Result<(), Refused<Payload>> {
        let Some((number, local)) = self.find(conn) else { return Err(Refused::Gone(payload)) };
        let slot = self.banks[number].slot(local);
        if slot.flags & (flag::SHUT | flag::SHUT_WANTED) != 0 {
            return Err(Refused::Gone(payload));
        }
        if slot.phase != Phase::Open || slot.flags & flag::SEND != 0 {
            return Err(Refused::InFlight(payload));
        }
        let (start, len) = (payload.as_slice().as_ptr(), payload.as_slice().len());
        if len > SEND_BYTES_MAX {
            return Err(Refused::Os(io::Error::from_raw_os_error(libc::EMSGSIZE), payload));
        }
        let index = self
            .sends
            .insert(payload)
            .map_err(|payload| Refused::Os(io::Error::from_raw_os_error(libc::ENOBUFS), payload))?;
        let op = self.op(Kind::Send, index, number, local);
        let slot = self.banks[number].slot_mut(local);
        slot.side = index;
        slot.flags |= flag::SEND;
        let entry = opcode::Send::new(types::Fixed(local), start, len as u32)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build();
        // SAFETY: the bytes are on the heap behind the payload, which nothing changes and which stays in `sends`
        // until this send came back; moving the payload's handle does not move them.
        unsafe { self.banks[number].push(op, entry, &mut self.stats.enters) };
        Ok(())
    }

    fn shutdown(&mut self, conn: Conn) {
        let Some((number, local)) = self.find(conn) else { return };
        let slot = self.banks[number].slot_mut(local);
        if slot.flags & (flag::SHUT | flag::SHUT_WANTED) != 0 {
            return;
        }
        slot.flags |= flag::SHUT_WANTED;
        if slot.phase == Phase::Open && slot.flags & flag::SEND == 0 {
            self.submit_shutdown(number, local);
        }
    }

    fn close(&mut self, conn: Conn) {
        if let Some((number, local)) = self.find(conn) {
            self.begin_close(number, local, Why::Local);
        }
    }

    fn turn(&mut self, budget: Budget, events: &mut Vec<Event>) -> io::Result<Turn> {
        let mut left = budget.completions.max(1);
        let result = self.rounds(&mut left, events);
        let more = self.unmute_and_look();
        result?;
        Ok(Turn { more, completions: budget.completions.max(1) - left })
    }

    fn flush(&mut self) -> io::Result<()> {
        for bank in &mut self.banks {
            if bank.has_queued() {
                bank.enter(&mut self.stats.enters)?;
            }
        }
        Ok(())
    }

    fn flush_and_look(&mut self) -> io::Result<bool> {
        let mut result = Ok(());
        for bank in &mut self.banks {
            if bank.has_queued() {
                bank.mute();
                result = result.and(bank.enter(&mut self.stats.enters));
            }
        }
        let more = self.unmute_and_look();
        result.map(|()| more)
    }

    fn mute(&mut self) -> bool {
        self.banks.iter_mut().for_each(Bank::mute);
        bank::MUTES
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.config.waker.fd()
    }

    fn shape(&self) -> Shape {
        let banks = self.config.capacity.div_ceil(self.bank_slots).max(1);
        Shape { backend: "io_uring", banks, capacity: self.config.capacity }
    }

    fn stats(&self) -> Stats {
        Stats {
            buffers_lent_now: u64::from(self.pool.lent()),
            sends_in_flight_now: u64::from(self.sends.len()),
            operations_now: self.banks.iter().map(|bank| u64::from(bank.operations())).sum(),
            ..self.stats
        }
    }
}
