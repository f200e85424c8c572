//! How far fan-out has come: what the next owner need not do again.
//!
//! A message of a direct conversation that was appended, and whose owner died before its recipients' gateways had it,
//! would reach nobody until they come back: nobody subscribes to such a conversation. Nor do the sessions of a group's
//! new members subscribe before they are told that they are members. So each batch names its direct messages, and its
//! entries about new members, as outstanding, and a later one tells the store up to where they were fanned out. That is
//! known when the routes of all of them were read and their records were *acknowledged* on the links; a link whose state
//! is gone counts too, as its sessions are gone or begin anew.
//!
//! One mark at a time goes through a shard: first through its line of lookups, then through all links, those at home on
//! sibling shards included. The rule that keeps it right: a position is reported only after everything that came before
//! it was acknowledged. Reporting late, or never, costs a repeat.

use std::collections::BTreeMap;

use millrace_protocol::ids::Partition;
use millrace_protocol::planted::{self, Fault};

use super::action::Action;
use super::event::{LinkKey, Sibling};
use super::hub::Cx;
use super::links::Links;

/// A partition's position, under one claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Which partition.
    pub partition: Partition,
    /// Of its claim.
    pub generation: u64,
    /// Batches before this one were fanned out.
    pub position: u64,
}

/// What was accepted on links at one moment.
type Sent = Vec<(LinkKey, u64, u64)>;

/// The marks of a shard.
#[derive(Debug, Default)]
pub struct Fanned {
    /// Positions whose records are queued, since the last mark.
    noted: BTreeMap<Partition, Reached>,
    mark: Option<Mark>,
    last_id: u64,
    /// Marks of siblings that wait for links at home here: who asked, its number.
    foreign: Vec<(usize, u64, Sent)>,
}

#[derive(Debug)]
struct Mark {
    id: u64,
    reached: Vec<Reached>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Until so many asks have been answered.
    Asks(u64),
    /// Until links here and at so many siblings have acknowledged.
    Links { sent: Sent, siblings: usize },
}

impl Fanned {
    /// Everything of this partition before a position was handed on, or waits for its routes.
    pub fn note(&mut self, reached: Reached) {
        self.noted.insert(reached.partition, reached);
    }

    /// A sibling asks when everything that it sent on links here so far is acknowledged.
    pub fn foreign(&mut self, shard: usize, id: u64, links: &Links) {
        self.foreign.push((shard, id, links.accepted()));
    }

    /// A sibling says that it is.
    pub fn answered(&mut self, id: u64) {
        if let Some(Mark { id: own, stage: Stage::Links { siblings, .. }, .. }) = &mut self.mark
            && *own == id
        {
            *siblings = siblings.saturating_sub(1);
        }
    }
}

/// Moves marks on. Returns what was reached.
pub fn turn(cx: &mut Cx) -> Vec<Reached> {
    let hub = &mut *cx.hub;
    let settled: Vec<(usize, u64)> = hub
        .fanned
        .foreign
        .extract_if(.., |(_, _, sent)| hub.links.settled(sent))
        .map(|(shard, id, _)| (shard, id))
        .collect();
    for (shard, id) in settled {
        cx.actions.push(Action::Sibling { shard, message: Sibling::Marked { id } });
    }
    let hub = &mut *cx.hub;
    if hub.fanned.mark.is_none() && !hub.fanned.noted.is_empty() {
        hub.fanned.last_id += 1;
        let reached = std::mem::take(&mut hub.fanned.noted).into_values().collect();
        let stage = Stage::Asks(hub.delivery.asked());
        hub.fanned.mark = Some(Mark { id: hub.fanned.last_id, reached, stage });
    }
    let Some(mut mark) = hub.fanned.mark.take() else { return Vec::new() };
    if planted::is(Fault::FannedOutEarly) {
        return mark.reached;
    }
    if let Stage::Asks(asked) = mark.stage
        && hub.delivery.answered_through() >= asked
    {
        let siblings = hub.config.shards - 1;
        mark.stage = Stage::Links { sent: hub.links.accepted(), siblings };
        let (shard, id) = (hub.config.shard, mark.id);
        cx.tell_siblings(|| Sibling::Mark { shard, id });
    }
    let hub = &mut *cx.hub;
    if let Stage::Links { sent, siblings: 0 } = &mut mark.stage
        && hub.links.settled(sent)
    {
        return mark.reached;
    }
    hub.fanned.mark = Some(mark);
    Vec::new()
}
