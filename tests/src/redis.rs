//! A real Redis server for tests, with a directory of its own, that can be killed and started again.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::server::{free_port, wait_until};

/// A running redis-server. Dropping it kills it and removes its directory.
pub struct Redis {
    child: Option<Child>,
    port: u16,
    dir: tempfile::TempDir,
}

impl Redis {
    /// Starts one on a free port, with `appendonly yes` and `noeviction`.
    pub fn start() -> Redis {
        let dir = tempfile::tempdir().expect("a directory for Redis");
        let mut redis = Redis { child: None, port: free_port(), dir };
        redis.start_again();
        redis
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `redis://…` of it.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// kill -9, and waits for its end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a running redis-server");
            child.wait().expect("its end");
        }
    }

    /// Forgets everything on disk. Only while it is not running.
    pub fn wipe(&mut self) {
        assert!(self.child.is_none(), "kill it first");
        self.dir = tempfile::tempdir().expect("a directory for Redis");
    }

    /// Starts it on the same port, with what is in its directory.
    pub fn start_again(&mut self) {
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"])
            .arg("--dir")
            .arg(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("redis-server does not start ({e}): tests/run installs it"));
        self.child = Some(child);
        wait_until("redis-server answers", Duration::from_secs(10), || {
            (self.command(&["PING"]).ok()? == "+PONG\r\n").then_some(())
        });
    }

    /// Sends one command and returns the raw answer (RESP2), as far as it comes in one read.
    pub fn command(&self, words: &[&str]) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        stream.write_all(request.as_bytes())?;
        let mut answer = vec![0; 1 << 20];
        let size = stream.read(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..size]).into_owned())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
