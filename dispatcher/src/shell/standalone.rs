//! A dispatcher inside a gateway's process, on the embedded store: a cluster of one, without sockets.
//!
//! Gateway shards connect with [`Standalone::connect`] and exchange the same bytes as over TCP, through bounded queues.
//! What a full queue does not take is kept by the sender and tried again; the link's window bounds how much that is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace_edge::mailbox::{Sender, mailbox};
use millrace_protocol::ids::{PARTITIONS_MAX, Partition};

use super::feed;
use super::limits;
use super::node::{Node, NodeConfig, StartError, draw_incarnation};
use super::shard::Command;
use crate::core::event::LinkKey;
use crate::core::limits::Limits;
use crate::store::{EventId, Node as Member, Store, StoreError};

/// How to start a dispatcher within this process.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the store keeps its files; made if it is not there. Locked while this runs.
    pub data_dir: PathBuf,
    /// Name of the cluster, as in the gateway's hello.
    pub cluster: String,
    /// Slices of the key space, 1 to 1024: fixed when the directory is first used.
    pub partitions: u16,
    /// Shard threads, at least 1.
    pub shards: usize,
    /// Bytes of unacknowledged records per link and direction.
    pub link_window_bytes: u64,
    /// What messages may do: [`super::policies`].
    pub limits: Limits,
    /// Events for the business behind that each partition keeps, about; 0: there are none.
    pub events_max: u64,
}

impl Settings {
    /// The defaults, with this directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Settings {
            data_dir: data_dir.into(),
            cluster: "millrace".into(),
            partitions: PARTITIONS_MAX,
            shards: 1,
            link_window_bytes: limits::LINK_WINDOW_BYTES,
            limits: Limits::default(),
            events_max: 0,
        }
    }
}

/// A dispatcher that runs in this process. Dropping it leaves it running: call [`Standalone::stop`].
pub struct Standalone {
    node: Node,
    store: Arc<dyn Store>,
}

/// Name of the one node of a standalone process.
pub const NODE_NAME: &str = "standalone";

/// Starts one.
///
/// # Errors
/// The directory is locked by another process or can't be read, or threads or descriptors ran out.
pub fn start(settings: Settings) -> Result<Standalone, StartError> {
    let store = super::stores::embedded(&settings.data_dir, settings.partitions, settings.events_max)?;
    let config = NodeConfig {
        member: Member { name: NODE_NAME.into(), address: String::new(), incarnation: draw_incarnation()? },
        cluster: settings.cluster,
        partitions: settings.partitions.clamp(1, PARTITIONS_MAX),
        shards: settings.shards.clamp(1, limits::SHARDS_MAX),
        lease_ttl_ms: limits::LEASE_TTL_MS,
        lease_renew_ms: limits::LEASE_RENEW_MS,
        link_window_bytes: settings.link_window_bytes,
        sibling_queue: limits::SIBLING_QUEUE,
        limits: settings.limits,
    };
    let node = Node::start(config, Arc::clone(&store), None)?;
    Ok(Standalone { node, store })
}

impl Standalone {
    /// Connects a gateway shard: the answer takes what it sends, `to_gateway` gets what it receives. A newer connection
    /// of the same shard replaces the older one. The connection is lost when either queue's other end is gone.
    pub fn connect(&self, gateway: u16, shard: u8, to_gateway: Sender<Bytes>) -> Sender<Bytes> {
        let link = LinkKey { gateway, shard };
        let shards = &self.node.shards;
        let (to_dispatcher, from_gateway) = mailbox(limits::PIPE_BATCHES, shards.home_waker(link).clone());
        // When the shard's queue is full (or it is gone) both queues close here: the gateway connects again.
        drop(shards.home(link).send(Command::Pipe { link, from_gateway, to_gateway }));
        to_dispatcher
    }

    /// Why it can't be relied on now, if so: for the gateway's readiness.
    pub fn trouble(&self) -> Option<String> {
        self.store.trouble()
    }

    /// Counters of the store, for the gateway's metrics.
    pub fn store_counters(&self) -> Vec<(&'static str, u64)> {
        self.store.counters()
    }

    /// Events as JSON ([`feed`]): the newest of each partition, or a page of one partition's after an id. Waits for the
    /// store, a second at most.
    ///
    /// # Errors
    /// The store does not answer.
    pub fn events(&self, of: Option<(Partition, EventId)>) -> Result<String, StoreError> {
        let events = match of {
            None => feed::heads(&*self.store),
            Some((partition, after)) => feed::page(&*self.store, partition, after),
        };
        events.map(|json| json.to_string())
    }

    /// Finishes what is under way, closes the store and ends all threads, within about `timeout`.
    pub fn stop(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        // The store closes after the last shard has handed it its last batch.
        self.node.stop(timeout.mul_f32(0.7));
        self.store.close(deadline.saturating_duration_since(Instant::now()));
    }
}
