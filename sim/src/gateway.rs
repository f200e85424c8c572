//! One gateway process: its shards' cores, an edge of its own making, links that reconnect, and the lease's keeper.
//!
//! It does what the gateway's shell does, in the same order, and decides nothing. Left out of it: TLS, naps, signatures
//! (a token is its user's name; a ticket says in clear what it binds).

use std::collections::BTreeMap;

use bytes::Bytes;
use millrace_gateway::core::action::{Action, Credential};
use millrace_gateway::core::event::{Conn, Event, Identity, Lease, NodeKey, Refusal};
use millrace_gateway::core::limits::Config;
use millrace_gateway::core::outbox::payload_bytes;
use millrace_gateway::core::shard::Shard;
use millrace_gateway::shell::lease::{Change, Keeper, LeaseAnswer};
use millrace_protocol::ids::Now;
use millrace_protocol::messages::client::Code;

use crate::agenda::{Due, Who};
use crate::clock::{Clock, MS};
use crate::network::{ConnId, End, Item};
use crate::outside::Outside;
use crate::plan::Plan;
use crate::random::Random;
use crate::thread::{Burn, Fuse, Process, Threads, Wait};
use crate::witness;

/// What comes to a gateway's threads.
#[derive(Debug)]
pub enum Input {
    /// The edge accepted a connection.
    Accepted(ConnId),
    /// A client's bytes.
    Received(ConnId, Bytes),
    /// The kernel took the send in flight.
    Sent(ConnId),
    /// A client's connection is gone.
    Closed(ConnId),
    /// A credential was checked.
    Verified(Conn, Result<Identity, Refusal>),
    /// A link's transport, by connection.
    Link(NodeKey, ConnId, Item),
    /// Try to connect to a node.
    Dial(NodeKey),
    /// A socket to a node takes more.
    Room,
    /// From the control thread.
    Lease(Lease),
    /// From the control thread: go, by this time of the world.
    Drain(u64),
    /// For the control thread: a core was answered.
    Answer(LeaseAnswer),
}

/// A transport to one node.
#[derive(Debug)]
struct Link {
    address: String,
    conn: Option<ConnId>,
    up: bool,
    tries: u32,
}

/// A slot of the edge.
#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    conn: Option<ConnId>,
    /// A send is on its way into the socket.
    sending: bool,
}

/// One shard's thread.
struct Station {
    core: Shard,
    slots: Vec<Slot>,
    /// Connections that have a slot.
    conns: BTreeMap<ConnId, Conn>,
    links: BTreeMap<NodeKey, Link>,
}

/// One gateway.
pub struct Gateway {
    index: usize,
    /// Its id.
    pub id: u16,
    /// Counts its starts.
    pub life: u32,
    /// It runs.
    pub alive: bool,
    /// Its machine's clocks.
    pub clock: Clock,
    /// Ends or stops it.
    pub fuse: Fuse,
    /// Its threads.
    pub threads: Threads<Input, Action>,
    stations: Vec<Station>,
    keeper: Keeper,
    random: Random,
    plan: Plan,
    /// Its last connections end by then.
    draining: bool,
}

impl Gateway {
    /// A gateway that was never started.
    pub fn new(index: usize, clock: Clock, plan: &Plan, random: Random) -> Self {
        Gateway {
            index,
            id: index as u16 + 1,
            life: 0,
            alive: false,
            clock,
            fuse: Fuse::default(),
            threads: Threads::new(Who::Gateway(index), 0, 0),
            stations: Vec::new(),
            keeper: Keeper::new(1, std::time::Duration::from_secs(1)),
            random,
            plan: plan.clone(),
            draining: false,
        }
    }

    /// A new life, with nothing in memory.
    pub fn start(&mut self, out: &mut Outside, nodes: usize) {
        self.life += 1;
        self.alive = true;
        self.draining = false;
        self.fuse = Fuse::default();
        let incarnation = self.random.nonzero();
        let ttl = std::time::Duration::from_millis(u64::from(self.plan.gateway_lease_ms));
        self.keeper = Keeper::new(incarnation, ttl);
        self.stations.clear();
        for shard in 0..self.plan.gateway_shards {
            let config = self.config(shard as u8, incarnation, nodes);
            self.stations.push(Station {
                core: Shard::new(config),
                slots: Vec::new(),
                conns: BTreeMap::new(),
                links: BTreeMap::new(),
            });
        }
        self.threads = Threads::new(Who::Gateway(self.index), self.life, self.stations.len() + 1);
        for thread in 0..self.threads.count() {
            self.threads.wake(out, thread);
        }
    }

    fn config(&mut self, shard: u8, incarnation: u64, nodes: usize) -> Config {
        let mint = |user: &str, device: &str, platform: &str, number: u64, expires: u64| -> Vec<u8> {
            format!("{user}/{device}/{platform}/{number}/{expires}").into()
        };
        // One node is enough to find the others by.
        let seed_node = self.random.index(nodes);
        let mut config = Config::new(self.id, shard, incarnation, Box::new(mint));
        config.cluster = "sim".into();
        config.partitions = self.plan.partitions;
        config.seeds = vec![(String::new(), address(seed_node))];
        config.slots_max = 4_096;
        config.seed = self.random.draw();
        config.newest_wins_platforms = vec!["phone".into()];
        config.heartbeat_interval_ms = self.plan.heartbeat_ms;
        config.lease_ttl_ms = self.plan.gateway_lease_ms;
        config.lease_renew_ms = self.plan.gateway_lease_ms / 5;
        config.outbox_bytes_max = self.plan.outbox_bytes_max;
        config.link.window_bytes = self.plan.link_window_bytes;
        config
    }

    /// Everything in memory is gone.
    pub fn end(&mut self) {
        self.alive = false;
        self.stations.clear();
        self.threads = Threads::new(Who::Gateway(self.index), self.life, 0);
    }

    /// Its clients shall go, and the process ends.
    pub fn drain(&mut self, out: &mut Outside, within_us: u64) {
        if self.draining {
            return;
        }
        self.draining = true;
        for thread in 0..self.stations.len() {
            self.threads.push(out, thread, Input::Drain(out.now_us + within_us * 3 / 4));
        }
        out.after(within_us, Due::End(Who::Gateway(self.index), self.life));
    }

    fn step(&mut self, out: &mut Outside, thread: usize, now: Now, event: Event<'_>, what: u64) {
        let seat = self.threads.seat(thread);
        out.stepped(seat, what);
        out.trace.say(out.now_us, |text| {
            *text += &format!("{seat:?} < {}", brief(&event));
        });
        let mut actions = Vec::new();
        let station = &mut self.stations[thread];
        let logins = station.core.login_acks();
        station.core.step(now, event, &mut actions);
        if station.core.login_acks() > logins {
            witness::gateway_takes_logins(out, self.id);
        }
        self.threads.want_done(thread, actions);
    }

    /// The slot of a connection, if it still has one.
    fn conn_of(&self, thread: usize, id: ConnId) -> Option<Conn> {
        self.stations[thread].conns.get(&id).copied()
    }

    // ---- links ----

    fn dial(&mut self, out: &mut Outside, thread: usize, node: NodeKey) {
        let seat = self.threads.seat(thread);
        let id = self.id;
        let Some(link) = self.stations[thread].links.get_mut(&node).filter(|link| link.conn.is_none()) else {
            return;
        };
        let Some(target) = node_of(&link.address) else { return };
        let to = End::NodeLink(target, (id, thread as u8));
        link.conn = Some(out.network.connect(&mut out.agenda, out.now_us, End::GatewayLink(seat, node), to));
    }

    fn link(&mut self, out: &mut Outside, thread: usize, now: Now, node: NodeKey, id: ConnId, item: Item) {
        let Some(link) = self.stations[thread].links.get_mut(&node).filter(|link| link.conn == Some(id))
        else {
            return;
        };
        match item {
            Item::Accepted => {
                (link.up, link.tries) = (true, 0);
                self.step(out, thread, now, Event::LinkConnected { node }, 8);
            }
            Item::Bytes(bytes) => self.step(out, thread, now, Event::LinkBytes { node, bytes }, 9),
            Item::Closed => {
                let was_up = std::mem::take(&mut link.up);
                link.conn = None;
                out.close(id, 0);
                self.dial_later(out, thread, node);
                if was_up {
                    self.step(out, thread, now, Event::LinkLost { node }, 10);
                }
            }
        }
    }

    fn dial_later(&mut self, out: &mut Outside, thread: usize, node: NodeKey) {
        let seat = self.threads.seat(thread);
        let Some(link) = self.stations[thread].links.get_mut(&node) else { return };
        let longest_us = ((20 * MS) << link.tries.min(6)).min(1_000 * MS);
        link.tries += 1;
        let pause_us = self.random.between(longest_us / 4, longest_us);
        out.after(pause_us, Due::Gateway(seat, Input::Dial(node)));
    }

    /// What its shards hold, for bounds and reports.
    pub fn cores(&self) -> impl Iterator<Item = &Shard> {
        self.stations.iter().map(|station| &station.core)
    }
}

impl Process for Gateway {
    type Input = Input;
    type Action = Action;

    fn threads(&mut self) -> &mut Threads<Input, Action> {
        &mut self.threads
    }

    fn fuse(&mut self) -> &mut Fuse {
        &mut self.fuse
    }

    fn take(&mut self, out: &mut Outside, thread: usize, input: Input) {
        let now = self.clock.now(out.now_us);
        let station = &mut self.stations[thread];
        match input {
            Input::Accepted(id) => {
                // Any slot that is free: the lowest, or another one, so that slots are used again soon and late.
                let free = station.slots.iter().position(|slot| slot.conn.is_none());
                let slot = free.unwrap_or(station.slots.len());
                if free.is_none() {
                    station.slots.push(Slot::default());
                }
                let it = &mut station.slots[slot];
                it.generation = (it.generation + 1) & 0xf_ffff;
                it.conn = Some(id);
                it.sending = false;
                let conn = Conn { slot: slot as u32, generation: it.generation };
                station.conns.insert(id, conn);
                let peer = [127, 0, 0, 1].into();
                self.step(out, thread, now, Event::Accepted { conn, peer }, 1);
            }
            Input::Received(id, bytes) => {
                let Some(conn) = self.conn_of(thread, id) else { return };
                let mut bytes = bytes.to_vec();
                self.step(out, thread, now, Event::Received { conn, bytes: &mut bytes }, 2);
            }
            Input::Sent(id) => {
                let Some(conn) = self.conn_of(thread, id) else { return };
                let slot = &mut self.stations[thread].slots[conn.slot as usize];
                if std::mem::take(&mut slot.sending) {
                    self.step(out, thread, now, Event::Sent { conn }, 3);
                }
            }
            Input::Closed(id) => {
                let Some(conn) = self.conn_of(thread, id) else { return };
                let station = &mut self.stations[thread];
                station.conns.remove(&id);
                station.slots[conn.slot as usize].conn = None;
                out.close(id, 1);
                self.step(out, thread, now, Event::Closed { conn }, 4);
            }
            Input::Verified(conn, verdict) => {
                self.step(out, thread, now, Event::Verified { conn, verdict }, 5);
            }
            Input::Link(node, id, item) => self.link(out, thread, now, node, id, item),
            Input::Dial(node) => self.dial(out, thread, node),
            Input::Room | Input::Answer(_) => {}
            Input::Lease(lease) => self.step(out, thread, now, Event::Lease(lease), 6),
            Input::Drain(at_us) => {
                let deadline_us = self.clock.now(at_us).mono_us;
                self.step(out, thread, now, Event::Drain { deadline_us }, 7);
            }
        }
    }

    fn carry_out(&mut self, out: &mut Outside, thread: usize, action: Action) {
        let seat = self.threads.seat(thread);
        out.trace.say(out.now_us, |text| {
            if !matches!(action, Action::Send { .. }) {
                *text += &format!("{seat:?} > {action:?}");
            }
        });
        let station = &mut self.stations[thread];
        match action {
            Action::Send { conn, payload } => {
                let Some((slot, id)) = in_use(&mut station.slots, conn) else { return };
                assert!(!slot.sending, "two sends in flight on {conn:?}");
                slot.sending = true;
                out.send(id, 1, Bytes::copy_from_slice(payload_bytes(&payload)));
                if out.network.has_room(id, 1) {
                    out.after(10, Due::Gateway(seat, Input::Sent(id)));
                }
            }
            Action::Shutdown { conn } => {
                let Some((_, id)) = in_use(&mut station.slots, conn) else { return };
                out.network.finish(&mut out.agenda, out.now_us, id, 1);
            }
            Action::Close { conn } => {
                let Some((_, id)) = in_use(&mut station.slots, conn) else { return };
                out.close(id, 1);
                out.after(30, Due::Gateway(seat, Input::Closed(id)));
            }
            Action::Verify { conn, credential } => {
                let verdict = verify(credential, self.clock.now(out.now_us).wall_ms);
                let delay_us = self.random.between(10, 800);
                out.after(delay_us, Due::Gateway(seat, Input::Verified(conn, verdict)));
            }
            Action::Connect { node, address, .. } => {
                station.links.insert(node, Link { address, conn: None, up: false, tries: 0 });
                self.dial(out, thread, node);
            }
            Action::Disconnect { node } => {
                if let Some(id) = station.links.remove(&node).and_then(|link| link.conn) {
                    out.close(id, 0);
                }
            }
            Action::ResetLink { node, reason } => {
                out.ledger.link_reset(out.now_us, &reason);
                let Some(link) = station.links.get_mut(&node) else { return };
                if let Some(id) = link.conn.take() {
                    link.up = false;
                    out.close(id, 0);
                }
                self.dial_later(out, thread, node);
            }
            Action::LeaseAnswer { grant, incarnation, sent_us, reason } => {
                let control = self.threads.control();
                let answer = LeaseAnswer { grant, incarnation, sent_us, reason };
                self.threads.push(out, control, Input::Answer(answer));
            }
        }
    }

    fn turn_core(&mut self, out: &mut Outside, thread: usize) -> Wait {
        let mut actions = Vec::new();
        let wait = self.stations[thread].core.turn(self.clock.now(out.now_us), &mut actions);
        self.threads.want_done(thread, actions);
        Wait { more: wait.more, until_us: wait.deadline_us.map(|at_us| self.clock.world_us(at_us)) }
    }

    fn output(&mut self, out: &mut Outside, thread: usize) {
        let station = &mut self.stations[thread];
        for node in station.core.nodes_with_output() {
            let Some(conn) = station.links.get(&node).filter(|link| link.up).and_then(|link| link.conn)
            else {
                continue;
            };
            while out.network.has_room(conn, 0)
                && let Some(bytes) = station.core.transmit(node)
            {
                out.send(conn, 0, bytes);
            }
        }
    }

    fn turn_control(&mut self, out: &mut Outside) -> Option<Burn> {
        let control = self.threads.control();
        while let Some(input) = self.threads.pop(control) {
            let Input::Answer(answer) = input else { continue };
            let random = &mut self.random;
            let lease = match self.keeper.answer(&answer, || random.nonzero()) {
                Change::None => continue,
                Change::Extended(lease) | Change::Renewed(lease) => lease,
            };
            let until_us = self.clock.world_us(lease.until_us);
            witness::believes(out, &self.id.to_string(), lease.incarnation, until_us);
            for shard in 0..self.stations.len() {
                self.threads.push(out, shard, Input::Lease(lease));
            }
            if let Some(burn) = self.fuse.step() {
                return Some(burn);
            }
        }
        None
    }
}

fn in_use(slots: &mut [Slot], conn: Conn) -> Option<(&mut Slot, ConnId)> {
    let slot = slots.get_mut(conn.slot as usize).filter(|slot| slot.generation == conn.generation)?;
    let id = slot.conn?;
    Some((slot, id))
}

/// Where a node listens.
pub fn address(node: usize) -> String {
    format!("node-{node}:1")
}

fn node_of(address: &str) -> Option<usize> {
    address.strip_prefix("node-")?.strip_suffix(":1")?.parse().ok()
}

fn verify(credential: Credential, wall_ms: u64) -> Result<Identity, Refusal> {
    let (user, login_number) = match credential {
        Credential::Token(user) => (user, 0),
        Credential::Ticket { ticket, device, platform } => {
            let text = String::from_utf8(ticket).unwrap_or_default();
            let parts: Vec<&str> = text.split('/').collect();
            match parts[..] {
                [user, its, on, number, _] if its == device && on == platform => {
                    (user.to_owned(), number.parse().unwrap_or(0))
                }
                _ => (String::new(), 0),
            }
        }
    };
    let refusal = || Refusal { code: Code::BadToken, reason: "no such user".into(), retry_after_ms: 0 };
    let expires_wall_ms = wall_ms + 3_600_000;
    (!user.is_empty()).then_some(Identity { user, expires_wall_ms, login_number }).ok_or_else(refusal)
}

fn brief(event: &Event<'_>) -> String {
    match event {
        Event::Received { conn, bytes } => format!("Received {conn:?} {} bytes", bytes.len()),
        Event::LinkBytes { node, bytes } => format!("LinkBytes {node:?} {}", crate::wiretap::brief(bytes)),
        other => format!("{other:?}"),
    }
}
