//! Client frames over TCP: encoding a request, finding frames in what was received, and the shared frame of a fan-out.

use std::hint::black_box;

use millrace_protocol::client_session::{ClientSession, op, peek_deliver};
use millrace_protocol::frame::SharedFrame;
use millrace_protocol::messages::client::{Deliver, Notify, Request, notify::Event};
use millrace_protocol::prost::Message;
use millrace_protocol::received::{Limits, Received};
use millrace_protocol::transport::{Input, Transport};

use crate::{Path, Run, path};

/// A chat line, a typical event, a large one.
pub(crate) const PATHS: &[Path] = &[
    path("frame/encode-send-40", 1, 1_000, || encode(40)),
    path("frame/encode-send-128", 1, 1_000, || encode(128)),
    path("frame/encode-send-4096", 1, 1_000, || encode(4096)),
    path("frame/deframe-send-40", 1, 1_000, || deframe(40, usize::MAX)),
    path("frame/deframe-send-128", 1, 1_000, || deframe(128, usize::MAX)),
    path("frame/deframe-send-4096", 1, 1_000, || deframe(4096, usize::MAX)),
    path("frame/deframe-send-128-in-pieces", 1, 1_000, || deframe(128, 60)),
    path("frame/shared-40", 1, 1_000, || shared(40)),
    path("frame/shared-128", 1, 1_000, || shared(128)),
    path("frame/shared-4096", 1, 1_000, || shared(4096)),
    path("frame/peek-deliver-128", 1, 1_000, peek),
];

/// A client encodes a Send.
fn encode(payload_bytes: usize) -> Run {
    let payload = vec![7u8; payload_bytes];
    let mut session = ClientSession::tcp();
    let mut out = Vec::with_capacity(payload_bytes + 256);
    Box::new(move || {
        out.clear();
        session.request(9, op::send("g:engineering", 0x1234_5678_9abc, 42, payload.clone()), &mut out);
        black_box(&out);
    })
}

/// The gateway finds a Send in what it received, in pieces of at most so many bytes, and decodes it. Copying it into
/// the receive buffer, as the kernel does, is in the figure.
fn deframe(payload_bytes: usize, piece_bytes: usize) -> Run {
    let mut frame = Vec::new();
    let send = op::send("g:engineering", 0x1234_5678_9abc, 42, vec![7u8; payload_bytes]);
    ClientSession::tcp().request(9, send, &mut frame);
    let mut buffer = frame.clone();
    let (mut transport, limits) = (Transport::new(), Limits::default());
    Box::new(move || {
        buffer.copy_from_slice(&frame);
        let mut found = 0;
        for piece in buffer.chunks_mut(piece_bytes) {
            let mut input = Received::new(piece);
            while let Some(input) = transport.next(&mut input, &limits).expect("parts of a frame") {
                if let Input::Frame { body, .. } = input {
                    black_box(Request::decode(body).expect("a request"));
                    found += 1;
                }
            }
        }
        assert_eq!(found, 1);
    })
}

/// The gateway encodes a message once for all its receivers, of which one asks for TCP and one for WebSocket.
fn shared(payload_bytes: usize) -> Run {
    let body = notify_body(payload_bytes);
    Box::new(move || {
        let frame = SharedFrame::notify(&body);
        black_box((frame.bytes_for(false), frame.bytes_for(true)));
    })
}

/// The load generator looks at a message without decoding it.
fn peek() -> Run {
    let body = notify_body(128);
    Box::new(move || {
        black_box(peek_deliver(&body));
    })
}

/// What receivers get of a message.
pub(crate) fn notify_body(payload_bytes: usize) -> Vec<u8> {
    let deliver = Deliver {
        conversation: "g:engineering".to_owned(),
        seq: 123_456,
        message_id: 0x0123_4567_89ab_cdef,
        sender: "alice".to_owned(),
        sender_device: "phone".to_owned(),
        server_time_ms: 1_800_000_000_000,
        epoch: 1_800_000_000_000,
        payload: vec![7u8; payload_bytes].into(),
        content_kind: 1,
        action: 0,
        refers_to: 0,
    };
    Notify { event: Some(Event::Deliver(deliver)) }.encode_to_vec()
}
