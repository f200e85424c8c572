//! Waking a shard thread: one eventfd that everybody with news for the shard writes.
//!
//! A [`Waker`] is cheap to clone and usable from any thread. Rings write the same eventfd from the kernel, so a
//! shard sleeps on one descriptor alone. It leaves the news itself to queues (see [`crate::mailbox`]).
//!
//! The rule that keeps it right: the receiver drains *first* and looks at its queues *after*. `drain` reads the
//! eventfd before it clears the pending flag, so a wake in between finds the flag set, writes nothing, and its item
//! is found by the look that follows.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// An eventfd with a flag that makes many wakes before a drain one write.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    fd: OwnedFd,
    /// Set by a wake that wrote, cleared by the drain that read it.
    pending: AtomicBool,
}

impl Waker {
    /// A new eventfd, non-blocking and close-on-exec.
    ///
    /// # Errors
    /// The process or the system is out of descriptors.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above just made this descriptor, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { shared: Arc::new(Shared { fd, pending: AtomicBool::new(false) }) })
    }

    /// Makes the descriptor readable, unless an earlier wake waits to be drained.
    pub fn wake(&self) {
        if self.shared.pending.swap(true, Ordering::AcqRel) {
            return;
        }
        let one = 1u64.to_ne_bytes();
        // SAFETY: the buffer is 8 readable bytes on this stack, and the descriptor lives as long as `self`.
        // The one possible error is EAGAIN at a counter of 2^64 - 2, where the descriptor is readable anyway.
        let _ = unsafe { libc::write(self.shared.fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Takes all wakes so far, and returns how often the eventfd was written (0: nothing had been).
    /// Look at the queues after this, never before.
    pub fn drain(&self) -> u64 {
        let mut count = [0u8; 8];
        // SAFETY: the buffer is 8 writable bytes on this stack, and the descriptor lives as long as `self`.
        let read = unsafe { libc::read(self.shared.fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        self.shared.pending.swap(false, Ordering::AcqRel);
        if read == 8 { u64::from_ne_bytes(count) } else { 0 }
    }

    /// The eventfd, to poll for readability.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shared.fd.as_fd()
    }

    /// A duplicate of the eventfd, for a runtime that wants to own what it polls. Whoever reads the duplicate still
    /// calls [`Waker::drain`] after it.
    ///
    /// # Errors
    /// The process or the system is out of descriptors.
    pub fn try_clone_owned_fd(&self) -> io::Result<OwnedFd> {
        self.shared.fd.try_clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_wakes_are_one_write() {
        let waker = Waker::new().unwrap();
        assert_eq!(waker.drain(), 0);
        for _ in 0..100 {
            waker.wake();
        }
        assert_eq!(waker.drain(), 1);
        assert_eq!(waker.drain(), 0);
        waker.wake();
        assert_eq!(waker.drain(), 1, "a drain re-arms the flag");
    }

    #[test]
    fn a_wake_after_a_duplicate_was_read_is_not_lost() {
        let waker = Waker::new().unwrap();
        waker.wake();
        let duplicate = waker.try_clone_owned_fd().unwrap();
        let mut count = [0u8; 8];
        // SAFETY: 8 writable bytes on this stack.
        let read = unsafe { libc::read(duplicate.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
        assert_eq!((read, u64::from_ne_bytes(count)), (8, 1));
        waker.drain();
        waker.wake();
        assert_eq!(waker.drain(), 1);
    }
}
