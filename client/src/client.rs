//! The handle of a client, and the stream of its events. What can be asked for is in the neighbours: [`crate::messages`],
//! [`crate::conversations`], [`crate::groups`], [`crate::people`].

use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::conversation::{Conversation, is_name};
use millrace_protocol::messages::client::SendAck;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::config::Config;
use crate::core::Outgoing;
use crate::driver::{Command, Driver};
use crate::error::{ConnectError, SendError};
use crate::event::Event;
use crate::taken::Taken;

/// Commands that wait for the client's task; callers wait for room.
const COMMANDS_MAX: usize = 256;

/// A connected user. Cheap to clone; when the last clone is dropped, the connection is closed.
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    request_deadline: Duration,
}

/// A message in the outbox: it is sent whether this is waited for or not.
#[derive(Debug)]
pub struct Posted {
    stored: oneshot::Receiver<Result<SendAck, SendError>>,
}

impl Posted {
    /// Waits until it is stored.
    ///
    /// # Errors
    /// See [`SendError`]. After [`SendError::Deadline`] and [`SendError::Unknown`] it may have been stored or not.
    pub async fn stored(self) -> Result<SendAck, SendError> {
        self.stored.await.unwrap_or(Err(SendError::Ended))
    }
}

/// What happens, in order. Bounded by `events_max`: take events, or the server is not listened to. When it is dropped,
/// nothing is received any more, and messages wait at the server.
#[derive(Debug)]
pub struct Events {
    receiver: mpsc::UnboundedReceiver<(u64, Event)>,
    taken: Arc<Taken>,
    confirms: bool,
    /// The number of the last event that was returned.
    last: u64,
}

impl Events {
    /// The next event; `None` after [`Event::Ended`].
    pub async fn next(&mut self) -> Option<Event> {
        let next = self.receiver.recv().await;
        self.returned(next)
    }

    /// The next event, if one is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        let next = self.receiver.try_recv().ok();
        self.returned(next)
    }

    /// Everything that was returned so far is done with. Needed only with [`Config::confirms`].
    pub fn confirm(&mut self) {
        self.taken.take(self.last);
    }

    fn returned(&mut self, next: Option<(u64, Event)>) -> Option<Event> {
        let (number, event) = next?;
        self.last = number;
        if !self.confirms {
            self.confirm();
        }
        Some(event)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.taken.leave();
    }
}

impl Client {
    /// Connects and logs in, trying again until `connect_deadline`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(config: Config) -> Result<(Client, Events), ConnectError> {
        config.check()?;
        let kept = match config.acknowledges {
            true => config.cursors.load().map_err(|error| ConnectError::Config(error.to_string()))?,
            false => Vec::new(),
        };
        let (request_deadline, confirms) = (config.request_deadline, config.confirms);
        let (commands, from_handles) = mpsc::channel(COMMANDS_MAX);
        // Bounded by the machine, which reads nothing while `events_max` wait.
        let (to_application, receiver) = mpsc::unbounded_channel();
        let (first, connected) = oneshot::channel();
        let taken = Arc::new(Taken::default());
        let driver = Driver::new(config, kept, from_handles, to_application, Arc::clone(&taken), first);
        tokio::spawn(driver.run());
        let events = Events { receiver, taken, confirms, last: 0 };
        match connected.await {
            Ok(outcome) => outcome.map(|()| (Client { commands, request_deadline }, events)),
            Err(_) => {
                Err(ConnectError::Config("the client's task ended: the runtime is shutting down".into()))
            }
        }
    }

    /// Ends the session at the server (its resume ticket is void), and the client. When it returns, the cursors of what
    /// was taken are saved: a process that ends without it may be given its last messages again.
    pub async fn logout(self) {
        let (done, finished) = oneshot::channel();
        if self.commands.send(Command::Logout { done }).await.is_ok() {
            // Gone without an answer: it has ended, which is what was asked for.
            let _ = finished.await;
        }
    }

    /// Asks for something that is answered.
    pub(crate) async fn call(&self, op: Op) -> Result<Outcome, SendError> {
        let (done, answered) = oneshot::channel();
        let deadline = Instant::now() + self.request_deadline;
        self.command(Command::Call { op, deadline, done }).await?;
        answered.await.unwrap_or(Err(SendError::Ended))
    }

    /// Queues something for a conversation.
    pub(crate) async fn outgoing(
        &self,
        conversation: &str,
        message: Outgoing,
        deadline: Option<Duration>,
    ) -> Result<Posted, SendError> {
        check_conversation(conversation)?;
        let (done, stored) = oneshot::channel();
        let deadline = Instant::now() + deadline.unwrap_or(self.request_deadline);
        let conversation = conversation.to_string();
        self.command(Command::Send { conversation, message, deadline, done }).await?;
        Ok(Posted { stored })
    }

    pub(crate) async fn command(&self, command: Command) -> Result<(), SendError> {
        self.commands.send(command).await.map_err(|_| SendError::Ended)
    }
}

/// Takes the answer that a request has, and an error for any other.
macro_rules! answer {
    ($call:expr, $outcome:ident) => {
        match $call.await? {
            millrace_protocol::messages::client::response::Outcome::$outcome(answer) => Ok(answer),
            other => Err($crate::client::unexpected(&other)),
        }
    };
}
pub(crate) use answer;

pub(crate) fn unexpected(outcome: &Outcome) -> SendError {
    SendError::Invalid(format!("the server answered something else: {outcome:?}"))
}

pub(crate) fn check_conversation(conversation: &str) -> Result<(), SendError> {
    match Conversation::parse(conversation) {
        Some(_) => Ok(()),
        None => Err(SendError::Invalid(format!("{conversation:?} is no conversation id"))),
    }
}

pub(crate) fn check_name(name: &str) -> Result<(), SendError> {
    match is_name(name) {
        true => Ok(()),
        false => Err(SendError::Invalid(format!("{name:?} is no name of a user, group or room"))),
    }
}
