//! Frames: `kind: u8 | length: u24 big-endian | body`, and frames encoded once for many receivers.
//!
//! Reading frames out of a stream is in [`crate::deframe`]; what bodies mean is in [`crate::messages`].

use std::rc::Rc;

use prost::Message;

use crate::messages::client::Code;
use crate::received::Violation;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 4;

/// Bytes of a message's payload at most, unless configured otherwise: chat is text and small media; larger things
/// travel as links to a store.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// Bytes that a body may add around a payload: field tags, numbers and a conversation id with its two names, rounded
/// up.
pub const ENVELOPE_BYTES_MAX: usize = 1 << 10;

/// Bytes of a frame's body at most, unless configured otherwise.
pub const FRAME_BODY_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + ENVELOPE_BYTES_MAX;

/// Bytes of a body that the 24-bit length can say.
pub const LENGTH_MAX: usize = (1 << 24) - 1;

const _: () = assert!(FRAME_BODY_BYTES_MAX <= LENGTH_MAX);

/// What a frame is. All values stay below 0x16, with which a TLS connection starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// Client to server, answered by a Response with the same id.
    Request = 1,
    /// Server to client.
    Response = 2,
    /// Server to client, unasked.
    Notify = 3,
    /// Either way, no body.
    Ping = 4,
    /// The answer to a Ping, no body.
    Pong = 5,
}

impl FrameKind {
    /// Reads a kind byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => FrameKind::Request,
            2 => FrameKind::Response,
            3 => FrameKind::Notify,
            4 => FrameKind::Ping,
            5 => FrameKind::Pong,
            _ => return None,
        })
    }
}

/// A decoded frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame is.
    pub kind: FrameKind,
    /// Bytes of the body that follows.
    pub body_bytes: usize,
}

/// A Ping frame.
pub const PING: [u8; HEADER_BYTES] = [FrameKind::Ping as u8, 0, 0, 0];
/// A Pong frame.
pub const PONG: [u8; HEADER_BYTES] = [FrameKind::Pong as u8, 0, 0, 0];

/// Reads a header. Violations: UNKNOWN_KIND, TOO_BIG above `body_bytes_max`, PROTOCOL_ERROR for a heartbeat with a body.
pub fn decode_header(header: [u8; HEADER_BYTES], body_bytes_max: usize) -> Result<FrameHeader, Violation> {
    let [kind, a, b, c] = header;
    let kind = FrameKind::from_byte(kind).ok_or(Violation::new(Code::UnknownKind, "unknown frame kind"))?;
    let body_bytes = u32::from_be_bytes([0, a, b, c]) as usize;
    if body_bytes > body_bytes_max {
        return Err(Violation::new(Code::TooBig, "frame above the size limit"));
    }
    if body_bytes > 0 && matches!(kind, FrameKind::Ping | FrameKind::Pong) {
        return Err(Violation::new(Code::ProtocolError, "a heartbeat has no body"));
    }
    Ok(FrameHeader { kind, body_bytes })
}

/// The header of a frame with such a body.
///
/// # Panics
/// When the body is larger than [`LENGTH_MAX`].
pub fn encode_header(kind: FrameKind, body_bytes: usize) -> [u8; HEADER_BYTES] {
    assert!(body_bytes <= LENGTH_MAX, "a frame body of {body_bytes} bytes");
    let [_, a, b, c] = (body_bytes as u32).to_be_bytes();
    [kind as u8, a, b, c]
}

/// A whole frame, as it goes over TCP.
pub fn encode_frame(kind: FrameKind, message: &impl Message) -> Vec<u8> {
    let body_bytes = message.encoded_len();
    let mut out = Vec::with_capacity(HEADER_BYTES + body_bytes);
    out.extend_from_slice(&encode_header(kind, body_bytes));
    message.encode_raw(&mut out);
    out
}

/// A whole frame around an encoded body, as it goes over TCP.
pub fn encode_body(kind: FrameKind, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
    out.extend_from_slice(&encode_header(kind, body.len()));
    out.extend_from_slice(body);
    out
}

/// A frame encoded once for all its receivers, in one allocation:
/// `[WebSocket header, 2, 4 or 10 bytes][frame header][body]`. WebSocket receivers are sent all of it, TCP receivers
/// what begins at [`SharedFrame::tcp_start`].
#[derive(Clone, Debug)]
pub struct SharedFrame {
    bytes: Rc<[u8]>,
    tcp_start: u8,
}

impl SharedFrame {
    /// A Notify frame with this body.
    pub fn notify(body: &[u8]) -> Self {
        Self::new(FrameKind::Notify, body)
    }

    /// A frame of this kind with this body.
    pub fn new(kind: FrameKind, body: &[u8]) -> Self {
        let frame_bytes = HEADER_BYTES + body.len();
        let (prefix, prefix_bytes) = crate::ws::server_binary_header(frame_bytes);
        // One allocation: an iterator of known length collects straight into the Rc.
        let mut bytes: Rc<[u8]> = std::iter::repeat_n(0, prefix_bytes + frame_bytes).collect();
        let target = Rc::get_mut(&mut bytes).expect("just made");
        target[..prefix_bytes].copy_from_slice(&prefix[..prefix_bytes]);
        target[prefix_bytes..prefix_bytes + HEADER_BYTES].copy_from_slice(&encode_header(kind, body.len()));
        target[prefix_bytes + HEADER_BYTES..].copy_from_slice(body);
        SharedFrame { bytes, tcp_start: prefix_bytes as u8 }
    }

    /// All of it: what a WebSocket receiver is sent.
    pub fn bytes(&self) -> &Rc<[u8]> {
        &self.bytes
    }

    /// Where in [`SharedFrame::bytes`] a TCP receiver's part begins.
    pub fn tcp_start(&self) -> usize {
        usize::from(self.tcp_start)
    }

    /// Where the part of a receiver begins.
    pub fn start_for(&self, websocket: bool) -> usize {
        if websocket { 0 } else { self.tcp_start() }
    }

    /// What such a receiver is sent.
    pub fn bytes_for(&self, websocket: bool) -> &[u8] {
        &self.bytes[self.start_for(websocket)..]
    }

    /// The frame's body.
    pub fn body(&self) -> &[u8] {
        &self.bytes[self.tcp_start() + HEADER_BYTES..]
    }
}
