//! What can happen to a client, and what it wants done. Closed enums, so that the compiler finds every place where a new
//! one must be handled.

use bytes::Bytes;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{self, Cursor, Notify, Response};

use crate::error::{ConnectError, Reason, SendError};

/// What the application sends to a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outgoing {
    /// A message, or what happens to an earlier one.
    pub action: client::Action,
    /// The seq of the earlier one.
    pub refers_to: u64,
    /// The application's own.
    pub payload: Bytes,
    /// The application's own.
    pub content_kind: u32,
    /// Ask for an [`crate::Event::Fate`] within this time; 0: do not.
    pub fate_within_ms: u32,
}

/// One thing that happened. Those with a `conn` of an older connection are ignored.
#[derive(Clone, Debug)]
pub enum Event {
    /// Nothing but that time passed.
    Tick,
    /// The answer to [`Action::Token`].
    Token {
        /// As the action said.
        conn: u64,
        /// A token, or why there is none.
        token: Result<String, String>,
    },
    /// The answer to [`Action::Connect`]: frames can be sent.
    Opened {
        /// As the action said.
        conn: u64,
    },
    /// Bytes arrived, of whatever kind.
    Heard {
        /// On which connection.
        conn: u64,
    },
    /// A Response arrived.
    Response {
        /// On which connection.
        conn: u64,
        /// As decoded.
        response: Response,
    },
    /// A Notify arrived.
    Notify {
        /// On which connection.
        conn: u64,
        /// As decoded.
        notify: Notify,
    },
    /// The connection is gone, or could not be made.
    Lost {
        /// Which.
        conn: u64,
        /// Why, as far as the socket knows.
        reason: Reason,
    },
    /// The application sends; [`Action::Settle`] follows.
    Send {
        /// Comes back with the outcome. Unique among what is not settled, as for the others.
        key: u64,
        /// To which conversation.
        conversation: String,
        /// What.
        message: Outgoing,
        /// When to give up.
        deadline_ms: u64,
    },
    /// The application asks something else; [`Action::Settle`] follows. Room joins and presence are done again after
    /// every login.
    Call {
        /// Comes back with the outcome.
        key: u64,
        /// Neither Login, Logout, Send nor Sync.
        op: Op,
        /// When to give up.
        deadline_ms: u64,
    },
    /// The user is typing, or what else the application means by it. Nothing follows.
    Typing {
        /// Where.
        conversation: String,
        /// The application's own.
        what: u32,
    },
    /// The application took everything up to this number of [`Action::Tell`].
    Taken {
        /// The last one taken.
        number: u64,
    },
    /// The application will take no more events.
    Deaf,
    /// End the session at the server, then the client; [`Action::Settle`] and [`Action::End`] follow.
    Logout {
        /// Comes back.
        key: u64,
    },
    /// End the client; [`Action::End`] follows. The session lives on until the server misses its heartbeats.
    Leave,
}

/// How far the application took a conversation, and what tells its log from another copy of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The last entry taken.
    pub cursor: Cursor,
    /// The first entry that is known of each epoch, lowest first; at most [`EPOCHS_MAX`]. Copies of a store that take turns
    /// (failovers that were not agreed upon) may have other entries under the same seqs, of other epochs.
    pub epochs: Vec<Cursor>,
}

/// Changes of the epoch that are remembered of a conversation: each is a new owner's claim.
pub const EPOCHS_MAX: usize = 16;

/// A position to be kept, or (`None`) to be forgotten.
pub type Saved = (String, Option<Position>);

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Get a token: [`Event::Token`] follows.
    Token {
        /// For the answer.
        conn: u64,
    },
    /// Connect: [`Event::Opened`] or [`Event::Lost`] follows.
    Connect {
        /// Names the connection from now on.
        conn: u64,
        /// `host:port`, one of the settings'.
        address: String,
    },
    /// Send a request on the present connection.
    Request {
        /// 0: it is not answered.
        id: u64,
        /// What is asked.
        op: Op,
    },
    /// Send a heartbeat on the present connection.
    Ping,
    /// Close the present connection, or stop making it. No [`Event::Lost`] is needed.
    Close,
    /// Give this to the application.
    Tell {
        /// 1, 2, 3, …, for [`Event::Taken`].
        number: u64,
        /// What happened.
        event: crate::Event,
    },
    /// A message or request of the application is settled.
    Settle {
        /// As the application's event said.
        key: u64,
        /// `SendAck` for a message.
        outcome: Result<Outcome, SendError>,
    },
    /// Keep these positions. Losing a save shows messages again after a restart; it loses none.
    Save(Vec<Saved>),
    /// Comes once: the first login succeeded, or was given up.
    First(Result<(), ConnectError>),
    /// The client is at its end. Only [`Event::Taken`] is listened to from now on, so that what is taken late is saved.
    End(Reason),
}
