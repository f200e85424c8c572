//! Sessions that lost their place to a newer one and are not known to be closed, by the partition of their user.
//!
//! Kept with the routes, so that whoever serves the partition next closes them: the owner that knew them may end before its
//! Close arrives. `redis/scripts/register.lua` does the same with a sorted set.

use std::collections::BTreeMap;

use millrace_protocol::ids::Partition;

use super::{LOSERS_TOLD_MAX, Registration, Route};

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub(crate) struct Losers(BTreeMap<Partition, BTreeMap<String, Vec<Route>>>);

impl Losers {
    /// A session is registered, and these lost to it. Returns all of its user that are not known to be closed: the answer
    /// that named some of them first may have been lost.
    pub(super) fn note(
        &mut self,
        partition: Partition,
        registration: &Registration,
        lost: Vec<Route>,
    ) -> Vec<Route> {
        let users = self.0.entry(partition).or_default();
        let mut all = users.remove(&registration.user).unwrap_or_default();
        // It may have lost to one that resumed it, and be back; or it is gone with its gateway, and this session has its id.
        all.retain(|route| route.session != registration.session);
        all.extend(lost);
        all.sort_by_key(|route| route.login_number);
        if !all.is_empty() {
            users.insert(registration.user.clone(), all.clone());
        }
        all
    }

    /// Those of a partition, as many as a claim tells.
    pub(super) fn of(&self, partition: Partition) -> Vec<(String, Route)> {
        let users = self.0.get(&partition).into_iter().flatten();
        let all = users.flat_map(|(user, routes)| routes.iter().map(|route| (user.clone(), route.clone())));
        all.take(LOSERS_TOLD_MAX).collect()
    }

    /// These are closed, or gone with their gateway.
    pub(super) fn forget(&mut self, partition: Partition, losers: &[(String, Route)]) {
        let Some(users) = self.0.get_mut(&partition) else { return };
        for (user, loser) in losers {
            let Some(routes) = users.get_mut(user) else { continue };
            routes.retain(|route| route != loser);
            if routes.is_empty() {
                users.remove(user);
            }
        }
    }
}
