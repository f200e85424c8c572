//! A tiny demo with the real binary: its exit status, its files, and that it leaves nothing behind.

mod support;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

/// One run must be over by then: a debug build on a busy machine included.
const WITHIN: Duration = Duration::from_secs(120);

fn run(flags: &[&str], scratch: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-loadgen"));
    command.args(flags).env("TMPDIR", scratch);
    support::run(command, WITHIN)
}

fn check(flags: &[&str]) -> Value {
    let dir = tempfile::tempdir().expect("a directory");
    let (json, html) = (dir.path().join("report.json"), dir.path().join("report.html"));
    let scratch = dir.path().join("scratch");
    std::fs::create_dir(&scratch).expect("a directory");
    let (json_flag, html_flag) = (format!("--json={}", json.display()), format!("--html={}", html.display()));
    let mut all = flags.to_vec();
    all.extend([json_flag.as_str(), html_flag.as_str()]);
    let output = run(&all, &scratch);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{flags:?} ended with {}\n{out}\n{err}", output.status);
    assert!(out.contains("all is well"), "{out}");
    let left: Vec<_> = std::fs::read_dir(&scratch).expect("a directory").collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    let page = std::fs::read_to_string(html).expect("the page");
    assert!(page.contains("<table>") && page.trim_end().ends_with("</html>"));
    serde_json::from_str(&std::fs::read_to_string(json).expect("the report")).expect("JSON")
}

#[test]
fn a_tiny_demo_loses_nothing_and_says_what_it_cost() {
    for transport in ["tcp", "ws"] {
        let flags = ["demo", "--connections=200", "--seconds=1", "--groups=10,100", "--transport", transport];
        let report = check(&flags);
        assert_eq!((&report["connections"], &report["logins"]), (&200.into(), &200.into()));
        for field in ["lost", "duplicates", "out_of_order", "login_failures", "misrouted", "unacknowledged"] {
            assert_eq!(report[field], 0, "{field} over {transport}");
        }
        assert!(report["deliveries"].as_u64() > Some(400), "{report}");
        assert_eq!(report["deliveries"], report["deliveries_expected"]);
        for size in ["10", "100", "200"] {
            assert!(report["last_receiver_us"][size]["max"].as_u64() > Some(0), "{size}: {report}");
        }
        let gateway = &report["gateway"];
        for field in ["user_bytes_per_connection", "fixed_bytes", "cpu_us_per_delivery"] {
            assert!(gateway[field].is_number(), "{field}: {gateway}");
        }
        assert!(gateway["floor_cpu_us_per_delivery"].as_f64() > Some(0.0), "{gateway}");
    }
}

#[test]
fn dropped_clients_come_back_and_talk_on() {
    let report = check(&["storm", "--connections=100", "--seconds=1", "--groups=10"]);
    assert_eq!(report["storm"]["logins"], 100, "{report}");
    assert!(report["storm"]["all_back_s"].is_number(), "{report}");
    assert!(report["deliveries"].as_u64() > Some(0));
}

#[test]
fn a_target_without_a_key_is_refused_in_words() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = run(&["idle", "--target=127.0.0.1:9", "--connections=2", "--seconds=1"], dir.path());
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("--ed25519-key-file"), "{text}");
}

#[test]
fn a_tiny_million_run_survives_the_kill_of_its_gateway() {
    let report = check(&[
        "million",
        "--sessions=400",
        "--groups=20,200",
        "--seconds=1",
        "--heartbeat=1",
        "--probe-rate=50",
    ]);
    assert_eq!((&report["sessions"], &report["logins"]["count"]), (&400.into(), &400.into()));
    assert_eq!(report["joins"]["count"], 400 * 3, "{report}");
    assert_eq!(report["memory"]["points"].as_array().map(Vec::len), Some(6), "{report}");
    let fan_outs = report["fan_outs"].as_array().expect("a list");
    let members: Vec<_> = fan_outs.iter().map(|fan_out| fan_out["members"].as_u64().unwrap()).collect();
    assert_eq!(members, [20, 200, 400]);
    for fan_out in fan_outs {
        let (expected, seen) = (&fan_out["expected"], &fan_out["deliveries"]);
        assert!(expected == seen && seen.as_u64() > Some(0), "{fan_out}");
        assert!(fan_out["first_us"]["p50"].as_u64() <= fan_out["last_us"]["p50"].as_u64(), "{fan_out}");
    }
    assert_eq!(report["direct"]["lost"], 0, "{report}");
    assert!(report["direct"]["delivered"].as_u64() > Some(20), "{report}");
    assert!(report["floor"]["deliveries"].as_u64() > Some(0), "{report}");
    let storm = &report["storm"];
    assert!(storm["all_back_s"].as_f64() >= storm["all_noticed_s"].as_f64(), "{storm}");
    assert!(storm["direct"]["delivered"].as_u64() > Some(0), "{storm}");
    assert!(report["targets"].as_array().is_some_and(|targets| !targets.is_empty()), "{report}");
}
