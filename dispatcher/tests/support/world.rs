//! A store under test, asked one job at a time.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace_dispatcher::store::embedded::{self, Embedded};
use millrace_dispatcher::store::redis::{self, RedisStore};
use millrace_dispatcher::store::{
    Batch, Done, Entry, Fence, Job, Node, Outcome, Registration, Replies, Route, Store, StoreError, View,
    Work, Write,
};
use millrace_edge::mailbox::{Receiver, mailbox};
use millrace_edge::wake::Waker;
use millrace_protocol::ids::{MessageId, Partition, SessionId};

use super::redis::RedisServer;

/// Partitions of every world.
pub const PARTITIONS: u16 = 16;
/// Longer than any bound of a store.
const ANSWER_WAIT: Duration = Duration::from_secs(15);

/// Where a world's data is.
pub enum Ground<'a> {
    /// The caller's business.
    Elsewhere,
    Embedded(RefCell<tempfile::TempDir>),
    Redis(&'a RedisServer, String),
}

/// See above.
pub struct World<'a> {
    store: RefCell<Option<Box<dyn Store>>>,
    pub ground: Ground<'a>,
    replies: Replies,
    answers: Receiver<Vec<Done>>,
    ticket: Cell<u64>,
}

impl<'a> World<'a> {
    pub fn new(ground: Ground<'a>) -> Self {
        let (replies, answers) = mailbox(1_024, Waker::new().unwrap());
        let world = Self { store: RefCell::default(), ground, replies, answers, ticket: Cell::new(1) };
        world.open();
        world
    }

    /// A world over a store that was opened elsewhere.
    pub fn over(store: Box<dyn Store>) -> World<'static> {
        let world = World::new(Ground::Elsewhere);
        *world.store.borrow_mut() = Some(store);
        world
    }

    pub fn embedded() -> World<'static> {
        World::new(Ground::Embedded(RefCell::new(tempfile::tempdir().unwrap())))
    }

    pub fn redis(server: &'a RedisServer, cluster: &str) -> Self {
        World::new(Ground::Redis(server, cluster.to_owned()))
    }

    /// A store on the same data as before, after the old one is gone.
    pub fn reopen(&self) {
        self.store.take();
        self.open();
    }

    fn open(&self) {
        let store: Box<dyn Store> = match &self.ground {
            Ground::Elsewhere => return,
            Ground::Embedded(dir) => Box::new(open_embedded(dir.borrow().path())),
            Ground::Redis(server, cluster) => Box::new(
                RedisStore::connect(&server.url(), redis::Settings::new(cluster.clone(), PARTITIONS))
                    .unwrap(),
            ),
        };
        *self.store.borrow_mut() = Some(store);
    }

    /// Everything stored is gone.
    pub fn empty(&self) {
        match &self.ground {
            Ground::Elsewhere => unreachable!("only worlds with a ground are emptied"),
            Ground::Embedded(dir) => {
                self.store.take();
                dir.replace(tempfile::tempdir().unwrap());
                self.open();
            }
            Ground::Redis(server, _) => assert_eq!(server.cli(&["FLUSHALL"]), "OK"),
        }
    }

    /// Submits jobs together, and returns their outcomes in that order.
    pub fn calls(&self, works: Vec<Work>) -> Vec<Result<Outcome, StoreError>> {
        let first = self.ticket.get();
        let count = works.len() as u64;
        self.ticket.set(first + count);
        let jobs = works.into_iter().enumerate().map(|(at, work)| Job { ticket: first + at as u64, work });
        self.store.borrow().as_ref().unwrap().submit(jobs.collect(), &self.replies);
        let mut done: Vec<Done> = Vec::new();
        let deadline = Instant::now() + ANSWER_WAIT;
        while (done.len() as u64) < count {
            assert!(Instant::now() < deadline, "{} of {count} answers came", done.len());
            match self.answers.recv() {
                Some(more) => done.extend(more),
                None => std::thread::sleep(Duration::from_micros(200)),
            }
        }
        done.sort_by_key(|done| done.ticket);
        assert!(done.iter().zip(first..).all(|(done, ticket)| done.ticket == ticket), "{done:?}");
        done.into_iter().map(|done| done.outcome).collect()
    }

    pub fn call(&self, work: Work) -> Result<Outcome, StoreError> {
        self.calls(vec![work]).pop().unwrap()
    }

    pub fn trouble(&self) -> Option<String> {
        self.store.borrow().as_ref().unwrap().trouble()
    }

    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.store.borrow().as_ref().unwrap().counters();
        counters.iter().find(|(known, _)| *known == name).map(|(_, value)| *value).unwrap()
    }

    pub fn try_claim(&self, partition: Partition, node: &str, wall_ms: u64) -> Result<Claim, StoreError> {
        let work = Work::Claim { partition, node: node.into(), incarnation: 1, wall_ms };
        match self.call(work)? {
            Outcome::Claimed { fence, position, last_message_id } => {
                Ok(Claim { partition, fence, position, last_message_id })
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn claim(&self, partition: Partition, node: &str, wall_ms: u64) -> Claim {
        self.try_claim(partition, node, wall_ms).unwrap()
    }

    /// Appends at the claim's position and moves it on.
    pub fn append(&self, claim: &mut Claim, writes: Vec<Write>) {
        let count = writes.len() as u64;
        assert_eq!(self.call(claim.batch(writes)), Ok(Outcome::Appended));
        claim.position += count;
    }

    pub fn read(
        &self,
        conversation: &str,
        after: u64,
        through: u64,
        limit_bytes: usize,
    ) -> (Vec<Entry>, u64) {
        let conversation = conversation.to_owned();
        match self.call(Work::Read { partition: 3, conversation, after, through, limit_bytes }) {
            Ok(Outcome::Entries { entries, first_seq }) => (entries, first_seq),
            other => panic!("{other:?}"),
        }
    }

    pub fn register(&self, registration: Registration) -> Registered {
        match self.call(Work::Register(registration)) {
            Ok(Outcome::Registered { login_number, lost, losers, mut groups }) => {
                groups.sort();
                Registered { login_number, lost, losers, groups }
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn routes(&self, user: &str) -> Vec<Route> {
        match self.call(Work::Routes { users: vec![user.into()] }) {
            Ok(Outcome::Routes(mut routes)) => routes.pop().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub fn beat(&self, name: &str, ttl_ms: u32) -> Arc<View> {
        match self.call(Work::Heartbeat { node: node(name), ttl_ms }) {
            Ok(Outcome::View(view)) => view,
            other => panic!("{other:?}"),
        }
    }

    /// (granted, was missing)
    pub fn gateway(&self, gateway: u16, incarnation: u64, ttl_ms: u32) -> (bool, bool) {
        self.gateway_again(gateway, (incarnation, 0), ttl_ms)
    }

    /// The same, of an incarnation that takes the place of another one of its process.
    pub fn gateway_again(
        &self,
        gateway: u16,
        (incarnation, replaces): (u64, u64),
        ttl_ms: u32,
    ) -> (bool, bool) {
        match self.call(Work::GatewayLease { gateway, incarnation, replaces, ttl_ms }) {
            Ok(Outcome::GatewayLease { granted, was_missing }) => (granted, was_missing),
            other => panic!("{other:?}"),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Claim {
    pub partition: Partition,
    pub fence: Fence,
    pub position: u64,
    pub last_message_id: MessageId,
}

impl Claim {
    pub fn batch(&self, writes: Vec<Write>) -> Work {
        let Claim { partition, fence, position, .. } = *self;
        Work::Append(Batch { partition, fence, position, writes })
    }

    pub fn load(&self, conversation: &str) -> Work {
        Work::Load { partition: self.partition, fence: self.fence, conversation: conversation.into() }
    }
}

#[derive(Debug)]
pub struct Registered {
    pub login_number: u64,
    pub lost: bool,
    pub losers: Vec<Route>,
    pub groups: Vec<String>,
}

pub fn open_embedded(dir: &Path) -> Embedded {
    Embedded::open(dir, embedded::Settings::new(PARTITIONS)).unwrap()
}

pub fn node(name: &str) -> Node {
    Node { name: name.into(), address: format!("{name}:7000"), incarnation: 1 }
}

pub fn entry(conversation: &str, seq: u64, body: &[u8]) -> Entry {
    Entry {
        conversation: conversation.into(),
        seq,
        message_id: MessageId(seq << 40 | 9),
        epoch: 77,
        sender: "alice".into(),
        device: "phone".into(),
        stream: u64::MAX,
        client_seq: seq,
        payload_hash: 0xfedc_ba98_7654_3210,
        notify: Bytes::copy_from_slice(body),
    }
}

pub fn message(conversation: &str, seq: u64) -> Write {
    Write::Message(entry(conversation, seq, format!("body {seq} \u{0}\u{7f} of {conversation}").as_bytes()))
}

pub fn registration(user: &str, device: &str, platform: &str, session: SessionId) -> Registration {
    Registration {
        user: user.into(),
        device: device.into(),
        platform: platform.into(),
        session,
        incarnation: 1_000 + u64::from(session.gateway()),
        login_number: 0,
        wall_ms: 5_000,
        newest_wins: false,
    }
}

pub fn session(gateway: u16, slot: u32) -> SessionId {
    SessionId::new(gateway, 1, slot, 3)
}

pub fn until(what: &str, wait: Duration, mut done: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < wait, "not within {wait:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    begun.elapsed()
}
