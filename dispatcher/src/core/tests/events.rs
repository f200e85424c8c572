//! Events about members whom no entry of their group's log names.

use millrace_protocol::messages::client::{self, request};

use super::world::{World, conversation_partition, session};
use crate::core::limits::{EVENT_USERS_MAX, Limits};
use crate::store::model::Fault;

fn world(events: bool) -> World {
    let mut world = World::with_limits(1, 1, Limits { events, ..Limits::default() });
    world.claim_all(0);
    world.connect(0, 1, 1);
    world.run();
    world
}

fn create(world: &mut World, members: &[String]) {
    let create = client::GroupCreate { group: "x".into(), members: members.to_vec(), ..Default::default() };
    world.request(0, session(1, 1), "ann", request::Op::GroupCreate(create));
    world.run();
}

fn join(world: &mut World, user: &str) {
    let op = request::Op::GroupJoin(client::GroupJoin { group: "x".into() });
    world.request(0, session(1, 2), user, op);
    world.run();
}

fn leave(world: &mut World, user: &str) {
    let op = request::Op::GroupLeave(client::GroupLeave { group: "x".into() });
    world.request(0, session(1, 2), user, op);
    world.run();
}

/// Who joined and who left, by one event.
type Told = (Vec<String>, Vec<String>);

/// The events about members, oldest first; how many others there were.
fn told(world: &World) -> (Vec<Told>, usize) {
    let (mut members, mut others) = (Vec::new(), 0);
    let partition = conversation_partition("g:x");
    for event in world.store.events.range((partition, 0)..=(partition, u64::MAX)).map(|(_, event)| event) {
        if event.kind != "members" {
            others += 1;
            continue;
        }
        let body: serde_json::Value = serde_json::from_slice(&event.body).expect("JSON");
        assert_eq!((body["event"].as_str(), body["conversation"].as_str()), (Some("members"), Some("g:x")));
        assert!(body["at_ms"].as_u64().is_some_and(|at_ms| at_ms > 0));
        let list = |field: &str| {
            let users = body[field].as_array().expect("a list");
            users.iter().map(|user| user.as_str().expect("a name").to_owned()).collect::<Vec<_>>()
        };
        members.push((list("joined"), list("left")));
    }
    (members, others)
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("user-{n:04}")).collect()
}

#[test]
fn a_large_group_tells_who_comes_and_goes() {
    let mut world = world(true);
    create(&mut world, &names(600));
    let mut all = names(600);
    all.insert(0, "ann".into());
    let (members, others) = told(&world);
    assert_eq!(others, 1, "the entry about the creation, which names a few");
    let sizes: Vec<usize> = members.iter().map(|(joined, _)| joined.len()).collect();
    assert_eq!(sizes, [EVENT_USERS_MAX, 601 - EVENT_USERS_MAX], "of bounded size");
    assert_eq!(members.into_iter().flat_map(|(joined, _)| joined).collect::<Vec<_>>(), all);

    let batches = world.stats(0).batches;
    join(&mut world, "zoe");
    leave(&mut world, "zoe");
    let zoe = || vec!["zoe".to_owned()];
    let (members, others) = told(&world);
    assert_eq!(members[2..], [(zoe(), vec![]), (vec![], zoe())]);
    assert_eq!((others, world.stats(0).batches - batches), (1, 2), "in the step that changes the members");

    // What an entry says needs no other event.
    let op = request::Op::GroupInvite(client::GroupInvite { group: "x".into(), users: vec!["bob".into()] });
    world.request(0, session(1, 1), "ann", op);
    world.run();
    let (members, others) = told(&world);
    assert_eq!((members.len(), others), (4, 2));
}

#[test]
fn what_is_not_written_is_no_event() {
    let mut world = world(true);
    create(&mut world, &names(600));
    world.store.fail_append = Some(Fault::Unavailable);
    join(&mut world, "zoe");
    assert!(!world.store.groups["g:x"].0.contains("zoe"));
    assert_eq!(told(&world).0.len(), 2);
}

#[test]
fn a_small_group_and_who_wants_no_events_get_none() {
    let mut small = world(true);
    create(&mut small, &names(3));
    join(&mut small, "zoe");
    leave(&mut small, "zoe");
    assert_eq!(told(&small), (vec![], 3));
    let mut off = world(false);
    create(&mut off, &names(600));
    join(&mut off, "zoe");
    assert_eq!(told(&off), (vec![], 1));
}
