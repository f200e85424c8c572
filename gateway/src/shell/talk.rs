//! What the threads of a gateway say to each other, over bounded queues: the control thread to shards, and back.

use std::sync::Arc;

use millrace_edge as edge;
use tokio::sync::oneshot;

use super::auth::Keys;
use super::lease::LeaseAnswer;
use super::link::{Answer, LinkReport};
use super::logins::Counts;
use crate::core::event::{Lease, NodeKey};
use crate::core::stats::Stats;

/// Messages that wait for a shard: a few questions and a lease a second; a shard that lets so many pile up hangs.
pub const TO_SHARD_MAX: usize = 1_024;
/// Messages that wait for the control thread.
pub const TO_CONTROL_MAX: usize = 1_024;

/// To a shard.
#[derive(Debug)]
pub enum ToShard {
    /// The gateway's lease.
    Lease(Lease),
    /// Stop accepting, send everybody away, flush.
    Drain {
        /// All connections are closed by then (CLOCK_BOOTTIME).
        deadline_us: u64,
    },
    /// Check tokens against these from now on.
    Keys(Arc<Keys>),
    /// A dispatcher's name was resolved.
    Resolved(NodeKey, Answer),
    /// How are you?
    Report(oneshot::Sender<Box<Report>>),
    /// Which sessions of this user do you hold? Answered as JSON objects.
    Sessions(String, oneshot::Sender<Vec<serde_json::Value>>),
}

/// To the control thread.
#[derive(Debug)]
pub enum ToControl {
    /// The dispatchers answered a renewal.
    Lease(LeaseAnswer),
    /// That shard has no connection left, and has flushed its links.
    Drained(u8),
    /// That shard can't go on.
    Failed(u8, String),
}

/// The state of a shard.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which.
    pub shard: u8,
    /// The core's counters.
    pub core: Stats,
    /// The sockets' counters.
    pub edge: edge::Stats,
    /// How the sockets are divided.
    pub shape: edge::Shape,
    /// The credential checks.
    pub logins: Counts,
    /// Tokens waiting for their check.
    pub logins_waiting: u64,
    /// The links.
    pub links: Vec<LinkReport>,
    /// Turns of the pump.
    pub turns: u64,
    /// Turns after which it napped.
    pub naps: u64,
    /// Time spent in turns, in microseconds.
    pub busy_us: u64,
    /// The longest turn, in microseconds.
    pub turn_us_max: u64,
    /// Lease live, every partition owned, not draining.
    pub ready: bool,
    /// Logins may be taken.
    pub lease_live: bool,
}
