//! A small run of `costs` with the real binary on the embedded store: every figure is there, and can be.

mod support;

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

/// A debug build on a busy machine included.
const WITHIN: Duration = Duration::from_secs(90);

#[test]
fn every_part_has_figures_that_can_be() {
    let dir = tempfile::tempdir().expect("a directory");
    let (json, html, scratch) =
        (dir.path().join("report.json"), dir.path().join("report.html"), dir.path().join("scratch"));
    std::fs::create_dir(&scratch).expect("a directory");
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-loadgen"));
    command.args(["costs", "--store=embedded", "--pairs=3", "--groups=2", "--window=4", "--seconds=0.3"]);
    command.args(["--missed=600", "--conversations=12", "--repeat=2"]);
    command.arg("--json").arg(&json).arg("--html").arg(&html).env("TMPDIR", &scratch);
    let output = support::run(command, WITHIN);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "ended with {}\n{out}\n{err}", output.status);
    assert!(out.ends_with("every message arrived once\n"), "{out}");
    assert!(std::fs::read_to_string(html).expect("the page").contains("<td>embedded</td>"));
    let left: Vec<_> = std::fs::read_dir(&scratch).expect("a directory").collect();
    assert!(left.is_empty(), "left behind: {left:?}");

    let text = std::fs::read_to_string(json).expect("the report");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let store = &report["stores"][0];
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} in {text}"));
    for (part, listeners) in [("direct", 1), ("group", 2)] {
        let flow = &store[part];
        let acknowledged = number(&flow["acknowledged"]);
        assert!(acknowledged > 0.0 && number(&flow["seconds"]) >= 0.3, "{flow}");
        // No more is in a batch than is under way.
        let batch = number(&flow["messages_per_batch"]);
        assert!((0.5..=12.0).contains(&batch), "{flow}");
        let cpu_s = (number(&flow["cpu"]["gateway_us"]) + number(&flow["cpu"]["dispatcher_us"])) / 1e6;
        let per_core = number(&flow["acknowledged_per_s_per_core"]);
        assert!((per_core * cpu_s / acknowledged - 1.0).abs() < 1e-6, "{flow}");
        let (p50, p99) = (number(&flow["ack_us"]["p50"]), number(&flow["ack_us"]["p99"]));
        assert!(p50 > 0.0 && p50 <= p99, "{flow}");
        let deliveries = &flow["deliveries"];
        assert_eq!((&deliveries["repeated"], &deliveries["gaps"]), (&0.into(), &0.into()));
        assert_eq!(deliveries["came"], deliveries["expected"]);
        assert!(number(&deliveries["came"]) >= acknowledged * f64::from(listeners), "{flow}");
    }
    let catch_up = &store["catch_up"];
    assert_eq!((&catch_up["messages"], &catch_up["deliveries"]["came"]), (&600.into(), &1_200.into()));
    assert!(number(&catch_up["wall_us"]["median"]) > 0.0, "{catch_up}");
    let log_in = &store["log_in"];
    assert_eq!((&log_in["conversations"], &log_in["deliveries"]["came"]), (&12.into(), &72.into()));
    let times = ["login_us", "listed_us", "read_us"].map(|time| number(&log_in[time]["median"]));
    assert!(0.0 < times[0] && times[0] < times[1] && times[1] < times[2], "{log_in}");
}

#[test]
fn a_store_that_does_not_exist_is_refused_in_words() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-loadgen"));
    command.args(["costs", "--store=sqlite"]);
    let output = support::run(command, WITHIN);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("redis-replicated"), "{text}");
}
