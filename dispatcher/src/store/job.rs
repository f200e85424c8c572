//! What a store is asked, and what it answers.

use std::sync::Arc;

use bytes::Bytes;
use millrace_protocol::ids::{MessageId, Partition, SessionId};

use super::kept::{
    Answer, Cursor, CursorsOf, Entry, Event, EventId, List, Node, Registration, Route, StreamKey, UserItem,
    View,
};
use super::{Fence, StoreError};

/// One thing for the store to do. `ticket` comes back with the answer.
#[derive(Debug)]
pub struct Job {
    /// The shard's own number for it.
    pub ticket: u64,
    /// What to do.
    pub work: Work,
}

/// The kinds of jobs.
#[derive(Debug)]
pub enum Work {
    /// Takes the partition: an epoch above the stored one, above `above`, and not below the clock, and a new nonce. Refused
    /// [`StoreError::Held`] while another node that is alive holds it.
    Claim {
        /// Which partition.
        partition: Partition,
        /// Who claims.
        node: String,
        /// The node's incarnation.
        incarnation: u64,
        /// Wall clock of the claimer, ms since 1970. A store on a machine of its own goes by its own.
        wall_ms: u64,
        /// An epoch that the claimer knows, perhaps from another copy of the store.
        above: u64,
    },
    /// Gives the partition up, so that another may claim it at once. Answered [`Outcome::Released`].
    Release {
        /// Which partition.
        partition: Partition,
        /// Must be the current one.
        fence: Fence,
    },
    /// One batch of a partition. Answered [`Outcome::Appended`].
    Append(Batch),
    /// Head, membership and state of one conversation, read under the fence. Answered [`Outcome::Loaded`].
    Load {
        /// Which partition.
        partition: Partition,
        /// Must be the current one.
        fence: Fence,
        /// Conversation id.
        conversation: String,
        /// Also this stream's answers.
        stream: Option<StreamKey>,
    },
    /// What one stream was answered, read under the fence: [`Outcome::Answers`].
    Answers {
        /// Which partition.
        partition: Partition,
        /// Must be the current one.
        fence: Fence,
        /// Conversation id.
        conversation: String,
        /// Whose.
        stream: StreamKey,
    },
    /// Cursors of a conversation, read under the fence: [`Outcome::Cursors`].
    Cursors {
        /// Which partition.
        partition: Partition,
        /// Must be the current one.
        fence: Fence,
        /// Conversation id.
        conversation: String,
        /// Whose.
        of: CursorsOf,
    },
    /// Entries of a conversation with `after < seq <= through`, at most `entries_max` of them and `limit_bytes` of bodies
    /// (at least one entry), with the head: [`Outcome::Entries`].
    Read {
        /// Which partition.
        partition: Partition,
        /// If given: must be the current one (a paused owner must not answer with an old head).
        fence: Option<Fence>,
        /// Conversation id.
        conversation: String,
        /// Exclusive.
        after: u64,
        /// Inclusive.
        through: u64,
        /// Bytes of bodies to stop at.
        limit_bytes: usize,
        /// Entries to stop at.
        entries_max: usize,
        /// From `through` down; the entries come newest first.
        newest_first: bool,
    },
    /// Changes items of users' lists, each in its user's partition; idempotent: [`Outcome::UserItemsDone`].
    UserItems {
        /// What changes.
        items: Vec<UserItem>,
        /// If given: nothing changes unless this is the partition's claim, as for what follows from what was appended
        /// under it. A Redis Cluster compares it for the lists that are in its partition.
        claim: Option<(Partition, Fence)>,
    },
    /// One page of a user's list, in byte order of the items: [`Outcome::UserList`].
    UserList {
        /// Whose.
        user: String,
        /// Which.
        list: List,
        /// Items after this one.
        after: String,
        /// Items at most.
        limit: usize,
    },
    /// Events of a partition after a position, oldest first: [`Outcome::Events`]. The embedded store only; Redis has
    /// streams, which consumers read themselves.
    Events {
        /// Which partition.
        partition: Partition,
        /// Exclusive.
        after: EventId,
        /// Events at most.
        limit: usize,
    },
    /// The newest event of every partition that has some: [`Outcome::EventHeads`]. The embedded store only.
    EventHeads,
    /// Registers one session on its user's key: see [`Outcome::Registered`].
    Register(Box<Registration>),
    /// Removes a route if device, session, its incarnation and login number are still those. Not fenced.
    Unregister {
        /// Whose.
        user: String,
        /// Which device.
        device: String,
        /// Compared: a session that resumed has the login number of the one before.
        session: SessionId,
        /// Compared.
        login_number: u64,
        /// Compared.
        incarnation: u64,
    },
    /// Sessions that lost their place are closed, or gone with their gateway: no claim needs to name them any more. Not fenced.
    ForgetLosers {
        /// The partition of their users.
        partition: Partition,
        /// As a registration or a claim named them, with their users.
        losers: Vec<(String, Route)>,
    },
    /// All routes of these users, dead ones included (the caller judges by the view).
    Routes {
        /// Whose.
        users: Vec<String>,
    },
    /// Renews this node's lease and reads the whole view. Not renewed ([`View::held_by`]) while another life of that name
    /// holds it than these two: what a process that has ended sent may come late.
    Heartbeat {
        /// This node.
        node: Node,
        /// The incarnation whose place it takes, which loses a lease that it still has; 0: there is none.
        replaces: u64,
        /// Length of the lease.
        ttl_ms: u32,
    },
    /// Ends this node's lease now (a clean exit).
    Leave {
        /// This node's name.
        node: String,
        /// Compared.
        incarnation: u64,
    },
    /// Grants or renews a gateway's lease. Refused while another incarnation than these two holds it; and what was granted
    /// before, when that is gone or another copy of the store has taken over: whoever held it has to begin anew, and is told
    /// until it does. That another request of the same incarnation, which came late, was granted anew does not help it.
    GatewayLease {
        /// Gateway id.
        gateway: u16,
        /// Its incarnation.
        incarnation: u64,
        /// The same process's previous incarnation, which loses a lease that it still has; 0: there is none.
        replaces: u64,
        /// The name of what was granted to this incarnation; 0: nothing was, as far as it knows.
        grant: u64,
        /// Length of the lease.
        ttl_ms: u32,
    },
}

/// One batch of one partition: checked whole before its first write.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Which partition.
    pub partition: Partition,
    /// Must be the current one.
    pub fence: Fence,
    /// The position that the first write takes; every write takes one.
    pub position: u64,
    /// In order.
    pub writes: Vec<Write>,
    /// Messages of this batch, by conversation and seq, that a new owner must fan out again unless a later batch says
    /// that they were ([`Outcome::Claimed`] names them).
    pub outstanding: Vec<(String, u64)>,
    /// What batches before this position named as outstanding was fanned out.
    pub fanned_out: u64,
}

/// One write of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Appends a message to its conversation's log, and its answer to its stream's, if it has one.
    Message(Entry),
    /// Puts another record in the place of an entry that is there (a recalled message loses its payload). Who sent it and
    /// what that was answered stays the same. One whose seq is not in the log any more changes nothing.
    Replace(Entry),
    /// Creates a group; the owner has checked that there is none.
    GroupCreate {
        /// Conversation id.
        conversation: String,
        /// With the creator.
        members: Vec<String>,
        /// First membership version.
        version: u64,
    },
    /// Changes a group's members.
    Members {
        /// Conversation id.
        conversation: String,
        /// Added.
        add: Vec<String>,
        /// Removed.
        remove: Vec<String>,
        /// The membership version after this.
        version: u64,
    },
    /// Sets one item of a conversation's state, or removes it. All of a conversation's state is loaded with it: its
    /// owner keeps it small.
    State {
        /// Conversation id.
        conversation: String,
        /// Name of the item.
        key: String,
        /// `None`: removes it.
        value: Option<Bytes>,
    },
    /// Moves a cursor forward: one that is not above the stored one (by epoch, then seq) changes nothing.
    Cursor {
        /// Conversation id.
        conversation: String,
        /// Whose.
        user: String,
        /// Which device; empty: what the user has read.
        device: String,
        /// To here.
        cursor: Cursor,
    },
    /// Drops entries below a seq: they are past their retention. The newest entry always stays.
    Trim {
        /// Conversation id.
        conversation: String,
        /// The lowest that stays.
        first_seq: u64,
    },
    /// An event for the business behind, when events are switched on (messages and group changes need none of these:
    /// their entries are events too).
    Event {
        /// What it is: "login", "logout", "receipt".
        kind: &'static str,
        /// JSON.
        body: Bytes,
    },
}

/// An answer.
#[derive(Debug)]
pub struct Done {
    /// The job's.
    pub ticket: u64,
    /// What came of it.
    pub outcome: Result<Outcome, StoreError>,
}

/// What came of a job that succeeded.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The claim holds.
    Claimed {
        /// To be shown with every write.
        fence: Fence,
        /// Where the next batch begins.
        position: u64,
        /// The highest message id ever stored in the partition.
        last_message_id: MessageId,
        /// Messages that may not have been fanned out: conversation and seq, oldest first.
        outstanding: Vec<(String, u64)>,
        /// Sessions that lost their place and may not have been closed, with their users: at most [`super::LOSERS_TOLD_MAX`].
        losers: Vec<(String, Route)>,
        /// The copy of the store that granted it: as for leases.
        copy: u64,
    },
    /// The partition is given up.
    Released,
    /// The batch is durable.
    Appended,
    /// A conversation.
    Loaded(Loaded),
    /// Entries, and where the log begins and ends.
    Entries {
        /// In order of seq, up or down.
        entries: Vec<Entry>,
        /// Lowest seq kept (1 if nothing was trimmed).
        first_seq: u64,
        /// Highest seq; 0: nothing was ever written.
        head: u64,
    },
    /// A stream's answers, oldest first, at most [`ANSWERS_MAX`]; none: it is not known.
    Answers(Vec<Answer>),
    /// Cursors: user, device (empty: what was read), cursor; in byte order of user and device.
    Cursors(Vec<(String, String, Cursor)>),
    /// Users' lists were changed.
    UserItemsDone,
    /// A page of a list.
    UserList {
        /// Names and values.
        items: Vec<(String, Bytes)>,
        /// There are further ones.
        more: bool,
    },
    /// Events, oldest first.
    Events(Vec<Event>),
    /// See [`Work::EventHeads`]; by partition.
    EventHeads(Vec<(Partition, EventId)>),
    /// The session is registered.
    Registered {
        /// Its number.
        login_number: u64,
        /// It lost to a session with a higher number: it must be closed.
        lost: bool,
        /// Sessions that lost to it, those that it resumed included; and what lost its place earlier under a claim, until
        /// [`Work::ForgetLosers`].
        losers: Vec<Route>,
        /// The user's groups (conversation ids).
        groups: Vec<String>,
    },
    /// Gone, or it was another's.
    Unregistered,
    /// They are named no more.
    LosersForgotten,
    /// Routes, one list per user asked for, in that order.
    Routes(Vec<Vec<Route>>),
    /// The node's lease holds.
    View(Arc<View>),
    /// The lease was ended.
    Left,
    /// The gateway's lease.
    GatewayLease {
        /// Its name, the same until it lapses, the store loses it or another copy of the store takes over. 0: another
        /// process holds this id, or what was named is gone.
        grant: u64,
    },
}

/// A conversation as a new owner finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Highest seq; 0 if nothing was ever written.
    pub head: u64,
    /// Epoch of the entry there.
    pub head_epoch: u64,
    /// [`Entry::messages`] of the newest entry.
    pub messages: u64,
    /// [`Entry::bytes`] of the newest entry.
    pub bytes: u64,
    /// Lowest seq that the log holds (1 if nothing was trimmed).
    pub first_seq: u64,
    /// Groups: members and membership version; `None` if there is no such group.
    pub members: Option<(Vec<String>, u64)>,
    /// State, in byte order of the keys.
    pub state: Vec<(String, Bytes)>,
    /// Answers of the stream that was asked for, oldest first.
    pub answers: Vec<Answer>,
}
