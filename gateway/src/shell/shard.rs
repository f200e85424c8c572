//! One shard thread: a runtime, one task that pumps, and a task for each link.
//!
//! The pump alone touches the edge and the core. A turn: drain the waker, turn the edge and step the core with each
//! event, then messages from other threads, bytes from links, a few login checks, the core's own turn, and last the
//! output to links and sockets. Every part is bounded; with work left the pump pauses (the runtime looks at its timers
//! and sockets) and runs the next turn, otherwise it sleeps on the edge's one descriptor until the core's deadline.
//! Sends mostly complete as they are submitted: one turn in a row takes that in without sleeping in between.
//!
//! The rule that keeps it right: the waker is drained first, queues are looked at after, and after every wake a turn
//! runs before the next sleep.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{SystemTime, UNIX_EPOCH};

use millrace_edge::failpoint::{self, Point};
use millrace_edge::mailbox::{Receiver, Sender};
use millrace_edge::wake::Waker;
use millrace_edge::{self as edge, Budget, Edge, Refused, affinity, clock};
use millrace_protocol::ids::Now;

use super::auth::Keys;
use super::config::{Policy, Settings};
use super::lease::LeaseAnswer;
use super::link::{LinkEvent, Links, LocalConnect, Resolver};
use super::logins::{CHECKS_PER_TURN, Logins};
use super::nap::{NAP_US, Naps};
use super::readable::{Pause, Readable, Wake, wait};
use super::talk::{Report, ToControl, ToShard};
use super::ticket::{Claims, Tickets};
use super::{log, signing};
use crate::core::action::{Action, Payload};
use crate::core::event::{Conn, Event, NodeKey};
use crate::core::limits::Config;
use crate::core::shard::Shard;

/// Completions of the edge in one turn: with what they cause, about a millisecond.
const COMPLETIONS_PER_TURN: u32 = 512;
/// And at least, when completions cost too much: a receive buffer may hold a thousand frames.
const COMPLETIONS_PER_TURN_MIN: u32 = 16;
/// Microseconds for the edge's events of a turn; above, the next turn takes half as many, so that a few clients who
/// send as fast as they can don't make everybody wait, nor heartbeats whose sockets are all out of the cache.
const EVENTS_US_MAX: u64 = 1_500;
/// Messages from other threads in one turn.
const MESSAGES_PER_TURN: usize = 64;
/// Chunks of link bytes in one turn (64 KiB each at most, from the network).
const LINK_CHUNKS_PER_TURN: usize = 16;
/// The longest sleep, in microseconds: the edge has pauses of its own (after a failed accept) that no descriptor tells.
const SLEEP_US_MAX: u64 = 100_000;
/// Submission queue of the runtime's ring: a read, a write and a timeout per link, and the pump.
const RUNTIME_ENTRIES: u32 = 1_024;

/// What a shard thread is started with.
pub struct Spec {
    /// Index of the shard.
    pub shard: u8,
    /// The CPU to run on.
    pub cpu: Option<usize>,
    /// Where to listen; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// The configuration.
    pub settings: Arc<Settings>,
    /// Of the process.
    pub incarnation: u64,
    /// What tokens are checked against.
    pub keys: Arc<Keys>,
    /// Makes and checks resume tickets.
    pub tickets: Tickets,
    /// Wakes this shard.
    pub waker: Waker,
    /// What others tell this shard.
    pub inbox: Receiver<ToShard>,
    /// The other end of the inbox, for the resolver's answers.
    pub inbox_sender: Sender<ToShard>,
    /// What this shard tells the control thread.
    pub control: tokio::sync::mpsc::Sender<ToControl>,
    /// The dispatcher in this process.
    pub local: Option<LocalConnect>,
    /// Resolves the names of the others.
    pub resolver: Option<Resolver>,
}

/// A shard that listens.
#[derive(Clone, Debug)]
pub struct Started {
    /// Where.
    pub address: SocketAddr,
    /// With which backend, and its parts.
    pub shape: edge::Shape,
    /// Why that backend.
    pub why: String,
    /// The runtime's driver for links and timers.
    pub driver: &'static str,
}

/// Starts a shard's thread; returns when it listens.
///
/// # Errors
/// Out of threads or descriptors, io_uring demanded and refused, or the address can't be listened on.
pub fn start(spec: Spec) -> io::Result<Started> {
    let (ready, started) = mpsc::channel();
    let name = format!("shard-{}", spec.shard);
    std::thread::Builder::new().name(name).spawn(move || {
        let _alarm = Alarm;
        let (shard, control) = (spec.shard, spec.control.clone());
        if let Err(error) = run(spec, &ready) {
            // Before it listened somebody waits to hear of it; after that the process can't go on without it.
            if let Err(mpsc::SendError(Err(error))) = ready.send(Err(error)) {
                let _ = control.try_send(ToControl::Failed(shard, error.to_string()));
            }
        }
    })?;
    started.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended")))
}

/// A panicking shard must not leave a process that looks alive.
struct Alarm;

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            log::error(format_args!("a shard panicked: this is a bug; exiting"));
            std::process::exit(101);
        }
    }
}

type Ready = mpsc::Sender<io::Result<Started>>;

fn run(spec: Spec, ready: &Ready) -> io::Result<()> {
    if let Some(cpu) = spec.cpu
        && let Err(error) = affinity::pin_current_thread(cpu)
    {
        log::warn(format_args!("shard {} can't be pinned to CPU {cpu}: {error}", spec.shard));
    }
    let config = edge::Config::new(spec.settings.capacity_per_shard(), spec.waker.clone());
    let (mut edge, why) = edge::open(spec.settings.io, config)?;
    let address = edge.listen(spec.listen)?;
    let mut started = Started { address, shape: edge.shape(), why, driver: "io_uring" };
    if started.shape.backend == "io_uring" {
        let builder = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new();
        match builder.with_entries(RUNTIME_ENTRIES).enable_timer().build() {
            Ok(mut runtime) => return runtime.block_on(pump(spec, edge, started, ready)),
            Err(error) => log::warn(format_args!("links use epoll: a further io_uring is refused: {error}")),
        }
    }
    started.driver = "epoll";
    let builder = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new();
    builder.enable_timer().build()?.block_on(pump(spec, edge, started, ready))
}

async fn pump(spec: Spec, edge: Box<dyn Edge>, started: Started, ready: &Ready) -> io::Result<()> {
    let readable = Readable::new(edge.wait_fd())?;
    let pause = Pause::new()?;
    let mut pump = Pump::new(spec, edge)?;
    // Nobody listens if the process is on its way out.
    let _ = ready.send(Ok(started));
    // A turn that left only completions is followed by the next at once, but not by a third.
    let mut followed = false;
    loop {
        // One wait lives on over turns and deadlines: giving it up and asking again costs the ring a cancel.
        let mut woken = pin!(readable.wait());
        loop {
            let sleep_us = match pump.turn()? {
                Next::Sleep(sleep_us) => sleep_us,
                Next::Completions if !followed => {
                    followed = true;
                    continue;
                }
                Next::Completions | Next::Work => {
                    followed = false;
                    pause.pass().await?;
                    continue;
                }
            };
            followed = false;
            match wait(woken.as_mut(), sleep_us).await? {
                Wake::Deadline => {}
                Wake::Readable { slept } => {
                    if !slept {
                        // Readable at once: the runtime has not looked at its timers and links meanwhile.
                        pause.pass().await?;
                    }
                    break;
                }
            }
        }
    }
}

/// What follows a turn.
enum Next {
    /// Nothing is left to do for so long at most, in microseconds.
    Sleep(u64),
    /// Only what completed while it was submitted: a short turn, not worth a round through the runtime and back.
    Completions,
    /// More work. The runtime looks at its timers and sockets before it.
    Work,
}

fn now() -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono_us: clock::boot_us(), wall_ms: wall.as_millis() as u64 }
}

fn to_edge(conn: Conn) -> edge::Conn {
    edge::Conn { slot: conn.slot, generation: conn.generation }
}

fn to_core(conn: edge::Conn) -> Conn {
    Conn { slot: conn.slot, generation: conn.generation }
}

/// Everything that a shard owns.
struct Pump {
    shard: u8,
    edge: Box<dyn Edge>,
    core: Shard,
    links: Links,
    logins: Logins,
    waker: Waker,
    inbox: Receiver<ToShard>,
    control: tokio::sync::mpsc::Sender<ToControl>,
    events: Vec<edge::Event>,
    actions: Vec<Action>,
    /// Of the next turn.
    completions: u32,
    /// `Some(false)` while draining, `Some(true)` when that was reported.
    drained: Option<bool>,
    naps: Naps,
    naps_taken: u64,
    turns: u64,
    busy_us: u64,
    turn_us_max: u64,
}

impl Pump {
    fn new(spec: Spec, edge: Box<dyn Edge>) -> io::Result<Self> {
        let settings = &spec.settings;
        let mut config =
            Config::new(settings.gateway_id, spec.shard, spec.incarnation, mint(spec.tickets.clone()));
        config.cluster = settings.cluster.clone();
        config.partitions = settings.partitions;
        config.seeds = match settings.is_standalone() {
            true => vec![(String::new(), String::new())],
            false => settings.dispatchers.iter().map(|address| (String::new(), address.clone())).collect(),
        };
        config.slots_max = edge.shape().capacity;
        config.seed = u64::from_ne_bytes(signing::random()?);
        config.newest_wins_platforms = settings
            .platforms
            .iter()
            .filter(|(_, policy)| **policy == Policy::NewestWins)
            .map(|(name, _)| name.clone())
            .collect();
        config.heartbeat_interval_ms = settings.heartbeat_interval.as_millis() as u32;
        config.payload_bytes_max = settings.payload_bytes_max;
        config.outbox_bytes_max = settings.outbox_bytes_max as u32;
        config.logins_per_s = settings.logins_per_s;
        config.lease_ttl_ms = settings.lease_ttl.as_millis() as u32;
        // Some renewals may be lost before the lease is.
        config.lease_renew_ms = config.lease_ttl_ms / 5;
        let back = spec.inbox_sender;
        let answer = move |node: NodeKey, found| {
            // A shard whose inbox is full asks again after its backoff.
            let _ = back.send(ToShard::Resolved(node, found));
        };
        let identity = (settings.gateway_id, spec.shard);
        let links = Links::new(identity, spec.waker.clone(), spec.local, spec.resolver, config.seed, answer);
        Ok(Pump {
            shard: spec.shard,
            edge,
            core: Shard::new(config),
            links,
            logins: Logins::new(spec.keys, spec.tickets),
            waker: spec.waker,
            inbox: spec.inbox,
            control: spec.control,
            events: Vec::new(),
            actions: Vec::new(),
            completions: COMPLETIONS_PER_TURN,
            drained: None,
            naps: Naps::default(),
            naps_taken: 0,
            turns: 0,
            busy_us: 0,
            turn_us_max: 0,
        })
    }

    /// One turn.
    fn turn(&mut self) -> io::Result<Next> {
        self.waker.drain();
        let begun = now();
        let beats = self.core.pings();
        let mut events = self.edge_events(begun, self.completions)?;
        self.completions = next_budget(self.completions, clock::boot_us().saturating_sub(begun.mono_us));
        // Answers (to heartbeats above all) mostly complete as they are submitted: taken in with what is left of the
        // budget, they cost no turn of their own.
        let left = self.completions.saturating_sub(events.completions);
        if left > 0 && !events.more && self.edge.flush_and_look()? {
            events = self.edge_events(begun, left)?;
        }
        let mut more = events.more;
        for _ in 0..MESSAGES_PER_TURN {
            let Some(message) = self.inbox.recv() else { break };
            self.message(message, now());
            self.naps.stir();
        }
        for _ in 0..LINK_CHUNKS_PER_TURN {
            let Some((node, event)) = self.links.next(begun.mono_us) else { break };
            failpoint::hit(Point::BeforeLinkTake);
            let event = match event {
                LinkEvent::Connected => Event::LinkConnected { node },
                LinkEvent::Bytes(bytes) => Event::LinkBytes { node, bytes },
                LinkEvent::Lost => Event::LinkLost { node },
            };
            self.step(now(), event);
            failpoint::hit(Point::AfterLinkTake);
            self.naps.stir();
        }
        for _ in 0..CHECKS_PER_TURN {
            let Some((conn, verdict)) = self.logins.check_next() else { break };
            self.step(now(), Event::Verified { conn, verdict });
        }
        let at = now();
        let wait = self.core.turn(at, &mut self.actions);
        self.carry_out(at);
        self.link_output(at.mono_us);
        self.edge.hold_accepts(self.core.holds_accepts());
        let completions = self.edge.flush_and_look()?;
        self.report_drained();
        more |= wait.more || self.logins.waiting() > 0 || !self.inbox.is_empty() || self.links.has_input();
        let ended_us = clock::boot_us();
        let took_us = ended_us.saturating_sub(begun.mono_us);
        self.turns += 1;
        self.busy_us += took_us;
        self.turn_us_max = self.turn_us_max.max(took_us);
        let sleepy = self.naps.after(begun.mono_us, ended_us, self.core.pings() - beats);
        if more {
            return Ok(Next::Work);
        }
        if completions {
            return Ok(Next::Completions);
        }
        let nap = sleepy && self.edge.mute();
        if nap {
            // What the edge told before it fell silent must not end the nap at once; other threads must.
            self.waker.drain();
            if !self.inbox.is_empty() || self.links.has_input() {
                return Ok(Next::Work);
            }
            self.naps_taken += 1;
        }
        let deadline_us = [wait.deadline_us, self.links.deadline_us()].into_iter().flatten().min();
        let sleep_us = deadline_us.map_or(SLEEP_US_MAX, |deadline_us| deadline_us.saturating_sub(ended_us));
        let sleep_us = if nap { sleep_us.min(NAP_US) } else { sleep_us };
        // A deadline that is over already is work left.
        Ok(if sleep_us > 0 { Next::Sleep(sleep_us.min(SLEEP_US_MAX)) } else { Next::Work })
    }

    fn edge_events(&mut self, now: Now, completions: u32) -> io::Result<edge::Turn> {
        let mut events = std::mem::take(&mut self.events);
        let turn = self.edge.turn(Budget { completions }, &mut events)?;
        for event in events.drain(..) {
            match event {
                edge::Event::Accepted { conn, peer } => {
                    self.naps.stir();
                    self.step(now, Event::Accepted { conn: to_core(conn), peer: peer.ip() });
                }
                edge::Event::Received { conn, mut bytes } => {
                    self.naps.received();
                    failpoint::hit(Point::ClientBytes);
                    self.step(now, Event::Received { conn: to_core(conn), bytes: &mut bytes });
                }
                edge::Event::Sent { conn } => {
                    failpoint::hit(Point::AfterDelivery);
                    self.step(now, Event::Sent { conn: to_core(conn) });
                }
                edge::Event::Closed { conn, .. } => {
                    self.naps.stir();
                    self.step(now, Event::Closed { conn: to_core(conn) });
                }
                // Gateways don't open connections through the edge.
                edge::Event::Connected { conn } => self.edge.close(conn),
            }
        }
        self.events = events;
        Ok(turn)
    }

    fn step(&mut self, now: Now, event: Event<'_>) {
        self.core.step(now, event, &mut self.actions);
        self.carry_out(now);
    }

    /// Carries actions out in order, and those that they cause after them.
    fn carry_out(&mut self, now: Now) {
        while !self.actions.is_empty() {
            let mut actions = std::mem::take(&mut self.actions);
            for action in actions.drain(..) {
                self.act(action, now);
            }
            if self.actions.is_empty() {
                // Nothing came of it: keep the allocation.
                self.actions = actions;
            }
        }
    }

    fn act(&mut self, action: Action, now: Now) {
        match action {
            Action::Send { conn, payload } => {
                failpoint::hit(Point::BeforeDelivery);
                let payload = match payload {
                    Payload::Shared { bytes, start } => edge::Payload::Shared { bytes, start },
                    Payload::Owned(bytes) => edge::Payload::Owned(bytes),
                };
                match self.edge.send(to_edge(conn), payload) {
                    // Gone: its Closed event is on the way.
                    Ok(()) | Err(Refused::Gone(_)) => {}
                    Err(refused) => {
                        debug_assert!(
                            !matches!(refused, Refused::InFlight(_)),
                            "two sends in flight on {conn:?}"
                        );
                        self.edge.close(to_edge(conn));
                    }
                }
            }
            Action::Shutdown { conn } => self.edge.shutdown(to_edge(conn)),
            Action::Close { conn } => self.edge.close(to_edge(conn)),
            Action::Verify { conn, credential } => {
                if let Some(verdict) = self.logins.offer(conn, credential, now.wall_ms) {
                    self.core.step(now, Event::Verified { conn, verdict }, &mut self.actions);
                }
            }
            Action::Connect { node, name, address } => self.links.connect(node, name, address),
            Action::Disconnect { node } => self.links.disconnect(node),
            Action::ResetLink { node, reason } => self.links.reset(node, &reason, now.mono_us),
            Action::LeaseAnswer { grant, incarnation, sent_us, reason } => {
                let answer = LeaseAnswer { grant, incarnation, sent_us, reason };
                // Full: the control thread is stuck, and the next renewal brings another answer.
                let _ = self.control.try_send(ToControl::Lease(answer));
            }
        }
    }

    fn message(&mut self, message: ToShard, now: Now) {
        match message {
            ToShard::Lease(lease) => self.step(now, Event::Lease(lease)),
            ToShard::Drain { deadline_us } => {
                self.edge.stop_listening();
                self.drained.get_or_insert(false);
                self.step(now, Event::Drain { deadline_us });
            }
            ToShard::Keys(keys) => self.logins.set_keys(keys),
            ToShard::Resolved(node, answer) => self.links.resolved(node, answer),
            // Whoever asked may have given up.
            ToShard::Report(reply) => drop(reply.send(Box::new(self.report()))),
            ToShard::Sessions(user, reply) => drop(reply.send(self.sessions(&user))),
        }
    }

    fn link_output(&mut self, now_us: u64) {
        let core = RefCell::new(&mut self.core);
        let mut nodes = core.borrow().nodes_with_output();
        nodes.extend(self.links.unsent());
        for node in nodes {
            failpoint::hit(Point::BeforeForward);
            self.links.send(node, now_us, || core.borrow_mut().transmit(node));
            failpoint::hit(Point::AfterForward);
        }
    }

    /// Tells the control thread, once, that nothing of a drain is left.
    fn report_drained(&mut self) {
        if self.drained == Some(false)
            && self.edge.stats().open_now == 0
            // What is for a node that can't be reached is lost with the process, and found out by its routes' lease.
            && !self.core.nodes_with_output().into_iter().any(|node| self.links.is_up(node))
            && self.links.is_flushed()
        {
            self.drained = Some(self.control.try_send(ToControl::Drained(self.shard)).is_ok());
        }
    }

    fn report(&self) -> Report {
        Report {
            shard: self.shard,
            core: self.core.stats(),
            edge: self.edge.stats(),
            shape: self.edge.shape(),
            logins: self.logins.counts(),
            logins_waiting: self.logins.waiting() as u64,
            links: self.links.reports(),
            turns: self.turns,
            naps: self.naps_taken,
            busy_us: self.busy_us,
            turn_us_max: self.turn_us_max,
            ready: self.core.is_ready(),
            lease_live: self.core.lease_is_live(),
        }
    }

    fn sessions(&self, user: &str) -> Vec<serde_json::Value> {
        let sessions = self.core.sessions_of(user).into_iter();
        let json = sessions.map(|session| {
            serde_json::json!({
                "session": session.session.to_string(),
                "shard": self.shard,
                "device": session.device,
                "platform": session.platform,
                "login_number": session.login_number,
                "live": session.live,
                "transport": if session.websocket { "websocket" } else { "tcp" },
                "conversations": session.conversations,
                "queued_bytes": session.queued_bytes,
                "requests": session.requests,
                "idle_ms": session.idle_ms,
            })
        });
        json.collect()
    }
}

/// Completions for the next turn, after one whose events took so long.
fn next_budget(completions: u32, took_us: u64) -> u32 {
    match took_us > EVENTS_US_MAX {
        true => (completions / 2).max(COMPLETIONS_PER_TURN_MIN),
        false => (completions * 2).min(COMPLETIONS_PER_TURN),
    }
}

fn mint(tickets: Tickets) -> Box<dyn crate::core::limits::TicketMint> {
    Box::new(move |user: &str, device: &str, platform: &str, login_number: u64, token_expires_ms: u64| {
        let claims = Claims { user, device, platform, login_number, token_expires_ms };
        tickets.make(&claims, now().wall_ms)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_that_take_too_long_become_smaller_and_grow_back() {
        // A flood: each completion costs a millisecond.
        let mut budget = COMPLETIONS_PER_TURN;
        let turns: Vec<u32> = (0..8)
            .map(|_| {
                budget = next_budget(budget, u64::from(budget) * 1_000);
                budget
            })
            .collect();
        assert_eq!(turns, [256, 128, 64, 32, 16, 16, 16, 16]);
        // It is over.
        let turns: Vec<u32> = (0..6)
            .map(|_| {
                budget = next_budget(budget, u64::from(budget) * 2);
                budget
            })
            .collect();
        assert_eq!(turns, [32, 64, 128, 256, 512, 512]);
    }
}
