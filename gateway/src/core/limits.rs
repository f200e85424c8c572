//! What a shard takes at most, with units and reasons, and the settings that a shell hands in.
//!
//! A limit that operators may want to change is a field of [`Config`]; one that follows from the design is a constant.
//! Each has a counter in [`super::stats::Stats`] and an answer, named beside it.

use millrace_protocol::frame::PAYLOAD_BYTES_MAX;
use millrace_protocol::link::end::LinkLimits;

/// From accept to LoginAck, in milliseconds: past it LOGIN_TIMEOUT and close. Long enough for a lossy mobile network.
pub const LOGIN_DEADLINE_MS: u64 = 10_000;

/// Logins of a shard that wait for their check or their route; with so many, nobody is accepted until half of them are
/// answered. Less than a second's worth, so that all are answered long before their deadline.
pub const LOGINS_UNDER_WAY_MAX: u32 = 2_048;

/// Connections of a shard that have not logged in; with so many, nobody is accepted until half of them have or are gone. In
/// a storm clients connect faster than they get to send their logins: beyond what a shard takes in within a second or
/// two they would run into their deadline, connect again, and so on.
pub const UNAUTHENTICATED_HOLD: u32 = 4_096;

/// Requests that a connection may send behind its Login without waiting for the answer, and their bytes. They are done
/// right after LoginAck; above: LOGIN_REQUIRED.
pub const EARLY_REQUESTS_MAX: usize = 16;

/// See [`EARLY_REQUESTS_MAX`].
pub const EARLY_BYTES_MAX: usize = 4 << 10;

/// With more logins than this under way on a shard, what follows a LoginAck within [`CORK_US`] (heads of groups, the
/// answers to early requests) is sent together with it: a client that comes back in a storm costs one send, not four.
pub const CORK_LOGINS: u32 = 16;

/// See [`CORK_LOGINS`]. Little beside what a login takes then.
pub const CORK_US: u64 = 50_000;

/// From GoAway to a hard close, in milliseconds: what a peer has to read why.
pub const CLOSE_DEADLINE_MS: u64 = 1_000;

/// A client request unanswered for so long is answered BUSY; the client sends it again, the owner dedups.
pub const REQUEST_TIMEOUT_US: u64 = 10_000_000;

/// Conversations of one Peek; above: BAD_REQUEST. As many as a client shows at once, a few times over.
pub const PEEK_ITEMS_MAX: usize = 256;

/// Users that one session watches; above: BAD_REQUEST.
pub const WATCHED_USERS_MAX: usize = 512;

/// Bytes that a part of a request adds around what it asks: names, token, tags, and what is kept until it is answered.
/// A client may have hundreds of parts on their way, which [`RECORD_ENVELOPE_BYTES`] each would overstate.
pub const PART_ENVELOPE_BYTES: usize = 256;

/// Bytes of a Standing beside its conversation and its newest message: three cursors and five numbers. What a frame has
/// room for beyond that is for newest messages; one that does not fit is left out.
pub const STANDING_BYTES: usize = 128;

/// Acknowledgements wait so long for others of their partition. Short beside the two seconds of clients, and enough to
/// turn a group's into one record.
pub const ACKS_FLUSH_US: u64 = 1_000_000;

/// Acknowledgements of one record, and of one partition: with so many they go at once. Without credit the oldest is
/// dropped for each new one: it is sent something twice, at worst.
pub const ACKS_RECORD_MAX: usize = 512;

/// Acknowledgements of a shard that wait, some 200 B each. Above: the oldest of the partition is dropped, or the new one.
pub const ACKS_GATHERED_MAX: usize = 65_536;

/// Records of acknowledgements in one turn.
pub const ACK_FLUSHES_PER_TURN: usize = 64;

/// What was sent is acknowledged within this time, counted from when the send completed, or the client is told to
/// Resync. Twice what clients wait before they acknowledge.
pub const OWED_RETRY_US: u64 = 4_000_000;

/// Resyncs without an acknowledgement; then NOT_ACKNOWLEDGED and close.
pub const OWED_TRIES_MAX: u8 = 3;

/// Conversations in which a session's deliveries are kept track of, and named by a Resync. Above: not kept track of; the
/// client's own cursors cover them.
pub const OWED_CONVERSATIONS_MAX: usize = 32;

/// Looks at clocks of acknowledgements in one turn.
pub const OWED_LOOKS_PER_TURN: usize = 1024;

/// Relays to listeners of conversations that wait for their turn. Above: dropped.
pub const RELAYS_MAX: usize = 1024;

/// Bytes of a relay. Above: dropped; what is larger should not be lost, and is a message.
pub const RELAY_BYTES_MAX: usize = 4 << 10;

/// A relay to the listeners of a conversation that takes longer is dropped: who was typing then may not be any more.
pub const RELAY_WAIT_US: u64 = 2_000_000;

/// Bytes behind a send in flight above which a session gets no relay: its messages come first.
pub const RELAY_QUEUE_BYTES_MAX: u32 = 4 << 10;

/// A record whose partition has no known owner waits so long for an announcement, then it is dropped (BUSY).
pub const PARKED_US: u64 = 5_000_000;

/// An unanswered Register or Fetch is sent again after so long.
pub const RETRY_US: u64 = 3_000_000;

/// Fetches of one hole that may go unanswered; then the clients are told of a Gap.
pub const FETCH_TRIES_MAX: u8 = 3;

/// Bytes of records waiting for an owner or for credit. Above: dropped; what they say corrects itself (an unwanted
/// FanOut is answered Unsubscribe again, an unwanted Direct NoSession), and client requests are answered BUSY.
pub const PARKED_BYTES_MAX: usize = 8 << 20;

/// Sessions that were refused in a group of their user's list, and for whom the next owner is asked again. Above: the oldest
/// is forgotten, and attached when it logs in again.
pub const REFUSED_MAX: usize = 4_096;

/// Fan-out sends of one turn: about half a millisecond of system calls, so that direct traffic waits no longer.
pub const FAN_OUT_SENDS_PER_TURN: usize = 64;

/// Receivers that one pass serves before the next pass has its turn.
pub const FAN_OUT_QUANTUM: usize = 8;

/// Bytes of messages waiting for the next pass of one topic. Above: rooms drop with a Gap, groups fetch again later.
pub const PASS_BYTES_MAX: usize = 1 << 20;

/// Messages of one pass: what each receiver is sent together.
pub const PASS_MESSAGES_MAX: usize = 256;

/// Bytes of messages that arrived above a hole and wait for its Page, per shard. Above: dropped and fetched later.
pub const HELD_BYTES_MAX: usize = 16 << 20;

/// Bytes of queued frames that are copied together into one send.
pub const SEND_BYTES_MAX: usize = 64 << 10;

/// Nodes in all outboxes of a shard. Above: the session that wants one more is closed SLOW_CONSUMER.
pub const OUTBOX_NODES_MAX: u32 = 1 << 20;

/// Frames queued above which a Ping is not answered: a client that doesn't read needs no Pong.
pub const PONG_QUEUE_BYTES_MAX: u32 = 4 << 10;

/// Looks of the wheel in one turn: a storm's deadlines are spread over turns.
pub const WHEEL_LOOKS_PER_TURN: usize = 1024;

/// GoAways in one turn while draining.
pub const DRAIN_PER_TURN: usize = 256;

/// Clients are told to come back spread over at most so many milliseconds after a drain.
pub const DRAIN_SPREAD_MS_MAX: u32 = 10_000;

/// Subscribes of one turn: a new owner's partitions come back over several turns.
pub const SUBSCRIBES_PER_TURN: usize = 512;

/// Sessions registered again per second under a new incarnation.
pub const REREGISTER_PER_S: u64 = 2_000;

/// Sessions told per second, on one shard, to look at their direct conversations after a link began anew: each asks
/// dispatchers how those stand.
pub const RESYNC_PER_S: u64 = 1_000;

/// A dispatcher keeps the state of a link for longer than this after the connection was lost, us: with a margin below its
/// default of 10 s.
pub const LINK_STATE_KEPT_US: u64 = 8_000_000;

/// Bytes of user names in one Subscribe: well below a record, with room for its other fields.
pub const SUBSCRIBE_USERS_BYTES_MAX: usize = 512 << 10;

/// A node that the others no longer name, and whose link is down, is forgotten after so long.
pub const NODE_GONE_US: u64 = 30_000_000;

/// Dispatcher nodes at most; more in a ClusterMap are ignored.
pub const NODES_MAX: usize = 1024;

/// Records taken in are acknowledged this late at most when no data goes the other way.
pub const ACK_DELAY_US: u64 = 5_000;

/// What clients are told to wait when a partition has no owner or no credit: a takeover takes seconds, credit less.
pub const RETRY_AFTER_BUSY_MS: u32 = 500;

/// What clients are told to wait when a login can't be taken now.
pub const RETRY_AFTER_UNAVAILABLE_MS: u32 = 2_000;

/// Bytes that a client's record adds around its request: names, token, tags.
pub const RECORD_ENVELOPE_BYTES: usize = 1 << 10;

/// Makes resume tickets: a pure function of its arguments and the shell's key.
pub trait TicketMint {
    /// A ticket that binds all of these; checked later by the shell as [`super::action::Credential::Ticket`].
    fn mint(
        &self,
        user: &str,
        device: &str,
        platform: &str,
        login_number: u64,
        expires_wall_ms: u64,
    ) -> Vec<u8>;
}

impl<F: Fn(&str, &str, &str, u64, u64) -> Vec<u8>> TicketMint for F {
    fn mint(&self, user: &str, device: &str, platform: &str, number: u64, expires_wall_ms: u64) -> Vec<u8> {
        self(user, device, platform, number, expires_wall_ms)
    }
}

/// What a shell decides for one shard.
pub struct Config {
    /// This gateway's id, 1-4095.
    pub gateway: u16,
    /// This shard's index. Shard 0 renews the lease.
    pub shard: u8,
    /// This process's incarnation, random.
    pub incarnation: u64,
    /// Name of the cluster; both ends of a link must agree.
    pub cluster: String,
    /// Partitions of the cluster, 1-1024.
    pub partitions: u16,
    /// Dispatcher nodes to begin with, as (name or empty, address). In-process: one with an empty address.
    pub seeds: Vec<(String, String)>,
    /// Slots of this shard's edge: connections at most. Decides where a topic becomes a bitmap.
    pub slots_max: u32,
    /// For hashes and for spreading; drawn at random by the shell.
    pub seed: u64,
    /// Makes resume tickets.
    pub ticket_mint: Box<dyn TicketMint>,
    /// Platforms on which a user's newest session closes the older ones; on all others every device stays.
    pub newest_wins_platforms: Vec<String>,
    /// Told to clients at login, in milliseconds; 2.5 times as much silence closes HEARTBEAT_TIMEOUT.
    pub heartbeat_interval_ms: u32,
    /// Bytes of a message's payload; above PAYLOAD_TOO_LARGE.
    pub payload_bytes_max: usize,
    /// Bytes queued for one session behind its send in flight; above SLOW_CONSUMER and close.
    pub outbox_bytes_max: u32,
    /// Connections that have not logged in; above, new ones are closed at once.
    pub unauthenticated_max: u32,
    /// Logins begun per second (burst: one second's worth); above Refused BUSY.
    pub logins_per_s: u32,
    /// Rooms and groups of one session; above LIMIT_REACHED (groups at login: not attached).
    pub topics_per_session_max: u32,
    /// Unanswered requests of one session; above BUSY.
    pub requests_per_session_max: u16,
    /// Unanswered requests of the shard; above BUSY.
    pub requests_max: usize,
    /// Bytes of unanswered requests of the shard; above BUSY.
    pub request_bytes_max: usize,
    /// How long the gateway's lease lasts without renewal, in milliseconds.
    pub lease_ttl_ms: u32,
    /// How often shard 0 renews it, in milliseconds.
    pub lease_renew_ms: u32,
    /// Window and batch size of every link.
    pub link: LinkLimits,
}

impl Config {
    /// The usual settings.
    pub fn new(gateway: u16, shard: u8, incarnation: u64, ticket_mint: Box<dyn TicketMint>) -> Self {
        Config {
            gateway,
            shard,
            incarnation,
            cluster: "millrace".into(),
            partitions: 1024,
            seeds: vec![(String::new(), String::new())],
            slots_max: 1 << 20,
            seed: incarnation,
            ticket_mint,
            newest_wins_platforms: Vec::new(),
            heartbeat_interval_ms: 30_000,
            payload_bytes_max: PAYLOAD_BYTES_MAX,
            outbox_bytes_max: 256 << 10,
            unauthenticated_max: 65_536,
            logins_per_s: 20_000,
            topics_per_session_max: 1_000,
            requests_per_session_max: 256,
            requests_max: 65_536,
            request_bytes_max: 64 << 20,
            lease_ttl_ms: 5_000,
            lease_renew_ms: 1_000,
            link: LinkLimits::default(),
        }
    }

    /// Silence after which a client is taken for dead, in microseconds.
    pub fn dead_after_us(&self) -> u64 {
        u64::from(self.heartbeat_interval_ms) * 2_500
    }
}
