//! What both stores promise: one table of cases, each on an empty store.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use millrace_dispatcher::store::{
    Change, Fence, Gateway, List, Loaded, Node, Outcome, Registration, StoreError, UserItem, Work, Write,
};
use millrace_protocol::ids::{MessageId, user_partition};

use super::world::{PARTITIONS, World, entry, message, node, read, registration, session, until};

pub type Case = fn(&World<'_>);

pub const CASES: &[(&str, Case)] = &[
    ("append: entries come back as they were", appended_is_read_back),
    ("append: all or nothing", all_or_nothing),
    ("append: another fence is refused", fenced),
    ("append: another position is refused", positions),
    ("append: a paused owner writes nothing", paused_owner),
    ("claim: epochs grow, also over an emptied store", epochs_grow),
    ("claim: held by a live node", held_by_a_live_node),
    ("claim: after a release", released_then_claimed),
    ("load: head, neighbours", loads),
    ("load: a group that changes", members_change),
    ("read: ranges and limits", ranges_and_limits),
    ("order: jobs submitted together", together_in_order),
    ("register: keep all, newest wins, losers", policies),
    ("register: numbers", login_numbers),
    ("register: a session that resumes displaces the one before", resumed),
    ("register: by the owner of the user's partition alone", owners_register),
    ("register: who lost is kept until it is closed", losers_are_kept),
    ("register: routes are bounded", routes_are_bounded),
    ("unregister: compares", unregister_compares),
    ("user groups: idempotent", user_groups),
    ("lease: gateways", gateway_leases),
    ("lease: a gateway replaces its own earlier life", gateway_replaces_itself),
    ("lease: nodes and the view", views),
    ("lease: the view says what time it is, of a store with a clock", time_of_the_view),
    ("lease: a late heartbeat replaces nobody", lives_of_a_node),
    ("sweep: a dead gateway leaves nothing", dead_gateways_leave_nothing),
    ("append: no seq twice, none left out", no_seq_twice),
];

fn appended_is_read_back(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    assert_eq!((claim.position, claim.last_message_id), (1, MessageId(0)), "a new partition");
    let mut expected = world.append(&mut claim, vec![message("g:tea", 1), message("g:tea", 2)]);
    world.append(&mut claim, vec![message("d:a:b", 1)]);
    expected.extend(world.append(&mut claim, vec![message("g:tea", 3)]));
    let Write::Message(newest) = expected[2].clone() else { panic!() };
    let (entries, first) = world.read("g:tea", 0, u64::MAX, 1 << 20);
    assert_eq!(first, 1);
    assert_eq!(entries.into_iter().map(Write::Message).collect::<Vec<_>>(), expected);
    assert_eq!(world.read("d:a:b", 0, 10, 1 << 20).0.len(), 1);
    assert_eq!(world.read("g:none", 0, 10, 1 << 20), (vec![], 1));
    world.reopen();
    assert_eq!(world.read("g:tea", 0, u64::MAX, 1 << 20).0.len(), 3, "and after a start");
    let claim = world.claim(3, "a", 1_000);
    assert_eq!((claim.position, claim.last_message_id), (5, newest.message_id));
}

fn all_or_nothing(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    world.append(&mut claim, vec![message("g:tea", 1)]);
    let broken = vec![
        message("g:tea", 2),
        Write::GroupCreate { conversation: "g:new".into(), members: vec!["x".into()], version: 1 },
        message("g:tea", 4),
    ];
    assert!(matches!(world.call(claim.batch(broken)), Err(StoreError::Corrupted(_))), "seq 3 is left out");
    assert_eq!(world.read("g:tea", 0, 10, 1 << 20).0.len(), 1);
    let Ok(Outcome::Loaded(loaded)) = world.call(claim.load("g:new")) else { panic!() };
    assert_eq!(loaded, Loaded { first_seq: 1, ..Loaded::default() });
    world.append(&mut claim, vec![message("g:tea", 2)]);
}

fn fenced(world: &World<'_>) {
    let claim = world.claim(3, "a", 1_000);
    let refused = Err(StoreError::Fenced { partition: 3 });
    let Fence { epoch, nonce } = claim.fence;
    for fence in [
        Fence { epoch: epoch - 1, nonce },
        Fence { epoch: epoch + 1, nonce },
        Fence { epoch, nonce: nonce ^ 1 },
    ] {
        let mut other = claim.clone();
        other.fence = fence;
        assert_eq!(world.call(other.batch(vec![message("g:tea", 1)])), refused);
        assert_eq!(world.call(other.load("g:tea")), refused);
        assert_eq!(world.call(Work::Release { partition: 3, fence }), refused);
    }
    let mut unclaimed = claim.clone();
    unclaimed.partition = 4;
    assert_eq!(
        world.call(unclaimed.batch(vec![message("g:tea", 1)])),
        Err(StoreError::Fenced { partition: 4 })
    );
    assert_eq!(world.call(claim.batch(vec![message("g:tea", 1)])), Ok(Outcome::Appended));
}

fn positions(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    world.append(&mut claim, vec![message("g:tea", 1), message("g:tea", 2)]);
    for given in [claim.position - 1, claim.position + 1] {
        let mut other = claim.clone();
        other.position = given;
        assert_eq!(
            world.call(other.batch(vec![message("g:tea", 3)])),
            Err(StoreError::Position { partition: 3, expected: claim.position, given })
        );
    }
    world.append(&mut claim, vec![message("g:tea", 3)]);
}

fn paused_owner(world: &World<'_>) {
    let mut old = world.claim(3, "a", 1_000);
    world.append(&mut old, vec![message("g:tea", 1)]);
    let mut new = world.claim(3, "b", 1_000);
    assert!(new.fence.epoch > old.fence.epoch);
    assert_eq!(new.position, old.position);
    assert_eq!(world.call(old.batch(vec![message("g:tea", 2)])), Err(StoreError::Fenced { partition: 3 }));
    assert_eq!(world.read("g:tea", 0, 10, 1 << 20).0.len(), 1);
    world.append(&mut new, vec![message("g:tea", 2)]);
}

fn epochs_grow(world: &World<'_>) {
    let first = world.claim(3, "a", 1_000).fence;
    assert!(first.epoch >= 1_000, "not below the clock");
    let second = world.claim(3, "a", 900).fence;
    assert!(second.epoch > first.epoch, "above the stored one when the clock goes back");
    assert_ne!(first.nonce, second.nonce);
    world.reopen();
    let third = world.claim(3, "a", 2).fence;
    assert!(third.epoch > second.epoch, "after a start");
    // Redis goes by its own clock.
    std::thread::sleep(Duration::from_millis(50));
    world.empty();
    let fourth = world.claim(3, "a", 60_000_000).fence;
    assert!(fourth.epoch > second.epoch, "the clock stands in for what was lost");
    let above = fourth.epoch + 1_000_000_000;
    let work = Work::Claim { partition: 3, node: "a".into(), incarnation: 1, wall_ms: 1_000, above };
    let Ok(Outcome::Claimed { fence: fifth, .. }) = world.call(work) else { panic!("no claim") };
    assert!(fifth.epoch > above, "above what the claimer knows");
    assert!(world.claim(3, "a", 1_000).fence.epoch > fifth.epoch);
}

fn held_by_a_live_node(world: &World<'_>) {
    world.beat("a", 400);
    let claim = world.claim(3, "a", 1_000);
    world.beat("b", 60_000);
    assert_eq!(
        world.try_claim(3, "b", 1_000).map(|c| c.fence),
        Err(StoreError::Held { partition: 3, holder: "a".into() })
    );
    assert!(world.call(claim.load("g:tea")).is_ok(), "nothing happened to the holder");
    world.claim(3, "a", 1_000);
    until("the lease of a ends", Duration::from_secs(5), || world.try_claim(3, "b", 1_000).is_ok());
    assert!(matches!(world.try_claim(3, "a", 1_000), Err(StoreError::Held { .. })));
    assert_eq!(world.call(Work::Leave { node: "b".into(), incarnation: 9 }), Ok(Outcome::Left));
    assert!(matches!(world.try_claim(3, "a", 1_000), Err(StoreError::Held { .. })), "another life's leave");
    assert_eq!(world.call(Work::Leave { node: "b".into(), incarnation: 1 }), Ok(Outcome::Left));
    world.claim(3, "a", 1_000);
}

fn released_then_claimed(world: &World<'_>) {
    world.beat("a", 60_000);
    let mut claim = world.claim(3, "a", 1_000);
    world.append(&mut claim, vec![message("g:tea", 1)]);
    assert_eq!(world.beat("a", 60_000).owners[3], ("a".to_owned(), claim.fence.epoch));
    let release = Work::Release { partition: 3, fence: claim.fence };
    assert_eq!(world.call(release), Ok(Outcome::Released));
    assert_eq!(world.beat("a", 60_000).owners[3].0, "");
    let next = world.claim(3, "b", 900);
    assert!(next.fence.epoch > claim.fence.epoch && next.position == claim.position);
    assert_eq!(world.beat("a", 60_000).owners[3], ("b".to_owned(), next.fence.epoch));
    assert_eq!(world.call(claim.load("g:tea")), Err(StoreError::Fenced { partition: 3 }));
}

fn loads(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    assert_eq!(
        world.call(claim.load("g:tea")),
        Ok(Outcome::Loaded(Loaded { first_seq: 1, ..Loaded::default() }))
    );
    world.append(&mut claim, (1..=6).map(|seq| message("g:tea", seq)).collect());
    world.append(&mut claim, vec![message("g:te", 1), message("g:teapot", 1)]);
    let loaded = world.load(&claim, "g:tea", None);
    let of_newest = entry("g:tea", 6, b"body 6 \0\x7f of g:tea");
    assert_eq!((loaded.head, loaded.members), (6, None), "a neighbour's name is a prefix of this one's");
    assert_eq!((loaded.head_epoch, loaded.messages, loaded.bytes), (77, 6, of_newest.bytes));
    assert_eq!((loaded.first_seq, loaded.state.len(), loaded.answers.len()), (1, 0, 0));
}

fn members_change(world: &World<'_>) {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
    let mut claim = world.claim(3, "a", 1_000);
    let conversation = "g:tea".to_owned();
    let create = Write::GroupCreate {
        conversation: conversation.clone(),
        members: names(&["carol", "alice", "bob"]),
        version: 1,
    };
    world.append(&mut claim, vec![create, message("g:tea", 1)]);
    let change =
        Write::Members { conversation, add: names(&["dave"]), remove: names(&["bob", "nobody"]), version: 2 };
    world.append(&mut claim, vec![change]);
    world.reopen();
    let claim = world.claim(3, "a", 1_000);
    let Ok(Outcome::Loaded(loaded)) = world.call(claim.load("g:tea")) else { panic!() };
    assert_eq!((loaded.head, loaded.members), (1, Some((names(&["alice", "carol", "dave"]), 2))));
}

fn ranges_and_limits(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    let body = [7u8; 100];
    let writes = (1..=50).map(|seq| Write::Message(entry("g:tea", seq, &body))).collect();
    world.append(&mut claim, writes);
    let seqs = |after, through, limit| {
        let (entries, first) = world.read("g:tea", after, through, limit);
        assert_eq!(first, 1);
        entries.iter().map(|entry| entry.seq).collect::<Vec<_>>()
    };
    for (after, through, limit, expected) in [
        (0, 50, 1 << 20, 1..=50),
        (10, 12, 1 << 20, 11..=12),
        (10, u64::MAX, 1 << 20, 11..=50),
        (48, 60, 1 << 20, 49..=50),
        (0, 50, 300, 1..=3),
        (0, 50, 399, 1..=3),
        (20, 50, 1_700, 21..=37),
        (20, 50, 0, 21..=21),
    ] {
        assert_eq!(seqs(after, through, limit), expected.collect::<Vec<_>>(), "{after} {through} {limit}");
    }
    assert!(seqs(50, 60, 1).is_empty() && seqs(9, 9, 1).is_empty() && seqs(9, 3, 1).is_empty());
    assert!(seqs(u64::MAX, u64::MAX, 1).is_empty());
}

fn together_in_order(world: &World<'_>) {
    let claim = world.claim(3, "a", 1_000);
    let mut second = claim.clone();
    second.position += 1;
    let read = || {
        let mut work = read("g:tea", 0, 9, 9_999);
        let Work::Read { fence, .. } = &mut work else { unreachable!() };
        *fence = Some(claim.fence);
        work
    };
    let works = vec![
        claim.batch(vec![message("g:tea", 1)]),
        second.batch(vec![message("g:tea", 2)]),
        read(),
        Work::Release { partition: 3, fence: claim.fence },
        read(),
    ];
    let outcomes = world.calls(works);
    assert_eq!(outcomes[..2], [Ok(Outcome::Appended), Ok(Outcome::Appended)]);
    assert!(matches!(&outcomes[2], Ok(Outcome::Entries { head: 2, .. })));
    assert_eq!(outcomes[3], Ok(Outcome::Released));
    assert_eq!(outcomes[4], Err(StoreError::Fenced { partition: 3 }), "nobody holds a released fence");
}

fn policies(world: &World<'_>) {
    let phone = world.register(registration("alice", "phone", "ios", session(1, 1)));
    let pad = world.register(registration("alice", "pad", "ios", session(2, 2)));
    assert!(!phone.lost && !pad.lost && pad.losers.is_empty(), "keep all");
    let again = world.register(registration("alice", "phone", "ios", session(1, 3)));
    assert_eq!(again.losers.iter().map(|r| r.session).collect::<Vec<_>>(), [session(1, 1)], "one per device");
    let mut newest = registration("alice", "watch", "ios", session(3, 4));
    newest.newest_wins = true;
    let watch = world.register(newest);
    let losers: Vec<_> = watch.losers.iter().map(|r| (r.device.as_str(), r.session)).collect();
    assert_eq!(losers, [("pad", session(2, 2)), ("phone", session(1, 3))]);
    assert_eq!(watch.losers[0].incarnation, 1_002);
    let web = world.register(registration("alice", "tab", "web", session(1, 9)));
    assert!(web.losers.is_empty());
    let routes = world.routes("alice");
    let devices: Vec<_> = routes.iter().map(|r| (r.device.as_str(), r.platform.as_str())).collect();
    assert_eq!(devices, [("watch", "ios"), ("tab", "web")]);
    let mut late = registration("alice", "pad", "ios", session(2, 2));
    late.newest_wins = true;
    late.login_number = pad.login_number;
    let late = world.register(late);
    assert!(late.lost && late.losers.is_empty(), "an old login that registers again loses");
    assert_eq!(world.routes("alice"), routes);
    assert!(world.routes("bob").is_empty());
}

fn login_numbers(world: &World<'_>) {
    let mut first = registration("alice", "phone", "ios", session(1, 1));
    let one = world.register(first.clone());
    assert_eq!(one.login_number, 5_000, "not below the clock");
    let two = world.register(registration("alice", "pad", "ios", session(1, 2)));
    assert!(two.login_number > one.login_number);
    first.login_number = one.login_number;
    first.incarnation = 4_242;
    let again = world.register(first.clone());
    assert_eq!((again.login_number, again.lost, again.losers.len()), (5_000, false, 0), "keeps its number");
    let route = world.routes("alice").into_iter().find(|r| r.device == "phone").unwrap();
    assert_eq!((route.incarnation, route.session, route.login_number), (4_242, session(1, 1), 5_000));
    world.empty();
    first.login_number = 9_000;
    assert_eq!(world.register(first).login_number, 9_000, "registers again in an emptied store");
    let mut next = registration("alice", "pad", "ios", session(1, 3));
    next.wall_ms = 10;
    assert!(world.register(next).login_number > 9_000, "above what was shown, whatever the clock says");
    let mut stale = registration("alice", "phone", "ios", session(7, 7));
    stale.login_number = 8_999;
    assert!(world.register(stale).lost, "same device: the higher number stays");
}

fn routes_are_bounded(world: &World<'_>) {
    for device in 0..70 {
        let at = registration("alice", &format!("device-{device}"), "bot", session(1, device));
        assert_eq!(world.register(at).losers.len(), usize::from(device >= 64));
    }
    assert_eq!(world.routes("alice").len(), 64);
}

fn unregister_compares(world: &World<'_>) {
    let number = world.register(registration("alice", "phone", "ios", session(1, 1))).login_number;
    let gone = |device: &str, slot, login_number, incarnation| {
        let (user, session) = ("alice".to_owned(), session(1, slot));
        let work = Work::Unregister { user, device: device.into(), session, login_number, incarnation };
        assert_eq!(world.call(work), Ok(Outcome::Unregistered));
        world.routes("alice").is_empty()
    };
    assert!(!gone("pad", 1, number, 1_001) && !gone("phone", 2, number, 1_001));
    assert!(!gone("phone", 1, number + 1, 1_001) && !gone("phone", 1, number, 1));
    assert!(gone("phone", 1, number, 1_001));
    assert!(gone("phone", 1, number, 1_001), "twice is once");
}

fn resumed(world: &World<'_>) {
    let mut phone = registration("alice", "phone", "ios", session(1, 1));
    phone.login_number = world.register(phone.clone()).login_number;
    assert!(world.register(phone.clone()).losers.is_empty(), "not against itself");
    phone.session = session(1, 2);
    let resumed = world.register(phone.clone());
    let losers: Vec<_> = resumed.losers.iter().map(|r| (r.session, r.login_number)).collect();
    assert_eq!((resumed.lost, losers), (false, vec![(session(1, 1), phone.login_number)]));
    assert_eq!(world.routes("alice").iter().map(|r| r.session).collect::<Vec<_>>(), [session(1, 2)]);
}

/// Both tries of a client that resumes have its login number: the order in which they reach the store says nothing.
fn owners_register(world: &World<'_>) {
    let partition = user_partition("alice", PARTITIONS);
    let register = |fence: Fence, slot: u32, login_number: u64| {
        let phone = registration("alice", "phone", "ios", session(1, slot));
        let claim = Some((partition, fence));
        world.call(Work::Register(Box::new(Registration { login_number, claim, ..phone })))
    };
    let fenced = Err(StoreError::Fenced { partition });
    let stays = |slot: u32| world.routes("alice").iter().map(|r| r.session).eq([session(1, slot)]);
    assert_eq!(register(Fence { epoch: 1, nonce: 1 }, 1, 0), fenced, "nobody claimed it");
    let first = world.claim(partition, "a", 1_000).fence;
    let Ok(Outcome::Registered { login_number, .. }) = register(first, 2, 0) else { panic!() };
    let second = world.claim(partition, "a", 1_000).fence;
    assert!(register(second, 3, login_number).is_ok());
    assert_eq!(register(first, 4, login_number), fenced, "sent before, it came late");
    assert_eq!(register(first, 4, 0), fenced);
    assert!(stays(3));
    assert_eq!(world.call(Work::Release { partition, fence: second }), Ok(Outcome::Released));
    assert_eq!(register(second, 5, login_number), fenced, "given up");
    assert!(stays(3));
}

fn losers_are_kept(world: &World<'_>) {
    let partition = user_partition("alice", PARTITIONS);
    let other = partition ^ 1;
    let fence = world.claim(partition, "a", 1_000).fence;
    let register = |fence: Fence, device: &str, slot: u32, login_number: u64| {
        let session = registration("alice", device, "ios:17", session(1, slot));
        let claim = Some((partition, fence));
        let registered =
            world.register(Registration { login_number, claim, newest_wins: device == "watch", ..session });
        let mut slots: Vec<_> = registered.losers.iter().map(|route| route.session.slot()).collect();
        slots.sort_unstable();
        (registered.login_number, registered.lost, slots)
    };
    let (first, ..) = register(fence, "phone", 1, 0);
    let (second, _, lost) = register(fence, "phone", 2, 0);
    assert_eq!(lost, [1]);
    assert_eq!(
        register(fence, "phone", 2, second),
        (second, false, vec![1]),
        "the answer may have been lost"
    );
    assert_eq!(register(fence, "phone", 1, first), (first, true, vec![]), "it hears so itself");
    assert_eq!(register(fence, "phone", 3, second).2, [1, 2], "resumed");
    assert_eq!(register(fence, "phone", 2, second).2, [1, 3], "it is back");
    assert_eq!(register(fence, "watch", 4, 0).2, [1, 2, 3], "on another device");
    let claim = world.claim(partition, "a", 1_000);
    let named: Vec<_> = claim.losers.iter().map(|(user, it)| (user.as_str(), it.session.slot())).collect();
    let mut slots: Vec<_> = named.iter().map(|(_, slot)| *slot).collect();
    slots.sort_unstable();
    assert_eq!(slots, [1, 2, 3]);
    assert!(named.iter().all(|(user, _)| *user == "alice"));
    let (_, one) = claim.losers.iter().find(|(_, it)| it.session.slot() == 1).unwrap().clone();
    assert_eq!((one.device.as_str(), one.platform.as_str()), ("phone", "ios:17"));
    assert_eq!((one.login_number, one.incarnation), (first, 1_001));
    assert!(world.claim(other, "a", 1_000).losers.is_empty(), "of another partition");

    let forget = |losers| {
        assert_eq!(world.call(Work::ForgetLosers { partition, losers }), Ok(Outcome::LosersForgotten));
        world.claim(partition, "a", 1_000).losers.len()
    };
    let mut another_life = one.clone();
    another_life.incarnation += 1;
    assert_eq!(forget(vec![("alice".into(), another_life), ("bob".into(), one.clone())]), 3);
    assert_eq!(forget(vec![("alice".into(), one.clone())]), 2);
    assert_eq!(forget(claim.losers), 0, "one of them was not there any more");
    let fence = world.claim(partition, "a", 1_000).fence;
    assert_eq!(register(fence, "watch", 5, 0).2, [4]);
    let same_id = registration("alice", "phone", "ios:17", session(1, 4));
    let claim = Some((partition, fence));
    let in_its_place = world.register(Registration { incarnation: 4_242, claim, ..same_id });
    assert!(in_its_place.losers.is_empty(), "what had the id of this session is gone");
    assert!(world.claim(partition, "a", 1_000).losers.is_empty());
}

fn user_groups(world: &World<'_>) {
    let change = |users: &[&str], group: &str, change: Change| {
        let (list, item) = (List::Groups, group.to_owned());
        let of =
            |user: &&str| UserItem { user: (*user).into(), list, item: item.clone(), change: change.clone() };
        Work::UserItems { items: users.iter().map(of).collect(), claim: None }
    };
    let value = || Bytes::from_static(b"a\0value");
    let all = vec![
        change(&["alice", "bob", "carol"], "g:tea", Change::Add(value())),
        change(&["alice"], "g:tea", Change::Put(value())),
        change(&["alice", "bob"], "g:rum", Change::Add(value())),
        change(&["bob", "dave"], "g:tea", Change::Remove),
        change(&["bob"], "g:tea", Change::Remove),
    ];
    assert!(world.calls(all).iter().all(|outcome| *outcome == Ok(Outcome::UserItemsDone)));
    world.reopen();
    for (user, groups) in [
        ("alice", vec!["g:rum", "g:tea"]),
        ("bob", vec!["g:rum"]),
        ("carol", vec!["g:tea"]),
        ("dave", vec![]),
    ] {
        let registered = world.register(registration(user, "phone", "ios", session(1, 1)));
        assert_eq!(registered.groups, groups, "{user}");
    }
}

fn gateway_leases(world: &World<'_>) {
    let grant = world.gateway(5, 100, 400);
    assert_ne!(grant, 0, "new");
    assert_eq!(world.gateway(5, 100, 400), grant, "its answer was lost: the same again");
    assert_eq!(world.gateway_held(5, (100, 0), grant, 400), grant, "renewed");
    assert_eq!(world.gateway(5, 101, 400), 0, "another life's");
    let gateways = world.beat("a", 60_000).gateways.clone();
    assert_eq!(gateways, [Gateway { gateway: 5, incarnation: 100 }]);
    until("the lease ends", Duration::from_secs(5), || world.gateway(5, 101, 400) != 0);
    assert_eq!(world.gateway(5, 100, 400), 0);
    until("that one ends too", Duration::from_secs(5), || world.gateway(5, 100, 60_000) != 0);
    // A first request that came late took it up again. Whoever held it before has lost it all the same.
    for _ in 0..2 {
        assert_eq!(world.gateway_held(5, (100, 0), grant, 60_000), 0, "said as often as it is asked");
    }
    assert_eq!(world.beat("a", 60_000).gateways, [Gateway { gateway: 5, incarnation: 100 }]);
}

fn gateway_replaces_itself(world: &World<'_>) {
    let first = world.gateway(5, 1_005, 60_000);
    world.register(registration("alice", "phone", "ios", session(5, 1)));
    assert_eq!(world.gateway_again(5, (2, 1), 60_000), 0, "the holder is neither");
    let second = world.gateway_again(5, (2, 1_005), 60_000);
    assert!(first != 0 && second != 0 && second != first, "at once: {first} {second}");
    assert_eq!(world.gateway_again(5, (2, 1_005), 60_000), second, "its answer was lost");
    for grant in [0, first] {
        assert_eq!(world.gateway_held(5, (1_005, 0), grant, 60_000), 0, "a late renewal of the earlier life");
    }
    assert_eq!(world.gateway_held(5, (2, 0), second, 60_000), second, "held, and renewed");
    let [one, again] = [0; 2].map(|_| world.claim(3, "a", 1_000).copy);
    assert!(one != 0 && again == one, "claims name the copy");
    assert_eq!(world.gateway_held(6, (3, 0), second, 60_000), 0, "held once and gone");
    assert_eq!(world.beat("a", 60_000).gateways, [Gateway { gateway: 5, incarnation: 2 }]);
    until("the routes of its earlier life are swept", Duration::from_secs(8), || {
        world.beat("a", 60_000);
        world.routes("alice").is_empty()
    });
}

fn views(world: &World<'_>) {
    let view = world.beat("b", 60_000);
    assert!(!view.was_missing, "the first of this life");
    assert_eq!((view.nodes.as_slice(), view.owners.len()), (&[node("b")][..], 16));
    assert!(view.owners.iter().all(|owner| *owner == (String::new(), 0)));
    world.beat("a", 300);
    let view = world.beat("b", 60_000);
    assert_eq!(view.nodes, [node("a"), node("b")]);
    assert!(!view.was_missing);
    let claim = world.claim(7, "b", 1_000);
    assert_eq!(world.beat("b", 60_000).owners[7], ("b".to_owned(), claim.fence.epoch));
    until("the lease of a ends", Duration::from_secs(5), || world.beat("b", 60_000).nodes == [node("b")]);
    assert!(world.beat("a", 60_000).was_missing, "it lapsed");
    assert!(!world.beat("a", 60_000).was_missing);
}

/// A store in the same process has this process's clock alone, which says nothing about itself.
fn time_of_the_view(world: &World<'_>) {
    let now_ms = || UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let before_ms = now_ms();
    let clock_ms = world.beat("a", 60_000).clock_ms;
    // Redis has the whole ms that have passed, of the same machine's clock.
    let shown = clock_ms.is_some_and(|shown_ms| (before_ms..=now_ms()).contains(&shown_ms));
    assert_eq!((clock_ms.is_some(), shown), (world.has_a_clock(), world.has_a_clock()), "{clock_ms:?}");
    let (mut other, refused_by) = (node("a"), node("a").incarnation);
    other.incarnation += 1;
    let refused = world.beat_of(other, 0, 60_000);
    assert_eq!((refused.held_by, refused.clock_ms.is_some()), (refused_by, world.has_a_clock()));
}

fn lives_of_a_node(world: &World<'_>) {
    let life = |incarnation| Node { incarnation, ..node("a") };
    let held_by = |incarnation, replaces, ttl_ms| {
        let view = world.beat_of(life(incarnation), replaces, ttl_ms);
        assert_eq!(view.nodes, [life(if view.held_by == 0 { incarnation } else { view.held_by })]);
        view.held_by
    };
    assert_eq!(held_by(9, 0, 60_000), 0);
    assert_eq!(held_by(3, 0, 60_000), 9, "it lives, for all that anybody knows");
    assert_eq!(held_by(3, 9, 60_000), 0, "at once");
    assert_eq!(held_by(9, 0, 60_000), 3, "a late one of the earlier life, whatever its number");
    assert_eq!(held_by(9, 8, 60_000), 3, "and one that took another's place");
    assert_eq!(held_by(3, 9, 60_000), 0, "renewed");
    assert_eq!(held_by(3, 9, 300), 0);
    until("the lease ends", Duration::from_secs(5), || held_by(4, 0, 60_000) == 0);
    assert_eq!(held_by(3, 9, 60_000), 4, "it lapsed, and is another's");
}

fn dead_gateways_leave_nothing(world: &World<'_>) {
    const USERS: u32 = 2_000;
    world.gateway(1, 1_001, 60_000);
    world.gateway(2, 1_002, 700);
    for slot in 0..USERS {
        let gateway = 1 + (slot % 2) as u16;
        world.register(registration(&format!("u{slot}"), "phone", "ios", session(gateway, slot)));
    }
    let left = || (0..USERS).filter(|slot| !world.routes(&format!("u{slot}")).is_empty()).count();
    world.gateway(2, 1_002, 300);
    assert_eq!(left(), USERS as usize);
    until("its routes are swept", Duration::from_secs(8), || {
        world.beat("a", 60_000);
        world.counter("store_routes_swept_total") >= u64::from(USERS / 2)
    });
    assert_eq!(left(), USERS as usize / 2);
    assert_eq!(world.routes("u0")[0].session.gateway(), 1, "the living keep theirs");
}

fn no_seq_twice(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    world.append(&mut claim, vec![message("g:tea", 1)]);
    for seqs in [&[1][..], &[3], &[2, 2], &[2, 4], &[2, 3, 3], &[2, 3, 2]] {
        let batch = claim.batch(seqs.iter().map(|seq| message("g:tea", *seq)).collect());
        let refused = world.call(batch);
        assert!(matches!(refused, Err(StoreError::Corrupted(_))), "{seqs:?}: {refused:?}");
    }
    world.append(&mut claim, vec![message("g:tea", 2), message("g:tea", 3)]);
    assert_eq!(world.read("g:tea", 0, 9, 9_999).0.len(), 3);
}
