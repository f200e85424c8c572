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
}

/// Names of all plans.
pub const NAMES: &[&str] =
    &["calm", "client", "network", "crash", "pause", "store", "clock", "leave", "mixed", "failover"];

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
            failover: false,
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
            _ => NOTHING,
        };
        Some(Plan {
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
        })
    }

    /// When work and faults end.
    pub fn busy_until_us(&self) -> u64 {
        self.calm_us + self.busy_us
    }
}
