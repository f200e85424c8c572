//! Requests of the application that are not messages. Sent again after a reconnect, as all of them may be repeated; a
//! group that was created twice says GROUP_EXISTS the second time.

use std::collections::BTreeMap;

use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{Code, Refused};

/// Requests that wait for their answer; one more is refused to the caller.
pub const CALLS_MAX: usize = 1_024;

/// Pause after a refusal that asks for another try without saying when, ms.
const RETRY_MS: u64 = 200;

/// One request.
#[derive(Debug)]
pub struct Call<T> {
    /// What is asked.
    pub op: Op,
    /// Who waits.
    pub done: T,
    deadline_ms: u64,
    not_before_ms: u64,
    sent: bool,
}

/// All requests under way, in the order of their making.
#[derive(Debug)]
pub struct Calls<T> {
    calls: BTreeMap<u64, Call<T>>,
    requests: BTreeMap<u64, u64>,
    next: u64,
}

impl<T> Default for Calls<T> {
    fn default() -> Self {
        Calls { calls: BTreeMap::new(), requests: BTreeMap::new(), next: 0 }
    }
}

impl<T> Calls<T> {
    /// Queues a request.
    ///
    /// # Errors
    /// `done` comes back when [`CALLS_MAX`] wait.
    pub fn push(&mut self, op: Op, deadline_ms: u64, done: T) -> Result<(), T> {
        if self.calls.len() >= CALLS_MAX {
            return Err(done);
        }
        self.calls.insert(self.next, Call { op, done, deadline_ms, not_before_ms: 0, sent: false });
        self.next += 1;
        Ok(())
    }

    /// The next one to send, as request `id`.
    pub fn transmit(&mut self, now_ms: u64, id: u64) -> Option<Op> {
        let (key, call) =
            self.calls.iter_mut().find(|(_, call)| !call.sent && call.not_before_ms <= now_ms)?;
        call.sent = true;
        self.requests.insert(id, *key);
        Some(call.op.clone())
    }

    /// It was answered: takes it out.
    pub fn answered(&mut self, id: u64) -> Option<Call<T>> {
        let key = self.requests.remove(&id)?;
        self.calls.remove(&key)
    }

    /// It was refused: takes it out, unless it is to be tried again later.
    pub fn refused(&mut self, id: u64, refused: &Refused, now_ms: u64) -> Option<Call<T>> {
        if !matches!(refused.code(), Code::Busy | Code::Unavailable) {
            return self.answered(id);
        }
        let call = self.requests.remove(&id).and_then(|key| self.calls.get_mut(&key))?;
        call.sent = false;
        call.not_before_ms = now_ms + u64::from(refused.retry_after_ms).max(RETRY_MS);
        None
    }

    /// The connection is gone: everything unanswered is sent again on the next.
    pub fn disconnected(&mut self) {
        self.requests.clear();
        for call in self.calls.values_mut() {
            (call.sent, call.not_before_ms) = (false, 0);
        }
    }

    /// Takes out what is past its deadline.
    pub fn expire(&mut self, now_ms: u64) -> Vec<Call<T>> {
        let due: Vec<u64> =
            self.calls.iter().filter(|(_, call)| call.deadline_ms <= now_ms).map(|(key, _)| *key).collect();
        due.into_iter().filter_map(|key| self.calls.remove(&key)).collect()
    }

    /// Takes out everything.
    pub fn abandon(&mut self) -> Vec<Call<T>> {
        self.requests.clear();
        std::mem::take(&mut self.calls).into_values().collect()
    }

    /// When there is something to do next, if no answer comes.
    pub fn next_ms(&self) -> Option<u64> {
        let retry = |call: &Call<T>| (!call.sent && call.not_before_ms > 0).then_some(call.not_before_ms);
        self.calls.values().map(|call| retry(call).unwrap_or(call.deadline_ms).min(call.deadline_ms)).min()
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::client_session::op;

    use super::*;

    #[test]
    fn a_busy_server_is_asked_again_and_a_lost_connection_forgets_nothing() {
        let mut calls = Calls::default();
        calls.push(op::room_join("a"), 5_000, 'a').unwrap();
        calls.push(op::room_join("b"), 1_000, 'b').unwrap();
        assert_eq!(calls.transmit(0, 1), Some(op::room_join("a")));
        assert_eq!(calls.transmit(0, 2), Some(op::room_join("b")));
        assert_eq!(calls.transmit(0, 3), None);
        let busy = Refused { code: Code::Busy.into(), retry_after_ms: 300, ..Default::default() };
        assert!(calls.refused(1, &busy, 0).is_none());
        assert_eq!((calls.transmit(299, 3), calls.next_ms()), (None, Some(300)));
        assert_eq!(calls.transmit(300, 3), Some(op::room_join("a")));
        calls.disconnected();
        assert!(calls.answered(3).is_none(), "an answer of the old connection");
        assert_eq!(calls.transmit(300, 4), Some(op::room_join("a")));
        assert_eq!(calls.expire(1_000).pop().map(|call| call.done), Some('b'));
        let refused = Refused { code: Code::NoSuchGroup.into(), ..Default::default() };
        assert_eq!(calls.refused(4, &refused, 0).map(|call| call.done), Some('a'));
        assert_eq!(calls.next_ms(), None);
    }
}
