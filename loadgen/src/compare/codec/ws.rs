//! The WebSocket client that the codecs of servers other than millrace share: upgrade, messages in, frames out.

use millrace_protocol::received::Received;
use millrace_protocol::ws::handshake::{self, Head};
use millrace_protocol::ws::{Decoder, Message, Opcode, Role, Rules, encode_frame};

use super::CodecError;
use super::carry::PARTIAL_BYTES_MAX;

const RULES: Rules = Rules { role: Role::Client, message_bytes_max: PARTIAL_BYTES_MAX };

/// What came.
pub(super) enum Heard<'a> {
    /// The upgrade was accepted.
    Open,
    /// A message of either kind.
    Message(&'a [u8]),
    /// To be answered with [`Ws::pong`].
    Ping(Vec<u8>),
    /// Unasked.
    Pong,
}

/// One WebSocket connection.
#[derive(Debug)]
pub(super) struct Ws {
    /// The head of the response is coming in, and must carry this Sec-WebSocket-Accept.
    opening: Option<Box<(Head, String)>>,
    decoder: Decoder,
    mask: [u8; 4],
}

impl Ws {
    /// Not connected yet, with the request to send first. Masks come from the nonce: they protect caches from bytes
    /// that web pages choose, and there are neither here.
    pub(super) fn new(path: &str, nonce: [u8; 16]) -> (Self, Vec<u8>) {
        let (mut request, accept) = handshake::request("localhost", path, nonce);
        // They don't know it, and nchan answers an unknown one with an empty one.
        let offer = format!("Sec-WebSocket-Protocol: {}\r\n", handshake::SUBPROTOCOL);
        let at = request.windows(offer.len()).position(|line| line == offer.as_bytes());
        if let Some(at) = at {
            request.drain(at..at + offer.len());
        }
        let [a, b, c, d, ..] = nonce;
        let opening = Some(Box::new((Head::default(), accept)));
        (Ws { opening, decoder: Decoder::default(), mask: [a, b, c, d] }, request)
    }

    /// The next thing in `input`; `None` when all of it was taken.
    pub(super) fn next<'a>(
        &'a mut self,
        input: &'a mut Received<'_>,
    ) -> Result<Option<Heard<'a>>, CodecError> {
        if let Some(opening) = &mut self.opening {
            let (head, accept) = &mut **opening;
            let whole = head.take(input).map_err(|_| CodecError::TooBig(handshake::HEAD_BYTES_MAX))?;
            if !whole {
                return Ok(None);
            }
            handshake::check_response(head.bytes(), accept).map_err(|_| {
                let said = String::from_utf8_lossy(head.bytes());
                CodecError::Refused(said.lines().next().unwrap_or_default().to_owned())
            })?;
            self.opening = None;
            return Ok(Some(Heard::Open));
        }
        Ok(match self.decoder.next(input, &RULES)? {
            None => None,
            Some(Message::Text(text)) => Some(Heard::Message(text.as_bytes())),
            Some(Message::Binary(bytes)) => Some(Heard::Message(bytes)),
            Some(Message::Ping(payload)) => Some(Heard::Ping(payload.to_vec())),
            Some(Message::Pong(_)) => Some(Heard::Pong),
            Some(Message::Close { code, reason }) => {
                return Err(CodecError::Refused(format!("closed with {code} {reason}")));
            }
        })
    }

    pub(super) fn send(&self, payload: &[u8], out: &mut Vec<u8>) {
        encode_frame(Opcode::Binary, payload, Some(self.mask), out);
    }

    pub(super) fn pong(&self, payload: &[u8], out: &mut Vec<u8>) {
        encode_frame(Opcode::Pong, payload, Some(self.mask), out);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What a server says that accepts the upgrade of this nonce, and then sends these frames.
    pub(in super::super) fn server(nonce: [u8; 16], frames: &[(Opcode, &[u8])]) -> Vec<u8> {
        let (request, _) = handshake::request("localhost", "/", nonce);
        let mut bytes = handshake::accept(&request).unwrap();
        frames.iter().for_each(|(opcode, payload)| encode_frame(*opcode, payload, None, &mut bytes));
        bytes
    }
}
