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
    gateways: HashMap<u16, GatewayLease>,
    /// Names of grants given so far.
    grants: u64,
    /// Nodes that have renewed before, by incarnation: one that is not live any more was lost.
    renewed: HashMap<String, u64>,
    /// Lives of gateways whose lease has ended and whose routes are not swept yet.
    dead: Vec<Gateway>,
}

struct GatewayLease {
    incarnation: u64,
    grant: u64,
    until: Instant,
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

    /// Grants or renews a gateway's lease and names it; 0: refused. A lease of the life that it `replaces` ends. One that was
    /// granted before, which `grant` names, is renewed or it is gone.
    pub(super) fn renew_gateway(
        &mut self,
        now: Instant,
        Gateway { gateway, incarnation }: Gateway,
        replaces: u64,
        grant: u64,
        ttl_ms: u32,
    ) -> u64 {
        self.expire(now);
        let holder = self.gateways.get(&gateway).map(|lease| (lease.incarnation, lease.grant));
        let stands = holder.filter(|holder| holder.0 == incarnation).map_or(0, |holder| holder.1);
        if grant != 0 && grant != stands {
            return 0;
        }
        match holder.map(|holder| holder.0).filter(|_| stands == 0) {
            Some(holder) if holder == replaces => self.dead.push(Gateway { gateway, incarnation: holder }),
            Some(_) => return 0,
            None => {}
        }
        self.dead.retain(|dead| *dead != Gateway { gateway, incarnation });
        let grant = match stands {
            0 => {
                self.grants += 1;
                self.grants
            }
            stands => stands,
        };
        let until = now + Duration::from_millis(u64::from(ttl_ms));
        self.gateways.insert(gateway, GatewayLease { incarnation, grant, until });
        grant
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
            .is_some_and(|lease| lease.incarnation == gateway.incarnation && lease.until > now)
    }

    pub(super) fn view(&mut self, now: Instant, owners: Vec<(String, u64)>) -> View {
        self.expire(now);
        let mut gateways: Vec<Gateway> = self
            .gateways
            .iter()
            .map(|(gateway, lease)| Gateway { gateway: *gateway, incarnation: lease.incarnation })
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
        self.gateways.retain(|gateway, lease| {
            let live = lease.until > now;
            if !live {
                self.dead.push(Gateway { gateway: *gateway, incarnation: lease.incarnation });
            }
            live
        });
    }
}
