//! One shard's thread: a monoio runtime with the tasks of its links, and the pump, which alone steps the core.
//!
//! A turn takes a bounded number of inputs (commands, store answers, siblings, links), steps the core for each, and
//! carries out its actions in order. With work left it writes its own eventfd and awaits it again: a task that woke
//! itself would starve the runtime's timers.
//!
//! The rule that keeps it right: the waker is drained before any queue is looked at, so that whoever adds to a queue
//! after that look wakes the pump again.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::TcpStream as StdTcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use millrace_edge::clock;
use millrace_edge::mailbox::{self, Receiver, Sender};
use millrace_edge::wake::Waker;
use millrace_protocol::ids::{Now, Partition};
use rustc_hash::FxHashMap;
use tokio::sync::oneshot;

use super::limits::{FLUSH_MS, RETRY_US, TURN_INPUTS};
use super::link::{Carrier, Link};
use super::log;
use super::notify::Timers;
use super::points::{Passing, Points};
use super::runtime::{block_on, pump};
use crate::core::action::Action;
use crate::core::event::{Event, LinkKey, Sibling};
use crate::core::shard::Shard;
use crate::core::stats::Stats;
use crate::store::{Done, Job, Replies, Store};

/// What the control thread and the listener tell a shard.
#[derive(Debug)]
pub(crate) enum Command {
    /// Straight to the core: claims, releases, views, leases.
    Event(Event),
    /// A gateway shard connected; `first` was read from the socket already.
    Socket { link: LinkKey, socket: StdTcpStream, first: Bytes },
    /// A gateway shard of this process connected.
    Pipe { link: LinkKey, from_gateway: Receiver<Bytes>, to_gateway: Sender<Bytes> },
    /// Counters, for admin.
    Stats(oneshot::Sender<Report>),
    /// Flush the links, then end the thread.
    Stop,
}

/// What a shard tells the control thread unasked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reported {
    Claimed { partition: Partition, epoch: u64 },
    NotServed { partition: Partition, reason: String },
}

/// Counters of one shard.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) core: Stats,
    pub(crate) links: usize,
    pub(crate) turns: u64,
    /// Times that a queue to a sibling was full and links were not read.
    pub(crate) pauses: u64,
    pub(crate) links_reset: u64,
    pub(crate) runtime: &'static str,
}

/// What a shard thread is given.
pub(crate) struct Seat {
    pub(crate) index: usize,
    pub(crate) core: Shard,
    pub(crate) waker: Waker,
    pub(crate) commands: Receiver<Command>,
    pub(crate) from_siblings: Vec<Receiver<Sibling>>,
    /// By shard; its own entry is never used.
    pub(crate) to_siblings: Vec<Sender<Sibling>>,
    pub(crate) reports: Sender<Reported>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) replies: Replies,
    pub(crate) answers: Receiver<Vec<Done>>,
    /// CLOCK_BOOTTIME after the latest turn.
    pub(crate) turned_us: Arc<AtomicU64>,
}

/// The time, as cores want it.
pub(crate) fn now() -> Now {
    let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    Now { mono_us: clock::boot_us(), wall_ms }
}

/// The body of a shard's thread.
pub(crate) fn run(seat: Seat) -> std::io::Result<()> {
    let mut result = Ok(());
    block_on(async {
        let world = World::new(seat);
        let waker = world.waker.clone();
        // The first turn happens without anybody's news, for the core's first deadline.
        waker.wake();
        let turning = Rc::clone(&world);
        result = pump(waker, move || World::turn(&turning)).await;
    })?;
    result
}

/// Everything on the thread. Tasks share it; none borrows a part of it across an await.
pub(crate) struct World {
    index: usize,
    core: RefCell<Shard>,
    waker: Waker,
    commands: Receiver<Command>,
    from_siblings: Vec<Receiver<Sibling>>,
    to_siblings: Vec<Sender<Sibling>>,
    /// What full queues did not take, by shard, in order. While there is any, links are not read: what is here is
    /// bounded by what was under way when the queue filled.
    stalled: RefCell<Vec<VecDeque<Sibling>>>,
    reports: Sender<Reported>,
    unreported: RefCell<VecDeque<Reported>>,
    /// Given up at the end: tasks that are still asleep then keep the rest of this.
    store: RefCell<Option<Arc<dyn Store>>>,
    replies: Replies,
    answers: Receiver<Vec<Done>>,
    links: RefCell<FxHashMap<LinkKey, Rc<Link>>>,
    /// Sockets with a chunk for the core, or lost.
    ready: RefCell<VecDeque<Rc<Link>>>,
    timers: RefCell<Timers>,
    /// Where the core appends.
    actions: RefCell<Vec<Action>>,
    /// What is being carried out.
    queue: RefCell<VecDeque<Action>>,
    acting: Cell<bool>,
    jobs: RefCell<Vec<Job>>,
    points: Points,
    turned_us: Arc<AtomicU64>,
    turns: Cell<u64>,
    pauses: Cell<u64>,
    links_reset: Cell<u64>,
    /// Set by Stop: the end of flushing.
    stop_at_us: Cell<Option<u64>>,
}

impl World {
    fn new(seat: Seat) -> Rc<Self> {
        let siblings = seat.to_siblings.len();
        Rc::new(World {
            index: seat.index,
            core: RefCell::new(seat.core),
            waker: seat.waker,
            commands: seat.commands,
            from_siblings: seat.from_siblings,
            to_siblings: seat.to_siblings,
            stalled: RefCell::new((0..siblings).map(|_| VecDeque::new()).collect()),
            reports: seat.reports,
            unreported: RefCell::default(),
            store: RefCell::new(Some(seat.store)),
            replies: seat.replies,
            answers: seat.answers,
            links: RefCell::default(),
            ready: RefCell::default(),
            timers: RefCell::default(),
            actions: RefCell::default(),
            queue: RefCell::default(),
            acting: Cell::new(false),
            jobs: RefCell::default(),
            points: Points::default(),
            turned_us: seat.turned_us,
            turns: Cell::new(0),
            pauses: Cell::new(0),
            links_reset: Cell::new(0),
            stop_at_us: Cell::new(None),
        })
    }

    /// A socket's task has news for the pump.
    pub(crate) fn link_ready(&self, link: &Rc<Link>) {
        self.ready.borrow_mut().push_back(Rc::clone(link));
        self.waker.wake();
    }

    /// The next batch of a link.
    pub(crate) fn transmit(&self, link: LinkKey) -> Option<Bytes> {
        self.core.borrow_mut().transmit(link)
    }

    /// One turn. Returns whether to go on.
    fn turn(self: &Rc<Self>) -> bool {
        let mut more = self.take_commands();
        more |= self.take_answers();
        more |= self.take_siblings();
        self.retry();
        if self.is_stalled() {
            self.pauses.set(self.pauses.get() + 1);
        } else {
            more |= self.take_links();
        }
        let wait = self.core.borrow_mut().turn(now(), &mut self.actions.borrow_mut());
        self.act();
        more |= wait.more;
        self.start_output();
        let jobs = self.jobs.take();
        if !jobs.is_empty()
            && let Some(store) = self.store.borrow().as_ref()
        {
            store.submit(jobs, &self.replies);
        }
        self.turns.set(self.turns.get() + 1);
        let now_us = clock::boot_us();
        self.turned_us.store(now_us, Ordering::Relaxed);
        if self.is_flushed(now_us) {
            return false;
        }
        if more {
            self.waker.wake();
        }
        if let Some(deadline_us) = wait.deadline_us {
            self.arm(deadline_us, now_us);
        }
        if self.is_stalled() || self.holds_output() || self.stop_at_us.get().is_some() {
            self.arm(now_us + RETRY_US, now_us);
        }
        true
    }

    fn step(self: &Rc<Self>, event: Event) {
        self.core.borrow_mut().step(now(), event, &mut self.actions.borrow_mut());
        self.act();
    }

    fn take_commands(self: &Rc<Self>) -> bool {
        for _ in 0..TURN_INPUTS {
            match self.commands.recv() {
                None => return false,
                Some(Command::Event(event)) => self.step(event),
                Some(Command::Socket { link, socket, first }) => self.connect_socket(link, socket, first),
                Some(Command::Pipe { link, from_gateway, to_gateway }) => {
                    self.connected(Link::pipe(link, from_gateway, to_gateway));
                }
                // Nobody waits for it any more if this fails.
                Some(Command::Stats(to)) => drop(to.send(self.report())),
                Some(Command::Stop) => self.stop_at_us.set(Some(clock::boot_us() + FLUSH_MS * 1_000)),
            }
        }
        true
    }

    fn take_answers(self: &Rc<Self>) -> bool {
        for _ in 0..TURN_INPUTS {
            let Some(answers) = self.answers.recv() else { return false };
            for done in answers {
                self.points.after(&done);
                self.step(Event::Store(done));
            }
        }
        true
    }

    fn take_siblings(self: &Rc<Self>) -> bool {
        let mut more = false;
        for from in &self.from_siblings {
            for _ in 0..TURN_INPUTS {
                let Some(message) = from.recv() else { break };
                self.step(Event::Sibling(message));
            }
            more |= !from.is_empty();
        }
        more
    }

    fn take_links(self: &Rc<Self>) -> bool {
        for _ in 0..TURN_INPUTS {
            if self.is_stalled() {
                return false;
            }
            let link = self.ready.borrow_mut().pop_front();
            let Some(link) = link else { break };
            self.take_from(&link);
        }
        let pipes: Vec<Rc<Link>> = self
            .links
            .borrow()
            .values()
            .filter(|link| matches!(link.carrier, Carrier::Pipe(_)))
            .cloned()
            .collect();
        let mut more = !self.ready.borrow().is_empty();
        for link in pipes {
            for _ in 0..TURN_INPUTS {
                if link.lost.get() || self.is_stalled() || !self.take_from(&link) {
                    break;
                }
            }
            more |= matches!(&link.carrier, Carrier::Pipe(pipe) if !pipe.from_gateway.is_empty());
        }
        more
    }

    /// Gives the core what a link received. Returns whether there was anything.
    fn take_from(self: &Rc<Self>, link: &Rc<Link>) -> bool {
        if !self.is_current(link) {
            return false;
        }
        let chunk = link.take();
        let taken = chunk.is_some();
        if let Some(bytes) = chunk {
            self.step(Event::LinkBytes { link: link.key, bytes });
        }
        // The step may have reset it.
        if link.lost.get() && self.is_current(link) {
            self.links.borrow_mut().remove(&link.key);
            self.step(Event::LinkLost { link: link.key });
        }
        taken
    }

    fn is_current(&self, link: &Rc<Link>) -> bool {
        self.links.borrow().get(&link.key).is_some_and(|current| Rc::ptr_eq(current, link))
    }

    fn connect_socket(self: &Rc<Self>, key: LinkKey, socket: StdTcpStream, first: Bytes) {
        match Link::socket(self, key, socket, first) {
            Ok(link) => self.connected(link),
            Err(error) => log::warn(format_args!("shard {}: a link's socket: {error}", self.index)),
        }
    }

    fn connected(self: &Rc<Self>, link: Rc<Link>) {
        let key = link.key;
        self.drop_link(key);
        self.links.borrow_mut().insert(key, link);
        self.step(Event::LinkConnected { link: key });
    }

    /// Ends a link's transport, if it has one, and tells the core.
    fn drop_link(self: &Rc<Self>, key: LinkKey) {
        let old = self.links.borrow_mut().remove(&key);
        if let Some(old) = old {
            old.end();
            self.step(Event::LinkLost { link: key });
        }
    }

    /// Carries out what the core wants, in order. A step that an action causes (a link that is reset is lost) appends
    /// to the same queue, and the outermost call goes on with it.
    fn act(self: &Rc<Self>) {
        self.queue.borrow_mut().extend(self.actions.borrow_mut().drain(..));
        if self.acting.replace(true) {
            return;
        }
        loop {
            let action = self.queue.borrow_mut().pop_front();
            let Some(action) = action else { break };
            match action {
                Action::Store(job) => {
                    self.points.before(&job);
                    self.jobs.borrow_mut().push(job);
                }
                Action::Sibling { shard, message } => self.send_sibling(shard, message),
                Action::ResetLink { link, reason } => {
                    log::warn(format_args!(
                        "link of gateway {}/{} reset: {reason}",
                        link.gateway, link.shard
                    ));
                    self.links_reset.set(self.links_reset.get() + 1);
                    self.drop_link(link);
                }
                Action::Claimed { partition, epoch } => {
                    self.unreported.borrow_mut().push_back(Reported::Claimed { partition, epoch });
                }
                Action::NotServed { partition, reason } => {
                    self.unreported.borrow_mut().push_back(Reported::NotServed { partition, reason });
                }
            }
        }
        self.acting.set(false);
        self.send_reports();
    }

    fn send_sibling(&self, shard: usize, message: Sibling) {
        let mut stalled = self.stalled.borrow_mut();
        let waiting = &mut stalled[shard];
        if !waiting.is_empty() {
            waiting.push_back(message);
        } else if let Err(message) = self.to_siblings[shard].send(message) {
            waiting.push_back(message);
        }
    }

    fn send_reports(&self) {
        let mut unreported = self.unreported.borrow_mut();
        while let Some(report) = unreported.pop_front() {
            if let Err(report) = self.reports.send(report) {
                unreported.push_front(report);
                return;
            }
        }
    }

    fn retry(&self) {
        for (shard, waiting) in self.stalled.borrow_mut().iter_mut().enumerate() {
            while let Some(message) = waiting.pop_front() {
                if let Err(message) = self.to_siblings[shard].send(message) {
                    waiting.push_front(message);
                    break;
                }
            }
        }
        self.send_reports();
    }

    fn is_stalled(&self) -> bool {
        self.stalled.borrow().iter().any(|waiting| !waiting.is_empty())
    }

    /// Tells writers of links with output to begin, and fills the queues of in-process links.
    fn start_output(&self) {
        let with_output = self.core.borrow().links_with_output().to_vec();
        let links = self.links.borrow();
        for key in with_output {
            // A link without a transport keeps what it has for the next one.
            let Some(link) = links.get(&key) else { continue };
            match &link.carrier {
                Carrier::Socket(socket) => {
                    socket.writing.set(true);
                    socket.output.notify();
                }
                Carrier::Pipe(_) => self.fill_pipe(link),
            }
        }
        for link in links.values() {
            if matches!(&link.carrier, Carrier::Pipe(pipe) if pipe.held.borrow().is_some()) {
                self.fill_pipe(link);
            }
        }
    }

    fn fill_pipe(&self, link: &Link) {
        let Carrier::Pipe(pipe) = &link.carrier else { return };
        loop {
            let held = pipe.held.borrow_mut().take();
            let Some(batch) = held.or_else(|| self.transmit(link.key)) else { return };
            let passing = Passing::begin(&batch);
            if let Err(batch) = pipe.to_gateway.send(batch) {
                *pipe.held.borrow_mut() = Some(batch);
                return;
            }
            passing.end();
        }
    }

    fn holds_output(&self) -> bool {
        self.links
            .borrow()
            .values()
            .any(|link| matches!(&link.carrier, Carrier::Pipe(pipe) if pipe.held.borrow().is_some()))
            || !self.unreported.borrow().is_empty()
    }

    /// Whether this shard was told to stop and its links have taken what there was, or the time for it is up.
    fn is_flushed(&self, now_us: u64) -> bool {
        let Some(stop_at_us) = self.stop_at_us.get() else { return false };
        let writing = self
            .links
            .borrow()
            .values()
            .any(|link| matches!(&link.carrier, Carrier::Socket(socket) if socket.writing.get()));
        let done = now_us >= stop_at_us || !(writing || self.is_stalled() || self.holds_output());
        if done {
            // In-process gateways see their queues go, sockets are shut down.
            for link in self.links.take().into_values() {
                link.end();
            }
            self.store.take();
        }
        done
    }

    /// Makes sure that the pump runs at this time, rounded up to a millisecond.
    fn arm(self: &Rc<Self>, deadline_us: u64, now_us: u64) {
        let deadline_us = deadline_us.max(now_us).div_ceil(1_000) * 1_000;
        if !self.timers.borrow_mut().arm(deadline_us) {
            return;
        }
        let world = Rc::clone(self);
        monoio::spawn(async move {
            monoio::time::sleep(Duration::from_micros(deadline_us.saturating_sub(clock::boot_us()))).await;
            world.timers.borrow_mut().fired(deadline_us);
            world.waker.wake();
        });
    }

    fn report(&self) -> Report {
        Report {
            core: self.core.borrow().stats(),
            links: self.links.borrow().len(),
            turns: self.turns.get(),
            pauses: self.pauses.get(),
            links_reset: self.links_reset.get(),
            runtime: if monoio::utils::is_legacy() { "epoll" } else { "io_uring" },
        }
    }
}

/// The queue of commands to a shard, with its waker.
pub(crate) fn command_queue(waker: &Waker) -> (Sender<Command>, Receiver<Command>) {
    mailbox::mailbox(super::limits::CONTROL_QUEUE, waker.clone())
}
