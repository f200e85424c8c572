//! Devices that were never there before read what was missed in one direct conversation, one after the other: page by
//! page, each acknowledged before the next is asked for.
//!
//! The rule: every device must read every message once, and in order.

use millrace_protocol::messages::client::notify::Event as Told;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Cursor, Sync, SyncPage};

use super::desk::{Desk, Part};
use super::fleet::Fleet;
use super::line::{Heard, Line, Who, again_us, said};
use super::report::{self, Cpu, Deliveries};
use super::window::Arrivals;
use crate::payload::Header;
use crate::rig::RunError;

/// How far a device has read one conversation.
#[derive(Clone, Debug, Default)]
pub(super) struct Reader {
    pub(super) cursor: Cursor,
    pub(super) arrivals: Arrivals,
}

impl Reader {
    /// Asks for what follows.
    pub(super) fn ask(&self, line: &mut Line, id: u64, conversation: &str) {
        let sync = Sync { conversation: conversation.to_owned(), after: Some(self.cursor), limit: 0 };
        line.ask(id, Op::Sync(sync));
    }

    /// Takes a page, and acknowledges it. Returns whether it was the last one.
    pub(super) fn take(&mut self, line: &mut Line, page: &SyncPage, run: u32) -> Result<bool, String> {
        if page.truncated.is_some() || page.gap.is_some() {
            return Err(format!("the log of {} is not whole", page.conversation));
        }
        for entry in &page.entries {
            let Some(Told::Deliver(deliver)) = &entry.event else {
                return Err("a page holds something else than entries".to_owned());
            };
            self.cursor = Cursor { epoch: deliver.epoch, seq: deliver.seq };
            match Header::decode(&deliver.payload).filter(|header| header.run == run) {
                Some(header) => drop(self.arrivals.take(header.message.into())),
                None => return Err(format!("{} holds a message of somebody else", page.conversation)),
            }
        }
        if !page.entries.is_empty() {
            line.acknowledge(&page.conversation, self.cursor);
        }
        if page.more && page.entries.is_empty() {
            return Err("a page that is not the last is empty".to_owned());
        }
        Ok(!page.more)
    }

    /// Adds what it read of messages 1 to `count`.
    pub(super) fn tell(&self, count: u64, deliveries: &mut Deliveries) {
        deliveries.expected += count;
        deliveries.came += self.arrivals.count();
        deliveries.repeated += self.arrivals.repeats;
    }
}

/// The part.
pub(super) struct CatchUp {
    who: Vec<Who>,
    conversation: String,
    run: u32,
    count: u64,
    reader: Reader,
    /// CPU and time at the first Sync.
    begun: Option<(Cpu, u64)>,
    is_read: bool,
    ask_us: Option<u64>,
    walls_us: Vec<u64>,
    cpu: Cpu,
    deliveries: Deliveries,
}

impl CatchUp {
    /// These devices read messages 1 to `count` of a conversation. The desk is its own, from the first client on.
    pub(super) fn new(desk: &mut Desk, who: Vec<Who>, conversation: String, run: u32, count: u64) -> Self {
        if let Some(first) = who.first() {
            desk.add(first.clone());
        }
        CatchUp {
            who,
            conversation,
            run,
            count,
            reader: Reader::default(),
            begun: None,
            is_read: false,
            ask_us: None,
            walls_us: Vec::new(),
            cpu: Cpu::default(),
            deliveries: Deliveries::default(),
        }
    }

    /// What was measured, once it is over.
    pub(super) fn finish(self) -> report::CatchUp {
        report::CatchUp::of(self.count, self.walls_us, self.cpu, self.deliveries)
    }
}

impl Part for CatchUp {
    fn heard(&mut self, desk: &mut Desk, now_us: u64, line: usize, heard: Heard) -> Result<(), String> {
        let Heard::Answer(_, outcome) = heard else { return Ok(()) };
        match outcome {
            Outcome::SyncPage(page) => {
                self.is_read = self.reader.take(desk.say(line), &page, self.run)?;
                match (self.is_read, self.begun) {
                    (true, Some((_, begun_us))) => self.walls_us.push(now_us - begun_us),
                    _ => self.reader.ask(desk.say(line), 1, &self.conversation),
                }
                Ok(())
            }
            Outcome::Refused(refused) if again_us(refused.code, refused.retry_after_ms).is_some() => {
                self.ask_us = again_us(refused.code, refused.retry_after_ms).map(|us| now_us + us);
                Ok(())
            }
            other => Err(format!("a Sync was {}", said(Some(&other)))),
        }
    }

    fn turn(&mut self, desk: &mut Desk, fleet: &Fleet, now_us: u64) -> Result<(), RunError> {
        let line = self.walls_us.len() - usize::from(self.is_read);
        if self.is_read {
            if let Some((before, _)) = self.begun.take() {
                self.cpu = self.cpu.plus(fleet.cpu()?.since(before));
            }
            desk.close(line);
            std::mem::take(&mut self.reader).tell(self.count, &mut self.deliveries);
            self.is_read = false;
            if let Some(next) = self.who.get(line + 1) {
                desk.add(next.clone());
            }
        } else if self.is_done() || !desk.line(line).is_in {
            // It is still on its way.
        } else if self.begun.is_none() {
            self.begun = Some((fleet.cpu()?, millrace_edge::clock::boot_us()));
            self.reader.ask(desk.say(line), 1, &self.conversation);
        } else if self.ask_us.take_if(|ask_us| *ask_us <= now_us).is_some() {
            self.reader.ask(desk.say(line), 1, &self.conversation);
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.walls_us.len() == self.who.len() && !self.is_read
    }

    fn state(&self) -> String {
        let (read, all) = (self.reader.arrivals.count(), self.count);
        format!("{} devices have caught up, the next one has {read} of {all}", self.walls_us.len())
    }
}
