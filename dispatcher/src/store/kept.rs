//! What a store keeps: entries of logs, answers, cursors, users' lists, events, routes and leases.

use bytes::Bytes;
use millrace_protocol::ids::{MessageId, Partition, SessionId};

use super::Fence;

/// Whose counter a `client_seq` is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamKey {
    /// The sender.
    pub user: String,
    /// From which device.
    pub device: String,
    /// Drawn by the client; never 0.
    pub stream: u64,
}

impl StreamKey {
    /// The stream that an entry was sent on.
    pub fn of(entry: &Entry) -> Self {
        StreamKey { user: entry.sender.clone(), device: entry.device.clone(), stream: entry.stream }
    }

    /// Whether an entry was sent on it.
    pub fn is_of(&self, entry: &Entry) -> bool {
        self.stream == entry.stream && self.user == entry.sender && self.device == entry.device
    }
}

/// What a message was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The sender's number.
    pub client_seq: u64,
    /// Of the payload and everything else that the sender chose.
    pub payload_hash: u64,
    /// Given to it.
    pub seq: u64,
    /// Given to it; its time is the server time of the answer.
    pub message_id: MessageId,
    /// Of the owner that gave them.
    pub epoch: u64,
}

impl Answer {
    /// What the sender of an entry was answered.
    pub fn of(entry: &Entry) -> Self {
        let Entry { client_seq, payload_hash, seq, message_id, epoch, .. } = *entry;
        Answer { client_seq, payload_hash, seq, message_id, epoch }
    }
}

/// A place in a log. Ordered by epoch, then seq.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// Of the entry.
    pub epoch: u64,
    /// Of the entry; 0: before the first.
    pub seq: u64,
    /// Messages up to there ([`Entry::messages`]).
    pub messages: u64,
}

/// Whose cursors are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CursorsOf {
    /// One user's, all devices and what was read.
    User(String),
    /// Everyone's, in byte order of user and device, after this pair.
    All {
        /// Exclusive; two empty names begin.
        after: (String, String),
        /// Cursors at most.
        limit: usize,
    },
}

/// What users have lists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum List {
    /// Conversation ids of groups.
    Groups,
    /// Conversation ids of direct conversations.
    Directs,
    /// Users.
    Friends,
    /// Users who asked to be friends.
    FriendRequests,
    /// Users who are blocked.
    Blocks,
    /// Named settings, and what is known of devices.
    Settings,
}

/// One item of a user's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserItem {
    /// Whose.
    pub user: String,
    /// Which list.
    pub list: List,
    /// Its name there.
    pub item: String,
    /// What becomes of it.
    pub change: Change,
}

/// What becomes of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It gets this value.
    Put(Bytes),
    /// It gets this value unless it is there already.
    Add(Bytes),
    /// It goes.
    Remove,
}

/// Where an event stands among those of its partition: the position of its write.
pub type EventId = u64;

/// An event for the business behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Grows within the partition.
    pub id: EventId,
    /// "message", or that of [`Write::Event`].
    pub kind: String,
    /// "message": the body of a Notify frame. Else JSON.
    pub body: Bytes,
}

/// One message as stored. The body is what receivers get, verbatim; the rest is what a new owner must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Conversation id.
    pub conversation: String,
    /// 1, 2, 3, … in the conversation.
    pub seq: u64,
    /// Time-ordered, unique in the cluster.
    pub message_id: MessageId,
    /// Epoch of the owner that appended it.
    pub epoch: u64,
    /// What it is, as clients are told (`millrace.client.Action`).
    pub action: u8,
    /// Entries that are messages (not edits, reactions, …), this one included, since the conversation began.
    pub messages: u64,
    /// Bytes of bodies, this one's included, since the conversation began.
    pub bytes: u64,
    /// Who sent it.
    pub sender: String,
    /// From which device.
    pub device: String,
    /// The sender's stream and number in it: a repeat is found by them. 0: it has none (the server made it).
    pub stream: u64,
    /// Dense per stream and conversation.
    pub client_seq: u64,
    /// Of the payload: a repeat with another payload is refused.
    pub payload_hash: u64,
    /// The body of the Notify frame that receivers get.
    pub notify: Bytes,
}

/// A session as registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Whose.
    pub user: String,
    /// Which device; one session each.
    pub device: String,
    /// For the policy.
    pub platform: String,
    /// Where.
    pub session: SessionId,
    /// The gateway's incarnation.
    pub incarnation: u64,
    /// 0: give it the next number, above all earlier ones and not below `wall_ms`. Else it registers again under this one.
    pub login_number: u64,
    /// Wall clock, ms since 1970.
    pub wall_ms: u64,
    /// Other devices on the same platform lose.
    pub newest_wins: bool,
    /// Who owns the user's partition registers it: [`super::StoreError::Fenced`] when that claim was lost. Two tries of one
    /// client have one login number, and one that reaches the store late must not take the place of a later one, which
    /// another owner registered. `None`: not compared.
    pub claim: Option<(Partition, Fence)>,
}

/// Where one device of a user is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Which device.
    pub device: String,
    /// Its platform.
    pub platform: String,
    /// Gateway, shard, slot, generation.
    pub session: SessionId,
    /// The gateway's incarnation: a lapsed lease voids all routes under it.
    pub incarnation: u64,
    /// The highest wins.
    pub login_number: u64,
}

/// A dispatcher node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Unique in the cluster.
    pub name: String,
    /// `host:port` where gateways connect.
    pub address: String,
    /// Drawn at start.
    pub incarnation: u64,
}

/// A gateway whose lease is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Gateway id.
    pub gateway: u16,
    /// Routes under another incarnation are void.
    pub incarnation: u64,
}

/// Who is alive and who owns what, as read with a heartbeat. `owners` is a hint: the fences decide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Live nodes, by name.
    pub nodes: Vec<Node>,
    /// Live gateways.
    pub gateways: Vec<Gateway>,
    /// Per partition: the node that claimed it last, and its epoch; an empty name when it was released or never claimed.
    pub owners: Vec<(String, u64)>,
    /// This node's lease was not there although it held one (the store was emptied, or the lease lapsed), or another copy
    /// of the store took over.
    pub was_missing: bool,
    /// The lease was not renewed: this incarnation holds the node's name. 0: it was.
    pub held_by: u64,
    /// What the store's own clock showed, ms since 1970; `None`: it has no other than this process's.
    pub clock_ms: Option<u64>,
}
