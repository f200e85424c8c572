//! Presence: which devices of a user are online, who may see it, and telling those who watch.
//!
//! The owner of the watched user's partition has it in memory. What is online is read from the routes: at first, and
//! again whenever something about them changed, gathered over a window and one job at a time, so that an older answer
//! can't follow a newer one. What a device says of itself (away) and who watches are soft: a new owner knows nothing of
//! them until clients say it again, which they do every minute. Who may see a user is stored, and so is when it was last
//! seen. Who is shown what is left to [`super::visible`]. The rule that keeps it right: what can't be read is not shown.

use std::collections::BTreeMap;

use bytes::Bytes;
use millrace_protocol::conversation::is_name;
use millrace_protocol::ids::{Partition, SessionId, user_partition};
use millrace_protocol::messages::client::{Code, PresenceSet, PresenceState, Visibility};
use rustc_hash::FxHashMap;

use super::event::LinkKey;
use super::hub::{Asker, Cx, From, Hub, Pending};
use super::limits::{
    DEVICE_STATES_MAX, PRESENCE_CHANGES_MAX, PRESENCE_WINDOW_US, ROUTE_USERS_MAX, WATCHED_MAX,
};
use super::lists::just_before;
use super::visible::{answer, decide, event_of, hide, judge, judge_all, look};
use super::watches::{Watch, Watched, Watches};
use crate::store::{Change, List, Outcome, Route, StoreError, UserItem, Work};

/// Items of a user's settings: who may see it (one byte), and when its last device went (ms, big-endian).
const VISIBILITY_ITEM: &str = "presence";
const SEEN_ITEM: &str = "seen";

/// Settings read at once, from the first of the two on: the few between them, and the other.
const SETTINGS_READ: usize = 16;

/// By user and device.
pub(super) type States = FxHashMap<String, BTreeMap<String, PresenceState>>;

/// Presence of the users of a shard's partitions.
#[derive(Debug, Default)]
pub struct Presence {
    pub(super) watches: Watches,
    /// What devices say of themselves, by user, unless they are simply online.
    pub(super) states: FxHashMap<Partition, States>,
    /// Users whose routes are to be read at once.
    fresh: Vec<String>,
    /// Users whose routes changed, and whether a device went; read when the window is over.
    changed: BTreeMap<String, bool>,
    due_us: u64,
    /// Routes are being read.
    reading: bool,
    pub(super) friend_reads: usize,
}

/// A job at the store.
#[derive(Debug)]
pub enum Reading {
    /// Who may see a user, and when it was last seen.
    Settings {
        /// Whom.
        user: String,
        /// Of [`Watched::number`].
        number: u64,
    },
    /// Routes of these users, and whether a device of each went.
    Routes(Vec<(String, bool)>),
    /// Whether a session's user is a friend of a user.
    Friend {
        /// Who is watched.
        user: String,
        /// Who watches.
        session: SessionId,
        /// Of [`Watched::number`].
        number: u64,
    },
    /// A user has said who may see it.
    Set {
        /// Of the owner that was asked.
        from: From,
        /// Who waits for the answer.
        asker: Asker,
        /// Who.
        user: String,
        /// Those.
        visibility: Visibility,
    },
}

impl Presence {
    /// When there is something to be done.
    pub fn deadline_us(&self) -> Option<u64> {
        let due = (!self.reading && !self.changed.is_empty()).then_some(self.due_us);
        due.into_iter().chain(self.watches.ends_us()).min()
    }

    /// Pairs of a watcher and a watched user.
    pub fn count(&self) -> usize {
        self.watches.count()
    }

    fn note(&mut self, user: &str, went: bool, now_us: u64) -> bool {
        if let Some(known) = self.changed.get_mut(user) {
            *known |= went;
            return true;
        }
        if self.changed.len() >= PRESENCE_CHANGES_MAX {
            return false;
        }
        if self.changed.is_empty() {
            self.due_us = now_us + PRESENCE_WINDOW_US;
        }
        self.changed.insert(user.to_owned(), went);
        true
    }
}

// ---- what is asked ----

/// A session watches these users of this partition, in place of those watched before.
pub fn subscribe(
    cx: &mut Cx,
    from: From,
    asker: Asker,
    (user, device): (String, String),
    users: Vec<String>,
) {
    if users.len() > WATCHED_MAX {
        return cx.refuse(from, asker, Code::LimitReached, "too many users are watched");
    }
    if !users.iter().all(|user| is_name(user)) {
        return cx.refuse(from, asker, Code::BadRequest, "a user's name is not valid");
    }
    let key = (from.partition, asker.session);
    let watch = Watch { from, user, device, link: asker.link, users, until_us: 0, asker: None, undecided: 0 };
    let put = cx.hub.presence.watches.put(key, watch, cx.now.mono_us);
    cx.hub.stats.watches_left_out += put.left_out;
    if let Some(before) = put.asker {
        // It asks for something else now.
        cx.busy(from, before, "the session watches others by now");
    }
    for user in &put.fresh {
        cx.hub.presence.fresh.push(user.clone());
        read_settings(cx, user);
    }
    let users = cx.hub.presence.watches.watch(key).map(|watch| watch.users.clone()).unwrap_or_default();
    for user in users {
        let Some(watched) = cx.hub.presence.watches.user(&user) else { continue };
        let is_new = put.added.binary_search(&user).is_ok();
        match watched.visibility {
            // It is told when the reads are answered.
            _ if !watched.is_settled() => {}
            // It could not be read: once more, as somebody still wants to know.
            None => {
                judge(cx, &user, asker.session);
                read_settings(cx, &user);
            }
            // Friends may have come or gone since the last renewal.
            Some(Visibility::Friends) => judge(cx, &user, asker.session),
            Some(_) if is_new => judge(cx, &user, asker.session),
            Some(_) => {}
        }
    }
    match cx.hub.presence.watches.watch(key) {
        Some(watch) if watch.undecided > 0 => cx.hub.presence.watches.wait(key, asker),
        _ => answer(cx, from, asker),
    }
}

/// A device says what it is, and perhaps who may see its user.
pub fn set(cx: &mut Cx, from: From, asker: Asker, (user, device): (String, String), ask: PresenceSet) {
    let known = PresenceState::try_from(ask.state).ok();
    let visibility = ask.visibility.map(Visibility::try_from);
    let (Some(state), Ok(visibility)) = (known, visibility.transpose()) else {
        return cx.refuse(from, asker, Code::BadRequest, "no such state");
    };
    let states = cx.hub.presence.states.entry(from.partition).or_default();
    if state == PresenceState::Online {
        forget_state(states, &user, |known| known == device);
    } else if states.len() < DEVICE_STATES_MAX || states.contains_key(&user) {
        states.entry(user.clone()).or_default().insert(device, state);
    } else {
        return cx.busy(from, asker, "too many devices are away");
    }
    if cx.hub.presence.watches.user(&user).is_some() {
        note(cx, &user, false);
    }
    let Some(visibility) = visibility else { return cx.done(from, asker) };
    let value = Bytes::copy_from_slice(&[visibility as u8]);
    let work = put_setting(&user, VISIBILITY_ITEM, value);
    read(cx, work, Reading::Set { from, asker, user, visibility });
}

/// What these devices of a user said of themselves holds no more.
fn forget_state(states: &mut States, user: &str, which: impl Fn(&str) -> bool) {
    if let Some(devices) = states.get_mut(user) {
        devices.retain(|device, _| !which(device));
        if devices.is_empty() {
            states.remove(user);
        }
    }
}

fn put_setting(user: &str, item: &str, value: Bytes) -> Work {
    Work::UserItems { items: vec![setting(user, item, value)], claim: None }
}

fn setting(user: &str, item: &str, value: Bytes) -> UserItem {
    let (user, item) = (user.to_owned(), item.to_owned());
    UserItem { user, list: List::Settings, item, change: Change::Put(value) }
}

// ---- what happens ----

/// A device of this user is registered; as a new login, or again, as its gateway had to begin anew.
pub fn came(cx: &mut Cx, user: &str, device: &str, is_new: bool) {
    let partition = user_partition(user, cx.hub.config.partitions);
    let presence = &mut cx.hub.presence;
    if is_new && let Some(states) = presence.states.get_mut(&partition) {
        forget_state(states, user, |known| known == device);
    }
    if presence.watches.user(user).is_some() {
        note(cx, user, false);
    }
}

/// A device of this user may be gone.
pub fn went(cx: &mut Cx, user: &str) {
    note(cx, user, true);
}

fn note(cx: &mut Cx, user: &str, went: bool) {
    if !cx.hub.presence.note(user, went, cx.now.mono_us) {
        cx.hub.stats.presence_lost += 1;
    }
}

/// Other gateways are alive than before: some sessions may be gone with theirs.
pub fn gateways_changed(cx: &mut Cx) {
    let Presence { watches, states, .. } = &cx.hub.presence;
    let cluster = &cx.hub.cluster;
    let differs = |(user, watched): &(&String, &Watched)| {
        watched.routes.is_some() && event_of(cluster, states, user, watched) != watched.shown
    };
    let mut users: Vec<String> = watches.users().filter(differs).map(|(user, _)| user.clone()).collect();
    users.sort_unstable();
    for user in users {
        note(cx, &user, false);
    }
}

/// A link's state is gone, and with it the sessions behind it.
pub fn forget_link(cx: &mut Cx, link: LinkKey) {
    cx.hub.presence.watches.remove_link(link);
}

/// The partition is not served any more: watchers watch its next owner.
pub fn forget_partition(cx: &mut Cx, from: From) {
    let partition = from.partition;
    let ended = cx.hub.presence.watches.remove_partition(partition);
    for asker in ended.into_iter().filter_map(|watch| watch.asker) {
        cx.busy(from, asker, "the partition is moving");
    }
    cx.hub.presence.states.remove(&partition);
}

/// At the end of a turn: reads what is due.
pub fn turn(cx: &mut Cx) {
    let now_us = cx.now.mono_us;
    cx.hub.stats.watches_expired += cx.hub.presence.watches.expire(now_us);
    let presence = &mut cx.hub.presence;
    let is_due = presence.due_us <= now_us && !presence.changed.is_empty();
    if presence.reading || !is_due && presence.fresh.is_empty() {
        return;
    }
    let fresh = presence.fresh.len().min(ROUTE_USERS_MAX);
    let mut users: Vec<_> = presence.fresh.drain(..fresh).map(|user| (user, false)).collect();
    while is_due
        && users.len() < ROUTE_USERS_MAX
        && let Some(change) = presence.changed.pop_first()
    {
        users.push(change);
    }
    presence.reading = true;
    let names = users.iter().map(|(user, _)| user.clone()).collect();
    read(cx, Work::Routes { users: names }, Reading::Routes(users));
}

// ---- reading ----

pub(super) fn read(cx: &mut Cx, work: Work, reading: Reading) {
    cx.store(work, Pending::Presence(Box::new(reading)));
}

fn read_settings(cx: &mut Cx, user: &str) {
    let Some(watched) = cx.hub.presence.watches.user(user) else { return };
    watched.settings_reads = watched.settings_reads.saturating_add(1);
    let number = watched.number;
    let work = Work::UserList {
        user: user.to_owned(),
        list: List::Settings,
        after: just_before(VISIBILITY_ITEM),
        limit: SETTINGS_READ,
    };
    read(cx, work, Reading::Settings { user: user.to_owned(), number });
}

/// The store's answer.
pub fn answered(cx: &mut Cx, reading: Reading, outcome: Result<Outcome, StoreError>) {
    match reading {
        Reading::Settings { user, number } => settings(cx, &user, number, outcome),
        Reading::Routes(users) => routes(cx, users, outcome),
        Reading::Friend { user, session, number } => {
            cx.hub.presence.friend_reads -= 1;
            let watches = &mut cx.hub.presence.watches;
            let Some(watched) = watches.user(&user).filter(|watched| watched.number == number) else {
                return;
            };
            // Asked under a visibility that may be another one by now.
            if watched.visibility != Some(Visibility::Friends) {
                return;
            }
            let key = (watched.partition, session);
            let Some(watch) = watches.watch(key) else { return };
            let may = match outcome {
                Ok(Outcome::UserList { items, .. }) => items.first().is_some_and(|(it, _)| *it == watch.user),
                _ => false,
            };
            decide(cx, &user, session, may);
        }
        Reading::Set { from, asker, .. } if outcome.is_err() => {
            cx.busy(from, asker, "the store is not available");
        }
        Reading::Set { from, asker, user, visibility } => {
            cx.done(from, asker);
            let Some(watched) = cx.hub.presence.watches.user(&user) else { return };
            if !watched.is_settled() {
                // What is being read may be older.
                return read_settings(cx, &user);
            }
            watched.visibility = Some(visibility);
            if visibility == Visibility::Friends {
                // Hidden until it is known who is one.
                hide(cx, &user);
            }
            judge_all(cx, &user);
        }
    }
}

fn settings(cx: &mut Cx, user: &str, number: u64, outcome: Result<Outcome, StoreError>) {
    let watched = cx.hub.presence.watches.user(user);
    let Some(watched) = watched.filter(|watched| watched.number == number) else { return };
    watched.settings_reads = watched.settings_reads.saturating_sub(1);
    watched.visibility = None;
    if let Ok(Outcome::UserList { items, .. }) = outcome {
        let item = |name: &str| items.iter().find(|(item, _)| item == name).map(|(_, value)| value);
        let visibility = item(VISIBILITY_ITEM).and_then(|value| value.first().copied()).unwrap_or(0);
        // One that is not known here hides the user.
        let visibility = Visibility::try_from(i32::from(visibility)).unwrap_or(Visibility::Nobody);
        watched.visibility = Some(visibility);
        let seen = item(SEEN_ITEM).and_then(|value| value[..].try_into().ok()).map(u64::from_be_bytes);
        watched.last_seen_ms = seen.unwrap_or(0).max(watched.last_seen_ms);
    }
    if watched.is_settled() {
        look(cx, user);
        judge_all(cx, user);
    }
}

/// Routes of users, some of whom nobody watches: of those it is only noted when they were last seen.
fn routes(cx: &mut Cx, users: Vec<(String, bool)>, outcome: Result<Outcome, StoreError>) {
    cx.hub.presence.reading = false;
    let mut all = match outcome {
        Ok(Outcome::Routes(all)) => all.into_iter().map(Some).collect(),
        _ => vec![None; users.len()],
    };
    all.resize(users.len(), None);
    let mut seen = Vec::new();
    for ((user, went), routes) in users.into_iter().zip(all) {
        let Some(routes) = routes else {
            // Once more, after the window; the first page does not wait for it.
            note(cx, &user, went);
            routes_read(cx, &user, None);
            continue;
        };
        if is_gone(cx, &user, went, &routes) {
            let wall_ms = cx.now.wall_ms;
            seen.push(setting(&user, SEEN_ITEM, Bytes::copy_from_slice(&wall_ms.to_be_bytes())));
            if let Some(watched) = cx.hub.presence.watches.user(&user) {
                watched.last_seen_ms = wall_ms;
            }
        }
        routes_read(cx, &user, Some(routes));
    }
    if !seen.is_empty() {
        cx.hub.stats.seen += seen.len() as u64;
        cx.store(Work::UserItems { items: seen, claim: None }, Pending::Unwatched);
    }
}

/// Whether the last device of a user just went. What devices that went said of themselves is forgotten.
fn is_gone(cx: &mut Cx, user: &str, went: bool, routes: &[Route]) -> bool {
    let Hub { presence, cluster, config, .. } = &mut *cx.hub;
    if let Some(states) = presence.states.get_mut(&user_partition(user, config.partitions)) {
        forget_state(states, user, |device| !routes.iter().any(|route| route.device == device));
    }
    let is_online = routes.iter().any(|route| cluster.is_there(route));
    // Also when its gateway died, which says nothing.
    let was_shown = presence.watches.user(user).is_some_and(|watched| !watched.shown.devices.is_empty());
    !is_online && (went || was_shown)
}

/// Routes of a user were read, or not.
fn routes_read(cx: &mut Cx, user: &str, routes: Option<Vec<Route>>) {
    let Some(watched) = cx.hub.presence.watches.user(user) else { return };
    let is_first = std::mem::take(&mut watched.routes_pending);
    watched.routes = routes.or(watched.routes.take());
    let is_settled = watched.is_settled();
    look(cx, user);
    if is_first && is_settled {
        judge_all(cx, user);
    }
}
