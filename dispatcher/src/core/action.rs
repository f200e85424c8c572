//! What a dispatcher shard wants done. The shell carries actions out in order, after the step.

use millrace_protocol::ids::Partition;

use super::event::{LinkKey, Sibling};
use crate::store::Job;

/// One thing to do.
#[derive(Debug)]
pub enum Action {
    /// Hand a job to the store; `Event::Store` follows with the same ticket.
    Store(Job),
    /// Put on the queue to another shard. If that queue is full the shell keeps it and stops reading links until it
    /// drains (backpressure reaches the gateways as missing credit).
    Sibling {
        /// Index of the shard.
        shard: usize,
        /// What.
        message: Sibling,
    },
    /// Drop the transport of a link (a protocol error); the gateway reconnects.
    ResetLink {
        /// Which.
        link: LinkKey,
        /// For the log.
        reason: String,
    },
    /// The partition is loaded and served under this epoch (for ownership, logs and metrics).
    Claimed {
        /// Which.
        partition: Partition,
        /// Under which epoch.
        epoch: u64,
    },
    /// The claim failed, or the fence was lost to another owner, or a handover is complete: it is not served here.
    NotServed {
        /// Which.
        partition: Partition,
        /// For the log.
        reason: String,
    },
}
