//! The dispatcher as an operator meets it: processes that start, share partitions, die and leave, over a real Redis.

mod rig;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use millrace_dispatcher::shell::standalone;
use millrace_edge::mailbox::mailbox;
use millrace_edge::wait::readable;
use millrace_edge::wake::Waker;
use millrace_protocol::link::end::LinkEvent;
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::link::Announce;
use millrace_protocol::prost::Message;

use rig::{Dispatcher, Link, PATIENCE, Redis, gateway_end, wait_for};

const PARTITIONS: usize = 64;
const LEASE: Duration = Duration::from_secs(3);

/// Adds what an Announce says.
fn note(owned: &mut BTreeMap<u32, u64>, event: &LinkEvent) {
    if let LinkEvent::Record(Record { kind: Kind::Announce, body, .. }) = event {
        for partition in Announce::decode(body.clone()).unwrap().owned {
            owned.insert(partition.partition, partition.epoch);
        }
    }
}

/// Turns a link until it was told who owns all partitions.
fn announced(mut link: Link) -> BTreeMap<u32, u64> {
    let mut owned = BTreeMap::new();
    let deadline = Instant::now() + PATIENCE;
    while owned.len() < PARTITIONS {
        assert!(Instant::now() < deadline, "{} partitions were announced", owned.len());
        let events = link.turn().expect("the dispatcher keeps the link");
        events.iter().for_each(|event| note(&mut owned, event));
    }
    owned
}

#[test]
fn nodes_share_partitions_and_take_over_from_the_dead() {
    let dir = tempfile::tempdir().unwrap();
    let redis = Redis::start(dir.path());
    let url = redis.url();
    let start = |name: &str| Dispatcher::start(&["--redis", &url, "--name", name, "--shards", "2"]);

    let first = start("one");
    wait_for("one node is ready", PATIENCE, || first.is_ready().then_some(()));
    assert_eq!(first.served(), PARTITIONS);
    assert_eq!(announced(Link::connect(first.links, gateway_end("millrace"))).len(), PARTITIONS);

    let second = start("two");
    let shared = || {
        let (one, two) = (first.served(), second.served());
        (one + two == PARTITIONS && one >= PARTITIONS / 5 && two >= PARTITIONS / 5).then_some(())
    };
    wait_for("two nodes share", PATIENCE, shared);
    wait_for("both are ready", PATIENCE, || (first.is_ready() && second.is_ready()).then_some(()));
    let (_, page) = first.get("/debug/routes/nobody").unwrap();
    assert!(page.contains("\"routes\": []"), "{page}");
    let (_, page) = first.get("/metrics").unwrap();
    assert!(page.contains("millrace_dispatcher_nodes_live 2"), "{page}");

    // kill -9: the other has everything within the lease and a moment.
    let died = Instant::now();
    second.process.signal("KILL");
    wait_for("the takeover", LEASE + Duration::from_secs(3), || (first.served() == PARTITIONS).then_some(()));
    assert!(died.elapsed() > Duration::from_millis(500), "a live owner was pre-empted");

    // SIGTERM: handed over, without waiting for any lease.
    let third = start("three");
    wait_for("three has its share", PATIENCE, || (third.served() >= PARTITIONS / 5).then_some(()));
    let mut first = first;
    first.process.signal("TERM");
    let left = Instant::now();
    assert_eq!(first.process.wait(PATIENCE).code(), Some(0));
    assert!(left.elapsed() < LEASE, "leaving took {:?}", left.elapsed());
    wait_for("the handover", LEASE, || (third.served() == PARTITIONS).then_some(()));

    // An emptied store: the shards go on, find their fences gone, and claim again.
    redis.flush();
    wait_for("an emptied store", PATIENCE, || {
        let (_, page) = third.get("/metrics")?;
        page.contains("millrace_dispatcher_lease_missing_total 1").then_some(())
    });
    wait_for("all is claimed again", PATIENCE, || {
        let (_, page) = third.get("/debug/partitions")?;
        let page: serde_json::Value = serde_json::from_str(&page).ok()?;
        let owners = page["partitions"].as_array()?;
        (page["served_here"] == PARTITIONS && owners.iter().all(|owner| owner["owner"] == "three"))
            .then_some(())
    });
}

#[test]
fn a_redis_that_may_throw_things_away_is_named_in_the_log_and_not_ready() {
    let dir = tempfile::tempdir().unwrap();
    let redis = Redis::start(dir.path());
    redis.tell("CONFIG SET maxmemory-policy allkeys-lru");
    let log = dir.path().join("log");
    let args = ["--redis", &redis.url(), "--name", "one"];
    let node = Dispatcher::start_logging(&args, std::fs::File::create(&log).unwrap());
    let named = |text: &str| text.contains("allkeys-lru") && text.contains("must be noeviction");
    let line = wait_for("the log says it", PATIENCE, || {
        std::fs::read_to_string(&log).unwrap().lines().find(|line| named(line)).map(str::to_owned)
    });
    assert!(line.contains("Z WARN  "), "{line}");
    wait_for("readiness says it", PATIENCE, || {
        let (status, page) = node.get("/readyz")?;
        (status == 503 && named(&page)).then_some(())
    });
}

#[test]
fn a_single_node_serves_from_files_and_restarts_under_greater_epochs() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--store", "embedded", "--data-dir", dir.path().to_str().unwrap(), "--name", "alone"];
    let mut node = Dispatcher::start(&args);
    let before = announced(Link::connect(node.links, gateway_end("millrace")));
    wait_for("ready", PATIENCE, || node.is_ready().then_some(()));

    // Strangers are closed and change nothing.
    let mut stranger = TcpStream::connect(node.links).unwrap();
    stranger.set_read_timeout(Some(PATIENCE)).unwrap();
    stranger.write_all(&[b'G'; 64]).unwrap();
    let mut rest = Vec::new();
    let _ = stranger.read_to_end(&mut rest);
    // One of another cluster learns whom it has met, so that its own log can say it.
    let mut foreign = Link::connect(node.links, gateway_end("other"));
    while let Some(bytes) = foreign.end.transmit() {
        let mut stream = TcpStream::connect(node.links).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut answer = vec![0; 4_096];
        let count = stream.read(&mut answer).unwrap();
        answer.truncate(count);
        assert!(foreign.end.receive(answer.into()).is_err(), "the hello names another cluster");
        // It has the time to hang up for that reason: an end that came at once would be all that it sees.
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(stream.read(&mut [0; 64]).is_err(), "closed before the hello can have been read");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(stream.read(&mut [0; 64]).unwrap(), 0, "and no longer than that");
    }
    assert!(node.is_ready());

    node.process.signal("TERM");
    assert_eq!(node.process.wait(PATIENCE).code(), Some(0));
    let node = Dispatcher::start(&args);
    let after = announced(Link::connect(node.links, gateway_end("millrace")));
    assert!(after.iter().all(|(partition, epoch)| epoch > &before[partition]), "{before:?} {after:?}");
}

#[test]
fn a_standalone_dispatcher_speaks_through_queues_and_replaces_old_connections() {
    let dir = tempfile::tempdir().unwrap();
    let settings = standalone::Settings {
        partitions: PARTITIONS as u16,
        shards: 2,
        ..standalone::Settings::new(dir.path())
    };
    let dispatcher = standalone::start(settings).unwrap();
    let waker = Waker::new().unwrap();
    // A queue of one: what does not fit is kept and comes later.
    let connect = || {
        let (to_gateway, from_dispatcher) = mailbox(1, waker.clone());
        (dispatcher.connect(7, 1, to_gateway), from_dispatcher)
    };
    let (old_sender, old_receiver) = connect();
    let (sender, receiver) = connect();
    wait_for("the older connection is closed", PATIENCE, || {
        (old_sender.is_closed() && old_receiver.is_closed()).then_some(())
    });
    let mut end = gateway_end("millrace");
    end.connected();
    let mut owned = BTreeMap::new();
    let deadline = Instant::now() + PATIENCE;
    while owned.len() < PARTITIONS {
        while let Some(bytes) = end.transmit() {
            sender.send(bytes).unwrap();
        }
        assert!(Instant::now() < deadline, "{} partitions were announced", owned.len());
        readable(waker.fd(), Duration::from_millis(100));
        waker.drain();
        while let Some(bytes) = receiver.recv() {
            end.receive(bytes).unwrap();
            while let Some(event) = end.poll() {
                note(&mut owned, &event);
            }
        }
    }
    let stopping = Instant::now();
    dispatcher.stop(Duration::from_secs(5));
    assert!(stopping.elapsed() < Duration::from_secs(5));
    wait_for("the connection is closed", PATIENCE, || {
        (sender.is_closed() && receiver.is_closed()).then_some(())
    });
    drop(dispatcher);
    // The directory is free again.
    let again = standalone::start(standalone::Settings {
        partitions: PARTITIONS as u16,
        ..standalone::Settings::new(dir.path())
    });
    again.unwrap().stop(Duration::from_secs(5));
}

#[test]
fn wrong_settings_are_refused_with_name_place_and_expectation() {
    struct Case {
        args: &'static [&'static str],
        env: &'static [(&'static str, &'static str)],
        words: &'static [&'static str],
    }
    let case = |args, env, words| Case { args, env, words };
    let table = [
        case(&[], &[], &["redis", "redis://"]),
        case(
            &["--shards", "0"],
            &[("MILLRACE_DISPATCHER_REDIS", "redis://127.0.0.1:1")],
            &["shards", "a flag", "1 to"],
        ),
        case(&[], &[("MILLRACE_DISPATCHER_SHARDZ", "1")], &["shardz", "environment", "no such key"]),
        case(&[], &[("MILLRACE_DISPATCHER_PARTITIONS", "many")], &["partitions", "environment", "many"]),
        case(&["--config", "/nowhere.toml"], &[], &["/nowhere.toml"]),
    ];
    for Case { args, env, words } in table {
        let output = rig::command().args(args).envs(env.iter().copied()).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?} {env:?}: {message}");
        for word in words {
            assert!(message.contains(word), "{args:?} {env:?}: {word:?} is not in {message:?}");
        }
    }
    // A Redis that is not there is no hang either.
    let output = rig::command()
        .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--redis", "redis://127.0.0.1:1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
}
