//! Frames out of a stream: framed TCP, and WebSocket messages that carry whole frames. Either role.
//!
//! A frame that lies whole in the input is lent from there; a partial one is gathered in a box that goes as soon as
//! it is done. Which kinds a peer may send is checked by [`crate::transport`] and [`crate::client_session`].

use std::ops::Range;

use crate::frame::{FrameHeader, FrameKind, HEADER_BYTES, decode_header};
use crate::messages::client::Code;
use crate::received::{Limits, Received, Violation};
use crate::ws::decoder::{Decoder, Place, Rules};
use crate::ws::{Opcode, Role, decode_close};

/// What was found in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A whole frame.
    Frame {
        /// What it is.
        kind: FrameKind,
        /// Its body.
        body: &'a [u8],
    },
    /// A WebSocket ping.
    WsPing(&'a [u8]),
    /// A WebSocket pong.
    WsPong,
    /// A WebSocket close; 1005 stands for no code.
    WsClose {
        /// A code that may be sent, or 1005.
        code: u16,
        /// In words.
        reason: &'a str,
    },
}

/// Frames from a TCP stream. Eight bytes while nothing is partial.
#[derive(Debug, Default)]
pub struct TcpDeframer {
    partial: Option<Box<Partial>>,
}

#[derive(Debug, Default)]
struct Partial {
    bytes: [u8; HEADER_BYTES],
    header_bytes: u8,
    /// Known once the four bytes are here.
    header: Option<FrameHeader>,
    body: Vec<u8>,
}

impl TcpDeframer {
    /// The next frame in `input`; `None` when all of it was consumed. Call until `None` or a violation.
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut Received<'_>,
        limits: &Limits,
    ) -> Result<Option<Piece<'a>>, Violation> {
        if self.partial.as_ref().is_some_and(|partial| partial.is_whole()) {
            self.partial = None;
        }
        if self.partial.is_none() {
            if input.left() == 0 {
                return Ok(None);
            }
            if let Some((kind, body)) = whole_frame(input, limits)? {
                return Ok(Some(Piece::Frame { kind, body: &input.bytes[body] }));
            }
        }
        let partial = self.partial.get_or_insert_default();
        let Some(kind) = partial.gather(input, limits)? else { return Ok(None) };
        Ok(Some(Piece::Frame { kind, body: &partial.body }))
    }

    /// Bytes of heap held.
    pub fn held_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| size_of::<Partial>() + partial.body.capacity())
    }
}

fn whole_frame(
    input: &mut Received<'_>,
    limits: &Limits,
) -> Result<Option<(FrameKind, Range<usize>)>, Violation> {
    let Some((header, rest)) = input.rest().split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let FrameHeader { kind, body_bytes } = decode_header(*header, limits.frame_body_bytes_max)?;
    if rest.len() < body_bytes {
        return Ok(None);
    }
    let start = input.at + HEADER_BYTES;
    input.at = start + body_bytes;
    Ok(Some((kind, start..input.at)))
}

impl Partial {
    fn is_whole(&self) -> bool {
        self.header.is_some_and(|header| header.body_bytes == self.body.len())
    }

    /// Takes what is there of the frame; its kind once it is whole.
    fn gather(&mut self, input: &mut Received<'_>, limits: &Limits) -> Result<Option<FrameKind>, Violation> {
        while self.header.is_none() {
            if input.left() == 0 {
                return Ok(None);
            }
            self.bytes[usize::from(self.header_bytes)] = input.bytes[input.at];
            input.at += 1;
            self.header_bytes += 1;
            if usize::from(self.header_bytes) == HEADER_BYTES {
                self.header = Some(decode_header(self.bytes, limits.frame_body_bytes_max)?);
            } else {
                // An unknown kind need not wait for its length.
                decode_header([self.bytes[0], 0, 0, 0], 0)?;
            }
        }
        let header = self.header.expect("gathered above");
        let count = input.left().min(header.body_bytes - self.body.len());
        // Grown by what came, not by what was announced: a header alone buys no memory.
        self.body.extend_from_slice(&input.bytes[input.at..input.at + count]);
        input.at += count;
        Ok(self.is_whole().then_some(header.kind))
    }
}

/// Frames from WebSocket messages. Sixteen bytes while nothing is partial.
#[derive(Debug, Default)]
pub struct WsDeframer {
    decoder: Decoder,
    /// Bytes of the current message that were not given out yet: its last ones.
    left: u32,
    /// The message was gathered by the decoder; otherwise it lies before the input's position.
    gathered: bool,
}

const fn wrong(reason: &'static str) -> Violation {
    Violation::new(Code::ProtocolError, reason)
}

impl WsDeframer {
    /// The next frame or control message in `input`; `None` when all of it was consumed. Call until `None` or a
    /// violation, with the same `input`.
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut Received<'_>,
        role: Role,
        limits: &Limits,
    ) -> Result<Option<Piece<'a>>, Violation> {
        if self.left == 0 {
            let rules = Rules { role, message_bytes_max: limits.message_bytes_max };
            let Some((opcode, place)) = self.decoder.advance(input, &rules)? else { return Ok(None) };
            if opcode != Opcode::Binary {
                let payload = match place {
                    Place::Input(range) => &input.bytes[range],
                    Place::Message => self.decoder.message(),
                    Place::Control => self.decoder.control(),
                };
                return other_piece(opcode, payload).map(Some);
            }
            self.gathered = matches!(place, Place::Message);
            let message_bytes = match place {
                Place::Input(range) => range.len(),
                _ => self.decoder.message().len(),
            };
            if message_bytes == 0 {
                return Err(wrong("a WebSocket message without a frame"));
            }
            self.left = message_bytes as u32;
        }
        let message = if self.gathered { self.decoder.message() } else { &input.bytes[..input.at] };
        let start = message.len().checked_sub(self.left as usize);
        let rest = start.map(|start| &message[start..]).ok_or(wrong("the rest of a message is gone"))?;
        let (kind, body) = frame_in_message(rest, limits)?;
        self.left -= (HEADER_BYTES + body.len()) as u32;
        Ok(Some(Piece::Frame { kind, body }))
    }

    /// Bytes of heap held.
    pub fn held_bytes(&self) -> usize {
        self.decoder.held_bytes()
    }
}

fn frame_in_message<'a>(rest: &'a [u8], limits: &Limits) -> Result<(FrameKind, &'a [u8]), Violation> {
    const CUT: Violation = wrong("a WebSocket message that ends inside a frame");
    let (header, rest) = rest.split_first_chunk::<HEADER_BYTES>().ok_or(CUT)?;
    let FrameHeader { kind, body_bytes } = decode_header(*header, limits.frame_body_bytes_max)?;
    Ok((kind, rest.get(..body_bytes).ok_or(CUT)?))
}

fn other_piece(opcode: Opcode, payload: &[u8]) -> Result<Piece<'_>, Violation> {
    match opcode {
        Opcode::Ping => Ok(Piece::WsPing(payload)),
        Opcode::Pong => Ok(Piece::WsPong),
        Opcode::Close => decode_close(payload).map(|(code, reason)| Piece::WsClose { code, reason }),
        Opcode::Text if std::str::from_utf8(payload).is_err() => {
            Err(Violation::new(Code::InvalidUtf8, "WebSocket: a text that is no UTF-8"))
        }
        Opcode::Text | Opcode::Binary | Opcode::Continuation => Err(Violation::new(
            Code::UnsupportedData,
            "WebSocket: frames travel in binary messages, not in text",
        )),
    }
}
