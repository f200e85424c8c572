//! Messages and attachments for single sessions: whose routes must be read first.
//!
//! Asks of one turn share a job. Answers are used in the order in which the asks came, whatever the order in which
//! the store gives them, so that one session gets the messages of a direct conversation in order. The rule that keeps
//! it right: routes are read after the append, never before.

use std::collections::VecDeque;

use bytes::Bytes;
use millrace_protocol::ids::SessionId;
use millrace_protocol::link::Kind;
use millrace_protocol::messages::link::{Attach, Direct, Relay, Target};
use rustc_hash::FxHashMap;

use super::event::LinkKey;
use super::hub::{Cx, From, Pending, link_of};
use super::limits::{
    ROUTE_ASKS_MAX, ROUTE_LOOKUPS_MAX, ROUTE_SOFT_ASKS_MAX, ROUTE_TRIES_MAX, ROUTE_USERS_MAX, TARGETS_MAX,
};
use crate::store::{Outcome, Route, StoreError, Work};

/// Something for all sessions of some users.
#[derive(Debug)]
pub struct Ask {
    /// Whose sessions.
    pub users: Vec<String>,
    /// Except these.
    pub except: Vec<SessionId>,
    /// From which partition.
    pub from: From,
    /// What they get.
    pub what: What,
}

/// What sessions get.
#[derive(Debug)]
pub enum What {
    /// A message.
    Message {
        /// Where.
        conversation: String,
        /// Its number there.
        seq: u64,
        /// The body of its Notify.
        notify: Bytes,
    },
    /// To be attached to this conversation.
    Attach(String),
    /// Something that may be lost (a receipt, a friend's request): dropped under pressure, and when routes can't be read.
    Relay {
        /// What it is about; may be empty.
        conversation: String,
        /// The body of its Notify.
        notify: Bytes,
    },
}

/// The line of asks.
#[derive(Debug, Default)]
pub struct Delivery {
    /// Of this turn; `true`: it went to the end of the line before.
    asks: Vec<(Ask, bool)>,
    /// At the store, in order. The first has number `first`.
    line: VecDeque<Lookup>,
    first: u64,
    /// Asks in `asks` and `line`.
    count: usize,
    /// Asks ever.
    asked: u64,
    /// Asks that went to the end of the line and are not answered: until they are, `asked` less `count` says nothing of
    /// those before them.
    again: usize,
    /// What was answered before the first of them.
    frozen: u64,
    /// Routes as they were first read: see `planted`.
    #[cfg(feature = "planted")]
    remembered: FxHashMap<String, Vec<Route>>,
}

#[derive(Debug)]
struct Lookup {
    asks: Vec<(Ask, bool)>,
    users: Vec<String>,
    tries: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    AtStore,
    RetryAt(u64),
    Answered(Vec<Vec<Route>>),
    Failed,
}

impl Delivery {
    /// No room for more messages: sends must be refused.
    pub fn is_full(&self) -> bool {
        self.count >= ROUTE_ASKS_MAX
    }

    /// Routes as they were first read, with that fault: see `planted`.
    #[cfg(feature = "planted")]
    fn routes_from_memory(
        &mut self,
        mut routes: FxHashMap<String, Vec<Route>>,
    ) -> FxHashMap<String, Vec<Route>> {
        use millrace_protocol::planted::{self, Fault};
        if planted::is(Fault::RoutesFromMemory) {
            for (user, routes) in &mut routes {
                routes.clone_from(self.remembered.entry(user.clone()).or_insert_with(|| routes.clone()));
            }
        }
        routes
    }

    /// Queues something soft, unless messages wait in numbers: those come first. Returns whether it was queued.
    pub fn ask_soft(&mut self, ask: Ask) -> bool {
        let fits = self.count < ROUTE_SOFT_ASKS_MAX;
        if fits {
            self.ask(ask);
        }
        fits
    }

    /// Queues an ask; it goes to the store at the end of the turn.
    pub fn ask(&mut self, mut ask: Ask) {
        // A round of a group leaves out hundreds.
        ask.except.sort_unstable();
        self.count += 1;
        self.asked += 1;
        self.asks.push((ask, false));
    }

    /// Asks so far.
    pub fn asked(&self) -> u64 {
        self.asked
    }

    /// Of them, those that were answered or given up, and all before them.
    pub fn answered_through(&self) -> u64 {
        if self.again > 0 { self.frozen } else { self.asked - self.count as u64 }
    }

    /// When the next retry is due.
    pub fn deadline_us(&self) -> Option<u64> {
        let due = |lookup: &Lookup| match lookup.state {
            State::RetryAt(at_us) => Some(at_us),
            _ => None,
        };
        self.line.iter().filter_map(due).min()
    }
}

/// Hands this turn's asks to the store, and those that are due for another try.
pub fn turn(cx: &mut Cx) {
    let mut lookup: Option<(Lookup, FxHashMap<String, ()>)> = None;
    let asks = match cx.hub.delivery.line.len() < ROUTE_LOOKUPS_MAX {
        true => std::mem::take(&mut cx.hub.delivery.asks),
        false => Vec::new(),
    };
    for (ask, again) in asks {
        let (now, known) = lookup.get_or_insert_with(|| {
            let now = Lookup { asks: Vec::new(), users: Vec::new(), tries: 0, state: State::RetryAt(0) };
            (now, FxHashMap::default())
        });
        for user in &ask.users {
            if known.insert(user.clone(), ()).is_none() {
                now.users.push(user.clone());
            }
        }
        now.asks.push((ask, again));
        if now.users.len() >= ROUTE_USERS_MAX {
            cx.hub.delivery.line.extend(lookup.take().map(|(lookup, _)| lookup));
        }
    }
    cx.hub.delivery.line.extend(lookup.map(|(lookup, _)| lookup));
    for index in 0..cx.hub.delivery.line.len() {
        let lookup = &mut cx.hub.delivery.line[index];
        if matches!(lookup.state, State::RetryAt(at_us) if at_us <= cx.now.mono_us) {
            lookup.state = State::AtStore;
            let users = lookup.users.clone();
            let number = cx.hub.delivery.first + index as u64;
            cx.store(Work::Routes { users }, Pending::Routes(number));
        }
    }
}

/// The store's answer for place `number` of the line.
pub fn answered(cx: &mut Cx, number: u64, outcome: Result<Outcome, StoreError>) {
    let index = (number - cx.hub.delivery.first) as usize;
    let tries = cx.hub.delivery.line[index].tries + 1;
    let state = match outcome {
        Ok(Outcome::Routes(routes)) => State::Answered(routes),
        _ if tries >= ROUTE_TRIES_MAX => State::Failed,
        _ => State::RetryAt(cx.now.mono_us + cx.backoff_us(tries)),
    };
    let lookup = &mut cx.hub.delivery.line[index];
    lookup.tries = tries;
    lookup.state = state;
    while let Some(lookup) = cx.hub.delivery.line.front()
        && matches!(lookup.state, State::Answered(_) | State::Failed)
    {
        let lookup = cx.hub.delivery.line.pop_front().expect("looked at");
        cx.hub.delivery.first += 1;
        let through = cx.hub.delivery.answered_through();
        cx.hub.delivery.count -= lookup.asks.len();
        match lookup.state {
            State::Answered(routes) => {
                cx.hub.delivery.again -= lookup.asks.iter().filter(|(_, again)| *again).count();
                deliver(cx, lookup.asks, lookup.users, routes);
            }
            _ => again(cx, lookup.asks, through),
        }
    }
}

/// Routes that could not be read in many tries: what is soft is dropped, messages go to the end of the line. Their order
/// is lost, which their clients mend; the messages themselves are not.
fn again(cx: &mut Cx, asks: Vec<(Ask, bool)>, through: u64) {
    let (soft, hard): (Vec<_>, Vec<_>) =
        asks.into_iter().partition(|(ask, _)| matches!(ask.what, What::Relay { .. }));
    cx.hub.stats.relays_dropped += soft.len() as u64;
    cx.hub.stats.routes_failed += hard.len() as u64;
    let delivery = &mut cx.hub.delivery;
    if delivery.again == 0 {
        delivery.frozen = through;
    }
    for (ask, was_again) in hard {
        delivery.again += usize::from(!was_again);
        delivery.count += 1;
        delivery.asks.push((ask, true));
    }
}

fn deliver(cx: &mut Cx, asks: Vec<(Ask, bool)>, users: Vec<String>, routes: Vec<Vec<Route>>) {
    let routes: FxHashMap<String, Vec<Route>> = users.into_iter().zip(routes).collect();
    #[cfg(feature = "planted")]
    let routes = cx.hub.delivery.routes_from_memory(routes);
    for (ask, _) in asks {
        for (link, targets) in targets(cx, &ask, &routes) {
            for targets in targets.chunks(TARGETS_MAX) {
                let targets = targets.to_vec();
                let record = match &ask.what {
                    What::Message { notify, .. } => {
                        let direct = Direct { targets, notify: notify.clone() };
                        ask.from.record(Kind::Direct, SessionId::NONE, &direct)
                    }
                    What::Attach(conversation) => {
                        let attach = Attach { conversation: conversation.clone(), targets };
                        ask.from.record(Kind::Attach, SessionId::NONE, &attach)
                    }
                    What::Relay { conversation, notify } => {
                        let (conversation, notify) = (conversation.clone(), notify.clone());
                        let relay = Relay { targets, conversation, notify, ..Relay::default() };
                        ask.from.record(Kind::Relay, SessionId::NONE, &relay)
                    }
                };
                cx.send(link, record);
            }
        }
    }
}

/// The sessions that an ask is for, by link, in order of links.
fn targets(cx: &Cx, ask: &Ask, routes: &FxHashMap<String, Vec<Route>>) -> Vec<(LinkKey, Vec<Target>)> {
    let mut by_link: Vec<(LinkKey, Vec<Target>)> = Vec::new();
    for user in &ask.users {
        for route in routes.get(user).into_iter().flatten() {
            if ask.except.binary_search(&route.session).is_ok() || !cx.hub.cluster.may_be_there(route) {
                continue;
            }
            let target = Target {
                session: route.session.0,
                user: user.clone(),
                device: route.device.clone(),
                login_number: route.login_number,
                gateway_incarnation: route.incarnation,
            };
            let link = link_of(route.session);
            match by_link.iter_mut().find(|(key, _)| *key == link) {
                Some((_, targets)) => targets.push(target),
                None => by_link.push((link, vec![target])),
            }
        }
    }
    by_link
}
