//! A million random byte strings into each decoder: none panics. Half of them are valid streams with a few bytes
//! changed, because pure noise is refused at its first byte.

mod common;

use bytes::Bytes;
use common::{Random, masked, upgrade_request};
use millrace_protocol::client_session::{ClientSession, decode_notify, decode_response, peek_deliver};
use millrace_protocol::conversation::Conversation;
use millrace_protocol::frame::{FrameKind, encode_body};
use millrace_protocol::ids::SessionId;
use millrace_protocol::link::end::{LinkEnd, LinkLimits};
use millrace_protocol::link::record::{Kind, Record};
use millrace_protocol::messages::client::{Deliver, Notify, Request, notify::Event};
use millrace_protocol::messages::link::Hello;
use millrace_protocol::prost::Message;
use millrace_protocol::transport::{Limits, Received, Transport};
use millrace_protocol::ws::{self, Decoder, Opcode, Role, Rules, handshake};

const STRINGS: usize = 1_000_000;

/// Runs `decode` on noise, and on `samples` with some bytes changed; in pieces cut at random.
fn storm(name: &str, samples: &[Vec<u8>], mut decode: impl FnMut(&mut [u8], usize)) {
    let mut random = Random::seeded(name);
    let mut bytes = Vec::new();
    for round in 0..STRINGS {
        bytes.clear();
        if round % 2 == 0 || samples.is_empty() {
            bytes.resize(random.below(48), 0);
            random.fill(&mut bytes);
        } else {
            bytes.extend_from_slice(&samples[random.below(samples.len())]);
            for _ in 0..1 + random.below(3) {
                let at = random.below(bytes.len());
                bytes[at] = random.next() as u8;
            }
            bytes.truncate(1 + random.below(bytes.len()));
        }
        let cut = random.below(bytes.len() + 1);
        decode(&mut bytes, cut);
    }
}

fn tcp_samples() -> Vec<Vec<u8>> {
    vec![
        encode_body(FrameKind::Request, b"0123456789"),
        [encode_body(FrameKind::Ping, b""), encode_body(FrameKind::Request, b"abc")].concat(),
        [encode_body(FrameKind::Response, b"abc"), encode_body(FrameKind::Notify, b"")].concat(),
    ]
}

fn ws_samples() -> Vec<Vec<u8>> {
    let frame = encode_body(FrameKind::Request, b"0123456789");
    let mut samples = vec![
        masked(true, Opcode::Binary, &frame),
        [
            masked(false, Opcode::Binary, &frame[..5]),
            masked(true, Opcode::Ping, b"p"),
            masked(true, Opcode::Continuation, &frame[5..]),
        ]
        .concat(),
        masked(true, Opcode::Text, "grüße €".as_bytes()),
        [masked(false, Opcode::Text, b"gr\xc3"), masked(true, Opcode::Continuation, b"\xbce")].concat(),
        masked(true, Opcode::Close, b"\x03\xe8bye"),
        masked(true, Opcode::Binary, &[0; 130]),
    ];
    for opcode in [Opcode::Binary, Opcode::Ping, Opcode::Close, Opcode::Text] {
        let mut unmasked = Vec::new();
        ws::encode_frame(opcode, &encode_body(FrameKind::Notify, b"body"), None, &mut unmasked);
        samples.push(unmasked);
    }
    samples
}

fn drain_transport(transport: &mut Transport, bytes: &mut [u8], limits: &Limits) -> bool {
    let mut input = Received::new(bytes);
    loop {
        match transport.next(&mut input, limits) {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(violation) => {
                transport.close_bytes(violation.code, violation.reason, 0);
                return false;
            }
        }
    }
}

#[test]
fn transport_before_anything_is_known() {
    let mut samples = tcp_samples();
    samples.push(upgrade_request());
    let limits = Limits { frame_body_bytes_max: 100, message_bytes_max: 150 };
    storm("transport", &samples, |bytes, cut| {
        let mut transport = Transport::new();
        let (first, second) = bytes.split_at_mut(cut);
        let _ = drain_transport(&mut transport, first, &limits)
            && drain_transport(&mut transport, second, &limits);
    });
}

#[test]
fn transport_on_websocket() {
    let limits = Limits { frame_body_bytes_max: 100, message_bytes_max: 150 };
    let request = upgrade_request();
    let mut transport = Transport::new();
    storm("transport on WebSocket", &ws_samples(), |bytes, cut| {
        if !transport.is_websocket() {
            assert!(drain_transport(&mut transport, &mut request.clone(), &limits));
        }
        let (first, second) = bytes.split_at_mut(cut);
        if !(drain_transport(&mut transport, first, &limits)
            && drain_transport(&mut transport, second, &limits))
        {
            transport = Transport::new();
        }
    });
}

#[test]
fn websocket_decoder_in_both_roles() {
    for role in [Role::Server, Role::Client] {
        let rules = Rules { role, message_bytes_max: 150 };
        let mut decoder = Decoder::default();
        storm("WebSocket decoder", &ws_samples(), |bytes, cut| {
            let (first, second) = bytes.split_at_mut(cut);
            for piece in [first, second] {
                let mut input = Received::new(piece);
                loop {
                    match decoder.next(&mut input, &rules) {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => {
                            decoder = Decoder::default();
                            return;
                        }
                    }
                }
            }
        });
    }
}

#[test]
fn client_session() {
    let limits = Limits { frame_body_bytes_max: 100, message_bytes_max: 150 };
    let response = handshake::accept(&ClientSession::websocket("h", "/", [9; 16]).1).unwrap();
    let open = || {
        let (mut session, _) = ClientSession::websocket("h", "/", [9; 16]);
        let mut response = response.clone();
        assert!(session.next(&mut Received::new(&mut response), &limits).unwrap().is_some());
        session
    };
    for (name, samples, fresh) in [
        ("client on TCP", tcp_samples(), &ClientSession::tcp as &dyn Fn() -> ClientSession),
        ("client on WebSocket", ws_samples(), &open),
    ] {
        let mut session = fresh();
        storm(name, &samples, |bytes, cut| {
            let (first, second) = bytes.split_at_mut(cut);
            for piece in [first, second] {
                let mut input = Received::new(piece);
                loop {
                    match session.next(&mut input, &limits) {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => {
                            session = fresh();
                            return;
                        }
                    }
                }
            }
        });
    }
}

#[test]
fn http_heads() {
    let request = upgrade_request();
    let response = handshake::accept(&request).unwrap();
    storm("HTTP heads", &[request, response], |bytes, _| {
        let _ = handshake::accept(bytes);
        let _ = handshake::check_response(bytes, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    });
}

#[test]
fn bodies_and_conversations() {
    let deliver =
        Deliver { conversation: "r:a".into(), seq: 9, payload: "text".into(), ..Deliver::default() };
    let notify = Notify { event: Some(Event::Deliver(deliver)) }.encode_to_vec();
    storm("bodies", &[notify, b"d:alice:bob".to_vec()], |bytes, _| {
        // What the borrowed reading takes and the full one takes are the same.
        let full = decode_notify(bytes).ok().and_then(|notify| notify.event);
        match (peek_deliver(bytes), full) {
            (Some(peeked), Some(Event::Deliver(deliver))) => {
                assert_eq!((peeked.seq, peeked.payload), (deliver.seq, &deliver.payload[..]), "{bytes:?}");
            }
            (None, Some(Event::Deliver(_))) => panic!("a Deliver was not seen in {bytes:?}"),
            _ => {}
        }
        let _ = decode_response(bytes);
        let _ = Request::decode(&*bytes);
        if let Ok(text) = std::str::from_utf8(bytes) {
            let _ = Conversation::parse(text);
        }
    });
}

#[test]
fn link_end() {
    let identity = |incarnation| Hello { incarnation, partitions: 1, ..Hello::default() };
    let limits = LinkLimits { window_bytes: 10_000, batch_bytes_max: 1000 };
    let mut peer = LinkEnd::new(identity(2), limits);
    peer.connected();
    let hello = peer.transmit().unwrap();
    let open = || {
        let mut end = LinkEnd::new(identity(1), limits);
        end.connected();
        end.transmit();
        end.receive(hello.clone()).unwrap();
        end
    };
    let mut other = open();
    let body = Bytes::from_static(b"body");
    let record = Record { kind: Kind::FanOut, partition: 0, epoch: 0, session: SessionId::NONE, body };
    other.queue(record).unwrap();
    let records = other.transmit().unwrap();
    let samples = [hello.to_vec(), records.to_vec()];
    let mut end = open();
    storm("link end", &samples, |bytes, cut| {
        let (first, second) = bytes.split_at(cut);
        let first = end.receive(Bytes::copy_from_slice(first));
        let second = end.receive(Bytes::copy_from_slice(second));
        while end.poll().is_some() {}
        while end.transmit().is_some() {}
        if first.is_err() || second.is_err() {
            end = open();
        }
    });
}
