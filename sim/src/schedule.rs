//! The faults of a run: drawn before it begins, so that a shrinker can leave some out and play the rest.

use crate::clock::{MS, SECOND};
use crate::plan::Plan;
use crate::random::Random;

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A process ends after so many more of its steps, and starts again after a while.
    Crash {
        /// Gateways first, then nodes.
        process: usize,
        /// Steps.
        steps: u32,
        /// Until it starts again, us.
        down_us: u64,
        /// Nobody is told.
        silently: bool,
    },
    /// A process stops after so many more of its steps, and goes on as if nothing had been.
    Stop {
        /// Gateways first, then nodes.
        process: usize,
        /// One thread of it (modulo its threads), or all.
        thread: Option<usize>,
        /// Steps.
        steps: u32,
        /// How long, us.
        for_us: u64,
    },
    /// A wall clock is set.
    Jump {
        /// Gateways first, then nodes.
        process: usize,
        /// ms.
        by_ms: i64,
    },
    /// A node's wall clock is set far off, or right again. The store is on another machine, and keeps time.
    Astray {
        /// Which node.
        node: usize,
        /// ms.
        by_ms: i64,
    },
    /// A process leaves in good order, and comes back.
    Leave {
        /// Gateways first, then nodes.
        process: usize,
    },
    /// A connection breaks.
    Drop {
        /// Of a link; else of a client.
        link: bool,
        /// Which, modulo those there are.
        which: usize,
    },
    /// What one side of a connection sends vanishes, until the kernels give it up.
    Cut {
        /// Of a link; else of a client.
        link: bool,
        /// Which, modulo those there are.
        which: usize,
        /// Which side.
        side: usize,
        /// Until they do, us.
        for_us: u64,
    },
    /// What one side sends is late.
    Stall {
        /// Of a link; else of a client.
        link: bool,
        /// Which, modulo those there are.
        which: usize,
        /// Which side.
        side: usize,
        /// How long, us.
        for_us: u64,
    },
    /// A device connects again while its old connection lives.
    Double {
        /// Which, modulo those there are.
        device: usize,
    },
    /// A client's process ends in the middle of whatever it does, and starts again after a while.
    CrashClient {
        /// Which, modulo those there are.
        device: usize,
        /// Until it starts again, us.
        down_us: u64,
        /// Its machine is gone too: its gateway is not told.
        silently: bool,
    },
    /// A client's application takes nothing for a while.
    BusyClient {
        /// Which, modulo those there are.
        device: usize,
        /// How long, us.
        for_us: u64,
    },
    /// Nothing that a node sends on its links arrives any more, and soon its process ends: what it handed to them is lost.
    Strand {
        /// Which node, modulo those there are.
        node: usize,
        /// Until it ends, us.
        for_us: u64,
    },
    /// Jobs fail for a while: so many of a thousand are refused, so many done without an answer.
    Trouble {
        /// Of one process; else of all.
        process: Option<usize>,
        /// Of a thousand.
        refused: u64,
        /// Of a thousand.
        unknown: u64,
        /// Later by this at most, us.
        slow_us: u64,
        /// How long, us.
        for_us: u64,
    },
    /// The store does nothing for a while.
    StoreStops {
        /// How long, us.
        for_us: u64,
    },
    /// The store falls back to an earlier copy.
    FallBack {
        /// By how much, us.
        by_us: u64,
    },
    /// The copy of the store that was given up last takes its place again.
    ComeBack,
    /// The store is emptied.
    Empty,
    /// What a node says to gateways is late.
    LateWords {
        /// Gateways first, then nodes.
        process: usize,
        /// How long, us.
        for_us: u64,
    },
    /// A client loses what it was sent of messages, and what it is asked about them.
    DeafClient {
        /// Which, modulo those there are.
        device: usize,
        /// How long, us.
        for_us: u64,
    },
    /// A client's process is copied: the copy keeps the connection, and the client connects again.
    CopyClient {
        /// Which, modulo those there are.
        device: usize,
    },
}

/// When, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// World's time, us.
    pub at_us: u64,
    /// What.
    pub kind: Kind,
}

/// The faults of a seed, in order of time.
pub fn draw(plan: &Plan, seed: u64) -> Vec<Fault> {
    let mut random = Random::fork(seed, 2);
    let mut kinds: Vec<fn(&mut Random, &Plan) -> Kind> = Vec::new();
    let allowed = plan.allowed;
    if allowed.network {
        kinds.extend([drop_one as fn(&mut Random, &Plan) -> Kind, cut, stall, drop_one, stall, double]);
    }
    if allowed.client {
        kinds.extend([crash_client as fn(&mut Random, &Plan) -> Kind, busy_client, double, crash_client]);
    }
    if allowed.crash {
        kinds.extend([crash as fn(&mut Random, &Plan) -> Kind; 4]);
    }
    if allowed.pause {
        kinds.extend([stop as fn(&mut Random, &Plan) -> Kind; 3]);
    }
    if allowed.store {
        kinds.extend([trouble as fn(&mut Random, &Plan) -> Kind, trouble, trouble, store_stops]);
    }
    if allowed.clock {
        kinds.extend([jump as fn(&mut Random, &Plan) -> Kind; 2]);
    }
    if allowed.leave {
        kinds.push(leave);
    }
    if allowed.failover {
        kinds.extend([fall_back as fn(&mut Random, &Plan) -> Kind; 4]);
        kinds.push(empty);
    }
    if allowed.deaf {
        kinds.push(deaf_client);
    }
    if allowed.copies {
        kinds.extend([copy_client as fn(&mut Random, &Plan) -> Kind; 10]);
    }
    if kinds.is_empty() {
        return Vec::new();
    }
    let count = random.between(1, plan.faults_max as u64);
    let mut faults: Vec<Fault> = (0..count)
        .map(|_| {
            let at_us = plan.calm_us + random.below(plan.busy_us);
            let kind = random.pick(&kinds)(&mut random, plan);
            Fault { at_us, kind }
        })
        .collect();
    if allowed.moves {
        add_moves(&mut faults, &mut random, plan);
    }
    // Mostly near the end of the work: what is said later mends what nobody was told.
    let mut random = Random::fork(seed, 9);
    if allowed.crash && random.chance(400) {
        let before_end_us = random.below(2 * SECOND);
        let kind = Kind::Strand { node: random.index(64), for_us: random.between(20 * MS, 800 * MS) };
        faults.push(Fault { at_us: plan.busy_until_us().saturating_sub(before_end_us), kind });
    }
    if allowed.failover {
        add_returns(&mut faults, &mut Random::fork(seed, 22), plan);
    }
    if plan.retention_ms > 0 {
        add_astray(&mut faults, &mut Random::fork(seed, 24), plan);
    }
    faults.sort_by_key(|fault| fault.at_us);
    faults
}

/// After some failovers the former copy of the store comes back, and once in a while the other one after that.
fn add_returns(faults: &mut Vec<Fault>, random: &mut Random, plan: &Plan) {
    let fell_back = |fault: &Fault| matches!(fault.kind, Kind::FallBack { .. }).then_some(fault.at_us);
    for mut at_us in faults.iter().filter_map(fell_back).collect::<Vec<_>>() {
        while random.chance(300) {
            at_us += random.between(20 * MS, 3 * SECOND);
            faults.push(Fault { at_us: at_us.min(plan.busy_until_us()), kind: Kind::ComeBack });
        }
    }
}

/// Clocks of nodes that are wrong by more than messages are kept, some before the process starts, some right again later.
/// Whoever takes a conversation over looks at how old it is, so processes end soon after.
fn add_astray(faults: &mut Vec<Fault>, random: &mut Random, plan: &Plan) {
    for node in 0..plan.nodes {
        if !random.chance(600) {
            continue;
        }
        let by_ms = (plan.retention_ms + random.between(5 * 60_000, 3 * 3_600_000)) as i64;
        let by_ms = if random.chance(500) { by_ms } else { -by_ms };
        let from_us = if random.chance(500) { 0 } else { plan.calm_us + random.below(plan.busy_us) };
        let back_us = from_us + random.between(300 * MS, plan.busy_us);
        let right_again = random.chance(600).then_some((back_us.min(plan.busy_until_us()), -by_ms));
        for (at_us, by_ms) in [Some((from_us, by_ms)), right_again].into_iter().flatten() {
            faults.push(Fault { at_us, kind: Kind::Astray { node, by_ms } });
            if at_us > 0 && random.chance(500) {
                let kind = crash_of(plan.gateways + node, random);
                let crash_us = at_us + random.below(SECOND);
                faults.push(Fault { at_us: crash_us.min(plan.busy_until_us() - MS), kind });
            }
        }
    }
}

/// Nodes leave while what they say to gateways is late: their last words come after their successors' first. Those of the
/// last one come when nobody does anything any more that would make up for them.
fn add_moves(faults: &mut Vec<Fault>, random: &mut Random, plan: &Plan) {
    let end_us = plan.busy_until_us();
    for last in [true, false, false].into_iter().take(random.between(1, 3) as usize) {
        let process = plan.gateways + random.index(plan.nodes);
        let (at_us, late_us) = match last {
            true => (end_us - random.between(300 * MS, 1_500 * MS), end_us),
            false => (plan.calm_us + random.below(plan.busy_us), 0),
        };
        let leave_us = at_us + random.between(20 * MS, 200 * MS);
        let for_us = late_us.max(leave_us) - at_us + random.between(100 * MS, 2_000 * MS);
        faults.push(Fault { at_us, kind: Kind::LateWords { process, for_us } });
        faults.push(Fault { at_us: leave_us, kind: Kind::Leave { process } });
    }
}

fn process(random: &mut Random, plan: &Plan) -> usize {
    random.index(plan.gateways + plan.nodes)
}

/// Mostly soon, so that it falls into what is under way; now and then later.
fn steps(random: &mut Random) -> u32 {
    match random.below(3) {
        0 => random.below(8) as u32,
        1 => random.below(60) as u32,
        _ => random.below(400) as u32,
    }
}

fn crash(random: &mut Random, plan: &Plan) -> Kind {
    let process = process(random, plan);
    crash_of(process, random)
}

fn crash_of(process: usize, random: &mut Random) -> Kind {
    Kind::Crash {
        process,
        steps: steps(random),
        down_us: random.between(20 * MS, 3 * SECOND),
        silently: random.chance(300),
    }
}

fn stop(random: &mut Random, plan: &Plan) -> Kind {
    Kind::Stop {
        process: process(random, plan),
        thread: random.chance(400).then(|| random.index(4)),
        steps: steps(random),
        for_us: random.between(50 * MS, 6 * SECOND),
    }
}

fn jump(random: &mut Random, plan: &Plan) -> Kind {
    let by_ms = random.between(1, 100_000) as i64;
    let by_ms = if random.chance(600) { -by_ms } else { by_ms };
    Kind::Jump { process: process(random, plan), by_ms }
}

fn leave(random: &mut Random, plan: &Plan) -> Kind {
    Kind::Leave { process: process(random, plan) }
}

fn drop_one(random: &mut Random, _: &Plan) -> Kind {
    Kind::Drop { link: random.chance(500), which: random.index(64) }
}

fn cut(random: &mut Random, _: &Plan) -> Kind {
    Kind::Cut {
        link: random.chance(600),
        which: random.index(64),
        side: random.index(2),
        for_us: random.between(200 * MS, 5 * SECOND),
    }
}

fn stall(random: &mut Random, _: &Plan) -> Kind {
    Kind::Stall {
        link: random.chance(600),
        which: random.index(64),
        side: random.index(2),
        for_us: random.between(10 * MS, 4 * SECOND),
    }
}

fn double(random: &mut Random, _: &Plan) -> Kind {
    Kind::Double { device: random.index(64) }
}

fn crash_client(random: &mut Random, _: &Plan) -> Kind {
    Kind::CrashClient {
        device: random.index(64),
        down_us: random.between(10 * MS, 4 * SECOND),
        silently: random.chance(300),
    }
}

fn busy_client(random: &mut Random, _: &Plan) -> Kind {
    // Longer than a gateway is patient with who does not acknowledge.
    Kind::BusyClient { device: random.index(64), for_us: random.between(500 * MS, 25 * SECOND) }
}

fn trouble(random: &mut Random, plan: &Plan) -> Kind {
    let (refused, unknown, slow_us) = match random.below(4) {
        0 => (random.between(100, 1_000), 0, 0),
        1 => (0, random.between(100, 1_000), 0),
        2 => (random.below(300), random.below(300), 100 * MS),
        _ => (0, 0, random.between(50 * MS, 3 * SECOND)),
    };
    Kind::Trouble {
        process: random.chance(500).then(|| plan.gateways + random.index(plan.nodes)),
        refused,
        unknown,
        slow_us,
        for_us: random.between(20 * MS, 3 * SECOND),
    }
}

fn store_stops(random: &mut Random, _: &Plan) -> Kind {
    Kind::StoreStops { for_us: random.between(50 * MS, 4 * SECOND) }
}

fn fall_back(random: &mut Random, _: &Plan) -> Kind {
    Kind::FallBack { by_us: random.between(100 * MS, 2 * SECOND) }
}

fn empty(_: &mut Random, _: &Plan) -> Kind {
    Kind::Empty
}

fn deaf_client(random: &mut Random, _: &Plan) -> Kind {
    // Some for longer than it takes to be asked, once; nobody until the gateway gives it up.
    Kind::DeafClient { device: random.index(64), for_us: random.between(100 * MS, 9 * SECOND) }
}

fn copy_client(random: &mut Random, _: &Plan) -> Kind {
    Kind::CopyClient { device: random.index(64) }
}
