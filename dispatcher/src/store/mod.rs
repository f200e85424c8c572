//! What is kept: logs, groups, fences, routes and leases, behind one trait.
//!
//! A shard hands [`Job`]s to the store's own threads and gets a [`Done`] with the same ticket back. Two
//! implementations keep the same promises, checked by one suite: embedded (fjall, group commit, fsync before the
//! answer; routes and leases in memory) and Redis.
//!
//! # Promises
//! 1. An [`Work::Append`] is all or nothing, and durable when it is answered [`Outcome::Appended`]: [`Durability`] says
//!    what that means.
//! 2. It is refused [`StoreError::Fenced`] unless its fence is the partition's current one and was granted by this copy of
//!    the store, and [`StoreError::Position`] unless it begins at the partition's next position: a paused owner can write
//!    nothing, not even where its successor's claim was lost, and an append whose outcome was unknown is found out. What is
//!    read under a fence is refused likewise, so that nobody takes for one store what two copies have.
//! 3. A claim's epoch is greater than every earlier one, also over an emptied store (it goes by the clock) and over one that
//!    lost what a former primary had (it steps over that).
//! 4. Jobs of one partition from one shard are carried out in order. Jobs of different partitions are not ordered.
//!    (A load may be overtaken by later jobs: nothing is written to a conversation before it is loaded, and one whose
//!    fence was lost meanwhile is answered Fenced. Routes and leases may overtake what is queued for the log;
//!    [`Outcome::UserItemsDone`] is the moment from which every registration sees the group.)
//! 5. Registrations of one user by one shard are carried out in order, and none under a claim that was lost.
//! 6. A store that can't be reached answers [`StoreError::Unavailable`]; nothing waits without bound.

mod durability;
pub mod embedded;
mod intake;
mod job;
mod kept;
mod losers;
pub mod model;
mod pack;
mod policy;
mod record;
pub mod redis;
mod remembered;

use millrace_edge::mailbox;
use millrace_protocol::ids::Partition;

pub use self::durability::{ASYNC_SYNC_MS, Durability, REPLICAS_MAX};
pub use self::job::{Batch, Done, Job, Loaded, Outcome, Work, Write};
pub use self::kept::{
    Answer, Change, Cursor, CursorsOf, Entry, Event, EventId, Gateway, List, Node, Registration, Route,
    StreamKey, UserItem, View,
};

/// What a writer must hold: the epoch of its claim, and the random nonce that tells two claims of one epoch apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Grows with every claim.
    pub epoch: u64,
    /// Drawn by the store at the claim.
    pub nonce: u64,
}

/// Where a new partition's positions begin, so that all events come after 0.
pub const FIRST_POSITION: u64 = 1;

/// Answers of one stream in one conversation that are kept: as many messages as a client may have in flight.
pub const ANSWERS_MAX: usize = 64;

/// Entries of a log whose answers it has alone, at most, after a batch. They are read with a stream's answers; the answers
/// of older ones are filed by stream.
pub const UNFILED_MAX: u64 = 64;

/// How long they are kept at least, after the stream's last message there.
pub const ANSWERS_DAYS: u64 = 7;

/// The first epoch that a copy of the store gives in a partition lies so far ahead of its clock, ms: above all that the copy
/// before it gave and lost, though the clocks of two Redis servers differ by so much.
pub const COPY_STEP_MS: u64 = 60_000;

/// Sessions that a claim tells to have lost their place at most. Further ones are told when their user logs in, or at the
/// next claim.
pub const LOSERS_TOLD_MAX: usize = 10_000;

/// Streams of one device in one conversation that are kept: the newest ones.
pub const STREAMS_PER_DEVICE_MAX: usize = 8;

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The fence is not the current one: another owner has claimed the partition, the store was emptied, or another copy of
    /// it has taken over since the claim.
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
