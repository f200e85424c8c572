//! A gateway as a child process, and a client on a blocking socket. Everything is bounded in time, and no child
//! outlives its handle.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millrace_protocol::client_session::{ClientSession, ServerFrame, decode_notify, decode_response};
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{Notify, Response};
use millrace_protocol::received::{Limits, Received};

/// Longer than anything takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary with nothing inherited that configures it.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MILLRACE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs the binary to its end.
pub fn output(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = command(env!("CARGO_BIN_EXE_millrace-gateway"));
    command.args(arguments).envs(environment.iter().copied()).stdin(Stdio::null()).output().unwrap()
}

/// A running gateway.
pub struct Gateway {
    child: Child,
    log: Arc<Mutex<String>>,
    pub tcp: String,
    pub admin: String,
}

impl Gateway {
    /// A standalone gateway on free ports, with two shards and its data in `directory`.
    pub fn start(directory: &Path, arguments: &[&str]) -> Self {
        let mut command = command(env!("CARGO_BIN_EXE_millrace-gateway"));
        command
            .args([
                "--listen",
                "127.0.0.1:0",
                "--admin",
                "127.0.0.1:0",
                "--shards",
                "2",
                "--capacity",
                "2000",
            ])
            .arg("--data-dir")
            .arg(directory)
            .args(arguments);
        Self::spawn_as_is(command)
    }

    /// By a command that ends up running the binary, with all arguments that it needs.
    pub fn spawn_as_is(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn({
            let log = Arc::clone(&log);
            move || {
                for line in stderr.lines().map_while(Result::ok) {
                    log.lock().unwrap().push_str(&(line + "\n"));
                }
            }
        });
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut gateway = Gateway { child, log, tcp: String::new(), admin: String::new() };
        // Ends with the child, if it never says it.
        let line = stdout.lines().map_while(Result::ok).find(|line| line.starts_with("listening "));
        let line = line.unwrap_or_else(|| panic!("it did not start:\n{}", gateway.log()));
        for word in line.split(' ') {
            match word.split_once('=') {
                Some(("tcp", address)) => gateway.tcp = address.to_owned(),
                Some(("admin", address)) => gateway.admin = address.to_owned(),
                _ => assert_eq!(word, "listening"),
            }
        }
        gateway
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Status and body of an admin page.
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Sum of a metric over its labels.
    pub fn metric(&self, name: &str) -> u64 {
        let (_, page) = self.get("/metrics");
        let full = format!("millrace_gateway_{name}");
        let values: Vec<u64> = page
            .lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(&full))
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        assert!(!values.is_empty(), "no metric {full}");
        values.iter().sum()
    }

    /// Waits until clients can log in.
    pub fn wait_ready(&self) {
        self.wait(|| self.get("/readyz").0 == 200, "ready");
    }

    pub fn wait(&self, done: impl Fn() -> bool, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < deadline, "not {what}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// Waits for the end of the process.
    pub fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a client got.
#[derive(Debug)]
pub enum Got {
    Response(Response),
    Notify(Notify),
    Pong,
    End,
}

/// A client on framed TCP.
pub struct Client {
    stream: TcpStream,
    session: ClientSession,
    got: VecDeque<Got>,
    next_id: u64,
}

impl Client {
    pub fn connect(gateway: &Gateway) -> Self {
        let stream = TcpStream::connect(&gateway.tcp).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream, session: ClientSession::tcp(), got: VecDeque::new(), next_id: 1 }
    }

    pub fn send(&mut self, op: Op) -> u64 {
        let (id, mut bytes) = (self.next_id, Vec::new());
        self.next_id += 1;
        self.session.request(id, op, &mut bytes);
        self.stream.write_all(&bytes).unwrap();
        id
    }

    pub fn ping(&mut self) {
        let mut bytes = Vec::new();
        self.session.ping(&mut bytes);
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next thing that came.
    pub fn next(&mut self) -> Got {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(got) = self.got.pop_front() {
                return got;
            }
            let length = self.stream.read(&mut buffer).expect("an answer in time");
            if length == 0 {
                return Got::End;
            }
            let mut received = Received::new(&mut buffer[..length]);
            while let Some(frame) = self.session.next(&mut received, &Limits::default()).unwrap() {
                match frame {
                    ServerFrame::Response(body) => {
                        self.got.push_back(Got::Response(decode_response(body).unwrap()))
                    }
                    ServerFrame::Notify(body) => {
                        self.got.push_back(Got::Notify(decode_notify(body).unwrap()))
                    }
                    ServerFrame::Pong => self.got.push_back(Got::Pong),
                    other => panic!("{other:?} on framed TCP"),
                }
            }
        }
    }

    /// The response to a request; what comes before it is dropped.
    pub fn response(&mut self, id: u64) -> Response {
        loop {
            match self.next() {
                Got::Response(response) if response.id == id => return response,
                Got::End => panic!("closed before the response"),
                _ => {}
            }
        }
    }
}
