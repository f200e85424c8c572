//! Random requests, repeats, crashes of the store and of ownership: whatever happens, logs are dense, every ack is in
//! them, nothing is in them twice, and every fan-out is of something durable.

use std::collections::{BTreeMap, HashMap, HashSet};

use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::{Code, response};
use millrace_protocol::messages::link as wire;

use super::world::{PARTITIONS, World, conversation_partition, deliver, direct, session};
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

/// One user's messages to one conversation: sent in order, each until it is acknowledged.
#[derive(Default)]
struct Sender {
    next: u64,
    open: Vec<u64>,
}

fn owner(world: &World, conversation: &str) -> Option<usize> {
    let partition = conversation_partition(conversation);
    let holder = &world.store.fences.get(&partition)?.0;
    world.nodes.iter().position(|node| node.name == *holder && node.alive)
}

fn play(seed: u64) {
    let mut random = Random(seed);
    let shards = 1 + random.below(3) as usize;
    let mut world = World::new(2, shards);
    for node in 0..2 {
        for gateway in [1, 2] {
            world.connect(node, gateway, 1);
        }
    }
    for partition in 0..PARTITIONS {
        world.claim(random.below(2) as usize, partition);
    }
    world.run();
    for (gateway, slot, user) in [(1, 1, "ann"), (2, 1, "bob"), (2, 2, "ann")] {
        for node in 0..2 {
            world.register(node, session(gateway, slot), user, &format!("{user}-{slot}"), "any");
        }
    }
    let rooms = ["r:a".to_owned(), "r:b".to_owned(), "r:c".to_owned(), direct("ann", "bob")];
    let users = [("ann", session(1, 1)), ("bob", session(2, 1))];
    let mut senders: BTreeMap<(usize, usize), Sender> = BTreeMap::new();
    let mut acked: HashMap<(usize, usize, u64), u64> = HashMap::new();
    for step in 0..400 {
        match random.below(20) {
            0 => {
                let fault = if random.below(2) == 0 { Fault::Unavailable } else { Fault::DoneButUnknown };
                world.store.fail_append = Some(fault);
            }
            1 => {
                let node = random.below(2) as usize;
                world.nodes[node].store_held = !world.nodes[node].store_held;
            }
            2 => {
                // A node hangs: its lease ends, the other claims; or it wakes up.
                let node = random.below(2) as usize;
                let name = world.nodes[node].name.clone();
                if !world.nodes[node].alive {
                    world.nodes[node].alive = true;
                    let incarnation = 100 + node as u64;
                    let address = String::new();
                    world.store.nodes.push(crate::store::Node { name, address, incarnation });
                } else if world.nodes[1 - node].alive {
                    world.nodes[node].alive = false;
                    world.store.nodes.retain(|live| live.name != name);
                }
                world.view();
            }
            3 | 4 => {
                let (node, partition) = (random.below(2) as usize, random.below(8) as u16);
                world.claim(node, partition);
            }
            5 => {
                let (node, partition) = (random.below(2) as usize, random.below(8) as u16);
                world.release(node, partition);
                world.claim(1 - node, partition);
            }
            6 => {
                let conversation = &rooms[random.below(3) as usize];
                let gateway = 1 + random.below(2) as u16;
                if let Some(node) = owner(&world, conversation) {
                    world.subscribe(node, gateway, conversation, 1, &[]);
                }
            }
            7 => world.pass(random.below(1_500)),
            8 => world.now.wall_ms -= random.below(10_000),
            9 => {
                for _ in 0..random.below(6) {
                    world.tick();
                }
            }
            _ => {
                let (room, user) = (random.below(4) as usize, random.below(2) as usize);
                let sender =
                    senders.entry((room, user)).or_insert_with(|| Sender { next: 1, open: Vec::new() });
                let node = match owner(&world, &rooms[room]) {
                    Some(node) if random.below(10) > 0 => node,
                    _ => random.below(2) as usize,
                };
                // Everything that is not acknowledged goes again, in order, and now and then something new.
                sender.open.retain(|n| !acked.contains_key(&(room, user, *n)));
                if sender.open.len() < 4 {
                    sender.open.push(sender.next);
                    sender.next += 1;
                }
                let (name, at) = users[user];
                for n in sender.open.clone() {
                    let payload = format!("{name} {n}");
                    world.send_to(node, at, name, &rooms[room], n, &payload);
                }
            }
        }
        world.tick();
        if step % 4 == 0 {
            note_acks(&mut world, &rooms, &users, &mut acked);
        }
    }
    // All comes to rest, and everything is answered in the end.
    for node in 0..2 {
        world.nodes[node].store_held = false;
        if !world.nodes[node].alive {
            world.nodes[node].alive = true;
            let name = world.nodes[node].name.clone();
            let incarnation = 100 + node as u64;
            world.store.nodes.push(crate::store::Node { name, address: String::new(), incarnation });
        }
    }
    world.store.fail_append = None;
    for round in 0..60 {
        world.view();
        for partition in 0..PARTITIONS {
            let served = world.nodes.iter().any(|node| node.claimed.contains_key(&partition));
            if !served {
                world.claim(round % 2, partition);
            }
        }
        world.pass(2_000);
    }
    note_acks(&mut world, &rooms, &users, &mut acked);
    for ((room, user), sender) in &senders {
        let node = owner(&world, &rooms[*room]).expect("an owner at the end");
        let (name, at) = users[*user];
        let open: Vec<u64> =
            sender.open.iter().copied().filter(|n| !acked.contains_key(&(*room, *user, *n))).collect();
        for n in open {
            world.send_to(node, at, name, &rooms[*room], n, &format!("{name} {n}"));
        }
    }
    world.pass(2_000);
    note_acks(&mut world, &rooms, &users, &mut acked);
    for ((room, user), sender) in &senders {
        for n in 1..sender.next {
            assert!(
                acked.contains_key(&(*room, *user, n)),
                "{} {} {n} has no ack",
                rooms[*room],
                users[*user].0
            );
        }
    }
    assert!(acked.len() > 20, "too little happened: {}", acked.len());
}

/// Looks at everything that gateways got, and compares it with the log.
fn note_acks(
    world: &mut World,
    rooms: &[String],
    users: &[(&str, millrace_protocol::ids::SessionId)],
    acked: &mut HashMap<(usize, usize, u64), u64>,
) {
    use millrace_protocol::prost::Message;
    for name in rooms {
        let log = world.store.logs.get(name).map_or(&[][..], |log| &log.entries[..]);
        let mut seen = HashSet::new();
        for (index, entry) in log.iter().enumerate() {
            assert_eq!(entry.seq, index as u64 + 1, "{name}");
            assert!(seen.insert((&entry.sender, entry.client_seq)), "{name}: {entry:?} twice");
        }
    }
    let mut by_id = HashMap::new();
    for (room, name) in rooms.iter().enumerate() {
        for entry in world.store.logs.get(name).iter().flat_map(|log| &log.entries) {
            let user = users.iter().position(|(user, _)| *user == entry.sender).expect("a sender");
            by_id.insert(entry.message_id.0, (room, user, entry.client_seq, entry.seq, entry.notify.clone()));
        }
    }
    for end in world.ends.values_mut() {
        for record in end.got.drain(..) {
            match record.kind {
                Kind::Reply => {
                    let reply = wire::Reply::decode(record.body).unwrap();
                    let response =
                        millrace_protocol::messages::client::Response::decode(reply.response).unwrap();
                    match response.outcome.unwrap() {
                        response::Outcome::SendAck(ack) => {
                            let (room, user, client_seq, seq, _) =
                                by_id.get(&ack.message_id).expect("an ack is of something durable");
                            assert_eq!(*seq, ack.seq);
                            let first = acked.entry((*room, *user, *client_seq)).or_insert(ack.message_id);
                            assert_eq!(*first, ack.message_id, "a repeat gets the first answer");
                        }
                        response::Outcome::Refused(refused) => assert!(
                            [Code::Busy as i32, Code::OutOfOrder as i32].contains(&refused.code),
                            "{refused:?}"
                        ),
                        other => panic!("{other:?}"),
                    }
                }
                Kind::FanOut => {
                    let message = wire::FanOut::decode(record.body).unwrap();
                    let (.., notify) = &by_id[&deliver(&message.notify).message_id];
                    assert_eq!(*notify, message.notify, "the log's own body");
                }
                Kind::Direct => {
                    let message = wire::Direct::decode(record.body).unwrap();
                    assert!(by_id.contains_key(&deliver(&message.notify).message_id));
                }
                _ => {}
            }
        }
    }
}

#[test]
fn whatever_happens_the_log_is_dense_and_acks_are_true() {
    let seeds: Vec<u64> = match std::env::var("MILLRACE_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (1..=60).collect(),
    };
    for seed in seeds {
        println!("MILLRACE_SEED={seed}");
        play(seed);
    }
}
