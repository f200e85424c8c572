//! What is due when. Ties are kept in the order in which they were noted, so that a seed always plays the same way.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use millrace_dispatcher::store::{Done, Job};

use crate::dispatcher::Input as NodeInput;
use crate::gateway::Input as GatewayInput;
use crate::network::ConnId;

/// One process of the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// By index.
    Gateway(usize),
    /// A dispatcher node, by index.
    Node(usize),
}

/// One thread of one life of a process. What is addressed to an earlier life is void.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seat {
    /// Which process.
    pub who: Who,
    /// Counts its starts.
    pub life: u32,
    /// Its shards come first, its control thread last.
    pub thread: usize,
}

/// One thing that is due.
#[derive(Debug)]
pub enum Due {
    /// A thread turns.
    Turn(Seat),
    /// A gateway's thread gets something.
    Gateway(Seat, GatewayInput),
    /// A node's thread gets something.
    Node(Seat, NodeInput),
    /// The front of a pipe, from this side of a connection.
    Pipe(ConnId, usize),
    /// A connection's request reaches its target.
    Syn(ConnId),
    /// The kernel gives up on a connection, on one side.
    Broken(ConnId, usize),
    /// A job reaches the store, or this copy of it.
    Job(Seat, u64, Box<Job>),
    /// The store does what has waited while it stood still.
    GoesOn,
    /// An answer of the store reaches its asker.
    Done(Seat, Box<Done>),
    /// A process starts.
    Start(Who),
    /// A process ends as it was asked to.
    End(Who, u32),
    /// A device looks at its timers.
    Device(usize),
    /// A client that is not the SDK does something.
    Stray(usize),
    /// Fault `n` of the schedule.
    Fault(usize),
}

#[derive(Debug)]
struct Item {
    at_us: u64,
    number: u64,
    due: Due,
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Item {}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Item {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at_us, other.number).cmp(&(self.at_us, self.number))
    }
}

/// Everything that is due.
#[derive(Debug, Default)]
pub struct Agenda {
    heap: BinaryHeap<Item>,
    number: u64,
}

impl Agenda {
    /// Notes something for a time of the world.
    pub fn at(&mut self, at_us: u64, due: Due) {
        self.number += 1;
        self.heap.push(Item { at_us, number: self.number, due });
    }

    /// The next thing.
    pub fn pop(&mut self) -> Option<(u64, Due)> {
        self.heap.pop().map(|item| (item.at_us, item.due))
    }
}
