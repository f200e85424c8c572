//! The store's task: rounds of everything that was queued, as one pipeline each, until closed and empty.
//!
//! The rules that keep it right: rounds are sent and settled in their order, and what has to be sent again is so only while
//! no later round is under way, so that jobs of a partition keep theirs; while the server is away everything is refused at
//! once; after every reconnect the servers are looked at before they are used; and where replicas are asked for, nothing of
//! a log is answered before they have it.
//!
//! Two rounds are under way at most, so that the server works on one while the other is made. Where an answer waits for a
//! disk or for replicas it is one: what a round shares with many jobs is dearer there.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fred::interfaces::{ClientLike, EventInterface};
use fred::types::Value;
use fred::types::config::Server;
use millrace_protocol::ids::Partition;

use super::append::{Logs, Looked, append};
use super::claim::{Claimer, claims};
use super::command::{Command, text, to_text};
use super::job::{self, Reading};
use super::keys::{FORMAT, Keys};
use super::replicas::{self, Mark, Unmet};
use super::reply;
use super::sentinels::Agreement;
use super::session::{Session, UnderWay};
use super::view::{self, Own};
use super::{Shared, Trouble};
use crate::store::intake::{LATE_RETRY, Submission};
use crate::store::{Batch, Done, Durability, Fence, Job, Node, Outcome, Replies, StoreError, Work};

/// Jobs of one round at about most: the server works on them for some 20 ms, well within the bound of a reply.
const ROUND_JOBS_MAX: usize = 1_024;
/// Rounds under way at most where answers wait for nothing but the server.
const ROUNDS_MAX: usize = 2;
/// How often others may run after a round was made: what was sent goes through two tasks of the client's to the socket.
const YIELDS: usize = 4;
/// Why nothing is claimed.
const NO_MAJORITY: &str = "no majority of the Sentinels has named this primary in the last 1.5 s";
/// How often an idle task looks at the connection.
const IDLE_TICK: Duration = Duration::from_millis(250);

/// The state of the store's task.
pub(super) struct Rounds {
    shared: Arc<Shared>,
    session: Session,
    keys: Keys,
    own: Own,
    /// What this process's owners have written.
    logs: Logs,
    mark: Mark,
    /// The connections are those that were looked at and marked.
    looked_at: bool,
    /// What the Sentinels said, where there are some.
    agreement: Option<Arc<Agreement>>,
    /// Oldest first.
    under_way: VecDeque<Round>,
}

/// A round that was made, and sent.
struct Round {
    commands: Vec<Command>,
    claimers: Vec<Claimer>,
    steps: Vec<(Replies, Vec<(u64, Step)>)>,
    /// Where replicas are asked for.
    holders: Option<Holders>,
    sent: UnderWay,
}

/// An answer, the servers whose replicas it waits for, and where it goes.
type Owed = (Replies, Vec<Option<Server>>, Done);

/// Which servers hold what a round touches.
#[derive(PartialEq, Eq)]
struct Holders {
    commands: Vec<Option<Server>>,
    claimers: Vec<Option<Server>>,
}

impl Holders {
    fn of(session: &Session, keys: &Keys, commands: &[Command], claimers: &[Claimer]) -> Self {
        let first = |command: &'_ Command| command.keys.first().cloned().unwrap_or_default();
        let commands: Vec<String> = commands.iter().map(first).collect();
        let claimers: Vec<String> = claimers.iter().map(|claimer| keys.fence(claimer.partition)).collect();
        Self {
            commands: session.servers_of(commands.iter().map(String::as_str)),
            claimers: session.servers_of(claimers.iter().map(String::as_str)),
        }
    }
}

/// A job on its way.
enum Step {
    Sent { commands: usize, reading: Reading },
    Append { partition: Partition, fence: Fence, position: u64, looked: Vec<Looked> },
    Refused(StoreError),
    Beat { node: Node, replaces: u64 },
    Claim { at: usize },
}

impl Rounds {
    /// Over a session that was just looked at.
    pub(super) fn new(
        shared: Arc<Shared>,
        session: Session,
        keys: Keys,
        mark: Mark,
        agreement: Option<Arc<Agreement>>,
    ) -> Self {
        Self {
            shared,
            session: session.named(mark.word()),
            keys,
            own: Own::default(),
            logs: Logs::default(),
            mark,
            looked_at: true,
            agreement,
            under_way: VecDeque::new(),
        }
    }

    /// Runs until the intake is closed and empty.
    pub(super) async fn run(mut self) {
        let mut reconnects = self.session.client.reconnect_rx();
        loop {
            let late = self.shared.intake.deliver_late();
            // Read before taking: what was pushed before the close is then taken too.
            let closed = self.shared.intake.is_closed();
            while !matches!(reconnects.try_recv(), Err(tokio::sync::broadcast::error::TryRecvError::Empty)) {
                self.looked_at = false;
            }
            let connected = self.session.client.is_connected();
            self.shared.connected.store(connected, Ordering::Release);
            if connected && !self.looked_at {
                // What is remembered of logs is forgotten then, and must not be learned from answers of before.
                self.settle_all().await;
                self.looked_at = self.look().await;
            }
            let has_room = self.under_way.len() < self.rounds_max();
            let submissions = if has_room { self.shared.intake.take(ROUND_JOBS_MAX) } else { Vec::new() };
            if !submissions.is_empty() {
                if connected && self.looked_at && !self.shared.is_foreign() {
                    self.take_up(submissions).await;
                } else {
                    let reason = self.shared.trouble().unwrap_or_else(|| "it is not connected".into());
                    for Submission { jobs, replies } in submissions {
                        self.shared.intake.refuse(jobs, &replies, &reason);
                    }
                }
                continue;
            }
            if let Some(oldest) = self.under_way.front_mut() {
                let is_done = tokio::select! {
                    () = oldest.sent.wait() => true,
                    () = self.shared.bell.notified(), if has_room => false,
                };
                if is_done {
                    self.settle_oldest().await;
                }
                continue;
            }
            if closed {
                self.shared.intake.deliver_late();
                return;
            }
            let rest = if late { LATE_RETRY } else { IDLE_TICK };
            let _ = tokio::time::timeout(rest, self.shared.bell.notified()).await;
        }
    }

    fn rounds_max(&self) -> usize {
        match self.shared.durability {
            Durability::Async => ROUNDS_MAX,
            Durability::Fsync | Durability::Replicated(_) => 1,
        }
    }

    /// Makes a round of these and sends it; two where there is room for them.
    async fn take_up(&mut self, submissions: Vec<Submission>) {
        let (some, rest) = match self.rounds_max() - self.under_way.len() {
            0 | 1 => (submissions, Vec::new()),
            _ => halves(submissions),
        };
        for submissions in [some, rest] {
            if submissions.is_empty() {
                continue;
            }
            self.make(submissions).await;
            for _ in 0..YIELDS {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Looks at servers that were just connected to. Returns whether that worked.
    async fn look(&mut self) -> bool {
        match look(&self.session, &self.keys, self.shared.durability, &self.mark).await {
            Ok((trouble, mark)) => {
                self.logs = Logs::default();
                self.shared.set_trouble(trouble);
                self.session = self.session.named(mark.word());
                self.mark = mark;
                true
            }
            Err(_) => false,
        }
    }

    /// Makes a round and sends it. One that claims partitions is under way alone.
    async fn make(&mut self, submissions: Vec<Submission>) {
        self.shared.rounds.fetch_add(1, Ordering::Relaxed);
        let mut commands: Vec<Command> = Vec::new();
        let mut claimers: Vec<Claimer> = Vec::new();
        let mut steps = Vec::new();
        for Submission { jobs, replies } in submissions {
            let mut own = Vec::with_capacity(jobs.len());
            for Job { ticket, work } in jobs {
                own.push((ticket, self.step(work, &mut commands, &mut claimers)));
            }
            steps.push((replies, own));
        }
        let is_alone = !claimers.is_empty();
        if is_alone {
            self.settle_all().await;
        }
        let holders = self.replicas().map(|_| Holders::of(&self.session, &self.keys, &commands, &claimers));
        let sent = self.session.send(commands.iter());
        self.under_way.push_back(Round { commands, claimers, steps, holders, sent });
        if is_alone {
            self.settle_all().await;
        }
    }

    /// Waits for all that is under way.
    async fn settle_all(&mut self) {
        while let Some(oldest) = self.under_way.front_mut() {
            oldest.sent.wait().await;
            self.settle_oldest().await;
        }
    }

    /// Answers the oldest round, which was waited for.
    async fn settle_oldest(&mut self) {
        let Some(Round { commands, claimers, steps, holders, sent }) = self.under_way.pop_front() else {
            return;
        };
        if sent.was_replaced() {
            self.looked_at = false;
        }
        let replies = self.session.replies(&commands, sent, self.under_way.is_empty()).await;
        let mut results = replies.into_iter().enumerate();
        let may_claim = self.agreement.as_ref().is_none_or(|agreement| agreement.is_on(&self.session.client));
        let claimed = match may_claim {
            true => claims(&self.session, &self.keys, &claimers).await,
            false => claimers.iter().map(|_| Err(StoreError::Unavailable(NO_MAJORITY.into()))).collect(),
        };
        let server = |at: usize| holders.as_ref().map(|holders| holders.commands[at].clone());
        let mut claimed: Vec<_> = claimed.into_iter().map(Some).collect();
        let mut hints: Vec<(Partition, u64, String)> = Vec::new();
        let (mut answers, mut owed) = (Vec::new(), Vec::new());
        for (replies, steps) in steps {
            let mut done = Vec::with_capacity(steps.len());
            for (ticket, step) in steps {
                let mut servers = Vec::new();
                let outcome = match step {
                    Step::Sent { commands, reading } => {
                        // All of them first: an error must not leave its job's other replies to the next job.
                        let own: Vec<_> = results.by_ref().take(commands).collect();
                        if reading.waits() {
                            servers.extend(own.iter().filter_map(|(at, _)| server(*at)));
                        }
                        self.settle(reading, own.into_iter().map(|(_, reply)| reply).collect(), &mut hints)
                    }
                    Step::Append { partition, fence, position, looked } => {
                        let (at, reply) = results.next().unwrap_or((0, Ok(Value::Null)));
                        servers.extend(server(at));
                        self.appended((partition, fence, position), looked, reply)
                    }
                    Step::Refused(error) => Err(error),
                    Step::Beat { node, replaces } => {
                        let (_, reply) = results.next().unwrap_or((0, Ok(Value::Null)));
                        self.beat((&node, replaces), reply, &mut hints)
                    }
                    Step::Claim { at } => {
                        servers.extend(holders.as_ref().map(|holders| holders.claimers[at].clone()));
                        let outcome = claimed[at].take().expect("each claim has one step");
                        if let Ok(Outcome::Claimed { fence, .. }) = &outcome {
                            let Claimer { partition, node, .. } = &claimers[at];
                            self.own.claimed(*partition, fence.epoch, node);
                            self.logs.forget(*partition);
                            hints.push((*partition, fence.epoch, node.clone()));
                        }
                        outcome
                    }
                };
                let answer = Done { ticket, outcome };
                match servers.is_empty() {
                    true => done.push(answer),
                    false => owed.push((replies.clone(), servers, answer)),
                }
            }
            answers.push((replies, done));
        }
        if !hints.is_empty() {
            // Lost hints are written again after a heartbeat.
            let _ = self.session.run(&[view::hint(&self.keys, &hints)]).await;
        }
        // Leases don't wait for replicas.
        self.answer(answers);
        if !owed.is_empty() {
            let is_same = holders == Some(Holders::of(&self.session, &self.keys, &commands, &claimers));
            let answers = self.settle_owed(owed, is_same).await;
            self.answer(answers);
        }
    }

    fn answer(&self, answers: Vec<(Replies, Vec<Done>)>) {
        for (replies, done) in answers {
            self.shared.intake.answer(&replies, done);
        }
    }

    /// As many as an answer waits for.
    fn replicas(&self) -> Option<u32> {
        match self.shared.durability {
            Durability::Replicated(replicas) => Some(replicas),
            Durability::Async | Durability::Fsync => None,
        }
    }

    /// Waits for the replicas of all servers that are owed for, and turns what did not get them into Unavailable. `is_same`:
    /// the same servers hold the same keys as before the round.
    async fn settle_owed(&mut self, owed: Vec<Owed>, is_same: bool) -> Vec<(Replies, Vec<Done>)> {
        let replicas = self.replicas().unwrap_or(0);
        let mut met: BTreeMap<Option<Server>, Result<(), Unmet>> = BTreeMap::new();
        for server in owed.iter().flat_map(|(_, servers, _)| servers) {
            if !met.contains_key(server) {
                let outcome = self.mark.wait(&self.session, server.as_ref(), replicas).await;
                met.insert(server.clone(), outcome);
            }
        }
        let worst = met.values().find_map(|outcome| outcome.clone().err());
        if matches!(worst, Some(Unmet::Connection(_))) {
            self.looked_at = false;
        }
        self.shared.set_unmet(worst.map(|unmet| unmet.to_string()));
        let settle = |(replies, servers, mut done): Owed| {
            let unmet = servers.iter().find_map(|server| met.get(server)?.as_ref().err());
            let reason = if is_same { unmet.map(Unmet::to_string) } else { Some("keys were moved".into()) };
            if let (Some(reason), Ok(_)) = (reason, &done.outcome) {
                done.outcome = Err(StoreError::Unavailable(format!("it is not replicated: {reason}")));
            }
            (replies, vec![done])
        };
        owed.into_iter().map(settle).collect()
    }

    /// Turns a job into its commands.
    fn step(&mut self, work: Work, commands: &mut Vec<Command>, claimers: &mut Vec<Claimer>) -> Step {
        let keys = &self.keys;
        let (own, reading) = match work {
            Work::Claim { partition, node, incarnation, above, .. } => {
                claimers.push(Claimer { partition, node, incarnation, above });
                return Step::Claim { at: claimers.len() - 1 };
            }
            Work::Heartbeat { node, replaces, ttl_ms } => {
                commands.push(view::beat(keys, &node, replaces, ttl_ms));
                return Step::Beat { node, replaces };
            }
            Work::Append(batch) => {
                self.shared.appends.fetch_add(1, Ordering::Relaxed);
                let (command, looked) = append(keys, &batch, self.shared.events_max, &mut self.logs);
                commands.push(command);
                let Batch { partition, fence, position, .. } = batch;
                return Step::Append { partition, fence, position, looked };
            }
            Work::Release { partition, fence } => match job::release(keys, partition, fence) {
                Ok(sent) => sent,
                Err(error) => return Step::Refused(error),
            },
            Work::Load { partition, fence, conversation, stream } => {
                job::load(keys, partition, fence, conversation, stream)
            }
            Work::Answers { partition, fence, conversation, stream } => {
                job::answers(keys, partition, fence, conversation, stream)
            }
            Work::Cursors { partition, fence, conversation, of } => {
                job::cursors(keys, partition, fence, conversation, &of)
            }
            read @ Work::Read { .. } => job::read(keys, read),
            Work::UserItems { items, claim } => {
                job::user_items(keys, &items, claim, self.session.is_cluster())
            }
            Work::UserList { user, list, after, limit } => job::user_list(keys, &user, list, &after, limit),
            // Consumers read the streams themselves.
            Work::Events { .. } | Work::EventHeads => {
                let reason = "events in Redis are read from its streams";
                return Step::Refused(StoreError::Unavailable(reason.into()));
            }
            Work::Register(registration) => job::register(keys, &registration),
            Work::Unregister { user, device, session, login_number, incarnation } => {
                job::unregister(keys, &user, &device, session, login_number, incarnation)
            }
            Work::ForgetLosers { partition, losers } => job::forget_losers(keys, partition, &losers),
            Work::Routes { users } => job::routes(keys, &users),
            Work::Leave { node, incarnation } => job::leave(keys, node, incarnation),
            Work::GatewayLease { gateway, incarnation, replaces, grant, ttl_ms } => {
                job::gateway_lease(keys, gateway, incarnation, replaces, grant, ttl_ms)
            }
        };
        let count = own.len();
        commands.extend(own);
        Step::Sent { commands: count, reading }
    }

    /// Reads the replies of a job, and notes what it means for this process's claims.
    fn settle(
        &mut self,
        reading: Reading,
        replies: Result<Vec<Value>, StoreError>,
        hints: &mut Vec<(Partition, u64, String)>,
    ) -> Result<Outcome, StoreError> {
        let outcome = replies.and_then(|replies| reading.outcome(replies));
        match reading {
            Reading::Load { partition, fence, .. } => {
                if matches!(outcome, Err(StoreError::Fenced { .. })) {
                    self.own.lost(partition, fence.epoch);
                }
            }
            Reading::Release { partition, fence } => {
                self.own.lost(partition, fence.epoch);
                self.logs.forget(partition);
                if outcome.is_ok() {
                    hints.push((partition, fence.epoch, String::new()));
                }
            }
            Reading::Leave { node } => self.own.left(&node),
            _ => {}
        }
        outcome
    }

    /// What came of a batch is remembered for the next one.
    fn appended(
        &mut self,
        (partition, fence, position): (Partition, Fence, u64),
        looked: Vec<Looked>,
        reply: Result<Value, StoreError>,
    ) -> Result<Outcome, StoreError> {
        match reply.and_then(|reply| reply::appended(partition, position, reply)) {
            Ok(filed) => {
                for (looked, filed) in looked.into_iter().zip(filed) {
                    looked.learn(&mut self.logs, partition, filed);
                }
                Ok(Outcome::Appended)
            }
            Err(error) => {
                if matches!(error, StoreError::Fenced { .. }) {
                    self.own.lost(partition, fence.epoch);
                }
                self.logs.forget(partition);
                Err(error)
            }
        }
    }

    fn beat(
        &mut self,
        node: (&Node, u64),
        reply: Result<Value, StoreError>,
        hints: &mut Vec<(Partition, u64, String)>,
    ) -> Result<Outcome, StoreError> {
        let beat = self.own.view(&self.keys, node, reply?)?;
        hints.extend(beat.hints);
        self.shared.sweeper.start(&self.session, &self.keys, beat.dead);
        Ok(beat.outcome)
    }
}

/// Splits jobs in two, in their order.
fn halves(mut submissions: Vec<Submission>) -> (Vec<Submission>, Vec<Submission>) {
    let jobs: usize = submissions.iter().map(|submission| submission.jobs.len()).sum();
    let (mut some, mut left) = (Vec::new(), jobs.div_ceil(2));
    while left > 0 {
        let first = &mut submissions[0];
        if first.jobs.len() > left {
            let rest = first.jobs.split_off(left);
            let jobs = std::mem::replace(&mut first.jobs, rest);
            some.push(Submission { jobs, replies: first.replies.clone() });
            break;
        }
        left -= first.jobs.len();
        some.push(submissions.remove(0));
    }
    (some, submissions)
}

/// Loads the scripts, marks the connections, which were marked so before, and checks that the servers hold this cluster and
/// keep what they are given.
pub(super) async fn look(
    session: &Session,
    keys: &Keys,
    durability: Durability,
    former: &Mark,
) -> Result<(Trouble, Mark), StoreError> {
    let mark = Mark::set(session, former).await?;
    let session = &session.named(mark.word());
    session.load_scripts().await?;
    let format = format!("{FORMAT}:{}", keys.partitions());
    let commands = [
        Command::plain("SETNX", keys.format(), vec![text(&format)]),
        Command::plain("GET", keys.format(), Vec::new()),
    ];
    let replies: Vec<Value> = session.run(&commands).await.into_iter().collect::<Result<_, StoreError>>()?;
    let found = to_text(replies.into_iter().nth(1).unwrap_or(Value::Null))?;
    let mut trouble = replicas::look(session, durability).await?;
    trouble.foreign = (found != format).then_some(found);
    Ok((trouble, mark))
}
