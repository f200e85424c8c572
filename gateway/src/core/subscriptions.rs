//! Which conversations this shard listens to, for whom, and as of which message.
//!
//! A topic is subscribed while a session of the shard is in it. Subscriptions are state, not messages: whatever may
//! have been lost (a new owner, a fresh link, no credit) only marks the topic as wanting, and it subscribes again
//! with what it has. An answer counts when it is for a version asked since then.

use std::cmp::Ordering;

use millrace_protocol::conversation::{Conversation, is_name};
use millrace_protocol::frame::SharedFrame;
use millrace_protocol::ids::{Partition, SessionId, partition_of};
use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::{Head, Notify, notify};
use millrace_protocol::messages::link::{Subscribe, Subscribed, Unsubscribe};
use millrace_protocol::planted::{self, Fault};
use millrace_protocol::prost::Message;

use super::event::Conn;
use super::fanout::Hole;
use super::limits::*;
use super::pass::{Fan, Item, RESTART};
use super::shard::Shard;
use super::topics::Members;
use super::uplink::{Unsent, record};

/// Somebody who is attached when the subscription is answered.
pub(super) struct Waiter {
    pub conn: Conn,
    /// Of the Subscribe that asked for it; 0: not asked yet.
    version: u64,
    /// The request to be answered; 0: told by a Head.
    pub id: u64,
    /// It is told, but not attached: pages bring it there.
    pub catches_up: bool,
}

/// A session whose user's list names a group, and who was refused there.
pub(super) struct Listed {
    conn: Conn,
    conversation: String,
    partition: Partition,
    /// Of the owner that refused.
    epoch: u64,
}

/// Where a subscription stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    /// To be asked for.
    Wanted,
    /// Asked for.
    Asked,
    /// Answered.
    Subscribed,
}

/// One conversation that this shard listens to.
pub(super) struct Topic {
    pub partition: Partition,
    pub room: bool,
    pub members: Members,
    pub fan: Fan,
    pub stand: Stand,
    /// In the queue of those with something to ask.
    queued: bool,
    /// Ask about all users.
    pub ask_all: bool,
    /// Subscribed to again, and not answered yet: who left meanwhile is not known, as a Remove may be lost with a link. What
    /// is fanned out before the answer lies below the head that it names.
    pub unsure: bool,
    /// Of the last Subscribe sent, and of the first that counts.
    version: u64,
    counts_from: u64,
    pub epoch: u64,
    /// Where the log ended when that owner found it: the seq, and the epoch of the entry there.
    base: (u64, u64),
    /// Highest seq taken in; meaningful once `known`.
    pub last: u64,
    pub known: bool,
    pub members_version: u64,
    pub waiters: Vec<Waiter>,
    pub hole: Option<Box<Hole>>,
}

impl Topic {
    fn new(room: bool, partition: Partition) -> Self {
        Topic {
            partition,
            room,
            members: Members::default(),
            fan: Fan::default(),
            stand: Stand::Wanted,
            queued: false,
            ask_all: false,
            unsure: false,
            version: 0,
            counts_from: 0,
            epoch: 0,
            base: (0, 0),
            last: 0,
            known: false,
            members_version: 0,
            waiters: Vec::new(),
            hole: None,
        }
    }

    /// Whether a log that its next owner found to end there is the one that this shard knows, with what its last owner
    /// appended. It may not be: an owner in between was not heard here, or another copy of the store has taken over.
    fn goes_on(&self, (seq, epoch): (u64, u64)) -> bool {
        if planted::is(Fault::OtherCopyGoesOn) {
            return true;
        }
        match seq.cmp(&self.base.0) {
            Ordering::Less => false,
            Ordering::Equal => epoch == self.base.1,
            Ordering::Greater => epoch == self.epoch,
        }
    }
}

/// The conversation id of a group, given as such or as a bare name.
pub(super) fn group_id(group: &str) -> Option<String> {
    match Conversation::parse(group) {
        Some(Conversation::Group(_)) => Some(group.into()),
        _ => is_name(group).then(|| format!("g:{group}")),
    }
}

impl Shard {
    /// Whether a session is attached to a conversation.
    pub(super) fn listens(&self, slot: u32, conversation: &str) -> bool {
        let topic = self.conversations.find(conversation).and_then(|topic| self.topics.get(topic));
        topic.is_some_and(|topic| topic.members.contains(slot))
    }

    pub(super) fn open_topic(&mut self, conversation: &str) -> u32 {
        if let Some(topic) = self.conversations.find(conversation) {
            return topic;
        }
        let topic = self.conversations.take(conversation);
        let partition = partition_of(conversation, self.config.partitions);
        self.topics.insert(topic, Box::new(Topic::new(conversation.starts_with("r:"), partition)));
        topic
    }

    /// Attaches a session when the conversation is subscribed (again) for it.
    pub(super) fn wait_for(&mut self, slot: u32, conversation: &str, id: u64) -> u32 {
        let topic = self.open_topic(conversation);
        let Some(session) = self.sessions.get_mut(slot) else { return topic };
        let conn = session.conn(slot);
        session.topics.insert(topic);
        let it = self.topics.get_mut(topic).expect("open");
        it.waiters.push(Waiter { conn, version: 0, id, catches_up: false });
        if !it.room || it.stand == Stand::Wanted {
            self.want(topic);
        }
        topic
    }

    /// Attaches a session to a group, at login or because its user became a member.
    pub(super) fn attach_group(&mut self, slot: u32, group: &str) {
        let Some(conversation) = group_id(group) else { return };
        let Some(session) = self.sessions.get(slot) else { return };
        let topic = self.conversations.find(&conversation);
        if topic.is_some_and(|topic| session.topics.as_slice().contains(&topic)) {
            return;
        }
        if session.topics.as_slice().len() >= self.config.topics_per_session_max as usize {
            self.stats.topic_limit += 1;
            return;
        }
        self.wait_for(slot, &conversation, 0);
    }

    pub(super) fn want(&mut self, topic: u32) {
        if let Some(it) = self.topics.get_mut(topic).filter(|it| !it.queued) {
            it.queued = true;
            self.wanting.push_back(topic);
        }
    }

    /// Topics of these partitions are subscribed again: they have a new owner, or one that forgot.
    pub(super) fn resubscribe(&mut self, partitions: &dyn Fn(Partition) -> bool) {
        if planted::is(Fault::AnnouncementIgnored) {
            return;
        }
        let mut at = 0;
        while let Some(topic) = self.topics.next_used(at) {
            at = topic + 1;
            if partitions(self.topics.get(topic).expect("used").partition) {
                self.subscribe_again(topic);
            }
        }
        self.ask_again(partitions);
    }

    /// Sessions that a former owner refused, though their users' lists name the group, are attached if the new one knows
    /// better: the former one may not have heard yet that the store fell back to before the user left.
    fn ask_again(&mut self, partitions: &dyn Fn(Partition) -> bool) {
        let newer = |it: &mut Listed| partitions(it.partition) && self.uplink.epoch(it.partition) > it.epoch;
        let again: Vec<Listed> = self.refused.extract_if(.., newer).collect();
        for Listed { conn, conversation, .. } in again {
            if self.session(conn).is_some_and(|session| session.is_open()) {
                self.attach_group(conn.slot, &conversation);
            }
        }
    }

    /// Remembers who waits for a group (nobody who asked for it) and is refused.
    fn note_refused(&mut self, topic: u32, conversation: &str, of: impl Fn(&Self, u32) -> bool) {
        let Some(it) = self.topics.get(topic) else { return };
        let (partition, epoch) = (it.partition, self.uplink.epoch(it.partition));
        let listed = it.waiters.iter().filter(|waiter| waiter.id == 0 && of(self, waiter.conn.slot));
        for conn in listed.map(|waiter| waiter.conn).collect::<Vec<_>>() {
            if self.refused.len() == REFUSED_MAX {
                self.stats.refused_forgotten += 1;
                self.refused.remove(0);
            }
            self.refused.push(Listed { conn, conversation: conversation.into(), partition, epoch });
        }
    }

    /// The same for one conversation.
    pub(super) fn resubscribe_one(&mut self, conversation: &str) {
        if let Some(topic) = self.conversations.find(conversation) {
            self.subscribe_again(topic);
        }
    }

    fn subscribe_again(&mut self, topic: u32) {
        let Some(it) = self.topics.get_mut(topic) else { return };
        it.stand = Stand::Wanted;
        it.ask_all = true;
        // A room has nobody to take out, and no log to read what is passed over from.
        it.unsure = !it.room;
        it.counts_from = self.next_version;
        it.waiters.iter_mut().for_each(|waiter| waiter.version = 0);
        if let Some(hole) = &mut it.hole {
            hole.asked = false;
        }
        self.want(topic);
    }

    /// Sends the Subscribes that wait, as far as owners and credit allow. Returns whether the budget ended it.
    pub(super) fn turn_subscribes(&mut self) -> bool {
        for _ in 0..self.wanting.len().min(SUBSCRIBES_PER_TURN) {
            let Some(topic) = self.wanting.pop_front() else { break };
            let Some(it) = self.topics.get_mut(topic).filter(|it| it.queued) else { continue };
            it.queued = false;
            match self.subscribe(topic) {
                Ok(()) => {}
                // Its owner's announcement finds it.
                Err(Unsent::NoOwner(_)) => {}
                Err(Unsent::NoCredit(_)) => {
                    self.want(topic);
                    return false;
                }
            }
        }
        self.wanting.len() >= SUBSCRIBES_PER_TURN
    }

    fn subscribe(&mut self, topic: u32) -> Result<(), Unsent> {
        let it = self.topics.get(topic).expect("wanting");
        let mut asked: Vec<u32> = Vec::new();
        if !it.room {
            let user = |slot: u32| self.sessions.get(slot).map(|session| session.user);
            if it.ask_all {
                let mut at = 0;
                while let Some(slot) = it.members.next_from(at) {
                    at = slot + 1;
                    asked.extend(user(slot));
                }
            }
            let waiting = it.waiters.iter().filter(|waiter| waiter.version == 0);
            asked.extend(waiting.filter_map(|waiter| user(waiter.conn.slot)));
            asked.retain(|user| *user != super::users::NONE);
            asked.sort_unstable();
            asked.dedup();
            if asked.is_empty() {
                return Ok(());
            }
        }
        let conversation = self.conversations.text(topic).to_owned();
        let mut rest = asked.as_slice();
        loop {
            let mut bytes = 0;
            let count = rest
                .iter()
                .take_while(|user| {
                    bytes += self.users.text(**user).len() + 2;
                    bytes <= SUBSCRIBE_USERS_BYTES_MAX
                })
                .count();
            let (users, after) = rest.split_at(count);
            rest = after;
            let version = self.next_version;
            let it = self.topics.get(topic).expect("wanting");
            let body = Subscribe {
                conversation: conversation.clone(),
                version,
                last_epoch: if it.known { it.epoch } else { 0 },
                last_seq: if it.known { it.last } else { 0 },
                members_version: if it.ask_all { 0 } else { it.members_version },
                users: users.iter().map(|user| self.users.text(*user).into()).collect(),
            };
            self.uplink.send(record(Kind::Subscribe, it.partition, SessionId::NONE, &body))?;
            self.stats.subscribes += 1;
            self.next_version += 1;
            let it = self.topics.get_mut(topic).expect("wanting");
            it.version = version;
            if it.stand == Stand::Wanted {
                it.stand = Stand::Asked;
            }
            for waiter in it.waiters.iter_mut().filter(|waiter| waiter.version == 0) {
                let user = self.sessions.get(waiter.conn.slot).map(|session| session.user);
                if it.room || user.is_some_and(|user| users.binary_search(&user).is_ok()) {
                    waiter.version = version;
                }
            }
            if rest.is_empty() {
                it.ask_all = false;
                return Ok(());
            }
        }
    }

    pub(super) fn on_subscribed(&mut self, partition: Partition, epoch: u64, body: Subscribed) {
        if !self.uplink.witness(partition, epoch) {
            self.stats.stale_epochs += 1;
            return;
        }
        let Some(topic) = self.conversations.find(&body.conversation) else { return };
        let it = self.topics.get_mut(topic).expect("named");
        if it.partition != partition || body.version > it.version || body.version < it.counts_from {
            return;
        }
        if body.gone {
            self.note_refused(topic, &body.conversation, |_, _| true);
            return self.end_topic(topic, &body.conversation);
        }
        for user in &body.refused {
            self.note_refused(topic, &body.conversation, |shard, slot| {
                shard.sessions.get(slot).is_some_and(|session| shard.users.text(session.user) == user)
            });
            self.expel(topic, &body.conversation, user);
        }
        // The last listener may have been refused: the topic is gone then.
        let Some(it) = self.topics.get_mut(topic) else { return };
        if body.recheck {
            it.ask_all = true;
        } else {
            it.members_version = it.members_version.max(body.members_version);
        }
        let again = it.stand != Stand::Subscribed;
        it.stand = Stand::Subscribed;
        it.unsure = false;
        let newer = epoch > it.epoch;
        let base = (body.base, body.base_epoch);
        // A new owner found less than was fanned out here, or an end that is not the one that this shard knows, or less than
        // somebody was told of. Nobody has a cursor of a room that it could look from, if that goes on.
        let cut = newer && it.last > body.base;
        let doubtful = newer && (!it.goes_on(base) && !it.room || it.fan.has_told_above(body.base, epoch));
        it.base = base;
        if newer {
            // What the former owner said above a hole may be gone. All that stays of it is below the new one's head.
            self.drop_hole(topic);
        }
        let Some(it) = self.topics.get_mut(topic) else { return };
        it.epoch = it.epoch.max(epoch);
        if !it.known {
            it.known = true;
            it.last = body.head;
        } else if cut {
            self.restart(topic, &body.conversation, epoch, body.head);
        } else {
            if doubtful {
                self.tell_to_look(topic, &body.conversation, epoch);
            }
            if again || newer {
                self.missed(topic, body.head);
            }
        }
        if body.recheck {
            self.want(topic);
        }
        let Some(it) = self.topics.get_mut(topic) else { return };
        let room = it.room;
        let ready: Vec<Waiter> =
            it.waiters.extract_if(.., |waiter| room || waiter.version == body.version).collect();
        for waiter in ready {
            self.attach_waiter(topic, waiter, &body);
        }
        self.drop_if_empty(topic);
    }

    /// Ends the subscription of a topic that nobody listens to or waits for.
    pub(super) fn drop_if_empty(&mut self, topic: u32) {
        let Some(it) = self.topics.get(topic) else { return };
        if !it.members.is_empty() || !it.waiters.is_empty() {
            return;
        }
        let it = self.topics.remove(topic).expect("found above");
        self.held_bytes -= it.hole.as_ref().map_or(0, |hole| hole.held_bytes);
        let conversation = self.conversations.text(topic).to_owned();
        self.conversations.give(topic);
        if it.version > 0 || it.known {
            self.unsubscribe(&conversation);
        }
    }

    pub(super) fn unsubscribe(&mut self, conversation: &str) {
        let version = self.next_version;
        self.next_version += 1;
        self.stats.unsubscribes += 1;
        let partition = partition_of(conversation, self.config.partitions);
        let body = Unsubscribe { conversation: conversation.into(), version };
        self.send_or_park(record(Kind::Unsubscribe, partition, SessionId::NONE, &body));
    }

    /// The store lost the end of the log, or everything: it begins again below what was fanned out, however far it has come
    /// since. Clients see the new epoch.
    fn restart(&mut self, topic: u32, conversation: &str, epoch: u64, head: u64) {
        let Some(it) = self.topics.get_mut(topic) else { return };
        it.last = head;
        // What was told at joining belongs to the former life.
        it.fan.forget_joined();
        self.tell_to_look(topic, conversation, epoch);
    }

    fn drop_hole(&mut self, topic: u32) {
        if let Some(hole) = self.topics.get_mut(topic).and_then(|it| it.hole.take()) {
            self.held_bytes -= hole.held_bytes;
        }
    }

    /// The log may be another one up to where this shard is. Everybody is told, and finds out from its own cursor; except who
    /// joined under this epoch: it was told a head of this log, and what lies up to there is not for it.
    fn tell_to_look(&mut self, topic: u32, conversation: &str, epoch: u64) {
        let Some(it) = self.topics.get_mut(topic) else { return };
        let event = notify::Event::Head(Head { conversation: conversation.into(), epoch, seq: it.last });
        let body = Notify { event: Some(event) }.encode_to_vec();
        it.fan.lower_joined(it.last, epoch);
        let frame = SharedFrame::notify(&body);
        it.fan.push(Item { seq: RESTART, gap_from: 0, except: 0, epoch, frame });
        self.enter_ring(topic);
    }
}
