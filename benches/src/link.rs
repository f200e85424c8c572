//! Link batching: records queued by one end or by both, sent as batches, read by the other end, acknowledged.

use bytes::Bytes;
use millrace_protocol::ids::SessionId;
use millrace_protocol::link::end::{LINK_VERSION, LinkEnd, LinkEvent, LinkLimits};
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::link::Hello;

use crate::{Path, Run, path};

pub(crate) const PATHS: &[Path] = &[
    path("link/up-1x128", 1, 500, || batch(1, 0, 128)),
    path("link/up-64x128", 64, 50, || batch(64, 0, 128)),
    path("link/up-256x1024", 256, 20, || batch(256, 0, 1024)),
    path("link/both-ways-64x128", 128, 50, || batch(64, 64, 128)),
];

fn end(role: &str, incarnation: u64) -> LinkEnd {
    let hello = Hello {
        version: LINK_VERSION,
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

/// So many records go up and so many come down, in one batch each, until both ends know that the other has them.
fn batch(up: usize, down: usize, body_bytes: usize) -> Run {
    let (mut gateway, mut dispatcher) = (end("gateway", 11), end("dispatcher", 22));
    exchange(&mut gateway, &mut dispatcher);
    assert!(gateway.is_up() && dispatcher.is_up(), "the hellos agree");
    let record = Record {
        kind: Kind::ClientRequest,
        partition: 7,
        epoch: 0,
        session: SessionId::new(1, 0, 5, 9),
        body: Bytes::from(vec![1u8; body_bytes]),
    };
    Box::new(move || {
        for _ in 0..up {
            gateway.queue(record.clone()).expect("credit");
        }
        for _ in 0..down {
            dispatcher.queue(record.clone()).expect("credit");
        }
        assert_eq!(exchange(&mut gateway, &mut dispatcher), up + down);
        gateway.ack_now();
        dispatcher.ack_now();
        exchange(&mut gateway, &mut dispatcher);
        assert_eq!(gateway.unacknowledged_bytes() + dispatcher.unacknowledged_bytes(), 0);
    })
}

/// Carries everything both ways until nothing is left; returns the records that came out.
fn exchange(a: &mut LinkEnd, b: &mut LinkEnd) -> usize {
    let mut records = 0;
    let mut quiet = false;
    while !quiet {
        quiet = true;
        while let Some(bytes) = a.transmit() {
            quiet = false;
            b.receive(bytes).expect("a sound batch");
        }
        while let Some(bytes) = b.transmit() {
            quiet = false;
            a.receive(bytes).expect("a sound batch");
        }
        for end in [&mut *a, &mut *b] {
            while let Some(event) = end.poll() {
                records += usize::from(matches!(event, LinkEvent::Record(_)));
            }
        }
    }
    records
}
