//! Links against a peer on loopback, under both of the runtime's drivers.

use std::future::Future;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use millrace_edge::mailbox::{Receiver, mailbox};

use super::*;
use crate::shell::readable::Readable;

const NODE: NodeKey = NodeKey(4);

fn on_both<F: Future<Output = ()>>(test: impl Fn() -> F) {
    match monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().enable_timer().build() {
        Ok(mut runtime) => runtime.block_on(test()),
        Err(error) => eprintln!("skipped, no io_uring: {error}"),
    }
    monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().enable_timer().build().unwrap().block_on(test());
}

/// Links as a pump holds them: woken by their waker.
struct World {
    links: Links,
    waker: Waker,
    readable: Readable,
    answers: Receiver<(NodeKey, Answer)>,
}

impl World {
    fn new() -> Self {
        let waker = Waker::new().unwrap();
        let (sender, answers) = mailbox(16, waker.clone());
        let resolver = Some(Resolver::start().unwrap());
        let answer = move |node, found| sender.send((node, found)).expect("room for an answer");
        let links = Links::new((1, 0), waker.clone(), None, resolver, 5, answer);
        World { links, readable: Readable::new(waker.fd()).unwrap(), waker, answers }
    }

    async fn next(&mut self) -> LinkEvent {
        loop {
            self.waker.drain();
            while let Some((node, answer)) = self.answers.recv() {
                self.links.resolved(node, answer);
            }
            if let Some((node, event)) = self.links.next(0) {
                assert_eq!(node, NODE);
                return event;
            }
            let woken = monoio::time::timeout(Duration::from_secs(20), self.readable.wait()).await;
            woken.expect("an event was lost").unwrap();
        }
    }

    /// Collects bytes until there are `length`.
    async fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < length {
            match self.next().await {
                LinkEvent::Bytes(bytes) => all.extend(bytes),
                other => panic!("{other:?} after {} of {length} bytes", all.len()),
            }
        }
        all
    }

    fn send(&mut self, batches: &mut Vec<Bytes>) {
        self.links.send(NODE, 0, || batches.pop());
    }
}

/// A peer that echoes `rounds` connections, each until it has echoed `length` bytes; then it hangs up.
fn echo(rounds: usize, length: usize) -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        for _ in 0..rounds {
            let (mut peer, _) = listener.accept().unwrap();
            let mut left = length;
            let mut buffer = vec![0; 64 << 10];
            while left > 0 {
                let read = peer.read(&mut buffer).unwrap();
                assert!(read > 0, "the link hung up with {left} bytes missing");
                peer.write_all(&buffer[..read]).unwrap();
                left -= read;
            }
        }
    });
    (address, thread)
}

#[test]
fn bytes_survive_the_trip_and_a_lost_link_comes_back() {
    on_both(|| async {
        const BATCH: usize = 100_000;
        const BATCHES: usize = 20;
        let (address, peer) = echo(2, BATCH * BATCHES);
        let mut world = World::new();
        world.links.connect(NODE, "node".to_owned(), address);
        for round in 0..2u8 {
            assert_eq!(world.next().await, LinkEvent::Connected);
            let mut batches: Vec<Bytes> =
                (0..BATCHES).map(|n| Bytes::from(vec![n as u8 ^ round; BATCH])).collect();
            let expected: Vec<u8> = batches.iter().rev().flat_map(|batch| batch.to_vec()).collect();
            let mut got = Vec::new();
            while got.len() < expected.len() {
                world.send(&mut batches);
                let LinkEvent::Bytes(bytes) = world.next().await else { panic!("lost in the middle") };
                got.extend(bytes);
            }
            assert!(got == expected, "the bytes came back changed");
            assert!(batches.is_empty() && world.links.is_flushed());
            assert_eq!(world.next().await, LinkEvent::Lost);
        }
        let reports = world.links.reports();
        let report = &reports[0];
        assert_eq!((report.node.as_str(), report.connects), ("node", 2));
        assert_eq!(report.bytes_in, (2 * BATCH * BATCHES) as u64);
        assert_eq!(report.bytes_out, report.bytes_in);
        world.links.disconnect(NODE);
        peer.join().unwrap();
    });
}

#[test]
fn a_reset_drops_the_connection_and_what_it_still_said() {
    on_both(|| async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut world = World::new();
        world.links.connect(NODE, String::new(), address);
        assert_eq!(world.next().await, LinkEvent::Connected);
        let (mut first, _) = listener.accept().unwrap();
        first.write_all(b"one").unwrap();
        assert_eq!(world.bytes(3).await, b"one");
        world.links.reset(NODE, "a test", 0);
        // The task has not run yet: these bytes may still be read, and must not reach the core.
        first.write_all(b"late").unwrap();
        let mut refused = vec![Bytes::from_static(b"for the old connection")];
        world.send(&mut refused);
        assert_eq!(refused.len(), 1, "nothing goes out on a link that was reset");
        assert_eq!(world.next().await, LinkEvent::Lost);
        assert_eq!(world.next().await, LinkEvent::Connected);
        let (mut second, _) = listener.accept().unwrap();
        second.write_all(b"two").unwrap();
        assert_eq!(world.bytes(3).await, b"two");
        world.send(&mut refused);
        let mut got = [0; 22];
        blocking(&second);
        // Let the writer's task run.
        monoio::time::sleep(Duration::from_millis(50)).await;
        second.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"for the old connection");
        world.links.disconnect(NODE);
    });
}

#[test]
fn a_peer_that_is_reset_each_time_is_not_called_in_a_loop() {
    on_both(|| async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let peer = std::thread::spawn(move || {
            // Says something, as a node of another cluster does, and waits to be hung up on.
            for _ in 0..5 {
                let (mut link, _) = listener.accept().unwrap();
                link.write_all(b"hello").unwrap();
                let _ = link.read(&mut [0; 8]);
            }
        });
        let mut world = World::new();
        world.links.connect(NODE, "stranger".to_owned(), address);
        for round in 0..5 {
            assert_eq!(world.next().await, LinkEvent::Connected);
            assert_eq!(world.bytes(5).await, b"hello");
            world.links.reset(NODE, "another cluster", 0);
            assert_eq!(world.next().await, LinkEvent::Lost);
            let Transport::Tcp(tcp) = &world.links.nodes[&NODE].transport else { panic!("not over TCP") };
            // The task counts the failure right after it told of the loss.
            monoio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!((tcp.failures.get(), tcp.failures_in_a_row.get()), (round + 1, round as u32 + 1));
        }
        world.links.disconnect(NODE);
        peer.join().unwrap();
    });
}

#[test]
fn names_are_resolved_and_a_peer_that_is_down_is_tried_again() {
    on_both(|| async {
        // A port that is free for now: nobody listens until the link has failed.
        let reserved = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut world = World::new();
        world.links.connect(NODE, "late".to_owned(), format!("localhost:{}", reserved.port()));
        let begun = std::time::Instant::now();
        let mut listener = None;
        let event = loop {
            world.waker.drain();
            while let Some((node, answer)) = world.answers.recv() {
                world.links.resolved(node, answer);
            }
            if let Some((_, event)) = world.links.next(0) {
                break event;
            }
            assert!(begun.elapsed() < Duration::from_secs(20));
            if listener.is_none() && world.links.reports()[0].failures >= 2 {
                listener = Some(TcpListener::bind(reserved).unwrap());
            }
            let _ = monoio::time::timeout(Duration::from_millis(5), world.readable.wait()).await;
        };
        assert_eq!(event, LinkEvent::Connected);
        assert!(world.links.reports()[0].failures >= 2);
        world.links.disconnect(NODE);
        assert!(world.links.reports().is_empty());
    });
}

fn blocking(stream: &TcpStream) {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
}
