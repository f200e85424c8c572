//! A store in memory that keeps the promises of [`super`], one job at a time, and can be told to break down: for tests of
//! cores and for simulations.
//!
//! It also checks what owners promise (dense seqs, lists before members, growing message ids) and panics when they break
//! it. Copying it is how a simulation remembers what was durable.

#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use millrace_protocol::ids::{MessageId, Partition};
use millrace_protocol::planted;

use super::losers::Losers;
use super::policy::{self, Verdict};
use super::*;

/// Why the next job of a kind shall fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done.
    Unavailable,
    /// It is done, and answered Unavailable.
    DoneButUnknown,
}

#[derive(Clone, Debug, Default)]
pub struct ModelStore {
    /// Which copy of the store this is.
    pub copy: u64,
    pub fences: BTreeMap<Partition, (String, Fence)>,
    /// When each partition was claimed last, by the clock that was shown, and by which copy.
    pub claims: BTreeMap<Partition, (u64, u64)>,
    pub positions: BTreeMap<Partition, u64>,
    pub last_ids: BTreeMap<Partition, MessageId>,
    pub logs: BTreeMap<String, Log>,
    pub groups: BTreeMap<String, (BTreeSet<String>, u64)>,
    pub states: BTreeMap<String, BTreeMap<String, Bytes>>,
    pub answers: BTreeMap<(String, StreamKey), Vec<Answer>>,
    /// Per conversation, user and device: streams that have answers, oldest first.
    pub streams: BTreeMap<(String, String, String), Vec<u64>>,
    pub cursors: BTreeMap<(String, String, String), Cursor>,
    pub lists: BTreeMap<(String, List), BTreeMap<String, Bytes>>,
    /// Per partition: position of the batch, and its messages that may not have been fanned out.
    pub outstanding: BTreeMap<(Partition, u64), Vec<(String, u64)>>,
    pub events: BTreeMap<(Partition, u64), Event>,
    pub routes: BTreeMap<String, Vec<Route>>,
    pub(crate) losers: Losers,
    pub nodes: Vec<Node>,
    pub gateways: BTreeMap<u16, u64>,
    pub next_login: u64,
    pub nonce: u64,
    /// What its clock shows, if it has one of its own.
    pub clock_ms: Option<u64>,
    pub fail_append: Option<Fault>,
    pub fail_routes: u32,
    pub fail_claims: u32,
}

/// One conversation's entries.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// Seq of the first one; the others follow.
    pub trimmed: u64,
    pub entries: Vec<Entry>,
}

impl Log {
    pub fn head(&self) -> u64 {
        self.trimmed + self.entries.len() as u64
    }
}

impl ModelStore {
    /// An empty one; nonces come after `nonce`.
    pub fn of_copy(copy: u64, nonce: u64) -> Self {
        ModelStore { copy, nonce, ..ModelStore::default() }
    }

    pub fn view(&self, partitions: u16, was_missing: bool) -> View {
        let owner = |partition| {
            self.fences
                .get(&partition)
                .map_or_else(Default::default, |(name, fence)| (name.clone(), fence.epoch))
        };
        View {
            nodes: self.nodes.clone(),
            gateways: self
                .gateways
                .iter()
                .map(|(gateway, incarnation)| Gateway { gateway: *gateway, incarnation: *incarnation })
                .collect(),
            owners: (0..partitions).map(owner).collect(),
            was_missing,
            held_by: 0,
            clock_ms: self.clock_ms,
        }
    }

    fn is_live(&self, name: &str) -> bool {
        self.nodes.iter().any(|node| node.name == name)
    }

    fn fenced(&self, partition: Partition, fence: Fence) -> Result<(), StoreError> {
        let is_own = self.claims.get(&partition).is_some_and(|(_, copy)| *copy == self.copy);
        let is_own = is_own || planted::is(planted::Fault::CopyNotCompared);
        match self.fences.get(&partition) {
            Some((_, current)) if *current == fence && is_own => Ok(()),
            Some(_) if planted::is(planted::Fault::FenceNotCompared) => Ok(()),
            _ => Err(StoreError::Fenced { partition }),
        }
    }

    pub fn carry_out(&mut self, work: Work) -> Result<Outcome, StoreError> {
        match work {
            Work::Claim { partition, node, wall_ms, above, .. } => {
                self.claim(partition, node, wall_ms, above)
            }
            Work::Release { partition, fence } => {
                self.fenced(partition, fence)?;
                self.nonce += 1;
                let void = Fence { epoch: fence.epoch, nonce: self.nonce };
                self.fences.insert(partition, (String::new(), void));
                Ok(Outcome::Released)
            }
            Work::Append(batch) => match self.fail_append.take() {
                Some(Fault::Unavailable) => Err(StoreError::Unavailable("told so".into())),
                Some(Fault::DoneButUnknown) => {
                    self.append(batch)?;
                    Err(StoreError::Unavailable("told so".into()))
                }
                None => self.append(batch),
            },
            Work::Load { partition, fence, conversation, stream } => {
                self.fenced(partition, fence)?;
                let log = self.logs.get(&conversation);
                let newest = log.and_then(|log| log.entries.last());
                let of = |it: fn(&Entry) -> u64| newest.map_or(0, it);
                let members = self.groups.get(&conversation);
                let state = self.states.get(&conversation).cloned().unwrap_or_default();
                Ok(Outcome::Loaded(Loaded {
                    head: of(|newest| newest.seq),
                    head_epoch: of(|newest| newest.epoch),
                    messages: of(|newest| newest.messages),
                    bytes: of(|newest| newest.bytes),
                    first_seq: log.map_or(1, |log| log.trimmed + 1),
                    members: members.map(|(members, version)| (members.iter().cloned().collect(), *version)),
                    state: state.into_iter().collect(),
                    answers: stream
                        .and_then(|stream| self.answers.get(&(conversation, stream)).cloned())
                        .unwrap_or_default(),
                }))
            }
            Work::Answers { partition, fence, conversation, stream } => {
                self.fenced(partition, fence)?;
                Ok(Outcome::Answers(self.answers.get(&(conversation, stream)).cloned().unwrap_or_default()))
            }
            Work::Cursors { partition, fence, conversation, of } => {
                self.fenced(partition, fence)?;
                let all = self.cursors.iter().filter(|((name, ..), _)| *name == conversation);
                let all = all.map(|((_, user, device), cursor)| (user.clone(), device.clone(), *cursor));
                Ok(Outcome::Cursors(match of {
                    CursorsOf::User(user) => all.filter(|(it, ..)| *it == user).collect(),
                    CursorsOf::All { after, limit } => all
                        .filter(|(user, device, _)| (user.as_str(), device.as_str()) > (&after.0, &after.1))
                        .take(limit)
                        .collect(),
                }))
            }
            Work::Read {
                partition,
                fence,
                conversation,
                after,
                through,
                limit_bytes,
                entries_max,
                newest_first,
            } => {
                if let Some(fence) = fence {
                    self.fenced(partition, fence)?;
                }
                let log = self.logs.get(&conversation).cloned().unwrap_or_default();
                let (first_seq, head) = (log.trimmed + 1, log.head());
                let within =
                    log.entries.into_iter().filter(|entry| entry.seq > after && entry.seq <= through);
                let mut within: Vec<Entry> = within.collect();
                if newest_first {
                    within.reverse();
                }
                let (mut entries, mut bytes): (Vec<Entry>, usize) = (Vec::new(), 0);
                for entry in within.into_iter().take(entries_max) {
                    bytes += entry.notify.len();
                    if bytes > limit_bytes && !entries.is_empty() {
                        break;
                    }
                    entries.push(entry);
                }
                Ok(Outcome::Entries { entries, first_seq, head })
            }
            Work::UserItems { items, claim } => {
                if let Some((partition, fence)) = claim {
                    self.fenced(partition, fence)?;
                }
                for UserItem { user, list, item, change } in items {
                    let list = self.lists.entry((user, list)).or_default();
                    match change {
                        Change::Put(value) => drop(list.insert(item, value)),
                        Change::Add(value) => drop(list.entry(item).or_insert(value)),
                        Change::Remove => drop(list.remove(&item)),
                    }
                }
                Ok(Outcome::UserItemsDone)
            }
            Work::UserList { user, list, after, limit } => {
                let list = self.lists.get(&(user, list)).cloned().unwrap_or_default();
                let mut after = list.into_iter().filter(|(item, _)| *item > after);
                let items: Vec<_> = after.by_ref().take(limit).collect();
                Ok(Outcome::UserList { items, more: after.next().is_some() })
            }
            Work::Events { partition, after, limit } => {
                let range = (partition, after + 1)..(partition, u64::MAX);
                let events = self.events.range(range).take(limit).map(|(_, event)| event.clone());
                Ok(Outcome::Events(events.collect()))
            }
            Work::EventHeads => {
                let newest = self.events.keys().copied().collect::<BTreeMap<_, _>>();
                Ok(Outcome::EventHeads(newest.into_iter().collect()))
            }
            Work::Register(registration) => {
                if let Some((partition, fence)) = registration.claim {
                    self.fenced(partition, fence)?;
                }
                Ok(self.register(*registration))
            }
            Work::Unregister { user, device, session, login_number, incarnation } => {
                let routes = self.routes.entry(user).or_default();
                let uncompared = planted::is(planted::Fault::UnregisterUncompared);
                routes.retain(|route| {
                    let same = (&route.device, route.session, route.login_number, route.incarnation)
                        == (&device, session, login_number, incarnation);
                    !(same || uncompared && route.device == device)
                });
                Ok(Outcome::Unregistered)
            }
            Work::ForgetLosers { partition, losers } => {
                self.losers.forget(partition, &losers);
                Ok(Outcome::LosersForgotten)
            }
            Work::Routes { users } => {
                if self.fail_routes > 0 {
                    self.fail_routes -= 1;
                    return Err(StoreError::Unavailable("told so".into()));
                }
                let of = |user| self.routes.get(user).cloned().unwrap_or_default();
                Ok(Outcome::Routes(users.iter().map(of).collect()))
            }
            Work::GatewayLease { gateway, incarnation, .. } => {
                self.gateways.insert(gateway, incarnation);
                Ok(Outcome::GatewayLease { grant: incarnation })
            }
            Work::Heartbeat { .. } | Work::Leave { .. } => panic!("a shard renews no node's lease"),
        }
    }

    fn claim(
        &mut self,
        partition: Partition,
        node: String,
        wall_ms: u64,
        above: u64,
    ) -> Result<Outcome, StoreError> {
        if self.fail_claims > 0 {
            self.fail_claims -= 1;
            return Err(StoreError::Unavailable("told so".into()));
        }
        let stored = match self.fences.get(&partition) {
            Some((holder, _))
                if *holder != node
                    && self.is_live(holder)
                    && !planted::is(planted::Fault::LiveOwnerPreempted) =>
            {
                return Err(StoreError::Held { partition, holder: holder.clone() });
            }
            Some((_, fence)) => fence.epoch,
            None => 0,
        };
        self.nonce += 1;
        let epoch = match () {
            () if planted::is(planted::Fault::EpochNotRaised) && stored > 0 => stored,
            () if planted::is(planted::Fault::EpochWithoutStored) => wall_ms,
            () if planted::is(planted::Fault::EpochWithoutClock) => stored + 1,
            () => {
                let (claimed_ms, copy) = self.claims.get(&partition).copied().unwrap_or((wall_ms, 0));
                let passed = wall_ms.saturating_sub(claimed_ms);
                let (step, passed) = if copy == self.copy { (0, passed / 2) } else { (COPY_STEP_MS, passed) };
                let epoch = (wall_ms + step).max(stored + passed.max(1));
                if epoch > above { epoch } else { above + 1 + self.nonce % 1_000 }
            }
        };
        self.claims.insert(partition, (wall_ms, self.copy));
        let fence = Fence { epoch, nonce: self.nonce };
        self.fences.insert(partition, (node, fence));
        let outstanding = self.outstanding.range((partition, 0)..(partition, u64::MAX));
        Ok(Outcome::Claimed {
            fence,
            position: self.positions.get(&partition).copied().unwrap_or(FIRST_POSITION),
            last_message_id: self.last_ids.get(&partition).copied().unwrap_or_default(),
            outstanding: outstanding.flat_map(|(_, messages)| messages.clone()).collect(),
            losers: self.losers.of(partition),
            copy: self.copy.max(1),
        })
    }

    fn append(&mut self, batch: Batch) -> Result<Outcome, StoreError> {
        let partition = batch.partition;
        self.fenced(partition, batch.fence)?;
        let position = self.positions.entry(partition).or_insert(FIRST_POSITION);
        if *position != batch.position && !planted::is(planted::Fault::PositionNotCompared) {
            return Err(StoreError::Position { partition, expected: *position, given: batch.position });
        }
        assert!(!batch.writes.is_empty(), "an empty batch");
        *position += batch.writes.len() as u64;
        self.outstanding.retain(|(of, at), _| *of != partition || *at >= batch.fanned_out);
        if !batch.outstanding.is_empty() {
            self.outstanding.insert((partition, batch.position), batch.outstanding);
        }
        let mut last = None;
        for (id, write) in (batch.position..).zip(batch.writes) {
            if let Write::Message(entry) = &write {
                last = Some((entry.conversation.clone(), StreamKey::of(entry)));
            }
            self.write(partition, id, write);
        }
        if planted::is(planted::Fault::AnswersNotAtomic)
            && let Some(answers) = last.and_then(|key| self.answers.get_mut(&key))
        {
            answers.pop();
        }
        Ok(Outcome::Appended)
    }

    fn write(&mut self, partition: Partition, id: u64, write: Write) {
        match write {
            Write::Message(entry) => {
                let log = self.logs.entry(entry.conversation.clone()).or_default();
                assert_eq!(entry.seq, log.head() + 1, "{}: seq is dense", entry.conversation);
                let last = self.last_ids.entry(partition).or_default();
                assert!(entry.message_id > *last, "{:?} after {last:?}", entry.message_id);
                assert_eq!(entry.message_id.partition(), partition);
                *last = entry.message_id;
                if entry.stream != 0 {
                    let stream = StreamKey::of(&entry);
                    if entry.client_seq == 1 {
                        self.begin_stream(&entry.conversation, &stream);
                    }
                    let answers = self.answers.entry((entry.conversation.clone(), stream)).or_default();
                    answers.push(Answer::of(&entry));
                    let answers_max =
                        if planted::is(planted::Fault::AnswersForgottenSoon) { 2 } else { ANSWERS_MAX };
                    let excess = answers.len().saturating_sub(answers_max);
                    answers.drain(..excess);
                }
                let event = Event { id, kind: "message".into(), body: entry.notify.clone() };
                self.events.insert((partition, id), event);
                self.logs.entry(entry.conversation.clone()).or_default().entries.push(entry);
            }
            Write::Replace(entry) => {
                let Some(log) = self.logs.get_mut(&entry.conversation) else { return };
                if let Some(old) = log.entries.iter_mut().find(|old| old.seq == entry.seq) {
                    *old = entry;
                }
            }
            Write::GroupCreate { conversation, members, version } => {
                let members: BTreeSet<String> = members.into_iter().collect();
                self.check_lists(&conversation, &members);
                let former = self.groups.insert(conversation, (members, version));
                assert!(former.is_none(), "the owner has checked that there is no such group");
            }
            Write::Members { conversation, add, remove, version } => {
                let add = add.into_iter().collect();
                self.check_lists(&conversation, &add);
                let (members, stored) = self.groups.get_mut(&conversation).expect("a group");
                assert_eq!(version, *stored + 1);
                *stored = version;
                members.extend(add);
                members.retain(|member| !remove.contains(member));
            }
            Write::State { conversation, key, value } => {
                let state = self.states.entry(conversation).or_default();
                match value {
                    Some(value) => drop(state.insert(key, value)),
                    None => drop(state.remove(&key)),
                }
            }
            Write::Cursor { conversation, user, device, cursor } => {
                let stored = self.cursors.entry((conversation, user, device)).or_default();
                let last = planted::is(planted::Fault::CursorsMergedByLast);
                *stored = if last { cursor } else { (*stored).max(cursor) };
            }
            Write::Trim { conversation, first_seq } => {
                if let Some(log) = self.logs.get_mut(&conversation) {
                    let drop = first_seq.min(log.head()).saturating_sub(log.trimmed + 1);
                    log.entries.drain(..drop as usize);
                    log.trimmed += drop;
                }
            }
            Write::Event { kind, body } => {
                self.events.insert((partition, id), Event { id, kind: kind.into(), body });
            }
        }
    }

    /// The oldest streams of a device lose their place.
    fn begin_stream(&mut self, conversation: &str, key: &StreamKey) {
        let of_device = (conversation.to_owned(), key.user.clone(), key.device.clone());
        let streams = self.streams.entry(of_device).or_default();
        streams.retain(|known| *known != key.stream);
        streams.push(key.stream);
        let excess = streams.len().saturating_sub(STREAMS_PER_DEVICE_MAX);
        for stream in streams.drain(..excess) {
            self.answers.remove(&(conversation.to_owned(), StreamKey { stream, ..key.clone() }));
        }
    }

    /// Lists first, members second.
    fn check_lists(&self, conversation: &str, members: &BTreeSet<String>) {
        for member in members {
            let list = self.lists.get(&(member.clone(), List::Groups));
            let listed = list.is_some_and(|list| list.contains_key(conversation));
            assert!(listed, "{member} was added to {conversation} before it was listed");
        }
    }

    fn register(&mut self, new: Registration) -> Outcome {
        self.next_login = (self.next_login + 1).max(new.login_number);
        let login_number = if new.login_number == 0 { self.next_login } else { new.login_number };
        let groups = self.lists.get(&(new.user.clone(), List::Groups));
        let groups = groups.into_iter().flat_map(|list| list.keys().cloned()).collect();
        let routes = self.routes.entry(new.user.clone()).or_default();
        let Verdict { lost, mut losers } = policy::register(routes, &new, login_number);
        if let Some((partition, _)) = new.claim.filter(|_| !lost) {
            losers = self.losers.note(partition, &new, losers);
        }
        Outcome::Registered { login_number, lost, losers, groups }
    }
}
