//! What time it is, where no clock is believed alone: the wall clock, the store's, and the monotonic one.
//!
//! The monotonic clock shows no time of day: it is set by the store's clock (by the wall clock, where the store has none)
//! when those two first agree, and never again. The rules that keep it right: by age something goes only while all of them
//! agree, and by the one that is most behind; and a message is not given a time that lies behind one of them, as it would
//! count as old from the start. Two that are wrong by the same from the start, a node on a store's machine, are believed.

use millrace_protocol::ids::Now;
use millrace_protocol::planted::{self, Fault};

/// Clocks that differ by more than this are not believed, ms.
const APART_MS: i64 = 60_000;

/// See the module's head. Clocks are kept as what they show less the monotonic clock, ms.
#[derive(Debug, Default)]
pub struct Clocks {
    /// The store's, as of the last view. `None`: it has none, or has said nothing yet.
    store: Option<i64>,
    /// What the monotonic clock was set by. `None`: the others have not agreed yet.
    set_by: Option<i64>,
}

impl Clocks {
    /// A view came, with the store's clock if it has one.
    pub fn viewed(&mut self, now: Now, store_ms: Option<u64>) {
        let store_ms = store_ms.filter(|_| !planted::is(Fault::StoreClockIgnored));
        self.store = store_ms.map(|ms| ms as i64 - mono_ms(now)).or(self.store);
        let wall = now.wall_ms as i64 - mono_ms(now);
        let other = self.store.unwrap_or(wall);
        if self.set_by.is_none() && (wall - other).abs() <= APART_MS {
            self.set_by = Some(other);
        }
    }

    /// The time that is past by all of them, ms since 1970; `None`: they don't agree, or no view has come.
    pub fn agreed_ms(&self, now: Now) -> Option<u64> {
        if planted::is(Fault::AgeByAnyClock) {
            return Some(now.wall_ms);
        }
        self.set_by?;
        let (first, last) = self.span(now);
        (last - first <= APART_MS).then_some(first.max(0) as u64)
    }

    /// The time to give to a message: the wall clock's, unless another one is more than a minute ahead of it.
    pub fn given_ms(&self, now: Now) -> u64 {
        if planted::is(Fault::TimesFromTheWallClock) {
            return now.wall_ms;
        }
        let (_, last) = self.span(now);
        now.wall_ms.max((last - APART_MS).max(0) as u64)
    }

    /// What the one that is most behind shows, and the one that is most ahead.
    fn span(&self, now: Now) -> (i64, i64) {
        let wall = now.wall_ms as i64;
        let others = [self.store, self.set_by].into_iter().flatten().map(|less| less + mono_ms(now));
        others.fold((wall, wall), |(first, last), it| (first.min(it), last.max(it)))
    }
}

fn mono_ms(now: Now) -> i64 {
    (now.mono_us / 1_000) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_S: i64 = 3_600;
    const START_S: i64 = 1_000_000;

    /// So many seconds after the start, with the wall clock off by so many.
    fn at(after_s: i64, off_s: i64) -> Now {
        let mono_us = (50 + after_s) as u64 * 1_000_000;
        Now { mono_us, wall_ms: ms(START_S + after_s + off_s) }
    }

    fn ms(s: i64) -> u64 {
        s as u64 * 1_000
    }

    /// Clocks that saw these views: (seconds after the start, the wall clock off by, the store's off by).
    fn clocks(views: &[(i64, i64, Option<i64>)]) -> Clocks {
        let mut clocks = Clocks::default();
        for (after_s, wall_s, store_s) in views {
            clocks.viewed(at(*after_s, *wall_s), store_s.map(|off_s| ms(START_S + after_s + off_s)));
        }
        clocks
    }

    #[test]
    fn clocks_are_believed_while_they_agree() {
        type View = (i64, i64, Option<i64>);
        let cases: &[(&[View], i64, bool, &str)] = &[
            (&[], 0, false, "nothing is known yet"),
            (&[(0, 0, None)], 0, true, "a store without a clock"),
            (&[(0, 0, None)], 30, true, "half a minute off"),
            (&[(0, 0, None)], 5 * HOUR_S, false, "a jump ahead"),
            (&[(0, 0, None)], -5 * HOUR_S, false, "a jump back"),
            (&[(0, 0, Some(0))], 0, true, "all agree"),
            (&[(0, 0, Some(0))], 5 * HOUR_S, false, "the wall clock jumps"),
            (&[(0, 5 * HOUR_S, Some(0))], 5 * HOUR_S, false, "it was wrong from the start"),
            (&[(0, 5 * HOUR_S, Some(0))], 0, false, "put right, but no view came since"),
            (&[(0, 5 * HOUR_S, Some(0)), (1, 0, Some(0))], 0, true, "put right"),
            (&[(0, 0, Some(5 * HOUR_S))], 0, false, "the store's is wrong"),
            (&[(0, 0, Some(5 * HOUR_S)), (1, 0, Some(0))], 0, true, "the store's is put right"),
            (&[(0, 0, Some(0)), (1, 0, Some(5 * HOUR_S))], 0, false, "the store's jumps"),
            (&[(0, 0, Some(0)), (1, 9_000, Some(9_000))], 9_000, false, "both jump, the same way"),
            (&[(0, 0, Some(40))], 0, true, "apart, but not far"),
            (&[(0, 0, Some(40))], -30, false, "together too far"),
        ];
        for (views, off_s, agree, what) in cases {
            let agreed_ms = clocks(views).agreed_ms(at(60, *off_s));
            assert_eq!(agreed_ms.is_some(), *agree, "{what}");
        }
    }

    #[test]
    fn age_goes_by_the_clock_that_is_most_behind() {
        for (wall_s, store_s) in [(0, Some(20)), (20, Some(0)), (0, None)] {
            let clocks = clocks(&[(0, wall_s, store_s)]);
            assert_eq!(clocks.agreed_ms(at(60, wall_s)), Some(ms(START_S + 60)), "{wall_s} {store_s:?}");
        }
    }

    #[test]
    fn no_message_is_given_a_time_long_past() {
        for (views, off_s, given_s, what) in [
            (&[][..], -9_000, -9_000, "nothing else is known"),
            (&[(0, 0, Some(50))], 0, 0, "the wall clock, if it is not far behind"),
            (&[(0, -9_000, Some(0))], -9_000, -60, "behind from the start"),
            (&[(0, 0, None)], -9_000, -60, "a jump back"),
            (&[(0, 0, Some(0)), (1, -9_000, Some(-9_000))], -9_000, -60, "with the store's"),
            (&[(0, 0, Some(0))], 9_000, 9_000, "a jump ahead"),
        ] {
            assert_eq!(clocks(views).given_ms(at(60, off_s)), ms(START_S + 60 + given_s), "{what}");
        }
    }
}
