//! What the million run showed: one structure, which is the JSON; and what was promised, met or missed.

use millrace_edge::Io;
use serde::Serialize;

use super::Settings;
use super::fan_out::FanOut;
use super::probe::Direct;
use super::run::NICENESS;
use super::storm::Storm;
use crate::clients::{Totals, Transport};
use crate::floor::Floor;
use crate::measure::{Machine, Percentiles, fit};
use crate::report::html::Curve;

/// CPU of each process, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Cpu {
    pub gateway_us: u64,
    pub dispatcher_us: u64,
    pub client_us: u64,
}

impl Cpu {
    pub(super) fn since(self, before: Cpu) -> Cpu {
        Cpu {
            gateway_us: self.gateway_us.saturating_sub(before.gateway_us),
            dispatcher_us: self.dispatcher_us.saturating_sub(before.dispatcher_us),
            client_us: self.client_us.saturating_sub(before.client_us),
        }
    }
}

/// Something done many times, as fast as it went.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Rate {
    /// How often.
    pub count: u64,
    /// In how long.
    pub seconds: f64,
    /// CPU that it all took.
    pub cpu: Cpu,
}

impl Rate {
    pub(super) fn add(&mut self, count: u64, took_us: u64, cpu: Cpu) {
        self.count += count;
        self.seconds += took_us as f64 / 1e6;
        self.cpu.gateway_us += cpu.gateway_us;
        self.cpu.dispatcher_us += cpu.dispatcher_us;
        self.cpu.client_us += cpu.client_us;
    }

    pub(super) fn per_s(&self) -> f64 {
        self.count as f64 / self.seconds.max(1e-6)
    }
}

/// Memory with so many idle sessions, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)]
pub struct MemoryPoint {
    pub sessions: u32,
    /// PSS of each process.
    pub gateway_bytes: u64,
    pub dispatcher_bytes: u64,
    pub client_bytes: u64,
    /// Slabs, page tables, stacks: of both ends of every connection.
    pub kernel_bytes: u64,
    /// TCP's buffers.
    pub tcp_bytes: u64,
    /// The store's files.
    pub disk_bytes: u64,
}

/// Memory for each session: the slope of a line through the points.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Memory {
    /// As read.
    pub points: Vec<MemoryPoint>,
    /// Of the gateway, its part in all conversations included.
    pub gateway_bytes_per_session: f64,
    /// Of the gateway, where the line meets no sessions.
    pub gateway_fixed_bytes: f64,
    /// Of the dispatcher, its embedded store's memory and the members of groups included.
    pub dispatcher_bytes_per_user: f64,
    /// Of the dispatcher, where the line meets no sessions.
    pub dispatcher_fixed_bytes: f64,
    /// Of the store's files, with everyone there: they shrink when they are compacted, so no line fits them.
    pub disk_bytes_per_user: f64,
    /// Of the kernel, for one end of a connection: both ends are held by the same code, and are alike.
    pub kernel_bytes_per_session: f64,
    /// Of this process: its whole memory over the sessions.
    pub client_bytes_per_session: f64,
    /// Gateway and kernel.
    pub whole_bytes_per_session: f64,
}

impl Memory {
    pub(super) fn of(points: Vec<MemoryPoint>) -> Memory {
        // What is made once, with the first clients, is fixed: the point at 0 is told, but no part of the line.
        let line = |value: fn(&MemoryPoint) -> u64| {
            let line: Vec<(f64, f64)> = (points.iter().filter(|point| point.sessions > 0))
                .map(|point| (f64::from(point.sessions), value(point) as f64))
                .collect();
            fit(&line).unwrap_or_default()
        };
        let of_last = |value: fn(&MemoryPoint) -> u64| {
            points.last().map_or(0.0, |point| value(point) as f64 / f64::from(point.sessions.max(1)))
        };
        let (gateway, gateway_fixed) = line(|point| point.gateway_bytes);
        let (dispatcher, dispatcher_fixed) = line(|point| point.dispatcher_bytes);
        let kernel = line(|point| point.kernel_bytes).0 / 2.0;
        Memory {
            gateway_bytes_per_session: gateway,
            gateway_fixed_bytes: gateway_fixed,
            dispatcher_bytes_per_user: dispatcher,
            dispatcher_fixed_bytes: dispatcher_fixed,
            disk_bytes_per_user: of_last(|point| point.disk_bytes),
            kernel_bytes_per_session: kernel,
            client_bytes_per_session: of_last(|point| point.client_bytes),
            whole_bytes_per_session: gateway + kernel,
            points,
        }
    }
}

/// What silence costs, heartbeats included: CPU for each session and second, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Idle {
    pub seconds: f64,
    pub heartbeat_s: f64,
    pub gateway_cpu_us_per_session_s: f64,
    pub dispatcher_cpu_us_per_session_s: f64,
    pub client_cpu_us_per_session_s: f64,
}

/// A figure that was promised for a million sessions on two cores.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// Which.
    pub what: &'static str,
    /// Seen.
    pub figure: f64,
    /// Promised.
    pub at_most: f64,
    /// Of both.
    pub unit: &'static str,
    /// Whether it holds.
    pub met: bool,
}

/// Direct messages of all phases of fan-out, added up.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct DirectSum {
    pub messages: u64,
    pub delivered: u64,
    pub lost: u64,
    pub misdelivered: u64,
}

impl DirectSum {
    pub(super) fn add(&mut self, direct: &Direct) {
        self.messages += direct.messages;
        self.delivered += direct.delivered;
        self.lost += direct.lost + direct.messages.saturating_sub(direct.acknowledged);
        self.misdelivered += direct.duplicates + direct.out_of_order;
    }
}

/// What a run showed.
#[derive(Clone, Debug, Serialize)]
pub struct MillionReport {
    /// The command, for who wants to see it again.
    pub command: String,
    /// The software.
    pub version: &'static str,
    /// What it ran on.
    pub machine: Machine,
    /// Sessions.
    pub sessions: u32,
    /// Sizes of the groups that everyone is in one of each of, beside the room of all.
    pub groups: Vec<u32>,
    /// Threads of the gateway.
    pub gateway_shards: usize,
    /// Threads of the clients.
    pub client_threads: usize,
    /// How the clients' sockets are held, and why so.
    pub client_backend: String,
    /// What frames travel in.
    pub transport: &'static str,
    /// Bytes of a message's payload.
    pub payload_bytes: usize,
    /// Direct messages a second, and pairs among whom they go.
    pub probe_rate: f64,
    /// See `probe_rate`.
    pub probe_pairs: u32,
    /// Until the disk below the store has a small record safely, in microseconds, before the run: no message is
    /// acknowledged sooner.
    pub store_sync_us: Option<Percentiles>,
    /// What the threads of the clients added to their niceness, until everyone came back.
    pub client_niceness: u8,
    /// Connects with login by a signed token.
    pub logins: Rate,
    /// From when each was begun, in microseconds.
    pub login_us: Percentiles,
    /// Joins: of every client to each of its conversations.
    pub joins: Rate,
    /// Memory of idle sessions.
    pub memory: Memory,
    /// Memory that the machine had left with all of them idle, in bytes.
    pub available_bytes: u64,
    /// CPU of idle sessions.
    pub idle: Option<Idle>,
    /// Direct messages while all others are idle.
    pub direct: Option<Direct>,
    /// By size, small ones first.
    pub fan_outs: Vec<FanOut>,
    /// Direct messages while those ran.
    pub direct_meanwhile: DirectSum,
    /// A bare batched send loop over as many sockets.
    pub floor: Option<Floor>,
    /// The gateway's death, and everyone's return.
    pub storm: Option<Storm>,
    /// What was promised.
    pub targets: Vec<Target>,
    /// Sessions that ended although nobody wanted it.
    pub disconnects: u64,
    /// Clients that gave up, and joins that were refused.
    pub given_up: u64,
    /// The first thing that went wrong, in words.
    pub first_trouble: Option<String>,
    /// By Ctrl-C.
    pub interrupted: bool,
    /// Lines of the page's plot.
    #[serde(skip)]
    pub curves: Vec<Curve>,
}

impl MillionReport {
    pub(super) fn new(settings: &Settings) -> Self {
        let words: Vec<String> = std::env::args().skip(1).collect();
        MillionReport {
            command: format!("millrace-loadgen {}", words.join(" ")),
            version: env!("CARGO_PKG_VERSION"),
            machine: Machine::here(),
            sessions: settings.sessions,
            groups: settings.groups.clone(),
            gateway_shards: settings.shards,
            client_threads: settings.threads,
            client_backend: match settings.io {
                Io::Auto => String::new(),
                io => io.to_string(),
            },
            transport: match settings.transport {
                Transport::Tcp => "tcp",
                Transport::Ws => "ws",
            },
            payload_bytes: settings.payload_bytes,
            probe_rate: settings.probe_rate,
            probe_pairs: 0,
            store_sync_us: None,
            client_niceness: NICENESS,
            logins: Rate::default(),
            login_us: Percentiles::default(),
            joins: Rate::default(),
            memory: Memory::default(),
            available_bytes: 0,
            idle: None,
            direct: None,
            fan_outs: Vec::new(),
            direct_meanwhile: DirectSum::default(),
            floor: None,
            storm: None,
            targets: Vec::new(),
            disconnects: 0,
            given_up: 0,
            first_trouble: None,
            interrupted: false,
            curves: Vec::new(),
        }
    }

    /// Takes in the last counters, and compares with what was promised.
    pub(super) fn with_totals(&mut self, totals: &Totals, trouble: Option<String>) {
        // Everyone lost their connection once in the storm, some twice: they count as long as they are not back.
        let killed = self
            .storm
            .as_ref()
            .map_or(0, |storm| u64::from(self.sessions) + storm.all_back_s.map_or(0, |_| storm.ended_again));
        self.disconnects = totals.disconnects.saturating_sub(killed);
        self.given_up = totals.given_up + totals.join_failures;
        self.first_trouble = trouble;
        self.targets = self.compare();
    }

    fn compare(&self) -> Vec<Target> {
        let mut targets = Vec::new();
        let mut add = |what, figure: Option<f64>, at_most, unit| {
            targets.extend(figure.map(|figure| Target {
                what,
                figure,
                at_most,
                unit,
                met: figure <= at_most,
            }));
        };
        let memory = &self.memory;
        let some = |figure: f64| (figure != 0.0).then_some(figure);
        add("gateway memory per session", some(memory.gateway_bytes_per_session), 256.0, "B");
        add("whole cost per session", some(memory.whole_bytes_per_session), 4_500.0, "B");
        add("dispatcher memory per user", some(memory.dispatcher_bytes_per_user), 300.0, "B");
        let beat = self.idle.map(|idle| idle.gateway_cpu_us_per_session_s * idle.heartbeat_s / 30.0);
        add("gateway CPU per session and second, at a 30 s heartbeat", beat, 0.8, "us");
        let of = |members| self.fan_outs.iter().find(|fan_out| fan_out.members == members);
        let direct = of(100_000).filter(|f| f.direct_messages > 0).map(|f| f.direct_us.p99 as f64 / 1e3);
        add("direct messages, p99 during a fan-out to 100,000", direct, 10.0, "ms");
        add("fan-out to everyone, CPU over that of a bare send loop", self.ratio_to_floor(), 1.2, "times");
        let back = self.storm.as_ref().map(|storm| storm.all_back_s.unwrap_or(f64::INFINITY));
        add("all back after kill -9", back, 120.0, "s");
        targets
    }

    /// CPU of a delivery to everyone over that of the bare send loop, with nothing subtracted: heartbeats go on in both, and
    /// both send one message right after the other. `None` where not everything arrived.
    pub fn ratio_to_floor(&self) -> Option<f64> {
        let everyone = self.fan_outs.iter().find(|fan_out| fan_out.members == self.sessions)?;
        let floor = self.floor?.gross_cpu_us_per_delivery()?;
        (everyone.incomplete == 0).then_some(everyone.gateway_gross_cpu_us_per_delivery? / floor)
    }

    /// What was wrong with the run, in words; empty: nothing, and the exit status is 0. Targets are told apart.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut count = |count: u64, what: String| {
            if count > 0 {
                faults.push(format!("{count} {what}"));
            }
        };
        for fan_out in &self.fan_outs {
            // Who interrupts a run has not waited for what was under way.
            let incomplete = if self.interrupted { 0 } else { fan_out.incomplete };
            count(incomplete, format!("messages to {} members did not reach all", fan_out.members));
            count(fan_out.misdelivered, format!("deliveries to {} members misdelivered", fan_out.members));
        }
        let unanswered = |direct: &Direct| direct.messages.saturating_sub(direct.acknowledged);
        for direct in self.direct.iter().chain(self.storm.as_ref().map(|storm| &storm.direct)) {
            count(direct.lost + unanswered(direct), "direct messages lost or unanswered".to_owned());
            count(direct.duplicates + direct.out_of_order, "direct messages misdelivered".to_owned());
        }
        count(self.direct_meanwhile.lost, "direct messages lost during fan-outs".to_owned());
        count(self.direct_meanwhile.misdelivered, "direct messages misdelivered during fan-outs".to_owned());
        count(self.disconnects, "sessions ended by themselves".to_owned());
        count(self.given_up, "clients gave up".to_owned());
        if self.storm.as_ref().is_some_and(|storm| storm.all_back_s.is_none()) && !self.interrupted {
            faults.push("not everyone came back".to_owned());
        }
        faults
    }
}
