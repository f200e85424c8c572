//! This node's part in the cluster: its lease, the view that comes with every renewal, and which partitions its shards
//! claim and release. What a claim is, is the core's and the store's business; who should own what, is
//! [`Ownership`]'s.
//!
//! The rules that keep it right: a lease is counted from before its renewal was *sent*, on a clock that goes on while
//! the machine sleeps, less a margin; and it is renewed only if every shard has turned since the renewal before. A
//! shard that hangs loses its partitions to other nodes, though its process lives.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::ErrorKind;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_edge::clock;
use millrace_edge::mailbox::{Receiver, mailbox};
use millrace_edge::wake::Waker;
use millrace_protocol::ids::Partition;
use rustc_hash::FxHashMap;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::limits::{LEASE_MARGIN_SHARE, RETRY_US, STOP_RESERVE_MS, STORE_REPLIES};
use super::log;
use super::node::{NodeConfig, Shards};
use super::shard::{Command, Reported, now};
use crate::core::event::{Event, is_live};
use crate::core::lease::{NameLease, Renewal};
use crate::core::ownership::{Command as Order, MOVES_MAX, Ownership};
use crate::store::{Done, Job, Outcome, Replies, Route, Store, StoreError, View, Work};

/// What the control thread is asked.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Hand over, leave, stop the shards, within this time.
    Stop(Duration),
    /// How things are.
    Status(oneshot::Sender<Status>),
    /// Where a user is. Dropped when the store can't say.
    Routes(String, oneshot::Sender<Vec<(Route, bool)>>),
}

/// How things are, for admin.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) view: Arc<View>,
    /// Partitions served here, with their epochs.
    pub(crate) owned: BTreeMap<Partition, u64>,
    /// Claims and releases under way.
    pub(crate) moving: usize,
    /// CLOCK_BOOTTIME until which this node may act as owner.
    pub(crate) lease_until_us: u64,
    pub(crate) stopping: bool,
    pub(crate) renewals: u64,
    pub(crate) renewals_failed: u64,
    /// Renewals not sent because a shard did not turn.
    pub(crate) renewals_withheld: u64,
    /// Times that the lease had been missing from the store.
    pub(crate) lease_missing: u64,
}

impl Status {
    /// Why this node should get no traffic now, if so.
    pub(crate) fn trouble(&self, now_us: u64) -> Option<&'static str> {
        if self.stopping {
            return Some("stopping");
        }
        if self.lease_until_us <= now_us {
            return Some("no lease: the store cannot be reached, or a shard hangs");
        }
        (self.moving > 0).then_some("partitions are being claimed or handed over")
    }
}

/// What a store answer is for.
#[derive(Debug)]
enum Waiting {
    Heartbeat { sent_us: u64 },
    Leave,
    Routes(oneshot::Sender<Vec<(Route, bool)>>),
}

/// The end of this node, under way.
#[derive(Debug)]
struct Stopping {
    /// Handing over ends by then.
    hand_over_by: Instant,
    deadline: Instant,
    leaving: bool,
}

/// See the module's head.
pub(crate) struct Cluster {
    config: NodeConfig,
    shards: Arc<Shards>,
    store: Arc<dyn Store>,
    waker: Waker,
    replies: Replies,
    answers: Receiver<Vec<Done>>,
    reports: Receiver<Reported>,
    next_ticket: u64,
    waiting: FxHashMap<u64, Waiting>,
    /// When every shard was last poked.
    poked_us: Option<u64>,
    heartbeat_in_flight: bool,
    lease: NameLease,
    ownership: Ownership,
    /// Partitions whose shard owes a report.
    ordered: BTreeSet<Partition>,
    /// Orders that are on their way to their shards, oldest first.
    unsent: VecDeque<Order>,
    stopping: Option<Stopping>,
    /// What the log said last of the store.
    trouble_said: Option<String>,
    status: Status,
}

impl Cluster {
    pub(crate) fn new(
        config: NodeConfig,
        shards: Arc<Shards>,
        store: Arc<dyn Store>,
        waker: Waker,
        reports: Receiver<Reported>,
    ) -> Self {
        let (replies, answers) = mailbox(STORE_REPLIES, waker.clone());
        let ownership = Ownership::new(config.partitions, MOVES_MAX);
        let status = Status {
            view: Arc::default(),
            owned: BTreeMap::new(),
            moving: 0,
            lease_until_us: 0,
            stopping: false,
            renewals: 0,
            renewals_failed: 0,
            renewals_withheld: 0,
            lease_missing: 0,
        };
        Cluster {
            config,
            shards,
            store,
            waker,
            replies,
            answers,
            reports,
            next_ticket: 1,
            waiting: FxHashMap::default(),
            poked_us: None,
            heartbeat_in_flight: false,
            lease: NameLease::default(),
            ownership,
            ordered: BTreeSet::new(),
            unsent: VecDeque::new(),
            stopping: None,
            trouble_said: None,
            status,
        }
    }

    /// Runs until it was asked to stop and has: partitions handed over, lease ended, shards told to stop.
    pub(crate) async fn run(mut self, mut asks: mpsc::Receiver<Ask>) -> std::io::Result<()> {
        // A descriptor is all that this stream is used for: it is polled, never read or written.
        let eventfd = UnixStream::from_std(StdUnixStream::from(self.waker.try_clone_owned_fd()?))?;
        let mut tick = tokio::time::interval(Duration::from_millis(u64::from(self.config.lease_renew_ms)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let pause = if self.unsent.is_empty() {
                Duration::from_millis(50)
            } else {
                Duration::from_micros(RETRY_US)
            };
            let hurried = self.stopping.is_some() || !self.unsent.is_empty();
            tokio::select! {
                _ = tick.tick() => self.renew(),
                ready = eventfd.readable() => {
                    ready?;
                    // "Would block" is how the runtime learns to wait for the next wake.
                    let drained = eventfd.try_io(Interest::READABLE, || {
                        self.waker.drain();
                        Err::<(), _>(ErrorKind::WouldBlock.into())
                    });
                    debug_assert!(drained.is_err());
                    self.take_answers();
                    self.take_reports();
                }
                ask = asks.recv() => match ask {
                    Some(ask) => self.answer(ask),
                    // Nobody can ask for a stop any more: the process is ending.
                    None => return Ok(()),
                },
                () = tokio::time::sleep(pause), if hurried => {}
            }
            self.send_unsent();
            if self.stopped() {
                for commands in self.shards.all() {
                    if commands.send(Command::Stop).is_err() {
                        log::error("a shard took no stop: it hangs or is gone");
                    }
                }
                return Ok(());
            }
        }
    }

    fn submit(&mut self, work: Work, waiting: Waiting) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting.insert(ticket, waiting);
        self.store.submit(vec![Job { ticket, work }], &self.replies);
    }

    /// Pokes all shards, and renews the lease if all have turned since they were last poked.
    fn renew(&mut self) {
        let now_us = clock::boot_us();
        let hung = self.poked_us.and_then(|poked_us| self.shards.hung_since(poked_us));
        self.poked_us = Some(now_us);
        self.shards.poke();
        if let Some(shard) = hung {
            self.status.renewals_withheld += 1;
            log::warn(format_args!("shard {shard} did not turn: the lease is not renewed"));
            return;
        }
        // The store answers in bounded time; two at once would say nothing new. After the goodbye, none.
        if self.heartbeat_in_flight || self.stopping.as_ref().is_some_and(|stopping| stopping.leaving) {
            return;
        }
        self.beat(now_us);
    }

    fn beat(&mut self, now_us: u64) {
        self.heartbeat_in_flight = true;
        let (node, ttl_ms) = (self.config.member.clone(), self.config.lease_ttl_ms);
        let work = Work::Heartbeat { node, replaces: self.lease.replaces(), ttl_ms };
        self.submit(work, Waiting::Heartbeat { sent_us: now_us });
    }

    fn take_answers(&mut self) {
        while let Some(answers) = self.answers.recv() {
            for done in answers {
                match self.waiting.remove(&done.ticket) {
                    Some(Waiting::Heartbeat { sent_us }) => {
                        self.heartbeat_in_flight = false;
                        self.renewed(sent_us, done.outcome);
                    }
                    Some(Waiting::Leave) => {
                        if let Err(error) = done.outcome {
                            log::warn(format_args!("the lease was not ended, and will lapse: {error}"));
                        }
                        // Whatever the answer: nothing is left to do.
                        if let Some(stopping) = &mut self.stopping {
                            stopping.deadline = Instant::now();
                        }
                    }
                    Some(Waiting::Routes(to)) => {
                        if let Ok(Outcome::Routes(mut routes)) = done.outcome {
                            let view = Arc::clone(&self.status.view);
                            let routes = routes.pop().unwrap_or_default();
                            let judged = routes.into_iter().map(|route| (is_live(&route, &view), route));
                            // The asker may have given up.
                            drop(to.send(judged.map(|(live, route)| (route, live)).collect()));
                        }
                    }
                    None => log::error(format_args!("a store answer without a question: {done:?}")),
                }
            }
        }
    }

    /// Says why the store should not be relied on, once per reason.
    fn say_trouble(&mut self) {
        let trouble = self.store.trouble();
        if trouble == self.trouble_said {
            return;
        }
        match &trouble {
            Some(trouble) => log::warn(trouble),
            None => log::info("the store can be relied on again"),
        }
        self.trouble_said = trouble;
    }

    fn renewed(&mut self, sent_us: u64, outcome: Result<Outcome, StoreError>) {
        self.say_trouble();
        let view = match outcome {
            Ok(Outcome::View(view)) => view,
            other => {
                self.status.renewals_failed += 1;
                match other {
                    Err(error) => log::warn(format_args!("the lease was not renewed: {error}")),
                    Ok(other) => log::error(format_args!("no answer to a renewal: {other:?}")),
                }
                return;
            }
        };
        match self.lease.answered(&view) {
            Renewal::Granted => self.status.renewals += 1,
            // Nobody counts on this process yet; the next answer decides.
            Renewal::Replace => return self.beat(clock::boot_us()),
            Renewal::Refused => {
                self.status.renewals_failed += 1;
                return log::warn(format_args!(
                    "the lease was not renewed: another process bears the name {}",
                    self.config.member.name
                ));
            }
        }
        if view.was_missing {
            // Shards go on: an append under a fence that is gone is refused, and its partition is claimed again.
            self.status.lease_missing += 1;
            log::warn("the lease was missing: the store was emptied, or this node was away for too long");
        }
        let lease_us = u64::from(self.config.lease_ttl_ms) * 1_000;
        self.status.lease_until_us = sent_us + lease_us - lease_us / u64::from(LEASE_MARGIN_SHARE);
        self.status.view = Arc::clone(&view);
        for commands in self.shards.all() {
            // A full queue: the shard hangs, and must not learn that its lease goes on.
            let until_us = self.status.lease_until_us;
            let _ = commands.send(Command::Event(Event::LeaseUntil { until_us }));
            let _ = commands.send(Command::Event(Event::View(Arc::clone(&view))));
        }
        if self.stopping.is_none() {
            self.plan(&view);
        }
    }

    /// Moves partitions towards where the view says they belong.
    fn plan(&mut self, view: &View) {
        let orders = self.ownership.plan(view, &self.config.member.name, now());
        self.order(orders);
    }

    fn order(&mut self, orders: Vec<Order>) {
        for order in orders {
            let (Order::Claim(partition) | Order::Release(partition)) = order;
            self.ordered.insert(partition);
            self.unsent.push_back(order);
        }
        self.status.moving = self.ordered.len();
    }

    fn send_unsent(&mut self) {
        while let Some(order) = self.unsent.pop_front() {
            let (partition, event) = match order {
                Order::Claim(partition) => (partition, Event::Claim { partition }),
                Order::Release(partition) => (partition, Event::Release { partition }),
            };
            if self.shards.of(partition).send(Command::Event(event)).is_err() {
                // Orders keep their order; a shard that takes none for long loses the lease for all.
                self.unsent.push_front(order);
                return;
            }
        }
    }

    fn take_reports(&mut self) {
        while let Some(report) = self.reports.recv() {
            match report {
                Reported::Claimed { partition, epoch } => {
                    self.ownership.claimed(partition);
                    self.status.owned.insert(partition, epoch);
                    // In a stop a release was ordered meanwhile, and is reported by itself.
                    if self.stopping.is_none() {
                        self.ordered.remove(&partition);
                    }
                }
                Reported::NotServed { partition, reason } => {
                    self.ownership.not_served(partition, now());
                    // A handover was ordered here, and many of them are no news.
                    let ordered = self.ordered.remove(&partition);
                    if self.status.owned.remove(&partition).is_some() && !ordered {
                        log::info(format_args!(
                            "partition {partition} is not served here any more: {reason}"
                        ));
                    }
                }
            }
        }
        self.status.moving = self.ordered.len();
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Status(to) => drop(to.send(self.status.clone())),
            Ask::Routes(user, to) => self.submit(Work::Routes { users: vec![user] }, Waiting::Routes(to)),
            Ask::Stop(timeout) => self.begin_stop(timeout),
        }
    }

    fn begin_stop(&mut self, timeout: Duration) {
        if self.stopping.is_some() {
            return;
        }
        let deadline = Instant::now() + timeout;
        // A short deadline is halved rather than eaten up by what comes after the handover.
        let reserve = Duration::from_millis(STOP_RESERVE_MS).min(timeout / 2);
        self.stopping = Some(Stopping { hand_over_by: deadline - reserve, deadline, leaving: false });
        self.status.stopping = true;
        log::info(format_args!("stopping: handing over {} partitions", self.status.owned.len()));
        let orders = self.ownership.release_all();
        self.order(orders);
    }

    /// Whether the stop is complete. Says goodbye once everything was handed over, or the time for that is up.
    fn stopped(&mut self) -> bool {
        let now = Instant::now();
        let Some(stopping) = &mut self.stopping else { return false };
        if stopping.leaving || now >= stopping.deadline {
            return now >= stopping.deadline;
        }
        let handed_over = self.ownership.is_empty();
        if !handed_over && now < stopping.hand_over_by {
            return false;
        }
        stopping.leaving = true;
        if !handed_over {
            log::warn(format_args!("{} partitions were not handed over in time", self.status.owned.len()));
        }
        let member = &self.config.member;
        let work = Work::Leave { node: member.name.clone(), incarnation: member.incarnation };
        self.submit(work, Waiting::Leave);
        false
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::store::Node as Member;

    /// Answers when it is told to.
    #[derive(Default)]
    struct Held(Mutex<Vec<(Job, Replies)>>);

    impl Held {
        /// Answers the only job with this.
        fn answer(&self, outcome: Result<Outcome, StoreError>) {
            let mut jobs = std::mem::take(&mut *self.0.lock().unwrap());
            assert_eq!(jobs.len(), 1);
            let (job, replies) = jobs.remove(0);
            replies.send(vec![Done { ticket: job.ticket, outcome }]).unwrap();
        }

        fn waiting(&self) -> usize {
            self.0.lock().unwrap().len()
        }
    }

    impl Store for Held {
        fn submit(&self, jobs: Vec<Job>, replies: &Replies) {
            self.0.lock().unwrap().extend(jobs.into_iter().map(|job| (job, replies.clone())));
        }
        fn name(&self) -> &'static str {
            "held"
        }
        fn close(&self, _: Duration) {}
    }

    fn member() -> Member {
        Member { name: "me".into(), address: String::new(), incarnation: 1 }
    }

    fn view() -> Result<Outcome, StoreError> {
        let owners = vec![(String::new(), 0); 4];
        Ok(Outcome::View(Arc::new(View { nodes: vec![member()], owners, ..View::default() })))
    }

    #[test]
    fn a_lease_counts_from_before_it_was_sent_and_is_not_renewed_for_a_shard_that_hangs() {
        let config = NodeConfig {
            member: member(),
            cluster: "c".into(),
            partitions: 4,
            shards: 1,
            lease_ttl_ms: 3_000,
            lease_renew_ms: 1_000,
            link_window_bytes: 1 << 23,
            sibling_queue: 16,
            limits: crate::core::limits::Limits::default(),
        };
        let (shards, commands, turned_us) = Shards::one_for_test();
        let store = Arc::new(Held::default());
        let waker = Waker::new().unwrap();
        let (_reports, from_shards) = mailbox(16, waker.clone());
        let as_store: Arc<dyn Store> = Arc::clone(&store) as _;
        let mut cluster = Cluster::new(config, Arc::new(shards), as_store, waker, from_shards);

        let before_us = clock::boot_us();
        cluster.renew();
        let sent_us = clock::boot_us();
        cluster.renew();
        assert_eq!(store.waiting(), 1, "one renewal at a time");
        // A store that is slow eats the lease, not the other way.
        std::thread::sleep(Duration::from_millis(50));
        store.answer(view());
        cluster.take_answers();
        cluster.send_unsent();
        let until_us = cluster.status.lease_until_us;
        assert!((before_us + 2_700_000..=sent_us + 2_700_000).contains(&until_us));
        assert!(
            matches!(commands.recv(), Some(Command::Event(Event::LeaseUntil { until_us: told })) if told == until_us)
        );
        assert!(matches!(commands.recv(), Some(Command::Event(Event::View(_)))));
        let claims = std::iter::from_fn(|| commands.recv())
            .filter(|command| matches!(command, Command::Event(Event::Claim { .. })))
            .count();
        assert_eq!(claims, 4);

        // It has not turned since it was poked: no renewal, however often the time for one comes.
        turned_us.store(before_us, Ordering::Relaxed);
        let withheld = cluster.status.renewals_withheld;
        cluster.renew();
        cluster.renew();
        assert_eq!((store.waiting(), cluster.status.renewals_withheld - withheld), (0, 2));
        turned_us.store(clock::boot_us(), Ordering::Relaxed);
        cluster.renew();
        assert_eq!(store.waiting(), 1, "it turns again");
        store.answer(Err(StoreError::Unavailable("away".into())));
        cluster.take_answers();
        assert_eq!(cluster.status.lease_until_us, until_us, "a renewal that failed prolongs nothing");
        turned_us.store(clock::boot_us(), Ordering::Relaxed);
        cluster.renew();
        store.answer(Ok(Outcome::View(Arc::new(View { held_by: 2, ..View::default() }))));
        cluster.take_answers();
        assert_eq!(
            (cluster.status.lease_until_us, store.waiting()),
            (until_us, 0),
            "nor one that was refused"
        );
    }
}
