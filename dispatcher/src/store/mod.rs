//! What is kept: logs, groups, fences, routes and leases, behind one trait.
//!
//! A shard hands [`Job`]s to the store's own threads and gets a [`Done`] with the same ticket back. Two
//! implementations keep the same promises, checked by one suite: embedded (fjall, group commit, fsync before the
//! answer; routes and leases in memory) and Redis.
//!
//! # Promises
//! 1. An [`Work::Append`] is all or nothing, and durable when it is answered [`Outcome::Appended`]: [`Durability`] says
//!    what that means.
//! 2. It is refused [`StoreError::Fenced`] unless its fence is the partition's current one, and
//!    [`StoreError::Position`] unless it begins at the partition's next position: a paused owner can write nothing,
//!    and an append whose outcome was unknown is found out.
//! 3. A claim's epoch is greater than every earlier one, also over an emptied store (it takes the wall clock).
//! 4. Jobs of one partition from one shard are carried out in order. Jobs of different partitions are not ordered.
//!    (A load may be overtaken by later jobs: nothing is written to a conversation before it is loaded, and one whose
//!    fence was lost meanwhile is answered Fenced. Routes and leases may overtake what is queued for the log; [`Outcome::UserItemsDone`] is the moment from which
//!    every registration sees the group.)
//! 5. Registrations of one user by one shard are carried out in order, and none under a claim that was lost.
//! 6. A store that can't be reached answers [`StoreError::Unavailable`]; nothing waits without bound.

mod durability;
pub mod embedded;
mod intake;
pub mod model;
mod pack;
mod policy;
mod record;
pub mod redis;

use std::sync::Arc;

pub use self::durability::{ASYNC_SYNC_MS, Durability, REPLICAS_MAX};
use bytes::Bytes;
use millrace_edge::mailbox;
use millrace_protocol::ids::{MessageId, Partition, SessionId};

/// What a writer must hold: the epoch of its claim, and the random nonce that tells two claims of one epoch apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Grows with every claim.
    pub epoch: u64,
    /// Drawn by the store at the claim.
    pub nonce: u64,
}

/// One thing for the store to do. `ticket` comes back with the answer.
#[derive(Debug)]
pub struct Job {
    /// The shard's own number for it.
    pub ticket: u64,
    /// What to do.
    pub work: Work,
}

/// The kinds of jobs.
#[derive(Debug)]
pub enum Work {
    /// Takes the partition: epoch = max(stored + 1, `wall_ms`), a new nonce. Refused [`StoreError::Held`] while another
    /// node that is alive holds it.
    Claim {
        /// Which partition.
        partition: Partition,
        /// Who claims.
        node: String,
        /// The node's incarnation.
        incarnation: u64,
        /// Wall clock of the claimer, ms since 1970.
        wall_ms: u64,
    },
    /// Gives the partition up, so that another may claim it at once. Answered [`Outcome::Released`].
    Release {
        /// Which partition.
        partition: Partition,
        /// Must be the current one.
        fence: Fence,
    },
    /// One batch of a partition. Answered [`Outcome::Appended`].
    Append(Batch),
    /// Head, membership and state of one conversation, read under the fence. Answered [`Outcome::Loaded`].
    Load {
        /// Which partition.
        partition: Partition,
        /// Must be the current one.
        fence: Fence,
        /// Conversation id.
        conversation: String,
        /// Also this stream's answers.
        stream: Option<StreamKey>,
    },
    /// What one stream was answered, read under the fence: [`Outcome::Answers`].
    Answers {
        /// Which partition.
        partition: Partition,
        /// Must be the current one.
        fence: Fence,
        /// Conversation id.
        conversation: String,
        /// Whose.
        stream: StreamKey,
    },
    /// Cursors of a conversation, read under the fence: [`Outcome::Cursors`].
    Cursors {
        /// Which partition.
        partition: Partition,
        /// Must be the current one.
        fence: Fence,
        /// Conversation id.
        conversation: String,
        /// Whose.
        of: CursorsOf,
    },
    /// Entries of a conversation with `after < seq <= through`, at most `entries_max` of them and `limit_bytes` of bodies
    /// (at least one entry), with the head: [`Outcome::Entries`].
    Read {
        /// Which partition.
        partition: Partition,
        /// If given: must be the current one (a paused owner must not answer with an old head).
        fence: Option<Fence>,
        /// Conversation id.
        conversation: String,
        /// Exclusive.
        after: u64,
        /// Inclusive.
        through: u64,
        /// Bytes of bodies to stop at.
        limit_bytes: usize,
        /// Entries to stop at.
        entries_max: usize,
        /// From `through` down; the entries come newest first.
        newest_first: bool,
    },
    /// Changes items of users' lists, each in its user's partition; idempotent, needs no fence:
    /// [`Outcome::UserItemsDone`].
    UserItems(Vec<UserItem>),
    /// One page of a user's list, in byte order of the items: [`Outcome::UserList`].
    UserList {
        /// Whose.
        user: String,
        /// Which.
        list: List,
        /// Items after this one.
        after: String,
        /// Items at most.
        limit: usize,
    },
    /// Events of a partition after a position, oldest first: [`Outcome::Events`]. The embedded store only; Redis has
    /// streams, which consumers read themselves.
    Events {
        /// Which partition.
        partition: Partition,
        /// Exclusive.
        after: EventId,
        /// Events at most.
        limit: usize,
    },
    /// The newest event of every partition that has some: [`Outcome::EventHeads`]. The embedded store only.
    EventHeads,
    /// Registers one session on its user's key: see [`Outcome::Registered`].
    Register(Box<Registration>),
    /// Removes a route if device, session, its incarnation and login number are still those. Not fenced.
    Unregister {
        /// Whose.
        user: String,
        /// Which device.
        device: String,
        /// Compared: a session that resumed has the login number of the one before.
        session: SessionId,
        /// Compared.
        login_number: u64,
        /// Compared.
        incarnation: u64,
    },
    /// All routes of these users, dead ones included (the caller judges by the view).
    Routes {
        /// Whose.
        users: Vec<String>,
    },
    /// Renews this node's lease and reads the whole view. Not renewed ([`View::held_by`]) while another life of that name
    /// holds it than these two: what a process that has ended sent may come late.
    Heartbeat {
        /// This node.
        node: Node,
        /// The incarnation whose place it takes, which loses a lease that it still has; 0: there is none.
        replaces: u64,
        /// Length of the lease.
        ttl_ms: u32,
    },
    /// Ends this node's lease now (a clean exit).
    Leave {
        /// This node's name.
        node: String,
        /// Compared.
        incarnation: u64,
    },
    /// Renews a gateway's lease. Refused while another incarnation than these two holds it; and once it was held, when it
    /// is gone or another copy of the store has taken over: whoever held it has to begin anew, and is told until it does.
    GatewayLease {
        /// Gateway id.
        gateway: u16,
        /// Its incarnation.
        incarnation: u64,
        /// The same process's previous incarnation, which loses a lease that it still has; 0: there is none.
        replaces: u64,
        /// The copy of the store that granted it to this incarnation last; 0: none did.
        copy: u64,
        /// Length of the lease.
        ttl_ms: u32,
    },
}

/// One batch of one partition: checked whole before its first write.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Which partition.
    pub partition: Partition,
    /// Must be the current one.
    pub fence: Fence,
    /// The position that the first write takes; every write takes one.
    pub position: u64,
    /// In order.
    pub writes: Vec<Write>,
    /// Messages of this batch, by conversation and seq, that a new owner must fan out again unless a later batch says
    /// that they were ([`Outcome::Claimed`] names them).
    pub outstanding: Vec<(String, u64)>,
    /// What batches before this position named as outstanding was fanned out.
    pub fanned_out: u64,
}

/// One write of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Appends a message to its conversation's log, and its answer to its stream's, if it has one.
    Message(Entry),
    /// Puts another record in the place of an entry that is there (a recalled message loses its payload). One whose seq
    /// is not in the log any more changes nothing.
    Replace(Entry),
    /// Creates a group; the owner has checked that there is none.
    GroupCreate {
        /// Conversation id.
        conversation: String,
        /// With the creator.
        members: Vec<String>,
        /// First membership version.
        version: u64,
    },
    /// Changes a group's members.
    Members {
        /// Conversation id.
        conversation: String,
        /// Added.
        add: Vec<String>,
        /// Removed.
        remove: Vec<String>,
        /// The membership version after this.
        version: u64,
    },
    /// Sets one item of a conversation's state, or removes it. All of a conversation's state is loaded with it: its
    /// owner keeps it small.
    State {
        /// Conversation id.
        conversation: String,
        /// Name of the item.
        key: String,
        /// `None`: removes it.
        value: Option<Bytes>,
    },
    /// Moves a cursor forward: one that is not above the stored one (by epoch, then seq) changes nothing.
    Cursor {
        /// Conversation id.
        conversation: String,
        /// Whose.
        user: String,
        /// Which device; empty: what the user has read.
        device: String,
        /// To here.
        cursor: Cursor,
    },
    /// Drops entries below a seq: they are past their retention. The newest entry always stays.
    Trim {
        /// Conversation id.
        conversation: String,
        /// The lowest that stays.
        first_seq: u64,
    },
    /// An event for the business behind, when events are switched on (messages and group changes need none of these:
    /// their entries are events too).
    Event {
        /// What it is: "login", "logout", "receipt".
        kind: &'static str,
        /// JSON.
        body: Bytes,
    },
}

/// Whose counter a `client_seq` is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamKey {
    /// The sender.
    pub user: String,
    /// From which device.
    pub device: String,
    /// Drawn by the client; never 0.
    pub stream: u64,
}

impl StreamKey {
    /// The stream that an entry was sent on.
    pub fn of(entry: &Entry) -> Self {
        StreamKey { user: entry.sender.clone(), device: entry.device.clone(), stream: entry.stream }
    }
}

/// What a message was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The sender's number.
    pub client_seq: u64,
    /// Of the payload and everything else that the sender chose.
    pub payload_hash: u64,
    /// Given to it.
    pub seq: u64,
    /// Given to it; its time is the server time of the answer.
    pub message_id: MessageId,
    /// Of the owner that gave them.
    pub epoch: u64,
}

/// A place in a log. Ordered by epoch, then seq.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// Of the entry.
    pub epoch: u64,
    /// Of the entry; 0: before the first.
    pub seq: u64,
    /// Messages up to there ([`Entry::messages`]).
    pub messages: u64,
}

/// Whose cursors are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CursorsOf {
    /// One user's, all devices and what was read.
    User(String),
    /// Everyone's, in byte order of user and device, after this pair.
    All {
        /// Exclusive; two empty names begin.
        after: (String, String),
        /// Cursors at most.
        limit: usize,
    },
}

/// What users have lists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum List {
    /// Conversation ids of groups.
    Groups,
    /// Conversation ids of direct conversations.
    Directs,
    /// Users.
    Friends,
    /// Users who asked to be friends.
    FriendRequests,
    /// Users who are blocked.
    Blocks,
    /// Named settings, and what is known of devices.
    Settings,
}

/// One item of a user's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserItem {
    /// Whose.
    pub user: String,
    /// Which list.
    pub list: List,
    /// Its name there.
    pub item: String,
    /// What becomes of it.
    pub change: Change,
}

/// What becomes of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It gets this value.
    Put(Bytes),
    /// It gets this value unless it is there already.
    Add(Bytes),
    /// It goes.
    Remove,
}

/// Where an event stands among those of its partition: the position of its write.
pub type EventId = u64;

/// An event for the business behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Grows within the partition.
    pub id: EventId,
    /// "message", or that of [`Write::Event`].
    pub kind: String,
    /// "message": the body of a Notify frame. Else JSON.
    pub body: Bytes,
}

/// One message as stored. The body is what receivers get, verbatim; the rest is what a new owner must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Conversation id.
    pub conversation: String,
    /// 1, 2, 3, … in the conversation.
    pub seq: u64,
    /// Time-ordered, unique in the cluster.
    pub message_id: MessageId,
    /// Epoch of the owner that appended it.
    pub epoch: u64,
    /// What it is, as clients are told (`millrace.client.Action`).
    pub action: u8,
    /// Entries that are messages (not edits, reactions, …), this one included, since the conversation began.
    pub messages: u64,
    /// Bytes of bodies, this one's included, since the conversation began.
    pub bytes: u64,
    /// Who sent it.
    pub sender: String,
    /// From which device.
    pub device: String,
    /// The sender's stream and number in it: a repeat is found by them. 0: it has none (the server made it).
    pub stream: u64,
    /// Dense per stream and conversation.
    pub client_seq: u64,
    /// Of the payload: a repeat with another payload is refused.
    pub payload_hash: u64,
    /// The body of the Notify frame that receivers get.
    pub notify: Bytes,
}

/// A session as registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Whose.
    pub user: String,
    /// Which device; one session each.
    pub device: String,
    /// For the policy.
    pub platform: String,
    /// Where.
    pub session: SessionId,
    /// The gateway's incarnation.
    pub incarnation: u64,
    /// 0: give it the next number, above all earlier ones and not below `wall_ms`. Else it registers again under this one.
    pub login_number: u64,
    /// Wall clock, ms since 1970.
    pub wall_ms: u64,
    /// Other devices on the same platform lose.
    pub newest_wins: bool,
    /// Who owns the user's partition registers it: [`StoreError::Fenced`] when that claim was lost. Two tries of one client
    /// have one login number, and one that reaches the store late must not take the place of a later one, which another
    /// owner registered. `None`: not compared.
    pub claim: Option<(Partition, Fence)>,
}

/// Where one device of a user is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Which device.
    pub device: String,
    /// Its platform.
    pub platform: String,
    /// Gateway, shard, slot, generation.
    pub session: SessionId,
    /// The gateway's incarnation: a lapsed lease voids all routes under it.
    pub incarnation: u64,
    /// The highest wins.
    pub login_number: u64,
}

/// A dispatcher node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Unique in the cluster.
    pub name: String,
    /// `host:port` where gateways connect.
    pub address: String,
    /// Drawn at start.
    pub incarnation: u64,
}

/// A gateway whose lease is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Gateway id.
    pub gateway: u16,
    /// Routes under another incarnation are void.
    pub incarnation: u64,
}

/// Who is alive and who owns what, as read with a heartbeat. `owners` is a hint: the fences decide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Live nodes, by name.
    pub nodes: Vec<Node>,
    /// Live gateways.
    pub gateways: Vec<Gateway>,
    /// Per partition: the node that claimed it last, and its epoch; an empty name when it was released or never claimed.
    pub owners: Vec<(String, u64)>,
    /// This node's lease was not there although it held one (the store was emptied, or the lease lapsed), or another copy
    /// of the store took over.
    pub was_missing: bool,
    /// The lease was not renewed: this incarnation holds the node's name. 0: it was.
    pub held_by: u64,
}

/// An answer.
#[derive(Debug)]
pub struct Done {
    /// The job's.
    pub ticket: u64,
    /// What came of it.
    pub outcome: Result<Outcome, StoreError>,
}

/// What came of a job that succeeded.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The claim holds.
    Claimed {
        /// To be shown with every write.
        fence: Fence,
        /// Where the next batch begins.
        position: u64,
        /// The highest message id ever stored in the partition.
        last_message_id: MessageId,
        /// Messages that may not have been fanned out: conversation and seq, oldest first.
        outstanding: Vec<(String, u64)>,
    },
    /// The partition is given up.
    Released,
    /// The batch is durable.
    Appended,
    /// A conversation.
    Loaded(Loaded),
    /// Entries, and where the log begins and ends.
    Entries {
        /// In order of seq, up or down.
        entries: Vec<Entry>,
        /// Lowest seq kept (1 if nothing was trimmed).
        first_seq: u64,
        /// Highest seq; 0: nothing was ever written.
        head: u64,
    },
    /// A stream's answers, oldest first, at most [`ANSWERS_MAX`]; none: it is not known.
    Answers(Vec<Answer>),
    /// Cursors: user, device (empty: what was read), cursor; in byte order of user and device.
    Cursors(Vec<(String, String, Cursor)>),
    /// Users' lists were changed.
    UserItemsDone,
    /// A page of a list.
    UserList {
        /// Names and values.
        items: Vec<(String, Bytes)>,
        /// There are further ones.
        more: bool,
    },
    /// Events, oldest first.
    Events(Vec<Event>),
    /// See [`Work::EventHeads`]; by partition.
    EventHeads(Vec<(Partition, EventId)>),
    /// The session is registered.
    Registered {
        /// Its number.
        login_number: u64,
        /// It lost to a session with a higher number: it must be closed.
        lost: bool,
        /// Sessions that lost to it, those that it resumed included.
        losers: Vec<Route>,
        /// The user's groups (conversation ids).
        groups: Vec<String>,
    },
    /// Gone, or it was another's.
    Unregistered,
    /// Routes, one list per user asked for, in that order.
    Routes(Vec<Vec<Route>>),
    /// The node's lease holds.
    View(Arc<View>),
    /// The lease was ended.
    Left,
    /// The gateway's lease.
    GatewayLease {
        /// Else another process holds this id, or what was held is gone.
        granted: bool,
        /// This incarnation had none before; or it had, from another copy of the store.
        was_missing: bool,
        /// The copy that answers: not 0, and another one after a failover, which may lack what was written last.
        copy: u64,
    },
}

/// A conversation as a new owner finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Highest seq; 0 if nothing was ever written.
    pub head: u64,
    /// Epoch of the entry there.
    pub head_epoch: u64,
    /// [`Entry::messages`] of the newest entry.
    pub messages: u64,
    /// [`Entry::bytes`] of the newest entry.
    pub bytes: u64,
    /// Lowest seq that the log holds (1 if nothing was trimmed).
    pub first_seq: u64,
    /// Groups: members and membership version; `None` if there is no such group.
    pub members: Option<(Vec<String>, u64)>,
    /// State, in byte order of the keys.
    pub state: Vec<(String, Bytes)>,
    /// Answers of the stream that was asked for, oldest first.
    pub answers: Vec<Answer>,
}

/// Where a new partition's positions begin, so that all events come after 0.
pub const FIRST_POSITION: u64 = 1;

/// Answers of one stream in one conversation that are kept: as many messages as a client may have in flight.
pub const ANSWERS_MAX: usize = 64;

/// How long they are kept at least, after the stream's last message there.
pub const ANSWERS_DAYS: u64 = 7;

/// Streams of one device in one conversation that are kept: the newest ones.
pub const STREAMS_PER_DEVICE_MAX: usize = 8;

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The fence is not the current one: another owner has claimed the partition, or the store was emptied.
    #[error("partition {partition}: the fence was lost")]
    Fenced {
        /// Which.
        partition: Partition,
    },
    /// The batch does not begin where the partition ends: an earlier outcome was not what its owner believed.
    #[error("partition {partition}: the batch begins at {given}, the partition ends at {expected}")]
    Position {
        /// Which.
        partition: Partition,
        /// Where the partition ends.
        expected: u64,
        /// Where the batch began.
        given: u64,
    },
    /// A live node holds the partition.
    #[error("partition {partition} is held by {holder}")]
    Held {
        /// Which.
        partition: Partition,
        /// By whom.
        holder: String,
    },
    /// The store can't be reached or did not answer in time; for an append the outcome is unknown.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The store holds something that can't be read.
    #[error("corrupted record: {0}")]
    Corrupted(String),
}

/// Where a shard's answers go: its mailbox.
pub type Replies = mailbox::Sender<Vec<Done>>;

/// A store. Cheap to share; it has threads of its own.
pub trait Store: Send + Sync {
    /// Hands over jobs; never blocks. Answers come to `replies`. A full intake answers `Unavailable` at once.
    fn submit(&self, jobs: Vec<Job>, replies: &Replies);
    /// "embedded" or "redis", for logs.
    fn name(&self) -> &'static str;
    /// Why this store should not be relied on now, for readiness: `None` when all is well.
    fn trouble(&self) -> Option<String> {
        None
    }
    /// Counters since the start, by name, for metrics.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
    /// Finishes what is queued, flushes and ends the threads, within `timeout`.
    fn close(&self, timeout: std::time::Duration);
}
