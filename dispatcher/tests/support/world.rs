//! A store under test, asked one job at a time.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace_dispatcher::store::embedded::{self, Embedded};
use millrace_dispatcher::store::redis::RedisStore;
use millrace_dispatcher::store::{
    Answer, Batch, Cursor, CursorsOf, Done, Entry, Event, Fence, Job, List, Loaded, Node, Outcome,
    Registration, Replies, Route, Store, StoreError, StreamKey, View, Work, Write,
};
use millrace_edge::mailbox::{Receiver, mailbox};
use millrace_edge::wake::Waker;
use millrace_protocol::ids::{MessageId, Partition, SessionId};

use super::model::Model;
use super::redis::{self as servers, Redis};

/// Partitions of every world.
pub const PARTITIONS: u16 = 16;
/// Events that worlds keep: more than a test writes.
pub const EVENTS_MAX: u64 = 100_000;
/// Longer than any bound of a store.
const ANSWER_WAIT: Duration = Duration::from_secs(15);

/// Where a world's data is.
pub enum Ground<'a> {
    /// The caller's business.
    Elsewhere,
    Embedded(RefCell<tempfile::TempDir>),
    /// The reference.
    Model(RefCell<Model>),
    Redis(&'a dyn Redis, String),
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

    pub fn model() -> World<'static> {
        World::new(Ground::Model(RefCell::default()))
    }

    pub fn redis(server: &'a dyn Redis, cluster: &str) -> Self {
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
            Ground::Model(model) => Box::new(model.borrow().clone()),
            Ground::Redis(server, cluster) => {
                Box::new(RedisStore::connect(&server.url(), server.settings(cluster)).unwrap())
            }
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
            Ground::Model(model) => {
                model.replace(Model::default());
                self.open();
            }
            Ground::Redis(server, _) => server.flush(),
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
        let work = Work::Claim { partition, node: node.into(), incarnation: 1, wall_ms, above: 0 };
        match self.call(work)? {
            Outcome::Claimed { fence, position, last_message_id, outstanding, losers, copy } => {
                Ok(Claim { partition, fence, position, last_message_id, outstanding, losers, copy })
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn claim(&self, partition: Partition, node: &str, wall_ms: u64) -> Claim {
        self.try_claim(partition, node, wall_ms).unwrap()
    }

    /// Appends at the claim's position and moves it on. Returns the writes with their message ids.
    pub fn append(&self, claim: &mut Claim, writes: Vec<Write>) -> Vec<Write> {
        let batch = claim.stamped(writes);
        claim.position += batch.writes.len() as u64;
        let stamped = batch.writes.clone();
        assert_eq!(self.call(Work::Append(batch)), Ok(Outcome::Appended));
        stamped
    }

    /// Entries and the lowest seq.
    pub fn read(
        &self,
        conversation: &str,
        after: u64,
        through: u64,
        limit_bytes: usize,
    ) -> (Vec<Entry>, u64) {
        match self.call(read(conversation, after, through, limit_bytes)) {
            Ok(Outcome::Entries { entries, first_seq, .. }) => (entries, first_seq),
            other => panic!("{other:?}"),
        }
    }

    pub fn load(&self, claim: &Claim, conversation: &str, stream: Option<StreamKey>) -> Loaded {
        let Claim { partition, fence, .. } = *claim;
        let conversation = conversation.to_owned();
        match self.call(Work::Load { partition, fence, conversation, stream }) {
            Ok(Outcome::Loaded(loaded)) => loaded,
            other => panic!("{other:?}"),
        }
    }

    pub fn answers(&self, claim: &Claim, conversation: &str, stream: StreamKey) -> Vec<Answer> {
        let Claim { partition, fence, .. } = *claim;
        let conversation = conversation.to_owned();
        match self.call(Work::Answers { partition, fence, conversation, stream }) {
            Ok(Outcome::Answers(answers)) => answers,
            other => panic!("{other:?}"),
        }
    }

    pub fn cursors(&self, claim: &Claim, conversation: &str, of: CursorsOf) -> Vec<(String, String, Cursor)> {
        let Claim { partition, fence, .. } = *claim;
        let conversation = conversation.to_owned();
        match self.call(Work::Cursors { partition, fence, conversation, of }) {
            Ok(Outcome::Cursors(cursors)) => cursors,
            other => panic!("{other:?}"),
        }
    }

    /// A page of a list, and whether there is more.
    pub fn list(&self, user: &str, list: List, after: &str, limit: usize) -> (Vec<(String, Bytes)>, bool) {
        match self.call(Work::UserList { user: user.into(), list, after: after.into(), limit }) {
            Ok(Outcome::UserList { items, more }) => (items, more),
            other => panic!("{other:?}"),
        }
    }

    /// Events of a partition, as whoever consumes them reads them.
    pub fn events(&self, partition: Partition, after: u64, limit: usize) -> Vec<Event> {
        if let Ground::Redis(server, cluster) = &self.ground {
            return servers::events(*server, cluster, partition, after, limit);
        }
        match self.call(Work::Events { partition, after, limit }) {
            Ok(Outcome::Events(events)) => events,
            other => panic!("{other:?}"),
        }
    }

    /// The newest event of each partition that has some, as whoever consumes them finds it.
    pub fn event_heads(&self) -> Vec<(Partition, u64)> {
        if matches!(self.ground, Ground::Redis(..)) {
            let newest = |partition| self.events(partition, 0, usize::MAX >> 1).last().map(|event| event.id);
            return (0..PARTITIONS).filter_map(|at| Some((at, newest(at)?))).collect();
        }
        match self.call(Work::EventHeads) {
            Ok(Outcome::EventHeads(heads)) => heads,
            other => panic!("{other:?}"),
        }
    }

    /// How many events a partition has.
    pub fn event_count(&self, partition: Partition) -> usize {
        match &self.ground {
            Ground::Redis(server, cluster) => {
                server.cli(&["XLEN", &format!("{{mr:{cluster}:p{partition}}}:ev")]).parse().unwrap()
            }
            _ => self.events(partition, 0, usize::MAX >> 1).len(),
        }
    }

    pub fn register(&self, registration: Registration) -> Registered {
        match self.call(Work::Register(Box::new(registration))) {
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

    /// Whether the store is another process, with a clock of its own.
    pub fn has_a_clock(&self) -> bool {
        matches!(self.ground, Ground::Redis(..))
    }

    pub fn beat(&self, name: &str, ttl_ms: u32) -> Arc<View> {
        self.beat_of(node(name), 0, ttl_ms)
    }

    /// The same of any life of a node, which takes the place of another one.
    pub fn beat_of(&self, node: Node, replaces: u64, ttl_ms: u32) -> Arc<View> {
        match self.call(Work::Heartbeat { node, replaces, ttl_ms }) {
            Ok(Outcome::View(view)) => view,
            other => panic!("{other:?}"),
        }
    }

    /// The name of what was granted to a gateway; 0: refused.
    pub fn gateway(&self, gateway: u16, incarnation: u64, ttl_ms: u32) -> u64 {
        self.gateway_again(gateway, (incarnation, 0), ttl_ms)
    }

    /// The same, of an incarnation that takes the place of another one of its process.
    pub fn gateway_again(&self, gateway: u16, (incarnation, replaces): (u64, u64), ttl_ms: u32) -> u64 {
        self.gateway_held(gateway, (incarnation, replaces), 0, ttl_ms)
    }

    /// The same, of one that knows what was granted to it.
    pub fn gateway_held(
        &self,
        gateway: u16,
        (incarnation, replaces): (u64, u64),
        grant: u64,
        ttl_ms: u32,
    ) -> u64 {
        match self.call(Work::GatewayLease { gateway, incarnation, replaces, grant, ttl_ms }) {
            Ok(Outcome::GatewayLease { grant }) => grant,
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
    pub outstanding: Vec<(String, u64)>,
    pub losers: Vec<(String, Route)>,
    pub copy: u64,
}

impl Claim {
    pub fn batch(&self, writes: Vec<Write>) -> Work {
        Work::Append(self.stamped(writes))
    }

    /// A batch whose messages have ids: growing ones, whatever test asks for them.
    pub fn stamped(&self, mut writes: Vec<Write>) -> Batch {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let Claim { partition, fence, position, .. } = *self;
        for write in &mut writes {
            if let Write::Message(entry) = write {
                let next = NEXT.fetch_add(1, Ordering::Relaxed);
                entry.message_id = MessageId(next << 22 | u64::from(partition) << 12);
            }
        }
        Batch { partition, fence, position, writes, outstanding: Vec::new(), fanned_out: 0 }
    }

    pub fn load(&self, conversation: &str) -> Work {
        let Claim { partition, fence, .. } = *self;
        Work::Load { partition, fence, conversation: conversation.into(), stream: None }
    }
}

/// Reads partition 3, oldest first.
pub fn read(conversation: &str, after: u64, through: u64, limit_bytes: usize) -> Work {
    Work::Read {
        partition: 3,
        fence: None,
        conversation: conversation.to_owned(),
        after,
        through,
        limit_bytes,
        entries_max: usize::MAX >> 1,
        newest_first: false,
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
    let settings = embedded::Settings { events_max: EVENTS_MAX, ..embedded::Settings::new(PARTITIONS) };
    Embedded::open(dir, settings).unwrap()
}

pub fn node(name: &str) -> Node {
    Node { name: name.into(), address: format!("{name}:7000"), incarnation: 1 }
}

pub fn entry(conversation: &str, seq: u64, body: &[u8]) -> Entry {
    Entry {
        conversation: conversation.into(),
        seq,
        message_id: MessageId(0),
        epoch: 77,
        action: 0,
        messages: seq,
        bytes: seq * body.len() as u64,
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
        claim: None,
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
