//! Who may stay when a session registers: the login number decides, whatever the order of arrival.
//!
//! Pure: the embedded store applies it under its lock; `redis/scripts/register.lua` says the same in Lua, and the suite
//! runs the same cases against both. The rule that keeps it right: on one device, or on one platform where the newest
//! wins, the highest login number stays. A session that registers again under its old number can therefore never push
//! out a newer one. Resuming keeps the number: of one device's sessions under one number the last one to register stays.

use millrace_protocol::planted::{self, Fault};

use super::{Registration, Route};

/// Routes of one user at most; the lowest login number loses its place. A person has a handful of devices: this bounds
/// what a script of logins can make one key hold.
pub(super) const ROUTES_PER_USER_MAX: usize = 64;

/// What a registration did to the user's routes.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    /// A session with a higher number is there: nothing was changed.
    pub lost: bool,
    /// Pushed out, and gone from the routes.
    pub losers: Vec<Route>,
}

/// Registers a session under `login_number` in its user's `routes`.
pub(super) fn register(routes: &mut Vec<Route>, registration: &Registration, login_number: u64) -> Verdict {
    let rivals = |route: &Route| {
        route.device == registration.device
            || (registration.newest_wins && route.platform == registration.platform)
    };
    // The same session again is no rival of itself; a route of an earlier life of the slot must not close this one.
    let own = |route: &Route| route.session == registration.session && route.device == registration.device;
    let stronger = |route: &Route| {
        if planted::is(Fault::LowestLoginWins) {
            return route.login_number < login_number;
        }
        route.login_number > login_number
            || (route.login_number == login_number && route.device != registration.device)
    };
    if routes.iter().any(|route| rivals(route) && !own(route) && stronger(route)) {
        return Verdict { lost: true, losers: Vec::new() };
    }
    let mut losers = Vec::new();
    routes.retain(|route| {
        if !rivals(route) {
            return true;
        }
        if !own(route) {
            losers.push(route.clone());
        }
        false
    });
    routes.push(Route {
        device: registration.device.clone(),
        platform: registration.platform.clone(),
        session: registration.session,
        incarnation: registration.incarnation,
        login_number,
    });
    while routes.len() > ROUTES_PER_USER_MAX {
        let lowest = (0..routes.len()).min_by_key(|at| routes[*at].login_number).unwrap_or(0);
        losers.push(routes.remove(lowest));
    }
    losers.sort_by_key(|route| route.login_number);
    Verdict { lost: false, losers }
}
