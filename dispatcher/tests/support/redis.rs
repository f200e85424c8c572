//! A real redis-server as a child, on a free loopback port with a directory of its own, gone with its value.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use millrace_dispatcher::store::Event;

const START_WAIT: Duration = Duration::from_secs(20);

/// See above.
pub struct RedisServer {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl RedisServer {
    /// Starts one that writes everything to disk at once.
    pub fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let child = spawn(port, dir.path());
        let server = Self { child, port, dir };
        server.wait_up();
        server
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// One command through redis-cli; its answer as text.
    pub fn cli(&self, args: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(args)
            .output()
            .expect("redis-cli is missing: install the system's redis package");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Events of a partition after a position, as a consumer reads them. Their bodies must be lines of text.
    pub fn events(&self, cluster: &str, partition: u16, after: u64, limit: usize) -> Vec<Event> {
        let key = format!("{{mr:{cluster}:p{partition}}}:ev");
        let found = self.cli(&["XRANGE", &key, &format!("({after}-0"), "+", "COUNT", &limit.to_string()]);
        let lines: Vec<&str> = found.lines().collect();
        let event = |lines: &[&str]| match lines {
            [id, "k", kind, "b", body] => Event {
                id: id.strip_suffix("-0").unwrap().parse().unwrap(),
                kind: (*kind).to_owned(),
                body: body.as_bytes().to_vec().into(),
            },
            other => panic!("{other:?}"),
        };
        lines.chunks(5).map(event).collect()
    }

    /// Kills it with SIGKILL and starts it again, with its data or without.
    pub fn restart(&mut self, with_data: bool) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        if !with_data {
            std::fs::remove_dir_all(self.dir.path()).unwrap();
            std::fs::create_dir(self.dir.path()).unwrap();
        }
        self.child = spawn(self.port, self.dir.path());
        self.wait_up();
    }

    /// SIGSTOP or SIGCONT.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    fn wait_up(&self) {
        let deadline = Instant::now() + START_WAIT;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() || self.cli(&["PING"]) != "PONG" {
            assert!(Instant::now() < deadline, "redis-server did not come up on port {}", self.port);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(port: u16, dir: &std::path::Path) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        .args(["--appendonly", "yes", "--appendfsync", "always", "--dir"])
        .arg(dir)
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is missing: install the system's redis package (apt-get install redis-server)")
}
