//! Who is connected where, in memory: served at once on the caller's thread, never waiting for a disk.
//!
//! The policy is [`policy`]'s; whether a route's gateway lives is judged by whoever reads it. The rule that keeps it
//! right: all routes of a user lie under one lock, so that a registration is one step.
//!
//! A user costs about 75 B with one route and short names: a slot of 16 B at a load of two thirds, and its name and all
//! its routes packed into one allocation.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BufMut};
use millrace_protocol::ids::SessionId;
use rustc_hash::{FxBuildHasher, FxHasher};

use crate::store::policy::{self, Verdict};
use crate::store::{Gateway, Registration, Route};

/// Parts with a lock each: a table grows and is swept in pieces of at most some thousand users per million.
const PARTS: usize = 256;

/// A user's name and routes: length u8 | name | routes as [`pack`] puts them. Found by its name.
struct User(Box<[u8]>);

impl User {
    fn new(name: &str, routes: &[Route]) -> Self {
        User(pack(name, routes))
    }

    fn name(&self) -> &[u8] {
        &self.0[1..=usize::from(self.0[0])]
    }

    fn routes(&self) -> Vec<Route> {
        unpack(&self.0[1 + usize::from(self.0[0])..])
    }
}

impl Borrow<[u8]> for User {
    fn borrow(&self) -> &[u8] {
        self.name()
    }
}

impl Hash for User {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl PartialEq for User {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for User {}

type Part = HashSet<User, FxBuildHasher>;

/// All routes of a node that is alone.
pub struct Routes {
    parts: Vec<Mutex<Part>>,
    /// The highest login number ever given or shown. One for all users: it is above all earlier ones of each.
    login_number: AtomicU64,
    routes: AtomicUsize,
    swept: AtomicU64,
}

impl Default for Routes {
    fn default() -> Self {
        Self {
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            login_number: AtomicU64::new(0),
            routes: AtomicUsize::new(0),
            swept: AtomicU64::new(0),
        }
    }
}

impl Routes {
    /// Registers a session; returns its login number and what came of it.
    pub fn register(&self, registration: &Registration) -> (u64, Verdict) {
        let login_number = if registration.login_number == 0 {
            let next = |last: u64| (last + 1).max(registration.wall_ms);
            let last = self.login_number.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| Some(next(n)));
            next(last.unwrap_or_else(|last| last))
        } else {
            self.login_number.fetch_max(registration.login_number, Ordering::AcqRel);
            registration.login_number
        };
        let mut part = self.part(&registration.user);
        let mut routes = part.get(registration.user.as_bytes()).map_or_else(Vec::new, User::routes);
        let before = routes.len();
        let verdict = policy::register(&mut routes, registration, login_number);
        if !verdict.lost {
            self.count(before, routes.len());
            part.replace(User::new(&registration.user, &routes));
        }
        (login_number, verdict)
    }

    /// Removes a device's route if it is still that of this session, login and incarnation.
    pub(super) fn unregister(
        &self,
        user: &str,
        device: &str,
        session: SessionId,
        login_number: u64,
        incarnation: u64,
    ) {
        self.retain_of(&mut self.part(user), user, |route| {
            route.device != device
                || (route.session, route.login_number, route.incarnation)
                    != (session, login_number, incarnation)
        });
    }

    /// All routes of a user.
    pub fn of(&self, user: &str) -> Vec<Route> {
        self.part(user).get(user.as_bytes()).map_or_else(Vec::new, User::routes)
    }

    /// Removes the routes of these gateways' lives from one part; returns whether that was the last part.
    pub(super) fn sweep_part(&self, index: usize, dead: &[Gateway]) -> bool {
        let mut part = self.parts[index].lock().unwrap_or_else(PoisonError::into_inner);
        let is_dead = |route: &Route| {
            dead.iter()
                .any(|dead| dead.gateway == route.session.gateway() && dead.incarnation == route.incarnation)
        };
        let hit: Vec<String> = part
            .iter()
            .filter(|user| user.routes().iter().any(is_dead))
            .map(|user| String::from_utf8_lossy(user.name()).into_owned())
            .collect();
        for user in hit {
            let gone = self.retain_of(&mut part, &user, |route| !is_dead(route));
            self.swept.fetch_add(gone as u64, Ordering::Relaxed);
        }
        index + 1 == self.parts.len()
    }

    /// Routes held now; routes swept since the start.
    pub(super) fn counters(&self) -> [(&'static str, u64); 2] {
        [
            ("store_routes", self.routes.load(Ordering::Relaxed) as u64),
            ("store_routes_swept_total", self.swept.load(Ordering::Relaxed)),
        ]
    }

    fn retain_of(&self, part: &mut Part, user: &str, keep: impl Fn(&Route) -> bool) -> usize {
        let Some(mut routes) = part.get(user.as_bytes()).map(User::routes) else { return 0 };
        let before = routes.len();
        routes.retain(keep);
        if routes.is_empty() {
            part.remove(user.as_bytes());
        } else if routes.len() < before {
            part.replace(User::new(user, &routes));
        }
        self.count(before, routes.len());
        before - routes.len()
    }

    fn count(&self, before: usize, after: usize) {
        self.routes.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    fn part(&self, user: &str) -> MutexGuard<'_, Part> {
        let mut hasher = FxHasher::default();
        hasher.write(user.as_bytes());
        // Middle bits: the map inside uses the top ones and the low ones.
        let index = (hasher.finish() >> 24) as usize % self.parts.len();
        self.parts[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of a login number. They count milliseconds of the wall clock: 56 bits last two million years.
const LOGIN_NUMBER_BYTES: usize = 7;

/// name u8 + text; then session u64 | incarnation u64 | login number u56 | device u8 + text | platform u8 + text, for
/// each route.
fn pack(name: &str, routes: &[Route]) -> Box<[u8]> {
    let bytes: usize = routes.iter().map(|r| 25 + r.device.len() + r.platform.len()).sum();
    let mut out = Vec::with_capacity(1 + name.len() + bytes);
    out.put_u8(u8::try_from(name.len()).expect("names are at most 64 bytes"));
    out.put_slice(name.as_bytes());
    for route in routes {
        out.put_u64_ne(route.session.0);
        out.put_u64_ne(route.incarnation);
        out.put_uint(route.login_number.min((1 << 56) - 1), LOGIN_NUMBER_BYTES);
        for text in [&route.device, &route.platform] {
            let length = u8::try_from(text.len()).expect("names are at most 64 bytes");
            out.put_u8(length);
            out.put_slice(text.as_bytes());
        }
    }
    out.into_boxed_slice()
}

fn unpack(mut packed: &[u8]) -> Vec<Route> {
    fn text(packed: &mut &[u8]) -> String {
        let length = usize::from(packed.get_u8());
        let (text, rest) = packed.split_at(length);
        *packed = rest;
        String::from_utf8_lossy(text).into_owned()
    }
    let mut routes = Vec::new();
    while packed.has_remaining() {
        let session = SessionId(packed.get_u64_ne());
        let incarnation = packed.get_u64_ne();
        let login_number = packed.get_uint(LOGIN_NUMBER_BYTES);
        let device = text(&mut packed);
        let platform = text(&mut packed);
        routes.push(Route { device, platform, session, incarnation, login_number });
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration(user: &str, device: &str, gateway: u16, slot: u32) -> Registration {
        Registration {
            user: user.into(),
            device: device.into(),
            platform: "ios".into(),
            session: SessionId::new(gateway, 0, slot, 0),
            incarnation: u64::from(gateway),
            login_number: 0,
            wall_ms: 1_000,
            newest_wins: false,
            claim: None,
        }
    }

    #[test]
    fn routes_survive_packing() {
        let all = Routes::default();
        all.register(&registration("alice", "phone", 1, 5));
        all.register(&registration("alice", "", 2, 6));
        let routes = all.of("alice");
        assert_eq!(User::new("alice", &routes).routes(), routes);
        assert_eq!(routes.len(), 2);
        assert_eq!(routes[0].login_number, 1_000);
        assert_eq!(routes[1].login_number, 1_001);
    }

    #[test]
    fn a_sweep_takes_one_life_of_one_gateway() {
        let all = Routes::default();
        for user in 0..1_000 {
            for gateway in 1..=3 {
                all.register(&registration(&format!("u{user}"), &format!("d{gateway}"), gateway, user));
            }
        }
        let dead = [Gateway { gateway: 2, incarnation: 2 }, Gateway { gateway: 3, incarnation: 99 }];
        let mut index = 0;
        while !all.sweep_part(index, &dead) {
            index += 1;
        }
        assert_eq!(all.counters(), [("store_routes", 2_000), ("store_routes_swept_total", 1_000)]);
        assert!((0..1_000).all(|user| all.of(&format!("u{user}")).iter().all(|r| r.session.gateway() != 2)));
    }

    #[test]
    fn the_last_route_leaves_nothing_behind() {
        let all = Routes::default();
        let (number, _) = all.register(&registration("bob", "pad", 1, 1));
        let session = SessionId::new(1, 0, 1, 0);
        all.unregister("bob", "pad", session, number + 1, 1);
        all.unregister("bob", "pad", session, number, 2);
        all.unregister("bob", "pad", SessionId::new(1, 0, 1, 1), number, 1);
        assert_eq!(all.of("bob").len(), 1, "not its login, not its incarnation, not its session");
        all.unregister("bob", "pad", session, number, 1);
        assert_eq!(all.counters()[0].1, 0);
        assert!(all.parts.iter().all(|part| part.lock().unwrap().is_empty()));
    }
}
