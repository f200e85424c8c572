//! The reference model as a store: jobs are carried out at once, on the caller's thread.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace_dispatcher::store::model::ModelStore;
use millrace_dispatcher::store::{Done, Job, Replies, Store};

/// See above. Clones share what is kept.
#[derive(Clone, Default)]
pub struct Model(pub Arc<Mutex<ModelStore>>);

impl Store for Model {
    fn submit(&self, jobs: Vec<Job>, replies: &Replies) {
        let mut model = self.0.lock().unwrap();
        let done = |Job { ticket, work }| Done { ticket, outcome: model.carry_out(work) };
        assert!(replies.send(jobs.into_iter().map(done).collect()).is_ok(), "a mailbox with room");
    }

    fn name(&self) -> &'static str {
        "model"
    }

    fn close(&self, _: Duration) {}
}
