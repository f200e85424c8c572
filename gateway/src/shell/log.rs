//! Lines for whoever runs the process: time, level and text on stderr, nothing else.
//!
//! Standard output is left to what programs read (the `listening` line, a token). What can happen often is said
//! once and counted after that by its caller: a log must not grow with the number of clients.

use std::fmt;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// Something went as it should.
pub fn info(text: fmt::Arguments<'_>) {
    line("INFO ", text);
}

/// Something works less well than it could, or was refused.
pub fn warn(text: fmt::Arguments<'_>) {
    line("WARN ", text);
}

/// Something does not work.
pub fn error(text: fmt::Arguments<'_>) {
    line("ERROR", text);
}

fn line(level: &str, text: fmt::Arguments<'_>) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let line = format!("{} {level} {text}\n", timestamp(since.as_secs(), since.subsec_millis()));
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
}
