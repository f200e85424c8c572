//! The hidden subcommand `warden`: a process that starts somebody else's server, and ends it with us.
//!
//! Servers of others know nothing of our stdin, so this stands between: it keeps them to their cores, gives them a
//! process group of their own, says when they take connections, and ends the group when its own parent says so or
//! dies. It is not measured; the server and what that starts are.

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use millrace_edge::{affinity, rlimit};

use crate::child;

/// A server takes connections within this time.
const READY_WITHIN: Duration = Duration::from_secs(15);

/// How often it is tried.
const READY_LOOK: Duration = Duration::from_millis(20);

/// A server that was asked to end is killed after this time. It has nothing to save.
const END_WITHIN: Duration = Duration::from_secs(3);

/// Flags of the hidden subcommand; the server's command line follows.
#[derive(Debug, Parser)]
pub struct WardenArgs {
    /// CPUs for the server; none: where it likes.
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<String>,
    /// A directory to remove at the end, should the parent be gone by then.
    #[arg(long)]
    scratch: PathBuf,
    /// Where the server will listen.
    #[arg(long)]
    address: SocketAddr,
    #[arg(last = true, required = true)]
    server: Vec<OsString>,
}

/// Sends a signal to a process group. The shell does it, as the standard library has no call for it, and no code here
/// may be unsafe.
fn signal(group: u32, signal: &str) {
    let line = format!("kill -{signal} -{group}");
    // It fails when the group is gone already, which is as well.
    let _ = Command::new("/bin/sh").args(["-c", &line]).stdin(Stdio::null()).stderr(Stdio::null()).status();
}

/// Runs the server until it or the parent ends.
pub fn serve(args: WardenArgs) -> io::Result<()> {
    let cpus: Vec<usize> = args.cpus.iter().filter_map(|cpu| cpu.parse().ok()).collect();
    if !cpus.is_empty() {
        affinity::restrict_current_thread(&cpus)?;
    }
    rlimit::raise_nofile()?;
    let (program, flags) = args.server.split_first().expect("clap requires one");
    let mut server = Command::new(program)
        .args(flags)
        .stdin(Stdio::null())
        // Our stderr is the log.
        .stdout(io::stderr())
        .process_group(0)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.display())))?;
    let group = server.id();

    let is_ending = Arc::new(AtomicBool::new(false));
    let (gone, gone_by_now) = mpsc::channel::<()>();
    let ending = Arc::clone(&is_ending);
    child::end_with_parent(drop, move |is_orphan| {
        ending.store(true, Ordering::SeqCst);
        signal(group, "TERM");
        // The other thread drops its end when the server is gone.
        if gone_by_now.recv_timeout(END_WITHIN) == Err(mpsc::RecvTimeoutError::Timeout) {
            signal(group, "KILL");
            let _ = gone_by_now.recv_timeout(END_WITHIN);
        }
        if is_orphan {
            let _ = std::fs::remove_dir_all(&args.scratch);
        }
    });

    let end = Instant::now() + READY_WITHIN;
    let status = loop {
        if let Some(status) = server.try_wait()? {
            break status;
        }
        if TcpStream::connect_timeout(&args.address, READY_LOOK).is_ok() {
            // Nobody may listen any more: that is heard on stdin, and this must not end before that is done.
            let _ = writeln!(io::stdout(), "listening tcp={} pid={group}", args.address);
            break server.wait()?;
        }
        if Instant::now() > end {
            eprintln!("it takes no connections on {} within {} s", args.address, READY_WITHIN.as_secs());
            signal(group, "KILL");
            break server.wait()?;
        }
        thread::sleep(READY_LOOK);
    };
    // What it started goes with it.
    signal(group, "KILL");
    drop(gone);
    while is_ending.load(Ordering::SeqCst) {
        // The other thread ends this process when all is cleared away.
        thread::park();
    }
    Err(io::Error::other(format!("the server ended: {status}")))
}
