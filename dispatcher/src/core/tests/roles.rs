//! Who may change what of a group, what the log says of it, and that no crash in between leaves a group half changed.

use bytes::Bytes;
use millrace_protocol::ids::SessionId;
use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::group_change::Kind as Became;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{self, Action, Code, JoinPolicy, Role, response};
use millrace_protocol::messages::link as wire;
use millrace_protocol::prost::Message;

use super::world::{World, conversation_partition, deliver, session};
use crate::store::List;
use crate::store::model::Fault;

fn at(slot: u32) -> SessionId {
    session(1, slot)
}

fn names(users: &[&str]) -> Vec<String> {
    users.iter().map(|user| (*user).to_owned()).collect()
}

fn group() -> String {
    "x".into()
}

fn create(members: &[&str], join: JoinPolicy) -> Op {
    let (about, join) = (Bytes::from_static(b"tea"), join as i32);
    Op::GroupCreate(client::GroupCreate { group: group(), members: names(members), about, join })
}

fn join() -> Op {
    Op::GroupJoin(client::GroupJoin { group: group() })
}

fn leave() -> Op {
    Op::GroupLeave(client::GroupLeave { group: group() })
}

fn invite(users: &[&str]) -> Op {
    Op::GroupInvite(client::GroupInvite { group: group(), users: names(users) })
}

fn answer(user: &str, accept: bool) -> Op {
    Op::GroupAnswer(client::GroupAnswer { group: group(), user: user.into(), accept })
}

fn remove(users: &[&str]) -> Op {
    Op::GroupRemove(client::GroupRemove { group: group(), users: names(users) })
}

fn role(user: &str, role: Role) -> Op {
    Op::GroupRole(client::GroupRole { group: group(), user: user.into(), role: role as i32 })
}

fn mute(user: &str, until_ms: u64) -> Op {
    Op::GroupMute(client::GroupMute { group: group(), user: user.into(), until_ms })
}

fn announce(text: &str) -> Op {
    let announcement = Some(Bytes::from(text.to_owned()));
    Op::GroupUpdate(client::GroupUpdate { group: group(), announcement, ..Default::default() })
}

fn policy(join: JoinPolicy) -> Op {
    Op::GroupUpdate(client::GroupUpdate { group: group(), join: Some(join as i32), ..Default::default() })
}

fn dissolve() -> Op {
    Op::GroupDissolve(client::GroupDissolve { group: group() })
}

/// Asks, and says what came of it: the code of a refusal, or 0.
fn ask(world: &mut World, user: &str, op: Op) -> i32 {
    let token = world.request(0, at(90), user, op);
    world.run();
    match world.answer(token).expect("an answer").1 {
        response::Outcome::Refused(refused) => refused.code,
        _ => 0,
    }
}

/// The owner forgets everything and claims again.
fn stop(world: &mut World) {
    let view = std::sync::Arc::new(world.store.view(8, true));
    world.event(0, 0, crate::core::event::Event::View(view));
    world.run();
    world.pass(2_000);
}

fn state(world: &mut World, user: &str) -> Result<client::GroupState, i32> {
    let op = Op::GroupInfo(client::GroupInfo { group: group() });
    let token = world.request(0, at(91), user, op);
    world.run();
    match world.answer(token).expect("an answer").1 {
        response::Outcome::GroupState(state) => Ok(state),
        response::Outcome::Refused(refused) => Err(refused.code),
        other => panic!("{other:?}"),
    }
}

/// What the log says of the group's changes: kind, by whom, whom it concerns.
fn changes(world: &World) -> Vec<(Became, String, Vec<String>)> {
    let entries = world.store.logs["g:x"].entries.iter();
    let system = entries.filter(|entry| entry.action == Action::System as u8);
    let change = |entry: &crate::store::Entry| {
        let deliver = deliver(&entry.notify);
        assert_eq!((deliver.sender_device.as_str(), entry.stream), ("", 0));
        let change = client::GroupChange::decode(deliver.payload).unwrap();
        assert_eq!(deliver.sender, change.by);
        (change.kind(), change.by, change.users)
    };
    system.map(change).collect()
}

/// Ann owns it, adam and bea are admins, mia and max are members.
fn staffed(join: JoinPolicy) -> World {
    let mut world = World::serving(1, &[1, 2]);
    assert_eq!(ask(&mut world, "ann", create(&["adam", "bea", "mia", "max"], join)), 0);
    for admin in ["adam", "bea"] {
        assert_eq!(ask(&mut world, "ann", role(admin, Role::Admin)), 0);
    }
    world.clear();
    world
}

#[test]
fn who_may_do_what() {
    let (no_member, not_allowed) = (Code::NotMember as i32, Code::NotAllowed as i32);
    let (open, request, closed) = (JoinPolicy::Open, JoinPolicy::Request, JoinPolicy::Invite);
    let long = "x".repeat(4_097);
    let cases: Vec<(JoinPolicy, &str, Op, i32)> = vec![
        (open, "zoe", join(), 0),
        (request, "zoe", join(), Code::JoinPending as i32),
        (closed, "zoe", join(), not_allowed),
        (closed, "mia", join(), 0),
        (open, "mia", invite(&["zoe", "adam"]), 0),
        (request, "mia", invite(&["zoe"]), 0),
        (closed, "mia", invite(&["zoe"]), not_allowed),
        (closed, "adam", invite(&["zoe"]), 0),
        (open, "zoe", invite(&["yan"]), no_member),
        (open, "mia", invite(&["no name"]), Code::BadRequest as i32),
        (open, "mia", remove(&["max"]), not_allowed),
        (open, "adam", remove(&["max", "mia", "nobody"]), 0),
        (open, "adam", remove(&["max", "bea"]), not_allowed),
        (open, "adam", remove(&["ann"]), not_allowed),
        (open, "adam", remove(&["adam"]), not_allowed),
        (open, "ann", remove(&["bea", "max"]), 0),
        (open, "ann", remove(&["ann"]), not_allowed),
        (open, "adam", role("mia", Role::Admin), not_allowed),
        (open, "ann", role("mia", Role::Admin), 0),
        (open, "ann", role("zoe", Role::Admin), no_member),
        (open, "ann", role("adam", Role::Member), 0),
        (open, "ann", role("mia", Role::Owner), 0),
        (open, "ann", role("ann", Role::Member), not_allowed),
        (open, "mia", mute("max", u64::MAX), not_allowed),
        (open, "adam", mute("max", u64::MAX), 0),
        (open, "adam", mute("bea", u64::MAX), not_allowed),
        (open, "adam", mute("zoe", u64::MAX), no_member),
        (open, "adam", mute("", 1), 0),
        (open, "mia", announce("hear"), not_allowed),
        (open, "adam", announce("hear"), 0),
        (open, "adam", announce(&long), Code::PayloadTooLarge as i32),
        (open, "adam", policy(closed), 0),
        (open, "adam", answer("zoe", true), Code::BadRequest as i32),
        (request, "mia", answer("zoe", true), not_allowed),
        (open, "adam", dissolve(), not_allowed),
        (open, "ann", dissolve(), 0),
        (open, "zoe", dissolve(), no_member),
    ];
    for (join, user, op, code) in cases {
        let mut world = staffed(join);
        let case = format!("{join:?} {user} {op:?}");
        assert_eq!(ask(&mut world, user, op), code, "{case}");
    }
}

#[test]
fn what_changes_is_in_the_log_in_the_order_of_the_messages() {
    let mut world = staffed(JoinPolicy::Open);
    world.subscribe(0, 2, "g:x", 1, &["mia"]);
    world.run();
    world.clear();
    world.nodes[0].store_held = true;
    // Changes of one group go one by one, messages between them where they came.
    world.send(at(1), "mia", "g:x", 1);
    let muting = world.request(0, at(2), "adam", mute("mia", world.now.wall_ms + 1_000));
    let muted = world.send(at(1), "mia", "g:x", 2);
    world.run();
    assert!(world.kinds(0, 2).is_empty(), "nothing is durable");
    world.nodes[0].store_held = false;
    world.run();
    assert_eq!(world.answer(muting).unwrap().1, response::Outcome::Done(client::Done {}));
    assert_eq!(world.refused(muted).code, Code::Muted as i32, "behind the change");
    let got: Vec<wire::FanOut> = world.take(0, 2, Kind::FanOut);
    let got: Vec<_> = got.iter().map(|it| (it.seq, deliver(&it.notify).action())).collect();
    assert_eq!(got, [(4, Action::Message), (5, Action::System)]);
    // It ends by itself; a repeat of what was taken before is no new message.
    let repeat = world.send(at(1), "mia", "g:x", 1);
    world.run();
    assert_eq!(world.ack(repeat).seq, 4);
    world.pass(1_001);
    let again = world.send(at(1), "mia", "g:x", 2);
    world.run();
    assert_eq!(world.ack(again).seq, 6);

    assert_eq!(ask(&mut world, "zoe", join()), 0);
    assert_eq!(ask(&mut world, "mia", invite(&["yan"])), 0);
    assert_eq!(ask(&mut world, "adam", remove(&["yan", "zoe"])), 0);
    assert_eq!(ask(&mut world, "adam", announce("hear")), 0);
    assert_eq!(ask(&mut world, "max", leave()), 0);
    assert_eq!(ask(&mut world, "ann", leave()), 0);
    let change = |kind, by: &str, users: &[&str]| (kind, by.to_owned(), names(users));
    let expected = [
        change(Became::Created, "ann", &["adam", "ann", "bea", "max", "mia"]),
        change(Became::Role, "ann", &["adam"]),
        change(Became::Role, "ann", &["bea"]),
        change(Became::Muted, "adam", &["mia"]),
        change(Became::Joined, "zoe", &["zoe"]),
        change(Became::Invited, "mia", &["yan"]),
        change(Became::Removed, "adam", &["yan", "zoe"]),
        change(Became::Updated, "adam", &[]),
        change(Became::Left, "max", &["max"]),
        change(Became::Left, "ann", &["ann"]),
        change(Became::Role, "ann", &["adam"]),
    ];
    assert_eq!(changes(&world), expected);
    let now = state(&mut world, "mia").unwrap();
    assert_eq!((now.owner.as_str(), now.admins, now.members), ("adam", names(&["bea"]), 3));
    assert_eq!(now.announcement, "hear".as_bytes());
}

#[test]
fn one_entry_for_those_who_came_together_and_none_in_a_large_group() {
    let mut world = World::serving(1, &[1]);
    ask(&mut world, "ann", create(&[], JoinPolicy::Open));
    world.nodes[0].store_held = true;
    for n in 0..100 {
        world.request(0, at(n), &format!("user-{n:03}"), join());
    }
    world.run();
    world.nodes[0].store_held = false;
    world.run();
    let entries = &world.store.logs["g:x"].entries;
    assert_eq!(entries.len(), 3, "the first one alone, then all others");
    let last = client::GroupChange::decode(deliver(&entries[2].notify).payload).unwrap();
    assert_eq!((last.users.len(), last.count), (64, 99));
    let many: Vec<String> = (0..450).map(|n| format!("more-{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(ask(&mut world, "ann", invite(&many)), 0);
    assert_eq!(world.store.groups["g:x"].0.len(), 551);
    for op in [join(), leave()] {
        assert_eq!(ask(&mut world, "zoe", op), 0);
    }
    assert_eq!(world.store.logs["g:x"].entries.len(), 4, "only the invitation");
    assert_eq!(ask(&mut world, "ann", leave()), 0);
    assert_eq!(world.store.logs["g:x"].entries.len(), 6, "who owned it left, and who owns it");
}

#[test]
fn who_asks_to_join_waits_for_an_admin_who_hears_of_it() {
    let mut world = staffed(JoinPolicy::Request);
    world.register(0, session(2, 1), "adam", "adam-1", "ios");
    world.register(0, session(2, 2), "mia", "mia-1", "ios");
    world.register(0, session(2, 3), "zoe", "zoe-1", "ios");
    world.run();
    world.clear();
    assert_eq!(ask(&mut world, "zoe", join()), Code::JoinPending as i32);
    assert_eq!(ask(&mut world, "zoe", join()), Code::JoinPending as i32);
    let told: Vec<wire::Relay> = world.take(0, 2, Kind::Relay);
    let notify = client::Notify::decode(told[0].notify.clone()).unwrap();
    let Some(client::notify::Event::GroupAsked(asked)) = notify.event else { panic!("{notify:?}") };
    assert_eq!((asked.conversation.as_str(), asked.user.as_str()), ("g:x", "zoe"));
    let targets: Vec<_> = told[0].targets.iter().map(|target| target.user.as_str()).collect();
    assert_eq!((targets, told.len()), (vec!["adam"], 1), "once, and no member");
    assert_eq!(state(&mut world, "adam").unwrap().asking, ["zoe"]);
    assert_eq!(state(&mut world, "mia").unwrap().asking, names(&[]));
    // Not forgotten by the next owner.
    stop(&mut world);
    assert_eq!(state(&mut world, "adam").unwrap().asking, ["zoe"]);
    assert_eq!(ask(&mut world, "adam", answer("zoe", false)), 0);
    assert_eq!(ask(&mut world, "adam", answer("zoe", true)), Code::BadRequest as i32);
    assert_eq!(ask(&mut world, "zoe", join()), Code::JoinPending as i32);
    world.clear();
    assert_eq!(ask(&mut world, "adam", answer("zoe", true)), 0);
    assert_eq!(world.take::<wire::Attach>(0, 2, Kind::Attach)[0].targets[0].user, "zoe");
    assert!(world.store.groups["g:x"].0.contains("zoe"));
    assert!(world.store.lists[&("zoe".to_owned(), List::Groups)].contains_key("g:x"));
    assert_eq!(world.store.states["g:x"].keys().collect::<Vec<_>>(), ["info"]);
    assert_eq!(changes(&world).last().unwrap(), &(Became::Joined, "adam".into(), names(&["zoe"])));
}

#[test]
fn a_strangers_view_of_a_group_ends_at_what_it_shows() {
    for (join, seen) in [(JoinPolicy::Open, true), (JoinPolicy::Request, true), (JoinPolicy::Invite, false)] {
        let mut world = staffed(join);
        ask(&mut world, "ann", announce("secret"));
        match state(&mut world, "zoe") {
            Ok(state) => {
                assert!(seen && state.announcement.is_empty() && state.admins.is_empty());
                assert_eq!((state.about.as_ref(), state.members), (&b"tea"[..], 5));
            }
            Err(code) => assert_eq!((code, seen), (Code::NotMember as i32, false)),
        }
    }
    let mut world = staffed(JoinPolicy::Open);
    let op = Op::GroupMembers(client::GroupMembers { group: group(), ..Default::default() });
    let token = world.request(0, at(1), "mia", op);
    world.run();
    let response::Outcome::Members(page) = world.answer(token).unwrap().1 else { panic!("no page") };
    let roles: Vec<_> = page.roles().collect();
    assert_eq!(page.members, ["adam", "ann", "bea", "max", "mia"]);
    assert_eq!(roles, [Role::Admin, Role::Owner, Role::Admin, Role::Member, Role::Member]);
}

#[test]
fn an_admin_recalls_what_a_member_wrote() {
    let mut world = staffed(JoinPolicy::Open);
    let seq = {
        let token = world.send(at(1), "mia", "g:x", 1);
        world.run();
        world.ack(token).seq
    };
    world.pass(7_200_000);
    world.view();
    let recall = || {
        Op::Send(client::Send {
            conversation: "g:x".into(),
            client_seq: 1,
            stream: 5,
            action: Action::Recall as i32,
            refers_to: seq,
            ..Default::default()
        })
    };
    assert_eq!(ask(&mut world, "max", recall()), Code::NotAllowed as i32);
    assert_eq!(ask(&mut world, "adam", recall()), 0);
    assert!(deliver(&world.store.logs["g:x"].entries[seq as usize - 1].notify).payload.is_empty());
}

#[test]
fn all_but_admins_are_muted() {
    let mut world = staffed(JoinPolicy::Open);
    assert_eq!(ask(&mut world, "adam", mute("", 1)), 0);
    assert!(state(&mut world, "mia").unwrap().muted);
    for (user, code) in [("mia", Code::Muted as i32), ("adam", 0), ("ann", 0)] {
        let token = world.send(at(5), user, "g:x", 1);
        world.run();
        let outcome = world.answer(token).unwrap().1;
        let refused = matches!(outcome, response::Outcome::Refused(refused) if refused.code == code);
        assert_eq!(refused, code != 0, "{user}");
    }
    assert_eq!(ask(&mut world, "adam", mute("", 0)), 0);
    let token = world.send(at(5), "mia", "g:x", 1);
    world.run();
    world.ack(token);
}

#[test]
fn an_owner_who_leaves_is_followed_by_an_admin_or_a_member_or_whoever_comes_back() {
    let mut world = World::serving(1, &[1]);
    ask(&mut world, "ann", create(&["cid", "bob"], JoinPolicy::Open));
    assert_eq!(ask(&mut world, "ann", leave()), 0);
    assert_eq!(state(&mut world, "bob").unwrap().owner, "bob", "the first by name");
    for user in ["bob", "cid"] {
        assert_eq!(ask(&mut world, user, leave()), 0);
    }
    assert_eq!(state(&mut world, "eve").unwrap().owner, "");
    assert_eq!(ask(&mut world, "eve", join()), 0);
    assert_eq!(state(&mut world, "eve").unwrap().role(), Role::Owner);
    assert_eq!(ask(&mut world, "bob", join()), 0);
    assert_eq!(state(&mut world, "bob").unwrap().role(), Role::Member);
}

#[test]
fn a_dissolved_group_is_gone_for_all_and_for_ever() {
    let mut world = staffed(JoinPolicy::Request);
    world.subscribe(0, 2, "g:x", 1, &["mia"]);
    ask(&mut world, "zoe", join());
    world.clear();
    assert_eq!(ask(&mut world, "ann", dissolve()), 0);
    let kinds = world.kinds(0, 2);
    assert_eq!(kinds, [Kind::FanOut, Kind::Remove], "the entry, then the removal");
    let removed: Vec<wire::Remove> = world.take(0, 2, Kind::Remove);
    assert_eq!(removed[0].users, ["adam", "ann", "bea", "max", "mia"]);
    let gone = Code::NoSuchGroup as i32;
    for again in [false, true] {
        if again {
            stop(&mut world);
        }
        for op in [join(), leave(), invite(&["yan"]), dissolve(), mute("", 1)] {
            assert_eq!(ask(&mut world, "ann", op), gone);
        }
        assert_eq!(state(&mut world, "ann"), Err(gone));
        assert_eq!(ask(&mut world, "ann", create(&[], JoinPolicy::Open)), Code::GroupExists as i32);
        let token = world.send(at(1), "ann", "g:x", 1);
        world.subscribe(0, 1, "g:x", 7, &["ann"]);
        world.run();
        assert_eq!(world.refused(token).code, gone);
        assert!(world.take::<wire::Subscribed>(0, 1, Kind::Subscribed)[0].gone);
    }
    assert!(world.store.groups["g:x"].0.is_empty());
    for user in ["adam", "ann", "bea", "max", "mia"] {
        assert!(world.store.lists[&(user.to_owned(), List::Groups)].is_empty(), "{user}");
    }
    assert_eq!(world.store.states["g:x"].keys().collect::<Vec<_>>(), ["info"], "nobody asks any more");
}

#[test]
fn a_large_group_is_cleaned_in_slices_and_the_next_owner_goes_on() {
    let mut world = World::serving(1, &[1]);
    let users: Vec<String> = (0..1_500).map(|n| format!("user-{n:04}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    assert_eq!(ask(&mut world, "ann", create(&users, JoinPolicy::Open)), 0);
    let token = world.request(0, at(1), "ann", dissolve());
    // Until the first slice is done.
    while world.store.groups["g:x"].0.len() > 1_000 {
        assert!(world.tick());
    }
    world.answer(token).expect("the asker does not wait for the cleaning");
    let left = world.store.groups["g:x"].0.len();
    assert!(left > 0, "in slices");
    stop(&mut world);
    assert_eq!(world.store.groups["g:x"].0.len(), left, "nobody has used it since");
    // A member's gateway subscribes, as its list still names it.
    world.subscribe(0, 1, "g:x", 1, &["user-1400"]);
    world.run();
    assert!(world.store.groups["g:x"].0.is_empty());
    let still =
        world.store.lists.iter().filter(|((_, list), items)| *list == List::Groups && !items.is_empty());
    assert_eq!(still.count(), 0);
}

#[test]
fn a_change_that_was_lost_or_unknown_is_whole_or_not_there() {
    for fault in [Fault::Unavailable, Fault::DoneButUnknown] {
        for (op, user) in [
            (remove(&["mia", "bea"]), "ann"),
            (role("max", Role::Owner), "ann"),
            (invite(&["zoe"]), "max"),
            (leave(), "ann"),
            (dissolve(), "ann"),
        ] {
            let mut world = staffed(JoinPolicy::Open);
            let case = format!("{fault:?} {user} {op:?}");
            let before = (state(&mut world, "max").unwrap(), changes(&world).len());
            world.store.fail_append = Some(fault);
            let code = ask(&mut world, user, op.clone());
            assert_eq!(code, Code::Busy as i32, "{case}");
            world.pass(2_000);
            let told = |world: &mut World| state(world, "max").map(|now| (now, changes(world).len()));
            match fault {
                Fault::Unavailable => assert_eq!(told(&mut world), Ok(before), "{case}"),
                Fault::DoneButUnknown => assert_ne!(told(&mut world), Ok(before), "{case}"),
            }
            // Asked again it holds, or is found to be so.
            let code = ask(&mut world, user, op);
            assert!(
                [0, Code::NotMember as i32, Code::NotAllowed as i32, Code::NoSuchGroup as i32]
                    .contains(&code),
                "{case}"
            );
            // Owner and admins are members.
            if let Ok(now) = state(&mut world, "max") {
                let members = &world.store.groups["g:x"].0;
                let mut staff = now.admins.iter().chain([&now.owner]);
                assert!(staff.all(|user| members.contains(user)), "{case}");
            }
        }
    }
}

#[test]
fn an_owner_that_stops_between_lists_and_members_answers_busy_and_asking_again_heals() {
    let mut world = staffed(JoinPolicy::Open);
    world.nodes[0].store_held = true;
    let token = world.request(0, at(1), "ann", invite(&["zoe"]));
    world.run();
    assert_eq!(world.held(0), ["lists"]);
    world.release(0, conversation_partition("g:x"));
    world.run();
    assert_eq!(world.refused(token).code, Code::Busy as i32);
    world.nodes[0].store_held = false;
    world.run();
    world.claim(0, conversation_partition("g:x"));
    world.run();
    assert!(world.store.lists[&("zoe".to_owned(), List::Groups)].contains_key("g:x"));
    let op = Op::GroupMembers(client::GroupMembers { group: group(), ..Default::default() });
    assert_eq!(ask(&mut world, "zoe", op), Code::NotMember as i32, "a list may be ahead");
    assert_eq!(ask(&mut world, "ann", invite(&["zoe"])), 0);
    assert!(world.store.groups["g:x"].0.contains("zoe"));
}
