//! The client's side of one connection: frames out, framed TCP or WebSocket, and what the server sends in.
//!
//! loadgen holds a million of these and the client SDK one; so it is 24 bytes, boxes what is partial, and decodes
//! nothing that isn't asked for. Retries, numbering and reconnecting are its user's business.

use prost::Message;

use crate::frame::FrameKind;
use crate::messages::client::{self, Request, request::Op};
use crate::received::{Limits, Received, Violation};

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
    websocket: bool,
    mask: u32,
}

impl ClientSession {
    /// On framed TCP; nothing is sent first.
    pub fn tcp() -> Self {
        ClientSession { websocket: false, mask: 0 }
    }

    /// On WebSocket, with the upgrade request to send first. `nonce` is 16 random bytes (masking keys come from it
    /// too); `host` and `path` are what the request names. Frames may be sent after [`ServerFrame::Open`].
    pub fn websocket(host: &str, path: &str, nonce: [u8; 16]) -> (Self, Vec<u8>) {
        let _ = (host, path);
        (ClientSession { websocket: true, mask: u32::from(nonce[0]) }, Vec::new())
    }

    /// The next thing in `input`; `None` when all of it was consumed. Call until `None` or a violation.
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut Received<'_>,
        limits: &Limits,
    ) -> Result<Option<ServerFrame<'a>>, Violation> {
        let _ = limits;
        input.at = input.bytes.len();
        Ok(None)
    }

    /// Whether frames travel in WebSocket messages.
    pub fn is_websocket(&self) -> bool {
        self.websocket
    }

    /// Bytes of heap held because something is partial.
    pub fn held_bytes(&self) -> usize {
        0
    }

    /// Appends a request, ready to send, to `out`.
    pub fn request(&mut self, id: u64, op: Op, out: &mut Vec<u8>) {
        self.encode(FrameKind::Request, &Request { id, op: Some(op) }, out);
    }

    /// Appends a frame with this message as its body, ready to send, to `out`.
    pub fn encode(&mut self, kind: FrameKind, message: &impl Message, out: &mut Vec<u8>) {
        let _ = (kind, message, out);
    }

    /// Appends a heartbeat to `out`.
    pub fn ping(&mut self, out: &mut Vec<u8>) {
        let _ = out;
    }

    /// Appends the answer to a heartbeat to `out`.
    pub fn pong(&mut self, out: &mut Vec<u8>) {
        let _ = out;
    }

    /// Appends the answer to a WebSocket ping to `out`; nothing on TCP.
    pub fn ws_pong(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        let _ = (payload, out);
    }

    /// Appends what ends a connection properly to `out`: a WebSocket close frame; nothing on TCP.
    pub fn close(&mut self, code: u16, reason: &str, out: &mut Vec<u8>) {
        let _ = (code, reason, out);
    }
}

/// Decodes the body of a Response. BAD_BODY when it is none.
pub fn decode_response(body: &[u8]) -> Result<client::Response, Violation> {
    client::Response::decode(body).map_err(|_| Violation::new(client::Code::BadBody, "unreadable Response"))
}

/// Decodes the body of a Notify. BAD_BODY when it is none.
pub fn decode_notify(body: &[u8]) -> Result<client::Notify, Violation> {
    client::Notify::decode(body).map_err(|_| Violation::new(client::Code::BadBody, "unreadable Notify"))
}

/// A Deliver, borrowed from the body of a Notify.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DeliverRef<'a> {
    pub conversation: &'a str,
    pub seq: u64,
    pub message_id: u64,
    pub sender: &'a str,
    pub sender_device: &'a str,
    pub server_time_ms: u64,
    pub epoch: u64,
    pub payload: &'a [u8],
    pub content_kind: u32,
}

/// Reads the body of a Notify without allocating; `None` when it is no Deliver (or unreadable).
pub fn peek_deliver(notify: &[u8]) -> Option<DeliverRef<'_>> {
    let _ = notify;
    None
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
        })
    }

    /// A message to a conversation, with the application's content kind 0.
    pub fn send(conversation: &str, stream: u64, client_seq: u64, payload: impl Into<Bytes>) -> Op {
        Op::Send(client::Send {
            conversation: conversation.into(),
            client_seq,
            stream,
            payload: payload.into(),
            content_kind: 0,
        })
    }

    /// A new group of the caller and `members`.
    pub fn group_create(group: &str, members: impl IntoIterator<Item = String>) -> Op {
        Op::GroupCreate(client::GroupCreate { group: group.into(), members: members.into_iter().collect() })
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
