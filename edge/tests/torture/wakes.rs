//! Sleeping: no wake is lost, and an edge with nothing to do is not woken. And who is who: addresses.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use millrace_edge::sim::Dice;
use millrace_edge::wake::Waker;
use millrace_edge::{Budget, Config, Conn, Edge, Event, Io, Payload, open, wait};

use super::rig::{Rig, on_all};

/// Long enough that sleeping through it is a lost wake, not a slow machine.
const ASLEEP: Duration = Duration::from_secs(5);

fn kernel_edges() -> Vec<(Box<dyn Edge>, Waker)> {
    [Io::Uring, Io::Epoll]
        .map(|io| {
            let waker = Waker::new().unwrap();
            (open(io, Config::new(16, waker.clone())).unwrap().0, waker)
        })
        .into()
}

fn play_ping_pong(addr: SocketAddr, rounds: usize, seed: u64) {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(ASLEEP)).unwrap();
    let mut dice = Dice::new(seed);
    for round in 0..rounds {
        stream.write_all(&[round as u8]).unwrap();
        let mut back = [0];
        stream.read_exact(&mut back).expect("an answer: the edge slept through a wake");
        assert_eq!(back, [round as u8]);
        if dice.chance(50) {
            // So that the edge falls asleep now and then.
            thread::sleep(Duration::from_micros(dice.below(300)));
        }
    }
}

#[test]
fn no_wake_is_lost() {
    const PLAYERS: u64 = 3;
    const ROUNDS: usize = 3_000;
    // Both kinds of flush, each with both backends.
    let edges =
        [false, true].into_iter().flat_map(|looks| kernel_edges().into_iter().map(move |it| (looks, it)));
    for (looks, (mut edge, waker)) in edges {
        let addr = edge.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let players: Vec<_> =
            (0..PLAYERS).map(|seed| thread::spawn(move || play_ping_pong(addr, ROUNDS, seed))).collect();
        let mut events = Vec::new();
        let mut waiting: HashMap<Conn, Vec<u8>> = HashMap::new();
        let mut closed = 0;
        while closed < PLAYERS {
            let mut more = edge.turn(Budget { completions: 8 }, &mut events).unwrap().more;
            for event in events.drain(..) {
                match event {
                    Event::Received { conn, bytes } => {
                        match edge.send(conn, Payload::Owned(bytes.to_vec())) {
                            Ok(()) => {}
                            // The peer has the bytes before we know that they are sent.
                            Err(_) => waiting.entry(conn).or_default().extend_from_slice(&bytes),
                        }
                    }
                    Event::Sent { conn } => {
                        if let Some(bytes) = waiting.remove(&conn) {
                            edge.send(conn, Payload::Owned(bytes)).unwrap();
                        }
                    }
                    Event::Closed { .. } => closed += 1,
                    _ => {}
                }
            }
            match looks {
                true => more |= edge.flush_and_look().unwrap(),
                false => edge.flush().unwrap(),
            }
            if !more && closed < PLAYERS {
                assert!(
                    wait::wait(&*edge, &waker, ASLEEP),
                    "{}: nothing woke the edge (looks: {looks})",
                    edge.shape().backend
                );
            }
        }
        for player in players {
            player.join().unwrap();
        }
    }
}

#[test]
fn an_idle_edge_is_not_woken() {
    for (mut edge, waker) in kernel_edges() {
        let addr = edge.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let peers: Vec<_> = (0..10).map(|_| TcpStream::connect(addr).unwrap()).collect();
        let mut events = Vec::new();
        let (deadline, mut wakes, mut since) = (Instant::now() + ASLEEP, 0, Instant::now());
        while since.elapsed() < Duration::from_millis(200) {
            while edge.turn(Budget { completions: 100 }, &mut events).unwrap().more {}
            if events.len() < peers.len() {
                since = Instant::now();
            }
            wakes += u32::from(wait::wait(&*edge, &waker, Duration::from_millis(50)));
            assert!(Instant::now() < deadline, "ten connections are accepted");
        }
        assert_eq!(events.len(), peers.len());
        // A few come late; a loop would make thousands.
        assert!(wakes < 50, "{}: {wakes} wakes of an idle edge", edge.shape().backend);
    }
}

#[test]
fn a_caller_that_flushes_and_sleeps_is_woken_for_the_results() {
    on_all("flush: then sleep", 1, |net, dice| {
        let mut rig = Rig::new(net, 4, dice, |_| {});
        let addr = rig.listen();
        let _peer = net.dial(addr);
        let conn = rig.accepted();
        while rig.turn().1 || wait::wait(&*rig.edge, &rig.waker, Duration::from_millis(10)) {}
        rig.send(conn, Payload::Owned(vec![1, 2, 3]));
        rig.edge.flush().unwrap();
        assert!(wait::wait(&*rig.edge, &rig.waker, ASLEEP), "no wake for a send that completed in flush");
        rig.until("sent", |rig, _| rig.is_idle(conn));
        while rig.turn().1 || wait::wait(&*rig.edge, &rig.waker, Duration::from_millis(10)) {}
        rig.close(conn);
        rig.edge.flush().unwrap();
        assert!(wait::wait(&*rig.edge, &rig.waker, ASLEEP), "no wake for a close");
        rig.closed(conn);
        rig.finish();
    });
}

#[test]
fn a_caller_that_looks_after_its_flush_needs_no_wake_for_what_is_there() {
    on_all("flush: look, then a turn or sleep", 1, |net, dice| {
        let mut rig = Rig::new(net, 4, dice, |_| {});
        let addr = rig.listen();
        let _peer = net.dial(addr);
        let conn = rig.accepted();
        while rig.turn().1 || wait::wait(&*rig.edge, &rig.waker, Duration::from_millis(10)) {}
        for round in 0..20u8 {
            rig.send(conn, Payload::Owned(vec![round]));
            let there = rig.edge.flush_and_look().unwrap();
            assert!(there || wait::wait(&*rig.edge, &rig.waker, ASLEEP), "neither told nor woken");
            rig.until("sent", |rig, _| rig.is_idle(conn));
            while rig.turn().1 || wait::wait(&*rig.edge, &rig.waker, Duration::from_millis(1)) {}
            assert!(!rig.edge.flush_and_look().unwrap(), "nothing was asked for");
        }
        rig.close(conn);
        let there = rig.edge.flush_and_look().unwrap();
        assert!(there || wait::wait(&*rig.edge, &rig.waker, ASLEEP), "neither told nor woken of a close");
        rig.closed(conn);
        rig.finish();
    });
}

#[test]
fn a_connection_comes_from_where_it_was_told_to() {
    on_all("connect: from an address", 1, |net, dice| {
        let mut server = Rig::new(net, 8, dice.clone(), |_| {});
        let mut client = Rig::new(net, 8, dice, |_| {});
        let addr = server.listen();
        for from in ["127.0.0.7", "127.0.0.8", "127.0.0.7"] {
            let from: IpAddr = from.parse().unwrap();
            let conn = client.connect_from(addr, from);
            let mut seen = None;
            server.until("accepted", |_, events| {
                client.turn();
                for event in events {
                    if let Event::Accepted { peer, .. } = event {
                        seen = Some(peer.ip());
                    }
                }
                seen.is_some() && client.is_idle(conn)
            });
            assert_eq!(seen, Some(from));
        }
        client.finish();
        server.until("the ends arrive", |server, _| server.open().is_empty());
        server.finish();
    });
}
