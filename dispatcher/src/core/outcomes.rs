//! What becomes of the store's answers about a partition.
//!
//! Answers to jobs of an earlier phase are void: who waits for one is told to come again.

use millrace_protocol::planted::{self, Fault};

use super::batch::{Effect, Owner};
use super::conversation::Conversation;
use super::fanned::Reached;
use super::hub::{Asker, Cx, PartitionJob};
use super::partition::{Partition, Phase, Serving};
use super::{cursors, groups, notes, pair, receipts, retention, send, standing, subscribe, sync};
use crate::store::{Outcome, StoreError, StreamKey};

impl Partition {
    /// A job of this partition was done.
    pub fn done(
        &mut self,
        cx: &mut Cx,
        generation: u64,
        job: PartitionJob,
        outcome: Result<Outcome, StoreError>,
    ) {
        if let PartitionJob::Read(fetching) = job {
            let is_current = generation == self.generation;
            let given_back = subscribe::entries(cx, generation, is_current, *fetching, outcome);
            if let Some((link, record)) = given_back {
                // Served under a new epoch, or elsewhere: as if it came only now.
                match is_current {
                    true => self.give_back(cx, link, record),
                    false => self.handle(cx, link, record),
                }
            }
            return;
        }
        if generation != self.generation {
            let asker = match job {
                PartitionJob::Page(_, paging) => Some((paging.asker, true)),
                PartitionJob::Peek(_, peeking) => Some((peeking.asker, true)),
                PartitionJob::Mark(_, marking) => Some((marking.asker(), false)),
                PartitionJob::Append => return self.batch_is_back(cx, generation),
                _ => None,
            };
            if let Some((asker, counted)) = asker {
                cx.hub.fetches -= usize::from(counted);
                cx.busy(self.from(), asker, "the partition was claimed again");
            }
            return;
        }
        match job {
            PartitionJob::Claim => self.claimed(cx, outcome),
            PartitionJob::Release => self.released(cx, outcome),
            PartitionJob::Append => self.appended(cx, outcome),
            PartitionJob::Load(name, stream) => self.loaded(cx, name, stream, outcome),
            PartitionJob::Held(name, stream, need) => self.read_for(cx, &name, &stream, need, outcome),
            PartitionJob::Listing(name) => self.listed(cx, &name, outcome),
            PartitionJob::Outstanding(name) => self.recovered(cx, &name, outcome),
            PartitionJob::Oldest(name) => {
                if let Some((owner, conversation)) = self.conversation(&name) {
                    retention::looked(cx, owner, conversation, &name, outcome.ok());
                }
            }
            PartitionJob::Tally(name, so_far) => {
                if let Some((owner, conversation)) = self.conversation(&name) {
                    let page = outcome.ok().and_then(|outcome| match outcome {
                        Outcome::Cursors(cursors) => Some(cursors),
                        _ => None,
                    });
                    receipts::loaded(cx, owner, conversation, &name, so_far, page);
                }
            }
            PartitionJob::Page(name, paging) => match outcome {
                Err(error) => self.not_read(cx, &name, paging.asker, true, &error),
                Ok(outcome) => {
                    if let Some((owner, conversation)) = self.asked_for(&name) {
                        sync::answered(cx, owner, conversation, &name, *paging, outcome);
                    }
                }
            },
            PartitionJob::Peek(name, peeking) => match outcome {
                Err(error) => self.not_read(cx, &name, peeking.asker, true, &error),
                Ok(outcome) => {
                    if let Some((owner, conversation)) = self.asked_for(&name) {
                        standing::answered(cx, owner, conversation, &name, *peeking, outcome);
                    }
                }
            },
            PartitionJob::Mark(name, marking) => match outcome {
                Err(error) => self.not_read(cx, &name, marking.asker(), false, &error),
                Ok(outcome) => {
                    if let Some((owner, conversation)) = self.asked_for(&name) {
                        cursors::marked(cx, owner, conversation, &name, *marking, outcome);
                    }
                }
            },
            PartitionJob::Read(_) => {}
        }
    }

    /// The conversation that a job was about, which is done.
    fn asked_for(&mut self, name: &str) -> Option<(&mut Owner, &mut Conversation)> {
        let (owner, conversation) = self.conversation(name)?;
        conversation.jobs -= 1;
        Some((owner, conversation))
    }

    /// A page or a standing can't be read.
    fn not_read(&mut self, cx: &mut Cx, name: &str, asker: Asker, counted: bool, error: &StoreError) {
        self.asked_for(name);
        cx.hub.fetches -= usize::from(counted);
        cx.busy(self.from(), asker, "the store is not available");
        if matches!(error, StoreError::Fenced { .. }) {
            self.stop(cx, &error.to_string());
        }
    }

    fn appended(&mut self, cx: &mut Cx, outcome: Result<Outcome, StoreError>) {
        let (Phase::Serving(serving) | Phase::Releasing { serving, .. }) = &mut self.phase else { return };
        match outcome {
            Ok(_) => {}
            Err(StoreError::Unavailable(_)) if planted::is(Fault::UnknownTakenForDone) => {}
            Err(StoreError::Unavailable(_)) if planted::is(Fault::UnknownTakenForFailed) => {
                for effect in serving.owner.failed() {
                    if let Effect::Sent { sent, .. } = effect {
                        cx.busy(serving.owner.from, sent.asker, "the batch failed");
                    }
                }
                return cx.hub.ready.push(self.id);
            }
            Err(error) => {
                serving.owner.not_appended();
                return self.stop(cx, &error.to_string());
            }
        }
        let Serving { owner, table, .. } = &mut **serving;
        for effect in owner.appended() {
            match effect {
                Effect::None => {}
                Effect::Sent { conversation: name, sent, notify } => {
                    let conversation = table.ready(&name).expect("not evicted with writes under way");
                    send::sent(cx, owner, conversation, name, sent, notify);
                }
                Effect::Noted { conversation: name, seq, notify } => {
                    let conversation = table.ready(&name).expect("not evicted with entries under way");
                    notes::noted(cx, owner, conversation, name, seq, notify);
                }
                Effect::Pair { conversation: name } => {
                    let conversation = table.ready(&name).expect("not evicted with a change under way");
                    pair::appended(cx, conversation);
                }
                Effect::Round { conversation: name } => {
                    let conversation = table.ready(&name).expect("not evicted with a round under way");
                    groups::appended(cx, owner, conversation, &name);
                }
            }
        }
        if serving.owner.is_to_be_followed() {
            let (partition, generation, position) = (self.id, self.generation, serving.owner.position());
            cx.hub.fanned.note(Reached { partition, generation, position });
        }
        cx.hub.ready.push(self.id);
        self.release_if_quiet(cx);
    }

    /// A batch of which everything was forgotten is answered: to be handed over, the partition waited for that.
    fn batch_is_back(&mut self, cx: &mut Cx, generation: u64) {
        if let Phase::Releasing { serving, .. } = &mut self.phase
            && serving.owner.generation == generation
        {
            serving.owner.not_appended();
            self.release_if_quiet(cx);
        }
    }

    fn loaded(
        &mut self,
        cx: &mut Cx,
        name: String,
        stream: Option<StreamKey>,
        outcome: Result<Outcome, StoreError>,
    ) {
        let Phase::Serving(serving) = &mut self.phase else { return };
        let mut answers = Vec::new();
        let loaded = match outcome {
            Ok(Outcome::Loaded(mut loaded)) => {
                answers = std::mem::take(&mut loaded.answers);
                if planted::is(Fault::AnswersNotStored) {
                    answers.clear();
                }
                Some(loaded)
            }
            Err(error @ StoreError::Fenced { .. }) => return self.stop(cx, &error.to_string()),
            _ => None,
        };
        let failed = loaded.is_none();
        let waited = serving.table.loaded(name.clone(), loaded);
        if let Some((conversation, stream)) = serving.table.ready(&name).zip(stream) {
            conversation.streams.loaded(stream, answers, conversation.durable);
        }
        if let Some(conversation) = serving.table.ready(&name) {
            groups::resume(cx, &serving.owner, conversation, &name);
        }
        for (link, record) in waited {
            match failed {
                true => self.give_back(cx, link, record),
                false => self.handle(cx, link, record),
            }
        }
        // After what waited was handled, so that a conversation is not gone again before it was of use.
        if let Phase::Serving(serving) = &mut self.phase {
            let count = cx.hub.config.limits.conversations_per_partition_max / 2;
            cx.hub.stats.evicted += serving.table.evict(count);
        }
    }

    fn listed(&mut self, cx: &mut Cx, name: &str, outcome: Result<Outcome, StoreError>) {
        let Phase::Serving(serving) = &mut self.phase else { return };
        if let Err(error @ StoreError::Fenced { .. }) = &outcome {
            return self.stop(cx, &error.to_string());
        }
        let Serving { owner, table, .. } = &mut **serving;
        if let Some(conversation) = table.ready(name) {
            groups::listed(cx, owner, conversation, name, outcome);
        }
    }
}
