//! Messages on their way out: numbered, resent in order, answered once.
//!
//! Each conversation has a lane: a stream (drawn at random) and a dense `client_seq`. The server answers a repeat with
//! its first answer and takes nothing out of order, so a lane may send the same numbers again as often as it must, and
//! nothing is lost or doubled. The rules that keep it right:
//! 1. A number keeps its message until it is answered. Only a refusal that changed nothing at the server frees it: then
//!    everything behind moves up. Of a number that was sent twice one refusal does not say that: it stays used.
//! 2. After BUSY or OUT_OF_ORDER everything from there is sent again, in order; refusals of the older copies are not
//!    listened to any more.
//! 3. When the server's and our numbers can't be brought together, the lane takes a new stream; but only when everything
//!    that is under way on the old one was answered, as a message that was taken there must not be sent again. A copy that
//!    went down with its connection is never answered, and a server that hung may take it yet: its message stays on its
//!    stream, or its outcome is unknown.
//! 4. Lanes take turns.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{Code, Refused, Send, SendAck};

use super::event::Outgoing;
use crate::error::SendError;

/// Messages of one conversation in flight: the answers that a server keeps for repeats.
pub const IN_FLIGHT_MAX: usize = 64;

/// Messages of one conversation that wait, those in flight included; one more is refused to the caller.
pub const PENDING_MAX: usize = 1_024;

/// Lanes without anything pending are forgotten above this; the next message there begins a new stream.
const LANES_MAX: usize = 4_096;

/// Pause after a refusal that asks for another try without saying when, ms.
const RETRY_MS: u64 = 200;

/// New streams for one message before it is given up: one is enough for every case that is not a server's fault.
const STREAMS_PER_MESSAGE_MAX: u32 = 3;

#[derive(Debug)]
struct Pending<T> {
    /// Stays the same whatever number the message gets.
    name: u64,
    client_seq: u64,
    message: Outgoing,
    deadline_ms: u64,
    /// The request that carries it now.
    request: Option<u64>,
    /// It was sent on this stream before, and what became of that is not known.
    doubtful: bool,
    /// A copy was sent on an earlier connection, and never answered: it may be taken at any time.
    astray: bool,
    streams: u32,
    done: T,
}

impl<T> Pending<T> {
    /// The outcome of a message that was refused, and is not sent again.
    fn given_up(self, refused: &Refused) -> Settled<T> {
        let error = if self.astray { SendError::Unknown } else { SendError::from(refused) };
        (self.done, Err(error))
    }
}

#[derive(Debug)]
struct Lane<T> {
    stream: u64,
    next_client_seq: u64,
    pending: VecDeque<Pending<T>>,
    not_before_ms: u64,
    /// Requests that were not answered on this connection.
    unanswered: usize,
    /// A new stream is to be taken when everything on the present one is answered. Nothing is sent until then.
    renewal: Option<u64>,
}

impl<T> Lane<T> {
    /// The message that may be sent now.
    fn sendable(&self, now_ms: u64) -> Option<usize> {
        if self.renewal.is_some() || self.not_before_ms > now_ms {
            return None;
        }
        self.pending.iter().take(IN_FLIGHT_MAX).position(|pending| pending.request.is_none())
    }

    /// Numbers from `index` on are sent again.
    fn rewind(&mut self, index: usize) {
        for pending in self.pending.iter_mut().skip(index) {
            pending.doubtful |= pending.request.take().is_some();
        }
    }

    /// A new stream is needed: at once, or when everything that is under way was answered.
    fn restart(&mut self, stream: u64) {
        self.rewind(0);
        self.renewal = Some(stream);
        self.renew_if_drained();
    }

    /// Takes the new stream and numbers everything from 1.
    fn renew_if_drained(&mut self) {
        let Some(stream) = self.renewal.take_if(|_| self.unanswered == 0) else { return };
        self.stream = stream;
        for (index, pending) in self.pending.iter_mut().enumerate() {
            pending.client_seq = index as u64 + 1;
            (pending.request, pending.doubtful) = (None, false);
            pending.streams += 1;
            debug_assert!(!pending.astray, "it may be taken on the old stream");
        }
        self.next_client_seq = self.pending.len() as u64 + 1;
    }

    /// Takes out what must not be sent on another stream than its own.
    fn take_astray(&mut self) -> Vec<Settled<T>> {
        let pending = std::mem::take(&mut self.pending);
        let (astray, rest): (VecDeque<_>, _) = pending.into_iter().partition(|pending| pending.astray);
        self.pending = rest;
        astray.into_iter().map(|pending| (pending.done, Err(SendError::Unknown))).collect()
    }

    /// Takes out a message whose number the server did not use: those behind it move up.
    fn withdraw(&mut self, index: usize) -> Option<Pending<T>> {
        let gone = self.pending.remove(index)?;
        for pending in self.pending.iter_mut().skip(index) {
            pending.client_seq -= 1;
            pending.request = None;
        }
        self.next_client_seq -= 1;
        Some(gone)
    }
}

/// A request that was not answered.
#[derive(Debug)]
struct Sent {
    conversation: String,
    stream: u64,
    name: u64,
}

/// All lanes. `T` is what the caller wants back with the outcome.
#[derive(Debug)]
pub struct Outbox<T> {
    lanes: BTreeMap<String, Lane<T>>,
    /// Lanes with something pending.
    active: BTreeSet<String>,
    /// The lane that had its turn last.
    turn: String,
    requests: BTreeMap<u64, Sent>,
    next_name: u64,
    /// No deadline is before this.
    deadline_low_ms: u64,
}

impl<T> Default for Outbox<T> {
    fn default() -> Self {
        Outbox {
            lanes: BTreeMap::new(),
            active: BTreeSet::new(),
            turn: String::new(),
            requests: BTreeMap::new(),
            next_name: 0,
            deadline_low_ms: u64::MAX,
        }
    }
}

/// What became of a message.
pub type Settled<T> = (T, Result<SendAck, SendError>);

impl<T> Outbox<T> {
    /// Queues a message. `random` is used if the conversation needs a new stream.
    ///
    /// # Errors
    /// `done` comes back when [`PENDING_MAX`] messages wait in this conversation.
    pub fn push(
        &mut self,
        conversation: &str,
        message: Outgoing,
        deadline_ms: u64,
        random: u64,
        done: T,
    ) -> Result<(), T> {
        if !self.lanes.contains_key(conversation) {
            if self.lanes.len() >= LANES_MAX {
                self.lanes.retain(|_, lane| !lane.pending.is_empty());
            }
            let lane = Lane {
                stream: random,
                next_client_seq: 1,
                pending: VecDeque::new(),
                not_before_ms: 0,
                unanswered: 0,
                renewal: None,
            };
            self.lanes.insert(conversation.into(), lane);
        }
        let Some(lane) = self.lanes.get_mut(conversation) else { return Err(done) };
        if lane.pending.len() >= PENDING_MAX {
            return Err(done);
        }
        let (name, client_seq) = (self.next_name, lane.next_client_seq);
        self.next_name += 1;
        lane.next_client_seq += 1;
        lane.pending.push_back(Pending {
            name,
            client_seq,
            message,
            deadline_ms,
            request: None,
            doubtful: false,
            astray: false,
            streams: 0,
            done,
        });
        self.deadline_low_ms = self.deadline_low_ms.min(deadline_ms);
        if !self.active.contains(conversation) {
            self.active.insert(conversation.into());
        }
        Ok(())
    }

    /// The next message to send, as request `id`, but none to a conversation that is `held`. Call until `None`.
    pub fn transmit(&mut self, now_ms: u64, id: u64, held: impl Fn(&str) -> bool) -> Option<Op> {
        let behind = (Bound::Excluded(self.turn.clone()), Bound::Unbounded);
        let lanes = &self.lanes;
        let sendable = |conversation: &&String| {
            lanes.get(*conversation).is_some_and(|lane| lane.sendable(now_ms).is_some())
                && !held(conversation)
        };
        let conversation =
            self.active.range(behind).chain(self.active.range(..=self.turn.clone())).find(sendable)?.clone();
        let lane = self.lanes.get_mut(&conversation)?;
        let index = lane.sendable(now_ms)?;
        let pending = &mut lane.pending[index];
        pending.request = Some(id);
        lane.unanswered += 1;
        let sent = Sent { conversation: conversation.clone(), stream: lane.stream, name: pending.name };
        self.requests.insert(id, sent);
        self.turn.clone_from(&conversation);
        let message = pending.message.clone();
        Some(Op::Send(Send {
            conversation,
            client_seq: pending.client_seq,
            stream: lane.stream,
            payload: message.payload,
            content_kind: message.content_kind,
            action: message.action.into(),
            refers_to: message.refers_to,
            fate_within_ms: message.fate_within_ms,
        }))
    }

    /// Whether this request carried a message.
    pub fn knows(&self, id: u64) -> bool {
        self.requests.contains_key(&id)
    }

    /// The conversation of a request that carried a message.
    pub fn conversation_of(&self, id: u64) -> Option<&str> {
        self.requests.get(&id).map(|sent| sent.conversation.as_str())
    }

    /// A message was taken. An answer to an older copy counts as well: it is the same answer.
    pub fn acknowledged(&mut self, id: u64, ack: SendAck) -> Option<Settled<T>> {
        let sent = self.answer(id)?;
        let lane = self.lanes.get_mut(&sent.conversation)?;
        let index = lane.pending.iter().position(|pending| pending.name == sent.name)?;
        // Taken on the old stream: the new one does without it.
        let gone = if lane.stream == sent.stream { lane.pending.remove(index) } else { lane.withdraw(index) };
        if lane.pending.is_empty() {
            self.active.remove(&sent.conversation);
        }
        gone.map(|gone| (gone.done, Ok(ack)))
    }

    /// A request was answered, however.
    fn answer(&mut self, id: u64) -> Option<Sent> {
        let sent = self.requests.remove(&id)?;
        if let Some(lane) = self.lanes.get_mut(&sent.conversation) {
            lane.unanswered = lane.unanswered.saturating_sub(1);
            lane.renew_if_drained();
        }
        Some(sent)
    }

    /// A message was refused: it is sent again later, or settled; with it those that can't go on to a new stream. `random` is
    /// used if one is needed.
    pub fn refused(&mut self, id: u64, refused: &Refused, now_ms: u64, random: u64) -> Vec<Settled<T>> {
        let Some(sent) = self.answer(id) else { return Vec::new() };
        let Some(lane) = self.lanes.get_mut(&sent.conversation) else { return Vec::new() };
        // Rule 2: the older copy of a message that was rewound since.
        let index = lane.pending.iter().position(|pending| pending.request == Some(id));
        let Some(index) = index else { return Vec::new() };
        let mut settled = Vec::new();
        let mut restart = false;
        match refused.code() {
            // Taken long ago, and the answer is not kept any more: sending it again would double it.
            Code::OutOfOrder if refused.expected > lane.pending[index].client_seq => {
                settled.extend(lane.pending.remove(index).map(|gone| gone.given_up(refused)));
            }
            Code::OutOfOrder => {
                let known = lane.pending.iter().position(|pending| pending.client_seq == refused.expected);
                match known {
                    Some(expected) => lane.rewind(expected),
                    None => {
                        if lane.pending[index].streams >= STREAMS_PER_MESSAGE_MAX {
                            settled.extend(lane.pending.remove(index).map(|gone| gone.given_up(refused)));
                        }
                        restart = true;
                    }
                }
            }
            // The number was used for something else: of a message that was given up, or by our own mistake.
            Code::Conflict if lane.pending[index].streams < STREAMS_PER_MESSAGE_MAX => restart = true,
            Code::Busy | Code::Unavailable => {
                lane.rewind(index);
                lane.not_before_ms = now_ms + u64::from(refused.retry_after_ms).max(RETRY_MS);
            }
            // An earlier copy may have been taken under this number: it stays used. If it was not, the server's
            // OUT_OF_ORDER says so.
            _ if lane.pending[index].doubtful => {
                settled.extend(lane.pending.remove(index).map(|gone| gone.given_up(refused)));
            }
            _ => settled.extend(lane.withdraw(index).map(|gone| gone.given_up(refused))),
        }
        if restart {
            settled.extend(lane.take_astray());
            lane.restart(random);
        }
        if lane.pending.is_empty() {
            self.active.remove(&sent.conversation);
        }
        settled
    }

    /// The connection is gone: everything unanswered is sent again on the next.
    pub fn disconnected(&mut self) {
        let lost: BTreeSet<u64> =
            std::mem::take(&mut self.requests).into_values().map(|sent| sent.name).collect();
        for lane in self.lanes.values_mut() {
            lane.rewind(0);
            for pending in lane.pending.iter_mut().filter(|pending| lost.contains(&pending.name)) {
                (pending.doubtful, pending.astray) = (true, true);
            }
            // Without its answers the old stream is asked again.
            (lane.not_before_ms, lane.unanswered, lane.renewal) = (0, 0, None);
        }
    }

    /// Settles what is past its deadline. Whether such a message was taken is not known.
    pub fn expire(&mut self, now_ms: u64) -> Vec<Settled<T>> {
        if self.deadline_low_ms > now_ms {
            return Vec::new();
        }
        let mut settled = Vec::new();
        self.deadline_low_ms = u64::MAX;
        let lanes = &mut self.lanes;
        self.active.retain(|conversation| {
            let Some(lane) = lanes.get_mut(conversation) else { return false };
            // Its number stays used, as it may be at the server; if it is not, the server's OUT_OF_ORDER says so.
            let mut index = 0;
            while index < lane.pending.len() {
                if lane.pending[index].deadline_ms > now_ms {
                    self.deadline_low_ms = self.deadline_low_ms.min(lane.pending[index].deadline_ms);
                    index += 1;
                } else if let Some(gone) = lane.pending.remove(index) {
                    settled.push((gone.name, (gone.done, Err(SendError::Deadline))));
                }
            }
            !lane.pending.is_empty()
        });
        settled.sort_by_key(|(name, _)| *name);
        settled.into_iter().map(|(_, settled)| settled).collect()
    }

    /// Settles everything.
    pub fn abandon(&mut self) -> Vec<T> {
        self.requests.clear();
        self.active.clear();
        std::mem::take(&mut self.lanes)
            .into_values()
            .flat_map(|lane| lane.pending)
            .map(|pending| pending.done)
            .collect()
    }

    /// When [`Outbox::expire`] or [`Outbox::transmit`] may have something to do next, if no answer comes.
    pub fn next_ms(&self) -> Option<u64> {
        let lanes = self.active.iter().filter_map(|conversation| self.lanes.get(conversation));
        let waits = lanes.filter(|lane| !lane.pending.is_empty());
        let retries = waits.filter_map(|lane| {
            let unsent = lane.pending.iter().take(IN_FLIGHT_MAX).any(|pending| pending.request.is_none());
            (unsent && lane.not_before_ms > 0).then_some(lane.not_before_ms)
        });
        let deadline = (self.deadline_low_ms < u64::MAX).then_some(self.deadline_low_ms);
        retries.chain(deadline).min()
    }
}

#[cfg(test)]
mod tests;
