//! What a run of schedules showed: one structure, which is the JSON, and the same as text and as a page.
//!
//! Promises that were broken come first and fail the run; then what was done, and how long the fleet took each time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Serialize;

use super::check::Broken;
use super::clients::Counts;
use super::clients::crowd::LineCounts;
use super::faults::Kind;
use super::net::Tool;
use super::round::{Round, Spec};
use super::strike::Struck;
use super::{Durability, Store, VerifyArgs};
use crate::report::html::{Page, document_with_notes};
use crate::report::{self, Shown};

/// Examples of broken promises that are told.
const EXAMPLES_MAX: usize = 100;

/// Times of one kind, in ms.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Times {
    pub p50: u64,
    pub max: u64,
}

impl Times {
    fn of(mut us: Vec<u64>) -> Times {
        us.sort_unstable();
        let at = |index: usize| us.get(index).copied().unwrap_or(0) / 1_000;
        Times { p50: at(us.len().saturating_sub(1) / 2), max: at(us.len().saturating_sub(1)) }
    }
}

/// The faults of one kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OfKind {
    /// How many.
    pub count: u64,
    /// How many could not be carried out.
    pub failed: u64,
    /// How many were still felt when the next one began, so that they have no times of their own.
    pub not_recovered: u64,
    /// From a fault's end until every client was well again, in ms.
    pub recovery_ms: Times,
    /// How long, from its begin to that, some client missed an answer or a delivery for more than a second, in ms.
    pub unwell_ms: Times,
    #[serde(skip)]
    recovery_us: Vec<u64>,
    #[serde(skip)]
    unwell_us: Vec<u64>,
}

/// A schedule in which a promise was broken.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// Runs it again: `--seed`.
    pub seed: u64,
    /// In words.
    pub what: Vec<String>,
    /// What was done.
    pub faults: Vec<String>,
}

/// All of a run.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Report {
    pub scenario: &'static str,
    pub seed: u64,
    pub store: Store,
    pub durability: Durability,
    pub users: u16,
    pub schedules: u64,
    pub seconds: f64,
    pub messages_sent: u64,
    pub acknowledged: u64,
    /// Entries that devices were shown, or had acknowledged as their own.
    pub shown: u64,
    pub logged: u64,
    /// Acknowledged messages that were lost where the durability allows it, and told.
    pub losses_told: u64,
    pub entries_dropped: u64,
    pub entries_missed: u64,
    /// Of all promises, how often each was broken.
    pub broken: BTreeMap<Broken, u64>,
    pub failures: Vec<Failure>,
    /// Processes that ended by themselves, though nothing was done to them.
    pub ended_by_themselves: u64,
    pub failpoint_crashes: u64,
    /// Ends of processes that found their disk full: starts that failed while it was, too.
    pub full_ends: u64,
    pub promotions: u64,
    pub faults: BTreeMap<Kind, OfKind>,
    /// Kinds that this machine does not allow, or this fleet can't have, and why.
    pub left_out: BTreeMap<Kind, String>,
    /// What drops packets.
    pub cut_by: Option<String>,
    /// From the last fault's end until everything was answered and delivered, in ms.
    pub quiet_ms: Times,
    pub not_quiet: u64,
    pub wire: Counts,
    pub lines: LineCounts,
    /// Hits and firings of each fail point.
    pub failpoints: BTreeMap<String, [u64; 2]>,
    pub notes: Vec<String>,
    pub interrupted: bool,
    #[serde(skip)]
    quiet_us: Vec<u64>,
    #[serde(skip)]
    told: BTreeSet<Kind>,
}

impl Report {
    pub(super) fn new(seed: u64, args: &VerifyArgs) -> Self {
        Report {
            scenario: "verify",
            seed,
            store: args.store,
            durability: args.durability,
            users: args.users,
            schedules: 0,
            seconds: 0.0,
            messages_sent: 0,
            acknowledged: 0,
            shown: 0,
            logged: 0,
            losses_told: 0,
            entries_dropped: 0,
            entries_missed: 0,
            broken: BTreeMap::new(),
            failures: Vec::new(),
            ended_by_themselves: 0,
            failpoint_crashes: 0,
            full_ends: 0,
            promotions: 0,
            faults: BTreeMap::new(),
            left_out: BTreeMap::new(),
            cut_by: None,
            quiet_ms: Times::default(),
            not_quiet: 0,
            wire: Counts::default(),
            lines: LineCounts::default(),
            failpoints: BTreeMap::new(),
            notes: Vec::new(),
            interrupted: false,
            quiet_us: Vec::new(),
            told: BTreeSet::new(),
        }
    }

    /// Faults that can't be, told once each.
    pub(super) fn left_out(&mut self, left_out: &[(Kind, String)], tool: Option<Tool>) {
        self.cut_by = tool.map(|tool| tool.to_string());
        for (kind, why) in left_out {
            if self.told.insert(*kind) {
                eprintln!("left out: {}: {why}", kind.name());
                self.left_out.insert(*kind, why.clone());
            }
        }
    }

    pub(super) fn add(&mut self, round: Round) {
        self.schedules += 1;
        self.seconds += round.seconds;
        let verdict = &round.verdict;
        self.messages_sent += verdict.sent;
        self.acknowledged += verdict.acknowledged;
        self.shown += verdict.shown;
        self.logged += verdict.logged;
        self.losses_told += verdict.losses;
        self.entries_dropped += verdict.dropped;
        self.entries_missed += verdict.missed;
        self.ended_by_themselves += round.ended.len() as u64;
        self.failpoint_crashes += round.crashes;
        self.full_ends += round.full_ends;
        self.promotions += round.promotions;
        self.wire.add(&round.counts);
        self.lines.logins += round.lines.logins;
        self.lines.losses += round.lines.losses;
        self.lines.unanswered_requests += round.lines.unanswered_requests;
        for (broken, count) in &verdict.broken {
            *self.broken.entry(*broken).or_default() += count;
        }
        if !round.is_clean() && self.failures.len() < EXAMPLES_MAX {
            let mut what = verdict.examples.clone();
            what.extend(round.ended.iter().cloned());
            what.extend(round.complaint.clone());
            let faults = round.struck.iter().map(|struck| said(&round.struck[0], struck)).collect();
            self.failures.push(Failure { seed: round.seed, what, faults });
        }
        for struck in round.struck {
            let of_kind = self.faults.entry(struck.kind).or_default();
            of_kind.count += 1;
            match (struck.failed.is_some(), struck.well_us.zip(struck.ended_us)) {
                (true, _) => of_kind.failed += 1,
                (false, None) => of_kind.not_recovered += 1,
                (false, Some((well_us, ended_us))) => {
                    of_kind.recovery_us.push(well_us.saturating_sub(ended_us));
                    of_kind.unwell_us.push(struck.unwell_us);
                }
            }
            of_kind.recovery_ms = Times::of(of_kind.recovery_us.clone());
            of_kind.unwell_ms = Times::of(of_kind.unwell_us.clone());
        }
        match round.quiet_s {
            Some(seconds) => self.quiet_us.push((seconds * 1e6) as u64),
            None => self.not_quiet += 1,
        }
        self.quiet_ms = Times::of(self.quiet_us.clone());
    }

    pub(super) fn add_failpoints(&mut self, counts: &BTreeMap<String, [u64; 2]>) {
        for (name, [hits, fired]) in counts {
            let count = self.failpoints.entry(name.clone()).or_default();
            count[0] += hits;
            count[1] += fired;
        }
    }

    fn rows(&self) -> Vec<[String; 2]> {
        let mut rows = Vec::new();
        let mut row = |what: &str, figure: String| rows.push([what.to_owned(), figure]);
        row("schedules", format!("{} in {:.0} s, seed {} on", self.schedules, self.seconds, self.seed));
        row("store", self.store.to_string());
        row("durability", self.durability.to_string());
        row("messages", format!("{} sent, {} acknowledged", self.messages_sent, self.acknowledged));
        row("shown to devices", format!("{} (of {} entries in all logs)", self.shown, self.logged));
        row("acknowledged, lost and told", self.losses_told.to_string());
        let wire = &self.wire;
        row(
            "on the wire",
            format!(
                "{} sends, {} live copies ({} repeats, {} dropped early), {} pages with {} entries",
                wire.sends, wire.live, wire.repeats, wire.dropped_early, wire.pages, wire.page_entries
            ),
        );
        row(
            "refusals",
            format!(
                "{} BUSY, {} OUT_OF_ORDER, {} new streams",
                wire.busy, wire.out_of_order, wire.new_streams
            ),
        );
        row(
            "told",
            format!("{} gaps, {} truncations, {} resyncs", wire.gaps, wire.truncations, wire.resyncs),
        );
        row("peeks", format!("{}, {} with news", wire.peeks, wire.peeks_with_news));
        let lines = &self.lines;
        row("logins", format!("{}, {} connections lost", lines.logins, lines.losses));
        row(
            "quiet after the last fault",
            format!("p50 {} ms, max {} ms", self.quiet_ms.p50, self.quiet_ms.max),
        );
        if self.store == Store::Redis {
            row("another Redis became the primary", format!("{} times", self.promotions));
        }
        row("cuts are made by", self.cut_by.clone().unwrap_or_else(|| "nothing".to_owned()));
        for (kind, of_kind) in &self.faults {
            let mut figure = format!(
                "{} times; well again p50 {} ms, max {} ms after its end; unwell p50 {} ms, max {} ms",
                of_kind.count,
                of_kind.recovery_ms.p50,
                of_kind.recovery_ms.max,
                of_kind.unwell_ms.p50,
                of_kind.unwell_ms.max
            );
            if of_kind.failed > 0 {
                let _ = write!(figure, "; {} could not be done", of_kind.failed);
            }
            if of_kind.not_recovered > 0 {
                let _ = write!(figure, "; {} not well in time", of_kind.not_recovered);
            }
            row(&format!("  {}", kind.name()), figure);
        }
        for (kind, why) in &self.left_out {
            row(&format!("  {}", kind.name()), format!("left out: {why}"));
        }
        if self.faults.contains_key(&Kind::DiskFull) {
            row("processes that a full disk ended", self.full_ends.to_string());
        }
        if !self.failpoints.is_empty() {
            row("crashes at fail points", self.failpoint_crashes.to_string());
        }
        for (name, [hits, fired]) in &self.failpoints {
            row(&format!("  {name}"), format!("{hits} hits, {fired} fired"));
        }
        rows
    }

    fn verdict(&self) -> String {
        let faults = self.faults();
        match faults.is_empty() {
            true => "every promise held".to_owned(),
            false => format!("failed: {}", faults.join("; ")),
        }
    }
}

impl Shown for Report {
    fn table(&self) -> String {
        let mut text = String::new();
        for [what, figure] in self.rows() {
            let _ = writeln!(text, "{what:<36} {figure}");
        }
        for failure in &self.failures {
            let _ = writeln!(text, "\nseed {}:", failure.seed);
            for line in failure.faults.iter().chain(&failure.what) {
                let _ = writeln!(text, "  {line}");
            }
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        let _ = writeln!(text, "{}", self.verdict());
        text
    }

    fn json(&self) -> String {
        report::text(self)
    }

    fn page(&self) -> String {
        let rows: Vec<Vec<String>> = self.rows().into_iter().map(Vec::from).collect();
        let failures = self.failures.iter().map(|failure| {
            ("seed", format!("{}: {} — {}", failure.seed, failure.faults.join("; "), failure.what.join("; ")))
        });
        let notes: Vec<(&str, String)> =
            failures.chain(self.notes.iter().map(|note| ("note", note.clone()))).collect();
        let page = Page {
            title: "millrace: verification under faults",
            is_good: self.faults().is_empty(),
            verdict: &self.verdict(),
            trouble: None,
            heads: &[],
            rows: &rows,
            curves: &[],
            footer: "millrace-loadgen verify",
        };
        document_with_notes(&page, &notes)
    }

    fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> =
            self.broken.iter().map(|(broken, count)| format!("{broken:?} {count} times")).collect();
        if self.ended_by_themselves > 0 {
            faults.push(format!("{} processes ended by themselves", self.ended_by_themselves));
        }
        if self.schedules == 0 {
            faults.push("no schedule was finished".to_owned());
        }
        faults
    }
}

/// A fault as it was done, with its time after the first.
fn said(first: &Struck, struck: &Struck) -> String {
    let at_s = (struck.begun_us - first.begun_us) as f64 / 1e6;
    let boot_s = struck.begun_us as f64 / 1e6;
    let mut text = format!("{at_s:.1} s (boot {boot_s:.3}): {}", struck.what);
    if let Some(why) = &struck.failed {
        let _ = write!(text, " (could not be done: {why})");
    }
    text
}

/// A schedule in a line.
pub(super) fn line(spec: &Spec, round: &Round) -> String {
    let verdict = &round.verdict;
    let quiet = round.quiet_s.map_or("not quiet in time".to_owned(), |s| format!("quiet after {s:.1} s"));
    let outcome = match round.is_clean() {
        true => "clean".to_owned(),
        false => format!("BROKEN {:?}, {} processes ended", verdict.broken, round.ended.len()),
    };
    format!(
        "schedule {} (seed {}): {} faults, {} acknowledged, {} shown, {} lost, {quiet}: {outcome}",
        spec.number + 1,
        spec.seed,
        round.struck.len(),
        verdict.acknowledged,
        verdict.shown,
        verdict.losses,
    )
}
