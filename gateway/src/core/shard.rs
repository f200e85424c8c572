//! One gateway shard: events in, actions out. Dispatch only; the work is in the neighbours.
//!
//! The rule that keeps it right: [`Shard::step`] changes state and answers at once what concerns single sessions;
//! whatever concerns many (fan-out, resubscription, registration after a new incarnation, drains, timeouts) is only
//! noted, and done by [`Shard::turn`] in bounded slices. A session is never closed in the middle of something: it is
//! doomed, and its last words are sent at the end of the step.

use std::collections::VecDeque;

use bytes::Bytes;
use millrace_protocol::bytes;
use millrace_protocol::frame::ENVELOPE_BYTES_MAX;
use millrace_protocol::ids::{Now, Partition};
use millrace_protocol::link::end::LINK_VERSION;
use millrace_protocol::link::record::RECORD_BYTES_MAX;
use millrace_protocol::messages::client::Code;
use millrace_protocol::messages::link::Hello;
use millrace_protocol::planted::{self, Fault};
use rustc_hash::FxHashMap;

use super::acks::Gathered;
use super::action::Action;
use super::admission::{Admission, Rate};
use super::closing::{Doom, Drain};
use super::event::{Conn, Event, Lease, NodeKey};
use super::limits::*;
use super::outbox::Pool;
use super::parts::{Watching, Whole};
use super::pending::Pending;
use super::relay::Relaying;
use super::resync::Sweep;
use super::rooms::PendingJoin;
use super::session::{Session, SessionInfo, State, UNAUTHENTICATED, WEBSOCKET};
use super::slab::Slab;
use super::stats::Stats;
use super::subscriptions::{Listed, Topic};
use super::uplink::Uplink;
use super::users::{NONE, Names};
use super::wheel::{self, TICK_US, Wheel};

/// When the shell must call [`Shard::turn`] again, events or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// At once: there is work left.
    pub more: bool,
    /// At this time on the monotonic clock.
    pub deadline_us: Option<u64>,
}

/// Soon enough for work that waits for credit or for an owner, and seldom enough to cost nothing.
const RETRY_SOON_US: u64 = 50_000;

/// Renewal of the gateway's lease, on shard 0.
#[derive(Default)]
pub(super) struct Renewal {
    pub next_us: u64,
    pub node: u32,
    pub unanswered: bool,
    /// The incarnation before the present one: whatever lease it still has, this one takes.
    pub replaces: u64,
}

/// One gateway shard.
pub struct Shard {
    pub(super) config: Config,
    pub(super) now: Now,
    pub(super) out: Vec<Action>,
    pub(super) sessions: Slab<Session>,
    pub(super) users: Names,
    pub(super) devices: Names,
    pub(super) conversations: Names,
    pub(super) topics: Slab<Box<Topic>>,
    pub(super) pool: Pool,
    pub(super) wheel: Option<Wheel>,
    pub(super) due: Vec<(u32, u32)>,
    pub(super) admission: Admission,
    /// What [`Shard::holds_accepts`] said last.
    held_accepts: bool,
    pub(super) uplink: Uplink,
    pub(super) stats: Stats,
    pub(super) doomed: Vec<Doom>,
    /// Requests on their way, by token; their deadlines in order.
    pub(super) pending: FxHashMap<u64, Pending>,
    pub(super) pending_bytes: usize,
    pub(super) pending_timers: VecDeque<(u64, u64)>,
    pub(super) next_token: u64,
    /// Requests that were cut into parts.
    pub(super) wholes: FxHashMap<u32, Whole>,
    pub(super) next_whole: u32,
    /// Where sessions watch who comes and goes, by slot.
    pub(super) watching: FxHashMap<u32, Watching>,
    /// Acknowledgements that wait for each other, by partition, and when they go: each second at most.
    pub(super) gathered: FxHashMap<Partition, Gathered>,
    pub(super) gathered_due: VecDeque<(u64, Partition)>,
    pub(super) gathered_acks: usize,
    /// When to look at sessions that have not acknowledged, and how many there are.
    pub(super) owing: Option<Wheel>,
    pub(super) owing_sessions: usize,
    /// Relays to listeners of conversations, in turn.
    pub(super) relays: VecDeque<Relaying>,
    /// Room joins that wait for their subscription, in the order of their deadlines.
    pub(super) joins: VecDeque<PendingJoin>,
    /// Topics with messages to be fanned out, in turn.
    pub(super) ring: VecDeque<u32>,
    /// Turns so far: a topic begins one pass in each at most.
    pub(super) turns: u64,
    /// Topics with a Subscribe to be sent.
    pub(super) wanting: VecDeque<u32>,
    /// Refused by an owner though their lists say otherwise, oldest first.
    pub(super) refused: Vec<Listed>,
    /// Holes asked for: (deadline, topic, serial).
    pub(super) fetches: VecDeque<(u64, u32, u32)>,
    pub(super) held_bytes: usize,
    pub(super) next_version: u64,
    pub(super) next_serial: u32,
    /// Sessions with a Register to be sent, and those with one unanswered.
    pub(super) registers: VecDeque<Conn>,
    pub(super) registering: VecDeque<(u64, Conn, u64)>,
    /// Sessions whose sends are kept back, and until when.
    pub(super) corked: VecDeque<(u64, Conn)>,
    pub(super) resync: Sweep,
    pub(super) reregister_at: Option<u32>,
    pub(super) reregister_rate: Rate,
    pub(super) lease: Lease,
    pub(super) renewal: Renewal,
    pub(super) drain: Option<Drain>,
    pub(super) connects: Vec<NodeKey>,
}

impl Shard {
    /// A shard without connections. Its first turn asks for links to the seeds.
    ///
    /// # Panics
    /// When the configuration is outside what ids and records can say: gateway 1-4095, partitions 1-1024, at most
    /// 2^24 slots, payloads that fit in a link record.
    pub fn new(config: Config) -> Self {
        assert!((1..4096).contains(&config.gateway), "gateway ids are 1-4095");
        assert!((1..=1024).contains(&config.partitions), "a cluster has 1-1024 partitions");
        assert!(config.slots_max <= 1 << 24, "a session id has 24 bits for its slot");
        let record_bytes = config.payload_bytes_max + 2 * ENVELOPE_BYTES_MAX;
        assert!(record_bytes <= RECORD_BYTES_MAX, "a message of payload_bytes_max fits in a link record");
        let identity = Hello {
            version: LINK_VERSION,
            cluster: config.cluster.clone(),
            role: "gateway".into(),
            gateway: u32::from(config.gateway),
            shard: u32::from(config.shard),
            incarnation: config.incarnation,
            partitions: u32::from(config.partitions),
            ..Hello::default()
        };
        let mut uplink = Uplink::new(identity, config.link, config.partitions);
        let connects =
            config.seeds.iter().filter_map(|(name, address)| uplink.add(name.clone(), address.clone(), true));
        let connects = connects.collect();
        Shard {
            now: Now::default(),
            out: Vec::new(),
            sessions: Slab::default(),
            users: Names::new(config.seed),
            devices: Names::new(config.seed),
            conversations: Names::new(config.seed),
            topics: Slab::default(),
            pool: Pool::default(),
            wheel: None,
            due: Vec::new(),
            admission: Admission::new(config.unauthenticated_max, config.logins_per_s),
            held_accepts: false,
            uplink,
            stats: Stats::default(),
            doomed: Vec::new(),
            pending: FxHashMap::default(),
            pending_bytes: 0,
            pending_timers: VecDeque::new(),
            next_token: 1,
            wholes: FxHashMap::default(),
            next_whole: 0,
            watching: FxHashMap::default(),
            gathered: FxHashMap::default(),
            gathered_due: VecDeque::new(),
            gathered_acks: 0,
            owing: None,
            owing_sessions: 0,
            relays: VecDeque::new(),
            joins: VecDeque::new(),
            ring: VecDeque::new(),
            turns: 0,
            wanting: VecDeque::new(),
            refused: Vec::new(),
            fetches: VecDeque::new(),
            held_bytes: 0,
            next_version: 1,
            next_serial: 1,
            registers: VecDeque::new(),
            registering: VecDeque::new(),
            corked: VecDeque::new(),
            resync: Sweep::new(),
            reregister_at: None,
            reregister_rate: Rate::new(REREGISTER_PER_S),
            lease: Lease { incarnation: config.incarnation, until_us: 0, grant: 0 },
            renewal: Renewal::default(),
            drain: None,
            connects,
            config,
        }
    }

    /// Takes one event in. Call [`Shard::turn`] after each batch of them.
    pub fn step(&mut self, now: Now, event: Event<'_>, actions: &mut Vec<Action>) {
        self.begin(now, actions);
        match event {
            Event::Accepted { conn, peer: _ } => self.on_accepted(conn),
            Event::Received { conn, bytes } => self.on_received(conn, bytes),
            Event::Sent { conn } => self.on_sent(conn),
            Event::Closed { conn } => self.on_closed(conn),
            Event::Verified { conn, verdict } => self.on_verified(conn, verdict),
            Event::LinkConnected { node } => self.on_link_connected(node),
            Event::LinkBytes { node, bytes } => self.on_link_bytes(node, bytes),
            Event::LinkLost { node } => self.on_link_lost(node),
            Event::Lease(lease) => self.on_lease(lease),
            Event::Drain { deadline_us } => self.on_drain(deadline_us),
        }
        self.end(actions);
    }

    /// Does what is due and a slice of what waits. Once after each batch of events, and when its answer says so.
    pub fn turn(&mut self, now: Now, actions: &mut Vec<Action>) -> Wait {
        self.begin(now, actions);
        for node in std::mem::take(&mut self.connects) {
            if let Some(it) = self.uplink.node(node) {
                let (name, address) = (it.name.clone(), it.address.clone());
                self.out.push(Action::Connect { node, name, address });
            }
        }
        let mut more = self.turn_wheel();
        more |= self.turn_drain();
        self.turn_lease();
        self.turn_requests();
        self.turn_joins();
        more |= self.turn_owed();
        more |= self.turn_gathered();
        self.turn_fetches();
        self.turn_resync();
        self.turn_registers();
        self.turn_corked();
        self.turn_parked();
        self.turn_nodes();
        more |= self.turn_subscribes();
        let left = self.turn_fan_out(FAN_OUT_SENDS_PER_TURN);
        more |= !self.ring.is_empty();
        more |= self.turn_relays(left);
        self.finish_dooms();
        self.turn_acks();
        let deadline_us = self.deadline_us();
        self.end(actions);
        Wait { more, deadline_us }
    }

    fn begin(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.now = now;
        self.wheel.get_or_insert_with(|| Wheel::new(now.mono_us));
        std::mem::swap(&mut self.out, actions);
    }

    fn end(&mut self, actions: &mut Vec<Action>) {
        self.finish_dooms();
        std::mem::swap(&mut self.out, actions);
    }

    /// The next bytes for a node; call until `None`.
    pub fn transmit(&mut self, node: NodeKey) -> Option<Bytes> {
        let node = self.uplink.node(node)?;
        let bytes = node.link.transmit();
        node.output = bytes.is_some();
        bytes
    }

    /// Nodes for which [`Shard::transmit`] may have something.
    pub fn nodes_with_output(&self) -> Vec<NodeKey> {
        self.uplink.nodes().filter(|(_, node)| node.output).map(|(key, _)| key).collect()
    }

    /// The sessions of a user on this shard.
    pub fn sessions_of(&self, user: &str) -> Vec<SessionInfo> {
        let mut infos = Vec::new();
        let mut slot = self.users.find(user).map_or(NONE, |id| self.users.head(id));
        let now_tick = self.wheel.as_ref().map_or(0, |wheel| wheel.tick(self.now.mono_us));
        while let Some(session) = self.sessions.get(slot).filter(|_| slot != NONE) {
            let (device, platform) = self.device_of(session);
            let live = session.state == State::Live;
            infos.push(SessionInfo {
                session: session.id(&self.config, slot),
                device: device.into(),
                platform: platform.into(),
                login_number: session.login_number,
                live,
                websocket: session.is(WEBSOCKET),
                conversations: session
                    .topics
                    .as_slice()
                    .iter()
                    .map(|topic| self.conversations.text(*topic).into())
                    .collect(),
                queued_bytes: session.queue.bytes(),
                requests: session.requests,
                idle_ms: if live {
                    u64::from(now_tick.saturating_sub(session.tick)) * (TICK_US / 1_000)
                } else {
                    0
                },
            });
            slot = session.user_next;
        }
        infos
    }

    /// All counters, and the gauges as they are now.
    pub fn stats(&self) -> Stats {
        let (_, parked_bytes) = self.uplink.parked();
        Stats {
            connections: self.sessions.len() as u64,
            unauthenticated: self.admission.unauthenticated().into(),
            logging_in: self.admission.logging_in().into(),
            users: self.users.len() as u64,
            topics: self.topics.len() as u64,
            requests_pending: self.pending.len() as u64,
            request_bytes: self.pending_bytes as u64,
            outbox_nodes: self.pool.len() as u64,
            outbox_bytes: self.pool.bytes(),
            held_bytes: self.held_bytes as u64,
            requests_in_parts: self.wholes.len() as u64,
            watching: self.watching.len() as u64,
            owing: self.owing_sessions as u64,
            acks_gathered: self.gathered_acks as u64,
            relays_waiting: self.relays.len() as u64,
            parked_bytes: parked_bytes as u64,
            wheel_entries: self.wheel.as_ref().map_or(0, |wheel| wheel.len() as u64),
            nodes: self.uplink.nodes().count() as u64,
            links_up: self.uplink.nodes().filter(|(_, node)| node.link.is_up()).count() as u64,
            partitions_owned: self.uplink.owned() as u64,
            ..self.stats.clone()
        }
    }

    /// Heartbeats heard so far.
    pub fn pings(&self) -> u64 {
        self.stats.pings
    }

    /// Logins answered so far.
    pub fn login_acks(&self) -> u64 {
        self.stats.login_acks
    }

    /// Whether the gateway's lease allows logins now.
    pub fn lease_is_live(&self) -> bool {
        self.now.mono_us < self.lease.until_us
    }

    /// Whether no connection should be accepted now.
    pub fn holds_accepts(&mut self) -> bool {
        let held = self.admission.holds();
        self.stats.accept_holds += u64::from(held && !self.held_accepts);
        self.held_accepts = held;
        held
    }

    /// Whether a link is up and every partition has an owner: what readiness means.
    pub fn is_ready(&self) -> bool {
        self.drain.is_none()
            && self.lease_is_live()
            && self.uplink.owned() == usize::from(self.config.partitions)
    }

    pub(super) fn wheel(&self) -> &Wheel {
        self.wheel.as_ref().expect("made by the first step")
    }

    /// The session of a connection, unless its slot is used by another one by now.
    pub(super) fn session(&mut self, conn: Conn) -> Option<&mut Session> {
        self.sessions
            .get_mut(conn.slot)
            .filter(|session| session.generation == conn.generation || planted::is(Fault::GenerationIgnored))
    }

    /// Ticks of silence after which a client is taken for dead.
    pub(super) fn dead_ticks(&self) -> u32 {
        self.config.dead_after_us().div_ceil(TICK_US) as u32
    }

    /// Makes the wheel look at a slot at this tick; what was armed for it before is void.
    pub(super) fn arm(&mut self, slot: u32, tick: u32) {
        let armed = self.wheel.as_mut().expect("made by the first step").arm(slot, tick);
        if let Some(session) = self.sessions.get_mut(slot) {
            session.armed = armed;
        }
    }

    fn on_accepted(&mut self, conn: Conn) {
        self.stats.accepted += 1;
        let deadline = self.wheel().tick_after(self.now.mono_us + LOGIN_DEADLINE_MS * 1_000);
        debug_assert!(self.sessions.get(conn.slot).is_none(), "the edge reuses a slot only after Closed");
        if let Some(old) = self.sessions.get(conn.slot) {
            let old = old.conn(conn.slot);
            self.on_closed(old);
        }
        let admitted = self.admission.accept();
        self.sessions.insert(conn.slot, Session::new(conn.generation, deadline));
        if admitted && self.sessions.len() <= self.config.slots_max as usize {
            return self.arm(conn.slot, deadline);
        }
        let session = self.sessions.get_mut(conn.slot).expect("just inserted");
        session.state = State::Closed;
        if admitted {
            self.admission.settle();
        }
        session.flags &= !UNAUTHENTICATED;
        self.stats.accept_refused += 1;
        self.out.push(Action::Close { conn });
    }

    fn turn_wheel(&mut self) -> bool {
        let mut due = std::mem::take(&mut self.due);
        let now_us = self.now.mono_us;
        let wheel = self.wheel.as_mut().expect("made by the first step");
        let more = wheel.advance(now_us, WHEEL_LOOKS_PER_TURN, &mut due);
        let now_tick = wheel.tick(now_us);
        for (slot, tick) in due.drain(..) {
            self.look(slot, tick, now_tick);
        }
        self.due = due;
        more
    }

    fn look(&mut self, slot: u32, tick: u32, now_tick: u32) {
        let dead_ticks = self.dead_ticks();
        let Some(session) = self.sessions.get_mut(slot).filter(|session| session.armed == tick) else {
            return;
        };
        let deadline = match session.state {
            // One more: a byte at the end of its tick counts in full.
            State::Live => session.tick + dead_ticks + 1,
            State::Closed => return,
            _ => session.tick,
        };
        if now_tick < deadline {
            let spread = match session.state {
                State::Live => wheel::spread(slot, self.config.seed, dead_ticks / 8),
                _ => 0,
            };
            return self.arm(slot, deadline + spread);
        }
        match session.state {
            State::Live => {
                self.stats.heartbeat_timeouts += 1;
                self.doom(slot, Code::HeartbeatTimeout, "nothing was heard for 2.5 heartbeat intervals", 0);
            }
            State::Registering => {
                self.stats.login_timeouts += 1;
                let request = session.login().map_or(0, |login| login.request);
                let reason = "the login could not be registered in time";
                self.refuse_login(slot, request, Code::Unavailable, reason, RETRY_AFTER_UNAVAILABLE_MS);
            }
            State::New | State::Verifying => {
                self.stats.login_timeouts += 1;
                self.doom(slot, Code::LoginTimeout, "no login in time", 0);
            }
            State::Closing => {
                session.state = State::Closed;
                let conn = session.conn(slot);
                self.out.push(Action::Close { conn });
            }
            State::Closed => {}
        }
    }

    fn deadline_us(&self) -> Option<u64> {
        let now = self.now.mono_us;
        let soon = |waits: bool| waits.then_some(now + RETRY_SOON_US);
        let renews = self.config.shard == 0 && self.uplink.nodes().any(|(_, node)| node.link.is_up());
        [
            self.wheel().deadline_us(),
            self.pending_timers.front().map(|(at, _)| *at),
            self.joins.front().map(|join| join.deadline_us),
            self.fetches.front().map(|(at, ..)| *at),
            self.gathered_due.front().map(|(at, _)| *at),
            self.owing.as_ref().and_then(Wheel::deadline_us),
            self.registering.front().map(|(at, ..)| *at),
            self.corked.front().map(|(at, _)| *at),
            soon(!self.registers.is_empty() || self.reregister_at.is_some()),
            soon(self.resync.is_under_way()),
            soon(self.uplink.parked().0 > 0 || !self.wanting.is_empty()),
            renews.then_some(self.renewal.next_us),
            self.drain.as_ref().and_then(|drain| (!drain.closed).then_some(drain.deadline_us)),
            self.uplink.nodes().filter_map(|(_, node)| node.ack_since_us).min().map(|at| at + ACK_DELAY_US),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
