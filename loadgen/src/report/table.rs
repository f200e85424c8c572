//! The report as a table for a terminal.

use super::Report;

/// A time in the unit that fits it.
pub(crate) fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// A number of bytes in the unit that fits it.
pub(crate) fn bytes(count: f64) -> String {
    match count {
        c if c.abs() < 10_000.0 => format!("{c:.0} B"),
        c if c.abs() < 10_000_000.0 => format!("{:.1} KB", c / 1e3),
        c => format!("{:.1} MB", c / 1e6),
    }
}

pub(crate) fn micros(us: f64) -> String {
    format!("{us:.2} us")
}

fn or_unseen(value: Option<String>) -> String {
    value.unwrap_or_else(|| "not seen".to_owned())
}

/// Rows of (what, figure); also the page's table.
pub(super) fn rows(report: &Report) -> Vec<(String, String)> {
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut row = |what: &str, figure: String| rows.push((what.to_owned(), figure));
    row(
        "connections",
        format!("{} ({} logins, {} failed)", report.connections, report.logins, report.login_failures),
    );
    row("connects and logins", format!("{:.0} per s", report.connects_per_s));
    for step in &report.ramp {
        let login = step.login_us;
        row(
            &format!("  offered {:.0} per s", step.offered_per_s),
            format!(
                "{:.0} per s, login p50 {} p99 {}, {} failed, gateway CPU {} each",
                step.achieved_per_s,
                time(login.p50),
                time(login.p99),
                step.failures,
                or_unseen(step.cpu_us_per_login.map(micros)),
            ),
        );
    }
    if let Some(storm) = &report.storm {
        let seconds = |s: Option<f64>| s.map_or_else(|| "not in time".to_owned(), |s| format!("{s:.2} s"));
        row("storm: all logged in again", seconds(storm.logged_in_s));
        row("storm: all back", seconds(storm.all_back_s));
        let login = storm.login_us;
        row(
            "storm: one login",
            format!(
                "p50 {} p99 {} max {}, {} failed tries, gateway CPU {} each",
                time(login.p50),
                time(login.p99),
                time(login.max),
                storm.failures,
                or_unseen(storm.cpu_us_per_login.map(micros)),
            ),
        );
    }
    let gateway = &report.gateway;
    if !report.memory.is_empty() {
        row(
            "gateway memory per connection",
            or_unseen(gateway.user_bytes_per_connection.map(bytes))
                + " (user memory, idle, logged in and joined)",
        );
        row("gateway memory, fixed part", or_unseen(gateway.fixed_bytes.map(bytes)));
    }
    if let Some(idle) = report.idle_cpu_us_per_connection_s {
        row("gateway CPU, idle", format!("{} per connection and second", micros(idle)));
    }
    if report.messages_sent > 0 {
        row(
            "messages sent",
            format!(
                "{} ({} late, at most {})",
                report.messages_sent,
                report.late_sends,
                time(report.late_us_max)
            ),
        );
        row("deliveries", format!("{} of {}", report.deliveries, report.deliveries_expected));
        row("deliveries", format!("{:.0} per s", report.deliveries_per_s));
        let latency = report.latency_us;
        row(
            "delivery latency, from due",
            format!(
                "p50 {}  p99 {}  p99.9 {}  max {}",
                time(latency.p50),
                time(latency.p99),
                time(latency.p999),
                time(latency.max)
            ),
        );
        for (members, last) in &report.last_receiver_us {
            row(
                &format!("last receiver, {members} members"),
                format!("p50 {}  p99 {}  max {}", time(last.p50), time(last.p99), time(last.max)),
            );
        }
        row("gateway CPU per delivery", or_unseen(gateway.cpu_us_per_delivery.map(micros)));
    }
    if let Some(floor) = gateway.floor_cpu_us_per_delivery {
        row("  bare batched send loop", micros(floor));
    }
    if let Some(ratio) = report.cpu_ratio_to_floor {
        row("  ratio", format!("{ratio:.2}"));
    }
    row(
        "lost, duplicated, out of order",
        format!("{}, {}, {}", report.lost, report.duplicates, report.out_of_order),
    );
    rows
}

/// What is said where nothing was wrong: who interrupts a run has not seen all of it.
pub(super) fn good_end(report: &Report) -> &'static str {
    if report.interrupted { "nothing went wrong until then" } else { "all is well" }
}

/// The text, its last line the verdict.
pub fn table(report: &Report) -> String {
    let rows = rows(report);
    let width = rows.iter().map(|(what, _)| what.len()).max().unwrap_or(0);
    let mut text =
        format!("\n{} over {}, {} B payload\n", report.scenario, report.transport, report.payload_bytes);
    for (what, figure) in rows {
        text.push_str(&format!("  {what:width$}  {figure}\n"));
    }
    if report.interrupted {
        text.push_str("  interrupted: figures are of what was done until then\n");
    }
    let faults = report.faults();
    if faults.is_empty() {
        text.push_str(&format!("  {}\n", good_end(report)));
    } else {
        text.push_str(&format!("  FAILED: {}\n", faults.join(", ")));
        if let Some(trouble) = &report.first_trouble {
            text.push_str(&format!("  first trouble: {trouble}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_matters_and_how_it_ended() {
        let mut report = super::super::tests::sample();
        report.messages_sent = 5;
        let good = table(&report);
        for part in
            ["300 B", "1000.0 KB", "8.00 us", "6.40 us", "1.25", "last receiver, 100 members", "all is well"]
        {
            assert!(good.contains(part), "{part} in {good}");
        }
        report.interrupted = true;
        let early = table(&report);
        assert!(early.contains("interrupted") && !early.contains("all is well"), "{early}");
        report.lost = 3;
        report.first_trouble = Some("a cause".to_owned());
        let bad = table(&report);
        assert!(bad.contains("FAILED: 3 deliveries lost") && bad.contains("a cause"), "{bad}");
    }
}
