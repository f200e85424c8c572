//! All clients of a schedule on one thread: their sockets, their turns, what the application has them send, and whether
//! all of them are well.
//!
//! The rule: it never waits for a server. Connects, sends and answers are events; what is late is found by looking.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use millrace_edge::clock::boot_us;
use millrace_edge::wait::wait;
use millrace_edge::wake::Waker;
use millrace_edge::{Budget, Config, Conn, Edge, Event, Io, Payload, Refused, Why};

use super::Counts;
use super::auditor::Auditor;
use super::cast::Cast;
use super::device::Device;
use super::line::Heard;
use crate::limits::{OUT_BYTES_MAX, TURN_COMPLETIONS};
use crate::rng::Rng;
use crate::verify::history::{History, Note};

/// Connections at most, those that are closing included.
const CAPACITY: u32 = 2_048;

/// Sleep at most this long in one piece, in us.
const SLEEP_US: u64 = 5_000;

/// A message without an answer, and a delivery that is missing, for longer than this is no good health, in us.
const WELL_WITHIN_US: u64 = 1_000_000;

/// No client has this number.
const NOBODY: u32 = u32::MAX;

enum Role {
    Device(Box<Device>),
    Auditor(Box<Auditor>),
}

struct Client {
    role: Role,
    conn: Option<Conn>,
    in_flight: bool,
}

/// What the lines of all clients counted.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
#[allow(missing_docs)]
pub struct LineCounts {
    pub logins: u64,
    pub losses: u64,
    pub unanswered_requests: u64,
}

/// All clients.
pub struct Crowd {
    edge: Box<dyn Edge>,
    waker: Waker,
    events: Vec<Event>,
    gateways: Vec<SocketAddr>,
    clients: Vec<Client>,
    by_slot: Vec<u32>,
    rng: Rng,
    /// What happened.
    pub history: History,
    /// Messages that the application sends each second, and what is left of this schedule's.
    rate: f64,
    left: u64,
    due: f64,
    due_us: u64,
    read: usize,
    /// By conversation: acknowledged heads with their times, the youngest at the end; and the highest that is old enough
    /// for everyone to have it.
    heads: Vec<(VecDeque<(u64, u64)>, u64)>,
}

impl Crowd {
    /// Opens the sockets' edge on this thread; there is nobody yet.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(io: Io, gateways: Vec<SocketAddr>) -> io::Result<Self> {
        let waker = Waker::new()?;
        let (edge, _) = millrace_edge::open(io, Config::new(CAPACITY, waker.clone()))?;
        Ok(Crowd {
            edge,
            waker,
            events: Vec::new(),
            gateways,
            clients: Vec::new(),
            by_slot: Vec::new(),
            rng: Rng::new(0),
            history: History::default(),
            rate: 0.0,
            left: 0,
            due: 0.0,
            due_us: 0,
            read: 0,
            heads: Vec::new(),
        })
    }

    /// Closes all connections, and lets the devices of this cast come, in place of those before.
    pub fn begin(&mut self, cast: &Cast, tokens: &[Box<str>], mut rng: Rng) {
        self.dismiss();
        self.clients = (0..cast.devices.len() as u16)
            .map(|index| {
                let token = tokens[usize::from(cast.devices[usize::from(index)].user)].clone();
                let device = Device::new(cast, index, token, &mut rng);
                Client { role: Role::Device(Box::new(device)), conn: None, in_flight: false }
            })
            .collect();
        self.history = History {
            run: cast.run,
            conversations: cast.members(),
            logs: vec![None; cast.talks.len()],
            ..History::default()
        };
        self.rng = rng;
        (self.rate, self.left, self.read) = (0.0, 0, 0);
        self.heads = vec![Default::default(); cast.talks.len()];
    }

    fn dismiss(&mut self) {
        for client in &mut self.clients {
            if let Some(conn) = client.conn.take() {
                self.edge.close(conn);
            }
        }
        self.clients.clear();
    }

    /// Has the application send so many messages, at so many a second.
    pub fn start_sending(&mut self, messages: u64, per_s: f64) {
        (self.rate, self.left, self.due, self.due_us) = (per_s, messages, 0.0, boot_us());
    }

    /// No more messages from the application; those under way go on.
    pub fn stop_sending(&mut self) {
        self.left = 0;
    }

    /// Adds readers.
    pub fn audit(&mut self, auditors: Vec<Auditor>) {
        self.clients.extend(auditors.into_iter().map(|auditor| Client {
            role: Role::Auditor(Box::new(auditor)),
            conn: None,
            in_flight: false,
        }));
    }

    /// Has the readers, who are done, begin anew: what they found does not count.
    pub fn audit_again(&mut self) {
        for client in &mut self.clients {
            if let Role::Auditor(auditor) = &mut client.role {
                auditor.again();
            }
        }
    }

    /// Whether all readers are done.
    pub fn is_audited(&self) -> bool {
        self.clients.iter().all(|client| match &client.role {
            Role::Auditor(auditor) => auditor.is_done(),
            Role::Device(_) => true,
        })
    }

    /// Ends the schedule: what is known of the clients goes into the history.
    pub fn finish(&mut self) -> (History, Counts, LineCounts) {
        let (mut counts, mut lines) = (Counts::default(), LineCounts::default());
        let mut auditors = Vec::new();
        for client in self.clients.drain(..) {
            if let Some(conn) = client.conn {
                self.edge.close(conn);
            }
            match client.role {
                Role::Device(device) => {
                    self.history.online.push(device.line.is_in());
                    self.history.unanswered.extend(device.unanswered());
                    counts.add(&device.counts);
                    lines.logins += device.line.logins;
                    lines.losses += device.line.losses;
                    lines.unanswered_requests += device.line.unanswered;
                }
                Role::Auditor(auditor) => auditors.push(auditor),
            }
        }
        let mut history = std::mem::take(&mut self.history);
        auditors.into_iter().for_each(|auditor| auditor.finish(&mut history));
        (history, counts, lines)
    }

    fn devices(&self) -> impl Iterator<Item = &Device> {
        self.clients.iter().filter_map(|client| match &client.role {
            Role::Device(device) => Some(&**device),
            Role::Auditor(_) => None,
        })
    }

    /// All groups exist and everyone is attached: from now on a refusal is a fault.
    pub fn settle(&mut self) {
        for client in &mut self.clients {
            if let Role::Device(device) = &mut client.role {
                device.settle();
            }
        }
    }

    /// Whether all groups are made.
    pub fn has_founded(&self) -> bool {
        self.devices().all(Device::has_founded)
    }

    /// Whether everyone is logged in and attached, and no answer and no delivery is overdue.
    pub fn is_well(&mut self) -> bool {
        self.complaint().is_none()
    }

    /// Why not all are well: the first reason found.
    pub fn complaint(&mut self) -> Option<String> {
        let since_us = boot_us().saturating_sub(WELL_WITHIN_US);
        self.read_heads(since_us);
        self.devices().find_map(|device| {
            if !device.is_well(since_us) {
                return Some(device.complaint(since_us));
            }
            let behind = |&(talk, seq): &(u16, u64)| seq < self.heads[usize::from(talk)].1;
            let (talk, seq) = device.standing().find(behind)?;
            let (name, head) =
                (&self.history.conversations[usize::from(talk)].name, self.heads[usize::from(talk)].1);
            Some(format!("device {} has {seq} of {name}, which is at {head}", device.index))
        })
    }

    /// Whether everything was answered, and everyone has everything.
    pub fn is_quiet(&mut self) -> bool {
        self.read_heads(u64::MAX);
        self.left == 0
            && self.devices().all(|device| {
                let has_all = |(talk, seq): (u16, u64)| seq >= self.heads[usize::from(talk)].1;
                device.is_well(u64::MAX) && device.standing().all(has_all)
            })
    }

    /// Takes in what was acknowledged since the last look.
    fn read_heads(&mut self, since_us: u64) {
        for &(at_us, note) in &self.history.notes[self.read..] {
            match note {
                Note::Acked { tag, place } => {
                    self.heads[usize::from(tag.conversation)].0.push_back((place.seq, at_us));
                }
                // It was lost: what is acknowledged from now on tells the head.
                Note::Truncated { conversation, seq, .. } => {
                    let (young, old) = &mut self.heads[usize::from(conversation)];
                    young.clear();
                    *old = (*old).min(seq);
                }
                Note::Rescinded { tag } => self.heads[usize::from(tag.conversation)] = Default::default(),
                _ => {}
            }
        }
        self.read = self.history.notes.len();
        for (young, old) in &mut self.heads {
            while let Some(&(seq, _)) = young.front().filter(|(_, at_us)| *at_us < since_us) {
                *old = (*old).max(seq);
                young.pop_front();
            }
        }
    }

    /// Messages that applications have sent, that were acknowledged, and that were shown.
    pub fn progress(&self) -> u64 {
        self.history.notes.len() as u64
    }

    /// Runs until `done` says so (true) or the time is up (false).
    ///
    /// # Errors
    /// The edge failed.
    pub fn until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> io::Result<bool> {
        let end_us = boot_us() + limit.as_micros() as u64;
        let mut look_us = 0;
        loop {
            let now_us = boot_us();
            if now_us >= look_us {
                look_us = now_us + 4 * SLEEP_US;
                if done(self) {
                    return Ok(true);
                }
            }
            if now_us >= end_us {
                return Ok(false);
            }
            self.turn()?;
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        let mut events = std::mem::take(&mut self.events);
        let turn = self.edge.turn(Budget { completions: TURN_COMPLETIONS }, &mut events)?;
        for event in events.drain(..) {
            self.handle(event);
        }
        self.events = events;
        self.send_due();
        for number in 0..self.clients.len() as u32 {
            self.tend(number);
        }
        if !self.edge.flush_and_look()? && !turn.more {
            wait(&*self.edge, &self.waker, Duration::from_micros(SLEEP_US));
        }
        Ok(())
    }

    fn send_due(&mut self) {
        let now_us = boot_us();
        self.due += self.rate * now_us.saturating_sub(self.due_us) as f64 / 1e6;
        self.due_us = now_us;
        let devices = self.devices().count() as u64;
        while self.due >= 1.0 {
            // What could not be sent in its second is not made up for.
            self.due = (self.due - 1.0).min(self.rate);
            if self.left == 0 || devices == 0 {
                continue;
            }
            let number = self.rng.below(devices) as usize;
            if let Role::Device(device) = &mut self.clients[number].role
                && device.send(now_us, &mut self.history, &mut self.rng)
            {
                self.left -= 1;
            }
        }
    }

    /// A client's own turn: what is due, time limits, coming back.
    fn tend(&mut self, number: u32) {
        let now_us = boot_us();
        let client = &mut self.clients[number as usize];
        let (alive, wants, target) = match &mut client.role {
            Role::Device(device) => {
                device.turn(now_us, &mut self.rng);
                (device.line.turn(now_us), device.line.wants_connection(now_us), device.line.target)
            }
            Role::Auditor(auditor) => {
                auditor.turn(now_us);
                (auditor.line.turn(now_us), auditor.line.wants_connection(now_us), auditor.line.target)
            }
        };
        if let Err(why) = alive {
            self.lost(number, &why);
        } else if wants && client.conn.is_none() {
            self.connect(number, target);
        } else {
            self.push(number);
        }
    }

    fn connect(&mut self, number: u32, target: usize) {
        let to = self.gateways[target % self.gateways.len()];
        // No slot is free while many close: the next turn tries again.
        let Ok(conn) = self.edge.connect(to, None) else { return };
        let slot = conn.slot as usize;
        if slot >= self.by_slot.len() {
            self.by_slot.resize(slot + 1, NOBODY);
        }
        self.by_slot[slot] = number;
        let client = &mut self.clients[number as usize];
        (client.conn, client.in_flight) = (Some(conn), false);
        match &mut client.role {
            Role::Device(device) => device.line.connecting(boot_us()),
            Role::Auditor(auditor) => auditor.line.connecting(boot_us()),
        }
    }

    fn whose(&self, conn: Conn) -> Option<u32> {
        let number = *self.by_slot.get(conn.slot as usize)?;
        (self.clients.get(number as usize)?.conn == Some(conn)).then_some(number)
    }

    fn handle(&mut self, event: Event) {
        let now_us = boot_us();
        match event {
            Event::Accepted { .. } => {}
            Event::Connected { conn } => {
                let Some(number) = self.whose(conn) else { return };
                match &mut self.clients[number as usize].role {
                    Role::Device(device) => device.line.connected(now_us, &mut self.rng),
                    Role::Auditor(auditor) => auditor.line.connected(now_us, &mut self.rng),
                }
                self.push(number);
            }
            Event::Received { conn, mut bytes } => {
                let Some(number) = self.whose(conn) else { return };
                if let Err(why) = self.hear(number, now_us, &mut bytes) {
                    self.lost(number, &why);
                }
            }
            Event::Sent { conn } => {
                let Some(number) = self.whose(conn) else { return };
                self.clients[number as usize].in_flight = false;
                self.push(number);
            }
            Event::Closed { conn, why } => {
                let Some(number) = self.whose(conn) else { return };
                self.clients[number as usize].conn = None;
                let why = match why {
                    Why::Local => "closed by ourselves".to_owned(),
                    Why::Eof => "the gateway ended the connection".to_owned(),
                    Why::Error(errno) => io::Error::from_raw_os_error(errno).to_string(),
                };
                self.lost(number, &why);
            }
        }
    }

    fn hear(&mut self, number: u32, now_us: u64, bytes: &mut [u8]) -> Result<(), String> {
        match &mut self.clients[number as usize].role {
            Role::Device(device) => {
                let mut heard = Vec::new();
                let outcome = device.line.hear(now_us, bytes, &mut heard);
                for heard in heard {
                    device.heard(now_us, heard, &mut self.history, &mut self.rng);
                }
                outcome
            }
            Role::Auditor(auditor) => {
                let mut heard: Vec<Heard<usize>> = Vec::new();
                let outcome = auditor.line.hear(now_us, bytes, &mut heard);
                for heard in heard {
                    auditor.heard(now_us, heard);
                }
                outcome
            }
        }
    }

    /// A client's connection is gone, or is to go.
    fn lost(&mut self, number: u32, why: &str) {
        let (now_us, gateways) = (boot_us(), self.gateways.len());
        let client = &mut self.clients[number as usize];
        if let Some(conn) = client.conn.take() {
            self.edge.close(conn);
        }
        client.in_flight = false;
        match &mut client.role {
            Role::Device(device) => {
                device.line.lost(now_us, gateways, why, &mut self.rng);
                device.lost();
            }
            Role::Auditor(auditor) => {
                auditor.line.lost(now_us, gateways, why, &mut self.rng);
                auditor.lost();
            }
        }
    }

    /// Sends what waits, unless a send is in flight already.
    fn push(&mut self, number: u32) {
        let client = &mut self.clients[number as usize];
        let out = match &mut client.role {
            Role::Device(device) => &mut device.line.out,
            Role::Auditor(auditor) => &mut auditor.line.out,
        };
        let Some(conn) = client.conn.filter(|_| !client.in_flight && !out.is_empty()) else { return };
        if out.len() > OUT_BYTES_MAX {
            self.lost(number, "more than 1 MiB waits to be sent");
            return;
        }
        match self.edge.send(conn, Payload::Owned(std::mem::take(out))) {
            Ok(()) => client.in_flight = true,
            // Its Closed is on the way.
            Err(Refused::Gone(_)) => {}
            // Still connecting: nothing was to be said yet.
            Err(Refused::InFlight(Payload::Owned(bytes))) => *out = bytes,
            Err(refused) => {
                let why = refused.to_string();
                self.lost(number, &why);
            }
        }
    }
}
