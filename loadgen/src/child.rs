//! Server processes that loadgen starts: its own executable again, so that memory and CPU are the server's alone.
//!
//! A child lives no longer than its parent, however that ends: it holds the read end of a pipe as its stdin, and takes
//! the end of that stream as SIGTERM. It has a process group of its own, so that Ctrl-C reaches only the parent, which
//! then ends it in order, with a word first: one whose parent died without that word removes the directory that
//! everything it wrote is in.

use std::cell::OnceCell;
use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::limits::{CHILD_START_MS, CHILD_STOP_MS};

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// The system refused.
    #[error("can't start {what}: {error}")]
    Start {
        /// Which server.
        what: &'static str,
        /// Why.
        error: io::Error,
    },
    /// It ended, or said nothing in time.
    #[error("{what} did not say that it listens{how}{log}")]
    Silent {
        /// Which server.
        what: &'static str,
        /// Its end, if it ended.
        how: String,
        /// The end of its log.
        log: String,
    },
    /// Nobody told it to.
    #[error("{what} ended in the middle of the run ({how}){log}")]
    Ended {
        /// Which server.
        what: &'static str,
        /// Its exit status or signal.
        how: ExitStatus,
        /// The end of its log.
        log: String,
    },
}

/// An admin port answers within this time.
const READY_LOOK: Duration = Duration::from_millis(500);

/// A directory that is removed with its last owner: servers that run one after the other may share it.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new one among the system's temporary files, readable by its owner alone.
    ///
    /// # Errors
    /// What the file system says.
    pub fn new() -> io::Result<Arc<Self>> {
        use std::os::unix::fs::DirBuilderExt;
        let random = crate::rng::Rng::from_system().bits();
        let path =
            std::env::temp_dir().join(format!("millrace-loadgen-{}-{random:016x}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        scratches().push(path.clone());
        Ok(Arc::new(Scratch(path)))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a new file that only its owner reads.
    ///
    /// # Errors
    /// What the file system says; there is one of this name already.
    pub fn write(&self, name: &str, text: &str) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.0.join(name);
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
    }

    /// Writes what gateways check logins by: the keys of tokens as `jwks.json`, a new secret of tickets as `tickets`.
    ///
    /// # Errors
    /// As for [`Self::write`].
    pub fn write_keys(&self, jwks: &str) -> io::Result<()> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).expect("randomness from the operating system");
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        self.write("jwks.json", jwks)?;
        self.write("tickets", &hex)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Somebody may have been faster.
        let _ = fs::remove_dir_all(&self.0);
        scratches().retain(|path| *path != self.0);
    }
}

/// All that exist: an exit at once drops nothing.
static SCRATCHES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn scratches() -> MutexGuard<'static, Vec<PathBuf>> {
    SCRATCHES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the directories of this process, before an exit that lets nobody else do it.
pub fn remove_scratches() {
    for path in scratches().iter() {
        let _ = fs::remove_dir_all(path);
    }
}

/// What a server is started in.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// A command line that ends by becoming the one behind it, as nsenter's does.
    pub before: Vec<OsString>,
    /// Environment variables.
    pub env: Vec<(OsString, OsString)>,
}

/// A running server.
#[derive(Debug)]
pub struct Child {
    what: &'static str,
    process: std::process::Child,
    stdin: Option<ChildStdin>,
    /// Its `listening …` line, once it came.
    listening: OnceCell<String>,
    hear: mpsc::Receiver<String>,
    scratch: Arc<Scratch>,
    /// Where its own lines begin in the log, in bytes: those before are of one that ended.
    log_begin: usize,
}

impl Child {
    /// Starts this executable with `args` and waits for its `listening …` line.
    ///
    /// # Errors
    /// It can't be started, or says nothing in time; the end of its log is in the error then.
    pub fn start(what: &'static str, args: Vec<OsString>, scratch: Arc<Scratch>) -> Result<Self, ChildError> {
        Self::start_in(what, args, scratch, &Surroundings::default())
    }

    /// The same in other surroundings.
    ///
    /// # Errors
    /// As [`Child::start`].
    pub fn start_in(
        what: &'static str,
        args: Vec<OsString>,
        scratch: Arc<Scratch>,
        around: &Surroundings,
    ) -> Result<Self, ChildError> {
        let mut child = Self::spawn_in(what, args, scratch, around)?;
        match child.hear.recv_timeout(Duration::from_millis(CHILD_START_MS)) {
            Ok(line) => {
                let _ = child.listening.set(line);
                Ok(child)
            }
            Err(_) => {
                let how = match child.process.try_wait() {
                    Ok(Some(status)) => format!(" (it ended: {status})"),
                    _ => format!(" within {} s", CHILD_START_MS / 1_000),
                };
                Err(ChildError::Silent { what, how, log: child.log_tail() })
            }
        }
    }

    /// Starts it, and does not wait.
    ///
    /// # Errors
    /// It can't be started.
    pub fn spawn_in(
        what: &'static str,
        args: Vec<OsString>,
        scratch: Arc<Scratch>,
        around: &Surroundings,
    ) -> Result<Self, ChildError> {
        let fail = |error| ChildError::Start { what, error };
        // One that is started again goes on with its log.
        let log =
            OpenOptions::new().create(true).append(true).open(log_path(&scratch, what)).map_err(fail)?;
        let log_begin = log.metadata().map_err(fail)?.len() as usize;
        let own = std::env::current_exe().map_err(fail)?;
        let mut line = around.before.iter().cloned().chain([own.into_os_string()]).chain(args);
        let mut command = Command::new(line.next().unwrap_or_default());
        command.args(line).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).process_group(0);
        // The user's settings are for gateways of their own.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MILLRACE_") {
                command.env_remove(name);
            }
        }
        command.envs(around.env.iter().map(|(name, value)| (name, value)));
        let mut process = command.spawn().map_err(fail)?;
        let stdin = process.stdin.take();
        let stdout = process.stdout.take().expect("it was piped");
        let (said, hear) = mpsc::sync_channel(1);
        thread::spawn(move || {
            // Read to its end, so that the child never blocks on a full pipe.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line.starts_with("listening ") {
                    let _ = said.try_send(line);
                }
            }
        });
        Ok(Child { what, process, stdin, listening: OnceCell::new(), hear, scratch, log_begin })
    }

    /// The end of what it logged, each line indented.
    pub fn log_tail(&self) -> String {
        const LINES: usize = 12;
        let bytes = fs::read(log_path(&self.scratch, self.what)).unwrap_or_default();
        let text = String::from_utf8_lossy(bytes.get(self.log_begin..).unwrap_or_default());
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(LINES);
        lines[from..].iter().map(|line| format!("\n    {line}")).collect()
    }

    /// The address behind `key=` in its first line.
    pub fn address(&self, key: &str) -> Option<SocketAddr> {
        self.said(key)?.parse().ok()
    }

    /// What is behind `key=` in its first line.
    pub fn said(&self, key: &str) -> Option<&str> {
        if self.listening.get().is_none()
            && let Ok(line) = self.hear.try_recv()
        {
            let _ = self.listening.set(line);
        }
        let prefix = format!("{key}=");
        self.listening.get()?.split_whitespace().find_map(|part| part.strip_prefix(&prefix))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// It has ended; how, and the end of its log, are in the error.
    pub fn check(&mut self) -> Result<(), ChildError> {
        match self.process.try_wait() {
            Ok(Some(how)) => Err(ChildError::Ended { what: self.what, how, log: self.log_tail() }),
            _ => Ok(()),
        }
    }

    /// Waits until a gateway says on its admin port that it takes logins: it listens a moment before it has its lease.
    /// Returns whether it said so in time.
    pub fn await_ready(&self, within: Duration) -> bool {
        let Some(admin) = self.address("admin") else { return false };
        let end = Instant::now() + within;
        while Instant::now() < end {
            if is_ready(admin).unwrap_or(false) {
                return true;
            }
            thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// Writes a line to its stdin.
    ///
    /// # Errors
    /// It is gone.
    pub fn tell(&mut self, line: &str) -> io::Result<()> {
        match &mut self.stdin {
            Some(stdin) => writeln!(stdin, "{line}"),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Ends it as a crash would, with SIGKILL, and waits until the kernel has taken it apart.
    ///
    /// # Errors
    /// The system refused.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.process.kill()?;
        self.process.wait()
    }

    /// Ends it: its stdin closes, which it takes as SIGTERM; past the deadline it is killed. Returns how it ended.
    pub fn stop(&mut self) -> Option<ExitStatus> {
        if let Some(mut stdin) = self.stdin.take() {
            // One that is gone already needs no word.
            let _ = writeln!(stdin, "{STOP}");
        }
        let end = Instant::now() + Duration::from_millis(CHILD_STOP_MS);
        while Instant::now() < end {
            match self.process.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) => thread::sleep(Duration::from_millis(10)),
                Err(_) => break,
            }
        }
        let _ = self.process.kill();
        self.process.wait().ok()
    }
}

/// Whether a server says on its admin port that it is ready.
///
/// # Errors
/// It does not answer.
pub fn is_ready(admin: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&admin, READY_LOOK)?;
    stream.set_read_timeout(Some(READY_LOOK))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(&status == b"HTTP/1.1 200")
}

/// `--name=value`, whatever bytes the value has.
pub fn flag(name: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut text = OsString::from(format!("--{name}="));
    text.push(value);
    text
}

/// Where a server writes what it logs: one file for each in the directory that they share.
fn log_path(scratch: &Scratch, what: &str) -> PathBuf {
    let name = what.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    scratch.path().join(format!("{name}.log"))
}

impl Drop for Child {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a parent says before it ends a child.
const STOP: &str = "stop";

/// In a child: ends this process in order when the parent closes our stdin or dies. Lines go to `heard`; `last` is
/// called just before the end begins, and told whether it is an orphan's.
pub fn end_with_parent(heard: impl Fn(String) + Send + 'static, last: impl FnOnce(bool) + Send + 'static) {
    thread::spawn(move || {
        let mut is_orphan = true;
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            match line == STOP {
                true => is_orphan = false,
                false => heard(line),
            }
        }
        last(is_orphan);
        // Where nobody handles it this ends the process, which is as well.
        let _ = signal_hook::low_level::raise(signal_hook::consts::SIGTERM);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_goes_with_its_owner() {
        let scratch = Scratch::new().unwrap();
        let path = scratch.path().to_owned();
        fs::write(path.join("file"), "x").unwrap();
        drop(scratch);
        assert!(!path.exists());
    }
}
