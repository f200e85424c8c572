//! Who is where, in memory: routes, sessions that lost their place, leases, and which node owns what.
//!
//! Served at once on the caller's thread, so that a login never waits for a disk. It ends with the process: after a start
//! nobody is connected.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::disk::Disk;
use super::leases::Leases;
use super::routes::Routes;
use crate::store::losers::Losers;
use crate::store::{Gateway, Outcome, StoreError, View, Work};

/// See the module's head.
#[derive(Default)]
pub(super) struct Directory {
    routes: Routes,
    losers: Mutex<Losers>,
    leases: Mutex<Leases>,
    /// By partition: node and epoch.
    owners: Mutex<Vec<(String, u64)>>,
}

/// Gateways whose lease has ended, and the part of the routes that is swept of theirs next.
pub(super) struct Sweep {
    part: usize,
    dead: Vec<Gateway>,
}

impl Directory {
    /// Serves what needs no disk write; hands the rest back.
    pub(super) fn at_once(&self, disk: &Disk, work: Work) -> Result<Result<Outcome, StoreError>, Work> {
        Ok(Ok(match work {
            Work::Register(registration) => {
                // One claim has an epoch here, and who gave it up is nobody's any more.
                if let Some((partition, fence)) = registration.claim {
                    let owners = self.owners();
                    let owner = owners.get(usize::from(partition));
                    if !owner.is_some_and(|(node, epoch)| !node.is_empty() && *epoch == fence.epoch) {
                        return Ok(Err(StoreError::Fenced { partition }));
                    }
                }
                let (login_number, mut verdict) = self.routes.register(&registration);
                if let Some((partition, _)) = registration.claim.filter(|_| !verdict.lost) {
                    verdict.losers = self.losers().note(partition, &registration, verdict.losers);
                }
                // After the route is in: whoever adds the user to a group from now on sees the route.
                let groups = if verdict.lost {
                    Vec::new()
                } else {
                    match disk.user_groups(&registration.user) {
                        Ok(groups) => groups,
                        Err(error) => return Ok(Err(error)),
                    }
                };
                Outcome::Registered { login_number, lost: verdict.lost, losers: verdict.losers, groups }
            }
            Work::Unregister { user, device, session, login_number, incarnation } => {
                self.routes.unregister(&user, &device, session, login_number, incarnation);
                Outcome::Unregistered
            }
            Work::ForgetLosers { partition, losers } => {
                self.losers().forget(partition, &losers);
                Outcome::LosersForgotten
            }
            Work::Routes { users } => {
                Outcome::Routes(users.iter().map(|user| self.routes.of(user)).collect())
            }
            Work::Heartbeat { node, replaces, ttl_ms } => {
                let now = Instant::now();
                let owners = self.owners().clone();
                let mut leases = self.leases();
                let (was_missing, held_by) = leases.renew_node(now, node, replaces, ttl_ms);
                let view = leases.view(now, owners);
                Outcome::View(Arc::new(View { was_missing, held_by, ..view }))
            }
            Work::Leave { node, incarnation } => {
                self.leases().leave(&node, incarnation);
                Outcome::Left
            }
            Work::GatewayLease { gateway, incarnation, replaces, grant, ttl_ms } => {
                let life = Gateway { gateway, incarnation };
                let grant = self.leases().renew_gateway(Instant::now(), life, replaces, grant, ttl_ms);
                Outcome::GatewayLease { grant }
            }
            queued => return Err(queued),
        }))
    }

    /// Sweeps one part of the routes of gateways whose lease has ended.
    pub(super) fn sweep(&self, sweep: Option<Sweep>) -> Option<Sweep> {
        let now = Instant::now();
        let Sweep { part, mut dead } = match sweep {
            Some(sweep) => sweep,
            None => Sweep { part: 0, dead: self.leases().take_dead(now) },
        };
        let leases = self.leases();
        dead.retain(|gateway| !leases.gateway_lives(now, *gateway));
        drop(leases);
        let is_over = dead.is_empty() || self.routes.sweep_part(part, &dead);
        (!is_over).then(|| Sweep { part: part + 1, dead })
    }

    /// Routes held now; routes swept since the start.
    pub(super) fn counters(&self) -> [(&'static str, u64); 2] {
        self.routes.counters()
    }

    pub(super) fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn owners(&self) -> MutexGuard<'_, Vec<(String, u64)>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn losers(&self) -> MutexGuard<'_, Losers> {
        self.losers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
