//! How long to wait before connecting again: full jitter, so that shards that lost a node together don't come back
//! together.

/// The first wait is below this, in microseconds.
const FIRST_US: u64 = 50_000;
/// And every wait below this.
const LAST_US: u64 = 2_000_000;

/// Waits, longer after each failure in a row.
#[derive(Debug)]
pub(super) struct Backoff {
    failures: u32,
    state: u64,
}

impl Backoff {
    /// `seed` at random: it decides who comes first.
    pub(super) fn new(seed: u64) -> Self {
        Backoff { failures: 0, state: seed | 1 }
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Notes a failure; how long to wait, in microseconds.
    pub(super) fn next_us(&mut self) -> u64 {
        let bound = (FIRST_US << self.failures.min(16)).min(LAST_US);
        self.failures = self.failures.saturating_add(1);
        // xorshift64: spreading needs no better.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        1_000 + self.state % bound
    }

    /// It worked.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_are_spread() {
        let mut backoff = Backoff::new(7);
        for round in 0..40 {
            let bound = (FIRST_US << round.min(16)).min(LAST_US) + 1_000;
            assert!(backoff.next_us() <= bound);
        }
        let late: Vec<u64> = (0..200).map(|_| backoff.next_us()).collect();
        assert!(
            late.iter().any(|wait| *wait < LAST_US / 4) && late.iter().any(|wait| *wait > LAST_US * 3 / 4)
        );
        backoff.reset();
        assert!(backoff.next_us() <= FIRST_US + 1_000);
    }
}
