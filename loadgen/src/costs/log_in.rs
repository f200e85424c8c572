//! A user with many conversations, all with news, logs in on devices that were never there before, one after the other:
//! asks for the list, then how each stands, then reads all news.
//!
//! The rule: the list must be whole, with the right unread counts and last messages, and all news read once.

use std::collections::{BTreeSet, VecDeque};

use millrace_edge::clock::boot_us;
use millrace_protocol::messages::client::notify::Event as Told;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Code, Conversations, Peek, PeekItem, Standing};
use rustc_hash::FxHashMap;

use super::catch_up::Reader;
use super::desk::{Desk, Part};
use super::fleet::Fleet;
use super::line::{Heard, Who, again_us, said};
use super::report::{self, Cpu, Deliveries, OneLogIn};
use crate::payload::Header;
use crate::rig::RunError;

/// Conversations of one Peek, and of one page of the list: the protocol's limit.
pub(super) const PEEK_MAX: usize = 256;

/// Syncs under way: half of what a session may ask at a time.
const SYNCS_MAX: usize = 32;

/// What was busy is asked for again after this, in us.
const AGAIN_US: u64 = 5_000;

/// Ids of the requests; a Sync has the place of its conversation, counted from 1.
const LIST_ID: u64 = u64::MAX - 1;
const PEEK_ID: u64 = u64::MAX - 2;

/// The part.
pub(super) struct LogIn {
    who: Vec<Who>,
    /// What the list must show, with what was read of it.
    conversations: Vec<(String, Reader)>,
    places: FxHashMap<String, usize>,
    run: u32,
    messages_each: u64,
    /// Listed, and not known yet how they stand.
    listed: BTreeSet<String>,
    is_listed: bool,
    /// To be synced, by place.
    unread: VecDeque<usize>,
    syncs: usize,
    read: usize,
    /// Requests that go again at a time, by id.
    again: Vec<(u64, u64)>,
    one: OneLogIn,
    before: Cpu,
    is_through: bool,
    all: Vec<OneLogIn>,
    cpu: Cpu,
    deliveries: Deliveries,
}

impl LogIn {
    /// These devices of one user read messages 1 to `messages_each` of each conversation. The desk is its own, from the
    /// first client on.
    pub(super) fn new(who: Vec<Who>, conversations: Vec<String>, run: u32, messages_each: u64) -> Self {
        LogIn {
            who,
            places: conversations.iter().cloned().zip(0..).collect(),
            conversations: conversations.into_iter().map(|name| (name, Reader::default())).collect(),
            run,
            messages_each,
            listed: BTreeSet::new(),
            is_listed: false,
            unread: VecDeque::new(),
            syncs: 0,
            read: 0,
            again: Vec::new(),
            one: OneLogIn::default(),
            before: Cpu::default(),
            is_through: true,
            all: Vec::new(),
            cpu: Cpu::default(),
            deliveries: Deliveries::default(),
        }
    }

    /// What was measured, once it is over.
    pub(super) fn finish(self) -> report::LogIn {
        let conversations = self.conversations.len() as u64;
        report::LogIn::of(conversations, self.messages_each, &self.all, self.cpu, self.deliveries)
    }

    fn ask(&self, desk: &mut Desk, line: usize, id: u64) {
        match id {
            LIST_ID => {
                let after = self.listed.last().cloned().unwrap_or_default();
                desk.say(line).ask(id, Op::Conversations(Conversations { after, limit: PEEK_MAX as u32 }));
            }
            PEEK_ID => {
                let item = |name: &String| PeekItem { conversation: name.clone(), cursor: None };
                let items = self.listed.iter().take(PEEK_MAX).map(item).collect();
                desk.say(line).ask(id, Op::Peek(Peek { items }));
            }
            place => {
                let (name, reader) = &self.conversations[place as usize - 1];
                reader.ask(desk.say(line), id, name);
            }
        }
    }

    /// Takes how one stands. Its last message and the unread count must be right. Returns whether it said all that: one
    /// that was busy, or whose last message found no room in the answer, is asked for again.
    fn stands(&mut self, standing: &Standing) -> Result<bool, String> {
        let name = &standing.conversation;
        if standing.code == Code::Busy as i32 || (standing.code == 0 && standing.last.is_none()) {
            return Ok(false);
        }
        let Some(&place) = self.places.get(name) else {
            return Err(format!("{name} is in the list, and is not one of the user's"));
        };
        let last = match standing.last.as_ref().and_then(|last| last.event.as_ref()) {
            Some(Told::Deliver(deliver)) => Header::decode(&deliver.payload),
            _ => None,
        };
        let last = last.map_or(0, |header| u64::from(header.message));
        let Standing { code, unread, news, .. } = standing;
        if (*code, u64::from(*unread), last, *news) != (0, self.messages_each, self.messages_each, true) {
            return Err(format!("{name} stands at {unread} unread, last {last}, news: {news} (code {code})"));
        }
        if self.listed.remove(name) {
            self.unread.push_back(place);
        }
        Ok(true)
    }

    fn sync(&mut self, desk: &mut Desk, line: usize) {
        while self.syncs < SYNCS_MAX && self.is_listed {
            let Some(place) = self.unread.pop_front() else { return };
            self.syncs += 1;
            self.ask(desk, line, place as u64 + 1);
        }
    }

    fn answered(
        &mut self,
        desk: &mut Desk,
        now_us: u64,
        line: usize,
        id: u64,
        outcome: Outcome,
    ) -> Result<(), String> {
        let since_us = desk.line(line).times.login_us;
        match outcome {
            Outcome::ConversationPage(page) => {
                self.listed.extend(page.items.into_iter().map(|item| item.conversation));
                if !page.more && self.listed.len() != self.conversations.len() {
                    return Err(format!("the list has {} conversations", self.listed.len()));
                }
                self.ask(desk, line, if page.more { LIST_ID } else { PEEK_ID });
            }
            Outcome::Peeked(peeked) => {
                let mut has_some = false;
                for standing in &peeked.standings {
                    has_some |= self.stands(standing)?;
                }
                if self.listed.is_empty() {
                    self.is_listed = true;
                    self.one.listed_us = now_us - since_us;
                } else if has_some {
                    self.ask(desk, line, PEEK_ID);
                } else {
                    self.again.push((now_us + AGAIN_US, PEEK_ID));
                }
            }
            Outcome::SyncPage(page) => {
                let (_, reader) = &mut self.conversations[id as usize - 1];
                if reader.take(desk.say(line), &page, self.run)? {
                    (self.syncs, self.read) = (self.syncs - 1, self.read + 1);
                } else {
                    self.ask(desk, line, id);
                }
                if self.read == self.conversations.len() {
                    self.one.read_us = now_us - since_us;
                    self.is_through = true;
                }
            }
            Outcome::Refused(refused) if again_us(refused.code, refused.retry_after_ms).is_some() => {
                let wait_us = again_us(refused.code, refused.retry_after_ms).unwrap_or(AGAIN_US);
                self.again.push((now_us + wait_us, id));
            }
            other => return Err(format!("a request of a login was {}", said(Some(&other)))),
        }
        self.sync(desk, line);
        Ok(())
    }

    /// The last device is through: the next one comes.
    fn next(&mut self, desk: &mut Desk, fleet: &Fleet) -> Result<(), RunError> {
        let cpu = fleet.cpu()?;
        let line = self.all.len();
        if self.read > 0 {
            self.cpu = self.cpu.plus(cpu.since(self.before));
            self.all.push(self.one);
            desk.close(line);
            for (_, reader) in &mut self.conversations {
                std::mem::take(reader).tell(self.messages_each, &mut self.deliveries);
            }
        }
        (self.is_listed, self.read) = (false, 0);
        if let Some(who) = self.who.get(self.all.len()) {
            self.before = cpu;
            self.is_through = false;
            desk.add(who.clone());
        }
        Ok(())
    }
}

impl Part for LogIn {
    fn heard(&mut self, desk: &mut Desk, now_us: u64, line: usize, heard: Heard) -> Result<(), String> {
        match heard {
            Heard::In => {
                let times = desk.line(line).times;
                self.one = OneLogIn {
                    from_connect_us: times.in_us - times.connect_us,
                    login_us: times.in_us - times.login_us,
                    ..OneLogIn::default()
                };
                self.ask(desk, line, LIST_ID);
                Ok(())
            }
            Heard::Answer(id, outcome) => self.answered(desk, now_us, line, id, outcome),
            Heard::Message(_) => Err("a message came, and nobody sends any".to_owned()),
            Heard::Told(_) => Ok(()),
        }
    }

    fn turn(&mut self, desk: &mut Desk, fleet: &Fleet, _: u64) -> Result<(), RunError> {
        if self.is_through {
            return self.next(desk, fleet);
        }
        let (now_us, line) = (boot_us(), self.all.len());
        let due: Vec<u64> =
            self.again.iter().filter(|(at_us, _)| *at_us <= now_us).map(|(_, id)| *id).collect();
        self.again.retain(|(at_us, _)| *at_us > now_us);
        due.into_iter().for_each(|id| self.ask(desk, line, id));
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.all.len() == self.who.len()
    }

    fn state(&self) -> String {
        format!(
            "{} logins are through; of the next, {} conversations have no standing, {} are read",
            self.all.len(),
            self.listed.len(),
            self.read
        )
    }
}
