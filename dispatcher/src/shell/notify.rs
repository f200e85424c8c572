//! Waking one task from another on the same thread, and timers that only wake the pump.
//!
//! Both exist because a shard's pump waits for its eventfd alone. The rule that keeps them right: a notification sets
//! its flag before it wakes, and a waiter takes the flag before it sleeps.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker as TaskWaker};

/// A flag that one task waits for and others of the same thread set.
#[derive(Debug, Default)]
pub(crate) struct Notify {
    set: Cell<bool>,
    waiter: RefCell<Option<TaskWaker>>,
}

impl Notify {
    /// Sets the flag and wakes the waiter, if there is one.
    pub(crate) fn notify(&self) {
        self.set.set(true);
        let waiter = self.waiter.borrow_mut().take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    /// Waits until the flag is set, and clears it. One task at a time.
    pub(crate) async fn notified(&self) {
        poll_fn(|cx| {
            if self.set.take() {
                return Poll::Ready(());
            }
            *self.waiter.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// The timers that are running, earliest last. A deadline starts a timer only if none fires before it, so that a
/// deadline that moves costs nothing: what fires too early makes the pump look again.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    running_us: Vec<u64>,
}

impl Timers {
    /// Whether a timer must be started for this deadline. It then counts as running.
    pub(crate) fn arm(&mut self, deadline_us: u64) -> bool {
        let needed = self.running_us.last().is_none_or(|earliest| deadline_us < *earliest);
        if needed {
            self.running_us.push(deadline_us);
        }
        needed
    }

    /// That timer fired.
    pub(crate) fn fired(&mut self, deadline_us: u64) {
        self.running_us.retain(|running| *running != deadline_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_earlier_deadline_starts_a_timer() {
        let mut timers = Timers::default();
        assert!(timers.arm(100));
        assert!(!timers.arm(100));
        assert!(!timers.arm(200), "the one at 100 makes the pump look again");
        assert!(timers.arm(50));
        timers.fired(50);
        assert!(!timers.arm(120));
        assert!(timers.arm(90));
        timers.fired(90);
        timers.fired(100);
        assert!(timers.arm(200));
    }
}
