//! The store's task: rounds of everything that was queued, as one pipeline each, until closed and empty.
//!
//! The rules that keep it right: one round is under way at a time, so that jobs of a partition keep their order also
//! when a script has to be loaded again; while the server is away everything is refused at once; and after every
//! reconnect the server is looked at before it is used.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fred::interfaces::{ClientLike, EventInterface};
use fred::types::Value;
use millrace_protocol::ids::Partition;

use super::append::append;
use super::claim::{Claimer, claims};
use super::command::{Command, text, to_text};
use super::job::{self, Reading};
use super::keys::{FORMAT, Keys};
use super::session::Session;
use super::view::{self, Own};
use super::{Shared, Trouble};
use crate::store::intake::{LATE_RETRY, Submission};
use crate::store::{Done, Job, Node, Outcome, StoreError, Work};

/// Jobs of one round at about most: the server works on them for some 20 ms, well within the bound of a reply.
const ROUND_JOBS_MAX: usize = 1_024;
/// How often an idle task looks at the connection.
const IDLE_TICK: Duration = Duration::from_millis(250);

/// The state of the store's task.
pub(super) struct Rounds {
    shared: Arc<Shared>,
    session: Session,
    keys: Keys,
    own: Own,
}

/// A job on its way.
enum Step {
    Sent { commands: usize, reading: Reading },
    Refused(StoreError),
    Beat { node: Node },
    Claim { at: usize },
}

impl Rounds {
    pub(super) fn new(shared: Arc<Shared>, session: Session, keys: Keys) -> Self {
        Self { shared, session, keys, own: Own::default() }
    }

    /// Runs until the intake is closed and empty.
    pub(super) async fn run(mut self) {
        let mut reconnects = self.session.client.reconnect_rx();
        // The connection was looked at before this began.
        let mut looked_at = true;
        loop {
            let late = self.shared.intake.deliver_late();
            // Read before taking: what was pushed before the close is then taken too.
            let closed = self.shared.intake.is_closed();
            while !matches!(reconnects.try_recv(), Err(tokio::sync::broadcast::error::TryRecvError::Empty)) {
                looked_at = false;
            }
            let connected = self.session.client.is_connected();
            self.shared.connected.store(connected, Ordering::Release);
            if connected && !looked_at {
                looked_at = self.look().await;
            }
            let submissions = self.shared.intake.take(ROUND_JOBS_MAX);
            if !submissions.is_empty() {
                if connected && looked_at && !self.shared.is_foreign() {
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

    /// Looks at a server that was just connected to. Returns whether that worked.
    async fn look(&self) -> bool {
        match look(&self.session, &self.keys).await {
            Ok(trouble) => {
                self.shared.set_trouble(trouble);
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
        let mut results = self.session.run(&commands).await.into_iter();
        let mut claimed =
            claims(&self.session, &self.keys, &claimers).await.into_iter().map(Some).collect::<Vec<_>>();
        let mut hints: Vec<(Partition, u64, String)> = Vec::new();
        let mut answers = Vec::new();
        for (replies, steps) in steps {
            let mut done = Vec::with_capacity(steps.len());
            for (ticket, step) in steps {
                let outcome = match step {
                    Step::Sent { commands, reading } => {
                        // All of them first: an error must not leave its job's other replies to the next job.
                        let own: Vec<_> = results.by_ref().take(commands).collect();
                        self.settle(&reading, own.into_iter().collect(), &mut hints)
                    }
                    Step::Refused(error) => Err(error),
                    Step::Beat { node } => {
                        let reply = results.next().unwrap_or_else(|| Ok(Value::Null));
                        self.beat(&node, reply, &mut hints)
                    }
                    Step::Claim { at } => {
                        let outcome = claimed[at].take().expect("each claim has one step");
                        if let Ok(Outcome::Claimed { fence, .. }) = &outcome {
                            let Claimer { partition, node, .. } = &claimers[at];
                            self.own.claimed(*partition, fence.epoch, node);
                            hints.push((*partition, fence.epoch, node.clone()));
                        }
                        outcome
                    }
                };
                done.push(Done { ticket, outcome });
            }
            answers.push((replies, done));
        }
        if !hints.is_empty() {
            // Lost hints are written again after a heartbeat.
            let _ = self.session.run(&[view::hint(&self.keys, &hints)]).await;
        }
        for (replies, done) in answers {
            self.shared.intake.answer(&replies, done);
        }
    }

    /// Turns a job into its commands.
    fn step(&self, work: Work, commands: &mut Vec<Command>, claimers: &mut Vec<Claimer>) -> Step {
        let keys = &self.keys;
        let (own, reading) = match work {
            Work::Claim { partition, node, incarnation, wall_ms } => {
                claimers.push(Claimer { partition, node, incarnation, wall_ms });
                return Step::Claim { at: claimers.len() - 1 };
            }
            Work::Heartbeat { node, ttl_ms } => {
                commands.push(view::beat(keys, &node, ttl_ms));
                return Step::Beat { node };
            }
            Work::Append(batch) => {
                self.shared.appends.fetch_add(1, Ordering::Relaxed);
                append(keys, &batch, self.shared.events_max)
            }
            Work::Release { partition, fence } => match job::release(keys, partition, fence) {
                Ok(sent) => sent,
                Err(error) => return Step::Refused(error),
            },
            Work::Load { partition, fence, conversation, stream } => {
                job::load(keys, partition, fence, conversation, stream.as_ref())
            }
            Work::Answers { partition, fence, conversation, stream } => {
                job::answers(keys, partition, fence, &conversation, &stream)
            }
            Work::Cursors { partition, fence, conversation, of } => {
                job::cursors(keys, partition, fence, conversation, &of)
            }
            read @ Work::Read { .. } => job::read(keys, read),
            Work::UserItems(items) => job::user_items(keys, &items),
            Work::UserList { user, list, after, limit } => job::user_list(keys, &user, list, &after, limit),
            // Consumers read the streams themselves.
            Work::Events { .. } => {
                let reason = "events in Redis are read from its streams";
                return Step::Refused(StoreError::Unavailable(reason.into()));
            }
            Work::Register(registration) => job::register(keys, &registration),
            Work::Unregister { user, device, login_number, incarnation } => {
                job::unregister(keys, &user, &device, login_number, incarnation)
            }
            Work::Routes { users } => job::routes(keys, &users),
            Work::Leave { node, incarnation } => job::leave(keys, node, incarnation),
            Work::GatewayLease { gateway, incarnation, replaces, ttl_ms } => {
                job::gateway_lease(keys, gateway, incarnation, replaces, ttl_ms)
            }
        };
        let count = own.len();
        commands.extend(own);
        Step::Sent { commands: count, reading }
    }

    /// Reads the replies of a job, and notes what it means for this process's claims.
    fn settle(
        &mut self,
        reading: &Reading,
        replies: Result<Vec<Value>, StoreError>,
        hints: &mut Vec<(Partition, u64, String)>,
    ) -> Result<Outcome, StoreError> {
        let outcome = replies.and_then(|replies| reading.outcome(replies));
        match reading {
            Reading::Append { partition, fence, .. } | Reading::Load { partition, fence, .. } => {
                if matches!(outcome, Err(StoreError::Fenced { .. })) {
                    self.own.lost(*partition, fence.epoch);
                }
            }
            Reading::Release { partition, fence } => {
                self.own.lost(*partition, fence.epoch);
                if outcome.is_ok() {
                    hints.push((*partition, fence.epoch, String::new()));
                }
            }
            Reading::Leave { node } => self.own.left(node),
            _ => {}
        }
        outcome
    }

    fn beat(
        &mut self,
        node: &Node,
        reply: Result<Value, StoreError>,
        hints: &mut Vec<(Partition, u64, String)>,
    ) -> Result<Outcome, StoreError> {
        let beat = self.own.view(&self.keys, node, reply?)?;
        hints.extend(beat.hints);
        self.shared.sweeper.start(&self.session, &self.keys, beat.dead);
        Ok(beat.outcome)
    }
}

/// Loads the scripts and checks that this server holds this cluster and keeps what it is given.
pub(super) async fn look(session: &Session, keys: &Keys) -> Result<Trouble, StoreError> {
    session.load_scripts().await?;
    let format = format!("{FORMAT}:{}", keys.partitions());
    let commands = [
        Command::plain("SETNX", keys.format(), vec![text(&format)]),
        Command::plain("GET", keys.format(), Vec::new()),
        Command::plain("INFO", "memory".into(), Vec::new()),
    ];
    let replies: Vec<Value> =
        session.run(&commands).await.into_iter().collect::<Result<Vec<_>, StoreError>>()?;
    let mut texts = replies.into_iter().skip(1).map(to_text);
    let (Some(found), Some(memory)) = (texts.next(), texts.next()) else {
        return Err(StoreError::Corrupted("replies are missing".into()));
    };
    let found = found?;
    let memory = memory?;
    let policy = memory.lines().find_map(|line| line.strip_prefix("maxmemory_policy:"));
    Ok(Trouble {
        foreign: (found != format).then_some(found),
        eviction_policy: policy.unwrap_or("unknown").trim().to_owned(),
    })
}
