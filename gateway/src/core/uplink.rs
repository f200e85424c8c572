//! Where records go: dispatcher nodes, who owns which partition, and what waits until that is known.
//!
//! Owners are learnt from announcements alone; the highest epoch wins, and NotOwner only takes an owner away. What
//! records mean is not known here.

use std::collections::VecDeque;

use millrace_protocol::ids::{Partition, SessionId};
use millrace_protocol::link::end::{LinkEnd, LinkLimits};
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::link::{Hello, Owned};
use millrace_protocol::planted::{self, Fault};
use millrace_protocol::prost::Message;

use super::event::NodeKey;
use super::limits::{NODES_MAX, PARKED_BYTES_MAX, PARKED_US};
use super::resync::Last;

/// One dispatcher node.
pub struct Node {
    /// From configuration, a ClusterMap or its hello; may be empty.
    pub name: String,
    /// `host:port`, or empty for the in-process dispatcher.
    pub address: String,
    /// Named by configuration: never forgotten.
    pub seed: bool,
    /// This shard's end of the link to it.
    pub link: LinkEnd,
    /// `transmit` may have something.
    pub output: bool,
    /// Its last connection.
    pub last: Last,
    /// Since when it owes its acknowledgement.
    pub ack_since_us: Option<u64>,
    /// Since when the others no longer name it.
    pub absent_since_us: Option<u64>,
}

#[derive(Clone, Copy, Default)]
struct Owner {
    node: Option<NodeKey>,
    /// The highest that any record carried.
    epoch: u64,
    /// That of the last announcement: other records of an owner may come before it.
    announced: u64,
    /// Which copy of the store granted that; 0: not known.
    copy: u64,
}

/// What an announcement says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// What is known.
    Nothing,
    /// A higher epoch is known.
    Outdated,
    /// A partition has this owner now.
    Owner,
    /// And the store is another copy than the former owner's, which may lack what that one was acknowledged last. That
    /// one, if it is another node.
    OwnerOfAnotherCopy(Option<NodeKey>),
}

/// Why a record did not go.
#[derive(Debug)]
pub enum Unsent {
    /// Nobody is known to own its partition.
    NoOwner(Record),
    /// The owner's link takes no more.
    NoCredit(Record),
}

/// Nodes, owners, and records that wait.
pub struct Uplink {
    nodes: Vec<Option<Node>>,
    owners: Vec<Owner>,
    parked: VecDeque<(u64, Record)>,
    parked_bytes: usize,
    identity: Hello,
    limits: LinkLimits,
}

impl Uplink {
    /// No nodes yet.
    pub fn new(identity: Hello, limits: LinkLimits, partitions: u16) -> Self {
        Uplink {
            nodes: Vec::new(),
            owners: vec![Owner::default(); usize::from(partitions.max(1))],
            parked: VecDeque::new(),
            parked_bytes: 0,
            identity,
            limits,
        }
    }

    /// Takes in a node; `None` when there are too many.
    pub fn add(&mut self, name: String, address: String, seed: bool) -> Option<NodeKey> {
        if self.nodes.iter().flatten().count() >= NODES_MAX {
            return None;
        }
        let link = LinkEnd::new(self.identity.clone(), self.limits);
        self.nodes.push(Some(Node {
            name,
            address,
            seed,
            link,
            output: false,
            last: Last::default(),
            ack_since_us: None,
            absent_since_us: None,
        }));
        Some(NodeKey(self.nodes.len() as u32 - 1))
    }

    /// Forgets a node; its key is not used again.
    pub fn remove(&mut self, key: NodeKey) {
        self.nodes[key.0 as usize] = None;
        self.disown(key);
    }

    /// A node.
    pub fn node(&mut self, key: NodeKey) -> Option<&mut Node> {
        self.nodes.get_mut(key.0 as usize)?.as_mut()
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeKey, &Node)> {
        self.nodes.iter().enumerate().filter_map(|(i, node)| Some((NodeKey(i as u32), node.as_ref()?)))
    }

    /// All nodes.
    pub fn nodes_mut(&mut self) -> impl Iterator<Item = (NodeKey, &mut Node)> {
        self.nodes.iter_mut().enumerate().filter_map(|(i, node)| Some((NodeKey(i as u32), node.as_mut()?)))
    }

    /// Later links say hello with this incarnation, and so do those that exist.
    pub fn set_incarnation(&mut self, incarnation: u64) {
        self.identity.incarnation = incarnation;
        for node in self.nodes.iter_mut().flatten() {
            node.link.set_incarnation(incarnation);
            node.output = true;
        }
    }

    /// The highest epoch seen for a partition.
    pub fn epoch(&self, partition: Partition) -> u64 {
        self.owners.get(usize::from(partition)).map_or(0, |owner| owner.epoch)
    }

    /// The owner of a partition.
    pub fn owner(&self, partition: Partition) -> Option<NodeKey> {
        self.owners.get(usize::from(partition))?.node
    }

    /// Partitions with an owner.
    pub fn owned(&self) -> usize {
        self.owners.iter().filter(|owner| owner.node.is_some()).count()
    }

    /// Whether a record of this epoch still counts; a higher one is remembered.
    pub fn witness(&mut self, partition: Partition, epoch: u64) -> bool {
        let Some(owner) = self.owners.get_mut(usize::from(partition)) else { return false };
        owner.epoch = owner.epoch.max(epoch);
        epoch == owner.epoch || planted::is(Fault::OldEpochsKept)
    }

    /// A node announces a partition.
    pub fn announce(&mut self, node: NodeKey, owned: &Owned) -> Announced {
        let &Owned { partition, epoch, copy } = owned;
        let Some(owner) = self.owners.get_mut(partition as usize) else { return Announced::Nothing };
        if epoch < owner.epoch {
            return Announced::Outdated;
        }
        if owner.node == Some(node) && epoch == owner.announced {
            return Announced::Nothing;
        }
        let former = owner.node.replace(node).filter(|former| *former != node);
        (owner.epoch, owner.announced) = (epoch, epoch);
        if copy == 0 {
            return Announced::Owner;
        }
        match std::mem::replace(&mut owner.copy, copy) {
            before if before == 0 || before == copy => Announced::Owner,
            _ => Announced::OwnerOfAnotherCopy(former),
        }
    }

    /// A node says that it is not the owner.
    pub fn not_owner(&mut self, partition: u32, node: NodeKey) {
        let owner = self.owners.get_mut(partition as usize).filter(|owner| owner.node == Some(node));
        if let Some(owner) = owner {
            owner.node = None;
        }
    }

    /// A node owns nothing until it announces again.
    pub fn disown(&mut self, node: NodeKey) {
        for owner in self.owners.iter_mut().filter(|owner| owner.node == Some(node)) {
            owner.node = None;
        }
    }

    /// Queues a record on the link of its partition's owner.
    pub fn send(&mut self, record: Record) -> Result<NodeKey, Unsent> {
        match self.owner(record.partition) {
            Some(key) => self.send_to(key, record).map(|()| key),
            None => Err(Unsent::NoOwner(record)),
        }
    }

    /// Queues a record on a node's link.
    pub fn send_to(&mut self, key: NodeKey, record: Record) -> Result<(), Unsent> {
        let Some(node) = self.node(key) else { return Err(Unsent::NoOwner(record)) };
        node.output = true;
        node.link.queue(record).map_err(|refused| Unsent::NoCredit(refused.0))
    }

    /// Keeps a record until an owner is known and has credit. It comes back when too much waits.
    pub fn park(&mut self, now_us: u64, record: Record) -> Result<(), Record> {
        let bytes = record.size_bytes() + size_of::<(u64, Record)>();
        if self.parked_bytes + bytes > PARKED_BYTES_MAX {
            return Err(record);
        }
        self.parked_bytes += bytes;
        self.parked.push_back((now_us + PARKED_US, record));
        Ok(())
    }

    /// The next record that waits, with its deadline, taken out.
    pub fn unpark(&mut self) -> Option<(u64, Record)> {
        let (until, record) = self.parked.pop_front()?;
        self.parked_bytes -= record.size_bytes() + size_of::<(u64, Record)>();
        Some((until, record))
    }

    /// Puts one back, keeping its deadline.
    pub fn repark(&mut self, until_us: u64, record: Record) {
        self.parked_bytes += record.size_bytes() + size_of::<(u64, Record)>();
        self.parked.push_back((until_us, record));
    }

    /// Records that wait, and their bytes.
    pub fn parked(&self) -> (usize, usize) {
        (self.parked.len(), self.parked_bytes)
    }
}

/// A record of this body.
pub fn record(kind: Kind, partition: Partition, session: SessionId, body: &impl Message) -> Record {
    Record { kind, partition, epoch: 0, session, body: body.encode_to_vec().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_follow_the_highest_epoch() {
        let mut uplink = Uplink::new(Hello { incarnation: 1, ..Hello::default() }, LinkLimits::default(), 4);
        let [a, b] = ["a", "b"].map(|name| uplink.add(name.into(), name.into(), true).unwrap());
        let owned = |partition, epoch| Owned { partition, epoch, copy: 1 };
        assert_eq!(uplink.announce(a, &owned(1, 10)), Announced::Owner);
        assert_eq!(uplink.announce(a, &owned(1, 10)), Announced::Nothing, "nothing new");
        assert_eq!(uplink.announce(b, &owned(1, 9)), Announced::Outdated, "an old epoch");
        assert_eq!(uplink.announce(b, &owned(1, 11)), Announced::Owner);
        assert_eq!(uplink.owner(1), Some(b));
        assert_eq!(uplink.announce(b, &owned(9, 11)), Announced::Nothing, "no such partition");
        uplink.not_owner(1, a);
        assert_eq!(uplink.owner(1), Some(b), "only the owner can deny it");
        uplink.not_owner(1, b);
        assert_eq!((uplink.owner(1), uplink.epoch(1)), (None, 11));
        assert!(!uplink.witness(1, 10) && uplink.witness(1, 12) && !uplink.witness(1, 11));
        let moved = Owned { copy: 2, ..owned(1, 12) };
        assert_eq!(
            uplink.announce(b, &moved),
            Announced::OwnerOfAnotherCopy(None),
            "also after it was denied"
        );
        let moved = Owned { copy: 3, ..owned(1, 13) };
        assert_eq!(uplink.announce(a, &moved), Announced::OwnerOfAnotherCopy(Some(b)));
        let moved = Owned { copy: 4, ..owned(1, 14) };
        assert_eq!(uplink.announce(a, &moved), Announced::OwnerOfAnotherCopy(None), "the same node");
        assert!(uplink.witness(1, 15));
        let again = Owned { copy: 4, ..owned(1, 15) };
        assert_eq!(uplink.announce(a, &again), Announced::Owner, "it answered somebody before it announced");
        assert_eq!(uplink.announce(a, &again), Announced::Nothing);
        uplink.announce(b, &owned(1, 16));
        uplink.remove(b);
        assert_eq!(uplink.owner(1), None);
        assert!(!uplink.witness(7, 1));
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut uplink = Uplink::new(Hello { incarnation: 1, ..Hello::default() }, LinkLimits::default(), 1);
        let big = Record {
            kind: Kind::Closed,
            partition: 0,
            epoch: 0,
            session: SessionId::NONE,
            body: vec![0; 1 << 20].into(),
        };
        let fit = (0..100).take_while(|_| uplink.park(5, big.clone()).is_ok()).count();
        assert_eq!(fit, PARKED_BYTES_MAX / ((1 << 20) + 128));
        while let Some((until, _)) = uplink.unpark() {
            assert_eq!(until, 5 + PARKED_US);
        }
        assert_eq!(uplink.parked(), (0, 0));
    }
}
