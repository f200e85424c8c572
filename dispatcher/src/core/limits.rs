//! The bounds of a dispatcher shard, with their units, their reasons, and what happens when one is reached.

use millrace_protocol::frame::PAYLOAD_BYTES_MAX;
use millrace_protocol::link::record::RECORD_BYTES_MAX;

/// How much of a conversation is kept; what is beyond any of these goes. 0: no bound.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retention {
    /// Entries.
    pub count: u64,
    /// Age of the entries, ms.
    pub age_ms: u64,
    /// Bytes of bodies.
    pub bytes: u64,
}

/// The bounds that an operator may change.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a message's payload; a larger one is refused PAYLOAD_TOO_LARGE.
    pub payload_bytes_max: usize,
    /// Logins, logouts, receipts, and members whom no entry names are written as events.
    pub events: bool,
    /// Of direct conversations and groups.
    pub retention: Retention,
    /// Of rooms.
    pub retention_rooms: Retention,
    /// How long after a message its sender may edit it, ms.
    pub edit_window_ms: u64,
    /// How long after a message its sender may recall it, ms. A group's admins always may.
    pub recall_window_ms: u64,
    /// Whether users who are no friends may send to each other; else their messages are refused STRANGER.
    pub strangers_may_write: bool,
    /// Members of one group; a further one is refused LIMIT_REACHED. Each costs its name and 2 B in memory while the
    /// group is in use, and a load of the group reads them all.
    pub group_members_max: usize,
    /// Conversations of one partition held in memory. Idle ones are evicted above half of it; when all are busy,
    /// requests for a further one are answered BUSY.
    pub conversations_per_partition_max: usize,
    /// Bytes of records that wait for credit on one link; above, the link's state is dropped and built again.
    pub link_waiting_bytes_max: usize,
    /// How long the state of a link outlives its transport, us: a gateway reconnects well within it.
    pub link_away_us: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            payload_bytes_max: PAYLOAD_BYTES_MAX,
            events: false,
            retention: Retention::default(),
            retention_rooms: Retention::default(),
            edit_window_ms: 24 * 3_600_000,
            recall_window_ms: 3_600_000,
            strangers_may_write: true,
            group_members_max: 100_000,
            conversations_per_partition_max: 8_192,
            link_waiting_bytes_max: 8 << 20,
            link_away_us: 10_000_000,
        }
    }
}

/// Links at home on one shard; one more is reset.
pub const LINKS_MAX: usize = 8_192;

/// Records and gap marks that wait for credit on one link, whatever their bytes; above, as for the bytes.
pub const LINK_WAITING_MAX: usize = 32_768;

/// Bytes of credit with which a link goes on after it had none (or with nothing unacknowledged): otherwise the crumbs of
/// credit that a large message does not fit into would be spent on a gap for every single one.
pub const LINK_RESUME_BYTES: u64 = 256 << 10;

/// Records taken in from a link may be told to its gateway this late, us, when there is nothing to send them with.
pub const ACK_DELAY_US: u64 = 20_000;

/// Writes of one batch: some milliseconds of a store's time. Above, requests are answered BUSY.
pub const BATCH_WRITES_MAX: usize = 4_096;

/// Bytes of bodies in one batch; above, requests are answered BUSY.
pub const BATCH_BYTES_MAX: usize = 4 << 20;

/// Records that wait while a partition is being claimed; further ones come back to the gateway.
pub const CLAIM_WAITING_MAX: usize = 1_024;

/// Records that wait while one conversation is being loaded; further ones come back to the gateway.
pub const LOAD_WAITING_MAX: usize = 512;

/// Streams of one conversation that wait for something to be read; messages of a further one are answered BUSY.
pub const HELD_STREAMS_MAX: usize = 1_024;

/// Bytes of one such waiting list.
pub const WAITING_BYTES_MAX: usize = 1 << 20;

/// Streams of one conversation that are in memory. Above, the one that came first is forgotten: its answers are read
/// again with its next message.
pub const STREAMS_MAX: usize = 1_024;

/// Entries of one conversation that are kept because messages referred to them (edits, reactions, …).
pub const REFERRED_MAX: usize = 8;

/// Askers that wait for the answer to repeats in one conversation; further repeats are answered BUSY.
pub const REPEATS_MAX: usize = 256;

/// Membership requests that wait in one group for the round before; further ones are answered BUSY.
pub const CHANGES_WAITING_MAX: usize = 4_096;

/// Membership requests that go into one round, so that one record and one job stay of bounded size.
pub const ROUND_CHANGES_MAX: usize = 512;

/// Users named in one invitation or removal; more are refused LIMIT_REACHED. As many as joins go into one round.
pub const GROUP_USERS_MAX: usize = ROUND_CHANGES_MAX;

/// Admins of one group besides its owner; a further one is refused LIMIT_REACHED. All are told of who asks to join.
pub const ADMINS_MAX: usize = 64;

/// Members of one group who are muted, each until a time of its own; a further one is refused LIMIT_REACHED. They are
/// written whole with every change of what is known of the group: some 70 KiB at most.
pub const MUTED_MAX: usize = 1_000;

/// Users who wait to be let into one group; a further one is refused LIMIT_REACHED.
pub const ASKING_MAX: usize = 1_000;

/// Bytes of what a group shows of itself, and of its announcement; more are refused PAYLOAD_TOO_LARGE.
pub const ABOUT_BYTES_MAX: usize = 4 << 10;

/// Users named in one entry about a change; the others are only counted.
pub const NOTED_USERS_MAX: usize = 64;

/// In a group of more members, joins and leaves of ordinary members make no entries: they would drown the messages.
pub const NOTED_MEMBERS_MAX: usize = 500;

/// Users named in one event about members, of some 35 KiB then; the others are in further ones.
pub const EVENT_USERS_MAX: usize = 512;

/// Members of a dissolved group whose lists are cleaned in one go.
pub const CLEAN_MEMBERS: usize = 512;

/// Names on one page of members, and when the client does not say how many: a page fits in a client frame.
pub const MEMBERS_PAGE_MAX: u32 = 512;

/// Changes between two users that wait for the one before; further ones are answered BUSY.
pub const PAIR_CHANGES_MAX: usize = 16;

/// Bytes of a greeting with which a user asks to be friends; more are refused PAYLOAD_TOO_LARGE.
pub const GREETING_BYTES_MAX: usize = 256;

/// Conversations on one page of a user's list: a page fits in a client frame.
pub const CONVERSATIONS_PAGE_MAX: usize = 256;

/// People on one page, with their greetings: likewise.
pub const PEOPLE_PAGE_MAX: usize = 128;

/// Requests about users' lists under way; further ones are answered BUSY.
pub const LISTS_MAX: usize = 4_096;

/// A user's typing is passed on once in so long in one conversation, us; what comes in between is dropped.
pub const TYPING_EVERY_US: u64 = 2_000_000;

/// Users whose typing one conversation passes on in that time; that of others is dropped. Nobody reads more.
pub const TYPING_USERS_MAX: usize = 64;

/// Users whom one session watches in one partition; more are refused LIMIT_REACHED. Gateways count over all partitions.
pub const WATCHED_MAX: usize = 512;

/// Sessions that watch one user; a further one is not shown it, and counted.
pub const WATCHERS_MAX: usize = 10_000;

/// Pairs of a watcher and a watched user in one partition; likewise.
pub const WATCH_ENTRIES_MAX: usize = 100_000;

/// A watch that was not renewed so long ends, us: clients renew it every 60 s, and may miss that once.
pub const WATCH_US: u64 = 150_000_000;

/// Changes of presence are gathered so long, us: a client that comes back after a blink makes one event, or none.
pub const PRESENCE_WINDOW_US: u64 = 500_000;

/// Users whose routes changed and are to be looked at; what happens to further ones is noticed at their next change.
pub const PRESENCE_CHANGES_MAX: usize = 65_536;

/// Lookups whether a watcher is a friend, under way at once; a further watcher is shown nothing until it renews.
pub const FRIEND_READS_MAX: usize = 4_096;

/// Users of one partition with devices that said they are away; a further one is answered BUSY.
pub const DEVICE_STATES_MAX: usize = 10_000;

/// Devices of one user that its watchers are shown; the others are left out.
pub const DEVICES_SHOWN_MAX: usize = 16;

/// Bytes of one page of presence; who does not fit follows in events of their own.
pub const PRESENCE_PAGE_BYTES: usize = 32 << 10;

/// Users whose routes are asked in one job.
pub const ROUTE_USERS_MAX: usize = 512;

/// Lookups of routes under way; what comes meanwhile gathers for the next one.
pub const ROUTE_LOOKUPS_MAX: usize = 64;

/// Messages and attachments that wait for routes; above, messages of direct conversations are answered BUSY before
/// they are appended.
pub const ROUTE_ASKS_MAX: usize = 65_536;

/// Above so many, what may be lost (receipts, friends' requests) is dropped instead of waiting among them.
pub const ROUTE_SOFT_ASKS_MAX: usize = ROUTE_ASKS_MAX / 2;

/// Tries of one lookup of routes. With their pauses some 10 s: a store that was restarted is back by then. After the
/// last one the messages go to the end of the line, and are counted, so that others need not wait for them.
pub const ROUTE_TRIES_MAX: u32 = 14;

/// Targets in one Attach record.
pub const TARGETS_MAX: usize = 1_024;

/// Registrations that wait for the store; further ones are answered BUSY.
pub const REGISTERS_MAX: usize = 32_768;

/// Groups told of in one Registered record; further ones are left out and counted.
pub const GROUPS_TOLD_MAX: usize = 8_192;

/// Closes that are repeated until answered; further ones are sent once.
pub const CLOSES_MAX: usize = 65_536;

/// Time between two sendings of a Close, us.
pub const CLOSE_REPEAT_US: u64 = 1_000_000;

/// Fetches under way; further ones come back to the gateway.
pub const FETCHES_MAX: usize = 4_096;

/// Bytes of bodies on one page: two pages fit in a link's first credit, and a page with its envelopes in a record.
pub const PAGE_BYTES_MAX: usize = 256 << 10;

/// Bytes of bodies on one page for a client, and entries: a page fits in a client's frame, and costs the store a
/// millisecond at most.
pub const SYNC_PAGE_BYTES: usize = 48 << 10;

/// See [`SYNC_PAGE_BYTES`].
pub const SYNC_ENTRIES_MAX: usize = 256;

/// Entries read in one step back to where a cursor's log ends.
pub const TRUNCATION_STEP: usize = 256;

/// Entries looked at for a conversation's newest message; when none is a message the newest entry stands for it.
pub const NEWEST_LOOKED_AT: usize = 8;

/// Cursors read of a direct conversation: two users with all their devices.
pub const PAIR_CURSORS_MAX: usize = 256;

/// Cursors read in one job when all of a conversation's are needed.
pub const TALLY_PAGE: usize = 4_096;

/// Members up to which a group's newest sender is told how many have its message. In larger ones whoever wants to know
/// asks.
pub const TALLY_PUSHED_MAX: usize = 10_000;

/// Receipts are gathered this long before they are told, us.
pub const TELL_WINDOW_US: u64 = 200_000;

/// Cursors are written this long after the first of their conversation moved, us: a crash loses no more of them, and costs
/// that many repeats.
pub const CURSORS_US: u64 = 1_000_000;

/// Messages of one conversation whose senders want to know what becomes of them; of further ones they are told at once
/// that they were not delivered in time.
pub const FATES_MAX: usize = 256;

/// The longest time that a sender may wait to be told so, ms.
pub const FATE_WITHIN_MS_MAX: u32 = 60_000;

/// Entries of a conversation that may be beyond its retention before it is trimmed: one write for many.
pub const TRIM_SLACK: u64 = 64;

/// Oldest entries looked at in one step of trimming by age and bytes.
pub const TRIM_STEP: usize = 256;

/// After a record of a served partition was given back NotOwner for want of room or lease, its gateway is told so much
/// later, us, that the partition is served here after all.
pub const REANNOUNCE_US: u64 = 100_000;

/// A partition of which a gateway knows a higher epoch is claimed again, above that, after this time, us: by then a node
/// that serves from a copy of the store that was given up has noticed, and serves no more.
pub const SUPERSEDED_US: u64 = 2_000_000;

/// First and longest pause before a failed claim, release or lookup is tried again, ms.
pub const BACKOFF_MS: (u64, u64) = (50, 1_000);

/// What a client is told to wait after BUSY, ms: a few batches, or a claim by the next owner.
pub const BUSY_RETRY_MS: u32 = 200;

const _: () = {
    // A message in its Deliver in its FanOut in its Page.
    assert!(PAYLOAD_BYTES_MAX + PAGE_BYTES_MAX + (64 << 10) < RECORD_BYTES_MAX);
    assert!(BATCH_BYTES_MAX > 2 * PAYLOAD_BYTES_MAX);
    // 192 bytes per target: two names, three numbers, tags.
    assert!(TARGETS_MAX * 192 < RECORD_BYTES_MAX);
    assert!(GROUPS_TOLD_MAX * 72 < RECORD_BYTES_MAX);
    assert!(CONVERSATIONS_PAGE_MAX * (3 + 2 * 64 + 12) < PAYLOAD_BYTES_MAX);
    assert!(PEOPLE_PAGE_MAX * (64 + GREETING_BYTES_MAX + 12) < PAYLOAD_BYTES_MAX);
    // The last one on a page may take it over its bytes.
    assert!(PRESENCE_PAGE_BYTES + DEVICES_SHOWN_MAX * 144 + 96 < PAYLOAD_BYTES_MAX);
    // One byte counts a group's admins in its record.
    assert!(ADMINS_MAX <= 255 && MUTED_MAX <= 65_535 && ABOUT_BYTES_MAX <= 65_535);
};
