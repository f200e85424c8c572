//! Messages on their way out: numbered, resent in order, answered once. Sans-IO.
//!
//! Each conversation has a lane: a stream (drawn at random) and a dense `client_seq`. The server answers a repeat with
//! its first answer and takes nothing out of order, so a lane may send the same numbers again as often as it must, and
//! nothing is lost or doubled. The rules that keep it right:
//! 1. A number keeps its message until it is answered. Only a refusal that changed nothing at the server frees it: then
//!    everything behind moves up.
//! 2. After BUSY or OUT_OF_ORDER everything from there is sent again, in order; refusals of the older copies are not
//!    listened to any more.
//! 3. When the server's and our numbers can't be brought together, the lane takes a new stream.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{Code, Refused, Send, SendAck};

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
    client_seq: u64,
    payload: Bytes,
    content_kind: u32,
    deadline_ms: u64,
    /// The request that carries it now.
    request: Option<u64>,
    streams: u32,
    done: T,
}

#[derive(Debug)]
struct Lane<T> {
    stream: u64,
    next_client_seq: u64,
    pending: VecDeque<Pending<T>>,
    not_before_ms: u64,
}

impl<T> Lane<T> {
    /// Numbers from `index` on are sent again.
    fn rewind(&mut self, index: usize) {
        for pending in self.pending.iter_mut().skip(index) {
            pending.request = None;
        }
    }

    /// Takes a new stream and numbers everything from 1.
    fn restart(&mut self, stream: u64) {
        self.stream = stream;
        for (index, pending) in self.pending.iter_mut().enumerate() {
            pending.client_seq = index as u64 + 1;
            pending.request = None;
            pending.streams += 1;
        }
        self.next_client_seq = self.pending.len() as u64 + 1;
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

/// All lanes. `T` is what the caller wants back with the outcome.
#[derive(Debug)]
pub struct Outbox<T> {
    lanes: HashMap<String, Lane<T>>,
    /// Requests that were not answered: their lane, stream and number.
    requests: HashMap<u64, (String, u64, u64)>,
}

impl<T> Default for Outbox<T> {
    fn default() -> Self {
        Outbox { lanes: HashMap::new(), requests: HashMap::new() }
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
        payload: Bytes,
        content_kind: u32,
        deadline_ms: u64,
        random: u64,
        done: T,
    ) -> Result<(), T> {
        if !self.lanes.contains_key(conversation) {
            if self.lanes.len() >= LANES_MAX {
                self.lanes.retain(|_, lane| !lane.pending.is_empty());
            }
            let lane =
                Lane { stream: random, next_client_seq: 1, pending: VecDeque::new(), not_before_ms: 0 };
            self.lanes.insert(conversation.into(), lane);
        }
        let Some(lane) = self.lanes.get_mut(conversation) else { return Err(done) };
        if lane.pending.len() >= PENDING_MAX {
            return Err(done);
        }
        let client_seq = lane.next_client_seq;
        lane.next_client_seq += 1;
        lane.pending.push_back(Pending {
            client_seq,
            payload,
            content_kind,
            deadline_ms,
            request: None,
            streams: 0,
            done,
        });
        Ok(())
    }

    /// The next message to send, as request `id`, but none to a conversation that is `held`. Call until `None`.
    pub fn transmit(&mut self, now_ms: u64, id: u64, held: impl Fn(&str) -> bool) -> Option<Op> {
        let (conversation, lane, index) = self.lanes.iter_mut().find_map(|(conversation, lane)| {
            if lane.not_before_ms > now_ms || held(conversation) {
                return None;
            }
            let index =
                lane.pending.iter().take(IN_FLIGHT_MAX).position(|pending| pending.request.is_none())?;
            Some((conversation, lane, index))
        })?;
        let pending = &mut lane.pending[index];
        pending.request = Some(id);
        self.requests.insert(id, (conversation.clone(), lane.stream, pending.client_seq));
        Some(Op::Send(Send {
            conversation: conversation.clone(),
            client_seq: pending.client_seq,
            stream: lane.stream,
            payload: pending.payload.clone(),
            content_kind: pending.content_kind,
            ..Send::default()
        }))
    }

    /// Whether this request carried a message.
    pub fn knows(&self, id: u64) -> bool {
        self.requests.contains_key(&id)
    }

    /// The conversation of a request that carried a message.
    pub fn conversation_of(&self, id: u64) -> Option<&str> {
        self.requests.get(&id).map(|(conversation, ..)| conversation.as_str())
    }

    /// A message was taken. An answer to an older copy counts as well: it is the same answer.
    pub fn acknowledged(&mut self, id: u64, ack: SendAck) -> Option<Settled<T>> {
        let (conversation, stream, client_seq) = self.requests.remove(&id)?;
        let lane = self.lanes.get_mut(&conversation)?;
        if lane.stream != stream {
            return None;
        }
        let index = lane.pending.iter().position(|pending| pending.client_seq == client_seq)?;
        let pending = lane.pending.remove(index)?;
        Some((pending.done, Ok(ack)))
    }

    /// A message was refused: it is sent again later, or settled. `random` is used if a new stream is needed.
    pub fn refused(&mut self, id: u64, refused: &Refused, now_ms: u64, random: u64) -> Option<Settled<T>> {
        let (conversation, _, _) = self.requests.remove(&id)?;
        let lane = self.lanes.get_mut(&conversation)?;
        // Rule 2: the older copy of a message that was rewound since.
        let index = lane.pending.iter().position(|pending| pending.request == Some(id))?;
        match refused.code() {
            // Taken long ago, and the answer is not kept any more: sending it again would double it.
            Code::OutOfOrder if refused.expected > lane.pending[index].client_seq => {
                let gone = lane.pending.remove(index)?;
                Some((gone.done, Err(SendError::from(refused))))
            }
            Code::OutOfOrder => {
                let known = lane.pending.iter().position(|pending| pending.client_seq == refused.expected);
                match known {
                    Some(expected) => lane.rewind(expected),
                    None if lane.pending[index].streams >= STREAMS_PER_MESSAGE_MAX => {
                        let gone = lane.pending.remove(index)?;
                        lane.restart(random);
                        return Some((gone.done, Err(SendError::from(refused))));
                    }
                    None => lane.restart(random),
                }
                None
            }
            // The number was used for something else: of a message that was given up, or by our own mistake.
            Code::Conflict if lane.pending[index].streams < STREAMS_PER_MESSAGE_MAX => {
                lane.restart(random);
                None
            }
            Code::Busy | Code::Unavailable => {
                lane.rewind(index);
                lane.not_before_ms = now_ms + u64::from(refused.retry_after_ms).max(RETRY_MS);
                None
            }
            _ => {
                let gone = lane.withdraw(index)?;
                Some((gone.done, Err(SendError::from(refused))))
            }
        }
    }

    /// The connection is gone: everything unanswered is sent again on the next.
    pub fn disconnected(&mut self) {
        self.requests.clear();
        for lane in self.lanes.values_mut() {
            lane.rewind(0);
            lane.not_before_ms = 0;
        }
    }

    /// Settles what is past its deadline. Whether such a message was taken is not known.
    pub fn expire(&mut self, now_ms: u64) -> Vec<Settled<T>> {
        let mut settled = Vec::new();
        for lane in self.lanes.values_mut() {
            // Its number stays used, as it may be at the server; if it is not, the server's OUT_OF_ORDER says so.
            let mut index = 0;
            while index < lane.pending.len() {
                if lane.pending[index].deadline_ms > now_ms {
                    index += 1;
                } else if let Some(gone) = lane.pending.remove(index) {
                    settled.push((gone.done, Err(SendError::Deadline)));
                }
            }
        }
        settled
    }

    /// Settles everything.
    pub fn abandon(&mut self) -> Vec<T> {
        self.requests.clear();
        self.lanes.drain().flat_map(|(_, lane)| lane.pending).map(|pending| pending.done).collect()
    }

    /// When [`Outbox::expire`] or [`Outbox::transmit`] has something to do next, if no answer comes.
    pub fn next_ms(&self) -> Option<u64> {
        self.lanes
            .values()
            .filter(|lane| !lane.pending.is_empty())
            .flat_map(|lane| {
                let waits = lane.pending.iter().take(IN_FLIGHT_MAX).any(|pending| pending.request.is_none());
                let retry = (waits && lane.not_before_ms > 0).then_some(lane.not_before_ms);
                lane.pending.iter().map(|pending| pending.deadline_ms).min().into_iter().chain(retry)
            })
            .min()
    }
}

#[cfg(test)]
mod tests;
