//! Real processes for the tests: dispatchers, a Redis, and the end of a link to talk to them with. All are ended when
//! they are dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use millrace_protocol::bytes::Bytes;
use millrace_protocol::link::end::{LinkEnd, LinkEvent, LinkLimits};
use millrace_protocol::messages::link::Hello;

/// Longest wait for anything that should take a moment.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Tries until `check` gives something, or panics with what it was about.
pub fn wait_for<T>(what: &str, patience: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A child process that does not outlive its test.
pub struct Process(Child);

impl Process {
    pub fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args([format!("-{name}"), self.0.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        wait_for("the process ends", patience, || self.0.try_wait().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A Redis without files.
pub struct Redis {
    pub port: u16,
    _process: Process,
}

impl Redis {
    pub fn start(dir: &Path) -> Redis {
        // The port may be taken by another between the two lines; then the next one is tried.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let child = Command::new("redis-server")
                .args([
                    "--port",
                    &port.to_string(),
                    "--bind",
                    "127.0.0.1",
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                ])
                .args(["--maxmemory-policy", "noeviction", "--dir"])
                .arg(dir)
                .stdout(Stdio::null())
                .spawn()
                .expect("redis-server: install the package of that name");
            let mut process = Process(child);
            let deadline = Instant::now() + PATIENCE;
            while process.0.try_wait().unwrap().is_none() && Instant::now() < deadline {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Redis { port, _process: process };
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        panic!("redis-server did not start");
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Throws everything away.
    pub fn flush(&self) {
        self.tell("FLUSHALL");
    }

    /// A command that is answered OK.
    pub fn tell(&self, command: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.write_all(format!("{command}\r\n").as_bytes()).unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"+OK\r\n");
    }
}

/// A dispatcher's process.
pub struct Dispatcher {
    pub links: SocketAddr,
    pub admin: SocketAddr,
    pub process: Process,
}

/// The command, without configuration from the environment.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-dispatcher"));
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("MILLRACE_")) {
        command.env_remove(key);
    }
    command
}

impl Dispatcher {
    pub fn start(args: &[&str]) -> Dispatcher {
        Self::start_logging(args, Stdio::inherit())
    }

    /// The same, with its log going elsewhere than the test's own.
    pub fn start_logging(args: &[&str], log: impl Into<Stdio>) -> Dispatcher {
        let child = command()
            .stderr(log)
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--partitions", "64"])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut process = Process(child);
        let mut line = String::new();
        BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = |key: &str| {
            let found = line.split_whitespace().find_map(|word| word.strip_prefix(key));
            found.unwrap_or_else(|| panic!("no {key} in {line:?}")).parse().unwrap()
        };
        assert!(line.starts_with("listening "), "{line:?}");
        Dispatcher { links: address("links="), admin: address("admin="), process }
    }

    /// Status and body of an admin page; `None` when nobody answers.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.admin).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split_whitespace().nth(1)?.parse().ok()?, body.into()))
    }

    pub fn is_ready(&self) -> bool {
        self.get("/readyz").is_some_and(|(status, _)| status == 200)
    }

    /// How many partitions it serves.
    pub fn served(&self) -> usize {
        let Some((200, body)) = self.get("/debug/partitions") else { return 0 };
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        body["served_here"].as_u64().unwrap() as usize
    }
}

/// What a gateway shard says first.
pub fn gateway_end(cluster: &str) -> LinkEnd {
    let hello = Hello {
        cluster: cluster.into(),
        role: "gateway".into(),
        gateway: 7,
        shard: 1,
        incarnation: 99,
        partitions: 64,
        ..Hello::default()
    };
    LinkEnd::new(hello, LinkLimits::default())
}

/// A gateway shard's link over TCP.
pub struct Link {
    stream: TcpStream,
    pub end: LinkEnd,
}

impl Link {
    pub fn connect(to: SocketAddr, mut end: LinkEnd) -> Link {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        end.connected();
        Link { stream, end }
    }

    /// Sends what there is, reads once, and gives what came of it. `None`: the peer closed.
    pub fn turn(&mut self) -> Option<Vec<LinkEvent>> {
        while let Some(bytes) = self.end.transmit() {
            self.stream.write_all(&bytes).unwrap();
        }
        let mut buffer = vec![0; 64 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) | Err(_) => None,
            Ok(count) => {
                buffer.truncate(count);
                self.end.receive(Bytes::from(buffer)).unwrap();
                Some(std::iter::from_fn(|| self.end.poll()).collect())
            }
        }
    }
}
