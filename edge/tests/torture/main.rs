//! Edge torture: one suite on the simulated network, on io_uring and on epoll.
//!
//! Each test drives one edge against peers that are played by hand, in random order and with random budgets, and
//! ends with nothing left: no slot, buffer, operation or payload. `TORTURE_SEED=n` repeats one seed.

mod faults;
mod rig;
mod wakes;

use std::collections::HashMap;
use std::rc::Rc;

use millrace_edge::limits::ACCEPTS_MAX;
use millrace_edge::{Conn, Event, Payload, Refused, Why};
use rig::{Peer, Rig, drain, on_all, pattern};

/// Sends back what comes in, in order, one send at a time. Returns whether nothing waits.
#[derive(Default)]
struct Echo {
    waiting: HashMap<Conn, Vec<u8>>,
}

impl Echo {
    fn handle(&mut self, rig: &mut Rig, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Received { conn, bytes } => {
                    self.waiting.entry(conn).or_default().extend_from_slice(&bytes)
                }
                Event::Closed { conn, .. } => {
                    self.waiting.remove(&conn);
                }
                _ => {}
            }
        }
        for conn in rig.open() {
            if rig.is_idle(conn)
                && let Some(bytes) = self.waiting.remove(&conn)
            {
                rig.send(conn, Payload::Owned(bytes));
            }
        }
    }
}

/// A peer that writes a known stream in random pieces, and must read it back.
struct Talker {
    peer: Box<dyn Peer>,
    stream: Vec<u8>,
    written: usize,
    back: Vec<u8>,
}

impl Talker {
    fn step(&mut self, rig: &mut Rig) -> bool {
        let rest = &self.stream[self.written..];
        if !rest.is_empty() && rig.dice.chance(500) {
            let piece = 1 + rig.dice.below(rest.len().min(9_000) as u64) as usize;
            self.written += self.peer.write(&rest[..piece]).unwrap_or(0);
        }
        assert!(drain(&mut *self.peer, &mut self.back).is_none(), "the edge ended an echo");
        assert_eq!(self.back, self.stream[..self.back.len()], "bytes came back in order");
        self.back.len() == self.stream.len()
    }
}

fn echo_all(rig: &mut Rig, net: &dyn rig::Net, count: u64, bytes: usize) {
    let addr = rig.listen();
    let mut talkers: Vec<Talker> = (0..count)
        .map(|seed| Talker {
            peer: net.dial(addr),
            stream: pattern(1 + seed as usize * 7 % 50 + bytes, seed),
            written: 0,
            back: Vec::new(),
        })
        .collect();
    let mut echo = Echo::default();
    rig.until("all came back", |rig, events| {
        echo.handle(rig, events);
        let mut done = true;
        for talker in &mut talkers {
            done &= talker.step(rig);
        }
        done
    });
}

#[test]
fn completions_in_any_order() {
    on_all("echo: any order", 3, |net, dice| {
        let mut rig = Rig::new(net, 64, dice, |_| {});
        echo_all(&mut rig, net, 40, 20_000);
        assert_eq!(rig.edge.stats().accepted, 40);
        rig.finish();
    });
}

#[test]
fn a_full_completion_queue_loses_nothing() {
    on_all("echo: full completion queue", 2, |net, dice| {
        let mut rig = Rig::new(net, 200, dice, |config| {
            config.sq_entries = 4;
            config.cq_entries = 8;
        });
        echo_all(&mut rig, net, 150, 3_000);
        if net.name() == "io_uring" {
            assert!(rig.edge.stats().overflows > 0, "the queue was never full");
        }
        rig.finish();
    });
}

#[test]
fn many_small_banks_are_one_edge() {
    on_all("echo: banks of 8", 1, |net, dice| {
        let mut rig = Rig::new(net, 60, dice, |config| config.bank_slots = Some(8));
        if net.name() == "io_uring" {
            assert_eq!(rig.edge.shape().banks, 8);
        }
        echo_all(&mut rig, net, 60, 5_000);
        assert_eq!(rig.edge.stats().open_now, 60);
        assert!(rig.open().iter().map(|conn| conn.slot).eq(0..60), "slots are dense over the banks");
        assert!(matches!(
            rig.edge.connect("127.0.0.1:9".parse().unwrap(), None),
            Err(Refused::Full { capacity: 60, .. })
        ));
        rig.finish();
    });
}

#[test]
fn without_buffers_connections_wait_and_nobody_spins() {
    on_all("receive: no free buffers", 2, |net, dice| {
        let mut rig = Rig::new(net, 64, dice, |config| config.buffers = 2);
        let addr = rig.listen();
        let streams: Vec<Vec<u8>> = (0..30).map(|seed| pattern(6_000, seed)).collect();
        let mut peers: Vec<_> = streams.iter().map(|_| net.dial(addr)).collect();
        for (peer, stream) in peers.iter_mut().zip(&streams) {
            assert_eq!(peer.write(stream).unwrap(), stream.len());
        }
        // Events are held for a while, with their buffers, and handled in order.
        let mut held = Vec::new();
        let mut got: HashMap<Conn, Vec<u8>> = HashMap::new();
        let mut turns_while_starved = 0;
        rig.until("everything arrived", |rig, events| {
            held.extend(events.into_iter().filter(|event| matches!(event, Event::Received { .. })));
            assert!(held.len() <= 2, "more buffers than there are");
            if held.len() == 2 {
                turns_while_starved += 1;
            }
            if rig.dice.chance(200) {
                for event in held.drain(..) {
                    if let Event::Received { conn, bytes } = event {
                        got.entry(conn).or_default().extend_from_slice(&bytes);
                    }
                }
            }
            got.values().map(Vec::len).sum::<usize>() == 30 * 6_000
        });
        assert!(rig.edge.stats().buffer_waits > 0, "no connection ever waited");
        let mut received: Vec<Vec<u8>> = got.into_values().collect();
        let mut expected = streams;
        received.sort();
        expected.sort();
        assert_eq!(received, expected);
        rig.finish();
        drop(peers);
    });
}

#[test]
fn a_starved_edge_sleeps_until_a_buffer_returns() {
    on_all("receive: sleep while starved", 1, |net, dice| {
        let mut rig = Rig::new(net, 8, dice, |config| config.buffers = 1);
        let addr = rig.listen();
        let mut peers: Vec<_> = (0..3).map(|_| net.dial(addr)).collect();
        peers.iter_mut().for_each(|peer| assert_eq!(peer.write(b"x").unwrap(), 1));
        let mut held = None;
        rig.until("one holds the only buffer, two wait", |rig, events| {
            held = held
                .take()
                .or_else(|| events.into_iter().find(|event| matches!(event, Event::Received { .. })));
            held.is_some() && rig.edge.stats().buffer_waits >= 2
        });
        // Late readiness may still be told; after it, silence.
        let mut quiet = 0;
        while quiet < 3 {
            let (events, more) = rig.turn();
            assert!(events.is_empty());
            let woken =
                millrace_edge::wait::wait(&*rig.edge, &rig.waker, std::time::Duration::from_millis(20));
            quiet = if more || woken { quiet } else { quiet + 1 };
        }
        drop(held.take());
        assert!(
            millrace_edge::wait::wait(&*rig.edge, &rig.waker, std::time::Duration::from_secs(5)),
            "no wake"
        );
        let mut left = 2;
        rig.until("the others get their bytes", |_, events| {
            left -= events.iter().filter(|event| matches!(event, Event::Received { .. })).count();
            left == 0
        });
        rig.finish();
    });
}

#[test]
fn slots_are_reused_at_once() {
    on_all("slots: 4 slots, 400 connections", 2, |net, dice| {
        let mut rig = Rig::new(net, 4, dice, |_| {});
        let addr = rig.listen();
        let mut echo = Echo::default();
        let mut talkers: Vec<Talker> = Vec::new();
        let mut dialled = 0;
        rig.until("400 came and went", |rig, events| {
            echo.handle(rig, events);
            // More than there are slots: the others wait in the backlog.
            while talkers.len() < 7 && dialled < 400 {
                let stream = pattern(1 + dialled as usize % 300, dialled);
                talkers.push(Talker { peer: net.dial(addr), stream, written: 0, back: Vec::new() });
                dialled += 1;
            }
            assert!(rig.edge.stats().open_now <= 4);
            let mut i = 0;
            while i < talkers.len() {
                if talkers[i].step(rig) {
                    let talker = talkers.swap_remove(i);
                    if rig.dice.chance(300) {
                        talker.peer.reset();
                    }
                } else {
                    i += 1;
                }
            }
            dialled == 400 && talkers.is_empty() && rig.closed == 400
        });
        rig.finish();
    });
}

#[test]
fn stale_names_change_nothing() {
    on_all("slots: stale names", 1, |net, dice| {
        let mut rig = Rig::new(net, 1, dice, |_| {});
        let addr = rig.listen();
        let first = net.dial(addr);
        let stale = rig.accepted();
        drop(first);
        assert_eq!(rig.closed(stale), Why::Eof);
        let mut second = net.dial(addr);
        let fresh = rig.accepted();
        assert_eq!((stale.slot, stale.generation + 1), (fresh.slot, fresh.generation));
        let bytes: Rc<[u8]> = Rc::from(&b"x"[..]);
        for wrong in [stale, Conn { slot: 77, generation: 0 }, Conn { slot: u32::MAX, generation: 9 }] {
            rig.edge.close(wrong);
            rig.edge.shutdown(wrong);
            let payload = Payload::Shared { bytes: Rc::clone(&bytes), start: 0 };
            assert!(matches!(rig.edge.send(wrong, payload), Err(Refused::Gone(Payload::Shared { .. }))));
        }
        assert_eq!(Rc::strong_count(&bytes), 1, "a refused payload is handed back");
        rig.send(fresh, Payload::Shared { bytes: Rc::clone(&bytes), start: 0 });
        let again = rig.edge.send(fresh, Payload::Owned(vec![1]));
        assert!(matches!(again, Err(Refused::InFlight(Payload::Owned(back))) if back == [1]));
        let mut got = Vec::new();
        rig.until("the fresh one still works", |_, _| {
            assert!(drain(&mut *second, &mut got).is_none());
            got == b"x"
        });
        rig.finish();
        assert_eq!(Rc::strong_count(&bytes), 1);
    });
}

#[test]
fn a_start_skips_the_prefix() {
    on_all("send: start", 1, |net, dice| {
        let mut rig = Rig::new(net, 2, dice, |_| {});
        let addr = rig.listen();
        let mut peer = net.dial(addr);
        let conn = rig.accepted();
        let bytes: Rc<[u8]> = Rc::from(&b"prefix and frame"[..]);
        let mut got = Vec::new();
        for (start, expected) in [(11, &b"frame"[..]), (16, b""), (0, b"prefix and frame"), (99, b"")] {
            rig.send(conn, Payload::Shared { bytes: Rc::clone(&bytes), start });
            rig.until("sent and read", |rig, _| {
                assert!(drain(&mut *peer, &mut got).is_none());
                rig.is_idle(conn) && got == expected
            });
            got.clear();
        }
        rig.finish();
        assert_eq!(Rc::strong_count(&bytes), 1);
    });
}

#[test]
fn accepting_ends_and_begins_again() {
    on_all("listen: stop and start", 1, |net, dice| {
        let mut rig = Rig::new(net, 8, dice, |_| {});
        let addr = rig.listen();
        let mut kept = net.dial(addr);
        let conn = rig.accepted();
        rig.edge.stop_listening();
        rig.until("accepts came back", |rig, _| rig.edge.stats().operations_now <= 1);
        let addr = rig.listen();
        let _other = net.dial(addr);
        let other = rig.accepted();
        assert_ne!(conn, other);
        assert_eq!(kept.write(b"still here").unwrap(), 10);
        let mut got = Vec::new();
        rig.until("the kept one is heard", |_, events| {
            for event in events {
                if let Event::Received { conn: from, bytes } = event {
                    assert_eq!(from, conn);
                    got.extend_from_slice(&bytes);
                }
            }
            got == b"still here"
        });
        rig.finish();
    });
}

#[test]
fn held_accepts_wait_in_the_backlog() {
    const CLIENTS: u64 = 80;
    on_all("listen: held", 1, |net, dice| {
        let mut rig = Rig::new(net, 128, dice, |_| {});
        let addr = rig.listen();
        rig.edge.hold_accepts(true);
        let peers: Vec<_> = (0..CLIENTS).map(|_| net.dial(addr)).collect();
        for _ in 0..200 {
            rig.turn();
        }
        // What was under way already comes.
        assert!(rig.edge.stats().accepted <= u64::from(ACCEPTS_MAX), "{}", rig.edge.stats().accepted);
        rig.edge.hold_accepts(false);
        rig.until("all are accepted", |rig, _| rig.edge.stats().accepted == CLIENTS);
        rig.finish();
        drop(peers);
    });
}
