//! What is kept: logs, groups, fences, routes and leases, behind one trait.
//!
//! A shard hands [`Job`]s to the store's own threads and gets a [`Done`] with the same ticket back. Two
//! implementations keep the same promises, checked by one suite: embedded (fjall, group commit, fsync before the
//! answer; routes and leases in memory) and Redis.
//!
//! # Promises
//! 1. An [`Job::Append`] is all or nothing, and durable when it is answered [`Outcome::Appended`].
//! 2. It is refused [`StoreError::Fenced`] unless its fence is the partition's current one, and
//!    [`StoreError::Position`] unless it begins at the partition's next position: a paused owner can write nothing,
//!    and an append whose outcome was unknown is found out.
//! 3. A claim's epoch is greater than every earlier one, also over an emptied store (it takes the wall clock).
//! 4. Jobs of one partition from one shard are carried out in order. Jobs of different partitions are not ordered.
//!    (A load may be overtaken by later jobs: nothing is written to a conversation before it is loaded, and one whose
//!    fence was lost meanwhile is answered Fenced. Routes and leases may overtake what is queued for the log; [`Outcome::UserGroupsDone`] is the moment from which
//!    every registration sees the group.)
//! 5. A store that can't be reached answers [`StoreError::Unavailable`]; nothing waits without bound.

pub mod embedded;
mod intake;
mod policy;
mod record;
pub mod redis;

use std::sync::Arc;

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
    /// Head, membership and the newest answers of one conversation, read under the fence.
    Load {
        /// Which partition.
        partition: Partition,
        /// Must be the current one.
        fence: Fence,
        /// Conversation id.
        conversation: String,
    },
    /// Entries of a conversation with `after < seq <= through`, at most `limit_bytes` (at least one entry).
    Read {
        /// Which partition.
        partition: Partition,
        /// Conversation id.
        conversation: String,
        /// Exclusive.
        after: u64,
        /// Inclusive.
        through: u64,
        /// Bytes of bodies to stop at.
        limit_bytes: usize,
    },
    /// Adds or removes a group in users' lists of groups; idempotent, needs no fence. `true` adds.
    UserGroups {
        /// (user, add) pairs; each user's list lives in its own partition.
        users: Vec<String>,
        /// The group's conversation id.
        group: String,
        /// Adds, else removes.
        add: bool,
    },
    /// Registers one session on its user's key: see [`Outcome::Registered`].
    Register(Registration),
    /// Removes a route if device, session's incarnation and login number are still those. Not fenced.
    Unregister {
        /// Whose.
        user: String,
        /// Which device.
        device: String,
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
    /// Renews this node's lease and reads the whole view.
    Heartbeat {
        /// This node.
        node: Node,
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
    /// Renews a gateway's lease. Refused while another incarnation than these two holds it.
    GatewayLease {
        /// Gateway id.
        gateway: u16,
        /// Its incarnation.
        incarnation: u64,
        /// The same process's previous incarnation, which loses a lease that it still has; 0: there is none.
        replaces: u64,
        /// Length of the lease.
        ttl_ms: u32,
    },
}

/// One batch of one partition: checked whole before its first write.
#[derive(Debug)]
pub struct Batch {
    /// Which partition.
    pub partition: Partition,
    /// Must be the current one.
    pub fence: Fence,
    /// The position that the first write takes; every write takes one.
    pub position: u64,
    /// In order.
    pub writes: Vec<Write>,
}

/// One write of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Appends a message to its conversation's log.
    Message(Entry),
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
    /// Who sent it.
    pub sender: String,
    /// From which device.
    pub device: String,
    /// The sender's stream and number in it: a repeat is found by them.
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
    /// This node's lease was not there although it held one: the store was emptied, or the lease lapsed.
    pub was_missing: bool,
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
    },
    /// The partition is given up.
    Released,
    /// The batch is durable.
    Appended,
    /// A conversation.
    Loaded(Loaded),
    /// Entries, in order, and the lowest seq that the log holds.
    Entries {
        /// In order of seq.
        entries: Vec<Entry>,
        /// Lowest seq kept (1 if nothing was trimmed).
        first_seq: u64,
    },
    /// Users' lists were changed.
    UserGroupsDone,
    /// The session is registered.
    Registered {
        /// Its number.
        login_number: u64,
        /// It lost to a session with a higher number: it must be closed.
        lost: bool,
        /// Sessions that lost to it.
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
        /// Else another process holds this id.
        granted: bool,
        /// This incarnation had none before.
        was_missing: bool,
    },
}

/// A conversation as a new owner finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Highest seq; 0 if nothing was ever written.
    pub head: u64,
    /// Groups: members and membership version; `None` if there is no such group.
    pub members: Option<(Vec<String>, u64)>,
    /// The newest entries, oldest first, at most [`RECENT_ENTRIES`]: enough to answer repeats.
    pub recent: Vec<Entry>,
}

/// Entries that [`Work::Load`] returns at most: the window in which a repeat is recognised after a takeover.
pub const RECENT_ENTRIES: usize = 64;

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
