//! A link's transport within the process: two bounded queues to the dispatcher beside us, carrying the same bytes.

use std::sync::Arc;

use bytes::Bytes;
use millrace_edge::mailbox::{Receiver, Sender, mailbox};
use millrace_edge::wake::Waker;

use super::backoff::Backoff;
use super::points::Passing;

/// Connects a shard (gateway id, shard index) to the dispatcher in this process: takes the queue to the gateway, gives
/// the queue to the dispatcher. Either queue closing ends the connection.
pub type LocalConnect = Arc<dyn Fn(u16, u8, Sender<Bytes>) -> Sender<Bytes> + Send + Sync>;

/// Batches from the dispatcher that wait for the pump; the link's window bounds their bytes.
const BATCHES_MAX: usize = 1_024;
/// Pause before a batch that met a full queue is offered again, in microseconds.
const RETRY_US: u64 = 1_000;

/// The two queues, when there are any.
pub(super) struct Pipe {
    connect: LocalConnect,
    identity: (u16, u8),
    waker: Waker,
    ends: Option<(Sender<Bytes>, Receiver<Bytes>)>,
    /// A batch that met a full queue.
    unsent: Option<Bytes>,
    /// When to connect, or to offer the unsent batch, next.
    due_us: Option<u64>,
    backoff: Backoff,
    pub(super) connects: u64,
    pub(super) full: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
}

/// What became of a pipe, in the order in which it happened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PipeEvent {
    Up,
    Bytes(Bytes),
    Down,
}

impl Pipe {
    pub(super) fn new(connect: LocalConnect, identity: (u16, u8), waker: Waker, seed: u64) -> Self {
        Pipe {
            connect,
            identity,
            waker,
            ends: None,
            unsent: None,
            due_us: Some(0),
            backoff: Backoff::new(seed),
            connects: 0,
            full: 0,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    /// What happened next; connects when that is due.
    pub(super) fn next(&mut self, now_us: u64) -> Option<PipeEvent> {
        let Some((to, from)) = &self.ends else {
            if self.due_us.is_none_or(|due| due > now_us) {
                return None;
            }
            let (sender, receiver) = mailbox(BATCHES_MAX, self.waker.clone());
            let to = (self.connect)(self.identity.0, self.identity.1, sender);
            self.ends = Some((to, receiver));
            self.due_us = None;
            self.connects += 1;
            return Some(PipeEvent::Up);
        };
        // Seen closed before the last look into the queue: then nothing more can come.
        let closed = from.is_closed() || to.is_closed();
        if let Some(bytes) = from.recv() {
            self.backoff.reset();
            self.bytes_in += bytes.len() as u64;
            return Some(PipeEvent::Bytes(bytes));
        }
        closed.then(|| {
            self.cut(now_us);
            PipeEvent::Down
        })
    }

    /// Whether [`Pipe::next`] has something at once.
    pub(super) fn has_input(&self) -> bool {
        self.ends.as_ref().is_some_and(|(to, from)| !from.is_empty() || from.is_closed() || to.is_closed())
    }

    /// Drops both queues and connects again later.
    pub(super) fn cut(&mut self, now_us: u64) {
        self.ends = None;
        self.unsent = None;
        self.due_us = Some(now_us + self.backoff.next_us());
    }

    /// Hands on what `transmit` gives, until the queue is full.
    pub(super) fn send(&mut self, now_us: u64, mut transmit: impl FnMut() -> Option<Bytes>) {
        let Some((to, _)) = &self.ends else { return };
        while let Some(batch) = self.unsent.take().or_else(&mut transmit) {
            let length = batch.len() as u64;
            let passing = Passing::begin(&batch);
            if let Err(batch) = to.send(batch) {
                self.unsent = Some(batch);
                self.full += 1;
                self.due_us = Some(now_us + RETRY_US);
                return;
            }
            passing.end();
            self.bytes_out += length;
        }
        self.due_us = None;
    }

    pub(super) fn is_up(&self) -> bool {
        self.ends.is_some()
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.unsent.is_none() && self.ends.as_ref().is_none_or(|(to, _)| to.is_empty())
    }

    pub(super) fn due_us(&self) -> Option<u64> {
        self.due_us
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// What the other side holds, per connection.
    type Far = Arc<Mutex<Vec<(Sender<Bytes>, Receiver<Bytes>)>>>;

    fn pipe(capacity: usize) -> (Pipe, Far) {
        let far = Far::default();
        let connect: LocalConnect = Arc::new({
            let far = Arc::clone(&far);
            move |gateway, shard, to_gateway| {
                assert_eq!((gateway, shard), (7, 3));
                let (sender, receiver) = mailbox(capacity, Waker::new().unwrap());
                far.lock().unwrap().push((to_gateway, receiver));
                sender
            }
        });
        (Pipe::new(connect, (7, 3), Waker::new().unwrap(), 1), far)
    }

    #[test]
    fn bytes_go_both_ways_and_a_full_queue_is_tried_again() {
        let (mut pipe, far) = pipe(2);
        assert_eq!(pipe.next(10), Some(PipeEvent::Up));
        assert_eq!(pipe.next(10), None);
        let mut batches: Vec<Bytes> = (0..4u8).rev().map(|n| Bytes::from(vec![n])).collect();
        pipe.send(10, || batches.pop());
        assert_eq!((batches.len(), pipe.full, pipe.due_us()), (1, 1, Some(10 + RETRY_US)));
        let take = || far.lock().unwrap()[0].1.recv().map(|bytes| bytes[0]);
        assert_eq!((take(), take(), take()), (Some(0), Some(1), None));
        pipe.send(2_000, || batches.pop());
        assert_eq!((take(), take(), take()), (Some(2), Some(3), None));
        assert!(pipe.is_flushed() && pipe.due_us().is_none());
        far.lock().unwrap()[0].0.send(Bytes::from_static(b"down")).unwrap();
        assert!(pipe.has_input());
        assert_eq!(pipe.next(2_000), Some(PipeEvent::Bytes(Bytes::from_static(b"down"))));
    }

    #[test]
    fn a_lost_dispatcher_is_called_again_after_what_it_said_was_read() {
        let (mut pipe, far) = pipe(2);
        assert_eq!(pipe.next(0), Some(PipeEvent::Up));
        let (to_gateway, from_gateway) = far.lock().unwrap().remove(0);
        to_gateway.send(Bytes::from_static(b"last words")).unwrap();
        drop((to_gateway, from_gateway));
        assert_eq!(pipe.next(0), Some(PipeEvent::Bytes(Bytes::from_static(b"last words"))));
        assert_eq!(pipe.next(0), Some(PipeEvent::Down));
        assert_eq!(pipe.next(0), None, "not at once");
        assert_eq!(pipe.next(pipe.due_us().unwrap()), Some(PipeEvent::Up));
        assert_eq!(pipe.connects, 2);
    }
}
