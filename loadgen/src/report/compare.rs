//! The comparison in its three forms: one row for each server, medians over its rounds with the spread beside them.
//!
//! The fields of the JSON never change their meaning; others may be added.

use hdrhistogram::Histogram;
use serde::Serialize;

use super::html::{Curve, Page, document_with_notes};
use super::table::{bytes, micros, time};
use super::{Shown, columns, curve, text};
use crate::compare::{Found, Missing, Plan, Sample, Server};
use crate::measure::Machine;

/// A figure over all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// Of these values; `None` of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Spread { median, min, max })
    }

    /// The median and, where there is one, the spread, in words.
    fn words(self, unit: impl Fn(f64) -> String) -> Cell {
        let (low, high) = (unit(self.min), unit(self.max));
        let spread = if low == high { String::new() } else { format!("{low} - {high}") };
        Cell { text: unit(self.median), spread }
    }
}

/// One cell of the table.
#[derive(Debug, Default)]
struct Cell {
    text: String,
    spread: String,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Cell { text, spread: String::new() }
    }
}

/// What became of one server, as it is gathered.
#[derive(Debug)]
pub enum Outcome {
    /// It is not installed.
    Missing(Missing),
    /// It is.
    Here {
        /// Where.
        found: Found,
        /// As it says.
        version: Option<String>,
        /// Of the rounds that went to their end.
        samples: Vec<Sample>,
        /// Why the others did not.
        failures: Vec<String>,
    },
}

impl Outcome {
    /// Looks for the server.
    pub fn of(server: Server) -> Self {
        match server.find() {
            Err(missing) => Outcome::Missing(missing),
            Ok(found) => {
                let version = server.version(&found);
                Outcome::Here { found, version, samples: Vec::new(), failures: Vec::new() }
            }
        }
    }
}

/// Figures of one server: see [`Sample`] for each. Times in microseconds.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Figures {
    pub user_bytes_per_subscriber: Option<Spread>,
    pub fixed_bytes: Option<Spread>,
    pub connect_cpu_us: Option<Spread>,
    pub connects_per_s: Option<Spread>,
    pub idle_cpu_us_per_subscriber_s: Option<Spread>,
    pub cpu_us_per_delivery: Option<Spread>,
    /// With what silence costs.
    pub gross_cpu_us_per_delivery: Option<Spread>,
    /// CPU per delivery over that of the io_uring floor in the same round.
    pub cpu_ratio_to_floor: Option<Spread>,
    pub latency_p50_us: Option<Spread>,
    pub latency_p99_us: Option<Spread>,
    pub latency_p999_us: Option<Spread>,
    pub last_receiver_p50_us: Option<Spread>,
}

/// One server.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// As flags name it.
    pub server: &'static str,
    /// As people do.
    pub title: &'static str,
    /// `measured`, `failed` (no round went to its end), `missing`, or `skipped` (by Ctrl-C).
    pub status: &'static str,
    /// As it says.
    pub version: Option<String>,
    /// What brings it, where it is missing.
    pub comes_from: Option<&'static str>,
    /// Why a round failed or what went wrong in one, in words.
    pub reasons: Vec<String>,
    /// What is to be known about its figures.
    pub note: &'static str,
    /// Over all rounds.
    pub figures: Figures,
    /// Over all rounds.
    pub deliveries_expected: u64,
    /// Over all rounds.
    pub deliveries: u64,
    /// Over all rounds.
    pub lost: u64,
    /// Over all rounds.
    pub duplicates: u64,
    /// Over all rounds.
    pub out_of_order: u64,
    /// Over all rounds.
    pub disconnects: u64,
    /// Each round.
    pub rounds: Vec<Sample>,
    #[serde(skip)]
    is_own: bool,
}

/// What a comparison showed.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Always `compare`.
    pub scenario: &'static str,
    /// What was run.
    pub command: String,
    /// Of the one topic.
    pub subscribers: u32,
    /// Of a message.
    pub payload_bytes: usize,
    /// Messages of a round.
    pub messages: u32,
    /// A second.
    pub rate: f64,
    /// Rounds.
    pub repeat: u32,
    /// Cores of the server.
    pub server_cores: Vec<usize>,
    /// Core of the clients.
    pub client_cores: Vec<usize>,
    /// The backend of the clients' sockets, with the reason for it.
    pub client_backend: String,
    /// Where it was run.
    pub machine: Machine,
    /// By Ctrl-C.
    pub interrupted: bool,
    /// In the order of a round.
    pub rows: Vec<Row>,
    /// Latency of all deliveries of all rounds.
    #[serde(skip)]
    curves: Vec<Curve>,
}

impl Row {
    /// `floor` is the CPU per delivery of the io_uring floor in each round.
    fn new(server: Server, outcome: Outcome, subscribers: f64, floor: &[f64]) -> Self {
        let (status, version, comes_from, reasons, samples) = match outcome {
            Outcome::Missing(missing) => {
                let reason = format!("{} is not installed: {}", missing.what, missing.comes_from);
                ("missing", None, Some(missing.comes_from), vec![reason], Vec::new())
            }
            Outcome::Here { version, samples, mut failures, .. } => {
                let status = match (samples.is_empty(), failures.is_empty()) {
                    (false, _) => "measured",
                    (true, false) => "failed",
                    (true, true) => "skipped",
                };
                failures.extend(samples.iter().filter_map(|sample| sample.trouble.clone()));
                failures.dedup();
                (status, version, None, failures, samples)
            }
        };
        let spread = |figure: &dyn Fn(&Sample) -> Option<f64>| Spread::of(samples.iter().filter_map(figure));
        let sum = |count: &dyn Fn(&Sample) -> u64| samples.iter().map(count).sum();
        let ratios =
            samples.iter().zip(floor).filter_map(|(sample, floor)| Some(sample.cpu_us_per_delivery? / floor));
        let figures = Figures {
            user_bytes_per_subscriber: spread(&|s| Some(s.user_bytes_per_subscriber)),
            fixed_bytes: spread(&|s| Some(s.fixed_bytes as f64)),
            connect_cpu_us: spread(&|s| Some(s.connect_cpu_us)),
            connects_per_s: spread(&|s| Some(s.connects_per_s)),
            idle_cpu_us_per_subscriber_s: spread(&|s| Some(s.idle_cpu_us_per_s / subscribers)),
            cpu_us_per_delivery: spread(&|s| s.cpu_us_per_delivery),
            gross_cpu_us_per_delivery: spread(&|s| s.gross_cpu_us_per_delivery),
            cpu_ratio_to_floor: Spread::of(ratios),
            latency_p50_us: spread(&|s| Some(s.latency_us.p50 as f64)),
            latency_p99_us: spread(&|s| Some(s.latency_us.p99 as f64)),
            latency_p999_us: spread(&|s| Some(s.latency_us.p999 as f64)),
            last_receiver_p50_us: spread(&|s| Some(s.last_receiver_us.p50 as f64)),
        };
        Row {
            server: server.name(),
            title: server.title(),
            status,
            version,
            comes_from,
            reasons,
            note: server.note(),
            figures,
            deliveries_expected: sum(&|s| s.deliveries_expected),
            deliveries: sum(&|s| s.deliveries),
            lost: sum(&|s| s.lost),
            duplicates: sum(&|s| s.duplicates),
            out_of_order: sum(&|s| s.out_of_order),
            disconnects: sum(&|s| s.disconnects),
            rounds: samples,
            is_own: server.is_own(),
        }
    }

    /// What is said beside the figures.
    fn remarks(&self) -> String {
        let counts = [
            (self.lost, "lost"),
            (self.duplicates, "repeated"),
            (self.out_of_order, "out of order"),
            (self.disconnects, "clients dropped"),
        ];
        let mut remarks: Vec<String> = (counts.iter().filter(|(count, _)| *count > 0))
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        remarks.extend(self.reasons.iter().cloned());
        if self.status != "missing" {
            remarks.push(self.note.to_owned());
        }
        remarks.join("; ")
    }

    fn cells(&self) -> Vec<Cell> {
        let figures = &self.figures;
        let cell = |spread: Option<Spread>, unit: &dyn Fn(f64) -> String| {
            spread.map_or_else(|| Cell::from("-".to_owned()), |spread| spread.words(unit))
        };
        let us = |us: f64| time(us as u64);
        let received = match self.status {
            "measured" => format!("{} of {}", self.deliveries, self.deliveries_expected),
            status => status.to_owned(),
        };
        vec![
            match &self.version {
                Some(version) => format!("{} {version}", self.title),
                None => self.title.to_owned(),
            }
            .into(),
            cell(figures.user_bytes_per_subscriber, &bytes),
            cell(figures.fixed_bytes, &bytes),
            cell(figures.connect_cpu_us, &micros),
            cell(figures.idle_cpu_us_per_subscriber_s, &micros),
            cell(figures.cpu_us_per_delivery, &micros),
            cell(figures.gross_cpu_us_per_delivery, &micros),
            cell(figures.cpu_ratio_to_floor, &|ratio| format!("{ratio:.2}")),
            cell(figures.latency_p50_us, &us),
            cell(figures.latency_p99_us, &us),
            cell(figures.latency_p999_us, &us),
            cell(figures.last_receiver_p50_us, &us),
            received.into(),
        ]
    }
}

/// Heads of the columns.
const HEADS: [&str; 13] = [
    "server",
    "memory / subscriber",
    "fixed part",
    "connect CPU",
    "idle CPU / s",
    "CPU / delivery",
    "with silence",
    "/ floor",
    "p50",
    "p99",
    "p99.9",
    "last receiver p50",
    "received",
];

/// How the figures are meant, for all forms.
const MEANING: &str = "memory: PSS of all processes of the server with all idle subscribers, less that with none, \
    over their number; CPU: of all processes, kernel included, in silence for one subscriber and second, deliveries less what silence costs; latency: of all \
    deliveries, from when the message was due; medians of rounds, and least - most";

impl Comparison {
    /// Of what was gathered.
    pub fn new(plan: &Plan, machine: Machine, outcomes: Vec<(Server, Outcome)>, interrupted: bool) -> Self {
        let samples = |outcome: &Outcome| match outcome {
            Outcome::Here { samples, .. } => samples.clone(),
            Outcome::Missing(_) => Vec::new(),
        };
        let floor: Vec<f64> = (outcomes.iter().filter(|(server, _)| *server == Server::FloorUring))
            .flat_map(|(_, outcome)| samples(outcome))
            .filter_map(|sample| sample.cpu_us_per_delivery)
            .collect();
        let subscribers = plan.settings.connections;
        let rows: Vec<Row> = outcomes
            .into_iter()
            .map(|(server, outcome)| Row::new(server, outcome, subscribers.into(), &floor))
            .collect();
        let backend = rows.iter().flat_map(|row| &row.rounds).map(|sample| sample.backend.clone()).next();
        let curves = rows.iter().filter(|row| !row.rounds.is_empty()).map(|row| {
            let mut all: Histogram<u64> = crate::measure::histogram();
            for sample in &row.rounds {
                all.add(&sample.latency).expect("histograms of the same shape");
            }
            (row.server.to_owned(), curve(&all))
        });
        Comparison {
            scenario: "compare",
            command: std::env::args().collect::<Vec<_>>().join(" "),
            subscribers,
            payload_bytes: plan.settings.common.payload_bytes,
            messages: plan.messages,
            rate: 1e6 / plan.gap_us as f64,
            repeat: plan.repeat,
            server_cores: plan.settings.cores.server.clone(),
            client_cores: plan.settings.cores.load.iter().take(1).copied().collect(),
            client_backend: backend.unwrap_or_default(),
            machine,
            interrupted,
            curves: curves.collect(),
            rows,
        }
    }

    fn title(&self) -> String {
        format!("millrace compare: {} subscribers of one topic", self.subscribers)
    }

    fn verdict(&self) -> String {
        match self.faults() {
            faults if !faults.is_empty() => format!("FAILED: {}", faults.join(", ")),
            _ if self.interrupted => "interrupted: nothing went wrong until then".to_owned(),
            _ => "all is well".to_owned(),
        }
    }

    fn conditions(&self) -> String {
        let cores = |cores: &[usize]| match cores {
            [] => "any core".to_owned(),
            cores => format!("core {}", crate::floor::list(cores)),
        };
        format!(
            "{} messages of {} B at {} a second, {} rounds; server on {}, clients on {} ({}); {}",
            self.messages,
            self.payload_bytes,
            self.rate,
            self.repeat,
            cores(&self.server_cores),
            cores(&self.client_cores),
            self.client_backend,
            self.machine,
        )
    }
}

impl Shown for Comparison {
    fn table(&self) -> String {
        let mut lines = vec![HEADS.map(str::to_owned).to_vec()];
        for row in &self.rows {
            let (texts, spreads): (Vec<String>, Vec<String>) =
                row.cells().into_iter().map(|cell| (cell.text, cell.spread)).unzip();
            lines.push(texts);
            if spreads.iter().any(|spread| !spread.is_empty()) {
                lines.push(spreads);
            }
        }
        let widths = columns::widths(&lines);
        let mut text = format!("\n{}\n{}\n\n", self.title(), self.conditions());
        for line in &lines {
            text.push_str(&format!("  {}\n", columns::line(line, &widths)));
        }
        text.push('\n');
        for row in &self.rows {
            text.push_str(&format!("  {}: {}\n", row.title, row.remarks()));
        }
        text.push_str(&format!("\n  {MEANING}\n  {}\n", self.verdict()));
        text
    }

    fn json(&self) -> String {
        text(self)
    }

    fn page(&self) -> String {
        let words = |cell: Cell| match cell.spread.is_empty() {
            true => cell.text,
            false => format!("{} ({})", cell.text, cell.spread),
        };
        let rows: Vec<Vec<String>> =
            (self.rows.iter()).map(|row| row.cells().into_iter().map(words).collect()).collect();
        let notes: Vec<(&str, String)> = self.rows.iter().map(|row| (row.title, row.remarks())).collect();
        let page = Page {
            title: &self.title(),
            is_good: self.faults().is_empty(),
            verdict: &self.verdict(),
            trouble: None,
            heads: &HEADS,
            rows: &rows,
            curves: &self.curves,
            footer: &format!("{}. {MEANING}. Command: {}", self.conditions(), self.command),
        };
        document_with_notes(&page, &notes)
    }

    /// Losses of others are figures; ours are faults.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for row in self.rows.iter().filter(|row| row.is_own) {
            if row.status == "failed" || !self.interrupted && row.rounds.len() < self.repeat as usize {
                faults.push(format!("{} failed", row.title));
            }
            for (count, what) in
                [(row.lost, "lost"), (row.duplicates, "repeated"), (row.out_of_order, "out of order")]
            {
                if count > 0 {
                    faults.push(format!("{}: {count} deliveries {what}", row.title));
                }
            }
        }
        if !self.interrupted && self.rows.iter().all(|row| row.rounds.is_empty()) {
            faults.push("nothing was measured".to_owned());
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::CompareArgs;
    use crate::measure::{Percentiles, histogram};
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CompareArgs,
    }

    fn sample(cpu_us: f64, lost: u64) -> Sample {
        let mut latency = histogram();
        (1..=100).for_each(|us| latency.record(us * 10).unwrap());
        Sample {
            fixed_bytes: 5_000_000,
            user_bytes_per_subscriber: 1_000.0,
            connect_cpu_us: 50.0,
            connects_per_s: 5_000.0,
            idle_cpu_us_per_s: 20.0,
            cpu_us_per_delivery: Some(cpu_us),
            gross_cpu_us_per_delivery: Some(cpu_us + 1.0),
            latency_us: Percentiles::of(&latency),
            last_receiver_us: Percentiles::of(&latency),
            deliveries_expected: 100,
            deliveries: 100 - lost,
            lost,
            duplicates: 0,
            out_of_order: 0,
            disconnects: 0,
            late_sends: 0,
            late_us_max: 0,
            trouble: (lost > 0).then(|| "a cause".to_owned()),
            latency,
            backend: "sim".to_owned(),
        }
    }

    fn comparison(outcomes: Vec<(Server, Outcome)>) -> Comparison {
        let line = ["compare", "--subscribers=10", "--messages=10", "--repeat=2"];
        let plan = Plan::new(&Line::parse_from(line).args).unwrap();
        Comparison::new(&plan, Machine::here(), outcomes, false)
    }

    fn here(samples: Vec<Sample>, failures: Vec<String>) -> Outcome {
        Outcome::Here { found: Found::Own, version: Some("1.2".to_owned()), samples, failures }
    }

    fn outcomes() -> Vec<(Server, Outcome)> {
        let missing = Missing { what: "nats-server", comes_from: "Debian package nats-server" };
        vec![
            (Server::FloorUring, here(vec![sample(8.0, 0), sample(10.0, 0)], vec![])),
            (Server::MillraceTcp, here(vec![sample(8.0, 0), sample(12.0, 0)], vec![])),
            (Server::Redis, here(vec![], vec!["it broke <here>".to_owned()])),
            (Server::Nats, Outcome::Missing(missing)),
        ]
    }

    #[test]
    fn medians_spreads_and_ratios_within_a_round() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([]), None);
        let report = comparison(outcomes());
        let ratio = report.rows[1].figures.cpu_ratio_to_floor.unwrap();
        assert_eq!((ratio.min, ratio.max), (1.0, 1.2));
        assert_eq!(report.rows[1].figures.idle_cpu_us_per_subscriber_s.unwrap().median, 2.0);
        let table = report.table();
        for part in [
            "10.00 us",
            "8.00 us - 12.00 us",
            "200 of 200",
            "failed",
            "it broke",
            "missing",
            "nats-server is not installed: Debian package nats-server",
            "all is well",
        ] {
            assert!(table.contains(part), "{part} in {table}");
        }
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["rows"][3]["comes_from"], "Debian package nats-server");
        assert_eq!(json["rows"][1]["figures"]["cpu_us_per_delivery"]["median"], 10.0);
        assert!(json["machine"]["kernel"].is_string() && json["command"].is_string());
        let page = report.page();
        assert!(page.contains("it broke &lt;here&gt;") && page.contains("<polyline"));
        assert!(
            page.contains("<body class=\"wide\">") && page.contains("<p><b>millrace, TCP</b>: every client")
        );
    }

    #[test]
    fn losses_of_ours_fail_the_run_and_those_of_others_do_not() {
        let mut all = outcomes();
        all.push((Server::Nchan, here(vec![sample(9.0, 5), sample(9.0, 0)], vec![])));
        let report = comparison(all);
        assert!(report.faults().is_empty(), "{:?}", report.faults());
        assert!(report.table().contains("5 lost; a cause"));
        let mut all = outcomes();
        all[1].1 = here(vec![sample(9.0, 5), sample(9.0, 0)], vec![]);
        assert_eq!(comparison(all).faults(), ["millrace, TCP: 5 deliveries lost"]);
        let mut all = outcomes();
        all[0].1 = here(vec![sample(9.0, 0)], vec!["it broke".to_owned()]);
        assert_eq!(comparison(all).faults(), ["floor: io_uring failed"]);
        let nobody = vec![(Server::Redis, here(vec![], vec![]))];
        assert_eq!(comparison(nobody).faults(), ["nothing was measured"]);
    }
}
