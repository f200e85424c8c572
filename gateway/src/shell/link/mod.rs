//! The links of one shard: a transport to every dispatcher node that its core wants, and the bytes on it.
//!
//! [`tcp`] reaches nodes over the network, [`pipe`] the dispatcher in this process. What is said on them, resent or
//! dropped is the core's business; these carry bytes and reconnect with jittered backoff. Bounded: a few batches ahead
//! of a socket, a few megabytes read ahead of the pump; the rest waits in the core and in the kernel.

mod backoff;
mod pipe;
mod points;
mod resolver;
mod signal;
mod tcp;

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use millrace_edge::wake::Waker;

pub use self::pipe::LocalConnect;
use self::pipe::{Pipe, PipeEvent};
pub use self::resolver::{Answer, Resolver};
use self::tcp::{Inbound, Incoming, Tcp};
use super::log;
use crate::core::event::NodeKey;

/// Something that happened on a link.
#[derive(Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// The transport is up.
    Connected,
    /// Bytes, cut anywhere.
    Bytes(Bytes),
    /// The transport is gone, and tried again.
    Lost,
}

/// One link, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkReport {
    /// The node's name, or its address while the name is unknown.
    pub node: String,
    /// A transport is up.
    pub up: bool,
    /// Connections made since the start.
    pub connects: u64,
    /// Connections lost or not made; in-process: batches that met a full queue.
    pub failures: u64,
    /// Bytes from the node.
    pub bytes_in: u64,
    /// Bytes to the node.
    pub bytes_out: u64,
}

enum Transport {
    Tcp(Rc<Tcp>),
    Pipe(Box<Pipe>),
}

struct Link {
    transport: Transport,
    /// Number of the connection that the core has been told of; 0: none. (In-process there is only 1.)
    told: u64,
    /// The core asked to drop that connection: what is still read from it is not for the core.
    cut: bool,
}

/// All links of a shard. Lives on its thread, inside its runtime.
pub struct Links {
    gateway: u16,
    shard: u8,
    waker: Waker,
    local: Option<LocalConnect>,
    resolver: Option<Resolver>,
    ask: tcp::Ask,
    nodes: BTreeMap<NodeKey, Link>,
    inbound: Rc<Inbound>,
    seed: u64,
}

impl Links {
    /// No links yet. `answer` brings the resolver's answers back to this shard, where [`Links::resolved`] takes them;
    /// it is called on the resolver's thread.
    pub fn new<F>(
        (gateway, shard): (u16, u8),
        waker: Waker,
        local: Option<LocalConnect>,
        resolver: Option<Resolver>,
        seed: u64,
        answer: F,
    ) -> Self
    where
        F: Fn(NodeKey, Answer) + Clone + Send + 'static,
    {
        let ask: tcp::Ask = Rc::new(move |resolver, node, address| {
            let answer = answer.clone();
            resolver.ask(address, move |found| answer(node, found))
        });
        let inbound = Rc::new(Inbound::new(waker.clone()));
        Links { gateway, shard, waker, local, resolver, ask, nodes: BTreeMap::new(), inbound, seed }
    }

    /// Keeps a transport to a node; an empty address means the dispatcher in this process.
    pub fn connect(&mut self, node: NodeKey, name: String, address: String) {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let transport = if address.is_empty() {
            let Some(local) = self.local.clone() else {
                log::error(format_args!(
                    "dispatcher {name:?} gives no address, and none runs in this process"
                ));
                return;
            };
            // The first look at it connects: see that there is one.
            self.waker.wake();
            Transport::Pipe(Box::new(Pipe::new(
                local,
                (self.gateway, self.shard),
                self.waker.clone(),
                self.seed,
            )))
        } else {
            let name = if name.is_empty() { address.clone() } else { name };
            let tcp = Tcp::new(node, name, address);
            let task = Rc::clone(&tcp).run(
                Rc::clone(&self.inbound),
                self.resolver.clone(),
                Rc::clone(&self.ask),
                self.seed,
            );
            monoio::spawn(task);
            Transport::Tcp(tcp)
        };
        self.nodes.insert(node, Link { transport, told: 0, cut: false });
    }

    /// Drops a transport for good. No event follows.
    pub fn disconnect(&mut self, node: NodeKey) {
        if let Some(Link { transport: Transport::Tcp(tcp), .. }) = self.nodes.remove(&node) {
            tcp.stop();
        }
    }

    /// Drops a transport that misbehaved; [`LinkEvent::Lost`] follows, then a new connection.
    pub fn reset(&mut self, node: NodeKey, reason: &str, now_us: u64) {
        let Some(link) = self.nodes.get_mut(&node) else { return };
        match &mut link.transport {
            Transport::Tcp(tcp) => tcp.cut(link.told, reason),
            Transport::Pipe(pipe) => {
                log::warn(format_args!("link to the dispatcher in this process: {reason}; resetting it"));
                pipe.cut(now_us);
                self.waker.wake();
            }
        }
        link.cut = true;
    }

    /// Hands a link the addresses of its node.
    pub fn resolved(&mut self, node: NodeKey, answer: Answer) {
        if let Some(Link { transport: Transport::Tcp(tcp), .. }) = self.nodes.get(&node) {
            tcp.resolved(answer);
        }
    }

    /// What happened next, for the core.
    pub fn next(&mut self, now_us: u64) -> Option<(NodeKey, LinkEvent)> {
        while let Some((node, incoming)) = self.inbound.pop() {
            // Of a node that was given up meanwhile.
            let Some(link) = self.nodes.get_mut(&node) else { continue };
            match incoming {
                Incoming::Up(number) => {
                    (link.told, link.cut) = (number, false);
                    return Some((node, LinkEvent::Connected));
                }
                Incoming::Bytes(number, bytes) if number == link.told && !link.cut => {
                    return Some((node, LinkEvent::Bytes(bytes)));
                }
                Incoming::Bytes(..) => {}
                Incoming::Down => {
                    link.told = 0;
                    return Some((node, LinkEvent::Lost));
                }
            }
        }
        for (node, link) in &mut self.nodes {
            let Transport::Pipe(pipe) = &mut link.transport else { continue };
            if std::mem::take(&mut link.cut) && link.told != 0 {
                link.told = 0;
                return Some((*node, LinkEvent::Lost));
            }
            match pipe.next(now_us) {
                Some(PipeEvent::Up) => {
                    link.told = 1;
                    return Some((*node, LinkEvent::Connected));
                }
                Some(PipeEvent::Bytes(bytes)) => return Some((*node, LinkEvent::Bytes(bytes))),
                Some(PipeEvent::Down) => {
                    link.told = 0;
                    return Some((*node, LinkEvent::Lost));
                }
                None => {}
            }
        }
        None
    }

    /// Whether [`Links::next`] has something now, whatever the time.
    pub fn has_input(&self) -> bool {
        let piped = |link: &Link| match &link.transport {
            Transport::Pipe(pipe) => link.cut || pipe.has_input(),
            Transport::Tcp(_) => false,
        };
        !self.inbound.is_empty() || self.nodes.values().any(piped)
    }

    /// Moves bytes for a node to its transport, as long as that takes them.
    pub fn send(&mut self, node: NodeKey, now_us: u64, mut transmit: impl FnMut() -> Option<Bytes>) {
        let Some(link) = self.nodes.get_mut(&node).filter(|link| link.told != 0 && !link.cut) else { return };
        match &mut link.transport {
            Transport::Tcp(tcp) => {
                while tcp.takes(link.told) {
                    let Some(batch) = transmit() else { return };
                    tcp.send(batch);
                }
            }
            Transport::Pipe(pipe) => pipe.send(now_us, transmit),
        }
    }

    /// Nodes with a batch that waits here, whatever the core has.
    pub fn unsent(&self) -> Vec<NodeKey> {
        let waits = |link: &Link| matches!(&link.transport, Transport::Pipe(pipe) if pipe.is_up() && pipe.due_us().is_some());
        self.nodes.iter().filter(|(_, link)| waits(link)).map(|(node, _)| *node).collect()
    }

    /// Whether a transport to the node is up, and the core was told.
    pub fn is_up(&self, node: NodeKey) -> bool {
        self.nodes.get(&node).is_some_and(|link| link.told != 0)
    }

    /// Whether all that was handed over has left this shard.
    pub fn is_flushed(&self) -> bool {
        self.nodes.values().all(|link| match &link.transport {
            Transport::Tcp(tcp) => tcp.is_flushed(),
            Transport::Pipe(pipe) => pipe.is_flushed(),
        })
    }

    /// When to look again, events or not, on the monotonic clock.
    pub fn deadline_us(&self) -> Option<u64> {
        let due = |link: &Link| match &link.transport {
            Transport::Pipe(pipe) => pipe.due_us(),
            Transport::Tcp(_) => None,
        };
        self.nodes.values().filter_map(due).min()
    }

    /// All links, for metrics.
    pub fn reports(&self) -> Vec<LinkReport> {
        let report = |link: &Link| match &link.transport {
            Transport::Tcp(tcp) => LinkReport {
                node: tcp.name.clone(),
                up: link.told != 0,
                connects: tcp.connects.get(),
                failures: tcp.failures.get(),
                bytes_in: tcp.bytes_in.get(),
                bytes_out: tcp.bytes_out.get(),
            },
            Transport::Pipe(pipe) => LinkReport {
                node: "in-process".to_owned(),
                up: link.told != 0,
                connects: pipe.connects,
                failures: pipe.full,
                bytes_in: pipe.bytes_in,
                bytes_out: pipe.bytes_out,
            },
        };
        self.nodes.values().map(report).collect()
    }
}

#[cfg(test)]
mod tests;
