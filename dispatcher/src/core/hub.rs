//! What all parts of a shard share: links, jobs under way, the cluster as last seen, counters; and [`Cx`], the hand
//! that is passed down with every input.
//!
//! It decides nothing. The rule that keeps it right: whatever leaves the shard, a record, a job or an action, goes
//! through here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use millrace_protocol::ids::{Now, Partition, SessionId};
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::client::{Code, Done, Refused, Response, response};
use millrace_protocol::messages::link::Reply;
use millrace_protocol::prost::Message;
use rustc_hash::FxHashMap;

use super::action::Action;
use super::batch::Owner;
use super::clocks::Clocks;
use super::closes::Closes;
use super::cursors::Marking;
use super::delivery::{Ask, Delivery};
use super::event::{Claim, LinkKey, Sibling};
use super::events;
use super::fanned::Fanned;
use super::holds::Need;
use super::limits::{BACKOFF_MS, BUSY_RETRY_MS, TELL_WINDOW_US};
use super::links::Links;
use super::presence::Presence;
use super::receipts::Position;
use super::register::Login;
use super::shard::Config;
use super::standing::Peeking;
use super::stats::Stats;
use super::sync::Paging;
use crate::store::{Job, Route, StreamKey, View, Work};

/// Shared by all partitions of a shard.
#[derive(Debug)]
pub struct Hub {
    /// Frozen at the start.
    pub config: Config,
    /// Links at home here.
    pub links: Links,
    /// Jobs at the store, by ticket.
    pub jobs: Jobs,
    /// What waits for routes.
    pub delivery: Delivery,
    /// Who is online, and who watches.
    pub presence: Presence,
    /// Sessions told to close.
    pub closes: Closes,
    /// Events that wait for batches.
    pub events: Vec<events::Waiting>,
    /// What time it is.
    pub clocks: Clocks,
    /// How far fan-out has come.
    pub fanned: Fanned,
    /// Conversations with something to be told or written when their window is over.
    pub touched: BTreeMap<Partition, BTreeSet<String>>,
    /// Who is alive.
    pub cluster: Cluster,
    /// Partitions that may have a batch to start, each at most a few times.
    pub ready: Vec<Partition>,
    /// Partitions claimed since the last turn, with their epochs.
    pub announce: Vec<(Partition, Claim)>,
    /// Gateways that were answered NotOwner for a partition that is served here, and so must be told of it again.
    pub denied: BTreeSet<(LinkKey, Partition)>,
    /// When they are told.
    pub denied_due_us: u64,
    /// When a partition wants to be looked at.
    pub timers: BinaryHeap<Reverse<(u64, Partition)>>,
    /// Registrations and fetches under way.
    pub registers: usize,
    /// See `registers`.
    pub fetches: usize,
    /// Requests about users' lists under way.
    pub lists: usize,
    /// Counters.
    pub stats: Stats,
    /// For jitter.
    pub random: u64,
}

/// Jobs at the store.
#[derive(Debug, Default)]
pub struct Jobs {
    last: u64,
    pending: FxHashMap<u64, Pending>,
}

impl Jobs {
    /// What the ticket was for; `None` if it is not ours.
    pub fn take(&mut self, ticket: u64) -> Option<Pending> {
        self.pending.remove(&ticket)
    }

    /// Jobs under way.
    pub fn count(&self) -> usize {
        self.pending.len()
    }
}

/// What a job's answer is for.
#[derive(Debug)]
pub enum Pending {
    /// For a partition, unless it was claimed again since.
    Partition {
        /// Which.
        partition: Partition,
        /// Its generation when the job was handed over.
        generation: u64,
        /// What it was.
        job: PartitionJob,
    },
    /// A registration.
    Register(Box<Login>),
    /// A lookup of routes, by the number of its place in the line.
    Routes(u64),
    /// A gateway's lease: where the answer goes.
    GatewayLease {
        /// Who asked.
        link: LinkKey,
        /// Echoed.
        lease: millrace_protocol::messages::link::Lease,
    },
    /// Lists of two users, after a change between them.
    Pair(Box<super::pair::Listing>),
    /// A user's list.
    Lists(Box<super::lists::Reading>),
    /// Something about a user's presence.
    Presence(Box<super::presence::Reading>),
    /// A device of this user's may be gone.
    Unregister(String),
    /// Nobody waits for it.
    Unwatched,
}

/// Jobs of a partition.
#[derive(Debug)]
pub enum PartitionJob {
    /// Claims it.
    Claim,
    /// Gives it up.
    Release,
    /// The batch in flight.
    Append,
    /// Loads this conversation, and this stream's answers with it.
    Load(String, Option<StreamKey>),
    /// Reads what messages of this conversation and stream wait for.
    Held(String, StreamKey, Need),
    /// Reads for this fetch.
    Read(Box<super::subscribe::Fetching>),
    /// A page of this conversation for a client.
    Page(String, Box<Paging>),
    /// How this conversation stands, for a client.
    Peek(String, Box<Peeking>),
    /// The entry that a user has read up to.
    Mark(String, Box<Marking>),
    /// Everyone's cursors in this conversation, and those read so far.
    Tally(String, BTreeMap<String, Position>),
    /// Messages of this conversation that a former owner may not have fanned out.
    Outstanding(String),
    /// The oldest entries of this conversation.
    Oldest(String),
    /// Lists of groups of the members of this group's round.
    Listing(String),
}

/// The cluster as this shard knows it.
#[derive(Debug, Default)]
pub struct Cluster {
    /// As of the last heartbeat.
    pub view: Arc<View>,
    /// Incarnations of live gateways.
    pub gateways: FxHashMap<u16, u64>,
    /// Incarnations of the gateways that said hello, whichever shard the link is at home on.
    pub links: FxHashMap<LinkKey, u64>,
    /// What this node serves, all shards together.
    pub served: BTreeMap<Partition, Claim>,
    /// Until when this node may act as owner (CLOCK_BOOTTIME, us).
    pub lease_until_us: u64,
}

impl Cluster {
    /// Whether a session may still be there: neither its gateway's lease nor its link speaks of another incarnation
    /// alone. A session that is not is answered NoSession, so a doubt costs one record.
    pub fn may_be_there(&self, route: &Route) -> bool {
        let link = self.links.get(&link_of(route.session));
        let lease = self.gateways.get(&route.session.gateway());
        let same = |incarnation: Option<&u64>| incarnation == Some(&route.incarnation);
        same(link) || same(lease) || lease.is_none() || link.is_none()
    }

    /// Whether a session is there as far as is known: its gateway's lease is live under the same incarnation.
    pub fn is_there(&self, route: &Route) -> bool {
        self.gateways.get(&route.session.gateway()) == Some(&route.incarnation)
    }

    /// Who is thought to own a partition that is not served here, and its epoch.
    pub fn owner(&self, partition: Partition, me: &str) -> (String, u64) {
        let (name, epoch) = self.view.owners.get(usize::from(partition)).cloned().unwrap_or_default();
        let live = self.view.nodes.iter().any(|node| node.name == name);
        if live && name != me {
            return (name, epoch);
        }
        let winner = super::ownership::winner(&self.view.nodes, partition);
        let winner = winner.filter(|winner| *winner != me).unwrap_or_default();
        (winner.to_owned(), epoch)
    }
}

/// The link of the gateway shard that a session lives on.
pub fn link_of(session: SessionId) -> LinkKey {
    LinkKey { gateway: session.gateway(), shard: session.shard() }
}

/// Who waits for the answer to a client's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// Where the answer goes.
    pub link: LinkKey,
    /// Who asked.
    pub session: SessionId,
    /// The gateway's.
    pub token: u64,
    /// The client's.
    pub request_id: u64,
}

/// One input's hand: the time, the actions so far, and the hub.
pub struct Cx<'a> {
    /// When.
    pub now: Now,
    /// What is to be done, in order.
    pub actions: &'a mut Vec<Action>,
    /// Everything shared.
    pub hub: &'a mut Hub,
}

impl Cx<'_> {
    /// A conversation has something to be told, or cursors to be written: soon.
    pub fn touched(&mut self, owner: &Owner, name: &str) {
        let partition = owner.from.partition;
        let touched = self.hub.touched.entry(partition).or_default();
        if touched.is_empty() {
            self.hub.timers.push(Reverse((self.now.mono_us + TELL_WINDOW_US, partition)));
        }
        touched.insert(name.to_owned());
    }

    /// Sends a record on a link, wherever that is at home.
    pub fn send(&mut self, link: LinkKey, record: Record) {
        let home = link.home(self.hub.config.shards);
        if home == self.hub.config.shard {
            self.hub.links.send(link, record, self.now, &mut self.hub.stats);
        } else {
            let message = Sibling::ToLink { link, record };
            self.actions.push(Action::Sibling { shard: home, message });
        }
    }

    /// Tells all other shards of this process.
    pub fn tell_siblings(&mut self, message: impl Fn() -> Sibling) {
        for shard in (0..self.hub.config.shards).filter(|shard| *shard != self.hub.config.shard) {
            self.actions.push(Action::Sibling { shard, message: message() });
        }
    }

    /// Tells users' sessions something that may be lost.
    pub fn tell_softly(&mut self, ask: Ask) {
        if !self.hub.delivery.ask_soft(ask) {
            self.hub.stats.relays_dropped += 1;
        }
    }

    /// Hands a job to the store.
    pub fn store(&mut self, work: Work, pending: Pending) {
        let jobs = &mut self.hub.jobs;
        jobs.last += 1;
        jobs.pending.insert(jobs.last, pending);
        self.actions.push(Action::Store(Job { ticket: jobs.last, work }));
    }

    /// Answers a client's request. `reply` says what else the gateway must do with it.
    pub fn reply(&mut self, from: From, asker: Asker, outcome: response::Outcome, reply: Reply) {
        let response = Response { id: asker.request_id, outcome: Some(outcome) };
        let reply = Reply { token: asker.token, response: response.encode_to_vec().into(), ..reply };
        self.send(asker.link, from.record(Kind::Reply, asker.session, &reply));
    }

    /// Answers Done, unless the client wants no answer.
    pub fn done(&mut self, from: From, asker: Asker) {
        if asker.request_id != 0 {
            self.reply(from, asker, response::Outcome::Done(Done {}), Reply::default());
        }
    }

    /// Refuses a client's request for good.
    pub fn refuse(&mut self, from: From, asker: Asker, code: Code, reason: &str) {
        self.hub.stats.refused += 1;
        self.refuse_with(
            from,
            asker,
            Refused { code: code as i32, reason: reason.into(), ..Refused::default() },
        );
    }

    /// Asks a client to come back.
    pub fn busy(&mut self, from: From, asker: Asker, reason: &str) {
        self.hub.stats.busy += 1;
        let refused = Refused {
            code: Code::Busy as i32,
            reason: reason.into(),
            retry_after_ms: BUSY_RETRY_MS,
            expected: 0,
        };
        self.refuse_with(from, asker, refused);
    }

    /// Refuses with all that there is to say.
    pub fn refuse_with(&mut self, from: From, asker: Asker, refused: Refused) {
        self.reply(from, asker, response::Outcome::Refused(refused), Reply::default());
    }

    /// The pause after `tries` failures: doubling, with jitter of a quarter either way, us.
    pub fn backoff_us(&mut self, tries: u32) -> u64 {
        let (first, longest) = BACKOFF_MS;
        let pause_us = (first << tries.min(20)).min(longest) * 1_000;
        pause_us * 3 / 4 + self.random() % (pause_us / 2)
    }

    /// splitmix64, from the configured seed.
    fn random(&mut self) -> u64 {
        self.hub.random = self.hub.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.hub.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Where a record comes from: what its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct From {
    /// Which partition.
    pub partition: Partition,
    /// Its owner's epoch, or 0.
    pub epoch: u64,
}

impl From {
    /// A record of this partition.
    pub fn record(self, kind: Kind, session: SessionId, message: &impl Message) -> Record {
        let body = message.encode_to_vec().into();
        Record { kind, partition: self.partition, epoch: self.epoch, session, body }
    }
}
