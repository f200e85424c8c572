//! One end of a link, sans-IO and the same on both sides.
//!
//! It says hello, numbers records, keeps them until the peer acknowledges them, sends them again after a reconnect,
//! and grants and spends credit in bytes. It knows no socket: the shell tells it when the transport is up or down,
//! hands it received bytes, and sends what [`LinkEnd::transmit`] gives. What records mean is the cores' business.
//!
//! The rule that keeps it right: numbering is bound to the pair of incarnations. Only when both ends still hold the
//! other's state does a new connection continue; in every other case numbers start at 1 again, what was not
//! acknowledged is handed back as lost, and [`LinkEvent::Up`] says `fresh`.

use bytes::Bytes;
use thiserror::Error;

use crate::link::record::{Kind, Record};
use crate::messages::link::Hello;

/// The link protocol spoken here; a peer with another one is refused.
pub const LINK_VERSION: u32 = 1;

/// What one end of a link holds at most.
#[derive(Clone, Copy, Debug)]
pub struct LinkLimits {
    /// Bytes of records that the peer may have unacknowledged towards this end (told in the hello), and, until the
    /// peer has told its own, that may be queued here.
    pub window_bytes: u64,
    /// Bytes after which a batch is closed and the next one begun, so that one send stays of bounded size.
    pub batch_bytes_max: usize,
}

impl Default for LinkLimits {
    fn default() -> Self {
        LinkLimits { window_bytes: 8 << 20, batch_bytes_max: 256 << 10 }
    }
}

/// Why a link cannot go on. The shell drops the connection, logs it and connects again with backoff.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LinkError {
    #[error("the peer belongs to cluster {theirs:?}, this process to {ours:?}: check both configurations")]
    Cluster { ours: String, theirs: String },
    #[error("the peer speaks link version {theirs}, this process {ours}: run the same release on both")]
    Version { ours: u32, theirs: u32 },
    #[error(
        "the peer counts {theirs} partitions, this process {ours}: the number is fixed when a cluster is created"
    )]
    Partitions { ours: u32, theirs: u32 },
    #[error("the first record of a connection is {0:?}, not Hello")]
    HelloExpected(Kind),
    #[error("a record of {length} bytes, header included; 32 to {max} are allowed")]
    Length { length: usize, max: usize },
    #[error("a record of unknown kind {0}")]
    UnknownKind(u8),
    #[error("the body of a {0:?} record cannot be read")]
    Body(Kind),
    #[error("record number {found} came where {expected} was due: records are missing")]
    Missing { expected: u64, found: u64 },
    #[error("a {0:?} record with a number, or a data record without one")]
    Numbering(Kind),
    #[error("the peer acknowledged record {acknowledged}, of which only {sent} were sent")]
    Acknowledged { acknowledged: u64, sent: u64 },
    #[error("the peer sent {held} bytes beyond what was acknowledged, over the window of {window}")]
    Overrun { held: u64, window: u64 },
}

/// What [`LinkEnd::poll`] gives.
#[derive(Clone, Debug, PartialEq)]
pub enum LinkEvent {
    /// The peer said hello: records flow. Always before the first record of a connection.
    Up {
        /// Its hello.
        peer: Hello,
        /// Either incarnation is not what it was at the last `Up` (or this is the first): state about the peer must
        /// be dropped and built again. Else the link goes on where it broke off.
        fresh: bool,
    },
    /// A record of the peer, in order, once.
    Record(Record),
    /// A record queued here that was never acknowledged, handed back because an incarnation changed. It may or may
    /// not have been handled. All of these come before the `Up { fresh: true }` that they belong to.
    Lost(Record),
}

/// The peer's window is full: the record comes back.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no credit on the link")]
pub struct NoCredit(pub Record);

/// One end of a link.
#[derive(Debug)]
pub struct LinkEnd {
    identity: Hello,
    limits: LinkLimits,
    up: bool,
}

impl LinkEnd {
    /// An end that is not connected. `identity` needs cluster, role, gateway, shard, node, incarnation and
    /// partitions; the other fields are filled in here.
    pub fn new(identity: Hello, limits: LinkLimits) -> Self {
        LinkEnd { identity, limits, up: false }
    }

    /// The transport is up: the hello goes first.
    pub fn connected(&mut self) {}

    /// The transport is gone. Unacknowledged records stay for the next connection; received records that were not
    /// polled yet are dropped here and sent again by the peer.
    pub fn disconnected(&mut self) {
        self.up = false;
    }

    /// Takes received bytes, cut anywhere. Bodies of records that lie whole in `bytes` are slices of it. On an error
    /// the connection is useless: drop it, call [`LinkEnd::disconnected`].
    pub fn receive(&mut self, bytes: Bytes) -> Result<(), LinkError> {
        drop(bytes);
        Ok(())
    }

    /// The next event; call until `None`. A record counts as received, for acknowledgement, when it was given here.
    pub fn poll(&mut self) -> Option<LinkEvent> {
        None
    }

    /// Numbers a record and keeps it until it is acknowledged, connected or not.
    ///
    /// # Panics
    /// When the record is larger than [`RECORD_BYTES_MAX`](crate::link::record::RECORD_BYTES_MAX), or a Hello or Ack.
    pub fn queue(&mut self, record: Record) -> Result<(), NoCredit> {
        Err(NoCredit(record))
    }

    /// Bytes of records, headers included, that [`LinkEnd::queue`] still takes.
    pub fn credit_bytes(&self) -> u64 {
        self.limits.window_bytes
    }

    /// The next bytes to send, in order; call until `None`, then again after events. Everything queued since the last
    /// call comes as one batch (up to `batch_bytes_max`), an acknowledgement with it if one is due.
    pub fn transmit(&mut self) -> Option<Bytes> {
        None
    }

    /// Records were taken in that the peer doesn't know of yet.
    pub fn needs_ack(&self) -> bool {
        false
    }

    /// The next [`LinkEnd::transmit`] acknowledges whatever was taken in, even with nothing else to send. For the end
    /// of a turn; below a quarter of the window acknowledgements otherwise wait for data to ride with.
    pub fn ack_now(&mut self) {}

    /// This process took a new incarnation. What is unacknowledged comes back as [`LinkEvent::Lost`]; a connected end
    /// says hello again and is not up until the peer answers it.
    pub fn set_incarnation(&mut self, incarnation: u64) {
        self.identity.incarnation = incarnation;
    }

    /// Whether both hellos of the present connection were exchanged.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Bytes of records queued or sent and not yet acknowledged.
    pub fn unacknowledged_bytes(&self) -> u64 {
        0
    }
}
