//! Sleeping until a descriptor is readable, for threads without a runtime: tests, and the load generator.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::Edge;
use crate::wake::Waker;

/// Sleeps until `fd` is readable or `timeout` is over. Returns whether it is readable.
pub fn readable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that a wait of less than a millisecond does not become a spin.
        let millis = left.as_micros().div_ceil(1_000).min(i32::MAX as u128) as i32;
        let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd on this stack, and the descriptor is borrowed for the call.
        let ready = unsafe { libc::poll(&mut poll, 1, millis) };
        if ready >= 0 {
            return ready > 0;
        }
        // Interrupted by a signal: sleep for what is left.
    }
}

/// Sleeps until the edge has work, somebody wakes `waker`, or `timeout` is over; then drains the waker. Run one turn
/// after it, whatever it returns. Returns false when only the time was up.
pub fn wait(edge: &dyn Edge, waker: &Waker, timeout: Duration) -> bool {
    let woken = readable(edge.wait_fd(), timeout);
    waker.drain();
    woken
}
