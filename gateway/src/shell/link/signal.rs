//! Waking a task of the same thread: what channels do between threads, without their atomics.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Raised by one task, awaited by others. A raise before the wait is not lost; each wait takes it.
#[derive(Debug, Default)]
pub(super) struct Signal {
    raised: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Signal {
    /// Wakes all that wait, or the next one to come.
    pub(super) fn raise(&self) {
        self.raised.set(true);
        self.waiting.take().into_iter().for_each(Waker::wake);
    }

    /// Forgets an earlier raise.
    pub(super) fn lower(&self) {
        self.raised.set(false);
    }

    /// Returns when raised, and lowers it.
    pub(super) async fn wait(&self) {
        poll_fn(|context| {
            if self.raised.replace(false) {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}
