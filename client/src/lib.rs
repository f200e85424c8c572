//! The Rust client SDK: connect, log in, send, receive, and never think about the connection again.
//!
//! ```no_run
//! use millrace_client::{Client, Config, Event, conversation};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let (client, mut events) = Client::connect(Config::new(["127.0.0.1:7400"], "a token")).await?;
//! client.join_room("lobby").await?;
//! let ack = client.send(&conversation::room("lobby"), "hello").await?;
//! println!("stored as number {}", ack.seq);
//! while let Some(event) = events.next().await {
//!     if let Event::Message(message) = event {
//!         println!("{}: {:?}", message.sender, message.payload);
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! What is behind it:
//! - [`Client::send`] returns when the message is stored. Until then it is sent as often as it takes, under the same
//!   number, so that it is stored once and in order, whatever breaks.
//! - Connections are made again by themselves, with jitter, obeying what servers ask for; rooms are joined again.
//! - [`Events`] gives every message of a group or direct conversation once and in order, also what was sent while this
//!   device was away, and also after the process restarts if [`Config::cursors`] names a file. When the application does
//!   not take events, the socket is not read.
//!
//! The logic is sans-IO, in [`core`]; a task drives it over a socket. Dropping all handles ends the task.

#![forbid(unsafe_code)]

mod client;
mod config;
mod content;
mod conversations;
pub mod core;
mod cursors;
mod driver;
mod error;
mod event;
mod groups;
mod messages;
mod people;
mod saver;
mod taken;
mod wire;

pub use client::{Client, Events, Posted};
pub use config::{Config, TokenSource, Transport};
pub use content::Content;
pub use conversations::{History, Window};
pub use core::{Position, Saved, Start};
pub use cursors::{CursorStore, Cursors, FileCursors, MemoryCursors};
pub use error::{ConnectError, Reason, SendError};
pub use event::{Event, Listing, Message};
pub use groups::{GroupChanges, NewGroup};
pub use messages::SendOptions;
/// Everything that the protocol has, as its schema names it.
pub use millrace_protocol::messages::client as schema;
pub use millrace_protocol::messages::client::{
    Action, Code, ContentKind, ConversationItem, ConversationPage, Cursor, DevicePresence, Fate, FriendEvent,
    GroupAsked, GroupChange, GroupReceipt, GroupState, JoinPolicy, Joined, Members, PeopleList, PeoplePage,
    Person, PresenceEvent, PresenceState, Receipt, ReceiptPage, Reference, Role, SendAck, Standing,
    TypingEvent, Visibility,
};

/// Ids of conversations.
pub mod conversation {
    pub use millrace_protocol::conversation::direct;

    /// The id of a group's conversation.
    pub fn group(group: &str) -> String {
        format!("g:{group}")
    }

    /// The id of a room's conversation.
    pub fn room(room: &str) -> String {
        format!("r:{room}")
    }
}
