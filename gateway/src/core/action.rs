//! What a shard wants done. The shell carries actions out in order, after the step.

use std::rc::Rc;

use super::event::{Conn, NodeKey};

/// Bytes to send. At most one send per connection is in flight: the outbox sees to that.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Bytes shared by many receivers, from `start` on.
    Shared {
        /// The frame with all its prefixes.
        bytes: Rc<[u8]>,
        /// First byte to send.
        start: u32,
    },
    /// Bytes of this receiver alone.
    Owned(Vec<u8>),
}

/// How a client wants to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A signed JWT, checked under a budget of signatures per turn.
    Token(String),
    /// A MAC of our own, checked at once. It binds user, device and platform.
    Ticket {
        /// As the client sent it.
        ticket: Vec<u8>,
        /// Must be the ticket's.
        device: String,
        /// Must be the ticket's.
        platform: String,
    },
}

/// One thing to do.
#[derive(Debug)]
pub enum Action {
    /// Send; `Event::Sent` or `Event::Closed` follows.
    Send {
        /// To whom.
        conn: Conn,
        /// What.
        payload: Payload,
    },
    /// Half-close after the send in flight, so that the peer reads everything; the core sets a deadline itself.
    Shutdown {
        /// Whom.
        conn: Conn,
    },
    /// Close now; `Event::Closed` follows.
    Close {
        /// Whom.
        conn: Conn,
    },
    /// Check a credential; `Event::Verified` follows, in this turn or a later one.
    Verify {
        /// Whose.
        conn: Conn,
        /// What to check.
        credential: Credential,
    },
    /// Keep a transport to this dispatcher node, reconnecting with jittered backoff.
    Connect {
        /// How the shard calls it from now on.
        node: NodeKey,
        /// Its name, for logs and metrics.
        name: String,
        /// `host:port`, or empty for the in-process dispatcher.
        address: String,
    },
    /// Drop the transport and stop reconnecting.
    Disconnect {
        /// Which.
        node: NodeKey,
    },
    /// The transport misbehaved (a bad hello, a gap in numbers): drop it and reconnect.
    ResetLink {
        /// Which.
        node: NodeKey,
        /// For the log.
        reason: String,
    },
    /// Shard 0 only: a LeaseAnswer came. The shell computes the new [`super::event::Lease`] and tells every shard.
    LeaseAnswer {
        /// The lease's name; 0: refused.
        grant: u64,
        /// The incarnation that was renewed.
        incarnation: u64,
        /// CLOCK_BOOTTIME from before the renewal was sent.
        sent_us: u64,
        /// Why it was refused.
        reason: String,
    },
}
