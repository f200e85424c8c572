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
