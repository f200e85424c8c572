//! All clients of a store's parts on one thread: their sockets, and the loop that a part is run in.
//!
//! The rule: what was heard in a turn is handled in order, then what that has clients say goes out, each connection's in
//! one send.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use millrace_edge::clock::boot_us;
use millrace_edge::wait::wait;
use millrace_edge::wake::Waker;
use millrace_edge::{Budget, Config, Conn, Edge, Event, Io, Payload, Refused, Why};

use super::fleet::Fleet;
use super::line::{Heard, Line, Who};
use crate::limits::{OUT_BYTES_MAX, TURN_COMPLETIONS};
use crate::rig::RunError;

/// Connections at most, those that are closing included.
const CAPACITY: u32 = 4_096;

/// Connects and logins under way: few enough that no login waits long for another.
const ARRIVING_MAX: usize = 32;

/// Sleep at most this long in one piece, in us: a part's timers are no finer.
const SLEEP_US: u64 = 5_000;

/// How often the servers are looked at, in us.
const LOOK_US: u64 = 200_000;

const NOBODY: u32 = u32::MAX;

/// What is done with the clients.
pub(super) trait Part {
    /// Something was heard.
    ///
    /// # Errors
    /// What must not be: the run ends.
    fn heard(&mut self, desk: &mut Desk, now_us: u64, line: usize, heard: Heard) -> Result<(), String>;

    /// What is due; called after everything that was heard in a turn.
    ///
    /// # Errors
    /// The servers can't be read.
    fn turn(&mut self, desk: &mut Desk, fleet: &Fleet, now_us: u64) -> Result<(), RunError>;

    /// Whether it is over.
    fn is_done(&self) -> bool;

    /// What it is at, for who waits in vain.
    fn state(&self) -> String;
}

/// All clients.
pub(super) struct Desk {
    edge: Box<dyn Edge>,
    waker: Waker,
    events: Vec<Event>,
    target: SocketAddr,
    lines: Vec<Line>,
    by_slot: Vec<u32>,
    /// Have something to send.
    dirty: Vec<u32>,
    /// The next to be connected.
    next_up: usize,
    arriving: usize,
}

impl Desk {
    /// Opens the sockets' edge on this thread; there is nobody yet.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn open(io: Io, target: SocketAddr) -> io::Result<Self> {
        let waker = Waker::new()?;
        let (edge, _) = millrace_edge::open(io, Config::new(CAPACITY, waker.clone()))?;
        Ok(Desk {
            edge,
            waker,
            events: Vec::new(),
            target,
            lines: Vec::new(),
            by_slot: Vec::new(),
            dirty: Vec::new(),
            next_up: 0,
            arriving: 0,
        })
    }

    /// Has one more client come. Returns its number.
    pub(super) fn add(&mut self, who: Who) -> usize {
        self.lines.push(Line::new(who));
        self.lines.len() - 1
    }

    /// A client.
    pub(super) fn line(&self, number: usize) -> &Line {
        &self.lines[number]
    }

    /// A client that is to say something.
    pub(super) fn say(&mut self, number: usize) -> &mut Line {
        let line = &mut self.lines[number];
        if line.out.is_empty() {
            self.dirty.push(number as u32);
        }
        line
    }

    /// A client goes, without a word.
    pub(super) fn close(&mut self, number: usize) {
        if let Some(conn) = self.lines[number].conn.take() {
            self.edge.close(conn);
        }
    }

    /// All go. Those who come later have numbers from 0 again.
    pub(super) fn dismiss(&mut self) {
        (0..self.lines.len()).for_each(|number| self.close(number));
        self.lines.clear();
        self.dirty.clear();
        (self.next_up, self.arriving) = (0, 0);
    }

    /// Runs a part to its end.
    ///
    /// # Errors
    /// A client that lost its connection, a server that ended, Ctrl-C, or the time was up.
    pub(super) fn run(
        &mut self,
        part: &mut impl Part,
        fleet: &mut Fleet,
        within: Duration,
    ) -> Result<(), RunError> {
        let end_us = boot_us() + within.as_micros() as u64;
        let mut look_us = 0;
        let mut heard = Vec::new();
        while !part.is_done() {
            let now_us = boot_us();
            if now_us >= look_us {
                look_us = now_us + LOOK_US;
                fleet.look()?;
            }
            if now_us >= end_us {
                let text = format!("not over within {} s: {}", within.as_secs(), part.state());
                return Err(RunError::Stuck(text));
            }
            self.connect()?;
            let mut events = std::mem::take(&mut self.events);
            let turn = self.edge.turn(Budget { completions: TURN_COMPLETIONS }, &mut events)?;
            for event in events.drain(..) {
                self.handle(event, &mut heard)?;
            }
            self.events = events;
            let now_us = boot_us();
            for (number, heard) in heard.drain(..) {
                if let Err(what) = part.heard(self, now_us, number, heard) {
                    return Err(RunError::Stuck(format!("{}: {what}", self.lines[number].who.user)));
                }
            }
            part.turn(self, fleet, now_us)?;
            for number in std::mem::take(&mut self.dirty) {
                self.push(number as usize)?;
            }
            if !self.edge.flush_and_look()? && !turn.more && !part.is_done() {
                wait(&*self.edge, &self.waker, Duration::from_micros(SLEEP_US));
            }
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<(), RunError> {
        while self.next_up < self.lines.len() && self.arriving < ARRIVING_MAX {
            // No slot is free while many close: the next turn tries again.
            let Ok(conn) = self.edge.connect(self.target, None) else { return Ok(()) };
            let slot = conn.slot as usize;
            if slot >= self.by_slot.len() {
                self.by_slot.resize(slot + 1, NOBODY);
            }
            self.by_slot[slot] = self.next_up as u32;
            let line = &mut self.lines[self.next_up];
            line.conn = Some(conn);
            line.times.connect_us = boot_us();
            self.next_up += 1;
            self.arriving += 1;
        }
        Ok(())
    }

    fn whose(&self, conn: Conn) -> Option<usize> {
        let number = *self.by_slot.get(conn.slot as usize)? as usize;
        (self.lines.get(number)?.conn == Some(conn)).then_some(number)
    }

    fn handle(&mut self, event: Event, heard: &mut Vec<(usize, Heard)>) -> Result<(), RunError> {
        let now_us = boot_us();
        match event {
            Event::Accepted { .. } => {}
            Event::Connected { conn } => {
                let Some(number) = self.whose(conn) else { return Ok(()) };
                self.say(number).connected(now_us);
            }
            Event::Received { conn, mut bytes } => {
                let Some(number) = self.whose(conn) else { return Ok(()) };
                let (line, arriving) = (&mut self.lines[number], &mut self.arriving);
                let said_nothing = line.out.is_empty();
                let taken = line.hear(now_us, &mut bytes, |what| {
                    *arriving -= usize::from(matches!(what, Heard::In));
                    heard.push((number, what));
                });
                if said_nothing && !line.out.is_empty() {
                    self.dirty.push(number as u32);
                }
                taken.map_err(|why| RunError::Stuck(format!("{}: {why}", line.who.user)))?;
            }
            Event::Sent { conn } => {
                let Some(number) = self.whose(conn) else { return Ok(()) };
                self.lines[number].in_flight = false;
                self.push(number)?;
            }
            Event::Closed { conn, why } => {
                let Some(number) = self.whose(conn) else { return Ok(()) };
                let why = match why {
                    Why::Local => "it was closed by ourselves".to_owned(),
                    Why::Eof => "the gateway ended the connection".to_owned(),
                    Why::Error(errno) => io::Error::from_raw_os_error(errno).to_string(),
                };
                return Err(RunError::Stuck(format!("{}: {why}", self.lines[number].who.user)));
            }
        }
        Ok(())
    }

    /// Sends what waits, unless a send is in flight already.
    fn push(&mut self, number: usize) -> Result<(), RunError> {
        let Some(line) = self.lines.get_mut(number) else { return Ok(()) };
        let Some(conn) = line.conn.filter(|_| !line.in_flight && !line.out.is_empty()) else { return Ok(()) };
        if line.out.len() > OUT_BYTES_MAX {
            return Err(RunError::Stuck(format!("{}: more than 1 MiB waits to be sent", line.who.user)));
        }
        match self.edge.send(conn, Payload::Owned(std::mem::take(&mut line.out))) {
            Ok(()) => line.in_flight = true,
            // Its Closed is on the way.
            Err(Refused::Gone(_)) => {}
            Err(refused) => return Err(RunError::Stuck(format!("{}: {refused}", line.who.user))),
        }
        Ok(())
    }
}
