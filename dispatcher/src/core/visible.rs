//! Who may see a user's presence, and telling those who watch it.
//!
//! The rule that keeps it right: a watcher is shown nothing before it is known that it may see it, and is told the
//! opposite of what it was shown as soon as it may not any more.

use std::collections::BTreeMap;

use bytes::Bytes;
use millrace_protocol::ids::{Partition, SessionId};
use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::{
    DevicePresence, Notify, PresenceEvent, PresencePage, PresenceState, Visibility, notify, response,
};
use millrace_protocol::messages::link::{Relay, Reply, Target};
use millrace_protocol::prost::Message;
use rustc_hash::FxHashMap;

use super::event::LinkKey;
use super::hub::{Asker, Cluster, Cx, From, Hub};
use super::limits::{DEVICES_SHOWN_MAX, FRIEND_READS_MAX, PRESENCE_PAGE_BYTES, TARGETS_MAX};
use super::lists::just_before;
use super::presence::{Presence, Reading, States, read};
use super::watches::{Key, Watched};
use crate::store::{List, Work};

/// Every watcher of a user is judged anew.
pub(super) fn judge_all(cx: &mut Cx, user: &str) {
    let Some(watched) = cx.hub.presence.watches.user(user) else { return };
    let sessions: Vec<SessionId> = watched.watchers.keys().copied().collect();
    for session in sessions {
        judge(cx, user, session);
    }
}

/// Decides whether a session may see a user; perhaps only when it is known whether the two are friends.
pub(super) fn judge(cx: &mut Cx, user: &str, session: SessionId) {
    let presence = &mut cx.hub.presence;
    let Some(watched) = presence.watches.user(user) else { return };
    let (visibility, number, partition) = (watched.visibility, watched.number, watched.partition);
    let Some(watch) = presence.watches.watch((partition, session)) else { return };
    let own = watch.user == user;
    if own || visibility != Some(Visibility::Friends) {
        return decide(cx, user, session, own || visibility == Some(Visibility::Everyone));
    }
    if presence.friend_reads >= FRIEND_READS_MAX {
        cx.hub.stats.presence_lost += 1;
        return decide(cx, user, session, false);
    }
    presence.friend_reads += 1;
    let after = just_before(&watch.user);
    let work = Work::UserList { user: user.to_owned(), list: List::Friends, after, limit: 1 };
    read(cx, work, Reading::Friend { user: user.to_owned(), session, number });
}

/// Nobody but the user itself sees it for now; who waits for a page goes on waiting.
pub(super) fn hide(cx: &mut Cx, user: &str) {
    let watches = &mut cx.hub.presence.watches;
    let Some(watched) = watches.user(user) else { return };
    let partition = watched.partition;
    let seeing = watched.watchers.iter().filter(|(_, may)| **may == Some(true));
    let seeing: Vec<SessionId> = seeing.map(|(session, _)| *session).collect();
    for session in seeing {
        let own = cx.hub.presence.watches.watch((partition, session)).is_some_and(|it| it.user == user);
        decide(cx, user, session, own);
    }
}

/// It is known whether a session may see a user.
pub(super) fn decide(cx: &mut Cx, user: &str, session: SessionId, may: bool) {
    let (changed, asker) = cx.hub.presence.watches.decide(user, session, may);
    if changed && let Some(watched) = cx.hub.presence.watches.user(user) {
        let event = if may { watched.shown.clone() } else { hidden(user) };
        let key = (watched.partition, session);
        tell(cx, &event, &[key]);
    }
    if let Some(asker) = asker
        && let Some(watched) = cx.hub.presence.watches.user(user)
        && let key = (watched.partition, session)
        && let Some(watch) = cx.hub.presence.watches.watch(key)
    {
        answer(cx, watch.from, asker);
    }
}

// ---- what is told ----

/// What is shown of a user who may not be seen.
fn hidden(user: &str) -> PresenceEvent {
    PresenceEvent { user: user.to_owned(), ..PresenceEvent::default() }
}

/// What is shown of a user who may be seen.
pub(super) fn event_of(
    cluster: &Cluster,
    states: &FxHashMap<Partition, States>,
    user: &str,
    watched: &Watched,
) -> PresenceEvent {
    let states = states.get(&watched.partition).and_then(|states| states.get(user));
    let mut devices = Vec::new();
    for route in watched.routes.iter().flatten().filter(|route| cluster.is_there(route)) {
        let said = states.and_then(|devices| devices.get(&route.device)).copied();
        let state = said.unwrap_or(PresenceState::Online);
        if state != PresenceState::Offline && devices.len() < DEVICES_SHOWN_MAX {
            let (device, platform) = (route.device.clone(), route.platform.clone());
            devices.push(DevicePresence { device, platform, state: state as i32 });
        }
    }
    let last_seen_ms = if devices.is_empty() { watched.last_seen_ms } else { 0 };
    PresenceEvent { user: user.to_owned(), devices, last_seen_ms }
}

/// Tells the watchers of a user what is new about it.
pub(super) fn look(cx: &mut Cx, user: &str) {
    let Hub { presence, cluster, .. } = &mut *cx.hub;
    let Presence { watches, states, .. } = presence;
    let Some(watched) = watches.user(user).filter(|watched| watched.is_settled()) else { return };
    let event = event_of(cluster, states, user, watched);
    if event == watched.shown {
        return;
    }
    watched.shown = event.clone();
    let partition = watched.partition;
    let watchers = watched.watchers.iter().filter(|(_, may)| **may == Some(true));
    let keys: Vec<Key> = watchers.map(|(session, _)| (partition, *session)).collect();
    tell(cx, &event, &keys);
}

/// Tells these watches of a user.
fn tell(cx: &mut Cx, event: &PresenceEvent, keys: &[Key]) {
    let mut by_link: BTreeMap<LinkKey, (From, Vec<Target>)> = BTreeMap::new();
    for key in keys {
        let Some(watch) = cx.hub.presence.watches.watch(*key) else { continue };
        // Its route is not known here: the session is enough for the gateway.
        let (user, device) = (watch.user.clone(), watch.device.clone());
        let target = Target { session: key.1.0, user, device, ..Target::default() };
        by_link.entry(watch.link).or_insert((watch.from, Vec::new())).1.push(target);
    }
    let notify: Bytes = Notify { event: Some(notify::Event::Presence(event.clone())) }.encode_to_vec().into();
    for (link, (from, targets)) in by_link {
        for targets in targets.chunks(TARGETS_MAX) {
            let relay = Relay { targets: targets.to_vec(), notify: notify.clone(), ..Relay::default() };
            cx.hub.stats.presence_told += targets.len() as u64;
            cx.send(link, from.record(Kind::Relay, SessionId::NONE, &relay));
        }
    }
}

/// What a session sees of those whom it watches. What does not fit on the page follows as events.
pub(super) fn answer(cx: &mut Cx, from: From, asker: Asker) {
    let key = (from.partition, asker.session);
    let users = cx.hub.presence.watches.watch(key).map(|watch| watch.users.clone()).unwrap_or_default();
    let (mut page, mut rest, mut bytes) = (Vec::new(), Vec::new(), 0);
    for user in users {
        let Some(watched) = cx.hub.presence.watches.user(&user) else { continue };
        let event = match watched.watchers.get(&asker.session) {
            Some(Some(true)) => watched.shown.clone(),
            _ => hidden(&user),
        };
        bytes += event.encoded_len() + 8;
        if bytes <= PRESENCE_PAGE_BYTES { page.push(event) } else { rest.push(event) }
    }
    // A session that ends watches nobody any more, and waits for no answer.
    if asker.request_id != 0 {
        let page = PresencePage { users: page };
        cx.reply(from, asker, response::Outcome::PresencePage(page), Reply::default());
    }
    for event in rest {
        tell(cx, &event, &[key]);
    }
}
