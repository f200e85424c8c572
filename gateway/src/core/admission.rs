//! Who may try to log in: a cap on connections that have not, and a rate of logins.
//!
//! A full cap closes new connections at once (there is nothing to say it in yet); a spent rate refuses with BUSY. While
//! more logins are under way than are soon answered, or more clients have yet to say who they are than can do so before
//! their deadline, nobody is accepted: who waits in the kernel's backlog costs nothing, and who was accepted would only
//! wait here until its deadline.

use super::limits::{LOGINS_UNDER_WAY_MAX, UNAUTHENTICATED_HOLD};

/// A rate with a burst of one second's worth.
#[derive(Debug)]
pub struct Rate {
    per_s: u64,
    /// Millionths of one permission.
    level: u64,
    filled_us: u64,
}

impl Rate {
    /// Full at first.
    pub fn new(per_s: u64) -> Self {
        Rate { per_s, level: per_s * 1_000_000, filled_us: 0 }
    }

    /// Takes one permission if there is one.
    pub fn take(&mut self, now_us: u64) -> bool {
        let elapsed = now_us.saturating_sub(self.filled_us).min(1_000_000);
        self.filled_us = self.filled_us.max(now_us);
        self.level = (self.level + elapsed * self.per_s).min(self.per_s * 1_000_000);
        if self.level < 1_000_000 {
            return false;
        }
        self.level -= 1_000_000;
        true
    }
}

/// Counts and rates at the door.
#[derive(Debug)]
pub struct Admission {
    /// Logins that wait for a check or for their route.
    logging_in: u32,
    holds: bool,
    unauthenticated: u32,
    unauthenticated_max: u32,
    logins: Rate,
}

impl Admission {
    /// Nobody yet.
    pub fn new(unauthenticated_max: u32, logins_per_s: u32) -> Self {
        let logins = Rate::new(logins_per_s.into());
        Admission { logging_in: 0, holds: false, unauthenticated: 0, unauthenticated_max, logins }
    }

    /// A connection came: whether it may stay.
    pub fn accept(&mut self) -> bool {
        let room = self.unauthenticated < self.unauthenticated_max;
        self.unauthenticated += u32::from(room);
        room
    }

    /// One that was accepted logged in or left.
    pub fn settle(&mut self) {
        self.unauthenticated -= 1;
    }

    /// Connections that have not logged in.
    pub fn unauthenticated(&self) -> u32 {
        self.unauthenticated
    }

    /// A login is under way.
    pub fn begin_login(&mut self) {
        self.logging_in += 1;
    }

    /// A login that was under way was answered, or its connection is gone.
    pub fn end_login(&mut self) {
        self.logging_in -= 1;
    }

    /// Logins under way.
    pub fn logging_in(&self) -> u32 {
        self.logging_in
    }

    /// Whether nobody should be accepted now: from one of the limits on until half of it is left.
    pub fn holds(&mut self) -> bool {
        let part = if self.holds { 2 } else { 1 };
        self.holds = self.logging_in >= LOGINS_UNDER_WAY_MAX / part
            || self.unauthenticated >= UNAUTHENTICATED_HOLD / part;
        self.holds
    }

    /// A login came: whether it may go on.
    pub fn login(&mut self, now_us: u64) -> bool {
        self.logins.take(now_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_that_say_nothing_hold_too() {
        let mut door = Admission::new(u32::MAX, 1);
        (0..UNAUTHENTICATED_HOLD).for_each(|_| {
            assert!(!door.holds() && door.accept());
        });
        assert!(door.holds());
        (0..=UNAUTHENTICATED_HOLD / 2).for_each(|_| door.settle());
        assert!(!door.holds());
    }

    #[test]
    fn a_full_house_holds_until_half_of_it_is_answered() {
        let mut door = Admission::new(1, 1);
        (0..LOGINS_UNDER_WAY_MAX).for_each(|_| {
            assert!(!door.holds());
            door.begin_login();
        });
        assert!(door.holds());
        (0..=LOGINS_UNDER_WAY_MAX / 2).for_each(|_| {
            assert!(door.holds());
            door.end_login();
        });
        assert!(!door.holds());
    }

    #[test]
    fn a_rate_allows_its_rate() {
        let mut rate = Rate::new(100);
        assert_eq!((0..1000).filter(|_| rate.take(5_000_000)).count(), 100, "the burst");
        assert!(!rate.take(5_009_999) && rate.take(5_010_000) && !rate.take(5_010_000));
        assert_eq!(
            (0..1000).filter(|_| rate.take(60_000_000)).count(),
            100,
            "never more than a second's worth"
        );
        assert_eq!((0..10_000u64).filter(|i| rate.take(70_000_000 + i * 1_000)).count(), 1_099);
    }

    #[test]
    fn the_cap_counts() {
        let mut door = Admission::new(2, 1);
        assert!(door.accept() && door.accept() && !door.accept());
        door.settle();
        assert!(door.accept());
        assert_eq!(door.unauthenticated(), 2);
    }
}
