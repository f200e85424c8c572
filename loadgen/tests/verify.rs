//! A short run of `verify` with the real binary, as CI does: no promise broken, and nothing left behind.

mod support;

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

/// One run must be over by then: a debug build on a busy machine included.
const WITHIN: Duration = Duration::from_secs(170);

/// Runs it, and returns its report.
fn verify(flags: &[&str]) -> Value {
    let dir = tempfile::tempdir().expect("a directory");
    let (json, scratch) = (dir.path().join("report.json"), dir.path().join("scratch"));
    std::fs::create_dir(&scratch).expect("a directory");
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-loadgen"));
    command.arg("verify").args(flags).arg("--json").arg(&json).env("TMPDIR", &scratch);
    let output = support::run(command, WITHIN);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{flags:?} ended with {}\n{out}\n{err}", output.status);
    let left: Vec<_> = std::fs::read_dir(&scratch).expect("a directory").collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    serde_json::from_str(&std::fs::read_to_string(json).expect("the report")).expect("JSON")
}

#[test]
fn every_promise_holds_on_loopback_while_processes_die_and_pause() {
    let flags = ["--seconds=15", "--users=12", "--seed=7", "--no-namespaces"];
    let report = verify(&flags);
    assert_eq!((&report["schedules"], &report["failures"]), (&1.into(), &Value::Array(Vec::new())));
    assert!(report["acknowledged"].as_u64() > Some(100), "{report}");
    assert!(report["shown"].as_u64() > report["acknowledged"].as_u64(), "{report}");
    assert!(report["faults"].as_object().is_some_and(|faults| !faults.is_empty()), "{report}");
    // What can't be on loopback is told.
    assert!(report["left_out"]["failover"].is_string(), "{report}");
}

#[test]
fn a_standalone_gateway_keeps_every_promise_while_it_dies() {
    const KINDS: &str = "--faults=kill_gateway";
    let flags = ["--store=embedded", "--seconds=8", "--users=8", "--seed=3", "--no-namespaces", KINDS];
    let report = verify(&flags);
    assert_eq!((&report["schedules"], &report["failures"]), (&1.into(), &Value::Array(Vec::new())));
    assert_eq!((&report["store"], &report["durability"]), (&"embedded".into(), &"fsync".into()));
    assert!(report["acknowledged"].as_u64() > Some(50), "{report}");
    assert!(report["faults"]["kill_gateway"].is_object(), "{report}");
    // What one process can't have is told.
    let why = report["left_out"]["kill_dispatcher"].as_str().unwrap_or_default();
    assert!(why.contains("one process"), "{report}");
}

#[test]
fn a_fault_that_does_not_exist_is_refused_in_words() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-loadgen"));
    command.args(["verify", "--no-namespaces", "--faults=earthquake"]);
    let output = support::run(command, WITHIN);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("kill_gateway"), "{text}");
}
