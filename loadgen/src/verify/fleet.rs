//! The processes: two gateways, three dispatchers, a Redis with a replica, and three Sentinels, or one standalone gateway
//! on its embedded store; their files, their starts and their ends.
//!
//! Each runs in its node's surroundings and logs to a file of its own, which goes on when it is started again. The rule:
//! whatever ends without having been told is noticed, named with the end of its log, and started again.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::net::{Net, Node, shell};
use super::{Durability, Store, redis};
use crate::child::{self, Child, Scratch, Surroundings, flag};
use crate::rig::RunError;

/// The fleet is ready within this time.
const READY_WITHIN: Duration = Duration::from_secs(40);

/// Slices of the key space: enough that every shard of every dispatcher owns some, few enough that a takeover of all
/// takes no longer than a lease.
const PARTITIONS: u16 = 64;

/// What clients are told: short, so that a connection without an end is noticed within a schedule.
const HEARTBEAT_MS: u64 = 1_500;

/// Where Debian and others keep the library that lies about the time.
const FAKETIME: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
];

/// All processes with Redis, in the order in which they are started.
const NODES: [Node; 10] = [
    Node::Redis(1),
    Node::Redis(2),
    Node::Sentinel(1),
    Node::Sentinel(2),
    Node::Sentinel(3),
    Node::Dispatcher(1),
    Node::Dispatcher(2),
    Node::Dispatcher(3),
    Node::Gateway(1),
    Node::Gateway(2),
];

/// All processes with the embedded store.
const ALONE: [Node; 1] = [Node::Gateway(1)];

/// The store's disk when it is not full, in MiB.
const DISK_MIB: u64 = 1_024;

fn nodes(store: Store) -> &'static [Node] {
    match store {
        Store::Redis => &NODES,
        Store::Embedded => &ALONE,
    }
}

/// What the fleet is run with.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Where messages are.
    pub(super) store: Store,
    /// When messages are acknowledged.
    pub(super) durability: Durability,
    /// `MILLRACE_FAILPOINTS` of dispatchers and gateways.
    pub(super) failpoints: Option<String>,
    /// Verifies the clients' tokens.
    pub(super) jwks: String,
}

struct Slot {
    child: Option<Child>,
    /// Told to be away: its end is no news.
    is_down: bool,
    addresses: [SocketAddr; 2],
}

/// All processes.
pub(super) struct Fleet {
    pub(super) net: Net,
    plan: Plan,
    scratch: Arc<Scratch>,
    slots: BTreeMap<Node, Slot>,
    /// A tmpfs that can be made full, with the data of both Redis, or of the gateway.
    disk: Option<PathBuf>,
    faketime: Option<&'static str>,
    /// As a majority of the Sentinels last said.
    last_primary: Cell<Node>,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for node in self.nodes().iter().rev() {
            self.signal(*node, "CONT");
        }
        // They have nothing to save, and ten of them in order take long.
        for node in self.nodes().iter().rev() {
            self.kill(*node);
        }
        if let Some(disk) = &self.disk {
            let _ = shell(&format!("umount {}", disk.display()));
        }
    }
}

impl Fleet {
    /// Starts all; it is ready when this returns.
    ///
    /// # Errors
    /// A process that does not start, with the end of its log.
    pub(super) fn start(plan: Plan, is_stopped: &dyn Fn() -> bool) -> Result<Self, RunError> {
        let scratch = Scratch::new()?;
        let nodes = nodes(plan.store);
        let mut net = Net::make(nodes)?;
        scratch.write_keys(&plan.jwks)?;
        let disk = scratch.path().join("disk");
        std::fs::create_dir(&disk)?;
        let mounted = net.tool().is_some()
            && shell(&format!("mount -t tmpfs -o size={DISK_MIB}m millrace {}", disk.display())).is_ok();
        let mut slots = BTreeMap::new();
        for &node in nodes {
            let usual = match node {
                Node::Gateway(_) => [7400, 7401],
                Node::Dispatcher(_) => [7500, 7501],
                Node::Redis(_) => [6379, 6380],
                Node::Sentinel(_) | Node::Clients => [26379, 26380],
            };
            let ip = net.ip(node);
            let addresses =
                [SocketAddr::new(ip, net.port(usual[0])?), SocketAddr::new(ip, net.port(usual[1])?)];
            slots.insert(node, Slot { child: None, is_down: false, addresses });
        }
        let faketime = FAKETIME.into_iter().find(|path| Path::new(path).is_file());
        let disk = mounted.then_some(disk);
        let last_primary = Cell::new(Node::Redis(1));
        let mut fleet = Fleet { net, plan, scratch, slots, disk, faketime, last_primary };
        for &node in nodes {
            if let Node::Gateway(_) | Node::Dispatcher(_) = node {
                fleet.set_clock(node, 0)?;
            }
            fleet.start_node(node)?;
            // A replica and a Sentinel look for the primary, and dispatchers for both.
            if let Node::Redis(_) | Node::Sentinel(_) = node {
                fleet.await_listening(node, is_stopped)?;
            }
        }
        fleet.await_ready(is_stopped, &mut |_| Ok(()))?;
        Ok(fleet)
    }

    /// Where a process serves, and its admin port.
    pub(super) fn address(&self, node: Node) -> SocketAddr {
        self.slots[&node].addresses[0]
    }

    /// Where clients go.
    pub(super) fn gateways(&self) -> Vec<SocketAddr> {
        let gateways = self.nodes().iter().filter(|node| matches!(node, Node::Gateway(_)));
        gateways.map(|node| self.address(*node)).collect()
    }

    /// Where messages are.
    pub(super) fn store(&self) -> Store {
        self.plan.store
    }

    /// All processes, in the order in which they are started.
    fn nodes(&self) -> &'static [Node] {
        nodes(self.plan.store)
    }

    /// Whether disks can be made full.
    pub(super) fn has_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// Whether wall clocks of gateways and dispatchers can be moved.
    pub(super) fn has_clock(&self) -> bool {
        self.faketime.is_some()
    }

    /// Starts a process that is not there, on its old address and with its old files; does not wait until it listens.
    ///
    /// # Errors
    /// It can't be started.
    pub(super) fn start_node(&mut self, node: Node) -> Result<(), RunError> {
        if self.slots[&node].child.is_some() {
            return Ok(());
        }
        let mut around = Surroundings { before: self.net.before(node), env: Vec::new() };
        let args = match node {
            Node::Gateway(number) => self.gateway(number, &mut around),
            Node::Dispatcher(_) => self.dispatcher(node, &mut around),
            _ => self.redis(node)?,
        };
        let child = Child::spawn_in(node.name(), args, Arc::clone(&self.scratch), &around)?;
        let slot = self.slot(node);
        (slot.child, slot.is_down) = (Some(child), false);
        Ok(())
    }

    fn slot(&mut self, node: Node) -> &mut Slot {
        self.slots.get_mut(&node).expect("all nodes have one")
    }

    /// The head of the line: which server, and that the directory stays as long as this process does.
    fn own(&self, server: &str) -> Vec<OsString> {
        vec![
            server.into(),
            flag("scratch", self.scratch.path()),
            flag("kept-by", process::id().to_string()),
            "--".into(),
        ]
    }

    fn with_failpoints(&self, node: Node, around: &mut Surroundings) {
        if let Some(points) = &self.plan.failpoints {
            around.env.push(("MILLRACE_FAILPOINTS".into(), points.into()));
            let counts = self.scratch.path().join(format!("failpoints-{node}"));
            around.env.push(("MILLRACE_FAILPOINTS_COUNTS".into(), counts.into()));
        }
    }

    fn gateway(&self, number: u8, around: &mut Surroundings) -> Vec<OsString> {
        let node = Node::Gateway(number);
        self.with_failpoints(node, around);
        self.with_clock(node, around);
        let [listen, admin] = self.slots[&node].addresses;
        let mut args = self.own("gateway");
        args.extend([
            flag("listen", listen.to_string()),
            flag("admin", admin.to_string()),
            flag("gateway-id", number.to_string()),
            flag("partitions", PARTITIONS.to_string()),
            flag("shards", "2"),
            flag("capacity", "4096"),
            flag("heartbeat-interval-ms", HEARTBEAT_MS.to_string()),
            flag("auth-jwks-file", self.scratch.path().join("jwks.json")),
            flag("auth-ticket-secret-file", self.scratch.path().join("tickets")),
        ]);
        args.push(match self.plan.store {
            Store::Redis => {
                let links = (1..=3).map(|at| self.address(Node::Dispatcher(at)).to_string());
                flag("dispatchers", links.collect::<Vec<_>>().join(","))
            }
            Store::Embedded => flag("data-dir", self.data(node)),
        });
        args
    }

    /// Where a process keeps its data.
    fn data(&self, node: Node) -> PathBuf {
        self.disk.clone().unwrap_or_else(|| self.scratch.path().join("disk")).join(node.name())
    }

    /// How far off a process's wall clock is, as the library reads it.
    fn clock(&self, node: Node) -> PathBuf {
        self.scratch.path().join(format!("clock-{node}"))
    }

    fn with_clock(&self, node: Node, around: &mut Surroundings) {
        let Some(library) = self.faketime else { return };
        around.env.extend([
            ("LD_PRELOAD".into(), library.into()),
            ("FAKETIME_TIMESTAMP_FILE".into(), self.clock(node).into()),
            ("FAKETIME_NO_CACHE".into(), "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()),
            ("DONT_FAKE_MONOTONIC".into(), "1".into()),
        ]);
    }

    fn dispatcher(&self, node: Node, around: &mut Surroundings) -> Vec<OsString> {
        self.with_failpoints(node, around);
        self.with_clock(node, around);
        let [listen, admin] = self.slots[&node].addresses;
        let mut args = self.own("dispatcher");
        args.extend([
            flag("listen", listen.to_string()),
            flag("admin", admin.to_string()),
            flag("name", node.name()),
            flag("partitions", PARTITIONS.to_string()),
            flag("shards", "2"),
        ]);
        let sentinels: Vec<String> = (1..=3).map(|at| self.address(Node::Sentinel(at)).to_string()).collect();
        args.extend([
            flag("redis", format!("redis://{}", sentinels.join(","))),
            flag("redis-mode", "sentinel"),
            flag("redis-sentinel-service", redis::MASTER),
            flag("durability", self.plan.durability.to_string()),
        ]);
        args
    }

    /// Redis and Sentinel, behind a warden that ends them with us.
    fn redis(&self, node: Node) -> Result<Vec<OsString>, RunError> {
        let program = redis::server()
            .ok_or_else(|| RunError::Stuck("redis-server is missing (Debian package redis-server)".into()))?;
        let address = self.address(node);
        let dir = self.data(node);
        std::fs::create_dir_all(&dir)?;
        let mut args = vec![
            OsString::from("warden"),
            flag("scratch", self.scratch.path()),
            flag("address", address.to_string()),
            "--".into(),
            program.into(),
        ];
        if let Node::Sentinel(_) = node {
            let file = dir.join("sentinel.conf");
            if !file.exists() {
                let primary = self.address(Node::Redis(1));
                std::fs::write(&file, redis::sentinel_file(address, primary, &dir))?;
            }
            args.extend([file.into(), "--sentinel".into()]);
        } else {
            // Who is the primary still, or was when a Sentinel last said, begins as one; the other as its replica.
            let primary = self.primary().unwrap_or(self.last_primary.get());
            let of = (primary != node).then(|| self.address(primary));
            args.extend(redis::line(address, &dir, of, self.plan.durability).into_iter().map(OsString::from));
        }
        Ok(args)
    }

    /// Who is the primary, as a majority of the Sentinels say; `None` when none does.
    pub(super) fn primary(&self) -> Option<Node> {
        if self.plan.store == Store::Embedded {
            return None;
        }
        let said: Vec<SocketAddr> = (1..=3)
            .filter(|at| self.slots[&Node::Sentinel(*at)].child.is_some())
            .filter_map(|at| redis::primary(self.address(Node::Sentinel(at))))
            .collect();
        let votes = |node| said.iter().filter(|at| **at == self.address(node)).count();
        let (first, second) = (votes(Node::Redis(1)), votes(Node::Redis(2)));
        let primary = match first.max(second) {
            0 => return None,
            _ if second > first => Node::Redis(2),
            _ => Node::Redis(1),
        };
        self.last_primary.set(primary);
        Some(primary)
    }

    /// The process that a signal is for: a warden's is that of its server, once it said so.
    fn pid(&self, node: Node) -> Option<u32> {
        let child = self.slots[&node].child.as_ref()?;
        match node {
            Node::Redis(_) | Node::Sentinel(_) => child.said("pid")?.parse().ok(),
            _ => Some(child.pid()),
        }
    }

    /// Sends a signal by its name. One that is gone takes none.
    pub(super) fn signal(&self, node: Node, name: &str) {
        if let Some(pid) = self.pid(node) {
            let _ = shell(&format!("kill -{name} {pid}"));
        }
    }

    /// kill -9; it stays away until it is started again.
    pub(super) fn kill(&mut self, node: Node) {
        self.signal(node, "KILL");
        let slot = self.slot(node);
        slot.is_down = true;
        if let Some(mut child) = slot.child.take() {
            // A warden ends when its server has.
            match node {
                Node::Redis(_) | Node::Sentinel(_) => drop(child.stop()),
                _ => drop(child.kill()),
            }
        }
    }

    /// Notices who ended without having been told: how, and the end of its log.
    pub(super) fn tend(&mut self) -> Vec<String> {
        let mut ended = Vec::new();
        for slot in self.slots.values_mut() {
            let Some(child) = slot.child.as_mut().filter(|_| !slot.is_down) else { continue };
            if let Err(error) = child.check() {
                slot.child = None;
                ended.push(error.to_string());
            }
        }
        ended
    }

    /// Whether it was killed, and not started again.
    pub(super) fn is_down(&self, node: Node) -> bool {
        self.slots[&node].is_down
    }

    /// Who is not there although nobody told it to go.
    pub(super) fn missing(&self) -> Vec<Node> {
        let is_missing = |slot: &Slot| slot.child.is_none() && !slot.is_down;
        self.slots.iter().filter(|(_, slot)| is_missing(slot)).map(|(node, _)| *node).collect()
    }

    /// Waits until gateways take logins and the replica is in step; `look` is called between two looks at them.
    ///
    /// # Errors
    /// Not in time.
    pub(super) fn await_ready(
        &mut self,
        is_stopped: &dyn Fn() -> bool,
        look: &mut dyn FnMut(&mut Self) -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        let end = Instant::now() + READY_WITHIN;
        loop {
            look(self)?;
            let not_ready = self.not_ready();
            if not_ready.is_empty() {
                return Ok(());
            }
            if is_stopped() {
                return Err(RunError::Interrupted);
            }
            if Instant::now() > end {
                let mut text = format!("not ready within {} s:", READY_WITHIN.as_secs());
                for node in not_ready {
                    let log = self.slots[&node].child.as_ref().map(Child::log_tail).unwrap_or_default();
                    text.push_str(&format!(" {node}{log}"));
                }
                return Err(RunError::Stuck(text));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn await_listening(&self, node: Node, is_stopped: &dyn Fn() -> bool) -> Result<(), RunError> {
        let end = Instant::now() + READY_WITHIN;
        while self.pid(node).is_none() {
            if is_stopped() {
                return Err(RunError::Interrupted);
            }
            if Instant::now() > end {
                let log = self.slots[&node].child.as_ref().map(Child::log_tail).unwrap_or_default();
                return Err(RunError::Stuck(format!("{node} does not listen{log}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Who is not as it should be when nothing is wrong.
    fn not_ready(&self) -> Vec<Node> {
        let primary = self.primary();
        let is_ready = |&node: &Node| {
            let slot = &self.slots[&node];
            match node {
                Node::Gateway(_) | Node::Dispatcher(_) => child::is_ready(slot.addresses[1]).unwrap_or(false),
                Node::Redis(_) if Some(node) == primary => redis::is_primary(slot.addresses[0]),
                Node::Redis(_) => redis::is_in_step(slot.addresses[0]),
                Node::Sentinel(_) | Node::Clients => redis::primary(slot.addresses[0]).is_some(),
            }
        };
        self.nodes().iter().copied().filter(|node| !is_ready(node)).collect()
    }

    /// Leaves so many MiB on the store's disk, or gives room again.
    pub(super) fn fill_disk(&self, left_mib: Option<u64>) -> Result<(), RunError> {
        let Some(disk) = &self.disk else { return Ok(()) };
        let disk = disk.display();
        match left_mib {
            // As large as what is on it, and a little more if it grows meanwhile.
            Some(left_mib) => {
                let left_kib = left_mib * 1_024;
                let to = |more_kib: u64| {
                    format!("mount -o remount,size=$(( $(du -sk {disk} | cut -f1) + {more_kib} ))k {disk}")
                };
                shell(&format!("{} || {}", to(left_kib), to(left_kib + 64)))
            }
            None => shell(&format!("mount -o remount,size={DISK_MIB}m {disk}")),
        }
    }

    /// Moves the wall clock of a gateway or a dispatcher.
    pub(super) fn set_clock(&self, node: Node, by_s: i64) -> Result<(), RunError> {
        let file = self.clock(node);
        // The library reads the file at each look: it is replaced, never half written.
        let new = file.with_extension("new");
        std::fs::write(&new, format!("{by_s:+}s\n"))?;
        Ok(std::fs::rename(new, file)?)
    }

    /// How often each fail point was hit, and fired, over all processes.
    pub(super) fn failpoint_counts(&self) -> BTreeMap<String, [u64; 2]> {
        let mut counts: BTreeMap<String, [u64; 2]> = BTreeMap::new();
        let Ok(files) = std::fs::read_dir(self.scratch.path()) else { return counts };
        for file in files.flatten() {
            if !file.file_name().to_string_lossy().starts_with("failpoints-") {
                continue;
            }
            let text = std::fs::read_to_string(file.path()).unwrap_or_default();
            for line in text.lines() {
                let mut words = line.split_whitespace();
                let (Some(name), Some(hits), Some(fired)) = (words.next(), words.next(), words.next()) else {
                    continue;
                };
                let count = counts.entry(name.to_owned()).or_default();
                count[0] += hits.parse::<u64>().unwrap_or(0);
                count[1] += fired.parse::<u64>().unwrap_or(0);
            }
        }
        counts
    }

    /// Copies all logs.
    ///
    /// # Errors
    /// The directory can't be written.
    pub(super) fn keep_logs(&self, to: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(to)?;
        for file in std::fs::read_dir(self.scratch.path())?.flatten() {
            if file.path().extension().is_some_and(|extension| extension == "log") {
                std::fs::copy(file.path(), to.join(file.file_name()))?;
            }
        }
        Ok(())
    }
}
