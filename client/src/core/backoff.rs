//! How long to wait before the next connection: full jitter, so that a million clients that lost the same server do
//! not come back at the same moment.
//!
//! Sans-IO: randomness comes in as a number. What a server asks for (`retry_after`) is obeyed as a minimum, within reason:
//! what a proxy on the way says of its own maintenance must not keep a client away for days.

use std::time::Duration;

/// A server is left alone for no longer than this, whatever it asks for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(15 * 60);

/// Bounds of the pause, and the tries so far.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    low: Duration,
    high: Duration,
    tries: u32,
}

impl Backoff {
    /// The first pause is at most `low`, and the bound doubles with every try up to `high`.
    pub fn new(low: Duration, high: Duration) -> Self {
        Backoff { low: low.max(Duration::from_millis(1)), high: high.max(low), tries: 0 }
    }

    /// The pause before the next try: uniform between zero and the bound, on top of what the server asked for.
    pub fn next(&mut self, retry_after: Duration, random: u64) -> Duration {
        let bound = self.low.saturating_mul(1 << self.tries.min(20)).min(self.high);
        self.tries = self.tries.saturating_add(1);
        retry_after.min(RETRY_AFTER_MAX) + bound.mul_f64(random as f64 / u64::MAX as f64)
    }

    /// A connection held: begin with short pauses again.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_up_to_its_limit_and_retry_after_is_a_minimum() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
        for bound_ms in [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000] {
            let mut least = backoff;
            assert_eq!(least.next(Duration::ZERO, 0), Duration::ZERO);
            assert_eq!(least.next(Duration::from_secs(7), 0), Duration::from_secs(7));
            let most = backoff.next(Duration::ZERO, u64::MAX);
            assert_eq!(most.as_millis(), bound_ms);
        }
        let mut least = backoff;
        assert_eq!(least.next(Duration::from_secs(86_400), 0), RETRY_AFTER_MAX);
        backoff.reset();
        assert_eq!(backoff.next(Duration::ZERO, u64::MAX).as_millis(), 100);
        for _ in 0..100 {
            assert!(backoff.next(Duration::from_secs(1), u64::MAX) <= Duration::from_secs(31));
        }
    }
}
