//! Leases of nodes and gateways, in memory: in a process that is alone they end with it.
//!
//! The rule that keeps it right: a lease is live until its deadline on the monotonic clock and not a moment longer, and
//! only its holder's incarnation renews it while it is live.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::store::{Gateway, Node, View};

#[derive(Default)]
pub(super) struct Leases {
    nodes: BTreeMap<String, (Node, Instant)>,
    gateways: HashMap<u16, (u64, Instant)>,
    /// Nodes that have renewed before, by incarnation: one that is not live any more was lost.
    renewed: HashMap<String, u64>,
    /// Lives of gateways whose lease has ended and whose routes are not swept yet.
    dead: Vec<Gateway>,
}

impl Leases {
    /// Renews a node's lease: (it was missing, the life that holds it instead or 0). A lease of the life that it `replaces`
    /// ends.
    pub(super) fn renew_node(&mut self, now: Instant, node: Node, replaces: u64, ttl_ms: u32) -> (bool, u64) {
        self.expire(now);
        let incarnation = node.incarnation;
        let holder = self.nodes.get(&node.name).map_or(0, |(node, _)| node.incarnation);
        if ![0, incarnation, replaces].contains(&holder) {
            return (false, holder);
        }
        let had_one = self.renewed.insert(node.name.clone(), incarnation) == Some(incarnation);
        self.nodes.insert(node.name.clone(), (node, now + Duration::from_millis(u64::from(ttl_ms))));
        (had_one && holder != incarnation, 0)
    }

    pub(super) fn leave(&mut self, name: &str, incarnation: u64) {
        if self.nodes.get(name).is_some_and(|(node, _)| node.incarnation == incarnation) {
            self.nodes.remove(name);
        }
        if self.renewed.get(name) == Some(&incarnation) {
            self.renewed.remove(name);
        }
    }

    /// Whether this life of a node has a live lease.
    pub(super) fn node_lives(&mut self, now: Instant, name: &str, incarnation: u64) -> bool {
        self.expire(now);
        self.nodes.get(name).is_some_and(|(node, _)| node.incarnation == incarnation)
    }

    /// Grants or renews a gateway's lease: (granted, this life had none). A lease of the life that it `replaces` ends. One
    /// that was `held` is renewed or it is gone.
    pub(super) fn renew_gateway(
        &mut self,
        now: Instant,
        Gateway { gateway, incarnation }: Gateway,
        replaces: u64,
        held: bool,
        ttl_ms: u32,
    ) -> (bool, bool) {
        self.expire(now);
        let holder = self.gateways.get(&gateway).map(|(holder, _)| *holder);
        if held && holder != Some(incarnation) {
            return (false, true);
        }
        match holder {
            Some(holder) if holder == incarnation => {}
            Some(holder) if holder == replaces => self.dead.push(Gateway { gateway, incarnation: holder }),
            Some(_) => return (false, false),
            None => {}
        }
        self.dead.retain(|dead| *dead != Gateway { gateway, incarnation });
        self.gateways.insert(gateway, (incarnation, now + Duration::from_millis(u64::from(ttl_ms))));
        (true, holder != Some(incarnation))
    }

    /// Lives of gateways whose routes are to be swept; they are handed out once.
    pub(super) fn take_dead(&mut self, now: Instant) -> Vec<Gateway> {
        self.expire(now);
        std::mem::take(&mut self.dead)
    }

    /// Whether this life of a gateway has a live lease.
    pub(super) fn gateway_lives(&self, now: Instant, gateway: Gateway) -> bool {
        self.gateways
            .get(&gateway.gateway)
            .is_some_and(|(incarnation, until)| *incarnation == gateway.incarnation && *until > now)
    }

    pub(super) fn view(&mut self, now: Instant, owners: Vec<(String, u64)>) -> View {
        self.expire(now);
        let mut gateways: Vec<Gateway> = self
            .gateways
            .iter()
            .map(|(gateway, (incarnation, _))| Gateway { gateway: *gateway, incarnation: *incarnation })
            .collect();
        gateways.sort_by_key(|gateway| gateway.gateway);
        View {
            nodes: self.nodes.values().map(|(node, _)| node.clone()).collect(),
            gateways,
            owners,
            ..View::default()
        }
    }

    fn expire(&mut self, now: Instant) {
        self.nodes.retain(|_, (_, until)| *until > now);
        self.gateways.retain(|gateway, (incarnation, until)| {
            let live = *until > now;
            if !live {
                self.dead.push(Gateway { gateway: *gateway, incarnation: *incarnation });
            }
            live
        });
    }
}
