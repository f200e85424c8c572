//! The WebSocket codec both ways: masked messages of clients, unmasked in place; messages of the server.

use std::hint::black_box;

use millrace_protocol::client_session::{ClientSession, ServerFrame, op};
use millrace_protocol::frame::FrameKind;
use millrace_protocol::received::{Limits, Received};
use millrace_protocol::transport::{Input, Transport};

use crate::frame::notify_body;
use crate::{Path, Run, path};

pub(crate) const PATHS: &[Path] = &[
    path("websocket/server-receives-heartbeat", 1, 1_000, || receive(None, usize::MAX)),
    path("websocket/server-receives-40", 1, 1_000, || receive(Some(40), usize::MAX)),
    path("websocket/server-receives-128", 1, 1_000, || receive(Some(128), usize::MAX)),
    path("websocket/server-receives-4096", 1, 1_000, || receive(Some(4096), usize::MAX)),
    path("websocket/server-receives-60000", 1, 100, || receive(Some(60_000), usize::MAX)),
    path("websocket/server-receives-128-in-pieces", 1, 1_000, || receive(Some(128), 60)),
    path("websocket/server-encodes-128", 1, 1_000, || server_encodes(128)),
    path("websocket/server-encodes-4096", 1, 1_000, || server_encodes(4096)),
    path("websocket/client-encodes-128", 1, 1_000, || client_encodes(128)),
    path("websocket/client-encodes-4096", 1, 1_000, || client_encodes(4096)),
    path("websocket/client-receives-128", 1, 1_000, || client_receives(128)),
];

/// A server's transport and a client's session after a complete handshake.
fn connected() -> (Transport, ClientSession) {
    let (mut client, mut upgrade) = ClientSession::websocket("localhost", "/", [7; 16]);
    let (mut server, limits) = (Transport::new(), Limits::default());
    let mut answer = Vec::new();
    let mut input = Received::new(&mut upgrade);
    while let Some(input) = server.next(&mut input, &limits).expect("a proper upgrade") {
        if let Input::Upgrade(bytes) = input {
            answer = bytes;
        }
    }
    let mut open = false;
    let mut input = Received::new(&mut answer);
    while let Some(frame) = client.next(&mut input, &limits).expect("a proper answer") {
        open |= frame == ServerFrame::Open;
    }
    assert!(open, "the handshake completes");
    (server, client)
}

/// The server receives a Send, or a heartbeat, in pieces of at most so many bytes. The kernel's copy is in the figure.
fn receive(payload_bytes: Option<usize>, piece_bytes: usize) -> Run {
    let (mut server, mut client) = connected();
    let mut message = Vec::new();
    match payload_bytes {
        None => client.ping(&mut message),
        Some(bytes) => client.request(1, op::send("g:engineering", 5, 42, vec![7u8; bytes]), &mut message),
    }
    let (mut buffer, limits) = (message.clone(), Limits::default());
    Box::new(move || {
        buffer.copy_from_slice(&message);
        let mut found = 0;
        for piece in buffer.chunks_mut(piece_bytes) {
            let mut input = Received::new(piece);
            while let Some(input) = server.next(&mut input, &limits).expect("parts of a message") {
                black_box(&input);
                found += 1;
            }
        }
        assert_eq!(found, 1);
    })
}

fn server_encodes(payload_bytes: usize) -> Run {
    let (server, _) = connected();
    let body = notify_body(payload_bytes);
    Box::new(move || {
        black_box(server.encode(FrameKind::Notify, &body));
    })
}

/// A client encodes and masks a Send.
fn client_encodes(payload_bytes: usize) -> Run {
    let (_, mut client) = connected();
    let payload = vec![7u8; payload_bytes];
    let mut out = Vec::with_capacity(payload_bytes + 256);
    Box::new(move || {
        out.clear();
        client.request(1, op::send("g:engineering", 5, 42, payload.clone()), &mut out);
        black_box(&out);
    })
}

fn client_receives(payload_bytes: usize) -> Run {
    let (server, mut client) = connected();
    let message = server.encode(FrameKind::Notify, &notify_body(payload_bytes));
    let (mut buffer, limits) = (message.clone(), Limits::default());
    Box::new(move || {
        buffer.copy_from_slice(&message);
        let mut input = Received::new(&mut buffer);
        let frame = client.next(&mut input, &limits).expect("a whole message");
        assert!(matches!(black_box(frame), Some(ServerFrame::Notify(_))));
    })
}
