//! What the edge costs, in numbers: run by hand with
//! `cargo test --release -p millrace-edge --test measure -- --ignored --nocapture --test-threads 1`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use millrace_edge::wake::Waker;
use millrace_edge::{Budget, Config, Conn, Edge, Event, Io, Payload, clock, open, rlimit, wait};

thread_local! {
    /// Heap bytes that this thread allocated and did not free.
    static LIVE: Cell<i64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is passed on to the system allocator unchanged; the counter allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.with(|live| live.set(live.get() + layout.size() as i64));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        LIVE.with(|live| live.set(live.get() - layout.size() as i64));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Connections to measure with: `MEASURE_CONNECTIONS`, or 10,000.
fn connections() -> u32 {
    std::env::var("MEASURE_CONNECTIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000)
}

fn live() -> i64 {
    LIVE.with(Cell::get)
}

/// Memory of this process that is resident, in KiB, by kind.
fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let lines = status.lines().filter(|line| line.starts_with("Rss") || line.starts_with("VmRSS"));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
}

fn turn(edge: &mut dyn Edge, waker: &Waker, events: &mut Vec<Event>) {
    let more = edge.turn(Budget { completions: 1_024 }, events).unwrap().more;
    if !more {
        wait::wait(edge, waker, Duration::from_millis(5));
    }
}

/// Opens the connections from a thread of its own, keeps reading, and closes them when told.
fn clients(addr: std::net::SocketAddr, count: u32, stop: mpsc::Receiver<()>) {
    let waker = Waker::new().unwrap();
    let (mut edge, _) = open(Io::Uring, Config::new(count, waker.clone())).unwrap();
    let mut events = Vec::new();
    let mut opened = 0;
    while stop.try_recv().is_err() {
        while opened < count && edge.stats().operations_now < u64::from(opened) + 64 {
            // A source address has some 28,000 ports for one destination, and finding one takes long when most are taken.
            edge.connect(addr, Some([127, 0, 1, (opened / 8_000) as u8 + 1].into())).unwrap();
            opened += 1;
        }
        turn(&mut *edge, &waker, &mut events);
        events.clear();
    }
}

#[test]
#[ignore = "a measurement, for a release build and an idle machine"]
fn memory_and_batching() {
    let count = connections();
    let nofile = rlimit::raise_nofile().unwrap().soft;
    for io in [Io::Uring, Io::Epoll] {
        if io == Io::Epoll && u64::from(count) + 100 > nofile {
            println!("epoll: skipped, as {nofile} descriptors are too few for {count} connections");
            continue;
        }
        let waker = Waker::new().unwrap();
        let before = live();
        println!("--- {io}: resident before: {}", resident());
        let (mut edge, _) = open(io, Config::new(count, waker.clone())).unwrap();
        let addr = edge.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut events = Vec::with_capacity(4_096);
        turn(&mut *edge, &waker, &mut events);
        println!(
            "{io}: fixed heap {} B with all slots reserved",
            live() - before - 4_096 * size_of::<Event>() as i64
        );
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || clients(addr, count, stopped));
        let mut conns: Vec<Conn> = Vec::with_capacity(count as usize);
        let idle_before = live();
        let (enters, cpu) = (edge.stats().enters, clock::thread_cpu_us());
        while conns.len() < count as usize {
            turn(&mut *edge, &waker, &mut events);
            conns.extend(events.drain(..).filter_map(|event| match event {
                Event::Accepted { conn, .. } => Some(conn),
                _ => None,
            }));
        }
        println!(
            "{io}: {count} accepted, {} calls, {:.1} us CPU each; heap grew by {} B",
            edge.stats().enters - enters,
            (clock::thread_cpu_us() - cpu) as f64 / f64::from(count),
            live() - idle_before,
        );
        println!("{io}: heap per idle connection {:.1} B (slots included)", {
            let own = live() - before - 4_096 * size_of::<Event>() as i64 - i64::from(count) * 8;
            own as f64 / f64::from(count)
        });
        println!("--- {io}: resident with {count}: {}", resident());
        let frame: Rc<[u8]> = Rc::from([7u8; 128]);
        for batch in [64, 1_000] {
            let (enters, cpu) = (edge.stats().enters, clock::thread_cpu_us());
            let mut sent = 0;
            for chunk in conns.chunks(batch) {
                for &conn in chunk {
                    edge.send(conn, Payload::Shared { bytes: Rc::clone(&frame), start: 0 }).unwrap();
                }
                let mut left = chunk.len();
                while left > 0 {
                    turn(&mut *edge, &waker, &mut events);
                    left -= events.drain(..).filter(|event| matches!(event, Event::Sent { .. })).count();
                }
                sent += chunk.len();
            }
            println!(
                "{io}: sends in batches of {batch}: {:.1} calls per 1000, {:.2} us CPU each",
                (edge.stats().enters - enters) as f64 * 1_000.0 / sent as f64,
                (clock::thread_cpu_us() - cpu) as f64 / sent as f64,
            );
        }
        assert_eq!(Rc::strong_count(&frame), 1);
        stop.send(()).unwrap();
        thread.join().unwrap();
        let mut closed = 0;
        while closed < count {
            turn(&mut *edge, &waker, &mut events);
            closed += events.drain(..).filter(|event| matches!(event, Event::Closed { .. })).count() as u32;
        }
        drop(edge);
        let left = live() - before - 4_096 * size_of::<Event>() as i64 - i64::from(count) * 8;
        println!("{io}: heap left after the drop {left} B");
    }
}
