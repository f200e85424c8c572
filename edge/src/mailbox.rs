//! Bounded queues between threads, with a wake at the receiving end.
//!
//! [`mailbox`] gives a [`Sender`] (clonable, any thread) and a [`Receiver`]. A full queue hands the item back, and
//! the sender decides what that means; nothing ever blocks. One [`Waker`] may serve many mailboxes of a thread.
//!
//! The rule that keeps it right: an item is pushed before the wake, and the receiver drains its waker before it
//! looks here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;

use crate::wake::Waker;

#[derive(Debug)]
struct Shared<T> {
    queue: ArrayQueue<T>,
    waker: Waker,
    senders: AtomicUsize,
    receiver_gone: AtomicBool,
}

/// The sending end.
#[derive(Debug)]
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

/// The receiving end.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

/// A queue of at most `capacity` items (at least 1) whose sends wake `waker`.
pub fn mailbox<T: Send>(capacity: usize, waker: Waker) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(capacity.max(1)),
        waker,
        senders: AtomicUsize::new(1),
        receiver_gone: AtomicBool::new(false),
    });
    (Sender { shared: Arc::clone(&shared) }, Receiver { shared })
}

impl<T: Send> Sender<T> {
    /// Queues an item and wakes the receiver.
    ///
    /// # Errors
    /// The item itself, when the queue is full or the receiver is gone. (An item sent at the very moment the
    /// receiver goes may be accepted, and is dropped with the queue.)
    pub fn send(&self, item: T) -> Result<(), T> {
        if self.is_closed() {
            return Err(item);
        }
        self.shared.queue.push(item)?;
        self.shared.waker.wake();
        Ok(())
    }
}

impl<T> Sender<T> {
    /// Items queued now.
    pub fn len(&self) -> usize {
        self.shared.queue.len()
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.shared.queue.is_empty()
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.shared.receiver_gone.load(Ordering::Acquire)
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            // The receiver may sleep; that nobody is left is news too.
            self.shared.waker.wake();
        }
    }
}

impl<T> Receiver<T> {
    /// Takes the oldest item.
    pub fn recv(&self) -> Option<T> {
        self.shared.queue.pop()
    }

    /// Items queued now.
    pub fn len(&self) -> usize {
        self.shared.queue.len()
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.shared.queue.is_empty()
    }

    /// Whether all senders are gone. Items may still be queued: receive until `None` after seeing this.
    pub fn is_closed(&self) -> bool {
        self.shared.senders.load(Ordering::Acquire) == 0
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receiver_gone.store(true, Ordering::Release);
        while self.shared.queue.pop().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_and_closed_hand_the_item_back() {
        let waker = Waker::new().unwrap();
        let (sender, receiver) = mailbox::<u32>(2, waker.clone());
        assert_eq!(sender.send(1), Ok(()));
        assert_eq!(sender.send(2), Ok(()));
        assert_eq!(sender.send(3), Err(3), "full");
        assert_eq!(waker.drain(), 1, "two sends, one wake");
        assert_eq!((receiver.recv(), receiver.len()), (Some(1), 1));
        drop(receiver);
        assert!(sender.is_closed());
        assert_eq!(sender.send(4), Err(4), "closed");
    }

    #[test]
    fn the_last_sender_wakes_the_receiver() {
        let waker = Waker::new().unwrap();
        let (sender, receiver) = mailbox::<u32>(2, waker.clone());
        let second = sender.clone();
        drop(sender);
        assert!(!receiver.is_closed());
        assert_eq!(waker.drain(), 0);
        drop(second);
        assert!(receiver.is_closed());
        assert_eq!(waker.drain(), 1);
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        const ITEMS: u32 = 20_000;
        let waker = Waker::new().unwrap();
        let (sender, receiver) = mailbox::<u32>(64, waker.clone());
        let thread = std::thread::spawn(move || {
            for item in 0..ITEMS {
                let mut item = item;
                while let Err(back) = sender.send(item) {
                    item = back;
                    std::thread::yield_now();
                }
            }
        });
        let mut next = 0;
        while next < ITEMS {
            assert!(crate::wait::readable(waker.fd(), std::time::Duration::from_secs(20)), "a wake was lost");
            waker.drain();
            while let Some(item) = receiver.recv() {
                assert_eq!(item, next);
                next += 1;
            }
        }
        thread.join().unwrap();
    }
}
