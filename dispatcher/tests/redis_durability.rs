//! What Redis keeps and where: levels of durability, replicas that are gone, failovers, and a cluster's slots.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use millrace_dispatcher::store::redis::{RedisStore, Settings};
use millrace_dispatcher::store::{Durability, Outcome, Registration, StoreError, Work};
use support::cases::CASES;
use support::kept::KEPT;
use support::random::differ;
use support::redis::{Redis, RedisCluster, RedisSentinel, RedisServer};
use support::world::{Claim, World, message, registration, session, until};

fn open(redis: &dyn Redis, durability: Durability) -> World<'static> {
    let settings = Settings { durability, ..redis.settings("c") };
    World::over(Box::new(RedisStore::connect(&redis.url(), settings).unwrap()))
}

#[test]
fn fsync_is_checked() {
    let trouble = |server: &RedisServer, url: &str| {
        let settings = Settings { durability: Durability::Fsync, ..server.settings("c") };
        World::over(Box::new(RedisStore::connect(url, settings).unwrap())).trouble()
    };
    let server = RedisServer::start();
    assert_eq!(trouble(&server, &server.url()), None);
    server.cli(&["CONFIG", "SET", "appendfsync", "everysec"]);
    let said = trouble(&server, &server.url()).unwrap();
    assert!(said.contains("appendfsync «everysec»") && said.contains("always"), "{said}");
    server.cli(&["CONFIG", "SET", "appendonly", "no"]);
    let said = trouble(&server, &server.url()).unwrap();
    assert!(said.contains("appendonly «no»"), "{said}");
    assert_eq!(open(&server, Durability::Async).trouble(), None, "only where it was asked for");
    assert_eq!(server.cli(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-config"]), "OK");
    let said = trouble(&server, &format!("redis://app:pw@127.0.0.1:{}", server.port())).unwrap();
    assert!(said.contains("can't be checked") && said.contains("CONFIG"), "{said}");
}

/// A way to a server that can hold back what is sent on the connections that there are.
struct Detour {
    port: u16,
    /// Connections that came before this many are held back; 0: none.
    held: Arc<AtomicUsize>,
    came: Arc<AtomicUsize>,
}

impl Detour {
    fn to(server: u16) -> Detour {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let detour = Detour {
            port: listener.local_addr().unwrap().port(),
            held: Arc::default(),
            came: Arc::default(),
        };
        let (held, came) = (Arc::clone(&detour.held), Arc::clone(&detour.came));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(mut client), Ok(mut server)) = (client, TcpStream::connect(("127.0.0.1", server)))
                else {
                    return;
                };
                let number = came.fetch_add(1, Ordering::SeqCst);
                let held = Arc::clone(&held);
                let (mut back, mut answers) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
                std::thread::spawn(move || {
                    let mut bytes = [0; 4_096];
                    while let Ok(count @ 1..) = client.read(&mut bytes) {
                        while number < held.load(Ordering::SeqCst) {
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        if server.write_all(&bytes[..count]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        detour
    }

    fn hold(&self) {
        self.held.store(self.came.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    fn let_go(&self) {
        self.held.store(0, Ordering::SeqCst);
    }
}

#[test]
fn what_is_late_on_a_connection_that_was_given_up_is_not_done() {
    let server = RedisServer::start();
    let detour = Detour::to(server.port());
    let url = format!("redis://127.0.0.1:{}", detour.port);
    let world = World::over(Box::new(RedisStore::connect(&url, server.settings("c")).unwrap()));
    let login = |number, n| {
        let registration = registration("alice", "phone", "ios", session(1, n));
        world.call(Work::Register(Box::new(Registration { login_number: number, ..registration })))
    };
    let Ok(Outcome::Registered { login_number, .. }) = login(0, 1) else { panic!("no login") };
    detour.hold();
    let lost = login(login_number, 2);
    assert!(matches!(lost, Err(StoreError::Unavailable(_))), "{lost:?}");
    // The same login, resumed again, over another connection.
    until("it is connected again", Duration::from_secs(8), || login(login_number, 3).is_ok());
    detour.let_go();
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(world.routes("alice")[0].session, session(1, 3), "the last one stays");
    }
}

#[test]
fn nothing_is_answered_before_replicas_have_it() {
    let server = RedisServer::start_with(&[]);
    let replica = server.replica();
    let world = open(&server, Durability::Replicated(1));
    world.beat("a", 60_000);
    let mut claim = world.claim(3, "a", 1_000);
    world.append(&mut claim, vec![message("g:tea", 1)]);
    assert_eq!(replica.cli(&["HLEN", "{mr:c:p3}:l:g:tea"]), "1", "it has it when it is answered");
    assert_eq!(world.trouble(), None);

    replica.signal("-STOP");
    let begun = Instant::now();
    let outcome = world.call(claim.batch(vec![message("g:tea", 2)]));
    let Err(StoreError::Unavailable(reason)) = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("0 of 1 replicas"), "{reason}");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert!(world.trouble().unwrap().contains("0 of 1 replicas"), "{:?}", world.trouble());
    // Neither its former owner nor the next one is told of it.
    assert!(matches!(world.call(claim.load("g:tea")), Err(StoreError::Unavailable(_))));
    assert!(matches!(world.try_claim(3, "a", 1_000), Err(StoreError::Unavailable(_))));
    // Leases go on, also in the same round.
    let begun = Instant::now();
    world.beat("a", 60_000);
    assert!(begun.elapsed() < Duration::from_millis(800), "{:?}", begun.elapsed());

    replica.signal("-CONT");
    until("the replica is back", Duration::from_secs(10), || world.try_claim(3, "a", 1_000).is_ok());
    assert_eq!(world.trouble(), None);
    let mut claim = world.claim(3, "a", 1_000);
    assert_eq!(claim.position, 3, "it was carried out; that is found out by the claim");
    world.append(&mut claim, vec![message("g:tea", 3)]);
    assert_eq!(replica.cli(&["HLEN", "{mr:c:p3}:l:g:tea"]), "3");

    // A connection that takes another's place is looked at before it is believed.
    server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    until("it is connected again", Duration::from_secs(8), || world.try_claim(3, "a", 1_000).is_ok());
    let mut claim = world.claim(3, "a", 1_000);
    world.append(&mut claim, vec![message("g:tea", 4)]);
}

#[test]
fn two_replicas_are_asked_for_and_one_is_there() {
    let server = RedisServer::start_with(&[]);
    let _replica = server.replica();
    let world = open(&server, Durability::Replicated(2));
    assert!(matches!(world.try_claim(3, "a", 1_000), Err(StoreError::Unavailable(_))));
    assert!(world.trouble().unwrap().contains("1 of 2 replicas"), "{:?}", world.trouble());
}

#[test]
fn sentinel_promotes_a_replica_and_nothing_answered_is_lost() {
    let mut redis = RedisSentinel::start();
    let world = open(&redis, Durability::Replicated(1));
    let mut claim = world.claim(3, "a", 1_000);
    for seq in 1..=50 {
        world.append(&mut claim, vec![message("g:tea", seq)]);
    }
    redis.primary.kill();
    let refused = world.call(claim.batch(vec![message("g:tea", 51)]));
    // Either nobody was there, or it waited for the promoted one, which did not grant this claim.
    let expected =
        |error: &StoreError| matches!(error, StoreError::Unavailable(_) | StoreError::Fenced { .. });
    assert!(refused.as_ref().is_err_and(expected), "{refused:?}");
    // The promoted one has no replica: what it has can be seen under a level that needs none.
    until("the replica is promoted", Duration::from_secs(20), || {
        redis.replica.cli(&["INFO", "replication"]).contains("role:master")
    });
    let after = open(&redis, Durability::Async);
    let mut next = after.claim(3, "b", 1_000);
    assert!(next.fence.epoch > claim.fence.epoch);
    // What was refused may have waited in the client and be there all the same; what was answered is.
    let entries = after.read("g:tea", 0, 99, 1 << 20).0.len() as u64;
    assert!(next.position == entries + 1 && (50..=51).contains(&entries), "{entries} entries");
    after.append(&mut next, vec![message("g:tea", entries + 1)]);
    // The store that was there before follows too, and says what it lacks.
    until("it has followed", Duration::from_secs(20), || {
        world.call(claim.load("g:tea")) == Err(StoreError::Fenced { partition: 3 })
    });
    let claimed = world.try_claim(3, "a", 1_000);
    assert!(
        matches!(&claimed, Err(StoreError::Unavailable(reason)) if reason.contains("0 of 1 replicas")),
        "{claimed:?}"
    );
}

#[test]
fn a_primary_that_was_replaced_is_left_though_it_does_not_know() {
    let redis = RedisSentinel::start();
    let world = open(&redis, Durability::Async);
    world.claim(3, "a", 1_000);
    assert_eq!(redis.replica.cli(&["REPLICAOF", "NO", "ONE"]), "OK");
    // The Sentinel names the other one; the first goes on as it was.
    let port = redis.replica.port().to_string();
    assert_eq!(redis.sentinel.cli(&["SENTINEL", "REMOVE", "main"]), "OK");
    assert_eq!(redis.sentinel.cli(&["SENTINEL", "MONITOR", "main", "127.0.0.1", &port, "1"]), "OK");
    until("what is written goes to the new one", Duration::from_secs(5), || {
        let _ = world.try_claim(5, "a", 1_000);
        redis.replica.cli(&["EXISTS", "{mr:c:p5}:fence"]) == "1"
    });
    assert_eq!(redis.primary.cli(&["ROLE"]).lines().next(), Some("master"));
}

#[test]
fn a_cluster_keeps_the_promises() {
    let redis = RedisCluster::start();
    for (at, (name, case)) in KEPT.iter().chain(CASES).enumerate() {
        println!("cluster: {name}");
        case(&World::redis(&redis, &format!("c{at}")));
        redis.flush();
    }
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    println!("MILLRACE_SEED={seed}");
    println!("{} jobs", differ(seed, &World::redis(&redis, "c"), 300));
}

/// A claim, as soon as one is granted: while servers change places a try may meet one that is not yet there, or not any more.
fn claimed(world: &World<'_>, partition: u16, within: Duration) -> Claim {
    let mut claim = None;
    until("a claim is granted", within, || {
        claim = world.try_claim(partition, "a", 1_000).ok();
        claim.is_some()
    });
    claim.expect("it was granted")
}

#[test]
fn a_cluster_moves_a_slot_and_loses_a_node() {
    let redis = RedisCluster::start();
    let world = World::redis(&redis, "c");
    let slot = |partition: u16| redis.cli(&["CLUSTER", "KEYSLOT", &format!("{{mr:c:p{partition}}}:fence")]);
    let node = |slot: u16| usize::from(slot > 5_460) + usize::from(slot > 10_922);
    let mut of_nodes: [Vec<u16>; 3] = Default::default();
    for partition in 0..16 {
        of_nodes[node(slot(partition).parse().unwrap())].push(partition);
    }
    let used: Vec<u16> = of_nodes.iter().map(|partitions| partitions[0]).collect();
    let mut claims: Vec<_> = used.iter().map(|partition| world.claim(*partition, "a", 1_000)).collect();
    for claim in &mut claims {
        world.append(claim, vec![message("g:tea", 1)]);
    }
    redis.migrate(slot(used[0]).parse().unwrap(), 0, 1);
    // The first to come is told so, and nothing of it was done; the client knows better then.
    let outcome = world.call(claims[0].batch(vec![message("g:tea", 2)]));
    assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
    claims[0] = claimed(&world, used[0], Duration::from_secs(8));
    assert_eq!(claims[0].position, 2, "nothing was written");
    world.append(&mut claims[0], vec![message("g:tea", 2)]);

    let _replica = redis.add_replica(2);
    redis.nodes[2].signal("-KILL");
    let begun = Instant::now();
    claimed(&world, used[2], Duration::from_secs(40));
    println!("away for {:?}", begun.elapsed());
    for (partition, head) in used.iter().zip([2, 1, 1]) {
        let claim = claimed(&world, *partition, Duration::from_secs(8));
        assert_eq!(world.load(&claim, "g:tea", None).head, head);
    }
}
