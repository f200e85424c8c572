//! WebSocket (RFC 6455), sans-IO, both roles: the header codec and what encoders need.
//!
//! [`decoder`] takes messages out of received bytes, [`handshake`] does the HTTP upgrade, [`mask`] unmasks, [`utf8`]
//! validates text as it comes. No extension is spoken. The rule: whatever can be refused is refused at the first
//! byte that shows it.

pub mod decoder;
pub mod handshake;
pub mod mask;
pub mod utf8;

pub use decoder::{Decoder, Message, Rules};

use crate::messages::client::Code;
use crate::received::Violation;

/// Bytes of a control frame's payload at most (RFC 6455, 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// Bytes of a frame's header at most: two, eight of length, four of mask.
pub const HEADER_BYTES_MAX: usize = 14;

/// Bytes of a close frame's reason at most: a control payload less the code.
pub const REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;

/// What [`Message::Close`] says when the peer gave no code.
pub const CLOSE_NO_CODE: u16 = 1005;

/// Which end this is: clients mask, servers don't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Accepts masked frames only.
    Server,
    /// Accepts unmasked frames only.
    Client,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

impl Opcode {
    /// Reads the low four bits of a frame's first byte.
    pub fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _ => return None,
        })
    }

    /// Close, Ping or Pong: never fragmented, may come between the fragments of a message.
    pub fn is_control(self) -> bool {
        self as u8 >= 8
    }
}

/// A decoded frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The last (or only) frame of its message.
    pub last: bool,
    /// What it is.
    pub opcode: Opcode,
    /// Masking key, from clients.
    pub mask: Option<[u8; 4]>,
    /// Bytes of payload that follow.
    pub payload_bytes: u64,
    /// Bytes of this header.
    pub header_bytes: usize,
}

const fn wrong(reason: &'static str) -> Violation {
    Violation::new(Code::ProtocolError, reason)
}

/// Reads the header that `bytes` begin with; `None` if more bytes are needed. Refuses as early as it can tell.
pub fn decode_header(bytes: &[u8], role: Role) -> Result<Option<FrameHeader>, Violation> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(wrong("WebSocket: a reserved bit is set, and no extension was agreed"));
    }
    let opcode = Opcode::from_bits(first & 0x0f).ok_or(wrong("WebSocket: unknown opcode"))?;
    let last = first & 0x80 != 0;
    if opcode.is_control() && !last {
        return Err(wrong("WebSocket: a fragmented control frame"));
    }
    let Some(&second) = bytes.get(1) else { return Ok(None) };
    let masked = second & 0x80 != 0;
    match role {
        Role::Server if !masked => return Err(wrong("WebSocket: an unmasked frame from a client")),
        Role::Client if masked => return Err(wrong("WebSocket: a masked frame from a server")),
        _ => {}
    }
    let short = second & 0x7f;
    if opcode.is_control() && usize::from(short) > CONTROL_BYTES_MAX {
        return Err(wrong("WebSocket: a control frame above 125 bytes"));
    }
    let (payload_bytes, mask_at) = match short {
        126 => {
            let Some(length) = bytes.get(2..4) else { return Ok(None) };
            let length = u64::from(u16::from_be_bytes([length[0], length[1]]));
            if length < 126 {
                return Err(wrong("WebSocket: a length not in its shortest form"));
            }
            (length, 4)
        }
        127 => {
            let Some(length) = bytes.get(2..10) else { return Ok(None) };
            let length = u64::from_be_bytes(length.try_into().expect("eight bytes"));
            if length <= 0xffff || length >> 63 != 0 {
                return Err(wrong("WebSocket: a length not in its shortest form"));
            }
            (length, 10)
        }
        length => (u64::from(length), 2),
    };
    let (mask, header_bytes) = if masked {
        let Some(key) = bytes.get(mask_at..mask_at + 4) else { return Ok(None) };
        (Some(key.try_into().expect("four bytes")), mask_at + 4)
    } else {
        (None, mask_at)
    };
    Ok(Some(FrameHeader { last, opcode, mask, payload_bytes, header_bytes }))
}

/// The header of an unmasked, unfragmented binary message of `payload_bytes`, and how many of its bytes count.
pub fn server_binary_header(payload_bytes: usize) -> ([u8; 10], usize) {
    let mut header = [0; 10];
    header[0] = 0x80 | Opcode::Binary as u8;
    let length_bytes = encode_length(payload_bytes, &mut header);
    (header, length_bytes)
}

/// Writes the length from the second byte on; answers how many bytes the header now has.
fn encode_length(payload_bytes: usize, header: &mut [u8; 10]) -> usize {
    match payload_bytes {
        0..=125 => {
            header[1] = payload_bytes as u8;
            2
        }
        126..=0xffff => {
            header[1] = 126;
            header[2..4].copy_from_slice(&(payload_bytes as u16).to_be_bytes());
            4
        }
        _ => {
            header[1] = 127;
            header[2..].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
            10
        }
    }
}

/// Appends a frame's header; the payload, masked with `mask` if there is one, must follow.
pub fn encode_header(
    last: bool,
    opcode: Opcode,
    payload_bytes: usize,
    mask: Option<[u8; 4]>,
    out: &mut Vec<u8>,
) {
    let mut header = [0; 10];
    header[0] = u8::from(last) << 7 | opcode as u8;
    let header_bytes = encode_length(payload_bytes, &mut header);
    if mask.is_some() {
        header[1] |= 0x80;
    }
    out.extend_from_slice(&header[..header_bytes]);
    out.extend_from_slice(mask.as_ref().map_or(&[], |key| &key[..]));
}

/// Appends a whole frame, masked if there is a key.
pub fn encode_frame(opcode: Opcode, payload: &[u8], mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
    encode_header(true, opcode, payload.len(), mask, out);
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(key) = mask {
        mask::apply(&mut out[start..], key, 0);
    }
}

/// The payload of a close frame: the code, then as much of the reason as fits. Code 0 and [`CLOSE_NO_CODE`] give an
/// empty payload.
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    if code == 0 || code == CLOSE_NO_CODE {
        return Vec::new();
    }
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    [&code.to_be_bytes(), &reason.as_bytes()[..end]].concat()
}

/// Reads the payload of a close frame. Violations: a code that may not be sent, a lone byte, a reason that is no
/// UTF-8.
pub fn decode_close(payload: &[u8]) -> Result<(u16, &str), Violation> {
    match payload {
        [] => Ok((CLOSE_NO_CODE, "")),
        [_] => Err(wrong("WebSocket: a close code of one byte")),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err(wrong("WebSocket: a close code that may not be sent"));
            }
            let reason = std::str::from_utf8(reason).map_err(|_| {
                Violation::new(Code::InvalidUtf8, "WebSocket: a close reason that is no UTF-8")
            })?;
            Ok((code, reason))
        }
    }
}
