//! Lines for the operator, on standard error. What a peer can cause is bounded: at most [`LINES_PER_S`] a second, and
//! the next line that gets through says how many did not.

use std::sync::Mutex;

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

/// Writes a line.
pub(crate) fn line(text: impl std::fmt::Display) {
    let verdict =
        BUDGET.lock().unwrap_or_else(|broken| broken.into_inner()).take(clock::boot_us() / 1_000_000);
    match verdict {
        None => {}
        Some(0) => eprintln!("millrace-dispatcher: {text}"),
        Some(dropped) => eprintln!("millrace-dispatcher: {text} ({dropped} lines before this were dropped)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_not_written() {
        let mut budget = Budget { second: 0, written: 0, dropped: 0 };
        let written = (0..1_000).filter(|_| budget.take(7).is_some()).count();
        assert_eq!(written, LINES_PER_S as usize);
        assert_eq!(budget.take(8), Some(1_000 - u64::from(LINES_PER_S)));
        assert_eq!(budget.take(8), Some(0));
    }
}
