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
//! - [`Events`] gives every message once. When the application does not take events, the socket is not read.
//!
//! The logic of numbering, repeats and pauses is sans-IO ([`outbox`], [`calls`], [`seen`], [`backoff`]); a task drives
//! it over a socket. Dropping all handles ends the task.

#![forbid(unsafe_code)]

pub mod backoff;
pub mod calls;
mod client;
mod config;
mod driver;
mod error;
mod event;
pub mod outbox;
pub mod seen;
mod wire;

pub use client::{Client, Events, SendOptions};
pub use config::{Config, TokenSource, Transport};
pub use error::{ConnectError, Reason, SendError};
pub use event::{Event, Message};
pub use millrace_protocol::messages::client::{Code, Joined, Members, SendAck};

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
