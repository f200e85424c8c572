//! Direct messages, and attachments, that their owner did not get to fan out.

use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::{self, request::Op};
use millrace_protocol::messages::link as wire;

use super::world::{World, conversation_partition, deliver, direct, session};

/// Two nodes; bob is at gateway 2, which has links to both.
fn world() -> (World, String) {
    let mut world = World::new(2, 1);
    let name = direct("ann", "bob");
    for partition in 0..super::world::PARTITIONS {
        world.claim(0, partition);
    }
    for node in [0, 1] {
        world.connect(node, 1, 1);
        world.connect(node, 2, 1);
    }
    world.run();
    world.register(0, session(2, 7), "bob", "phone", "ios");
    world.run();
    world.clear();
    (world, name)
}

fn seqs(world: &mut World, node: usize) -> Vec<u64> {
    let got: Vec<wire::Direct> = world.take(node, 2, Kind::Direct);
    got.iter().map(|direct| deliver(&direct.notify).seq).collect()
}

#[test]
fn the_next_owner_fans_out_what_the_dead_one_had_appended() {
    let (mut world, name) = world();
    for n in 1..=2 {
        world.send(session(1, 1), "ann", &name, n);
        world.run();
    }
    assert_eq!(seqs(&mut world, 0), [1, 2]);
    // Nothing more reaches the gateway, and then the owner is dead.
    world.end(0, 2).takes = false;
    world.send(session(1, 1), "ann", &name, 3);
    world.run();
    assert_eq!(world.store.logs[&name].head(), 3, "appended");
    world.nodes[0].alive = false;
    world.store.nodes.retain(|node| node.name != "node-0");
    world.view();
    world.claim(1, conversation_partition(&name));
    world.run();
    let again = seqs(&mut world, 1);
    assert_eq!(again.last(), Some(&3), "{again:?}");
    assert!(again.is_sorted());
    let token = world.send_to(1, session(1, 1), "ann", &name, 4, "on");
    world.run();
    assert_eq!(world.ack(token).seq, 4);
    assert_eq!(seqs(&mut world, 1), [4]);
}

#[test]
fn what_was_acknowledged_is_not_fanned_out_again() {
    let (mut world, name) = world();
    for n in 1..=5 {
        world.send(session(1, 1), "ann", &name, n);
        world.run();
        world.pass(50);
    }
    // The report goes with a later batch.
    let outstanding: usize = world.store.outstanding.values().map(Vec::len).sum();
    assert_eq!(outstanding, 1, "only the last one: {:?}", world.store.outstanding);
    world.nodes[0].alive = false;
    world.store.nodes.retain(|node| node.name != "node-0");
    world.view();
    seqs(&mut world, 0);
    world.claim(1, conversation_partition(&name));
    world.run();
    assert_eq!(seqs(&mut world, 1), [5]);
}

#[test]
fn records_wait_until_the_messages_of_the_former_owner_are_fanned_out() {
    let (mut world, name) = world();
    world.end(0, 2).takes = false;
    world.send(session(1, 1), "ann", &name, 1);
    world.run();
    world.nodes[0].alive = false;
    world.store.nodes.retain(|node| node.name != "node-0");
    world.view();
    world.claim(1, conversation_partition(&name));
    let token = world.send_to(1, session(1, 1), "ann", &name, 2, "next");
    world.run();
    assert_eq!(world.ack(token).seq, 2);
    assert_eq!(seqs(&mut world, 1), [1, 2]);
}

/// Sessions at gateway 2 that this node told to attach.
fn attached(world: &mut World, node: usize) -> Vec<u64> {
    let got: Vec<wire::Attach> = world.take(node, 2, Kind::Attach);
    got.iter().flat_map(|attach| attach.targets.iter().map(|target| target.session)).collect()
}

#[test]
fn the_next_owner_attaches_new_members_whom_the_dead_one_did_not_tell() {
    for others in [1, 100] {
        let (mut world, _) = world();
        world.end(0, 2).takes = false;
        let members = (0..others).map(|n| format!("cid-{n}")).chain(["bob".to_owned()]).collect();
        let create = client::GroupCreate { group: "x".into(), members, ..client::GroupCreate::default() };
        world.request(0, session(1, 1), "ann", Op::GroupCreate(create));
        world.run();
        assert_eq!(world.store.groups["g:x"].0.len(), others + 2, "appended");
        world.nodes[0].alive = false;
        world.store.nodes.retain(|node| node.name != "node-0");
        world.view();
        world.claim(1, conversation_partition("g:x"));
        world.run();
        assert_eq!(attached(&mut world, 1), [session(2, 7).0], "{others} others");
    }
}

#[test]
fn a_member_who_joins_again_has_all_sessions_attached() {
    let (mut world, _) = world();
    let create = client::GroupCreate { group: "x".into(), members: vec!["bob".into()], ..Default::default() };
    world.request(0, session(1, 1), "ann", Op::GroupCreate(create));
    world.run();
    assert_eq!(attached(&mut world, 0), [session(2, 7).0]);
    let join = client::GroupJoin { group: "x".into() };
    let token = world.request(0, session(1, 2), "bob", Op::GroupJoin(join));
    world.run();
    assert_eq!(world.answer(token).expect("an answer").0.joined, "g:x");
    assert_eq!(attached(&mut world, 0), [session(2, 7).0], "the first may never have been told");
}

#[test]
fn what_is_for_a_gateway_that_finds_the_node_later_waits_for_it() {
    for late in [false, true] {
        let mut world = World::new(2, 1);
        let name = direct("ann", "bob");
        let partition = conversation_partition(&name);
        for partition in 0..super::world::PARTITIONS {
            world.claim(0, partition);
        }
        world.connect(0, 2, 1);
        world.connect(1, 1, 1);
        world.run();
        world.register(0, session(2, 7), "bob", "phone", "ios");
        world.release(0, partition);
        world.run();
        world.claim(1, partition);
        world.send_to(1, session(1, 1), "ann", &name, 1, "hello");
        world.run();
        assert_eq!(world.store.logs[&name].head(), 1);
        world.pass(if late { 11_000 } else { 5_000 });
        world.connect(1, 2, 1);
        world.run();
        // One that comes so late has its sessions look by itself.
        assert_eq!(seqs(&mut world, 1), if late { vec![] } else { vec![1] });
    }
}

#[test]
fn without_credit_sessions_are_told_that_they_missed_something() {
    let (mut world, name) = world();
    let end = world.end(0, 2);
    end.takes = false;
    let mut n = 0;
    while world.stats(0).directs_dropped == 0 && n < 500 {
        n += 1;
        world.send_to(0, session(1, 1), "ann", &name, n, &"x".repeat(60_000));
        world.run();
    }
    assert!(world.stats(0).directs_dropped > 0, "the window was never full");
    world.end(0, 2).takes = true;
    for _ in 0..50 {
        world.pass(50);
    }
    let got = seqs(&mut world, 0);
    let gaps: Vec<wire::DirectGap> = world.take(0, 2, Kind::DirectGap);
    assert_eq!(got.len() + gaps.len(), n as usize, "each is delivered or told of");
    assert!(gaps.iter().all(|gap| gap.conversation == name && gap.targets[0].user == "bob"));
    assert_eq!(gaps.last().map(|gap| gap.head), Some(n));
}
