//! Reads conversations back at the end, as a new device of a member: the log as it is, from both ends.
//!
//! Each is read newest first (History) and oldest first (Sync from nothing); what differs is a fault of its own.

use millrace_protocol::messages::client::notify::Event as Told;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{self, Code, Cursor, Notify, SyncPage};

use super::line::{Heard, Line, Who};
use super::seat::content;
use crate::verify::history::{Entry, History, Place};

/// A refused page is asked for again after this, in us.
const AGAIN_US: u64 = 200_000;

/// One conversation that is read.
#[derive(Debug, Default)]
struct Volume {
    talk: u16,
    name: String,
    /// Newest first.
    back: Vec<Entry>,
    is_back_done: bool,
    forth: Vec<Entry>,
    is_done: bool,
    /// When to ask; never while a page is awaited.
    ask_at_us: u64,
}

/// A reader.
#[derive(Debug)]
pub struct Auditor {
    /// Its connection; what is asked is named by the conversation's place.
    pub line: Line<usize>,
    volumes: Vec<Volume>,
    /// What must not be, as it saw it.
    odd: Vec<String>,
}

impl Auditor {
    /// Reads these conversations, of which the user is a member.
    pub fn new(who: Who, target: usize, talks: impl IntoIterator<Item = (u16, String)>) -> Self {
        let volume = |(talk, name)| Volume { talk, name, ..Volume::default() };
        Auditor {
            line: Line::new(who, target),
            volumes: talks.into_iter().map(volume).collect(),
            odd: Vec::new(),
        }
    }

    /// Reads all of it once more.
    pub fn again(&mut self) {
        self.odd.clear();
        for volume in &mut self.volumes {
            let (talk, name) = (volume.talk, std::mem::take(&mut volume.name));
            *volume = Volume { talk, name, ..Volume::default() };
        }
    }

    /// Whether all is read.
    pub fn is_done(&self) -> bool {
        self.volumes.iter().all(|volume| volume.is_done)
    }

    /// Asks for what is due.
    pub fn turn(&mut self, now_us: u64) {
        if !self.line.is_in() {
            return;
        }
        for (at, volume) in self.volumes.iter_mut().enumerate() {
            if volume.is_done || now_us < volume.ask_at_us {
                continue;
            }
            volume.ask_at_us = u64::MAX;
            let conversation = volume.name.clone();
            let op = if volume.is_back_done {
                let last = volume.forth.last().map(|entry| entry.place);
                let after =
                    last.map_or(Cursor::default(), |place| Cursor { epoch: place.epoch, seq: place.seq });
                Op::Sync(client::Sync { conversation, after: Some(after), limit: 0 })
            } else {
                let before = volume.back.last().map_or(0, |entry| entry.place.seq);
                Op::History(client::History { conversation, before, after: 0, limit: 0 })
            };
            self.line.ask(now_us, at, op);
        }
    }

    /// What the line heard.
    pub fn heard(&mut self, now_us: u64, heard: Heard<usize>) {
        let Heard::Answer(at, outcome) = heard else { return };
        let volume = &mut self.volumes[at];
        match outcome {
            Outcome::SyncPage(page) => {
                volume.ask_at_us = 0;
                volume.take(&page, &mut self.odd);
            }
            Outcome::Refused(refused) => {
                volume.ask_at_us = now_us + AGAIN_US.max(u64::from(refused.retry_after_ms) * 1_000);
                let code = Code::try_from(refused.code).unwrap_or(Code::None);
                if code != Code::Busy && code != Code::Unavailable {
                    let (name, reason) = (&volume.name, &refused.reason);
                    self.odd.push(format!("{name}: reading back was refused with {code:?}: {reason}"));
                    volume.is_done = true;
                }
            }
            other => self.odd.push(format!("reading back was answered with {other:?}")),
        }
    }

    /// The connection is gone.
    pub fn lost(&mut self) {
        self.volumes.iter_mut().for_each(|volume| volume.ask_at_us = 0);
    }

    /// Hands over what was read.
    pub fn finish(self, history: &mut History) {
        history.odd.extend(self.odd);
        for volume in self.volumes {
            let Some(log) = history.logs.get_mut(usize::from(volume.talk)) else { continue };
            *log = volume.is_done.then_some(volume.forth);
        }
    }
}

impl Volume {
    fn take(&mut self, page: &SyncPage, odd: &mut Vec<String>) {
        let entries = page.entries.iter().filter_map(entry);
        if !self.is_back_done {
            self.back.extend(entries);
            self.is_back_done = !page.more;
            return;
        }
        if let Some(to) = page.truncated {
            let text = format!("{}: the log ends at {} although nothing is sent any more", self.name, to.seq);
            odd.push(text);
            self.is_done = true;
            return;
        }
        self.forth.extend(entries);
        self.is_done = !page.more;
        if self.is_done && !self.forth.iter().eq(self.back.iter().rev()) {
            let (back, forth) = (self.back.len(), self.forth.len());
            let text =
                format!("{}: {back} entries read backwards, {forth} forwards, and they differ", self.name);
            odd.push(text);
        }
    }
}

fn entry(notify: &Notify) -> Option<Entry> {
    let Some(Told::Deliver(deliver)) = &notify.event else { return None };
    let place = Place { epoch: deliver.epoch, seq: deliver.seq, id: deliver.message_id };
    Some(Entry { place, content: content(deliver) })
}
