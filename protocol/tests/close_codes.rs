//! Every way to break the wire, and the code that closes the connection for it.

mod common;

use common::{Found, masked, receive, serve, upgrade_request};
use millrace_protocol::client_session::ClientSession;
use millrace_protocol::frame::FRAME_BODY_BYTES_MAX;
use millrace_protocol::messages::client::Code;
use millrace_protocol::transport::{Limits, Transport, close_code};
use millrace_protocol::ws::Opcode;

#[track_caller]
fn check(what: &str, stream: &[u8], code: Code) {
    let limits = Limits::default();
    let (transport, found) = serve([stream], &limits);
    let Some(Found::Violation(violation)) = found.last() else { panic!("{what}: {found:?}") };
    assert_eq!(violation.code, code, "{what}: {violation}");
    // However it comes in, it is the same.
    let (_, by_byte) = serve(stream.chunks(1), &limits);
    let Some(Found::Violation(same)) = by_byte.last() else { panic!("{what}, by byte: {by_byte:?}") };
    assert_eq!(same.code, code, "{what}, by byte: {same}");

    let bytes = transport.close_bytes(violation.code, violation.reason, 0);
    if transport.is_websocket() {
        let close = ws_close_frame(violation.code, violation.reason);
        assert!(bytes.ends_with(&close), "{what}: a close frame with the same code ends it");
        let (mut session, request) = ClientSession::websocket("localhost", "/", *b"0123456789abcdef");
        let (_, upgraded) = serve([&request[..]], &limits);
        let Found::Upgrade(response) = &upgraded[0] else { panic!("{upgraded:?}") };
        let told = receive(&mut session, [response.as_bytes(), &bytes]);
        assert!(told[1].starts_with("Notify"), "{what}: {told:?}");
        assert!(told[2].starts_with(&format!("WsClose {{ code: {}", close_code(code))), "{what}: {told:?}");
    }
}

fn ws_close_frame(code: Code, reason: &str) -> Vec<u8> {
    let mut frame = vec![0x88, 2 + reason.len() as u8];
    frame.extend(close_code(code).to_be_bytes());
    frame.extend(reason.as_bytes());
    frame
}

#[test]
fn framed_tcp() {
    let over = (FRAME_BODY_BYTES_MAX + 1) as u32;
    let [_, a, b, c] = over.to_be_bytes();
    check("oversize, as soon as the header is there", &[1, a, b, c], Code::TooBig);
    check("kind 0", &[0], Code::UnknownKind);
    check("kind 6", &[6], Code::UnknownKind);
    check("no letter, so not HTTP", b"@POST / HTTP/1.1\r\n", Code::UnknownKind);
    check("a response from a client", &[2, 0, 0, 0], Code::ProtocolError);
    check("a notification from a client", &[3, 0, 0, 1, 0], Code::ProtocolError);
    check("a ping with a body", &[4, 0, 0, 1, 0], Code::ProtocolError);
    check("TLS", &[0x16, 3, 1], Code::ProtocolError);
}

#[test]
fn websocket() {
    let check_ws = |what: &str, frames: &[&[u8]], code: Code| {
        check(what, &[&upgrade_request()[..], &frames.concat()].concat(), code);
    };
    let request = [1, 0, 0, 2, 8, 1];
    check_ws("unmasked", &[&[0x82, 4, 4, 0, 0, 0]], Code::ProtocolError);
    check_ws("RSV1", &[&[0xc2]], Code::ProtocolError);
    check_ws("opcode 3", &[&[0x83]], Code::ProtocolError);
    check_ws("opcode 11", &[&[0x8b]], Code::ProtocolError);
    check_ws("fragmented ping", &[&[0x09]], Code::ProtocolError);
    check_ws("long ping", &[&[0x89, 0xfe]], Code::ProtocolError);
    check_ws("125 as two bytes", &[&[0x82, 0xfe, 0, 125]], Code::ProtocolError);
    check_ws("65535 as eight bytes", &[&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff]], Code::ProtocolError);
    check_ws("top bit of the length", &[&[0x82, 0xff, 0x80, 0, 0, 0, 0, 1, 0, 0]], Code::ProtocolError);
    check_ws("continuation of nothing", &[&masked(true, Opcode::Continuation, b"x")], Code::ProtocolError);
    check_ws(
        "a message within a message",
        &[&masked(false, Opcode::Binary, &request), &masked(true, Opcode::Binary, &request)],
        Code::ProtocolError,
    );
    check_ws("an empty message", &[&masked(true, Opcode::Binary, b"")], Code::ProtocolError);
    check_ws("half a frame", &[&masked(true, Opcode::Binary, &request[..5])], Code::ProtocolError);
    check_ws(
        "half a frame header",
        &[&masked(true, Opcode::Binary, &[4, 0, 0, 0, 4, 0])],
        Code::ProtocolError,
    );
    check_ws("an unknown kind", &[&masked(true, Opcode::Binary, &[9, 0, 0, 0])], Code::UnknownKind);
    check_ws("a frame that says it is big", &[&masked(true, Opcode::Binary, &[1, 0xff, 0, 0])], Code::TooBig);
    check_ws("a big message", &[&[0x82, 0xff, 0, 0, 0, 0, 0, 2, 0, 0, 1, 2, 3, 4]], Code::TooBig);
    let fragment = masked(false, Opcode::Binary, &[0; 40_000]);
    let more = masked(false, Opcode::Continuation, &[0; 40_000]);
    check_ws("a big message in fragments", &[&fragment, &more], Code::TooBig);
    check_ws("text", &[&masked(true, Opcode::Text, b"hello")], Code::UnsupportedData);
    check_ws("bad UTF-8", &[&masked(true, Opcode::Text, b"h\xffllo")], Code::InvalidUtf8);
    check_ws("bad UTF-8, unfinished", &[&masked(false, Opcode::Text, b"h\xed\xa0")], Code::InvalidUtf8);
    check_ws("half a character", &[&masked(true, Opcode::Text, b"h\xe2\x82")], Code::InvalidUtf8);
    check_ws("a close of one byte", &[&masked(true, Opcode::Close, &[3])], Code::ProtocolError);
    for code in [0u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
        check_ws("a close code", &[&masked(true, Opcode::Close, &code.to_be_bytes())], Code::ProtocolError);
    }
    check_ws("a close reason", &[&masked(true, Opcode::Close, b"\x03\xe8\xff")], Code::InvalidUtf8);
}

#[test]
fn http_errors() {
    for (request, status) in [
        (&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], "426 Upgrade Required"),
        (b"GET / HTTP/1.0\r\n\r\n", "400 Bad Request"),
        (b"GE\r\n\r\n", "400 Bad Request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", "405 Method Not Allowed"),
        (b"PRI * HTTP/2.0\r\n\r\n", "405 Method Not Allowed"),
        (&[b'G'; 9000], "431 Request Header Fields Too Large"),
        (b"GET / HTTP/1.1\r\nX: \xff\r\n\r\n", "400 Bad Request"),
    ] {
        for step in [1, 7, 9000] {
            let (transport, found) = serve(request.chunks(step), &Limits::default());
            let Some(Found::Violation(violation)) = found.last() else { panic!("{found:?}") };
            let response = transport.close_bytes(violation.code, violation.reason, 0);
            let response = String::from_utf8(response).unwrap();
            assert!(response.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{response}");
        }
    }
    // The deadline for logging in strikes while the head is coming in.
    let (transport, _) = serve([&b"GET / "[..]], &Limits::default());
    let response = String::from_utf8(transport.close_bytes(Code::LoginTimeout, "too slow", 1500)).unwrap();
    assert!(response.starts_with("HTTP/1.1 408 ") && response.contains("Retry-After: 2\r\n"), "{response}");
}

#[test]
fn a_client_that_is_sent_away_within_its_handshake_knows_for_how_long() {
    let refuse =
        |code| serve([&b"GET / HTTP/1.1\r\n"[..]], &Limits::default()).0.close_bytes(code, "later", 1_500);
    let told = |bytes: &[u8], step| {
        let (mut session, _) = ClientSession::websocket("x", "/", [7; 16]);
        let found = receive(&mut session, bytes.chunks(step));
        assert!(found.len() == 1 && found[0].contains("does not answer 101"), "{found:?}");
        session.sent_away()
    };
    for (code, expected, status) in [
        (Code::GoingAway, Code::Unavailable, "HTTP 503 Service Unavailable"),
        (Code::LoginTimeout, Code::LoginTimeout, "HTTP 408 Request Timeout"),
    ] {
        for step in [1, 7, 9_000] {
            let away = told(&refuse(code), step).expect("sent away");
            assert_eq!((away.code(), &away.reason[..], away.retry_after_ms), (expected, status, 2_000));
        }
    }
    // Coming again would not help, as far as the gateway is concerned.
    let (transport, _) = serve([&b"GET / HTTP/1.1\r\n\r\n"[..]], &Limits::default());
    assert_eq!(told(&transport.close_bytes(Code::ProtocolError, "", 0), 9_000), None);
    assert_eq!(ClientSession::tcp().sent_away(), None);
}

#[test]
fn a_silent_connection_is_told_as_framed_tcp() {
    let bytes = Transport::new().close_bytes(Code::LoginTimeout, "no login", 0);
    let told = receive(&mut ClientSession::tcp(), [&bytes[..]]);
    assert!(told.len() == 1 && told[0].starts_with("Notify"), "{told:?}");
    let (transport, _) = serve([&[0x16][..]], &Limits::default());
    assert!(transport.close_bytes(Code::ProtocolError, "TLS", 0).is_empty());
}

#[test]
fn every_code_can_be_a_close_code() {
    let mut codes = 0;
    for number in 0..10_000 {
        let Ok(code) = Code::try_from(number) else { continue };
        codes += 1;
        let mut frame = Vec::new();
        let payload = millrace_protocol::ws::close_payload(close_code(code), "why");
        millrace_protocol::ws::encode_frame(Opcode::Close, &payload, None, &mut frame);
        assert_eq!(millrace_protocol::ws::decode_close(&frame[2..]), Ok((close_code(code), "why")));
    }
    assert!(codes > 25, "{codes}");
}
