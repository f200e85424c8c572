//! What the tests share: a seeded generator, and decoders run to the end with what they found as owned values.

#![allow(dead_code)]

use std::time::{SystemTime, UNIX_EPOCH};

use millrace_protocol::client_session::{ClientSession, ServerFrame};
use millrace_protocol::frame::FrameKind;
use millrace_protocol::transport::{Input, Limits, Received, Transport, Violation};
use millrace_protocol::ws::{self, Opcode};

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    /// Seeded from the clock, or from MILLRACE_SEED; printed, so that a failure can be repeated.
    pub fn seeded(test: &str) -> Self {
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("MILLRACE_SEED").map_or_else(|_| clock(), |seed| seed.parse().unwrap());
        println!("{test}: MILLRACE_SEED={seed}");
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.fill(&mut bytes);
        bytes
    }
}

/// What a decoder found, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Frame(FrameKind, Vec<u8>),
    Upgrade(String),
    WsPing(Vec<u8>),
    WsPong,
    WsClose(u16, Vec<u8>),
    Violation(Violation),
}

/// Feeds `pieces` one after the other.
pub fn serve<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limits: &Limits) -> (Transport, Vec<Found>) {
    let mut transport = Transport::new();
    let mut found = Vec::new();
    for piece in pieces {
        let mut piece = piece.to_vec();
        let mut input = Received::new(&mut piece);
        loop {
            match transport.next(&mut input, limits) {
                Ok(None) => break,
                Ok(Some(input)) => found.push(match input {
                    Input::Frame { kind, body } => Found::Frame(kind, body.to_vec()),
                    Input::WsPing(payload) => Found::WsPing(payload.to_vec()),
                    Input::WsPong => Found::WsPong,
                    Input::Upgrade(response) => Found::Upgrade(String::from_utf8(response).unwrap()),
                    Input::WsClose { code, reply } => {
                        found.push(Found::WsClose(code, reply));
                        return (transport, found);
                    }
                }),
                Err(violation) => {
                    found.push(Found::Violation(violation));
                    return (transport, found);
                }
            }
        }
        assert_eq!(input.left(), 0, "None means that everything was consumed");
    }
    (transport, found)
}

/// Feeds a client session; what it found in words.
pub fn receive<'a>(session: &mut ClientSession, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
    let mut found = Vec::new();
    for piece in pieces {
        let mut piece = piece.to_vec();
        let mut input = Received::new(&mut piece);
        loop {
            match session.next(&mut input, &Limits::default()) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    found.push(format!("{frame:?}"));
                    if matches!(frame, ServerFrame::WsClose { .. }) {
                        return found;
                    }
                }
                Err(violation) => {
                    found.push(violation.to_string());
                    return found;
                }
            }
        }
        assert_eq!(input.left(), 0, "None means that everything was consumed");
    }
    found
}

/// An upgrade request that is answered with 101.
pub fn upgrade_request() -> Vec<u8> {
    millrace_protocol::ws::handshake::request("127.0.0.1", "/", *b"0123456789abcdef").0
}

/// One masked WebSocket frame, as a client sends it.
pub fn masked(last: bool, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let key = [0x11, 0x92, 0x33, 0xf4];
    let mut out = Vec::new();
    ws::encode_header(last, opcode, payload.len(), Some(key), &mut out);
    let start = out.len();
    out.extend_from_slice(payload);
    ws::mask::apply(&mut out[start..], key, 0);
    out
}

/// Every way to cut `stream` in two, and byte by byte.
pub fn cuts(stream: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    (0..=stream.len())
        .map(|at| vec![&stream[..at], &stream[at..]])
        .chain([stream.chunks(1).collect(), stream.chunks(3).collect()])
}
