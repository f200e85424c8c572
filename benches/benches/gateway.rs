//! The gateway core's hot paths: the wheel, who listens to a topic, and a pass over a whole room.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use millrace_gateway::core::topics::Members;
use millrace_gateway::core::wheel::{Wheel, spread};

mod room;

const SECOND_US: u64 = 1_000_000;

/// Connections of one shard: 100,000 deadlines spread over 30 s, looked at a second at a time and armed again.
fn wheel(c: &mut Criterion) {
    const CONNECTIONS: u32 = 100_000;
    let mut wheel = Wheel::new(0);
    for slot in 0..CONNECTIONS {
        let at = wheel.tick_after(SECOND_US + u64::from(spread(slot, 7, 30_000)) * 1_000);
        wheel.arm(slot, at);
    }
    let (mut now, mut due) = (0, Vec::new());
    let mut group = c.benchmark_group("wheel");
    group.throughput(Throughput::Elements(u64::from(CONNECTIONS) / 30));
    group.bench_function("a second of 100,000 deadlines, re-armed", |b| {
        b.iter(|| {
            now += SECOND_US;
            while wheel.advance(now, 4096, &mut due) {}
            let next = wheel.tick_after(now + 30 * SECOND_US);
            for (slot, _) in due.drain(..) {
                wheel.arm(slot, next);
            }
            black_box(wheel.len())
        });
    });
    assert_eq!(wheel.len(), CONNECTIONS as usize);
}

/// Members of a topic on a shard of 16,384 slots: small ones are sorted lists, large ones bitmaps.
fn topics(c: &mut Criterion) {
    const CAPACITY: u32 = 16_384;
    let mut group = c.benchmark_group("topic members");
    for size in [100u32, 1_000, 10_000] {
        let slots: Vec<u32> = (0..size).map(|i| i * (CAPACITY / size)).collect();
        let mut members = Members::default();
        for slot in &slots {
            members.insert(*slot, CAPACITY);
        }
        group.throughput(Throughput::Elements(u64::from(size)));
        group.bench_function(format!("join, {size}"), |b| {
            b.iter_batched_ref(
                Members::default,
                |members| {
                    for slot in &slots {
                        members.insert(*slot, CAPACITY);
                    }
                },
                BatchSize::SmallInput,
            );
        });
        group.bench_function(format!("walk, {size}"), |b| {
            b.iter(|| {
                let (mut next, mut count) = (members.next_from(0), 0);
                while let Some(slot) = next {
                    count += 1;
                    next = members.next_from(slot + 1);
                }
                assert_eq!(count, size);
            });
        });
    }
}

/// One FanOut record until every listener has been sent its frame and every send has completed.
fn passes(c: &mut Criterion) {
    let mut group = c.benchmark_group("pass over a room, 128 B");
    for listeners in [100u32, 10_000] {
        let mut room = room::Room::new(listeners);
        group.throughput(Throughput::Elements(u64::from(listeners)));
        group.bench_function(format!("{listeners} listeners"), |b| {
            b.iter(|| assert_eq!(black_box(room.fan_out()), listeners));
        });
    }
}

criterion_group!(benches, wheel, topics, passes);
criterion_main!(benches);
