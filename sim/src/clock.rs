//! Time: the world's own, and what each machine's clocks say of it.
//!
//! The monotonic clocks differ by a constant and never drift; wall clocks jump when the schedule says so. The store
//! has the world's time: leases run by it.

use millrace_protocol::ids::Now;

/// The world begins at this wall-clock time, ms since 1970.
pub const WALL_START_MS: u64 = 1_800_000_000_000;

/// One second of the world, us.
pub const SECOND: u64 = 1_000_000;

/// One millisecond of the world, us.
pub const MS: u64 = 1_000;

/// The clocks of one machine.
#[derive(Clone, Debug)]
pub struct Clock {
    booted_us: u64,
    wall_off_ms: i64,
}

impl Clock {
    /// A machine that had been up for this long when the world began.
    pub fn new(booted_us: u64, wall_off_ms: i64) -> Self {
        Clock { booted_us, wall_off_ms }
    }

    /// What the clocks say.
    pub fn now(&self, world_us: u64) -> Now {
        let wall_ms = (WALL_START_MS + world_us / MS).saturating_add_signed(self.wall_off_ms);
        Now { mono_us: self.booted_us + world_us, wall_ms }
    }

    /// The world's time of a deadline on this machine's monotonic clock.
    pub fn world_us(&self, mono_us: u64) -> u64 {
        mono_us.saturating_sub(self.booted_us)
    }

    /// The wall clock is set.
    pub fn jump(&mut self, by_ms: i64) {
        self.wall_off_ms += by_ms;
    }
}
