//! A world: processes, devices, a network, a store, and one thing after the other.
//!
//! One thread, one seed, no clock but the agenda's. It hands out what is due and decides when a run is over: after
//! the work and the last fault everything must come right within a bounded time.

use millrace_gateway::core::limits::{HELD_BYTES_MAX, PARKED_BYTES_MAX};

use crate::agenda::{Agenda, Due, Seat, Who};
use crate::clock::{Clock, MS, SECOND};
use crate::device::Device;
use crate::dispatcher::{self, Node};
use crate::gateway::{self, Gateway};
use crate::ledger::{Counts, Invariant, Ledger, Violation};
use crate::network::{ConnId, End, Item, Network};
use crate::outside::Outside;
use crate::plan::Plan;
use crate::random::Random;
use crate::schedule::Fault;
use crate::store::Store;
use crate::stray::Stray;
use crate::thread::{Burn, Process};
use crate::trace::Trace;
use crate::work;

/// How often bounds and progress are looked at, us.
const LOOK_US: u64 = 50 * MS;

/// The longest fault goes on for so long after the work has ended, us.
const FAULT_US_MAX: u64 = 6 * SECOND;

/// Who lost its place to a newer login is closed within this, us: its Close is lost now and then, and repeated.
const CLOSED_US: u64 = 4 * SECOND;

/// A kernel gives up on a silent peer within this, us.
pub(crate) const GIVE_UP_US: u64 = 4 * SECOND;

/// How a run went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The first broken promise.
    pub violation: Option<Violation>,
    /// Of everything that happened.
    pub hash: u64,
    /// Steps and turns of cores.
    pub steps: u64,
    /// Time of the world, us.
    pub world_us: u64,
    /// What was counted.
    pub counts: Counts,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Busy,
    /// Everything must be answered.
    Settling,
    /// One last message from everyone must reach everyone.
    Probing,
    Over,
}

/// See the module's head.
pub struct World {
    pub(crate) out: Outside,
    pub(crate) plan: Plan,
    pub(crate) faults: Vec<Fault>,
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) devices: Vec<Device>,
    pub(crate) strays: Vec<Stray>,
    think_at_us: Vec<u64>,
    random: Random,
    /// For what users do besides.
    habits: Random,
    phase: Phase,
    look_at_us: u64,
    steps_max: u64,
}

impl World {
    /// A world of this plan, with these faults.
    pub fn new(plan: &Plan, faults: &[Fault], seed: u64, trace: Trace) -> Self {
        let fork = |part| Random::fork(seed, part);
        let mut random = fork(3);
        let mut out = Outside {
            now_us: 0,
            agenda: Agenda::default(),
            network: Network::new(fork(4)),
            store: Store::new(plan.partitions, fork(5), fork(23)),
            ledger: Ledger::default(),
            trace,
            random: fork(6),
            steps: 0,
            partitions: plan.partitions,
            lives: vec![0; plan.gateways],
        };
        out.ledger.retention_us = plan.retention_ms * MS;
        out.store.keep_copies = plan.allowed.failover;
        let mut clock = || {
            let off_ms = if plan.allowed.clock { random.below(4_000) as i64 - 2_000 } else { 0 };
            Clock::new(random.below(1_000 * SECOND), off_ms)
        };
        let gateways =
            (0..plan.gateways).map(|n| Gateway::new(n, clock(), plan, fork(100 + n as u64))).collect();
        let nodes = (0..plan.nodes).map(|n| Node::new(n, clock(), plan, fork(200 + n as u64))).collect();
        let mut devices = Vec::new();
        for user in 0..plan.users {
            for number in 0..random.between(1, plan.devices_max as u64) {
                let index = devices.len();
                let (user, name) = (work::user(user), format!("device{number}"));
                out.ledger.add_device(&user, &name);
                devices.push(Device::new(index, user, name, plan, fork(300 + index as u64)));
            }
        }
        let stray = |n: usize| Stray::new(n, n % plan.users, plan, fork(400 + n as u64));
        let strays = (0..plan.strays).map(stray).collect();
        let think_at_us = devices.iter().map(|_| plan.calm_us / 2 + random.below(plan.think_us)).collect();
        World {
            out,
            plan: plan.clone(),
            faults: faults.to_vec(),
            gateways,
            nodes,
            devices,
            strays,
            think_at_us,
            random: fork(7),
            habits: fork(10),
            phase: Phase::Busy,
            look_at_us: 0,
            steps_max: u64::MAX,
        }
    }

    /// Ends after so many steps, whatever is left to do.
    pub fn limit_steps(&mut self, steps: u64) {
        self.steps_max = steps;
    }

    /// Plays it to its end.
    pub fn run(&mut self) -> Outcome {
        self.begin();
        while self.phase != Phase::Over && self.out.ledger.violation.is_none() {
            if self.out.steps >= self.steps_max {
                break;
            }
            let Some((at_us, due)) = self.out.agenda.pop() else { break };
            self.out.now_us = at_us;
            while self.look_at_us <= at_us && self.phase != Phase::Over {
                self.look();
                self.look_at_us += LOOK_US;
            }
            self.handle(due);
        }
        Outcome {
            violation: self.out.ledger.violation.clone(),
            hash: self.out.trace.hash(),
            steps: self.out.steps,
            world_us: self.out.now_us,
            counts: self.out.ledger.counts,
        }
    }

    fn begin(&mut self) {
        for node in &mut self.nodes {
            node.start(&mut self.out);
        }
        for index in 0..self.gateways.len() {
            self.start_gateway(index);
        }
        for index in 0..self.devices.len() {
            self.out.after(1, Due::Device(index));
        }
        for index in 0..self.strays.len() {
            self.out.after(self.plan.calm_us / 2, Due::Stray(index));
        }
        for (index, fault) in self.faults.iter().enumerate() {
            self.out.agenda.at(fault.at_us, Due::Fault(index));
        }
    }

    fn handle(&mut self, due: Due) {
        match due {
            Due::Turn(seat) => self.turn(seat),
            Due::Gateway(seat, input) => {
                if let Some(gateway) = self.gateway(seat) {
                    gateway.0.threads.push(gateway.1, seat.thread, input);
                }
            }
            Due::Node(seat, input) => {
                if let Some(node) = self.node(seat) {
                    node.0.threads.push(node.1, seat.thread, input);
                }
            }
            Due::Pipe(id, side) => {
                let Outside { network, agenda, now_us, .. } = &mut self.out;
                let Some(arrival) = network.arrive(agenda, *now_us, id, side) else { return };
                if let Some(sender) = arrival.room {
                    self.room(sender, id);
                }
                let empty = matches!(&arrival.item, Item::Bytes(bytes) if bytes.is_empty());
                if !empty {
                    self.arrived(arrival.end, id, arrival.item);
                }
            }
            Due::Syn(id) => self.syn(id),
            Due::Broken(id, side) => {
                if let Some(end) = self.out.network.broken(id, side) {
                    self.arrived(end, id, Item::Closed);
                }
            }
            Due::Job(seat, copy, job) => {
                let Outside { store, agenda, ledger, now_us, .. } = &mut self.out;
                store.carry_out(agenda, ledger, *now_us, seat, (copy, *job));
            }
            Due::GoesOn => {
                let Outside { store, agenda, ledger, now_us, .. } = &mut self.out;
                store.goes_on(agenda, ledger, *now_us);
            }
            Due::Done(seat, done) => {
                if let Some((node, out)) = self.node(seat) {
                    let input = dispatcher::done_input(seat, node.threads.control(), *done);
                    node.threads.push(out, seat.thread, input);
                }
            }
            Due::Start(who) => self.start(who),
            Due::End(who, life) => {
                if self.life(who) == Some(life) {
                    let down_us = self.random.between(20 * MS, 1_500 * MS);
                    self.crash(who, down_us, false);
                }
            }
            Due::Device(index) => self.devices[index].woken(&mut self.out),
            Due::Stray(index) => self.strays[index].turn(&mut self.out),
            Due::Fault(index) => self.fault(index),
        }
    }

    fn gateway(&mut self, seat: Seat) -> Option<(&mut Gateway, &mut Outside)> {
        let Who::Gateway(index) = seat.who else { return None };
        let gateway = &mut self.gateways[index];
        (gateway.alive && gateway.life == seat.life).then_some((gateway, &mut self.out))
    }

    fn node(&mut self, seat: Seat) -> Option<(&mut Node, &mut Outside)> {
        let Who::Node(index) = seat.who else { return None };
        let node = &mut self.nodes[index];
        (node.alive && node.life == seat.life).then_some((node, &mut self.out))
    }

    fn life(&self, who: Who) -> Option<u32> {
        match who {
            Who::Gateway(index) => Some(&self.gateways[index]).filter(|it| it.alive).map(|it| it.life),
            Who::Node(index) => Some(&self.nodes[index]).filter(|it| it.alive).map(|it| it.life),
        }
    }

    // ---- processes ----

    fn turn(&mut self, seat: Seat) {
        let burnt = match seat.who {
            Who::Gateway(_) => self.gateway(seat).and_then(|(it, out)| it.turn(out, seat.thread)),
            Who::Node(_) => self.node(seat).and_then(|(it, out)| it.turn(out, seat.thread)),
        };
        match burnt {
            None => {}
            Some(Burn::Crash { down_us, silently }) => self.crash(seat.who, down_us, silently),
            Some(Burn::Stop { thread, for_us }) => self.stop(seat, thread, for_us),
        }
    }

    fn stop(&mut self, seat: Seat, thread: Option<usize>, for_us: u64) {
        let (until_us, again_us) = (self.out.now_us + for_us, self.out.now_us + 1);
        self.out.trace.say(self.out.now_us, |text| {
            *text += &format!("**** {:?} stops ({thread:?}) for {} ms", seat.who, for_us / MS);
        });
        match seat.who {
            Who::Gateway(index) => {
                let it = &mut self.gateways[index];
                let thread = thread.map(|thread| thread % it.threads.count());
                it.threads.stop(&mut self.out, thread, until_us);
                // The thread that burnt the fuse is in the middle of a turn, and goes on with it.
                it.threads.stop(&mut self.out, Some(seat.thread), again_us);
            }
            Who::Node(index) => {
                let it = &mut self.nodes[index];
                let thread = thread.map(|thread| thread % it.threads.count());
                it.threads.stop(&mut self.out, thread, until_us);
                it.threads.stop(&mut self.out, Some(seat.thread), again_us);
            }
        }
    }

    fn crash(&mut self, who: Who, down_us: u64, silently: bool) {
        self.out.trace.say(self.out.now_us, |text| {
            *text += &format!("**** {who:?} ends, silently: {silently}, for {} ms", down_us / MS);
        });
        match who {
            Who::Gateway(index) => self.gateways[index].end(),
            Who::Node(index) => self.nodes[index].end(),
        }
        let owned = |end: End| match (end, who) {
            (End::GatewayLink(seat, _) | End::GatewayClient(seat), _) => seat.who == who,
            (End::NodeLink(node, _), Who::Node(index)) => node == index,
            _ => false,
        };
        for (id, side) in self.out.network.sides_of(owned) {
            let Outside { network, agenda, now_us, random, .. } = &mut self.out;
            match (silently, random.chance(500)) {
                (true, _) => network.vanish(agenda, *now_us, id, side, GIVE_UP_US),
                // What it had sent arrives, or is lost in a reset.
                (false, true) => network.close(agenda, *now_us, id, side),
                (false, false) => network.drop_now(agenda, *now_us, id, 2 * MS),
            }
        }
        self.out.after(down_us, Due::Start(who));
    }

    fn start(&mut self, who: Who) {
        if self.life(who).is_some() {
            return;
        }
        self.out.trace.say(self.out.now_us, |text| *text += &format!("**** {who:?} starts"));
        match who {
            Who::Gateway(index) => self.start_gateway(index),
            Who::Node(index) => self.nodes[index].start(&mut self.out),
        }
    }

    fn start_gateway(&mut self, index: usize) {
        self.gateways[index].start(&mut self.out, self.plan.nodes);
        self.out.lives[index] = self.gateways[index].life;
    }

    // ---- connections ----

    fn syn(&mut self, id: ConnId) {
        let Some(to) = self.out.network.target(id) else { return };
        let taken = match to {
            End::GatewayClient(seat) => self.gateway(seat).is_some(),
            End::NodeLink(node, _) => self.nodes[node].alive,
            _ => false,
        };
        let Outside { network, agenda, now_us, .. } = &mut self.out;
        network.answer_syn(agenda, *now_us, id, taken);
        if let (true, End::GatewayClient(seat)) = (taken, to)
            && let Some((gateway, out)) = self.gateway(seat)
        {
            gateway.threads.push(out, seat.thread, gateway::Input::Accepted(id));
        }
    }

    fn arrived(&mut self, end: End, id: ConnId, item: Item) {
        match end {
            End::Device(index) => self.devices[index].arrived(&mut self.out, id, item),
            End::Stray(index) => self.strays[index].arrived(&mut self.out, id, item),
            End::GatewayLink(seat, node) => {
                if let Some((gateway, out)) = self.gateway(seat) {
                    gateway.threads.push(out, seat.thread, gateway::Input::Link(node, id, item));
                }
            }
            End::GatewayClient(seat) => {
                let Some((gateway, out)) = self.gateway(seat) else { return };
                let input = match item {
                    Item::Accepted => return,
                    Item::Bytes(bytes) => gateway::Input::Received(id, bytes),
                    Item::Closed => gateway::Input::Closed(id),
                };
                gateway.threads.push(out, seat.thread, input);
            }
            End::NodeLink(node, link) => {
                let it = &mut self.nodes[node];
                if it.alive {
                    it.push_link(&mut self.out, link, id, item);
                }
            }
        }
    }

    /// A sender's socket takes more.
    fn room(&mut self, sender: End, id: ConnId) {
        match sender {
            End::GatewayClient(seat) => {
                if let Some((gateway, out)) = self.gateway(seat) {
                    gateway.threads.push(out, seat.thread, gateway::Input::Sent(id));
                }
            }
            End::GatewayLink(seat, _) => {
                if let Some((gateway, out)) = self.gateway(seat) {
                    gateway.threads.push(out, seat.thread, gateway::Input::Room);
                }
            }
            End::NodeLink(node, _) => {
                let it = &mut self.nodes[node];
                for thread in 0..it.threads.control() {
                    it.threads.push(&mut self.out, thread, dispatcher::Input::Room);
                }
            }
            End::Device(_) | End::Stray(_) => {}
        }
    }

    // ---- devices ----

    fn think(&mut self) {
        for index in 0..self.devices.len() {
            if self.think_at_us[index] <= self.out.now_us {
                if index == 0 {
                    work::create_groups(&mut self.out, &self.plan, &mut self.devices[0]);
                }
                self.think_at_us[index] = self.out.now_us + 1 + self.random.below(2 * self.plan.think_us);
                let device = &mut self.devices[index];
                if self.plan.churn > 0 && self.random.chance(self.plan.churn) {
                    work::come_and_go(&mut self.out, &self.plan, &mut self.random, device);
                } else {
                    work::do_something(&mut self.out, &self.plan, &mut self.random, device);
                }
                if self.habits.chance(self.plan.reads_per_mille) {
                    self.devices[index].mark_read(&mut self.out, &mut self.habits);
                }
            }
        }
    }

    // ---- progress ----

    fn look(&mut self) {
        let now_us = self.look_at_us;
        self.check_bounds();
        let quiet_us = self.plan.busy_until_us() + FAULT_US_MAX;
        let deadline_us = quiet_us + self.plan.settle_us;
        match self.phase {
            Phase::Busy if now_us >= self.plan.busy_until_us() => {
                self.phase = Phase::Settling;
                for gateway in &mut self.gateways {
                    gateway.fuse = Default::default();
                }
                for node in &mut self.nodes {
                    node.fuse = Default::default();
                }
                for device in &mut self.devices {
                    device.hurry(&mut self.out);
                }
            }
            Phase::Busy => self.think(),
            Phase::Settling => match self.unfinished() {
                None => {
                    self.phase = Phase::Probing;
                    for device in &mut self.devices {
                        work::probe(&mut self.out, &self.plan, device);
                    }
                }
                Some((invariant, detail)) if now_us > deadline_us => {
                    self.out.ledger.broken(invariant, self.out.now_us, detail);
                }
                Some(_) => self.check_copies(quiet_us),
            },
            Phase::Probing => match self.unfinished() {
                None => self.phase = Phase::Over,
                Some((invariant, detail)) if now_us > deadline_us + 20 * SECOND => {
                    self.out.ledger.broken(invariant, self.out.now_us, detail);
                }
                Some(_) => {}
            },
            Phase::Over => {}
        }
    }

    fn unfinished(&self) -> Option<(Invariant, String)> {
        let all_alive = self.gateways.iter().all(|it| it.alive) && self.nodes.iter().all(|it| it.alive);
        if !all_alive {
            return Some((Invariant::AttachedAtLast, "a process is not back".into()));
        }
        if let Some(device) = self.devices.iter().find(|device| device.is_doubled_since_us().is_some()) {
            let detail = format!("a copy of {}/{} is not closed", device.user, device.name);
            return Some((Invariant::ClosedAtLast, detail));
        }
        let online: Vec<bool> = self.devices.iter().map(Device::is_online).collect();
        self.out.ledger.unfinished(&online)
    }

    /// A session that a newer one took the place of is told so, and soon.
    fn check_copies(&mut self, quiet_us: u64) {
        for device in &self.devices {
            let Some(since_us) = device.is_doubled_since_us() else { continue };
            if self.look_at_us > since_us.max(quiet_us).saturating_add(CLOSED_US) {
                let detail = format!("{}/{} has a copy that was not closed", device.user, device.name);
                return self.out.ledger.broken(Invariant::ClosedAtLast, self.look_at_us, detail);
            }
        }
    }

    /// Gauges against their limits.
    fn check_bounds(&mut self) {
        let mut wrong = None;
        for gateway in &self.gateways {
            for core in gateway.cores() {
                let stats = core.stats();
                let bounds = [
                    ("held_bytes", stats.held_bytes, HELD_BYTES_MAX as u64),
                    ("parked_bytes", stats.parked_bytes, PARKED_BYTES_MAX as u64),
                    ("unauthenticated", stats.unauthenticated, stats.connections),
                    ("logging_in", stats.logging_in, stats.connections),
                    ("nodes", stats.nodes, 2 * self.nodes.len() as u64 + 1),
                    ("link_bad_records", stats.link_bad_records, 0),
                ];
                wrong = wrong.or(bounds.into_iter().find(|(_, is, max)| is > max));
            }
        }
        for node in &self.nodes {
            for core in node.cores() {
                let stats = core.stats();
                let links = (self.gateways.len() * self.plan.gateway_shards) as u64;
                let per_shard = u64::from(self.plan.partitions) * self.plan.conversations_max as u64;
                let bounds = [
                    ("links", stats.links, links),
                    ("conversations", stats.conversations, per_shard),
                    ("malformed", stats.malformed, 0),
                ];
                wrong = wrong.or(bounds.into_iter().find(|(_, is, max)| is > max));
            }
        }
        if let Some((name, is, max)) = wrong {
            let detail = format!("{name} is {is}, at most {max} was expected");
            self.out.ledger.broken(Invariant::Bounded, self.out.now_us, detail);
        }
    }
}
