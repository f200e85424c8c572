//! Prometheus text from the shards' reports.
//!
//! The core's and the edge's counters are exported as they are named there; what the shell counts itself is listed
//! here. A shard that does not answer is missing from the numbers and shows in `millrace_gateway_shard_up`.

use std::fmt::{Display, Write};

use millrace_edge::clock;

use super::talk::Report;

/// What every name begins with.
const PREFIX: &str = "millrace_gateway_";

/// What the process knows beside its shards.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// Shards that were started.
    pub shards: u8,
    /// Whether a drain is under way.
    pub draining: bool,
    /// Microseconds since the start.
    pub uptime_us: u64,
    /// Keys that tokens are checked against.
    pub keys: u64,
    /// Times that SIGHUP brought new keys.
    pub key_reloads: u64,
    /// Times that it did not.
    pub key_reload_failures: u64,
    /// Incarnation changes since the start.
    pub incarnation_changes: u64,
    /// The embedded store's counters, standalone.
    pub store: Vec<(&'static str, u64)>,
}

/// The page for `/metrics`.
pub fn page(process: &Process, reports: &[Report]) -> String {
    let mut page = Page::default();
    process_metrics(&mut page, process);
    page.family("shard_up", false, "1 for a shard that answers.");
    for shard in 0..process.shards {
        let up = reports.iter().any(|report| report.shard == shard);
        page.sample("shard_up", &[("shard", &shard)], u64::from(up));
    }
    shard_metrics(&mut page, reports);
    link_metrics(&mut page, reports);
    page.text
}

fn process_metrics(page: &mut Page, process: &Process) {
    let memory = Memory::read();
    let mut single = |name: &str, counter: bool, help: &str, value: u64| {
        page.family(name, counter, help);
        page.sample(name, &[], value);
    };
    single("draining", false, "1 while a drain is under way.", u64::from(process.draining));
    single("uptime_seconds", false, "Time since the start.", process.uptime_us / 1_000_000);
    single(
        "cpu_microseconds_total",
        true,
        "CPU time of the process, user and system.",
        clock::process_cpu_us(),
    );
    single("resident_bytes", false, "Resident memory of the process.", memory.resident);
    single("anonymous_bytes", false, "Of it, heap and stacks.", memory.anonymous);
    single("keys", false, "Keys that tokens are checked against.", process.keys);
    single("key_reloads_total", true, "Key files read again.", process.key_reloads);
    single(
        "key_reload_failures_total",
        true,
        "Key files that could not be used.",
        process.key_reload_failures,
    );
    single("incarnation_changes_total", true, "Leases lost and begun anew.", process.incarnation_changes);
    for (name, value) in &process.store {
        page.family(name, name.ends_with("_total"), "Of the embedded store.");
        page.sample(name, &[], *value);
    }
}

/// A metric of a shard: name, whether it is a counter, help, and where it comes from.
type OfShard = (&'static str, bool, &'static str, fn(&Report) -> u64);

const OF_SHARD: &[OfShard] = &[
    ("turns_total", true, "Turns of the pump.", |report| report.turns),
    ("naps_total", true, "Times that it let heartbeats wait for each other.", |report| report.naps),
    ("busy_microseconds_total", true, "Time spent in turns.", |report| report.busy_us),
    ("turn_microseconds_max", false, "The longest turn since the start.", |report| report.turn_us_max),
    ("ready", false, "1 with a live lease and an owner for every partition.", |report| {
        u64::from(report.ready)
    }),
    ("lease_live", false, "1 while logins may be taken.", |report| u64::from(report.lease_live)),
    ("tokens_checked_total", true, "Token signatures checked.", |report| report.logins.tokens_checked),
    ("tickets_checked_total", true, "Resume tickets checked.", |report| report.logins.tickets_checked),
    ("credentials_refused_total", true, "Tokens and tickets that proved nothing.", |report| {
        report.logins.refused
    }),
    ("credentials_overflowed_total", true, "Logins turned away, too many waited.", |report| {
        report.logins.overflowed
    }),
    ("credentials_waiting", false, "Tokens waiting for their check.", |report| report.logins_waiting),
    ("edge_slots", false, "Connections that fit.", |report| report.shape.capacity.into()),
    ("edge_banks", false, "Rings of connections.", |report| report.shape.banks.into()),
    ("edge_accepted_total", true, "Connections accepted by the kernel.", |report| report.edge.accepted),
    ("edge_accept_failures_total", true, "Accepts that failed.", |report| report.edge.accept_failures),
    ("edge_open", false, "Sockets open.", |report| report.edge.open_now),
    ("edge_buffers_lent", false, "Receive buffers lent.", |report| report.edge.buffers_lent_now),
    ("edge_buffer_waits_total", true, "Times a connection waited for a buffer.", |report| {
        report.edge.buffer_waits
    }),
    ("edge_sends_total", true, "Sends completed.", |report| report.edge.sends),
    ("edge_bytes_sent_total", true, "Bytes sent.", |report| report.edge.bytes_sent),
    ("edge_bytes_received_total", true, "Bytes received.", |report| report.edge.bytes_received),
    ("edge_sends_in_flight", false, "Sends in flight.", |report| report.edge.sends_in_flight_now),
    ("edge_operations", false, "Operations in flight, armed polls included.", |report| {
        report.edge.operations_now
    }),
    ("edge_enters_total", true, "System calls that submitted or reaped.", |report| report.edge.enters),
    ("edge_overflows_total", true, "Completion queues that overflowed.", |report| report.edge.overflows),
];

fn shard_metrics(page: &mut Page, reports: &[Report]) {
    for (name, counter, help, value) in OF_SHARD {
        page.family(name, *counter, help);
        for report in reports {
            page.sample(name, &[("shard", &report.shard)], value(report));
        }
    }
    // All shards have the same fields, in the same order.
    let fields: Vec<_> = reports.iter().map(|report| (report.shard, report.core.fields())).collect();
    let Some((_, first)) = fields.first() else { return };
    for (index, (field, counter, _)) in first.iter().enumerate() {
        let name = if *counter { format!("{field}_total") } else { (*field).to_owned() };
        page.family(&name, *counter, &field.replace('_', " "));
        for (shard, values) in &fields {
            page.sample(&name, &[("shard", shard)], values[index].2);
        }
    }
}

fn link_metrics(page: &mut Page, reports: &[Report]) {
    let links =
        || reports.iter().flat_map(|report| report.links.iter().map(move |link| (report.shard, link)));
    let mut family = |name: &str, counter: bool, help: &str, value: fn(&super::link::LinkReport) -> u64| {
        page.family(name, counter, help);
        for (shard, link) in links() {
            page.sample(name, &[("shard", &shard), ("node", &link.node)], value(link));
        }
    };
    family("link_up", false, "1 for a transport that is up.", |link| u64::from(link.up));
    family("link_connects_total", true, "Connections made.", |link| link.connects);
    family("link_failures_total", true, "Connections lost or not made; in-process: full queues.", |link| {
        link.failures
    });
    family("link_bytes_received_total", true, "Bytes from the node.", |link| link.bytes_in);
    family("link_bytes_sent_total", true, "Bytes to the node.", |link| link.bytes_out);
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, counter: bool, help: &str) {
        let kind = if counter { "counter" } else { "gauge" };
        let _ = writeln!(self.text, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: u64) {
        let labels: Vec<String> =
            labels.iter().map(|(key, value)| format!("{key}={:?}", value.to_string())).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{PREFIX}{name}{labels} {value}");
    }
}

/// Of this process, in bytes; zeros where /proc is not mounted.
#[derive(Default)]
struct Memory {
    resident: u64,
    anonymous: u64,
}

impl Memory {
    fn read() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1_024)
        };
        Memory {
            resident: field("VmRSS:").unwrap_or_default(),
            anonymous: field("RssAnon:").unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::link::LinkReport;
    use super::*;

    fn report(shard: u8) -> Report {
        Report {
            shard,
            core: crate::core::stats::Stats { accepted: 17, connections: 3, ..Default::default() },
            edge: millrace_edge::Stats { sends: 5, ..Default::default() },
            shape: millrace_edge::Shape { backend: "sim", banks: 2, capacity: 100 },
            logins: super::super::logins::Counts { tokens_checked: 9, ..Default::default() },
            logins_waiting: 1,
            links: vec![LinkReport { node: "a\"b".to_owned(), up: true, bytes_in: 44, ..Default::default() }],
            turns: 6,
            naps: 0,
            busy_us: 7,
            turn_us_max: 8,
            ready: true,
            lease_live: true,
        }
    }

    #[test]
    fn every_sample_belongs_to_a_family_with_one_type_and_a_help() {
        let process = Process {
            shards: 3,
            store: vec![("store_appends_total", 4), ("store_routes", 2)],
            ..Process::default()
        };
        let page = page(&process, &[report(0), report(2)]);
        let mut families = std::collections::HashMap::new();
        for line in page.lines().filter(|line| line.starts_with("# TYPE ")) {
            let mut words = line.split(' ').skip(2);
            let (name, kind) = (words.next().unwrap(), words.next().unwrap());
            assert!(families.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
            assert!(page.contains(&format!("# HELP {name} ")), "{name} has no help");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        }
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(families.contains_key(name), "{line}");
            assert!(line.rsplit(' ').next().unwrap().parse::<u64>().is_ok(), "{line}");
        }
        for expected in [
            "millrace_gateway_shard_up{shard=\"1\"} 0",
            "millrace_gateway_shard_up{shard=\"2\"} 1",
            "millrace_gateway_accepted_total{shard=\"2\"} 17",
            "millrace_gateway_connections{shard=\"0\"} 3",
            "millrace_gateway_edge_sends_total{shard=\"0\"} 5",
            "millrace_gateway_tokens_checked_total{shard=\"0\"} 9",
            "millrace_gateway_link_bytes_received_total{shard=\"0\",node=\"a\\\"b\"} 44",
            "millrace_gateway_store_appends_total 4",
        ] {
            assert!(page.lines().any(|line| line == expected), "{expected}");
        }
    }

    #[test]
    fn memory_is_read() {
        let memory = Memory::read();
        assert!(memory.resident > 1 << 20 && memory.anonymous <= memory.resident);
    }
}
