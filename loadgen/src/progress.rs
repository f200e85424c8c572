//! What a person sees while a run lasts: a bar on a terminal, a line per second elsewhere. Results are not its
//! business; all of it goes to stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(2);

/// The display of one run.
#[derive(Debug)]
pub struct Progress {
    is_terminal: bool,
    bar: Option<ProgressBar>,
    phase: String,
    printed: Instant,
}

impl Progress {
    /// On stderr.
    pub fn new() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Progress { is_terminal, bar: None, phase: String::new(), printed: Instant::now() }
    }

    /// A new phase of `total` steps.
    pub fn phase(&mut self, name: &str, total: u64) {
        self.done();
        self.phase = name.to_owned();
        if self.is_terminal {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
            let style = ProgressStyle::with_template("{prefix:24} [{bar:30}] {pos}/{len} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            bar.set_prefix(name.to_owned());
            self.bar = Some(bar);
        } else {
            eprintln!("{name}: {total}");
            self.printed = Instant::now();
        }
    }

    /// So far, with a few words.
    pub fn at(&mut self, position: u64, words: impl FnOnce() -> String) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(position);
                bar.set_message(words());
            }
            None if self.printed.elapsed() >= PLAIN_EVERY => {
                self.printed = Instant::now();
                eprintln!("{}: {position} {}", self.phase, words());
            }
            None => {}
        }
    }

    /// A line that stays.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// Ends the phase.
    pub fn done(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.done();
    }
}
