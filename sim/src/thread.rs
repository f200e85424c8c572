//! One thread of a process: what came for it, what its core wants done, when it turns; and the fuse that ends or stops
//! a process between any two of its smallest steps.
//!
//! The rule that keeps it right: a thread that is stopped keeps what it was about to do, and does it when it goes on,
//! however late that is; a process that ends does nothing more.

use std::collections::VecDeque;

/// A thread with inputs `I` and actions `A`.
#[derive(Debug)]
pub struct Thread<I, A> {
    /// What came, in order.
    pub inbox: VecDeque<I>,
    /// What is left to carry out.
    pub actions: VecDeque<A>,
    /// When its next turn is due.
    pub turn_at_us: Option<u64>,
    /// It does nothing before then.
    pub stopped_until_us: u64,
}

impl<I, A> Default for Thread<I, A> {
    fn default() -> Self {
        Thread { inbox: VecDeque::new(), actions: VecDeque::new(), turn_at_us: None, stopped_until_us: 0 }
    }
}

impl<I, A> Thread<I, A> {
    /// Asks for a turn at this time. Returns when it is to be noted, if it was not noted already.
    pub fn want(&mut self, at_us: u64) -> Option<u64> {
        let at_us = at_us.max(self.stopped_until_us);
        if self.turn_at_us.is_some_and(|noted| noted <= at_us) {
            return None;
        }
        self.turn_at_us = Some(at_us);
        Some(at_us)
    }

    /// Whether the turn that was noted for now is still wanted.
    pub fn begins(&mut self, now_us: u64) -> bool {
        let begins = self.turn_at_us == Some(now_us);
        if begins {
            self.turn_at_us = None;
        }
        begins
    }

    /// Stops for a while.
    pub fn stop(&mut self, until_us: u64) {
        self.stopped_until_us = self.stopped_until_us.max(until_us);
    }
}

/// What a fuse does when it has burnt down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Burn {
    /// The process ends, and starts again after this long. `silently`: its machine is gone too, so nobody is told.
    Crash {
        /// Until it starts again, us.
        down_us: u64,
        /// Peers find out by themselves.
        silently: bool,
    },
    /// The process, or one thread of it, stops for so long.
    Stop {
        /// Which; `None`: all.
        thread: Option<usize>,
        /// How long, us.
        for_us: u64,
    },
}

/// Counts down a process's smallest steps: an event taken in, an action carried out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fuse {
    lit: Option<(u32, Burn)>,
}

impl Fuse {
    /// Lights it.
    pub fn light(&mut self, steps: u32, burn: Burn) {
        self.lit = Some((steps, burn));
    }

    /// One step. What happens now, if it has burnt down.
    pub fn step(&mut self) -> Option<Burn> {
        let (left, burn) = self.lit.as_mut()?;
        if *left > 0 {
            *left -= 1;
            return None;
        }
        let burn = *burn;
        self.lit = None;
        Some(burn)
    }
}
