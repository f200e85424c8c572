//! A small world for the core's tests: nodes with shards, gateways on the other end of their links, a store in memory,
//! and a clock that only the test moves.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use millrace_protocol::conversation;
use millrace_protocol::ids::{Now, Partition, SessionId, partition_of, user_partition};
use millrace_protocol::link::end::{LinkEnd, LinkEvent, LinkLimits};
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::client::{self, request, response};
use millrace_protocol::messages::link as wire;
use millrace_protocol::prost::Message;
use millrace_protocol::request::Key;

use crate::core::action::Action;
use crate::core::event::{Event, LinkKey};
use crate::core::limits::Limits;
use crate::core::shard::{Config, Shard};
use crate::core::stats::Stats;
use crate::store::model::ModelStore;
use crate::store::{Done, Job, Node, Work};

pub const PARTITIONS: u16 = 8;

/// One gateway shard's end of one node's link.
pub struct End {
    pub link: LinkEnd,
    /// Everything it got, in order.
    pub got: Vec<Record>,
    pub ups: Vec<bool>,
    /// Whether it takes what comes, and so acknowledges it; else that waits in its link.
    pub takes: bool,
}

pub struct NodeSim {
    pub name: String,
    pub shards: Vec<Shard>,
    pub events: Vec<VecDeque<Event>>,
    pub jobs: Vec<VecDeque<Job>>,
    pub claimed: BTreeMap<Partition, u64>,
    pub not_served: Vec<Partition>,
    pub alive: bool,
    /// Jobs stay where they are.
    pub store_held: bool,
}

pub struct World {
    pub now: Now,
    pub store: ModelStore,
    pub nodes: Vec<NodeSim>,
    pub ends: BTreeMap<(usize, LinkKey), End>,
    pub resets: Vec<String>,
    token: u64,
}

pub fn link(gateway: u16) -> LinkKey {
    LinkKey { gateway, shard: 0 }
}

pub fn session(gateway: u16, slot: u32) -> SessionId {
    SessionId::new(gateway, 0, slot, 1)
}

pub fn conversation_partition(name: &str) -> Partition {
    partition_of(name, PARTITIONS)
}

impl End {
    fn poll(&mut self) {
        while let Some(event) = self.link.poll() {
            match event {
                LinkEvent::Up { fresh, .. } => self.ups.push(fresh),
                LinkEvent::Record(record) => self.got.push(record),
                LinkEvent::Lost(_) => {}
            }
        }
    }
}

impl World {
    pub fn new(nodes: usize, shards: usize) -> Self {
        Self::with_limits(nodes, shards, Limits::default())
    }

    pub fn with_limits(nodes: usize, shards: usize, limits: Limits) -> Self {
        let now = Now { mono_us: 1_000_000_000, wall_ms: 1_750_000_000_000 };
        let mut world = World {
            now,
            store: ModelStore::default(),
            nodes: Vec::new(),
            ends: BTreeMap::new(),
            resets: Vec::new(),
            token: 0,
        };
        for n in 0..nodes {
            let name = format!("node-{n}");
            let config = |shard| Config {
                shard,
                shards,
                node: format!("node-{n}"),
                incarnation: 100 + n as u64,
                cluster: "test".into(),
                partitions: PARTITIONS,
                limits,
                link: LinkLimits::default(),
                seed: 7,
            };
            let incarnation = 100 + n as u64;
            world.store.nodes.push(Node { name: name.clone(), address: format!("{name}:1"), incarnation });
            world.nodes.push(NodeSim {
                name,
                shards: (0..shards).map(|shard| Shard::new(config(shard))).collect(),
                events: (0..shards).map(|_| VecDeque::new()).collect(),
                jobs: (0..shards).map(|_| VecDeque::new()).collect(),
                claimed: BTreeMap::new(),
                not_served: Vec::new(),
                alive: true,
                store_held: false,
            });
        }
        world.view();
        world
    }

    /// One node with all partitions and these gateways' links up.
    pub fn serving(shards: usize, gateways: &[u16]) -> Self {
        let mut world = World::new(1, shards);
        world.claim_all(0);
        for gateway in gateways {
            world.connect(0, *gateway, 1);
        }
        world.run();
        world
    }

    /// A heartbeat of every node that is alive.
    pub fn view(&mut self) {
        let view = Arc::new(self.store.view(PARTITIONS, false));
        let until_us = self.now.mono_us + 1_000_000_000;
        for node in 0..self.nodes.len() {
            for shard in 0..self.nodes[node].shards.len() {
                self.event(node, shard, Event::LeaseUntil { until_us });
                self.event(node, shard, Event::View(view.clone()));
            }
        }
    }

    pub fn event(&mut self, node: usize, shard: usize, event: Event) {
        self.nodes[node].events[shard].push_back(event);
    }

    pub fn claim(&mut self, node: usize, partition: Partition) {
        let shard = usize::from(partition) % self.nodes[node].shards.len();
        self.event(node, shard, Event::Claim { partition });
    }

    pub fn claim_all(&mut self, node: usize) {
        for partition in 0..PARTITIONS {
            self.claim(node, partition);
        }
        self.run();
        assert_eq!(self.nodes[node].claimed.len(), usize::from(PARTITIONS));
    }

    pub fn release(&mut self, node: usize, partition: Partition) {
        let shard = usize::from(partition) % self.nodes[node].shards.len();
        self.event(node, shard, Event::Release { partition });
    }

    pub fn connect(&mut self, node: usize, gateway: u16, incarnation: u64) {
        let key = link(gateway);
        let identity = wire::Hello {
            cluster: "test".into(),
            role: "gateway".into(),
            gateway: u32::from(gateway),
            incarnation,
            partitions: u32::from(PARTITIONS),
            ..wire::Hello::default()
        };
        let end = self.ends.entry((node, key)).or_insert_with(|| End {
            link: LinkEnd::new(identity, LinkLimits::default()),
            got: Vec::new(),
            ups: Vec::new(),
            takes: true,
        });
        end.link.connected();
        let home = key.home(self.nodes[node].shards.len());
        self.event(node, home, Event::LinkConnected { link: key });
    }

    pub fn disconnect(&mut self, node: usize, gateway: u16) {
        let key = link(gateway);
        self.end(node, gateway).link.disconnected();
        let home = key.home(self.nodes[node].shards.len());
        self.event(node, home, Event::LinkLost { link: key });
    }

    pub fn end(&mut self, node: usize, gateway: u16) -> &mut End {
        self.ends.get_mut(&(node, link(gateway))).expect("a link")
    }

    /// Moves the clocks and lets everything happen that is due.
    pub fn pass(&mut self, ms: u64) {
        self.now.mono_us += ms * 1_000;
        self.now.wall_ms += ms;
        self.run();
    }

    /// Until nothing moves.
    pub fn run(&mut self) {
        for _ in 0..10_000 {
            if !self.tick() {
                return;
            }
        }
        panic!("the world does not come to rest");
    }

    /// One turn of everything; false if nothing happened.
    pub fn tick(&mut self) -> bool {
        let mut moved = false;
        for node in 0..self.nodes.len() {
            if !self.nodes[node].alive {
                continue;
            }
            for shard in 0..self.nodes[node].shards.len() {
                moved |= self.turn(node, shard);
            }
        }
        let keys: Vec<_> = self.ends.keys().copied().collect();
        for (node, key) in keys {
            let end = self.ends.get_mut(&(node, key)).expect("listed");
            if end.takes {
                end.poll();
                if end.link.needs_ack() {
                    end.link.ack_now();
                }
            }
            let home = key.home(self.nodes[node].shards.len());
            while let Some(bytes) = self.ends.get_mut(&(node, key)).expect("listed").link.transmit() {
                moved = true;
                self.event(node, home, Event::LinkBytes { link: key, bytes });
            }
        }
        moved
    }

    fn turn(&mut self, node: usize, shard: usize) -> bool {
        let mut actions = Vec::new();
        let mut moved = false;
        let sim = &mut self.nodes[node];
        while let Some(event) = sim.events[shard].pop_front() {
            moved = true;
            sim.shards[shard].step(self.now, event, &mut actions);
        }
        if !sim.store_held {
            while let Some(job) = sim.jobs[shard].pop_front() {
                moved = true;
                let outcome = self.store.carry_out(job.work);
                let done = Done { ticket: job.ticket, outcome };
                sim.shards[shard].step(self.now, Event::Store(done), &mut actions);
            }
        }
        sim.shards[shard].turn(self.now, &mut actions);
        for link in sim.shards[shard].links_with_output().to_vec() {
            let end = self.ends.get_mut(&(node, link)).expect("a link that was connected");
            while let Some(bytes) = sim.shards[shard].transmit(link) {
                moved = true;
                end.link.receive(bytes).expect("a good link");
                if end.takes {
                    end.poll();
                }
            }
        }
        for action in actions {
            moved = true;
            match action {
                Action::Store(job) => sim.jobs[shard].push_back(job),
                Action::Sibling { shard, message } => {
                    sim.events[shard].push_back(Event::Sibling(message));
                }
                Action::ResetLink { link, reason } => {
                    self.resets.push(reason);
                    self.ends.get_mut(&(node, link)).expect("a link").link.disconnected();
                    sim.events[shard].push_back(Event::LinkLost { link });
                }
                Action::Claimed { partition, epoch } => {
                    sim.claimed.insert(partition, epoch);
                }
                Action::NotServed { partition, .. } => {
                    sim.claimed.remove(&partition);
                    sim.not_served.push(partition);
                }
            }
        }
        moved
    }

    pub fn stats(&self, node: usize) -> Stats {
        assert_eq!(self.nodes[node].shards.len(), 1);
        self.nodes[node].shards[0].stats()
    }

    // ---- what gateways say ----

    pub fn say(
        &mut self,
        node: usize,
        gateway: u16,
        kind: Kind,
        key: Partition,
        session: SessionId,
        body: &impl Message,
    ) {
        let record = Record { kind, partition: key, epoch: 0, session, body: body.encode_to_vec().into() };
        self.end(node, gateway).link.queue(record).expect("credit");
    }

    /// A client's request; the token of its answer.
    pub fn request(&mut self, node: usize, session: SessionId, user: &str, op: request::Op) -> u64 {
        // As a gateway routes it; what it would refuse goes anywhere.
        let partition = match &op {
            request::Op::PresenceSubscribe(ask) => {
                ask.users.first().map(|watched| user_partition(watched, PARTITIONS))
            }
            request::Op::Peek(ask) => Some(conversation_partition(&ask.items[0].conversation)),
            op => Key::of(op, user).and_then(|key| key.partition(user, PARTITIONS)),
        };
        let partition = partition.unwrap_or(0);
        self.token += 1;
        let request = client::Request { id: self.token + 1_000, op: Some(op) };
        let body = wire::ClientRequest {
            token: self.token,
            user: user.into(),
            device: format!("{user}-{}", session.slot()),
            request: request.encode_to_vec().into(),
        };
        self.say(node, session.gateway(), Kind::ClientRequest, partition, session, &body);
        self.token
    }

    pub fn send(&mut self, session: SessionId, user: &str, conversation: &str, client_seq: u64) -> u64 {
        self.send_to(0, session, user, conversation, client_seq, &format!("{user} {client_seq}"))
    }

    pub fn send_to(
        &mut self,
        node: usize,
        session: SessionId,
        user: &str,
        conversation: &str,
        client_seq: u64,
        payload: &str,
    ) -> u64 {
        let ask = client::Send {
            conversation: conversation.into(),
            client_seq,
            stream: 1,
            payload: Bytes::from(payload.to_owned()),
            ..client::Send::default()
        };
        self.request(node, session, user, request::Op::Send(ask))
    }

    /// What was answered to a request, once.
    pub fn answer(&mut self, token: u64) -> Option<(wire::Reply, response::Outcome)> {
        let mut found = None;
        for record in self.ends.values().flat_map(|end| &end.got).filter(|record| record.kind == Kind::Reply)
        {
            let reply = wire::Reply::decode(record.body.clone()).unwrap();
            if reply.token == token {
                assert!(found.is_none(), "two answers to one request");
                let response = client::Response::decode(reply.response.clone()).unwrap();
                assert_eq!(response.id, token + 1_000);
                found = Some((reply, response.outcome.unwrap()));
            }
        }
        found
    }

    pub fn ack(&mut self, token: u64) -> client::SendAck {
        match self.answer(token).expect("an answer").1 {
            response::Outcome::SendAck(ack) => ack,
            other => panic!("no ack: {other:?}"),
        }
    }

    pub fn refused(&mut self, token: u64) -> client::Refused {
        match self.answer(token).expect("an answer").1 {
            response::Outcome::Refused(refused) => refused,
            other => panic!("not refused: {other:?}"),
        }
    }

    pub fn subscribe(&mut self, node: usize, gateway: u16, conversation: &str, version: u64, users: &[&str]) {
        let body = wire::Subscribe {
            conversation: conversation.into(),
            version,
            users: users.iter().map(|user| (*user).to_owned()).collect(),
            ..wire::Subscribe::default()
        };
        let partition = conversation_partition(conversation);
        self.say(node, gateway, Kind::Subscribe, partition, SessionId::NONE, &body);
    }

    pub fn register(&mut self, node: usize, session: SessionId, user: &str, device: &str, platform: &str) {
        let body = wire::Register {
            user: user.into(),
            device: device.into(),
            platform: platform.into(),
            login_number: 0,
            gateway: u32::from(session.gateway()),
            gateway_incarnation: 1,
            newest_wins: true,
            acknowledges: false,
        };
        let partition = user_partition(user, PARTITIONS);
        self.say(node, session.gateway(), Kind::Register, partition, session, &body);
    }

    // ---- what gateways got ----

    /// Takes all records of a kind that a gateway got from a node.
    pub fn take<M: Message + Default>(&mut self, node: usize, gateway: u16, kind: Kind) -> Vec<M> {
        let end = self.end(node, gateway);
        let taken: Vec<_> = end.got.iter().filter(|record| record.kind == kind).cloned().collect();
        end.got.retain(|record| record.kind != kind);
        taken.into_iter().map(|record| M::decode(record.body).unwrap()).collect()
    }

    pub fn kinds(&mut self, node: usize, gateway: u16) -> Vec<Kind> {
        self.end(node, gateway).got.iter().map(|record| record.kind).collect()
    }

    /// Forgets what came so far.
    pub fn clear(&mut self) {
        for end in self.ends.values_mut() {
            end.got.clear();
        }
    }

    /// Of the jobs that wait at a held store: their kinds.
    pub fn held(&self, node: usize) -> Vec<&'static str> {
        let kind = |job: &Job| match job.work {
            Work::Append(_) => "append",
            Work::Routes { .. } => "routes",
            Work::UserItems { .. } => "lists",
            Work::Load { .. } => "load",
            Work::Claim { .. } => "claim",
            Work::Release { .. } => "release",
            _ => "other",
        };
        self.nodes[node].jobs.iter().flatten().map(kind).collect()
    }
}

/// The message in a Notify body.
pub fn deliver(notify: &Bytes) -> client::Deliver {
    match client::Notify::decode(notify.clone()).unwrap().event.unwrap() {
        client::notify::Event::Deliver(deliver) => deliver,
        other => panic!("no message: {other:?}"),
    }
}

/// The direct conversation of two users.
pub fn direct(a: &str, b: &str) -> String {
    conversation::direct(a, b)
}
