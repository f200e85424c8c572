//! Streams cut at every offset: each decoder finds the same as in the whole, and holds nothing afterwards.

mod common;

use common::{Found, cuts, masked, receive, serve, upgrade_request};
use millrace_protocol::client_session::{ClientSession, op};
use millrace_protocol::frame::{FrameKind, PING, PONG, SharedFrame, encode_body};
use millrace_protocol::transport::{Limits, Transport};
use millrace_protocol::ws::Opcode;

#[track_caller]
fn check_server(stream: &[u8], expected: &[Found]) {
    let limits = Limits::default();
    let (whole, found) = serve([stream], &limits);
    assert_eq!(found, expected);
    assert_eq!(whole.held_bytes(), 0);
    for pieces in cuts(stream) {
        let lengths: Vec<_> = pieces.iter().map(|piece| piece.len()).collect();
        // The empty piece at the end stands for the call that finds nothing more.
        let (transport, found) = serve(pieces.into_iter().chain([&[][..]]), &limits);
        assert_eq!(found, expected, "cut as {lengths:?}");
        assert_eq!(transport.held_bytes(), 0, "cut as {lengths:?}");
    }
}

#[test]
fn framed_tcp() {
    let body = [0x5a; 300];
    let stream =
        [&encode_body(FrameKind::Request, &body)[..], &PING, &encode_body(FrameKind::Request, b""), &PONG]
            .concat();
    let expected = [
        Found::Frame(FrameKind::Request, body.to_vec()),
        Found::Frame(FrameKind::Ping, vec![]),
        Found::Frame(FrameKind::Request, vec![]),
        Found::Frame(FrameKind::Pong, vec![]),
    ];
    check_server(&stream, &expected);
}

#[test]
fn websocket_with_fragments_and_control_frames_between() {
    let request = encode_body(FrameKind::Request, &[0xa5; 200]);
    let two = [&request[..], &PING].concat();
    let stream = [
        upgrade_request(),
        masked(true, Opcode::Binary, &request),
        masked(true, Opcode::Binary, &two),
        masked(false, Opcode::Binary, &two[..3]),
        masked(true, Opcode::Ping, b"are you there"),
        masked(false, Opcode::Continuation, b""),
        masked(false, Opcode::Continuation, &two[3..150]),
        masked(true, Opcode::Pong, b""),
        masked(true, Opcode::Continuation, &two[150..]),
        masked(true, Opcode::Ping, b""),
        masked(true, Opcode::Close, &[0x03, 0xe8, b'b', b'y', b'e']),
    ]
    .concat();
    let (_, found) = serve([&stream[..]], &Limits::default());
    let Found::Upgrade(response) = &found[0] else { panic!("{found:?}") };
    assert!(response.starts_with("HTTP/1.1 101 "));
    let frame = |kind, body: &[u8]| Found::Frame(kind, body.to_vec());
    let expected = [
        Found::Upgrade(response.clone()),
        frame(FrameKind::Request, &request[4..]),
        frame(FrameKind::Request, &request[4..]),
        frame(FrameKind::Ping, b""),
        Found::WsPing(b"are you there".to_vec()),
        Found::WsPong,
        frame(FrameKind::Request, &request[4..]),
        frame(FrameKind::Ping, b""),
        Found::WsPing(vec![]),
        Found::WsClose(1000, vec![0x88, 2, 0x03, 0xe8]),
    ];
    assert_eq!(found, expected);
    for pieces in cuts(&stream) {
        let lengths: Vec<_> = pieces.iter().map(|piece| piece.len()).collect();
        assert_eq!(serve(pieces, &Limits::default()).1, expected, "cut as {lengths:?}");
    }
    // Nothing is held between messages.
    let up_to_close = &stream[..stream.len() - 11];
    check_server(up_to_close, &expected[..expected.len() - 1]);
}

#[test]
fn what_a_client_encodes_the_server_decodes() {
    for websocket in [false, true] {
        let (mut session, mut stream) = match websocket {
            true => ClientSession::websocket("localhost", "/chat", *b"sixteen bytes ok"),
            false => (ClientSession::tcp(), Vec::new()),
        };
        session.request(1, op::login("token", "phone", "ios"), &mut stream);
        session.ping(&mut stream);
        session.request(2, op::send("g:all", 9, 1, vec![7; 70_000 - 5_000]), &mut stream);
        session.pong(&mut stream);
        let (transport, found) = serve([&stream[..], &[]], &Limits::default());
        assert_eq!(transport.is_websocket(), websocket);
        let kinds: Vec<_> = found
            .iter()
            .filter_map(|found| match found {
                Found::Frame(kind, _) => Some(*kind),
                Found::Upgrade(_) => None,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(kinds, [FrameKind::Request, FrameKind::Ping, FrameKind::Request, FrameKind::Pong]);
        for at in (0..stream.len()).step_by(if stream.len() > 1000 { 97 } else { 1 }) {
            assert_eq!(serve([&stream[..at], &stream[at..]], &Limits::default()).1, found, "cut at {at}");
        }
    }
}

#[test]
fn what_the_server_encodes_a_client_decodes() {
    for websocket in [false, true] {
        for body_bytes in [0, 1, 120, 121, 122, 500, 65_531, 65_532, 66_000] {
            let shared = SharedFrame::notify(&vec![3; body_bytes]);
            assert_eq!(shared.body().len(), body_bytes);
            let (server, mut session, mut stream) = connected(websocket);
            let opening = stream.len();
            stream.extend_from_slice(shared.bytes_for(websocket));
            assert_eq!(
                server.encode(FrameKind::Notify, shared.body()),
                shared.bytes_for(websocket),
                "shared and own frames of {body_bytes} bytes are the same"
            );
            stream.extend_from_slice(server.pong());
            stream.extend_from_slice(server.ping());
            stream.extend(server.encode(FrameKind::Response, b"r"));
            let found = receive(&mut session, [&stream[..], &[]]);
            let notify = format!("Notify({:?})", vec![3; body_bytes]);
            let tail = [notify, "Pong".into(), "Ping".into(), "Response([114])".into()];
            assert_eq!(found[usize::from(websocket)..], tail);
            assert_eq!(session.held_bytes(), 0);
            if body_bytes == 120 {
                for at in opening..stream.len() {
                    let (_, mut session, _) = connected(websocket);
                    assert_eq!(receive(&mut session, [&stream[..at], &stream[at..]]), found, "cut at {at}");
                }
            }
        }
    }
}

/// A server and a client that have spoken as far as the upgrade, and what the server sent for it.
fn connected(websocket: bool) -> (Transport, ClientSession, Vec<u8>) {
    if !websocket {
        return (Transport::new(), ClientSession::tcp(), Vec::new());
    }
    let (session, request) = ClientSession::websocket("localhost", "/", [1; 16]);
    let (server, found) = serve([&request[..]], &Limits::default());
    let [Found::Upgrade(response)] = &found[..] else { panic!("{found:?}") };
    (server, session, response.clone().into_bytes())
}
