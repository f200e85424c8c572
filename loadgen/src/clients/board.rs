//! Counters that a load thread writes and scenarios read.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters of one load thread; it alone writes them.
        #[derive(Debug, Default)]
        pub(super) struct Board {
            $(pub(super) $name: Counter,)*
            trouble: Mutex<Option<String>>,
            went_away: Mutex<BTreeMap<&'static str, u64>>,
        }

        /// Counters at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Totals {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Board {
            pub(super) fn totals(&self) -> Totals {
                Totals { $($name: self.$name.0.load(Relaxed),)* }
            }
        }

        impl Totals {
            /// The sum of two threads.
            pub fn plus(self, other: Totals) -> Totals {
                Totals { $($name: self.$name + other.$name,)* }
            }
        }
    };
}

counters! {
    /// Connections made since the start.
    connections,
    /// Connects that failed.
    connect_failures,
    /// Logins since the start.
    logins,
    /// Logins that were refused, or ended with the connection.
    login_failures,
    /// Logged in now.
    inside,
    /// In all their conversations now.
    ready,
    /// Joins that were given up.
    join_failures,
    /// Clients that were given up.
    given_up,
    /// Connections that ended although nobody wanted it.
    disconnects,
    /// Connections that were dropped by order.
    dropped,
    /// Messages of the schedule that left.
    sent,
    /// Answers to them: acknowledged or refused.
    answered,
    /// Receivers of what was acknowledged.
    expected,
    /// Deliveries that count.
    deliveries,
    /// Requests that were put off by the server and tried again.
    put_off,
    /// Messages of the schedule that were looked at.
    due,
    /// Messages that this thread has to send.
    planned,
}

/// Written by one thread, read by others.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        // One writer: a plain load and store would do; this is no slower where nobody contends.
        self.0.fetch_add(count, Relaxed);
    }

    pub(super) fn sub(&self, count: u64) {
        self.0.fetch_sub(count, Relaxed);
    }
}

impl Board {
    /// Keeps the first trouble, which is usually the cause of the others.
    pub(super) fn trouble(&self, what: impl FnOnce() -> String) {
        let mut trouble = self.trouble.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if trouble.is_none() {
            *trouble = Some(what());
        }
    }

    /// Counts a GoAway by its code.
    pub(super) fn went_away(&self, code: &'static str) {
        let mut all = self.went_away.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *all.entry(code).or_default() += 1;
    }

    pub(super) fn all_went_away(&self) -> BTreeMap<&'static str, u64> {
        self.went_away.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    pub(super) fn first_trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}
