//! One client: what it holds between events. What it does is in [`super::worker`].

use millrace_edge::Conn;
use millrace_protocol::client_session::ClientSession;

use crate::ledger::Track;
use crate::world::{Kind, World};

/// Where a client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// No connection, and none is coming.
    Away,
    /// A timer will connect it.
    Waiting,
    /// The edge connects.
    Connecting,
    /// The WebSocket handshake is on its way.
    Opening,
    /// The login is on its way.
    LoggingIn,
    /// Logged in.
    Inside,
    /// Requests to join are on their way.
    Joining,
    /// In all its conversations.
    Ready,
    /// We closed it, and the edge has not said so yet.
    Closing,
}

impl State {
    /// Whether there is a connection that frames can be sent on.
    pub(super) fn is_inside(self) -> bool {
        matches!(self, State::Inside | State::Joining | State::Ready)
    }

    /// Whether a connection or login is under way.
    pub(super) fn is_arriving(self) -> bool {
        matches!(self, State::Connecting | State::Opening | State::LoggingIn)
    }
}

/// What waits for an answer from an earlier life of the connection must not be taken for one of this.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) session: ClientSession,
    /// Valid from Connecting to Closing.
    pub(super) conn: Conn,
    /// Waits for the send in flight.
    pub(super) out: Vec<u8>,
    pub(super) tracks: Vec<Track>,
    pub(super) ticket: Option<Box<[u8]>>,
    /// When its login was due, in microseconds since boot.
    pub(super) due_us: u64,
    /// The server asked to stay away so long, in ms; obeyed at the next attempt.
    pub(super) retry_after_ms: u32,
    /// Head notifications that still come.
    pub(super) heads: u32,
    pub(super) state: State,
    pub(super) in_flight: bool,
    /// A timer for its heartbeat runs.
    pub(super) beats: bool,
    /// Its first heartbeat on this connection is due then; the timer may be of an earlier one.
    pub(super) beat_at_us: u64,
    /// It was in its groups once: they come back by themselves.
    pub(super) is_member: bool,
    /// Tries of what it is at.
    pub(super) tries: u16,
    /// Place in the list of what it joins.
    pub(super) nth_join: u16,
    /// The first request to join went behind the login, without waiting for its answer.
    pub(super) asked_early: bool,
}

impl Client {
    pub(super) fn new() -> Self {
        Client {
            session: ClientSession::tcp(),
            conn: Conn { slot: 0, generation: 0 },
            out: Vec::new(),
            tracks: Vec::new(),
            ticket: None,
            due_us: 0,
            retry_after_ms: 0,
            heads: 0,
            state: State::Away,
            in_flight: false,
            beats: false,
            beat_at_us: 0,
            is_member: false,
            tries: 0,
            nth_join: 0,
            asked_early: false,
        }
    }

    /// Membership is durable: a client that comes back is in its groups without asking.
    pub(super) fn skip_groups(&mut self, world: &World, global: u32) {
        let group = |nth: u16| world.joins(global, nth.into()).is_some_and(|c| world.kind(c) == Kind::Group);
        while group(self.nth_join) {
            self.nth_join += 1;
        }
    }

    /// Forgets what belonged to the connection that ended.
    pub(super) fn reset(&mut self) {
        self.out = Vec::new();
        self.in_flight = false;
        self.heads = 0;
        self.nth_join = 0;
        self.asked_early = false;
    }
}
