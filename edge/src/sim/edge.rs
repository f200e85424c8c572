//! The edge over the simulated network.
//!
//! A turn collects everything that could complete, rolls the dice for its order and for what comes late, partial or
//! broken, and tells the rest. It keeps the promises of the real backends, so that what holds over it holds there.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use super::world::{EndId, World};
use crate::limits::RECV_BUFFER_BYTES;
use crate::pool::Pool;
use crate::slot::next_generation;
use crate::{Budget, Config, Conn, Edge, Event, Payload, Refused, Shape, Stats, Turn, Why};

enum State {
    Connecting(Result<EndId, i32>),
    Open {
        end: EndId,
    },
    /// The stream is gone; `Closed` comes when the dice let it.
    Closing {
        why: Why,
    },
}

struct Slot {
    generation: u32,
    state: Option<State>,
    send: Option<(Payload, usize)>,
    shut_wanted: bool,
    shut: bool,
    /// Counted as waiting for a buffer.
    waits: bool,
}

/// What a turn could work on.
#[derive(Clone, Copy)]
enum Work {
    Accept(u64),
    Connect(u32),
    Receive(u32),
    Send(u32),
    Close(u32),
}

/// An edge whose network is a [`super::SimNet`].
pub struct SimEdge {
    world: Rc<RefCell<World>>,
    config: Config,
    pool: Pool,
    slots: Vec<Slot>,
    /// Last in, first out: slots are reused as soon as possible.
    free: Vec<u32>,
    listeners: Vec<u64>,
    /// By [`Edge::hold_accepts`].
    accepts_held: bool,
    stats: Stats,
}

impl SimEdge {
    pub(super) fn new(world: Rc<RefCell<World>>, config: Config) -> Self {
        let pool = Pool::new(config.buffers, Some(config.waker.clone()));
        Self {
            world,
            config,
            pool,
            slots: Vec::new(),
            free: Vec::new(),
            listeners: Vec::new(),
            accepts_held: false,
            stats: Stats::default(),
        }
    }

    fn take(&mut self, state: State) -> Option<Conn> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if (self.slots.len() as u32) < self.config.capacity => {
                self.slots.push(Slot {
                    generation: 0,
                    state: None,
                    send: None,
                    shut_wanted: false,
                    shut: false,
                    waits: false,
                });
                self.slots.len() as u32 - 1
            }
            None => return None,
        };
        self.stats.open_now += 1;
        let entry = &mut self.slots[slot as usize];
        entry.state = Some(state);
        Some(Conn { slot, generation: entry.generation })
    }

    fn live(&mut self, conn: Conn) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(conn.slot as usize)?;
        let live = matches!(slot.state, Some(State::Connecting(_) | State::Open { .. }));
        (live && slot.generation == conn.generation).then_some(slot)
    }

    fn has_room(&self) -> bool {
        !self.free.is_empty() || (self.slots.len() as u32) < self.config.capacity
    }

    /// Ends the stream of a slot now, and has `Closed` told later.
    fn end(&mut self, slot: u32, why: Why) {
        let entry = &mut self.slots[slot as usize];
        if let Some(State::Open { end } | State::Connecting(Ok(end))) = entry.state {
            self.world.borrow_mut().close(end);
        }
        entry.state = Some(State::Closing { why });
        entry.send = None;
    }

    /// Everything that could complete now.
    fn possible(&self) -> Vec<Work> {
        let world = self.world.borrow();
        let mut list = Vec::new();
        if self.has_room() && !self.accepts_held {
            list.extend(self.listeners.iter().filter(|&&l| world.has_backlog(l)).map(|&l| Work::Accept(l)));
        }
        for (number, slot) in self.slots.iter().enumerate() {
            let number = number as u32;
            match slot.state {
                None => {}
                Some(State::Connecting(_)) => list.push(Work::Connect(number)),
                Some(State::Closing { .. }) => list.push(Work::Close(number)),
                Some(State::Open { end }) => {
                    let Some(end_state) = world.end(end) else { continue };
                    let readable = !end_state.inbox.is_empty() || end_state.eof || end_state.broken.is_some();
                    if readable && (self.pool.has_free() || !slot.waits) {
                        list.push(Work::Receive(number));
                    }
                    let stuck =
                        end_state.broken.is_none() && end_state.peer.is_some() && world.room(end) == 0;
                    if slot.send.is_some() && !stuck {
                        list.push(Work::Send(number));
                    }
                }
            }
        }
        list
    }

    fn act(&mut self, work: Work, events: &mut Vec<Event>) {
        match work {
            Work::Accept(listener) => self.accept(listener, events),
            Work::Connect(slot) => self.connected(slot, events),
            Work::Receive(slot) => self.receive(slot, events),
            Work::Send(slot) => self.progress(slot, events),
            Work::Close(slot) => self.closed(slot, events),
        }
    }

    fn accept(&mut self, listener: u64, events: &mut Vec<Event>) {
        if !self.has_room() {
            return;
        }
        let Some((end, peer)) = self.world.borrow_mut().accept(listener) else { return };
        if let Some(conn) = self.take(State::Open { end }) {
            self.stats.accepted += 1;
            events.push(Event::Accepted { conn, peer });
        }
    }

    fn connected(&mut self, slot: u32, events: &mut Vec<Event>) {
        let entry = &mut self.slots[slot as usize];
        match entry.state {
            Some(State::Connecting(Ok(end))) => {
                entry.state = Some(State::Open { end });
                events.push(Event::Connected { conn: Conn { slot, generation: entry.generation } });
                self.half_close_if_wanted(slot);
            }
            Some(State::Connecting(Err(errno))) => self.end(slot, Why::Error(errno)),
            _ => {}
        }
    }

    fn receive(&mut self, slot: u32, events: &mut Vec<Event>) {
        let entry = &mut self.slots[slot as usize];
        let Some(State::Open { end }) = entry.state else { return };
        let Some(mut buf) = self.pool.lend() else {
            if !entry.waits {
                entry.waits = true;
                self.stats.buffer_waits += 1;
            }
            self.pool.note_starved();
            return;
        };
        entry.waits = false;
        let mut world = self.world.borrow_mut();
        let faults = world.faults;
        if world.dice.chance(faults.reset_per_mille) {
            world.reset(end);
        }
        let mut bytes_max = RECV_BUFFER_BYTES;
        if world.dice.chance(faults.partial_per_mille) {
            bytes_max = 1 + world.dice.below(16) as usize;
        }
        let mut bytes = [0u8; RECV_BUFFER_BYTES];
        let result = world.read(end, &mut bytes[..bytes_max]);
        drop(world);
        let conn = Conn { slot, generation: entry.generation };
        let deaf = entry.shut || entry.shut_wanted;
        match result {
            Ok(0) => self.end(slot, Why::Eof),
            Ok(count) => {
                self.stats.bytes_received += count as u64;
                buf.fill(&bytes[..count]);
                if !deaf {
                    events.push(Event::Received { conn, bytes: buf });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.end(slot, Why::Error(error.raw_os_error().unwrap_or(libc::EIO))),
        }
    }

    fn progress(&mut self, slot: u32, events: &mut Vec<Event>) {
        let entry = &mut self.slots[slot as usize];
        let (Some(State::Open { end }), Some((payload, sent))) = (&entry.state, &mut entry.send) else {
            return;
        };
        let mut world = self.world.borrow_mut();
        let faults = world.faults;
        if world.dice.chance(faults.reset_per_mille) {
            world.reset(*end);
        }
        let mut rest = &payload.as_slice()[*sent..];
        if world.dice.chance(faults.partial_per_mille) && rest.len() > 1 {
            rest = &rest[..1 + world.dice.below(rest.len() as u64 - 1) as usize];
        }
        let result = world.write(*end, rest);
        drop(world);
        match result {
            Ok(count) => {
                *sent += count;
                self.stats.bytes_sent += count as u64;
                if *sent == payload.as_slice().len() {
                    entry.send = None;
                    self.stats.sends += 1;
                    events.push(Event::Sent { conn: Conn { slot, generation: entry.generation } });
                    self.half_close_if_wanted(slot);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.end(slot, Why::Error(error.raw_os_error().unwrap_or(libc::EIO))),
        }
    }

    fn half_close_if_wanted(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        if let Some(State::Open { end }) = entry.state
            && entry.shut_wanted
            && entry.send.is_none()
        {
            entry.shut_wanted = false;
            entry.shut = true;
            self.world.borrow_mut().shutdown(end);
        }
    }

    fn closed(&mut self, slot: u32, events: &mut Vec<Event>) {
        let entry = &mut self.slots[slot as usize];
        let Some(State::Closing { why }) = entry.state else { return };
        events.push(Event::Closed { conn: Conn { slot, generation: entry.generation }, why });
        *entry = Slot {
            generation: next_generation(entry.generation),
            state: None,
            send: None,
            shut_wanted: false,
            shut: false,
            waits: false,
        };
        self.free.push(slot);
        self.stats.open_now -= 1;
    }
}

impl Edge for SimEdge {
    fn listen(&mut self, addr: SocketAddr) -> io::Result<SocketAddr> {
        let (listener, bound) = self.world.borrow_mut().listen(addr, Some(self.config.waker.clone()));
        self.listeners.push(listener);
        Ok(bound)
    }

    fn hold_accepts(&mut self, held: bool) {
        self.accepts_held = held;
    }

    fn stop_listening(&mut self) {
        for listener in self.listeners.drain(..) {
            self.world.borrow_mut().unlisten(listener);
        }
    }

    fn connect(&mut self, to: SocketAddr, from: Option<IpAddr>) -> Result<Conn, Refused<()>> {
        let full = Refused::Full { capacity: self.config.capacity, back: () };
        if !self.has_room() {
            return Err(full);
        }
        let dialled = self.world.borrow_mut().dial(to, from, Some(self.config.waker.clone()));
        let dialled = dialled.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
        self.take(State::Connecting(dialled)).ok_or(full)
    }

    fn send(&mut self, conn: Conn, payload: Payload) -> Result<(), Refused<Payload>> {
        let Some(slot) = self.live(conn) else { return Err(Refused::Gone(payload)) };
        if slot.shut || slot.shut_wanted {
            return Err(Refused::Gone(payload));
        }
        if slot.send.is_some() || matches!(slot.state, Some(State::Connecting(_))) {
            return Err(Refused::InFlight(payload));
        }
        slot.send = Some((payload, 0));
        Ok(())
    }

    fn shutdown(&mut self, conn: Conn) {
        let Some(slot) = self.live(conn) else { return };
        if !slot.shut {
            slot.shut_wanted = true;
            self.half_close_if_wanted(conn.slot);
        }
    }

    fn close(&mut self, conn: Conn) {
        if self.live(conn).is_some() {
            self.end(conn.slot, Why::Local);
        }
    }

    fn turn(&mut self, budget: Budget, events: &mut Vec<Event>) -> io::Result<Turn> {
        self.stats.enters += 1;
        let mut list = self.possible();
        let mut done = 0;
        let mut more = false;
        {
            let mut world = self.world.borrow_mut();
            world.dice.shuffle(&mut list);
            let late = world.faults.late_per_mille;
            list.retain(|_| {
                let comes = !world.dice.chance(late);
                more |= !comes;
                comes
            });
        }
        for work in list {
            if done == budget.completions.max(1) {
                more = true;
                break;
            }
            done += 1;
            self.act(work, events);
        }
        // Connections without a buffer are not work: the pool wakes when one returns.
        let more = more || !self.possible().is_empty();
        Ok(Turn { more, completions: done })
    }

    fn flush(&mut self) -> io::Result<()> {
        // Nothing tells a sleeping thread that its own calls left work.
        if !self.possible().is_empty() {
            self.config.waker.wake();
        }
        Ok(())
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.config.waker.fd()
    }

    fn shape(&self) -> Shape {
        Shape { backend: "sim", banks: 1, capacity: self.config.capacity }
    }

    fn stats(&self) -> Stats {
        let sends = self.slots.iter().filter(|slot| slot.send.is_some()).count() as u64;
        Stats {
            buffers_lent_now: u64::from(self.pool.lent()),
            sends_in_flight_now: sends,
            operations_now: sends,
            ..self.stats
        }
    }
}

impl Drop for SimEdge {
    fn drop(&mut self) {
        self.stop_listening();
        for slot in 0..self.slots.len() as u32 {
            self.end(slot, Why::Local);
        }
    }
}
