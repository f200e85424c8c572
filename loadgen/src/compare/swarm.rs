//! The clients of a comparison: one thread, one edge, thousands of subscribers and a publisher, whatever they speak.
//!
//! It runs when its owner calls [`Swarm::until`], on the owner's thread. What is said is in [`super::codec`], what
//! counts in [`super::tally`]. The rule: messages leave when they are due, whether or not earlier ones have arrived.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use millrace_edge::clock::boot_us;
use millrace_edge::wait::wait;
use millrace_edge::wake::Waker;
use millrace_edge::{Budget, Config, Conn, Edge, Event, Io, Payload, Refused, Why};

use super::codec::{Codec, Role, Told};
use super::servers::Running;
use super::tally::Tally;
use crate::clients::source;
use crate::limits::{LATE_US, OUT_BYTES_MAX, TURN_COMPLETIONS};
use crate::payload::Header;
use crate::rng::Rng;

/// Connects under way at most: below the shortest backlog (mosquitto's 100), so that no SYN is dropped and waits for a
/// second.
const CONNECT_WINDOW: u32 = 64;

/// Sleep at most this long in one piece, in us.
const SLEEP_US: u64 = 20_000;

/// Nearer than this to a message's time, the thread does not sleep: a sleep is rounded to whole milliseconds.
const SPIN_US: u64 = 1_000;

/// No connection has this slot or number.
const NOBODY: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Away,
    Connecting,
    /// Connected, not subscribed yet.
    Entering,
    Ready,
    /// It ended.
    Gone,
}

struct Member {
    codec: Option<Box<dyn Codec>>,
    conn: Conn,
    /// Waits for the send in flight.
    out: Vec<u8>,
    /// The highest message that it got, and 1.
    next: u32,
    state: State,
    in_flight: bool,
}

/// Messages that the publisher sends.
#[derive(Clone, Copy, Debug)]
struct Sending {
    start_us: u64,
    gap_us: u64,
    next: u32,
}

/// All clients of one server.
pub struct Swarm {
    edge: Box<dyn Edge>,
    waker: Waker,
    events: Vec<Event>,
    /// Why it has the backend it has.
    pub backend: String,
    target: SocketAddr,
    /// Subscribers, and the publisher as the last.
    members: Vec<Member>,
    by_slot: Vec<u32>,
    timers: BinaryHeap<Reverse<(u64, u32)>>,
    rng: Rng,
    /// The next member that connects, and the end of those that may.
    next_up: u32,
    end_up: u32,
    arriving: u32,
    /// Subscribed now.
    pub ready: u32,
    /// Connections that ended although nobody wanted it.
    pub gone: u32,
    /// The first thing that went wrong, in words.
    pub trouble: Option<String>,
    sending: Option<Sending>,
    payload_bytes: usize,
    /// Messages that left more than [`LATE_US`] after they were due, and the worst of them.
    pub late_sends: u64,
    /// See [`Swarm::late_sends`].
    pub late_us_max: u64,
    /// The books.
    pub tally: Tally,
}

impl Swarm {
    /// Opens the edge on this thread; nobody connects yet.
    pub fn open(io: Io, subscribers: u32, target: SocketAddr, payload_bytes: usize) -> io::Result<Self> {
        let waker = Waker::new()?;
        let (edge, backend) = millrace_edge::open(io, Config::new(subscribers + 64, waker.clone()))?;
        let member = || Member {
            codec: None,
            conn: Conn { slot: NOBODY, generation: 0 },
            out: Vec::new(),
            next: 0,
            state: State::Away,
            in_flight: false,
        };
        Ok(Swarm {
            edge,
            waker,
            events: Vec::new(),
            backend,
            target,
            members: (0..=subscribers).map(|_| member()).collect(),
            by_slot: Vec::new(),
            timers: BinaryHeap::new(),
            rng: Rng::from_system(),
            next_up: 0,
            end_up: 0,
            arriving: 0,
            ready: 0,
            gone: 0,
            trouble: None,
            sending: None,
            payload_bytes,
            late_sends: 0,
            late_us_max: 0,
            tally: Tally::new(0, 0, subscribers),
        })
    }

    /// The publisher's number, and how many subscribers there are.
    fn publisher(&self) -> u32 {
        self.members.len() as u32 - 1
    }

    /// Lets members with numbers below `end` connect.
    pub fn connect_to(&mut self, end: u32) {
        self.end_up = end.min(self.members.len() as u32);
    }

    /// New books for `messages` messages, with a name of their own.
    pub fn expect(&mut self, messages: u32) {
        self.tally = Tally::new(self.rng.bits() as u32, messages, self.publisher());
        self.members.iter_mut().for_each(|member| member.next = 0);
    }

    /// Publishes the messages that are expected, `gap_us` apart, the first at `start_us`.
    pub fn publish(&mut self, start_us: u64, gap_us: u64) {
        self.sending = Some(Sending { start_us, gap_us, next: 0 });
    }

    /// Runs until `done` says so (true) or `limit` is over (false). `look` is called some fifty times a second.
    pub fn until<E: From<io::Error>>(
        &mut self,
        server: &mut Running,
        limit: Duration,
        mut look: impl FnMut(&Self, &mut Running) -> Result<(), E>,
        done: impl Fn(&Self) -> bool,
    ) -> Result<bool, E> {
        let end = boot_us() + limit.as_micros() as u64;
        let mut look_at = 0;
        loop {
            if done(self) {
                return Ok(true);
            }
            let now = boot_us();
            if now >= end {
                return Ok(false);
            }
            if now >= look_at {
                look_at = now + SLEEP_US;
                look(self, server)?;
            }
            self.fire_timers();
            self.bring_up(server);
            self.send_due();
            self.turn(end)?;
        }
    }

    fn turn(&mut self, end: u64) -> io::Result<()> {
        let mut events = std::mem::take(&mut self.events);
        let turn = self.edge.turn(Budget { completions: TURN_COMPLETIONS }, &mut events)?;
        for event in events.drain(..) {
            self.handle(event);
        }
        self.events = events;
        if !turn.more && turn.completions == 0 {
            let sleep = self.sleep_us(end);
            if sleep > 0 {
                wait(&*self.edge, &self.waker, Duration::from_micros(sleep));
            }
        }
        Ok(())
    }

    /// How long nothing needs to be done; 0: something does, or will in a moment.
    fn sleep_us(&self, end: u64) -> u64 {
        let now = boot_us();
        let mut sleep = SLEEP_US.min(end.saturating_sub(now));
        if let Some(Reverse((at, _))) = self.timers.peek() {
            sleep = sleep.min(at.saturating_sub(now));
        }
        if let Some(due) = self.next_due_us() {
            let left = due.saturating_sub(now);
            if left < SPIN_US {
                return 0;
            }
            sleep = sleep.min(left - SPIN_US / 2);
        }
        sleep
    }

    fn next_due_us(&self) -> Option<u64> {
        let sending = self.sending?;
        (sending.next < self.tally.messages())
            .then(|| sending.start_us + u64::from(sending.next) * sending.gap_us)
    }

    fn send_due(&mut self) {
        while let Some(due_us) = self.next_due_us().filter(|&due| due <= boot_us()) {
            let Some(sending) = &mut self.sending else { return };
            let message = sending.next;
            sending.next += 1;
            let publisher = self.publisher();
            let header =
                Header { run: self.tally.run(), message, conversation: 0, sender: publisher, due_us };
            let payload = header.encode(self.payload_bytes);
            let member = &mut self.members[publisher as usize];
            if let Some(codec) = member.codec.as_mut().filter(|_| member.state == State::Ready) {
                codec.publish(&payload, &mut member.out);
                self.push(publisher);
            } else {
                self.trouble_is(|| "a message was due while the publisher had no connection".to_owned());
            }
            let late_us = boot_us().saturating_sub(due_us);
            self.late_us_max = self.late_us_max.max(late_us);
            self.late_sends += u64::from(late_us > LATE_US);
        }
    }

    fn fire_timers(&mut self) {
        let now = boot_us();
        while let Some(&Reverse((at, number))) = self.timers.peek() {
            if at > now {
                return;
            }
            self.timers.pop();
            let member = &mut self.members[number as usize];
            let Some(codec) = &mut member.codec else { continue };
            if let Some(after_us) = codec.wake(&mut member.out) {
                self.timers.push(Reverse((now + after_us, number)));
            }
            self.push(number);
        }
    }

    fn bring_up(&mut self, server: &Running) {
        while self.next_up < self.end_up && self.arriving < CONNECT_WINDOW {
            let number = self.next_up;
            let from = source(self.target, number, self.members.len() as u32);
            match self.edge.connect(self.target, from) {
                Ok(conn) => {
                    let slot = conn.slot as usize;
                    if slot >= self.by_slot.len() {
                        self.by_slot.resize(slot + 1, NOBODY);
                    }
                    self.by_slot[slot] = number;
                    let mut nonce = [0; 16];
                    nonce[..8].copy_from_slice(&self.rng.bits().to_le_bytes());
                    nonce[8..].copy_from_slice(&self.rng.bits().to_le_bytes());
                    let role = if number == self.publisher() { Role::Publisher } else { Role::Subscriber };
                    let member = &mut self.members[number as usize];
                    member.codec = Some(server.codec(role, number, nonce));
                    member.conn = conn;
                    member.state = State::Connecting;
                    self.arriving += 1;
                }
                Err(refused) => {
                    self.members[number as usize].state = State::Gone;
                    self.gone += 1;
                    self.trouble_is(|| format!("connecting: {refused}"));
                }
            }
            self.next_up += 1;
        }
    }

    fn whose(&self, conn: Conn) -> Option<u32> {
        let number = *self.by_slot.get(conn.slot as usize)?;
        (number != NOBODY && self.members[number as usize].conn == conn).then_some(number)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Accepted { .. } => {}
            Event::Connected { conn } => {
                let Some(number) = self.whose(conn) else { return };
                let member = &mut self.members[number as usize];
                member.state = State::Entering;
                let Some(codec) = &mut member.codec else { return };
                if codec.hello(&mut member.out) {
                    self.is_ready(number);
                }
                self.push(number);
            }
            Event::Received { conn, mut bytes } => {
                if let Some(number) = self.whose(conn) {
                    self.hear(number, &mut bytes);
                }
            }
            Event::Sent { conn } => {
                let Some(number) = self.whose(conn) else { return };
                self.members[number as usize].in_flight = false;
                self.push(number);
            }
            Event::Closed { conn, why } => {
                let Some(number) = self.whose(conn) else { return };
                self.by_slot[conn.slot as usize] = NOBODY;
                self.ended(number, || match why {
                    Why::Local => "closed by ourselves".to_owned(),
                    Why::Eof => "the server ended it".to_owned(),
                    Why::Error(errno) => io::Error::from_raw_os_error(errno).to_string(),
                });
            }
        }
    }

    fn hear(&mut self, number: u32, bytes: &mut [u8]) {
        let now_us = boot_us();
        let is_publisher = number == self.publisher();
        let Member { codec, out, next, .. } = &mut self.members[number as usize];
        let Some(codec) = codec else { return };
        let mut is_ready = false;
        let (tally, timers) = (&mut self.tally, &mut self.timers);
        let heard = codec.hear(bytes, out, &mut |told| match told {
            // Where a publisher is a subscriber too, its own copies are not counted.
            Told::Message(payload) if !is_publisher => tally.delivered(next, payload, now_us),
            Told::Message(_) => {}
            Told::Ready => is_ready = true,
            Told::WakeIn(after_us) => timers.push(Reverse((now_us + after_us, number))),
        });
        if let Err(error) = heard {
            let conn = self.members[number as usize].conn;
            self.ended(number, || error.to_string());
            self.edge.close(conn);
            return;
        }
        if is_ready {
            self.is_ready(number);
        }
        self.push(number);
    }

    fn is_ready(&mut self, number: u32) {
        let member = &mut self.members[number as usize];
        if member.state == State::Entering {
            member.state = State::Ready;
            self.ready += 1;
            self.arriving -= 1;
        }
    }

    fn ended(&mut self, number: u32, why: impl FnOnce() -> String) {
        let member = &mut self.members[number as usize];
        let state = std::mem::replace(&mut member.state, State::Gone);
        // Nothing of it is needed any more.
        (member.codec, member.out) = (None, Vec::new());
        match state {
            State::Gone => return,
            State::Connecting | State::Entering => self.arriving -= 1,
            State::Ready => self.ready -= 1,
            State::Away => {}
        }
        self.gone += 1;
        let who = if number == self.publisher() { "the publisher" } else { "a subscriber" };
        self.trouble_is(|| format!("{who} ended while {state:?}: {}", why()));
    }

    /// Keeps the first trouble, which is usually the cause of the others.
    fn trouble_is(&mut self, what: impl FnOnce() -> String) {
        self.trouble.get_or_insert_with(what);
    }

    /// Sends what waits, unless a send is in flight already.
    fn push(&mut self, number: u32) {
        let member = &mut self.members[number as usize];
        if member.in_flight || member.out.is_empty() {
            return;
        }
        if member.out.len() > OUT_BYTES_MAX {
            let conn = member.conn;
            self.ended(number, || "it had more than 1 MiB to send".to_owned());
            self.edge.close(conn);
            return;
        }
        match self.edge.send(member.conn, Payload::Owned(std::mem::take(&mut member.out))) {
            Ok(()) => member.in_flight = true,
            // The connection is ending: its Closed is on the way.
            Err(Refused::Gone(_)) => {}
            Err(refused) => self.trouble_is(|| format!("a send was refused: {refused}")),
        }
    }
}
