//! Heartbeats: this node's lease out, the view of everybody in; and the hints of who owns what.
//!
//! The rule that keeps it right: hints may be lost or late. What this process holds by its own claims stands in its view
//! whatever Redis says, and is written again when Redis doesn't say it.

use std::collections::HashMap;
use std::sync::Arc;

use fred::types::Value;
use millrace_protocol::ids::Partition;

use super::command::{Command, ScriptId, fixed, list, number, pairs, text, to_number, to_text};
use super::keys::Keys;
use crate::store::{Gateway, Node, Outcome, StoreError, View};

/// What this process has claimed and renewed.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// Partition -> epoch and name of the node, for claims that have not been lost.
    claims: HashMap<Partition, (u64, String)>,
    /// Nodes whose lease this process has renewed, with the incarnation and the copy of the store that said so.
    renewed: HashMap<String, (u64, u64)>,
}

/// A heartbeat, read.
pub(super) struct Beat {
    pub(super) outcome: Outcome,
    /// Lives of gateways whose lease has ended and whose routes are still to be swept.
    pub(super) dead: Vec<Gateway>,
    /// Hints that Redis lacks.
    pub(super) hints: Vec<(Partition, u64, String)>,
}

/// The command of a heartbeat.
pub(super) fn beat(keys: &Keys, node: &Node, replaces: u64, ttl_ms: u32) -> Command {
    let names = vec![keys.node(&node.name), keys.names(), keys.lives(), keys.owners()];
    let args = vec![
        text(&node.address),
        number(u64::from(ttl_ms.max(1))),
        text(&node.name),
        text(&keys.node("")),
        text(&keys.gateway("")),
        number(node.incarnation),
        number(replaces),
    ];
    Command::script(ScriptId::Beat, names, args)
}

/// The command that writes hints: (partition, epoch, node or "").
pub(super) fn hint(keys: &Keys, hints: &[(Partition, u64, String)]) -> Command {
    let args = hints
        .iter()
        .flat_map(|(partition, epoch, node)| [number(u64::from(*partition)), number(*epoch), text(node)])
        .collect();
    Command::script(ScriptId::Hint, vec![keys.owners()], args)
}

impl Own {
    pub(super) fn claimed(&mut self, partition: Partition, epoch: u64, node: &str) {
        self.claims.insert(partition, (epoch, node.to_owned()));
    }

    /// The claim of this epoch is over.
    pub(super) fn lost(&mut self, partition: Partition, epoch: u64) {
        if self.claims.get(&partition).is_some_and(|(held, _)| *held <= epoch) {
            self.claims.remove(&partition);
        }
    }

    pub(super) fn left(&mut self, node: &str) {
        self.renewed.remove(node);
    }

    /// Reads the reply of [`beat`].
    pub(super) fn view(
        &mut self,
        keys: &Keys,
        (node, replaces): (&Node, u64),
        reply: Value,
    ) -> Result<Beat, StoreError> {
        let [holder, nodes, live, dead, stored, copy, now] = fixed(reply)?;
        let (holder, copy) = (to_number(holder)?, to_number(copy)?);
        let renewed = [0, node.incarnation, replaces].contains(&holder);
        let had_one = match renewed {
            true => self.renewed.insert(node.name.clone(), (node.incarnation, copy)),
            false => None,
        };
        let mut nodes = pairs(nodes)?
            .into_iter()
            .map(|(name, lease)| to_node(to_text(name)?, &to_text(lease)?))
            .collect::<Result<Vec<_>, _>>()?;
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let mut gateways = lives(live)?;
        gateways.sort_by_key(|gateway| gateway.gateway);
        let mut owners = vec![(String::new(), 0); usize::from(keys.partitions())];
        for (partition, owner) in pairs(stored)? {
            let (partition, owner) = (to_number(partition)? as usize, to_text(owner)?);
            if let (Some(row), Some((epoch, name))) = (owners.get_mut(partition), owner.split_once(':')) {
                *row = (name.to_owned(), epoch.parse().unwrap_or(0));
            }
        }
        let mut hints = Vec::new();
        for (partition, (epoch, name)) in &self.claims {
            let Some(row) = owners.get_mut(usize::from(*partition)) else { continue };
            if row.1 < *epoch {
                *row = (name.clone(), *epoch);
                hints.push((*partition, *epoch, name.clone()));
            }
        }
        let was_missing = had_one.is_some_and(|(held, before)| {
            held == node.incarnation && (holder != node.incarnation || before != copy)
        });
        let held_by = if renewed { 0 } else { holder };
        let clock_ms = Some(to_number(now)?);
        let view = View { nodes, gateways, owners, was_missing, held_by, clock_ms };
        Ok(Beat { outcome: Outcome::View(Arc::new(view)), dead: lives(dead)?, hints })
    }
}

fn to_node(name: String, lease: &str) -> Result<Node, StoreError> {
    let damaged = || StoreError::Corrupted(format!("the lease of node {name}: «{lease}»"));
    let (incarnation, address) = lease.split_once(':').ok_or_else(damaged)?;
    let incarnation = incarnation.parse().map_err(|_| damaged())?;
    Ok(Node { address: address.to_owned(), incarnation, name })
}

fn lives(value: Value) -> Result<Vec<Gateway>, StoreError> {
    let life = |value| {
        let life = to_text(value)?;
        let parsed = life.split_once(':').and_then(|(gateway, incarnation)| {
            Some(Gateway { gateway: gateway.parse().ok()?, incarnation: incarnation.parse().ok()? })
        });
        parsed.ok_or_else(|| StoreError::Corrupted(format!("the life «{life}» of a gateway")))
    };
    list(value)?.into_iter().map(life).collect()
}
