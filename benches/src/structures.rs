//! The plain data structures of a gateway shard: the wheel, the slab, lists and bitmaps of listeners, the outbox, and
//! the pool of receive buffers.

use std::hint::black_box;
use std::rc::Rc;

use millrace_edge::pool;
use millrace_gateway::core::action::Payload;
use millrace_gateway::core::outbox::{self, Queue};
use millrace_gateway::core::slab::Slab;
use millrace_gateway::core::topics::Members;
use millrace_gateway::core::wheel::{Wheel, spread};

use crate::{Path, Run, path};

pub(crate) const PATHS: &[Path] = &[
    path("wheel/second-of-100000", 100_000 / 30, 30, || wheel(100_000)),
    path("wheel/second-of-a-million", 1_000_000 / 30, 5, || wheel(1_000_000)),
    path("slab/get", 1_024, 20, slab_get),
    path("slab/remove-and-insert", 1_024, 20, slab_churn),
    path("members/join-list-100", 100, 50, || join(100)),
    path("members/join-bitmap-10000", 10_000, 3, || join(10_000)),
    path("members/walk-list-100", 100, 100, || walk(100)),
    path("members/walk-list-500", 500, 50, || walk(500)),
    path("members/walk-bitmap-1000", 1_000, 20, || walk(1_000)),
    path("members/walk-bitmap-10000", 10_000, 3, || walk(10_000)),
    path("outbox/one-at-a-time", 64, 100, || outbox(1)),
    path("outbox/sixteen-together", 1_024, 20, || outbox(16)),
    path("pool/lend-and-return", 64, 100, lend),
];

/// Slots of the shard: what its rings hold, and 512 listeners are the most of a list.
const CAPACITY: u32 = 16_384;

const SECOND_US: u64 = 1_000_000;

/// Deadlines spread over 30 s, looked at a second at a time, as a shard looks, and armed again.
fn wheel(connections: u32) -> Run {
    let mut wheel = Wheel::new(0);
    for slot in 0..connections {
        let at = wheel.tick_after(SECOND_US + u64::from(spread(slot, 7, 30_000)) * 1_000);
        wheel.arm(slot, at);
    }
    let (mut now, mut due) = (0, Vec::new());
    Box::new(move || {
        now += SECOND_US;
        let next = wheel.tick_after(now + 30 * SECOND_US);
        let mut more = true;
        while more {
            more = wheel.advance(now, 1_024, &mut due);
            for (slot, _) in due.drain(..) {
                wheel.arm(slot, next);
            }
        }
        assert_eq!(wheel.len(), connections as usize);
    })
}

/// A full slab of entries as large as a session's, and slots of it in no order.
fn sessions() -> (Slab<[u64; 12]>, Vec<u32>) {
    let mut slab = Slab::default();
    for slot in 0..CAPACITY {
        slab.insert(slot, [u64::from(slot); 12]);
    }
    (slab, (0..1_024).map(|i| spread(i, 3, CAPACITY)).collect())
}

fn slab_get() -> Run {
    let (slab, slots) = sessions();
    Box::new(move || {
        for slot in &slots {
            black_box(slab.get(*slot));
        }
    })
}

/// Connections come and go.
fn slab_churn() -> Run {
    let (mut slab, slots) = sessions();
    Box::new(move || {
        for slot in &slots {
            let entry = slab.remove(*slot).expect("it was full");
            slab.insert(*slot, entry);
        }
        assert_eq!(slab.len(), CAPACITY as usize);
    })
}

fn slots(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(move |i| i * (CAPACITY / count))
}

/// A topic from its first listener to its last, and its end.
fn join(count: u32) -> Run {
    Box::new(move || {
        let mut members = Members::default();
        for slot in slots(count) {
            members.insert(slot, CAPACITY);
        }
        assert_eq!(members.len(), count as usize);
    })
}

/// One pass over a topic's listeners.
fn walk(count: u32) -> Run {
    let mut members = Members::default();
    for slot in slots(count) {
        members.insert(slot, CAPACITY);
    }
    Box::new(move || {
        let (mut next, mut found) = (members.next_from(0), 0);
        while let Some(slot) = next {
            found += 1;
            next = members.next_from(slot + 1);
        }
        assert_eq!(black_box(found), count);
    })
}

/// So many frames wait behind the send in flight of each of 64 connections: own ones, shared ones in between.
fn outbox(waiting: usize) -> Run {
    const BYTES_MAX: u32 = 256 << 10;
    let (mut pool, mut queues) = (outbox::Pool::default(), Vec::new());
    queues.resize_with(64, Queue::default);
    let shared: Rc<[u8]> = vec![7; 200].into();
    Box::new(move || {
        for at in 0..waiting {
            for queue in &mut queues {
                let payload = match at % 2 {
                    0 => Payload::Shared { bytes: shared.clone(), start: 2 },
                    _ => Payload::Owned(vec![7; 32]),
                };
                assert!(pool.push(queue, payload, BYTES_MAX));
            }
        }
        for queue in &mut queues {
            while let Some(payload) = pool.next_send(queue) {
                black_box(outbox::payload_bytes(&payload));
            }
        }
        assert!(pool.is_empty());
    })
}

/// 64 buffers out at once, as in a busy turn.
fn lend() -> Run {
    let pool = pool::Pool::new(1_024, None);
    let mut lent = Vec::with_capacity(64);
    Box::new(move || {
        lent.extend((0..64).map(|_| pool.lend().expect("a free one")));
        lent.clear();
        assert_eq!(black_box(pool.lent()), 0);
    })
}
