//! Saves cursors beside the client's task, which must not wait for a disk: one save runs at a time, and what comes
//! meanwhile is the next one. Of each conversation only the newest position matters.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::core::{Position, Saved};
use crate::cursors::Cursors;

/// Pause after a save that failed.
const RETRY: Duration = Duration::from_secs(1);

type Running = JoinHandle<(Vec<Saved>, io::Result<()>)>;

/// See the module's head.
pub(crate) struct Saver {
    cursors: Cursors,
    waiting: BTreeMap<String, Option<Position>>,
    running: Option<Running>,
    not_before: Instant,
    failing: bool,
}

impl Saver {
    pub(crate) fn new(cursors: Cursors) -> Self {
        Saver { cursors, waiting: BTreeMap::new(), running: None, not_before: Instant::now(), failing: false }
    }

    pub(crate) fn push(&mut self, batch: Vec<Saved>) {
        self.waiting.extend(batch);
    }

    /// Saves until nothing waits, and then never returns; except with the first error of a row. Dropping the future
    /// loses nothing.
    pub(crate) async fn run(&mut self) -> String {
        loop {
            if self.running.is_none() && !self.waiting.is_empty() {
                sleep_until(self.not_before).await;
                self.start();
            }
            let Some(running) = &mut self.running else { std::future::pending().await };
            let outcome = running.await;
            self.running = None;
            if let Some(error) = self.finished(outcome) {
                return error;
            }
        }
    }

    /// Saves what waits, once. For the end.
    pub(crate) async fn flush(&mut self) {
        if let Some(running) = self.running.take() {
            let outcome = running.await;
            self.finished(outcome);
        }
        if !self.waiting.is_empty() {
            self.start();
            if let Some(running) = self.running.take() {
                let outcome = running.await;
                self.finished(outcome);
            }
        }
    }

    fn start(&mut self) {
        let batch: Vec<Saved> = std::mem::take(&mut self.waiting).into_iter().collect();
        let cursors = self.cursors.clone();
        self.running = Some(tokio::task::spawn_blocking(move || {
            let outcome = cursors.save(&batch);
            (batch, outcome)
        }));
    }

    /// Takes back what was not saved, unless something newer waits. Returns the first error of a row.
    fn finished(
        &mut self,
        outcome: Result<(Vec<Saved>, io::Result<()>), tokio::task::JoinError>,
    ) -> Option<String> {
        let (batch, error) = match outcome {
            Ok((_, Ok(()))) => {
                self.failing = false;
                return None;
            }
            Ok((batch, Err(error))) => (batch, error.to_string()),
            Err(error) => (Vec::new(), error.to_string()),
        };
        for (conversation, position) in batch {
            self.waiting.entry(conversation).or_insert(position);
        }
        self.not_before = Instant::now() + RETRY;
        (!std::mem::replace(&mut self.failing, true)).then_some(error)
    }
}
