//! Every bound of the load generator, with its unit and its reason.

/// Clients of one run at most: numbers of clients have 32 bits, and four million sockets are more than one machine
/// of today holds on both ends.
pub const CONNECTIONS_MAX: u32 = 4_000_000;

/// Messages of one run at most: each costs some 30 B per load thread, and a longer run belongs in several.
pub const MESSAGES_MAX: usize = 4_000_000;

/// Load threads at most: more than cores measures the scheduler.
pub const THREADS_MAX: usize = 64;

/// Pairs that talk directly at most: each keeps its name (some 50 B) in memory.
pub const PAIRS_MAX: u32 = 100_000;

/// Connections per source address on loopback. The default range of ephemeral ports has 28,232, and the kernel looks
/// through one half of it before it tries the other: near 14,116 connections between two addresses each connect scans
/// thousands of ports. A lower number keeps the search to a few, and leaves room for ports that wait after a run.
pub const CONNECTIONS_PER_SOURCE: u32 = 10_000;

/// Connects and logins under way per load thread: enough to keep a gateway busy at a few milliseconds per login, and
/// small beside the gateway's backlog.
pub const LOGIN_WINDOW: u32 = 256;

/// Members that a group is made with at most: their names fit in one request. Further ones join by themselves.
pub const CREATE_MEMBERS_MAX: u32 = 1_000;

/// Clients per load thread that join their conversations at the same time: each has one request in flight.
pub const JOIN_WINDOW: u32 = 512;

/// Completions handled in one turn of a load thread: some 100 us of decoding, so that sends are on time.
pub const TURN_COMPLETIONS: u32 = 256;

/// Bytes that may wait to be sent on one connection. A client that far behind is closed, and counted.
pub const OUT_BYTES_MAX: usize = 1 << 20;

/// A send that leaves this much after it was due is counted as late, in us. Its latency counts from when it was due
/// all the same.
pub const LATE_US: u64 = 1_000;

/// How long the end of a run waits for messages that are still under way, in us.
pub const STRAGGLERS_US: u64 = 5_000_000;

/// Tries of one request that is answered "not now" (or whose group is still being made) at most.
pub const TRIES_MAX: u16 = 200;

/// Pause before a request that was refused without a time is tried again, in us.
pub const RETRY_US: u64 = 50_000;

/// First and longest pause of a client that comes back after its connection was lost, in us. The pause is drawn
/// between 0 and the current one, which doubles at each try (full jitter): what docs/PROTOCOL.md asks of clients.
pub const BACKOFF_FIRST_US: u64 = 500_000;
/// See [`BACKOFF_FIRST_US`].
pub const BACKOFF_MAX_US: u64 = 30_000_000;

/// Orders that may wait for a load thread: scenarios give a handful at a time.
pub const ORDERS_MAX: usize = 64;

/// A child must say within this time that it listens, in ms: it opens a store and generates keys first.
pub const CHILD_START_MS: u64 = 45_000;

/// A child that was told to stop is killed after this time, in ms: longer than the gateway's own drain deadline.
pub const CHILD_STOP_MS: u64 = 15_000;

/// Frames that the floor's loop hands to its edge before each turn: as many as a gateway shard sends per turn.
pub const FLOOR_BATCH: u32 = 64;

const _: () = {
    assert!(BACKOFF_FIRST_US <= BACKOFF_MAX_US);
    assert!(MESSAGES_MAX < u32::MAX as usize);
};
