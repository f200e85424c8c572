//! Users' sessions: registering them, and removing routes that are wrong.
//!
//! The policy itself (who loses to whom) is one atomic step of the store; who lost is closed: [`super::closes`].

use millrace_protocol::ids::{SessionId, user_partition};
use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::Code;
use millrace_protocol::messages::link::{NoSession, Register, Registered, Unregister};

use super::batch::Owner;
use super::event::LinkKey;
use super::events;
use super::hub::{Cx, From, Pending};
use super::limits::{BUSY_RETRY_MS, GROUPS_TOLD_MAX, REGISTERS_MAX};
use super::{closes, presence};
use crate::store::{Outcome, Registration, StoreError, Work};

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

impl Login {
    /// Under which claim it was to be registered.
    pub fn from(&self) -> From {
        self.from
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
                    closes::close(cx, login.from, &login.user, loser);
                }
            }
            if lost {
                return refuse(cx, &login, Code::Displaced, "a newer login of this device took its place");
            }
            closes::registered(cx, login.session, &login.user);
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

/// An Unregister record. The store compares before it removes, so it needs no owner.
pub fn unregister(cx: &mut Cx, session: SessionId, ask: Unregister) {
    let partition = user_partition(&ask.user, cx.hub.config.partitions);
    events::session(cx, partition, "logout", &ask.user, &ask.device, ask.login_number);
    let Unregister { user, device, login_number, gateway_incarnation: incarnation } = ask;
    let pending = Pending::Unregister(user.clone());
    cx.store(Work::Unregister { user, device, session, login_number, incarnation }, pending);
}

/// A NoSession record: the route that was used is wrong.
pub fn no_session(cx: &mut Cx, answer: NoSession) {
    let NoSession { user, device, login_number, session, gateway_incarnation: incarnation } = answer;
    let session = SessionId(session);
    let pending = Pending::Unregister(user.clone());
    cx.store(Work::Unregister { user, device, session, login_number, incarnation }, pending);
}

/// Whether a record about a user came to that user's partition.
pub fn belongs(user: &str, from: From, partitions: u16) -> bool {
    user_partition(user, partitions) == from.partition
}
