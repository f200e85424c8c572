//! Groups: creating, joining, leaving, and telling who is in.
//!
//! Changes of one group go in rounds, one at a time: users' lists get the group first (durable), then the members are
//! appended, then everyone is told, then lists of those who left lose it. What arrives meanwhile waits for the next
//! round. The rule that keeps it right: a list may name a group that its user is not in, which is refused when it is
//! used; never the other way round.

use std::collections::VecDeque;

use bytes::Bytes;
use millrace_protocol::conversation::is_name;
use millrace_protocol::ids::SessionId;
use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::{Code, GroupMembers, Joined, Left, Members as Page, response};
use millrace_protocol::messages::link::{Remove, Reply};
use rustc_hash::FxHashSet;

use super::batch::{Effect, Owner};
use super::conversation::Conversation;
use super::delivery::{Ask, What};
use super::hub::PartitionJob;
use super::hub::{Asker, Cx, Pending};
use super::limits::{CHANGES_WAITING_MAX, MEMBERS_PAGE_MAX, ROUND_CHANGES_MAX};
use super::members::Members;
use crate::store::{Change as ItemChange, List, Outcome, StoreError, UserItem, Work, Write};

/// A request to change a group's members.
#[derive(Debug)]
pub struct Change {
    /// Who waits for the answer.
    pub asker: Asker,
    /// Who asked.
    pub user: String,
    /// What for.
    pub kind: ChangeKind,
}

/// What a change is.
#[derive(Debug)]
pub enum ChangeKind {
    /// A new group with these members besides the asker.
    Create(Vec<String>),
    /// The asker comes in.
    Join,
    /// The asker goes.
    Leave,
}

/// The changes of one group.
#[derive(Debug, Default)]
pub struct Rounds {
    queue: VecDeque<Change>,
    round: Option<Round>,
}

#[derive(Debug)]
struct Round {
    stage: Stage,
    changes: Vec<Change>,
    create: bool,
    add: Vec<String>,
    remove: Vec<String>,
    /// Those in `add` and `remove`, while changes enter: one change of each user.
    named: FxHashSet<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The group goes into lists of users.
    Listing,
    /// The change is in a batch.
    Appending,
    /// The group is taken out of lists.
    Unlisting,
}

impl Rounds {
    /// Nothing waits or is under way.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.round.is_none()
    }

    /// Whether this user's leaving is already in a batch, so that nothing of theirs may follow it.
    pub fn is_leaving(&self, user: &str) -> bool {
        self.round.as_ref().is_some_and(|round| {
            round.stage == Stage::Appending && round.remove.iter().any(|leaving| leaving == user)
        })
    }

    /// Everyone who waits, oldest first: the partition stops.
    pub fn stop(self) -> impl Iterator<Item = Asker> {
        let unanswered = self.round.filter(|round| round.stage != Stage::Unlisting);
        let changes = unanswered.map(|round| round.changes).unwrap_or_default();
        changes.into_iter().chain(self.queue).map(|change| change.asker)
    }

    /// Everyone whose change is in no batch yet: the partition takes nothing new.
    pub fn stop_waiting(&mut self) -> Vec<Asker> {
        let listing = self.round.take_if(|round| round.stage == Stage::Listing);
        let changes = listing.map(|round| round.changes).unwrap_or_default();
        changes.into_iter().chain(self.queue.drain(..)).map(|change| change.asker).collect()
    }
}

/// A request to change members.
pub fn change(cx: &mut Cx, owner: &mut Owner, conversation: &mut Conversation, name: &str, change: Change) {
    if let ChangeKind::Create(members) = &change.kind
        && !members.iter().all(|member| is_name(member))
    {
        return cx.refuse(owner.from, change.asker, Code::BadRequest, "a member's name is not valid");
    }
    if conversation.rounds.queue.len() >= CHANGES_WAITING_MAX {
        return cx.busy(owner.from, change.asker, "too many changes of this group wait");
    }
    conversation.rounds.queue.push_back(change);
    if conversation.rounds.round.is_none() {
        start(cx, owner, conversation, name);
    }
}

/// Begins the next round with what waits.
fn start(cx: &mut Cx, owner: &mut Owner, conversation: &mut Conversation, name: &str) {
    let mut round = Round {
        stage: Stage::Listing,
        changes: Vec::new(),
        create: false,
        add: Vec::new(),
        remove: Vec::new(),
        named: FxHashSet::default(),
    };
    while round.changes.len() < ROUND_CHANGES_MAX
        && !round.create
        && let Some(change) = conversation.rounds.queue.pop_front()
    {
        if let Some(change) = enter(cx, owner, conversation, name, &mut round, change) {
            conversation.rounds.queue.push_front(change);
            break;
        }
    }
    if round.changes.is_empty() {
        return;
    }
    round.named = FxHashSet::default();
    if round.add.is_empty() {
        return append(cx, owner, conversation, name, round);
    }
    let work = listing(&round.add, name, true);
    store(cx, owner, name, work);
    conversation.rounds.round = Some(round);
}

/// Takes a change into a round, or answers it at once, or gives it back for the next round.
fn enter(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    name: &str,
    round: &mut Round,
    change: Change,
) -> Option<Change> {
    let limit = cx.hub.config.limits.group_members_max;
    let user = &change.user;
    if round.named.contains(user) {
        return Some(change);
    }
    let refusal = match (&change.kind, &conversation.members) {
        (ChangeKind::Create(_), Some(_)) => (Code::GroupExists, "the group exists"),
        (ChangeKind::Create(members), None) => {
            let mut add: Vec<String> = members.iter().cloned().chain([user.clone()]).collect();
            add.sort_unstable();
            add.dedup();
            if add.len() <= limit {
                round.add = add;
                round.create = true;
                round.changes.push(change);
                return None;
            }
            (Code::LimitReached, "too many members")
        }
        (_, None) => (Code::NoSuchGroup, "there is no such group"),
        (ChangeKind::Join, Some(members)) => {
            if members.contains(user) {
                joined(cx, owner, conversation, name, change.asker);
                return None;
            }
            if members.count() + round.add.len() < limit {
                round.named.insert(user.clone());
                round.add.push(user.clone());
                round.changes.push(change);
                return None;
            }
            (Code::LimitReached, "the group is full")
        }
        (ChangeKind::Leave, Some(members)) => {
            if members.contains(user) {
                round.named.insert(user.clone());
                round.remove.push(user.clone());
                round.changes.push(change);
                return None;
            }
            (Code::NotMember, "not a member of this group")
        }
    };
    cx.refuse(owner.from, change.asker, refusal.0, refusal.1);
    None
}

/// Puts a group into lists of these users, or takes it out.
fn listing(users: &[String], name: &str, add: bool) -> Work {
    let change = if add { ItemChange::Add(Bytes::new()) } else { ItemChange::Remove };
    let item = |user: &String| UserItem {
        user: user.clone(),
        list: List::Groups,
        item: name.to_owned(),
        change: change.clone(),
    };
    Work::UserItems(users.iter().map(item).collect())
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
    let Some(round) = conversation.rounds.round.take() else { return };
    match (round.stage, outcome) {
        (Stage::Listing, Ok(_)) => return append(cx, owner, conversation, name, round),
        (Stage::Listing, Err(_)) => {
            for change in round.changes {
                cx.busy(owner.from, change.asker, "the store is not available");
            }
        }
        (_, Ok(_)) => {}
        (_, Err(_)) => cx.hub.stats.unlistings_failed += 1,
    }
    start(cx, owner, conversation, name);
}

fn append(cx: &mut Cx, owner: &mut Owner, conversation: &mut Conversation, name: &str, mut round: Round) {
    let version = conversation.members.as_ref().map_or(0, |members| members.version) + 1;
    let write = if round.create {
        Write::GroupCreate { conversation: name.to_owned(), members: round.add.clone(), version }
    } else {
        let (add, remove) = (round.add.clone(), round.remove.clone());
        Write::Members { conversation: name.to_owned(), add, remove, version }
    };
    owner.push(write, Effect::Round { conversation: name.to_owned() });
    cx.hub.ready.push(owner.from.partition);
    round.stage = Stage::Appending;
    conversation.rounds.round = Some(round);
}

/// The round is durable: members change, and everyone concerned hears of it.
pub fn appended(cx: &mut Cx, owner: &mut Owner, conversation: &mut Conversation, name: &str) {
    let Some(mut round) = conversation.rounds.round.take() else { return };
    let members = conversation.members.get_or_insert_with(Members::default);
    members.version += 1;
    for user in &round.add {
        members.insert(user);
    }
    for user in &round.remove {
        members.remove(user);
    }
    let members_version = members.version;
    let mut answered = Vec::new();
    for change in std::mem::take(&mut round.changes) {
        answered.push(change.asker.session);
        match change.kind {
            ChangeKind::Leave => left(cx, owner, name, change),
            _ => joined(cx, owner, conversation, name, change.asker),
        }
    }
    if !round.remove.is_empty() {
        let users = round.remove.clone();
        let remove = Remove { conversation: name.to_owned(), users, members_version };
        let record = owner.from.record(Kind::Remove, SessionId::NONE, &remove);
        for link in conversation.listeners() {
            cx.send(link, record.clone());
        }
    }
    if !round.add.is_empty() {
        let what = What::Attach(name.to_owned());
        let users = std::mem::take(&mut round.add);
        cx.hub.delivery.ask(Ask { users, except: answered, from: owner.from, what, again: false });
    }
    if round.remove.is_empty() {
        return start(cx, owner, conversation, name);
    }
    let work = listing(&round.remove, name, false);
    store(cx, owner, name, work);
    round.stage = Stage::Unlisting;
    conversation.rounds.round = Some(round);
}

/// The asker is in: its link listens from here on, then it is told.
pub fn joined(cx: &mut Cx, owner: &Owner, conversation: &mut Conversation, name: &str, asker: Asker) {
    conversation.subscribers.entry(asker.link).or_insert(0);
    let (members, members_version) =
        conversation.members.as_ref().map_or((0, 0), |members| (members.count(), members.version));
    let joined = Joined {
        conversation: name.to_owned(),
        epoch: owner.from.epoch,
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

/// A page of members, for a member.
pub fn members(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &Conversation,
    asker: Asker,
    user: &str,
    ask: &GroupMembers,
) {
    let Some(members) = &conversation.members else {
        return cx.refuse(owner.from, asker, Code::NoSuchGroup, "there is no such group");
    };
    if !members.contains(user) {
        return cx.refuse(owner.from, asker, Code::NotMember, "not a member of this group");
    }
    let limit = match ask.limit {
        0 => MEMBERS_PAGE_MAX,
        limit => limit.min(MEMBERS_PAGE_MAX),
    };
    let mut after = members.after(&ask.after);
    let page: Vec<String> = after.by_ref().take(limit as usize).map(str::to_owned).collect();
    let more = after.next().is_some();
    let page = Page { members: page, more, total: members.count() as u32, roles: Vec::new() };
    cx.reply(owner.from, asker, response::Outcome::Members(page), Reply::default());
}
