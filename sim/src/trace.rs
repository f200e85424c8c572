//! What happened, as one number: two runs of a seed agree on it or something is not deterministic. On demand, as text.

use std::fmt::Write as _;

/// Lines kept for a report when nothing is printed.
const LINES_KEPT: usize = 200;

/// The hash, and the text if it is wanted.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    /// Print every line.
    pub print: bool,
    /// Keep the last lines.
    pub keep: bool,
    lines: std::collections::VecDeque<String>,
}

impl Trace {
    /// Takes in a number.
    pub fn number(&mut self, number: u64) {
        self.hash = (self.hash.rotate_left(5) ^ number).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    /// Takes in bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        let (chunks, rest) = bytes.as_chunks::<8>();
        for chunk in chunks {
            self.number(u64::from_le_bytes(*chunk));
        }
        for byte in rest {
            self.number(u64::from(*byte));
        }
    }

    /// A line of text, made only when somebody reads it.
    pub fn say(&mut self, at_us: u64, line: impl FnOnce(&mut String)) {
        if !self.print && !self.keep {
            return;
        }
        let mut text = String::new();
        let _ = write!(text, "{:>10.6} ", at_us as f64 / 1e6);
        line(&mut text);
        if self.print {
            println!("{text}");
        }
        if self.keep {
            if self.lines.len() == LINES_KEPT {
                self.lines.pop_front();
            }
            self.lines.push_back(text);
        }
    }

    /// The hash so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}
