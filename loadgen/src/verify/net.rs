//! The network between the processes: a namespace for each where the machine allows it, loopback where it does not.
//!
//! In namespaces, each node has an address of its own behind a bridge, and a table of nft (or iptables, or blackhole
//! routes) that drops or resets what comes from another. The rule: everything is made inside this process's own network
//! namespace, which ends with it, so that nothing is left behind however it ends.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::inside;
use crate::rig::RunError;
use crate::rng::Rng;

/// A namespace is there within this time.
const HOLDER_WITHIN: Duration = Duration::from_secs(5);

/// Ports on loopback: below the ports of outgoing connections, so that nobody takes one while its server is away.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// One process of the fleet, or all clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Node {
    Clients,
    Gateway(u8),
    Dispatcher(u8),
    Redis(u8),
    Sentinel(u8),
}

impl Node {
    /// Short, as in logs.
    pub fn name(self) -> &'static str {
        match self {
            Node::Clients => "clients",
            Node::Gateway(1) => "g1",
            Node::Gateway(_) => "g2",
            Node::Dispatcher(1) => "d1",
            Node::Dispatcher(2) => "d2",
            Node::Dispatcher(_) => "d3",
            Node::Redis(1) => "r1",
            Node::Redis(_) => "r2",
            Node::Sentinel(1) => "s1",
            Node::Sentinel(2) => "s2",
            Node::Sentinel(_) => "s3",
        }
    }

    fn last_octet(self) -> u8 {
        match self {
            Node::Clients => 1,
            Node::Gateway(n) => 10 + n,
            Node::Dispatcher(n) => 20 + n,
            Node::Redis(n) => 30 + n,
            Node::Sentinel(n) => 40 + n,
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What drops packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// Drops and resets, at the receiver.
    Nft,
    /// The same.
    Iptables,
    /// `ip route add blackhole`: drops, at the sender.
    Routes,
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tool::Nft => "nft",
            Tool::Iptables => "iptables",
            Tool::Routes => "blackhole routes",
        })
    }
}

/// What happens to packets from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// They are lost.
    Drop,
    /// They are answered with a TCP reset.
    Reset,
}

/// The network.
pub struct Net {
    spaces: Option<Spaces>,
    rng: Rng,
}

struct Spaces {
    tool: Tool,
    /// Each holds a namespace open, as long as its stdin is.
    holders: BTreeMap<Node, Child>,
}

impl Drop for Spaces {
    fn drop(&mut self) {
        for (node, holder) in &mut self.holders {
            let _ = holder.kill();
            let _ = holder.wait();
            // The kernel takes a namespace apart later; another fleet's devices have the same names.
            let _ = shell(&format!("ip link del v-{node}"));
        }
        let _ = shell("ip link del br0");
    }
}

impl Net {
    /// Makes it, of these nodes: in namespaces if this process is in one of its own.
    ///
    /// # Errors
    /// What could not be made.
    pub fn make(nodes: &[Node]) -> Result<Self, RunError> {
        let rng = Rng::from_system();
        if !inside::is_inside() {
            return Ok(Net { spaces: None, rng });
        }
        let tool = match (find("nft"), find("iptables")) {
            (Some(_), _) => Tool::Nft,
            (None, Some(_)) => Tool::Iptables,
            (None, None) => Tool::Routes,
        };
        shell(
            "ip link set lo up && ip link add br0 type bridge && ip link set br0 up && ip addr add 10.77.0.1/24 dev br0",
        )?;
        let mut spaces = Spaces { tool, holders: BTreeMap::new() };
        for &node in nodes {
            let holder = Command::new("unshare")
                .args(["--net", "cat"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()?;
            let pid = holder.id();
            spaces.holders.insert(node, holder);
            await_namespace(pid)?;
            let (name, address) = (node.name(), Ipv4Addr::new(10, 77, 0, node.last_octet()));
            shell(&format!(
                "ip link add v-{name} type veth peer name eth0 netns {pid} \
                 && ip link set v-{name} master br0 && ip link set v-{name} up \
                 && nsenter --net=/proc/{pid}/ns/net sh -c \
                 'ip link set lo up && ip addr add {address}/24 dev eth0 && ip link set eth0 up'"
            ))?;
        }
        let net = Net { spaces: Some(spaces), rng };
        if tool == Tool::Nft {
            for &node in nodes {
                net.nft(
                    node,
                    "add table inet millrace; \
                     add set inet millrace lost { type ipv4_addr; }; \
                     add set inet millrace broken { type ipv4_addr; }; \
                     add chain inet millrace input { type filter hook input priority 0; }; \
                     add rule inet millrace input ip saddr @lost drop; \
                     add rule inet millrace input meta l4proto tcp ip saddr @broken reject with tcp reset",
                )?;
            }
        }
        Ok(net)
    }

    /// What drops packets; `None` on loopback, where nothing can.
    pub fn tool(&self) -> Option<Tool> {
        self.spaces.as_ref().map(|spaces| spaces.tool)
    }

    /// Where a node is.
    pub fn ip(&self, node: Node) -> IpAddr {
        match self.spaces {
            Some(_) => Ipv4Addr::new(10, 77, 0, node.last_octet()).into(),
            None => Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// A port for a server: its usual one in a namespace, a free one on loopback.
    ///
    /// # Errors
    /// None is free.
    pub fn port(&mut self, usual: u16) -> Result<u16, RunError> {
        if self.spaces.is_some() {
            return Ok(usual);
        }
        for _ in 0..100 {
            let port = PORTS.start + self.rng.below(u64::from(PORTS.end - PORTS.start)) as u16;
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return Ok(port);
            }
        }
        Err(RunError::Stuck(format!("no free port from {} to {}", PORTS.start, PORTS.end)))
    }

    /// What comes before the command line of a process of that node.
    pub fn before(&self, node: Node) -> Vec<OsString> {
        let Some(pid) = self.pid(node) else { return Vec::new() };
        vec!["nsenter".into(), format!("--net=/proc/{pid}/ns/net").into(), "--".into()]
    }

    fn pid(&self, node: Node) -> Option<u32> {
        Some(self.spaces.as_ref()?.holders.get(&node)?.id())
    }

    /// Harms what goes from one node to another, or ends that harm. Clients are not harmed at their side: they share
    /// this process's namespace with the bridge.
    ///
    /// # Errors
    /// The tool refused.
    pub fn harm(&self, from: Node, to: Node, harm: Harm, begin: bool) -> Result<(), RunError> {
        let Some(spaces) = &self.spaces else { return Ok(()) };
        let (source, target) = (self.ip(from), self.ip(to));
        match spaces.tool {
            _ if to == Node::Clients => Ok(()),
            Tool::Nft => {
                let verb = if begin { "add" } else { "delete" };
                let set = if harm == Harm::Drop { "lost" } else { "broken" };
                self.nft(to, &format!("{verb} element inet millrace {set} {{ {source} }}"))
            }
            Tool::Iptables => {
                let verb = if begin { "-A" } else { "-D" };
                let what = match harm {
                    Harm::Drop => "-j DROP",
                    Harm::Reset => "-p tcp -j REJECT --reject-with tcp-reset",
                };
                self.within(to, &format!("iptables {verb} INPUT -s {source} {what}"))
            }
            // Without a filter nothing can be answered with a reset.
            Tool::Routes if harm == Harm::Reset || from == Node::Clients => Ok(()),
            Tool::Routes => {
                let verb = if begin { "add" } else { "del" };
                self.within(from, &format!("ip route {verb} blackhole {target}/32"))
            }
        }
    }

    fn nft(&self, node: Node, script: &str) -> Result<(), RunError> {
        self.within(node, &format!("nft '{script}'"))
    }

    fn within(&self, node: Node, line: &str) -> Result<(), RunError> {
        match self.pid(node) {
            Some(pid) => shell(&format!("nsenter --net=/proc/{pid}/ns/net {line}")),
            None => Ok(()),
        }
    }
}

/// Waits until a holder is in a namespace of its own.
fn await_namespace(pid: u32) -> io::Result<()> {
    let own = std::fs::read_link("/proc/self/ns/net")?;
    let end = Instant::now() + HOLDER_WITHIN;
    while Instant::now() < end {
        if std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|link| link != own) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Err(io::Error::other("unshare --net made no namespace"))
}

/// Runs a line, which must succeed.
pub(super) fn shell(line: &str) -> Result<(), RunError> {
    let output =
        Command::new("/bin/sh").args(["-c", line]).env("PATH", path()).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(RunError::Stuck(format!("`{line}` failed: {said}")))
}

/// The PATH, and where tools are that a user's PATH leaves out.
fn path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// Looks for a program.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&path()).map(|dir| dir.join(name)).find(|file| file.is_file())
}
