//! Real redis-servers as children, on free loopback ports with directories of their own, gone with their value.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use millrace_dispatcher::store::Event;
use millrace_dispatcher::store::redis::{Settings, Topology};

use super::world::{EVENTS_MAX, PARTITIONS};

const START_WAIT: Duration = Duration::from_secs(20);

/// Something that a store can be opened on.
pub trait Redis {
    /// Addresses, as in the settings.
    fn url(&self) -> String;

    fn topology(&self) -> Topology;

    /// One command through redis-cli; its answer as text.
    fn cli(&self, args: &[&str]) -> String;

    /// Everything stored is gone.
    fn flush(&self);

    fn settings(&self, cluster: &str) -> Settings {
        Settings {
            topology: self.topology(),
            events_max: EVENTS_MAX,
            ..Settings::new(cluster.to_owned(), PARTITIONS)
        }
    }
}

/// Events of a partition after a position, as a consumer reads them. Their bodies must be lines of text.
pub fn events(redis: &dyn Redis, cluster: &str, partition: u16, after: u64, limit: usize) -> Vec<Event> {
    let key = format!("{{mr:{cluster}:p{partition}}}:ev");
    let found = redis.cli(&["XRANGE", &key, &format!("({after}-0"), "+", "COUNT", &limit.to_string()]);
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

/// One process.
pub struct RedisServer {
    child: Child,
    port: u16,
    args: Vec<String>,
    dir: tempfile::TempDir,
}

impl RedisServer {
    /// Starts one that writes everything to disk at once.
    pub fn start() -> Self {
        Self::start_with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// Starts one with other settings.
    pub fn start_with(args: &[&str]) -> Self {
        Self::start_after(args, |_| ())
    }

    /// Starts one whose directory was prepared.
    pub fn start_after(args: &[&str], prepare: impl FnOnce(&std::path::Path)) -> Self {
        let port = free_port();
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let child = spawn(port, dir.path(), &args);
        let server = Self { child, port, args, dir };
        server.wait_up();
        server
    }

    /// A replica of this one, that has all of it.
    pub fn replica(&self) -> Self {
        let replica = Self::start_with(&["--replicaof", "127.0.0.1", &self.port.to_string()]);
        replica.wait_for_link();
        // The primary counts it only when it has acknowledged something.
        let online = format!("port={},state=online", replica.port);
        let deadline = Instant::now() + START_WAIT;
        while !self.cli(&["INFO", "replication"]).contains(&online) {
            assert!(Instant::now() < deadline, "the replica is not online");
            std::thread::sleep(Duration::from_millis(20));
        }
        replica
    }

    fn wait_for_link(&self) {
        let deadline = Instant::now() + START_WAIT;
        while !self.cli(&["INFO", "replication"]).contains("master_link_status:up") {
            assert!(Instant::now() < deadline, "the replica has no link");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Kills it and starts it again, with its data or without.
    pub fn restart(&mut self, with_data: bool) {
        self.kill();
        if !with_data {
            std::fs::remove_dir_all(self.dir.path()).unwrap();
            std::fs::create_dir(self.dir.path()).unwrap();
        }
        self.child = spawn(self.port, self.dir.path(), &self.args);
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

impl Redis for RedisServer {
    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn topology(&self) -> Topology {
        Topology::Single
    }

    fn cli(&self, args: &[&str]) -> String {
        // In a cluster it asks the right node.
        let output = Command::new("redis-cli")
            .args(["-c", "-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(args)
            .output()
            .expect("redis-cli is missing: install the system's redis package");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn flush(&self) {
        assert_eq!(self.cli(&["FLUSHALL"]), "OK");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Three primaries that share the slots.
pub struct RedisCluster {
    pub nodes: Vec<RedisServer>,
}

impl RedisCluster {
    pub fn start() -> Self {
        let bus: Vec<String> = (0..3).map(|_| free_port().to_string()).collect();
        let node = |bus: &String| {
            RedisServer::start_with(&[
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                bus,
                "--cluster-node-timeout",
                "2000",
                "--cluster-require-full-coverage",
                "no",
            ])
        };
        let nodes: Vec<RedisServer> = bus.iter().map(node).collect();
        for (at, (node, slots)) in
            nodes.iter().zip([(0, 5_460), (5_461, 10_922), (10_923, 16_383)]).enumerate()
        {
            let slots = [slots.0.to_string(), slots.1.to_string()];
            assert_eq!(node.cli(&["CLUSTER", "ADDSLOTSRANGE", &slots[0], &slots[1]]), "OK");
            assert_eq!(node.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]), "OK");
            let met = nodes[0].cli(&["CLUSTER", "MEET", "127.0.0.1", &node.port.to_string(), &bus[at]]);
            assert_eq!(met, "OK");
        }
        let deadline = Instant::now() + START_WAIT;
        let is_up = |node: &RedisServer| {
            let info = node.cli(&["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        };
        while !nodes.iter().all(is_up) {
            assert!(Instant::now() < deadline, "the cluster did not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { nodes }
    }

    /// Adds a replica of one of them, which takes its place when it is gone.
    pub fn add_replica(&self, of: usize) -> RedisServer {
        let bus = free_port().to_string();
        let replica = RedisServer::start_with(&[
            "--cluster-enabled",
            "yes",
            "--cluster-port",
            &bus,
            "--cluster-node-timeout",
            "2000",
        ]);
        let met = self.nodes[0].cli(&["CLUSTER", "MEET", "127.0.0.1", &replica.port.to_string(), &bus]);
        assert_eq!(met, "OK");
        let of = self.nodes[of].cli(&["CLUSTER", "MYID"]);
        let deadline = Instant::now() + START_WAIT;
        while replica.cli(&["CLUSTER", "REPLICATE", &of]) != "OK" {
            assert!(Instant::now() < deadline, "the replica was not met");
            std::thread::sleep(Duration::from_millis(100));
        }
        // Before it knows which slots its primary has, it asks nobody for their votes.
        while !replica.cli(&["CLUSTER", "INFO"]).contains("cluster_slots_assigned:16384") {
            assert!(Instant::now() < deadline, "the replica did not learn its primary's slots");
            std::thread::sleep(Duration::from_millis(50));
        }
        replica.wait_for_link();
        replica
    }

    /// Moves a slot, with what is in it.
    pub fn migrate(&self, slot: u16, from: usize, to: usize) {
        let id = |at: usize| self.nodes[at].cli(&["CLUSTER", "MYID"]);
        let (from_id, to_id, slot) = (id(from), id(to), slot.to_string());
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        assert_eq!(target.cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]), "OK");
        assert_eq!(source.cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]), "OK");
        let keys = source.cli(&["CLUSTER", "GETKEYSINSLOT", &slot, "1000"]);
        for key in keys.lines().filter(|key| !key.is_empty()) {
            let moved = source.cli(&["MIGRATE", "127.0.0.1", &target.port.to_string(), key, "0", "5000"]);
            assert_eq!(moved, "OK", "{key}");
        }
        for node in [target, source] {
            assert_eq!(node.cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]), "OK");
        }
    }
}

impl Redis for RedisCluster {
    fn url(&self) -> String {
        // One that is not there must not matter.
        format!("redis://127.0.0.1:1,127.0.0.1:{}", self.nodes[1].port)
    }

    fn topology(&self) -> Topology {
        Topology::Cluster
    }

    fn cli(&self, args: &[&str]) -> String {
        self.nodes[0].cli(args)
    }

    fn flush(&self) {
        self.nodes.iter().for_each(RedisServer::flush);
    }
}

/// A primary, its replica, and a Sentinel that promotes it.
pub struct RedisSentinel {
    pub primary: RedisServer,
    pub replica: RedisServer,
    pub sentinel: RedisServer,
}

impl RedisSentinel {
    pub fn start() -> Self {
        let primary = RedisServer::start_with(&[]);
        let replica = primary.replica();
        let settings = format!(
            "sentinel monitor main 127.0.0.1 {} 1\nsentinel down-after-milliseconds main 700\n\
             sentinel failover-timeout main 5000\n",
            primary.port
        );
        // It rewrites its own file.
        let sentinel = RedisServer::start_after(&["--sentinel"], |dir| {
            std::fs::write(dir.join("sentinel.conf"), settings).unwrap();
        });
        let deadline = Instant::now() + START_WAIT;
        while !sentinel.cli(&["INFO", "sentinel"]).contains("slaves=1") {
            assert!(Instant::now() < deadline, "the Sentinel knows no replica");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { primary, replica, sentinel }
    }
}

impl Redis for RedisSentinel {
    fn url(&self) -> String {
        self.sentinel.url()
    }

    fn topology(&self) -> Topology {
        Topology::Sentinel { service: "main".into() }
    }

    fn cli(&self, args: &[&str]) -> String {
        self.primary.cli(args)
    }

    fn flush(&self) {
        self.primary.flush();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn spawn(port: u16, dir: &std::path::Path, args: &[String]) -> Child {
    let file = dir.join("sentinel.conf");
    Command::new("redis-server")
        .args(file.exists().then_some(file))
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--dir"])
        .arg(dir)
        // Replicas are synced at once, instead of being waited for.
        .args(if args.iter().any(|arg| arg == "--sentinel") {
            &[][..]
        } else {
            &["--save", "", "--repl-diskless-sync-delay", "0"]
        })
        .args(args)
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is missing: install the system's redis package (apt-get install redis-server)")
}
