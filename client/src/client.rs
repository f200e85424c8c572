//! The handle of a client, and the stream of its events.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace_protocol::client_session::op;
use millrace_protocol::conversation::{Conversation, is_name};
use millrace_protocol::frame::PAYLOAD_BYTES_MAX;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Code, Joined, Members, SendAck};
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

/// What a message may be given beside its payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendOptions {
    /// The application's own; receivers get it with the message.
    pub content_kind: u32,
    /// Time until the acknowledgement; the configured one if `None`.
    pub deadline: Option<Duration>,
}

/// A connected user. Cheap to clone; when the last clone is dropped, the connection is closed.
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    request_deadline: Duration,
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
        let cursors = match config.acknowledges {
            true => config.cursors.load().map_err(|error| ConnectError::Config(error.to_string()))?,
            false => Vec::new(),
        };
        let (request_deadline, confirms) = (config.request_deadline, config.confirms);
        let (commands, from_handles) = mpsc::channel(COMMANDS_MAX);
        // Bounded by the machine, which reads nothing while `events_max` wait.
        let (to_application, receiver) = mpsc::unbounded_channel();
        let (first, connected) = oneshot::channel();
        let taken = Arc::new(Taken::default());
        let driver = Driver::new(config, cursors, from_handles, to_application, Arc::clone(&taken), first);
        tokio::spawn(driver.run());
        let events = Events { receiver, taken, confirms, last: 0 };
        match connected.await {
            Ok(outcome) => outcome.map(|()| (Client { commands, request_deadline }, events)),
            Err(_) => {
                Err(ConnectError::Config("the client's task ended: the runtime is shutting down".into()))
            }
        }
    }

    /// Sends a message and waits until it is stored. Messages to one conversation are stored in the order of these
    /// calls (of their first poll); several may be under way at a time.
    ///
    /// # Errors
    /// See [`SendError`]. After [`SendError::Deadline`] it may have been stored or not.
    pub async fn send(&self, conversation: &str, payload: impl Into<Bytes>) -> Result<SendAck, SendError> {
        self.send_with(conversation, payload, SendOptions::default()).await
    }

    /// Sends a message with options.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn send_with(
        &self,
        conversation: &str,
        payload: impl Into<Bytes>,
        options: SendOptions,
    ) -> Result<SendAck, SendError> {
        let payload = payload.into();
        if Conversation::parse(conversation).is_none() {
            return Err(SendError::Invalid(format!("{conversation:?} is no conversation id")));
        }
        if payload.len() > PAYLOAD_BYTES_MAX {
            let reason = format!("{} bytes; {PAYLOAD_BYTES_MAX} are allowed", payload.len());
            return Err(SendError::Refused { code: Code::PayloadTooLarge, reason });
        }
        let (done, acknowledged) = oneshot::channel();
        let deadline = Instant::now() + options.deadline.unwrap_or(self.request_deadline);
        let conversation = conversation.to_string();
        let message = Outgoing { payload, content_kind: options.content_kind, ..Outgoing::default() };
        self.command(Command::Send { conversation, message, deadline, done }).await?;
        acknowledged.await.unwrap_or(Err(SendError::Ended))
    }

    /// Creates a group of this user and `members`. After a reconnect, GROUP_EXISTS may be the answer to this call's own
    /// first try.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn create_group(
        &self,
        group: &str,
        members: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Joined, SendError> {
        let members: Vec<String> = members.into_iter().map(Into::into).collect();
        match self.call(group, op::group_create(group, members)).await? {
            Outcome::Joined(joined) => Ok(joined),
            other => Err(unexpected(&other)),
        }
    }

    /// Becomes a member of a group.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn join_group(&self, group: &str) -> Result<Joined, SendError> {
        match self.call(group, op::group_join(group)).await? {
            Outcome::Joined(joined) => Ok(joined),
            other => Err(unexpected(&other)),
        }
    }

    /// Is no longer a member of a group.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn leave_group(&self, group: &str) -> Result<(), SendError> {
        match self.call(group, op::group_leave(group)).await? {
            Outcome::Left(_) => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// A page of a group's members: those after `after` in byte order, at most `limit` (0: as many as the server gives).
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn members(&self, group: &str, after: &str, limit: u32) -> Result<Members, SendError> {
        match self.call(group, op::group_members(group, after, limit)).await? {
            Outcome::Members(members) => Ok(members),
            other => Err(unexpected(&other)),
        }
    }

    /// Listens to a room, also after reconnects, until [`Client::leave_room`].
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn join_room(&self, room: &str) -> Result<Joined, SendError> {
        match self.call(room, op::room_join(room)).await? {
            Outcome::Joined(joined) => Ok(joined),
            other => Err(unexpected(&other)),
        }
    }

    /// Listens to a room no longer.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn leave_room(&self, room: &str) -> Result<(), SendError> {
        match self.call(room, op::room_leave(room)).await? {
            Outcome::Left(_) => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends the session at the server (its resume ticket is void), and the client.
    pub async fn logout(self) {
        let (done, finished) = oneshot::channel();
        if self.commands.send(Command::Logout { done }).await.is_ok() {
            // Gone without an answer: it has ended, which is what was asked for.
            let _ = finished.await;
        }
    }

    async fn call(&self, name: &str, op: Op) -> Result<Outcome, SendError> {
        if !is_name(name) {
            return Err(SendError::Invalid(format!("{name:?} is no name of a group or room")));
        }
        let (done, answered) = oneshot::channel();
        let deadline = Instant::now() + self.request_deadline;
        self.command(Command::Call { op, deadline, done }).await?;
        answered.await.unwrap_or(Err(SendError::Ended))
    }

    async fn command(&self, command: Command) -> Result<(), SendError> {
        self.commands.send(command).await.map_err(|_| SendError::Ended)
    }
}

fn unexpected(outcome: &Outcome) -> SendError {
    SendError::Invalid(format!("the server answered something else: {outcome:?}"))
}
