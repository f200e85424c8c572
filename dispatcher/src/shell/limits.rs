//! The bounds of the dispatcher's shell, with their units and reasons. What the core may hold is bounded in the core.

use millrace_protocol::link::record::RECORD_BYTES_MAX;

/// What `group_members_max` may be set to: the largest group is loaded within seconds, and counted in 32 bits.
pub const GROUP_MEMBERS_MAX_RANGE: (usize, usize) = (1, 10_000_000);

/// Shard threads at most: more than the CPUs of any machine this was meant for, few enough that a queue per pair of
/// shards stays affordable.
pub const SHARDS_MAX: usize = 256;

/// Length of a node's lease, ms: a dead node's partitions are served again within this and a claim.
pub const LEASE_TTL_MS: u32 = 3_000;

/// Time between renewals, ms: two may fail before the lease ends.
pub const LEASE_RENEW_MS: u32 = 1_000;

/// Taken off a lease's end, as a share of its length: owners stop before others may start, whatever the clocks' drift
/// and however late a thread is scheduled between its check and its act.
pub const LEASE_MARGIN_SHARE: u32 = 10;

/// Bytes of unacknowledged records per link and direction: 100 ms of a gigabit per second, with room.
pub const LINK_WINDOW_BYTES: u64 = 8 << 20;

/// What `link_window_bytes` may be set to: a record must fit.
pub const LINK_WINDOW_BYTES_RANGE: (u64, u64) = (2 * RECORD_BYTES_MAX as u64, 1 << 30);

/// Messages queued between two shards, each way. When it is full the sender keeps the rest and stops reading links.
pub const SIBLING_QUEUE: usize = 4_096;

/// Lists of store answers that wait for a shard: above the jobs that a shard has in flight at any time.
pub const STORE_REPLIES: usize = 16_384;

/// Commands from the control thread that wait for a shard: a claim and a release of every partition, and some more.
pub const CONTROL_QUEUE: usize = 4_096;

/// Reports from all shards that wait for the control thread.
pub const REPORT_QUEUE: usize = 16_384;

/// Inputs of one kind that a turn of a shard takes at most (control, siblings of one shard, store answers).
pub const TURN_INPUTS: usize = 512;

/// Bytes read from a link at once: a batch of a busy link, while an idle link holds nothing.
pub const READ_BYTES: usize = 64 << 10;

/// Reads below this are copied, so that a short record kept somewhere does not keep the whole buffer.
pub const COPY_BELOW_BYTES: usize = 4 << 10;

/// Batches that wait in an in-process link's queue, each way. The link's window bounds their bytes.
pub const PIPE_BATCHES: usize = 1_024;

/// Pause before something that met a full queue is tried again, us.
pub const RETRY_US: u64 = 1_000;

/// Bytes of the first record of a connection at most: a Hello is some 200 bytes, names included.
pub const HELLO_BYTES_MAX: usize = 4 << 10;

/// Time for a peer to say hello, ms.
pub const HELLO_TIMEOUT_MS: u64 = 5_000;

/// Time for a peer that belongs elsewhere to read who this is and hang up by itself, ms. Closed at once, its own log
/// could only say that it was closed.
pub const FAREWELL_MS: u64 = 1_000;

/// Connections that may be saying hello at the same time; more wait in the listener's backlog.
pub const HELLOS_MAX: usize = 512;

/// Time for handing partitions over and flushing after SIGTERM, ms.
pub const STOP_DEADLINE_MS: u32 = 8_000;

/// Of that deadline, kept for ending the lease, flushing links and closing the store, ms.
pub const STOP_RESERVE_MS: u64 = 1_000;

/// Time that a stopping shard waits for its links to take what is queued, ms.
pub const FLUSH_MS: u64 = 500;

/// Time that admin requests wait for shards and for the store, ms.
pub const ADMIN_WAIT_MS: u64 = 2_000;

const _: () = {
    assert!(LEASE_RENEW_MS * 2 <= LEASE_TTL_MS);
    assert!(CONTROL_QUEUE >= 2 * millrace_protocol::ids::PARTITIONS_MAX as usize + 64);
    assert!(REPORT_QUEUE >= CONTROL_QUEUE);
    assert!(COPY_BELOW_BYTES < READ_BYTES);
    assert!(STOP_RESERVE_MS + FLUSH_MS < STOP_DEADLINE_MS as u64);
};
