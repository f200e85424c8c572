//! One partition: whether it is served here, under which fence, and what becomes of its records.
//!
//! | phase | a record | ends by |
//! |---|---|---|
//! | unowned | NotOwner | a claim |
//! | claiming | waits, within bounds | the fence: serving; another live owner: unowned |
//! | serving | is handled | a failed append or load: claiming; a release: releasing |
//! | releasing | NotOwner | the last batch is durable and the fence given up: unowned |
//!
//! The rule that keeps it right: everything that is served was loaded under the present fence; when a write fails,
//! all of it is forgotten, everyone who waits is told to come again, and the store is asked anew.

use std::cmp::Reverse;

use millrace_protocol::ids::{MessageId, Partition as PartitionId};
use millrace_protocol::planted::{self, Fault};

use super::action::Action;
use super::batch::{Effect, Owner};
use super::conversation::{Backlog, Conversation, Slot, Table};
use super::event::{Claim, LinkKey, Sibling};
use super::fanned::Reached;
use super::hub::{Cx, From, PartitionJob, Pending};
use super::limits::{CURSORS_US, SUPERSEDED_US};
use super::{closes, fates, pair, presence, receipts};
use crate::store::{Outcome, StoreError, Work};

/// One partition of this shard.
#[derive(Debug)]
pub struct Partition {
    pub(super) id: PartitionId,
    /// Of the last claim that held; 0: none did.
    epoch: u64,
    /// Grows whenever the phase begins anew: answers to older jobs are void.
    pub(super) generation: u64,
    pub(super) phase: Phase,
    /// Records that wait for a claim.
    pub(super) waiting: Backlog,
    /// Claims or releases that failed in a row.
    tries: u32,
    /// The highest epoch that gateways know: claims are above it.
    known: u64,
}

#[derive(Debug)]
pub(super) enum Phase {
    Unowned,
    Claiming {
        /// When to ask again; `None`: the job is at the store.
        retry_at_us: Option<u64>,
        /// It shall be given up at once.
        release: bool,
    },
    Serving(Box<Serving>),
    Releasing {
        serving: Box<Serving>,
        /// As for claiming; only after the last batch.
        asked: bool,
        retry_at_us: Option<u64>,
    },
}

/// What a partition that is served has in memory.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) owner: Owner,
    pub(super) table: Table,
    /// Conversations whose messages a former owner may not have fanned out are being read: records wait.
    pub(super) recovering: usize,
    /// Where this owner began.
    pub(super) claimed_at: u64,
    /// When it is claimed again, as a gateway knows a higher epoch.
    superseded_at_us: Option<u64>,
}

impl Partition {
    /// A partition that is not served.
    pub fn new(id: PartitionId) -> Self {
        Partition {
            id,
            epoch: 0,
            generation: 0,
            phase: Phase::Unowned,
            waiting: Backlog::default(),
            tries: 0,
            known: 0,
        }
    }

    /// Which one.
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// The store names an owner, or none after a release: if that came later than this one, the fence here is void
    /// though no write has met it yet.
    pub fn seen_owned(&mut self, cx: &mut Cx, owner: &str, epoch: u64) {
        let superseded = epoch > self.epoch && owner != cx.hub.config.node;
        if self.is_serving() && superseded {
            self.stop(cx, "another node owns the partition");
        }
    }

    /// Whether requests are served.
    pub fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving(_))
    }

    /// Conversations in memory.
    pub fn conversations(&self) -> usize {
        match &self.phase {
            Phase::Serving(serving) => serving.table.count(),
            _ => 0,
        }
    }

    pub(super) fn from(&self) -> From {
        From { partition: self.id, epoch: self.epoch }
    }

    // ---- ownership ----

    /// Ownership wants it served here.
    pub fn claim(&mut self, cx: &mut Cx) {
        match &mut self.phase {
            Phase::Unowned => {
                self.tries = 0;
                self.ask_claim(cx, false);
            }
            Phase::Claiming { release, .. } => *release = false,
            Phase::Serving(_) | Phase::Releasing { .. } => {}
        }
    }

    fn ask_claim(&mut self, cx: &mut Cx, release: bool) {
        self.generation += 1;
        self.phase = Phase::Claiming { retry_at_us: None, release };
        let work = Work::Claim {
            partition: self.id,
            node: cx.hub.config.node.clone(),
            incarnation: cx.hub.config.incarnation,
            wall_ms: cx.now.wall_ms,
            above: self.known,
        };
        self.store(cx, work, PartitionJob::Claim);
    }

    pub(super) fn store(&self, cx: &mut Cx, work: Work, job: PartitionJob) {
        cx.store(work, Pending::Partition { partition: self.id, generation: self.generation, job });
    }

    /// Ownership wants it handed over.
    pub fn release(&mut self, cx: &mut Cx) {
        match std::mem::replace(&mut self.phase, Phase::Unowned) {
            Phase::Unowned => self.not_served(cx, "it was not served".into()),
            // A claim at the store can't be taken back; between two tries there is none.
            Phase::Claiming { retry_at_us: None, .. } => {
                self.phase = Phase::Claiming { retry_at_us: None, release: true };
            }
            Phase::Claiming { .. } => self.not_served(cx, "released before it was claimed".into()),
            Phase::Serving(mut serving) => {
                let mut waiting = Vec::new();
                let mut askers = Vec::new();
                serving.table.stop_waiting(&mut waiting, &mut askers);
                for asker in askers {
                    cx.busy(serving.owner.from, asker, "the partition is moving");
                }
                self.phase = Phase::Releasing { serving, asked: false, retry_at_us: None };
                self.unserved(cx);
                for (link, record) in waiting {
                    self.not_owner(cx, link, record);
                }
                self.release_if_quiet(cx);
            }
            releasing => self.phase = releasing,
        }
    }

    pub(super) fn release_if_quiet(&mut self, cx: &mut Cx) {
        let Phase::Releasing { serving, asked, .. } = &mut self.phase else { return };
        // What moved goes with the last batches.
        let Serving { owner, table, .. } = &mut **serving;
        for (name, conversation) in table.all_ready() {
            conversation.moved.write(owner, name);
        }
        if !serving.owner.is_quiet() {
            cx.hub.ready.push(self.id);
        }
        let early = planted::is(Fault::ReleasedTooEarly);
        if !serving.owner.is_quiet() && !early || *asked {
            return;
        }
        *asked = true;
        let fence = serving.owner.fence;
        self.store(cx, Work::Release { partition: self.id, fence }, PartitionJob::Release);
    }

    /// This node's announcements leave it out from now on.
    fn unserved(&self, cx: &mut Cx) {
        let partition = self.id;
        cx.hub.cluster.served.remove(&partition);
        presence::forget_partition(cx, self.from());
        cx.tell_siblings(|| Sibling::Serving { partition, claim: None });
    }

    fn not_served(&mut self, cx: &mut Cx, reason: String) {
        self.phase = Phase::Unowned;
        self.generation += 1;
        cx.actions.push(Action::NotServed { partition: self.id, reason });
        for (link, record) in self.waiting.take() {
            self.not_owner(cx, link, record);
        }
    }

    pub(super) fn claimed(&mut self, cx: &mut Cx, outcome: Result<Outcome, StoreError>) {
        let Phase::Claiming { release, .. } = self.phase else { return };
        match outcome {
            Ok(Outcome::Claimed {
                fence,
                position,
                mut last_message_id,
                mut outstanding,
                mut losers,
                copy,
            }) => {
                if planted::is(Fault::IdsFromTheClock) {
                    last_message_id = MessageId::default();
                }
                if planted::is(Fault::OutstandingIgnored) {
                    outstanding.clear();
                }
                if planted::is(Fault::LosersIgnored) {
                    losers.clear();
                }
                self.tries = 0;
                cx.hub.stats.claims += 1;
                self.epoch = fence.epoch;
                let owner = Owner::new(self.from(), fence, self.generation, last_message_id, position);
                let serving = Serving {
                    owner,
                    table: Table::default(),
                    recovering: 0,
                    claimed_at: position,
                    superseded_at_us: None,
                };
                self.phase = Phase::Serving(Box::new(serving));
                let (partition, epoch) = (self.id, fence.epoch);
                if release {
                    return self.release(cx);
                }
                // Of an earlier claim, whose timer may have gone off when nothing was served: the first of this one sets its own.
                cx.hub.touched.remove(&partition);
                let claim = Claim { epoch, copy };
                cx.hub.cluster.served.insert(partition, claim);
                if !planted::is(Fault::ClaimNotAnnounced) {
                    cx.hub.announce.push((partition, claim));
                }
                cx.tell_siblings(|| Sibling::Serving { partition, claim: Some(claim) });
                cx.actions.push(Action::Claimed { partition, epoch });
                for (user, loser) in losers {
                    closes::close(cx, self.from(), &user, loser);
                }
                self.recover(cx, &outstanding);
                self.go_on(cx);
            }
            Err(error @ StoreError::Held { .. }) => {
                cx.hub.stats.claims_failed += 1;
                self.not_served(cx, error.to_string());
            }
            other => {
                cx.hub.stats.claims_failed += 1;
                if release {
                    return self.not_served(cx, format!("the claim failed: {other:?}"));
                }
                self.claim_later(cx);
            }
        }
    }

    /// A gateway knows a higher epoch than this one. In one copy of the store that can't be, as claims are fenced: one of the
    /// two is of a copy that was given up. Should it be the other one, nobody would hear of this owner.
    pub(super) fn superseded(&mut self, cx: &mut Cx, epoch: u64) {
        let Phase::Serving(serving) = &mut self.phase else { return };
        if epoch <= self.epoch {
            return;
        }
        self.known = self.known.max(epoch);
        if serving.superseded_at_us.is_none() {
            let at_us = cx.now.mono_us + SUPERSEDED_US;
            serving.superseded_at_us = Some(at_us);
            cx.hub.timers.push(Reverse((at_us, self.id)));
        }
    }

    /// Fan-out has come so far.
    pub fn fanned_out(&mut self, reached: Reached) {
        if let Phase::Serving(serving) | Phase::Releasing { serving, .. } = &mut self.phase
            && reached.generation == self.generation
        {
            serving.owner.fanned_out(reached.position);
        }
    }

    /// The window of some conversations is over: receipts are told, fates decided, cursors written.
    fn tell(&mut self, cx: &mut Cx) {
        let Phase::Serving(serving) = &mut self.phase else { return };
        let Some(names) = cx.hub.touched.remove(&self.id) else { return };
        let Serving { owner, table, .. } = &mut **serving;
        for name in names {
            let Some(conversation) = table.ready(&name) else { continue };
            receipts::tell(cx, owner, conversation, &name);
            let mut again = fates::expire(cx, owner, conversation, &name);
            if !conversation.moved.is_empty() {
                if conversation.moved_since_us == 0 {
                    conversation.moved_since_us = cx.now.mono_us;
                }
                if cx.now.mono_us >= conversation.moved_since_us + CURSORS_US {
                    conversation.moved_since_us = 0;
                    conversation.moved.write(owner, &name);
                    cx.hub.ready.push(self.id);
                }
                again |= !conversation.moved.is_empty();
            }
            if again {
                cx.touched(owner, &name);
            }
        }
    }

    fn claim_later(&mut self, cx: &mut Cx) {
        let at_us = cx.now.mono_us + cx.backoff_us(self.tries);
        self.tries += 1;
        self.phase = Phase::Claiming { retry_at_us: Some(at_us), release: false };
        cx.hub.timers.push(Reverse((at_us, self.id)));
        for (link, record) in self.waiting.take() {
            self.give_back(cx, link, record);
        }
    }

    pub(super) fn released(&mut self, cx: &mut Cx, outcome: Result<Outcome, StoreError>) {
        let Phase::Releasing { retry_at_us, .. } = &mut self.phase else { return };
        match outcome {
            Ok(_) => self.not_served(cx, "handed over".into()),
            Err(StoreError::Fenced { .. }) => {
                self.not_served(cx, "the fence was lost while handing over".into())
            }
            // The fence is still this node's, and nobody else may take it while the node lives.
            Err(_) => {
                let at_us = cx.now.mono_us + cx.backoff_us(self.tries);
                self.tries += 1;
                *retry_at_us = Some(at_us);
                cx.hub.timers.push(Reverse((at_us, self.id)));
            }
        }
    }

    /// A timer of this partition went off.
    pub fn timer(&mut self, cx: &mut Cx) {
        if !self.is_serving() {
            // What was to be told is told no more, and the next conversation that has something starts the clock again.
            cx.hub.touched.remove(&self.id);
        }
        match &mut self.phase {
            Phase::Serving(serving) if serving.superseded_at_us.is_some_and(|at| at <= cx.now.mono_us) => {
                cx.hub.stats.superseded += 1;
                self.stop(cx, "gateways know a higher epoch");
            }
            Phase::Serving(_) => self.tell(cx),
            Phase::Claiming { retry_at_us: Some(at_us), release } if *at_us <= cx.now.mono_us => {
                let release = *release;
                self.ask_claim(cx, release);
            }
            Phase::Releasing { asked, retry_at_us, .. }
                if retry_at_us.is_some_and(|at| at <= cx.now.mono_us) =>
            {
                *asked = false;
                *retry_at_us = None;
                self.release_if_quiet(cx);
            }
            _ => {}
        }
    }

    /// A registration found that the claim of this epoch is lost.
    pub fn fence_lost(&mut self, cx: &mut Cx, epoch: u64) {
        if self.epoch == epoch && matches!(self.phase, Phase::Serving(_)) {
            self.stop(cx, &StoreError::Fenced { partition: self.id }.to_string());
        }
    }

    /// Forgets everything and claims again: a write or a load failed, or the store lost this node's lease. What is being
    /// handed over is not claimed again, and given up when the batch that is at the store was answered, however that ends.
    pub fn stop(&mut self, cx: &mut Cx, reason: &str) {
        let from = self.from();
        let phase = std::mem::replace(&mut self.phase, Phase::Unowned);
        let (mut serving, releasing) = match phase {
            Phase::Serving(serving) => (serving, false),
            Phase::Releasing { serving, .. } => (serving, true),
            other => {
                self.phase = other;
                return;
            }
        };
        cx.hub.stats.stopped += 1;
        let mut waiting = Vec::new();
        for effect in serving.owner.stop() {
            if let Effect::Sent { sent, .. } = effect {
                cx.busy(from, sent.asker, reason);
            }
        }
        for (_, slot) in serving.table.drain() {
            match slot {
                Slot::Loading(mut backlog) => waiting.append(&mut backlog.take()),
                Slot::Ready(mut conversation) => {
                    for (_, asker) in conversation.repeats {
                        cx.busy(from, asker, reason);
                    }
                    for asker in conversation.rounds.stop().chain(conversation.pair.stop()) {
                        cx.busy(from, asker, reason);
                    }
                    waiting.append(&mut conversation.holds.drain());
                    for asker in conversation.positions.stop() {
                        cx.busy(from, asker, reason);
                    }
                }
            }
        }
        for (link, record) in waiting {
            self.give_back(cx, link, record);
        }
        self.generation += 1;
        if releasing {
            self.phase = Phase::Releasing { serving, asked: false, retry_at_us: None };
            return self.release_if_quiet(cx);
        }
        self.unserved(cx);
        self.claim_later(cx);
    }

    /// Hands the next batch to the store, if none is there.
    pub fn start_batch(&mut self, cx: &mut Cx) {
        let (Phase::Serving(serving) | Phase::Releasing { serving, .. }) = &mut self.phase else { return };
        if let Some(batch) = serving.owner.start() {
            cx.hub.stats.batches += 1;
            self.store(cx, Work::Append(batch), PartitionJob::Append);
        }
    }

    /// What is written for it goes through this one; `None`: it is not served here.
    pub fn owner(&mut self) -> Option<&mut Owner> {
        match &mut self.phase {
            Phase::Serving(serving) => Some(&mut serving.owner),
            _ => None,
        }
    }

    /// One of its conversations, if it is in memory.
    pub(super) fn conversation(&mut self, name: &str) -> Option<(&mut Owner, &mut Conversation)> {
        let (Phase::Serving(serving) | Phase::Releasing { serving, .. }) = &mut self.phase else {
            return None;
        };
        let Serving { owner, table, .. } = &mut **serving;
        Some((owner, table.ready(name)?))
    }

    /// Users' lists follow a change between the two of a direct conversation: the next change may begin.
    pub fn paired(&mut self, cx: &mut Cx, listing: &pair::Listing) {
        let Phase::Serving(serving) = &mut self.phase else { return };
        let Serving { owner, table, .. } = &mut **serving;
        if listing.generation == owner.generation
            && let Some(conversation) = table.ready(&listing.conversation)
        {
            pair::go_on(cx, owner, conversation, &listing.conversation);
        }
    }

    /// A link's state is gone.
    pub fn forget_link(&mut self, link: LinkKey) {
        if let Phase::Serving(serving) | Phase::Releasing { serving, .. } = &mut self.phase {
            serving.table.forget_link(link);
        }
    }
}
