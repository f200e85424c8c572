//! One conversation in memory, and the table of them in a partition.
//!
//! What it holds can be loaded again at any time; only subscribers can't, and their gateways subscribe again at the
//! next announcement. The rule that keeps it right: `durable` and `members` are what the store has confirmed and all
//! that anyone is told; `head` runs ahead of them by what is in batches.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use millrace_protocol::link::Record;
use rustc_hash::FxHashMap;

use super::cursors::Moved;
use super::event::LinkKey;
use super::fates::Awaited;
use super::group_info::{Group, Info};
use super::groups::Rounds;
use super::holds::Holds;
use super::hub::Asker;
use super::limits::{LOAD_WAITING_MAX, REFERRED_MAX, WAITING_BYTES_MAX};
use super::members::Members;
use super::pair::Pair;
use super::receipts::Positions;
use super::streams::Streams;
use super::typing::Typing;
use crate::store::{Entry, Loaded};

/// A conversation that was loaded.
#[derive(Debug, Default)]
pub struct Conversation {
    /// Highest seq given.
    pub head: u64,
    /// Highest seq that is durable.
    pub durable: u64,
    /// Epoch of the entry there.
    pub durable_epoch: u64,
    /// Where the log ended when it was loaded: seq and epoch.
    pub base: (u64, u64),
    /// Messages up to `head` (not edits, reactions, …).
    pub messages: u64,
    /// Bytes of bodies up to `head`.
    pub bytes: u64,
    /// Lowest seq that the log holds.
    pub first_seq: u64,
    /// Groups: who is in it; `None`: there is no such group.
    pub members: Option<Members>,
    /// Links that get every message, with the version of their subscription.
    pub subscribers: FxHashMap<LinkKey, u64>,
    /// For repeats.
    pub streams: Streams,
    /// Messages that can't be judged yet.
    pub holds: Holds,
    /// Direct conversations: both users' lists name it.
    pub listed: bool,
    /// Entries that messages referred to lately; `None`: there is no such one.
    pub referred: VecDeque<(u64, Option<Entry>)>,
    /// Cursors that moved and are not written yet, and since when.
    pub moved: Moved,
    /// See `moved`.
    pub moved_since_us: u64,
    /// Who has what, to be told.
    pub positions: Positions,
    /// Messages whose senders want to know what becomes of them.
    pub fates: Vec<Awaited>,
    /// The newest message's Notify, once somebody asked for it.
    pub last: Option<Bytes>,
    /// Jobs at the store that are about this conversation.
    pub jobs: u32,
    /// The oldest entries are being looked at, and the head when that was last done.
    pub trimming: bool,
    /// See `trimming`.
    pub trimmed_at: u64,
    /// Groups: what else is known of it.
    pub group: Group,
    /// Direct conversations: what its users are to each other.
    pub pair: Pair,
    /// Who typed lately.
    pub typing: Typing,
    /// State as the store has it, without what has a field of its own here.
    pub state: BTreeMap<String, Bytes>,
    /// Who asked again for a seq that is not durable yet.
    pub repeats: Vec<(u64, Asker)>,
    /// Changes of membership.
    pub rounds: Rounds,
    /// Used since the table last looked for something to evict.
    used: bool,
}

impl Conversation {
    fn new(loaded: Loaded) -> Self {
        let mut state = loaded.state.into_iter().collect();
        let mut members = loaded.members.map(|(users, version)| Members::new(users, version));
        let group = Group::take(&mut state, &mut members);
        let pair = Pair::take(&mut state);
        Conversation {
            head: loaded.head,
            durable: loaded.head,
            durable_epoch: loaded.head_epoch,
            base: (loaded.head, loaded.head_epoch),
            messages: loaded.messages,
            bytes: loaded.bytes,
            first_seq: loaded.first_seq,
            listed: loaded.head > 0,
            group,
            pair,
            state,
            members,
            streams: Streams::new(loaded.head == 0),
            ..Conversation::default()
        }
    }

    /// What is known of this group behind everything that is in batches, as messages will come behind it too.
    pub fn info_ahead(&self) -> &Info {
        self.rounds.info().unwrap_or(self.group.info())
    }

    /// Whether a user is an admin of this group.
    pub fn is_admin(&self, user: &str) -> bool {
        self.info_ahead().is_admin(user)
    }

    /// The entry that a message refers to; `None`: it must be read first.
    pub fn referred(&self, seq: u64) -> Option<Option<&Entry>> {
        self.referred.iter().find(|(known, _)| *known == seq).map(|(_, entry)| entry.as_ref())
    }

    /// An entry that messages refer to was read.
    pub fn refer(&mut self, seq: u64, entry: Option<Entry>) {
        self.referred.retain(|(known, _)| *known != seq);
        self.referred.truncate(REFERRED_MAX - 1);
        self.referred.push_front((seq, entry));
    }

    /// Links that get every message, in order of links so that runs repeat.
    pub fn listeners(&self) -> Vec<LinkKey> {
        let mut links: Vec<_> = self.subscribers.keys().copied().collect();
        links.sort_unstable();
        links
    }

    fn is_idle(&self) -> bool {
        self.subscribers.is_empty()
            && self.head == self.durable
            && self.repeats.is_empty()
            && self.rounds.is_idle()
            && self.pair.is_idle()
            && self.holds.is_empty()
            && self.moved.is_empty()
            && self.positions.is_idle()
            && self.fates.is_empty()
            && self.jobs == 0
            && !self.trimming
    }
}

/// Records that wait for something.
#[derive(Debug, Default)]
pub struct Backlog {
    records: Vec<(LinkKey, Record)>,
    bytes: usize,
}

impl Backlog {
    /// Takes a record, or gives it back.
    pub fn push(&mut self, link: LinkKey, record: Record, count_max: usize) -> Result<(), Record> {
        if self.records.len() >= count_max || self.bytes + record.size_bytes() > WAITING_BYTES_MAX {
            return Err(record);
        }
        self.bytes += record.size_bytes();
        // Not a slice of a receive buffer, which it would keep whole.
        let body = Bytes::copy_from_slice(&record.body);
        self.records.push((link, Record { body, ..record }));
        Ok(())
    }

    /// All of them, in order.
    pub fn take(&mut self) -> Vec<(LinkKey, Record)> {
        self.bytes = 0;
        std::mem::take(&mut self.records)
    }
}

/// A place in the table.
#[derive(Debug)]
pub enum Slot {
    /// Records wait for it.
    Loading(Backlog),
    /// In memory.
    Ready(Box<Conversation>),
}

/// What became of a record for a conversation that is not ready.
#[derive(Debug)]
pub enum Wait {
    /// It waits for a load that is under way.
    Waits,
    /// It waits; start the load.
    Load,
    /// There is no room.
    Full(Record),
}

/// The conversations of a partition.
#[derive(Debug, Default)]
pub struct Table {
    slots: FxHashMap<String, Slot>,
    /// Ready ones in the order in which the clock looks at them.
    clock: VecDeque<String>,
}

impl Table {
    /// A conversation in memory.
    pub fn ready(&mut self, name: &str) -> Option<&mut Conversation> {
        match self.slots.get_mut(name)? {
            Slot::Ready(conversation) => {
                conversation.used = true;
                Some(conversation)
            }
            Slot::Loading(_) => None,
        }
    }

    /// Keeps a record for a conversation that is not ready.
    pub fn wait(&mut self, name: &str, link: LinkKey, record: Record, count_max: usize) -> Wait {
        if let Some(Slot::Loading(backlog)) = self.slots.get_mut(name) {
            return match backlog.push(link, record, LOAD_WAITING_MAX) {
                Ok(()) => Wait::Waits,
                Err(record) => Wait::Full(record),
            };
        }
        if self.slots.len() >= count_max {
            return Wait::Full(record);
        }
        let mut backlog = Backlog::default();
        if let Err(record) = backlog.push(link, record, LOAD_WAITING_MAX) {
            return Wait::Full(record);
        }
        self.slots.insert(name.to_owned(), Slot::Loading(backlog));
        Wait::Load
    }

    /// The answer to a load: what waited for it. A failed one leaves nothing.
    pub fn loaded(&mut self, name: String, loaded: Option<Loaded>) -> Vec<(LinkKey, Record)> {
        let waited = match self.slots.remove(&name) {
            Some(Slot::Loading(mut backlog)) => backlog.take(),
            _ => Vec::new(),
        };
        if let Some(loaded) = loaded {
            self.slots.insert(name.clone(), Slot::Ready(Box::new(Conversation::new(loaded))));
            self.clock.push_back(name);
        }
        waited
    }

    /// Forgets idle conversations while there are more than `count`: a few looks per call, each conversation gets a
    /// second chance if it was used since the last look. Returns how many went.
    pub fn evict(&mut self, count: usize) -> u64 {
        let mut evicted = 0;
        for _ in 0..8 {
            if self.slots.len() <= count {
                break;
            }
            let Some(name) = self.clock.pop_front() else { break };
            match self.slots.get_mut(&name) {
                Some(Slot::Ready(conversation)) if conversation.is_idle() && !conversation.used => {
                    self.slots.remove(&name);
                    evicted += 1;
                }
                Some(Slot::Ready(conversation)) => {
                    conversation.used = false;
                    self.clock.push_back(name);
                }
                _ => {}
            }
        }
        evicted
    }

    /// Conversations here, loading ones included.
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// All conversations that are ready, with their names.
    pub fn all_ready(&mut self) -> impl Iterator<Item = (&str, &mut Conversation)> {
        self.slots.iter_mut().filter_map(|(name, slot)| match slot {
            Slot::Ready(conversation) => Some((name.as_str(), &mut **conversation)),
            Slot::Loading(_) => None,
        })
    }

    /// Forgets what a link subscribed to.
    pub fn forget_link(&mut self, link: LinkKey) {
        for slot in self.slots.values_mut() {
            if let Slot::Ready(conversation) = slot {
                conversation.subscribers.remove(&link);
            }
        }
    }

    /// Everyone who waits for a load, or for a change of members that is in no batch yet: nothing new begins.
    pub fn stop_waiting(&mut self, waiting: &mut Vec<(LinkKey, Record)>, askers: &mut Vec<Asker>) {
        for slot in self.slots.values_mut() {
            match slot {
                Slot::Loading(backlog) => waiting.append(&mut backlog.take()),
                Slot::Ready(conversation) => {
                    askers.append(&mut conversation.rounds.stop_waiting());
                    askers.append(&mut conversation.pair.stop_waiting());
                    waiting.append(&mut conversation.holds.drain());
                }
            }
        }
    }

    /// Empties the table, in order of names.
    pub fn drain(&mut self) -> Vec<(String, Slot)> {
        self.clock.clear();
        let mut slots: Vec<_> = self.slots.drain().collect();
        slots.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        slots
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::ids::SessionId;
    use millrace_protocol::link::Kind;

    use super::*;

    const LINK: LinkKey = LinkKey { gateway: 1, shard: 0 };

    fn record(bytes: usize) -> Record {
        let body = Bytes::from(vec![0; bytes]);
        Record { kind: Kind::Fetch, partition: 0, epoch: 0, session: SessionId::NONE, body }
    }

    #[test]
    fn records_wait_for_one_load_within_bounds() {
        let mut table = Table::default();
        assert!(matches!(table.wait("r:a", LINK, record(10), 2), Wait::Load));
        assert!(matches!(table.wait("r:a", LINK, record(10), 2), Wait::Waits));
        assert!(matches!(table.wait("r:a", LINK, record(WAITING_BYTES_MAX), 2), Wait::Full(_)));
        assert!(matches!(table.wait("r:b", LINK, record(10), 2), Wait::Load));
        assert!(matches!(table.wait("r:c", LINK, record(10), 2), Wait::Full(_)));
        assert_eq!(table.loaded("r:a".into(), Some(Loaded::default())).len(), 2);
        assert_eq!(table.loaded("r:b".into(), None).len(), 1);
        assert_eq!(table.count(), 1);
    }

    #[test]
    fn only_idle_conversations_are_evicted_and_used_ones_later() {
        let mut table = Table::default();
        for name in ["r:a", "r:b", "r:c"] {
            table.loaded(name.into(), Some(Loaded::default()));
        }
        table.ready("r:a").unwrap().subscribers.insert(LINK, 1);
        table.ready("r:b").unwrap();
        assert_eq!(table.evict(2), 1);
        assert!(table.ready("r:a").is_some() && table.ready("r:b").is_some() && table.ready("r:c").is_none());
        assert_eq!(table.evict(0), 1);
        assert_eq!(table.evict(0), 0);
        table.forget_link(LINK);
        assert_eq!(table.evict(0), 1);
    }
}
