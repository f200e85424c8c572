//! Lines for the operator, on standard error: time, level and text, as a gateway writes them, since in a standalone
//! process both write to the same place. What a peer can cause is bounded: at most [`LINES_PER_S`] a second, and the
//! next line that gets through says how many did not.

use std::fmt::Display;
use std::io::Write;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use millrace_edge::clock;

/// Lines a second at most: a person reads fewer, and a disk keeps up with more.
const LINES_PER_S: u32 = 50;

#[derive(Debug)]
struct Budget {
    second: u64,
    written: u32,
    dropped: u64,
}

static BUDGET: Mutex<Budget> = Mutex::new(Budget { second: 0, written: 0, dropped: 0 });

impl Budget {
    /// `None`: drop this line. Else write it, and say that so many were dropped before it.
    fn take(&mut self, second: u64) -> Option<u64> {
        if second != self.second {
            (self.second, self.written) = (second, 0);
        }
        if self.written >= LINES_PER_S {
            self.dropped += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

/// Something went as it should.
pub(crate) fn info(text: impl Display) {
    line("INFO ", text);
}

/// Something works less well than it could, or was refused.
pub(crate) fn warn(text: impl Display) {
    line("WARN ", text);
}

/// Something does not work.
pub(crate) fn error(text: impl Display) {
    line("ERROR", text);
}

fn line(level: &str, text: impl Display) {
    let verdict =
        BUDGET.lock().unwrap_or_else(|broken| broken.into_inner()).take(clock::boot_us() / 1_000_000);
    let Some(dropped) = verdict else { return };
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut line = format!("{} {level} {text}", timestamp(since.as_secs(), since.subsec_millis()));
    if dropped > 0 {
        line += &format!(" ({dropped} lines before this were dropped)");
    }
    line.push('\n');
    // A closed stderr must not end the process.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// RFC 3339 in UTC with milliseconds.
fn timestamp(secs: u64, millis: u32) -> String {
    let (year, month, day) = civil(secs / 86_400);
    let (hour, minute, second) = (secs / 3_600 % 24, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Year, month and day of a day counted from 1970-01-01 (Howard Hinnant's `civil_from_days`, for days after 1970).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_those_of_the_calendar() {
        for (secs, expected) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (1_709_251_199, "2024-02-29T23:59:59.007Z"),
            (1_735_689_600, "2025-01-01T00:00:00.007Z"),
        ] {
            assert_eq!(timestamp(secs, 7), expected);
        }
    }

    #[test]
    fn a_flood_is_counted_not_written() {
        let mut budget = Budget { second: 0, written: 0, dropped: 0 };
        let written = (0..1_000).filter(|_| budget.take(7).is_some()).count();
        assert_eq!(written, LINES_PER_S as usize);
        assert_eq!(budget.take(8), Some(1_000 - u64::from(LINES_PER_S)));
        assert_eq!(budget.take(8), Some(0));
    }
}
