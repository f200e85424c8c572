//! The schedule as one load thread sends it: what is due, and one message at a time per sender and conversation.
//!
//! A sender numbers its messages 1, 2, 3, … in each conversation, and the server takes them in that order only. So a
//! message waits until the one before it is answered; its latency counts from when it was due all the same.

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::ledger::Ledger;
use crate::schedule::{Due, Schedule};
use crate::world::World;

/// What senders numbered last, by (client, conversation): the next schedule goes on from there.
pub(super) type Numbers = FxHashMap<(u32, u32), u64>;

/// Messages of one client in one conversation.
#[derive(Debug, Default)]
struct Lane {
    /// Number of the last that was taken.
    taken: u64,
    /// The first of these is under way.
    queue: VecDeque<u32>,
}

/// The state of sending on one load thread.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) schedule: Arc<Schedule>,
    pub(super) start_us: u64,
    pub(super) ledger: Ledger,
    /// Numbers of the messages that this thread sends.
    own: Vec<u32>,
    next: usize,
    lanes: FxHashMap<(u32, u32), Lane>,
    numbers: Numbers,
}

impl Sending {
    /// `is_own` says which senders are on this thread; their numbers go on from `numbers`.
    pub(super) fn new(
        world: &World,
        schedule: Arc<Schedule>,
        start_us: u64,
        numbers: Numbers,
        is_own: impl Fn(u32) -> bool,
    ) -> Self {
        let own = (0u32..).zip(&schedule.messages).filter(|(_, due)| is_own(due.sender)).map(|(n, _)| n);
        Sending {
            start_us,
            ledger: Ledger::new(world, &schedule, start_us),
            own: own.collect(),
            next: 0,
            lanes: FxHashMap::default(),
            numbers,
            schedule,
        }
    }

    /// The books, and the numbers that a later schedule goes on from.
    pub(super) fn finish(self) -> (Ledger, Numbers) {
        let mut numbers = self.numbers;
        numbers.extend(self.lanes.into_iter().map(|(whose, lane)| (whose, lane.taken)));
        (self.ledger, numbers)
    }

    /// Messages that this thread sends.
    pub(super) fn planned(&self) -> usize {
        self.own.len()
    }

    pub(super) fn message(&self, number: u32) -> Option<&Due> {
        self.schedule.messages.get(number as usize)
    }

    /// When the next message is due, in microseconds since boot.
    pub(super) fn next_due_us(&self) -> Option<u64> {
        let number = *self.own.get(self.next)?;
        Some(self.start_us + self.schedule.messages[number as usize].at_us)
    }

    /// The next message, if its time has come.
    pub(super) fn take_due(&mut self, now_us: u64) -> Option<u32> {
        if self.next_due_us()? > now_us {
            return None;
        }
        self.next += 1;
        Some(self.own[self.next - 1])
    }

    /// Gives up what is not due yet; returns how many those are.
    pub(super) fn stop(&mut self) -> usize {
        let left = self.own.len() - self.next;
        self.own.truncate(self.next);
        left
    }

    /// Queues a message on its lane. Returns whether it can go now.
    pub(super) fn enqueue(&mut self, number: u32) -> bool {
        let due = self.schedule.messages[number as usize];
        let whose = (due.sender, due.conversation);
        let taken = || self.numbers.get(&whose).copied().unwrap_or_default();
        let lane = self.lanes.entry(whose).or_insert_with(|| Lane { taken: taken(), ..Lane::default() });
        lane.queue.push_back(number);
        lane.queue.len() == 1
    }

    /// The client_seq of the message that is under way on its lane.
    pub(super) fn client_seq(&self, number: u32) -> u64 {
        let due = self.schedule.messages[number as usize];
        self.lanes.get(&(due.sender, due.conversation)).map_or(0, |lane| lane.taken) + 1
    }

    /// The message under way was answered for good. Returns the next of its lane.
    pub(super) fn settle(&mut self, number: u32, taken: bool) -> Option<u32> {
        let due = self.schedule.messages[number as usize];
        let lane = self.lanes.get_mut(&(due.sender, due.conversation))?;
        if lane.queue.front() == Some(&number) {
            lane.queue.pop_front();
            lane.taken += u64::from(taken);
        }
        lane.queue.front().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_sends_one_at_a_time_and_numbers_what_was_taken() {
        let due = |at_us, sender| Due { at_us, conversation: 0, sender };
        let schedule =
            Arc::new(Schedule { messages: vec![due(0, 1), due(5, 2), due(10, 1), due(20, 1)], nth: 0 });
        let world = World::new(1, 4, true, &[], 0);
        let new = |numbers| Sending::new(&world, Arc::clone(&schedule), 100, numbers, |sender| sender == 1);
        let mut sending = new(Numbers::default());
        assert_eq!((sending.planned(), sending.next_due_us()), (3, Some(100)));
        assert_eq!(sending.take_due(99), None);
        let first = sending.take_due(110).unwrap();
        let second = sending.take_due(110).unwrap();
        assert_eq!((first, second, sending.take_due(110)), (0, 2, None));
        assert!(sending.enqueue(first) && !sending.enqueue(second));
        assert_eq!(sending.client_seq(first), 1);
        assert_eq!(sending.settle(first, false), Some(second));
        assert_eq!(sending.client_seq(second), 1, "a refused message takes no number");
        assert_eq!(sending.settle(second, true), None);
        assert_eq!(sending.client_seq(second), 2);
        assert_eq!(sending.stop(), 1);
        assert_eq!(sending.next_due_us(), None);
        let mut later = new(sending.finish().1);
        assert!(later.enqueue(first));
        assert_eq!(later.client_seq(first), 2, "numbers go on over schedules");
    }
}
