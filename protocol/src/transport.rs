//! The server's side of one client connection: bytes in, whole frames out, whatever the client speaks.
//!
//! The first byte tells TLS (0x16), an HTTP request (a capital letter) and framed TCP (a frame kind) apart. What
//! frames mean, deadlines and closing are the gateway core's business. The rule: an idle connection costs the 16
//! bytes of this struct; anything partial is boxed, and freed as soon as it is whole.

use prost::Message;

use crate::deframe::{Piece, TcpDeframer, WsDeframer};
use crate::frame::{FrameKind, HEADER_BYTES, PING, PONG, encode_body, encode_frame, encode_header};
use crate::messages::client::{Code, GoAway, Notify, notify::Event};
pub use crate::received::{Limits, Received, Violation};
use crate::ws::handshake::{self, Head, Rejection};
use crate::ws::{self, Opcode, Role};

/// The first byte of a TLS connection (a handshake record); frame kinds stay below it.
const TLS_FIRST: u8 = 0x16;

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
    mode: Mode,
}

#[derive(Debug, Default)]
enum Mode {
    /// Nothing came yet.
    #[default]
    New,
    Tls,
    /// The head of the upgrade request is coming in.
    Http(Box<Head>),
    /// It came, and is answered so.
    Rejected(Box<Rejection>),
    Tcp(TcpDeframer),
    WebSocket(WsDeframer),
}

const _: () = assert!(size_of::<Transport>() <= 16, "a million of these are held");

impl Transport {
    /// A connection that sent nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next thing in `input`; `None` when all of it was consumed. Call until `None` or a violation, with the same
    /// `input`; after a violation or [`Input::WsClose`] no more.
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut Received<'_>,
        limits: &Limits,
    ) -> Result<Option<Input<'a>>, Violation> {
        if matches!(self.mode, Mode::New) {
            let Some(first) = input.rest().first() else { return Ok(None) };
            self.mode = match *first {
                TLS_FIRST => Mode::Tls,
                // A method. Only GET is served; whoever asks otherwise is told so in HTTP.
                b'A'..=b'Z' => Mode::Http(Box::default()),
                _ => Mode::Tcp(TcpDeframer::default()),
            };
        }
        if let Mode::Http(head) = &mut self.mode {
            let upgrade = match head.take(input) {
                Ok(false) => return Ok(None),
                Ok(true) => handshake::accept(head.bytes()),
                Err(handshake::HeadTooBig) => Err(Rejection::HeadTooBig),
            };
            return match upgrade {
                Ok(response) => {
                    self.mode = Mode::WebSocket(WsDeframer::default());
                    Ok(Some(Input::Upgrade(response)))
                }
                Err(rejection) => {
                    self.mode = Mode::Rejected(Box::new(rejection));
                    Err(rejection_violation(rejection))
                }
            };
        }
        let piece = match &mut self.mode {
            Mode::Tcp(deframer) => deframer.next(input, limits)?,
            Mode::WebSocket(deframer) => deframer.next(input, Role::Server, limits)?,
            Mode::Rejected(rejection) => return Err(rejection_violation(**rejection)),
            _ => return Err(violation("TLS is not served on this port")),
        };
        piece.map(input_of).transpose()
    }

    /// Whether frames travel in WebSocket messages (the upgrade was answered).
    pub fn is_websocket(&self) -> bool {
        matches!(self.mode, Mode::WebSocket(_))
    }

    /// Bytes of heap that this connection holds because something is partial.
    pub fn held_bytes(&self) -> usize {
        match &self.mode {
            Mode::New | Mode::Tls => 0,
            Mode::Http(head) => size_of::<Head>() + head.held_bytes(),
            Mode::Rejected(_) => size_of::<Rejection>(),
            Mode::Tcp(deframer) => deframer.held_bytes(),
            Mode::WebSocket(deframer) => deframer.held_bytes(),
        }
    }

    /// A frame with this body, ready to send.
    pub fn encode(&self, kind: FrameKind, body: &[u8]) -> Vec<u8> {
        if !self.is_websocket() {
            return encode_body(kind, body);
        }
        let mut out = ws_prefix(kind, body.len());
        out.extend_from_slice(body);
        out
    }

    /// A frame with this message as its body, ready to send.
    pub fn encode_message(&self, kind: FrameKind, message: &impl Message) -> Vec<u8> {
        if !self.is_websocket() {
            return encode_frame(kind, message);
        }
        let mut out = ws_prefix(kind, message.encoded_len());
        message.encode_raw(&mut out);
        out
    }

    /// The answer to a Ping frame.
    pub fn pong(&self) -> &'static [u8] {
        const WS_PONG: [u8; 6] = [0x82, HEADER_BYTES as u8, FrameKind::Pong as u8, 0, 0, 0];
        if self.is_websocket() { &WS_PONG } else { &PONG }
    }

    /// A Ping frame of our own.
    pub fn ping(&self) -> &'static [u8] {
        const WS_PING: [u8; 6] = [0x82, HEADER_BYTES as u8, FrameKind::Ping as u8, 0, 0, 0];
        if self.is_websocket() { &WS_PING } else { &PING }
    }

    /// The answer to a WebSocket ping; its payload is at most 125 bytes.
    pub fn ws_pong(&self, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(2 + payload.len());
        ws::encode_frame(Opcode::Pong, payload, None, &mut out);
        out
    }

    /// The last bytes of a connection that the server closes: a GoAway notification, on WebSocket followed by a close
    /// frame with the same code; an HTTP error before the upgrade ([`ClientSession::sent_away`] reads it); nothing for TLS.
    ///
    /// [`ClientSession::sent_away`]: crate::client_session::ClientSession::sent_away
    pub fn close_bytes(&self, code: Code, reason: &str, retry_after_ms: u32) -> Vec<u8> {
        match &self.mode {
            Mode::Tls => return Vec::new(),
            Mode::Rejected(rejection) => return rejection.response(),
            Mode::Http(_) => {
                let status = if code == Code::LoginTimeout {
                    "408 Request Timeout"
                } else {
                    "503 Service Unavailable"
                };
                let extra = format!("Retry-After: {}\r\n", retry_after_ms.div_ceil(1000));
                return handshake::http_error(status, &extra, reason);
            }
            Mode::New | Mode::Tcp(_) | Mode::WebSocket(_) => {}
        }
        let go_away = GoAway { code: code.into(), reason: reason.into(), retry_after_ms };
        let mut out = self.encode_message(FrameKind::Notify, &Notify { event: Some(Event::GoAway(go_away)) });
        if self.is_websocket() {
            ws::encode_frame(Opcode::Close, &ws::close_payload(close_code(code), reason), None, &mut out);
        }
        out
    }
}

/// The WebSocket close code for a code of the schema: the same, and 1000 (a normal end) for none.
pub fn close_code(code: Code) -> u16 {
    if code == Code::None { 1000 } else { code as u16 }
}

/// A WebSocket header and a frame's header, with room for the body.
fn ws_prefix(kind: FrameKind, body_bytes: usize) -> Vec<u8> {
    let (prefix, prefix_bytes) = ws::server_binary_header(HEADER_BYTES + body_bytes);
    let mut out = Vec::with_capacity(prefix_bytes + HEADER_BYTES + body_bytes);
    out.extend_from_slice(&prefix[..prefix_bytes]);
    out.extend_from_slice(&encode_header(kind, body_bytes));
    out
}

fn input_of(piece: Piece<'_>) -> Result<Input<'_>, Violation> {
    Ok(match piece {
        Piece::Frame { kind: FrameKind::Response | FrameKind::Notify, .. } => {
            return Err(violation("a frame of a kind that only servers send"));
        }
        Piece::Frame { kind, body } => Input::Frame { kind, body },
        Piece::WsPing(payload) => Input::WsPing(payload),
        Piece::WsPong => Input::WsPong,
        Piece::WsClose { code, .. } => {
            let mut reply = Vec::new();
            ws::encode_frame(Opcode::Close, &ws::close_payload(code, ""), None, &mut reply);
            Input::WsClose { code, reply }
        }
    })
}

const fn violation(reason: &'static str) -> Violation {
    Violation::new(Code::ProtocolError, reason)
}

fn rejection_violation(rejection: Rejection) -> Violation {
    match rejection {
        Rejection::Bad(reason) => violation(reason),
        Rejection::Method => violation("HTTP: only GET is served here"),
        Rejection::UpgradeRequired => violation("HTTP: not an upgrade to WebSocket version 13"),
        Rejection::HeadTooBig => Violation::new(Code::TooBig, "HTTP: the request's head is above 8 KiB"),
    }
}
