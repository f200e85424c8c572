//! Awaiting, on a monoio thread, that somebody else's descriptor becomes readable.
//!
//! The runtime polls only what it owns, so it gets a duplicate, dressed as a Unix stream: nothing is ever read from
//! it. The wake may be spurious, and news may be left when it returns: whoever is woken drains its waker, runs a
//! turn, and awaits again.
//!
//! The rule that keeps it right: a task that always has more to do must let the runtime look at its timers and sockets
//! in between, and that happens only when the runtime parks. On epoll a wait on something readable returns without
//! parking; [`Pause`] never does.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::BorrowedFd;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use millrace_edge::wake::Waker;
use monoio::net::UnixStream;

/// A descriptor that is polled and never read.
#[derive(Debug)]
pub struct Readable {
    stream: UnixStream,
}

impl Readable {
    /// Polls a duplicate of `fd`. Must be called on a runtime's thread.
    ///
    /// # Errors
    /// Out of descriptors, or the descriptor can't be polled.
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let stream = std::os::unix::net::UnixStream::from(fd.try_clone_to_owned()?);
        Ok(Readable { stream: UnixStream::from_std(stream)? })
    }

    /// Returns when the descriptor is readable, at once if it is.
    ///
    /// # Errors
    /// The descriptor can't be polled any more.
    pub async fn wait(&self) -> io::Result<()> {
        // Not relaxed: on epoll the runtime's own idea of readiness is stale after each drain; this asks the kernel.
        self.stream.readable(false).await
    }
}

/// Lets the runtime park once, and comes back at once: an eventfd of its own, written only when the runtime already
/// waits for it.
#[derive(Debug)]
pub struct Pause {
    waker: Waker,
    readable: Readable,
}

impl Pause {
    /// Must be called on a runtime's thread.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> io::Result<Self> {
        let waker = Waker::new()?;
        let readable = Readable::new(waker.fd())?;
        Ok(Pause { waker, readable })
    }

    /// Returns after the runtime has looked at everything else.
    ///
    /// # Errors
    /// The descriptor can't be polled any more.
    pub async fn pass(&self) -> io::Result<()> {
        self.waker.drain();
        let mut wait = pin!(self.readable.wait());
        let mut written = false;
        poll_fn(|context| {
            let polled = wait.as_mut().poll(context);
            if polled.is_pending() && !written {
                // Drained, so the poll found nothing and the runtime waits for the next edge: here it is.
                written = true;
                self.waker.wake();
            }
            polled
        })
        .await
    }
}

/// Why a [`wait`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The descriptor is readable.
    Readable {
        /// False if it was so at once: the runtime has not parked, and a [`Pause`] is due.
        slept: bool,
    },
    /// The time is over; the same wait may go on.
    Deadline,
}

/// Sleeps until `woken` (a [`Readable::wait`]) is done, or `sleep_us` microseconds are over.
///
/// # Errors
/// Those of `woken`.
pub async fn wait(
    mut woken: Pin<&mut impl Future<Output = io::Result<()>>>,
    sleep_us: u64,
) -> io::Result<Wake> {
    // Rounded up to the timer's resolution, so that a deadline is over when it is looked at.
    let mut sleep = pin!(monoio::time::sleep(Duration::from_millis(sleep_us.div_ceil(1_000))));
    let mut slept = false;
    poll_fn(|context| {
        if let Poll::Ready(result) = woken.as_mut().poll(context) {
            return Poll::Ready(result.map(|()| Wake::Readable { slept }));
        }
        if sleep.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(Wake::Deadline));
        }
        slept = true;
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Instant;

    use millrace_edge::mailbox::mailbox;
    use millrace_edge::wake::Waker;

    use super::*;

    const ITEMS: u64 = 20_000;

    fn on_uring(future: impl Future<Output = ()>) {
        let runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().enable_timer().build();
        match runtime {
            Ok(mut runtime) => runtime.block_on(future),
            // A machine without io_uring: the other driver's run of the same test is what counts there.
            Err(error) => eprintln!("skipped, no io_uring: {error}"),
        }
    }

    fn on_epoll(future: impl Future<Output = ()>) {
        let runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().enable_timer().build();
        runtime.unwrap().block_on(future);
    }

    /// Items from another thread, now in bursts, now one by one with pauses: every wake must arrive.
    async fn all_items_arrive() {
        let waker = Waker::new().unwrap();
        let (sender, receiver) = mailbox::<u64>(64, waker.clone());
        let taken = Arc::new(AtomicU64::new(0));
        let thread = std::thread::spawn({
            let taken = Arc::clone(&taken);
            move || {
                for item in 0..ITEMS {
                    // Every 500th waits until all before it were taken: the receiver is about to sleep, or sleeps.
                    while item % 500 == 0 && taken.load(Ordering::Acquire) < item {
                        std::thread::yield_now();
                    }
                    while sender.send(item).is_err() {
                        std::thread::yield_now();
                    }
                }
            }
        });
        let readable = Readable::new(waker.fd()).unwrap();
        let mut next = 0;
        while next < ITEMS {
            let wait = monoio::time::timeout(Duration::from_secs(20), readable.wait()).await;
            wait.expect("a wake was lost").unwrap();
            waker.drain();
            while let Some(item) = receiver.recv() {
                assert_eq!(item, next);
                next += 1;
            }
            taken.store(next, Ordering::Release);
        }
        thread.join().unwrap();
    }

    /// A task that always has more to do pauses, and timers still fire meanwhile.
    async fn pauses_leave_time_for_timers() {
        let pause = Pause::new().unwrap();
        let fired = Rc::new(Cell::new(false));
        let told = Rc::clone(&fired);
        monoio::spawn(async move {
            monoio::time::sleep(Duration::from_millis(100)).await;
            told.set(true);
        });
        let (begun, mut passes) = (Instant::now(), 0);
        while !fired.get() {
            assert!(begun.elapsed() < Duration::from_secs(20), "the timer starved");
            pause.pass().await.unwrap();
            passes += 1;
        }
        // Thousands on an idle machine; on a busy one still more than ticks of a millisecond would allow.
        assert!(passes > 100, "a pause takes microseconds, not a tick: {passes}");
    }

    /// After a drain, the next wait sleeps: no spin on readiness that is over.
    async fn a_drained_descriptor_sleeps() {
        let waker = Waker::new().unwrap();
        let readable = Readable::new(waker.fd()).unwrap();
        for _ in 0..3 {
            waker.wake();
            readable.wait().await.unwrap();
            waker.drain();
            assert!(monoio::time::timeout(Duration::from_millis(20), readable.wait()).await.is_err());
        }
    }

    /// The same pending wait goes on over several deadlines, as in the pump.
    async fn a_wait_survives_deadlines() {
        let waker = Waker::new().unwrap();
        let readable = Readable::new(waker.fd()).unwrap();
        let mut wait = std::pin::pin!(readable.wait());
        for _ in 0..5 {
            assert!(monoio::time::timeout(Duration::from_millis(5), wait.as_mut()).await.is_err());
        }
        waker.wake();
        wait.await.unwrap();
    }

    #[test]
    fn both_drivers_wake_reliably() {
        on_uring(all_items_arrive());
        on_epoll(all_items_arrive());
    }

    #[test]
    fn both_drivers_keep_their_timers() {
        on_uring(pauses_leave_time_for_timers());
        on_epoll(pauses_leave_time_for_timers());
    }

    #[test]
    fn both_drivers_sleep_after_a_drain() {
        on_uring(a_drained_descriptor_sleeps());
        on_epoll(a_drained_descriptor_sleeps());
    }

    #[test]
    fn both_drivers_keep_a_wait_over_deadlines() {
        on_uring(a_wait_survives_deadlines());
        on_epoll(a_wait_survives_deadlines());
    }
}
