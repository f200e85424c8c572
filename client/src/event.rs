//! What the application is told.

use bytes::Bytes;
use millrace_protocol::messages::client::{
    Action, ConversationItem, Cursor, Deliver, Fate, FriendEvent, GroupAsked, GroupChange, GroupReceipt,
    PresenceEvent, Receipt, Standing, TypingEvent,
};
use millrace_protocol::prost::Message as _;

use crate::error::Reason;

/// An entry of a conversation by someone else, or by another device of the same user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `d:<a>:<b>`, `g:<group>` or `r:<room>`.
    pub conversation: String,
    /// Dense in the conversation.
    pub seq: u64,
    /// Epoch of the log that it was appended in.
    pub epoch: u64,
    /// Time-ordered, unique in the cluster.
    pub message_id: u64,
    /// Who sent it.
    pub sender: String,
    /// From which device.
    pub sender_device: String,
    /// When it was appended, ms since 1970.
    pub server_time_ms: u64,
    /// What the payload is: see [`Message::content`].
    pub content_kind: u32,
    /// The application's own; by [`Message::action`] also a reaction, or a change of the group.
    pub payload: Bytes,
    /// A message, what happened to an earlier one, or what became of the group.
    pub action: Action,
    /// The seq of the earlier one.
    pub refers_to: u64,
}

impl Message {
    /// What became of the group, if this is an entry of [`Action::System`].
    pub fn change(&self) -> Option<GroupChange> {
        (self.action == Action::System).then(|| GroupChange::decode(self.payload.clone()).ok()).flatten()
    }
}

impl From<Deliver> for Message {
    fn from(deliver: Deliver) -> Self {
        Message {
            action: deliver.action(),
            conversation: deliver.conversation,
            seq: deliver.seq,
            epoch: deliver.epoch,
            message_id: deliver.message_id,
            sender: deliver.sender,
            sender_device: deliver.sender_device,
            server_time_ms: deliver.server_time_ms,
            content_kind: deliver.content_kind,
            payload: deliver.payload,
            refers_to: deliver.refers_to,
        }
    }
}

/// A conversation of the user: how it is arranged, and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing {
    /// Pinned, muted, hidden.
    pub item: ConversationItem,
    /// Its end, its newest message, what is unread.
    pub standing: Standing,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A message. Nothing is given twice.
    Message(Message),
    /// The log of this conversation lost its end: what was given above `to` is not there any more. An application that
    /// keeps messages takes them back together with the position ([`crate::CursorStore`]): a process that ends before that
    /// is saved begins where it was before the cut.
    Truncated {
        /// Where.
        conversation: String,
        /// The newest entry that is left.
        to: Cursor,
    },
    /// Messages from `from` to `to`, both included, will not come: the log has them no more; or, in a room, they were
    /// not delivered.
    Gap {
        /// Where.
        conversation: String,
        /// First one missing.
        from: u64,
        /// Last one missing.
        to: u64,
    },
    /// This session is in a conversation again after a login; everything after `seq` will be delivered.
    Head {
        /// Which.
        conversation: String,
        /// Epoch of its log.
        epoch: u64,
        /// Seq of its newest message.
        seq: u64,
    },
    /// This user is no longer a member of the group.
    Removed {
        /// Which.
        conversation: String,
    },
    /// Conversations of the user, after every login; several of these may come.
    Listed(Vec<Listing>),
    /// Everything that was missed while this device was away has been given. Once after every login.
    CaughtUp,
    /// How far someone has received and read a direct conversation; or this user, on another device.
    Receipt(Receipt),
    /// How many members have received and read this user's newest message in a group.
    GroupReceipt(GroupReceipt),
    /// Someone is typing.
    Typing(TypingEvent),
    /// A watched user's devices came, went or changed.
    Presence(PresenceEvent),
    /// Someone asks to be a friend, answered, or ended it.
    Friend(FriendEvent),
    /// What became of a message that was sent with `fate_within`; once for each. Not `delivered`: not in time, as far as is
    /// known; if it is later, a [`Event::Receipt`] says so.
    Fate(Fate),
    /// Another device of this user pinned, muted or hid a conversation.
    ConversationChanged(ConversationItem),
    /// A user asks to join a group of which this one is an admin.
    GroupAsked(GroupAsked),
    /// Cursors can't be saved, and are tried again; if the process ends before, messages are given again.
    NotSaved {
        /// What the store said.
        reason: String,
    },
    /// Logged in.
    Connected {
        /// As the server packs it; for support.
        session: u64,
        /// The user that the token names.
        user: String,
        /// Whether this is a return after [`Event::Disconnected`].
        again: bool,
    },
    /// The connection is gone; the client connects again by itself.
    Disconnected {
        /// Why.
        reason: Reason,
    },
    /// The client is at its end and will not connect again. The last event.
    Ended {
        /// Why.
        reason: Reason,
    },
}
