//! One load thread: its edge, its clients, its timers. How they come in is in [`super::arrival`], what frames mean
//! in [`super::dialogue`].
//!
//! The loop: orders, then timers, then what is due, then one turn of the edge, then its events in order. It sleeps
//! only when all of that is empty, and never past the time that a message is due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use millrace_edge::clock::boot_us;
use millrace_edge::mailbox::Receiver;
use millrace_edge::wait::wait;
use millrace_edge::wake::Waker;
use millrace_edge::{Budget, Config, Conn, Edge, Event, Payload, Refused, Why, priority};
use millrace_protocol::received::Limits;

use super::board::Board;
use super::client::{Client, State};
use super::sending::{Numbers, Sending};
use super::{Manner, Order, Setup};
use crate::ledger::{Fate, Ledger};
use crate::limits::{JOIN_WINDOW, OUT_BYTES_MAX, TURN_COMPLETIONS};
use crate::measure::histogram;
use crate::rng::Rng;

/// What a timer does when it is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The client's heartbeat.
    Beat,
    /// The client connects (again).
    Connect,
    /// The client asks again to join.
    Join,
    /// This message is sent again.
    Resend(u32),
}

/// Sleep at most this long, so that the end of all orders is noticed, in us.
const SLEEP_US: u64 = 50_000;

/// Slots of a bank. A server that dies ends all of its clients' connections at once, and each end cancels a poll that the
/// kernel finds among those of its bank: with smaller ones, its clients are back sooner.
const BANK_SLOTS: u32 = 4_096;

/// Nearer than this to a message's time, the thread does not sleep: a sleep is rounded to whole milliseconds.
const SPIN_US: u64 = 1_000;

pub(super) const NOBODY: u32 = u32::MAX;

pub(super) struct Worker {
    index: u32,
    pub(super) setup: Arc<Setup>,
    pub(super) edge: Box<dyn Edge>,
    waker: Waker,
    orders: Receiver<Order>,
    pub(super) board: Arc<Board>,
    pub(super) clients: Vec<Client>,
    pub(super) by_slot: Vec<u32>,
    pub(super) timers: BinaryHeap<Reverse<(u64, u32, Timer)>>,
    pub(super) rng: Rng,
    pub(super) limits: Limits,
    pub(super) heartbeat_us: u64,
    /// The next client to be brought up, and the end of those who may be.
    pub(super) next_up: u32,
    pub(super) end_up: u32,
    /// Since when, and how many of them since.
    pub(super) pace: (u64, u64),
    /// Connects a second on this thread; 0: as the window lets.
    pub(super) per_s: f64,
    pub(super) arriving: u32,
    pub(super) join_wanted: bool,
    pub(super) next_join: usize,
    pub(super) joining: u32,
    pub(super) is_returning: bool,
    pub(super) sending: Option<Sending>,
    /// Of this thread before it gave way to others.
    niceness: i32,
    /// Of the schedules before.
    numbers: Numbers,
    pub(super) stream: u64,
    pub(super) logins: Histogram<u64>,
}

impl Worker {
    /// Opens the edge on this thread. Returns also the backend's name, and why it is that.
    pub(super) fn open(
        index: usize,
        setup: Arc<Setup>,
        waker: Waker,
        orders: Receiver<Order>,
        board: Arc<Board>,
    ) -> io::Result<(Self, &'static str, String)> {
        if let Some(&cpu) = setup.cpus.get(index) {
            millrace_edge::affinity::pin_current_thread(cpu)?;
        }
        let niceness = priority::niceness();
        if setup.niceness > 0
            && let Err(error) = priority::set_niceness(niceness + i32::from(setup.niceness))
        {
            board.trouble(|| format!("load threads can't give way to the servers: {error}"));
        }
        let (index, threads) = (index as u32, setup.threads as u32);
        let own = (setup.clients.saturating_sub(index)).div_ceil(threads);
        // Slots of closing connections are free a moment later than their clients: leave some room.
        let mut config = Config::new(own + own / 8 + 64, waker.clone());
        config.bank_slots = Some(BANK_SLOTS);
        let (edge, why) = millrace_edge::open(setup.io, config)?;
        let backend = edge.shape().backend;
        let mut rng = Rng::from_system();
        let worker = Worker {
            index,
            edge,
            waker,
            orders,
            board,
            clients: (0..own).map(|_| Client::new()).collect(),
            by_slot: Vec::new(),
            timers: BinaryHeap::new(),
            limits: Limits::default(),
            heartbeat_us: 0,
            next_up: 0,
            end_up: 0,
            pace: (0, 0),
            per_s: 0.0,
            arriving: 0,
            join_wanted: false,
            next_join: 0,
            joining: 0,
            is_returning: false,
            sending: None,
            niceness,
            numbers: Numbers::default(),
            stream: rng.bits(),
            logins: histogram(),
            rng,
            setup,
        };
        Ok((worker, backend, why))
    }

    /// Runs until nobody can give orders any more. Returns the books, if anything was to be sent.
    pub(super) fn run(mut self) -> io::Result<Option<Ledger>> {
        let mut events = Vec::new();
        loop {
            while let Some(order) = self.orders.recv() {
                self.obey(order);
            }
            if self.orders.is_closed() {
                return Ok(self.sending.map(|sending| sending.ledger));
            }
            self.fire_timers();
            self.bring_up();
            self.bring_together();
            self.send_due();
            let turn = self.edge.turn(Budget { completions: TURN_COMPLETIONS }, &mut events)?;
            for event in events.drain(..) {
                self.handle(event);
            }
            if !turn.more
                && turn.completions == 0
                && let Some(sleep) = self.sleep_us()
            {
                wait(&*self.edge, &self.waker, Duration::from_micros(sleep));
            }
        }
    }

    /// How long nothing needs to be done here; `None`: something does, or will in a moment.
    fn sleep_us(&self) -> Option<u64> {
        let now = boot_us();
        let mut sleep = SLEEP_US;
        if let Some(Reverse((at, ..))) = self.timers.peek() {
            sleep = sleep.min(at.saturating_sub(now));
        }
        if let Some(at) = self.next_up_at() {
            sleep = sleep.min(at.saturating_sub(now));
        }
        if self.join_wanted && self.joining < JOIN_WINDOW {
            return None;
        }
        if let Some(due) = self.sending.as_ref().and_then(Sending::next_due_us) {
            let left = due.saturating_sub(now);
            if left < SPIN_US {
                return None;
            }
            sleep = sleep.min(left - SPIN_US / 2);
        }
        (sleep > 0).then_some(sleep)
    }

    /// The client's number over all threads.
    pub(super) fn global(&self, local: u32) -> u32 {
        local * self.setup.threads as u32 + self.index
    }

    fn local(&self, global: u32) -> u32 {
        global / self.setup.threads as u32
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Up { to, per_s } => {
                let own_below = |n: u32| n.saturating_sub(self.index).div_ceil(self.setup.threads as u32);
                self.end_up = own_below(to).min(self.clients.len() as u32);
                self.per_s = per_s / self.setup.threads as f64;
                self.pace = (boot_us(), 0);
            }
            Order::Join => {
                self.join_wanted = true;
                self.next_join = 0;
            }
            Order::Send { schedule, start_us } => {
                let (index, threads) = (self.index, self.setup.threads as u32);
                self.close_books();
                let numbers = std::mem::take(&mut self.numbers);
                let is_own = |sender| sender % threads == index;
                let mut sending = Sending::new(&self.setup.world, schedule, start_us, numbers, is_own);
                if matches!(self.setup.manner, Manner::Listener { .. }) {
                    let all: Vec<u32> = (0..sending.schedule.messages.len() as u32).collect();
                    all.into_iter().for_each(|number| sending.ledger.answered(number, Fate::Acked));
                    sending.stop();
                }
                self.board.planned.add(sending.planned() as u64);
                self.sending = Some(sending);
            }
            Order::StopSending => {
                if let Some(sending) = &mut self.sending {
                    let left = sending.stop();
                    self.board.planned.sub(left as u64);
                }
            }
            Order::Books(sender) => {
                if let Some(ledger) = self.close_books() {
                    // The asker may have given up.
                    let _ = sender.send(ledger);
                }
            }
            Order::ComeBack => {
                self.is_returning = true;
                // A million devices don't wait for each other to come back.
                if self.setup.niceness > 0
                    && let Err(error) = priority::set_niceness(self.niceness)
                {
                    self.board.trouble(|| format!("clients come back at a low priority: {error}"));
                }
            }
            Order::Drop { back } => self.drop_all(back),
            Order::LoginTimes(sender) => {
                let times = std::mem::replace(&mut self.logins, histogram());
                // The asker may have given up.
                let _ = sender.send(times);
            }
        }
    }

    /// Ends the schedule under way; a later one goes on with its numbers.
    fn close_books(&mut self) -> Option<Ledger> {
        let (ledger, numbers) = self.sending.take()?.finish();
        self.numbers = numbers;
        Some(ledger)
    }

    fn drop_all(&mut self, back: bool) {
        self.is_returning = back;
        // An order to come up begins with the first again; those who come back need none.
        (self.next_up, self.end_up) = if back { (self.end_up, self.end_up) } else { (0, 0) };
        for local in 0..self.clients.len() as u32 {
            match self.clients[local as usize].state {
                State::Away | State::Closing => {}
                State::Waiting => {
                    if !back {
                        self.clients[local as usize].state = State::Away;
                    }
                }
                _ => {
                    self.board.dropped.add(1);
                    self.clients[local as usize].tries = 0;
                    self.close(local);
                }
            }
        }
    }

    fn fire_timers(&mut self) {
        let now = boot_us();
        while let Some(&Reverse((at, local, timer))) = self.timers.peek() {
            if at > now {
                return;
            }
            self.timers.pop();
            let state = self.clients[local as usize].state;
            match timer {
                Timer::Beat => {
                    let client = &mut self.clients[local as usize];
                    if !state.is_inside() {
                        client.beats = false;
                        continue;
                    }
                    if now < client.beat_at_us {
                        self.timers.push(Reverse((client.beat_at_us, local, Timer::Beat)));
                        continue;
                    }
                    client.session.ping(&mut client.out);
                    self.push(local);
                    self.timers.push(Reverse((now + self.heartbeat_us, local, Timer::Beat)));
                }
                Timer::Connect if state == State::Waiting => {
                    self.clients[local as usize].due_us = now;
                    self.connect(local);
                }
                Timer::Join if state == State::Joining => self.ask_to_join(local),
                Timer::Resend(message) => self.transmit(message),
                Timer::Connect | Timer::Join => {}
            }
        }
    }

    /// Sends what waits, unless a send is in flight already.
    pub(super) fn push(&mut self, local: u32) {
        let client = &mut self.clients[local as usize];
        if client.out.len() > OUT_BYTES_MAX {
            self.board.trouble(|| "a client had more than 1 MiB to send: closed".to_owned());
            self.close(local);
            return;
        }
        if client.in_flight || client.out.is_empty() {
            return;
        }
        let bytes = std::mem::take(&mut client.out);
        match self.edge.send(client.conn, Payload::Owned(bytes)) {
            Ok(()) => client.in_flight = true,
            // The connection is ending: its Closed is on the way.
            Err(Refused::Gone(_)) => {}
            Err(refused) => self.board.trouble(|| format!("a send was refused: {refused}")),
        }
    }

    /// Closes from our side. What is after that, its Closed event decides.
    pub(super) fn close(&mut self, local: u32) {
        self.leave(local);
        let client = &mut self.clients[local as usize];
        client.state = State::Closing;
        self.edge.close(client.conn);
    }

    /// Takes a client out of the counters of where it was.
    fn leave(&mut self, local: u32) {
        let state = self.clients[local as usize].state;
        if state.is_arriving() {
            self.arriving -= 1;
        }
        if state.is_inside() {
            self.board.inside.sub(1);
        }
        if state == State::Ready {
            self.board.ready.sub(1);
        }
        if state == State::Joining {
            self.joining -= 1;
        }
    }

    fn whose(&self, conn: Conn) -> Option<u32> {
        let local = *self.by_slot.get(conn.slot as usize)?;
        (local != NOBODY && self.clients[local as usize].conn == conn).then_some(local)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Accepted { .. } => {}
            Event::Connected { conn } => {
                let Some(local) = self.whose(conn) else { return };
                if self.clients[local as usize].state == State::Connecting {
                    self.board.connections.add(1);
                    self.greet(local);
                }
            }
            Event::Received { conn, mut bytes } => {
                if let Some(local) = self.whose(conn) {
                    self.read(local, &mut bytes);
                }
            }
            Event::Sent { conn } => {
                let Some(local) = self.whose(conn) else { return };
                self.clients[local as usize].in_flight = false;
                self.push(local);
            }
            Event::Closed { conn, why } => {
                let Some(local) = self.whose(conn) else { return };
                self.by_slot[conn.slot as usize] = NOBODY;
                self.closed(local, why);
            }
        }
    }

    fn closed(&mut self, local: u32, why: Why) {
        let state = self.clients[local as usize].state;
        self.leave(local);
        self.clients[local as usize].reset();
        match state {
            State::Closing => {
                let asked = self.clients[local as usize].retry_after_ms > 0;
                if self.is_returning || asked {
                    self.come_back_later(local);
                } else {
                    self.clients[local as usize].state = State::Away;
                }
            }
            _ if state.is_arriving() => {
                if state == State::Connecting {
                    self.board.connect_failures.add(1);
                } else {
                    self.board.login_failures.add(1);
                }
                self.board.trouble(|| format!("a connection ended while {state:?}: {}", said(why)));
                self.come_back_later(local);
            }
            _ => {
                self.board.disconnects.add(1);
                self.board.trouble(|| format!("a session ended while {state:?}: {}", said(why)));
                if self.is_returning {
                    self.come_back_later(local);
                } else {
                    self.clients[local as usize].state = State::Away;
                }
            }
        }
    }

    fn send_due(&mut self) {
        let now = boot_us();
        while let Some(number) = self.sending.as_mut().and_then(|sending| sending.take_due(now)) {
            self.board.due.add(1);
            if self.sending.as_mut().is_some_and(|sending| sending.enqueue(number)) {
                self.transmit(number);
            }
        }
    }

    /// Sends a message that is the first of its lane.
    pub(super) fn transmit(&mut self, number: u32) {
        let Some(&due) = self.sending.as_ref().and_then(|sending| sending.message(number)) else { return };
        let local = self.local(due.sender);
        if !self.clients[local as usize].state.is_inside() {
            self.board.trouble(|| "a message was due while its sender had no session".to_owned());
            self.board.answered.add(1);
            self.settle(number, Fate::Refused);
            return;
        }
        self.write_message(local, number, due);
        self.push(local);
    }
}

fn said(why: Why) -> String {
    match why {
        Why::Local => "by ourselves".to_owned(),
        Why::Eof => "the server ended it".to_owned(),
        Why::Error(errno) => io::Error::from_raw_os_error(errno).to_string(),
    }
}
