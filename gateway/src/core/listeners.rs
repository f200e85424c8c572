//! Who listens to a topic: sessions that are attached, taken out, and told.
//!
//! Which topics there are, and what their owners are asked, is in [`super::subscriptions`]. The rule that keeps it right: a
//! session is in a topic's members, or waits for them, exactly while the topic is on its list.

use millrace_protocol::ids::Partition;
use millrace_protocol::messages::client::{Code, Gap, Head, Joined, notify};
use millrace_protocol::messages::link::{Attach, Remove, Reply, Subscribed};
use millrace_protocol::planted::{self, Fault};

use super::event::Conn;
use super::requests::Refuse;
use super::session::Session;
use super::shard::Shard;
use super::subscriptions::{Stand, Waiter, group_id};

impl Shard {
    pub(super) fn attach_waiter(&mut self, topic: u32, waiter: Waiter, body: &Subscribed) {
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
        let seq = self.attach(slot, topic, body.head, epoch);
        let members = self.topics.get(topic).map_or(0, |it| it.members.len() as u32);
        if waiter.id != 0 {
            let joined = Joined { conversation, epoch, head: seq, members };
            self.answer_join(waiter.conn, waiter.id, Ok(joined));
        } else {
            self.notify(slot, notify::Event::Head(Head { conversation, epoch, seq }));
        }
    }

    /// Puts a session into a topic, whose owner named this head under this epoch. Returns the head as of which it listens.
    pub(super) fn attach(&mut self, slot: u32, topic: u32, head: u64, epoch: u64) -> u64 {
        let capacity = self.config.slots_max;
        let Some(it) = self.topics.get_mut(topic) else { return head };
        if it.members.contains(slot) {
            return it.fan.delivered_to(slot, it.last);
        }
        let told = head.max(it.last);
        it.members.insert(slot, capacity);
        if (!it.fan.is_idle() || told > it.last) && !planted::is(Fault::JoinedSeesThePast) {
            it.fan.joined(slot, told, epoch);
        }
        if let Some(session) = self.sessions.get_mut(slot) {
            session.topics.insert(topic);
        }
        told
    }

    /// A room that is subscribed already takes a session at once: (epoch, head, members here).
    pub(super) fn join_subscribed(&mut self, slot: u32, topic: u32) -> Option<(u64, u64, u32)> {
        let it = self.topics.get(topic).filter(|it| it.stand == Stand::Subscribed)?;
        let epoch = it.epoch;
        let head = self.attach(slot, topic, 0, epoch);
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
        let seq = self.attach(slot, topic, head, epoch);
        if !answered {
            // What lies above the reply's head is what this shard had from the owner before.
            let known = self.topics.get(topic).map_or(epoch, |it| it.epoch);
            let epoch = if seq > head { known } else { epoch };
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
            if told == Some(slot) {
                self.detach(topic, slot);
            } else {
                self.take_out(topic, &conversation, slot);
            }
        }
    }

    /// A former owner's word, which comes late, that a user left: the session is told, and is sent nothing more as of then. If
    /// its user is a member again, the present owner says so, and it is told where it goes on.
    pub(super) fn left_late(&mut self, slot: u32, conversation: &str) {
        let Some(conversation) = group_id(conversation) else { return };
        let Some(topic) = self.conversations.find(&conversation) else { return };
        if self.detach(topic, slot) {
            self.attach_group(slot, &conversation);
        }
    }

    /// Takes out a session whose user is no member any more, and tells it. One that waits to be attached is left to the answer
    /// to its Subscribe: its user may be a member again since.
    fn take_out(&mut self, topic: u32, conversation: &str, slot: u32) {
        let listens = self.topics.get(topic).is_some_and(|it| it.members.contains(slot));
        if listens && self.detach(topic, slot) {
            self.notify_removed(slot, conversation);
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

    pub(super) fn expel(&mut self, topic: u32, conversation: &str, user: &str) {
        for slot in self.slots_of(user) {
            if self.detach(topic, slot) {
                self.notify_removed(slot, conversation);
            }
        }
    }

    /// Users are no members any more.
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
            self.take_out(topic, &body.conversation, slot);
        }
        if let Some(it) = self.conversations.find(&body.conversation).and_then(|id| self.topics.get_mut(id)) {
            it.members_version = it.members_version.max(body.members_version);
        }
    }

    /// The group is no more.
    pub(super) fn end_topic(&mut self, topic: u32, conversation: &str) {
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
}
