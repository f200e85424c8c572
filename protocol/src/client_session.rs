//! The client's side of one connection: frames out, framed TCP or WebSocket, and what the server sends in.
//!
//! loadgen holds a million of these and the client SDK one; so it is 24 bytes, boxes what is partial, and decodes
//! nothing that isn't asked for. Retries, numbering and reconnecting are its user's business.

use prost::Message;

use crate::deframe::{Piece, TcpDeframer, WsDeframer};
use crate::frame::{FrameKind, HEADER_BYTES, PING, PONG, encode_header};
use crate::messages::client::{self, Code, GoAway, Request, request::Op};
pub use crate::peek::{DeliverRef, peek_deliver};
pub use crate::received::{Limits, Received, Violation};
use crate::ws::handshake::{self, Head};
use crate::ws::{self, Opcode, Role};

/// What came from the server. Bodies are not decoded: see [`decode_response`], [`decode_notify`], [`peek_deliver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerFrame<'a> {
    /// The WebSocket handshake is done: log in. Never given on TCP.
    Open,
    /// The body of a Response.
    Response(&'a [u8]),
    /// The body of a Notify.
    Notify(&'a [u8]),
    /// Answer with [`ClientSession::pong`].
    Ping,
    /// The answer to our Ping.
    Pong,
    /// A WebSocket ping: answer with [`ClientSession::ws_pong`].
    WsPing(&'a [u8]),
    /// The server closes the WebSocket connection, with this code (1005: none) and reason.
    WsClose {
        /// A code of the schema, or one of WebSocket's own.
        code: u16,
        /// In words.
        reason: &'a str,
    },
}

/// Decoder and encoder of one client connection.
#[derive(Debug)]
pub struct ClientSession {
    mode: Mode,
    /// The state of the generator of masking keys. They keep caches on the way from being fed by web pages that
    /// choose the bytes; the bytes here are chosen by this code.
    mask: u32,
}

#[derive(Debug)]
enum Mode {
    Tcp(TcpDeframer),
    /// The head of the response is coming in, and must carry this Sec-WebSocket-Accept.
    Opening(Box<(Head, String)>),
    WebSocket(WsDeframer),
}

const _: () = assert!(size_of::<ClientSession>() <= 24, "loadgen holds a million of these");

impl ClientSession {
    /// On framed TCP; nothing is sent first.
    pub fn tcp() -> Self {
        ClientSession { mode: Mode::Tcp(TcpDeframer::default()), mask: 0 }
    }

    /// On WebSocket, with the upgrade request to send first. `nonce` is 16 random bytes (masking keys come from it
    /// too); `host` and `path` are what the request names. Frames may be sent after [`ServerFrame::Open`].
    pub fn websocket(host: &str, path: &str, nonce: [u8; 16]) -> (Self, Vec<u8>) {
        let (request, accept) = handshake::request(host, path, nonce);
        let [.., a, b, c, d] = nonce;
        let mask = u32::from_ne_bytes([a, b, c, d]).max(1);
        (ClientSession { mode: Mode::Opening(Box::new((Head::default(), accept))), mask }, request)
    }

    /// The next thing in `input`; `None` when all of it was consumed. Call until `None` or a violation, with the same
    /// `input`.
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut Received<'_>,
        limits: &Limits,
    ) -> Result<Option<ServerFrame<'a>>, Violation> {
        if let Mode::Opening(opening) = &mut self.mode {
            let (head, accept) = &mut **opening;
            let whole = head
                .take(input)
                .map_err(|_| Violation::new(Code::TooBig, "WebSocket: the response's head is above 8 KiB"))?;
            if !whole {
                return Ok(None);
            }
            handshake::check_response(head.bytes(), accept)?;
            self.mode = Mode::WebSocket(WsDeframer::default());
            return Ok(Some(ServerFrame::Open));
        }
        let piece = match &mut self.mode {
            Mode::Tcp(deframer) => deframer.next(input, limits)?,
            Mode::WebSocket(deframer) => deframer.next(input, Role::Client, limits)?,
            Mode::Opening(_) => None,
        };
        piece.map(server_frame).transpose()
    }

    /// After a violation: what the gateway said in HTTP, because the WebSocket was not open yet, as the GoAway that it stands
    /// for. `None` if it said anything else.
    pub fn sent_away(&self) -> Option<GoAway> {
        let Mode::Opening(opening) = &self.mode else { return None };
        let refusal = handshake::refusal(opening.0.bytes())?;
        let code = match refusal.code {
            408 => Code::LoginTimeout,
            503 => Code::Unavailable,
            _ => return None,
        };
        let retry_after_ms = refusal.retry_after_s.saturating_mul(1_000);
        Some(GoAway { code: code.into(), reason: format!("HTTP {}", refusal.status), retry_after_ms })
    }

    /// Whether frames travel in WebSocket messages.
    pub fn is_websocket(&self) -> bool {
        !matches!(self.mode, Mode::Tcp(_))
    }

    /// Bytes of heap held because something is partial.
    pub fn held_bytes(&self) -> usize {
        match &self.mode {
            Mode::Tcp(deframer) => deframer.held_bytes(),
            Mode::Opening(opening) => {
                size_of::<(Head, String)>() + opening.0.held_bytes() + opening.1.capacity()
            }
            Mode::WebSocket(deframer) => deframer.held_bytes(),
        }
    }

    /// Appends a request, ready to send, to `out`. `id` is not 0.
    pub fn request(&mut self, id: u64, op: Op, out: &mut Vec<u8>) {
        self.encode(FrameKind::Request, &Request { id, op: Some(op) }, out);
    }

    /// Appends a frame with this message as its body, ready to send, to `out`.
    pub fn encode(&mut self, kind: FrameKind, message: &impl Message, out: &mut Vec<u8>) {
        let body_bytes = message.encoded_len();
        let key = self.begin_message(HEADER_BYTES + body_bytes, out);
        let start = out.len();
        out.extend_from_slice(&encode_header(kind, body_bytes));
        message.encode_raw(out);
        self.end_message(key, &mut out[start..]);
    }

    /// Appends a heartbeat to `out`.
    pub fn ping(&mut self, out: &mut Vec<u8>) {
        self.heartbeat(PING, out);
    }

    /// Appends the answer to a heartbeat to `out`.
    pub fn pong(&mut self, out: &mut Vec<u8>) {
        self.heartbeat(PONG, out);
    }

    /// Appends the answer to a WebSocket ping to `out`; nothing on TCP.
    pub fn ws_pong(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        if self.is_websocket() {
            let key = self.next_mask();
            ws::encode_frame(Opcode::Pong, payload, Some(key), out);
        }
    }

    /// Appends what ends a connection properly to `out`: a WebSocket close frame; nothing on TCP.
    pub fn close(&mut self, code: u16, reason: &str, out: &mut Vec<u8>) {
        if self.is_websocket() {
            let key = self.next_mask();
            ws::encode_frame(Opcode::Close, &ws::close_payload(code, reason), Some(key), out);
        }
    }

    fn heartbeat(&mut self, frame: [u8; HEADER_BYTES], out: &mut Vec<u8>) {
        let key = self.begin_message(HEADER_BYTES, out);
        let start = out.len();
        out.extend_from_slice(&frame);
        self.end_message(key, &mut out[start..]);
    }

    fn begin_message(&mut self, message_bytes: usize, out: &mut Vec<u8>) -> Option<[u8; 4]> {
        out.reserve(ws::HEADER_BYTES_MAX + message_bytes);
        if !self.is_websocket() {
            return None;
        }
        let key = self.next_mask();
        ws::encode_header(true, Opcode::Binary, message_bytes, Some(key), out);
        Some(key)
    }

    fn end_message(&self, key: Option<[u8; 4]>, message: &mut [u8]) {
        if let Some(key) = key {
            ws::mask::apply(message, key, 0);
        }
    }

    /// xorshift32 (Marsaglia, 2003).
    fn next_mask(&mut self) -> [u8; 4] {
        self.mask ^= self.mask << 13;
        self.mask ^= self.mask >> 17;
        self.mask ^= self.mask << 5;
        self.mask.to_ne_bytes()
    }
}

fn server_frame(piece: Piece<'_>) -> Result<ServerFrame<'_>, Violation> {
    Ok(match piece {
        Piece::Frame { kind: FrameKind::Response, body } => ServerFrame::Response(body),
        Piece::Frame { kind: FrameKind::Notify, body } => ServerFrame::Notify(body),
        Piece::Frame { kind: FrameKind::Ping, .. } => ServerFrame::Ping,
        Piece::Frame { kind: FrameKind::Pong, .. } => ServerFrame::Pong,
        Piece::Frame { kind: FrameKind::Request, .. } => {
            return Err(Violation::new(Code::ProtocolError, "a Request from a server"));
        }
        Piece::WsPing(payload) => ServerFrame::WsPing(payload),
        Piece::WsPong => ServerFrame::Pong,
        Piece::WsClose { code, reason } => ServerFrame::WsClose { code, reason },
    })
}

/// Decodes the body of a Response. BAD_BODY when it is none.
pub fn decode_response(body: &[u8]) -> Result<client::Response, Violation> {
    client::Response::decode(body).map_err(|_| Violation::new(Code::BadBody, "unreadable Response"))
}

/// Decodes the body of a Notify. BAD_BODY when it is none.
pub fn decode_notify(body: &[u8]) -> Result<client::Notify, Violation> {
    client::Notify::decode(body).map_err(|_| Violation::new(Code::BadBody, "unreadable Notify"))
}

/// Requests, ready for [`ClientSession::request`].
pub mod op {
    use bytes::Bytes;

    use crate::messages::client::{self, request::Op};

    /// With a token. For a resume ticket, build [`client::Login`] by hand.
    pub fn login(token: &str, device: &str, platform: &str) -> Op {
        Op::Login(client::Login {
            token: token.into(),
            device: device.into(),
            platform: platform.into(),
            resume_ticket: Bytes::new(),
            acknowledges: false,
        })
    }

    /// A message to a conversation, with the application's content kind 0.
    pub fn send(conversation: &str, stream: u64, client_seq: u64, payload: impl Into<Bytes>) -> Op {
        Op::Send(client::Send {
            conversation: conversation.into(),
            client_seq,
            stream,
            payload: payload.into(),
            ..client::Send::default()
        })
    }

    /// A new group of the caller and `members`.
    pub fn group_create(group: &str, members: impl IntoIterator<Item = String>) -> Op {
        let members = members.into_iter().collect();
        Op::GroupCreate(client::GroupCreate {
            group: group.into(),
            members,
            ..client::GroupCreate::default()
        })
    }

    /// Becomes a member.
    pub fn group_join(group: &str) -> Op {
        Op::GroupJoin(client::GroupJoin { group: group.into() })
    }

    /// Is no longer a member.
    pub fn group_leave(group: &str) -> Op {
        Op::GroupLeave(client::GroupLeave { group: group.into() })
    }

    /// A page of members: those after `after` in byte order.
    pub fn group_members(group: &str, after: &str, limit: u32) -> Op {
        Op::GroupMembers(client::GroupMembers { group: group.into(), after: after.into(), limit })
    }

    /// Listens to a room.
    pub fn room_join(room: &str) -> Op {
        Op::RoomJoin(client::RoomJoin { room: room.into() })
    }

    /// Listens no longer.
    pub fn room_leave(room: &str) -> Op {
        Op::RoomLeave(client::RoomLeave { room: room.into() })
    }

    /// Ends the session; its resume ticket is void.
    pub fn logout() -> Op {
        Op::Logout(client::Logout {})
    }
}
