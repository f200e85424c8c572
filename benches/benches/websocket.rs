//! The WebSocket codec as the gateway meets it: masked client messages, unmasked in place.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use millrace_protocol::client_session::{ClientSession, ServerFrame, op};
use millrace_protocol::frame::FrameKind;
use millrace_protocol::received::{Limits, Received};
use millrace_protocol::transport::{Input, Transport};

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

fn receive(c: &mut Criterion) {
    let mut group = c.benchmark_group("WebSocket: receive a masked message");
    let limits = Limits::default();
    for payload in [0, 40, 128, 4096, 60_000] {
        let (mut server, mut client) = connected();
        let mut message = Vec::new();
        if payload == 0 {
            client.ping(&mut message);
        } else {
            client.request(1, op::send("g:engineering", 5, 42, vec![7u8; payload]), &mut message);
        }
        group.throughput(Throughput::Bytes(message.len() as u64));
        let name = if payload == 0 { "heartbeat".to_owned() } else { format!("{payload} B") };
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                || message.clone(),
                |bytes| {
                    let mut input = Received::new(bytes);
                    while let Some(input) = server.next(&mut input, &limits).expect("a whole message") {
                        black_box(&input);
                    }
                },
                BatchSize::SmallInput,
            );
        });
    }
}

fn send(c: &mut Criterion) {
    let mut group = c.benchmark_group("WebSocket: encode");
    for payload in [40, 4096] {
        let (server, mut client) = connected();
        let body = vec![7u8; payload];
        group.throughput(Throughput::Bytes(payload as u64));
        group.bench_function(format!("server, {payload} B"), |b| {
            b.iter(|| black_box(server.encode(FrameKind::Notify, &body)));
        });
        let mut out = Vec::with_capacity(payload + 256);
        group.bench_function(format!("client (masks), {payload} B"), |b| {
            b.iter(|| {
                out.clear();
                client.request(1, op::send("g:engineering", 5, 42, body.clone()), &mut out);
                black_box(out.len())
            });
        });
    }
}

criterion_group!(benches, receive, send);
criterion_main!(benches);
