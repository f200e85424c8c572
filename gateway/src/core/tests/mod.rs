//! Scenarios of a whole shard: clients that speak bytes, and a fake dispatcher behind a real end of each link.

mod acks;
mod early;
mod fanout;
mod former;
mod owners;
mod parts;
mod random;
mod relay;
mod sessions;
mod sync;

use std::collections::{BTreeMap, VecDeque};

use millrace_protocol::client_session::{ClientSession, Received, ServerFrame};
use millrace_protocol::frame::FrameKind;
use millrace_protocol::ids::{Now, SessionId, partition_of, user_partition};
use millrace_protocol::link::end::{LinkEnd, LinkEvent, LinkLimits};
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::client::{self, *};
use millrace_protocol::messages::link::{self as wire, Hello};
use millrace_protocol::prost::Message;
use millrace_protocol::transport::Limits;

use super::action::{Action, Credential};
use super::event::{Conn, Event, Identity, Lease, NodeKey, Refusal};
use super::limits::Config;
use super::outbox::payload_bytes;
use super::shard::{Shard, Wait};

const PARTITIONS: u16 = 8;
const SECOND: u64 = 1_000_000;

#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Open,
    Response(Response),
    Notify(notify::Event),
    Pong,
    WsClose(u16),
}

struct Client {
    speaks: ClientSession,
    seen: Vec<Seen>,
    /// Sends are taken but never complete.
    stalled: bool,
    in_flight: bool,
    sends: usize,
    shut: bool,
}

struct Node {
    key: NodeKey,
    address: String,
    link: LinkEnd,
    connected: bool,
    inbox: Vec<Record>,
    ups: Vec<bool>,
}

struct World {
    shard: Shard,
    now: Now,
    clients: BTreeMap<Conn, Client>,
    nodes: Vec<Node>,
    disconnected: Vec<NodeKey>,
    /// Events on their way to the shard.
    queue: VecDeque<Later>,
    lease_answers: usize,
    closes: Vec<Conn>,
    wait: Wait,
}

enum Later {
    Sent(Conn),
    Closed(Conn),
    Verified(Conn, Result<Identity, Refusal>),
}

fn config() -> Config {
    let mint = |user: &str, device: &str, _: &str, number: u64, _: u64| -> Vec<u8> {
        format!("{user}/{device}/{number}").into()
    };
    Config {
        partitions: PARTITIONS,
        slots_max: 4096,
        seeds: vec![("".into(), "one:1".into())],
        ..Config::new(3, 0, 77, Box::new(mint))
    }
}

fn node_link(name: &str, incarnation: u64, window_bytes: u64) -> LinkEnd {
    let identity = Hello {
        cluster: "millrace".into(),
        role: "dispatcher".into(),
        node: name.into(),
        incarnation,
        partitions: PARTITIONS.into(),
        ..Hello::default()
    };
    LinkEnd::new(identity, LinkLimits { window_bytes, ..LinkLimits::default() })
}

/// A user whose partition is this.
fn user_in(partition: u16) -> String {
    (0..).map(|i| format!("u{i}")).find(|user| user_partition(user, PARTITIONS) == partition).unwrap()
}

impl World {
    fn with(config: Config) -> Self {
        let mut world = World {
            shard: Shard::new(config),
            now: Now { mono_us: 5 * SECOND, wall_ms: 1_750_000_000_000 },
            clients: BTreeMap::new(),
            nodes: Vec::new(),
            disconnected: Vec::new(),
            queue: VecDeque::new(),
            lease_answers: 0,
            closes: Vec::new(),
            wait: Wait { more: false, deadline_us: None },
        };
        world.run();
        world
    }

    /// One node that is up and owns everything under epoch 10, and a live lease.
    fn ready() -> Self {
        Self::ready_with(config())
    }

    fn ready_with(config: Config) -> Self {
        let incarnation = config.incarnation;
        let mut world = Self::with(config);
        world.connect(0);
        world.announce(0, 0..PARTITIONS, 10);
        world.lease(incarnation, 1 << 40);
        world
    }

    fn lease(&mut self, incarnation: u64, until_us: u64) {
        self.step(Event::Lease(Lease { incarnation, until_us, grant: 1 }));
        self.run();
    }

    fn step(&mut self, event: Event<'_>) {
        let mut actions = Vec::new();
        self.shard.step(self.now, event, &mut actions);
        self.apply(actions);
    }

    fn turn(&mut self) -> Wait {
        let mut actions = Vec::new();
        let wait = self.shard.turn(self.now, &mut actions);
        self.apply(actions);
        wait
    }

    fn apply(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send { conn, payload } => {
                    let client = self.clients.get_mut(&conn).expect("sent to a connection that exists");
                    assert!(!client.in_flight && !client.shut, "one send in flight, none after a shutdown");
                    client.in_flight = true;
                    client.sends += 1;
                    let mut bytes = payload_bytes(&payload).to_vec();
                    client.read(&mut bytes);
                    if !client.stalled {
                        self.queue.push_back(Later::Sent(conn));
                    }
                }
                Action::Shutdown { conn } => {
                    self.clients.get_mut(&conn).expect("exists").shut = true;
                }
                Action::Close { conn } => {
                    assert!(self.clients.contains_key(&conn));
                    self.closes.push(conn);
                    self.queue.push_back(Later::Closed(conn));
                }
                Action::Verify { conn, credential } => {
                    let (user, login_number) = match credential {
                        Credential::Token(user) => (user, 0),
                        Credential::Ticket { ticket, .. } => {
                            let text = String::from_utf8(ticket).unwrap();
                            let mut parts = text.split('/');
                            let user = parts.next().unwrap().to_owned();
                            (user, parts.nth(1).and_then(|n| n.parse().ok()).unwrap_or(0))
                        }
                    };
                    let refusal =
                        || Refusal { code: Code::BadToken, reason: "bad".into(), retry_after_ms: 0 };
                    let verdict = (user != "bad")
                        .then_some(Identity { user, expires_wall_ms: 9, login_number })
                        .ok_or_else(refusal);
                    self.queue.push_back(Later::Verified(conn, verdict));
                }
                Action::Connect { node, address, .. } => {
                    let link = node_link(&format!("n{}", node.0), 900 + u64::from(node.0), 8 << 20);
                    self.nodes.push(Node {
                        key: node,
                        address,
                        link,
                        connected: false,
                        inbox: Vec::new(),
                        ups: Vec::new(),
                    });
                }
                Action::Disconnect { node } => self.disconnected.push(node),
                Action::ResetLink { reason, .. } => panic!("a link was reset: {reason}"),
                Action::LeaseAnswer { .. } => self.lease_answers += 1,
            }
        }
    }

    /// Carries everything until nothing moves.
    fn run(&mut self) {
        for _ in 0..10_000 {
            let mut moved = false;
            while let Some(later) = self.queue.pop_front() {
                moved = true;
                match later {
                    Later::Sent(conn) => self.sent(conn),
                    Later::Closed(conn) => self.closed(conn),
                    Later::Verified(conn, verdict) => self.step(Event::Verified { conn, verdict }),
                }
            }
            self.wait = self.turn();
            moved |= self.wait.more;
            moved |= self.pump();
            if !moved && self.queue.is_empty() {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn pump(&mut self) -> bool {
        let mut moved = false;
        for at in 0..self.nodes.len() {
            let key = self.nodes[at].key;
            if !self.nodes[at].connected || self.disconnected.contains(&key) {
                continue;
            }
            while let Some(bytes) = self.shard.transmit(key) {
                moved = true;
                self.nodes[at].link.receive(bytes).unwrap();
            }
            while let Some(event) = self.nodes[at].link.poll() {
                match event {
                    LinkEvent::Up { fresh, .. } => self.nodes[at].ups.push(fresh),
                    LinkEvent::Record(record) => self.nodes[at].inbox.push(record),
                    LinkEvent::Lost(_) => {}
                }
            }
            self.nodes[at].link.ack_now();
            while let Some(bytes) = self.nodes[at].link.transmit() {
                moved = true;
                self.step(Event::LinkBytes { node: key, bytes });
            }
        }
        moved
    }

    fn connect(&mut self, node: usize) {
        self.nodes[node].connected = true;
        self.nodes[node].link.connected();
        let key = self.nodes[node].key;
        self.step(Event::LinkConnected { node: key });
        self.run();
    }

    fn cut(&mut self, node: usize) {
        self.nodes[node].connected = false;
        self.nodes[node].link.disconnected();
        let key = self.nodes[node].key;
        self.step(Event::LinkLost { node: key });
        self.run();
    }

    fn say(
        &mut self,
        node: usize,
        kind: Kind,
        partition: u16,
        epoch: u64,
        session: u64,
        body: &impl Message,
    ) {
        let record =
            Record { kind, partition, epoch, session: SessionId(session), body: body.encode_to_vec().into() };
        self.nodes[node].link.queue(record).unwrap();
    }

    fn announce(&mut self, node: usize, partitions: impl IntoIterator<Item = u16>, epoch: u64) {
        self.announce_from(node, partitions, epoch, 1);
    }

    /// By claims that this copy of the store granted.
    fn announce_from(
        &mut self,
        node: usize,
        partitions: impl IntoIterator<Item = u16>,
        epoch: u64,
        copy: u64,
    ) {
        let owned = |p: u16| wire::Owned { partition: p.into(), epoch, copy };
        let owned = partitions.into_iter().map(owned).collect();
        self.say(node, Kind::Announce, 0, 0, 0, &wire::Announce { owned });
        self.run();
    }

    /// Records of a kind that came to a node, taken out.
    fn take(&mut self, node: usize, kind: Kind) -> Vec<Record> {
        self.nodes[node].inbox.extract_if(.., |record| record.kind == kind).collect()
    }

    fn take_one<M: Message + Default>(&mut self, node: usize, kind: Kind) -> (Record, M) {
        let mut records = self.take(node, kind);
        assert_eq!(records.len(), 1, "one {kind:?}: {records:?}");
        let record = records.remove(0);
        let body = M::decode(record.body.clone()).unwrap();
        (record, body)
    }

    fn accept(&mut self, slot: u32, generation: u32, speaks: ClientSession) -> Conn {
        let conn = Conn { slot, generation };
        let client =
            Client { speaks, seen: Vec::new(), stalled: false, in_flight: false, sends: 0, shut: false };
        assert!(self.clients.insert(conn, client).is_none());
        self.step(Event::Accepted { conn, peer: [127, 0, 0, 1].into() });
        conn
    }

    fn receive(&mut self, conn: Conn, mut bytes: Vec<u8>) {
        self.step(Event::Received { conn, bytes: &mut bytes });
    }

    fn request(&mut self, conn: Conn, id: u64, op: request::Op) {
        let bytes = frame_of(&mut self.clients.get_mut(&conn).unwrap().speaks, &Request { id, op: Some(op) });
        self.receive(conn, bytes);
        self.run();
    }

    fn sent(&mut self, conn: Conn) {
        if let Some(client) = self.clients.get_mut(&conn).filter(|client| client.in_flight) {
            client.in_flight = false;
            self.step(Event::Sent { conn });
        }
    }

    /// A stalled client reads again.
    fn resume(&mut self, conn: Conn) {
        self.clients.get_mut(&conn).unwrap().stalled = false;
        self.sent(conn);
        self.run();
    }

    fn closed(&mut self, conn: Conn) {
        if self.clients.remove(&conn).is_some() {
            self.step(Event::Closed { conn });
        }
    }

    fn at(&mut self, mono_us: u64) {
        self.now.mono_us = mono_us;
        self.run();
    }

    fn later(&mut self, us: u64) {
        // In steps, as a real shard would be woken.
        let end = self.now.mono_us + us;
        while self.now.mono_us < end {
            self.at((self.now.mono_us + SECOND / 2).min(end));
        }
    }

    /// What a client saw since it was last asked.
    fn seen(&mut self, conn: Conn) -> Vec<Seen> {
        std::mem::take(&mut self.clients.get_mut(&conn).expect("connected").seen)
    }

    fn id(&self, conn: Conn) -> u64 {
        SessionId::new(3, 0, conn.slot, conn.generation).0
    }

    /// Answers the one Register that waits at node 0.
    fn registered(&mut self, groups: &[&str], login_number: u64) {
        let (record, _) = self.take_one::<wire::Register>(0, Kind::Register);
        self.register(record, groups, login_number);
    }

    /// Answers this Register of node 0.
    fn register(&mut self, record: Record, groups: &[&str], login_number: u64) {
        let register = wire::Register::decode(record.body).unwrap();
        let body = wire::Registered {
            user: register.user,
            device: register.device,
            login_number,
            groups: groups.iter().map(|group| (*group).into()).collect(),
            gateway_incarnation: register.gateway_incarnation,
            ..Default::default()
        };
        self.say(0, Kind::Registered, record.partition, 10, record.session.0, &body);
        self.run();
    }

    /// A session that is logged in over TCP, in no group.
    fn session(&mut self, slot: u32, user: &str) -> Conn {
        let conn = self.accept(slot, 1, ClientSession::tcp());
        self.request(conn, 1, login(user));
        self.registered(&[], u64::from(slot) + 1);
        assert!(matches!(response(&self.seen(conn)), response::Outcome::LoginAck(_)));
        conn
    }

    /// Answers all Subscribes at a node: the log ends there, with an entry of epoch 0.
    fn subscribed(&mut self, node: usize, epoch: u64, head: u64) -> Vec<wire::Subscribe> {
        let records = self.take(node, Kind::Subscribe);
        let mut bodies = Vec::new();
        for record in records {
            let body = wire::Subscribe::decode(record.body).unwrap();
            let answer = wire::Subscribed {
                conversation: body.conversation.clone(),
                version: body.version,
                head,
                base: head,
                members_version: 1,
                ..Default::default()
            };
            self.say(node, Kind::Subscribed, record.partition, epoch, 0, &answer);
            bodies.push(body);
        }
        self.run();
        bodies
    }

    /// Joins a room that nobody else is asking for; answers its subscription when one comes.
    fn join(&mut self, conn: Conn, room: &str, head: u64) {
        self.request(conn, 50, request::Op::RoomJoin(RoomJoin { room: room.into() }));
        self.subscribed(0, 10, head);
        assert!(matches!(response(&self.seen(conn)), response::Outcome::Joined(_)));
    }

    fn fan_out(&mut self, node: usize, epoch: u64, conversation: &str, seq: u64, except: u64) {
        let body = fan_out(conversation, seq, epoch, except, 8);
        self.say(node, Kind::FanOut, partition_of(conversation, PARTITIONS), epoch, 0, &body);
    }

    /// Nothing is held for connections that are gone.
    fn assert_empty(&mut self) {
        // Requests of sessions that left are forgotten with their deadline.
        self.later(11 * SECOND);
        let stats = self.shard.stats();
        let left = [
            ("connections", stats.connections),
            ("unauthenticated", stats.unauthenticated),
            ("users", stats.users),
            ("topics", stats.topics),
            ("pending", stats.requests_pending),
            ("request bytes", stats.request_bytes),
            ("outbox nodes", stats.outbox_nodes),
            ("outbox bytes", stats.outbox_bytes),
            ("held bytes", stats.held_bytes),
            ("parked bytes", stats.parked_bytes),
            ("requests in parts", stats.requests_in_parts),
            ("watching", stats.watching),
            ("owing", stats.owing),
            ("acks", stats.acks_gathered),
            ("relays", stats.relays_waiting),
        ];
        assert!(left.iter().all(|(_, n)| *n == 0), "{left:?}");
        assert!(self.shard.devices.is_empty() && self.shard.conversations.is_empty());
    }
}

impl Client {
    fn read(&mut self, bytes: &mut [u8]) {
        let mut input = Received::new(bytes);
        let limits = Limits::default();
        loop {
            let frame = match self.speaks.next(&mut input, &limits) {
                Ok(None) => return,
                Ok(Some(frame)) => frame,
                Err(violation) => {
                    let Some(away) = self.speaks.sent_away() else { panic!("from the gateway: {violation}") };
                    return self.seen.push(Seen::Notify(notify::Event::GoAway(away)));
                }
            };
            self.seen.push(match frame {
                ServerFrame::Open => Seen::Open,
                ServerFrame::Response(body) => Seen::Response(Response::decode(body).unwrap()),
                ServerFrame::Notify(body) => Seen::Notify(Notify::decode(body).unwrap().event.unwrap()),
                ServerFrame::Pong => Seen::Pong,
                ServerFrame::WsClose { code, .. } => Seen::WsClose(code),
                ServerFrame::Ping | ServerFrame::WsPing(_) => panic!("the gateway asks for no pong"),
            });
        }
    }
}

fn fan_out(conversation: &str, seq: u64, epoch: u64, except: u64, payload_bytes: usize) -> wire::FanOut {
    let deliver = Deliver {
        conversation: conversation.into(),
        seq,
        epoch,
        payload: vec![7; payload_bytes].into(),
        ..Default::default()
    };
    let notify = Notify { event: Some(notify::Event::Deliver(deliver)) }.encode_to_vec();
    wire::FanOut { conversation: conversation.into(), seq, except_session: except, notify: notify.into() }
}

fn frame_of(speaks: &mut ClientSession, request: &Request) -> Vec<u8> {
    let mut bytes = Vec::new();
    speaks.encode(FrameKind::Request, request, &mut bytes);
    bytes
}

fn login(user: &str) -> request::Op {
    request::Op::Login(client::Login {
        token: user.into(),
        device: "phone".into(),
        platform: "ios".into(),
        ..Default::default()
    })
}

/// The outcome of the one response among what was seen.
fn response(seen: &[Seen]) -> response::Outcome {
    let mut outcomes = seen.iter().filter_map(|seen| match seen {
        Seen::Response(response) => response.outcome.clone(),
        _ => None,
    });
    let outcome = outcomes.next().unwrap_or_else(|| panic!("no response in {seen:?}"));
    assert!(outcomes.next().is_none(), "one response in {seen:?}");
    outcome
}

fn refused(seen: &[Seen]) -> Code {
    match response(seen) {
        response::Outcome::Refused(refused) => refused.code(),
        other => panic!("not refused: {other:?}"),
    }
}

/// The code of the GoAway among what was seen.
fn go_away(seen: &[Seen]) -> Option<Code> {
    seen.iter().find_map(|seen| match seen {
        Seen::Notify(notify::Event::GoAway(away)) => Some(away.code()),
        _ => None,
    })
}

/// Deliver as its seq, Gap as its end points, Head as its seq: what matters for order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Seq(u64),
    Gap(u64, u64),
    Head(u64, u64),
    Removed,
}

fn told(seen: &[Seen]) -> Vec<Told> {
    seen.iter()
        .filter_map(|seen| match seen {
            Seen::Notify(notify::Event::Deliver(deliver)) => Some(Told::Seq(deliver.seq)),
            Seen::Notify(notify::Event::Gap(gap)) => Some(Told::Gap(gap.from, gap.to)),
            Seen::Notify(notify::Event::Head(head)) => Some(Told::Head(head.epoch, head.seq)),
            Seen::Notify(notify::Event::Removed(_)) => Some(Told::Removed),
            _ => None,
        })
        .collect()
}
