//! Messages on their way out: numbered, resent in order, answered once.
//!
//! Each conversation has a lane: a stream (drawn at random) and a dense `client_seq`. The server answers a repeat with
//! its first answer and takes nothing out of order, so a lane may send the same numbers again as often as it must, and
//! nothing is lost or doubled. The rules that keep it right:
//! 1. A number keeps its message until it is answered. Only a refusal that changed nothing at the server frees it: then
//!    everything behind moves up. Of a number that was sent twice one refusal does not say that: it stays used. Before
//!    anything moves up, everything under way is answered: the server would take the copy under the new number, and then
//!    the one under the old number. If no answer says what became of a copy, a new stream is taken instead: as long as a
//!    number is missing, the server takes none behind it.
//! 2. After BUSY or OUT_OF_ORDER everything from there is sent again, in order; refusals of the older copies are not
//!    listened to any more.
//! 3. When the server's and our numbers can't be brought together, the lane takes a new stream; but only when everything
//!    that is under way on the old one was answered, as a message that was taken there must not be sent again. A copy that
//!    went down with its connection is never answered, and one that was answered BUSY may be held by a server that hangs:
//!    if the server may take it yet, its message stays on its stream, or its outcome is unknown.
//! 4. Lanes take turns.

mod lane;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{Code, Refused, Send, SendAck};

use self::lane::{Lane, Pending};
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

/// A request that was not answered.
#[derive(Debug)]
struct Sent {
    conversation: String,
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
                self.lanes.retain(|_, lane| !lane.is_idle());
            }
            self.lanes.insert(conversation.into(), Lane::new(random));
        }
        let Some(lane) = self.lanes.get_mut(conversation) else { return Err(done) };
        if lane.pending.len() >= PENDING_MAX {
            return Err(done);
        }
        lane.push(self.next_name, message, deadline_ms, done);
        self.next_name += 1;
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
        let stream = lane.stream;
        let pending = lane.sent(index, id);
        self.requests.insert(id, Sent { conversation: conversation.clone(), name: pending.name });
        self.turn.clone_from(&conversation);
        let message = pending.message.clone();
        Some(Op::Send(Send {
            conversation,
            client_seq: pending.client_seq,
            stream,
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

    /// Whether a message whose sender wants to know its fate is not settled in this conversation.
    pub fn asks_fate(&self, conversation: &str) -> bool {
        let asks = |pending: &Pending<T>| pending.message.fate_within_ms > 0;
        self.lanes.get(conversation).is_some_and(|lane| lane.pending.iter().any(asks))
    }

    /// A message was taken. An answer to an older copy counts as well: it is the same answer.
    pub fn acknowledged(&mut self, id: u64, ack: SendAck) -> Vec<Settled<T>> {
        self.answered(id, |lane, name| {
            let index = lane.pending.iter().position(|pending| pending.name == name);
            index.and_then(|index| lane.pending.remove(index)).map(|gone| (gone.done, Ok(ack)))
        })
    }

    /// A message was refused: it is sent again later, or settled; with it those that can't go on to a new stream. `random` is
    /// used if one is needed.
    pub fn refused(&mut self, id: u64, refused: &Refused, now_ms: u64, random: u64) -> Vec<Settled<T>> {
        self.answered(id, |lane, _| {
            // Rule 2: else this is the older copy of a message that was rewound since.
            let index = lane.pending.iter().position(|pending| pending.request == Some(id))?;
            judge(lane, index, refused, now_ms, random)
        })
    }

    /// A request was answered with something that says nothing of its message: it is sent again.
    pub fn unsaid(&mut self, id: u64, now_ms: u64, random: u64) -> Vec<Settled<T>> {
        self.refused(id, &Refused { code: Code::Busy.into(), ..Refused::default() }, now_ms, random)
    }

    /// A request was answered: `act` does what follows from that for the message of this name.
    fn answered(
        &mut self,
        id: u64,
        act: impl FnOnce(&mut Lane<T>, u64) -> Option<Settled<T>>,
    ) -> Vec<Settled<T>> {
        let Some(sent) = self.requests.remove(&id) else { return Vec::new() };
        let Some(lane) = self.lanes.get_mut(&sent.conversation) else { return Vec::new() };
        lane.answered();
        let mut settled = Vec::from_iter(act(lane, sent.name));
        settled.extend(lane.open());
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
            lane.disconnected(|name| lost.contains(&name));
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
                } else if let Some(gone) = lane.drop(index) {
                    settled.push((gone.name, (gone.done, Err(SendError::Deadline))));
                }
            }
            settled.extend(lane.open().into_iter().map(|unknown| (u64::MAX, unknown)));
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

    /// When [`Outbox::expire`] or [`Outbox::transmit`] may have something to do next, if no answer comes: after `now_ms`.
    pub fn next_ms(&self, now_ms: u64) -> Option<u64> {
        let lanes = self.active.iter().filter_map(|conversation| self.lanes.get(conversation));
        let deadline = (self.deadline_low_ms < u64::MAX).then_some(self.deadline_low_ms);
        lanes.filter_map(Lane::retry_ms).chain(deadline).filter(|at_ms| *at_ms > now_ms).min()
    }
}

/// A message was refused, and no later copy of it is under way.
fn judge<T>(
    lane: &mut Lane<T>,
    index: usize,
    refused: &Refused,
    now_ms: u64,
    random: u64,
) -> Option<Settled<T>> {
    lane.pending[index].request = None;
    let may_be_taken = lane.may_be_taken(index);
    let Pending { client_seq, streams, .. } = lane.pending[index];
    let gone = match refused.code() {
        // Taken long ago, and the answer is not kept any more: sending it again would double it.
        Code::OutOfOrder if refused.expected > client_seq => lane.drop(index),
        Code::OutOfOrder => {
            match lane.pending.iter().position(|pending| pending.client_seq == refused.expected) {
                Some(expected) => {
                    lane.again(expected, false);
                    None
                }
                // What is behind the barrier gets other numbers anyway.
                None if lane.is_behind(index) => None,
                None => {
                    lane.restart(random, true);
                    (streams >= STREAMS_PER_MESSAGE_MAX).then(|| lane.drop(index)).flatten()
                }
            }
        }
        // The number was used for something else: of a message that was given up, or by our own mistake.
        Code::Conflict => {
            lane.restart(random, false);
            (streams >= STREAMS_PER_MESSAGE_MAX).then(|| lane.drop(index)).flatten()
        }
        Code::Busy | Code::Unavailable => {
            lane.again(index, true);
            lane.not_before_ms = now_ms + u64::from(refused.retry_after_ms).max(RETRY_MS);
            None
        }
        // An earlier copy may have been taken under this number: it stays used. If it was not, the server's OUT_OF_ORDER
        // says so.
        _ if may_be_taken => lane.drop(index),
        _ => lane.withdraw(index, random),
    };
    let error = if may_be_taken { SendError::Unknown } else { SendError::from(refused) };
    gone.map(|gone| (gone.done, Err(error)))
}

#[cfg(test)]
mod tests;
