//! docs/PROTOCOL.md says what the code does: its schema, its codes and its hex dumps.

mod common;

use std::collections::BTreeMap;

use common::{Found, receive, serve};
use millrace_protocol::client_session::{ClientSession, op};
use millrace_protocol::frame::{
    FRAME_BODY_BYTES_MAX, FrameKind, HEADER_BYTES, PING, PONG, encode_body, encode_frame,
};
use millrace_protocol::messages::client::{
    Code, Deliver, Head, LoginAck, Notify, Request, Response, SendAck, notify, request, response,
};
use millrace_protocol::prost::Message;
use millrace_protocol::transport::{Limits, Transport};
use millrace_protocol::ws::handshake::HEAD_BYTES_MAX;
use millrace_protocol::ws::{self, Opcode};

fn document() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PROTOCOL.md")).unwrap()
}

/// The fenced blocks whose first line begins so, by the rest of that line.
fn blocks(fence: &str) -> BTreeMap<String, String> {
    let document = document();
    let mut blocks = BTreeMap::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix(fence) {
            let text: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
            let before = blocks.insert(name.trim().to_owned(), text.join("\n") + "\n");
            assert!(before.is_none(), "two blocks {name:?}");
        }
    }
    blocks
}

#[test]
fn the_schema_is_the_one_compiled() {
    let schema = include_str!("../proto/client.proto");
    assert_eq!(blocks("```proto")[""], schema);
}

#[test]
fn the_table_of_codes_is_complete() {
    let document = document();
    let rows: Vec<(i32, &str)> = document
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.split(" | ");
            Some((cells.next()?.parse().ok()?, cells.next()?))
        })
        .filter(|(number, _)| *number == 0 || *number > 1000)
        .filter(|(_, name)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit()))
        .filter(|(_, name)| name.parse::<u32>().is_err())
        .collect();
    let codes: Vec<(i32, &str)> = (0..10_000)
        .filter_map(|number| Code::try_from(number).ok())
        .map(|code| (code as i32, code.as_str_name()))
        .collect();
    assert_eq!(rows, codes);
}

#[test]
fn the_limits_are_these() {
    let document = document();
    for (what, bytes) in [
        ("body of a frame", FRAME_BODY_BYTES_MAX),
        ("WebSocket message", FRAME_BODY_BYTES_MAX + HEADER_BYTES),
        ("head of the HTTP upgrade", HEAD_BYTES_MAX),
    ] {
        let row = document.lines().find(|line| line.starts_with(&format!("| {what} |"))).expect(what);
        let said: String = row.split('|').nth(2).unwrap().chars().take_while(|c| *c != 'b').collect();
        assert_eq!(said.replace([',', ' '], ""), bytes.to_string(), "{row}");
    }
    assert_eq!(Limits::default().message_bytes_max, FRAME_BODY_BYTES_MAX + HEADER_BYTES);
}

const TIME_MS: u64 = 1_800_000_000_000;
const EPOCH: u64 = 1_799_999_999_000;
const MESSAGE_ID: u64 = 402_371_326_771_220_480;

fn masked(frame: &[u8]) -> Vec<u8> {
    let key = [0x37, 0xfa, 0x21, 0x3d];
    let mut out = Vec::new();
    ws::encode_frame(Opcode::Binary, frame, Some(key), &mut out);
    out
}

#[test]
fn the_hex_dumps_are_what_is_sent() {
    let request = |id, op: request::Op| encode_frame(FrameKind::Request, &Request { id, op: Some(op) });
    let response = |id, outcome| encode_frame(FrameKind::Response, &Response { id, outcome: Some(outcome) });
    let notify = |event| encode_frame(FrameKind::Notify, &Notify { event: Some(event) });

    let login_ack = LoginAck {
        session: 4_503_599_627_370_497,
        user: "alice".into(),
        heartbeat_interval_ms: 30_000,
        resume_ticket: "ticket".into(),
        server_time_ms: TIME_MS,
        groups: 1,
    };
    let send_ack = SendAck { seq: 42, message_id: MESSAGE_ID, server_time_ms: TIME_MS, epoch: EPOCH };
    let deliver = Deliver {
        conversation: "g:team".into(),
        seq: 42,
        message_id: MESSAGE_ID,
        sender: "alice".into(),
        sender_device: "phone".into(),
        server_time_ms: TIME_MS,
        epoch: EPOCH,
        payload: "hello".into(),
        content_kind: 0,
        ..Deliver::default()
    };
    let head = Head { conversation: "g:team".into(), epoch: EPOCH, seq: 41 };
    let send = request(2, op::send("g:team", 7, 1, "hello"));
    let send_ack = response(2, response::Outcome::SendAck(send_ack));
    let websocket = upgraded();
    let expected = BTreeMap::from([
        ("login", request(1, op::login("header.claims.signature", "phone", "ios"))),
        ("login-ack", response(1, response::Outcome::LoginAck(login_ack))),
        ("head", notify(notify::Event::Head(head))),
        ("deliver", notify(notify::Event::Deliver(deliver))),
        ("ping", PING.to_vec()),
        ("pong", PONG.to_vec()),
        ("websocket-send", masked(&send)),
        ("websocket-send-ack", websocket.encode(FrameKind::Response, &send_ack[HEADER_BYTES..])),
        ("websocket-go-away", websocket.close_bytes(Code::HeartbeatTimeout, "nothing was heard", 0)),
        ("send", send),
        ("send-ack", send_ack),
    ]);

    let dumps = blocks("```hex ");
    assert_eq!(dumps.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, text) in &dumps {
        let bytes: Vec<u8> = text
            .lines()
            .flat_map(|line| line.split(';').next().unwrap_or_default().split_whitespace())
            .map(|byte| u8::from_str_radix(byte, 16).expect("two hexadecimal digits"))
            .collect();
        assert_eq!(&bytes, &expected[name.as_str()], "{name}");
    }
}

/// The dumps are not only what is encoded: each side understands them.
#[test]
fn the_hex_dumps_are_understood() {
    let send =
        encode_frame(FrameKind::Request, &Request { id: 2, op: Some(op::send("g:team", 7, 1, "hello")) });
    let mut stream = common::upgrade_request();
    stream.extend(masked(&send));
    let (_, found) = serve([&stream[..]], &Limits::default());
    assert_eq!(found[1], Found::Frame(FrameKind::Request, send[HEADER_BYTES..].to_vec()));
    let Found::Frame(_, body) = &found[1] else { unreachable!() };
    assert!(matches!(Request::decode(&body[..]).unwrap().op, Some(request::Op::Send(_))));
    let told = receive(&mut ClientSession::tcp(), [&encode_body(FrameKind::Notify, b"")[..], &PONG]);
    assert_eq!(told, ["Notify([])", "Pong"]);
}

/// A transport after its upgrade.
fn upgraded() -> Transport {
    let (transport, found) = serve([&common::upgrade_request()[..]], &Limits::default());
    assert!(matches!(found[..], [Found::Upgrade(_)]));
    transport
}
