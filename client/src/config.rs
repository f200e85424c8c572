//! How to connect, and as whom.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::conversation::is_name;

use crate::core::{Settings, Start};
use crate::cursors::Cursors;
use crate::error::ConnectError;

type TokenFuture = Pin<Box<dyn Future<Output = Result<String, String>> + Send>>;

/// Where tokens come from: a fixed one, or a function that is asked whenever a resume ticket will not do.
#[derive(Clone)]
pub struct TokenSource(Arc<dyn Fn() -> TokenFuture + Send + Sync>);

impl TokenSource {
    /// Asks this function; an error is tried again with backoff.
    pub fn from_fn<F, Fut>(source: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, String>> + Send + 'static,
    {
        TokenSource(Arc::new(move || Box::pin(source())))
    }

    pub(crate) async fn get(&self) -> Result<String, String> {
        (self.0)().await
    }
}

impl From<String> for TokenSource {
    fn from(token: String) -> Self {
        TokenSource::from_fn(move || std::future::ready(Ok(token.clone())))
    }
}

impl From<&str> for TokenSource {
    fn from(token: &str) -> Self {
        token.to_string().into()
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSource(…)")
    }
}

/// How frames travel. One port of a gateway takes both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Framed TCP.
    #[default]
    Tcp,
    /// WebSocket, for networks that let nothing else through.
    WebSocket,
}

/// How to connect, and as whom. Make one with [`Config::new`] and change what differs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Gateways, `host:port`. They are tried in turn.
    pub addresses: Vec<String>,
    /// For the login.
    pub token: TokenSource,
    /// Names this installation: one session per user and device. 1-64 of `A-Z a-z 0-9 . _ - @ +`.
    pub device: String,
    /// "ios", "web", "desktop", …: the server's policy for several devices goes by it.
    pub platform: String,
    /// How frames travel.
    pub transport: Transport,
    /// Path of the WebSocket request.
    pub path: String,
    /// Events that wait for the application. When they are this many, the socket is not read: the server sees a slow
    /// consumer, and in the end closes the connection.
    pub events_max: usize,
    /// Deadline of messages and requests that are given none.
    pub request_deadline: Duration,
    /// Time for connecting and logging in once, and for the first login altogether in [`Client::connect`].
    ///
    /// [`Client::connect`]: crate::Client::connect
    pub connect_deadline: Duration,
    /// First and longest bound of the pause between connections.
    pub backoff: (Duration, Duration),
    /// Groups and direct conversations are received reliably: a cursor is kept of each, what was missed is read from
    /// the server's log, and the server is told what was taken. Without, only what is live is received, like in rooms.
    pub acknowledges: bool,
    /// Where the cursors are kept. In memory if nothing else is given: a process that restarts begins at the server's.
    pub cursors: Cursors,
    /// Where this device begins in a conversation of which it has no cursor.
    pub start: Start,
    /// What is taken: by default everything that [`Events::next`] has returned, so that nothing is shown twice. If
    /// true, only what [`Events::confirm`] was called after, so that what is being worked on when the process dies
    /// comes again.
    ///
    /// [`Events::next`]: crate::Events::next
    /// [`Events::confirm`]: crate::Events::confirm
    pub confirms: bool,
    /// Messages from before joining a room that are given after it, at most 256.
    pub room_replay: u32,
}

impl Config {
    /// The defaults, with these addresses and this token, on a device named "default" of platform "desktop".
    pub fn new<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
        token: impl Into<TokenSource>,
    ) -> Self {
        Config {
            addresses: addresses.into_iter().map(Into::into).collect(),
            token: token.into(),
            device: "default".into(),
            platform: "desktop".into(),
            transport: Transport::Tcp,
            path: "/".into(),
            events_max: 1_024,
            request_deadline: Duration::from_secs(30),
            connect_deadline: Duration::from_secs(10),
            backoff: (Duration::from_millis(100), Duration::from_secs(30)),
            acknowledges: true,
            cursors: Cursors::in_memory(),
            start: Start::default(),
            confirms: false,
            room_replay: 0,
        }
    }

    pub(crate) fn settings(&self) -> Settings {
        let ms = |duration: Duration| duration.as_millis() as u64;
        Settings {
            addresses: self.addresses.clone(),
            device: self.device.clone(),
            platform: self.platform.clone(),
            acknowledges: self.acknowledges,
            start: self.start,
            events_max: self.events_max,
            room_replay: self.room_replay,
            connect_deadline_ms: ms(self.connect_deadline),
            request_deadline_ms: ms(self.request_deadline),
            backoff_ms: (ms(self.backoff.0), ms(self.backoff.1)),
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConnectError> {
        let wrong = |what: &str| Err(ConnectError::Config(what.into()));
        if self.addresses.is_empty() {
            return wrong("no address: give at least one gateway as host:port");
        }
        if !is_name(&self.device) || !is_name(&self.platform) {
            return wrong("device and platform must be 1 to 64 of A-Z a-z 0-9 . _ - @ +");
        }
        if self.events_max == 0 {
            return wrong("events_max must be at least 1");
        }
        Ok(())
    }
}
