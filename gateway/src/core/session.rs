//! One client connection of this shard, in at most 96 bytes.
//!
//! A million idle sessions are held, so whatever only some of them need at some time is elsewhere: names are interned,
//! queued frames are nodes of a shared pool, what a login carries is boxed until LoginAck, what a client owes an
//! acknowledgement for is boxed while it does.

use millrace_protocol::bytes::Bytes;
use millrace_protocol::transport::Transport;

use super::event::Conn;
use super::limits::Config;
use super::outbox::Queue;
use super::owed::Owed;
use super::topics::TopicList;
use super::users::NONE;
use millrace_protocol::ids::SessionId;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing but heartbeats yet.
    New,
    /// The shell checks its credential.
    Verifying,
    /// Its route is being written.
    Registering,
    /// Logged in.
    Live,
    /// Told why; input is ignored, nothing refers to it any more; waiting for the peer, or the close deadline.
    Closing,
    /// A hard close was asked for.
    Closed,
}

/// A send is with the edge, or a LoginAck waits for what follows it (see `limits::CORK_US`).
pub const IN_FLIGHT: u8 = 1;
/// Frames travel in WebSocket messages.
pub const WEBSOCKET: u8 = 2;
/// Nothing may be sent any more.
pub const SHUT: u8 = 4;
/// A route may exist: Unregister when it ends.
pub const REGISTERED: u8 = 8;
/// A Register of a session that is already live is unanswered.
pub const REREGISTERING: u8 = 16;
/// It acknowledges what it is sent: its client said so at login.
pub const ACKNOWLEDGES: u8 = 32;
/// It counts as unauthenticated.
pub const UNAUTHENTICATED: u8 = 64;
/// It is in the queue of those to be registered.
pub const TO_REGISTER: u8 = 128;

/// What a login carries until it is answered.
#[derive(Debug)]
pub struct Login {
    /// The id of the request.
    pub request: u64,
    /// As the client says.
    pub device: String,
    /// As the client says.
    pub platform: String,
    /// Of the credential.
    pub expires_wall_ms: u64,
    /// Groups that its user became a member of while it was being registered.
    pub groups: Vec<String>,
    /// Requests that came behind it, to be done after LoginAck.
    pub early: Vec<Bytes>,
}

/// What only some sessions carry, at some times: never both at once.
#[derive(Debug)]
pub enum Aside {
    /// From its Login to its LoginAck.
    Login(Box<Login>),
    /// Live: what it was sent and has not acknowledged.
    Owed(Owed),
}

/// One connection.
pub struct Session {
    /// Its decoder.
    pub transport: Transport,
    /// See [`Aside`].
    pub aside: Option<Box<Aside>>,
    /// Given by the dispatcher; 0 before.
    pub login_number: u64,
    /// Topics that it listens to, or waits to.
    pub topics: TopicList,
    /// Frames behind the send in flight.
    pub queue: Queue,
    /// Of its slot.
    pub generation: u32,
    /// Interned, and the session is in the user's chain; NONE before its credential was checked and when it left.
    pub user: u32,
    /// Interned "device/platform".
    pub device: u32,
    /// The next session of the same user.
    pub user_next: u32,
    /// Live: the tick of the last byte. Else: the tick at which its time is over.
    pub tick: u32,
    /// The tick of its valid entry in the wheel.
    pub armed: u32,
    /// Unanswered requests.
    pub requests: u16,
    /// How far it is.
    pub state: State,
    /// See the constants.
    pub flags: u8,
}

impl Session {
    /// A connection that was just accepted.
    pub fn new(generation: u32, deadline_tick: u32) -> Self {
        Session {
            transport: Transport::new(),
            aside: None,
            login_number: 0,
            topics: TopicList::default(),
            queue: Queue::default(),
            generation,
            user: NONE,
            device: NONE,
            user_next: NONE,
            tick: deadline_tick,
            armed: 0,
            requests: 0,
            state: State::New,
            flags: UNAUTHENTICATED,
        }
    }

    /// Whether a flag is set.
    pub fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether its user is known.
    pub fn is_named(&self) -> bool {
        self.user != NONE
    }

    /// What its login carries.
    pub fn login(&self) -> Option<&Login> {
        match self.aside.as_deref()? {
            Aside::Login(login) => Some(login),
            Aside::Owed(_) => None,
        }
    }

    /// What its login carries.
    pub fn login_mut(&mut self) -> Option<&mut Login> {
        match self.aside.as_deref_mut()? {
            Aside::Login(login) => Some(login),
            Aside::Owed(_) => None,
        }
    }

    /// What its login carried: the login is over.
    pub fn take_login(&mut self) -> Option<Box<Login>> {
        self.login()?;
        match *self.aside.take()? {
            Aside::Login(login) => Some(login),
            Aside::Owed(_) => None,
        }
    }

    /// What it has not acknowledged.
    pub fn owed_mut(&mut self) -> Option<&mut Owed> {
        match self.aside.as_deref_mut()? {
            Aside::Owed(owed) => Some(owed),
            Aside::Login(_) => None,
        }
    }

    /// Whether input still counts.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, State::Closing | State::Closed)
    }

    /// How the edge calls it.
    pub fn conn(&self, slot: u32) -> Conn {
        Conn { slot, generation: self.generation }
    }

    /// How the world calls it.
    pub fn id(&self, config: &Config, slot: u32) -> SessionId {
        SessionId::new(config.gateway, config.shard, slot, self.generation)
    }
}

/// A session as admin sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its id.
    pub session: SessionId,
    /// Its device.
    pub device: String,
    /// Its platform.
    pub platform: String,
    /// Its login number, 0 while it is being registered.
    pub login_number: u64,
    /// Whether its LoginAck was sent.
    pub live: bool,
    /// Whether it speaks WebSocket.
    pub websocket: bool,
    /// Conversations that it listens to, or waits to.
    pub conversations: Vec<String>,
    /// Bytes behind its send in flight.
    pub queued_bytes: u32,
    /// Requests not answered yet.
    pub requests: u16,
    /// Milliseconds since its last byte, to a quarter of a second.
    pub idle_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_fits_96_bytes() {
        assert!(size_of::<Option<Session>>() <= 96, "{}", size_of::<Option<Session>>());
    }
}
