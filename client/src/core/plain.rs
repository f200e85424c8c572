//! What comes in from conversations without cursors: rooms, and all of them when the client does not acknowledge. Each
//! message is told once ([`super::seen`]); what is missing is told as a gap, and stays missing.
//!
//! Rooms are joined again after every login. If the application wants it, the newest messages from before the join are
//! read and told first; live ones wait for them, in bounded number.

use std::collections::{BTreeMap, BTreeSet};

use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{Deliver, History, Joined, RoomJoin, SyncPage, notify};

use super::seen::{Seen, WINDOW};
use super::told::Told;
use crate::event::{Event, Message};

/// Rooms that are joined again after a reconnect; joining more is refused.
pub(super) const ROOMS_MAX: usize = 1_024;

/// Live messages of a room that wait for what came before them.
const HELD_MAX: usize = 64;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Plain {
    user: String,
    device: String,
    seen: Seen,
    rooms: BTreeSet<String>,
    /// Rooms whose joining after a reconnect was not answered yet: messages to them wait.
    rejoining: BTreeSet<String>,
    replay: u32,
    /// Joined rooms whose past is to be read, from this seq down.
    wanted: BTreeMap<String, u64>,
    /// By request: which room's past is being read.
    asked: BTreeMap<u64, String>,
    held: BTreeMap<String, Vec<Deliver>>,
}

impl Plain {
    pub(super) fn new(device: &str, replay: u32) -> Self {
        Plain { device: device.into(), replay: replay.min(WINDOW as u32), ..Plain::default() }
    }

    /// Logged in: returns the requests that join the rooms again.
    pub(super) fn connected(&mut self, user: &str) -> Vec<Op> {
        self.user = user.into();
        self.rejoining.clone_from(&self.rooms);
        self.rooms.iter().map(|room| Op::RoomJoin(RoomJoin { room: room.clone() })).collect()
    }

    pub(super) fn disconnected(&mut self, told: &mut Told) {
        self.wanted.clear();
        self.asked.clear();
        for (_, held) in std::mem::take(&mut self.held) {
            held.into_iter().for_each(|deliver| self.show(deliver, told));
        }
    }

    /// Whether messages to this conversation must wait.
    pub(super) fn holds(&self, conversation: &str) -> bool {
        conversation.strip_prefix("r:").is_some_and(|room| self.rejoining.contains(room))
    }

    pub(super) fn is_full(&self) -> bool {
        self.rooms.len() >= ROOMS_MAX
    }

    /// The application leaves a room.
    pub(super) fn leaves(&mut self, room: &str) {
        self.rooms.remove(room);
        self.rejoining.remove(room);
        self.wanted.remove(room);
    }

    /// A room was joined.
    pub(super) fn joined(&mut self, room: &str, joined: &Joined) {
        self.rooms.insert(room.into());
        self.rejoining.remove(room);
        if self.replay > 0 && joined.head > 0 {
            self.wanted.insert(room.into(), joined.head);
            self.held.entry(joined.conversation.clone()).or_default();
        }
    }

    /// A room could not be joined again.
    pub(super) fn lost(&mut self, room: &str) {
        self.rooms.remove(room);
        self.rejoining.remove(room);
    }

    /// A message of this device was stored: should it come back, it is no news.
    pub(super) fn own(&mut self, conversation: &str, epoch: u64, seq: u64) {
        self.seen.note(conversation, epoch, seq);
    }

    /// A live message.
    pub(super) fn deliver(&mut self, deliver: Deliver, told: &mut Told) {
        match self.held.get_mut(&deliver.conversation) {
            Some(held) => {
                let conversation = deliver.conversation.clone();
                held.push(deliver);
                if held.len() > HELD_MAX {
                    self.release(&conversation, told);
                }
            }
            None => self.show(deliver, told),
        }
    }

    /// The next room whose past is to be read, as request `id`.
    pub(super) fn next_replay(&mut self, id: u64) -> Option<Op> {
        let (room, head) = self.wanted.pop_first()?;
        let conversation = format!("r:{room}");
        self.asked.insert(id, conversation.clone());
        Some(Op::History(History { conversation, before: head + 1, after: 0, limit: self.replay }))
    }

    /// The past of a room came, or (`None`) will not. Returns whether the request was one of these.
    pub(super) fn replayed(&mut self, id: u64, page: Option<SyncPage>, told: &mut Told) -> bool {
        let Some(conversation) = self.asked.remove(&id) else { return false };
        // Newest first.
        for entry in page.into_iter().flat_map(|page| page.entries.into_iter().rev()) {
            if let Some(notify::Event::Deliver(mut deliver)) = entry.event {
                deliver.conversation.clone_from(&conversation);
                self.show(deliver, told);
            }
        }
        self.release(&conversation, told);
        true
    }

    fn release(&mut self, conversation: &str, told: &mut Told) {
        for deliver in self.held.remove(conversation).unwrap_or_default() {
            self.show(deliver, told);
        }
    }

    fn show(&mut self, deliver: Deliver, told: &mut Told) {
        // Sent by this device, on an earlier connection whose answer was lost: its outcome tells the application.
        let own = deliver.sender == self.user && deliver.sender_device == self.device;
        if self.seen.note(&deliver.conversation, deliver.epoch, deliver.seq) && !own {
            told.tell(Event::Message(Message::from(deliver)));
        }
    }
}
