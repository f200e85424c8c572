//! What a shard counts. One plain struct: the shell reads it for metrics and logs.

/// Counters since the start, and, at the end, gauges as of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records taken in, from links and siblings.
    pub records_in: u64,
    /// Records queued on links, gaps included.
    pub records_out: u64,
    /// Records and requests that could not be read.
    pub malformed: u64,
    /// Messages appended.
    pub messages: u64,
    /// Entries about changes of groups appended.
    pub notes: u64,
    /// Batches handed to the store.
    pub batches: u64,
    /// Repeats answered with their first answer.
    pub repeats: u64,
    /// Acknowledgements taken.
    pub acks: u64,
    /// Acknowledgements that were of nothing durable, of no member, or found no room.
    pub acks_refused: u64,
    /// Read positions taken.
    pub reads: u64,
    /// Pages read for clients.
    pub pages: u64,
    /// Clients told that the log ends below their cursor.
    pub truncated: u64,
    /// Standings told.
    pub peeks: u64,
    /// Senders told what became of a message.
    pub fates: u64,
    /// Messages whose fate could not be watched, as too many are.
    pub fates_unwatched: u64,
    /// Messages of former owners fanned out again.
    pub recovered: u64,
    /// Events that found no room in a batch, or no owner.
    pub events_dropped: u64,
    /// Entries trimmed.
    pub trimmed: u64,
    /// Looks at old entries that trimmed nothing by age, as the clocks disagree.
    pub trims_held: u64,
    /// Sends refused OUT_OF_ORDER.
    pub out_of_order: u64,
    /// Sends beyond those of a stream that may be unanswered: BUSY.
    pub crowded: u64,
    /// Sends refused CONFLICT.
    pub conflicts: u64,
    /// Requests refused for another reason than BUSY.
    pub refused: u64,
    /// Requests answered BUSY.
    pub busy: u64,
    /// Records answered NotOwner.
    pub not_owner: u64,
    /// FanOut records queued.
    pub fan_outs: u64,
    /// FanOut records that became gap marks for want of credit.
    pub gap_marked: u64,
    /// Gap records sent.
    pub gaps: u64,
    /// Messages to single sessions queued.
    pub directs: u64,
    /// Messages to single sessions dropped for want of credit; the log holds them.
    pub directs_dropped: u64,
    /// Relay records queued.
    pub relays: u64,
    /// Relays dropped for want of credit, room or routes: nobody needs them later.
    pub relays_dropped: u64,
    /// Typing passed on.
    pub typing: u64,
    /// Typing not passed on: too often, too many, or of one who may not write.
    pub typing_dropped: u64,
    /// Sessions told of somebody's presence.
    pub presence_told: u64,
    /// Changes of presence that were not looked at, or not shown, for want of room.
    pub presence_lost: u64,
    /// Users not watched for want of room.
    pub watches_left_out: u64,
    /// Watches that ended because they were not renewed.
    pub watches_expired: u64,
    /// Users whose last device went: when that was is stored.
    pub seen: u64,
    /// Messages whose routes could not be read in many tries, each time that this was so; they are tried again.
    pub routes_failed: u64,
    /// Records for links that are not here.
    pub no_link: u64,
    /// Records above the size that a link takes.
    pub oversize: u64,
    /// Records handed back by links whose peer took a new incarnation.
    pub lost: u64,
    /// Links whose state was dropped because too much waited for credit.
    pub links_overflowed: u64,
    /// Links whose state was dropped after they stayed away.
    pub links_expired: u64,
    /// Links reset for an error of the peer.
    pub link_errors: u64,
    /// Sessions registered.
    pub registered: u64,
    /// Sessions told to close because they lost to a newer one.
    pub losers: u64,
    /// Close records sent again.
    pub close_repeats: u64,
    /// Closes not tracked, because too many are.
    pub closes_untracked: u64,
    /// Groups left out of Registered records.
    pub groups_left_out: u64,
    /// Removals from users' lists of groups that failed; a stale entry is refused when it is used.
    pub unlistings_failed: u64,
    /// Claims that held.
    pub claims: u64,
    /// Claims that failed.
    pub claims_failed: u64,
    /// Partitions claimed again because gateways knew a higher epoch.
    pub superseded: u64,
    /// Partitions stopped by a failed append or load, or a store that lost the lease.
    pub stopped: u64,
    /// Conversations evicted.
    pub evicted: u64,
    /// Streams forgotten.
    pub streams_forgotten: u64,
    /// Inputs met after the node's lease had run out.
    pub lease_lapsed: u64,
    /// Gauge: partitions served.
    pub partitions_served: u64,
    /// Gauge: conversations in memory.
    pub conversations: u64,
    /// Gauge: links with state.
    pub links: u64,
    /// Gauge: links whose peer has said hello.
    pub links_up: u64,
    /// Gauge: records and gap marks that wait for credit.
    pub waiting_for_credit: u64,
    /// Gauge: pairs of a session and a user whom it watches.
    pub watched: u64,
    /// Gauge: jobs at the store.
    pub jobs: u64,
    /// Gauge: closes not answered yet.
    pub closes: u64,
}
