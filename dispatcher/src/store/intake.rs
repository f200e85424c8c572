//! The queue between the shards and a store's own thread, and the answers that did not fit a mailbox.
//!
//! What jobs mean is left to the stores. The rule that keeps it right: every job that went in comes back as one
//! [`Done`], also when the queue is full, the store is closed, or the shard's mailbox has no room just now.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Done, Job, Replies, StoreError};

/// Jobs queued at most. One shard has one batch per partition in flight (1024) and bounded logins; four times what a
/// large node asks for at once still is answered rather than refused.
pub(super) const INTAKE_JOBS_MAX: usize = 65_536;
/// How soon answers that found a full mailbox are offered again.
pub(super) const LATE_RETRY: Duration = Duration::from_millis(1);

/// Jobs that were submitted together; answered together.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) jobs: Vec<Job>,
    pub(super) replies: Replies,
}

/// Where a store's thread finds its work.
pub(super) struct Intake {
    queue: Mutex<Queue>,
    closed: AtomicBool,
    refused: AtomicU64,
    late: AtomicU64,
    ring: Ring,
}

/// Wakes the store's thread.
type Ring = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Queue {
    submissions: VecDeque<Submission>,
    jobs: usize,
    late: VecDeque<(Replies, Vec<Done>)>,
}

impl Intake {
    pub(super) fn new(ring: Ring) -> Self {
        Self {
            queue: Mutex::default(),
            closed: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            late: AtomicU64::new(0),
            ring,
        }
    }

    /// Queues jobs for the thread; refuses them all when there is no room.
    pub(super) fn push(&self, jobs: Vec<Job>, replies: &Replies) {
        if jobs.is_empty() {
            return;
        }
        let mut queue = self.lock();
        let reason = if self.closed.load(Ordering::Acquire) {
            "it is closed"
        } else if queue.jobs + jobs.len() > INTAKE_JOBS_MAX && queue.jobs > 0 {
            "its intake is full"
        } else {
            queue.jobs += jobs.len();
            queue.submissions.push_back(Submission { jobs, replies: replies.clone() });
            drop(queue);
            (self.ring)();
            return;
        };
        drop(queue);
        self.refuse(jobs, replies, reason);
    }

    /// Answers jobs without doing them.
    pub(super) fn refuse(&self, jobs: Vec<Job>, replies: &Replies, reason: &str) {
        self.refused.fetch_add(jobs.len() as u64, Ordering::Relaxed);
        let refused =
            |job: Job| Done { ticket: job.ticket, outcome: Err(StoreError::Unavailable(reason.to_owned())) };
        self.answer(replies, jobs.into_iter().map(refused).collect());
    }

    /// Sends answers; those that find a full mailbox are kept and offered again by [`Intake::deliver_late`]. They are
    /// no more than the jobs their shard has open.
    pub(super) fn answer(&self, replies: &Replies, answers: Vec<Done>) {
        if answers.is_empty() {
            return;
        }
        if let Err(answers) = replies.send(answers)
            && !replies.is_closed()
        {
            self.late.fetch_add(1, Ordering::Relaxed);
            self.lock().late.push_back((replies.clone(), answers));
            (self.ring)();
        }
    }

    /// Offers late answers again. Returns whether some are still waiting.
    pub(super) fn deliver_late(&self) -> bool {
        let waiting = std::mem::take(&mut self.lock().late);
        if waiting.is_empty() {
            return false;
        }
        let mut left = VecDeque::new();
        for (replies, answers) in waiting {
            if let Err(answers) = replies.send(answers)
                && !replies.is_closed()
            {
                left.push_back((replies, answers));
            }
        }
        let some_left = !left.is_empty();
        self.lock().late.append(&mut left);
        some_left
    }

    /// Takes submissions, oldest first, up to about `jobs_max` jobs (one submission at least).
    pub(super) fn take(&self, jobs_max: usize) -> Vec<Submission> {
        let mut queue = self.lock();
        let (mut taken, mut jobs) = (Vec::new(), 0);
        while jobs < jobs_max
            && let Some(submission) = queue.submissions.pop_front()
        {
            jobs += submission.jobs.len();
            taken.push(submission);
        }
        queue.jobs -= jobs;
        taken
    }

    /// No job is taken in any more; what is queued is still there to be taken.
    pub(super) fn close(&self) {
        let guard = self.lock();
        self.closed.store(true, Ordering::Release);
        drop(guard);
        (self.ring)();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Jobs waiting; jobs refused and mailboxes found full since the start.
    pub(super) fn counters(&self) -> [(&'static str, u64); 3] {
        [
            ("store_jobs_queued", self.lock().jobs as u64),
            ("store_jobs_refused_total", self.refused.load(Ordering::Relaxed)),
            ("store_replies_late_total", self.late.load(Ordering::Relaxed)),
        ]
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        // Nothing panics while it is held; a poisoned lock still holds whole entries.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
