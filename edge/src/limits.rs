//! Every bound of the edge, with its unit and its reason. Relations between them are checked when it is compiled.

/// Slots of one bank at most. A cancel costs 2 us with 16 thousand armed polls in a ring, and 118 us with
/// 500 thousand; 14 bits name a slot in an operation's user data.
pub const BANK_SLOTS_MAX: u32 = 16_384;

/// Completion queue entries of a bank. From 8192 on, the kernel's table of cancellable operations has all its
/// 256 buckets; a queue that overflows loses nothing, but costs allocations in the kernel.
pub const CQ_ENTRIES: u32 = 8_192;

/// Submission queue entries of a bank (64 B each). When full it is submitted, so this is a batch size: more saves
/// no time, as one call costs far less than a thousand operations.
pub const SQ_ENTRIES: u32 = 1_024;

/// Single-shot accepts outstanding per shard. 64 take 26,000 connections a second; more take no more.
pub const ACCEPTS_MAX: u32 = 64;

/// Pause of accepting after a failure that is not the peer's (out of memory or descriptors), in ms: the condition
/// lasts, and an accept that fails at once must not become a loop.
pub const ACCEPT_PAUSE_MS: u64 = 100;

/// Backlog asked of `listen`; the kernel clamps it to `net.core.somaxconn`, so that the operator decides. In a storm it
/// is the cheapest place to wait: a SYN that finds no room is sent again by the client's kernel after 1, 2, 4, … s.
pub const LISTEN_BACKLOG: i32 = 1 << 20;

/// Size of a receive buffer. Client frames are a few hundred bytes; a full buffer is received again at once.
pub const RECV_BUFFER_BYTES: usize = 4_096;

/// Buffers that a pool lends at most unless configured otherwise: 4 MiB per shard, twice the completions of a
/// usual turn, so that waiting for a buffer is rare.
pub const POOL_BUFFERS: u32 = 1_024;

/// Buffers allocated at once as a pool grows (256 KiB): few allocations, little unused.
pub const POOL_CHUNK_BUFFERS: u32 = 64;

/// Bytes of one send at most. The kernel takes up to 2 GiB - 4 KiB in one call, and answers with an `i32`.
pub const SEND_BYTES_MAX: usize = 1 << 30;

/// Rounds of submitting and reaping in one turn at most, beside the caller's budget of completions.
pub const TURN_ROUNDS_MAX: u32 = 64;

/// How long dropping an edge waits for the kernel to give operations back, in ms. They come back at once unless a
/// worker thread of the kernel holds one; what does not come is leaked, never freed under the kernel.
pub const DROP_WAIT_MS: u64 = 2_000;

/// Events that the epoll backend takes from the kernel in one call (12 B each).
pub const EPOLL_EVENTS: usize = 256;

/// Entries of a slab chunk: slabs grow by whole chunks, never by doubling.
pub const SLAB_CHUNK: usize = 256;

/// Chunks that an empty slab keeps: the memory of a burst is given back, that of steady traffic is not.
pub const SLAB_CHUNKS_KEPT: usize = 4;

/// Bits of a generation (it has as many in a session id).
pub const GENERATION_BITS: u32 = 20;

/// Bits of an index into a side table (buffers, payloads, addresses) in an operation's user data.
pub const INDEX_BITS: u32 = 26;

const _: () = {
    assert!(BANK_SLOTS_MAX <= 16_384 && BANK_SLOTS_MAX.is_power_of_two());
    assert!(CQ_ENTRIES >= 8_192 && CQ_ENTRIES.is_power_of_two());
    assert!(SQ_ENTRIES.is_power_of_two() && SQ_ENTRIES <= CQ_ENTRIES);
    assert!(ACCEPTS_MAX == 64 && ACCEPTS_MAX <= SQ_ENTRIES);
    assert!(POOL_CHUNK_BUFFERS <= POOL_BUFFERS && POOL_BUFFERS < 1 << INDEX_BITS);
    assert!(RECV_BUFFER_BYTES <= SEND_BYTES_MAX && SEND_BYTES_MAX < i32::MAX as usize);
    // kind (4) | index | generation | slot in the bank fill the 64 bits of user data.
    assert!(4 + INDEX_BITS + GENERATION_BITS + BANK_SLOTS_MAX.trailing_zeros() == 64);
};
