//! Small random numbers for spreading and jitter: fast, seeded, and good for nothing secret.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// Seeded by the operating system.
    ///
    /// # Panics
    /// When the system has no randomness to give, as then no key can be made either.
    pub fn from_system() -> Self {
        Rng(getrandom::u64().expect("randomness from the operating system"))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, nearly uniform; 0 when `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u64
    }

    /// From 0 to below 1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Time to the next event of a Poisson process with this mean gap.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -(1.0 - self.unit()).ln() * mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_in_range_and_has_the_right_mean() {
        let mut rng = Rng::new(7);
        let mut sum = 0.0;
        for _ in 0..20_000 {
            assert!(rng.below(10) < 10);
            sum += rng.exponential(3.0);
        }
        assert!((sum / 20_000.0 - 3.0).abs() < 0.15, "mean {}", sum / 20_000.0);
        assert_eq!(rng.below(0), 0);
    }
}
