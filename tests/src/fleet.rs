//! A small fleet as it is run: a Redis, one dispatcher, two gateways.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::{Redis, Server, binary, free_port, get, wait_until};

/// Everything of it ends when it is dropped.
pub struct SmallFleet {
    redis: Redis,
    dispatcher: Option<Server>,
    dispatcher_ports: [u16; 2],
    dispatcher_args: Vec<String>,
    gateways: Vec<Server>,
    dir: tempfile::TempDir,
}

impl SmallFleet {
    /// Starts it; `gateway_args` are for both gateways.
    pub fn start(gateway_args: &[&str]) -> SmallFleet {
        Self::start_with(&[], gateway_args)
    }

    /// Starts it, with more arguments for the dispatcher and for both gateways.
    pub fn start_with(dispatcher_args: &[&str], gateway_args: &[&str]) -> SmallFleet {
        let dir = tempfile::tempdir().expect("a directory");
        write_keys(dir.path());
        let dispatcher_ports = [free_port(), free_port()];
        let mut fleet = SmallFleet {
            redis: Redis::start(),
            dispatcher: None,
            dispatcher_ports,
            dispatcher_args: dispatcher_args.iter().map(|arg| (*arg).to_owned()).collect(),
            gateways: Vec::new(),
            dir,
        };
        fleet.start_dispatcher();
        let dispatcher = format!("127.0.0.1:{}", dispatcher_ports[0]);
        for id in ["1", "2"] {
            let args =
                ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--shards", "2", "--gateway-id", id]
                    .into_iter()
                    .chain(["--dispatchers", &dispatcher])
                    .chain(gateway_args.iter().copied())
                    .map(str::to_owned)
                    .chain(key_args(fleet.dir.path()));
            fleet.gateways.push(Server::start("millrace-gateway", args));
        }
        for gateway in &fleet.gateways {
            wait_ready(&gateway.address("admin"));
        }
        fleet
    }

    fn start_dispatcher(&mut self) {
        let [links, admin] = self.dispatcher_ports.map(|port| format!("127.0.0.1:{port}"));
        let url = self.redis.url();
        let args = ["--listen", &links, "--admin", &admin, "--name", "d0", "--redis", &url, "--shards", "2"];
        let args = args.into_iter().chain(self.dispatcher_args.iter().map(String::as_str));
        self.dispatcher = Some(Server::start("millrace-dispatcher", args));
    }

    /// kill -9.
    pub fn kill_dispatcher(&mut self) {
        if let Some(dispatcher) = self.dispatcher.take() {
            dispatcher.kill();
        }
    }

    /// After [`Self::kill_dispatcher`]: under the same name, at the same address.
    pub fn restart_dispatcher(&mut self) {
        self.start_dispatcher();
    }

    /// Where its Redis is.
    pub fn redis_url(&self) -> String {
        self.redis.url()
    }

    /// Where clients of a gateway connect.
    pub fn address(&self, gateway: usize) -> String {
        self.gateways[gateway].address("tcp")
    }

    /// A login token of a user.
    pub fn token(&self, user: &str) -> String {
        user_token(self.dir.path(), user)
    }
}

/// Writes the secrets of a fleet's tokens and tickets.
pub fn write_keys(dir: &Path) {
    for (name, byte) in [("hs256", "h"), ("tickets", "t")] {
        std::fs::write(dir.join(name), byte.repeat(48)).expect("a secret");
    }
}

/// What tells a gateway of [`write_keys`].
pub fn key_args(dir: &Path) -> Vec<String> {
    let file = |name: &str| dir.join(name).display().to_string();
    let secrets =
        [("--auth-hs256-secret-file", file("hs256")), ("--auth-ticket-secret-file", file("tickets"))];
    let secrets = secrets.into_iter().flat_map(|(key, value)| [key.to_owned(), value]);
    ["--auth-hs256", "true"].map(str::to_owned).into_iter().chain(secrets).collect()
}

/// A login token of a user of the fleet with these keys.
pub fn user_token(dir: &Path, user: &str) -> String {
    let made = Command::new(binary("millrace-gateway"))
        .args(["token", "--user", user])
        .args(key_args(dir))
        .output()
        .expect("millrace-gateway runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).expect("a token").trim().to_owned()
}

fn wait_ready(admin: &str) {
    wait_until(&format!("{admin} is ready"), Duration::from_secs(20), || {
        matches!(get(admin, "/readyz"), Ok((200, _))).then_some(())
    });
}
