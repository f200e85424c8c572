//! The runtime of a shard's thread, and waiting for a waker in it.
//!
//! monoio can only own sockets, so a duplicate of the waker's eventfd is dressed as one: it is polled, never read or
//! written. The rule that keeps it right: [`Waker::drain`] after every wake, the queues after that.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;

use millrace_edge::wake::Waker;
use monoio::net::UnixStream;

/// Runs a future on this thread; with io_uring where it is allowed, else with epoll.
///
/// # Errors
/// The system has no descriptors or memory for a runtime.
pub(crate) fn block_on(future: impl Future<Output = ()>) -> io::Result<()> {
    let mut runtime = monoio::RuntimeBuilder::<monoio::FusionDriver>::new().enable_timer().build()?;
    runtime.block_on(future);
    // Dropping it would free buffers that its ring may still write to: the process is about to end, or keeps a few
    // hundred kilobytes.
    std::mem::forget(runtime);
    Ok(())
}

/// Calls `turn` after each wake of `waker`, until it returns false.
///
/// # Errors
/// The eventfd can't be polled.
pub(crate) async fn pump(waker: Waker, mut turn: impl FnMut() -> bool) -> io::Result<()> {
    let eventfd = UnixStream::from_std(StdUnixStream::from(waker.try_clone_owned_fd()?))?;
    loop {
        eventfd.readable(false).await?;
        waker.drain();
        if !turn() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use millrace_edge::mailbox::mailbox;
    use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

    use super::*;

    const ITEMS: u32 = 20_000;

    /// Items from two other threads, at all speeds, and a timer beside them: everything arrives, whoever sleeps when.
    async fn every_wake_arrives() {
        let waker = Waker::new().unwrap();
        let (sender, receiver) = mailbox::<u32>(64, waker.clone());
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    for item in 0..ITEMS {
                        while sender.send(item).is_err() {
                            std::thread::yield_now();
                        }
                        // Now and then long enough for the pump to fall asleep.
                        if item % 997 == 0 {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                    }
                })
            })
            .collect();
        let ticks = std::rc::Rc::new(Cell::new(0));
        let ticking = ticks.clone();
        monoio::spawn(async move {
            loop {
                monoio::time::sleep(Duration::from_millis(1)).await;
                ticking.set(ticking.get() + 1);
            }
        });
        let mut taken = 0;
        let pumping = pump(waker.clone(), || {
            // Bounded turns; the rest after the next wake, which the turn gives itself.
            for _ in 0..16 {
                match receiver.recv() {
                    Some(_) => taken += 1,
                    None => return taken < 2 * ITEMS,
                }
            }
            waker.wake();
            true
        });
        monoio::time::timeout(Duration::from_secs(30), pumping).await.expect("a wake was lost").unwrap();
        assert_eq!(taken, 2 * ITEMS);
        assert!(ticks.get() > 0, "timers starved");
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn wakes_arrive_with_epoll() {
        RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().unwrap().block_on(every_wake_arrives());
    }

    #[test]
    fn wakes_arrive_with_io_uring() {
        if monoio::utils::detect_uring() {
            RuntimeBuilder::<IoUringDriver>::new()
                .enable_timer()
                .build()
                .unwrap()
                .block_on(every_wake_arrives());
        }
    }
}
