//! A dispatcher shard with one partition, between a gateway's link and a store that answers at once: requests come in,
//! become a batch, are durable, and answers, fan-outs and direct messages go out. And the routes of a node that is
//! alone.

use std::sync::Arc;

use millrace_dispatcher::core::action::Action;
use millrace_dispatcher::core::event::{Event, LinkKey};
use millrace_dispatcher::core::limits::Limits;
use millrace_dispatcher::core::shard::{Config, Shard};
use millrace_dispatcher::store::embedded::routes::Routes;
use millrace_dispatcher::store::{
    Done, Fence, Gateway, Job, Loaded, Node, Outcome, Registration, Route, View, Work,
};
use millrace_protocol::conversation::direct;
use millrace_protocol::ids::{MessageId, Now, SessionId};
use millrace_protocol::link::end::{LinkEnd, LinkEvent, LinkLimits};
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::client::{Request, Send, request};
use millrace_protocol::messages::link::{ClientRequest, Hello, Subscribe};
use millrace_protocol::prost::Message;

use crate::{Path, Run, path};

pub(crate) const PATHS: &[Path] = &[
    path("dispatcher/one-to-a-room", 1, 100, || room(1)),
    path("dispatcher/batch-to-a-room-64", 64, 20, || room(64)),
    path("dispatcher/one-direct", 1, 100, || direct_messages(1)),
    path("dispatcher/batch-direct-64", 64, 20, || direct_messages(64)),
    path("routes/look-up", 64, 20, look_up),
    path("routes/register-again", 64, 20, register_again),
];

const ROOM: &str = "r:hall";
const LINK: LinkKey = LinkKey { gateway: 1, shard: 0 };
/// Of the gateway.
const INCARNATION: u64 = 77;

/// So many messages of as many users to a room that one gateway listens to: an answer and a fan-out each.
fn room(messages: u32) -> Run {
    let mut world = World::new();
    let subscribe = Subscribe { conversation: ROOM.to_owned(), version: 1, ..Subscribe::default() };
    world.say(Kind::Subscribe, SessionId::NONE, &subscribe);
    world.run();
    let conversations = vec![ROOM.to_owned(); messages as usize];
    Box::new(move || {
        world.send(&conversations);
        assert_eq!(world.run(), Counts { answers: messages, fan_outs: messages, directs: 0 });
    })
}

/// So many direct messages of as many users: an answer, a look-up of routes and a delivery each.
fn direct_messages(messages: u32) -> Run {
    let mut world = World::new();
    let conversations: Vec<_> = (0..messages).map(|n| direct(&user(n), &format!("peer{n}"))).collect();
    Box::new(move || {
        world.send(&conversations);
        assert_eq!(world.run(), Counts { answers: messages, fan_outs: 0, directs: messages });
    })
}

/// Records that a gateway got.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    answers: u32,
    fan_outs: u32,
    directs: u32,
}

struct World {
    shard: Shard,
    /// The gateway's end.
    link: LinkEnd,
    now: Now,
    actions: Vec<Action>,
    /// Of each user's messages so far.
    client_seq: u64,
    token: u64,
}

impl World {
    /// The partition is served and the link is up.
    fn new() -> World {
        let config = Config {
            shard: 0,
            shards: 1,
            node: "n".to_owned(),
            incarnation: 9,
            cluster: "bench".to_owned(),
            partitions: 1,
            limits: Limits::default(),
            link: LinkLimits::default(),
            seed: 7,
        };
        let hello = Hello {
            cluster: "bench".to_owned(),
            role: "gateway".to_owned(),
            gateway: LINK.gateway.into(),
            incarnation: INCARNATION,
            partitions: 1,
            ..Hello::default()
        };
        let mut world = World {
            shard: Shard::new(config),
            link: LinkEnd::new(hello, LinkLimits::default()),
            now: Now { mono_us: 5_000_000, wall_ms: 1_800_000_000_000 },
            actions: Vec::new(),
            client_seq: 0,
            token: 0,
        };
        let view = View {
            nodes: vec![Node { name: "n".to_owned(), address: "n:1".to_owned(), incarnation: 9 }],
            gateways: vec![Gateway { gateway: LINK.gateway, incarnation: INCARNATION }],
            owners: vec![(String::new(), 0)],
            was_missing: false,
            held_by: 0,
            clock_ms: None,
        };
        world.link.connected();
        world.step(Event::LeaseUntil { until_us: u64::MAX });
        world.step(Event::View(Arc::new(view)));
        world.step(Event::Claim { partition: 0 });
        world.step(Event::LinkConnected { link: LINK });
        world.run();
        assert!(world.link.is_up() && world.shard.stats().partitions_served == 1);
        world
    }

    fn step(&mut self, event: Event) {
        self.shard.step(self.now, event, &mut self.actions);
    }

    fn say(&mut self, kind: Kind, session: SessionId, body: &impl Message) {
        let record = Record { kind, partition: 0, epoch: 0, session, body: body.encode_to_vec().into() };
        self.link.queue(record).expect("credit");
    }

    /// The next message of each user to its conversation, as its gateway passes it on.
    fn send(&mut self, conversations: &[String]) {
        self.client_seq += 1;
        for (n, conversation) in (0..).zip(conversations) {
            let send = Send {
                conversation: conversation.clone(),
                client_seq: self.client_seq,
                stream: 1,
                payload: vec![7u8; 128].into(),
                ..Send::default()
            };
            self.token += 1;
            let request = Request { id: 3, op: Some(request::Op::Send(send)) };
            let body = ClientRequest {
                token: self.token,
                user: user(n),
                device: "phone".to_owned(),
                request: request.encode_to_vec().into(),
            };
            self.say(Kind::ClientRequest, session(n), &body);
        }
    }

    /// Carries everything until nothing moves.
    fn run(&mut self) -> Counts {
        let (mut counts, mut quiet) = (Counts::default(), false);
        while !quiet {
            quiet = true;
            while let Some(bytes) = self.link.transmit() {
                quiet = false;
                self.step(Event::LinkBytes { link: LINK, bytes });
            }
            self.shard.turn(self.now, &mut self.actions);
            for action in std::mem::take(&mut self.actions) {
                match action {
                    Action::Store(job) => {
                        quiet = false;
                        self.step(Event::Store(carry_out(job)));
                    }
                    Action::Claimed { .. } => {}
                    other => panic!("nothing else is asked for: {other:?}"),
                }
            }
            for link in self.shard.links_with_output().to_vec() {
                while let Some(bytes) = self.shard.transmit(link) {
                    quiet = false;
                    self.link.receive(bytes).expect("a sound link");
                }
            }
            while let Some(event) = self.link.poll() {
                let LinkEvent::Record(record) = event else { continue };
                match record.kind {
                    Kind::Reply => counts.answers += 1,
                    Kind::FanOut => counts.fan_outs += 1,
                    Kind::Direct => counts.directs += 1,
                    _ => {}
                }
            }
            if self.link.needs_ack() {
                self.link.ack_now();
            }
        }
        counts
    }
}

/// A store that keeps nothing: everything is durable at once, and everybody has one session.
fn carry_out(job: Job) -> Done {
    let outcome = match job.work {
        Work::Claim { wall_ms, .. } => Outcome::Claimed {
            fence: Fence { epoch: wall_ms, nonce: 5 },
            position: 0,
            last_message_id: MessageId::default(),
            outstanding: Vec::new(),
            losers: Vec::new(),
            copy: 1,
        },
        Work::Answers { .. } => Outcome::Answers(Vec::new()),
        Work::UserItems { .. } => Outcome::UserItemsDone,
        Work::Load { .. } => Outcome::Loaded(Loaded::default()),
        Work::Append(_) => Outcome::Appended,
        Work::Routes { users } => Outcome::Routes((0..).zip(users).map(|(n, _)| vec![route(n)]).collect()),
        other => panic!("nothing else is asked for: {other:?}"),
    };
    Done { ticket: job.ticket, outcome: Ok(outcome) }
}

fn route(n: u32) -> Route {
    Route {
        device: "tablet".to_owned(),
        platform: "bench".to_owned(),
        session: SessionId::new(LINK.gateway, LINK.shard, 1_000 + n, 0),
        incarnation: INCARNATION,
        login_number: 1,
    }
}

fn user(n: u32) -> String {
    format!("user{n}")
}

fn session(n: u32) -> SessionId {
    SessionId::new(LINK.gateway, LINK.shard, n, 0)
}

// ---- routes ----

/// Users with a route each: some hundred in each of the table's parts.
const USERS: u32 = 20_000;

/// A table of everybody, and 64 of them in no order.
fn routes() -> (Routes, Vec<Registration>) {
    let routes = Routes::default();
    let registration = |n| Registration {
        user: user(n),
        device: "phone".to_owned(),
        platform: "bench".to_owned(),
        session: session(n),
        incarnation: INCARNATION,
        login_number: 0,
        wall_ms: 1_800_000_000_000,
        newest_wins: true,
        claim: None,
    };
    for n in 0..USERS {
        routes.register(&registration(n));
    }
    (routes, (0..64).map(|n| registration(n * 7_919 % USERS)).collect())
}

fn look_up() -> Run {
    let (routes, some) = routes();
    Box::new(move || {
        for registration in &some {
            assert_eq!(routes.of(&registration.user).len(), 1);
        }
    })
}

/// They come back with a new login.
fn register_again() -> Run {
    let (routes, some) = routes();
    Box::new(move || {
        for registration in &some {
            let (_, verdict) = routes.register(registration);
            assert!(!verdict.lost);
        }
    })
}
