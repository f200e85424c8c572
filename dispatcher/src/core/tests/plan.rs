//! Ownership: who serves what as nodes come and go.

use std::collections::BTreeMap;

use millrace_protocol::ids::{Now, Partition};

use crate::core::ownership::{Command, MOVES_MAX, Ownership, winner};
use crate::store::{Node, View};

const PARTITIONS: u16 = 256;

/// Nodes that carry out every command at once, by fences as a store keeps them.
struct Fleet {
    now: Now,
    live: Vec<Node>,
    owners: Vec<(String, u64)>,
    plans: BTreeMap<String, Ownership>,
    /// Most moves under way at the same time.
    moving_max: usize,
}

impl Fleet {
    fn new() -> Self {
        Fleet {
            now: Now { mono_us: 1_000_000, wall_ms: 0 },
            live: Vec::new(),
            owners: vec![Default::default(); usize::from(PARTITIONS)],
            plans: BTreeMap::new(),
            moving_max: 0,
        }
    }

    fn start(&mut self, name: &str) {
        let node = Node { name: name.into(), address: String::new(), incarnation: 1 };
        self.live.retain(|live| live.name != name);
        self.live.push(node);
        self.plans.insert(name.into(), Ownership::new(PARTITIONS, MOVES_MAX));
    }

    fn kill(&mut self, name: &str) {
        self.live.retain(|node| node.name != name);
        self.plans.remove(name);
    }

    /// One heartbeat of every node; the claims and releases it led to.
    fn beat(&mut self) -> (usize, usize) {
        self.now.mono_us += 1_000_000;
        let (mut claims, mut releases) = (0, 0);
        for name in self.plans.keys().cloned().collect::<Vec<_>>() {
            let view = View { nodes: self.live.clone(), owners: self.owners.clone(), ..View::default() };
            let plan = self.plans.get_mut(&name).unwrap();
            for command in plan.plan(&view, &name, self.now) {
                match command {
                    Command::Claim(partition) => {
                        claims += 1;
                        let owner = &mut self.owners[usize::from(partition)];
                        let live = self.live.iter().any(|node| node.name == owner.0);
                        assert!(!live || owner.0 == name, "{name} pre-empts {owner:?}");
                        *owner = (name.clone(), owner.1 + 1);
                        plan.claimed(partition);
                    }
                    Command::Release(partition) => {
                        releases += 1;
                        let owner = &mut self.owners[usize::from(partition)];
                        assert_eq!(owner.0, name);
                        owner.0.clear();
                        plan.not_served(partition, self.now);
                    }
                }
            }
        }
        let unowned = self.owners.iter().filter(|(name, _)| name.is_empty()).count();
        self.moving_max = self.moving_max.max(unowned);
        (claims, releases)
    }

    fn settle(&mut self) -> usize {
        (0..100).map(|_| self.beat()).map(|(_, releases)| releases).sum()
    }

    fn shares(&self) -> BTreeMap<String, usize> {
        let mut shares = BTreeMap::new();
        for (name, _) in &self.owners {
            *shares.entry(name.clone()).or_default() += 1;
        }
        shares
    }
}

#[test]
fn nodes_share_move_the_fewest_and_take_over_from_the_dead_at_once() {
    let mut fleet = Fleet::new();
    fleet.start("a");
    assert_eq!(fleet.beat().0, usize::from(PARTITIONS), "the first node takes all at once");
    fleet.moving_max = 0;
    fleet.start("b");
    let moved = fleet.settle();
    let shares = fleet.shares();
    assert_eq!(moved, shares["b"], "only what the new node gets moves");
    assert!(shares.values().all(|share| (90..=166).contains(share)), "{shares:?}");
    assert!(fleet.moving_max <= MOVES_MAX, "{} moved at once", fleet.moving_max);

    fleet.moving_max = 0;
    fleet.start("c");
    let before = fleet.owners.clone();
    let moved = fleet.settle();
    let shares = fleet.shares();
    assert_eq!(moved, shares["c"]);
    assert!(shares.values().all(|share| (55..=115).contains(share)), "{shares:?}");
    for (was, is) in before.iter().zip(&fleet.owners) {
        assert!(was.0 == is.0 || is.0 == "c");
    }
    // Two old owners, each a few at a time.
    assert!(fleet.moving_max <= 2 * MOVES_MAX, "{} moved at once", fleet.moving_max);

    let orphans = shares["b"];
    fleet.kill("b");
    let (claims, releases) = fleet.beat();
    assert_eq!((claims, releases), (orphans, 0), "within one heartbeat");
    assert!(!fleet.shares().contains_key("b"));
}

#[test]
fn a_node_that_restarts_under_its_name_gives_others_what_is_theirs() {
    let mut fleet = Fleet::new();
    fleet.start("a");
    fleet.beat();
    // It restarts so fast that its name never went; meanwhile another has come.
    fleet.start("b");
    fleet.start("a");
    fleet.settle();
    let shares = fleet.shares();
    assert!(shares["a"] > 90 && shares["b"] > 90, "{shares:?}");
}

#[test]
fn refused_claims_wait_and_a_node_without_a_lease_plans_nothing() {
    let nodes: Vec<Node> =
        ["a"].map(|name| Node { name: name.into(), address: String::new(), incarnation: 1 }).into();
    let view = View { nodes, owners: vec![Default::default(); 4], ..View::default() };
    let mut plan = Ownership::new(4, 1);
    let at = |mono_us| Now { mono_us, wall_ms: 0 };
    assert!(plan.plan(&View::default(), "a", at(1)).is_empty());
    assert!(plan.plan(&view, "b", at(1)).is_empty());
    assert_eq!(plan.plan(&view, "a", at(1)).len(), 4);
    assert!(plan.plan(&view, "a", at(2)).is_empty(), "asked once");
    for partition in 0..3 {
        plan.claimed(partition);
    }
    plan.not_served(3, at(2));
    assert_eq!(plan.served(), 3);
    assert!(plan.plan(&view, "a", at(3)).is_empty(), "not at once again");
    assert_eq!(plan.plan(&view, "a", at(300_000)), [Command::Claim(3)]);
    plan.not_served(3, at(300_000));
    assert!(plan.plan(&view, "a", at(600_000)).is_empty(), "later each time");
    assert_eq!(plan.plan(&view, "a", at(900_000)), [Command::Claim(3)]);
    assert_eq!(plan.release_all().len(), 4);
    assert!(!plan.is_empty());
    for partition in 0..4 {
        plan.not_served(partition, at(900_000));
    }
    assert!(plan.is_empty());
}

#[test]
fn all_nodes_agree_on_the_winner_whatever_the_order() {
    let node = |name: &str| Node { name: name.into(), address: String::new(), incarnation: 1 };
    let (ab, ba) = ([node("a"), node("b")], [node("b"), node("a")]);
    assert!((0..PARTITIONS).all(|partition: Partition| winner(&ab, partition) == winner(&ba, partition)));
    assert_eq!(winner(&[], 0), None);
}
