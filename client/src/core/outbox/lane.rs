//! The messages of one conversation that wait or are under way, and the numbers that they have.

use std::collections::VecDeque;

use super::{IN_FLIGHT_MAX, Settled};
use crate::core::event::Outgoing;
use crate::error::SendError;

#[derive(Debug)]
pub(super) struct Pending<T> {
    /// Stays the same whatever number the message gets.
    pub(super) name: u64,
    pub(super) client_seq: u64,
    pub(super) message: Outgoing,
    pub(super) deadline_ms: u64,
    /// The request that carries it now.
    pub(super) request: Option<u64>,
    /// It was sent under this number before, and what became of that is not known.
    pub(super) doubtful: bool,
    /// A copy was sent on an earlier connection, and never answered: it may be taken at any time.
    pub(super) astray: bool,
    /// New streams that it needed because the numbers on the old one were not the server's.
    pub(super) streams: u32,
    pub(super) done: T,
}

impl<T> Pending<T> {
    /// What is under way is asked for no more.
    fn recall(&mut self) {
        self.doubtful |= self.request.take().is_some();
    }
}

/// Numbers from `from` on wait until everything below is settled and everything under way is answered.
#[derive(Debug)]
struct Barrier {
    from: u64,
    /// The stream to take then, if one is needed.
    stream: u64,
    /// One is needed, whoever waits.
    renews: bool,
    /// No copy of what waits is taken on the old stream any more.
    is_dead: bool,
}

#[derive(Debug)]
pub(super) struct Lane<T> {
    pub(super) stream: u64,
    next_client_seq: u64,
    pub(super) pending: VecDeque<Pending<T>>,
    pub(super) not_before_ms: u64,
    /// Requests that were not answered on this connection.
    unanswered: usize,
    /// A number of this stream was given up, and may be taken yet: then so may copies of those behind it.
    gap: bool,
    barrier: Option<Barrier>,
}

impl<T> Lane<T> {
    pub(super) fn new(stream: u64) -> Self {
        Lane {
            stream,
            next_client_seq: 1,
            pending: VecDeque::new(),
            not_before_ms: 0,
            unanswered: 0,
            gap: false,
            barrier: None,
        }
    }

    pub(super) fn push(&mut self, name: u64, message: Outgoing, deadline_ms: u64, done: T) {
        self.pending.push_back(Pending {
            name,
            client_seq: self.next_client_seq,
            message,
            deadline_ms,
            request: None,
            doubtful: false,
            astray: false,
            streams: 0,
            done,
        });
        self.next_client_seq += 1;
    }

    /// The message that may be sent now.
    pub(super) fn sendable(&self, now_ms: u64) -> Option<usize> {
        if self.not_before_ms > now_ms {
            return None;
        }
        let index = self.pending.iter().take(IN_FLIGHT_MAX).position(|pending| pending.request.is_none())?;
        (!self.is_behind(index)).then_some(index)
    }

    /// This message goes out as request `id`.
    pub(super) fn sent(&mut self, index: usize, id: u64) -> &Pending<T> {
        self.unanswered += 1;
        let pending = &mut self.pending[index];
        pending.request = Some(id);
        pending
    }

    /// Whether nothing waits, and nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.unanswered == 0
    }

    /// When something may be sent that waits for its time alone.
    pub(super) fn retry_ms(&self) -> Option<u64> {
        self.sendable(u64::MAX).map(|_| self.not_before_ms)
    }

    /// A request was answered, however.
    pub(super) fn answered(&mut self) {
        self.unanswered = self.unanswered.saturating_sub(1);
    }

    /// Whether a message waits behind the barrier.
    pub(super) fn is_behind(&self, index: usize) -> bool {
        is_behind(&self.barrier, &self.pending[index])
    }

    /// Whether this message may have been taken, or may be yet.
    pub(super) fn may_be_taken(&self, index: usize) -> bool {
        may_be_taken(&self.barrier, &self.pending[index])
    }

    /// This message was not taken this time; `doubtful`: or that is not known. Numbers from `index` on are sent again.
    /// Those behind the barrier wait for their answers before.
    pub(super) fn again(&mut self, index: usize, doubtful: bool) {
        self.pending[index].doubtful |= doubtful;
        let from = self.barrier.as_ref().map_or(u64::MAX, |barrier| barrier.from);
        let rewound = self.pending.iter_mut().skip(index).filter(|pending| pending.client_seq < from);
        rewound.for_each(Pending::recall);
    }

    /// A new stream is needed. `is_dead`: the server takes nothing more of the old one.
    pub(super) fn restart(&mut self, stream: u64, is_dead: bool) {
        self.barrier = Some(Barrier { from: 0, stream, renews: true, is_dead: is_dead && !self.gap });
    }

    /// Takes out a message whose number the server did not use, and never saw but once. As the server takes nothing out
    /// of order, it takes no copy of those behind, wherever one is, until that number is given to another message: that
    /// waits for the barrier.
    pub(super) fn withdraw(&mut self, index: usize, stream: u64) -> Option<Pending<T>> {
        let gone = self.pending.remove(index)?;
        for pending in self.pending.iter_mut().skip(index) {
            pending.doubtful |= std::mem::take(&mut pending.astray);
        }
        match &mut self.barrier {
            Some(barrier) => {
                barrier.from = barrier.from.min(gone.client_seq);
                // A copy of it may be about, which nothing would hold back once the number before it is given away.
                barrier.renews |= gone.doubtful;
            }
            None => {
                self.barrier = Some(Barrier { from: gone.client_seq, stream, renews: false, is_dead: true });
            }
        }
        Some(gone)
    }

    /// Takes out a message whose number may be at the server.
    pub(super) fn drop(&mut self, index: usize) -> Option<Pending<T>> {
        let behind = self.is_behind(index);
        let gone = self.pending.remove(index)?;
        if gone.doubtful || gone.request.is_some() {
            if let Some(barrier) = self.barrier.as_mut().filter(|_| behind) {
                barrier.renews = true;
            }
            self.gap |= !behind || self.barrier.as_ref().is_some_and(|barrier| barrier.from == 0);
        }
        Some(gone)
    }

    /// Opens the barrier if there is nothing left to wait for: who waited moves up, on the old stream if all copies are
    /// known not to have been taken, else on a new one. What may be taken on the old stream yet does not move there.
    pub(super) fn open(&mut self) -> Vec<Settled<T>> {
        let below = self.pending.front().is_some_and(|_| !self.is_behind(0));
        let barrier = self.barrier.take_if(|_| self.unanswered == 0 && !below);
        let Some(Barrier { from, stream, renews, .. }) = &barrier else { return Vec::new() };
        let mut first = *from;
        if *renews || self.pending.iter().any(|pending| pending.doubtful) {
            (self.stream, self.gap, first) = (*stream, false, 1);
        }
        let (stay, go): (VecDeque<_>, _) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| may_be_taken(&barrier, pending));
        self.pending = go;
        for (client_seq, pending) in (first..).zip(&mut self.pending) {
            pending.client_seq = client_seq;
            (pending.request, pending.doubtful) = (None, false);
            pending.streams += u32::from(*from == 0);
        }
        self.next_client_seq = first + self.pending.len() as u64;
        stay.into_iter().map(|pending| (pending.done, Err(SendError::Unknown))).collect()
    }

    /// The connection is gone. `lost`: whether this message's request was never answered.
    pub(super) fn disconnected(&mut self, lost: impl Fn(u64) -> bool) {
        // Without its answers the old stream is asked again.
        self.barrier.take_if(|barrier| barrier.from == 0);
        (self.not_before_ms, self.unanswered) = (0, 0);
        for index in 0..self.pending.len() {
            let behind = self.is_behind(index);
            let pending = &mut self.pending[index];
            pending.recall();
            if lost(pending.name) {
                (pending.doubtful, pending.astray) = (true, !behind);
            }
        }
        let unknown = self.open();
        debug_assert!(unknown.is_empty(), "of what waits at a hole nothing is taken");
    }
}

fn is_behind<T>(barrier: &Option<Barrier>, pending: &Pending<T>) -> bool {
    barrier.as_ref().is_some_and(|barrier| pending.client_seq >= barrier.from)
}

fn may_be_taken<T>(barrier: &Option<Barrier>, pending: &Pending<T>) -> bool {
    let is_dead = is_behind(barrier, pending) && barrier.as_ref().is_some_and(|barrier| barrier.is_dead);
    pending.astray || (pending.doubtful && !is_dead)
}
