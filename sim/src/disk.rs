//! A device's cursors on its disk. They are saved beside the machine, one batch at a time, as the SDK's saver does; a crash
//! takes what waits, and the rest of the batch that is being written.

use std::collections::BTreeMap;

use millrace_client::core::{Position, Saved};

use crate::random::Random;

/// See the module's head.
#[derive(Debug, Default)]
pub struct Disk {
    kept: BTreeMap<String, Position>,
    waiting: BTreeMap<String, Option<Position>>,
    /// When it is written, and what.
    writing: Option<(u64, Vec<Saved>)>,
    /// Time for a batch at most, us.
    save_us: u64,
    random: u64,
}

impl Disk {
    /// An empty one that needs so long for a batch at most.
    pub fn new(save_us: u64) -> Self {
        Disk { save_us, ..Disk::default() }
    }

    /// All that is kept.
    pub fn load(&self) -> Vec<(String, Position)> {
        self.kept.clone().into_iter().collect()
    }

    /// Keeps these soon.
    pub fn save(&mut self, now_us: u64, batch: Vec<Saved>, random: &mut Random) {
        self.random = random.nonzero();
        self.waiting.extend(batch);
        self.start(now_us);
    }

    fn start(&mut self, now_us: u64) {
        if self.writing.is_none() && !self.waiting.is_empty() {
            let took_us = 1 + self.random % self.save_us.max(1);
            let batch = std::mem::take(&mut self.waiting).into_iter().collect();
            self.writing = Some((now_us + took_us, batch));
        }
    }

    /// What is written by now is kept.
    pub fn turn(&mut self, now_us: u64) {
        if let Some((_, batch)) = self.writing.take_if(|(at_us, _)| *at_us <= now_us) {
            let count = batch.len();
            self.keep(batch, count);
            self.start(now_us);
        }
    }

    /// When there is something to do.
    pub fn next_us(&self) -> Option<u64> {
        self.writing.as_ref().map(|(at_us, _)| *at_us)
    }

    /// The process dies: any part of what is being written may be there.
    pub fn crash(&mut self, now_us: u64, random: &mut Random) {
        self.turn(now_us);
        self.waiting.clear();
        if let Some((_, batch)) = self.writing.take() {
            let count = random.index(batch.len() + 1);
            self.keep(batch, count);
        }
    }

    /// The process ends in good order: everything is saved first.
    pub fn finish(&mut self) {
        if let Some((_, batch)) = self.writing.take() {
            let count = batch.len();
            self.keep(batch, count);
        }
        let batch: Vec<Saved> = std::mem::take(&mut self.waiting).into_iter().collect();
        let count = batch.len();
        self.keep(batch, count);
    }

    fn keep(&mut self, batch: Vec<Saved>, count: usize) {
        for (conversation, position) in batch.into_iter().take(count) {
            match position {
                Some(position) => drop(self.kept.insert(conversation, position)),
                None => drop(self.kept.remove(&conversation)),
            }
        }
    }
}
