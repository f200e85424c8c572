//! Received bytes on their way through a decoder, and the limits and violations that all decoders share.
//!
//! Decoders work in place: [`Received`] lends them one buffer, they move its position forward and give back slices
//! of it. When a decoder answers `None`, everything was consumed (or copied aside, if it was the start of something).

use crate::frame::FRAME_BODY_BYTES_MAX;
use crate::frame::HEADER_BYTES;
use crate::messages::client::Code;

/// One buffer of received bytes and how far it was consumed.
#[derive(Debug)]
pub struct Received<'b> {
    pub(crate) bytes: &'b mut [u8],
    pub(crate) at: usize,
}

impl<'b> Received<'b> {
    /// At the start of `bytes`. WebSocket payloads are unmasked in place.
    pub fn new(bytes: &'b mut [u8]) -> Self {
        Received { bytes, at: 0 }
    }

    /// Bytes not consumed yet.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.at..]
    }
}

/// What a decoder takes at most from one peer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one frame's body.
    pub frame_body_bytes_max: usize,
    /// Bytes of one WebSocket message: the frames that it carries, headers included.
    pub message_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            frame_body_bytes_max: FRAME_BODY_BYTES_MAX,
            message_bytes_max: FRAME_BODY_BYTES_MAX + HEADER_BYTES,
        }
    }
}

/// A peer broke the protocol: its connection is to be closed with this code and reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code:?}: {reason}")]
pub struct Violation {
    /// What the peer is told, also as the WebSocket close code.
    pub code: Code,
    /// The same in words.
    pub reason: &'static str,
}

impl Violation {
    pub(crate) const fn new(code: Code, reason: &'static str) -> Self {
        Violation { code, reason }
    }
}
