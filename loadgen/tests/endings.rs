//! Runs that end before their time: by Ctrl-C, by a server that dies, by a kill. Each says what happened, and leaves
//! no process and no file behind.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A phase begins, and a run that was told to ends, within this time: a debug build on a busy machine included.
const WITHIN: Duration = Duration::from_secs(60);

/// One run, with a directory for temporary files that must be empty afterwards.
struct Run {
    process: Child,
    stderr: BufReader<std::process::ChildStderr>,
    scratch: tempfile::TempDir,
}

/// How it ended, and all that it printed since its phase began.
struct End {
    status: ExitStatus,
    said: String,
}

impl Run {
    /// Starts a run and waits for the `nth` line that begins with `phase`.
    fn until(flags: &[&str], phase: &str, nth: usize) -> Self {
        let scratch = tempfile::tempdir().expect("a directory");
        let mut process = Command::new(env!("CARGO_BIN_EXE_millrace-loadgen"))
            .args(flags)
            .env("TMPDIR", scratch.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut stderr = BufReader::new(process.stderr.take().expect("piped"));
        let mut left = nth;
        while left > 0 {
            let mut line = String::new();
            let read = stderr.read_line(&mut line).expect("its words");
            assert!(read > 0, "it ended before {phase:?}");
            left -= usize::from(line.starts_with(phase));
        }
        Run { process, stderr, scratch }
    }

    fn signal(&self, signal: &str) {
        kill(self.process.id(), signal);
    }

    /// Its server; one is started a moment after some phases begin.
    fn server(&self) -> u32 {
        let found =
            eventually(|| processes().into_iter().find(|(_, parent, _)| *parent == self.process.id()));
        found.expect("it has a server").0
    }

    /// Waits for its end, and for that of everything it started.
    fn end(mut self) -> End {
        let status = eventually(|| self.process.try_wait().expect("its state"));
        if status.is_none() {
            let _ = self.process.kill();
        }
        let status = status.expect("it ends in time");
        let mut said = String::new();
        let _ = self.process.stdout.take().expect("piped").read_to_string(&mut said);
        let _ = self.stderr.read_to_string(&mut said);
        let path = self.scratch.path();
        let alone = eventually(|| (left_of(path).is_empty() && servers_of(path).is_empty()).then_some(()));
        assert!(alone.is_some(), "left behind: {:?}, {:?}\n{said}", left_of(path), servers_of(path));
        End { status, said }
    }
}

fn eventually<T>(mut found: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + WITHIN;
    loop {
        let value = found();
        if value.is_some() || Instant::now() > end {
            return value;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn kill(pid: u32, signal: &str) {
    let done = Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill runs");
    assert!(done.success(), "kill {signal} {pid}");
}

/// All processes: (pid, parent, command line).
fn processes() -> Vec<(u32, u32, String)> {
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let read = |pid: u32| -> Option<(u32, u32, String)> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
        Some((pid, parent, fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?))
    };
    pids.filter_map(read).collect()
}

fn left_of(scratch: &Path) -> Vec<PathBuf> {
    fs::read_dir(scratch).expect("the directory").flatten().map(|entry| entry.path()).collect()
}

/// Servers are told the directory that they write to.
fn servers_of(scratch: &Path) -> Vec<String> {
    let name = scratch.to_str().expect("UTF-8");
    processes().into_iter().map(|(_, _, line)| line).filter(|line| line.contains(name)).collect()
}

const DEMO: [&str; 4] = ["demo", "--connections=60", "--groups=10", "--seconds=3"];

#[test]
fn ctrl_c_ends_a_run_in_any_phase() {
    for (phase, nth) in [("floor: sending", 1), ("making groups", 1), ("heartbeating", 1), ("sending", 1)] {
        let run = Run::until(&DEMO, phase, nth);
        run.signal("-INT");
        let End { said, status } = run.end();
        let measured = matches!(phase, "heartbeating" | "sending");
        assert!(said.contains("interrupted"), "{phase}: {said}");
        assert_eq!(status.success(), measured, "{phase}: {status}\n{said}");
    }
}

#[test]
fn a_second_ctrl_c_ends_it_at_once() {
    for phase in ["floor: connecting", "making groups", "heartbeating"] {
        let run = Run::until(&DEMO, phase, 1);
        run.server();
        run.signal("-INT");
        run.signal("-INT");
        let End { said, status } = run.end();
        assert!(!said.contains("all is well") && status.code().is_some(), "{phase}: {status}\n{said}");
    }
}

#[test]
fn a_run_that_is_killed_takes_its_servers_and_files_along() {
    for (phase, nth) in [("floor: connecting", 1), ("making groups", 1), ("heartbeating", 1)] {
        let run = Run::until(&DEMO, phase, nth);
        // The server of the phase is there, or was a moment ago.
        run.server();
        run.signal("-KILL");
        assert!(!run.end().status.success(), "{phase}");
    }
}

#[test]
fn a_server_that_dies_fails_the_run() {
    for (phase, what) in [
        ("floor: sending", "the floor ended in the middle of the run"),
        ("heartbeating", "the gateway ended in the middle of the run"),
        ("sending", "the gateway ended in the middle of the run"),
    ] {
        let run = Run::until(&DEMO, phase, 1);
        kill(run.server(), "-KILL");
        let End { said, status } = run.end();
        assert_eq!(status.code(), Some(1), "{phase}: {said}");
        assert!(said.contains(what) && said.contains("SIGKILL"), "{phase}: {said}");
    }
}

#[test]
fn a_target_where_nobody_listens_is_named_at_once() {
    let secret = tempfile::NamedTempFile::new().expect("a file");
    fs::write(secret.path(), "0123456789abcdef0123456789abcdef").expect("a secret");
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("its address").port()
    };
    for scenario in ["idle", "connect"] {
        let output = Command::new(env!("CARGO_BIN_EXE_millrace-loadgen"))
            .args([scenario, "--connections=2", "--seconds=1", &format!("--target=127.0.0.1:{port}")])
            .arg("--hs256-secret-file")
            .arg(secret.path())
            .output()
            .expect("the binary runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("127.0.0.1:{port}")) && said.contains("refused"), "{said}");
    }
}
