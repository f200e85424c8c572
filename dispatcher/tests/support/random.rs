//! The same random jobs for a store and for the model: every outcome must be the same.
//!
//! The jobs are those of an owner that keeps its promises (dense seqs, growing ids, lists before members), now and then
//! with another fence or position than its own. Whoever calls prints the seed.

use std::collections::BTreeMap;

use bytes::Bytes;
use millrace_dispatcher::store::{
    Batch, Change, Cursor, CursorsOf, Entry, Fence, List, Outcome, STREAMS_PER_DEVICE_MAX, StoreError,
    StreamKey, UserItem, Work, Write,
};
use millrace_protocol::ids::Partition;

use super::world::{Claim, World};

const USERS: [&str; 4] = ["a", "alice", "alice-2", "bob"];
const DEVICES: [&str; 3] = ["p", "pad", "phone"];
const OWNED: [Partition; 2] = [3, 9];
const LISTS: [List; 6] =
    [List::Groups, List::Directs, List::Friends, List::FriendRequests, List::Blocks, List::Settings];

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }

    /// Mostly short; any bytes.
    fn bytes(&mut self) -> Bytes {
        let length = if self.one_in(20) { 2_000 } else { 40 };
        let length = self.below(length);
        (0..length).map(|_| self.next() as u8).collect()
    }

    fn user(&mut self) -> String {
        (*self.pick(&USERS)).to_owned()
    }

    fn device(&mut self) -> String {
        (*self.pick(&DEVICES)).to_owned()
    }
}

/// What the owner knows of a conversation.
#[derive(Clone, Default)]
struct Talk {
    head: u64,
    messages: u64,
    bytes: u64,
    version: u64,
    /// Its entries without their bodies, lowest first.
    log: Vec<Entry>,
    /// Per user and device: streams and their last numbers.
    streams: BTreeMap<(String, String), Vec<(u64, u64)>>,
}

/// The owner, with its claims of both stores.
struct Owner {
    random: Random,
    talks: BTreeMap<(Partition, String), Talk>,
    claims: BTreeMap<Partition, [Claim; 2]>,
    /// The last message id, before its place in the id.
    ids: u64,
    wall_ms: u64,
}

/// Runs `steps` rounds of jobs; returns how many jobs there were.
pub fn differ(seed: u64, store: &World<'_>, steps: u64) -> u64 {
    let model = World::model();
    let worlds = [store, &model];
    let mut owner = Owner {
        random: Random(seed),
        talks: BTreeMap::new(),
        claims: BTreeMap::new(),
        ids: 1,
        wall_ms: 1_000,
    };
    // Everyone is in the list of every group from the beginning: lists before members.
    for world in worlds {
        let items = OWNED.iter().flat_map(|partition| owner.conversations(*partition)).flat_map(|group| {
            USERS.map(|user| UserItem {
                user: user.into(),
                list: List::Groups,
                item: group.clone(),
                change: Change::Add(Bytes::new()),
            })
        });
        assert_eq!(
            world.call(Work::UserItems { items: items.collect(), claim: None }),
            Ok(Outcome::UserItemsDone)
        );
    }
    for partition in OWNED {
        owner.claim(worlds, partition);
    }
    let mut jobs = 0;
    for step in 0..steps {
        let round: Vec<[Work; 2]> = owner.round();
        jobs += round.len() as u64;
        let shown: Vec<String> = round.iter().map(|[work, _]| format!("{work:?}")).collect();
        let (ours, theirs): (Vec<Work>, Vec<Work>) = round.into_iter().map(|[a, b]| (a, b)).unzip();
        let (ours, theirs) = (store.calls(ours), model.calls(theirs));
        for ((ours, theirs), work) in ours.into_iter().zip(theirs).zip(shown) {
            assert_eq!(ours, theirs, "step {step}: store and model differ over\n{work}");
        }
        if owner.random.one_in(12) {
            let partition = *owner.random.pick(&OWNED);
            owner.move_on(worlds, partition);
        }
        if owner.random.one_in(150) {
            store.reopen();
        }
    }
    for partition in OWNED {
        assert_eq!(store.event_count(partition), model.event_count(partition));
    }
    jobs
}

impl Owner {
    fn conversations(&self, partition: Partition) -> [String; 3] {
        ["g:t", "g:tea", "g:teapot"].map(|name| format!("{name}-{partition}"))
    }

    fn claim(&mut self, worlds: [&World<'_>; 2], partition: Partition) {
        self.wall_ms += 1 + self.random.below(3);
        let [ours, theirs] = worlds.map(|world| world.claim(partition, "a", self.wall_ms));
        assert_eq!(
            (ours.position, ours.last_message_id, &ours.outstanding),
            (theirs.position, theirs.last_message_id, &theirs.outstanding)
        );
        // Each goes by a clock of its own.
        if let Some(before) = self.claims.get(&partition) {
            let grew = |at: usize, now: &Claim| now.fence.epoch > before[at].fence.epoch;
            assert!(grew(0, &ours) && grew(1, &theirs));
        }
        self.claims.insert(partition, [ours, theirs]);
    }

    /// Claims again, with or without a release.
    fn move_on(&mut self, worlds: [&World<'_>; 2], partition: Partition) {
        if self.random.one_in(2) {
            for (world, claim) in worlds.iter().zip(&self.claims[&partition]) {
                let release = || Work::Release { partition, fence: claim.fence };
                assert_eq!(world.call(release()), Ok(Outcome::Released));
                assert_eq!(world.call(release()), Err(StoreError::Fenced { partition }));
            }
        }
        self.claim(worlds, partition);
    }

    /// Jobs that are submitted together, for both stores.
    fn round(&mut self) -> Vec<[Work; 2]> {
        let mut round = Vec::new();
        for _ in 0..=self.random.below(6) {
            let partition = *self.random.pick(&OWNED);
            round.push(match self.random.below(12) {
                0..=5 => self.append(partition),
                6 => self.read(partition),
                7 => self.cursors(partition),
                8 => self.answers(partition),
                9 => self.items(),
                10 => self.list(),
                // A load may be overtaken by what is submitted behind it.
                _ => {
                    round.push(self.load(partition));
                    break;
                }
            });
        }
        round
    }

    fn fences(&mut self, partition: Partition) -> [Fence; 2] {
        let mut fences = [0, 1].map(|at| self.claims[&partition][at].fence);
        if self.random.one_in(40) {
            fences.iter_mut().for_each(|fence| fence.nonce ^= 1);
        }
        fences
    }

    fn conversation(&mut self, partition: Partition) -> String {
        let all = self.conversations(partition);
        self.random.pick(&all).clone()
    }

    fn append(&mut self, partition: Partition) -> [Work; 2] {
        let before = (self.talks.clone(), self.ids);
        let writes: Vec<Write> = (0..=self.random.below(8)).map(|_| self.write(partition)).collect();
        let fences = self.fences(partition);
        let astray = if self.random.one_in(40) { 1 + self.random.below(3) } else { 0 };
        let position = self.claims[&partition][0].position;
        let messages = writes.iter().filter_map(|write| match write {
            Write::Message(entry) => Some((entry.conversation.clone(), entry.seq)),
            _ => None,
        });
        let outstanding: Vec<_> = if self.random.one_in(2) { messages.collect() } else { Vec::new() };
        let fanned_out = position.saturating_sub(self.random.below(60));
        let batch = |at: usize| {
            Work::Append(Batch {
                partition,
                fence: fences[at],
                position: position + astray,
                writes: writes.clone(),
                outstanding: outstanding.clone(),
                fanned_out,
            })
        };
        let works = [batch(0), batch(1)];
        if astray != 0 || fences[0] != self.claims[&partition][0].fence {
            // It will be refused: nothing of it happened. Its ids are not given again.
            self.talks = before.0;
        } else {
            for claim in self.claims.get_mut(&partition).expect("claimed") {
                claim.position += writes.len() as u64;
            }
        }
        works
    }

    fn write(&mut self, partition: Partition) -> Write {
        let conversation = self.conversation(partition);
        let key = (partition, conversation.clone());
        let talk = self.talks.entry(key.clone()).or_default();
        let head = talk.head;
        match self.random.below(16) {
            0..=7 => Write::Message(self.message(partition, conversation)),
            8 => {
                let seq = self.random.below(head + 3);
                let mut entry = self.entry(partition, conversation);
                entry.seq = seq;
                // Who sent it, how and when stays.
                if let Some(old) = self.talks[&key].log.get(seq.wrapping_sub(1) as usize) {
                    let (action, notify) = (entry.action, entry.notify);
                    entry = Entry { action, notify, ..old.clone() };
                }
                Write::Replace(entry)
            }
            9 => {
                talk.version += 1;
                let version = talk.version;
                let some = |random: &mut Random| -> Vec<String> {
                    USERS.iter().filter(|_| random.one_in(3)).map(|user| (*user).to_owned()).collect()
                };
                if version == 1 {
                    Write::GroupCreate { conversation, members: some(&mut self.random), version }
                } else {
                    let (add, mut remove) = (some(&mut self.random), some(&mut self.random));
                    remove.retain(|user| !add.contains(user));
                    Write::Members { conversation, add, remove, version }
                }
            }
            10 | 11 => {
                let key = (*self.random.pick(&["name", "muted", "mu", ""])).to_owned();
                let value = (!self.random.one_in(3)).then(|| self.random.bytes());
                Write::State { conversation, key, value }
            }
            12 | 13 => {
                let device = if self.random.one_in(3) { String::new() } else { self.random.device() };
                let cursor = Cursor {
                    epoch: self.wall_ms - self.random.below(3),
                    seq: self.random.below(head + 300),
                    messages: self.random.below(9),
                };
                Write::Cursor { conversation, user: self.random.user(), device, cursor }
            }
            14 => {
                let first_seq = (head + 4).saturating_sub(self.random.below(30));
                Write::Trim { conversation, first_seq }
            }
            _ => Write::Event { kind: "login", body: Bytes::from_static(b"{}") },
        }
    }

    fn entry(&mut self, partition: Partition, conversation: String) -> Entry {
        self.ids += 1;
        let notify = self.random.bytes();
        Entry {
            conversation,
            seq: 0,
            message_id: millrace_protocol::ids::MessageId(self.ids << 22 | u64::from(partition) << 12),
            epoch: self.wall_ms,
            action: self.random.below(4) as u8,
            messages: self.random.below(1_000),
            bytes: self.random.below(1_000),
            sender: self.random.user(),
            device: self.random.device(),
            stream: 0,
            client_seq: 0,
            payload_hash: self.random.next(),
            notify,
        }
    }

    /// The next one of a log, of one of its device's newest streams, or of a new one.
    fn message(&mut self, partition: Partition, conversation: String) -> Entry {
        let mut entry = self.entry(partition, conversation.clone());
        let talk = self.talks.entry((partition, conversation)).or_default();
        talk.head += 1;
        talk.messages += 1;
        talk.bytes += entry.notify.len() as u64;
        (entry.seq, entry.messages, entry.bytes) = (talk.head, talk.messages, talk.bytes);
        if self.random.one_in(5) {
            talk.log.push(Entry { notify: Bytes::new(), ..entry.clone() });
            return entry;
        }
        let streams = talk.streams.entry((entry.sender.clone(), entry.device.clone())).or_default();
        if streams.is_empty() || self.random.one_in(12) {
            streams.push((self.random.next() | 1, 0));
        }
        let newest = streams.len() - 1 - self.random.below(streams.len().min(3) as u64) as usize;
        let (stream, client_seq) = &mut streams[newest];
        *client_seq += 1;
        (entry.stream, entry.client_seq) = (*stream, *client_seq);
        talk.log.push(Entry { notify: Bytes::new(), ..entry.clone() });
        entry
    }

    /// One of a device's newest streams: a store may keep others for a while.
    fn stream(&mut self, partition: Partition, conversation: &str) -> StreamKey {
        let (user, device) = (self.random.user(), self.random.device());
        let talk = self.talks.entry((partition, conversation.to_owned())).or_default();
        let of_device = talk.streams.get(&(user.clone(), device.clone()));
        let newest = of_device.map(|all| &all[all.len().saturating_sub(STREAMS_PER_DEVICE_MAX)..]);
        let stream = newest.filter(|all| !all.is_empty()).map_or(7, |all| self.random.pick(all).0);
        StreamKey { user, device, stream }
    }

    fn load(&mut self, partition: Partition) -> [Work; 2] {
        let conversation = self.conversation(partition);
        let stream = self.random.one_in(2).then(|| self.stream(partition, &conversation));
        self.fences(partition).map(|fence| Work::Load {
            partition,
            fence,
            conversation: conversation.clone(),
            stream: stream.clone(),
        })
    }

    fn answers(&mut self, partition: Partition) -> [Work; 2] {
        let conversation = self.conversation(partition);
        let stream = self.stream(partition, &conversation);
        self.fences(partition).map(|fence| Work::Answers {
            partition,
            fence,
            conversation: conversation.clone(),
            stream: stream.clone(),
        })
    }

    fn cursors(&mut self, partition: Partition) -> [Work; 2] {
        let conversation = self.conversation(partition);
        let of = if self.random.one_in(2) {
            CursorsOf::User(self.random.user())
        } else if self.random.one_in(2) {
            CursorsOf::All { after: Default::default(), limit: self.random.below(20) as usize }
        } else {
            CursorsOf::All { after: (self.random.user(), self.random.device()), limit: 5 }
        };
        self.fences(partition).map(|fence| Work::Cursors {
            partition,
            fence,
            conversation: conversation.clone(),
            of: of.clone(),
        })
    }

    fn read(&mut self, partition: Partition) -> [Work; 2] {
        let conversation = self.conversation(partition);
        let head = self.talks.entry((partition, conversation.clone())).or_default().head;
        let after = self.random.below(head + 2);
        let through = if self.random.one_in(3) { u64::MAX } else { self.random.below(head + 3) };
        let limit_bytes = if self.random.one_in(2) { 1 << 20 } else { self.random.below(200) as usize };
        let entries_max = if self.random.one_in(2) { 10_000 } else { self.random.below(40) as usize };
        let newest_first = self.random.one_in(2);
        let is_fenced = self.random.one_in(2);
        self.fences(partition).map(|fence| Work::Read {
            partition,
            fence: is_fenced.then_some(fence),
            conversation: conversation.clone(),
            after,
            through,
            limit_bytes,
            entries_max,
            newest_first,
        })
    }

    fn items(&mut self) -> [Work; 2] {
        let items: Vec<UserItem> = (0..=self.random.below(5))
            .map(|_| UserItem {
                user: self.random.user(),
                // Not that of groups: their members stay listed.
                list: *self.random.pick(&LISTS[1..]),
                item: self.random.user(),
                change: match self.random.below(3) {
                    0 => Change::Put(self.random.bytes()),
                    1 => Change::Add(self.random.bytes()),
                    _ => Change::Remove,
                },
            })
            .collect();
        [items.clone(), items].map(|items| Work::UserItems { items, claim: None })
    }

    fn list(&mut self) -> [Work; 2] {
        let (user, list) = (self.random.user(), *self.random.pick(&LISTS));
        let after = if self.random.one_in(2) { String::new() } else { self.random.user() };
        let limit = 1 + self.random.below(5) as usize;
        [0, 1].map(|_| Work::UserList { user: user.clone(), list, after: after.clone(), limit })
    }
}
