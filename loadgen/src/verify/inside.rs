//! Running inside namespaces of our own: this executable again under unshare(1), with a network, mounts and process ids
//! that end with it.
//!
//! The first process of a process id namespace takes all others with it when it ends, and unshare ends it when it ends
//! itself: nothing survives a crash, a panic or kill -9. The rule: where that is refused, say why, and go on without.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::net::find;
use crate::child::{self, Scratch};

/// Says that this process runs inside.
const INSIDE: &str = "MILLRACE_LOADGEN_INSIDE";

/// An inner process that was told to end is gone within this time.
const END_WITHIN: Duration = Duration::from_secs(60);

/// Whether this process is the inner one.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Flags of unshare; `Err`: why it can't be.
fn flags() -> Result<Vec<&'static str>, String> {
    for tool in ["unshare", "nsenter", "ip"] {
        if find(tool).is_none() {
            return Err(format!("{tool} is missing (Debian packages util-linux and iproute2)"));
        }
    }
    let mut flags = vec!["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    if !is_root() {
        flags.push("--map-root-user");
    }
    // The bridge and a pair of devices are tried too: a kernel may be without them.
    let trial = "ip link add br0 type bridge && ip link add veth0 type veth peer name veth1";
    let output = Command::new("unshare")
        .args(&flags)
        .args(["sh", "-c", trial])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("unshare: {error}"))?;
    match output.status.success() {
        true => Ok(flags),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// Runs this command line once more, inside; returns how that ended. `None`: it is to be run here, because it is inside
/// already, or because nothing else is possible.
pub fn enter() -> Option<ExitCode> {
    if is_inside() {
        // The outer process closes our stdin when it ends, or is told to.
        child::end_with_parent(drop, |_| {
            thread::spawn(|| {
                thread::sleep(END_WITHIN);
                std::process::exit(130);
            });
        });
        return None;
    }
    let flags = match flags() {
        Ok(flags) => flags,
        Err(why) => {
            eprintln!("no namespaces, so no partitions and no full disks: {why}");
            return None;
        }
    };
    match run(&flags) {
        Ok(code) => Some(code),
        Err(error) => {
            eprintln!("no namespaces: {error}");
            None
        }
    }
}

fn run(flags: &[&str]) -> std::io::Result<ExitCode> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    // Whatever the inner process could not remove goes with this.
    let scratch = Scratch::new()?;
    let mut inner = Command::new("unshare")
        .args(flags)
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .env("TMPDIR", scratch.path())
        .stdin(Stdio::piped())
        // Ctrl-C reaches this process alone, which ends the other in order.
        .process_group(0)
        .spawn()?;
    let stdin = Arc::new(Mutex::new(inner.stdin.take()));
    let (told, pid) = (Arc::clone(&stdin), inner.id());
    thread::spawn(move || {
        for count in 0.. {
            if signals.forever().next().is_none() {
                return;
            }
            if count == 0 {
                drop(told.lock().map(|mut stdin| stdin.take()));
            } else {
                // unshare takes the rest with it.
                let _ = super::net::shell(&format!("kill -KILL {pid}"));
            }
        }
    });
    let status = inner.wait()?;
    drop(stdin);
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
