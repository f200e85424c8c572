//! The report for people: rows of a table, the page, and the verdict.

use super::report::{MillionReport, Rate};
use crate::measure::Percentiles;
use crate::report::html::{self, Page};
use crate::report::table::{bytes, micros, time};
use crate::report::{self, Shown};

impl Rate {
    fn told(&self) -> String {
        let each = |us: u64| micros(us as f64 / (self.count as f64).max(1.0));
        format!(
            "{:.0} per s; CPU each: gateway {}, dispatcher {}, clients {}",
            self.per_s(),
            each(self.cpu.gateway_us),
            each(self.cpu.dispatcher_us),
            each(self.cpu.client_us),
        )
    }
}

impl MillionReport {
    fn verdict(&self) -> String {
        let faults = self.faults();
        let missed = self.targets.iter().filter(|target| !target.met).count();
        let end = match (faults.is_empty(), missed) {
            (false, _) => format!("FAILED: {}", faults.join(", ")),
            (true, 0) => "all is well, and all targets are met".to_owned(),
            (true, missed) => format!("all is well; {missed} of {} targets missed", self.targets.len()),
        };
        match self.interrupted {
            true => format!("interrupted: {end}"),
            false => end,
        }
    }

    /// Rows of (what, figure).
    fn rows(&self) -> Vec<(String, String)> {
        let mut rows: Vec<(String, String)> = Vec::new();
        let mut row = |what: &str, figure: String| rows.push((what.to_owned(), figure));
        let percentiles = |p: &Percentiles| {
            format!("p50 {}  p99 {}  p99.9 {}  max {}", time(p.p50), time(p.p99), time(p.p999), time(p.max))
        };
        row("command", self.command.clone());
        row("machine", self.machine.to_string());
        let sizes: Vec<String> = self.groups.iter().map(u32::to_string).collect();
        let groups = match sizes.is_empty() {
            true => String::new(),
            false => format!(" and one group each of {}", sizes.join(", ")),
        };
        row("each session is in", format!("the room of all{groups}"));
        row(
            "processes",
            format!(
                "gateway with {} shards, dispatcher with 1 and the embedded store, clients on {} threads and \
                 probes on one, all on the same cores; clients are nicer by {} (not in the storm)",
                self.gateway_shards, self.client_threads, self.client_niceness
            ),
        );
        if let Some(sync_us) = &self.store_sync_us {
            row("the store's disk, one small synced write", percentiles(sync_us));
        }
        row("connects and logins, signed token", self.logins.told());
        row("  one of them", percentiles(&self.login_us));
        row("joins", self.joins.told());
        let memory = &self.memory;
        let fixed = |each: f64, fixed: f64| format!("{}, and {} fixed", bytes(each), bytes(fixed));
        row(
            "gateway memory per session",
            fixed(memory.gateway_bytes_per_session, memory.gateway_fixed_bytes),
        );
        row("kernel memory per session", format!("{}, for one end", bytes(memory.kernel_bytes_per_session)));
        row("  both", bytes(memory.whole_bytes_per_session));
        row(
            "dispatcher memory per user",
            fixed(memory.dispatcher_bytes_per_user, memory.dispatcher_fixed_bytes),
        );
        row("store, files per user", bytes(memory.disk_bytes_per_user));
        row("load generator per session", bytes(memory.client_bytes_per_session));
        row("memory left on the machine", bytes(self.available_bytes as f64));
        if let Some(idle) = &self.idle {
            row(
                "idle, CPU per session and second",
                format!(
                    "gateway {:.3} us, dispatcher {:.3} us, clients {:.3} us, at a {} s heartbeat",
                    idle.gateway_cpu_us_per_session_s,
                    idle.dispatcher_cpu_us_per_session_s,
                    idle.client_cpu_us_per_session_s,
                    idle.heartbeat_s,
                ),
            );
        }
        if let Some(direct) = &self.direct {
            row("direct messages, all others idle", percentiles(&direct.latency_us));
        }
        for fan_out in &self.fan_outs {
            row(
                &format!("fan-out to {}", fan_out.members),
                format!(
                    "{} messages, {} of {} deliveries",
                    fan_out.messages, fan_out.deliveries, fan_out.expected
                ),
            );
            let (first, all, last) = (fan_out.first_us, fan_out.receiver_us, fan_out.last_us);
            row(
                "  first, median, last receiver",
                format!(
                    "{}, {}, {} (p50); the last at most {}",
                    time(first.p50),
                    time(all.p50),
                    time(last.p50),
                    time(last.max)
                ),
            );
            if let (Some(gross), Some(net)) =
                (fan_out.gateway_gross_cpu_us_per_delivery, fan_out.gateway_cpu_us_per_delivery)
            {
                let (gross, net) = (micros(gross), micros(net));
                row("  gateway CPU per delivery", format!("{gross}; {net} less what calm takes"));
            }
            row(
                "  direct messages meanwhile",
                format!("{} of them: {}", fan_out.direct_messages, percentiles(&fan_out.direct_us)),
            );
        }
        if let Some(floor) = &self.floor {
            let last = time(floor.last_receiver_us.p50);
            row("a bare batched send loop to all", format!("last receiver {last} (p50)"));
            if let (Some(gross), Some(net)) = (floor.gross_cpu_us_per_delivery(), floor.cpu_us_per_delivery())
            {
                let (gross, net) = (micros(gross), micros(net));
                row("  CPU per delivery", format!("{gross}; {net} less what calm takes"));
            }
        }
        if let Some(ratio) = self.ratio_to_floor() {
            row("  ratio of the fan-out to all", format!("{ratio:.2}"));
        }
        if let Some(storm) = &self.storm {
            let seconds =
                |s: Option<f64>| s.map_or_else(|| "not in time".to_owned(), |s| format!("{s:.1} s"));
            row("storm: kill -9, process gone", format!("{:.1} s", storm.process_gone_s));
            row("  gateway takes logins", seconds(storm.gateway_ready_s));
            row("  last client noticed", seconds(storm.all_noticed_s));
            row("  all connected", seconds(storm.all_connected_s));
            row("  all logged in", seconds(storm.all_logged_in_s));
            row(
                "  99 %, 99.9 %, all in their conversations",
                format!(
                    "{}, {}, {}",
                    seconds(storm.back_99_s),
                    seconds(storm.back_999_s),
                    seconds(storm.all_back_s)
                ),
            );
            row(
                "  one login by ticket",
                format!(
                    "{}; {} connects and {} logins failed on the way",
                    percentiles(&storm.login_us),
                    storm.connect_failures,
                    storm.login_failures
                ),
            );
            let away: Vec<String> =
                storm.went_away.iter().map(|(code, count)| format!("{code} {count}")).collect();
            if !away.is_empty() || storm.ended_again > 0 {
                let again = storm.ended_again;
                row(
                    "  told to go away on the way",
                    format!("{}; {again} sessions came twice", away.join(", ")),
                );
            }
            let each = |us: Option<f64>| us.map(micros).unwrap_or_default();
            row(
                "  CPU each, joins included",
                format!(
                    "gateway {}, dispatcher {}, clients {}",
                    each(storm.gateway_cpu_us_per_login),
                    each(storm.dispatcher_cpu_us_per_login),
                    each(storm.client_cpu_us_per_login)
                ),
            );
            row(
                "  direct messages, second gateway",
                format!("{} of them: {}", storm.direct.delivered, percentiles(&storm.direct.latency_us)),
            );
        }
        for target in &self.targets {
            let verdict = if target.met { "met" } else { "MISSED" };
            row(
                &format!("target: {}", target.what),
                format!(
                    "{:.2} {unit}, at most {} {unit}: {verdict}",
                    target.figure,
                    target.at_most,
                    unit = target.unit
                ),
            );
        }
        rows
    }

    fn title(&self) -> String {
        format!("millrace: {} sessions over {}", self.sessions, self.transport)
    }
}

impl Shown for MillionReport {
    /// The last line is the verdict.
    fn table(&self) -> String {
        let rows = self.rows();
        let width = rows.iter().map(|(what, _)| what.len()).max().unwrap_or(0);
        let mut text = format!("\n{}\n", self.title());
        for (what, figure) in rows {
            text.push_str(&format!("  {what:width$}  {figure}\n"));
        }
        text.push_str(&format!("  {}\n", self.verdict()));
        if let Some(trouble) = self.first_trouble.as_ref().filter(|_| !self.faults().is_empty()) {
            text.push_str(&format!("  first trouble: {trouble}\n"));
        }
        text
    }

    fn json(&self) -> String {
        report::text(self)
    }

    fn page(&self) -> String {
        html::document(&Page {
            title: &self.title(),
            is_good: self.faults().is_empty(),
            verdict: &self.verdict(),
            trouble: self.first_trouble.as_deref().filter(|_| !self.faults().is_empty()),
            heads: &[],
            rows: &self.rows().into_iter().map(|(what, figure)| vec![what, figure]).collect::<Vec<_>>(),
            curves: &self.curves,
            footer: &format!(
                "{} B payload; clients: {}; millrace {}",
                self.payload_bytes, self.client_backend, self.version,
            ),
        })
    }

    fn faults(&self) -> Vec<String> {
        MillionReport::faults(self)
    }
}
