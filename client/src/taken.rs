//! How far the application has taken its events: a number that it moves and the client's task reads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Notify;

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    number: AtomicU64,
    left: AtomicBool,
    moved: Notify,
}

impl Taken {
    /// The application has taken everything up to this number.
    pub(crate) fn take(&self, number: u64) {
        self.number.fetch_max(number, Ordering::Release);
        self.moved.notify_one();
    }

    /// The application takes no more.
    pub(crate) fn leave(&self) {
        self.left.store(true, Ordering::Release);
        self.moved.notify_one();
    }

    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    pub(crate) fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// Returns when one of them has moved since the last call, or now if one had.
    pub(crate) async fn moved(&self) {
        self.moved.notified().await;
    }
}
