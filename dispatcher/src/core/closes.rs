//! Sessions that lost their place to newer ones, until they are closed.
//!
//! The rule that keeps it right: a Close is repeated until the gateway answers it or is gone; until then the store knows who
//! lost, for the next owner.

use std::collections::{BTreeMap, VecDeque};

use millrace_protocol::ids::{Partition, SessionId};
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::client::Code;
use millrace_protocol::messages::link::Close;
use millrace_protocol::planted::{self, Fault};
use rustc_hash::FxHashMap;

use super::hub::{Cx, From, Pending, link_of};
use super::limits::{CLOSE_REPEAT_US, CLOSES_MAX};
use crate::store::{Route, Work};

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
    let closing = Closing { of, user: user.to_owned(), loser: loser.clone(), record, tries: 1 };
    match closes.open.insert(session, closing) {
        None => closes.due.push_back((cx.now.mono_us + CLOSE_REPEAT_US, session)),
        // Of an earlier life of the gateway: its sessions are gone.
        Some(before) if before.loser != loser => closes.over(before.of.partition, before.user, before.loser),
        Some(_) => {}
    }
}

/// A session is registered: what lost under its id is not there any more, or is this one.
pub fn registered(cx: &mut Cx, session: SessionId) {
    cx.hub.closes.open.remove(&session);
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
