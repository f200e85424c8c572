//! What is sent to conversations: messages, and what happens to them afterwards.

use std::time::Duration;

use bytes::Bytes;
use millrace_protocol::frame::PAYLOAD_BYTES_MAX;
use millrace_protocol::messages::client::{Action, Code, SendAck};

use crate::client::{Client, Posted};
use crate::core::Outgoing;
use crate::error::SendError;

/// What a message may be given beside its payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendOptions {
    /// What the payload is, as of [`ContentKind`]; receivers get it with the message. [`Client::send_content`] sets it.
    ///
    /// [`ContentKind`]: crate::ContentKind
    pub content_kind: u32,
    /// Time until the acknowledgement; the configured one if `None`.
    pub deadline: Option<Duration>,
    /// In direct conversations: be told, by [`Event::Fate`], whether a device of the other side has the message within
    /// this time (at most 60 s). It comes once for each message that was acknowledged, some 5 s behind that time at the
    /// latest, whatever becomes of the connection; with 4,096 waiting, at once for a further one. It is lost with the
    /// process.
    ///
    /// [`Event::Fate`]: crate::Event::Fate
    pub fate_within: Option<Duration>,
}

impl Client {
    /// Sends a message and waits until it is stored. Messages to one conversation are stored in the order of these
    /// calls (of their first poll); several may be under way at a time.
    ///
    /// # Errors
    /// See [`SendError`]. After [`SendError::Deadline`] and [`SendError::Unknown`] it may have been stored or not.
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
        self.post(conversation, payload, options).await?.stored().await
    }

    /// Puts a message into the outbox and returns: for who sends several in order and waits for them elsewhere.
    ///
    /// # Errors
    /// What is wrong with the message itself; all else [`Posted::stored`] says.
    pub async fn post(
        &self,
        conversation: &str,
        payload: impl Into<Bytes>,
        options: SendOptions,
    ) -> Result<Posted, SendError> {
        let payload = payload.into();
        if payload.len() > PAYLOAD_BYTES_MAX {
            let reason = format!("{} bytes; {PAYLOAD_BYTES_MAX} are allowed", payload.len());
            return Err(SendError::Refused { code: Code::PayloadTooLarge, reason });
        }
        let fate = options.fate_within.unwrap_or_default().as_millis();
        let message = Outgoing {
            payload,
            content_kind: options.content_kind,
            fate_within_ms: u32::try_from(fate).unwrap_or(u32::MAX),
            ..Outgoing::default()
        };
        self.outgoing(conversation, message, options.deadline).await
    }

    /// Puts another payload in the place of an earlier message's, within the server's window.
    ///
    /// # Errors
    /// See [`SendError`]: NO_SUCH_MESSAGE, NOT_ALLOWED or TOO_LATE from the server among others.
    pub async fn edit(
        &self,
        conversation: &str,
        seq: u64,
        payload: impl Into<Bytes>,
    ) -> Result<SendAck, SendError> {
        self.refer(conversation, seq, Action::Edit, payload.into()).await
    }

    /// Takes an earlier message back: one's own within the server's window, or any in a group as its admin.
    ///
    /// # Errors
    /// As [`Client::edit`].
    pub async fn recall(&self, conversation: &str, seq: u64) -> Result<SendAck, SendError> {
        self.refer(conversation, seq, Action::Recall, Bytes::new()).await
    }

    /// Adds a reaction (at most 64 bytes) to an earlier message.
    ///
    /// # Errors
    /// As [`Client::edit`].
    pub async fn react(&self, conversation: &str, seq: u64, reaction: &str) -> Result<SendAck, SendError> {
        self.refer(conversation, seq, Action::React, reaction.to_owned().into()).await
    }

    /// Takes a reaction away again.
    ///
    /// # Errors
    /// As [`Client::edit`].
    pub async fn unreact(&self, conversation: &str, seq: u64, reaction: &str) -> Result<SendAck, SendError> {
        self.refer(conversation, seq, Action::Unreact, reaction.to_owned().into()).await
    }

    async fn refer(
        &self,
        conversation: &str,
        refers_to: u64,
        action: Action,
        payload: Bytes,
    ) -> Result<SendAck, SendError> {
        let message = Outgoing { action, refers_to, payload, ..Outgoing::default() };
        self.outgoing(conversation, message, None).await?.stored().await
    }
}
