//! One dispatcher shard: takes events, hands them to the part that they concern, and bounds what a turn leaves behind.
//!
//! It dispatches and decides nothing itself. A shard is home to some links and owner of some partitions
//! (`partition % shards`); what concerns another shard crosses as [`Sibling`]. The rule that keeps it right: answers
//! of the store are acted on in the order in which they come, and everything sent leaves in order per link.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use bytes::Bytes;
use millrace_protocol::ids::{Now, Partition as PartitionId, SessionId};
use millrace_protocol::link::end::{LinkEvent, LinkLimits};
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::link as wire;
use millrace_protocol::prost::Message;

use super::action::Action;
use super::clocks::Clocks;
use super::closes::{self, Closes};
use super::delivery::{self, Delivery};
use super::event::{Claim, Event, LinkKey, Sibling};
use super::events;
use super::fanned::{self, Fanned};
use super::hub::{Cluster, Cx, From, Hub, Jobs, Pending};
use super::limits::{Limits, REANNOUNCE_US};
use super::links::Links;
use super::partition::Partition;
use super::presence::{self, Presence};
use super::register;
use super::stats::Stats;
use super::{lists, pair};
use crate::store::{Done, Outcome, StoreError, View, Work};

/// What a shard is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Index of this shard.
    pub shard: usize,
    /// Shards of this process.
    pub shards: usize,
    /// This node's name, unique in the cluster.
    pub node: String,
    /// Drawn at the start of the process; not 0.
    pub incarnation: u64,
    /// Name of the cluster: links of another one are refused.
    pub cluster: String,
    /// Partitions of the cluster.
    pub partitions: u16,
    /// Bounds of the core.
    pub limits: Limits,
    /// Bounds of its links.
    pub link: LinkLimits,
    /// For jitter.
    pub seed: u64,
}

/// When the shard wants its next turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wait {
    /// At once: there is work left.
    pub more: bool,
    /// No later than this (CLOCK_BOOTTIME, us); `None`: only when something happens.
    pub deadline_us: Option<u64>,
}

/// One shard.
#[derive(Debug)]
pub struct Shard {
    hub: Hub,
    /// Partition `p` of this shard is at `p / shards`.
    partitions: Vec<Partition>,
}

impl Shard {
    /// A shard without links that serves nothing.
    ///
    /// # Panics
    /// When `shard` is not below `shards`, or there are no partitions.
    pub fn new(config: Config) -> Self {
        assert!(config.shard < config.shards, "shard {} of {}", config.shard, config.shards);
        assert!(config.partitions > 0, "a cluster has partitions");
        let identity = wire::Hello {
            cluster: config.cluster.clone(),
            role: "dispatcher".into(),
            shard: config.shard as u32,
            node: config.node.clone(),
            incarnation: config.incarnation,
            partitions: u32::from(config.partitions),
            ..wire::Hello::default()
        };
        let Limits { link_waiting_bytes_max, link_away_us, .. } = config.limits;
        let own = (config.shard..usize::from(config.partitions)).step_by(config.shards);
        Shard {
            partitions: own.map(|id| Partition::new(id as PartitionId)).collect(),
            hub: Hub {
                links: Links::new(identity, config.link, link_waiting_bytes_max, link_away_us),
                jobs: Jobs::default(),
                delivery: Delivery::default(),
                presence: Presence::default(),
                closes: Closes::default(),
                events: Vec::new(),
                clocks: Clocks::default(),
                fanned: Fanned::default(),
                touched: BTreeMap::new(),
                cluster: Cluster::default(),
                ready: Vec::new(),
                announce: Vec::new(),
                denied: BTreeSet::new(),
                denied_due_us: 0,
                timers: BinaryHeap::new(),
                registers: 0,
                fetches: 0,
                lists: 0,
                stats: Stats::default(),
                random: config.seed,
                config,
            },
        }
    }

    /// Takes one event; what is to be done is appended to `actions`, in order. Batches for the store and on links
    /// wait for [`Shard::turn`].
    pub fn step(&mut self, now: Now, event: Event, actions: &mut Vec<Action>) {
        let hub = &mut self.hub;
        let cx = &mut Cx { now, actions, hub };
        match event {
            Event::LinkConnected { link } => {
                if !cx.hub.links.connected(link) {
                    cx.actions.push(Action::ResetLink { link, reason: "too many links".into() });
                }
            }
            Event::LinkBytes { link, bytes } => link_bytes(cx, &mut self.partitions, link, bytes),
            Event::LinkLost { link } => cx.hub.links.lost(link, now),
            Event::Sibling(message) => sibling(cx, &mut self.partitions, message),
            Event::Store(done) => stored(cx, &mut self.partitions, done),
            Event::Claim { partition } => {
                if let Some(partition) = own(&mut self.partitions, cx, partition) {
                    partition.claim(cx);
                }
            }
            Event::Release { partition } => {
                if let Some(partition) = own(&mut self.partitions, cx, partition) {
                    partition.release(cx);
                }
            }
            Event::View(view) => take_view(cx, &mut self.partitions, view),
            Event::LeaseUntil { until_us } => {
                if now.mono_us >= cx.hub.cluster.lease_until_us {
                    // It had lapsed: those who were denied for it are told before anybody is served again.
                    cx.hub.denied_due_us = now.mono_us;
                }
                cx.hub.cluster.lease_until_us = until_us;
            }
        }
        drop_overflowed(cx, &mut self.partitions);
    }

    /// Ends a turn, after its events: starts batches, asks for routes, does what time has come for.
    pub fn turn(&mut self, now: Now, actions: &mut Vec<Action>) -> Wait {
        let hub = &mut self.hub;
        let cx = &mut Cx { now, actions, hub };
        while cx.hub.timers.peek().is_some_and(|Reverse((at_us, _))| *at_us <= now.mono_us) {
            let Some(Reverse((_, partition))) = cx.hub.timers.pop() else { break };
            if let Some(partition) = own(&mut self.partitions, cx, partition) {
                partition.timer(cx);
            }
        }
        for event in std::mem::take(&mut cx.hub.events) {
            let partition = own(&mut self.partitions, cx, event.partition);
            events::write(cx, partition.and_then(Partition::owner), event);
        }
        for partition in std::mem::take(&mut cx.hub.ready) {
            if let Some(partition) = own(&mut self.partitions, cx, partition) {
                partition.start_batch(cx);
            }
        }
        delivery::turn(cx);
        presence::turn(cx);
        closes::turn(cx);
        announce(cx);
        announce_again(cx);
        for link in cx.hub.links.expired(now) {
            cx.hub.stats.links_expired += 1;
            cx.hub.links.remove(link);
            link_gone(cx, &mut self.partitions, link);
        }
        let Hub { links, stats, .. } = &mut *cx.hub;
        links.turn(now, stats);
        drop_overflowed(cx, &mut self.partitions);
        for reached in fanned::turn(cx) {
            if let Some(partition) = own(&mut self.partitions, cx, reached.partition) {
                partition.fanned_out(reached);
            }
        }
        let hub = &self.hub;
        let deadlines = [
            hub.timers.peek().map(|Reverse((at_us, _))| *at_us),
            hub.delivery.deadline_us(),
            hub.presence.deadline_us(),
            hub.closes.deadline_us(),
            (!hub.denied.is_empty()).then_some(hub.denied_due_us),
            hub.links.deadline_us(),
        ];
        Wait { more: !hub.ready.is_empty(), deadline_us: deadlines.into_iter().flatten().min() }
    }

    /// Links that may have something to transmit, each once.
    pub fn links_with_output(&self) -> &[LinkKey] {
        self.hub.links.with_output()
    }

    /// The next batch of a link: one per link and turn, so that none starves the others. `None`: nothing more, and
    /// the link is no longer among [`Shard::links_with_output`].
    pub fn transmit(&mut self, link: LinkKey) -> Option<Bytes> {
        self.hub.links.transmit(link)
    }

    /// Counters, and gauges as of now.
    pub fn stats(&self) -> Stats {
        let mut stats = self.hub.stats;
        stats.partitions_served =
            self.partitions.iter().filter(|partition| partition.is_serving()).count() as u64;
        stats.conversations = self.partitions.iter().map(|partition| partition.conversations() as u64).sum();
        stats.jobs = self.hub.jobs.count() as u64;
        stats.watched = self.hub.presence.count() as u64;
        stats.closes = self.hub.closes.count() as u64;
        self.hub.links.gauges(&mut stats);
        stats
    }
}

/// The partition, if it is one of this shard's.
fn own<'a>(partitions: &'a mut [Partition], cx: &Cx, partition: PartitionId) -> Option<&'a mut Partition> {
    let (shard, shards) = (cx.hub.config.shard, cx.hub.config.shards);
    let index = usize::from(partition);
    (index % shards == shard).then(|| partitions.get_mut(index / shards)).flatten()
}

// ---- links ----

fn link_bytes(cx: &mut Cx, partitions: &mut [Partition], link: LinkKey, bytes: Bytes) {
    let (events, error) = cx.hub.links.receive(link, bytes);
    for event in events {
        match event {
            LinkEvent::Up { peer, fresh } => link_up(cx, partitions, link, peer, fresh),
            LinkEvent::Record(record) => route(cx, partitions, link, record),
            LinkEvent::Lost(_) => cx.hub.stats.lost += 1,
        }
    }
    if let Some(reason) = error {
        cx.hub.stats.link_errors += 1;
        cx.hub.links.lost(link, cx.now);
        cx.actions.push(Action::ResetLink { link, reason });
    }
}

/// A gateway said hello: it is told the cluster and what this node serves.
fn link_up(cx: &mut Cx, partitions: &mut [Partition], link: LinkKey, peer: wire::Hello, fresh: bool) {
    if fresh {
        let Hub { links, stats, .. } = &mut *cx.hub;
        links.began(link, stats);
        link_gone(cx, partitions, link);
    }
    let incarnation = peer.incarnation;
    cx.hub.cluster.links.insert(link, incarnation);
    cx.tell_siblings(|| Sibling::LinkUp { link, incarnation });
    let map = cluster_map(&cx.hub.cluster.view);
    cx.send(link, NODE.record(Kind::ClusterMap, SessionId::NONE, &map));
    let served: Vec<_> =
        cx.hub.cluster.served.iter().map(|(partition, claim)| (*partition, *claim)).collect();
    cx.send(link, announcement(&served));
}

/// A link's state was dropped: nobody sends on it before its gateway asks again.
fn link_gone(cx: &mut Cx, partitions: &mut [Partition], link: LinkKey) {
    forget_link(cx, partitions, link);
    cx.tell_siblings(|| Sibling::LinkGone { link });
}

fn forget_link(cx: &mut Cx, partitions: &mut [Partition], link: LinkKey) {
    cx.hub.cluster.links.remove(&link);
    presence::forget_link(cx, link);
    for partition in partitions {
        partition.forget_link(link);
    }
}

/// Links for which too much waited: their gateways begin anew.
fn drop_overflowed(cx: &mut Cx, partitions: &mut [Partition]) {
    for link in cx.hub.links.take_overflowed() {
        cx.hub.links.remove(link);
        link_gone(cx, partitions, link);
        let reason = "too much waited for credit".into();
        cx.actions.push(Action::ResetLink { link, reason });
    }
}

/// A record of a link that is at home here.
fn route(cx: &mut Cx, partitions: &mut [Partition], link: LinkKey, record: Record) {
    let shard = usize::from(record.partition) % cx.hub.config.shards;
    if record.kind == Kind::Lease || shard == cx.hub.config.shard {
        return handle(cx, partitions, link, record);
    }
    cx.hub.stats.records_in += 1;
    let message = Sibling::FromLink { link, record };
    cx.actions.push(Action::Sibling { shard, message });
}

fn handle(cx: &mut Cx, partitions: &mut [Partition], link: LinkKey, record: Record) {
    cx.hub.stats.records_in += 1;
    let body = record.body.clone();
    let read = match record.kind {
        Kind::Lease => wire::Lease::decode(body).map(|lease| gateway_lease(cx, link, lease)),
        Kind::Unregister => {
            wire::Unregister::decode(body).map(|ask| register::unregister(cx, record.session, ask))
        }
        Kind::NoSession => wire::NoSession::decode(body).map(|answer| register::no_session(cx, answer)),
        Kind::Closed => wire::Closed::decode(body).map(|body| closes::closed(cx, record.session, &body)),
        _ => {
            match own(partitions, cx, record.partition) {
                Some(partition) => partition.handle(cx, link, record),
                None => cx.hub.stats.malformed += 1,
            }
            return;
        }
    };
    if read.is_err() {
        cx.hub.stats.malformed += 1;
    }
}

fn gateway_lease(cx: &mut Cx, link: LinkKey, lease: wire::Lease) {
    if lease.gateway != u32::from(link.gateway) {
        cx.hub.stats.malformed += 1;
        return;
    }
    let wire::Lease { incarnation, replaces, grant, ttl_ms, .. } = lease;
    let work = Work::GatewayLease { gateway: link.gateway, incarnation, replaces, grant, ttl_ms };
    cx.store(work, Pending::GatewayLease { link, lease });
}

// ---- siblings, the store, the cluster ----

fn sibling(cx: &mut Cx, partitions: &mut [Partition], message: Sibling) {
    match message {
        Sibling::FromLink { link, record } => handle(cx, partitions, link, record),
        Sibling::ToLink { link, record } => {
            let Hub { links, stats, .. } = &mut *cx.hub;
            links.send(link, record, cx.now, stats);
        }
        Sibling::LinkGone { link } => forget_link(cx, partitions, link),
        Sibling::Mark { shard, id } => {
            let Hub { fanned, links, .. } = &mut *cx.hub;
            fanned.foreign(shard, id, links);
        }
        Sibling::Marked { id } => cx.hub.fanned.answered(id),
        Sibling::LinkUp { link, incarnation } => {
            cx.hub.cluster.links.insert(link, incarnation);
        }
        Sibling::Serving { partition, claim: Some(claim) } => {
            cx.hub.cluster.served.insert(partition, claim);
            cx.hub.announce.push((partition, claim));
        }
        Sibling::Serving { partition, claim: None } => {
            cx.hub.cluster.served.remove(&partition);
        }
    }
}

fn stored(cx: &mut Cx, partitions: &mut [Partition], done: Done) {
    let Some(pending) = cx.hub.jobs.take(done.ticket) else {
        debug_assert!(false, "an answer to job {} that was not asked for", done.ticket);
        return;
    };
    match pending {
        Pending::Partition { partition, generation, job } => {
            if let Some(partition) = own(partitions, cx, partition) {
                partition.done(cx, generation, job, done.outcome);
            }
        }
        Pending::Register(login) => {
            let (of, fenced) = (login.from(), matches!(done.outcome, Err(StoreError::Fenced { .. })));
            register::registered(cx, *login, done.outcome);
            if let Some(partition) = own(partitions, cx, of.partition).filter(|_| fenced) {
                partition.fence_lost(cx, of.epoch);
            }
        }
        Pending::Routes(number) => delivery::answered(cx, number, done.outcome),
        Pending::GatewayLease { link, lease } => lease_answer(cx, link, lease, done.outcome),
        Pending::Pair(listing) => {
            let fenced = matches!(done.outcome, Err(StoreError::Fenced { .. }));
            let listing = pair::listed(cx, listing, done.outcome);
            if let Some(partition) = own(partitions, cx, listing.from.partition) {
                partition.paired(cx, &listing);
                if fenced {
                    partition.fence_lost(cx, listing.from.epoch);
                }
            }
        }
        Pending::Lists(reading) => lists::answered(cx, *reading, done.outcome),
        Pending::Presence(reading) => presence::answered(cx, *reading, done.outcome),
        Pending::Unregister(user) => presence::went(cx, &user),
        Pending::Unwatched => {}
    }
}

/// A store out of reach voids nothing: the gateway hears nothing and asks again.
fn lease_answer(cx: &mut Cx, link: LinkKey, lease: wire::Lease, outcome: Result<Outcome, StoreError>) {
    let Ok(Outcome::GatewayLease { grant }) = outcome else { return };
    if grant != 0 {
        cx.hub.cluster.gateways.insert(link.gateway, lease.incarnation);
    }
    let reason = match (grant, lease.grant) {
        (0, 0) => "another process holds this gateway id".into(),
        (0, _) => "it had lapsed, or the store was emptied or fell back".into(),
        _ => String::new(),
    };
    let answer = wire::LeaseAnswer {
        gateway: lease.gateway,
        incarnation: lease.incarnation,
        sent_us: lease.sent_us,
        grant,
        reason,
    };
    cx.send(link, NODE.record(Kind::LeaseAnswer, SessionId::NONE, &answer));
}

fn take_view(cx: &mut Cx, partitions: &mut [Partition], view: Arc<View>) {
    cx.hub.clocks.viewed(cx.now, view.clock_ms);
    let cluster = &mut cx.hub.cluster;
    cluster.gateways = view.gateways.iter().map(|gateway| (gateway.gateway, gateway.incarnation)).collect();
    let changed = cluster.view.nodes != view.nodes;
    let other_gateways = cluster.view.gateways != view.gateways;
    cluster.view = view.clone();
    if other_gateways {
        presence::gateways_changed(cx);
    }
    if changed {
        let record = NODE.record(Kind::ClusterMap, SessionId::NONE, &cluster_map(&view));
        for link in cx.hub.links.keys() {
            cx.send(link, record.clone());
        }
    }
    for partition in partitions {
        if view.was_missing {
            partition.stop(cx, "the store lost this node's lease");
        } else if let Some((owner, epoch)) = view.owners.get(usize::from(partition.id())) {
            partition.seen_owned(cx, owner, *epoch);
        }
    }
}

/// Tells gateways that were answered NotOwner for want of room or lease that the partition is served here after all:
/// they know owners by announcements alone.
fn announce_again(cx: &mut Cx) {
    if cx.hub.denied.is_empty() || cx.now.mono_us < cx.hub.denied_due_us {
        return;
    }
    if cx.now.mono_us >= cx.hub.cluster.lease_until_us {
        cx.hub.denied_due_us = cx.now.mono_us + REANNOUNCE_US;
        return;
    }
    let mut by_link: BTreeMap<LinkKey, Vec<(PartitionId, Claim)>> = BTreeMap::new();
    for (link, partition) in std::mem::take(&mut cx.hub.denied) {
        if let Some(claim) = cx.hub.cluster.served.get(&partition) {
            by_link.entry(link).or_default().push((partition, *claim));
        }
    }
    for (link, served) in by_link {
        cx.send(link, announcement(&served));
    }
}

/// Tells all links what this node serves since the last turn.
fn announce(cx: &mut Cx) {
    let claimed = std::mem::take(&mut cx.hub.announce);
    let now_served =
        |(partition, claim): &(PartitionId, Claim)| cx.hub.cluster.served.get(partition) == Some(claim);
    let news: Vec<_> = claimed.into_iter().filter(now_served).collect();
    if news.is_empty() {
        return;
    }
    let record = announcement(&news);
    for link in cx.hub.links.keys() {
        cx.send(link, record.clone());
    }
}

/// Records of the node as a whole.
const NODE: From = From { partition: 0, epoch: 0 };

fn announcement(served: &[(PartitionId, Claim)]) -> Record {
    let owned = served.iter().map(|(partition, Claim { epoch, copy })| wire::Owned {
        partition: u32::from(*partition),
        epoch: *epoch,
        copy: *copy,
    });
    NODE.record(Kind::Announce, SessionId::NONE, &wire::Announce { owned: owned.collect() })
}

fn cluster_map(view: &View) -> wire::ClusterMap {
    let node =
        |node: &crate::store::Node| wire::Node { name: node.name.clone(), address: node.address.clone() };
    wire::ClusterMap { nodes: view.nodes.iter().map(node).collect() }
}
