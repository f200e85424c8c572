//! Waking a task of the same thread: what channels do between threads, without their atomics.
//!
//! The rule: a wait holds one place while it lasts and gives it back when it is dropped, so that waiting again and again
//! (in a select, say) leaves nothing behind. Wakers of one task can't be told from others' by comparing them: the
//! runtime's have a table of their own in each unit of code.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Raised by one task, awaited by others. A raise before the wait is not lost; each wait takes it.
#[derive(Debug, Default)]
pub(super) struct Signal {
    raised: Cell<bool>,
    /// By the place of each wait.
    waiting: RefCell<Vec<Place>>,
}

#[derive(Debug, Default)]
struct Place {
    taken: bool,
    waker: Option<Waker>,
}

/// The place of one wait.
struct Wait<'a> {
    signal: &'a Signal,
    place: usize,
}

impl Signal {
    /// Wakes all that wait, or the next one to come.
    pub(super) fn raise(&self) {
        self.raised.set(true);
        let wakers: Vec<Waker> =
            self.waiting.borrow_mut().iter_mut().filter_map(|place| place.waker.take()).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Forgets an earlier raise.
    pub(super) fn lower(&self) {
        self.raised.set(false);
    }

    /// Returns when raised, and lowers it.
    pub(super) async fn wait(&self) {
        let wait = Wait { signal: self, place: self.take_place() };
        poll_fn(|context| {
            if self.raised.replace(false) {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut()[wait.place].waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn take_place(&self) -> usize {
        let mut waiting = self.waiting.borrow_mut();
        let place = waiting.iter().position(|place| !place.taken).unwrap_or(waiting.len());
        if place == waiting.len() {
            waiting.push(Place::default());
        }
        waiting[place].taken = true;
        place
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.signal.waiting.borrow_mut()[self.place] = Place::default();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::{Context, Wake};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn waits_that_are_given_up_leave_nothing_behind() {
        let signal = Signal::default();
        for _ in 0..100 {
            // Another waker each time, as far as a comparison can tell.
            let count = Arc::new(Count::default());
            let waker = Waker::from(Arc::clone(&count));
            assert!(pin!(signal.wait()).as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            drop(waker);
            assert_eq!(Arc::strong_count(&count), 1, "no waker is kept");
        }
        assert_eq!(signal.waiting.borrow().len(), 1);
    }

    #[test]
    fn all_that_wait_are_woken_and_one_takes_it() {
        let signal = Signal::default();
        let counts = [Arc::new(Count::default()), Arc::new(Count::default())];
        let wakers = counts.clone().map(Waker::from);
        let (mut first, mut second) = (pin!(signal.wait()), pin!(signal.wait()));
        assert!(first.as_mut().poll(&mut Context::from_waker(&wakers[0])).is_pending());
        assert!(second.as_mut().poll(&mut Context::from_waker(&wakers[1])).is_pending());
        signal.raise();
        assert_eq!(counts.map(|count| count.0.load(Relaxed)), [1, 1]);
        assert!(first.as_mut().poll(&mut Context::from_waker(&wakers[0])).is_ready());
        assert!(second.as_mut().poll(&mut Context::from_waker(&wakers[1])).is_pending());
        signal.raise();
        signal.lower();
        assert!(second.as_mut().poll(&mut Context::from_waker(&wakers[1])).is_pending(), "it was lowered");
    }
}
