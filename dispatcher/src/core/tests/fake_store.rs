//! A store in memory that keeps the promises of `crate::store`, and can be told to break down.

use std::collections::{BTreeMap, BTreeSet};

use millrace_protocol::ids::{MessageId, Partition};

use crate::store::*;

/// Why the next job of a kind shall fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done.
    Unavailable,
    /// It is done, and answered Unavailable.
    DoneButUnknown,
}

#[derive(Debug, Default)]
pub struct FakeStore {
    pub fences: BTreeMap<Partition, (String, Fence)>,
    pub positions: BTreeMap<Partition, u64>,
    pub last_ids: BTreeMap<Partition, MessageId>,
    pub logs: BTreeMap<String, Vec<Entry>>,
    pub groups: BTreeMap<String, (BTreeSet<String>, u64)>,
    pub lists: BTreeMap<String, BTreeSet<String>>,
    pub routes: BTreeMap<String, Vec<Route>>,
    pub nodes: Vec<Node>,
    pub gateways: BTreeMap<u16, u64>,
    pub next_login: u64,
    pub nonce: u64,
    pub fail_append: Option<Fault>,
    pub fail_routes: u32,
    pub fail_claims: u32,
}

impl FakeStore {
    pub fn view(&self, partitions: u16, was_missing: bool) -> View {
        let owner = |partition| {
            self.fences
                .get(&partition)
                .map_or_else(Default::default, |(name, fence)| (name.clone(), fence.epoch))
        };
        View {
            nodes: self.nodes.clone(),
            gateways: self
                .gateways
                .iter()
                .map(|(gateway, incarnation)| Gateway { gateway: *gateway, incarnation: *incarnation })
                .collect(),
            owners: (0..partitions).map(owner).collect(),
            was_missing,
        }
    }

    fn is_live(&self, name: &str) -> bool {
        self.nodes.iter().any(|node| node.name == name)
    }

    fn fenced(&self, partition: Partition, fence: Fence) -> Result<(), StoreError> {
        match self.fences.get(&partition) {
            Some((_, current)) if *current == fence => Ok(()),
            _ => Err(StoreError::Fenced { partition }),
        }
    }

    pub fn carry_out(&mut self, work: Work) -> Result<Outcome, StoreError> {
        match work {
            Work::Claim { partition, node, wall_ms, .. } => self.claim(partition, node, wall_ms),
            Work::Release { partition, fence } => {
                self.fenced(partition, fence)?;
                self.nonce += 1;
                let void = Fence { epoch: fence.epoch, nonce: self.nonce };
                self.fences.insert(partition, (String::new(), void));
                Ok(Outcome::Released)
            }
            Work::Append(batch) => match self.fail_append.take() {
                Some(Fault::Unavailable) => Err(StoreError::Unavailable("told so".into())),
                Some(Fault::DoneButUnknown) => {
                    self.append(batch)?;
                    Err(StoreError::Unavailable("told so".into()))
                }
                None => self.append(batch),
            },
            Work::Load { partition, fence, conversation } => {
                self.fenced(partition, fence)?;
                let log = self.logs.get(&conversation).map_or(&[][..], |log| log);
                Ok(Outcome::Loaded(Loaded {
                    head: log.len() as u64,
                    members: self
                        .groups
                        .get(&conversation)
                        .map(|(members, version)| (members.iter().cloned().collect(), *version)),
                    recent: log[log.len().saturating_sub(RECENT_ENTRIES)..].to_vec(),
                }))
            }
            Work::Read { conversation, after, through, limit_bytes, .. } => {
                let mut entries: Vec<Entry> = Vec::new();
                let mut bytes = 0;
                for entry in self.logs.get(&conversation).into_iter().flatten() {
                    if entry.seq > after
                        && entry.seq <= through
                        && (bytes < limit_bytes || entries.is_empty())
                    {
                        bytes += entry.notify.len();
                        entries.push(entry.clone());
                    }
                }
                Ok(Outcome::Entries { entries, first_seq: 1 })
            }
            Work::UserGroups { users, group, add } => {
                for user in users {
                    let list = self.lists.entry(user).or_default();
                    if add {
                        list.insert(group.clone())
                    } else {
                        list.remove(&group)
                    };
                }
                Ok(Outcome::UserGroupsDone)
            }
            Work::Register(registration) => Ok(self.register(registration)),
            Work::Unregister { user, device, login_number, incarnation } => {
                let routes = self.routes.entry(user).or_default();
                routes.retain(|route| {
                    (&route.device, route.login_number, route.incarnation)
                        != (&device, login_number, incarnation)
                });
                Ok(Outcome::Unregistered)
            }
            Work::Routes { users } => {
                if self.fail_routes > 0 {
                    self.fail_routes -= 1;
                    return Err(StoreError::Unavailable("told so".into()));
                }
                let of = |user| self.routes.get(user).cloned().unwrap_or_default();
                Ok(Outcome::Routes(users.iter().map(of).collect()))
            }
            Work::GatewayLease { gateway, incarnation, .. } => {
                let held = self.gateways.insert(gateway, incarnation);
                Ok(Outcome::GatewayLease { granted: true, was_missing: held.is_none() })
            }
            Work::Heartbeat { .. } | Work::Leave { .. } => panic!("a shard renews no node's lease"),
        }
    }

    fn claim(&mut self, partition: Partition, node: String, wall_ms: u64) -> Result<Outcome, StoreError> {
        if self.fail_claims > 0 {
            self.fail_claims -= 1;
            return Err(StoreError::Unavailable("told so".into()));
        }
        let stored = match self.fences.get(&partition) {
            Some((holder, _)) if *holder != node && self.is_live(holder) => {
                return Err(StoreError::Held { partition, holder: holder.clone() });
            }
            Some((_, fence)) => fence.epoch,
            None => 0,
        };
        self.nonce += 1;
        let fence = Fence { epoch: wall_ms.max(stored + 1), nonce: self.nonce };
        self.fences.insert(partition, (node, fence));
        Ok(Outcome::Claimed {
            fence,
            position: self.positions.get(&partition).copied().unwrap_or(0),
            last_message_id: self.last_ids.get(&partition).copied().unwrap_or_default(),
        })
    }

    fn append(&mut self, batch: Batch) -> Result<Outcome, StoreError> {
        let partition = batch.partition;
        self.fenced(partition, batch.fence)?;
        let position = self.positions.entry(partition).or_default();
        if *position != batch.position {
            return Err(StoreError::Position { partition, expected: *position, given: batch.position });
        }
        assert!(!batch.writes.is_empty(), "an empty batch");
        *position += batch.writes.len() as u64;
        for write in batch.writes {
            match write {
                Write::Message(entry) => {
                    let log = self.logs.entry(entry.conversation.clone()).or_default();
                    assert_eq!(entry.seq, log.len() as u64 + 1, "{}: seq is dense", entry.conversation);
                    let last = self.last_ids.entry(partition).or_default();
                    assert!(entry.message_id > *last, "{:?} after {last:?}", entry.message_id);
                    assert_eq!(entry.message_id.partition(), partition);
                    *last = entry.message_id;
                    log.push(entry);
                }
                Write::GroupCreate { conversation, members, version } => {
                    let members: BTreeSet<String> = members.into_iter().collect();
                    self.check_lists(&conversation, &members);
                    let former = self.groups.insert(conversation, (members, version));
                    assert!(former.is_none(), "the owner has checked that there is no such group");
                }
                Write::Members { conversation, add, remove, version } => {
                    let add = add.into_iter().collect();
                    self.check_lists(&conversation, &add);
                    let (members, stored) = self.groups.get_mut(&conversation).expect("a group");
                    assert_eq!(version, *stored + 1);
                    *stored = version;
                    members.extend(add);
                    members.retain(|member| !remove.contains(member));
                }
            }
        }
        Ok(Outcome::Appended)
    }

    /// Lists first, members second.
    fn check_lists(&self, conversation: &str, members: &BTreeSet<String>) {
        for member in members {
            let listed = self.lists.get(member).is_some_and(|list| list.contains(conversation));
            assert!(listed, "{member} was added to {conversation} before it was listed");
        }
    }

    fn register(&mut self, new: Registration) -> Outcome {
        self.next_login += 1;
        let login_number = match new.login_number {
            0 => self.next_login,
            kept => kept,
        };
        let routes = self.routes.entry(new.user.clone()).or_default();
        let groups = self.lists.get(&new.user).into_iter().flatten().cloned().collect();
        let same = routes.iter().find(|route| route.device == new.device).cloned();
        if same.as_ref().is_some_and(|route| route.login_number > login_number) {
            return Outcome::Registered { login_number, lost: true, losers: Vec::new(), groups };
        }
        let loses = |route: &Route| {
            route.device == new.device && route.login_number != login_number
                || new.newest_wins && route.platform == new.platform && route.device != new.device
        };
        let losers = routes.iter().filter(|route| loses(route)).cloned().collect();
        routes.retain(|route| !loses(route) && route.device != new.device);
        routes.push(Route {
            device: new.device,
            platform: new.platform,
            session: new.session,
            incarnation: new.incarnation,
            login_number,
        });
        Outcome::Registered { login_number, lost: false, losers, groups }
    }
}
