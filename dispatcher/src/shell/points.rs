//! Which fail points a job of the store passes, and a batch of a link: see [`millrace_edge::failpoint`]. Nothing without
//! the feature.

use std::cell::RefCell;
use std::collections::BTreeSet;

use millrace_edge::failpoint::{Point, hit};
use millrace_protocol::link::Kind;
use millrace_protocol::link::record::peek_records;
use millrace_protocol::messages::client::{Response, response::Outcome as Answer};
use millrace_protocol::messages::link::Reply;
use millrace_protocol::prost::Message;

use crate::store::{Done, Job, Outcome, Work, Write};

/// Those of one shard's jobs.
#[derive(Debug, Default)]
pub(crate) struct Points {
    /// Tickets of the batches that write cursors: an answer does not say what was written.
    cursors: RefCell<BTreeSet<u64>>,
}

impl Points {
    /// It goes to the store.
    pub(crate) fn before(&self, job: &Job) {
        if !cfg!(feature = "failpoints") {
            return;
        }
        match &job.work {
            Work::Append(batch) => {
                hit(Point::BeforeAppend);
                if batch.writes.iter().any(|write| matches!(write, Write::Cursor { .. })) {
                    hit(Point::BeforeCursorWrite);
                    self.cursors.borrow_mut().insert(job.ticket);
                }
            }
            Work::Register(_) => hit(Point::BeforeRouteWrite),
            _ => {}
        }
    }

    /// The store answered.
    pub(crate) fn after(&self, done: &Done) {
        if !cfg!(feature = "failpoints") {
            return;
        }
        let wrote_cursors = self.cursors.borrow_mut().remove(&done.ticket);
        match done.outcome {
            Ok(Outcome::Appended) => {
                hit(Point::AfterAppend);
                if wrote_cursors {
                    hit(Point::AfterCursorWrite);
                }
            }
            Ok(Outcome::Registered { .. }) => hit(Point::AfterRouteWrite),
            _ => {}
        }
    }
}

/// A batch on its way to a gateway.
pub(crate) struct Passing {
    acknowledges: bool,
}

impl Passing {
    /// It goes out.
    pub(crate) fn begin(batch: &[u8]) -> Self {
        hit(Point::BeforeLinkSend);
        let acknowledges = cfg!(feature = "failpoints") && acknowledges(batch);
        if acknowledges {
            hit(Point::BeforeAck);
        }
        Passing { acknowledges }
    }

    /// It is with the kernel, or with the gateway's queue.
    pub(crate) fn end(self) {
        hit(Point::AfterLinkSend);
        if self.acknowledges {
            hit(Point::AfterAck);
        }
    }
}

/// Whether it tells a sender that a message is durable.
fn acknowledges(batch: &[u8]) -> bool {
    let is_send_ack = |body| {
        let response = Reply::decode(body).and_then(|reply| Response::decode(reply.response));
        response.is_ok_and(|response| matches!(response.outcome, Some(Answer::SendAck(_))))
    };
    peek_records(batch).any(|(kind, body)| kind == Kind::Reply && is_send_ack(body))
}

#[cfg(test)]
mod tests {
    use millrace_protocol::messages::client::{Done, SendAck};

    use super::*;

    /// A batch of one record, laid out as link/record.rs says.
    fn batch(kind: Kind, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 32];
        bytes[..4].copy_from_slice(&(32 + body.len() as u32).to_le_bytes());
        bytes[4] = kind as u8;
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn only_a_send_ack_says_that_a_message_is_durable() {
        let reply = |outcome| {
            let response = Response { id: 7, outcome: Some(outcome) }.encode_to_vec().into();
            batch(Kind::Reply, &Reply { response, ..Reply::default() }.encode_to_vec())
        };
        let send_ack = reply(Answer::SendAck(SendAck { seq: 1, ..SendAck::default() }));
        let done = reply(Answer::Done(Done {}));
        assert!(acknowledges(&send_ack));
        assert!(!acknowledges(&done));
        assert!(acknowledges(&[done, send_ack.clone()].concat()), "behind another answer");
        assert!(!acknowledges(&batch(Kind::FanOut, &send_ack[32..])), "another kind");
    }
}
