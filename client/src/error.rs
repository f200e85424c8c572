//! What can go wrong, in the application's terms.

use std::time::Duration;

use millrace_protocol::messages::client::{Code, Refused};

/// Why a message or request did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The server refused it, and trying again unchanged is of no use.
    #[error("{code:?}: {reason}")]
    Refused {
        /// What to act on.
        code: Code,
        /// For people.
        reason: String,
    },
    /// No answer came before the deadline. Whether it was carried out is not known.
    #[error("no answer before the deadline; whether it was carried out is not known")]
    Deadline,
    /// It was sent, its answer was lost, and the server takes no repeat of it any more. Whether it was, or will be, carried
    /// out is not known.
    #[error("its answer was lost; whether it was carried out is not known")]
    Unknown,
    /// Too much waits in this conversation already: slow down.
    #[error("too many messages wait in this conversation")]
    TooManyPending,
    /// It can never be sent: a name or conversation id that is not valid.
    #[error("{0}")]
    Invalid(String),
    /// The client has ended: see [`Event::Ended`](crate::Event::Ended).
    #[error("the client has ended")]
    Ended,
}

impl From<&Refused> for SendError {
    fn from(refused: &Refused) -> Self {
        SendError::Refused { code: refused.code(), reason: refused.reason.clone() }
    }
}

/// Why a connection ended, or was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The server said so.
    #[error("{code:?}: {reason}")]
    Server {
        /// What to act on.
        code: Code,
        /// For people.
        reason: String,
    },
    /// The token's source failed.
    #[error("no token: {0}")]
    Token(String),
    /// Address, network or transport.
    #[error("{0}")]
    Network(String),
    /// The server was silent for too long.
    #[error("the server was silent for {0:?}")]
    Silent(Duration),
    /// [`Client::logout`](crate::Client::logout) was called, or every handle was dropped.
    #[error("the application left")]
    Left,
}

impl Reason {
    pub(crate) fn refused(refused: &Refused) -> Self {
        Reason::Server { code: refused.code(), reason: refused.reason.clone() }
    }

    /// Whether connecting again can't help: another login took over, the session was ended, or the credentials and
    /// names are wrong.
    pub fn is_final(&self) -> bool {
        match self {
            Reason::Server { code, .. } => matches!(
                code,
                Code::BadToken
                    | Code::TokenExpired
                    | Code::Forbidden
                    | Code::Displaced
                    | Code::LoggedOut
                    | Code::BadRequest
            ),
            Reason::Left => true,
            Reason::Token(_) | Reason::Network(_) | Reason::Silent(_) => false,
        }
    }
}

/// Why [`Client::connect`](crate::Client::connect) gave up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// There is no use in trying again.
    #[error("{0}")]
    Final(Reason),
    /// Nothing worked before the deadline; this was the last failure.
    #[error("not connected before the deadline: {0}")]
    Deadline(Reason),
    /// The configuration can't work.
    #[error("{0}")]
    Config(String),
}
