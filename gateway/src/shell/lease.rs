//! The lease of this gateway process: until when logins may be taken, and under which incarnation routes stand.
//!
//! Shard 0's core renews it, this judges the answers, the control thread tells all shards. The rule that keeps it
//! right: time counts from before the renewal was sent, less a margin, so that this gateway stops before anybody
//! else takes its routes for dead; and a lease that was lost is never taken up again under the old incarnation.

use std::time::Duration;

use crate::core::event::Lease;

/// Taken off the end of a lease, as a share of its length: clocks drift, threads are scheduled late.
const MARGIN_SHARE: u32 = 10;

/// An answer to a renewal, as the core passed it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseAnswer {
    /// The lease's name, the same until it is lost; 0: another process holds this gateway's id, or it was lost.
    pub grant: u64,
    /// What was renewed.
    pub incarnation: u64,
    /// CLOCK_BOOTTIME from before the renewal was sent.
    pub sent_us: u64,
    /// Why it was refused.
    pub reason: String,
}

/// What an answer changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is an old answer, or a refusal that changes nothing.
    None,
    /// Logins may be taken for longer.
    Extended(Lease),
    /// The lease was lost: all sessions register again under the new incarnation, once that has its lease.
    Renewed(Lease),
}

/// Judges answers.
#[derive(Debug)]
pub struct Keeper {
    lease: Lease,
    length_us: u64,
}

impl Keeper {
    /// No lease yet, under a random incarnation.
    pub fn new(incarnation: u64, ttl: Duration) -> Self {
        let length_us = (ttl - ttl / MARGIN_SHARE).as_micros() as u64;
        Keeper { lease: Lease { incarnation, until_us: 0, grant: 0 }, length_us }
    }

    /// The lease as it stands.
    pub fn lease(&self) -> Lease {
        self.lease
    }

    /// Takes an answer; `draw` gives a new random incarnation.
    pub fn answer(&mut self, answer: &LeaseAnswer, draw: impl FnOnce() -> u64) -> Change {
        if answer.incarnation != self.lease.incarnation {
            return Change::None;
        }
        // Refused although it was held: it had lapsed, or the store was emptied or fell back, and routes with it. Under
        // another name than what was held: the same, and a request of ours that came late took it up again.
        let held = self.lease.grant;
        if held != 0 && answer.grant != held {
            self.lease = Lease { incarnation: draw(), until_us: 0, grant: 0 };
            return Change::Renewed(self.lease);
        }
        if answer.grant == 0 {
            return Change::None;
        }
        let until_us = answer.sent_us + self.length_us;
        if until_us <= self.lease.until_us {
            return Change::None;
        }
        (self.lease.until_us, self.lease.grant) = (until_us, answer.grant);
        Change::Extended(self.lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);
    const LENGTH_US: u64 = 9_000_000;

    fn answer(incarnation: u64, grant: u64, sent_us: u64) -> LeaseAnswer {
        LeaseAnswer { grant, incarnation, sent_us, reason: String::new() }
    }

    fn draw_none() -> u64 {
        panic!("no new incarnation is needed")
    }

    #[test]
    fn time_counts_from_before_the_sending_and_never_backwards() {
        let mut keeper = Keeper::new(7, TTL);
        assert_eq!(keeper.lease(), Lease { incarnation: 7, until_us: 0, grant: 0 });
        let first = keeper.answer(&answer(7, 3, 1_000), draw_none);
        assert_eq!(first, Change::Extended(Lease { incarnation: 7, until_us: 1_000 + LENGTH_US, grant: 3 }));
        let second = keeper.answer(&answer(7, 3, 5_000), draw_none);
        assert_eq!(second, Change::Extended(Lease { incarnation: 7, until_us: 5_000 + LENGTH_US, grant: 3 }));
        assert_eq!(keeper.answer(&answer(7, 3, 2_000), draw_none), Change::None, "a late answer");
    }

    #[test]
    fn a_lost_lease_takes_a_new_incarnation() {
        for grant in [0, 4] {
            let mut keeper = Keeper::new(7, TTL);
            keeper.answer(&answer(7, 3, 1_000), draw_none);
            let change = keeper.answer(&answer(7, grant, 2_000), || 8);
            assert_eq!(change, Change::Renewed(Lease { incarnation: 8, until_us: 0, grant: 0 }));
            assert_eq!(keeper.answer(&answer(7, 3, 3_000), draw_none), Change::None, "of the old one");
            assert!(matches!(keeper.answer(&answer(8, 4, 4_000), draw_none), Change::Extended(_)));
        }
    }

    #[test]
    fn waiting_for_another_process_to_lapse_keeps_the_incarnation() {
        let mut keeper = Keeper::new(7, TTL);
        assert_eq!(keeper.answer(&answer(7, 0, 1_000), draw_none), Change::None);
        assert!(matches!(keeper.answer(&answer(7, 3, 2_000), draw_none), Change::Extended(_)));
    }
}
