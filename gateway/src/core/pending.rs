//! Requests on their way: passed on to an owner, and waited for.
//!
//! A request that goes on costs the shard a token and its size until it is answered. Every way in which the answer
//! may never come (no owner, no credit, a lost link, a new owner, silence) ends in BUSY: the client sends it again
//! under the same number, and the owner knows whether it had been taken.

use millrace_protocol::bytes::Bytes;
use millrace_protocol::frame::FrameKind;
use millrace_protocol::ids::{Partition, SessionId};
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::client::{Response, response};
use millrace_protocol::messages::link::{ClientRequest, Reply};
use millrace_protocol::planted::{self, Fault};
use millrace_protocol::prost::Message;

use super::event::{Conn, NodeKey};
use super::limits::*;
use super::parts::Part;
use super::shard::Shard;
use super::uplink::{Unsent, record};

/// A request that a dispatcher has not answered.
pub(super) struct Pending {
    pub conn: Conn,
    /// The client's id; 0 for one that is answered only when it is refused.
    pub id: u64,
    /// Bytes that it counts for.
    pub bytes: usize,
    pub partition: Partition,
    /// On whose link it is; `None` while it waits for an owner.
    pub node: Option<NodeKey>,
    /// It is a part of a request that was cut.
    pub part: Option<Part>,
}

impl Shard {
    /// Whether one more unanswered request is allowed, of so many parts; it is counted then.
    pub(super) fn admit(&mut self, slot: u32, id: u64, parts: usize, bytes: usize) -> bool {
        let full = self.pending.len() + parts > self.config.requests_max
            || self.pending_bytes + bytes > self.config.request_bytes_max;
        let Some(session) = self.sessions.get_mut(slot) else { return false };
        if full || session.requests >= self.config.requests_per_session_max {
            self.stats.busy_limit += 1;
            self.busy(slot, id, "too many unanswered requests");
            return false;
        }
        session.requests += 1;
        true
    }

    /// One of a session's requests is answered.
    pub(super) fn settle(&mut self, conn: Conn) {
        if let Some(session) = self.session(conn) {
            session.requests = session.requests.saturating_sub(1);
        }
    }

    /// Passes a request on to the owner of this partition.
    #[inline]
    pub(super) fn pass_on(&mut self, slot: u32, id: u64, partition: Partition, request: Bytes) {
        let bytes = request.len() + RECORD_ENVELOPE_BYTES;
        if !self.admit(slot, id, 1, bytes) {
            return;
        }
        let Err(unsent) = self.ask_owner(slot, id, partition, request, bytes, None) else { return };
        let conn = self.sessions.get(slot).expect("the asker").conn(slot);
        self.settle(conn);
        match unsent {
            Unsent::NoOwner(_) => {
                self.stats.busy_no_owner += 1;
                self.busy(slot, id, "the conversation moves to another server");
            }
            Unsent::NoCredit(_) => {
                self.stats.busy_no_credit += 1;
                self.busy(slot, id, "the server behind is behind");
            }
        }
    }

    /// Sends a request, or a part of one, to the owner of this partition, and waits for the answer.
    #[inline]
    pub(super) fn ask_owner(
        &mut self,
        slot: u32,
        id: u64,
        partition: Partition,
        request: Bytes,
        bytes: usize,
        part: Option<Part>,
    ) -> Result<(), Unsent> {
        let session = self.sessions.get(slot).expect("the asker");
        let conn = session.conn(slot);
        let token = self.next_token;
        let body = ClientRequest {
            token,
            user: self.users.text(session.user).into(),
            device: self.device_of(session).0.into(),
            request,
        };
        let header = session.id(&self.config, slot);
        let node = self.uplink.send(record(Kind::ClientRequest, partition, header, &body))?;
        self.stats.requests += 1;
        self.next_token += 1;
        self.pending_bytes += bytes;
        self.pending.insert(token, Pending { conn, id, bytes, partition, node: Some(node), part });
        self.pending_timers.push_back((self.now.mono_us + REQUEST_TIMEOUT_US, token));
        Ok(())
    }

    #[inline]
    fn take_pending(&mut self, token: u64) -> Option<Pending> {
        let pending = self.pending.remove(&token)?;
        self.pending_bytes -= pending.bytes;
        // A part is none of the session's requests: the whole is, until all parts are answered.
        if pending.part.is_none() {
            self.settle(pending.conn);
        }
        Some(pending)
    }

    /// Answers a request BUSY: nobody will answer it any more.
    pub(super) fn give_up(&mut self, token: u64, timeout: bool) {
        let Some(pending) = self.take_pending(token) else { return };
        if timeout {
            self.stats.busy_timeout += 1;
        } else {
            self.stats.busy_lost += 1;
        }
        if planted::is(Fault::UnansweredForgotten) {
            return;
        }
        if let Some(part) = pending.part {
            self.on_part(part, None);
        } else if self.session(pending.conn).is_some() {
            self.busy(pending.conn.slot, pending.id, "no answer from the server behind; send it again");
        }
    }

    pub(super) fn on_reply(&mut self, header: SessionId, partition: Partition, epoch: u64, body: Reply) {
        let pending = self.take_pending(body.token);
        if let Some(part) = pending.as_ref().and_then(|pending| pending.part) {
            return self.on_part(part, Some(body.response));
        }
        let slot = self.slot_of(header).or_else(|| {
            let conn = pending.as_ref()?.conn;
            self.session(conn).filter(|session| session.is_open()).map(|_| conn.slot)
        });
        // A client that was told BUSY meanwhile learns from a notification what became of it all the same.
        let told = slot.filter(|_| pending.is_some());
        let mut missed = None;
        // What a former owner says late may be undone since: the present one is asked about everybody. Until it has answered
        // nobody listens, and a Joined or a last page would promise the client what may be missed.
        let counts = body.joined.is_empty() && body.left.is_empty() || self.uplink.witness(partition, epoch);
        if !body.joined.is_empty() {
            match slot {
                Some(slot) if !counts => self.attach_group(slot, &body.joined),
                _ => missed = self.joined(slot, &body, epoch, told.is_some()),
            }
        }
        if !body.left.is_empty() {
            match told {
                _ if counts => self.left(slot, &body.left, &body.user, told),
                Some(slot) => self.left_late(slot, &body.left),
                None => {}
            }
        }
        // A page that comes too late to be handed on changes nothing: the client asks for it again.
        if let Some(slot) = told.filter(|_| !body.syncing.is_empty()) {
            self.syncing(slot, &body.syncing);
        }
        match (pending, slot) {
            (Some(pending), Some(slot)) if !counts && !body.joined.is_empty() => {
                self.stats.busy_lost += 1;
                self.busy(slot, pending.id, "the conversation moved to another server; send it again");
            }
            (Some(pending), Some(slot)) if pending.id == 0 => self.answer_silent(slot, &body.response),
            (Some(_), Some(slot)) => self.send_frame(slot, FrameKind::Response, &body.response),
            _ => self.stats.replies_late += 1,
        }
        if let (Some(slot), Some(gap)) = (slot, missed) {
            self.notify(slot, gap);
        }
    }

    /// The answer to a request that asked for none: only a refusal is worth a word.
    fn answer_silent(&mut self, slot: u32, response: &[u8]) {
        let outcome = Response::decode(response).ok().and_then(|response| response.outcome);
        if let Some(response::Outcome::Refused(_)) = &outcome {
            self.respond(slot, 0, outcome.expect("found above"));
        }
    }

    pub(super) fn turn_requests(&mut self) {
        let now_us = self.now.mono_us;
        while let Some((at, token)) = self.pending_timers.front().copied() {
            let waits = self.pending.contains_key(&token);
            if at > now_us && waits {
                break;
            }
            self.pending_timers.pop_front();
            if waits {
                self.give_up(token, true);
            }
        }
    }

    /// Requests that a node took and will not answer any more, of these partitions.
    pub(super) fn give_up_sent(&mut self, partitions: &dyn Fn(u16, Option<NodeKey>) -> bool) {
        let lost: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.node.is_some() && partitions(pending.partition, pending.node))
            .map(|(token, _)| *token)
            .collect();
        for token in lost {
            self.give_up(token, false);
        }
    }

    /// NotOwner brought a request back: on to the owner, or waiting for one.
    pub(super) fn reroute_request(&mut self, mut back: Record) {
        let Ok(body) = ClientRequest::decode(back.body.clone()) else { return };
        let Some(pending) = self.pending.get(&body.token) else { return };
        let conn = pending.conn;
        back.session = SessionId::new(self.config.gateway, self.config.shard, conn.slot, conn.generation);
        back.partition = pending.partition;
        match self.uplink.send(back) {
            Ok(node) => self.pending.get_mut(&body.token).expect("found above").node = Some(node),
            Err(Unsent::NoOwner(back) | Unsent::NoCredit(back)) => {
                self.pending.get_mut(&body.token).expect("found above").node = None;
                self.stats.parked += 1;
                if self.uplink.park(self.now.mono_us, back).is_err() {
                    self.stats.parked_dropped += 1;
                    self.give_up(body.token, false);
                }
            }
        }
    }
}
