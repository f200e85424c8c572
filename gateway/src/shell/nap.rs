//! Naps: with very many sessions some heartbeat arrives every few dozen microseconds, and to wake for each costs more than
//! to answer it. A shard that hears nothing but heartbeats, and those as often as that, looks at its sockets every
//! millisecond or two instead of at once, and answers what has come together.
//!
//! The rule: whatever is no heartbeat ends napping for a while, so that a conversation is delayed by one nap at most,
//! and links and other threads wake a napping shard as any other. With fewer heartbeats naps save nothing and cost
//! latency, so there are none.

/// How long a nap is, in microseconds. The runtime's timer may add a millisecond.
pub const NAP_US: u64 = 1_000;
/// After anything but heartbeats a shard is awake for so long, in microseconds: the next of it is likely to be near.
const AWAKE_US: u64 = 2_000;
/// Heartbeats are dense when there were so many after a nap, or one this soon after the turn before, in microseconds:
/// some 8,000 a second, which is a quarter of a million sessions on one shard.
const DENSE_AFTER_NAP: u64 = 12;
/// See [`DENSE_AFTER_NAP`].
const DENSE_US: u64 = 125;

/// What a turn found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// When it began and ended, in microseconds.
    pub begun_us: u64,
    /// See `begun_us`.
    pub ended_us: u64,
    /// Heartbeats answered.
    pub beats: u64,
    /// Whether there was anything else.
    pub other: bool,
}

/// When to nap.
#[derive(Debug, Default)]
pub struct Naps {
    /// The end of the last turn with anything but heartbeats.
    stirred_us: u64,
    /// The end of the last turn.
    slept_us: u64,
}

impl Naps {
    /// Takes a turn in; says whether the sleep after it should be a nap.
    pub fn after(&mut self, turn: Found) -> bool {
        let slept = turn.begun_us.saturating_sub(self.slept_us);
        self.slept_us = turn.ended_us;
        if turn.other {
            self.stirred_us = turn.ended_us;
        }
        let dense = turn.beats >= DENSE_AFTER_NAP || (turn.beats > 0 && slept < DENSE_US);
        dense && turn.ended_us.saturating_sub(self.stirred_us) >= AWAKE_US
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(at_us: u64, beats: u64) -> Found {
        Found { begun_us: at_us, ended_us: at_us + 20, beats, other: false }
    }

    #[test]
    fn only_beats_that_come_very_often_are_worth_a_nap() {
        let mut naps = Naps::default();
        assert!(!naps.after(beat(1_000_000, 1)), "the first after a long sleep");
        assert!(naps.after(beat(1_000_100, 1)));
        assert!(naps.after(beat(1_002_100, 20)), "what a nap collected keeps it napping");
        assert!(!naps.after(beat(1_004_100, 3)), "too few for a nap of two milliseconds");
        assert!(!naps.after(beat(1_004_500, 1)), "they come one by one again");
        assert!(!naps.after(beat(1_004_600, 0)), "nothing at all: a deadline");
    }

    #[test]
    fn anything_else_keeps_it_awake_for_a_while() {
        let mut naps = Naps::default();
        naps.after(beat(1_000_000, 1));
        assert!(naps.after(beat(1_000_100, 1)));
        assert!(!naps.after(Found { other: true, ..beat(1_000_200, 3) }));
        assert!(!naps.after(beat(1_000_300, 1)));
        assert!(!naps.after(beat(1_002_100, 3)));
        assert!(naps.after(beat(1_002_220, 1)));
    }
}
