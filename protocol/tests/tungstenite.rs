//! Against another implementation: random messages, fragmented at random and with control frames between, go both
//! ways through tungstenite and the codec here, and come out the same; bad UTF-8 is refused by both.

mod common;

use std::io::{self, Read, Write};

use common::Random;
use millrace_protocol::messages::client::Code;
use millrace_protocol::received::Received;
use millrace_protocol::ws::{self, Decoder, Message, Opcode, Role, Rules};
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::{Role as TheirRole, WebSocket};

const ROUNDS: usize = 400;

/// Bytes to be read, bytes that were written.
#[derive(Default)]
struct Wire {
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

impl Read for Wire {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.incoming.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = out.len().min(self.incoming.len());
        out[..count].copy_from_slice(&self.incoming[..count]);
        self.incoming.drain(..count);
        Ok(count)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outgoing.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What either side said, in order.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Refused,
}

/// A frame to be sent: last, opcode, payload.
type Sent = (bool, Opcode, Vec<u8>);

/// Random messages in random fragments; what should arrive.
fn script(random: &mut Random) -> (Vec<Sent>, Vec<Said>) {
    let (mut frames, mut said) = (Vec::new(), Vec::new());
    for _ in 0..1 + random.below(6) {
        let bytes = match random.below(4) {
            0 => random.below(4),
            1 => 120 + random.below(12),
            2 => 65_530 + random.below(12),
            _ => random.below(2000),
        };
        let is_text = random.below(3) == 0;
        let mut payload = random.bytes(bytes);
        if is_text {
            // Characters of every length; now and then a byte that breaks one.
            let text: String = (0..bytes / 3).map(|_| ['a', 'ß', '€', '🌊'][random.below(4)]).collect();
            payload = text.into_bytes();
            if random.below(4) == 0 && !payload.is_empty() {
                let at = random.below(payload.len());
                payload[at] = 0xc0 | random.next() as u8;
            }
        }
        let is_valid = !is_text || std::str::from_utf8(&payload).is_ok();
        let pieces = 1 + random.below(4);
        let mut rest = &payload[..];
        for piece in 0..pieces {
            let is_last = piece + 1 == pieces;
            let count = if is_last { rest.len() } else { random.below(rest.len() + 1) };
            let first = if is_text { Opcode::Text } else { Opcode::Binary };
            let opcode = if piece == 0 { first } else { Opcode::Continuation };
            frames.push((is_last, opcode, rest[..count].to_vec()));
            rest = &rest[count..];
            if is_valid && random.below(3) == 0 {
                let count = random.below(126);
                let control = random.bytes(count);
                let is_ping = random.below(2) == 0;
                frames.push((true, if is_ping { Opcode::Ping } else { Opcode::Pong }, control.clone()));
                let control = if is_ping { Said::Ping(control) } else { Said::Pong(control) };
                // Of the last piece it comes after the message, else before it.
                if is_last {
                    said.push(said_of(is_text, &payload));
                }
                said.push(control);
                if is_last {
                    break;
                }
            } else if is_last {
                said.push(if is_valid { said_of(is_text, &payload) } else { Said::Refused });
            }
        }
        if !is_valid {
            break;
        }
    }
    (frames, said)
}

fn said_of(is_text: bool, payload: &[u8]) -> Said {
    if is_text { Said::Text(payload.to_vec()) } else { Said::Binary(payload.to_vec()) }
}

fn decode_here(bytes: &[u8], role: Role, random: &mut Random) -> Vec<Said> {
    let rules = Rules { role, message_bytes_max: 1 << 20 };
    let mut decoder = Decoder::default();
    let mut said = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(1 + random.below(rest.len()));
        rest = after;
        let mut piece = piece.to_vec();
        let mut input = Received::new(&mut piece);
        loop {
            match decoder.next(&mut input, &rules) {
                Ok(None) => break,
                Ok(Some(Message::Text(text))) => said.push(Said::Text(text.into())),
                Ok(Some(Message::Binary(payload))) => said.push(Said::Binary(payload.into())),
                Ok(Some(Message::Ping(payload))) => said.push(Said::Ping(payload.into())),
                Ok(Some(Message::Pong(payload))) => said.push(Said::Pong(payload.into())),
                Ok(Some(Message::Close { code, .. })) => panic!("nobody closed: {code}"),
                Err(violation) => {
                    assert_eq!(violation.code, Code::InvalidUtf8);
                    said.push(Said::Refused);
                    return said;
                }
            }
        }
    }
    let mut nothing = Received::new(&mut []);
    assert!(decoder.next(&mut nothing, &rules).unwrap().is_none());
    assert_eq!(decoder.held_bytes(), 0);
    said
}

fn their_opcode(opcode: Opcode) -> OpCode {
    match opcode {
        Opcode::Continuation => OpCode::Data(Data::Continue),
        Opcode::Text => OpCode::Data(Data::Text),
        _ => OpCode::Data(Data::Binary),
    }
}

fn encode_there(frames: &[Sent], role: TheirRole) -> Vec<u8> {
    let mut socket = WebSocket::from_raw_socket(Wire::default(), role, None);
    for (last, opcode, payload) in frames {
        let message = match opcode {
            Opcode::Ping => tungstenite::Message::Ping(payload.clone().into()),
            Opcode::Pong => tungstenite::Message::Pong(payload.clone().into()),
            _ => tungstenite::Message::Frame(Frame::message(payload.clone(), their_opcode(*opcode), *last)),
        };
        socket.send(message).unwrap();
    }
    std::mem::take(&mut socket.get_mut().outgoing)
}

fn decode_there(bytes: Vec<u8>, role: TheirRole) -> Vec<Said> {
    let mut socket = WebSocket::from_raw_socket(Wire { incoming: bytes, outgoing: Vec::new() }, role, None);
    let mut said = Vec::new();
    loop {
        match socket.read() {
            Ok(tungstenite::Message::Text(text)) => said.push(Said::Text(text.as_bytes().to_vec())),
            Ok(tungstenite::Message::Binary(payload)) => said.push(Said::Binary(payload.to_vec())),
            Ok(tungstenite::Message::Ping(payload)) => said.push(Said::Ping(payload.to_vec())),
            Ok(tungstenite::Message::Pong(payload)) => said.push(Said::Pong(payload.to_vec())),
            Ok(other) => panic!("{other:?}"),
            Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return said,
            Err(tungstenite::Error::Utf8(_)) => {
                said.push(Said::Refused);
                return said;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn what_tungstenite_sends_is_read_here() {
    let mut random = Random::seeded("from tungstenite");
    for _ in 0..ROUNDS {
        let (frames, expected) = script(&mut random);
        for (theirs, ours) in [(TheirRole::Client, Role::Server), (TheirRole::Server, Role::Client)] {
            let bytes = encode_there(&frames, theirs);
            assert_eq!(decode_here(&bytes, ours, &mut random), expected);
        }
    }
}

#[test]
fn what_is_sent_here_tungstenite_reads() {
    let mut random = Random::seeded("to tungstenite");
    for _ in 0..ROUNDS {
        let (frames, expected) = script(&mut random);
        for (theirs, is_masked) in [(TheirRole::Server, true), (TheirRole::Client, false)] {
            let mut bytes = Vec::new();
            for (last, opcode, payload) in &frames {
                let key = is_masked.then(|| (random.next() as u32).to_ne_bytes());
                ws::encode_header(*last, *opcode, payload.len(), key, &mut bytes);
                let start = bytes.len();
                bytes.extend_from_slice(payload);
                if let Some(key) = key {
                    ws::mask::apply(&mut bytes[start..], key, 0);
                }
            }
            assert_eq!(decode_there(bytes, theirs), expected);
        }
    }
}

/// Both handshakes of this crate against both of tungstenite.
#[test]
fn handshakes_are_understood() {
    let (request, accept) = ws::handshake::request("127.0.0.1:80", "/", [5; 16]);
    let wire = Wire { incoming: request, outgoing: Vec::new() };
    #[allow(clippy::result_large_err)] // The shape of the callback is tungstenite's.
    let callback = |_: &tungstenite::handshake::server::Request,
                    mut response: tungstenite::handshake::server::Response| {
        response.headers_mut().insert("Sec-WebSocket-Protocol", "millrace".parse().unwrap());
        Ok(response)
    };
    let socket = tungstenite::accept_hdr(wire, callback).map_err(|error| error.to_string()).unwrap();
    assert_eq!(ws::handshake::check_response(&socket.get_ref().outgoing, &accept), Ok(()));

    let client = tungstenite::client("ws://127.0.0.1/", Wire::default());
    let Err(tungstenite::HandshakeError::Interrupted(mut waiting)) = client else {
        panic!("it needs an answer")
    };
    let wire = waiting.get_mut().get_mut();
    let response = ws::handshake::accept(&wire.outgoing).unwrap();
    wire.incoming = response;
    waiting.handshake().map_err(|error| error.to_string()).unwrap();
}
