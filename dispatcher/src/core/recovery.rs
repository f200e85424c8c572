//! What a former owner appended and may not have got to tell: the new one does it, before it serves anything.
//!
//! Batches name it as outstanding until it was acknowledged on the links ([`super::fanned`]): messages of direct
//! conversations, to which nobody subscribes; and entries about new members of a group, whose sessions are to be attached
//! to it and would not know before their next login. (Everything else that groups are told, gateways ask for when they
//! subscribe anew.) Of a group only the attaching is done again, from its entry. The rule that keeps it right: doing it
//! again does no harm. Sessions that are attached stay so, and who is no member any more is refused.

use std::collections::BTreeMap;

use millrace_protocol::ids::SessionId;

use super::conversation::Conversation;
use super::delivery::{Ask, What};
use super::fanned::Reached;
use super::hub::{Cx, PartitionJob};
use super::notes::{self, Newcomers};
use super::partition::{Partition, Phase};
use super::send;
use crate::store::{Entry, Outcome, StoreError, Work};

impl Partition {
    /// Reads again what a former owner may not have told.
    pub(super) fn recover(&mut self, cx: &mut Cx, outstanding: &[(String, u64)]) {
        let mut ranges: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for (conversation, seq) in outstanding {
            let (first, last) = ranges.entry(conversation).or_insert((*seq, *seq));
            (*first, *last) = ((*first).min(*seq), (*last).max(*seq));
        }
        let Phase::Serving(serving) = &mut self.phase else { return };
        serving.recovering = ranges.len();
        let fence = Some(serving.owner.fence);
        for (conversation, (first, last)) in ranges {
            let work = Work::Read {
                partition: self.id(),
                fence,
                conversation: conversation.to_owned(),
                after: first - 1,
                through: last,
                limit_bytes: usize::MAX,
                entries_max: usize::MAX,
                newest_first: false,
            };
            self.store(cx, work, PartitionJob::Outstanding(conversation.to_owned()));
        }
    }

    /// Entries of one conversation were read, or a group with all of its members.
    pub(super) fn recovered(&mut self, cx: &mut Cx, name: &str, outcome: Result<Outcome, StoreError>) {
        let whole = match outcome {
            Ok(Outcome::Entries { entries, .. }) => {
                cx.hub.stats.recovered += entries.len() as u64;
                self.tell_again(cx, name, entries)
            }
            Ok(Outcome::Loaded(loaded)) => {
                let (members, _) = loaded.members.unwrap_or_default();
                self.attach(cx, name, members);
                true
            }
            Ok(_) => true,
            Err(error) => return self.stop(cx, &error.to_string()),
        };
        let Phase::Serving(serving) = &mut self.phase else { return };
        if whole {
            serving.recovering -= 1;
            return self.go_on(cx);
        }
        let fence = serving.owner.fence;
        let (partition, conversation) = (self.id(), name.to_owned());
        let work = Work::Load { partition, fence, conversation, stream: None };
        self.store(cx, work, PartitionJob::Outstanding(name.to_owned()));
    }

    /// Returns false when more users became members than their entry names.
    fn tell_again(&self, cx: &mut Cx, name: &str, entries: Vec<Entry>) -> bool {
        let Phase::Serving(serving) = &self.phase else { return true };
        let mut users = Vec::new();
        for Entry { seq, notify, .. } in entries {
            if name.starts_with("d:") {
                let (conversation, name) = (Conversation::default(), name.to_owned());
                send::fan_out(cx, &serving.owner, &conversation, name, seq, SessionId::NONE, notify);
                continue;
            }
            match notes::newcomers(notify) {
                Newcomers::Named(named) => users.extend(named),
                Newcomers::TooMany => return false,
            }
        }
        self.attach(cx, name, users);
        true
    }

    fn attach(&self, cx: &mut Cx, name: &str, users: Vec<String>) {
        if !users.is_empty() {
            let what = What::Attach(name.to_owned());
            cx.hub.delivery.ask(Ask { users, except: Vec::new(), from: self.from(), what });
        }
    }

    /// Handles what waited, once nothing is left to be recovered.
    pub(super) fn go_on(&mut self, cx: &mut Cx) {
        let Phase::Serving(serving) = &mut self.phase else { return };
        if serving.recovering > 0 {
            return;
        }
        let position = serving.claimed_at;
        let (partition, generation) = (self.id(), self.generation);
        cx.hub.fanned.note(Reached { partition, generation, position });
        for (link, record) in self.waiting.take() {
            self.handle(cx, link, record);
        }
    }
}
