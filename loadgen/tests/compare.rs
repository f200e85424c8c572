//! A tiny comparison with the real binary and whatever servers this machine has: rows for all, no loss at the floors
//! and at millrace, words for what is not installed, and nothing left behind.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// One run must be over by then: a debug build on a busy machine included.
const WITHIN: Duration = Duration::from_secs(150);

/// All servers, as flags name them.
const ALL: [&str; 10] = [
    "floor-send",
    "floor-uring",
    "millrace-tcp",
    "millrace-ws",
    "redis",
    "nchan",
    "nats",
    "mosquitto-qos0",
    "mosquitto-qos1",
    "centrifugo",
];

fn command(flags: &[&str], scratch: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-loadgen"));
    command.arg("compare").args(flags).env("TMPDIR", scratch);
    command
}

/// Processes whose command line names this directory.
fn processes_of(scratch: &Path) -> Vec<String> {
    let name = scratch.to_str().expect("UTF-8");
    let lines = std::fs::read_dir("/proc").expect("/proc").flatten();
    let lines = lines.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.contains(name)).collect()
}

fn is_clean(scratch: &Path) -> bool {
    let left = std::fs::read_dir(scratch).expect("a directory").count();
    left == 0 && processes_of(scratch).is_empty()
}

fn eventually_clean(scratch: &Path) -> bool {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_clean(scratch) {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

#[test]
fn a_tiny_comparison_has_a_row_for_each_and_loses_nothing_of_ours() {
    let dir = tempfile::tempdir().expect("a directory");
    let (json, html) = (dir.path().join("report.json"), dir.path().join("report.html"));
    let scratch = dir.path().join("scratch");
    std::fs::create_dir(&scratch).expect("a directory");
    let (json_flag, html_flag) = (format!("--json={}", json.display()), format!("--html={}", html.display()));
    let flags = ["--subscribers=50", "--repeat=1", "--messages=5", "--rate=20", "--rest=0.1", "--settle=0.1"];
    let output = support::run(command(&[&flags[..], &[&json_flag, &html_flag]].concat(), &scratch), WITHIN);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "it ended with {}\n{out}\n{err}", output.status);
    assert!(eventually_clean(&scratch), "left behind: {:?}", processes_of(&scratch));

    let report: Value =
        serde_json::from_str(&std::fs::read_to_string(json).expect("the report")).expect("JSON");
    let rows = report["rows"].as_array().expect("rows");
    let names: Vec<&str> = rows.iter().filter_map(|row| row["server"].as_str()).collect();
    assert_eq!(names, ALL);
    for row in rows {
        let (server, status) = (row["server"].as_str().expect("a name"), row["status"].as_str());
        assert!(out.contains(row["title"].as_str().expect("a title")), "{server} in {out}");
        match status {
            Some("missing") => {
                let comes_from = row["comes_from"].as_str().expect("where it comes from");
                assert!(out.contains(comes_from), "{comes_from} in {out}");
                assert!(!server.starts_with("floor") && !server.starts_with("millrace"), "{row}");
            }
            Some("measured") => {
                assert_eq!(row["deliveries_expected"], 250, "{row}");
                let figures = &row["figures"];
                for figure in ["fixed_bytes", "cpu_us_per_delivery", "latency_p50_us", "last_receiver_p50_us"]
                {
                    let Value::Number(median) = &figures[figure]["median"] else {
                        panic!("{server} has no {figure}: {row}");
                    };
                    assert!(
                        median.as_f64() > Some(0.0) || figure == "cpu_us_per_delivery",
                        "{figure}: {row}"
                    );
                }
            }
            other => panic!("{server} is {other:?}: {}\n{err}", row["reasons"]),
        }
        if server.starts_with("floor") || server.starts_with("millrace") {
            assert_eq!((&row["status"], &row["lost"]), (&"measured".into(), &0.into()), "{row}");
            assert_eq!((&row["duplicates"], &row["out_of_order"]), (&0.into(), &0.into()), "{row}");
        }
    }
    let page = std::fs::read_to_string(html).expect("the page");
    assert!(page.contains("floor: io_uring") && page.trim_end().ends_with("</html>"));
}

/// The PATH decides what is installed; sbin is looked at too, so only what is nowhere can be hidden.
#[test]
fn what_is_not_installed_is_named_and_fails_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let flags = ["--servers=floor-send,centrifugo", "--subscribers=5", "--repeat=1", "--messages=2"];
    let mut command = command(&[&flags[..], &["--rate=50", "--rest=0", "--settle=0"]].concat(), dir.path());
    command.env("PATH", "/nowhere");
    let output = support::run(command, WITHIN);
    let out = String::from_utf8_lossy(&output.stdout);
    let elsewhere = ["/usr/sbin", "/usr/local/sbin", "/sbin"];
    if elsewhere.iter().any(|dir| Path::new(dir).join("centrifugo").exists()) {
        return;
    }
    assert!(output.status.success(), "{out}");
    assert!(out.contains("centrifugo is not installed: https://github.com/centrifugal"), "{out}");
}

/// A program that is found but is no such server: a row with its last words, and an exit without a fault.
#[test]
fn a_server_that_does_not_start_is_a_row_with_its_last_words() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    let (bin, scratch) = (dir.path().join("bin"), dir.path().join("scratch"));
    std::fs::create_dir(&bin).expect("a directory");
    std::fs::create_dir(&scratch).expect("a directory");
    let broken = bin.join("redis-server");
    std::fs::write(&broken, "#!/bin/sh\necho the disk is on fire >&2\nexit 7\n").expect("a script");
    std::fs::set_permissions(&broken, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let flags = ["--servers=redis,floor-uring", "--subscribers=5", "--repeat=1", "--messages=2"];
    let mut command = command(&[&flags[..], &["--rate=50", "--rest=0", "--settle=0"]].concat(), &scratch);
    command.env("PATH", path);
    let output = support::run(command, WITHIN);
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{out}");
    assert!(out.contains("failed") && out.contains("the disk is on fire"), "{out}");
    assert!(out.contains("10 of 10"), "the other one goes on: {out}");
    assert!(eventually_clean(&scratch), "left behind: {:?}", processes_of(&scratch));
}

/// Whoever ends it, and however: servers and files go along.
#[test]
fn a_comparison_that_is_killed_or_interrupted_leaves_nothing() {
    for signal in ["-KILL", "-INT"] {
        let scratch = tempfile::tempdir().expect("a directory");
        let flags =
            ["--subscribers=5", "--repeat=1", "--messages=1000", "--rate=10", "--rest=0", "--settle=0"];
        // One that is somebody else's where there is one, else ours.
        let servers = ["redis", "nats", "mosquitto-qos0", "floor-send"];
        let programs = ["redis-server", "nats-server", "mosquitto", ""];
        let dirs: Vec<_> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
        let is_here = |program: &str| dirs.iter().any(|dir| dir.join(program).is_file());
        let nth = programs.iter().position(|program| is_here(program)).unwrap_or(servers.len() - 1);
        let servers_flag = format!("--servers={}", servers[nth]);
        let child = command(&[&flags[..], &[&servers_flag]].concat(), scratch.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let end = Instant::now() + Duration::from_secs(30);
        while processes_of(scratch.path()).is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        // Past its start, or in the middle of it: both must do.
        if signal == "-INT" {
            std::thread::sleep(Duration::from_millis(700));
        }
        let done = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill runs");
        assert!(done.success());
        let output = child.wait_with_output().expect("its end");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{signal}: {}", output.status);
        assert!(signal != "-INT" || said.contains("interrupted before anything was measured"), "{said}");
        let is_clean = eventually_clean(scratch.path());
        let files = Command::new("find").arg(scratch.path()).output().expect("find runs").stdout;
        let (processes, files) = (processes_of(scratch.path()), String::from_utf8_lossy(&files));
        assert!(is_clean, "{signal} left: {processes:?}\n{files}");
    }
}
