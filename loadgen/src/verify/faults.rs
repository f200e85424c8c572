//! What is done to the fleet, and when: drawn from the seed, so that the same seed does the same again.
//!
//! It only plans; [`super::strike`] carries it out. The rule: every fault ends by itself within the schedule, and leaves
//! time at the end in which everything must come right.

use std::fmt;

use serde::Serialize;

use super::net::{Harm, Node};
use crate::rng::Rng;

/// Before the first fault, in ms: everyone talks by then.
const FIRST_MS: u64 = 1_500;

/// Between two faults, in ms; drawn up to twice this.
const PAUSE_MS: u64 = 1_500;

/// One fault in so many begins before the one before it ends.
const OVERLAP_EVERY: u64 = 5;

/// The kinds that figures are given by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Kind {
    KillGateway,
    KillDispatcher,
    KillRedis,
    KillReplica,
    KillSentinel,
    PauseGateway,
    PauseDispatcher,
    PauseRedis,
    CutGatewayDispatcher,
    CutGatewayDispatcherOneWay,
    CutDispatcherRedis,
    CutDispatcherRedisOneWay,
    CutPrimaryReplica,
    CutClients,
    ResetConnections,
    DiskFull,
    ClockJump,
    Failover,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 18] = [
        Kind::KillGateway,
        Kind::KillDispatcher,
        Kind::KillRedis,
        Kind::KillReplica,
        Kind::KillSentinel,
        Kind::PauseGateway,
        Kind::PauseDispatcher,
        Kind::PauseRedis,
        Kind::CutGatewayDispatcher,
        Kind::CutGatewayDispatcherOneWay,
        Kind::CutDispatcherRedis,
        Kind::CutDispatcherRedisOneWay,
        Kind::CutPrimaryReplica,
        Kind::CutClients,
        Kind::ResetConnections,
        Kind::DiskFull,
        Kind::ClockJump,
        Kind::Failover,
    ];

    /// As flags and JSON name it.
    pub fn name(self) -> String {
        let mut name = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_ascii_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// kill -9, and started again after this time.
    Kill {
        /// Whom.
        node: Node,
        /// Until it is started again.
        down_ms: u64,
    },
    /// SIGSTOP, and SIGCONT after this time: longer than a lease, it wakes up as an owner that is none any more.
    Pause {
        /// Whom.
        node: Node,
        /// Until SIGCONT.
        for_ms: u64,
    },
    /// What goes from the first to the second is dropped, or reset; the other way too, if so.
    Net {
        /// From whom.
        from: Node,
        /// To whom.
        to: Node,
        /// What happens to it.
        harm: Harm,
        /// The other way too.
        both: bool,
        /// Until it gets through again.
        for_ms: u64,
    },
    /// No byte more fits on the disk of a Redis. With `appendfsync always` it ends itself, and is started again after.
    Full {
        /// Until there is room again.
        for_ms: u64,
    },
    /// The wall clock of a process is off by so much.
    Clock {
        /// Whose.
        node: Node,
        /// Ahead, or behind.
        by_s: i64,
        /// Until it is right again.
        for_ms: u64,
    },
    /// The replica is cut off first, so that it lacks what is acknowledged from then on; then the primary is killed, and
    /// Sentinel promotes the replica.
    Failover {
        /// Between the cut and the kill.
        cut_ms: u64,
        /// From the kill until the old primary is started again.
        down_ms: u64,
    },
}

impl Fault {
    /// From its begin to its end, in ms.
    pub fn length_ms(&self) -> u64 {
        match *self {
            Fault::Kill { down_ms, .. } => down_ms,
            Fault::Pause { for_ms, .. }
            | Fault::Net { for_ms, .. }
            | Fault::Full { for_ms }
            | Fault::Clock { for_ms, .. } => for_ms,
            Fault::Failover { cut_ms, down_ms } => cut_ms + down_ms,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kill { node, down_ms } => write!(f, "kill -9 {node}, down for {down_ms} ms"),
            Fault::Pause { node, for_ms } => write!(f, "SIGSTOP {node} for {for_ms} ms"),
            Fault::Net { from, to, harm, both, for_ms } => {
                let what = if *harm == Harm::Drop { "cut" } else { "reset" };
                let arrow = if *both { "<->" } else { "->" };
                write!(f, "{what} {from} {arrow} {to} for {for_ms} ms")
            }
            Fault::Full { for_ms } => write!(f, "disk of the primary full for {for_ms} ms"),
            Fault::Clock { node, by_s, for_ms } => {
                write!(f, "wall clock of {node} off by {by_s} s for {for_ms} ms")
            }
            Fault::Failover { cut_ms, down_ms } => {
                write!(f, "replica cut off for {cut_ms} ms, then the primary killed for {down_ms} ms")
            }
        }
    }
}

/// A fault and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strike {
    /// After the schedule began.
    pub at_ms: u64,
    /// Its kind.
    pub kind: Kind,
    /// What is done.
    pub fault: Fault,
}

/// A schedule of `length_ms`, of these kinds.
pub fn schedule(rng: &mut Rng, length_ms: u64, kinds: &[Kind]) -> Vec<Strike> {
    let mut strikes = Vec::new();
    if kinds.is_empty() {
        return strikes;
    }
    let mut at_ms = FIRST_MS + rng.below(PAUSE_MS);
    // Drawn without returning, so that all kinds come before one comes again.
    let mut hat: Vec<Kind> = Vec::new();
    // Some don't fit at the end, but a shorter one may.
    for _ in 0..4 * kinds.len() as u64 + length_ms / PAUSE_MS {
        if hat.is_empty() {
            hat = kinds.to_vec();
        }
        let kind = hat.swap_remove(rng.below(hat.len() as u64) as usize);
        let fault = draw(rng, kind);
        let end_ms = at_ms + fault.length_ms();
        if end_ms > length_ms {
            continue;
        }
        strikes.push(Strike { at_ms, kind, fault });
        let pause_ms = PAUSE_MS + rng.below(PAUSE_MS);
        at_ms = match rng.below(OVERLAP_EVERY) {
            0 => at_ms + pause_ms,
            _ => end_ms + pause_ms,
        };
    }
    strikes
}

/// A fault of this kind. Redis is named by its number, though the other one may be the primary by then.
fn draw(rng: &mut Rng, kind: Kind) -> Fault {
    let gateway = Node::Gateway(1 + rng.below(2) as u8);
    let dispatcher = Node::Dispatcher(1 + rng.below(3) as u8);
    let mut ms = |low: u64, high: u64| low + rng.below(high - low);
    let cut = |from, to, both, for_ms| Fault::Net { from, to, harm: Harm::Drop, both, for_ms };
    match kind {
        Kind::KillGateway => Fault::Kill { node: gateway, down_ms: ms(200, 2_000) },
        Kind::KillDispatcher => Fault::Kill { node: dispatcher, down_ms: ms(200, 5_000) },
        Kind::KillRedis => Fault::Kill { node: Node::Redis(1), down_ms: ms(100, 1_500) },
        Kind::KillReplica => Fault::Kill { node: Node::Redis(2), down_ms: ms(100, 3_000) },
        Kind::KillSentinel => {
            Fault::Kill { node: Node::Sentinel(1 + ms(0, 3) as u8), down_ms: ms(500, 3_000) }
        }
        // Leases: 5 s of gateways, 3 s of dispatchers.
        Kind::PauseGateway => Fault::Pause { node: gateway, for_ms: ms(500, 7_000) },
        Kind::PauseDispatcher => Fault::Pause { node: dispatcher, for_ms: ms(500, 5_500) },
        Kind::PauseRedis => Fault::Pause { node: Node::Redis(1), for_ms: ms(300, 1_700) },
        Kind::CutGatewayDispatcher => cut(gateway, dispatcher, true, ms(300, 5_000)),
        Kind::CutGatewayDispatcherOneWay => {
            let for_ms = ms(300, 5_000);
            match ms(0, 2) {
                0 => cut(gateway, dispatcher, false, for_ms),
                _ => cut(dispatcher, gateway, false, for_ms),
            }
        }
        Kind::CutDispatcherRedis => cut(dispatcher, Node::Redis(1), true, ms(300, 5_000)),
        Kind::CutDispatcherRedisOneWay => {
            let for_ms = ms(300, 5_000);
            match ms(0, 2) {
                0 => cut(dispatcher, Node::Redis(1), false, for_ms),
                _ => cut(Node::Redis(1), dispatcher, false, for_ms),
            }
        }
        Kind::CutPrimaryReplica => cut(Node::Redis(1), Node::Redis(2), true, ms(300, 5_000)),
        Kind::CutClients => cut(Node::Clients, gateway, false, ms(300, 4_000)),
        Kind::ResetConnections => {
            let for_ms = ms(50, 500);
            let (from, to) = match ms(0, 4) {
                0 => (Node::Clients, gateway),
                1 => (gateway, dispatcher),
                2 => (dispatcher, gateway),
                _ => (dispatcher, Node::Redis(1)),
            };
            Fault::Net { from, to, harm: Harm::Reset, both: false, for_ms }
        }
        Kind::DiskFull => Fault::Full { for_ms: ms(300, 1_500) },
        Kind::ClockJump => {
            let by_s = [-86_400, -90, -2, 2, 90, 86_400][ms(0, 6) as usize];
            Fault::Clock { node: Node::Dispatcher(3), by_s, for_ms: ms(1_000, 5_000) }
        }
        Kind::Failover => Fault::Failover { cut_ms: ms(1_000, 3_000), down_ms: ms(6_000, 9_000) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_does_the_same_and_all_ends_in_time() {
        for seed in 0..200 {
            let strikes = schedule(&mut Rng::new(seed), 60_000, &Kind::ALL);
            assert_eq!(strikes, schedule(&mut Rng::new(seed), 60_000, &Kind::ALL));
            assert!(strikes.len() >= 4, "seed {seed}: {strikes:?}");
            assert!(strikes.is_sorted_by_key(|strike| strike.at_ms), "seed {seed}");
            for strike in &strikes {
                assert!(strike.at_ms + strike.fault.length_ms() <= 60_000, "seed {seed}: {}", strike.fault);
            }
        }
        assert!(schedule(&mut Rng::new(1), 60_000, &[]).is_empty());
        assert!(schedule(&mut Rng::new(1), 10, &Kind::ALL).is_empty());
    }

    #[test]
    fn all_kinds_come() {
        let all = |seed| schedule(&mut Rng::new(seed), 120_000, &Kind::ALL);
        let mut kinds: Vec<Kind> = (0..20).flat_map(all).map(|strike| strike.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds, Kind::ALL);
    }
}
