//! What the application is told.

use bytes::Bytes;

use crate::error::Reason;

/// A message of someone else, or of another device of the same user.
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
    /// The application's own.
    pub content_kind: u32,
    /// The application's own.
    pub payload: Bytes,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message. Nothing is given twice.
    Message(Message),
    /// Messages from `from` to `to`, both included, were not delivered on this connection.
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
