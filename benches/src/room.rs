//! A whole gateway shard with logged-in listeners in one room, behind a fake dispatcher that answers at once. Its
//! clock stands still once everybody is in.

use bytes::Bytes;
use millrace_gateway::core::action::{Action, Credential, Payload};
use millrace_gateway::core::event::{Conn, Event, Identity, Lease, NodeKey};
use millrace_gateway::core::limits::Config;
use millrace_gateway::core::shard::Shard;
use millrace_protocol::client_session::{ClientSession, op};
use millrace_protocol::frame::PING;
use millrace_protocol::ids::{Now, SessionId, partition_of};
use millrace_protocol::link::end::{LinkEnd, LinkEvent, LinkLimits};
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::client::{self, Deliver, Notify, notify, response};
use millrace_protocol::messages::link::{
    Announce, ClientRequest, Direct, FanOut, Hello, Owned, Register, Registered, Reply, Subscribe,
    Subscribed, Target,
};
use millrace_protocol::prost::Message;

const PARTITIONS: u16 = 8;
const EPOCH: u64 = 5;
const ROOM: &str = "r:hall";

const LOGIN_NUMBER: u64 = 1;

/// The shard, its dispatcher's end of the link, and what is under way between them.
pub(crate) struct Room {
    shard: Shard,
    link: LinkEnd,
    node: NodeKey,
    now: Now,
    actions: Vec<Action>,
    seq: u64,
    notify: Bytes,
    /// A client's Send of 128 bytes, as received.
    send: Vec<u8>,
}

/// Frames that were sent to clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Frames {
    /// One frame for many receivers.
    pub shared: u32,
    /// Of one receiver's own.
    pub own: u32,
}

impl Room {
    /// Logs `listeners` in and lets them join.
    pub(crate) fn new(listeners: u32) -> Room {
        let mint = |_: &str, _: &str, _: &str, _: u64, _: u64| vec![0; 64];
        let config = Config {
            partitions: PARTITIONS,
            slots_max: 16_384,
            unauthenticated_max: 16_384,
            ..Config::new(1, 0, 77, Box::new(mint))
        };
        let hello = Hello {
            cluster: "millrace".to_owned(),
            role: "dispatcher".to_owned(),
            node: "n".to_owned(),
            incarnation: 9,
            partitions: PARTITIONS.into(),
            ..Hello::default()
        };
        let deliver = Deliver {
            conversation: ROOM.to_owned(),
            seq: 1,
            message_id: 1 << 60,
            sender: "alice".to_owned(),
            sender_device: "phone".to_owned(),
            server_time_ms: 1_800_000_000_000,
            epoch: EPOCH,
            payload: vec![7; 128].into(),
            content_kind: 0,
            action: 0,
            refers_to: 0,
        };
        let mut send = Vec::new();
        let message = op::send("g:engineering", 0x1234_5678_9abc, 42, vec![7u8; 128]);
        ClientSession::tcp().request(3, message, &mut send);
        let mut room = Room {
            shard: Shard::new(config),
            link: LinkEnd::new(hello, LinkLimits::default()),
            node: NodeKey(0),
            now: Now { mono_us: 5_000_000, wall_ms: 1_800_000_000_000 },
            actions: Vec::new(),
            seq: 0,
            notify: Notify { event: Some(notify::Event::Deliver(deliver)) }.encode_to_vec().into(),
            send,
        };
        room.link_up();
        for slot in 0..listeners {
            room.enter(slot);
            // The login budget is per second: a little time passes.
            room.now.mono_us += 100;
        }
        assert_eq!(room.fan_out().shared, listeners, "everybody listens");
        room
    }

    /// A heartbeat of each of the first `count` sessions, each answered with a Pong.
    pub(crate) fn heartbeats(&mut self, count: u32) -> Frames {
        for slot in 0..count {
            self.step(Event::Received { conn: conn(slot), bytes: &mut PING.clone() });
        }
        self.run()
    }

    /// A Send of each of the first `count` sessions, each passed on, answered, and its ack sent back.
    pub(crate) fn sends(&mut self, count: u32) -> Frames {
        for slot in 0..count {
            let mut bytes = self.send.clone();
            self.step(Event::Received { conn: conn(slot), bytes: &mut bytes });
        }
        self.run()
    }

    /// A direct message to each of the first `count` sessions.
    pub(crate) fn directs(&mut self, count: u32) -> Frames {
        for slot in 0..count {
            let target = Target {
                session: SessionId::new(1, 0, slot, 0).0,
                user: user(slot),
                device: "phone".to_owned(),
                login_number: LOGIN_NUMBER,
                gateway_incarnation: 1,
            };
            let body = Direct { targets: vec![target], notify: self.notify.clone() };
            self.say(Kind::Direct, ROOM, SessionId::NONE, &body);
        }
        self.run()
    }

    /// One message to everybody, until every listener has been sent it and every send has completed.
    pub(crate) fn fan_out(&mut self) -> Frames {
        self.seq += 1;
        let body = FanOut {
            conversation: ROOM.to_owned(),
            seq: self.seq,
            except_session: 0,
            notify: self.notify.clone(),
        };
        self.say(Kind::FanOut, ROOM, SessionId::NONE, &body);
        self.run()
    }

    fn step(&mut self, event: Event<'_>) {
        self.shard.step(self.now, event, &mut self.actions);
    }

    fn link_up(&mut self) {
        self.shard.turn(self.now, &mut self.actions);
        for action in self.actions.drain(..) {
            if let Action::Connect { node, .. } = action {
                self.node = node;
            }
        }
        self.link.connected();
        self.step(Event::LinkConnected { node: self.node });
        let owned = (0..PARTITIONS).map(|p| Owned { partition: p.into(), epoch: EPOCH, copy: 1 }).collect();
        self.say(Kind::Announce, ROOM, SessionId::NONE, &Announce { owned });
        self.run();
        self.step(Event::Lease(Lease { incarnation: 77, until_us: u64::MAX, grant: 1 }));
    }

    fn enter(&mut self, slot: u32) {
        let conn = conn(slot);
        self.step(Event::Accepted { conn, peer: [127, 0, 0, 1].into() });
        for (id, op) in [(1, op::login(&user(slot), "phone", "bench")), (2, op::room_join("hall"))] {
            let mut bytes = Vec::new();
            ClientSession::tcp().request(id, op, &mut bytes);
            self.step(Event::Received { conn, bytes: &mut bytes });
            self.run();
        }
    }

    fn say(&mut self, kind: Kind, key: &str, session: SessionId, body: &impl Message) {
        let partition = partition_of(key, PARTITIONS);
        let record = Record { kind, partition, epoch: EPOCH, session, body: body.encode_to_vec().into() };
        self.link.queue(record).expect("credit");
    }

    /// Answers what the shard asks of the dispatcher, as a dispatcher would.
    fn answer(&mut self, record: &Record) {
        match record.kind {
            Kind::Register => {
                let asked = Register::decode(record.body.clone()).expect("a Register");
                let answer = Registered {
                    user: asked.user,
                    device: asked.device,
                    login_number: LOGIN_NUMBER,
                    gateway_incarnation: asked.gateway_incarnation,
                    ..Registered::default()
                };
                self.say(Kind::Registered, ROOM, record.session, &answer);
            }
            Kind::Subscribe => {
                let asked = Subscribe::decode(record.body.clone()).expect("a Subscribe");
                let answer = Subscribed {
                    conversation: asked.conversation,
                    version: asked.version,
                    head: self.seq,
                    ..Subscribed::default()
                };
                self.say(Kind::Subscribed, ROOM, record.session, &answer);
            }
            Kind::ClientRequest => {
                let asked = ClientRequest::decode(record.body.clone()).expect("a ClientRequest");
                let ack = client::SendAck {
                    seq: 7,
                    message_id: 1 << 60,
                    server_time_ms: self.now.wall_ms,
                    epoch: EPOCH,
                };
                let response = client::Response { id: 3, outcome: Some(response::Outcome::SendAck(ack)) };
                let answer = Reply {
                    token: asked.token,
                    response: response.encode_to_vec().into(),
                    ..Reply::default()
                };
                self.say(Kind::Reply, ROOM, record.session, &answer);
            }
            _ => {}
        }
    }

    /// Carries everything until nothing moves.
    fn run(&mut self) -> Frames {
        // A turn may leave records to be transmitted: quiet is two rounds in which nothing moved.
        let (mut sent, mut quiet) = (Frames::default(), 0);
        while quiet < 2 {
            let mut moved = self.exchange();
            moved |= self.shard.turn(self.now, &mut self.actions).more;
            let mut actions = std::mem::take(&mut self.actions);
            for action in actions.drain(..) {
                moved = true;
                match action {
                    Action::Send { conn, payload } => {
                        match payload {
                            Payload::Shared { .. } => sent.shared += 1,
                            Payload::Owned(_) => sent.own += 1,
                        }
                        self.step(Event::Sent { conn });
                    }
                    Action::Verify { conn, credential } => {
                        let user = match credential {
                            Credential::Token(user) => user,
                            other => panic!("no ticket was made: {other:?}"),
                        };
                        let identity = Identity { user, expires_wall_ms: u64::MAX, login_number: 0 };
                        self.step(Event::Verified { conn, verdict: Ok(identity) });
                    }
                    Action::LeaseAnswer { .. } => {}
                    other => panic!("nothing else is asked for: {other:?}"),
                }
            }
            quiet = if moved || !self.actions.is_empty() { 0 } else { quiet + 1 };
        }
        sent
    }

    fn exchange(&mut self) -> bool {
        let mut moved = false;
        while let Some(bytes) = self.shard.transmit(self.node) {
            moved = true;
            self.link.receive(bytes).expect("a sound link");
        }
        while let Some(event) = self.link.poll() {
            if let LinkEvent::Record(record) = event {
                self.answer(&record);
            }
        }
        self.link.ack_now();
        while let Some(bytes) = self.link.transmit() {
            moved = true;
            self.step(Event::LinkBytes { node: self.node, bytes });
        }
        moved
    }
}

fn conn(slot: u32) -> Conn {
    Conn { slot, generation: 0 }
}

fn user(slot: u32) -> String {
    format!("user{slot}")
}
