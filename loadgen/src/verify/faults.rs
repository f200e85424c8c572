//! What is done to the fleet, and when: drawn from the seed, so that the same seed does the same again.
//!
//! It only plans; [`super::strike`] carries it out. The rule: every fault ends by itself within the schedule, and leaves
//! time at the end in which everything must come right.

use std::fmt;

use serde::Serialize;

use super::Store;
use super::net::{Harm, Node};
use crate::rng::Rng;

/// Before the first fault, in ms: everyone talks by then.
const FIRST_MS: u64 = 1_500;

/// Between two faults, in ms; drawn up to twice this.
const PAUSE_MS: u64 = 1_500;

/// One fault in so many begins before the one before it ends.
const OVERLAP_EVERY: u64 = 5;

/// A wall clock jumps by one of these, in s.
const JUMPS_S: [i64; 6] = [-86_400, -90, -2, 2, 90, 86_400];

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

    /// Whether a standalone gateway can have it.
    pub fn is_of_one_process(self) -> bool {
        matches!(
            self,
            Kind::KillGateway
                | Kind::PauseGateway
                | Kind::CutClients
                | Kind::ResetConnections
                | Kind::DiskFull
                | Kind::ClockJump
        )
    }

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
    /// So much still fits on the store's disk. Where that is nothing, a Redis with `appendfsync always` ends itself and is
    /// started again after, and so may a standalone gateway, which is started all the while.
    Full {
        /// What is left, in MiB.
        left_mib: u64,
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
            | Fault::Full { for_ms, .. }
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
            Fault::Full { left_mib: 0, for_ms } => write!(f, "disk of the store full for {for_ms} ms"),
            Fault::Full { left_mib, for_ms } => {
                write!(f, "{left_mib} MiB left on the disk of the store for {for_ms} ms")
            }
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

/// A schedule of `length_ms`, of these kinds, for a fleet with this store.
pub fn schedule(rng: &mut Rng, length_ms: u64, kinds: &[Kind], store: Store) -> Vec<Strike> {
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
        let fault = match store {
            Store::Redis => draw(rng, kind),
            Store::Embedded => draw_alone(rng, kind),
        };
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
        Kind::DiskFull => Fault::Full { left_mib: 0, for_ms: ms(300, 1_500) },
        Kind::ClockJump => {
            // Redis gives epochs by its clock, and must keep time: see ARCHITECTURE.
            let node = if ms(0, 5) < 2 { gateway } else { dispatcher };
            Fault::Clock { node, by_s: JUMPS_S[ms(0, 6) as usize], for_ms: ms(1_000, 5_000) }
        }
        Kind::Failover => Fault::Failover { cut_ms: ms(1_000, 3_000), down_ms: ms(6_000, 9_000) },
    }
}

/// A fault of a standalone gateway: there is nobody else that it could hit.
fn draw_alone(rng: &mut Rng, kind: Kind) -> Fault {
    let node = Node::Gateway(1);
    let mut ms = |low: u64, high: u64| low + rng.below(high - low);
    let cut = |harm, for_ms| Fault::Net { from: Node::Clients, to: node, harm, both: false, for_ms };
    match kind {
        Kind::KillGateway => Fault::Kill { node, down_ms: ms(100, 2_000) },
        Kind::PauseGateway => Fault::Pause { node, for_ms: ms(500, 7_000) },
        Kind::CutClients => cut(Harm::Drop, ms(300, 4_000)),
        Kind::ResetConnections => cut(Harm::Reset, ms(50, 500)),
        // Less than the store keeps back, which it answers; or nothing at all from one moment to the next.
        Kind::DiskFull => Fault::Full { left_mib: ms(0, 2) * ms(16, 200), for_ms: ms(300, 5_000) },
        Kind::ClockJump => Fault::Clock { node, by_s: JUMPS_S[ms(0, 6) as usize], for_ms: ms(1_000, 5_000) },
        other => unreachable!("{} needs more than one process", other.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_does_the_same_and_all_ends_in_time() {
        for seed in 0..200 {
            let strikes = schedule(&mut Rng::new(seed), 60_000, &Kind::ALL, Store::Redis);
            assert_eq!(strikes, schedule(&mut Rng::new(seed), 60_000, &Kind::ALL, Store::Redis));
            assert!(strikes.len() >= 4, "seed {seed}: {strikes:?}");
            assert!(strikes.is_sorted_by_key(|strike| strike.at_ms), "seed {seed}");
            for strike in &strikes {
                assert!(strike.at_ms + strike.fault.length_ms() <= 60_000, "seed {seed}: {}", strike.fault);
            }
        }
        assert!(schedule(&mut Rng::new(1), 60_000, &[], Store::Redis).is_empty());
        assert!(schedule(&mut Rng::new(1), 10, &Kind::ALL, Store::Redis).is_empty());
    }

    #[test]
    fn all_kinds_come() {
        let of_one: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| kind.is_of_one_process()).collect();
        for (store, all) in [(Store::Redis, &Kind::ALL[..]), (Store::Embedded, &of_one)] {
            let schedule = |seed| schedule(&mut Rng::new(seed), 120_000, all, store);
            let mut kinds: Vec<Kind> = (0..20).flat_map(schedule).map(|strike| strike.kind).collect();
            kinds.sort_unstable();
            kinds.dedup();
            assert_eq!(kinds, all);
        }
    }

    #[test]
    fn every_gateway_and_dispatcher_has_its_clock_moved_and_redis_never() {
        let schedule = |seed| schedule(&mut Rng::new(seed), 60_000, &[Kind::ClockJump], Store::Redis);
        let whose = |strike: Strike| match strike.fault {
            Fault::Clock { node, .. } => node,
            other => panic!("{other}"),
        };
        let nodes: std::collections::BTreeSet<Node> = (0..50).flat_map(schedule).map(whose).collect();
        let all = [1, 2].map(Node::Gateway).into_iter().chain([1, 2, 3].map(Node::Dispatcher));
        assert_eq!(nodes, all.collect());
    }

    #[test]
    fn a_standalone_gateway_is_hit_and_nobody_else() {
        let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| kind.is_of_one_process()).collect();
        let mut left = std::collections::BTreeSet::new();
        for strike in (0..50).flat_map(|seed| schedule(&mut Rng::new(seed), 60_000, &kinds, Store::Embedded))
        {
            match strike.fault {
                Fault::Kill { node, .. } | Fault::Pause { node, .. } | Fault::Clock { node, .. } => {
                    assert_eq!(node, Node::Gateway(1));
                }
                Fault::Net { from, to, both, .. } => {
                    assert_eq!((from, to, both), (Node::Clients, Node::Gateway(1), false));
                }
                Fault::Full { left_mib, .. } => drop(left.insert(left_mib.min(1))),
                Fault::Failover { .. } => panic!("of what?"),
            }
        }
        assert_eq!(left.len(), 2, "nearly full, and full");
    }
}
