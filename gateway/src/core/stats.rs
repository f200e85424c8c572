//! What a shard counts. Counters only grow; gauges are read when [`super::shard::Shard::stats`] is called.

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident: $kind:ident,)*) => {
        /// Counters and gauges of one shard.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Stats { $($(#[$doc])* pub $name: u64,)* }

        impl Stats {
            /// Every field as (name, whether it is a counter, value), for an exporter.
            pub fn fields(&self) -> Vec<(&'static str, bool, u64)> {
                vec![$((stringify!($name), stats!(@$kind), self.$name),)*]
            }
        }
    };
    (@counter) => { true };
    (@gauge) => { false };
}

stats! {
    /// Connections, whatever their state.
    connections: gauge,
    /// Connections that have not logged in.
    unauthenticated: gauge,
    /// Logins that wait for their check or their route.
    logging_in: gauge,
    /// Users with a session here.
    users: gauge,
    /// Conversations with a listener here.
    topics: gauge,
    /// Client requests waiting for their answer.
    requests_pending: gauge,
    /// Bytes of them.
    request_bytes: gauge,
    /// Frames behind a send in flight.
    outbox_nodes: gauge,
    /// Bytes of them (shared frames count once per receiver).
    outbox_bytes: gauge,
    /// Bytes of messages held above a hole.
    held_bytes: gauge,
    /// Requests that were cut into parts, not all of them answered.
    requests_in_parts: gauge,
    /// Sessions that watch who comes and goes.
    watching: gauge,
    /// Sessions that were sent something and have not acknowledged it, or did so lately.
    owing: gauge,
    /// Acknowledgements that wait to be sent on together.
    acks_gathered: gauge,
    /// Relays on their way to listeners of conversations.
    relays_waiting: gauge,
    /// Bytes of records waiting for an owner or for credit.
    parked_bytes: gauge,
    /// Entries of the wheel, stale ones included.
    wheel_entries: gauge,
    /// Dispatcher nodes known.
    nodes: gauge,
    /// Of these, with a link that is up.
    links_up: gauge,
    /// Partitions whose owner is known.
    partitions_owned: gauge,
    /// Connections accepted.
    accepted: counter,
    /// Connections closed at once, above the cap of unauthenticated ones.
    accept_refused: counter,
    /// Connections that ended, whoever ended them.
    closed: counter,
    /// Login requests.
    logins: counter,
    /// Times that accepting was held because too many logins were under way.
    accept_holds: counter,
    /// Logins acknowledged.
    login_acks: counter,
    /// Logins refused, whatever the reason.
    login_refused: counter,
    /// Of these, above the rate.
    login_rate_limited: counter,
    /// Of these, without a live lease of the gateway.
    login_without_lease: counter,
    /// Connections that did not log in in time.
    login_timeouts: counter,
    /// Connections that sent something else first.
    login_required: counter,
    /// Connections silent for too long.
    heartbeat_timeouts: counter,
    /// Peers that broke the protocol.
    violations: counter,
    /// Connections closed with their outbox full.
    slow_consumers: counter,
    /// Sessions closed because the dispatcher said so.
    displaced: counter,
    /// Bytes received from clients.
    bytes_received: counter,
    /// Frames received from clients.
    frames_received: counter,
    /// Heartbeats received: Ping frames (which are among the frames), and pings of WebSocket.
    pings: counter,
    /// Sends to clients.
    sends: counter,
    /// Bytes of them.
    bytes_sent: counter,
    /// Pongs not sent because the client doesn't read.
    pongs_skipped: counter,
    /// Requests that came behind a Login and waited for its answer.
    early_requests: counter,
    /// Requests behind a Login that were refused: too many, or too large.
    early_refused: counter,
    /// LoginAcks that waited for what follows them, to be sent together.
    corks: counter,
    /// Requests passed on to a dispatcher.
    requests: counter,
    /// Requests refused for what they say.
    requests_refused: counter,
    /// Requests answered BUSY: no owner.
    busy_no_owner: counter,
    /// Requests answered BUSY: no credit on the link.
    busy_no_credit: counter,
    /// Requests answered BUSY: too many unanswered.
    busy_limit: counter,
    /// Requests answered BUSY: no answer in time.
    busy_timeout: counter,
    /// Requests answered BUSY: their dispatcher or its ownership was lost.
    busy_lost: counter,
    /// Requests that were cut into parts: Peek, PresenceSubscribe.
    requests_cut: counter,
    /// Parts that could not be sent, or that were refused or not answered.
    parts_failed: counter,
    /// Standings without their newest message, because the answer would have been too large.
    peeks_trimmed: counter,
    /// Acknowledgements taken in.
    acks: counter,
    /// Records of gathered acknowledgements.
    ack_records: counter,
    /// Acknowledgements dropped: too many waited for an owner or for credit.
    acks_dropped: counter,
    /// Conversations not kept track of, because a session owes in too many.
    owed_overflowed: counter,
    /// Sessions told to sync because they did not acknowledge.
    resyncs: counter,
    /// Sessions closed because they did not acknowledge.
    not_acknowledged: counter,
    /// Pages with more to come, to sessions that listened.
    syncing: counter,
    /// Room joins and attachments above the limit per session.
    topic_limit: counter,
    /// Sessions refused in a group whose next owner will not be asked for them.
    refused_forgotten: counter,
    /// Replies whose request was no longer waiting.
    replies_late: counter,
    /// Messages taken in for fan-out.
    fan_outs: counter,
    /// Receivers served by passes.
    deliveries: counter,
    /// Messages to single sessions.
    directs: counter,
    /// Sessions told that direct messages were skipped.
    direct_gaps: counter,
    /// Receivers of relays (typing, presence, receipts).
    relays: counter,
    /// Relays, or receivers of them, dropped under pressure.
    relays_dropped: counter,
    /// Messages dropped because they had been taken in before.
    duplicates: counter,
    /// Records dropped because their epoch was over.
    stale_epochs: counter,
    /// Owners told that a higher epoch than theirs is known.
    superseded: counter,
    /// Messages for conversations that nobody listens to here.
    fan_outs_unwanted: counter,
    /// Messages not taken in because too much waits, or is held.
    fan_outs_overflowed: counter,
    /// Holes asked for.
    fetches: counter,
    /// Gaps told to clients.
    gaps: counter,
    /// Subscribe records.
    subscribes: counter,
    /// Unsubscribe records.
    unsubscribes: counter,
    /// Register records.
    registers: counter,
    /// Sessions registered again under a new incarnation.
    reregisters: counter,
    /// Sessions told to look at their direct conversations after a link began anew.
    resyncs_swept: counter,
    /// NoSession records.
    no_sessions: counter,
    /// NotOwner records received.
    not_owners: counter,
    /// Records that waited for an owner or for credit.
    parked: counter,
    /// Of these, dropped: too many, or for too long.
    parked_dropped: counter,
    /// Records from dispatchers.
    link_records: counter,
    /// Links reset for a protocol error.
    link_errors: counter,
    /// Records whose body could not be read or that a gateway doesn't expect.
    link_bad_records: counter,
    /// Lease renewals sent.
    lease_renewals: counter,
    /// Incarnations taken.
    incarnations: counter,
    /// Nodes ignored: too many.
    nodes_ignored: counter,
}
