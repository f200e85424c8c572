//! The store's task: rounds of everything that was queued, as one pipeline each, until closed and empty.
//!
//! The rules that keep it right: one round is under way at a time, so that jobs of a partition keep their order also
//! when a script has to be loaded again; while the server is away everything is refused at once; after every reconnect
//! the servers are looked at before they are used; and where replicas are asked for, nothing of a log is answered before
//! they have it.

use std::collections::BTreeMap;
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
use super::session::Session;
use super::view::{self, Own};
use super::{Shared, Trouble};
use crate::store::intake::{LATE_RETRY, Submission};
use crate::store::{Batch, Done, Durability, Fence, Job, Node, Outcome, Replies, StoreError, Work};

/// Jobs of one round at about most: the server works on them for some 20 ms, well within the bound of a reply.
const ROUND_JOBS_MAX: usize = 1_024;
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
            session,
            keys,
            own: Own::default(),
            logs: Logs::default(),
            mark,
            looked_at: true,
            agreement,
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
                self.looked_at = self.look().await;
            }
            let submissions = self.shared.intake.take(ROUND_JOBS_MAX);
            if !submissions.is_empty() {
                if connected && self.looked_at && !self.shared.is_foreign() {
                    self.round(submissions).await;
                } else {
                    let reason = self.shared.trouble().unwrap_or_else(|| "it is not connected".into());
                    for Submission { jobs, replies } in submissions {
                        self.shared.intake.refuse(jobs, &replies, &reason);
                    }
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

    /// Looks at servers that were just connected to. Returns whether that worked.
    async fn look(&mut self) -> bool {
        match look(&self.session, &self.keys, self.shared.durability).await {
            Ok((trouble, mark)) => {
                self.logs = Logs::default();
                self.shared.set_trouble(trouble);
                self.mark = mark;
                true
            }
            Err(_) => false,
        }
    }

    async fn round(&mut self, submissions: Vec<Submission>) {
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
        let holders = Holders::of(&self.session, &self.keys, &commands, &claimers);
        let mut results = self.session.run(&commands).await.into_iter().enumerate();
        let may_claim = self.agreement.as_ref().is_none_or(|agreement| agreement.is_on(&self.session.client));
        let claimed = match may_claim {
            true => claims(&self.session, &self.keys, &claimers).await,
            false => claimers.iter().map(|_| Err(StoreError::Unavailable(NO_MAJORITY.into()))).collect(),
        };
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
                            servers.extend(own.iter().map(|(at, _)| holders.commands[*at].clone()));
                        }
                        self.settle(reading, own.into_iter().map(|(_, reply)| reply).collect(), &mut hints)
                    }
                    Step::Append { partition, fence, position, looked } => {
                        let (at, reply) = results.next().unwrap_or((0, Ok(Value::Null)));
                        servers.push(holders.commands[at].clone());
                        self.appended((partition, fence, position), looked, reply)
                    }
                    Step::Refused(error) => Err(error),
                    Step::Beat { node, replaces } => {
                        let (_, reply) = results.next().unwrap_or((0, Ok(Value::Null)));
                        self.beat((&node, replaces), reply, &mut hints)
                    }
                    Step::Claim { at } => {
                        servers.push(holders.claimers[at].clone());
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
                if self.replicas().is_some() && !servers.is_empty() {
                    owed.push((replies.clone(), servers, answer));
                } else {
                    done.push(answer);
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
            let is_same = holders == Holders::of(&self.session, &self.keys, &commands, &claimers);
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
            Work::UserItems(items) => job::user_items(keys, &items),
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

/// Loads the scripts, marks the connections, and checks that the servers hold this cluster and keep what they are given.
pub(super) async fn look(
    session: &Session,
    keys: &Keys,
    durability: Durability,
) -> Result<(Trouble, Mark), StoreError> {
    let mark = Mark::set(session).await?;
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
