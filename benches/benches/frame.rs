//! Client frames: encoding a request, finding frames in what was received, and the shared frame of a fan-out.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use millrace_protocol::client_session::{ClientSession, op, peek_deliver};
use millrace_protocol::frame::SharedFrame;
use millrace_protocol::messages::client::{Deliver, Notify, Request, notify::Event};
use millrace_protocol::prost::Message;
use millrace_protocol::received::{Limits, Received};
use millrace_protocol::transport::{Input, Transport};

/// A chat line, a typical event, a large one.
const PAYLOADS: [usize; 3] = [40, 128, 4096];

fn send_frame(payload_bytes: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let payload = vec![7u8; payload_bytes];
    ClientSession::tcp().request(9, op::send("g:engineering", 0x1234_5678_9abc, 42, payload), &mut out);
    out
}

fn notify_body(payload_bytes: usize) -> Vec<u8> {
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
    };
    Notify { event: Some(Event::Deliver(deliver)) }.encode_to_vec()
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode a Send");
    for payload in PAYLOADS {
        group.throughput(Throughput::Bytes(payload as u64));
        let bytes = vec![7u8; payload];
        let mut session = ClientSession::tcp();
        let mut out = Vec::with_capacity(payload + 256);
        group.bench_function(format!("{payload} B"), |b| {
            b.iter(|| {
                out.clear();
                let op = op::send("g:engineering", 0x1234_5678_9abc, 42, bytes.clone());
                session.request(9, op, &mut out);
                black_box(out.len())
            });
        });
    }
}

fn deframe(c: &mut Criterion) {
    let mut group = c.benchmark_group("deframe and decode a Send");
    let limits = Limits::default();
    for payload in PAYLOADS {
        let frame = send_frame(payload);
        group.throughput(Throughput::Bytes(frame.len() as u64));
        let mut transport = Transport::new();
        group.bench_function(format!("{payload} B"), |b| {
            b.iter_batched_ref(
                || frame.clone(),
                |bytes| {
                    let mut input = Received::new(bytes);
                    while let Some(input) = transport.next(&mut input, &limits).expect("a whole frame") {
                        if let Input::Frame { body, .. } = input {
                            black_box(Request::decode(body).expect("a request"));
                        }
                    }
                },
                BatchSize::SmallInput,
            );
        });
    }
    // A client that sends in segments: each frame arrives in three pieces.
    let frame = send_frame(128);
    let mut transport = Transport::new();
    group.bench_function("128 B in three pieces", |b| {
        b.iter_batched_ref(
            || frame.clone(),
            |bytes| {
                let mut found = 0;
                for piece in bytes.chunks_mut(60) {
                    let mut input = Received::new(piece);
                    while transport.next(&mut input, &limits).expect("parts of a frame").is_some() {
                        found += 1;
                    }
                }
                assert_eq!(found, 1);
            },
            BatchSize::SmallInput,
        );
    });
}

fn fan_out(c: &mut Criterion) {
    let mut group = c.benchmark_group("shared frame of a fan-out");
    for payload in PAYLOADS {
        let body = notify_body(payload);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(format!("{payload} B"), |b| {
            b.iter(|| black_box(SharedFrame::notify(&body)));
        });
    }
    let body = notify_body(128);
    group.bench_function("peek at a Deliver, 128 B", |b| b.iter(|| black_box(peek_deliver(&body))));
}

criterion_group!(benches, encode, deframe, fan_out);
criterion_main!(benches);
