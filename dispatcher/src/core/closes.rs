//! Sessions that lost their place to newer ones, until they are closed.
//!
//! The rules that keep it right: a Close is repeated until the gateway answers it or is gone; until then the store knows who
//! lost, for the next owner. And a session id is that of one session in each life of its gateway: which of those it was, user,
//! device and login number tell.

use std::collections::{BTreeMap, VecDeque};

use millrace_protocol::ids::{Partition, SessionId};
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::client::Code;
use millrace_protocol::messages::link::{Close, Closed};
use millrace_protocol::planted::{self, Fault};
use rustc_hash::FxHashMap;

use super::hub::{Cx, From, Hub, Pending, link_of};
use super::limits::{CLOSE_REPEAT_US, CLOSES_MAX};
use crate::store::{Route, Work};

/// Sessions that were told to close, until they answer.
#[derive(Debug, Default)]
pub struct Closes {
    open: FxHashMap<SessionId, Vec<Closing>>,
    /// How many those are.
    tracked: usize,
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
        self.tracked
    }

    /// What is over of the Closes under a session's id.
    fn take_out(&mut self, session: SessionId, is_over: impl Fn(&Closing) -> bool) {
        let Some(open) = self.open.get_mut(&session) else { return };
        let over: Vec<Closing> = open.extract_if(.., |closing| is_over(closing)).collect();
        if open.is_empty() {
            self.open.remove(&session);
        }
        self.tracked -= over.len();
        for Closing { of, user, loser, .. } in over {
            self.over(of.partition, user, loser);
        }
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
    if closes.due.len().max(closes.tracked) >= CLOSES_MAX {
        cx.hub.stats.closes_untracked += 1;
        return;
    }
    let session = loser.session;
    let open = closes.open.entry(session).or_default();
    if open.is_empty() {
        closes.due.push_back((cx.now.mono_us + CLOSE_REPEAT_US, session));
    }
    let closing = Closing { of, user: user.to_owned(), loser, record, tries: 1 };
    match open.iter_mut().find(|before| (&before.user, &before.loser) == (&closing.user, &closing.loser)) {
        Some(before) => *before = closing,
        None => {
            open.push(closing);
            closes.tracked += 1;
        }
    }
}

/// A user's session is registered: what of this user lost under its id is not there any more, or is this one.
pub fn registered(cx: &mut Cx, session: SessionId, user: &str) {
    cx.hub.closes.take_out(session, |closing| closing.user == user);
}

/// The Close of a session was carried out.
pub fn closed(cx: &mut Cx, session: SessionId, answer: &Closed) {
    let named = |closing: &Closing| {
        let Closing { user, loser, .. } = closing;
        (user, &loser.device, loser.login_number) == (&answer.user, &answer.device, answer.login_number)
    };
    cx.hub.closes.take_out(session, named);
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
        let Hub { closes, cluster, .. } = &mut *cx.hub;
        // The view may be some heartbeats old: a gateway is gone when a later one doesn't show it either.
        closes.take_out(session, |closing| closing.tries >= 5 && !cluster.is_there(&closing.loser));
        let Some(open) = closes.open.get_mut(&session) else { continue };
        let again = open.iter_mut().map(|closing| {
            closing.tries += 1;
            closing.record.clone()
        });
        for record in again.collect::<Vec<_>>() {
            cx.hub.stats.close_repeats += 1;
            cx.send(link_of(session), record);
        }
        cx.hub.closes.due.push_back((cx.now.mono_us + CLOSE_REPEAT_US, session));
    }
}
