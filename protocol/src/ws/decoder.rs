//! Messages out of received bytes: whole single frames where they lie, everything else gathered in a box.
//!
//! The rule: a decoder is eight bytes while nothing is partial. A frame that lies whole in the input and is a message
//! by itself is unmasked in place and lent; the start of a frame, or an unfinished fragmented message, is copied into
//! [`Partial`], which goes as soon as the next call finds it done.

use std::ops::Range;

use crate::messages::client::Code;
use crate::received::{Received, Violation};
use crate::ws::utf8::Utf8;
use crate::ws::{
    CONTROL_BYTES_MAX, FrameHeader, HEADER_BYTES_MAX, Opcode, Role, decode_close, decode_header, mask, wrong,
};

/// What a decoder goes by; the same for all connections of a role.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Which end this is.
    pub role: Role,
    /// Bytes of a message, all its fragments together. Above: 1009.
    pub message_bytes_max: usize,
}

/// A whole message or control frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Valid UTF-8.
    Text(&'a str),
    /// Any bytes.
    Binary(&'a [u8]),
    /// To be answered with a pong of the same payload.
    Ping(&'a [u8]),
    /// The answer to a ping, or unasked.
    Pong(&'a [u8]),
    /// The peer closes; 1005 stands for no code.
    Close {
        /// A code that may be sent, or 1005.
        code: u16,
        /// In words.
        reason: &'a str,
    },
}

/// Decoder of one connection's incoming direction, after the handshake.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
}

/// Where a found payload lies.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// In the input, unmasked.
    Input(Range<usize>),
    /// In the box: [`Decoder::message`].
    Message,
    /// In the box: [`Decoder::control`].
    Control,
}

#[derive(Debug, Default)]
struct Partial {
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: u8,
    control_bytes: u8,
    control: Control,
    /// The frame whose payload is coming in, and how much of that is here.
    frame: Option<(FrameHeader, u64)>,
    /// Text or Binary while a message is unfinished.
    open: Option<Opcode>,
    /// The message is whole and was given out.
    given: bool,
    utf8: Utf8,
    message: Vec<u8>,
}

#[derive(Debug)]
struct Control([u8; CONTROL_BYTES_MAX]);

impl Default for Control {
    fn default() -> Self {
        Control([0; CONTROL_BYTES_MAX])
    }
}

const BAD_TEXT: Violation = Violation::new(Code::InvalidUtf8, "WebSocket: a text that is no UTF-8");
const BIG_MESSAGE: Violation = Violation::new(Code::TooBig, "WebSocket: a message above the size limit");

impl Decoder {
    /// The next message in `input`; `None` when all of it was consumed. Call until `None` or a violation.
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut Received<'_>,
        rules: &Rules,
    ) -> Result<Option<Message<'a>>, Violation> {
        let Some((opcode, place)) = self.advance(input, rules)? else { return Ok(None) };
        let payload = match place {
            Place::Input(range) => &input.bytes[range],
            Place::Message => self.message(),
            Place::Control => self.control(),
        };
        Ok(Some(match opcode {
            Opcode::Text => Message::Text(std::str::from_utf8(payload).map_err(|_| BAD_TEXT)?),
            Opcode::Binary | Opcode::Continuation => Message::Binary(payload),
            Opcode::Ping => Message::Ping(payload),
            Opcode::Pong => Message::Pong(payload),
            Opcode::Close => {
                let (code, reason) = decode_close(payload)?;
                Message::Close { code, reason }
            }
        }))
    }

    /// Bytes of heap held.
    pub fn held_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| size_of::<Partial>() + partial.message.capacity())
    }

    /// The gathered message of [`Place::Message`].
    pub(crate) fn message(&self) -> &[u8] {
        self.partial.as_ref().map_or(&[], |partial| &partial.message)
    }

    /// The gathered payload of [`Place::Control`].
    pub(crate) fn control(&self) -> &[u8] {
        self.partial.as_ref().map_or(&[], |partial| &partial.control.0[..usize::from(partial.control_bytes)])
    }

    /// As [`Decoder::next`], but says where the payload lies. The opcode is never Continuation; text in the input is
    /// not validated yet, nor is a close.
    pub(crate) fn advance(
        &mut self,
        input: &mut Received<'_>,
        rules: &Rules,
    ) -> Result<Option<(Opcode, Place)>, Violation> {
        if self.partial.as_ref().is_some_and(|partial| partial.is_done()) {
            self.partial = None;
        }
        if self.partial.is_none() {
            if input.left() == 0 {
                return Ok(None);
            }
            if let Some(found) = whole_message(input, rules)? {
                return Ok(Some(found));
            }
        }
        self.partial.get_or_insert_default().advance(input, rules)
    }
}

/// The frame at the start of `input`, if it lies there whole and is a message by itself.
fn whole_message(input: &mut Received<'_>, rules: &Rules) -> Result<Option<(Opcode, Place)>, Violation> {
    let Some(header) = decode_header(input.rest(), rules.role)? else { return Ok(None) };
    check_frame(&header, None, 0, rules)?;
    let payload_bytes = header.payload_bytes as usize;
    if !header.last || input.left() - header.header_bytes < payload_bytes {
        return Ok(None);
    }
    let start = input.at + header.header_bytes;
    input.at = start + payload_bytes;
    let payload = start..input.at;
    if let Some(key) = header.mask {
        mask::apply(&mut input.bytes[payload.clone()], key, 0);
    }
    Ok(Some((header.opcode, Place::Input(payload))))
}

/// What the order of frames and the size limit forbid.
fn check_frame(
    header: &FrameHeader,
    open: Option<Opcode>,
    gathered_bytes: usize,
    rules: &Rules,
) -> Result<(), Violation> {
    match (header.opcode, open) {
        (opcode, _) if opcode.is_control() => return Ok(()),
        (Opcode::Continuation, None) => return Err(wrong("WebSocket: a continuation of no message")),
        (Opcode::Text | Opcode::Binary, Some(_)) => {
            return Err(wrong("WebSocket: a new message inside an unfinished one"));
        }
        _ => {}
    }
    if header.payload_bytes > (rules.message_bytes_max - gathered_bytes.min(rules.message_bytes_max)) as u64 {
        return Err(BIG_MESSAGE);
    }
    Ok(())
}

impl Partial {
    /// Nothing in it is needed any more.
    fn is_done(&self) -> bool {
        self.frame.is_none() && self.header_bytes == 0 && (self.open.is_none() || self.given)
    }

    fn advance(
        &mut self,
        input: &mut Received<'_>,
        rules: &Rules,
    ) -> Result<Option<(Opcode, Place)>, Violation> {
        loop {
            let Some((header, here)) = self.frame else {
                if !self.gather_header(input, rules)? {
                    return Ok(None);
                }
                continue;
            };
            let here = here + self.gather_payload(&header, here, input)?;
            if here < header.payload_bytes {
                self.frame = Some((header, here));
                return Ok(None);
            }
            self.frame = None;
            if header.opcode.is_control() {
                return Ok(Some((header.opcode, Place::Control)));
            }
            if header.last {
                let opcode = self.open.expect("set when its first frame began");
                if opcode == Opcode::Text {
                    self.utf8.finish().map_err(|_| BAD_TEXT)?;
                }
                self.given = true;
                return Ok(Some((opcode, Place::Message)));
            }
        }
    }

    /// Whether a frame's header is whole now, and its payload is next.
    fn gather_header(&mut self, input: &mut Received<'_>, rules: &Rules) -> Result<bool, Violation> {
        while input.left() > 0 {
            let had = usize::from(self.header_bytes);
            self.header[had] = input.bytes[input.at];
            input.at += 1;
            self.header_bytes += 1;
            let Some(header) = decode_header(&self.header[..=had], rules.role)? else { continue };
            check_frame(&header, self.open, self.message.len(), rules)?;
            self.header_bytes = 0;
            if header.opcode.is_control() {
                self.control_bytes = 0;
            } else if self.open.is_none() {
                self.open = Some(header.opcode);
            }
            self.frame = Some((header, 0));
            return Ok(true);
        }
        Ok(false)
    }

    /// Copies what is there of a frame's payload, of which `here` bytes came before; answers how many came now.
    fn gather_payload(
        &mut self,
        header: &FrameHeader,
        here: u64,
        input: &mut Received<'_>,
    ) -> Result<u64, Violation> {
        let count = input.left().min((header.payload_bytes - here) as usize);
        let piece = &mut input.bytes[input.at..input.at + count];
        input.at += count;
        if let Some(key) = header.mask {
            mask::apply(piece, key, here as usize % 4);
        }
        if header.opcode.is_control() {
            let start = usize::from(self.control_bytes);
            self.control.0[start..start + count].copy_from_slice(piece);
            self.control_bytes += count as u8;
        } else {
            if self.open == Some(Opcode::Text) {
                self.utf8.push(piece).map_err(|_| BAD_TEXT)?;
            }
            self.message.extend_from_slice(piece);
        }
        Ok(count as u64)
    }
}
