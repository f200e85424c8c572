//! Who watches whose presence: a table in memory, nothing more.
//!
//! A watch is soft: it belongs to one session and one partition, its client renews it every minute, and it ends by itself.
//! What becomes of it is left to [`super::presence`]. The rule that keeps it right: a watch names a user exactly when that
//! user names the watch's session, and everybody watched has a watcher.

use std::collections::{BTreeMap, VecDeque};

use millrace_protocol::ids::{Partition, SessionId};
use millrace_protocol::messages::client::{PresenceEvent, Visibility};
use rustc_hash::FxHashMap;

use super::event::LinkKey;
use super::hub::{Asker, From};
use super::limits::{WATCH_ENTRIES_MAX, WATCH_US, WATCHERS_MAX};
use crate::store::Route;

/// Whose watch: sessions watch users of several partitions.
pub type Key = (Partition, SessionId);

/// What one session watches in one partition.
#[derive(Debug)]
pub struct Watch {
    /// The owner that it was asked of.
    pub from: From,
    /// Whose session it is.
    pub user: String,
    /// On which device.
    pub device: String,
    /// Where it is.
    pub link: LinkKey,
    /// Whom it watches, in order of names.
    pub users: Vec<String>,
    /// When it ends.
    pub until_us: u64,
    /// Waits for the first page.
    pub asker: Option<Asker>,
    /// Users of whom it is not known yet whether it may see them.
    pub undecided: usize,
}

/// A user who is watched.
#[derive(Debug)]
pub struct Watched {
    /// Where it belongs.
    pub partition: Partition,
    /// Tells answers about this one from those about an earlier watch of the same user.
    pub number: u64,
    /// Sessions, and whether each may see it; `None`: not known yet.
    pub watchers: BTreeMap<SessionId, Option<bool>>,
    /// Readings of its settings under way; nobody is shown anything before they are answered.
    pub settings_reads: u8,
    /// Its routes were not read yet; likewise.
    pub routes_pending: bool,
    /// Who may see it; `None`: it could not be read, so nobody.
    pub visibility: Option<Visibility>,
    /// As stored, ms; 0: never.
    pub last_seen_ms: u64,
    /// Its sessions; `None`: they could not be read.
    pub routes: Option<Vec<Route>>,
    /// What its watchers were shown.
    pub shown: PresenceEvent,
}

impl Watched {
    /// Everything was read, or could not be.
    pub fn is_settled(&self) -> bool {
        self.settings_reads == 0 && !self.routes_pending
    }
}

/// The table.
#[derive(Debug, Default)]
pub struct Watches {
    users: FxHashMap<String, Watched>,
    watches: BTreeMap<Key, Watch>,
    /// Pairs of a watcher and a watched user.
    entries: FxHashMap<Partition, usize>,
    /// In order of time; renewed watches are skipped.
    ends: VecDeque<(u64, Key)>,
    last_number: u64,
}

/// What became of a new watch.
#[derive(Debug, Default)]
pub struct Put {
    /// Users whom nobody watched before.
    pub fresh: Vec<String>,
    /// Users whom this session did not watch before, fresh ones included.
    pub added: Vec<String>,
    /// Users for whom there was no room.
    pub left_out: u64,
    /// Who waited for the first page of the watch before.
    pub asker: Option<Asker>,
}

impl Watches {
    /// Watches `watch.users` in place of those watched before. With none, the watch ends.
    pub fn put(&mut self, key: Key, mut watch: Watch, now_us: u64) -> Put {
        watch.users.sort_unstable();
        watch.users.dedup();
        let before = self.watches.remove(&key);
        let mut put = Put::default();
        let mut known = Vec::new();
        if let Some(before) = before {
            put.asker = before.asker;
            let (stay, go): (Vec<_>, Vec<_>) =
                before.users.into_iter().partition(|user| watch.users.binary_search(user).is_ok());
            go.iter().for_each(|user| self.unlink(user, key));
            known = stay;
        }
        let mut users = Vec::with_capacity(watch.users.len());
        for user in watch.users {
            if known.binary_search(&user).is_err() {
                if !self.link(&user, key, &mut put) {
                    put.left_out += 1;
                    continue;
                }
                put.added.push(user.clone());
            }
            users.push(user);
        }
        if users.is_empty() {
            return put;
        }
        let is_undecided = |user: &&String| self.users[*user].watchers[&key.1].is_none();
        watch.undecided = users.iter().filter(is_undecided).count();
        watch.users = users;
        watch.until_us = now_us + WATCH_US;
        self.ends.push_back((watch.until_us, key));
        self.watches.insert(key, watch);
        put
    }

    fn link(&mut self, user: &str, key: Key, put: &mut Put) -> bool {
        let (partition, session) = key;
        let entries = self.entries.entry(partition).or_default();
        let watchers = self.users.get(user).map_or(0, |watched| watched.watchers.len());
        if *entries >= WATCH_ENTRIES_MAX || watchers >= WATCHERS_MAX {
            return false;
        }
        *entries += 1;
        let watched = self.users.entry(user.to_owned()).or_insert_with(|| {
            put.fresh.push(user.to_owned());
            self.last_number += 1;
            Watched {
                partition,
                number: self.last_number,
                watchers: BTreeMap::new(),
                settings_reads: 0,
                routes_pending: true,
                visibility: None,
                last_seen_ms: 0,
                routes: None,
                shown: PresenceEvent { user: user.to_owned(), ..PresenceEvent::default() },
            }
        });
        watched.watchers.insert(session, None);
        true
    }

    fn unlink(&mut self, user: &str, (partition, session): Key) {
        let Some(watched) = self.users.get_mut(user) else { return };
        if watched.watchers.remove(&session).is_some()
            && let Some(entries) = self.entries.get_mut(&partition)
        {
            *entries -= 1;
        }
        if watched.watchers.is_empty() {
            self.users.remove(user);
        }
    }

    /// Ends a watch.
    pub fn remove(&mut self, key: Key) -> Option<Watch> {
        let watch = self.watches.remove(&key)?;
        watch.users.iter().for_each(|user| self.unlink(user, key));
        Some(watch)
    }

    /// Ends all watches of one partition, and gives them.
    pub fn remove_partition(&mut self, partition: Partition) -> Vec<Watch> {
        let all = (partition, SessionId(0))..=(partition, SessionId(u64::MAX));
        let keys: Vec<Key> = self.watches.range(all).map(|(key, _)| *key).collect();
        keys.into_iter().filter_map(|key| self.remove(key)).collect()
    }

    /// Ends all watches behind one link.
    pub fn remove_link(&mut self, link: LinkKey) {
        let behind = self.watches.iter().filter(|(_, watch)| watch.link == link);
        let keys: Vec<Key> = behind.map(|(key, _)| *key).collect();
        for key in keys {
            self.remove(key);
        }
    }

    /// Ends watches that were not renewed. Returns how many.
    pub fn expire(&mut self, now_us: u64) -> u64 {
        let mut ended = 0;
        while let Some((at_us, key)) = self.ends.front().copied()
            && at_us <= now_us
        {
            self.ends.pop_front();
            let is_over = self.watches.get(&key).is_some_and(|watch| watch.until_us <= now_us);
            ended += u64::from(is_over && self.remove(key).is_some());
        }
        ended
    }

    /// When the next watch may end.
    pub fn ends_us(&self) -> Option<u64> {
        self.ends.front().map(|(at_us, _)| *at_us)
    }

    /// A user who is watched.
    pub fn user(&mut self, user: &str) -> Option<&mut Watched> {
        self.users.get_mut(user)
    }

    /// Everyone who is watched, in no order.
    pub fn users(&self) -> impl Iterator<Item = (&String, &Watched)> {
        self.users.iter()
    }

    /// Somebody waits for the first page of a watch.
    pub fn wait(&mut self, key: Key, asker: Asker) {
        if let Some(watch) = self.watches.get_mut(&key) {
            watch.asker = Some(asker);
        }
    }

    /// A watch.
    pub fn watch(&self, key: Key) -> Option<&Watch> {
        self.watches.get(&key)
    }

    /// Whether a session may see a user is known. Returns whether the opposite was known before, and who waited for
    /// nothing but this.
    pub fn decide(&mut self, user: &str, session: SessionId, may: bool) -> (bool, Option<Asker>) {
        let Some(watched) = self.users.get_mut(user) else { return (false, None) };
        let key = (watched.partition, session);
        let Some(known) = watched.watchers.get_mut(&session) else { return (false, None) };
        let Some(before) = known.replace(may) else {
            let Some(watch) = self.watches.get_mut(&key) else { return (false, None) };
            watch.undecided -= 1;
            return (false, watch.asker.take_if(|_| watch.undecided == 0));
        };
        (before != may, None)
    }

    /// Pairs of a watcher and a watched user.
    pub fn count(&self) -> usize {
        self.entries.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: LinkKey = LinkKey { gateway: 1, shard: 0 };

    fn watch(users: &[&str]) -> Watch {
        Watch {
            from: From { partition: 3, epoch: 9 },
            user: "ann".into(),
            device: "phone".into(),
            link: LINK,
            users: users.iter().map(|user| (*user).to_owned()).collect(),
            until_us: 0,
            asker: None,
            undecided: 0,
        }
    }

    fn key(slot: u32) -> Key {
        (3, SessionId::new(1, 0, slot, 0))
    }

    fn check(watches: &Watches) {
        let mut pairs = 0;
        for (name, watched) in &watches.users {
            assert!(!watched.watchers.is_empty(), "{name}");
            for session in watched.watchers.keys() {
                assert!(watches.watches[&(watched.partition, *session)].users.contains(name), "{name}");
            }
            pairs += watched.watchers.len();
        }
        assert_eq!(pairs, watches.watches.values().map(|watch| watch.users.len()).sum::<usize>());
        assert_eq!(pairs, watches.count());
    }

    #[test]
    fn a_new_set_takes_the_place_of_the_old_one() {
        let mut watches = Watches::default();
        let put = watches.put(key(1), watch(&["cid", "bob", "bob"]), 0);
        assert_eq!((put.fresh.len(), put.added.len(), put.left_out), (2, 2, 0));
        check(&watches);
        assert_eq!(watches.put(key(2), watch(&["bob"]), 0).fresh.len(), 0);
        check(&watches);
        watches.decide("bob", key(1).1, true);
        let put = watches.put(key(1), watch(&["bob", "dan"]), 0);
        assert_eq!((put.fresh, put.added), (vec!["dan".to_owned()], vec!["dan".to_owned()]));
        assert_eq!(watches.watch(key(1)).unwrap().undecided, 1, "of bob it is known");
        assert!(watches.user("cid").is_none());
        check(&watches);
        watches.put(key(1), watch(&[]), 0);
        watches.remove(key(2));
        check(&watches);
        assert_eq!((watches.users.len(), watches.watches.len()), (0, 0));
    }

    #[test]
    fn they_end_unless_renewed_and_are_bounded() {
        let mut watches = Watches::default();
        watches.put(key(1), watch(&["bob"]), 0);
        watches.put(key(2), watch(&["bob"]), 0);
        watches.put(key(2), watch(&["bob"]), 10);
        assert_eq!(watches.expire(WATCH_US - 1), 0);
        assert_eq!(watches.expire(WATCH_US), 1);
        check(&watches);
        assert_eq!(watches.expire(WATCH_US + 10), 1);
        assert_eq!((watches.count(), watches.ends_us()), (0, None));
        for n in 0..=WATCHERS_MAX as u32 {
            let put = watches.put(key(n), watch(&["bob", "cid"]), 0);
            assert_eq!(put.left_out, if n < WATCHERS_MAX as u32 { 0 } else { 2 });
        }
        check(&watches);
        assert_eq!(watches.remove_partition(4).len(), 0);
        assert_eq!(watches.remove_partition(3).len(), WATCHERS_MAX);
        check(&watches);
        watches.put(key(1), watch(&["bob"]), 0);
        watches.remove_link(LinkKey { gateway: 1, shard: 1 });
        assert_eq!(watches.count(), 1);
        watches.remove_link(LINK);
        check(&watches);
    }
}
