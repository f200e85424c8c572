//! What a world looks like and what may happen to it. A seed picks sizes and faults within a plan.

use crate::clock::{MS, SECOND};
use crate::random::Random;

/// The kinds of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Connections break, stall, are cut one way or doubled.
    pub network: bool,
    /// Clients' processes end and start again, their applications are slow, their networks change.
    pub client: bool,
    /// Processes end, at any step, and start again.
    pub crash: bool,
    /// Processes and threads stop for longer than their leases.
    pub pause: bool,
    /// The store is slow, refuses, or does not say what it did.
    pub store: bool,
    /// Wall clocks jump.
    pub clock: bool,
    /// Processes leave in good order.
    pub leave: bool,
    /// The store loses what it had promised to keep, as it may where that was configured.
    pub failover: bool,
    /// Clients lose what they were sent, though their connections stay up.
    pub deaf: bool,
    /// Clients' processes are copied, and both go on.
    pub copies: bool,
    /// Partitions move from node to node while links are late.
    pub moves: bool,
}

const NOTHING: Allowed = Allowed {
    network: false,
    client: false,
    crash: false,
    pause: false,
    store: false,
    clock: false,
    leave: false,
    failover: false,
    deaf: false,
    copies: false,
    moves: false,
};

/// A world.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How it is called.
    pub name: &'static str,
    /// Gateways.
    pub gateways: usize,
    /// Shards of each.
    pub gateway_shards: usize,
    /// Dispatcher nodes.
    pub nodes: usize,
    /// Shards of each.
    pub node_shards: usize,
    /// Partitions of the cluster.
    pub partitions: u16,
    /// Users.
    pub users: usize,
    /// Devices of each at most.
    pub devices_max: usize,
    /// Clients that are not the SDK, and break their promises about numbers.
    pub strays: usize,
    /// Users mark what they are shown as read, so many times of a thousand that they think.
    pub reads_per_mille: u64,
    /// Groups.
    pub groups: usize,
    /// Rooms.
    pub rooms: usize,
    /// Faults in a run at most.
    pub faults_max: usize,
    /// Which.
    pub allowed: Allowed,
    /// Time without faults at the beginning, us.
    pub calm_us: u64,
    /// Time of faults and of work, us.
    pub busy_us: u64,
    /// Time in which everything must come right after the last fault, us.
    pub settle_us: u64,
    /// Pause of a device between two things that it does, at most, us.
    pub think_us: u64,
    /// A node's lease, ms.
    pub node_lease_ms: u32,
    /// A gateway's lease, ms.
    pub gateway_lease_ms: u32,
    /// Clients' heartbeats, ms.
    pub heartbeat_ms: u32,
    /// Bytes queued for a session at most.
    pub outbox_bytes_max: u32,
    /// Bytes of unacknowledged records on a link.
    pub link_window_bytes: u64,
    /// Conversations of a partition in memory.
    pub conversations_max: usize,
    /// Of a thousand things that a device does, so many more are joins and leaves of groups.
    pub churn: u64,
    /// Age at which messages may be trimmed, ms; 0: never. No world lasts that long.
    pub retention_ms: u64,
}

/// Names of all plans.
pub const NAMES: &[&str] = &[
    "calm", "client", "network", "crash", "pause", "store", "clock", "leave", "mixed", "failover", "deaf",
    "tight", "copies", "moves", "scarce",
];

/// What is drawn for plans that came later has a stream of its own, so that the seeds of the others keep their worlds.
const LATER: u64 = 21;

impl Plan {
    /// A plan by its name, with sizes picked by the seed.
    pub fn named(name: &str, seed: u64) -> Option<Plan> {
        let name = NAMES.iter().copied().find(|known| *known == name)?;
        let mut random = Random::fork(seed, 1);
        // What came later draws for itself, so that half of the seeds play as they did before.
        let mut habits = Random::fork(seed, 8);
        let all = Allowed {
            network: true,
            client: true,
            crash: true,
            pause: true,
            store: true,
            clock: true,
            leave: true,
            ..NOTHING
        };
        let allowed = match name {
            "network" => Allowed { network: true, client: true, ..NOTHING },
            "client" => Allowed { client: true, ..NOTHING },
            "crash" => Allowed { crash: true, ..NOTHING },
            "pause" => Allowed { pause: true, ..NOTHING },
            "store" => Allowed { store: true, ..NOTHING },
            "clock" => Allowed { clock: true, crash: true, ..NOTHING },
            "leave" => Allowed { leave: true, network: true, ..NOTHING },
            "mixed" => all,
            "failover" => Allowed { failover: true, clock: false, ..all },
            "deaf" => Allowed { deaf: true, ..NOTHING },
            "tight" => Allowed { network: true, ..NOTHING },
            "copies" => Allowed { copies: true, crash: true, network: true, ..NOTHING },
            "moves" => Allowed { moves: true, leave: true, ..NOTHING },
            "scarce" => Allowed { failover: true, network: true, store: true, leave: true, ..NOTHING },
            _ => NOTHING,
        };
        let plan = Plan {
            name,
            gateways: random.between(1, 3) as usize,
            gateway_shards: random.between(1, 2) as usize,
            nodes: random.between(1, 3) as usize,
            node_shards: random.between(1, 2) as usize,
            partitions: random.between(2, 5) as u16,
            users: random.between(2, 4) as usize,
            devices_max: 2,
            // Where the store forgets, numbers are taken again: who says other things under them breaks their order.
            strays: if allowed.failover { 0 } else { habits.pick(&[0, 0, 1, 2]) },
            reads_per_mille: habits.pick(&[0, 0, 200, 600]),
            groups: random.between(1, 2) as usize,
            rooms: 1,
            faults_max: if allowed == NOTHING { 0 } else { 8 },
            allowed,
            calm_us: SECOND,
            busy_us: random.between(4, 8) * SECOND,
            settle_us: 60 * SECOND,
            think_us: random.between(60, 500) * MS,
            node_lease_ms: random.pick(&[900, 1_500, 3_000]),
            gateway_lease_ms: random.pick(&[1_000, 2_000, 4_000]),
            heartbeat_ms: 2_000,
            outbox_bytes_max: random.pick(&[16 << 10, 256 << 10]),
            link_window_bytes: random.pick(&[128 << 10, 1 << 20]),
            conversations_max: random.pick(&[4, 64, 8_192]),
            churn: 0,
            retention_ms: 0,
        };
        Some(plan.later(&mut Random::fork(seed, LATER)))
    }

    /// What the plans that came later have of their own.
    fn later(mut self, random: &mut Random) -> Plan {
        match self.name {
            // Two or three messages, or one long one, and a link has no credit left; also while copies of the store take turns.
            "tight" | "scarce" => {
                self.link_window_bytes = random.pick(&[512, 2 << 10, 8 << 10]);
                self.think_us = random.between(40, 150) * MS;
            }
            // Who takes a client's place comes to another gateway, mostly.
            "copies" => {
                self.gateways = random.between(2, 3) as usize;
                self.faults_max = 24;
            }
            "moves" => {
                self.gateways = 2;
                self.nodes = random.between(2, 3) as usize;
                self.partitions = 2;
                self.groups = 1;
                self.churn = 400;
                self.think_us = random.between(40, 150) * MS;
            }
            "clock" => self.retention_ms = 2 * 3_600_000,
            _ => {}
        }
        self
    }

    /// When work and faults end.
    pub fn busy_until_us(&self) -> u64 {
        self.calm_us + self.busy_us
    }
}
