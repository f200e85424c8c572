//! Users' sessions: registering them, removing routes that are wrong, and closing sessions that lost to newer ones.
//!
//! The policy itself (who loses to whom) is one atomic step of the store. The rule that keeps it right: a Close is
//! repeated until the gateway answers it or is gone; until then the store knows who lost, for the next owner.

use std::collections::{BTreeMap, VecDeque};

use millrace_protocol::ids::{Partition, SessionId, user_partition};
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::client::Code;
use millrace_protocol::messages::link::{Close, NoSession, Register, Registered, Unregister};
use millrace_protocol::planted::{self, Fault};
use rustc_hash::FxHashMap;

use super::batch::Owner;
use super::event::LinkKey;
use super::events;
use super::hub::{Cx, From, Pending, link_of};
use super::limits::{BUSY_RETRY_MS, CLOSE_REPEAT_US, CLOSES_MAX, GROUPS_TOLD_MAX, REGISTERS_MAX};
use super::presence;
use crate::store::{Outcome, Registration, Route, StoreError, Work};

/// A registration at the store.
#[derive(Debug)]
pub struct Login {
    link: LinkKey,
    from: From,
    session: SessionId,
    user: String,
    device: String,
    login_number: u64,
    gateway_incarnation: u64,
}

/// Sessions that were told to close, until they answer.
#[derive(Debug, Default)]
pub struct Closes {
    open: FxHashMap<SessionId, Closing>,
    /// In order of time; answered ones are skipped.
    due: VecDeque<(u64, SessionId)>,
    /// Closed or gone: the store need not know them any more.
    over: BTreeMap<Partition, Vec<(String, Route)>>,
}

#[derive(Debug)]
struct Closing {
    of: From,
    user: String,
    loser: Route,
    record: Record,
    tries: u32,
}

impl Login {
    /// Under which claim it was to be registered.
    pub fn from(&self) -> From {
        self.from
    }
}

impl Closes {
    /// Closes not answered yet.
    pub fn count(&self) -> usize {
        self.open.len()
    }

    /// It needs no Close any more.
    fn over(&mut self, partition: Partition, user: String, loser: Route) {
        self.over.entry(partition).or_default().push((user, loser));
    }

    /// When the next one is due.
    pub fn deadline_us(&self) -> Option<u64> {
        self.due.front().map(|(at_us, _)| *at_us)
    }
}

/// A Register record for a partition that is served here.
pub fn register(cx: &mut Cx, link: LinkKey, owner: &Owner, session: SessionId, ask: Register) {
    let from = owner.from;
    let Register { user, device, login_number, gateway_incarnation, .. } = ask;
    let login = Login { link, from, session, user, device, login_number, gateway_incarnation };
    if cx.hub.registers >= REGISTERS_MAX {
        cx.hub.stats.busy += 1;
        return refuse(cx, &login, Code::Busy, "too many logins at once");
    }
    cx.hub.registers += 1;
    let registration = Registration {
        user: login.user.clone(),
        device: login.device.clone(),
        platform: ask.platform,
        session,
        incarnation: gateway_incarnation,
        login_number,
        wall_ms: cx.now.wall_ms,
        newest_wins: ask.newest_wins,
        claim: Some((from.partition, owner.fence)),
    };
    cx.store(Work::Register(Box::new(registration)), Pending::Register(Box::new(login)));
}

/// The store's answer to a registration.
pub fn registered(cx: &mut Cx, login: Login, outcome: Result<Outcome, StoreError>) {
    cx.hub.registers -= 1;
    match outcome {
        Ok(Outcome::Registered { login_number, lost, losers, mut groups }) => {
            for loser in losers {
                // A session that is registered again under its own number does not lose to itself.
                if loser.session != login.session {
                    close(cx, login.from, &login.user, loser);
                }
            }
            if lost {
                return refuse(cx, &login, Code::Displaced, "a newer login of this device took its place");
            }
            cx.hub.stats.registered += 1;
            if login.login_number == 0 {
                events::session(cx, login.from.partition, "login", &login.user, &login.device, login_number);
            }
            presence::came(cx, &login.user, &login.device, login.login_number == 0);
            cx.hub.stats.groups_left_out += groups.len().saturating_sub(GROUPS_TOLD_MAX) as u64;
            groups.truncate(GROUPS_TOLD_MAX);
            let registered = Registered {
                user: login.user,
                device: login.device,
                login_number,
                groups,
                gateway_incarnation: login.gateway_incarnation,
                ..Registered::default()
            };
            cx.send(login.link, login.from.record(Kind::Registered, login.session, &registered));
        }
        _ => {
            cx.hub.stats.busy += 1;
            refuse(cx, &login, Code::Busy, "routes can't be written now");
        }
    }
}

/// Refuses a registration that came for a partition that can't be served at this moment.
pub fn refuse_busy(cx: &mut Cx, link: LinkKey, from: From, session: SessionId, ask: Register) {
    cx.hub.stats.busy += 1;
    let Register { user, device, login_number, gateway_incarnation, .. } = ask;
    let login = Login { link, from, session, user, device, login_number, gateway_incarnation };
    refuse(cx, &login, Code::Busy, "the user's partition is moving");
}

fn refuse(cx: &mut Cx, login: &Login, code: Code, reason: &str) {
    let registered = Registered {
        user: login.user.clone(),
        device: login.device.clone(),
        login_number: login.login_number,
        groups: Vec::new(),
        refused: code as u32,
        reason: reason.into(),
        retry_after_ms: if code == Code::Busy { BUSY_RETRY_MS } else { 0 },
        gateway_incarnation: login.gateway_incarnation,
    };
    cx.send(login.link, login.from.record(Kind::Registered, login.session, &registered));
}

/// Tells the gateway of a user's session that it lost.
pub fn close(cx: &mut Cx, of: From, user: &str, loser: Route) {
    if !cx.hub.cluster.may_be_there(&loser) {
        return cx.hub.closes.over(of.partition, user.to_owned(), loser);
    }
    cx.hub.stats.losers += 1;
    let message = Close {
        user: user.to_owned(),
        device: loser.device.clone(),
        login_number: loser.login_number,
        code: Code::Displaced as u32,
        reason: "a newer login took its place".into(),
    };
    let record = of.record(Kind::Close, loser.session, &message);
    cx.send(link_of(loser.session), record.clone());
    let closes = &mut cx.hub.closes;
    if closes.due.len() >= CLOSES_MAX {
        cx.hub.stats.closes_untracked += 1;
        return;
    }
    let session = loser.session;
    let known = closes.open.insert(session, Closing { of, user: user.to_owned(), loser, record, tries: 1 });
    if known.is_none() {
        closes.due.push_back((cx.now.mono_us + CLOSE_REPEAT_US, session));
    }
}

/// The Close of a session was carried out.
pub fn closed(cx: &mut Cx, session: SessionId) {
    let closes = &mut cx.hub.closes;
    if let Some(Closing { of, user, loser, .. }) = closes.open.remove(&session) {
        closes.over(of.partition, user, loser);
    }
}

/// Sends again what was not answered in time, and tells the store what is over.
pub fn turn(cx: &mut Cx) {
    if !planted::is(Fault::CloseNotRepeated) {
        repeat_closes(cx);
    }
    for (partition, losers) in std::mem::take(&mut cx.hub.closes.over) {
        cx.store(Work::ForgetLosers { partition, losers }, Pending::Unwatched);
    }
}

fn repeat_closes(cx: &mut Cx) {
    while cx.hub.closes.due.front().is_some_and(|(at_us, _)| *at_us <= cx.now.mono_us) {
        let Some((_, session)) = cx.hub.closes.due.pop_front() else { break };
        let Some(closing) = cx.hub.closes.open.get_mut(&session) else { continue };
        closing.tries += 1;
        // The view may be some heartbeats old: a gateway is gone when a later one doesn't show it either.
        if closing.tries > 5 && !cx.hub.cluster.is_there(&closing.loser) {
            closed(cx, session);
            continue;
        }
        let record = closing.record.clone();
        cx.hub.stats.close_repeats += 1;
        cx.send(link_of(session), record);
        cx.hub.closes.due.push_back((cx.now.mono_us + CLOSE_REPEAT_US, session));
    }
}

/// An Unregister record. The store compares before it removes, so it needs no owner.
pub fn unregister(cx: &mut Cx, link: LinkKey, session: SessionId, ask: Unregister) {
    let partition = user_partition(&ask.user, cx.hub.config.partitions);
    events::session(cx, partition, "logout", &ask.user, &ask.device, ask.login_number);
    remove_route(cx, link, ask.user, ask.device, session, ask.login_number);
}

/// A NoSession record: the route that was used is wrong.
pub fn no_session(cx: &mut Cx, link: LinkKey, answer: NoSession) {
    remove_route(cx, link, answer.user, answer.device, SessionId(answer.session), answer.login_number);
}

fn remove_route(
    cx: &mut Cx,
    link: LinkKey,
    user: String,
    device: String,
    session: SessionId,
    login_number: u64,
) {
    let hello = cx.hub.cluster.links.get(&link).copied();
    let lease = cx.hub.cluster.gateways.get(&link.gateway).copied();
    for incarnation in hello.into_iter().chain(lease.filter(|lease| hello != Some(*lease))) {
        let (user, device) = (user.clone(), device.clone());
        let pending = Pending::Unregister(user.clone());
        cx.store(Work::Unregister { user, device, session, login_number, incarnation }, pending);
    }
}

/// Whether a record about a user came to that user's partition.
pub fn belongs(user: &str, from: From, partitions: u16) -> bool {
    user_partition(user, partitions) == from.partition
}
