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

/// When to nap. Told of what a turn does as it does it, and asked after it.
#[derive(Debug, Default)]
pub struct Naps {
    /// Receives of this turn. A client sends a heartbeat by itself, so one of them brings one.
    received: u64,
    /// There was something else in this turn.
    stirred: bool,
    /// The end of the last turn with anything but heartbeats, in microseconds.
    stirred_us: u64,
    /// The end of the last turn, in microseconds.
    ended_us: u64,
}

impl Naps {
    /// Bytes came from a client.
    pub fn received(&mut self) {
        self.received += 1;
    }

    /// Anything else came: a client, a message, bytes of a link.
    pub fn stir(&mut self) {
        self.stirred = true;
    }

    /// Ends a turn that answered so many heartbeats; says whether the sleep after it should be a nap.
    pub fn after(&mut self, begun_us: u64, ended_us: u64, beats: u64) -> bool {
        let slept = begun_us.saturating_sub(self.ended_us);
        if self.stirred || self.received != beats {
            self.stirred_us = ended_us;
        }
        (self.received, self.stirred, self.ended_us) = (0, false, ended_us);
        let dense = beats >= DENSE_AFTER_NAP || (beats > 0 && slept < DENSE_US);
        dense && ended_us.saturating_sub(self.stirred_us) >= AWAKE_US
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A turn of 20 us with so many receives, all of them heartbeats.
    fn beats(naps: &mut Naps, at_us: u64, beats: u64) -> bool {
        (0..beats).for_each(|_| naps.received());
        naps.after(at_us, at_us + 20, beats)
    }

    #[test]
    fn only_beats_that_come_very_often_are_worth_a_nap() {
        let mut naps = Naps::default();
        assert!(!beats(&mut naps, 1_000_000, 1), "the first after a long sleep");
        assert!(beats(&mut naps, 1_000_100, 1));
        assert!(beats(&mut naps, 1_002_100, 20), "what a nap collected keeps it napping");
        assert!(!beats(&mut naps, 1_004_100, 3), "too few for a nap of two milliseconds");
        assert!(!beats(&mut naps, 1_004_500, 1), "they come one by one again");
        assert!(!beats(&mut naps, 1_004_600, 0), "nothing at all: a deadline");
    }

    #[test]
    fn anything_else_keeps_it_awake_for_a_while() {
        let ways: [fn(&mut Naps); 2] = [Naps::stir, Naps::received];
        for other in ways {
            let mut naps = Naps::default();
            beats(&mut naps, 1_000_000, 1);
            assert!(beats(&mut naps, 1_000_100, 1));
            other(&mut naps);
            assert!(!beats(&mut naps, 1_000_200, 20));
            assert!(!beats(&mut naps, 1_000_300, 20));
            assert!(!beats(&mut naps, 1_002_100, 20));
            assert!(beats(&mut naps, 1_002_220, 20));
        }
    }
}
