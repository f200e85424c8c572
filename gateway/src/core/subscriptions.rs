//! Which conversations this shard listens to, for whom, and as of which message.
//!
//! A topic is subscribed while a session of the shard is in it. Subscriptions are state, not messages: whatever may
//! have been lost (a new owner, a fresh link, no credit) only marks the topic as wanting, and it subscribes again
//! with what it has. An answer counts when it is for a version asked since then.

use millrace_protocol::conversation::{Conversation, is_name};
use millrace_protocol::frame::SharedFrame;
use millrace_protocol::ids::{Partition, SessionId, partition_of, user_partition};
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::client::{Code, Gap, Head, Joined, Notify, notify};
use millrace_protocol::messages::link::{
    Attach, NoSession, Remove, Reply, Subscribe, Subscribed, Target, Unsubscribe,
};
use millrace_protocol::planted::{self, Fault};
use millrace_protocol::prost::Message;

use super::event::Conn;
use super::fanout::Hole;
use super::limits::*;
use super::pass::{Fan, Item, RESTART};
use super::requests::Refuse;
use super::session::Session;
use super::shard::Shard;
use super::topics::Members;
use super::uplink::{Unsent, record};

/// Somebody who is attached when the subscription is answered.
pub(super) struct Waiter {
    pub conn: Conn,
    /// Of the Subscribe that asked for it; 0: not asked yet.
    version: u64,
    /// The request to be answered; 0: told by a Head.
    id: u64,
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
    ask_all: bool,
    /// Of the last Subscribe sent, and of the first that counts.
    version: u64,
    counts_from: u64,
    pub epoch: u64,
    /// Highest seq taken in; meaningful once `known`.
    pub last: u64,
    pub known: bool,
    members_version: u64,
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
            version: 0,
            counts_from: 0,
            epoch: 0,
            last: 0,
            known: false,
            members_version: 0,
            waiters: Vec::new(),
            hole: None,
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

    fn open_topic(&mut self, conversation: &str) -> u32 {
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

    fn want(&mut self, topic: u32) {
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
        let newer = epoch > it.epoch;
        // A new owner found less than was fanned out here, or an end from an epoch of which this shard has seen nothing.
        let cut = newer && it.last > body.base;
        // Nobody has a cursor of a room that it could look from.
        let doubtful = newer && body.base_epoch > it.epoch && !it.room;
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

    fn attach_waiter(&mut self, topic: u32, waiter: Waiter, body: &Subscribed) {
        let slot = waiter.conn.slot;
        if self.session(waiter.conn).is_none_or(|session| !session.is_open()) {
            return;
        }
        let Some(it) = self.topics.get(topic) else { return };
        let (epoch, conversation) = (it.epoch, body.conversation.clone());
        if waiter.catches_up && !it.members.contains(slot) {
            let seq = body.head.max(it.last);
            if let Some(session) = self.sessions.get_mut(slot) {
                session.topics.remove(topic);
            }
            return self.notify(slot, notify::Event::Head(Head { conversation, epoch, seq }));
        }
        let seq = self.attach(slot, topic, body.head);
        let members = self.topics.get(topic).map_or(0, |it| it.members.len() as u32);
        if waiter.id != 0 {
            let joined = Joined { conversation, epoch, head: seq, members };
            self.answer_join(waiter.conn, waiter.id, Ok(joined));
        } else {
            self.notify(slot, notify::Event::Head(Head { conversation, epoch, seq }));
        }
    }

    /// Puts a session into a topic. Returns the head as of which it listens.
    fn attach(&mut self, slot: u32, topic: u32, head: u64) -> u64 {
        let capacity = self.config.slots_max;
        let Some(it) = self.topics.get_mut(topic) else { return head };
        if it.members.contains(slot) {
            return it.fan.delivered_to(slot, it.last);
        }
        let told = head.max(it.last);
        it.members.insert(slot, capacity);
        if (!it.fan.is_idle() || told > it.last) && !planted::is(Fault::JoinedSeesThePast) {
            it.fan.joined(slot, told);
        }
        if let Some(session) = self.sessions.get_mut(slot) {
            session.topics.insert(topic);
        }
        told
    }

    /// A room that is subscribed already takes a session at once: (epoch, head, members here).
    pub(super) fn join_subscribed(&mut self, slot: u32, topic: u32) -> Option<(u64, u64, u32)> {
        self.topics.get(topic).filter(|it| it.stand == Stand::Subscribed)?;
        let head = self.attach(slot, topic, 0);
        let it = self.topics.get(topic)?;
        Some((it.epoch, head, it.members.len() as u32))
    }

    /// The owner made a session's user a member, and subscribed this shard. Returns what the session is to be told
    /// besides the response: what it has missed, or the head, when the response comes too late to be handed on.
    pub(super) fn joined(
        &mut self,
        slot: Option<u32>,
        body: &Reply,
        epoch: u64,
        answered: bool,
    ) -> Option<notify::Event> {
        let conversation = group_id(&body.joined)?;
        let (head, members_version) = (body.joined_head, body.members_version);
        let Some(slot) = slot else {
            if self.conversations.find(&conversation).is_none() {
                self.unsubscribe(&conversation);
            }
            return None;
        };
        let topic = self.open_topic(&conversation);
        let it = self.topics.get_mut(topic).expect("open");
        it.members_version = it.members_version.max(members_version);
        if !it.known {
            (it.known, it.last, it.epoch) = (true, head, epoch);
            // The owner listens already; but an Unsubscribe of before may have been on its way to it.
            it.ask_all = true;
            self.want(topic);
        }
        let seq = self.attach(slot, topic, head);
        if !answered {
            return Some(notify::Event::Head(Head { conversation, epoch, seq }));
        }
        (seq > head).then(|| notify::Event::Gap(Gap { conversation, from: head + 1, to: seq }))
    }

    /// A user left: all of its sessions are taken out, and told unless it is the one that is `told` by a response.
    pub(super) fn left(&mut self, asker: Option<u32>, conversation: &str, user: &str, told: Option<u32>) {
        let Some(conversation) = group_id(conversation) else { return };
        let asker = asker.and_then(|slot| self.sessions.get(slot)).map(|session| session.user);
        let user = match (user, asker) {
            ("", Some(asker)) if asker != super::users::NONE => self.users.text(asker).to_owned(),
            _ => user.to_owned(),
        };
        let Some(topic) = self.conversations.find(&conversation) else { return };
        for slot in self.slots_of(&user) {
            if self.detach(topic, slot) && told != Some(slot) {
                self.notify_removed(slot, &conversation);
            }
        }
    }

    /// Takes a session out of a topic. Returns whether it was in it.
    pub(super) fn detach(&mut self, topic: u32, slot: u32) -> bool {
        let listed = self.sessions.get_mut(slot).is_some_and(|session| session.topics.remove(topic));
        if listed {
            self.leave_topic(topic, slot);
        }
        listed
    }

    fn expel(&mut self, topic: u32, conversation: &str, user: &str) {
        for slot in self.slots_of(user) {
            if self.detach(topic, slot) {
                self.notify_removed(slot, conversation);
            }
        }
    }

    /// Users are no members any more. Those who wait to be attached are left to the answer to their Subscribe: they may be
    /// members again since.
    pub(super) fn on_remove(&mut self, partition: Partition, epoch: u64, body: Remove) {
        if planted::is(Fault::RemovedStays) {
            return;
        }
        if !self.uplink.witness(partition, epoch) {
            self.stats.stale_epochs += 1;
            return;
        }
        let Some(topic) = self.conversations.find(&body.conversation) else { return };
        for slot in body.users.iter().flat_map(|user| self.slots_of(user)).collect::<Vec<_>>() {
            let listens = self.topics.get(topic).is_some_and(|it| it.members.contains(slot));
            if listens && self.detach(topic, slot) {
                self.notify_removed(slot, &body.conversation);
            }
        }
        if let Some(it) = self.conversations.find(&body.conversation).and_then(|id| self.topics.get_mut(id)) {
            it.members_version = it.members_version.max(body.members_version);
        }
    }

    /// The group is no more.
    fn end_topic(&mut self, topic: u32, conversation: &str) {
        let Some(it) = self.topics.get_mut(topic) else { return };
        let mut slots: Vec<u32> = it.waiters.iter().map(|waiter| waiter.conn.slot).collect();
        let mut at = 0;
        while let Some(slot) = it.members.next_from(at) {
            slots.push(slot);
            at = slot + 1;
        }
        for slot in slots {
            if self.detach(topic, slot) {
                self.notify_removed(slot, conversation);
            }
        }
    }

    pub(super) fn on_attach(&mut self, body: Attach) {
        for target in body.targets {
            match self.target_here(&target) {
                Some(slot) => match self.sessions.get_mut(slot).and_then(Session::login_mut) {
                    // Told after its LoginAck, with the others.
                    Some(login) if login.groups.len() < self.config.topics_per_session_max as usize => {
                        login.groups.extend(group_id(&body.conversation));
                    }
                    Some(_) => self.stats.topic_limit += 1,
                    None => self.attach_group(slot, &body.conversation),
                },
                None => self.no_session(target),
            }
        }
    }

    /// The slot of a target, if its session is here and still the same user's.
    pub(super) fn target_here(&mut self, target: &Target) -> Option<u32> {
        let slot = self.slot_of(SessionId(target.session))?;
        let session = self.sessions.get(slot)?;
        (session.is_named() && self.users.text(session.user) == target.user).then_some(slot)
    }

    /// Corrects a route that points to no session.
    pub(super) fn no_session(&mut self, target: Target) {
        self.stats.no_sessions += 1;
        let partition = user_partition(&target.user, self.config.partitions);
        let Target { session, user, device, login_number } = target;
        let body = NoSession { user, device, login_number, session };
        self.send_or_park(record(Kind::NoSession, partition, SessionId(session), &body));
    }

    /// Whether the session that a waiting NoSession denies has come since: a new process gives the same ids again, and a
    /// session that resumed has the number that it had.
    pub(super) fn is_here_now(&mut self, record: &Record) -> bool {
        let Ok(NoSession { user, device, login_number, session }) = NoSession::decode(record.body.clone())
        else {
            return false;
        };
        self.target_here(&Target { session, user, device, login_number }).is_some()
    }

    /// A session that is no longer in `session.topics` leaves: as a member and as a waiter.
    pub(super) fn leave_topic(&mut self, topic: u32, slot: u32) {
        let capacity = self.config.slots_max;
        let Some(it) = self.topics.get_mut(topic) else { return };
        it.members.remove(slot, capacity);
        it.fan.left(slot);
        self.owed_forget(slot, topic);
        let Some(it) = self.topics.get_mut(topic) else { return };
        let gone: Vec<Waiter> = it.waiters.extract_if(.., |waiter| waiter.conn.slot == slot).collect();
        for waiter in gone.into_iter().filter(|waiter| waiter.id != 0) {
            self.answer_join(waiter.conn, waiter.id, Err(Refuse(Code::NotJoined, "left meanwhile", 0)));
        }
        self.drop_if_empty(topic);
    }

    /// A join was given up. Returns whether it was still waiting.
    pub(super) fn forget_waiter(&mut self, topic: u32, conn: Conn, id: u64) -> bool {
        let Some(it) = self.topics.get_mut(topic) else { return false };
        let at = it.waiters.iter().position(|waiter| waiter.conn == conn && waiter.id == id);
        at.map(|at| it.waiters.swap_remove(at)).is_some()
    }

    /// Takes a topic off a session's list when the session neither listens nor waits.
    pub(super) fn unlist_if_gone(&mut self, topic: u32, slot: u32) {
        let Some(it) = self.topics.get(topic) else { return };
        if !it.members.contains(slot) && !it.waiters.iter().any(|waiter| waiter.conn.slot == slot) {
            self.detach(topic, slot);
        }
    }

    /// Ends the subscription of a topic that nobody listens to or waits for.
    fn drop_if_empty(&mut self, topic: u32) {
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
        if let Some(hole) = it.hole.take() {
            self.held_bytes -= hole.held_bytes;
        }
        it.last = head;
        // What was told at joining belongs to the former life.
        it.fan.forget_joined();
        self.tell_to_look(topic, conversation, epoch);
    }

    /// The log may be another one up to where this shard is. Everybody is told, and finds out from its own cursor.
    fn tell_to_look(&mut self, topic: u32, conversation: &str, epoch: u64) {
        let Some(it) = self.topics.get_mut(topic) else { return };
        let event = notify::Event::Head(Head { conversation: conversation.into(), epoch, seq: it.last });
        let body = Notify { event: Some(event) }.encode_to_vec();
        it.fan.push(Item { seq: RESTART, gap_from: 0, except: 0, frame: SharedFrame::notify(&body) });
        self.enter_ring(topic);
    }
}
