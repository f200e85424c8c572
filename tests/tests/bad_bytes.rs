//! What a real gateway does with bytes that no proper client sends: each gets its documented code, nobody else
//! notices, and the gateway stays up. docs/PROTOCOL.md has the table.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use millrace_protocol::client_session::{ClientSession, ServerFrame, decode_notify, decode_response, op};
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{Code, notify, response};
use millrace_protocol::received::{Limits, Received};
use millrace_tests::{Server, gateway_token, get};

/// What a connection was told, and how it ended.
#[derive(Debug, Default, PartialEq)]
struct Told {
    go_away: Option<Code>,
    refused: Option<Code>,
    ws_close: Option<u16>,
    logged_in: bool,
    raw: Vec<u8>,
}

struct Peer {
    stream: TcpStream,
    session: ClientSession,
}

impl Peer {
    fn tcp(address: &str) -> Peer {
        let stream = TcpStream::connect(address).expect("the gateway accepts");
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("an option");
        Peer { stream, session: ClientSession::tcp() }
    }

    fn websocket(address: &str) -> Peer {
        let mut peer = Peer::tcp(address);
        let (session, upgrade) = ClientSession::websocket(address, "/", [3; 16]);
        peer.session = session;
        peer.stream.write_all(&upgrade).expect("it reads");
        let mut answer = [0; 4096];
        let size = peer.stream.read(&mut answer).expect("it answers");
        let mut input = Received::new(&mut answer[..size]);
        let open = peer.session.next(&mut input, &Limits::default()).expect("a proper answer");
        assert_eq!(open, Some(ServerFrame::Open));
        peer
    }

    /// Reads to the end of the stream, or until a login succeeded.
    fn listen(mut self) -> Told {
        let mut told = Told::default();
        let mut bytes = [0; 4096];
        loop {
            let size = match self.stream.read(&mut bytes) {
                Ok(0) => return told,
                Ok(size) => size,
                Err(error) => panic!("the gateway neither answers nor closes: {error} ({told:?})"),
            };
            told.raw.extend_from_slice(&bytes[..size]);
            if told.raw.starts_with(b"HTTP/1.1 4") {
                continue;
            }
            let mut input = Received::new(&mut bytes[..size]);
            while let Ok(Some(frame)) = self.session.next(&mut input, &Limits::default()) {
                match frame {
                    ServerFrame::Notify(body) => {
                        if let Some(notify::Event::GoAway(away)) =
                            decode_notify(body).expect("a notify").event
                        {
                            told.go_away = Some(away.code());
                        }
                    }
                    ServerFrame::Response(body) => match decode_response(body).expect("a response").outcome {
                        Some(response::Outcome::Refused(refused)) => told.refused = Some(refused.code()),
                        Some(response::Outcome::LoginAck(_)) => told.logged_in = true,
                        _ => {}
                    },
                    ServerFrame::WsClose { code, .. } => told.ws_close = Some(code),
                    _ => {}
                }
            }
            if told.logged_in {
                return told;
            }
        }
    }
}

fn request(id: u64, what: Op) -> Vec<u8> {
    let mut out = Vec::new();
    ClientSession::tcp().request(id, what, &mut out);
    out
}

/// A client's WebSocket frame with the mask 0, so that the payload can be read here as it stands.
fn ws_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        size @ 0..126 => out.push(0x80 | size as u8),
        size => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(size as u16).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
    out
}

fn gateway(data: &std::path::Path) -> Server {
    let server = Server::standalone(data, &[]);
    server.wait_ready();
    server
}

#[test]
fn each_violation_gets_its_code_and_the_gateway_stays_up() {
    let data = tempfile::tempdir().expect("a directory");
    let server = gateway(data.path());
    let (tcp, admin) = (server.address("tcp"), server.address("admin"));
    let before_login = request(5, op::send("r:lobby", 1, 1, "early"));

    let framed: Vec<(&str, Vec<u8>, Code)> = vec![
        ("unknown kind", vec![9, 0, 0, 0], Code::UnknownKind),
        ("kind 0", vec![0, 0, 0, 0], Code::UnknownKind),
        ("announced too big", vec![1, 0xff, 0xff, 0xff], Code::TooBig),
        ("a body that is no Request", vec![1, 0, 0, 3, 0xff, 0xff, 0xff], Code::BadBody),
        ("a request before login", before_login.clone(), Code::LoginRequired),
        ("nothing but a heartbeat", vec![4, 0, 0, 0], Code::LoginTimeout),
        ("half a frame", vec![1, 0, 0, 9, 1], Code::LoginTimeout),
    ];
    for (name, bytes, code) in framed {
        let mut peer = Peer::tcp(&tcp);
        peer.stream.write_all(&bytes).expect("it reads");
        let told = peer.listen();
        assert!(
            told.go_away == Some(code) || told.refused == Some(code),
            "{name}: {told:?}, expected {code:?}"
        );
    }

    let mut bad_close = 2u16.to_be_bytes().to_vec();
    bad_close.extend_from_slice(b"no such code");
    let mut bad_reason = 1000u16.to_be_bytes().to_vec();
    bad_reason.extend_from_slice(&[0xc3, 0x28]);
    let huge = {
        let mut frame = vec![0x82, 0x80 | 127];
        frame.extend_from_slice(&(1u64 << 40).to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame
    };
    let websocket: Vec<(&str, Vec<u8>, u16)> = vec![
        ("not masked", vec![0x82, 4, 4, 0, 0, 0], 1002),
        ("text", ws_frame(0x81, b"hello"), 1003),
        ("text that is no UTF-8", ws_frame(0x81, &[0xc3, 0x28]), 1007),
        ("reserved bit", ws_frame(0xc2, &[4, 0, 0, 0]), 1002),
        ("reserved opcode", ws_frame(0x83, &[4, 0, 0, 0]), 1002),
        ("continuation of nothing", ws_frame(0x80, &[4, 0, 0, 0]), 1002),
        ("fragmented ping", ws_frame(0x09, b""), 1002),
        ("long ping", ws_frame(0x89, &[0; 126]), 1002),
        ("half a frame in a message", ws_frame(0x82, &[4, 0, 0]), 1002),
        ("announced huge", huge, 1009),
        ("close with a code that must not be sent", ws_frame(0x88, &bad_close), 1002),
        ("close with a reason that is no UTF-8", ws_frame(0x88, &bad_reason), 1007),
        ("a frame of unknown kind", ws_frame(0x82, &[9, 0, 0, 0]), 4006),
        ("a request before login", ws_frame(0x82, &before_login), 4001 + 1),
        ("an orderly close", ws_frame(0x88, &1000u16.to_be_bytes()), 1000),
    ];
    for (name, bytes, code) in websocket {
        let mut peer = Peer::websocket(&tcp);
        peer.stream.write_all(&bytes).expect("it reads");
        let told = peer.listen();
        assert_eq!(told.ws_close, Some(code), "{name}: {told:?}");
    }

    for (name, bytes) in [
        ("HTTP without an upgrade", &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..]),
        (
            "an upgrade without a key",
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        ),
        ("not HTTP after all", b"GARBAGE\r\n\r\n"),
    ] {
        let mut peer = Peer::tcp(&tcp);
        peer.stream.write_all(bytes).expect("it reads");
        let told = peer.listen();
        assert!(told.raw.starts_with(b"HTTP/1.1 4"), "{name}: {}", String::from_utf8_lossy(&told.raw));
    }

    // Cut off in the middle, or TLS: closed, and nothing to say.
    for bytes in [&[1, 0, 0, 9, 1][..], b"GET / HTT", &[0x16, 3, 1, 0, 200]] {
        let mut peer = Peer::tcp(&tcp);
        peer.stream.write_all(bytes).expect("it reads");
        peer.stream.shutdown(Shutdown::Write).expect("half-closed");
        let _ = peer.listen();
    }

    assert_eq!(get(&admin, "/healthz").map(|(status, _)| status), Ok(200));
    server.terminate(Duration::from_secs(15));
}

#[test]
fn a_login_split_at_every_offset_succeeds() {
    let data = tempfile::tempdir().expect("a directory");
    let server = gateway(data.path());
    let tcp = server.address("tcp");
    let token = gateway_token(data.path(), "alice");
    let login = request(1, op::login(&token, "phone", "test"));
    for cut in 1..login.len() {
        let mut peer = Peer::tcp(&tcp);
        peer.stream.write_all(&login[..cut]).expect("it reads");
        // Long enough for most first pieces to be read alone; a few that are not test nothing, and fail nothing.
        std::thread::sleep(Duration::from_millis(1));
        peer.stream.write_all(&login[cut..]).expect("it reads");
        let told = peer.listen();
        assert!(told.logged_in, "cut at {cut} of {}: {told:?}", login.len());
    }
    let mut peer = Peer::tcp(&tcp);
    for byte in &login {
        peer.stream.write_all(&[*byte]).expect("it reads");
    }
    assert!(peer.listen().logged_in, "byte by byte");
    server.terminate(Duration::from_secs(15));
}
