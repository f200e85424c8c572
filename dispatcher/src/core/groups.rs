//! Groups: carrying out what may be changed, in the order of the messages, and telling everyone concerned.
//!
//! Changes of one group go in rounds, one at a time: users' lists get the group first (durable), then members, what is
//! known of the group and an entry about it are appended in one batch, then everyone is told, then lists of those who
//! left lose it. What arrives meanwhile waits for the next round. Joins and leaves share rounds; any other change has one
//! for itself. A dissolved group's members and their lists are cleaned in slices; its stored members are what is left
//! to do, so that a new owner goes on with it. What may be changed is judged in [`super::admin`]. The rule that keeps it
//! right: a list may name a group that its user is not in, which is refused when it is used; never the other way round.

use std::collections::VecDeque;

use bytes::Bytes;
use millrace_protocol::ids::{Partition, SessionId};
use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::{Code, GroupAsked, Joined, Left, Notify, notify, response};
use millrace_protocol::messages::link::{Remove, Reply};
use millrace_protocol::prost::Message;
use rustc_hash::FxHashSet;

use super::admin::{self, Plan, Standing, Verdict};
use super::batch::{Effect, Owner};
use super::conversation::Conversation;
use super::delivery::{Ask, What};
use super::events;
use super::group_info::{INFO_KEY, Info, asking_key};
use super::hub::PartitionJob;
use super::hub::{Asker, Cx, Pending};
use super::limits::{CHANGES_WAITING_MAX, CLEAN_MEMBERS, ROUND_CHANGES_MAX};
use super::members::Members;
use super::notes;
use crate::store::{Change as ItemChange, Fence, List, Outcome, StoreError, UserItem, Work, Write};

/// A request to change a group.
#[derive(Debug)]
pub struct Change {
    /// Who waits for the answer.
    pub asker: Asker,
    /// Who asked.
    pub user: String,
    /// What for.
    pub kind: admin::Kind,
}

/// The changes of one group.
#[derive(Debug, Default)]
pub struct Rounds {
    queue: VecDeque<Change>,
    /// Boxed, as most conversations never have one.
    round: Option<Box<Round>>,
}

#[derive(Debug)]
struct Round {
    stage: Stage,
    changes: Vec<Change>,
    plan: Plan,
    /// Those who come and go, while changes enter: one change of each user.
    named: FxHashSet<String>,
    /// Members who asked to join once more: their lists are to name the group, whatever became of the first time.
    members: Vec<(String, Asker)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The group goes into lists of users.
    Listing,
    /// The change is in a batch.
    Appending,
    /// The group is taken out of lists.
    Unlisting,
    /// The group is dissolved; it is taken out of a slice of its members' lists.
    Cleaning,
    /// These members are being removed from what is stored.
    Cleaned,
}

impl Rounds {
    /// Nothing waits or is under way.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.round.is_none()
    }

    /// Whether this user's leaving is already in a batch, so that nothing of theirs may follow it.
    pub fn is_leaving(&self, user: &str) -> bool {
        self.appending()
            .is_some_and(|plan| plan.dissolve || plan.remove.iter().any(|leaving| leaving == user))
    }

    /// What is known of the group behind what is in batches; `None`: it does not change.
    pub fn info(&self) -> Option<&Info> {
        self.appending()?.info.as_ref()
    }

    fn appending(&self) -> Option<&Plan> {
        let round = self.round.as_ref().filter(|round| round.stage == Stage::Appending)?;
        Some(&round.plan)
    }

    /// Everyone who waits, oldest first: the partition stops.
    pub fn stop(self) -> impl Iterator<Item = Asker> {
        let under_way = self.round.into_iter().flat_map(|round| round.askers());
        under_way.chain(self.queue.into_iter().map(|change| change.asker))
    }

    /// Everyone whose change is in no batch yet: the partition takes nothing new.
    pub fn stop_waiting(&mut self) -> Vec<Asker> {
        let listing = self.round.take_if(|round| round.stage == Stage::Listing);
        let under_way = listing.into_iter().flat_map(|round| round.askers());
        under_way.chain(self.queue.drain(..).map(|change| change.asker)).collect()
    }
}

impl Round {
    /// Everyone who waits for it.
    fn askers(self) -> impl Iterator<Item = Asker> {
        let members = self.members.into_iter().map(|(_, asker)| asker);
        self.changes.into_iter().map(|change| change.asker).chain(members)
    }
}

/// A request to change a group.
pub fn change(cx: &mut Cx, owner: &mut Owner, conversation: &mut Conversation, name: &str, change: Change) {
    if let Some((code, reason)) = change.kind.fault() {
        return cx.refuse(owner.from, change.asker, code, reason);
    }
    if conversation.group.info().dissolved {
        // It need not wait for the cleaning, which goes on if it got stuck.
        refuse_dissolved(cx, owner, conversation, change);
        return resume(cx, owner, conversation, name);
    }
    if conversation.rounds.queue.len() >= CHANGES_WAITING_MAX {
        return cx.busy(owner.from, change.asker, "too many changes of this group wait");
    }
    conversation.rounds.queue.push_back(change);
    if conversation.rounds.round.is_none() {
        start(cx, owner, conversation, name);
    }
}

fn refuse_dissolved(cx: &mut Cx, owner: &Owner, conversation: &Conversation, change: Change) {
    if let Verdict::Refused(code, reason) = judge(cx, conversation, 0, &change) {
        cx.refuse(owner.from, change.asker, code, reason);
    }
}

fn judge(cx: &Cx, conversation: &Conversation, coming: usize, change: &Change) -> Verdict {
    let standing = Standing {
        members: conversation.members.as_ref(),
        group: &conversation.group,
        coming,
        members_max: cx.hub.config.limits.group_members_max,
        wall_ms: cx.now.wall_ms,
    };
    admin::judge(standing, &change.user, &change.kind)
}

/// Begins the next round with what waits.
fn start(cx: &mut Cx, owner: &mut Owner, conversation: &mut Conversation, name: &str) {
    let plan = Plan { ordinary: true, ..Plan::default() };
    let named = FxHashSet::default();
    let (stage, changes, members) = (Stage::Listing, Vec::new(), Vec::new());
    let mut round = Box::new(Round { stage, changes, plan, named, members });
    while round.changes.len() + round.members.len() < ROUND_CHANGES_MAX
        && round.plan.ordinary
        && let Some(change) = conversation.rounds.queue.pop_front()
    {
        if let Some(change) = enter(cx, owner, conversation, &mut round, change) {
            conversation.rounds.queue.push_front(change);
            break;
        }
    }
    round.named = FxHashSet::default();
    let coming = round.plan.add.iter().chain(round.members.iter().map(|(user, _)| user));
    let coming: Vec<&str> = coming.map(String::as_str).collect();
    match (coming.is_empty(), round.changes.is_empty()) {
        (true, true) => return,
        (true, false) => return append(cx, owner, conversation, name, round),
        (false, _) => {}
    }
    // What comes is written under the claim afterwards; that a member is one is said of the claim, with nothing behind it.
    let claim = (!round.members.is_empty()).then_some((owner.from.partition, owner.fence));
    store(cx, owner, name, listing(coming, name, ItemChange::Add(Bytes::new()), claim));
    conversation.rounds.round = Some(round);
}

/// Takes a change into a round, or answers it at once, or gives it back for the next round.
fn enter(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    round: &mut Round,
    change: Change,
) -> Option<Change> {
    let follows = !round.changes.is_empty();
    if follows && (!change.kind.is_coming_or_going() || round.named.contains(&change.user)) {
        return Some(change);
    }
    match judge(cx, conversation, round.plan.add.len(), &change) {
        Verdict::Refused(code, reason) => cx.refuse(owner.from, change.asker, code, reason),
        Verdict::Done => cx.done(owner.from, change.asker),
        Verdict::In => round.members.push((change.user, change.asker)),
        Verdict::Asks => refuse_pending(cx, owner, change.asker),
        Verdict::Plan(plan) if follows && !plan.ordinary => return Some(change),
        Verdict::Plan(plan) if follows => {
            round.named.insert(change.user.clone());
            round.plan.add.extend(plan.add);
            round.plan.remove.extend(plan.remove);
            round.changes.push(change);
        }
        Verdict::Plan(plan) => {
            round.named.insert(change.user.clone());
            round.plan = *plan;
            round.changes.push(change);
        }
    }
    None
}

/// A change of the lists of these users.
fn listing<'a>(
    users: impl IntoIterator<Item = &'a str>,
    name: &str,
    change: ItemChange,
    claim: Option<(Partition, Fence)>,
) -> Work {
    let item = |user: &str| UserItem {
        user: user.to_owned(),
        list: List::Groups,
        item: name.to_owned(),
        change: change.clone(),
    };
    Work::UserItems { items: users.into_iter().map(item).collect(), claim }
}

/// Takes a group out of the lists of these users, who are members no more: in this copy of the store and under this claim,
/// as they may be members still, or again, under any other.
fn unlist(cx: &mut Cx, owner: &Owner, users: &[String], name: &str) {
    let (users, claim) = (users.iter().map(String::as_str), (owner.from.partition, owner.fence));
    store(cx, owner, name, listing(users, name, ItemChange::Remove, Some(claim)));
}

fn store(cx: &mut Cx, owner: &Owner, name: &str, work: Work) {
    let (partition, generation) = (owner.from.partition, owner.generation);
    let job = PartitionJob::Listing(name.to_owned());
    cx.store(work, Pending::Partition { partition, generation, job });
}

/// Users' lists were changed, or not.
pub fn listed(
    cx: &mut Cx,
    owner: &mut Owner,
    conversation: &mut Conversation,
    name: &str,
    outcome: Result<Outcome, StoreError>,
) {
    let Some(mut round) = conversation.rounds.round.take() else { return };
    match (round.stage, outcome) {
        (Stage::Listing, Ok(_)) => {
            for (user, asker) in round.members.drain(..) {
                // Asked again perhaps because nobody heard of the first time: the user's other sessions neither.
                let (users, except) = (vec![user], vec![asker.session]);
                let what = What::Attach(name.to_owned());
                cx.hub.delivery.ask(Ask { users, except, from: owner.from, what });
                joined(cx, owner, conversation, name, asker);
            }
            if !round.changes.is_empty() {
                return append(cx, owner, conversation, name, round);
            }
        }
        (Stage::Listing, Err(_)) => {
            for asker in round.askers() {
                cx.busy(owner.from, asker, "the store is not available");
            }
        }
        (Stage::Cleaning, Ok(_)) => {
            let version = conversation.group.leftover.as_ref().map_or(0, |members| members.version) + 1;
            let (add, remove) = (Vec::new(), round.plan.remove.clone());
            let write = Write::Members { conversation: name.to_owned(), add, remove, version };
            owner.push(write, Effect::Round { conversation: name.to_owned() });
            cx.hub.ready.push(owner.from.partition);
            round.stage = Stage::Cleaned;
            conversation.rounds.round = Some(round);
            return;
        }
        (_, Ok(_)) => {}
        // Of a dissolved group: whoever asks for it next, or loads it, has the cleaning go on.
        (_, Err(_)) => cx.hub.stats.unlistings_failed += 1,
    }
    start(cx, owner, conversation, name);
}

/// Puts a round into the next batch.
fn append(
    cx: &mut Cx,
    owner: &mut Owner,
    conversation: &mut Conversation,
    name: &str,
    mut round: Box<Round>,
) {
    let plan = &mut round.plan;
    if plan.ordinary {
        plan.notes = notes::of_round(conversation, &plan.add, &plan.remove);
    }
    let version = conversation.members.as_ref().map_or(0, |members| members.version) + 1;
    let mut writes = Vec::new();
    if plan.create {
        writes.push(Write::GroupCreate { conversation: name.to_owned(), members: plan.add.clone(), version });
    } else if !plan.add.is_empty() || !plan.remove.is_empty() {
        let (add, remove) = (plan.add.clone(), plan.remove.clone());
        writes.push(Write::Members { conversation: name.to_owned(), add, remove, version });
    }
    let state = |key, value| Write::State { conversation: name.to_owned(), key, value };
    let info = plan.info.as_ref().map(|info| state(INFO_KEY.to_owned(), Some(info.encode())));
    let asking = plan.asking.iter();
    let asking = asking.map(|(user, asks)| state(asking_key(user), asks.then(Bytes::new)));
    writes.extend(info.into_iter().chain(asking));
    writes.extend(events::members(cx, name, plan));
    // Its members hear of the end before they are members no more; of anything else, whoever is one afterwards.
    if plan.dissolve {
        notes::append(cx, owner, conversation, name, std::mem::take(&mut plan.notes));
    }
    let mut effect = Effect::Round { conversation: name.to_owned() };
    for write in writes {
        owner.push(write, std::mem::replace(&mut effect, Effect::None));
    }
    if !plan.dissolve {
        notes::append(cx, owner, conversation, name, std::mem::take(&mut plan.notes));
    }
    cx.hub.ready.push(owner.from.partition);
    round.stage = Stage::Appending;
    conversation.rounds.round = Some(round);
}

/// The round is durable: the group changes, and everyone concerned hears of it.
pub fn appended(cx: &mut Cx, owner: &mut Owner, conversation: &mut Conversation, name: &str) {
    let Some(mut round) = conversation.rounds.round.take() else { return };
    if round.stage == Stage::Cleaned {
        return cleaned(cx, owner, conversation, name, &round.plan.remove);
    }
    let plan = &mut round.plan;
    let members_version = take_effect(conversation, plan);
    let mut answered = Vec::new();
    for change in std::mem::take(&mut round.changes) {
        answered.push(change.asker.session);
        match change.kind {
            admin::Kind::Join if plan.asks => {
                refuse_pending(cx, owner, change.asker);
                tell_admins(cx, owner, conversation, name, change.user);
            }
            admin::Kind::Create(_) | admin::Kind::Join => joined(cx, owner, conversation, name, change.asker),
            admin::Kind::Leave => left(cx, owner, name, change),
            _ => cx.done(owner.from, change.asker),
        }
    }
    if plan.dissolve {
        while let Some(change) = conversation.rounds.queue.pop_front() {
            refuse_dissolved(cx, owner, conversation, change);
        }
        return resume(cx, owner, conversation, name);
    }
    if !plan.remove.is_empty() {
        tell_removed(cx, owner, conversation, name, plan.remove.clone(), members_version);
    }
    if !plan.add.is_empty() {
        let what = What::Attach(name.to_owned());
        let users = std::mem::take(&mut plan.add);
        cx.hub.delivery.ask(Ask { users, except: answered, from: owner.from, what });
    }
    // Once the lease is over another owner may have let these users in again, and not every store compares the claim; a
    // name too many in a list is found out by the next login.
    if plan.remove.is_empty() || cx.now.mono_us >= cx.hub.cluster.lease_until_us {
        return start(cx, owner, conversation, name);
    }
    unlist(cx, owner, &plan.remove, name);
    round.stage = Stage::Unlisting;
    conversation.rounds.round = Some(round);
}

/// Members, and what else is known of the group, change. Returns the version of the members.
fn take_effect(conversation: &mut Conversation, plan: &mut Plan) -> u64 {
    if plan.create {
        conversation.members = Some(Members::default());
    }
    let group = &mut conversation.group;
    if let Some(info) = plan.info.take() {
        group.set(info);
    }
    for (user, asks) in plan.asking.drain(..) {
        match asks {
            true => group.asking.insert(user),
            false => group.asking.remove(&user),
        };
    }
    if plan.dissolve {
        group.leftover = conversation.members.take();
    }
    let Some(members) = &mut conversation.members else { return 0 };
    if !plan.add.is_empty() || !plan.remove.is_empty() {
        members.version += 1;
    }
    for user in &plan.add {
        members.insert(user);
    }
    for user in &plan.remove {
        members.remove(user);
    }
    members.version
}

/// Sessions of these users listen no more, before anything later is fanned out.
fn tell_removed(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &Conversation,
    name: &str,
    users: Vec<String>,
    members_version: u64,
) {
    let remove = Remove { conversation: name.to_owned(), users, members_version };
    let record = owner.from.record(Kind::Remove, SessionId::NONE, &remove);
    for link in conversation.listeners() {
        cx.send(link, record.clone());
    }
}

// ---- the end of a group ----

/// Goes on with the cleaning of a dissolved group: the next members' lists lose it.
pub fn resume(cx: &mut Cx, owner: &Owner, conversation: &mut Conversation, name: &str) {
    let Some(leftover) = conversation.group.leftover.as_ref().filter(|_| conversation.rounds.is_idle())
    else {
        return;
    };
    let slice: Vec<String> = leftover.after("").take(CLEAN_MEMBERS).map(str::to_owned).collect();
    if slice.is_empty() {
        conversation.group.leftover = None;
        conversation.subscribers.clear();
        return;
    }
    unlist(cx, owner, &slice, name);
    let plan = Plan { remove: slice, ..Plan::default() };
    let (changes, named, members) = (Vec::new(), FxHashSet::default(), Vec::new());
    let round = Round { stage: Stage::Cleaning, changes, plan, named, members };
    conversation.rounds.round = Some(Box::new(round));
}

/// A slice is members no more.
fn cleaned(cx: &mut Cx, owner: &Owner, conversation: &mut Conversation, name: &str, users: &[String]) {
    let Some(leftover) = &mut conversation.group.leftover else { return };
    leftover.version += 1;
    for user in users {
        leftover.remove(user);
    }
    let members_version = leftover.version;
    tell_removed(cx, owner, conversation, name, users.to_vec(), members_version);
    resume(cx, owner, conversation, name);
}

// ---- answers ----

fn refuse_pending(cx: &mut Cx, owner: &Owner, asker: Asker) {
    cx.refuse(owner.from, asker, Code::JoinPending, "an admin of the group must let this user in");
}

/// Those who run the group hear of who asks to join. Softly: the group's state says it too.
fn tell_admins(cx: &mut Cx, owner: &Owner, conversation: &Conversation, name: &str, user: String) {
    let info = conversation.group.info();
    let users: Vec<String> = [&info.owner].into_iter().chain(&info.admins).cloned().collect();
    let asked = GroupAsked { conversation: name.to_owned(), user };
    let notify = Notify { event: Some(notify::Event::GroupAsked(asked)) }.encode_to_vec().into();
    let what = What::Relay { conversation: name.to_owned(), notify };
    cx.tell_softly(Ask { users, except: Vec::new(), from: owner.from, what });
}

/// The asker is in: its link listens from here on, then it is told.
pub fn joined(cx: &mut Cx, owner: &Owner, conversation: &mut Conversation, name: &str, asker: Asker) {
    conversation.subscribers.entry(asker.link).or_insert(0);
    let (members, members_version) =
        conversation.members.as_ref().map_or((0, 0), |members| (members.count(), members.version));
    let joined = Joined {
        conversation: name.to_owned(),
        epoch: conversation.durable_epoch,
        head: conversation.durable,
        members: members as u32,
    };
    let reply = Reply {
        joined: name.to_owned(),
        joined_head: conversation.durable,
        members_version,
        ..Reply::default()
    };
    cx.reply(owner.from, asker, response::Outcome::Joined(joined), reply);
}

fn left(cx: &mut Cx, owner: &Owner, name: &str, change: Change) {
    let left = Left { conversation: name.to_owned() };
    let reply = Reply { left: name.to_owned(), user: change.user, ..Reply::default() };
    cx.reply(owner.from, change.asker, response::Outcome::Left(left), reply);
}
