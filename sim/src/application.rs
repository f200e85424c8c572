//! What a device's application does with what it is told: it takes one event after the other, in order, some of them late.
//!
//! The rule that keeps it right: what was told and not taken is gone with the process; what was taken was shown.

use std::collections::VecDeque;

use millrace_client::Event;

use crate::random::Random;

/// See the module's head.
#[derive(Debug, Default)]
pub struct Application {
    /// Told and not taken: when it gets to it, number, event.
    queue: VecDeque<(u64, u64, Event)>,
    /// Time for one event at most, us.
    pause_us: u64,
    busy_until_us: u64,
}

impl Application {
    /// One that needs so long for an event at most.
    pub fn new(pause_us: u64) -> Self {
        Application { pause_us, ..Application::default() }
    }

    /// It is told something.
    pub fn told(&mut self, now_us: u64, number: u64, event: Event, random: &mut Random) {
        let before_us = self.queue.back().map_or(now_us, |(at_us, ..)| *at_us).max(self.busy_until_us);
        let pause_us = if self.pause_us > 0 { random.below(self.pause_us) } else { 0 };
        self.queue.push_back((before_us.max(now_us) + pause_us, number, event));
    }

    /// The next thing that it takes by now.
    pub fn next(&mut self, now_us: u64) -> Option<(u64, Event)> {
        let (at_us, ..) = self.queue.front()?;
        if *at_us > now_us {
            return None;
        }
        self.queue.pop_front().map(|(_, number, event)| (number, event))
    }

    /// When it takes the next thing.
    pub fn next_us(&self) -> Option<u64> {
        self.queue.front().map(|(at_us, ..)| *at_us)
    }

    /// It takes nothing for a while.
    pub fn be_busy(&mut self, until_us: u64) {
        self.busy_until_us = self.busy_until_us.max(until_us);
        for (at_us, ..) in &mut self.queue {
            *at_us = (*at_us).max(until_us);
        }
    }

    /// From now on it takes everything at once.
    pub fn hurry(&mut self, now_us: u64) {
        self.pause_us = 0;
        for (at_us, ..) in &mut self.queue {
            *at_us = (*at_us).min(self.busy_until_us.max(now_us));
        }
    }

    /// Nothing waits to be taken.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Its process is gone.
    pub fn forget(&mut self) {
        self.queue.clear();
        self.busy_until_us = 0;
    }
}
