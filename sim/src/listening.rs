//! What gateways send to sessions, judged as it arrives: a session that listens to a group is sent it without holes, in
//! order, and nothing while it catches up by pages.
//!
//! What the client makes of it is another matter: [`crate::shelf`].

use std::collections::BTreeMap;

use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Deliver, Notify, Response, SyncPage, notify};

use crate::ledger::{Invariant, Ledger};

/// The groups that a device's present session listens to, and how far it was sent each.
#[derive(Debug, Default)]
pub struct Listening(BTreeMap<String, At>);

/// How far, and the epoch under which it was told so.
#[derive(Clone, Copy, Debug)]
struct At {
    epoch: u64,
    seq: u64,
}

/// Where a page begins: what it follows.
fn before_page(page: &SyncPage) -> u64 {
    let gap = page.gap.as_ref().map(|gap| gap.from);
    let first = page.entries.first().and_then(|entry| match &entry.event {
        Some(notify::Event::Deliver(deliver)) => Some(deliver.seq),
        _ => None,
    });
    gap.or(first).map_or(page.head, |first| first.saturating_sub(1))
}

impl Ledger {
    /// A gateway answers a session. `begun`: conversations of which the client has a cursor.
    pub fn answered(
        &mut self,
        now_us: u64,
        device: usize,
        response: &Response,
        begun: impl Fn(&str) -> bool,
    ) {
        match &response.outcome {
            Some(Outcome::LoginAck(ack)) => {
                self.listening[device].0.clear();
                if !self.routed.contains(&ack.session) {
                    let (user, name) = &self.names[device];
                    let detail = format!("{user}/{name} is logged in, and never had a route");
                    self.broken(Invariant::RoutedFirst, now_us, detail);
                }
            }
            Some(Outcome::Joined(joined)) => {
                let at = At { epoch: joined.epoch, seq: joined.head };
                self.listens(device, &joined.conversation, at);
                if joined.conversation.starts_with("g:") && !begun(&joined.conversation) {
                    self.begins_at(device, &joined.conversation, joined.head);
                }
            }
            Some(Outcome::Left(left)) => {
                self.listening[device].0.remove(&left.conversation);
                self.left(device, &left.conversation);
            }
            Some(Outcome::SyncPage(page)) => {
                if page.truncated.is_none() && !begun(&page.conversation) {
                    self.goes_on_from(device, &page.conversation, before_page(page));
                }
                self.page(now_us, device, page);
            }
            _ => {}
        }
    }

    /// A gateway tells a session something.
    pub fn notified(&mut self, now_us: u64, device: usize, notify: &Notify) {
        match &notify.event {
            Some(notify::Event::Deliver(deliver)) => {
                self.judge(now_us, device, deliver);
                self.judge_order(now_us, device, deliver);
            }
            Some(notify::Event::Head(head)) => {
                self.begins(device, &head.conversation, At { epoch: head.epoch, seq: head.seq });
            }
            Some(notify::Event::Gap(gap)) => {
                self.counts.gaps += 1;
                if let Some(at) = self.listening[device].0.get_mut(&gap.conversation) {
                    at.seq = gap.to.max(at.seq);
                }
            }
            Some(notify::Event::Removed(gone)) => {
                self.listening[device].0.remove(&gone.conversation);
                self.left(device, &gone.conversation);
            }
            Some(notify::Event::Resync(_)) => self.counts.resyncs += 1,
            _ => {}
        }
    }

    /// Everything after `head` will be sent to this session. One that listens already goes on from where it is, unless
    /// the log was lost above `head`.
    fn listens(&mut self, device: usize, conversation: &str, head: At) {
        if conversation.starts_with("g:") {
            let at = self.listening[device].0.entry(conversation.into()).or_insert(head);
            if self.has_lost {
                at.seq = head.seq.min(at.seq);
            }
        }
    }

    /// The same, told in its place among the messages: where the store lost something, the log may begin again there. Under
    /// one epoch it does not: what says less than was told before is older, as to the client.
    fn begins(&mut self, device: usize, conversation: &str, head: At) {
        let known = self.listening[device].0.get(conversation);
        if known.is_some_and(|at| at.epoch == head.epoch && head.seq < at.seq) {
            return;
        }
        self.listens(device, conversation, head);
        if conversation.starts_with("g:") && self.has_lost {
            self.listening[device].0.insert(conversation.into(), head);
        }
    }

    fn page(&mut self, now_us: u64, device: usize, page: &SyncPage) {
        self.counts.pages += 1;
        for entry in &page.entries {
            if let Some(notify::Event::Deliver(deliver)) = &entry.event {
                self.judge(now_us, device, deliver);
            }
        }
        if page.truncated.is_some() {
            return;
        }
        self.judge_end(now_us, device, page);
        if !page.conversation.starts_with("g:") {
            return;
        }
        if page.more {
            self.listening[device].0.remove(&page.conversation);
        } else {
            // A page may run ahead of what is being fanned out; also of the Head that comes with a loss.
            self.listening[device]
                .0
                .entry(page.conversation.clone())
                .or_insert(At { epoch: page.epoch, seq: page.head });
        }
    }

    /// A page that says that nothing more is to be read reaches the head that it names.
    fn judge_end(&mut self, now_us: u64, device: usize, page: &SyncPage) {
        let last = page.entries.last().and_then(|entry| match &entry.event {
            Some(notify::Event::Deliver(deliver)) => Some(deliver.seq),
            _ => None,
        });
        let short =
            last.filter(|last| *last < page.head && !page.more && !page.conversation.starts_with("r:"));
        if let Some(last) = short {
            let (user, name) = &self.names[device];
            let SyncPage { conversation, head, .. } = page;
            let detail = format!("{user}/{name}'s last page of {conversation} ends at {last}, not at {head}");
            self.broken(Invariant::Contiguous, now_us, detail);
        }
    }

    fn judge_order(&mut self, now_us: u64, device: usize, deliver: &Deliver) {
        let Deliver { conversation, seq, epoch, .. } = deliver;
        if !conversation.starts_with("g:") {
            return;
        }
        let (user, name) = &self.names[device];
        let Some(At { seq: at, .. }) = self.listening[device].0.get(conversation).copied() else {
            let detail = format!("{user}/{name} got {seq} of {conversation}, to which it does not listen");
            return self.broken(Invariant::Contiguous, now_us, detail);
        };
        let hole = (at + 1..*seq).find(|seq| !self.is_own(device, conversation, *seq));
        if *seq <= at && !self.has_lost || hole.is_some() {
            let detail = format!("{user}/{name} got {seq} of {conversation} after {at}; missing {hole:?}");
            self.broken(Invariant::Contiguous, now_us, detail);
        }
        self.listening[device].0.insert(conversation.clone(), At { epoch: *epoch, seq: *seq });
    }

    /// A group that a device's user is a member of, and its session does not listen to.
    pub(crate) fn not_attached(&self, device: usize) -> Option<String> {
        let (user, _) = &self.names[device];
        let listens = |group: &String| self.listening[device].0.contains_key(group);
        let mut groups = self.members.iter().filter(|(_, members)| members.contains(user));
        groups.find(|(group, _)| !listens(group)).map(|(group, _)| group.clone())
    }
}
