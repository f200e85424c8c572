//! What `/metrics` shows, in Prometheus' text format. The numbers are counted where they arise; here they get names.

use super::admin::metric;
use super::cluster::Status;
use super::shard::Report;
use crate::core::stats::Stats;

/// The core's counters by name. The pattern is exhaustive, so that a counter added there is not forgotten here.
macro_rules! named {
    ($stats:expr, $($field:ident),* $(,)?) => {{
        let Stats { $($field),* } = $stats;
        [$((stringify!($field), $field)),*]
    }};
}

/// Names of the core's numbers that go down too.
const GAUGES: [&str; 8] = [
    "partitions_served",
    "conversations",
    "links",
    "links_up",
    "waiting_for_credit",
    "watched",
    "jobs",
    "closes",
];

fn core_numbers(stats: Stats) -> impl IntoIterator<Item = (&'static str, u64)> {
    named!(
        stats,
        records_in,
        records_out,
        malformed,
        messages,
        notes,
        batches,
        repeats,
        acks,
        acks_refused,
        reads,
        pages,
        truncated,
        peeks,
        fates,
        fates_unwatched,
        recovered,
        events_dropped,
        trimmed,
        trims_held,
        out_of_order,
        crowded,
        conflicts,
        refused,
        busy,
        not_owner,
        fan_outs,
        gap_marked,
        gaps,
        directs,
        directs_dropped,
        relays,
        relays_dropped,
        typing,
        typing_dropped,
        presence_told,
        presence_lost,
        watches_left_out,
        watches_expired,
        seen,
        routes_failed,
        no_link,
        oversize,
        lost,
        links_overflowed,
        links_expired,
        link_errors,
        registered,
        losers,
        close_repeats,
        closes_untracked,
        groups_left_out,
        unlistings_failed,
        claims,
        claims_failed,
        superseded,
        stopped,
        evicted,
        streams_forgotten,
        lease_lapsed,
        partitions_served,
        conversations,
        links,
        links_up,
        waiting_for_credit,
        watched,
        jobs,
        closes,
    )
}

/// The page. A shard that does not answer has no lines, and counts in `shards_silent`.
pub(crate) fn render(
    status: Option<&Status>,
    reports: &[Option<Report>],
    store: &[(&'static str, u64)],
    now_us: u64,
) -> String {
    let mut out = String::with_capacity(16 << 10);
    let silent = reports.iter().filter(|report| report.is_none()).count() as u64;
    metric(&mut out, "shards_silent", "gauge", "Shards that did not answer.", &[(String::new(), silent)]);
    if let Some(status) = status {
        render_cluster(&mut out, status, now_us);
    }
    let answered: Vec<(usize, &Report)> =
        reports.iter().enumerate().filter_map(|(index, report)| Some((index, report.as_ref()?))).collect();
    let runtimes: Vec<_> = answered
        .iter()
        .map(|(index, report)| (format!("{{shard=\"{index}\",runtime=\"{}\"}}", report.runtime), 1))
        .collect();
    metric(&mut out, "runtime_info", "gauge", "What the shard's runtime waits with.", &runtimes);
    let mut per_shard = |name: &str, kind, help: &str, value: &dyn Fn(&Report) -> u64| {
        let values: Vec<_> = answered
            .iter()
            .map(|(index, report)| (format!("{{shard=\"{index}\"}}"), value(report)))
            .collect();
        metric(&mut out, name, kind, help, &values);
    };
    per_shard("transports", "gauge", "Links with a transport.", &|report| report.links as u64);
    per_shard("turns_total", "counter", "Turns of the shard.", &|report| report.turns);
    per_shard(
        "pauses_total",
        "counter",
        "Turns without reading links: a sibling's queue was full.",
        &|report| report.pauses,
    );
    per_shard("links_reset_total", "counter", "Links reset for their peer's fault.", &|report| {
        report.links_reset
    });
    for (index, (name, _)) in core_numbers(Stats::default()).into_iter().enumerate() {
        let (name, kind) = match GAUGES.contains(&name) {
            true => (name.to_string(), "gauge"),
            false => (format!("{name}_total"), "counter"),
        };
        per_shard(&name, kind, "See Stats in dispatcher/src/core/stats.rs.", &|report| {
            core_numbers(report.core).into_iter().nth(index).map_or(0, |(_, value)| value)
        });
    }
    for (name, value) in store {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        metric(&mut out, name, kind, "Of the store.", &[(String::new(), *value)]);
    }
    out
}

fn render_cluster(out: &mut String, status: &Status, now_us: u64) {
    let mut one =
        |name: &str, kind, help: &str, value: u64| metric(out, name, kind, help, &[(String::new(), value)]);
    let left_ms = status.lease_until_us.saturating_sub(now_us) / 1_000;
    one("lease_ms_left", "gauge", "Time that this node may act as owner.", left_ms);
    one("lease_renewals_total", "counter", "Renewals of the lease.", status.renewals);
    one(
        "lease_renewals_failed_total",
        "counter",
        "Renewals that the store did not grant.",
        status.renewals_failed,
    );
    one(
        "lease_renewals_withheld_total",
        "counter",
        "Renewals not sent: a shard did not turn.",
        status.renewals_withheld,
    );
    one(
        "lease_missing_total",
        "counter",
        "Times that the lease was gone from the store.",
        status.lease_missing,
    );
    one("partitions_owned", "gauge", "Partitions served by this node.", status.owned.len() as u64);
    one("partitions_moving", "gauge", "Claims and releases under way.", status.moving as u64);
    one("nodes_live", "gauge", "Dispatchers with a live lease.", status.view.nodes.len() as u64);
    one("gateways_live", "gauge", "Gateways with a live lease.", status.view.gateways.len() as u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_every_shard_is_on_the_page() {
        let report = |messages| Report {
            core: Stats { messages, ..Stats::default() },
            links: 3,
            turns: 5,
            pauses: 0,
            links_reset: 0,
            runtime: "epoll",
        };
        let page = render(None, &[Some(report(11)), None, Some(report(13))], &[("store_jobs_total", 17)], 0);
        for line in [
            "millrace_dispatcher_shards_silent 1",
            "millrace_dispatcher_messages_total{shard=\"0\"} 11",
            "millrace_dispatcher_messages_total{shard=\"2\"} 13",
            "millrace_dispatcher_transports{shard=\"0\"} 3",
            "millrace_dispatcher_runtime_info{shard=\"0\",runtime=\"epoll\"} 1",
            "millrace_dispatcher_store_jobs_total 17",
            "# TYPE millrace_dispatcher_links_up gauge",
        ] {
            assert!(page.lines().any(|found| found == line), "{line:?} is not in\n{page}");
        }
        for gauge in GAUGES {
            assert!(
                page.contains(&format!("# TYPE millrace_dispatcher_{gauge} gauge")),
                "{gauge} is no number"
            );
        }
    }
}
