//! The server's side of one client connection: bytes in, whole frames out, whatever the client speaks.
//!
//! The first byte tells TLS (0x16), an HTTP upgrade to WebSocket ('G') and framed TCP (a frame kind) apart. What
//! frames mean, deadlines and closing are the gateway core's business. The rule: an idle connection costs the 16
//! bytes of this struct; anything partial is boxed, and freed as soon as it is whole.

use prost::Message;

use crate::frame::FrameKind;
use crate::messages::client::Code;
pub use crate::received::{Limits, Received, Violation};

/// What came from a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// A whole frame, of a kind that a client may send (Request, Ping, Pong).
    Frame {
        /// Its kind.
        kind: FrameKind,
        /// Its body, not decoded.
        body: &'a [u8],
    },
    /// A WebSocket ping: answer with [`Transport::ws_pong`] of this payload.
    WsPing(&'a [u8]),
    /// A WebSocket pong.
    WsPong,
    /// The WebSocket client closes: send these bytes (its close, echoed), then close.
    WsClose {
        /// Its close code, 1005 if it gave none.
        code: u16,
        /// What to send before closing.
        reply: Vec<u8>,
    },
    /// The client asked for WebSocket properly: send these bytes; frames follow.
    Upgrade(Vec<u8>),
}

/// Decoder and encoder of one connection, by the framing that the client chose.
#[derive(Debug, Default)]
pub struct Transport {
    websocket: bool,
}

impl Transport {
    /// A connection that sent nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next thing in `input`; `None` when all of it was consumed. Call until `None` or a violation; after a
    /// violation or [`Input::WsClose`] no more.
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut Received<'_>,
        limits: &Limits,
    ) -> Result<Option<Input<'a>>, Violation> {
        let _ = limits;
        input.at = input.bytes.len();
        Ok(None)
    }

    /// Whether frames travel in WebSocket messages (the upgrade was answered).
    pub fn is_websocket(&self) -> bool {
        self.websocket
    }

    /// Bytes of heap that this connection holds because something is partial.
    pub fn held_bytes(&self) -> usize {
        0
    }

    /// A frame with this body, ready to send.
    pub fn encode(&self, kind: FrameKind, body: &[u8]) -> Vec<u8> {
        let _ = (kind, body);
        Vec::new()
    }

    /// A frame with this message as its body, ready to send.
    pub fn encode_message(&self, kind: FrameKind, message: &impl Message) -> Vec<u8> {
        self.encode(kind, &message.encode_to_vec())
    }

    /// The answer to a Ping frame.
    pub fn pong(&self) -> &'static [u8] {
        &[]
    }

    /// A Ping frame of our own.
    pub fn ping(&self) -> &'static [u8] {
        &[]
    }

    /// The answer to a WebSocket ping.
    pub fn ws_pong(&self, payload: &[u8]) -> Vec<u8> {
        payload.to_vec()
    }

    /// The last bytes of a connection that the server closes: a GoAway notification, on WebSocket followed by a close
    /// frame with the same code; an HTTP error before the upgrade; nothing for TLS.
    pub fn close_bytes(&self, code: Code, reason: &str, retry_after_ms: u32) -> Vec<u8> {
        let _ = (code, reason, retry_after_ms);
        Vec::new()
    }
}
