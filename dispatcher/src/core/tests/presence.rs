//! Presence: who is shown what, when, and what ends it.

use bytes::Bytes;
use millrace_protocol::ids::{SessionId, user_partition};
use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{self, Code, PresenceEvent, PresenceState, Visibility, response};
use millrace_protocol::messages::link as wire;
use millrace_protocol::prost::Message;

use super::world::{PARTITIONS, World, link, session};
use crate::core::event::Event;
use crate::store::List;

/// Gateways 1 and 2 with live leases; watchers are on 1, who is watched is on 2.
fn world() -> World {
    let mut world = World::serving(1, &[1, 2]);
    for gateway in [1, 2] {
        world.store.gateways.insert(gateway, 1);
    }
    world.view();
    world.run();
    world
}

fn watch(world: &mut World, slot: u32, user: &str, users: &[&str]) -> u64 {
    let users = users.iter().map(|user| (*user).to_owned()).collect();
    let token =
        world.request(0, session(1, slot), user, Op::PresenceSubscribe(client::PresenceSubscribe { users }));
    world.run();
    token
}

fn page(world: &mut World, token: u64) -> Vec<PresenceEvent> {
    match world.answer(token).expect("an answer").1 {
        response::Outcome::PresencePage(page) => page.users,
        other => panic!("{other:?}"),
    }
}

/// What sessions on gateway 1 were told since, with the sessions.
fn told(world: &mut World) -> Vec<(Vec<u32>, PresenceEvent)> {
    let relays: Vec<wire::Relay> = world.take(0, 1, Kind::Relay);
    let event = |relay: wire::Relay| match client::Notify::decode(relay.notify).unwrap().event.unwrap() {
        client::notify::Event::Presence(event) => {
            (relay.targets.iter().map(|target| SessionId(target.session).slot()).collect(), event)
        }
        other => panic!("{other:?}"),
    };
    relays.into_iter().map(event).collect()
}

fn states(event: &PresenceEvent) -> Vec<(&str, PresenceState)> {
    event.devices.iter().map(|device| (device.device.as_str(), device.state())).collect()
}

fn login(world: &mut World, slot: u32, user: &str, device: &str) {
    world.register(0, session(2, slot), user, device, device);
    world.run();
}

fn logout(world: &mut World, user: &str, device: &str) {
    let routes = &world.store.routes[user];
    let route = routes.iter().find(|route| route.device == device).expect("a route");
    let (login_number, session, gateway_incarnation) = (route.login_number, route.session, route.incarnation);
    let (user_of, device) = (user.to_owned(), device.to_owned());
    let body = wire::Unregister { user: user_of, device, login_number, gateway_incarnation };
    let partition = user_partition(user, PARTITIONS);
    world.say(0, 2, Kind::Unregister, partition, session, &body);
    world.run();
}

fn set(
    world: &mut World,
    user: &str,
    state: PresenceState,
    visibility: Option<Visibility>,
) -> response::Outcome {
    // The device is named after user and slot.
    let visibility = visibility.map(|visibility| visibility as i32);
    let op = Op::PresenceSet(client::PresenceSet { state: state as i32, visibility });
    let token = world.request(0, session(2, 1), user, op);
    world.run();
    world.answer(token).expect("an answer").1
}

#[test]
fn who_comes_and_goes_is_told_to_who_watches_after_the_window() {
    let mut world = world();
    login(&mut world, 1, "bob", "bob-1");
    let token = watch(&mut world, 1, "ann", &["bob"]);
    let first = page(&mut world, token);
    assert_eq!(states(&first[0]), [("bob-1", PresenceState::Online)]);
    assert!(told(&mut world).is_empty(), "it is on the page");
    login(&mut world, 2, "bob", "bob-2");
    assert!(told(&mut world).is_empty(), "within the window");
    world.pass(500);
    let events = told(&mut world);
    assert_eq!((events.len(), &events[0].0[..], events[0].1.devices.len()), (1, &[1][..], 2));
    assert_eq!(set(&mut world, "bob", PresenceState::Away, None), response::Outcome::Done(client::Done {}));
    world.pass(500);
    let events = told(&mut world);
    let away = [("bob-1", PresenceState::Away), ("bob-2", PresenceState::Online)];
    assert_eq!(states(&events[0].1), away);
    // A blink is no event.
    logout(&mut world, "bob", "bob-2");
    login(&mut world, 3, "bob", "bob-2");
    world.pass(500);
    assert!(told(&mut world).is_empty());
    logout(&mut world, "bob", "bob-2");
    logout(&mut world, "bob", "bob-1");
    world.pass(500);
    let events = told(&mut world);
    assert_eq!(
        (events.len(), events[0].1.devices.len(), events[0].1.last_seen_ms),
        (1, 0, world.now.wall_ms)
    );
    assert!(world.store.lists[&("bob".into(), List::Settings)].contains_key("seen"));
    // What a device said is over with its session.
    login(&mut world, 4, "bob", "bob-1");
    world.pass(500);
    let events = told(&mut world);
    assert_eq!(states(&events[0].1), [("bob-1", PresenceState::Online)]);
    assert_eq!(events[0].1.last_seen_ms, 0);
}

#[test]
fn when_a_user_was_last_seen_is_stored_though_nobody_watches() {
    let mut world = world();
    for n in 0..3 {
        login(&mut world, n, "bob", &format!("bob-{n}"));
    }
    for n in 0..3 {
        world.pass(1_000);
        assert!(!world.store.lists.contains_key(&("bob".into(), List::Settings)), "{n}");
        logout(&mut world, "bob", &format!("bob-{n}"));
    }
    world.pass(500);
    let went_ms = world.now.wall_ms;
    assert_eq!(world.stats(0).seen, 1);
    world.pass(60_000);
    let token = watch(&mut world, 1, "ann", &["bob"]);
    let page = page(&mut world, token);
    assert_eq!((page[0].devices.len(), page[0].last_seen_ms), (0, went_ms));
}

#[test]
fn visibility_is_kept_and_holds_for_who_watches_already() {
    let mut world = world();
    login(&mut world, 1, "bob", "bob-1");
    let friends = world.store.lists.entry(("bob".into(), List::Friends)).or_default();
    friends.insert("ann".into(), Bytes::new());
    let tokens =
        [(1, "ann"), (2, "eve"), (3, "bob")].map(|(slot, user)| watch(&mut world, slot, user, &["bob"]));
    for token in tokens {
        assert_eq!(page(&mut world, token)[0].devices.len(), 1, "everyone, unless said otherwise");
    }
    let online = PresenceState::Online;
    let seen = |world: &mut World| {
        let mut seen: Vec<(u32, bool)> = Vec::new();
        for (sessions, event) in told(world) {
            seen.extend(sessions.into_iter().map(|session| (session, !event.devices.is_empty())));
            assert!(!event.devices.is_empty() || event.last_seen_ms == 0);
        }
        seen.sort_unstable();
        seen
    };
    set(&mut world, "bob", online, Some(Visibility::Nobody));
    assert_eq!(seen(&mut world), [(1, false), (2, false)], "but the user");
    set(&mut world, "bob", online, Some(Visibility::Friends));
    assert_eq!(seen(&mut world), [(1, true)]);
    set(&mut world, "bob", online, None);
    world.pass(500);
    assert_eq!(seen(&mut world), []);
    let token = watch(&mut world, 4, "eve", &["bob"]);
    assert_eq!(page(&mut world, token), [PresenceEvent { user: "bob".into(), ..Default::default() }]);
    // The friendship ends: seen at the next renewal.
    world.store.lists.get_mut(&("bob".to_owned(), List::Friends)).unwrap().clear();
    watch(&mut world, 1, "ann", &["bob"]);
    assert_eq!(seen(&mut world), [(1, false)]);
    set(&mut world, "bob", online, Some(Visibility::Everyone));
    assert_eq!(seen(&mut world), [(1, true), (2, true), (4, true)]);
    // From everyone to friends at once hides it from who is none.
    set(&mut world, "bob", online, Some(Visibility::Friends));
    assert_eq!(seen(&mut world), [(1, false), (2, false), (4, false)]);
    let value = world.store.lists[&("bob".to_owned(), List::Settings)]["presence"].clone();
    assert_eq!(value.as_ref(), [Visibility::Friends as u8]);
}

#[test]
fn a_device_may_appear_offline() {
    let mut world = world();
    login(&mut world, 1, "bob", "bob-1");
    let token = watch(&mut world, 1, "ann", &["bob"]);
    page(&mut world, token);
    set(&mut world, "bob", PresenceState::Offline, None);
    world.pass(500);
    assert!(told(&mut world)[0].1.devices.is_empty());
}

#[test]
fn a_gateway_that_dies_takes_its_sessions_along() {
    let mut world = world();
    login(&mut world, 1, "bob", "bob-1");
    let token = watch(&mut world, 1, "ann", &["bob"]);
    assert_eq!(page(&mut world, token)[0].devices.len(), 1);
    world.store.gateways.remove(&2);
    world.view();
    world.run();
    world.pass(500);
    let events = told(&mut world);
    assert_eq!((events[0].1.devices.len(), events[0].1.last_seen_ms), (0, world.now.wall_ms));
    // It was only cut off: its lease comes back, under the same incarnation.
    world.store.gateways.insert(2, 1);
    world.view();
    world.run();
    world.pass(500);
    assert_eq!(told(&mut world)[0].1.devices.len(), 1);
    // The watcher's own gateway begins anew: it hears nothing any more.
    world.disconnect(0, 1);
    world.ends.remove(&(0, link(1)));
    world.connect(0, 1, 9);
    world.run();
    assert_eq!(world.stats(0).watched, 0);
}

#[test]
fn watches_end_unless_renewed_and_with_their_owner() {
    let mut world = world();
    login(&mut world, 1, "bob", "bob-1");
    watch(&mut world, 1, "ann", &["bob"]);
    watch(&mut world, 2, "cid", &["bob"]);
    world.pass(100_000);
    world.view();
    watch(&mut world, 1, "ann", &["bob"]);
    world.pass(60_000);
    assert_eq!((world.stats(0).watched, world.stats(0).watches_expired), (1, 1));
    // Watching nobody ends it at once.
    let partition = user_partition("bob", PARTITIONS);
    watch(&mut world, 2, "cid", &["bob"]);
    let none = client::PresenceSubscribe::default();
    let request = client::Request { id: 0, op: Some(Op::PresenceSubscribe(none)) };
    let body = wire::ClientRequest {
        token: 0,
        user: "cid".into(),
        device: "cid-2".into(),
        request: request.encode_to_vec().into(),
    };
    world.clear();
    world.say(0, 1, Kind::ClientRequest, partition, session(1, 2), &body);
    world.run();
    assert_eq!(world.stats(0).watched, 1);
    assert!(world.kinds(0, 1).is_empty(), "its session ends: nobody waits for an answer");
    world.release(0, partition);
    world.run();
    assert_eq!(world.stats(0).watched, 0);
}

#[test]
fn who_waits_for_a_page_is_answered_when_the_owner_stops_or_the_store_is_away() {
    let mut world = world();
    login(&mut world, 1, "bob", "bob-1");
    world.nodes[0].store_held = true;
    let token = watch(&mut world, 1, "ann", &["bob"]);
    assert!(world.answer(token).is_none());
    let again = watch(&mut world, 1, "ann", &["bob"]);
    assert_eq!(world.refused(token).code, Code::Busy as i32, "another one took its place");
    world.release(0, user_partition("bob", PARTITIONS));
    world.run();
    assert_eq!(world.refused(again).code, Code::Busy as i32);
    world.nodes[0].store_held = false;
    world.run();
    world.claim(0, user_partition("bob", PARTITIONS));
    world.run();
    // Routes can't be read: hidden, until they can.
    world.store.fail_routes = 2;
    let token = watch(&mut world, 1, "ann", &["bob"]);
    assert!(page(&mut world, token)[0].devices.is_empty());
    world.clear();
    world.pass(500);
    world.pass(500);
    let events = told(&mut world);
    assert_eq!((events.len(), events[0].1.devices.len()), (1, 1));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut world = world();
    let many: Vec<String> = std::iter::repeat_n("bob".to_owned(), 513).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let token = watch(&mut world, 1, "ann", &many);
    assert_eq!(world.refused(token).code, Code::LimitReached as i32);
    let op = Op::PresenceSet(client::PresenceSet { state: 9, visibility: None });
    let token = world.request(0, session(2, 1), "bob", op);
    world.run();
    assert_eq!(world.refused(token).code, Code::BadRequest as i32);
    // Users of another partition.
    let other = (0..100).map(|n| format!("u{n}"));
    let other =
        other.into_iter().find(|it| user_partition(it, PARTITIONS) != user_partition("bob", PARTITIONS));
    let token = watch(&mut world, 1, "ann", &["bob", &other.unwrap()]);
    assert_eq!(world.refused(token).code, Code::BadRequest as i32);
    // Nothing happens for a View alone.
    let view = std::sync::Arc::new(world.store.view(PARTITIONS, false));
    world.event(0, 0, Event::View(view));
    world.run();
}

#[test]
fn a_page_that_is_too_large_goes_on_as_events() {
    let mut world = world();
    let of_bobs = user_partition("bob", PARTITIONS);
    let users: Vec<String> = (0..10_000)
        .map(|n| format!("{n:060}"))
        .filter(|it| user_partition(it, PARTITIONS) == of_bobs)
        .collect();
    let users: Vec<&str> = users.iter().take(512).map(String::as_str).collect();
    for (n, user) in users.iter().enumerate() {
        for device in ["phone", "laptop"] {
            login(&mut world, n as u32, user, device);
        }
    }
    world.clear();
    let token = watch(&mut world, 1, "ann", &users);
    let page = page(&mut world, token);
    let (reply, _) = world.answer(token).unwrap();
    assert!(reply.response.len() < 60 << 10, "{} B", reply.response.len());
    assert_eq!(page.len() + told(&mut world).len(), 512);
}
