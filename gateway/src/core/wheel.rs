//! A coarse wheel of deadlines, one entry of four bytes per look that is due.
//!
//! The wheel knows slots and ticks, not what a deadline is for. It is lazy: nobody moves an entry when a heartbeat
//! comes; the owner notes the beat, and when the wheel says that the slot is due it looks, and arms again if it was
//! too early. An entry is valid only while the owner remembers the tick that [`Wheel::arm`] gave it: that makes
//! entries of former deadlines and former users of a slot harmless, without searching for them.

/// Length of a tick.
pub const TICK_US: u64 = 250_000;

/// Ticks that the wheel reaches ahead: 128 s. A later deadline is looked at early and armed again.
const BUCKETS: u32 = 512;

/// Buckets give memory back above this many unused entries.
const SLACK: usize = 1024;

/// The wheel.
pub struct Wheel {
    buckets: Box<[Vec<u32>]>,
    base_us: u64,
    now: u32,
    entries: usize,
}

impl Wheel {
    /// A wheel whose tick 0 begins at `now_us`.
    pub fn new(now_us: u64) -> Self {
        Wheel { buckets: (0..BUCKETS).map(|_| Vec::new()).collect(), base_us: now_us, now: 0, entries: 0 }
    }

    /// The tick that a time lies in.
    pub fn tick(&self, us: u64) -> u32 {
        (us.saturating_sub(self.base_us) / TICK_US) as u32
    }

    /// The first tick that begins at or after a time.
    pub fn tick_after(&self, us: u64) -> u32 {
        us.saturating_sub(self.base_us).div_ceil(TICK_US) as u32
    }

    /// Puts in an entry for `slot`, and gives the tick that makes it valid.
    pub fn arm(&mut self, slot: u32, tick: u32) -> u32 {
        let tick = tick.clamp(self.now + 1, self.now + BUCKETS - 1);
        self.buckets[(tick % BUCKETS) as usize].push(slot);
        self.entries += 1;
        tick
    }

    /// Moves on to the tick of `now_us`, giving at most `budget` due entries as (slot, tick). Returns whether there
    /// are more.
    pub fn advance(&mut self, now_us: u64, budget: usize, due: &mut Vec<(u32, u32)>) -> bool {
        let target = self.tick(now_us);
        let mut left = budget;
        while self.now < target {
            if self.entries == 0 {
                self.now = target;
                break;
            }
            let tick = self.now + 1;
            let bucket = &mut self.buckets[(tick % BUCKETS) as usize];
            while let Some(slot) = bucket.pop() {
                self.entries -= 1;
                due.push((slot, tick));
                left -= 1;
                if left == 0 {
                    return true;
                }
            }
            if bucket.capacity() > SLACK {
                bucket.shrink_to(SLACK);
            }
            self.now = tick;
        }
        false
    }

    /// When to look again, if there is anything to look at.
    pub fn deadline_us(&self) -> Option<u64> {
        (self.entries > 0).then(|| self.base_us + u64::from(self.now + 1) * TICK_US)
    }

    /// Entries in the wheel, stale ones included.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }
}

/// Spreads deadlines that would fall together: a number below `range`, fixed per slot.
pub fn spread(slot: u32, seed: u64, range: u32) -> u32 {
    let mut x = (u64::from(slot) ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    ((x >> 32) % u64::from(range.max(1))) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_each_entry_at_its_tick() {
        let mut wheel = Wheel::new(1_000);
        for slot in 0..600 {
            assert_eq!(wheel.arm(slot, slot), slot.clamp(1, 511));
        }
        let mut due = Vec::new();
        for tick in 1..=511u32 {
            due.clear();
            assert!(!wheel.advance(1_000 + u64::from(tick) * TICK_US, 10_000, &mut due));
            assert!(
                due.iter().all(|(slot, at)| *at == tick && (*slot).clamp(1, 511) == tick),
                "{tick}: {due:?}"
            );
            assert!(!due.is_empty());
        }
        assert!(wheel.is_empty() && wheel.deadline_us().is_none());
    }

    #[test]
    fn a_budget_spreads_a_storm_over_turns() {
        let mut wheel = Wheel::new(0);
        for slot in 0..100 {
            wheel.arm(slot, 4);
        }
        let mut due = Vec::new();
        let mut turns = 0;
        while wheel.advance(4 * TICK_US, 30, &mut due) {
            turns += 1;
        }
        assert_eq!((due.len(), turns), (100, 3));
    }

    #[test]
    fn spread_is_even() {
        let mut counts = [0u32; 8];
        for slot in 0..8_000 {
            counts[spread(slot, 7, 8) as usize] += 1;
        }
        assert!(counts.iter().all(|n| (850..1150).contains(n)), "{counts:?}");
    }
}
