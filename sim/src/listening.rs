//! What gateways send to sessions, judged as it arrives: a session that listens to a group is sent it without holes, in
//! order, and nothing while it catches up by pages.
//!
//! What the client makes of it is another matter: [`crate::shelf`].

use std::collections::{BTreeMap, BTreeSet};

use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Code, Deliver, Notify, Response, Standing, SyncPage, notify};

use crate::ledger::{Invariant, Ledger};

/// The groups of a device's present session.
#[derive(Debug, Default)]
pub struct Listening {
    /// Those that it listens to, as it was told, and how far it was sent each.
    at: BTreeMap<String, At>,
    /// It was sent a page with more to come of these, and neither the last one nor a message since. A Head that comes
    /// meanwhile answers what was asked before that page, and then it listens no more, or what was asked after, and then it
    /// does.
    catches_up: BTreeSet<String>,
    /// Its login was answered.
    logged_in: bool,
    /// The highest seq that it was ever sent of each, or told to be missing: none up to there may come again.
    sent: BTreeMap<String, u64>,
}

/// How far, and the epoch under which it was told so.
#[derive(Clone, Debug)]
struct At {
    epoch: u64,
    seq: u64,
    /// What else it was told while it caught up, and the head of the last page: it may be one of these as of which it
    /// listens. The next message says so.
    or: Vec<u64>,
    /// A Head of a later owner says less: it may be sent what follows this.
    again: Option<u64>,
}

impl At {
    fn new(epoch: u64, seq: u64) -> Self {
        At { epoch, seq, or: Vec::new(), again: None }
    }
}

impl Listening {
    fn forget(&mut self, conversation: &str) {
        self.at.remove(conversation);
        self.catches_up.remove(conversation);
    }
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
    /// A device has a connection, and is not logged in on it.
    pub fn connected(&mut self, device: usize) {
        self.listening[device].logged_in = false;
    }

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
                self.listening[device] = Listening { logged_in: true, ..Listening::default() };
                if !self.routed.contains(&ack.session) {
                    let (user, name) = &self.names[device];
                    let detail = format!("{user}/{name} is logged in, and never had a route");
                    self.broken(Invariant::RoutedFirst, now_us, detail);
                }
            }
            Some(Outcome::Joined(joined)) => {
                self.listens(device, &joined.conversation, At::new(joined.epoch, joined.head));
                self.listening[device].catches_up.remove(&joined.conversation);
                if joined.conversation.starts_with("g:") && !begun(&joined.conversation) {
                    self.begins_at(device, &joined.conversation, joined.head);
                }
            }
            Some(Outcome::Left(left)) => {
                self.listening[device].forget(&left.conversation);
                self.left(device, &left.conversation);
            }
            Some(Outcome::SyncPage(page)) => {
                if !begun(&page.conversation) {
                    let seq = page.truncated.map_or_else(|| before_page(page), |to| to.seq);
                    self.goes_on_from(device, &page.conversation, seq);
                }
                self.page(now_us, device, page);
            }
            // Where there is no news for who has no cursor, it begins at the head.
            Some(Outcome::Peeked(peeked)) => {
                let none = |standing: &&Standing| standing.code() == Code::None && !standing.news;
                for Standing { conversation, head, .. } in peeked.standings.iter().filter(none) {
                    if !begun(conversation) {
                        self.goes_on_from(device, conversation, head.unwrap_or_default().seq);
                    }
                }
            }
            _ => {}
        }
    }

    /// A gateway tells a session something.
    pub fn notified(&mut self, now_us: u64, device: usize, notify: &Notify) {
        let is_the_end = matches!(notify.event, Some(notify::Event::GoAway(_)));
        if !self.listening[device].logged_in && !is_the_end {
            let (user, name) = &self.names[device];
            let detail = format!("{user}/{name} is not logged in, and is told {notify:?}");
            self.broken(Invariant::LoggedInFirst, now_us, detail);
        }
        match &notify.event {
            Some(notify::Event::Deliver(deliver)) => {
                self.judge(now_us, device, deliver);
                self.judge_order(now_us, device, deliver);
            }
            Some(notify::Event::Head(head)) => {
                self.begins(device, &head.conversation, At::new(head.epoch, head.seq));
            }
            Some(notify::Event::Gap(gap)) => {
                self.counts.gaps += 1;
                let Listening { at, sent, .. } = &mut self.listening[device];
                if let Some(at) = at.get_mut(&gap.conversation) {
                    at.seq = gap.to.max(at.seq);
                    let sent = sent.entry(gap.conversation.clone()).or_default();
                    *sent = gap.to.max(*sent);
                }
            }
            Some(notify::Event::Removed(gone)) => {
                self.listening[device].forget(&gone.conversation);
                self.left(device, &gone.conversation);
            }
            Some(notify::Event::Resync(_)) => self.counts.resyncs += 1,
            _ => {}
        }
    }

    /// Everything after `head` will be sent to this session. One that listens already goes on from where it is, unless
    /// the log may be lost above `head`.
    fn listens(&mut self, device: usize, conversation: &str, head: At) {
        if conversation.starts_with("g:") {
            let Listening { at, catches_up, .. } = &mut self.listening[device];
            let seq = head.seq;
            let told = at.entry(conversation.into()).or_insert(head);
            if self.has_fallen_back {
                told.seq = seq.min(told.seq);
            }
            if catches_up.contains(conversation) {
                told.or.push(seq);
            }
        }
    }

    /// The same, told in its place among the messages: where another copy of the store took over, the log may begin again
    /// there, though it lost nothing: what an owner had fanned out, and did not say in that copy, comes again. Under one epoch
    /// it does not: what says less than was told before is older, as to the client.
    ///
    /// In one copy nothing that a session was sent comes again. What it was only told (by a Joined, a Head or a page) is no
    /// such promise against a Head of a later owner: who names the head of an owner that its gateway did not hear goes on from
    /// where that gateway is, and everything after the Head is sent.
    fn begins(&mut self, device: usize, conversation: &str, head: At) {
        let known = self.listening[device].at.get(conversation);
        if known.is_some_and(|at| at.epoch == head.epoch && head.seq < at.seq) {
            return;
        }
        self.listens(device, conversation, head.clone());
        if !conversation.starts_with("g:") {
            return;
        }
        let Listening { at, sent, .. } = &mut self.listening[device];
        if self.has_fallen_back {
            at.insert(conversation.into(), head);
        } else if let Some(told) = at.get_mut(conversation).filter(|told| head.epoch > told.epoch) {
            let from = head.seq.max(sent.get(conversation).copied().unwrap_or(0));
            if from < told.seq {
                told.again = Some(from);
            }
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
        let Listening { at, catches_up, .. } = &mut self.listening[device];
        if page.more {
            at.remove(&page.conversation);
            catches_up.insert(page.conversation.clone());
            return;
        }
        // A page may run ahead of what is being fanned out; also of the Head that comes with a loss.
        let caught_up = catches_up.remove(&page.conversation);
        let told = at.entry(page.conversation.clone()).or_insert(At::new(page.epoch, page.head));
        if caught_up {
            told.or.push(page.head);
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
        let Some(At { seq: at, or, again, .. }) = self.listening[device].at.get(conversation).cloned() else {
            let detail = format!("{user}/{name} got {seq} of {conversation}, to which it does not listen");
            return self.broken(Invariant::Contiguous, now_us, detail);
        };
        let hole_after = |at: u64| (at + 1..*seq).find(|seq| !self.is_own(device, conversation, *seq));
        let follows_other = || or.iter().any(|at| at < seq && hole_after(*at).is_none());
        let hole = hole_after(at).filter(|_| !follows_other());
        let comes_again = || again.is_some_and(|from| from < *seq && hole_after(from).is_none());
        if *seq <= at && !self.has_lost && !comes_again() || hole.is_some() {
            let detail = format!("{user}/{name} got {seq} of {conversation} after {at}; missing {hole:?}");
            self.broken(Invariant::Contiguous, now_us, detail);
        }
        let sent = self.listening[device].sent.entry(conversation.clone()).or_default();
        *sent = (*sent).max(*seq);
        self.listening[device].catches_up.remove(conversation);
        self.listening[device].at.insert(conversation.clone(), At::new(*epoch, *seq));
    }

    /// A group that a device's user is a member of, and its session does not listen to.
    pub(crate) fn not_attached(&self, device: usize) -> Option<String> {
        let (user, _) = &self.names[device];
        let Listening { at, catches_up, .. } = &self.listening[device];
        let listens = |group: &String| at.contains_key(group) && !catches_up.contains(group);
        self.membership.groups_of(user).find(|group| !listens(group)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use millrace_dispatcher::store::Write;
    use millrace_protocol::messages::client::{Head, Joined};

    use super::*;
    use crate::fixtures::{GROUP, append, deliver, entry, members};

    const EPOCH: u64 = 7;

    /// What a session is sent.
    #[derive(Clone, Copy, Debug)]
    enum Sent {
        Joined(u64),
        Head(u64),
        /// The same, of the next owner.
        LaterHead(u64),
        /// A page with more to come.
        Page,
        /// The page that reaches this head.
        LastPage(u64),
        Live(u64),
    }
    use Sent::{LastPage, Live, Page};

    /// Ann's phone, and a group that she is in, with 1 to 9.
    fn nine() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.add_device("ann", "phone");
        ledger.listening[0].logged_in = true;
        let log = (1..=9).map(|seq| Write::Message(entry((EPOCH, seq, seq))));
        append(&mut ledger, EPOCH, [members(&["ann", "bob"], 1)].into_iter().chain(log).collect());
        ledger
    }

    fn tell(ledger: &mut Ledger, sent: Sent) {
        let conversation = GROUP.to_owned();
        let page = |head, more| {
            let conversation = conversation.clone();
            Outcome::SyncPage(SyncPage { conversation, epoch: EPOCH, head, more, ..SyncPage::default() })
        };
        let outcome = match sent {
            Sent::Joined(head) => {
                Outcome::Joined(Joined { conversation, epoch: EPOCH, head, ..Joined::default() })
            }
            Page => page(9, true),
            LastPage(head) => page(head, false),
            Sent::Head(seq) | Sent::LaterHead(seq) => {
                let epoch = EPOCH + u64::from(matches!(sent, Sent::LaterHead(_)));
                let event = notify::Event::Head(Head { conversation, epoch, seq });
                return ledger.notified(0, 0, &Notify { event: Some(event) });
            }
            Live(seq) => {
                let event = notify::Event::Deliver(deliver((EPOCH, seq, seq)));
                return ledger.notified(0, 0, &Notify { event: Some(event) });
            }
        };
        ledger.answered(0, 0, &Response { outcome: Some(outcome), ..Response::default() }, |_| true);
    }

    /// Ann's phone is sent this; `wrong`: what is said of that, if anything is wrong.
    fn check(sent: &[Sent], wrong: &str) {
        let mut ledger = nine();
        sent.iter().for_each(|sent| tell(&mut ledger, *sent));
        let detail = ledger.violation.map_or(String::new(), |violation| violation.detail);
        assert_eq!(wrong.is_empty(), detail.is_empty(), "{sent:?}: {detail}");
        assert!(detail.contains(wrong), "{sent:?}: {detail}");
    }

    #[test]
    fn another_copy_of_the_store_may_fan_out_again_and_no_other_owner() {
        for (is_copy, wrong) in [(true, None), (false, Some("got 4 of g:tea after 5"))] {
            let mut ledger = nine();
            ledger.has_fallen_back = is_copy;
            tell(&mut ledger, Sent::Joined(4));
            tell(&mut ledger, Live(5));
            tell(&mut ledger, Sent::LaterHead(3));
            [4, 5, 6].into_iter().for_each(|seq| tell(&mut ledger, Live(seq)));
            let detail = ledger.violation.take().map(|violation| violation.detail);
            assert_eq!(detail.is_some(), wrong.is_some(), "{is_copy}: {detail:?}");
            assert!(detail.zip(wrong).is_none_or(|(detail, wrong)| detail.contains(wrong)));
            // What is missing is missed in both.
            tell(&mut ledger, Live(8));
            assert!(ledger.violation.is_some_and(|violation| violation.detail.contains("missing Some(7)")));
        }
    }

    #[test]
    fn a_later_owner_may_send_what_was_told_and_never_what_was_sent() {
        use Sent::{Head, Joined, LaterHead};
        // Told 5 by an owner that its gateway did not hear, and all that the gateway had not sent by the next one.
        check(&[Joined(5), LaterHead(3), Live(4), Live(5), Live(6)], "");
        check(&[Joined(5), LaterHead(3), LaterHead(3), Live(4), Live(5), Live(6)], "");
        // The Head was on its way when it joined.
        check(&[Joined(5), LaterHead(3), Live(6)], "");
        check(&[LastPage(5), LaterHead(3), Live(4)], "");
        // Once, without holes, and from where that Head says.
        check(&[Joined(5), LaterHead(3), Live(4), Live(4)], "got 4 of g:tea after 4");
        check(&[Joined(5), LaterHead(3), Live(4), Live(6)], "missing Some(5)");
        check(&[Joined(5), LaterHead(3), Live(5)], "got 5 of g:tea after 5");
        check(&[Joined(5), LaterHead(3), Live(7)], "missing Some(6)");
        check(&[Joined(5), LaterHead(3), Live(3)], "got 3 of g:tea after 5");
        // Of the owner that told it, or without any word.
        check(&[Joined(5), Head(3), Live(4)], "got 4 of g:tea after 5");
        check(&[Joined(5), Live(4)], "got 4 of g:tea after 5");
        // What it was sent, whatever it was told since.
        check(&[Joined(4), Live(5), LaterHead(3), Live(4)], "got 4 of g:tea after 5");
        check(&[Joined(4), Live(5), LaterHead(3), Live(5)], "got 5 of g:tea after 5");
        check(&[Joined(4), Live(5), Page, LastPage(7), LaterHead(3), Live(5)], "got 5 of g:tea after 7");
        check(&[Joined(4), Live(5), Page, LastPage(7), LaterHead(3), Live(6), Live(7), Live(8)], "");
    }

    #[test]
    fn a_head_between_pages_may_say_that_a_session_listens_or_not() {
        use Sent::{Head, Joined};
        check(&[LastPage(3), Live(4), Live(5)], "");
        check(&[LastPage(3), Live(5)], "missing Some(4)");
        check(&[Joined(3), LastPage(5), Live(4), Live(5)], "");
        check(&[Joined(3), LastPage(4), Live(5)], "missing Some(4)");
        check(&[Joined(3), Page, Live(4)], "does not listen");
        // Told between pages, and attached by the last one, or by what it was told.
        check(&[Page, Head(3), LastPage(4), Live(5), Live(6)], "");
        check(&[Page, Head(3), LastPage(4), Live(4), Live(5)], "");
        check(&[Page, Head(3), LastPage(5), Live(5)], "missing Some(4)");
        check(&[Page, Head(3), LastPage(4), Live(6)], "missing Some(4)");
        // What it is sent says which it was: from then on it listens, whatever pages run ahead.
        check(&[Page, Head(3), LastPage(4), Live(4), Live(6)], "missing Some(5)");
        check(&[Page, Head(3), Live(4), LastPage(5), Live(6)], "missing Some(5)");
        // Told again, as its user was a member again: nobody said that it had been removed, as it did not listen.
        check(&[Page, Head(3), Head(5), Live(6)], "");
        check(&[Page, Head(3), Joined(5), LastPage(6), Live(6)], "");
        check(&[Page, Head(3), Page, Live(4)], "does not listen");
    }
}
