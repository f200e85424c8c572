//! A server process of this workspace, started on free ports and ended by its pid.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::http::get;

/// A server must say within this time that it listens.
const START_WITHIN: Duration = Duration::from_secs(20);

/// The path of a binary of this workspace, built with the same profile as the running test.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    // target/<profile>/deps/<test>: the binaries lie two levels up.
    let profile = test.parent().and_then(|deps| deps.parent()).expect("target/<profile>");
    let path = profile.join(name);
    assert!(
        path.exists(),
        "{} is missing: build the binaries first (cargo build --workspace --bins), as tests/run does",
        path.display()
    );
    path
}

/// A token from a standalone gateway's own key, as its user would get one.
pub fn gateway_token(data_dir: &Path, user: &str) -> String {
    let made = Command::new(binary("millrace-gateway"))
        .args(["token", "--user", user, "--data-dir"])
        .arg(data_dir)
        .output()
        .expect("millrace-gateway runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).expect("a token").trim().to_owned()
}

/// A port that is free now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// Tries `condition` every 50 ms until it gives a value; panics with `what` after `limit`.
pub fn wait_until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A running server. Dropping it kills it.
pub struct Server {
    child: Child,
    listening: String,
}

/// Waits until the server with this admin port is ready.
pub fn wait_ready(admin: &str) {
    wait_until(&format!("{admin} is ready"), Duration::from_secs(20), || {
        matches!(get(admin, "/readyz"), Ok((200, _))).then_some(())
    });
}

impl Server {
    /// Starts `name` and waits for its `listening key=value …` line. Its log goes to the test's own stderr.
    pub fn start<S: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = S>) -> Server {
        let mut child = Command::new(binary(name))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{name} does not start: {e}"));
        let stdout = child.stdout.take().expect("its stdout");
        let (said, hear) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line.starts_with("listening ") {
                    let _ = said.send(line);
                }
            }
        });
        let listening = hear.recv_timeout(START_WITHIN);
        let mut server = Server { child, listening: listening.clone().unwrap_or_default() };
        if listening.is_err() {
            let ended = server.child.try_wait();
            panic!("{name} did not say within {START_WITHIN:?} that it listens ({ended:?})");
        }
        server
    }

    /// A standalone gateway with one shard, its store in `data`, and more arguments.
    pub fn standalone(data: &Path, more: &[&str]) -> Server {
        let data = data.to_str().expect("a path in UTF-8");
        let own = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--shards", "1", "--data-dir", data];
        Server::start("millrace-gateway", [&own, more].concat())
    }

    /// Waits until it takes logins: until it has its lease it answers them UNAVAILABLE.
    pub fn wait_ready(&self) {
        wait_ready(&self.address("admin"));
    }

    /// The address behind `key=` in the server's `listening` line.
    pub fn address(&self, key: &str) -> String {
        let found = self.listening.split_whitespace().find_map(|part| part.strip_prefix(&format!("{key}=")));
        found.unwrap_or_else(|| panic!("no {key}= in '{}'", self.listening)).to_owned()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// kill -9, and waits for its end.
    pub fn kill(mut self) {
        self.child.kill().expect("a running child");
        self.child.wait().expect("its end");
    }

    /// SIGTERM, and waits for its end; panics when it lasts longer than `limit`.
    pub fn terminate(mut self, limit: Duration) -> ExitStatus {
        self.signal("TERM");
        wait_until("the server ends after SIGTERM", limit, || self.child.try_wait().expect("its state"))
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(sent.is_ok_and(|s| s.success()), "kill -{name} {} failed", self.pid());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
