//! Instruction counts judged against a baseline. Pure: text and numbers in, a judgement and text out.
//!
//! More instructions than the tolerance allows fail, and so do a path without a baseline and a baseline without a
//! path: whoever adds or removes one accepts a new baseline with it. Fewer instructions are told and do not fail: they
//! should be accepted too, or what was won may be lost again unseen.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// How far a count may lie above its baseline, in percent. Counts of one binary repeat to the last instruction; but an
/// edit elsewhere in a crate moves the borders of its codegen units, and with them what is inlined.
pub const TOLERANCE_PERCENT: u64 = 3;

/// The same under another compiler, C library or CPU than the baseline's, which bring other code of their own (a
/// memcpy for every CPU, arithmetic of signatures with and without AVX2).
pub const TOLERANCE_ELSEWHERE_PERCENT: u64 = 15;

const HEAD: &str = "\
# Instructions of one run of each hot path, counted by callgrind. Written by `benches/instructions.sh --accept`; checked
# by `benches/instructions.sh`. The tolerance and its reasons are in src/gate.rs.
";
const ARCHITECTURE: &str = "architecture:";
const MADE_WITH: &str = "made with:";

/// Instructions of one run, by path.
pub type Counts = BTreeMap<String, u64>;

/// What was measured, and what decides over it besides this repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Of the CPU: counts of different ones have nothing to do with each other.
    pub architecture: String,
    /// Compiler, C library, instruction set.
    pub made_with: String,
    /// The counts.
    pub counts: Counts,
}

impl Measured {
    /// Reads a baseline file.
    ///
    /// # Errors
    /// The line that can't be read.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut read = Measured::default();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            if let Some(architecture) = line.strip_prefix(ARCHITECTURE) {
                read.architecture = architecture.trim().to_owned();
            } else if let Some(made_with) = line.strip_prefix(MADE_WITH) {
                read.made_with = made_with.trim().to_owned();
            } else {
                let bad = || format!("expected a path and a number, found {line:?}");
                let (path, count) = line.split_once(char::is_whitespace).ok_or_else(bad)?;
                let count = count.trim().parse().map_err(|_| bad())?;
                if read.counts.insert(path.to_owned(), count).is_some() {
                    return Err(format!("{path} stands there twice"));
                }
            }
        }
        Ok(read)
    }

    /// As a baseline file.
    pub fn write(&self) -> String {
        let mut text =
            format!("{HEAD}{ARCHITECTURE} {}\n{MADE_WITH} {}\n\n", self.architecture, self.made_with);
        let width = width(self.counts.keys());
        for (path, count) in &self.counts {
            let _ = writeln!(text, "{path:width$} {count:>10}");
        }
        text
    }
}

/// What became of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Within,
    Slower,
    Faster,
    New,
    Gone,
}

/// One path, before and now.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    path: String,
    before: Option<u64>,
    now: Option<u64>,
    verdict: Verdict,
}

/// What became of all of them.
#[derive(Debug)]
pub struct Judgement {
    rows: Vec<Row>,
    tolerance_percent: u64,
    notes: Vec<String>,
}

/// Judges what was measured. `None`: the baseline is of another architecture and says nothing here.
pub fn judge(baseline: &Measured, measured: &Measured) -> Option<Judgement> {
    if baseline.architecture != measured.architecture {
        return None;
    }
    let mut notes = Vec::new();
    let mut tolerance_percent = TOLERANCE_PERCENT;
    if baseline.made_with != measured.made_with {
        tolerance_percent = TOLERANCE_ELSEWHERE_PERCENT;
        notes.push(format!("the baseline was made with {}", baseline.made_with));
        notes.push(format!("this is {}: the tolerance is wider", measured.made_with));
    }
    let paths: std::collections::BTreeSet<_> = baseline.counts.keys().chain(measured.counts.keys()).collect();
    let row = |path: &String| {
        let (before, now) = (baseline.counts.get(path).copied(), measured.counts.get(path).copied());
        let verdict = match (before, now) {
            (Some(before), Some(now)) if now * 100 > before * (100 + tolerance_percent) => Verdict::Slower,
            (Some(before), Some(now)) if now * 100 < before * (100 - tolerance_percent) => Verdict::Faster,
            (Some(_), Some(_)) => Verdict::Within,
            (None, _) => Verdict::New,
            (_, None) => Verdict::Gone,
        };
        Row { path: path.clone(), before, now, verdict }
    };
    Some(Judgement { rows: paths.into_iter().map(row).collect(), tolerance_percent, notes })
}

impl Judgement {
    /// Whether the change must not go in like this.
    pub fn fails(&self) -> bool {
        self.count(|verdict| !matches!(verdict, Verdict::Within | Verdict::Faster)) > 0
    }

    fn count(&self, which: impl Fn(Verdict) -> bool) -> usize {
        self.rows.iter().filter(|row| which(row.verdict)).count()
    }

    /// For people: every path whose count is not that of its baseline, and what to do.
    pub fn report(&self) -> String {
        let mut text = String::new();
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
        }
        let changed: Vec<_> = self.rows.iter().filter(|row| row.before != row.now).collect();
        let width = width(changed.iter().map(|row| &row.path));
        if !changed.is_empty() {
            let _ = writeln!(text, "{:width$} {:>10} {:>10} {:>8}", "path", "baseline", "now", "change");
        }
        for row in changed {
            let number = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
            let change = match (row.before, row.now) {
                (Some(before), Some(now)) => format!("{:+.1} %", percent(before, now)),
                _ => "-".to_owned(),
            };
            let mark = match row.verdict {
                Verdict::Within => "",
                Verdict::Slower => "  MORE than the tolerance",
                Verdict::Faster => "  fewer",
                Verdict::New => "  NOT in the baseline",
                Verdict::Gone => "  in the baseline ONLY",
            };
            let _ = writeln!(
                text,
                "{:width$} {:>10} {:>10} {change:>8}{mark}",
                row.path,
                number(row.before),
                number(row.now)
            );
        }
        let within = self.count(|verdict| verdict == Verdict::Within);
        let (all, tolerance) = (self.rows.len(), self.tolerance_percent);
        let _ = writeln!(text, "instruction counts: {within} of {all} paths within {tolerance} %");
        if self.fails() {
            let accept = "if this is meant, accept it: benches/instructions.sh --accept";
            let _ = writeln!(text, "instruction counts: FAILED; {accept}");
        } else if self.count(|verdict| verdict == Verdict::Faster) > 0 {
            let _ = writeln!(text, "keep what was won: benches/instructions.sh --accept");
        }
        text
    }
}

fn percent(before: u64, now: u64) -> f64 {
    (now as f64 / before.max(1) as f64 - 1.0) * 100.0
}

fn width<'a>(paths: impl Iterator<Item = &'a String>) -> usize {
    paths.map(String::len).max().unwrap_or(0).max(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(made_with: &str, counts: &[(&str, u64)]) -> Measured {
        Measured {
            architecture: "x86_64".to_owned(),
            made_with: made_with.to_owned(),
            counts: counts.iter().map(|(path, count)| ((*path).to_owned(), *count)).collect(),
        }
    }

    #[test]
    fn a_baseline_comes_back_from_its_file() {
        let baseline = measured("rustc 1.95.0, glibc 2.36", &[("a/b", 12), ("link/up-64x128", 123_456)]);
        assert_eq!(Measured::read(&baseline.write()), Ok(baseline));
        for (text, error) in [
            ("a/b", "expected a path and a number, found \"a/b\""),
            ("a/b 1x", "expected a path and a number, found \"a/b 1x\""),
            ("a/b 1\na/b 2", "a/b stands there twice"),
        ] {
            assert_eq!(Measured::read(text), Err(error.to_owned()));
        }
    }

    #[test]
    fn each_path_is_judged_by_its_own_baseline() {
        let baseline = measured("x", &[("a/a", 1_000)]);
        for (now, verdict, fails) in [
            (&[("a/a", 1_000)][..], Verdict::Within, false),
            (&[("a/a", 1_030)], Verdict::Within, false),
            (&[("a/a", 1_031)], Verdict::Slower, true),
            (&[("a/a", 970)], Verdict::Within, false),
            (&[("a/a", 969)], Verdict::Faster, false),
            (&[], Verdict::Gone, true),
        ] {
            let judgement = judge(&baseline, &measured("x", now)).expect("the same architecture");
            assert_eq!((judgement.rows[0].verdict, judgement.fails()), (verdict, fails), "{now:?}");
        }
        let judgement = judge(&measured("x", &[]), &baseline).expect("the same architecture");
        assert_eq!((judgement.rows[0].verdict, judgement.fails()), (Verdict::New, true));
    }

    #[test]
    fn another_compiler_has_a_wider_tolerance_and_another_cpu_none() {
        let baseline = measured("rustc 1.95.0", &[("a/a", 1_000)]);
        for (now, fails) in [(1_150, false), (1_151, true)] {
            let judgement = judge(&baseline, &measured("rustc 1.96.0", &[("a/a", now)])).expect("judged");
            assert_eq!(judgement.fails(), fails);
            let report = judgement.report();
            assert!(report.contains("made with rustc 1.95.0") && report.contains("is rustc 1.96.0"));
        }
        let elsewhere = Measured { architecture: "aarch64".to_owned(), ..baseline.clone() };
        assert!(judge(&baseline, &elsewhere).is_none());
    }

    #[test]
    fn the_report_says_what_and_how_much_and_what_to_do() {
        let baseline = measured("x", &[("a/same", 10), ("a/slower", 1_000), ("b/faster", 1_000)]);
        let now = measured("x", &[("a/same", 10), ("a/slower", 1_100), ("b/faster", 900)]);
        let report = judge(&baseline, &now).expect("judged").report();
        let lines: Vec<_> = report.lines().collect();
        assert_eq!(
            lines,
            [
                "path       baseline        now   change",
                "a/slower       1000       1100  +10.0 %  MORE than the tolerance",
                "b/faster       1000        900  -10.0 %  fewer",
                "instruction counts: 1 of 3 paths within 3 %",
                "instruction counts: FAILED; if this is meant, accept it: benches/instructions.sh --accept",
            ]
        );
        let report = judge(&baseline, &baseline).expect("judged").report();
        assert_eq!(report, "instruction counts: 3 of 3 paths within 3 %\n");
    }
}
