//! The store of a world: the store's own reference model, with a way there and back, leases that run out, and faults.
//!
//! The model decides what a job does. Here is decided when it is done, whether its asker hears of it, and what a failover
//! loses. Jobs that write one partition keep their order per asking thread, as the store promises; everything else may
//! overtake. An answer that takes too long is "unavailable", though the job is still done, however late and whatever
//! became of who asked. Not everybody hears of a failover at once: for a while some nodes go on with the former copy, which
//! does and answers what they ask, in vain. What was on its way to a copy that a process has left is lost, or it waited for
//! the next connection and reaches the copy that the process has then, as the client for Redis may do it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use millrace_dispatcher::store::model::ModelStore;
use millrace_dispatcher::store::{Done, Fence, Gateway, Job, Node, Outcome, StoreError, View, Work};
use millrace_protocol::ids::Partition;
use millrace_protocol::planted::{self, Fault};

use crate::agenda::{Agenda, Due, Seat, Who};
use crate::clock::{Clock, MS};
use crate::ledger::Ledger;
use crate::random::Random;
use crate::witness::{self, Witness};

/// After this an answer is not waited for, us.
const TIMEOUT_US: u64 = 1_500 * MS;

/// The clocks of the store's machines are that far from the true time at most, ms.
const CLOCKS_APART_MS: u64 = 5;

/// Time between two copies that a failover may fall back to, us.
const COPY_US: u64 = 100 * MS;

/// Copies kept.
const COPIES: usize = 24;

/// Of a thousand jobs for a copy that their process has left by then, so many reach the next one.
const WAITED_PER_MILLE: u64 = 300;

/// So long, us, some nodes go on with the former copy at most: until Sentinels have told them, and it.
const FORMER_US: u64 = 2_000 * MS;

/// A time in which jobs fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// It is over then.
    pub until_us: u64,
    /// Of a thousand jobs, so many are not done.
    pub refused: u64,
    /// And so many are done without an answer.
    pub unknown: u64,
    /// Only jobs of this process; `None`: of all.
    pub of: Option<Who>,
    /// Jobs take this much longer, at most.
    pub slow_us: u64,
}

#[derive(Clone, Debug)]
struct NodeLease {
    node: Node,
    until_us: u64,
}

#[derive(Clone, Debug)]
struct GatewayLease {
    incarnation: u64,
    /// Which copy granted it, and under which name.
    copy: u64,
    grant: u64,
    until_us: u64,
}

/// A copy that was given up, for those who do not know.
#[derive(Debug)]
struct Former {
    model: ModelStore,
    nodes: BTreeMap<String, NodeLease>,
    gateways: BTreeMap<u16, GatewayLease>,
    until_us: u64,
    /// Nodes of even or of odd numbers.
    odd: bool,
}

impl Former {
    fn serves(&self, now_us: u64, who: Who) -> bool {
        now_us < self.until_us && matches!(who, Who::Node(index) if (index % 2 == 1) == self.odd)
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct Store {
    /// What is kept.
    pub model: ModelStore,
    partitions: u16,
    nodes: BTreeMap<String, NodeLease>,
    /// The incarnations that ever held a lease here, and the copy that granted it: one that comes again misses it.
    held: BTreeMap<String, (u64, u64)>,
    gateways: BTreeMap<u16, GatewayLease>,
    /// Of the machine that has this copy: a failover puts another copy in its place, on another machine.
    pub clock: Clock,
    former: Option<Former>,
    last: BTreeMap<(Seat, Partition), u64>,
    last_of_user: BTreeMap<(Seat, String), u64>,
    troubles: Vec<Trouble>,
    /// It does nothing before then.
    stalled_until_us: u64,
    /// What waits for that, in the order in which it came: that of each connection.
    waiting: VecDeque<(Seat, u64, Box<Job>)>,
    /// Keep copies to fall back to.
    pub keep_copies: bool,
    copies: VecDeque<(u64, ModelStore)>,
    witness: Witness,
    /// Until when leases were ever granted, of each holder: a node by name, a gateway by its id.
    granted: BTreeMap<(String, u64), u64>,
    /// Leases granted to gateways so far.
    grants: u64,
    /// Until when a partition's batches are under way, for their owner, and under which claim.
    batches: BTreeMap<(Seat, Partition), (Fence, u64)>,
    random: Random,
    /// For what waited for another connection.
    waited: Random,
}

impl Store {
    /// An empty store.
    pub fn new(partitions: u16, random: Random, waited: Random) -> Self {
        Store {
            model: ModelStore::of_copy(1, 0),
            partitions,
            nodes: BTreeMap::new(),
            held: BTreeMap::new(),
            gateways: BTreeMap::new(),
            clock: Clock::new(0, 0),
            former: None,
            last: BTreeMap::new(),
            last_of_user: BTreeMap::new(),
            troubles: Vec::new(),
            stalled_until_us: 0,
            waiting: VecDeque::new(),
            keep_copies: false,
            copies: VecDeque::new(),
            witness: Witness::default(),
            granted: BTreeMap::new(),
            grants: 0,
            batches: BTreeMap::new(),
            random,
            waited,
        }
    }

    /// A job leaves its thread.
    pub fn submit(&mut self, agenda: &mut Agenda, ledger: &mut Ledger, now_us: u64, seat: Seat, job: Job) {
        match &job.work {
            Work::Append(batch) => {
                self.batches.insert((seat, batch.partition), (batch.fence, u64::MAX));
            }
            Work::Release { partition, fence } => {
                // What it began under an earlier claim was carried out before this claim, or is not any more.
                let batch = self.batches.get(&(seat, *partition)).filter(|(of, _)| of == fence);
                let until_us = batch.map_or(0, |(_, until_us)| *until_us);
                witness::gives_up(ledger, now_us, seat, *partition, until_us);
            }
            _ => {}
        }
        let appends = appends(&job.work);
        let mut delay_us = match self.random.below(20) {
            0 => self.random.between(500, 20 * MS),
            _ => self.random.between(60, 900),
        };
        let mut refused = false;
        for trouble in &self.troubles {
            if trouble.until_us > now_us && trouble.of.is_none_or(|of| of == seat.who) {
                refused |= self.random.chance(trouble.refused);
                delay_us += self.random.below(trouble.slow_us);
            }
        }
        if refused {
            let done = failed(job.ticket, "refused");
            self.answers(seat, appends, now_us + delay_us);
            return agenda.at(now_us + delay_us, Due::Done(seat, Box::new(done)));
        }
        let mut at_us = now_us + delay_us;
        if let Some(user) = user_of(&job.work) {
            let last = self.last_of_user.entry((seat, user.to_owned())).or_default();
            at_us = at_us.max(*last);
            *last = at_us;
        }
        if let Some((partition, writes)) = partition_of(&job.work) {
            let last = self.last.entry((seat, partition)).or_default();
            at_us = at_us.max(*last);
            if writes {
                *last = at_us;
            }
        }
        if at_us.max(self.stalled_until_us) > now_us + TIMEOUT_US {
            let done = failed(job.ticket, "no answer in time");
            self.answers(seat, appends, now_us + TIMEOUT_US);
            agenda.at(now_us + TIMEOUT_US, Due::Done(seat, Box::new(done)));
            // Done all the same, with nobody to tell.
            let job = Job { ticket: 0, work: job.work };
            return agenda.at(at_us, Due::Job(seat, self.copy_of(now_us, seat.who), Box::new(job)));
        }
        agenda.at(at_us, Due::Job(seat, self.copy_of(now_us, seat.who), Box::new(job)));
    }

    /// The copy that a process is connected to.
    fn copy_of(&self, now_us: u64, who: Who) -> u64 {
        let former = self.former.as_ref().filter(|former| former.serves(now_us, who));
        former.map_or(self.model.copy, |former| former.model.copy)
    }

    /// Puts the former copy in the place of the present one, and the other way round.
    fn exchange(&mut self) {
        let Some(former) = &mut self.former else { return };
        std::mem::swap(&mut former.model, &mut self.model);
        std::mem::swap(&mut former.nodes, &mut self.nodes);
        std::mem::swap(&mut former.gateways, &mut self.gateways);
    }

    /// A batch of this partition is answered then.
    fn answers(&mut self, seat: Seat, partition: Option<Partition>, at_us: u64) {
        if let Some((_, until_us)) = partition.and_then(|partition| self.batches.get_mut(&(seat, partition)))
        {
            *until_us = at_us;
        }
    }

    /// A job is done, and its answer sent. One that was on its way to a copy that its process has left is lost, mostly.
    pub fn carry_out(
        &mut self,
        agenda: &mut Agenda,
        ledger: &mut Ledger,
        now_us: u64,
        seat: Seat,
        (mut copy, job): (u64, Job),
    ) {
        let connected_to = self.copy_of(now_us, seat.who);
        if copy != connected_to && self.waited.chance(WAITED_PER_MILLE) {
            copy = connected_to;
        }
        if copy != connected_to {
            if job.ticket != 0 {
                let done = failed(job.ticket, "the connection was lost");
                self.answers(seat, appends(&job.work), now_us + MS);
                agenda.at(now_us + MS, Due::Done(seat, Box::new(done)));
            }
            return;
        }
        if now_us < self.stalled_until_us || !self.waiting.is_empty() {
            if self.waiting.is_empty() {
                agenda.at(self.stalled_until_us, Due::GoesOn);
            }
            return self.waiting.push_back((seat, copy, Box::new(job)));
        }
        let in_vain = copy != self.model.copy;
        if in_vain {
            self.exchange();
        } else {
            self.copy(now_us);
        }
        self.expire(now_us);
        let appends = appends(&job.work);
        let again = match &job.work {
            Work::Append(batch) if planted::is(Fault::PositionNotCompared) => Some(batch.clone()),
            _ => None,
        };
        let mut outcome = self.perform(ledger, now_us, seat, job.work, in_vain);
        if in_vain {
            self.exchange();
        }
        if job.ticket == 0 {
            return;
        }
        let mut unknown = false;
        for trouble in &self.troubles {
            if trouble.until_us > now_us && trouble.of.is_none_or(|of| of == seat.who) {
                unknown |= self.random.chance(trouble.unknown);
            }
        }
        if unknown
            && !in_vain
            && let Some(batch) = again
        {
            // What a client that tries again by itself would do.
            outcome = self.perform(ledger, now_us, seat, Work::Append(batch), in_vain);
            unknown = false;
        }
        let done = match unknown {
            true => failed(job.ticket, "the answer was lost"),
            false => Done { ticket: job.ticket, outcome },
        };
        let back_us = match self.random.below(20) {
            0 => self.random.between(300, 8 * MS),
            _ => self.random.between(40, 500),
        };
        self.answers(seat, appends, now_us + back_us);
        agenda.at(now_us + back_us, Due::Done(seat, Box::new(done)));
    }

    /// Does what has waited, unless it stands still for longer.
    pub fn goes_on(&mut self, agenda: &mut Agenda, ledger: &mut Ledger, now_us: u64) {
        if now_us < self.stalled_until_us {
            return agenda.at(self.stalled_until_us, Due::GoesOn);
        }
        for (seat, copy, job) in std::mem::take(&mut self.waiting) {
            self.carry_out(agenda, ledger, now_us, seat, (copy, *job));
        }
    }

    fn perform(
        &mut self,
        ledger: &mut Ledger,
        now_us: u64,
        seat: Seat,
        work: Work,
        in_vain: bool,
    ) -> Result<Outcome, StoreError> {
        match work {
            Work::Heartbeat { node, replaces, ttl_ms } => {
                Ok(self.heartbeat(now_us, seat.who, node, replaces, ttl_ms))
            }
            Work::Leave { node, incarnation } => {
                if self.nodes.get(&node).is_some_and(|lease| lease.node.incarnation == incarnation) {
                    self.nodes.remove(&node);
                    self.show_leases();
                }
                Ok(Outcome::Left)
            }
            Work::GatewayLease { gateway, incarnation, replaces, grant, ttl_ms } => {
                let life = Gateway { gateway, incarnation };
                Ok(Outcome::GatewayLease { grant: self.lease(now_us, life, replaces, grant, ttl_ms) })
            }
            Work::Append(batch) => {
                let copy = batch.clone();
                let outcome = self.model.carry_out(Work::Append(batch));
                if outcome.is_ok() && in_vain {
                    ledger.appended_in_vain(&copy);
                } else if outcome.is_ok() {
                    ledger.appended(now_us, seat, &copy);
                    self.witness.appended(ledger, &self.model, now_us, &copy);
                }
                outcome
            }
            // Without a majority of the Sentinels behind it nothing is claimed.
            Work::Claim { .. } if in_vain => Err(StoreError::Unavailable("no majority".into())),
            Work::Claim { partition, node, incarnation, above, .. } => {
                let holder = self.model.fences.get(&partition).map(|(holder, _)| holder.clone());
                let holder = holder.filter(|holder| *holder != node && self.nodes.contains_key(holder));
                let wall_ms = self.clock.now(now_us).wall_ms;
                let work = Work::Claim { partition, node: node.clone(), incarnation, wall_ms, above };
                let outcome = self.model.carry_out(work);
                if let Ok(Outcome::Claimed { fence, .. }) = &outcome {
                    ledger.claimed(now_us, seat, partition, fence.epoch);
                    if let Some(holder) = holder {
                        witness::preempted(ledger, now_us, partition, &holder, &node);
                    }
                }
                outcome
            }
            Work::Register(registration) => {
                let session = registration.session;
                let outcome = self.model.carry_out(Work::Register(registration));
                if matches!(&outcome, Ok(Outcome::Registered { lost: false, .. })) {
                    ledger.routed.insert(session.0);
                }
                outcome
            }
            work => self.model.carry_out(work),
        }
    }

    fn heartbeat(&mut self, now_us: u64, who: Who, node: Node, replaces: u64, ttl_ms: u32) -> Outcome {
        let holder = self.nodes.get(&node.name).map_or(0, |lease| lease.node.incarnation);
        if ![0, node.incarnation, replaces].contains(&holder) {
            let view = self.view(now_us, false);
            return Outcome::View(Arc::new(View { held_by: holder, ..view }));
        }
        let there = holder == node.incarnation;
        let held = self.held.insert(node.name.clone(), (node.incarnation, self.model.copy));
        let (until_us, incarnation) = (now_us + u64::from(ttl_ms) * MS, node.incarnation);
        self.granted.insert((node.name.clone(), incarnation), until_us);
        self.nodes.insert(node.name.clone(), NodeLease { node, until_us });
        self.show_leases();
        let was_missing =
            held.is_some_and(|(held, copy)| held == incarnation && (!there || copy != self.model.copy));
        if was_missing {
            // It forgets its batches when it hears of that, and what it was giving up is given up as it is.
            self.batches.retain(|(seat, _), _| seat.who != who);
        }
        Outcome::View(Arc::new(self.view(now_us, was_missing)))
    }

    fn view(&self, now_us: u64, was_missing: bool) -> View {
        let clock_ms = Some(self.clock.now(now_us).wall_ms);
        View { clock_ms, ..self.model.view(self.partitions, was_missing) }
    }

    /// Grants or renews a gateway's lease and names it; 0: refused.
    fn lease(
        &mut self,
        now_us: u64,
        Gateway { gateway, incarnation }: Gateway,
        replaces: u64,
        grant: u64,
        ttl_ms: u32,
    ) -> u64 {
        let (copy, until_us) = (self.model.copy, now_us + u64::from(ttl_ms) * MS);
        let lease = self.gateways.get(&gateway);
        let stands = lease.filter(|lease| (lease.incarnation, lease.copy) == (incarnation, copy));
        let stands = stands.map_or(0, |lease| lease.grant);
        let taken = lease.is_some_and(|lease| ![incarnation, replaces].contains(&lease.incarnation));
        if taken || (grant != 0 && grant != stands) {
            return 0;
        }
        if stands == 0 {
            self.grants += 1;
        }
        let grant = if stands == 0 { self.grants } else { stands };
        self.gateways.insert(gateway, GatewayLease { incarnation, copy, grant, until_us });
        self.granted.insert((gateway.to_string(), incarnation), until_us);
        self.show_leases();
        grant
    }

    fn expire(&mut self, now_us: u64) {
        let (nodes, gateways) = (self.nodes.len(), self.gateways.len());
        self.nodes.retain(|_, lease| lease.until_us > now_us);
        self.gateways.retain(|_, lease| lease.until_us > now_us);
        if (nodes, gateways) != (self.nodes.len(), self.gateways.len()) {
            self.show_leases();
        }
        self.troubles.retain(|trouble| trouble.until_us > now_us);
    }

    /// The model judges by the leases that are live.
    fn show_leases(&mut self) {
        self.model.nodes = self.nodes.values().map(|lease| lease.node.clone()).collect();
        self.model.gateways = self.gateways.iter().map(|(id, lease)| (*id, lease.incarnation)).collect();
    }

    fn copy(&mut self, now_us: u64) {
        if !self.keep_copies || self.copies.back().is_some_and(|(at_us, _)| at_us + COPY_US > now_us) {
            return;
        }
        if self.copies.len() == COPIES {
            self.copies.pop_front();
        }
        self.copies.push_back((now_us, self.model.clone()));
    }

    // ---- faults ----

    /// Nothing is done for a while.
    pub fn stall(&mut self, until_us: u64) {
        self.stalled_until_us = self.stalled_until_us.max(until_us);
    }

    /// Jobs fail for a while.
    pub fn trouble(&mut self, trouble: Trouble) {
        self.troubles.push(trouble);
    }

    /// A failover: what was written since then is lost, routes with it. Leases go on, and who renews one is told.
    pub fn fall_back(&mut self, ledger: &mut Ledger, now_us: u64, by_us: u64) {
        let since_us = now_us.saturating_sub(by_us);
        let Some(at) = self.copies.iter().rposition(|(at_us, _)| *at_us <= since_us) else { return };
        let (copy, nonce) = (self.model.copy, self.model.nonce);
        self.former = Some(Former {
            model: std::mem::replace(&mut self.model, self.copies[at].1.clone()),
            nodes: self.nodes.clone(),
            gateways: self.gateways.clone(),
            until_us: now_us + self.random.below(FORMER_US),
            odd: self.random.chance(500),
        });
        self.copies.truncate(at + 1);
        self.takes_over(copy, nonce);
        ledger.fell_back(&self.model);
        self.witness.fell_back(ledger, &self.model);
    }

    /// The copy that was given up last takes its place again, with all that was written to it, also in vain; what was written
    /// since is lost. Sentinels that lost sight of each other do that.
    pub fn come_back(&mut self, ledger: &mut Ledger, now_us: u64) {
        let (copy, nonce) = (self.model.copy, self.model.nonce);
        let Some(former) = &mut self.former else { return };
        former.until_us = now_us + self.random.below(FORMER_US);
        former.odd = self.random.chance(500);
        self.exchange();
        self.copies.clear();
        self.takes_over(copy, nonce);
        ledger.fell_back(&self.model);
        self.witness.fell_back(ledger, &self.model);
    }

    /// The copy that is present now was none before: this was the last one's number, and its nonce.
    fn takes_over(&mut self, copy: u64, nonce: u64) {
        self.model.copy = copy + 1;
        // Nonces are drawn at random: none comes twice.
        self.model.nonce = nonce.max(self.model.nonce) + 1_000;
        let away_ms = self.random.below(2 * CLOCKS_APART_MS) as i64 - CLOCKS_APART_MS as i64;
        self.clock = Clock::new(0, away_ms);
        self.show_leases();
    }

    /// Everything is gone.
    pub fn empty(&mut self, ledger: &mut Ledger) {
        let nonce = self.model.nonce + 1_000;
        self.model = ModelStore::of_copy(self.model.copy, nonce);
        self.copies.clear();
        self.nodes.clear();
        self.gateways.clear();
        ledger.fell_back(&self.model);
        self.witness.fell_back(ledger, &self.model);
    }

    /// Whether a node's process has a lease.
    pub fn node_lease_is_live(&self, now_us: u64, node: &str, incarnation: u64) -> bool {
        let lease = self.nodes.get(node).filter(|lease| lease.node.incarnation == incarnation);
        // Where leases may be lost, nobody can know of it at once.
        self.keep_copies || lease.is_some_and(|lease| lease.until_us > now_us)
    }

    /// Whether a gateway has a lease.
    pub fn gateway_lease_is_live(&self, now_us: u64, gateway: u16) -> bool {
        self.keep_copies || self.gateways.get(&gateway).is_some_and(|lease| lease.until_us > now_us)
    }

    /// Until when this holder was ever granted its lease: a node by its name, a gateway by its id.
    pub fn granted_until_us(&self, holder: &str, incarnation: u64) -> u64 {
        self.granted.get(&(holder.to_owned(), incarnation)).copied().unwrap_or(0)
    }

    /// Gateways whose lease is live.
    pub fn live_gateways(&self) -> Vec<Gateway> {
        let gateway = |(gateway, lease): (&u16, &GatewayLease)| Gateway {
            gateway: *gateway,
            incarnation: lease.incarnation,
        };
        self.gateways.iter().map(gateway).collect()
    }
}

fn failed(ticket: u64, why: &str) -> Done {
    Done { ticket, outcome: Err(StoreError::Unavailable(why.into())) }
}

/// The user whose route a job changes: they are carried out in order, as they touch one key over one connection.
fn user_of(work: &Work) -> Option<&str> {
    match work {
        Work::Register(registration) => Some(&registration.user),
        Work::Unregister { user, .. } => Some(user),
        _ => None,
    }
}

/// The partition that a job appends to.
fn appends(work: &Work) -> Option<Partition> {
    match work {
        Work::Append(batch) => Some(batch.partition),
        _ => None,
    }
}

/// The partition of a job that has an order, and whether later ones wait for it.
fn partition_of(work: &Work) -> Option<(Partition, bool)> {
    match work {
        Work::Claim { partition, .. } | Work::Release { partition, .. } => Some((*partition, true)),
        Work::Append(batch) => Some((batch.partition, true)),
        Work::Load { partition, .. }
        | Work::Answers { partition, .. }
        | Work::Cursors { partition, .. }
        | Work::Read { partition, .. } => Some((*partition, false)),
        _ => None,
    }
}
