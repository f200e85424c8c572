//! What can happen to a shard. A closed enum, so that the compiler finds every place where a new one must be handled.

use std::net::IpAddr;

use bytes::Bytes;
use millrace_protocol::messages::client::Code;

/// One connection of this shard's edge: a slot, and how often that slot had been used before (modulo 2^20).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Conn {
    /// Index into the slab.
    pub slot: u32,
    /// Tells apart the connections that used the slot.
    pub generation: u32,
}

/// A dispatcher node as this shard knows it: an index that is never used twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeKey(pub u32);

/// One thing that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A client connected. Its login deadline starts now.
    Accepted {
        /// Its slot is free until now.
        conn: Conn,
        /// For logs and per-address budgets.
        peer: IpAddr,
    },
    /// Bytes arrived; they may be changed in place (WebSocket unmask) and are gone after the step.
    Received {
        /// From whom.
        conn: Conn,
        /// In order, any split.
        bytes: &'a mut [u8],
    },
    /// The one send in flight was taken whole by the kernel.
    Sent {
        /// To whom.
        conn: Conn,
    },
    /// The connection is gone, whoever ended it; its slot may be used again.
    Closed {
        /// Which.
        conn: Conn,
    },
    /// The answer to [`super::action::Action::Verify`].
    Verified {
        /// Whose login.
        conn: Conn,
        /// Who it is, or why not.
        verdict: Result<Identity, Refusal>,
    },
    /// A transport to a node is up (the link's hello comes next).
    LinkConnected {
        /// Which node.
        node: NodeKey,
    },
    /// Bytes from a node, any split.
    LinkBytes {
        /// Which node.
        node: NodeKey,
        /// Zero-copy for the records that lie whole in it.
        bytes: Bytes,
    },
    /// The transport to a node is gone; the shell tries again by itself, with jittered backoff.
    LinkLost {
        /// Which node.
        node: NodeKey,
    },
    /// The state of this gateway's lease, from the shell: shard 0's core obtains it, all shards are told.
    Lease(Lease),
    /// Stop taking logins, tell every client GoAway with a spread-out retry_after, flush and close them.
    Drain {
        /// All connections are closed by then, on the monotonic clock.
        deadline_us: u64,
    },
}

/// Who a client proved to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `sub` of the token, or the user of the resume ticket.
    pub user: String,
    /// When the credential expires (wall clock, ms since 1970); a ticket never outlives its token.
    pub expires_wall_ms: u64,
    /// 0 for a token; the number under which the session was registered for a resume ticket.
    pub login_number: u64,
}

/// Why something was refused, in the client's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the client acts on.
    pub code: Code,
    /// For people.
    pub reason: String,
    /// 0: no use in trying again unchanged.
    pub retry_after_ms: u32,
}

/// The lease of this gateway process, as told to every shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Routes are registered under it. A new one: register every session again, at a bounded rate.
    pub incarnation: u64,
    /// CLOCK_BOOTTIME until which logins may be accepted (counted from before the renewal was sent, less a margin).
    pub until_us: u64,
    /// The store's name for it, from when it was granted until it is lost; 0: it was not granted yet.
    pub grant: u64,
}
