//! Which fail points a batch towards a dispatcher passes: see [`millrace_edge::failpoint`]. Nothing without the feature.

use millrace_edge::failpoint::{Point, hit};
use millrace_protocol::link::Kind;
use millrace_protocol::link::record::peek_records;

/// A batch on its way.
pub(super) struct Passing {
    acks: bool,
}

impl Passing {
    /// It goes out.
    pub(super) fn begin(batch: &[u8]) -> Self {
        let acks = cfg!(feature = "failpoints") && peek_records(batch).any(|(kind, _)| kind == Kind::Acks);
        if acks {
            hit(Point::BeforeClientAck);
        }
        Passing { acks }
    }

    /// It is with the kernel, or with the dispatcher's queue.
    pub(super) fn end(self) {
        if self.acks {
            hit(Point::AfterClientAck);
        }
    }
}
