//! Both stores keep the same promises: one table of cases against each, and the faults that only one of them can have.

mod support;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use millrace_dispatcher::store::embedded::{Embedded, OpenError, Settings};
use millrace_dispatcher::store::redis::{ConnectError, RedisStore, Settings as RedisSettings};
use millrace_dispatcher::store::{CursorsOf, Outcome, Registration, StoreError, StreamKey, Work, Write};
use support::cases::CASES;
use support::kept::KEPT;
use support::random::differ;
use support::redis::{Redis as _, RedisServer};
use support::world::{
    Claim, PARTITIONS, World, entry, message, open_embedded, read, registration, session, until,
};

#[test]
fn embedded_keeps_the_promises() {
    for (name, case) in KEPT.iter().chain(CASES) {
        println!("embedded: {name}");
        case(&World::embedded());
    }
}

#[test]
fn the_model_keeps_the_promises() {
    for (name, case) in KEPT {
        println!("model: {name}");
        case(&World::model());
    }
}

#[test]
fn redis_keeps_the_promises() {
    let server = RedisServer::start();
    for (at, (name, case)) in KEPT.iter().chain(CASES).enumerate() {
        println!("redis: {name}");
        case(&World::redis(&server, &format!("c{at}")));
        server.cli(&["FLUSHALL"]);
    }
}

/// The seed to begin with, and the rounds of jobs under each of the next few: `MILLRACE_SEED` and `MILLRACE_STEPS`.
fn seeds() -> (impl Iterator<Item = u64>, u64) {
    let set = |name| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let (first, count) = set("MILLRACE_SEED").map_or((now, 3), |seed| (seed, 1));
    (first..first + count, set("MILLRACE_STEPS").unwrap_or(400))
}

#[test]
fn embedded_does_as_the_model_does() {
    let (seeds, steps) = seeds();
    for seed in seeds {
        println!("MILLRACE_SEED={seed}");
        println!("{} jobs", differ(seed, &World::embedded(), steps));
    }
}

#[test]
fn redis_does_as_the_model_does() {
    let server = RedisServer::start();
    let (seeds, steps) = seeds();
    for seed in seeds {
        println!("MILLRACE_SEED={seed}");
        println!("{} jobs", differ(seed, &World::redis(&server, "c"), steps));
        server.cli(&["FLUSHALL"]);
    }
}

/// The child of the next test: appends and says so, until it is killed.
#[test]
#[ignore = "a child process of another test"]
fn child_that_writes() {
    let dir = std::env::var_os("MILLRACE_TEST_DIR").expect("set by the parent");
    let world = World::over(Box::new(open_embedded(dir.as_ref())));
    let mut claim = world.claim(3, "a", 1_000);
    for seq in 1.. {
        world.append(&mut claim, vec![message("g:tea", seq)]);
        println!("appended {seq}");
    }
}

#[test]
fn embedded_kill_keeps_everything_answered() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child_that_writes", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("MILLRACE_TEST_DIR", dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut answered = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        if let Some(seq) = line.unwrap().strip_prefix("appended ") {
            answered = seq.parse().unwrap();
        }
        if answered == 200 {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(answered >= 200, "the child died early, at {answered}");
    let world = World::over(Box::new(open_embedded(dir.path())));
    let (entries, _) = world.read("g:tea", 0, u64::MAX, usize::MAX >> 1);
    assert!(entries.len() as u64 >= answered, "{} of {answered} answered appends are there", entries.len());
    assert!(entries.iter().zip(1..).all(|(entry, seq)| entry.seq == seq));
    let claim = world.claim(3, "b", 10);
    assert_eq!(claim.position, entries.len() as u64 + 1, "log and position agree");
    assert!(claim.fence.epoch > 1_000, "a start is a new epoch");
}

#[test]
fn embedded_directory_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_embedded(dir.path());
    let error = Embedded::open(dir.path(), Settings::new(PARTITIONS)).err().expect("it is locked");
    assert!(matches!(error, OpenError::Locked { .. }));
    let said = error.to_string();
    assert!(
        said.contains(dir.path().to_str().unwrap()) && said.contains(&std::process::id().to_string()),
        "{said}"
    );
    drop(store);
    let error = Embedded::open(dir.path(), Settings::new(8)).err().expect("made for 16");
    assert!(matches!(error, OpenError::Partitions { found: PARTITIONS, wanted: 8, .. }), "{error}");
    open_embedded(dir.path());
}

#[test]
fn embedded_corruption_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::over(Box::new(open_embedded(dir.path())));
    let mut claim = world.claim(3, "a", 1_000);
    world.append(&mut claim, (1..=3).map(|seq| message("g:tea", seq)).collect());
    drop(world);
    {
        let db = fjall::Database::builder(dir.path().join("db")).open().unwrap();
        let log = db.keyspace("log", fjall::KeyspaceCreateOptions::default).unwrap();
        let (key, mut value) = log
            .iter()
            .nth(1)
            .map(|guard| guard.into_inner().unwrap())
            .map(|(key, value)| (key.to_vec(), value.to_vec()))
            .unwrap();
        *value.last_mut().unwrap() ^= 1;
        log.insert(key, value).unwrap();
        db.persist(fjall::PersistMode::SyncAll).unwrap();
    }
    let world = World::over(Box::new(open_embedded(dir.path())));
    let Err(StoreError::Corrupted(what)) = world.call(read("g:tea", 0, 9, 9_999)) else {
        panic!("it was read")
    };
    assert!(what.contains("g:tea") && what.contains("seq 2"), "{what}");
    assert_eq!(world.read("g:tea", 2, 9, 9_999).0.len(), 1, "the others are still there");
    // Others may go on: a sender's answers are looked for among the newest entries.
    let mut claim = world.claim(3, "a", 1_000);
    let other = StreamKey { user: "bob".into(), device: "pc".into(), stream: 5 };
    assert_eq!(world.answers(&claim, "g:tea", other.clone()), []);
    assert_eq!(world.load(&claim, "g:tea", Some(other)).head, 3);
    world.append(&mut claim, (4..=99).map(|seq| message("g:tea", seq)).collect());
}

#[test]
fn redis_corruption_is_named() {
    let server = RedisServer::start();
    let world = World::redis(&server, "c");
    server.cli(&["HSET", "{mr:c:p3}:l:g:tea", "1", "rubbish"]);
    let Err(StoreError::Corrupted(what)) = world.call(read("g:tea", 0, 9, 9_999)) else {
        panic!("it was read")
    };
    assert!(what.contains("g:tea") && what.contains("seq 1"), "{what}");

    // A record that is gone, and one too many: the log does not end where its number of records says.
    let log = "{mr:c:p4}:l:g:rum";
    let mut claim = world.claim(4, "a", 1_000);
    world.append(&mut claim, (1..=5).map(|seq| message("g:rum", seq)).collect());
    let (record, last) = (server.cli(&["HGET", log, "2"]), server.cli(&["HGET", log, "5"]));
    assert!(!record.is_empty() && !last.is_empty());
    let damages: [(&[&str], &[&str], &str); 2] = [
        (&["HDEL", log, "2"], &["HSET", log, "2", "lost and found"], "4"),
        (&["HSET", log, "9", "rubbish"], &["HDEL", log, "9"], "6"),
    ];
    for (damage, mend, count) in damages {
        server.cli(damage);
        // Another owner, which remembers nothing of it.
        let claim = world.claim(4, "b", 2_000);
        for work in [claim.load("g:rum"), claim.batch(vec![message("g:rum", 6)])] {
            let outcome = world.call(work);
            let Err(StoreError::Corrupted(what)) = outcome else { panic!("{outcome:?}") };
            assert!(what.contains(log) && what.contains("records") && what.ends_with(count), "{what}");
        }
        server.cli(mend);
        assert_eq!(world.load(&claim, "g:rum", None).head, 5);
    }
    let mut claim = world.claim(4, "a", 3_000);
    world.append(&mut claim, vec![message("g:rum", 6)]);
}

#[test]
fn redis_forgets_scripts() {
    let server = RedisServer::start();
    let world = World::redis(&server, "c");
    let mut claim = world.claim(3, "a", 1_000);
    for seq in 1..=3 {
        assert_eq!(server.cli(&["SCRIPT", "FLUSH"]), "OK");
        world.append(&mut claim, vec![message("g:tea", seq)]);
    }
    // Where two rounds are under way, nothing of the first is sent again behind the second: it was not done, and says so.
    server.cli(&["SCRIPT", "FLUSH"]);
    let register = |n| Work::Register(Box::new(registration("alice", "phone", "ios", session(1, n))));
    let outcomes = world.calls((0..4).map(register).collect());
    let mut numbers = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(Outcome::Registered { login_number, .. }) => numbers.push(login_number),
            Err(StoreError::Unavailable(why)) if numbers.is_empty() && why.contains("NOSCRIPT") => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(numbers.len() >= 2 && numbers.is_sorted(), "{numbers:?}");
    assert_eq!(world.routes("alice")[0].session, session(1, 3), "the last one stays");
    for outcome in world.calls((4..8).map(register).collect()) {
        assert!(matches!(outcome, Ok(Outcome::Registered { .. })), "{outcome:?}");
    }
}

#[test]
fn redis_restarts() {
    let mut server = RedisServer::start();
    let url = server.url();
    let store = RedisStore::connect(&url, RedisSettings::new("c", PARTITIONS)).unwrap();
    let world = World::over(Box::new(store));
    world.beat("a", 60_000);
    let mut claim = world.claim(3, "a", 1_000);
    world.append(&mut claim, vec![message("g:tea", 1)]);

    server.restart(true);
    let fenced = Err(StoreError::Fenced { partition: 3 });
    until("the store is back", Duration::from_secs(8), || world.call(claim.load("g:tea")) == fenced);
    assert_eq!(world.trouble(), None);
    assert_eq!(
        world.call(claim.batch(vec![message("g:tea", 2)])),
        fenced,
        "a claim is of the process before"
    );
    claim = world.claim(3, "a", 1_000);
    world.append(&mut claim, vec![message("g:tea", 2)]);
    assert_eq!(world.read("g:tea", 0, 9, 9_999).0.len(), 2, "with its data");
    assert!(world.beat("a", 60_000).was_missing, "it may not have what came last");
    assert!(!world.beat("a", 60_000).was_missing);

    server.restart(false);
    until("the store is back", Duration::from_secs(8), || {
        !matches!(world.call(claim.load("g:tea")), Err(StoreError::Unavailable(_)))
    });
    assert_eq!(world.call(claim.batch(vec![message("g:tea", 3)])), fenced, "the fence is gone with the data");
    assert!(world.beat("a", 60_000).was_missing, "and so is the lease");
    let next = world.claim(3, "a", 2_000);
    assert!(next.fence.epoch > claim.fence.epoch && next.position == 1);
}

#[test]
fn redis_is_another_copy_after_a_failover() {
    let server = RedisServer::start();
    let world = World::redis(&server, "c");
    assert!(!world.beat("a", 60_000).was_missing);
    let grant = world.gateway(5, 1, 60_000);
    let mut claim = world.claim(3, "a", 1_000);
    let copy = claim.copy;
    assert!(grant != 0 && copy != 0);
    world.append(&mut claim, vec![message("g:tea", 1)]);
    // Its first replica, for which the server takes another replication id.
    let history = || server.cli(&["HGET", "{mr:c:p3}:fence", "h"]);
    let before = history();
    let replica = server.replica();
    assert!(!world.beat("a", 60_000).was_missing);
    world.append(&mut claim, vec![message("g:tea", 2)]);
    assert!(before.len() == 40 && history() != before, "noted, so that it is seen at once the next time");
    assert_eq!(world.load(&claim, "g:tea", None).head, 2);
    assert_eq!(world.gateway_held(5, (1, 0), grant, 60_000), grant);
    drop(replica);
    // A replica that is promoted.
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    server.cli(&["REPLICAOF", "NO", "ONE"]);
    // It has the fence, and nothing is written or read under it: another claim may be lost, and what was read before with it.
    let Claim { partition, fence, .. } = claim;
    let (conversation, stream) = ("g:tea".to_owned(), StreamKey::of(&entry("g:tea", 1, b"")));
    let mut page = read("g:tea", 0, 9, 9_999);
    let Work::Read { fence: shown, .. } = &mut page else { unreachable!() };
    *shown = Some(fence);
    let of = CursorsOf::User("alice".into());
    let login = registration("alice", "phone", "ios", session(5, 1));
    let login = Registration { claim: Some((partition, fence)), ..login };
    for work in [
        claim.batch(vec![message("g:tea", 3)]),
        claim.load("g:tea"),
        Work::Answers { partition, fence, conversation: conversation.clone(), stream },
        Work::Cursors { partition, fence, conversation, of },
        page,
        Work::Register(Box::new(login)),
        Work::Release { partition, fence },
    ] {
        let asked = format!("{work:?}");
        assert_eq!(world.call(work), Err(StoreError::Fenced { partition }), "{asked}");
    }
    let mut claim = world.claim(3, "a", 1_000);
    assert!(claim.copy != copy && claim.position == 3);
    world.append(&mut claim, vec![message("g:tea", 3)]);
    assert!(world.beat("a", 60_000).was_missing);
    assert!(!world.beat("a", 60_000).was_missing);
    for _ in 0..2 {
        assert_eq!(world.gateway_held(5, (1, 0), grant, 60_000), 0, "the other copy granted it");
    }
    let other = world.gateway_again(5, (2, 1), 60_000);
    assert!(other != 0 && other != grant);
    assert_eq!(world.gateway_held(5, (2, 1), other, 60_000), other);
}

#[test]
fn redis_pauses() {
    let server = RedisServer::start();
    let world = World::redis(&server, "c");
    let mut claim = world.claim(3, "a", 1_000);
    server.signal("-STOP");
    for _ in 0..3 {
        let begun = Instant::now();
        let outcome = world.call(claim.batch(vec![message("g:tea", 1)]));
        assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
    until("it is noticed", Duration::from_secs(8), || world.trouble().is_some());
    let begun = Instant::now();
    assert!(world.call(claim.load("g:tea")).is_err());
    assert!(begun.elapsed() < Duration::from_millis(500), "refused at once: {:?}", begun.elapsed());
    server.signal("-CONT");
    until("the store is back", Duration::from_secs(8), || world.call(claim.load("g:tea")).is_ok());
    // What became of the appends is found out as an owner does: by claiming again.
    let next = world.claim(3, "a", 1_000);
    let appended = world.read("g:tea", 0, 9, 9_999).0.len() as u64;
    assert_eq!(next.position, 1 + appended, "log and position agree");
    assert!(appended <= 1, "never twice");
    claim = next;
    world.append(&mut claim, vec![message("g:tea", appended + 1)]);
}

#[test]
fn redis_is_looked_at() {
    let server = RedisServer::start();
    let world = World::redis(&server, "c");
    assert_eq!(world.trouble(), None);
    let other = RedisStore::connect(&server.url(), RedisSettings::new("c", 8)).err().expect("made for 16");
    assert!(matches!(other, ConnectError::Foreign { .. }), "{other}");
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    world.reopen();
    assert!(world.trouble().is_some_and(|said| said.contains("allkeys-lru")), "{:?}", world.trouble());
}

/// Durable appends per second: run in release with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure_appends() {
    let server = RedisServer::start();
    for (name, world) in
        [("embedded", World::embedded()), ("redis, appendfsync always", World::redis(&server, "c"))]
    {
        const PARTS: u16 = 8;
        const BATCH: u64 = 256;
        let mut claims: Vec<_> = (0..PARTS).map(|p| world.claim(p, "a", 1_000)).collect();
        let (begun, mut rounds) = (Instant::now(), 0);
        while begun.elapsed() < Duration::from_secs(4) {
            let batch = |claim: &support::world::Claim| {
                let first = rounds * BATCH + 1;
                claim.batch(
                    (first..first + BATCH)
                        .map(|seq| Write::Message(entry("g:tea", seq, &[7; 300])))
                        .collect(),
                )
            };
            let works = claims.iter().map(batch).collect();
            assert!(world.calls(works).iter().all(|outcome| *outcome == Ok(Outcome::Appended)));
            claims.iter_mut().for_each(|claim| claim.position += BATCH);
            rounds += 1;
        }
        let appended = rounds * BATCH * u64::from(PARTS);
        let per_s = appended as f64 / begun.elapsed().as_secs_f64();
        println!(
            "{name}: {per_s:.0} durable appends/s (8 partitions, batches of 256 x 300 B, {rounds} rounds)"
        );
    }
}
