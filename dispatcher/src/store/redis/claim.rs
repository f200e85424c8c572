//! Claims, in three steps: read the fences, read the leases of those who hold them, take the fences if nothing changed.
//!
//! Leases have another hash tag than fences, so that no script sees both. The rule that keeps it right: the judgement
//! names the fence that it was made of, and the script takes nothing else.

use fred::types::Value;
use millrace_protocol::ids::{MessageId, Partition};

use super::command::{Command, ScriptId, fixed, list, number, text, to_number, to_text};
use super::job::draw_nonce;
use super::keys::Keys;
use super::reply;
use super::session::Session;
use crate::store::{COPY_STEP_MS, Fence, LOSERS_TOLD_MAX, Outcome, StoreError};

/// How often a claim is judged anew when the fence changes under it. Each time another claimer got further.
const TRIES_MAX: usize = 3;

/// Somebody who wants a partition.
#[derive(Clone, Debug)]
pub(super) struct Claimer {
    pub(super) partition: Partition,
    pub(super) node: String,
    pub(super) incarnation: u64,
    /// An epoch of another copy, perhaps.
    pub(super) above: u64,
}

/// A fence as read.
struct Judged {
    epoch: String,
    nonce: String,
    holder: String,
    incarnation: String,
}

/// Carries out claims of one round; one outcome each, in order.
pub(super) async fn claims(
    session: &Session,
    keys: &Keys,
    claimers: &[Claimer],
) -> Vec<Result<Outcome, StoreError>> {
    let mut outcomes: Vec<Option<Result<Outcome, StoreError>>> = claimers.iter().map(|_| None).collect();
    for _ in 0..TRIES_MAX {
        let open: Vec<usize> = (0..claimers.len()).filter(|at| outcomes[*at].is_none()).collect();
        if open.is_empty() {
            break;
        }
        for (at, outcome) in attempt(session, keys, claimers, &open).await {
            outcomes[at] = Some(outcome);
        }
    }
    let changing =
        || Err(StoreError::Unavailable("the fence changed under the claim, again and again".into()));
    outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(changing)).collect()
}

/// One try of the open claims; those whose fence changed meanwhile are not in the answer.
async fn attempt(
    session: &Session,
    keys: &Keys,
    claimers: &[Claimer],
    open: &[usize],
) -> Vec<(usize, Result<Outcome, StoreError>)> {
    let mut settled = Vec::new();
    let read = |at: &usize| {
        let fields = ["e", "n", "w", "i"].map(text).to_vec();
        Command::plain("HMGET", keys.fence(claimers[*at].partition), fields)
    };
    let fences: Vec<Command> = open.iter().map(read).collect();
    let mut judged = Vec::new();
    for (at, reply) in open.iter().zip(session.run(&fences).await) {
        match reply.and_then(judge) {
            Ok(fence) => judged.push((*at, fence)),
            Err(error) => settled.push((*at, Err(error))),
        }
    }

    let foreign =
        |(at, fence): &(usize, Judged)| !fence.holder.is_empty() && fence.holder != claimers[*at].node;
    let (held, mut free): (Vec<_>, Vec<_>) = judged.into_iter().partition(foreign);
    let leases: Vec<Command> =
        held.iter().map(|(_, fence)| Command::plain("GET", keys.node(&fence.holder), Vec::new())).collect();
    for ((at, fence), lease) in held.into_iter().zip(session.run(&leases).await) {
        match lease.and_then(to_text) {
            Err(error) => settled.push((at, Err(error))),
            Ok(lease) if lease.split(':').next() == Some(fence.incarnation.as_str()) => {
                let partition = claimers[at].partition;
                settled.push((at, Err(StoreError::Held { partition, holder: fence.holder })));
            }
            Ok(_) => free.push((at, fence)),
        }
    }

    let mut takes = Vec::new();
    let mut takers = Vec::new();
    for (at, fence) in free {
        let claimer = &claimers[at];
        match draw_nonce() {
            Err(error) => settled.push((at, Err(error))),
            Ok(nonce) => {
                let args = vec![
                    text(&fence.epoch),
                    text(&fence.nonce),
                    text(&claimer.node),
                    number(claimer.incarnation),
                    number(claimer.above),
                    number(nonce),
                    number(LOSERS_TOLD_MAX as u64),
                    number(COPY_STEP_MS),
                ];
                let partition = claimer.partition;
                let names = vec![
                    keys.fence(partition),
                    keys.outstanding(partition),
                    keys.events(partition),
                    keys.lost(partition),
                ];
                takes.push(Command::script(ScriptId::Claim, names, args));
                takers.push((at, nonce));
            }
        }
    }
    for ((at, nonce), reply) in takers.into_iter().zip(session.run(&takes).await) {
        match reply.and_then(|reply| taken(nonce, reply)) {
            Ok(None) => {}
            Ok(Some(outcome)) => settled.push((at, Ok(outcome))),
            Err(error) => settled.push((at, Err(error))),
        }
    }
    settled
}

fn judge(reply: Value) -> Result<Judged, StoreError> {
    let [epoch, nonce, holder, incarnation] = fixed(reply)?;
    Ok(Judged {
        epoch: to_text(epoch)?,
        nonce: to_text(nonce)?,
        holder: to_text(holder)?,
        incarnation: to_text(incarnation)?,
    })
}

fn taken(nonce: u64, reply: Value) -> Result<Option<Outcome>, StoreError> {
    let parts = list(reply)?;
    if parts.len() == 1 {
        // 'changed'
        return Ok(None);
    }
    let [_, epoch, position, last, outstanding, losers, copy] = fixed(Value::Array(parts))?;
    Ok(Some(Outcome::Claimed {
        fence: Fence { epoch: to_number(epoch)?, nonce },
        position: to_number(position)?,
        last_message_id: MessageId(to_number(last)?),
        outstanding: reply::outstanding(outstanding)?,
        losers: reply::losers(losers)?,
        copy: to_number(copy)?,
    }))
}
