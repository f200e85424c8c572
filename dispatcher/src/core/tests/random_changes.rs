//! Random changes of a group and of a pair, crashes of the store and of ownership: whatever happens, everyone who asks is
//! answered once, the group's log tells the whole story of its members and roles, and lists end up as the state is.

use std::collections::{BTreeMap, BTreeSet};

use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::group_change::Kind as Became;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{self, Action, JoinPolicy, Role};
use millrace_protocol::messages::link as wire;
use millrace_protocol::prost::Message;

use super::world::{PARTITIONS, World, conversation_partition, deliver, direct, session};
use crate::core::group_info::{INFO_KEY, Info};
use crate::store::List;
use crate::store::model::Fault;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

const USERS: [&str; 5] = ["ann", "bob", "cid", "dan", "eve"];

fn change(random: &mut Random) -> Op {
    let group = || "x".to_owned();
    let mut user = || USERS[random.below(5) as usize].to_owned();
    let (one, two) = (user(), user());
    match random.below(40) {
        0..3 => Op::GroupCreate(client::GroupCreate {
            group: group(),
            members: vec![one, two],
            join: random.below(3) as i32,
            ..Default::default()
        }),
        3..10 => Op::GroupJoin(client::GroupJoin { group: group() }),
        10..13 => Op::GroupLeave(client::GroupLeave { group: group() }),
        13..16 => Op::GroupInvite(client::GroupInvite { group: group(), users: vec![one, two] }),
        16..18 => {
            Op::GroupAnswer(client::GroupAnswer { group: group(), user: one, accept: random.below(3) > 0 })
        }
        18..20 => Op::GroupRemove(client::GroupRemove { group: group(), users: vec![one, two] }),
        20..24 => {
            Op::GroupRole(client::GroupRole { group: group(), user: one, role: random.below(3) as i32 })
        }
        24..26 => Op::GroupMute(client::GroupMute {
            group: group(),
            user: one,
            until_ms: random.below(2) * u64::MAX,
        }),
        26..28 => Op::GroupUpdate(client::GroupUpdate {
            group: group(),
            join: Some(random.below(3) as i32),
            ..Default::default()
        }),
        28..30 => Op::Send(client::Send {
            conversation: "g:x".into(),
            client_seq: 1,
            stream: 1 + random.below(1 << 40),
            ..Default::default()
        }),
        30..33 => Op::FriendRequest(client::FriendRequest { user: one, ..Default::default() }),
        33..35 => Op::FriendAnswer(client::FriendAnswer { user: one, accept: random.below(3) > 0 }),
        35..37 => Op::FriendRemove(client::FriendRemove { user: one }),
        37..40 => Op::Block(client::Block { user: one, block: random.below(2) == 0 }),
        _ => unreachable!(),
    }
}

fn owner(world: &World, conversation: &str) -> usize {
    let holder = world.store.fences.get(&conversation_partition(conversation)).map(|(holder, _)| holder);
    world.nodes.iter().position(|node| Some(&node.name) == holder && node.alive).unwrap_or(0)
}

fn conversation_of(op: &Op, user: &str) -> String {
    match op {
        Op::FriendRequest(client::FriendRequest { user: other, .. })
        | Op::FriendAnswer(client::FriendAnswer { user: other, .. })
        | Op::FriendRemove(client::FriendRemove { user: other })
        | Op::Block(client::Block { user: other, .. }) => direct(user, other),
        _ => "g:x".into(),
    }
}

fn play(seed: u64) {
    let mut random = Random(seed);
    let mut world = World::new(2, 1);
    for node in 0..2 {
        world.connect(node, 1, 1);
    }
    for partition in 0..PARTITIONS {
        world.claim(random.below(2) as usize, partition);
    }
    world.run();
    let mut tokens = Vec::new();
    for _ in 0..400 {
        match random.below(24) {
            0 => {
                let fault = if random.below(2) == 0 { Fault::Unavailable } else { Fault::DoneButUnknown };
                world.store.fail_append = Some(fault);
            }
            1 => {
                let node = random.below(2) as usize;
                world.nodes[node].store_held = !world.nodes[node].store_held;
            }
            2 => {
                let (node, partition) = (random.below(2) as usize, random.below(8) as u16);
                world.release(node, partition);
                world.claim(1 - node, partition);
            }
            3 => {
                // The store lost everything that is in memory of one node.
                let view = std::sync::Arc::new(world.store.view(PARTITIONS, true));
                world.event(random.below(2) as usize, 0, crate::core::event::Event::View(view));
            }
            4 => world.pass(random.below(800)),
            5 => {
                for _ in 0..random.below(6) {
                    world.tick();
                }
            }
            _ => {
                let user = USERS[random.below(5) as usize];
                let op = change(&mut random);
                let node = match random.below(10) {
                    0 => random.below(2) as usize,
                    _ => owner(&world, &conversation_of(&op, user)),
                };
                tokens.push(world.request(node, session(1, random.below(9) as u32), user, op));
            }
        }
        world.tick();
    }
    rest(&mut world);
    for node in 0..2 {
        check_answers(&mut world, node, &mut tokens);
    }
    assert!(tokens.is_empty(), "never answered: {tokens:?}");
    check_group(&world);
    check_pairs(&mut world);
}

/// Until everything is owned, loaded and done.
fn rest(world: &mut World) {
    for node in &mut world.nodes {
        node.store_held = false;
    }
    world.store.fail_append = None;
    for round in 0..20 {
        world.view();
        for partition in 0..PARTITIONS {
            if !world.nodes.iter().any(|node| node.claimed.contains_key(&partition)) {
                world.claim(round % 2, partition);
            }
        }
        world.pass(1_000);
    }
}

/// Every request was answered once, or came back once.
fn check_answers(world: &mut World, node: usize, tokens: &mut Vec<u64>) {
    let replies: Vec<wire::Reply> = world.take(node, 1, Kind::Reply);
    let back: Vec<wire::NotOwner> = world.take(node, 1, Kind::NotOwner);
    let back = back.into_iter().filter(|it| it.kind == Kind::ClientRequest as u32);
    let back = back.map(|it| wire::ClientRequest::decode(it.body).unwrap().token);
    for token in replies.into_iter().map(|reply| reply.token).chain(back) {
        let at = tokens.iter().position(|known| *known == token);
        tokens.swap_remove(at.unwrap_or_else(|| panic!("{token} was answered twice, or never asked")));
    }
}

/// What the log tells is what is stored.
fn check_group(world: &World) {
    let Some((members, _)) = world.store.groups.get("g:x") else { return };
    let info = Info::decode(world.store.states["g:x"][INFO_KEY].clone()).unwrap();
    let mut told: BTreeMap<String, Role> = BTreeMap::new();
    for entry in &world.store.logs["g:x"].entries {
        if entry.action != Action::System as u8 {
            let member = told.contains_key(&entry.sender);
            assert!(member, "{} wrote without being a member", entry.sender);
            continue;
        }
        let change = client::GroupChange::decode(deliver(&entry.notify).payload).unwrap();
        for user in change.users.clone() {
            match change.kind() {
                Became::Created => {
                    let role = if user == change.by { Role::Owner } else { Role::Member };
                    assert_eq!(told.insert(user, role), None);
                }
                Became::Joined | Became::Invited => assert_eq!(told.insert(user, Role::Member), None),
                Became::Left | Became::Removed => assert!(told.remove(&user).is_some()),
                Became::Role if change.role() == Role::Owner => {
                    for role in told.values_mut().filter(|role| **role == Role::Owner) {
                        *role = Role::Admin;
                    }
                    told.insert(user, Role::Owner);
                }
                Became::Role => assert!(told.insert(user, change.role()).is_some()),
                _ => {}
            }
        }
    }
    assert_eq!(told.keys().collect::<BTreeSet<_>>(), members.iter().collect(), "members");
    for (user, role) in &told {
        assert_eq!(info.role(user), *role, "{user}");
        assert!(world.store.lists[&(user.clone(), List::Groups)].contains_key("g:x"), "{user}'s list");
    }
    assert!(info.admins.iter().chain([&info.owner]).all(|user| user.is_empty() || members.contains(user)));
    assert_eq!(info.owner.is_empty(), members.is_empty());
    assert!(JoinPolicy::try_from(info.join as i32).is_ok());
}

/// Lists may be behind the state, until somebody asks again.
fn check_pairs(world: &mut World) {
    for user in USERS {
        for other in USERS.into_iter().filter(|other| *other != user) {
            let other = other.to_owned();
            for op in [
                Op::Block(client::Block { user: other.clone(), block: false }),
                Op::FriendAnswer(client::FriendAnswer { user: other.clone(), accept: false }),
                Op::FriendRemove(client::FriendRemove { user: other.clone() }),
            ] {
                let node = owner(world, &direct(user, &other));
                let token = world.request(node, session(1, 1), user, op);
                world.run();
                let outcome = world.answer(token).expect("an answer").1;
                assert_eq!(outcome, client::response::Outcome::Done(client::Done {}));
            }
        }
    }
    for ((user, list), items) in &world.store.lists {
        assert!(*list == List::Groups || items.is_empty(), "{user}: {list:?} {items:?}");
    }
    for (name, state) in &world.store.states {
        assert!(name.starts_with("g:") || state.is_empty(), "{name}: {state:?}");
    }
}

#[test]
fn whatever_happens_the_log_tells_who_is_in_and_everyone_is_answered() {
    let seeds: Vec<u64> = match std::env::var("MILLRACE_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (1..=40).collect(),
    };
    for seed in seeds {
        println!("MILLRACE_SEED={seed}");
        play(seed);
    }
}
