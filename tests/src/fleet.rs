//! A fleet as it is run: a Redis, dispatchers, two gateways.

use std::path::Path;
use std::process::Command;

use crate::{Redis, Server, binary, free_port, wait_ready};

/// Which fleet.
#[derive(Clone, Copy, Default)]
pub struct Shape<'a> {
    /// Dispatchers besides the first.
    pub more_dispatchers: usize,
    /// More arguments for each of them.
    pub dispatcher_args: &'a [&'a str],
    /// More arguments for both gateways.
    pub gateway_args: &'a [&'a str],
}

/// A process at fixed ports.
struct Seat {
    ports: [u16; 2],
    args: Vec<String>,
    server: Option<Server>,
}

impl Seat {
    fn new(args: Vec<String>) -> Self {
        Seat { ports: [free_port(), free_port()], args, server: None }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports[0])
    }

    fn admin(&self) -> String {
        format!("127.0.0.1:{}", self.ports[1])
    }

    fn start(&mut self, binary: &str) {
        let at = ["--listen".to_owned(), self.address(), "--admin".to_owned(), self.admin()];
        self.server = Some(Server::start(binary, at.into_iter().chain(self.args.iter().cloned())));
    }

    fn take(&mut self) -> Server {
        self.server.take().expect("running")
    }
}

/// Everything of it ends when it is dropped.
pub struct Fleet {
    /// Its store.
    pub redis: Redis,
    dispatchers: Vec<Seat>,
    gateways: Vec<Seat>,
    dir: tempfile::TempDir,
}

impl Fleet {
    /// Starts it; its gateways take logins when this returns.
    pub fn start(shape: Shape<'_>) -> Fleet {
        let dir = tempfile::tempdir().expect("a directory");
        write_keys(dir.path());
        let redis = Redis::start();
        let owned = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
        let dispatchers: Vec<Seat> = (0..=shape.more_dispatchers)
            .map(|at| {
                let own = ["--name", &format!("d{at}"), "--redis", &redis.url(), "--shards", "2"]
                    .map(str::to_owned);
                Seat::new(own.into_iter().chain(owned(shape.dispatcher_args)).collect())
            })
            .collect();
        let links = dispatchers.iter().map(Seat::address).collect::<Vec<_>>().join(",");
        let gateways = ["1", "2"].map(|id| {
            let own = ["--gateway-id", id, "--shards", "2", "--dispatchers", &links].map(str::to_owned);
            Seat::new(own.into_iter().chain(owned(shape.gateway_args)).chain(key_args(dir.path())).collect())
        });
        let mut fleet = Fleet { redis, dispatchers, gateways: gateways.into(), dir };
        (0..fleet.dispatchers.len()).for_each(|at| fleet.start_dispatcher(at));
        (0..2).for_each(|at| fleet.gateways[at].start("millrace-gateway"));
        (0..2).for_each(|at| fleet.wait_ready(at));
        fleet
    }

    /// One that does not run: the first time, or again under the same name at the same address.
    pub fn start_dispatcher(&mut self, at: usize) {
        self.dispatchers[at].start("millrace-dispatcher");
    }

    /// One that does not run, again; it takes logins when this returns.
    pub fn start_gateway(&mut self, at: usize) {
        self.gateways[at].start("millrace-gateway");
        self.wait_ready(at);
    }

    /// The process of a dispatcher that runs, to be ended.
    pub fn take_dispatcher(&mut self, at: usize) -> Server {
        self.dispatchers[at].take()
    }

    /// The process of a gateway that runs, to be ended.
    pub fn take_gateway(&mut self, at: usize) -> Server {
        self.gateways[at].take()
    }

    /// Where clients of a gateway connect.
    pub fn address(&self, gateway: usize) -> String {
        self.gateways[gateway].address()
    }

    /// A dispatcher's admin port.
    pub fn dispatcher_admin(&self, at: usize) -> String {
        self.dispatchers[at].admin()
    }

    /// A login token of a user.
    pub fn token(&self, user: &str) -> String {
        user_token(self.dir.path(), user)
    }

    fn wait_ready(&self, gateway: usize) {
        wait_ready(&self.gateways[gateway].admin());
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
