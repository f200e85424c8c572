//! One end of a link, sans-IO and the same on both sides.
//!
//! It says hello, numbers records, keeps them until the peer acknowledges them, sends them again after a reconnect,
//! and grants and spends credit in bytes. It knows no socket: the shell tells it when the transport is up or down,
//! hands it received bytes, and sends what [`LinkEnd::transmit`] gives. What records mean is the cores' business.
//!
//! The rule that keeps it right: numbering is bound to the pair of incarnations. Only when both ends still hold the
//! other's state does a new connection continue; in every other case numbers start at 1 again, what was not
//! acknowledged is handed back as lost, and [`LinkEvent::Up`] says `fresh`.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use prost::Message;
use thiserror::Error;

use crate::ids::SessionId;
use crate::link::outgoing::Outgoing;
use crate::link::record::{HEADER_BYTES, Header, Kind, RECORD_BYTES_MAX, Record};
use crate::messages::link::{Ack, Hello};
use crate::planted::{self, Fault};

/// The link protocol spoken here; a peer with another one is refused.
pub const LINK_VERSION: u32 = 2;

/// Bytes of records that may be queued before the peer told its window: no more than what any peer tolerates above
/// its own.
const FIRST_WINDOW_BYTES: u64 = RECORD_BYTES_MAX as u64;

/// What one end of a link holds at most.
#[derive(Clone, Copy, Debug)]
pub struct LinkLimits {
    /// Bytes of records that the peer may have unacknowledged towards this end; it is told in the hello. Until the
    /// peer has told its own, as much (but at most 1 MiB) may be queued here.
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
    connected: bool,
    up: bool,
    /// On this connection. The end is up while it has as many of the peer's as it said itself.
    hellos_sent: u32,
    hellos_received: u32,
    /// Encoded hellos that are still to be transmitted.
    hello_out: BytesMut,
    /// 0: never up since this end was made, or since it took a new incarnation.
    peer_incarnation: u64,
    peer_window_bytes: u64,
    outgoing: Outgoing,
    incoming: Incoming,
    events: VecDeque<LinkEvent>,
    ack_now: bool,
}

/// Records from the peer.
#[derive(Debug, Default)]
struct Incoming {
    /// The start of a record of which the rest is still to come.
    partial: BytesMut,
    /// The highest number read, and the highest given out by `poll`.
    received: u64,
    taken: u64,
    /// Read and not given out; given out and not acknowledged.
    held_bytes: u64,
    taken_bytes: u64,
}

impl LinkEnd {
    /// An end that is not connected. `identity` needs cluster, role, gateway, shard, node, incarnation (not 0) and
    /// partitions; the other fields are filled in here.
    pub fn new(identity: Hello, limits: LinkLimits) -> Self {
        debug_assert_ne!(identity.incarnation, 0, "0 means that a peer was never seen");
        LinkEnd {
            identity: Hello { version: LINK_VERSION, window_bytes: limits.window_bytes, ..identity },
            limits,
            connected: false,
            up: false,
            hellos_sent: 0,
            hellos_received: 0,
            hello_out: BytesMut::new(),
            peer_incarnation: 0,
            peer_window_bytes: limits.window_bytes.min(FIRST_WINDOW_BYTES),
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
            events: VecDeque::new(),
            ack_now: false,
        }
    }

    /// The transport is up: the hello goes first.
    pub fn connected(&mut self) {
        self.disconnected();
        self.connected = true;
        self.say_hello();
    }

    /// The transport is gone. Unacknowledged records stay for the next connection; received records that were not
    /// polled yet are dropped here and sent again by the peer.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.up = false;
        self.hellos_sent = 0;
        self.hellos_received = 0;
        self.hello_out.clear();
        self.outgoing.rewind();
        self.incoming.partial.clear();
        self.ack_now = false;
        self.drop_unpolled();
    }

    /// Takes received bytes, cut anywhere. Bodies of records that lie whole in `bytes` are slices of it, and hold all
    /// of it in memory: copy what is kept for long. On an error
    /// the connection is useless: drop it, call [`LinkEnd::disconnected`].
    pub fn receive(&mut self, mut bytes: Bytes) -> Result<(), LinkError> {
        if !self.connected {
            return Ok(());
        }
        while !bytes.is_empty() {
            let partial = &mut self.incoming.partial;
            if partial.is_empty() && bytes.len() >= HEADER_BYTES {
                let length = record_length(&bytes)?;
                if bytes.len() >= length {
                    let record = bytes.split_to(length);
                    self.take(record)?;
                    continue;
                }
                partial.reserve(length);
            }
            let wanted = if partial.len() < HEADER_BYTES { HEADER_BYTES } else { record_length(partial)? };
            let more = bytes.split_to(bytes.len().min(wanted - partial.len()));
            partial.extend_from_slice(&more);
            if partial.len() >= HEADER_BYTES && partial.len() == record_length(partial)? {
                let record = partial.split().freeze();
                self.take(record)?;
            }
        }
        Ok(())
    }

    /// The next event; call until `None`. A record counts as received, for acknowledgement, when it was given here.
    pub fn poll(&mut self) -> Option<LinkEvent> {
        let event = self.events.pop_front()?;
        if let LinkEvent::Record(record) = &event {
            self.incoming.taken += 1;
            self.incoming.taken_bytes += record.size_bytes() as u64;
            self.incoming.held_bytes -= record.size_bytes() as u64;
        }
        Some(event)
    }

    /// Numbers a record and keeps it until it is acknowledged, connected or not. It is taken when it fits in the
    /// credit, or when nothing at all is unacknowledged.
    ///
    /// # Panics
    /// When the record is larger than [`RECORD_BYTES_MAX`], or a Hello or Ack.
    pub fn queue(&mut self, record: Record) -> Result<(), NoCredit> {
        let size = record.size_bytes();
        assert!(size <= RECORD_BYTES_MAX, "a {:?} record of {size} bytes", record.kind);
        assert!(!is_control(record.kind), "{:?} is the link's own", record.kind);
        if size as u64 > self.credit_bytes() && self.outgoing.kept_bytes() > 0 {
            return Err(NoCredit(record));
        }
        self.outgoing.push(&record, self.limits.batch_bytes_max);
        Ok(())
    }

    /// Bytes of records, headers included, that [`LinkEnd::queue`] still takes.
    pub fn credit_bytes(&self) -> u64 {
        self.peer_window_bytes.saturating_sub(self.outgoing.kept_bytes())
    }

    /// The next bytes to send, in order; call until `None`, then again after events. Everything queued since the last
    /// call comes as one batch (up to `batch_bytes_max`), an acknowledgement with it if one is due.
    pub fn transmit(&mut self) -> Option<Bytes> {
        if !self.hello_out.is_empty() {
            return Some(self.hello_out.split().freeze());
        }
        if !self.up {
            return None;
        }
        if let Some(batch) = self.outgoing.next_closed_batch() {
            return Some(batch);
        }
        let records_bytes = self.outgoing.pending_bytes();
        let due = self.ack_now || self.incoming.taken_bytes >= self.limits.window_bytes / 4;
        if self.needs_ack() && (due || records_bytes > 0) {
            self.acknowledge_taken();
        }
        self.outgoing.close_batch(records_bytes)
    }

    /// Records were taken in that the peer doesn't know of yet.
    pub fn needs_ack(&self) -> bool {
        self.up && self.incoming.taken_bytes > 0
    }

    /// The next [`LinkEnd::transmit`] acknowledges whatever was taken in, even with nothing else to send. For the end
    /// of a turn; below a quarter of the window acknowledgements otherwise wait for data to ride with.
    pub fn ack_now(&mut self) {
        self.ack_now = true;
    }

    /// This process took a new incarnation. What is unacknowledged comes back as [`LinkEvent::Lost`]; a connected end
    /// says hello again and is not up until the peer answers it.
    pub fn set_incarnation(&mut self, incarnation: u64) {
        self.identity.incarnation = incarnation;
        self.lose_all();
        self.forget_peer();
        self.peer_incarnation = 0;
        self.up = false;
        if self.connected {
            self.say_hello();
        }
    }

    /// Whether both hellos of the present connection were exchanged.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Bytes of records queued or sent and not yet acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.outgoing.kept()
    }

    /// Bytes of them.
    pub fn unacknowledged_bytes(&self) -> u64 {
        self.outgoing.kept_bytes()
    }

    /// Encodes what is known now: the peer decides by it whether the link goes on.
    fn say_hello(&mut self) {
        let hello = Hello {
            peer_incarnation: self.peer_incarnation,
            received: self.incoming.taken,
            ..self.identity.clone()
        };
        encode_control(Kind::Hello, &hello, &mut self.hello_out);
        self.hellos_sent += 1;
        self.incoming.taken_bytes = 0;
    }

    fn acknowledge_taken(&mut self) {
        encode_control(Kind::Ack, &Ack { number: self.incoming.taken }, self.outgoing.pending());
        self.incoming.taken_bytes = 0;
        self.ack_now = false;
    }

    fn take(&mut self, bytes: Bytes) -> Result<(), LinkError> {
        let header = Header::read(&bytes);
        let kind = Kind::from_byte(header.kind).ok_or(LinkError::UnknownKind(header.kind))?;
        if is_control(kind) != (header.number == 0) {
            return Err(LinkError::Numbering(kind));
        }
        if self.hellos_received == 0 && kind != Kind::Hello {
            return Err(LinkError::HelloExpected(kind));
        }
        let body = bytes.slice(HEADER_BYTES..);
        match kind {
            Kind::Hello => self.take_hello(Hello::decode(body).map_err(|_| LinkError::Body(kind))?),
            // An answer to a hello that this end has since replaced: meant for its former incarnation.
            _ if !self.up => Ok(()),
            Kind::Ack => {
                let ack = Ack::decode(body).map_err(|_| LinkError::Body(kind))?;
                self.outgoing.acknowledge(ack.number)
            }
            _ => self.take_record(header, kind, body),
        }
    }

    fn take_record(&mut self, header: Header, kind: Kind, body: Bytes) -> Result<(), LinkError> {
        let expected = self.incoming.received + 1;
        if header.number < expected {
            return Ok(());
        }
        if header.number > expected {
            return Err(LinkError::Missing { expected, found: header.number });
        }
        let record = header.record(kind, body);
        let incoming = &mut self.incoming;
        incoming.held_bytes += record.size_bytes() as u64;
        let (held, window) = (incoming.held_bytes + incoming.taken_bytes, self.limits.window_bytes);
        // The slack covers what a peer queues before it knows the window, and one record above a tiny window.
        if held > window + RECORD_BYTES_MAX as u64 {
            return Err(LinkError::Overrun { held, window });
        }
        incoming.received = expected;
        self.events.push_back(LinkEvent::Record(record));
        Ok(())
    }

    fn take_hello(&mut self, peer: Hello) -> Result<(), LinkError> {
        self.check_hello(&peer)?;
        self.hellos_received += 1;
        if self.hellos_received < self.hellos_sent {
            return Ok(());
        }
        let goes_on =
            self.peer_incarnation == peer.incarnation && peer.peer_incarnation == self.identity.incarnation;
        let goes_on = goes_on || planted::is(Fault::HelloNotBound) && self.peer_incarnation != 0;
        if goes_on {
            self.outgoing.acknowledge(peer.received)?;
        } else {
            // Before the first Up, what is queued was meant for whoever answers.
            if self.peer_incarnation != 0 {
                self.lose_all();
            }
            self.forget_peer();
        }
        self.peer_incarnation = peer.incarnation;
        self.peer_window_bytes = peer.window_bytes;
        if self.hellos_received > self.hellos_sent {
            self.say_hello();
        }
        self.up = true;
        self.events.push_back(LinkEvent::Up { peer, fresh: !goes_on });
        Ok(())
    }

    fn check_hello(&self, peer: &Hello) -> Result<(), LinkError> {
        let ours = &self.identity;
        if peer.version != ours.version {
            return Err(LinkError::Version { ours: ours.version, theirs: peer.version });
        }
        if peer.cluster != ours.cluster {
            return Err(LinkError::Cluster { ours: ours.cluster.clone(), theirs: peer.cluster.clone() });
        }
        if peer.partitions != ours.partitions {
            return Err(LinkError::Partitions { ours: ours.partitions, theirs: peer.partitions });
        }
        if peer.incarnation == 0 {
            return Err(LinkError::Body(Kind::Hello));
        }
        Ok(())
    }

    /// Hands back everything unacknowledged and numbers from 1 again.
    fn lose_all(&mut self) {
        for record in self.outgoing.drain() {
            self.events.push_back(LinkEvent::Lost(record));
        }
    }

    /// Numbers from the peer start at 1 again; its records that were not polled are void.
    fn forget_peer(&mut self) {
        self.drop_unpolled();
        self.incoming.received = 0;
        self.incoming.taken = 0;
        self.incoming.taken_bytes = 0;
    }

    fn drop_unpolled(&mut self) {
        self.events.retain(|event| !matches!(event, LinkEvent::Record(_)));
        self.incoming.received = self.incoming.taken;
        self.incoming.held_bytes = 0;
    }
}

fn is_control(kind: Kind) -> bool {
    matches!(kind, Kind::Hello | Kind::Ack)
}

fn encode_control(kind: Kind, message: &impl Message, out: &mut BytesMut) {
    let body = Bytes::from(message.encode_to_vec());
    let record = Record { kind, partition: 0, epoch: 0, session: SessionId::NONE, body };
    Header::of(&record, 0).write(out);
    out.extend_from_slice(&record.body);
}

/// The length of the record whose header `bytes` begin with, checked.
fn record_length(bytes: &[u8]) -> Result<usize, LinkError> {
    let length = Header::read(bytes).length as usize;
    if !(HEADER_BYTES..=RECORD_BYTES_MAX).contains(&length) {
        return Err(LinkError::Length { length, max: RECORD_BYTES_MAX });
    }
    Ok(length)
}
