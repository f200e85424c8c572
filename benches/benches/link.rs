//! Link batching: records queued by one end, sent as one batch, read by the other end, acknowledged.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use millrace_protocol::ids::SessionId;
use millrace_protocol::link::end::{LinkEnd, LinkEvent, LinkLimits};
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::link::Hello;

fn end(role: &str, incarnation: u64) -> LinkEnd {
    let hello = Hello {
        version: millrace_protocol::link::end::LINK_VERSION,
        cluster: "bench".to_owned(),
        role: role.to_owned(),
        gateway: 1,
        incarnation,
        partitions: 1024,
        ..Hello::default()
    };
    let mut end = LinkEnd::new(hello, LinkLimits::default());
    end.connected();
    end
}

/// Carries everything both ways until nothing is left; returns the records that came out at `b`.
fn exchange(a: &mut LinkEnd, b: &mut LinkEnd) -> usize {
    let mut records = 0;
    loop {
        let mut quiet = true;
        while let Some(bytes) = a.transmit() {
            quiet = false;
            b.receive(bytes).expect("a sound batch");
        }
        while let Some(bytes) = b.transmit() {
            quiet = false;
            a.receive(bytes).expect("a sound batch");
        }
        while let Some(event) = b.poll() {
            records += usize::from(matches!(event, LinkEvent::Record(_)));
        }
        while a.poll().is_some() {}
        if quiet {
            return records;
        }
    }
}

fn batches(c: &mut Criterion) {
    let mut group = c.benchmark_group("link: queue, batch, read, acknowledge");
    for (name, count, body) in [("1 x 128 B", 1, 128), ("64 x 128 B", 64, 128), ("256 x 1 KiB", 256, 1024)] {
        let (mut a, mut b) = (end("gateway", 11), end("dispatcher", 22));
        exchange(&mut a, &mut b);
        assert!(a.is_up() && b.is_up(), "the hellos agree");
        let record = Record {
            kind: Kind::ClientRequest,
            partition: 7,
            epoch: 0,
            session: SessionId::new(1, 0, 5, 9),
            body: Bytes::from(vec![1u8; body]),
        };
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for _ in 0..count {
                    a.queue(record.clone()).expect("credit");
                }
                b.ack_now();
                assert_eq!(black_box(exchange(&mut a, &mut b)), count);
                b.ack_now();
                exchange(&mut a, &mut b);
            });
        });
    }
}

criterion_group!(benches, batches);
criterion_main!(benches);
