//! Which partitions a node should serve: rendezvous hashing over the live nodes, moved gently.
//!
//! One per process; its commands go to shards as `Event::Claim` and `Event::Release`, and shards' answers come back
//! by [`Ownership::claimed`] and [`Ownership::not_served`]. It leaves the deciding of races to the store's fences.
//! The rule that keeps it right: a live owner is never pre-empted. A node claims only what nobody holds, what a dead
//! node held, or what it held itself; it hands over what another should have, a few at a time.

use millrace_protocol::ids::{Now, Partition};

use crate::store::{Node, View};

/// Partitions on their way to another node at the same time, unless configured otherwise: while one moves, its
/// clients are answered BUSY for some heartbeats.
pub const MOVES_MAX: usize = 32;

/// A partition given up and still unclaimed after this is no longer counted as moving, us: its new owner may be gone.
const MOVE_US_MAX: u64 = 5_000_000;

/// First and longest pause before a refused claim is tried again, us.
const RETRY_US: (u64, u64) = (250_000, 4_000_000);

/// What a shard shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve it.
    Claim(Partition),
    /// Hand it over.
    Release(Partition),
}

/// One node's plan.
#[derive(Debug)]
pub struct Ownership {
    moves_max: usize,
    states: Vec<State>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Not served here. A refused claim waits until `retry_us`.
    Idle { retry_us: u64, tries: u32 },
    /// A shard was told to claim it.
    Claiming { tries: u32 },
    /// Served here.
    Serving,
    /// A shard was told to hand it over.
    Releasing,
    /// Handed over; its new owner hasn't been seen.
    Moving { since_us: u64 },
}

impl Ownership {
    /// Nothing is served. `moves_max`: see [`MOVES_MAX`].
    pub fn new(partitions: u16, moves_max: usize) -> Self {
        let states = vec![State::Idle { retry_us: 0, tries: 0 }; usize::from(partitions)];
        Ownership { moves_max: moves_max.max(1), states }
    }

    /// What to do by this view: after each heartbeat, and as often as wanted in between. `me` is this node's name.
    pub fn plan(&mut self, view: &View, me: &str, now: Now) -> Vec<Command> {
        let mut commands = Vec::new();
        // A node that the store doesn't list has no lease, so nothing of what it does would hold.
        if !view.nodes.iter().any(|node| node.name == me) {
            return commands;
        }
        let owner = |partition: usize| view.owners.get(partition).map_or("", |(name, _)| name.as_str());
        let is_live = |name: &str| view.nodes.iter().any(|node| node.name == name);
        for (partition, state) in self.states.iter_mut().enumerate() {
            if let State::Moving { since_us } = *state {
                let seen = !owner(partition).is_empty() && owner(partition) != me;
                if seen || now.mono_us >= since_us + MOVE_US_MAX {
                    *state = State::Idle { retry_us: 0, tries: 0 };
                }
            }
        }
        let is_moving = |state: &&State| matches!(state, State::Releasing | State::Moving { .. });
        let mut moving = self.states.iter().filter(is_moving).count();
        for (partition, state) in self.states.iter_mut().enumerate() {
            let id = partition as Partition;
            let mine = winner(&view.nodes, id) == Some(me);
            match *state {
                State::Idle { retry_us, tries } if retry_us <= now.mono_us => {
                    let holder = owner(partition);
                    // What an earlier life of this node holds, only this node can give to another.
                    let free = holder.is_empty() || !is_live(holder);
                    if holder == me || mine && free {
                        *state = State::Claiming { tries };
                        commands.push(Command::Claim(id));
                    }
                }
                State::Serving if !mine && moving < self.moves_max => {
                    moving += 1;
                    *state = State::Releasing;
                    commands.push(Command::Release(id));
                }
                _ => {}
            }
        }
        commands
    }

    /// Hands over everything: the node leaves. Not a few at a time, as the process will not serve them any longer.
    pub fn release_all(&mut self) -> Vec<Command> {
        let mut commands = Vec::new();
        for (partition, state) in self.states.iter_mut().enumerate() {
            if matches!(state, State::Claiming { .. } | State::Serving) {
                *state = State::Releasing;
                commands.push(Command::Release(partition as Partition));
            }
        }
        commands
    }

    /// A shard serves it (`Action::Claimed`). Also after a shard lost its fence and won it again.
    pub fn claimed(&mut self, partition: Partition) {
        if let Some(state) = self.states.get_mut(usize::from(partition))
            && !matches!(state, State::Releasing)
        {
            *state = State::Serving;
        }
    }

    /// A shard does not serve it (`Action::NotServed`): handed over, or refused.
    pub fn not_served(&mut self, partition: Partition, now: Now) {
        let Some(state) = self.states.get_mut(usize::from(partition)) else { return };
        *state = match *state {
            State::Releasing => State::Moving { since_us: now.mono_us },
            State::Claiming { tries } => {
                let (first, longest) = RETRY_US;
                let pause_us = (first << tries.min(16)).min(longest);
                State::Idle { retry_us: now.mono_us + pause_us, tries: tries.saturating_add(1) }
            }
            _ => State::Idle { retry_us: now.mono_us + RETRY_US.0, tries: 1 },
        };
    }

    /// Partitions served here.
    pub fn served(&self) -> usize {
        self.states.iter().filter(|state| matches!(state, State::Serving)).count()
    }

    /// Nothing is served, claimed or being handed over.
    pub fn is_empty(&self) -> bool {
        !self
            .states
            .iter()
            .any(|state| matches!(state, State::Claiming { .. } | State::Serving | State::Releasing))
    }
}

/// The node that should serve a partition: the one with the highest score (rendezvous hashing), so that a node that
/// comes or goes moves only its own share.
pub fn winner(nodes: &[Node], partition: Partition) -> Option<&str> {
    nodes.iter().map(|node| node.name.as_str()).max_by_key(|name| (score(name, partition), *name))
}

/// FNV-1a of the name, mixed with the partition by splitmix64's finish: fixed, as all nodes must agree.
fn score(name: &str, partition: Partition) -> u64 {
    let mut z = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
        .wrapping_add((u64::from(partition) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
