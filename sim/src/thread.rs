//! The threads of a process: what came for each, what its core wants done, when it turns; and the fuse that ends or stops a
//! process between any two of its smallest steps.
//!
//! Gateways and nodes turn alike, so that the order of a turn stands here once ([`Process::turn`]). The rule that keeps it
//! right: a thread that is stopped keeps what it was about to do, and does it when it goes on, however late that is; a
//! process that ends does nothing more.

use std::collections::VecDeque;

use crate::agenda::{Seat, Who};
use crate::outside::Outside;

/// Inputs that a thread takes in one turn.
const TURN_INPUTS: usize = 16;

/// No thread looks at its deadline again sooner than this, us.
const DEADLINE_US_MIN: u64 = 20;

/// A thread with inputs `I` and actions `A`.
#[derive(Debug)]
struct Thread<I, A> {
    /// What came, in order.
    inbox: VecDeque<I>,
    /// What is left to carry out.
    actions: VecDeque<A>,
    /// When its next turn is due.
    turn_at_us: Option<u64>,
    /// It does nothing before then.
    stopped_until_us: u64,
}

impl<I, A> Default for Thread<I, A> {
    fn default() -> Self {
        Thread { inbox: VecDeque::new(), actions: VecDeque::new(), turn_at_us: None, stopped_until_us: 0 }
    }
}

/// The threads of one life of a process: one for each of its shards, and last the control thread. None: it does not run.
#[derive(Debug)]
pub struct Threads<I, A> {
    who: Who,
    life: u32,
    all: Vec<Thread<I, A>>,
}

impl<I, A> Threads<I, A> {
    /// Threads with nothing to do.
    pub fn new(who: Who, life: u32, count: usize) -> Self {
        Threads { who, life, all: (0..count).map(|_| Thread::default()).collect() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// The control thread.
    pub fn control(&self) -> usize {
        self.all.len().saturating_sub(1)
    }

    /// As others address one of them.
    pub fn seat(&self, thread: usize) -> Seat {
        Seat { who: self.who, life: self.life, thread }
    }

    /// Something for a thread.
    pub fn push(&mut self, out: &mut Outside, thread: usize, input: I) {
        self.all[thread].inbox.push_back(input);
        self.wake(out, thread);
    }

    /// The next thing that came for a thread.
    pub fn pop(&mut self, thread: usize) -> Option<I> {
        self.all[thread].inbox.pop_front()
    }

    /// What a thread's core wants done, after what it wanted before.
    pub fn want_done(&mut self, thread: usize, actions: Vec<A>) {
        self.all[thread].actions.extend(actions);
    }

    /// A turn soon, as late as the scheduler makes it.
    pub fn wake(&mut self, out: &mut Outside, thread: usize) {
        let at_us = out.now_us + out.wake_us();
        self.turn_at(out, thread, at_us);
    }

    /// A turn at this time, or an earlier one that is noted already.
    fn turn_at(&mut self, out: &mut Outside, thread: usize, at_us: u64) {
        let seat = self.seat(thread);
        let it = &mut self.all[thread];
        let at_us = at_us.max(it.stopped_until_us);
        if it.turn_at_us.is_none_or(|noted| noted > at_us) {
            it.turn_at_us = Some(at_us);
            out.turn(seat, at_us);
        }
    }

    /// Stops one of them (`None`: all) for a while.
    pub fn stop(&mut self, out: &mut Outside, thread: Option<usize>, until_us: u64) {
        for index in 0..self.count() {
            if thread.is_none_or(|thread| thread == index) {
                let it = &mut self.all[index];
                it.stopped_until_us = it.stopped_until_us.max(until_us);
                self.turn_at(out, index, until_us);
            }
        }
    }

    /// Whether the turn that was noted for now is still wanted, and not stopped: then it comes when it goes on.
    fn begins(&mut self, out: &mut Outside, thread: usize) -> bool {
        let it = &mut self.all[thread];
        if it.turn_at_us.take_if(|at_us| *at_us == out.now_us).is_none() {
            return false;
        }
        let stopped_until_us = it.stopped_until_us;
        if stopped_until_us > out.now_us {
            self.turn_at(out, thread, stopped_until_us);
        }
        stopped_until_us <= out.now_us
    }
}

/// Until when a shard has nothing to do.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// There is work left.
    pub more: bool,
    /// In the world's time.
    pub until_us: Option<u64>,
}

/// A process of shards and a control thread: what its shell does in the turn of a thread.
pub trait Process {
    /// What comes to its threads.
    type Input;
    /// What its cores want done.
    type Action;

    /// Its threads.
    fn threads(&mut self) -> &mut Threads<Self::Input, Self::Action>;

    /// What ends or stops it.
    fn fuse(&mut self) -> &mut Fuse;

    /// A shard's thread takes something in.
    fn take(&mut self, out: &mut Outside, thread: usize, input: Self::Input);

    /// A shard's thread does what its core wants.
    fn carry_out(&mut self, out: &mut Outside, thread: usize, action: Self::Action);

    /// A shard's core turns.
    fn turn_core(&mut self, out: &mut Outside, thread: usize) -> Wait;

    /// A shard's thread hands its links what they have to send.
    fn output(&mut self, out: &mut Outside, thread: usize);

    /// The control thread does all that came for it.
    fn turn_control(&mut self, out: &mut Outside) -> Option<Burn>;

    /// A thread's turn. What its process comes to, if its fuse has burnt down.
    fn turn(&mut self, out: &mut Outside, thread: usize) -> Option<Burn> {
        if !self.threads().begins(out, thread) {
            return None;
        }
        if thread == self.threads().control() {
            return self.turn_control(out);
        }
        for _ in 0..TURN_INPUTS {
            if let Some(burn) = self.act(out, thread) {
                return Some(burn);
            }
            let Some(input) = self.threads().pop(thread) else { break };
            self.take(out, thread, input);
            if let Some(burn) = self.fuse().step() {
                return Some(burn);
            }
        }
        if let Some(burn) = self.act(out, thread) {
            return Some(burn);
        }
        let wait = self.turn_core(out, thread);
        let seat = self.threads().seat(thread);
        out.stepped(seat, 99);
        if let Some(burn) = self.act(out, thread) {
            return Some(burn);
        }
        self.output(out, thread);
        let threads = self.threads();
        if wait.more || !threads.all[thread].inbox.is_empty() {
            threads.wake(out, thread);
        } else if let Some(until_us) = wait.until_us {
            threads.turn_at(out, thread, until_us.max(out.now_us + DEADLINE_US_MIN));
        }
        None
    }

    /// Carries out what is to be done, until the fuse says otherwise.
    fn act(&mut self, out: &mut Outside, thread: usize) -> Option<Burn> {
        while let Some(action) = self.threads().all[thread].actions.pop_front() {
            self.carry_out(out, thread, action);
            if let Some(burn) = self.fuse().step() {
                return Some(burn);
            }
        }
        None
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
