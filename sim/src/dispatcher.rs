//! One dispatcher node: its shards' cores, the links that came in, and its control thread with the lease and ownership.
//!
//! It does what the node's shell does, in the same order. What the shell decides is decided here in the same way: a
//! lease is counted from before its renewal was sent, less a margin; it is not renewed while a shard hangs; orders and
//! reports keep their order. Who should own what is the production [`Ownership`]'s.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_dispatcher::core::action::Action;
use millrace_dispatcher::core::event::{Event, LinkKey};
use millrace_dispatcher::core::lease::{NameLease, Renewal};
use millrace_dispatcher::core::limits::{Limits, Retention};
use millrace_dispatcher::core::ownership::{Command, MOVES_MAX, Ownership};
use millrace_dispatcher::core::shard::{Config, Shard};
use millrace_dispatcher::store::{Done, Job, Node as Member, Outcome, Work};
use millrace_protocol::ids::Partition;
use millrace_protocol::link::end::LinkLimits;

use crate::agenda::{Due, Seat, Who};
use crate::clock::{Clock, MS};
use crate::gateway::address;
use crate::network::{ConnId, Item};
use crate::outside::Outside;
use crate::plan::Plan;
use crate::random::Random;
use crate::thread::{Burn, Fuse, Process, Threads, Wait};
use crate::witness;

/// Taken off a lease's end, as a share of its length, as the shell does.
const LEASE_MARGIN_SHARE: u32 = 10;

/// What comes to a node's threads.
#[derive(Debug)]
pub enum Input {
    /// For a shard's core.
    Event(Event),
    /// The transport of a link, by connection.
    Link(LinkKey, ConnId, Item),
    /// A socket takes more.
    Room,
    /// For the control thread: the time for a renewal has come.
    Tick,
    /// For the control thread: the store's answer.
    Done(Done),
    /// For the control thread: a shard serves a partition.
    Claimed(Partition),
    /// For the control thread: a shard does not serve it.
    NotServed(Partition),
    /// For the control thread: hand over, leave and end.
    Leave,
}

/// One shard's thread.
#[derive(Debug)]
struct Station {
    core: Shard,
    links: BTreeMap<LinkKey, ConnId>,
    turned_us: u64,
}

/// The control thread.
#[derive(Debug)]
struct Control {
    lease: NameLease,
    ownership: Ownership,
    poked_us: Option<u64>,
    /// The renewal at the store: its ticket, and when it was sent on the own clock.
    in_flight: Option<(u64, u64)>,
    next_ticket: u64,
    stopping: bool,
    left: bool,
}

/// One node.
#[derive(Debug)]
pub struct Node {
    index: usize,
    /// Its name in the cluster.
    pub name: String,
    /// Counts its starts.
    pub life: u32,
    /// It runs.
    pub alive: bool,
    /// Its machine's clocks.
    pub clock: Clock,
    /// Ends or stops it.
    pub fuse: Fuse,
    incarnation: u64,
    /// Its threads.
    pub threads: Threads<Input, Action>,
    stations: Vec<Station>,
    control: Control,
    random: Random,
    plan: Plan,
}

impl Node {
    /// A node that was never started.
    pub fn new(index: usize, clock: Clock, plan: &Plan, random: Random) -> Self {
        Node {
            index,
            name: format!("node-{index}"),
            life: 0,
            alive: false,
            clock,
            fuse: Fuse::default(),
            incarnation: 0,
            threads: Threads::new(Who::Node(index), 0, 0),
            stations: Vec::new(),
            control: Control::new(plan.partitions),
            random,
            plan: plan.clone(),
        }
    }

    /// A new life, with nothing in memory.
    pub fn start(&mut self, out: &mut Outside) {
        self.life += 1;
        self.alive = true;
        self.fuse = Fuse::default();
        self.incarnation = self.random.nonzero();
        self.control = Control::new(self.plan.partitions);
        self.stations.clear();
        let shards = self.plan.node_shards;
        let retention = Retention { age_ms: self.plan.retention_ms, ..Retention::default() };
        for shard in 0..shards {
            let config = Config {
                shard,
                shards,
                node: self.name.clone(),
                incarnation: self.incarnation,
                cluster: "sim".into(),
                partitions: self.plan.partitions,
                limits: Limits {
                    conversations_per_partition_max: self.plan.conversations_max,
                    link_waiting_bytes_max: 256 << 10,
                    retention,
                    retention_rooms: retention,
                    ..Limits::default()
                },
                link: LinkLimits { window_bytes: self.plan.link_window_bytes, ..LinkLimits::default() },
                seed: self.incarnation ^ shard as u64,
            };
            self.stations.push(Station {
                core: Shard::new(config),
                links: BTreeMap::new(),
                turned_us: self.clock.now(out.now_us).mono_us,
            });
        }
        self.threads = Threads::new(Who::Node(self.index), self.life, shards + 1);
        for thread in 0..self.threads.count() {
            self.threads.wake(out, thread);
        }
        let seat = self.threads.seat(shards);
        out.after(1, Due::Node(seat, Input::Tick));
    }

    /// Everything in memory is gone.
    pub fn end(&mut self) {
        self.alive = false;
        self.stations.clear();
        self.threads = Threads::new(Who::Node(self.index), self.life, 0);
        self.control = Control::new(self.plan.partitions);
    }

    /// Something for the link of a gateway's shard, at its home.
    pub fn push_link(&mut self, out: &mut Outside, (gateway, shard): (u16, u8), id: ConnId, item: Item) {
        let link = LinkKey { gateway, shard };
        let home = link.home(self.stations.len());
        self.threads.push(out, home, Input::Link(link, id, item));
    }

    fn step(&mut self, out: &mut Outside, thread: usize, event: Event) {
        let seat = self.threads.seat(thread);
        out.stepped(seat, number(&event));
        let takes_in = matches!(event, Event::LinkBytes { .. } | Event::Sibling(_));
        out.trace.say(out.now_us, |text| *text += &format!("{seat:?} < {}", brief(&event)));
        let now = self.clock.now(out.now_us);
        let mut actions = Vec::new();
        let station = &mut self.stations[thread];
        station.core.step(now, event, &mut actions);
        if takes_in {
            witness::node_acts(out, &self.name, self.incarnation, &actions);
        }
        self.threads.want_done(thread, actions);
    }

    fn link(&mut self, out: &mut Outside, thread: usize, link: LinkKey, id: ConnId, item: Item) {
        let current = self.stations[thread].links.get(&link).copied();
        match item {
            Item::Accepted => {}
            Item::Bytes(bytes) => {
                if current != Some(id) {
                    // Its first words: it takes the place of whatever transport the link had.
                    self.drop_link(out, thread, link);
                    self.stations[thread].links.insert(link, id);
                    self.step(out, thread, Event::LinkConnected { link });
                }
                self.step(out, thread, Event::LinkBytes { link, bytes });
            }
            Item::Closed => {
                out.close(id, 1);
                if current == Some(id) {
                    self.stations[thread].links.remove(&link);
                    self.step(out, thread, Event::LinkLost { link });
                }
            }
        }
    }

    fn drop_link(&mut self, out: &mut Outside, thread: usize, link: LinkKey) {
        if let Some(old) = self.stations[thread].links.remove(&link) {
            out.close(old, 1);
            self.step(out, thread, Event::LinkLost { link });
        }
    }

    fn store(&self, out: &mut Outside, seat: Seat, job: Job) {
        let Outside { store, agenda, ledger, now_us, .. } = out;
        store.submit(agenda, ledger, *now_us, seat, job);
    }

    // ---- the control thread ----

    fn submit(&mut self, out: &mut Outside, work: Work) -> u64 {
        let ticket = self.control.next_ticket;
        self.control.next_ticket += 1;
        let seat = self.threads.seat(self.threads.control());
        self.store(out, seat, Job { ticket, work });
        ticket
    }

    fn renew(&mut self, out: &mut Outside) {
        let seat = self.threads.seat(self.threads.control());
        out.after(u64::from(self.plan.node_lease_ms / 3) * MS, Due::Node(seat, Input::Tick));
        let now_us = self.clock.now(out.now_us).mono_us;
        let poked_us = self.control.poked_us.replace(now_us);
        let hung = poked_us.is_some_and(|poked| self.stations.iter().any(|it| it.turned_us < poked));
        for thread in 0..self.stations.len() {
            self.threads.wake(out, thread);
        }
        if hung || self.control.in_flight.is_some() || self.control.left {
            return;
        }
        self.beat(out);
    }

    fn beat(&mut self, out: &mut Outside) {
        let now_us = self.clock.now(out.now_us).mono_us;
        let node =
            Member { name: self.name.clone(), address: address(self.index), incarnation: self.incarnation };
        let (replaces, ttl_ms) = (self.control.lease.replaces(), self.plan.node_lease_ms);
        let ticket = self.submit(out, Work::Heartbeat { node, replaces, ttl_ms });
        self.control.in_flight = Some((ticket, now_us));
    }

    fn answered(&mut self, out: &mut Outside, done: Done) {
        let Some((ticket, sent_us)) = self.control.in_flight else { return };
        if ticket != done.ticket {
            return;
        }
        self.control.in_flight = None;
        let Ok(Outcome::View(view)) = done.outcome else { return };
        match self.control.lease.answered(&view) {
            Renewal::Granted => {}
            Renewal::Replace => return self.beat(out),
            Renewal::Refused => return,
        }
        let lease_us = u64::from(self.plan.node_lease_ms) * MS;
        let until_us = sent_us + lease_us - lease_us / u64::from(LEASE_MARGIN_SHARE);
        witness::believes(out, &self.name, self.incarnation, self.clock.world_us(until_us));
        for shard in 0..self.stations.len() {
            self.threads.push(out, shard, Input::Event(Event::LeaseUntil { until_us }));
            self.threads.push(out, shard, Input::Event(Event::View(Arc::clone(&view))));
        }
        if !self.control.stopping {
            let now = self.clock.now(out.now_us);
            let orders = self.control.ownership.plan(&view, &self.name, now);
            self.order(out, orders);
        }
    }

    fn order(&mut self, out: &mut Outside, orders: Vec<Command>) {
        for order in orders {
            let (partition, event) = match order {
                Command::Claim(partition) => (partition, Event::Claim { partition }),
                Command::Release(partition) => (partition, Event::Release { partition }),
            };
            let shard = usize::from(partition) % self.stations.len();
            self.threads.push(out, shard, Input::Event(event));
        }
    }

    /// Partitions served here.
    pub fn served(&self) -> usize {
        self.control.ownership.served()
    }

    /// What its shards hold, for bounds and reports.
    pub fn cores(&self) -> impl Iterator<Item = &Shard> {
        self.stations.iter().map(|station| &station.core)
    }
}

impl Process for Node {
    type Input = Input;
    type Action = Action;

    fn threads(&mut self) -> &mut Threads<Input, Action> {
        &mut self.threads
    }

    fn fuse(&mut self) -> &mut Fuse {
        &mut self.fuse
    }

    fn take(&mut self, out: &mut Outside, thread: usize, input: Input) {
        match input {
            Input::Event(event) => self.step(out, thread, event),
            Input::Link(link, id, item) => self.link(out, thread, link, id, item),
            _ => {}
        }
    }

    fn carry_out(&mut self, out: &mut Outside, thread: usize, action: Action) {
        let seat = self.threads.seat(thread);
        let control = self.threads.control();
        out.trace.say(out.now_us, |text| {
            let all = format!("{action:?}");
            *text += &format!("{seat:?} > {}", &all[..all.len().min(400)]);
        });
        match action {
            Action::Store(job) => self.store(out, seat, job),
            Action::Sibling { shard, message } => {
                self.threads.push(out, shard, Input::Event(Event::Sibling(message)));
            }
            Action::ResetLink { link, reason } => {
                out.ledger.link_reset(out.now_us, &reason);
                self.drop_link(out, thread, link);
            }
            Action::Claimed { partition, .. } => {
                self.threads.push(out, control, Input::Claimed(partition));
            }
            Action::NotServed { partition, .. } => {
                self.threads.push(out, control, Input::NotServed(partition));
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
        for link in station.core.links_with_output().to_vec() {
            let Some(id) = station.links.get(&link).copied() else { continue };
            while out.network.has_room(id, 1)
                && let Some(bytes) = station.core.transmit(link)
            {
                out.send(id, 1, bytes);
            }
        }
        self.stations[thread].turned_us = self.clock.now(out.now_us).mono_us;
    }

    fn turn_control(&mut self, out: &mut Outside) -> Option<Burn> {
        let control = self.threads.control();
        while let Some(input) = self.threads.pop(control) {
            match input {
                Input::Tick => self.renew(out),
                Input::Done(done) => self.answered(out, done),
                Input::Claimed(partition) => self.control.ownership.claimed(partition),
                Input::NotServed(partition) => {
                    let now = self.clock.now(out.now_us);
                    self.control.ownership.not_served(partition, now);
                }
                Input::Leave => {
                    self.control.stopping = true;
                    let orders = self.control.ownership.release_all();
                    self.order(out, orders);
                    let end = Due::End(Who::Node(self.index), self.life);
                    out.after(4_000 * MS, end);
                }
                _ => {}
            }
            if let Some(burn) = self.fuse.step() {
                return Some(burn);
            }
        }
        if self.control.stopping && !self.control.left && self.control.ownership.is_empty() {
            self.control.left = true;
            let work = Work::Leave { node: self.name.clone(), incarnation: self.incarnation };
            self.submit(out, work);
            // Links are flushed meanwhile.
            out.after(300 * MS, Due::End(Who::Node(self.index), self.life));
        }
        None
    }
}

impl Control {
    fn new(partitions: u16) -> Self {
        Control {
            lease: NameLease::default(),
            ownership: Ownership::new(partitions, MOVES_MAX),
            poked_us: None,
            in_flight: None,
            next_ticket: 1,
            stopping: false,
            left: false,
        }
    }
}

/// Where an answer of the store goes: a shard's core, or the control thread.
pub fn done_input(seat: Seat, shards: usize, done: Done) -> Input {
    if seat.thread < shards { Input::Event(Event::Store(done)) } else { Input::Done(done) }
}

fn number(event: &Event) -> u64 {
    match event {
        Event::LinkConnected { .. } => 20,
        Event::LinkBytes { .. } => 21,
        Event::LinkLost { .. } => 22,
        Event::Sibling(_) => 23,
        Event::Store(_) => 24,
        Event::Claim { .. } => 25,
        Event::Release { .. } => 26,
        Event::View(_) => 27,
        Event::LeaseUntil { .. } => 28,
    }
}

fn brief(event: &Event) -> String {
    match event {
        Event::LinkBytes { link, bytes } => {
            format!("LinkBytes {}/{} {}", link.gateway, link.shard, crate::wiretap::brief(bytes))
        }
        other => {
            let all = format!("{other:?}");
            all[..all.len().min(400)].to_owned()
        }
    }
}
