//! Joining and leaving rooms: decided here, since rooms have no members beyond who listens.
//!
//! The rule: a join is answered only when the shard is subscribed, so that everything after the head in the answer
//! will be delivered. One that waits too long is answered BUSY, and takes nothing with it.

use millrace_protocol::messages::client::{Code, Joined, Left, response};

use super::event::Conn;
use super::limits::*;
use super::requests::Refuse;
use super::shard::Shard;

/// A room join that waits for its subscription.
pub(super) struct PendingJoin {
    pub deadline_us: u64,
    pub conn: Conn,
    pub id: u64,
    pub topic: u32,
}

impl Shard {
    pub(super) fn join_room(&mut self, slot: u32, id: u64, conversation: String) {
        let Some(session) = self.sessions.get(slot) else { return };
        let conn = session.conn(slot);
        let known = self.conversations.find(&conversation);
        let listed = known.is_some_and(|topic| session.topics.as_slice().contains(&topic));
        if !listed && session.topics.as_slice().len() >= self.config.topics_per_session_max as usize {
            self.stats.topic_limit += 1;
            return self.refuse(slot, id, Refuse(Code::LimitReached, "too many rooms and groups", 0));
        }
        if let Some((epoch, head, members)) = known.and_then(|topic| self.join_subscribed(slot, topic)) {
            let joined = Joined { conversation, epoch, head, members };
            return self.respond(slot, id, response::Outcome::Joined(joined));
        }
        if !self.admit(slot, id, 1, RECORD_ENVELOPE_BYTES) {
            return;
        }
        let topic = self.wait_for(slot, &conversation, id);
        let deadline_us = self.now.mono_us + REQUEST_TIMEOUT_US;
        self.joins.push_back(PendingJoin { deadline_us, conn, id, topic });
    }

    /// The subscription that a room join waited for is there, or refused.
    pub(super) fn answer_join(&mut self, conn: Conn, id: u64, outcome: Result<Joined, Refuse>) {
        if self.session(conn).is_none() {
            return;
        }
        self.settle(conn);
        match outcome {
            Ok(joined) => self.respond(conn.slot, id, response::Outcome::Joined(joined)),
            Err(refuse) => self.refuse(conn.slot, id, refuse),
        }
    }

    pub(super) fn leave_room(&mut self, slot: u32, id: u64, conversation: String) {
        let topic = self.conversations.find(&conversation);
        let listed = topic.filter(|topic| {
            self.sessions.get(slot).is_some_and(|session| session.topics.as_slice().contains(topic))
        });
        let Some(topic) = listed else {
            return self.refuse(slot, id, Refuse(Code::NotJoined, "not in this room", 0));
        };
        if let Some(session) = self.sessions.get_mut(slot) {
            session.topics.remove(topic);
        }
        self.leave_topic(topic, slot);
        self.respond(slot, id, response::Outcome::Left(Left { conversation }));
    }

    /// Joins that waited for too long.
    pub(super) fn turn_joins(&mut self) {
        let now_us = self.now.mono_us;
        while self.joins.front().is_some_and(|join| join.deadline_us <= now_us) {
            let Some(join) = self.joins.pop_front() else { break };
            if self.forget_waiter(join.topic, join.conn, join.id) {
                self.settle(join.conn);
                self.stats.busy_timeout += 1;
                self.busy(join.conn.slot, join.id, "no answer from the server behind; join again");
                self.unlist_if_gone(join.topic, join.conn.slot);
            }
        }
    }
}
