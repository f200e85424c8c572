//! Peers that break, stall or refuse, at every step of a connection's life.

use std::rc::Rc;

use millrace_edge::{Conn, Event, Payload, Refused, Why};

use super::rig::{Net, Peer, Rig, drain, on_all, pattern};

/// More than socket buffers and the simulated window hold together.
const LARGE_BYTES: usize = 24 << 20;

fn shared(len: usize) -> Rc<[u8]> {
    Rc::from(pattern(len, 5))
}

fn payload(bytes: &Rc<[u8]>) -> Payload {
    Payload::Shared { bytes: Rc::clone(bytes), start: 0 }
}

fn pair(rig: &mut Rig, net: &dyn Net) -> (Box<dyn Peer>, Conn) {
    let addr = rig.listen();
    let peer = net.dial(addr);
    (peer, rig.accepted())
}

/// Reads everything until the stream ends, turning the edge meanwhile.
fn read_to_end(rig: &mut Rig, peer: &mut dyn Peer) -> Vec<u8> {
    let mut got = Vec::new();
    rig.until("the peer sees the end of the stream", |_, _| match drain(peer, &mut got) {
        None => false,
        Some(Ok(())) => true,
        Some(Err(error)) => panic!("the stream broke: {error}"),
    });
    got
}

#[test]
fn a_peer_resets_at_every_step() {
    on_all("reset: at every step", 2, |net, dice| {
        let large = shared(LARGE_BYTES);
        let mut rig = Rig::new(net, 8, dice, |_| {});
        let addr = rig.listen();
        for step in 0..7 {
            for _ in 0..5 {
                let mut peer = net.dial(addr);
                if step == 0 {
                    // Before the edge knows of it. Some kernels give such a connection to accept, some never do.
                    peer.reset();
                    for _ in 0..20 {
                        rig.turn();
                    }
                    continue;
                }
                let conn = rig.accepted();
                match step {
                    2 => {
                        // With bytes on the way.
                        peer.write(&pattern(20_000, 1)).unwrap();
                        rig.turn();
                    }
                    3 => rig.send(conn, payload(&large)),
                    4 => {
                        rig.send(conn, payload(&large));
                        for _ in 0..5 {
                            rig.turn();
                        }
                    }
                    5 => {
                        rig.edge.shutdown(conn);
                        rig.turn();
                    }
                    6 => {
                        rig.send(conn, payload(&large));
                        rig.turn();
                        if rig.open().contains(&conn) {
                            rig.close(conn);
                        }
                    }
                    _ => {}
                }
                peer.reset();
                let mut sent = false;
                rig.until("the edge notices", |rig, events| {
                    sent |= events.iter().any(|event| matches!(event, Event::Sent { .. }));
                    !rig.open().contains(&conn)
                });
                assert!(!sent, "a send to nobody is never whole");
            }
        }
        rig.finish();
        assert_eq!(Rc::strong_count(&large), 1, "every payload came back");
    });
}

#[test]
fn a_large_send_to_a_slow_reader_is_whole() {
    on_all("send: slow reader", 1, |net, dice| {
        let large = shared(4 << 20);
        let mut rig = Rig::new(net, 4, dice, |_| {});
        let (mut peer, conn) = pair(&mut rig, net);
        rig.send(conn, payload(&large));
        let mut got = Vec::new();
        let mut sent = 0;
        rig.until("read and told", |rig, events| {
            sent += events.iter().filter(|event| matches!(event, Event::Sent { .. })).count();
            let mut bytes = [0u8; 30_000];
            if rig.dice.chance(700)
                && let Ok(count) = peer.read(&mut bytes)
            {
                got.extend_from_slice(&bytes[..count]);
            }
            got.len() == large.len() && sent > 0
        });
        assert!(got == *large, "the bytes are the same");
        assert_eq!((sent, rig.edge.stats().bytes_sent), (1, 4 << 20));
        rig.finish();
        assert_eq!(Rc::strong_count(&large), 1);
    });
}

#[test]
fn a_large_send_to_a_reader_that_dies_is_dead() {
    on_all("send: reader dies midway", 1, |net, dice| {
        let large = shared(LARGE_BYTES);
        let mut rig = Rig::new(net, 4, dice, |_| {});
        let (mut peer, conn) = pair(&mut rig, net);
        rig.send(conn, payload(&large));
        let mut got = Vec::new();
        rig.until("some of it is read", |_, events| {
            assert!(events.is_empty());
            assert!(drain(&mut *peer, &mut got).is_none());
            got.len() > 100_000
        });
        peer.reset();
        let mut why = None;
        rig.until("the connection is dead", |_, events| {
            for event in events {
                match event {
                    Event::Closed { why: told, .. } => why = Some(told),
                    other => panic!("{other:?} of a dead connection"),
                }
            }
            why.is_some()
        });
        assert!(matches!(why, Some(Why::Error(libc::ECONNRESET | libc::EPIPE))), "{why:?}");
        rig.finish();
        assert_eq!(Rc::strong_count(&large), 1);
    });
}

#[test]
fn a_stalled_send_is_cancelled_by_close() {
    on_all("close: stalled send", 1, |net, dice| {
        let large = shared(LARGE_BYTES);
        let mut rig = Rig::new(net, 4, dice, |_| {});
        let (mut peer, conn) = pair(&mut rig, net);
        rig.send(conn, payload(&large));
        for _ in 0..20 {
            assert!(rig.turn().0.is_empty());
        }
        assert_eq!(rig.edge.stats().sends_in_flight_now, 1);
        rig.close(conn);
        assert_eq!(rig.closed(conn), Why::Local);
        assert_eq!(Rc::strong_count(&large), 1, "the payload is free when the slot is");
        let got = read_to_end(&mut rig, &mut *peer);
        assert!(!got.is_empty() && got.len() < large.len() && got == large[..got.len()]);
        rig.finish();
    });
}

#[test]
fn the_peer_sees_the_end_after_close() {
    on_all("close: end of stream", 2, |net, dice| {
        let mut rig = Rig::new(net, 4, dice, |_| {});
        let (mut peer, conn) = pair(&mut rig, net);
        rig.send(conn, Payload::Owned(b"bye".to_vec()));
        rig.until("sent", |rig, _| rig.is_idle(conn));
        rig.close(conn);
        rig.edge.close(conn);
        assert_eq!(rig.closed(conn), Why::Local);
        assert_eq!(read_to_end(&mut rig, &mut *peer), b"bye");
        rig.finish();
    });
}

#[test]
fn a_half_close_delivers_all_and_drops_what_comes() {
    on_all("shutdown: after the send in flight", 2, |net, dice| {
        let large = shared(3 << 20);
        let mut rig = Rig::new(net, 4, dice, |_| {});
        let (mut peer, conn) = pair(&mut rig, net);
        rig.send(conn, payload(&large));
        rig.edge.shutdown(conn);
        rig.edge.shutdown(conn);
        assert!(matches!(rig.edge.send(conn, Payload::Owned(vec![1])), Err(Refused::Gone(_))));
        let mut got = Vec::new();
        let mut sent = false;
        rig.until("all, and the end of the stream", |_, events| {
            sent |= events.iter().any(|event| matches!(event, Event::Sent { .. }));
            assert!(
                !events.iter().any(|event| matches!(event, Event::Received { .. })),
                "bytes after a half-close"
            );
            let _ = peer.write(b"nobody listens to this");
            match drain(&mut *peer, &mut got) {
                None => false,
                Some(Ok(())) => sent,
                Some(Err(error)) => panic!("the stream broke: {error}"),
            }
        });
        assert!(got == *large);
        assert!(rig.open().contains(&conn), "it waits for the peer");
        drop(peer);
        let why = rig.closed(conn);
        assert!(matches!(why, Why::Eof | Why::Error(libc::ECONNRESET)), "{why:?}");
        rig.finish();
        assert_eq!(Rc::strong_count(&large), 1);
    });
}

#[test]
fn a_half_closed_peer_may_be_closed_for_good() {
    on_all("shutdown: then close", 1, |net, dice| {
        let mut rig = Rig::new(net, 4, dice, |_| {});
        let (mut peer, conn) = pair(&mut rig, net);
        rig.edge.shutdown(conn);
        assert_eq!(read_to_end(&mut rig, &mut *peer), b"");
        rig.close(conn);
        assert_eq!(rig.closed(conn), Why::Local);
        rig.finish();
    });
}

#[test]
fn bytes_before_an_end_are_told_before_it() {
    on_all("receive: bytes, then the end", 3, |net, dice| {
        let mut rig = Rig::new(net, 4, dice, |_| {});
        let addr = rig.listen();
        // Whole buffers exactly, one more, and one less: the cases where an end could be overlooked.
        for len in [1, 4_095, 4_096, 4_097, 8_192, 40_000] {
            let mut peer = net.dial(addr);
            let stream = pattern(len, len as u64);
            assert_eq!(peer.write(&stream).unwrap(), len);
            peer.shutdown_write();
            let mut got = Vec::new();
            let mut ended = None;
            rig.until("the end", |_, events| {
                for event in events {
                    match event {
                        Event::Received { bytes, .. } => got.extend_from_slice(&bytes),
                        Event::Closed { why, .. } => ended = Some(why),
                        _ => {}
                    }
                }
                ended.is_some()
            });
            assert_eq!((ended, got == stream), (Some(Why::Eof), true), "{len} bytes");
        }
        rig.finish();
    });
}

#[test]
fn connects_succeed_are_refused_and_are_given_up() {
    on_all("connect: all ways", 2, |net, dice| {
        let mut rig = Rig::new(net, 16, dice, |_| {});
        let mut door = net.listen();
        // Succeeds, and works both ways.
        let conn = rig.connect(door.addr());
        assert!(matches!(rig.edge.send(conn, Payload::Owned(vec![1])), Err(Refused::InFlight(_))), "not yet");
        let mut peer = None;
        rig.until("connected", |rig, _| {
            peer = peer.take().or_else(|| door.accept());
            peer.is_some() && rig.is_idle(conn)
        });
        let mut peer = peer.unwrap();
        rig.send(conn, Payload::Owned(b"ping".to_vec()));
        let mut got = Vec::new();
        rig.until("heard", |_, _| {
            assert!(drain(&mut *peer, &mut got).is_none());
            got == b"ping"
        });
        peer.write(b"pong").unwrap();
        rig.until("answered", |_, events| events.iter().any(|event| matches!(event, Event::Received { .. })));
        // Given up at once, and with a turn between.
        for turns in 0..4 {
            let conn = rig.connect(door.addr());
            let mut gone = false;
            for _ in 0..turns {
                rig.turn();
            }
            gone |= !rig.open().contains(&conn);
            assert!(!gone, "nobody closed it");
            rig.close(conn);
            assert_eq!(rig.closed(conn), Why::Local);
        }
        // Half-closed before it stands.
        let conn = rig.connect(door.addr());
        rig.edge.shutdown(conn);
        let mut late = Vec::new();
        rig.until("the end reaches the peer", |_, _| {
            while let Some(peer) = door.accept() {
                late.push(peer);
            }
            late.last_mut().is_some_and(|peer| matches!(drain(&mut **peer, &mut Vec::new()), Some(Ok(()))))
                && late.len() == 5
        });
        drop(late);
        rig.closed(conn);
        // Refused.
        let addr = door.addr();
        drop(door);
        for _ in 0..20 {
            let conn = rig.connect(addr);
            assert_eq!(rig.closed(conn), Why::Error(libc::ECONNREFUSED));
        }
        rig.finish();
    });
}

/// Anything, in any order: the rig's checker judges.
#[test]
fn a_random_life_leaves_nothing() {
    on_all("soup: everything at random", 6, |net, dice| {
        let large = shared(1 << 20);
        let mut rig = Rig::new(net, 12, dice, |config| {
            config.buffers = 3;
            config.bank_slots = Some(5);
            config.sq_entries = 8;
            config.cq_entries = 16;
        });
        net.break_things();
        let mut door = net.listen();
        let addr = rig.listen();
        let mut peers: Vec<Box<dyn Peer>> = Vec::new();
        let mut held: Vec<Event> = Vec::new();
        let mut sink = Vec::new();
        for _ in 0..1_500 {
            let (events, more) = rig.turn();
            held.extend(events.into_iter().filter(|event| matches!(event, Event::Received { .. })));
            if rig.dice.chance(300) {
                held.clear();
            }
            let conns = rig.open();
            let conn = (!conns.is_empty()).then(|| conns[rig.dice.below(conns.len() as u64) as usize]);
            let peer = rig.dice.below(peers.len() as u64) as usize;
            match (rig.dice.below(14), conn) {
                (0 | 1, _) if peers.len() < 20 => peers.push(net.dial(addr)),
                (2, _) => rig.try_connect(door.addr()),
                (3 | 4, Some(conn)) if rig.is_idle(conn) => rig.try_send(conn, payload(&large)),
                (5 | 6, Some(conn)) if rig.is_idle(conn) => rig.try_send(conn, Payload::Owned(vec![7; 100])),
                (7, Some(conn)) => rig.edge.shutdown(conn),
                (8, Some(conn)) => rig.close(conn),
                (9, _) if !peers.is_empty() => peers.swap_remove(peer).reset(),
                (10, _) if !peers.is_empty() => drop(peers.swap_remove(peer)),
                (11 | 12, _) if !peers.is_empty() => {
                    // Whatever comes of it: the peer may be broken.
                    let _ = peers[peer].write(&[9; 5_000]);
                    sink.clear();
                    let _ = drain(&mut *peers[peer], &mut sink);
                }
                _ if !more && held.is_empty() => {
                    rig.edge.flush().unwrap();
                    let pause = std::time::Duration::from_micros(300);
                    millrace_edge::wait::wait(&*rig.edge, &rig.waker, pause);
                }
                _ => {}
            }
            peers.extend(door.accept());
        }
        held.clear();
        assert!(rig.closed > 15, "little happened: {} closed", rig.closed);
        rig.finish();
        assert_eq!(Rc::strong_count(&large), 1, "every payload came back");
    });
}

#[test]
fn dropping_an_edge_gives_everything_back() {
    on_all("drop: everything in flight", 2, |net, dice| {
        let large = shared(LARGE_BYTES);
        let mut rig = Rig::new(net, 16, dice, |_| {});
        let addr = rig.listen();
        let mut peers: Vec<_> = (0..6).map(|_| net.dial(addr)).collect();
        rig.until("all are accepted", |rig, _| rig.open().len() == 6);
        let conns = rig.open();
        for (i, &conn) in conns.iter().enumerate() {
            match i % 3 {
                0 => rig.send(conn, payload(&large)),
                1 => peers[i].write(&pattern(9_000, 1)).map(drop).unwrap(),
                _ => {}
            }
        }
        rig.edge.flush().unwrap();
        // Queued, never submitted.
        rig.send(conns[1], payload(&large));
        drop(rig);
        assert_eq!(Rc::strong_count(&large), 1, "no payload is left with the kernel");
        for peer in &mut peers {
            let mut got = Vec::new();
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
            while drain(&mut **peer, &mut got).is_none() {
                assert!(std::time::Instant::now() < deadline, "the peer never sees the end");
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    });
}
