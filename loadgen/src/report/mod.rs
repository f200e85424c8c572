//! What a run showed, in one structure; as a table, JSON and a page in the files below.
//!
//! The first fields are those that other tools read and never change their meaning; the rest may grow.

pub(crate) mod columns;
pub mod compare;
pub(crate) mod html;
mod json;
pub(crate) mod table;

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

pub use self::html::page;
pub use self::json::text;
pub use self::table::table;
use crate::args::Settings;
use crate::clients::Totals;
use crate::floor::Floor;
use crate::ledger::{Account, Ledger};
use crate::measure::{Machine, Percentiles, fit};
use crate::rig::{MemoryPoint, Ramp, Sent};

/// A report in its three forms, and what was wrong with the run.
pub trait Shown {
    /// For a terminal.
    fn table(&self) -> String;
    /// For other tools.
    fn json(&self) -> String;
    /// One HTML page.
    fn page(&self) -> String;
    /// In words; empty: nothing, and the exit status is 0.
    fn faults(&self) -> Vec<String>;
}

impl Shown for Report {
    fn table(&self) -> String {
        table(self)
    }

    fn json(&self) -> String {
        text(self)
    }

    fn page(&self) -> String {
        page(self)
    }

    fn faults(&self) -> Vec<String> {
        Report::faults(self)
    }
}

/// Time to the last receiver of a message, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct LastReceiver {
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

/// What the gateway process cost; null where it could not be seen.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct GatewayCost {
    /// Memory (PSS) that one more idle connection takes, its conversations included.
    pub user_bytes_per_connection: Option<f64>,
    /// Memory of a gateway without connections, by the same line.
    pub fixed_bytes: Option<f64>,
    /// While messages were sent, less what silence costs, over deliveries.
    pub cpu_us_per_delivery: Option<f64>,
    /// The same of the bare send loop.
    pub floor_cpu_us_per_delivery: Option<f64>,
}

/// One step of a ramp of connects.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)]
pub struct RampStep {
    pub offered_per_s: f64,
    pub achieved_per_s: f64,
    pub logins: u64,
    pub failures: u64,
    pub cpu_us_per_login: Option<f64>,
    /// From when the connect was due.
    pub login_us: Percentiles,
}

/// Everyone dropped and came back.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Storm {
    /// Until all were logged in again; null: they were not.
    pub logged_in_s: Option<f64>,
    /// Until all were in their conversations again.
    pub all_back_s: Option<f64>,
    /// Logins in that time.
    pub logins: u64,
    /// Connects and logins that failed on the way.
    pub failures: u64,
    /// CPU of the gateway for each.
    pub cpu_us_per_login: Option<f64>,
    /// From connecting to logged in, failed tries apart.
    pub login_us: Percentiles,
}

/// What a run showed.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Report {
    pub scenario: &'static str,
    pub connections: u64,
    pub logins: u64,
    pub login_failures: u64,
    pub messages_sent: u64,
    pub deliveries_expected: u64,
    pub deliveries: u64,
    pub lost: u64,
    pub duplicates: u64,
    pub out_of_order: u64,
    pub connects_per_s: f64,
    pub deliveries_per_s: f64,
    pub latency_us: Percentiles,
    pub last_receiver_us: BTreeMap<u32, LastReceiver>,
    pub gateway: GatewayCost,

    /// Deliveries to someone who should not have got them.
    pub misrouted: u64,
    /// Messages that never left, though they were due.
    pub unsent: u64,
    /// Messages that never got an answer.
    pub unacknowledged: u64,
    /// Messages that the server refused for good.
    pub refused: u64,
    /// Connections that ended by themselves.
    pub disconnects: u64,
    pub join_failures: u64,
    /// Clients that were given up after too many tries.
    pub given_up: u64,
    /// Messages that left more than a millisecond after they were due, and the worst of them.
    pub late_sends: u64,
    pub late_us_max: u64,
    /// CPU of the gateway over the floor's.
    pub cpu_ratio_to_floor: Option<f64>,
    /// CPU of the gateway for one connection that only beats, per second.
    pub idle_cpu_us_per_connection_s: Option<f64>,
    /// CPU of the gateway for one connect, login and joins.
    pub cpu_us_per_connection: Option<f64>,
    pub memory: Vec<MemoryPoint>,
    pub login_us: Percentiles,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ramp: Vec<RampStep>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storm: Option<Storm>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor: Option<Floor>,
    /// Latency by members of the conversation.
    pub latency_by_size_us: BTreeMap<u32, Percentiles>,
    /// By Ctrl-C.
    pub interrupted: bool,
    /// The first thing that went wrong, in words.
    pub first_trouble: Option<String>,
    pub seconds: f64,
    pub payload_bytes: usize,
    pub transport: &'static str,
    pub threads: usize,
    pub client_backend: String,
    pub machine: Machine,

    /// Points of the curves in the page: by name, (percentile, microseconds).
    #[serde(skip)]
    pub curves: Vec<(String, Vec<(f64, u64)>)>,
    /// CPU of the gateway in silence, in microseconds per second.
    #[serde(skip)]
    idle_cpu_us_per_s: f64,
}

impl Report {
    /// Of a run with these flags in which nothing has happened yet.
    pub fn new(settings: &Settings) -> Self {
        Report {
            scenario: settings.scenario,
            connections: settings.connections.into(),
            logins: 0,
            login_failures: 0,
            messages_sent: 0,
            deliveries_expected: 0,
            deliveries: 0,
            lost: 0,
            duplicates: 0,
            out_of_order: 0,
            connects_per_s: 0.0,
            deliveries_per_s: 0.0,
            latency_us: Percentiles::default(),
            last_receiver_us: BTreeMap::new(),
            gateway: GatewayCost::default(),
            misrouted: 0,
            unsent: 0,
            unacknowledged: 0,
            refused: 0,
            disconnects: 0,
            join_failures: 0,
            given_up: 0,
            late_sends: 0,
            late_us_max: 0,
            cpu_ratio_to_floor: None,
            idle_cpu_us_per_connection_s: None,
            cpu_us_per_connection: None,
            memory: Vec::new(),
            login_us: Percentiles::default(),
            ramp: Vec::new(),
            storm: None,
            floor: None,
            latency_by_size_us: BTreeMap::new(),
            interrupted: false,
            first_trouble: None,
            seconds: settings.seconds,
            payload_bytes: settings.common.payload_bytes,
            transport: match settings.common.transport {
                crate::clients::Transport::Tcp => "tcp",
                crate::clients::Transport::Ws => "ws",
            },
            threads: settings.threads,
            client_backend: String::new(),
            machine: Machine::here(),
            curves: Vec::new(),
            idle_cpu_us_per_s: 0.0,
        }
    }

    /// Takes in how the clients came up. The point at 0 connections is told but not part of the line: what is made
    /// with the first clients is fixed too.
    pub fn with_ramp(mut self, ramp: &Ramp) -> Self {
        self.connects_per_s = ramp.connects_per_s;
        self.cpu_us_per_connection = ramp.cpu_us_per_connection;
        self.memory = ramp.memory.clone();
        let points: Vec<(f64, f64)> = (ramp.memory.iter().filter(|point| point.connections > 0))
            .map(|point| (point.connections as f64, point.bytes as f64))
            .collect();
        if let Some((slope, at_0)) = fit(&points) {
            self.gateway.user_bytes_per_connection = Some(slope);
            self.gateway.fixed_bytes = Some(at_0);
        }
        self
    }

    /// Takes in what silence cost: microseconds of CPU per second.
    pub fn with_idle(mut self, cpu_us_per_s: Option<f64>) -> Self {
        self.idle_cpu_us_per_connection_s = cpu_us_per_s.map(|cpu| cpu / self.connections as f64);
        self.idle_cpu_us_per_s = cpu_us_per_s.unwrap_or(0.0);
        self
    }

    /// Takes in what sending cost, less what the same time of silence would have.
    pub fn with_sent(mut self, sent: &Sent) -> Self {
        self.deliveries_per_s = sent.deliveries as f64 / sent.seconds.max(1e-6);
        if sent.deliveries > 0 {
            self.gateway.cpu_us_per_delivery = sent.cpu_us.map(|cpu| {
                (cpu - self.idle_cpu_us_per_s * sent.cpu_seconds).max(0.0) / sent.deliveries as f64
            });
        }
        self
    }

    /// Takes in the last counters.
    pub fn with_totals(mut self, totals: &Totals, trouble: Option<String>) -> Self {
        self.logins = totals.logins;
        self.login_failures = totals.login_failures;
        self.disconnects = totals.disconnects;
        self.join_failures = totals.join_failures;
        self.given_up = totals.given_up;
        self.first_trouble = trouble;
        self
    }

    /// Takes in the books.
    pub fn with_books(mut self, books: &Ledger, account: &Account) -> Self {
        self.messages_sent = account.sent;
        // Who interrupts a run knows that the rest was not sent.
        self.unsent = if self.interrupted { 0 } else { account.unsent };
        self.unacknowledged = account.unacknowledged;
        self.refused = account.refused;
        self.deliveries_expected = account.expected;
        self.deliveries = account.deliveries;
        self.lost = account.lost;
        self.duplicates = books.duplicates;
        self.out_of_order = books.out_of_order;
        self.misrouted = books.misrouted;
        self.late_sends = books.late_sends;
        self.late_us_max = books.late_us_max;
        self.latency_us = Percentiles::of(&books.latency);
        self.curves.push(("all deliveries".to_owned(), curve(&books.latency)));
        for (members, latency) in &books.by_size {
            self.latency_by_size_us.insert(*members, Percentiles::of(latency));
            self.curves.push((format!("{members} members"), curve(latency)));
        }
        for (members, last) in &account.last_receiver {
            let Percentiles { p50, p99, max, .. } = Percentiles::of(last);
            self.last_receiver_us.insert(*members, LastReceiver { p50, p99, max });
        }
        self
    }

    /// Takes in the floor, if it was measured.
    pub fn with_floor(mut self, floor: Floor) -> Self {
        self.gateway.floor_cpu_us_per_delivery = floor.cpu_us_per_delivery();
        if floor.deliveries > 0 {
            self.floor = Some(floor);
        }
        let figures = self.gateway.cpu_us_per_delivery.zip(self.gateway.floor_cpu_us_per_delivery);
        self.cpu_ratio_to_floor = figures.map(|(ours, floor)| ours / floor);
        self
    }

    /// What was wrong with the run, in words; empty: nothing, and the exit status is 0.
    pub fn faults(&self) -> Vec<String> {
        let counts = [
            (self.lost, "deliveries lost"),
            (self.duplicates, "deliveries duplicated"),
            (self.out_of_order, "deliveries out of order"),
            (self.misrouted, "deliveries to the wrong client"),
            (self.unsent, "messages never sent"),
            (self.unacknowledged, "messages without an answer"),
            (self.refused, "messages refused"),
            (self.disconnects, "connections ended by themselves"),
            (self.join_failures, "joins failed"),
            (self.given_up, "clients given up"),
        ];
        let mut faults: Vec<String> = (counts.iter().filter(|(count, _)| *count > 0))
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        if self.logins == 0 && !self.interrupted {
            faults.push("nobody logged in".to_owned());
        }
        if self.storm.is_some_and(|storm| storm.all_back_s.is_none()) && !self.interrupted {
            faults.push("not everyone came back".to_owned());
        }
        faults
    }
}

/// Percentiles from 0 to as many nines as there are values for.
pub(crate) fn curve(latency: &Histogram<u64>) -> Vec<(f64, u64)> {
    if latency.is_empty() {
        return Vec::new();
    }
    let mut points = vec![(0.0, latency.min())];
    // Ten points for each factor of ten of what lies above: 1 in 10, 1 in 100, …
    let mut above = 1.0f64;
    let least = 1.0 / latency.len() as f64;
    while above > least {
        above *= 10f64.powf(-0.1);
        let quantile = 1.0 - above.max(least);
        points.push((quantile * 100.0, latency.value_at_quantile(quantile)));
    }
    points.push((100.0 * (1.0 - least / 2.0), latency.max()));
    points
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::args::{Cli, Defaults, Scenario};
    use clap::Parser;

    /// A report of a run that went well, for the tests of its forms.
    pub(crate) fn sample() -> Report {
        let line = ["millrace-loadgen", "demo", "--connections", "100"];
        let Scenario::Demo(common) = Cli::try_parse_from(line).unwrap().scenario else { unreachable!() };
        let defaults = Defaults { connections: 1, seconds: 2.0, groups: &[10] };
        let settings = Settings::new("demo", common, defaults).unwrap();
        let ramp = Ramp {
            connects_per_s: 5_000.0,
            memory: [(0, 900_000), (10, 1_003_000), (50, 1_015_000), (100, 1_030_000)]
                .map(|(connections, bytes)| MemoryPoint { connections, bytes })
                .to_vec(),
            cpu_us_per_connection: Some(150.0),
            is_partial: false,
        };
        let mut report = Report::new(&settings).with_ramp(&ramp).with_idle(Some(1_000.0));
        report = report.with_sent(&Sent {
            seconds: 2.0,
            cpu_seconds: 2.0,
            deliveries: 10_000,
            cpu_us: Some(82_000.0),
        });
        report.logins = 100;
        report = report.with_floor(Floor { deliveries: 10, cpu_us: 64, ..Floor::default() });
        let mut latency = crate::measure::histogram();
        (1..=10_000).for_each(|us| latency.record(us).unwrap());
        report.latency_us = Percentiles::of(&latency);
        report.curves.push(("all deliveries".to_owned(), curve(&latency)));
        report.last_receiver_us.insert(100, LastReceiver { p50: 1, p99: 2, max: 3 });
        report
    }

    #[test]
    fn figures_follow_from_what_was_measured() {
        let report = sample();
        assert!((report.gateway.user_bytes_per_connection.unwrap() - 300.0).abs() < 1e-6);
        assert!((report.gateway.fixed_bytes.unwrap() - 1e6).abs() < 1e-3);
        // 82 ms less 2 s of silence at 1 ms/s, over 10,000.
        assert!((report.gateway.cpu_us_per_delivery.unwrap() - 8.0).abs() < 1e-9);
        assert!((report.cpu_ratio_to_floor.unwrap() - 1.25).abs() < 1e-9);
        assert_eq!(report.idle_cpu_us_per_connection_s, Some(10.0));
        assert_eq!(report.deliveries_per_s, 5_000.0);
    }

    #[test]
    fn any_fault_fails_the_run() {
        assert!(sample().faults().is_empty());
        for spoil in [
            (|r: &mut Report| r.lost = 1) as fn(&mut Report),
            |r| r.duplicates = 1,
            |r| r.out_of_order = 1,
            |r| r.misrouted = 1,
            |r| r.unacknowledged = 1,
            |r| r.unsent = 1,
            |r| r.refused = 1,
            |r| r.disconnects = 1,
            |r| r.join_failures = 1,
            |r| r.given_up = 1,
            |r| r.logins = 0,
        ] {
            let mut report = sample();
            spoil(&mut report);
            assert_eq!(report.faults().len(), 1);
        }
    }

    #[test]
    fn a_curve_rises_to_its_maximum() {
        let report = sample();
        let points = &report.curves[0].1;
        assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
        assert_eq!(points.last().unwrap().1, report.latency_us.max);
    }
}
