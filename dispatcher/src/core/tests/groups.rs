//! Groups: their life, who may do what, and what other sessions hear.

use millrace_protocol::ids::SessionId;
use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::{self, Code, request, response};
use millrace_protocol::messages::link as wire;

use crate::core::event::Event;
use crate::store::{List, Work};

use super::world::{PARTITIONS, World, conversation_partition, session};

fn create(group: &str, members: &[&str]) -> request::Op {
    let members = members.iter().map(|member| (*member).to_owned()).collect();
    request::Op::GroupCreate(client::GroupCreate { group: group.into(), members, ..Default::default() })
}

fn join(group: &str) -> request::Op {
    request::Op::GroupJoin(client::GroupJoin { group: group.into() })
}

fn leave(group: &str) -> request::Op {
    request::Op::GroupLeave(client::GroupLeave { group: group.into() })
}

fn members(group: &str, after: &str, limit: u32) -> request::Op {
    request::Op::GroupMembers(client::GroupMembers { group: group.into(), after: after.into(), limit })
}

#[test]
fn a_group_lives_from_its_creation_to_the_last_leave() {
    let mut world = World::serving(1, &[1, 2]);
    let (ann, bob) = (session(1, 1), session(2, 1));
    world.register(0, bob, "bob", "bob-phone", "ios");
    world.run();
    world.clear();

    let token = world.request(0, ann, "ann", create("x", &["bob", "cid", "bob"]));
    world.run();
    let (reply, outcome) = world.answer(token).unwrap();
    let response::Outcome::Joined(joined) = outcome else { panic!("{outcome:?}") };
    assert_eq!((joined.members, joined.head), (3, 0));
    assert_eq!((reply.joined.as_str(), reply.joined_head, reply.members_version), ("g:x", 0, 1));
    for user in ["ann", "bob", "cid"] {
        assert!(world.store.lists[&(user.to_owned(), List::Groups)].contains_key("g:x"), "{user}");
    }
    let attached: Vec<wire::Attach> = world.take(0, 2, Kind::Attach);
    assert_eq!(attached[0].targets[0].session, bob.0, "the other members' sessions are attached");

    world.subscribe(0, 2, "g:x", 1, &["bob", "eve"]);
    world.run();
    let subscribed: Vec<wire::Subscribed> = world.take(0, 2, Kind::Subscribed);
    assert_eq!(
        (subscribed[0].refused.as_slice(), subscribed[0].members_version),
        (&["eve".to_owned()][..], 1)
    );

    let token = world.send(bob, "bob", "g:x", 1);
    world.run();
    assert_eq!(world.ack(token).seq, 2, "behind the entry about the creation");
    for gateway in [1, 2] {
        let got: Vec<wire::FanOut> = world.take(0, gateway, Kind::FanOut);
        let last = got.last().unwrap();
        assert_eq!((last.seq, last.except_session), (2, bob.0), "gateway {gateway}");
    }
    let token = world.send(session(2, 7), "eve", "g:x", 1);
    world.run();
    assert_eq!(world.refused(token).code, Code::NotMember as i32);

    let token = world.request(0, bob, "bob", leave("x"));
    world.run();
    let (reply, _) = world.answer(token).unwrap();
    assert_eq!((reply.left.as_str(), reply.user.as_str()), ("g:x", "bob"));
    for gateway in [1, 2] {
        let removed: Vec<wire::Remove> = world.take(0, gateway, Kind::Remove);
        assert_eq!((removed[0].users.as_slice(), removed[0].members_version), (&["bob".to_owned()][..], 2));
    }
    assert!(!world.store.lists[&("bob".to_owned(), List::Groups)].contains_key("g:x"));
    let token = world.send(bob, "bob", "g:x", 2);
    world.run();
    assert_eq!(world.refused(token).code, Code::NotMember as i32);
    for (session, user) in [(ann, "ann"), (session(2, 3), "cid")] {
        world.request(0, session, user, leave("x"));
    }
    world.run();
    assert!(world.store.groups["g:x"].0.is_empty());
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let mut world = World::serving(1, &[1]);
    let ann = session(1, 1);
    world.request(0, ann, "ann", create("x", &[]));
    world.run();
    let cases = [
        ("ann", create("x", &[]), Code::GroupExists),
        ("ann", create("y", &["not a name"]), Code::BadRequest),
        ("ann", create("not a name", &[]), Code::BadRequest),
        ("bob", join("none"), Code::NoSuchGroup),
        ("bob", leave("none"), Code::NoSuchGroup),
        ("bob", leave("x"), Code::NotMember),
        ("bob", members("x", "", 0), Code::NotMember),
        ("bob", members("none", "", 0), Code::NoSuchGroup),
    ];
    for (user, op, code) in cases {
        let name = format!("{user} {op:?}");
        let token = world.request(0, session(1, 2), user, op);
        world.run();
        assert_eq!(world.refused(token).code, code as i32, "{name}");
    }
    world.subscribe(0, 1, "g:none", 1, &["ann"]);
    world.run();
    let subscribed: Vec<wire::Subscribed> = world.take(0, 1, Kind::Subscribed);
    assert!(subscribed[0].gone);
}

#[test]
fn a_full_group_takes_no_more() {
    let limits = crate::core::limits::Limits { group_members_max: 2, ..Default::default() };
    let mut world = World::with_limits(1, 1, limits);
    world.claim_all(0);
    world.connect(0, 1, 1);
    let token = world.request(0, session(1, 1), "ann", create("y", &["bob", "cid"]));
    world.request(0, session(1, 1), "ann", create("x", &[]));
    world.run();
    assert_eq!(world.refused(token).code, Code::LimitReached as i32);
    let joins = ["bob", "cid"].map(|user| world.request(0, session(1, 2), user, join("x")));
    world.run();
    assert_eq!(world.answer(joins[0]).unwrap().0.joined, "g:x");
    assert_eq!(world.refused(joins[1]).code, Code::LimitReached as i32);
}

#[test]
fn many_changes_go_in_few_rounds_and_are_all_answered() {
    let mut world = World::serving(1, &[1]);
    world.request(0, session(1, 1), "ann", create("x", &[]));
    world.run();
    let batches = world.stats(0).batches;
    world.nodes[0].store_held = true;
    let joins: Vec<_> =
        (0..100).map(|n| (n, world.request(0, session(1, n), &format!("user-{n:03}"), join("x")))).collect();
    // The same user again, and out, while the first is under way.
    let again = world.request(0, session(1, 500), "user-000", join("x"));
    let out = world.request(0, session(1, 500), "user-000", leave("x"));
    world.run();
    world.nodes[0].store_held = false;
    world.run();
    for (n, token) in joins {
        assert_eq!(world.answer(token).unwrap().0.joined, "g:x", "user {n}");
    }
    assert_eq!(world.answer(again).unwrap().0.joined, "g:x");
    assert_eq!(world.answer(out).unwrap().0.left, "g:x");
    assert!(world.stats(0).batches - batches <= 4, "{} batches", world.stats(0).batches - batches);
    assert_eq!(world.store.groups["g:x"].0.len(), 100);

    let mut names: Vec<String> = Vec::new();
    loop {
        let after = names.last().cloned().unwrap_or_default();
        let token = world.request(0, session(1, 1), "ann", members("x", &after, 30));
        world.run();
        let response::Outcome::Members(page) = world.answer(token).unwrap().1 else { panic!("no page") };
        assert_eq!(page.total, 100);
        names.extend(page.members);
        if !page.more {
            break;
        }
    }
    assert_eq!(names.len(), 100);
    assert!(names.is_sorted());
}

#[test]
fn a_joiners_other_sessions_are_attached_and_its_link_listens_before_the_answer() {
    let mut world = World::serving(1, &[1, 2, 3]);
    world.request(0, session(1, 1), "ann", create("x", &[]));
    world.register(0, session(2, 1), "bob", "bob-1", "ios");
    world.register(0, session(3, 1), "bob", "bob-2", "web");
    world.run();
    world.clear();
    let token = world.request(0, session(2, 1), "bob", join("x"));
    world.run();
    assert_eq!(world.answer(token).unwrap().0.joined, "g:x");
    assert!(world.take::<wire::Attach>(0, 2, Kind::Attach).is_empty(), "the asker has its answer");
    let attached: Vec<wire::Attach> = world.take(0, 3, Kind::Attach);
    assert_eq!(attached[0].targets.iter().map(|t| t.device.as_str()).collect::<Vec<_>>(), ["bob-2"]);
    world.send(session(1, 1), "ann", "g:x", 1);
    world.run();
    let kinds = [Kind::Reply, Kind::FanOut, Kind::FanOut];
    assert_eq!(world.kinds(0, 2), kinds, "the entry about the join, and the message");
}

#[test]
fn a_membership_version_that_is_not_current_is_rechecked() {
    let mut world = World::serving(1, &[1, 2]);
    world.request(0, session(1, 1), "ann", create("x", &["bob"]));
    world.run();
    for (members_version, recheck) in [(0, false), (1, false), (7, true)] {
        let body = wire::Subscribe {
            conversation: "g:x".into(),
            version: 1,
            members_version,
            users: vec!["bob".into()],
            ..wire::Subscribe::default()
        };
        world.say(0, 2, Kind::Subscribe, conversation_partition("g:x"), SessionId::NONE, &body);
        world.run();
        let answer: Vec<wire::Subscribed> = world.take(0, 2, Kind::Subscribed);
        assert_eq!(answer[0].recheck, recheck, "{members_version}");
    }
}

#[test]
fn a_leave_in_a_batch_is_followed_by_nothing_of_the_leaver() {
    let mut world = World::serving(1, &[1]);
    world.request(0, session(1, 1), "ann", create("x", &["bob"]));
    world.run();
    world.nodes[0].store_held = true;
    let before = world.send(session(1, 2), "bob", "g:x", 1);
    let out = world.request(0, session(1, 2), "bob", leave("x"));
    let after = world.send(session(1, 2), "bob", "g:x", 2);
    world.run();
    world.nodes[0].store_held = false;
    world.run();
    assert_eq!(world.ack(before).seq, 2);
    assert_eq!(world.answer(out).unwrap().0.left, "g:x");
    assert_eq!(world.refused(after).code, Code::NotMember as i32);
    let kinds = world.kinds(0, 1);
    let fan_out = kinds.iter().position(|kind| *kind == Kind::FanOut).unwrap();
    let remove = kinds.iter().position(|kind| *kind == Kind::Remove).unwrap();
    assert!(fan_out < remove);
    assert!(world.nodes[0].claimed.len() == usize::from(PARTITIONS));
}

#[test]
fn an_owner_whose_lease_is_over_takes_nobody_off_a_list() {
    let mut world = World::serving(1, &[1]);
    world.request(0, session(1, 1), "ann", create("x", &["bob"]));
    world.run();
    let listed = |world: &World| world.store.lists[&("bob".to_owned(), List::Groups)].contains_key("g:x");
    // It pauses while the store writes that bob left. Meanwhile another owner may have let him in again.
    world.nodes[0].store_held = true;
    world.request(0, session(1, 2), "bob", leave("x"));
    world.run();
    let until_us = world.now.mono_us;
    world.event(0, 0, Event::LeaseUntil { until_us });
    world.nodes[0].store_held = false;
    world.run();
    assert!(listed(&world));
}

#[test]
fn a_removal_that_is_late_takes_nobody_off_a_list_who_is_in_again() {
    let mut world = World::serving(1, &[1]);
    world.request(0, session(1, 1), "ann", create("x", &["bob"]));
    world.run();
    let listed = |world: &World| world.store.lists[&("bob".to_owned(), List::Groups)].contains_key("g:x");
    world.request(0, session(1, 2), "bob", leave("x"));
    while !world.held(0).contains(&"lists") {
        assert!(world.tick(), "it comes to the list");
    }
    // The removal is on its way when the claim ends, and the next owner may let bob in again.
    let partition = conversation_partition("g:x");
    let fence = world.store.fences[&partition].1;
    world.store.carry_out(Work::Release { partition, fence }).unwrap();
    world.run();
    assert!(listed(&world));
    // It learns so by that, and claims anew.
    world.pass(200);
    assert!(world.nodes[0].claimed[&partition] > fence.epoch);
}

#[test]
fn a_member_who_joins_again_is_listed_again() {
    let mut world = World::serving(1, &[1]);
    world.request(0, session(1, 1), "ann", create("x", &["bob"]));
    world.run();
    let key = ("bob".to_owned(), List::Groups);
    world.store.lists.get_mut(&key).unwrap().remove("g:x");
    let again = world.request(0, session(1, 2), "bob", join("x"));
    let other = world.request(0, session(1, 3), "cid", join("x"));
    world.run();
    assert_eq!(world.answer(again).unwrap().0.joined, "g:x");
    assert_eq!(world.answer(other).unwrap().0.joined, "g:x");
    assert!(world.store.lists[&key].contains_key("g:x"));
    assert_eq!(world.store.groups["g:x"].0.len(), 3);
}
