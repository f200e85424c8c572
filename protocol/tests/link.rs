//! Two link ends back to back: order, cuts, resends, credit, incarnations, and hellos that don't fit.

mod common;

use bytes::{Bytes, BytesMut};
use common::Random;
use millrace_protocol::ids::SessionId;
use millrace_protocol::link::end::{LINK_VERSION, LinkEnd, LinkError, LinkEvent, LinkLimits, NoCredit};
use millrace_protocol::link::record::{HEADER_BYTES, Kind, Record};
use millrace_protocol::messages::link::{Ack, Hello, Lease};
use millrace_protocol::prost::Message;

fn hello(incarnation: u64) -> Hello {
    Hello { cluster: "test".into(), role: "gateway".into(), incarnation, partitions: 16, ..Hello::default() }
}

fn end(incarnation: u64, window_bytes: u64) -> LinkEnd {
    LinkEnd::new(hello(incarnation), LinkLimits { window_bytes, batch_bytes_max: 200 })
}

fn record(number: u64) -> Record {
    let body = Bytes::from(vec![number as u8; number as usize % 50]);
    Record { kind: Kind::FanOut, partition: 7, epoch: 99, session: SessionId(number), body }
}

/// Everything that `from` has to send, as one.
fn drain(from: &mut LinkEnd) -> Bytes {
    let mut out = BytesMut::new();
    while let Some(bytes) = from.transmit() {
        out.extend_from_slice(&bytes);
    }
    out.freeze()
}

fn events(end: &mut LinkEnd) -> Vec<LinkEvent> {
    std::iter::from_fn(|| end.poll()).collect()
}

fn records(events: Vec<LinkEvent>) -> Vec<u64> {
    events
        .into_iter()
        .filter_map(|event| match event {
            LinkEvent::Record(record) => {
                assert_eq!(record.body.len() as u64, record.session.0 % 50);
                Some(record.session.0)
            }
            _ => None,
        })
        .collect()
}

/// Hands over what both have to say until neither has anything, events being left where they are.
fn exchange(a: &mut LinkEnd, b: &mut LinkEnd) {
    loop {
        let (from_a, from_b) = (drain(a), drain(b));
        if from_a.is_empty() && from_b.is_empty() {
            return;
        }
        b.receive(from_a).unwrap();
        a.receive(from_b).unwrap();
    }
}

fn connect(a: &mut LinkEnd, b: &mut LinkEnd) {
    a.connected();
    b.connected();
    exchange(a, b);
}

#[track_caller]
fn assert_up(end: &mut LinkEnd, is_fresh: bool) {
    let events = events(end);
    let [LinkEvent::Up { fresh, .. }] = events[..] else { panic!("{events:?}") };
    assert_eq!(fresh, is_fresh);
}

#[test]
fn records_arrive_in_order_with_all_their_fields() {
    let (mut a, mut b) = (end(1, 10_000), end(2, 10_000));
    connect(&mut a, &mut b);
    assert_up(&mut a, true);
    assert_up(&mut b, true);
    for number in 1..20 {
        a.queue(record(number)).unwrap();
    }
    exchange(&mut a, &mut b);
    let found: Vec<_> = events(&mut b);
    let expected: Vec<_> = (1..20).map(|number| LinkEvent::Record(record(number))).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_stream_cut_anywhere_gives_the_same_and_whole_records_are_not_copied() {
    let (mut a, mut b) = (end(1, 10_000), end(2, 10_000));
    a.connected();
    b.connected();
    let hello_of_b = drain(&mut b);
    let mut stream = BytesMut::from(&drain(&mut a)[..]);
    a.receive(hello_of_b).unwrap();
    for number in 1..=6 {
        a.queue(record(number)).unwrap();
    }
    stream.extend_from_slice(&drain(&mut a));
    let stream = stream.freeze();

    for cut in 0..=stream.len() {
        let mut b = end(2, 10_000);
        b.connected();
        b.receive(stream.slice(..cut)).unwrap();
        b.receive(stream.slice(cut..)).unwrap();
        assert_eq!(records(events(&mut b)), [1, 2, 3, 4, 5, 6], "cut at {cut}");
    }
    let mut b = end(2, 10_000);
    b.connected();
    for byte in 0..stream.len() {
        b.receive(stream.slice(byte..=byte)).unwrap();
    }
    assert_eq!(records(events(&mut b)), [1, 2, 3, 4, 5, 6]);

    let mut b = end(2, 10_000);
    b.connected();
    b.receive(stream.clone()).unwrap();
    let within = |body: &Bytes| stream.as_ptr_range().contains(&body.as_ptr());
    let bodies: Vec<_> = events(&mut b).into_iter().skip(1).collect();
    assert!(bodies.iter().all(|event| matches!(event, LinkEvent::Record(record) if within(&record.body))));
}

#[test]
fn what_was_not_taken_in_is_sent_again_once() {
    let (mut a, mut b) = (end(1, 100_000), end(2, 100_000));
    connect(&mut a, &mut b);
    events(&mut a);
    (1..=10).for_each(|number| a.queue(record(number)).unwrap());
    exchange(&mut a, &mut b);
    assert_eq!(records(events(&mut b)).len(), 10);
    // Ten more get lost on the way, and two are queued while the link is down.
    (11..=20).for_each(|number| a.queue(record(number)).unwrap());
    let lost = drain(&mut a);
    assert!(!lost.is_empty());
    // Of these, two and a half arrive.
    let part = 2 * HEADER_BYTES + 11 + 12 + 20;
    b.receive(lost.slice(..part)).unwrap();
    a.disconnected();
    b.disconnected();
    (21..=22).for_each(|number| a.queue(record(number)).unwrap());
    assert_eq!(a.transmit(), None);

    connect(&mut a, &mut b);
    assert_up(&mut a, false);
    let found = events(&mut b);
    assert!(matches!(found[0], LinkEvent::Up { fresh: false, .. }));
    // Those that were read but not polled before the break come from the resend as well, once.
    assert_eq!(records(found), (11..=22).collect::<Vec<_>>());
    b.ack_now();
    exchange(&mut a, &mut b);
    assert_eq!(a.unacknowledged_bytes(), 0);
}

#[test]
fn polled_records_are_not_given_twice() {
    let (mut a, mut b) = (end(1, 100_000), end(2, 100_000));
    connect(&mut a, &mut b);
    (1..=5).for_each(|number| a.queue(record(number)).unwrap());
    exchange(&mut a, &mut b);
    assert_eq!(records(events(&mut b)), [1, 2, 3, 4, 5]);
    // No acknowledgement went back: the hello says it.
    assert!(b.needs_ack() && a.unacknowledged_bytes() > 0);
    connect(&mut a, &mut b);
    assert_eq!(a.unacknowledged_bytes(), 0);
    assert_eq!(records(events(&mut b)), []);
}

#[test]
fn what_comes_again_is_dropped() {
    let (mut a, mut b) = (end(1, 100_000), end(2, 100_000));
    connect(&mut a, &mut b);
    (1..=3).for_each(|number| a.queue(record(number)).unwrap());
    let bytes = drain(&mut a);
    b.receive(bytes.clone()).unwrap();
    b.receive(bytes).unwrap();
    a.queue(record(4)).unwrap();
    b.receive(drain(&mut a)).unwrap();
    assert_eq!(records(events(&mut b)), [1, 2, 3, 4]);
}

#[test]
fn credit_runs_out_and_comes_back_with_acknowledgements() {
    let (mut a, mut b) = (end(1, 1000), end(2, 1000));
    connect(&mut a, &mut b);
    let mut sent = 0;
    let refused = loop {
        match a.queue(record(sent + 1)) {
            Ok(()) => sent += 1,
            Err(NoCredit(record)) => break record,
        }
    };
    assert_eq!(refused, record(sent + 1));
    assert!(a.credit_bytes() < refused.size_bytes() as u64);
    exchange(&mut a, &mut b);
    assert!(a.queue(refused.clone()).is_err(), "nothing was polled, so nothing is acknowledged");
    events(&mut b);
    // Above a quarter of the window, the acknowledgement goes by itself.
    exchange(&mut a, &mut b);
    assert_eq!((a.credit_bytes(), a.unacknowledged_bytes()), (1000, 0));

    // Below it, it waits for data, or for the end of a turn.
    a.queue(refused).unwrap();
    exchange(&mut a, &mut b);
    events(&mut b);
    exchange(&mut a, &mut b);
    assert!(b.needs_ack() && a.credit_bytes() < 1000);
    b.queue(record(1)).unwrap();
    exchange(&mut a, &mut b);
    assert!(!b.needs_ack() && a.credit_bytes() == 1000);
    events(&mut a);
    a.ack_now();
    exchange(&mut a, &mut b);
    assert_eq!(b.unacknowledged_bytes(), 0);

    // A record above the whole window passes alone.
    let big = Record { body: Bytes::from(vec![0; 5000]), ..record(0) };
    a.queue(big.clone()).unwrap();
    assert!(a.queue(record(1)).is_err());
    exchange(&mut a, &mut b);
    assert_eq!(events(&mut b).pop(), Some(LinkEvent::Record(big)));
}

#[test]
fn records_queued_before_the_first_connection_arrive() {
    let (mut a, mut b) = (end(1, 1000), end(2, 1000));
    (1..=3).for_each(|number| a.queue(record(number)).unwrap());
    connect(&mut a, &mut b);
    assert_up(&mut a, true);
    assert_eq!(records(events(&mut b)), [1, 2, 3]);
}

#[test]
fn a_restarted_peer_is_fresh_and_the_unacknowledged_comes_back() {
    let (mut a, mut b) = (end(1, 10_000), end(2, 10_000));
    connect(&mut a, &mut b);
    events(&mut a);
    (1..=12).for_each(|number| a.queue(record(number)).unwrap());
    drain(&mut a);
    a.queue(record(13)).unwrap();
    a.disconnected();

    let mut b = end(3, 10_000);
    connect(&mut a, &mut b);
    let mut found = events(&mut a);
    assert!(matches!(found.pop(), Some(LinkEvent::Up { fresh: true, .. })), "Up comes after what was lost");
    let expected: Vec<_> = (1..=13).map(|number| LinkEvent::Lost(record(number))).collect();
    assert_eq!(found, expected);
    assert_up(&mut b, true);
    a.queue(record(14)).unwrap();
    exchange(&mut a, &mut b);
    assert_eq!(records(events(&mut b)), [14]);
}

#[test]
fn a_peer_that_forgot_this_end_is_fresh_though_its_incarnation_is_the_same() {
    let (mut a, mut b) = (end(1, 10_000), end(2, 10_000));
    connect(&mut a, &mut b);
    events(&mut a);
    a.queue(record(1)).unwrap();
    exchange(&mut a, &mut b);
    let mut b = end(2, 10_000);
    connect(&mut a, &mut b);
    assert_eq!(events(&mut a)[0], LinkEvent::Lost(record(1)));
    assert_up(&mut b, true);
    a.queue(record(2)).unwrap();
    exchange(&mut a, &mut b);
    assert_eq!(records(events(&mut b)), [2]);
}

#[test]
fn a_hello_that_only_one_side_received_leaves_both_agreed() {
    let (mut a, mut b) = (end(1, 10_000), end(2, 10_000));
    a.connected();
    b.connected();
    a.receive(drain(&mut b)).unwrap();
    assert_up(&mut a, true);
    a.queue(record(1)).unwrap();
    drain(&mut a);
    connect(&mut a, &mut b);
    let found = events(&mut a);
    assert_eq!(found[0], LinkEvent::Lost(record(1)));
    assert!(matches!(found[1], LinkEvent::Up { fresh: true, .. }));
    assert_up(&mut b, true);
}

#[test]
fn a_new_incarnation_says_hello_again_on_the_same_connection() {
    let (mut a, mut b) = (end(1, 10_000), end(2, 10_000));
    connect(&mut a, &mut b);
    events(&mut a);
    events(&mut b);
    a.queue(record(1)).unwrap();
    b.queue(record(2)).unwrap();
    a.set_incarnation(5);
    assert!(!a.is_up());
    // Queued after the change: meant for the new incarnation.
    a.queue(record(3)).unwrap();
    exchange(&mut a, &mut b);
    assert!(a.is_up() && b.is_up());
    let found = events(&mut a);
    assert_eq!(found[0], LinkEvent::Lost(record(1)));
    assert!(matches!(&found[1], LinkEvent::Up { fresh: true, .. }));
    assert_eq!(found.len(), 2, "the record for the old incarnation is void");
    let found = events(&mut b);
    assert_eq!(found[0], LinkEvent::Lost(record(2)));
    assert!(matches!(&found[1], LinkEvent::Up { fresh: true, peer } if peer.incarnation == 5));
    assert_eq!(records(found), [3]);
    b.queue(record(4)).unwrap();
    exchange(&mut a, &mut b);
    assert_eq!(records(events(&mut a)), [4]);

    // Both at once, and while a hello is still under way.
    a.set_incarnation(6);
    b.set_incarnation(7);
    exchange(&mut a, &mut b);
    assert!(a.is_up() && b.is_up());
    a.connected();
    b.connected();
    let early = drain(&mut a);
    a.set_incarnation(8);
    b.receive(early).unwrap();
    exchange(&mut a, &mut b);
    assert!(a.is_up() && b.is_up());
    a.queue(record(9)).unwrap();
    exchange(&mut a, &mut b);
    assert_eq!(records(events(&mut b)), [9]);
}

#[test]
fn hellos_that_do_not_fit_are_refused_in_clear_words() {
    let refusal = |theirs: Hello| {
        let mut a = end(1, 1000);
        let mut b = LinkEnd::new(theirs, LinkLimits::default());
        a.connected();
        b.connected();
        a.receive(drain(&mut b)).unwrap_err()
    };
    let other = refusal(Hello { cluster: "prod".into(), ..hello(2) });
    assert_eq!(other, LinkError::Cluster { ours: "test".into(), theirs: "prod".into() });
    assert!(other.to_string().contains("\"prod\"") && other.to_string().contains("\"test\""));
    let other = refusal(Hello { partitions: 1024, ..hello(2) });
    assert_eq!(other, LinkError::Partitions { ours: 16, theirs: 1024 });
}

#[test]
fn violations_of_the_link_are_errors() {
    let (mut a, mut b) = (end(1, 10_000), end(2, 10_000));
    connect(&mut a, &mut b);
    a.queue(record(1)).unwrap();
    let first = drain(&mut a);
    a.queue(record(2)).unwrap();
    let second = drain(&mut a);
    assert_eq!(b.receive(second.clone()), Err(LinkError::Missing { expected: 1, found: 2 }));

    let damaged = |at: usize, byte: u8| {
        let (mut a, mut b) = (end(1, 10_000), end(2, 10_000));
        connect(&mut a, &mut b);
        let mut bytes = first.to_vec();
        bytes[at] = byte;
        b.receive(bytes.into())
    };
    assert_eq!(damaged(0, 31), Err(LinkError::Length { length: 31, max: 1 << 20 }));
    assert!(matches!(damaged(3, 1), Err(LinkError::Length { .. })));
    assert_eq!(damaged(4, 200), Err(LinkError::UnknownKind(200)));
    assert_eq!(damaged(8, 0), Err(LinkError::Numbering(Kind::FanOut)));
    assert_eq!(damaged(4, Kind::Ack as u8), Err(LinkError::Numbering(Kind::Ack)));

    let mut b = end(2, 10_000);
    b.connected();
    assert_eq!(b.receive(first), Err(LinkError::HelloExpected(Kind::FanOut)));
}

/// A control record as it goes over the wire.
fn control(kind: Kind, message: &impl Message) -> Bytes {
    let body = message.encode_to_vec();
    let mut bytes = vec![0; HEADER_BYTES];
    bytes[0] = (HEADER_BYTES + body.len()) as u8;
    bytes[4] = kind as u8;
    bytes.extend(body);
    bytes.into()
}

#[test]
fn a_peer_that_lies_is_cut_off() {
    let mut a = end(1, 1000);
    a.connected();
    let old = control(Kind::Hello, &Hello { version: 0, ..hello(2) });
    assert_eq!(a.receive(old), Err(LinkError::Version { ours: LINK_VERSION, theirs: 0 }));

    let (mut a, mut b) = (end(1, 1000), end(2, 1000));
    connect(&mut a, &mut b);
    a.queue(record(1)).unwrap();
    // Queued is not sent.
    let early = a.receive(control(Kind::Ack, &Ack { number: 1 }));
    assert_eq!(early, Err(LinkError::Acknowledged { acknowledged: 1, sent: 0 }));
    drain(&mut a);
    a.receive(control(Kind::Ack, &Ack { number: 1 })).unwrap();
    a.receive(control(Kind::Ack, &Ack { number: 1 })).unwrap();
    assert_eq!(a.unacknowledged_bytes(), 0);
    let garbage =
        a.receive(control(Kind::Ack, &Lease { gateway: 9, incarnation: 1 << 60, ..Lease::default() }));
    assert_eq!(garbage, Err(LinkError::Acknowledged { acknowledged: 9, sent: 1 }));

    // A peer that takes its window for larger than it was told.
    let (mut a, mut b) = (end(1, 1000), end(2, 1 << 30));
    connect(&mut a, &mut b);
    let mut greedy = LinkEnd::new(hello(3), LinkLimits { window_bytes: 1 << 30, batch_bytes_max: 1 << 20 });
    connect(&mut greedy, &mut b);
    a.connected();
    a.receive(control(Kind::Hello, &Hello { version: LINK_VERSION, ..hello(3) })).unwrap();
    let big = Record { body: Bytes::from(vec![0; 500_000]), ..record(0) };
    (0..3).for_each(|_| greedy.queue(big.clone()).unwrap());
    let overrun = a.receive(drain(&mut greedy));
    assert!(matches!(overrun, Err(LinkError::Overrun { window: 1000, .. })), "{overrun:?}");
}

/// Random traffic both ways over connections that break at random places, incarnations that change at random times:
/// each record arrives once and in order, or comes back as lost; nothing is in doubt without being told.
#[test]
fn nothing_is_missing_twice_or_out_of_order_over_breaking_connections() {
    let mut random = Random::seeded("link");
    for _ in 0..3000 {
        let mut ends = [end(1, 3000), end(2, 3000)];
        let mut incarnation = 10;
        let mut queued = [0u64; 2];
        let mut arrived: [Vec<u64>; 2] = Default::default();
        let mut lost: [Vec<u64>; 2] = Default::default();
        let mut wires: [Vec<u8>; 2] = Default::default();
        for _ in 0..200 {
            let side = random.below(2);
            match random.below(20) {
                0 => {
                    wires = Default::default();
                    ends.iter_mut().for_each(LinkEnd::connected);
                }
                1 if random.below(5) == 0 => {
                    incarnation += 1;
                    ends[side].set_incarnation(incarnation);
                }
                2..=8 => {
                    if ends[side].queue(record(queued[side] + 1)).is_ok() {
                        queued[side] += 1;
                    }
                }
                9 => ends[side].ack_now(),
                10..=13 => {
                    let bytes = drain(&mut ends[side]);
                    wires[side].extend_from_slice(&bytes);
                }
                14..=17 => {
                    let count = random.below(wires[side].len() + 1);
                    let piece: Vec<u8> = wires[side].drain(..count).collect();
                    ends[1 - side].receive(piece.into()).unwrap();
                }
                _ => collect(&mut ends, side, &mut arrived, &mut lost),
            }
        }
        connect_all(&mut ends);
        for side in [0, 1, 0, 1, 0, 1] {
            collect(&mut ends, side, &mut arrived, &mut lost);
            ends[side].ack_now();
            let [a, b] = &mut ends;
            exchange(a, b);
        }
        for side in [0, 1] {
            let arrived = &arrived[1 - side];
            assert!(arrived.windows(2).all(|pair| pair[0] < pair[1]), "in order, once: {arrived:?}");
            let missing = |number: &u64| !arrived.contains(number) && !lost[side].contains(number);
            let missing: Vec<_> = (1..=queued[side]).filter(missing).collect();
            assert!(missing.is_empty(), "neither arrived nor told as lost: {missing:?}");
            assert_eq!(ends[side].unacknowledged_bytes(), 0);
        }
    }
}

fn connect_all(ends: &mut [LinkEnd; 2]) {
    let [a, b] = ends;
    connect(a, b);
}

fn collect(ends: &mut [LinkEnd; 2], side: usize, arrived: &mut [Vec<u64>; 2], lost: &mut [Vec<u64>; 2]) {
    for event in events(&mut ends[side]) {
        match event {
            LinkEvent::Record(record) => arrived[side].push(record.session.0),
            LinkEvent::Lost(record) => lost[side].push(record.session.0),
            LinkEvent::Up { .. } => {}
        }
    }
}
