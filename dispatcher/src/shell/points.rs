//! Which fail points a job of the store passes: see [`millrace_edge::failpoint`]. Nothing without the feature.

use millrace_edge::failpoint::{Point, hit};

use crate::store::{Done, Job, Outcome, Work, Write};

/// It goes to the store.
pub(crate) fn before(job: &Job) {
    if !cfg!(feature = "failpoints") {
        return;
    }
    match &job.work {
        Work::Append(batch) => {
            hit(Point::BeforeAppend);
            if batch.writes.iter().any(|write| matches!(write, Write::Cursor { .. })) {
                hit(Point::BeforeCursorWrite);
            }
        }
        Work::Register(_) => hit(Point::BeforeRouteWrite),
        _ => {}
    }
}

/// The store answered.
pub(crate) fn after(done: &Done) {
    if !cfg!(feature = "failpoints") {
        return;
    }
    match done.outcome {
        Ok(Outcome::Appended) => hit(Point::AfterAppend),
        Ok(Outcome::Registered { .. }) => hit(Point::AfterRouteWrite),
        _ => {}
    }
}
