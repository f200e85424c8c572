//! The report for people: one table with a row for each store, what the columns mean, and the verdict.

use std::fmt::Write as _;

use super::report::{CatchUp, CostsReport, Flow, LogIn, OfStore, PerThousand};
use crate::report::html::{Page, document_with_notes};
use crate::report::table::time;
use crate::report::{self, Shown, columns};

/// Heads of the columns; the first word of a part is above its columns in the text.
const HEADS: [(&str, &str); 16] = [
    ("", "store"),
    ("direct messages", "per s per core"),
    ("", "per s"),
    ("", "ack p50, p99"),
    ("", "batch, round"),
    ("", "CPU of 1,000"),
    ("group append", "per s per core"),
    ("", "per s"),
    ("", "ack p50, p99"),
    ("", "batch, round"),
    ("", "CPU of 1,000"),
    ("sync", "wall"),
    ("", "CPU of 1,000"),
    ("login", "LoginAck"),
    ("", "list"),
    ("", "all read"),
];

/// Where there is no figure.
const NONE: &str = "-";

fn cpu(of: &PerThousand) -> String {
    let ms = |seconds: f64| format!("{:.0}", seconds * 1e3);
    match of.redis_s > 0.0 {
        true => format!("{}+{}+{} ms", ms(of.gateway_s), ms(of.dispatcher_s), ms(of.redis_s)),
        false => format!("{}+{} ms", ms(of.gateway_s), ms(of.dispatcher_s)),
    }
}

fn flow(of: Option<&Flow>) -> [String; 5] {
    let Some(flow) = of else { return [NONE; 5].map(str::to_owned) };
    let mean = |count: Option<f64>| count.map_or(NONE.to_owned(), |count| format!("{count:.1}"));
    [
        flow.acknowledged_per_s_per_core.map_or(NONE.to_owned(), |per_s| format!("{per_s:.0}")),
        format!("{:.0}", flow.acknowledged_per_s),
        format!("{}, {}", time(flow.ack_us.p50), time(flow.ack_us.p99)),
        format!("{}, {}", mean(flow.messages_per_batch), mean(flow.messages_per_round)),
        cpu(&flow.cpu_per_1000),
    ]
}

fn catch_up(of: Option<&CatchUp>) -> [String; 2] {
    let Some(catch_up) = of else { return [NONE; 2].map(str::to_owned) };
    [time(catch_up.wall_us.median), cpu(&catch_up.cpu_per_1000)]
}

fn log_in(of: Option<&LogIn>) -> [String; 3] {
    let Some(log_in) = of else { return [NONE; 3].map(str::to_owned) };
    [log_in.login_us, log_in.listed_us, log_in.read_us].map(|us| time(us.median))
}

fn row(of: &OfStore) -> Vec<String> {
    let mut row = vec![of.store.to_string()];
    row.extend(flow(of.direct.as_ref()));
    row.extend(flow(of.group.as_ref()));
    row.extend(catch_up(of.catch_up.as_ref()));
    row.extend(log_in(of.log_in.as_ref()));
    row
}

impl CostsReport {
    fn rows(&self) -> Vec<Vec<String>> {
        self.stores.iter().map(row).collect()
    }

    /// (About what, in words): how the figures are to be read, and what is not in the table.
    fn notes(&self) -> Vec<(&'static str, String)> {
        let (pairs, groups, window, bytes) = (self.pairs, self.groups, self.window, self.payload_bytes);
        let mut notes = vec![
            (
                "direct messages",
                format!("{pairs} pairs, each with {window} of {bytes} B unacknowledged, recipients online"),
            ),
            (
                "group append",
                format!("{groups} groups of 10 members, one sends in the same way, 2 others are online"),
            ),
            ("core", "a second of CPU of gateway and dispatcher together, Redis apart".to_owned()),
            (
                "batch, round",
                "messages in one batch of the dispatcher for the store; in one round of the store, which is one write \
                 and, with fsync, one sync"
                    .to_owned(),
            ),
            ("CPU of 1,000", "messages: gateway + dispatcher (+ Redis and its replica)".to_owned()),
        ];
        let done = |of: &OfStore| Some((of.catch_up.clone()?, of.log_in.clone()?));
        if let Some((catch_up, log_in)) = self.stores.iter().find_map(done) {
            let (messages, repeats) = (catch_up.messages, catch_up.repeats);
            notes.push(("sync", format!("of {messages} messages by a new device; median of {repeats}")));
            let (conversations, each) = (log_in.conversations, log_in.messages_each);
            notes.push((
                "login",
                format!(
                    "by token, {conversations} conversations with {each} unread each; from the Login frame until it is \
                     acknowledged, until the list with last messages and unread counts is there, until all is read"
                ),
            ));
        }
        for of in &self.stores {
            let Some(log_in) = &of.log_in else { continue };
            let max = [log_in.login_us, log_in.listed_us, log_in.read_us].map(|us| time(us.max)).join(", ");
            let connect = time(log_in.from_connect_us.median);
            notes
                .push(("login, max", format!("{}: {max}; from the connect to LoginAck {connect}", of.store)));
        }
        notes.extend(self.left_out.iter().map(|(store, why)| ("left out", format!("{store}: {why}"))));
        notes
    }

    fn verdict(&self) -> String {
        let faults = self.faults();
        let end = match faults.is_empty() {
            true => "every message arrived once".to_owned(),
            false => format!("FAILED: {}", faults.join(", ")),
        };
        if self.interrupted { format!("interrupted: {end}") } else { end }
    }
}

impl Shown for CostsReport {
    /// The last line is the verdict.
    fn table(&self) -> String {
        let heads = |of: fn(&(&str, &str)) -> String| HEADS.iter().map(of).collect::<Vec<_>>();
        let mut rows = vec![heads(|(_, head)| (*head).to_owned())];
        rows.extend(self.rows());
        let widths = columns::widths(&rows);
        let mut text = format!("\nmillrace: what messages cost\n  {}\n  {}\n\n", self.command, self.machine);
        // A part's name begins above its first column and may reach over the next ones.
        let mut parts = String::new();
        let mut at = 0;
        for ((part, _), width) in HEADS.iter().zip(&widths) {
            if !part.is_empty() {
                let _ = write!(parts, "{:pad$}{part}", "", pad = at - parts.len());
            }
            at += width + 2;
        }
        let _ = writeln!(text, "  {parts}");
        for row in &rows {
            let _ = writeln!(text, "  {}", columns::line(row, &widths));
        }
        text.push('\n');
        for (about, words) in self.notes() {
            let _ = writeln!(text, "  {about}: {words}");
        }
        let _ = writeln!(text, "  {}", self.verdict());
        text
    }

    fn json(&self) -> String {
        report::text(self)
    }

    fn page(&self) -> String {
        let mut part = "";
        let heads: Vec<String> = (HEADS.iter())
            .map(|(first, head)| {
                part = if first.is_empty() { part } else { first };
                format!("{part} {head}").trim().to_owned()
            })
            .collect();
        let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
        let page = Page {
            title: "millrace: what messages cost",
            is_good: self.faults().is_empty(),
            verdict: &self.verdict(),
            trouble: None,
            heads: &heads,
            rows: &self.rows(),
            curves: &[],
            footer: &format!("{}; {}; millrace {}", self.command, self.machine, self.version),
        };
        document_with_notes(&page, &self.notes())
    }

    fn faults(&self) -> Vec<String> {
        CostsReport::faults(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::costs::report::tests::counted;
    use crate::costs::store::Store;
    use crate::measure::Machine;

    #[test]
    fn one_row_for_each_store_under_its_heads() {
        let of = |store: Store, direct| OfStore {
            store,
            durability: store.durability(),
            direct,
            group: None,
            catch_up: None,
            log_in: None,
            trouble: None,
        };
        let report = CostsReport {
            scenario: "costs",
            command: "costs".to_owned(),
            version: "0",
            machine: Machine::here(),
            pairs: 1,
            groups: 1,
            window: 8,
            payload_bytes: 128,
            stores: vec![of(Store::Embedded, Some(Flow::of(&counted()))), of(Store::RedisAsync, None)],
            left_out: [(Store::RedisFsync, "why".to_owned())].into(),
            interrupted: false,
        };
        let text = report.table();
        let lines: Vec<&str> = text.lines().collect();
        let heads = lines.iter().position(|line| line.contains("CPU of 1,000")).unwrap();
        assert_eq!(lines[heads - 1].find("direct messages"), lines[heads].find("per s per core"));
        assert_eq!(lines[heads + 1].find("5000"), lines[heads].find("per s per core"));
        assert!(lines[heads + 1].contains("67+133+300 ms") && lines[heads + 2].contains("redis-async"));
        assert!(
            text.contains("left out: redis-fsync: why") && text.ends_with("every message arrived once\n")
        );
        assert!(report.page().contains("<th>group append batch, round</th>"));
        assert!(report.json().contains("\"acknowledged_per_s_per_core\": 5000.0"));
    }
}
