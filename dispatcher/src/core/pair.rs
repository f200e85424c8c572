//! Two users: whether they are friends, who has asked to be, and who blocks whom.
//!
//! The state of their direct conversation decides; lists of both users show it. A change is durable in the state first,
//! together with the messages and in their order, then in the lists, then it is answered and the other user hears of it.
//! One change of a pair goes at a time. The rule that keeps it right: lists are written anew whenever somebody asks for
//! what is so already, so that asking again heals what a crash left between state and lists.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use millrace_protocol::conversation::Conversation as Id;
use millrace_protocol::messages::client::friend_event::Kind as Event;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{Code, FriendEvent, Notify, notify};
use millrace_protocol::prost::Message;

use super::batch::{Effect, Owner};
use super::conversation::Conversation;
use super::delivery::{Ask, What};
use super::hub::{Asker, Cx, From, Pending};
use super::limits::{GREETING_BYTES_MAX, PAIR_CHANGES_MAX};
use crate::store::{Change as ItemChange, Fence, List, Outcome, StoreError, UserItem, Work, Write};

/// Items of the state: friends; who has asked; who blocks. The latter with a user's name behind.
const FRIENDS_KEY: &str = "f";
const ASKED_PREFIX: &str = "q:";
const BLOCKS_PREFIX: &str = "b:";

/// What the two are to each other, behind everything that is in batches.
#[derive(Debug, Default)]
pub struct Pair {
    friends: bool,
    /// Names: one, or both.
    asked: Vec<String>,
    blocks: Vec<String>,
    /// Changes that wait for the one under way.
    queue: VecDeque<Change>,
    under_way: Option<Stage>,
}

/// A change under way.
#[derive(Debug)]
enum Stage {
    /// In a batch.
    Appending(Box<Listing>),
    /// In the users' lists; [`Pending::Pair`] has the rest.
    Listing,
}

/// A request to change what the two are.
#[derive(Debug)]
struct Change {
    asker: Asker,
    user: String,
    op: Op,
}

/// Lists that follow a change, and who hears of it afterwards.
#[derive(Debug)]
pub struct Listing {
    /// Of the conversation's owner when it was durable.
    pub from: From,
    /// Of the owner's claim.
    pub generation: u64,
    /// Shown with the lists: in another copy of the store the change that they follow may never have been.
    fence: Fence,
    /// The direct conversation.
    pub conversation: String,
    asker: Asker,
    items: Vec<UserItem>,
    /// Whom to tell, and what.
    event: Option<(String, FriendEvent)>,
}

/// What comes of a change.
#[derive(Default)]
struct Plan {
    /// Items of the state, set or removed.
    state: Vec<(String, bool)>,
    items: Vec<UserItem>,
    event: Option<FriendEvent>,
}

impl Pair {
    /// Takes a pair's items out of a conversation's state.
    pub fn take(state: &mut BTreeMap<String, Bytes>) -> Self {
        let mut pair = Pair::default();
        state.retain(|key, _| !pair.set(key, true));
        pair
    }

    /// An item of the state is there, or not. `false`: it is none of a pair's.
    fn set(&mut self, key: &str, there: bool) -> bool {
        if key == FRIENDS_KEY {
            self.friends = there;
            return true;
        }
        let (users, user) = match (key.strip_prefix(ASKED_PREFIX), key.strip_prefix(BLOCKS_PREFIX)) {
            (Some(user), _) => (&mut self.asked, user),
            (_, Some(user)) => (&mut self.blocks, user),
            _ => return false,
        };
        users.retain(|known| known != user);
        if there {
            users.push(user.to_owned());
        }
        true
    }

    /// Why neither may send to the other.
    pub fn forbids(&self, strangers_may_write: bool) -> Option<(Code, &'static str)> {
        if !self.blocks.is_empty() {
            return Some((Code::Blocked, "one of the two blocks the other"));
        }
        let strangers = !self.friends && !strangers_may_write;
        strangers.then_some((Code::Stranger, "only friends may send to each other"))
    }

    /// Nothing waits or is under way.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.under_way.is_none()
    }

    /// Everyone who is not answered yet: the partition stops. Who waits for lists is answered when they are written.
    pub fn stop(self) -> impl Iterator<Item = Asker> {
        let appending = match self.under_way {
            Some(Stage::Appending(listing)) => Some(listing.asker),
            _ => None,
        };
        appending.into_iter().chain(self.queue.into_iter().map(|change| change.asker))
    }

    /// Everyone whose change is in no batch yet: the partition takes nothing new.
    pub fn stop_waiting(&mut self) -> Vec<Asker> {
        self.queue.drain(..).map(|change| change.asker).collect()
    }
}

/// A request to change what the two users of a direct conversation are to each other.
pub fn change(
    cx: &mut Cx,
    owner: &mut Owner,
    conversation: &mut Conversation,
    name: &str,
    asker: Asker,
    user: String,
    mut op: Op,
) {
    if let Op::FriendRequest(ask) = &mut op {
        if ask.greeting.len() > GREETING_BYTES_MAX {
            return cx.refuse(owner.from, asker, Code::PayloadTooLarge, "a greeting has at most 256 bytes");
        }
        // It may wait, and must not hold a receive buffer.
        ask.greeting = Bytes::copy_from_slice(&ask.greeting);
    }
    if Id::parse(name).and_then(|id| id.peer_of(&user)).is_none_or(|other| other == user) {
        return cx.refuse(owner.from, asker, Code::BadRequest, "another user is meant by this");
    }
    if conversation.pair.queue.len() >= PAIR_CHANGES_MAX {
        return cx.busy(owner.from, asker, "too many changes between these two wait");
    }
    conversation.pair.queue.push_back(Change { asker, user, op });
    start(cx, owner, conversation, name);
}

/// Begins the next change, unless one is under way.
fn start(cx: &mut Cx, owner: &mut Owner, conversation: &mut Conversation, name: &str) {
    while conversation.pair.under_way.is_none()
        && let Some(Change { asker, user, op }) = conversation.pair.queue.pop_front()
    {
        let Some(other) = Id::parse(name).and_then(|id| id.peer_of(&user)).map(str::to_owned) else {
            continue;
        };
        let plan = match judge(&conversation.pair, &user, &other, &op) {
            Ok(plan) => plan,
            Err((code, reason)) => {
                cx.refuse(owner.from, asker, code, reason);
                continue;
            }
        };
        let Plan { state, items, event } = plan;
        let event = event.map(|event| (other, event));
        let listing = Box::new(Listing {
            from: owner.from,
            generation: owner.generation,
            fence: owner.fence,
            conversation: name.to_owned(),
            asker,
            items,
            event,
        });
        if state.is_empty() {
            list(cx, conversation, listing);
            continue;
        }
        // Messages are judged by it from here on: they come behind it in the batch.
        let mut effect = Effect::Pair { conversation: name.to_owned() };
        for (key, there) in state {
            conversation.pair.set(&key, there);
            let value = there.then(Bytes::new);
            let write = Write::State { conversation: name.to_owned(), key, value };
            owner.push(write, std::mem::replace(&mut effect, Effect::None));
        }
        cx.hub.ready.push(owner.from.partition);
        conversation.pair.under_way = Some(Stage::Appending(listing));
    }
}

/// Judges what `user` asks about `other`.
fn judge(pair: &Pair, user: &str, other: &str, op: &Op) -> Result<Plan, (Code, &'static str)> {
    let asked = |user: &str| pair.asked.iter().any(|known| known == user);
    let mut plan = Plan::default();
    let event = |kind: Event, greeting: &Bytes| {
        Some(FriendEvent { kind: kind as i32, user: user.to_owned(), greeting: greeting.clone() })
    };
    let none = Bytes::new();
    match op {
        Op::FriendRequest(_) if !pair.blocks.is_empty() => {
            return Err((Code::Blocked, "one of the two blocks the other"));
        }
        // Both want it, or it is so.
        Op::FriendRequest(_) if pair.friends || asked(other) => {
            plan.befriend(pair, user, other);
            plan.event = (!pair.friends).then(|| event(Event::Accepted, &none)).flatten();
        }
        Op::FriendRequest(ask) => {
            plan.item(other, List::FriendRequests, user, ItemChange::Put(ask.greeting.clone()));
            if !asked(user) {
                plan.state.push((format!("{ASKED_PREFIX}{user}"), true));
                plan.event = event(Event::Asked, &ask.greeting);
            }
        }
        Op::FriendAnswer(ask) if ask.accept => {
            if !pair.friends && !pair.blocks.is_empty() {
                return Err((Code::Blocked, "one of the two blocks the other"));
            }
            if !pair.friends && !asked(other) {
                return Err((Code::BadRequest, "this user does not ask to be friends"));
            }
            plan.befriend(pair, user, other);
            plan.event = (!pair.friends).then(|| event(Event::Accepted, &none)).flatten();
        }
        Op::FriendAnswer(_) => {
            plan.decline(pair, user, other);
            plan.event = asked(other).then(|| event(Event::Declined, &none)).flatten();
        }
        Op::FriendRemove(_) => {
            for (of, it) in [(user, other), (other, user)] {
                plan.item(of, List::Friends, it, ItemChange::Remove);
            }
            // What the asker wanted itself is taken back too.
            plan.decline(pair, other, user);
            if pair.friends {
                plan.state.push((FRIENDS_KEY.to_owned(), false));
                plan.event = event(Event::Ended, &none);
            }
        }
        // Who is blocked is not told, and need not be answered any more.
        Op::Block(ask) => {
            let change = if ask.block { ItemChange::Add(Bytes::new()) } else { ItemChange::Remove };
            plan.item(user, List::Blocks, other, change);
            if pair.blocks.iter().any(|known| known == user) != ask.block {
                plan.state.push((format!("{BLOCKS_PREFIX}{user}"), ask.block));
            }
            if ask.block {
                plan.decline(pair, user, other);
            }
        }
        _ => return Err((Code::BadRequest, "nothing about two users")),
    }
    Ok(plan)
}

impl Plan {
    fn item(&mut self, user: &str, list: List, item: &str, change: ItemChange) {
        self.items.push(UserItem { user: user.to_owned(), list, item: item.to_owned(), change });
    }

    /// What `other` asked `user` is settled.
    fn decline(&mut self, pair: &Pair, user: &str, other: &str) {
        self.item(user, List::FriendRequests, other, ItemChange::Remove);
        if pair.asked.iter().any(|known| known == other) {
            self.state.push((format!("{ASKED_PREFIX}{other}"), false));
        }
    }

    fn befriend(&mut self, pair: &Pair, user: &str, other: &str) {
        for (of, it) in [(user, other), (other, user)] {
            self.item(of, List::Friends, it, ItemChange::Add(Bytes::new()));
            self.decline(pair, of, it);
        }
        if !pair.friends {
            self.state.push((FRIENDS_KEY.to_owned(), true));
        }
    }
}

/// A change is durable in the state: lists follow.
pub fn appended(cx: &mut Cx, conversation: &mut Conversation) {
    if let Some(Stage::Appending(listing)) = conversation.pair.under_way.take() {
        list(cx, conversation, listing);
    }
}

fn list(cx: &mut Cx, conversation: &mut Conversation, mut listing: Box<Listing>) {
    conversation.pair.under_way = Some(Stage::Listing);
    let claim = Some((listing.from.partition, listing.fence));
    let work = Work::UserItems { items: std::mem::take(&mut listing.items), claim };
    cx.store(work, Pending::Pair(listing));
}

/// Lists were changed, or not: the asker hears of it, and then the other user.
pub fn listed(cx: &mut Cx, mut listing: Box<Listing>, outcome: Result<Outcome, StoreError>) -> Box<Listing> {
    let (from, asker) = (listing.from, listing.asker);
    if outcome.is_err() {
        cx.busy(from, asker, "the store is not available");
        return listing;
    }
    cx.done(from, asker);
    if let Some((user, event)) = listing.event.take() {
        let notify = Notify { event: Some(notify::Event::Friend(event)) }.encode_to_vec().into();
        let what = What::Relay { conversation: listing.conversation.clone(), notify };
        cx.tell_softly(Ask { users: vec![user], except: Vec::new(), from, what });
    }
    listing
}

/// The change under way is done: the next one.
pub fn go_on(cx: &mut Cx, owner: &mut Owner, conversation: &mut Conversation, name: &str) {
    conversation.pair.under_way = None;
    start(cx, owner, conversation, name);
}
