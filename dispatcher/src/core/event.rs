//! What can happen to a dispatcher shard. A closed enum.

use bytes::Bytes;
use millrace_protocol::ids::Partition;
use millrace_protocol::link::Record;

use crate::store::{Done, Route, View};

/// The link of one gateway shard. Its home is dispatcher shard `home(shards)`, whichever socket it came in by, so
/// that a reconnect finds what was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkKey {
    /// Gateway id, 1-4095.
    pub gateway: u16,
    /// Shard of that gateway.
    pub shard: u8,
}

impl LinkKey {
    /// The dispatcher shard that keeps this link.
    pub fn home(self, shards: usize) -> usize {
        (usize::from(self.gateway) * 31 + usize::from(self.shard)) % shards.max(1)
    }
}

/// One thing that happened.
#[derive(Debug)]
pub enum Event {
    /// A gateway shard connected; the shell read its Hello to find this link's home, and passes it on as LinkBytes.
    LinkConnected {
        /// Which. An older transport of the same link is dropped.
        link: LinkKey,
    },
    /// Bytes of a link, any split.
    LinkBytes {
        /// Which.
        link: LinkKey,
        /// Zero-copy for the records that lie whole in it.
        bytes: Bytes,
    },
    /// The transport is gone. The link's state is kept for the resume time.
    LinkLost {
        /// Which.
        link: LinkKey,
    },
    /// From another shard of this process, over the bounded queue of that pair.
    Sibling(Sibling),
    /// A job of this shard was done.
    Store(Done),
    /// Ownership wants this partition claimed: fence, load, announce.
    Claim {
        /// One of this shard's (partition % shards).
        partition: Partition,
    },
    /// Ownership wants this partition handed over: stop intake, finish the batch, release the fence, tell.
    Release {
        /// One of this shard's.
        partition: Partition,
    },
    /// Who is alive: after every renewal of this node's lease.
    View(std::sync::Arc<View>),
    /// The node's lease was renewed: act as owner until then (CLOCK_BOOTTIME, margin taken off).
    LeaseUntil {
        /// Microseconds of the monotonic clock.
        until_us: u64,
    },
}

/// What shards of one process say to each other.
#[derive(Debug)]
pub enum Sibling {
    /// A record that came in by a link of the sender, for a partition of the receiver.
    FromLink {
        /// Where answers go.
        link: LinkKey,
        /// As it came.
        record: Record,
    },
    /// A record to be sent on a link that is at home at the receiver.
    ToLink {
        /// Where to.
        link: LinkKey,
        /// What.
        record: Record,
    },
    /// A link's state was dropped (its gateway's incarnation changed, or it stayed away): forget its subscriptions.
    LinkGone {
        /// Which.
        link: LinkKey,
    },
    /// A gateway said hello on a link of the sender: routes are judged by its incarnation.
    LinkUp {
        /// Which.
        link: LinkKey,
        /// The gateway's.
        incarnation: u64,
    },
    /// Shard `shard` asks when all records that it sent on links of the receiver so far are acknowledged.
    Mark {
        /// Who asks.
        shard: usize,
        /// Its number for it.
        id: u64,
    },
    /// They are.
    Marked {
        /// The asker's number.
        id: u64,
    },
    /// The sender serves a partition by this claim, or no more: what this node announces on every link.
    Serving {
        /// Which.
        partition: Partition,
        /// `None`: not served any more.
        claim: Option<Claim>,
    },
}

/// What gateways are told of a claim that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Of its fence.
    pub epoch: u64,
    /// The copy of the store that granted it.
    pub copy: u64,
}

/// A route that can be used now: its gateway's lease is live under the same incarnation.
pub fn is_live(route: &Route, view: &View) -> bool {
    view.gateways.iter().any(|g| g.gateway == route.session.gateway() && g.incarnation == route.incarnation)
}
