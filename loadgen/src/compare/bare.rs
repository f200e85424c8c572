//! The other floor: a loop of send(2) over blocking sockets, one after the other, with nothing else around it.
//!
//! It takes the flags and tasks of [`crate::floor`], and sends the same frames at the same times.

use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use millrace_edge::clock::boot_us;
use millrace_edge::{affinity, memory, rlimit};

use crate::child;
use crate::floor::{FloorArgs, frame, parse};

type Streams = Arc<Mutex<Vec<TcpStream>>>;

/// Nobody who holds it can panic in the middle of a change.
fn lock(streams: &Streams) -> MutexGuard<'_, Vec<TcpStream>> {
    streams.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Accepts, and sends when told to. Ends with its parent.
pub fn serve(args: FloorArgs) -> io::Result<()> {
    let _ = memory::use_small_pages();
    if let Some(cpu) = args.cpus.first().and_then(|cpu| cpu.parse().ok()) {
        affinity::pin_current_thread(cpu)?;
    }
    rlimit::raise_nofile()?;
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let streams: Streams = Arc::default();
    let (all, payload_bytes) = (Arc::clone(&streams), args.payload_bytes);
    let heard = move |line: String| {
        let Some(task) = parse(&line) else { return };
        let mut streams = lock(&all);
        for round in 0..task.rounds {
            let due_us = task.start_us + u64::from(round) * task.gap_us;
            thread::sleep(Duration::from_micros(due_us.saturating_sub(boot_us())));
            let frame = frame(task.run, round, due_us, payload_bytes);
            let bytes = &frame.bytes()[frame.tcp_start()..];
            streams.retain_mut(|stream| stream.write_all(bytes).is_ok());
        }
    };
    let scratch = args.scratch;
    child::end_with_parent(heard, move |_| {
        let _ = std::fs::remove_dir_all(&scratch);
    });
    println!("listening tcp={}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        lock(&streams).push(stream);
    }
}
