//! The real binary: what it refuses, what it says, how it serves, and how it ends.

mod support;

use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use millrace_protocol::client_session::op;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Code, Login, LoginAck, Refused, notify};
use support::{Client, Gateway, Got, PATIENCE, command, output};

fn token(directory: &std::path::Path, user: &str) -> String {
    let output = output(&["token", "--user", user, "--data-dir", directory.to_str().unwrap()], &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn login(client: &mut Client, login: Op) -> Result<LoginAck, Refused> {
    let id = client.send(login);
    match client.response(id).outcome.unwrap() {
        Outcome::LoginAck(ack) => Ok(ack),
        Outcome::Refused(refused) => Err(refused),
        other => panic!("{other:?} to a login"),
    }
}

#[test]
fn configuration_errors_are_named_before_anything_starts() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("gateway.toml");
    let file = file.to_str().unwrap();
    // content of the file, environment, flags, what must be said
    type Case = (
        &'static str,
        &'static [(&'static str, &'static str)],
        &'static [&'static str],
        &'static [&'static str],
    );
    let cases: &[Case] = &[
        ("shard = 3", &[], &[], &["unknown key `shard` in file", "gateway.toml", "`shards`"]),
        ("shards = 300", &[], &[], &["`shards = 300` in file", "gateway.toml", "from 1 to 255"]),
        (
            "",
            &[("MILLRACE_IO", "iocp")],
            &[],
            &["`io = \"iocp\"` in environment variable MILLRACE_IO", "epoll"],
        ),
        ("", &[("MILLRACE_I0", "epoll")], &[], &["unknown environment variable MILLRACE_I0", "MILLRACE_IO"]),
        ("", &[], &["--drain-s", "0"], &["`drain_s = 0` in flag --drain-s", "from 1 to 3600"]),
        ("", &[], &["--drains", "0"], &["--drains", "--drain-s"]),
        ("dispatchers = ['d:1']", &[], &[], &["`gateway_id` is not set", "`auth.jwks_file` is not set"]),
    ];
    for (content, environment, flags, parts) in cases {
        std::fs::write(file, content).unwrap();
        let arguments = [&["--config", file], *flags].concat();
        let output = output(&arguments, environment);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(output.stdout.is_empty());
        for part in *parts {
            assert!(text.contains(part), "{text}\nwithout {part:?}");
        }
    }
}

#[test]
fn tokens_are_printed_alone_or_refused_with_a_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (data, secret, keys) = (path("data"), path("secret"), path("keys.json"));
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef\n").unwrap();
    std::fs::write(&keys, "{\"keys\":[]}").unwrap();
    let run = |more: &[&str]| output(&[&["token", "--data-dir", &data], more].concat(), &[]);
    let hs256 = ["--auth-hs256", "true", "--auth-hs256-secret-file", &secret];
    for arguments in [vec!["--user", "alice"], [&["--user", "alice", "--ttl", "90s"], &hs256[..]].concat()] {
        let output = run(&arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!((text.lines().count(), text.trim().split('.').count()), (1, 3), "{text}");
    }
    for (arguments, part) in [
        (vec!["--user", "al ice"], "expected 1-64 of"),
        (vec!["--user", "alice", "--ttl", "forever"], "90s, 15m"),
        (vec!["--user", "alice", "--auth-jwks-file", &keys], "public keys only"),
    ] {
        let output = run(&arguments);
        assert!(!output.status.success() && output.stdout.is_empty());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn it_serves_says_what_it_does_and_drains() {
    let directory = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(directory.path(), &["--drain-s", "20"]);
    gateway.wait_ready();
    assert_eq!(gateway.get("/healthz"), (200, "ok\n".to_owned()));
    let log = gateway.log();
    for part in [&gateway.tcp, &gateway.admin, "I/O: ", "2 shards", "slots", "token --user alice", "/store"] {
        assert!(log.contains(part), "{log}\nwithout {part:?}");
    }

    let mut alice = Client::connect(&gateway);
    let ack = login(&mut alice, op::login(&token(directory.path(), "alice"), "phone", "ios")).unwrap();
    assert_eq!((ack.user.as_str(), ack.heartbeat_interval_ms), ("alice", 30_000));
    alice.ping();
    assert!(matches!(alice.next(), Got::Pong));

    let refused =
        login(&mut Client::connect(&gateway), op::login("not.a.token", "phone", "ios")).unwrap_err();
    assert_eq!(refused.code, i32::from(Code::BadToken));
    assert!(refused.reason.contains("no JWT"), "{}", refused.reason);

    let (status, sessions) = gateway.get("/debug/sessions/alice");
    assert_eq!(status, 200);
    for part in
        ["\"device\":\"phone\"", "\"platform\":\"ios\"", "\"transport\":\"tcp\"", "\"shards_silent\":0"]
    {
        assert!(sessions.contains(part), "{sessions}");
    }
    assert!(gateway.get("/debug/sessions/bob").1.contains("\"sessions\":[]"));
    assert_eq!(gateway.get("/debug/sessions/b%3Ab").0, 400);

    assert_eq!(gateway.metric("login_acks_total"), 1);
    assert_eq!(gateway.metric("tokens_checked_total"), 2);
    assert_eq!(gateway.metric("credentials_refused_total"), 1);
    assert_eq!((gateway.metric("shard_up"), gateway.metric("link_up"), gateway.metric("ready")), (2, 2, 2));
    assert!(gateway.metric("edge_bytes_received_total") > 200 && gateway.metric("edge_sends_total") >= 3);
    assert!(gateway.metric("link_bytes_sent_total") > 0 && gateway.metric("link_bytes_received_total") > 0);
    assert!(gateway.metric("anonymous_bytes") > 1 << 20 && gateway.metric("cpu_microseconds_total") > 0);

    gateway.signal("HUP");
    gateway.wait(|| gateway.metric("key_reloads_total") == 1, "reloaded");
    let mut bob = Client::connect(&gateway);
    login(&mut bob, op::login(&token(directory.path(), "bob"), "phone", "ios"))
        .expect("the same key, read again");

    gateway.signal("TERM");
    let begun = Instant::now();
    for client in [&mut alice, &mut bob] {
        match client.next() {
            Got::Notify(notify) => match notify.event.unwrap() {
                notify::Event::GoAway(go_away) => assert_eq!(go_away.code, i32::from(Code::GoingAway)),
                other => panic!("{other:?} instead of GoAway"),
            },
            other => panic!("{other:?} instead of GoAway"),
        }
        assert!(matches!(client.next(), Got::End));
    }
    drop((alice, bob));
    assert_eq!(gateway.end().code(), Some(0), "{}", gateway.log());
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(gateway.log().contains("drained"));

    // The ticket outlives the process, as its secret is kept beside the store.
    let gateway = Gateway::start(directory.path(), &["--io", "epoll"]);
    gateway.wait_ready();
    assert!(gateway.log().contains("I/O: epoll, as configured"), "{}", gateway.log());
    let resume = Op::Login(Login {
        device: "phone".to_owned(),
        platform: "ios".to_owned(),
        resume_ticket: ack.resume_ticket.clone(),
        ..Login::default()
    });
    let again = login(&mut Client::connect(&gateway), resume).unwrap();
    assert_eq!(again.user, "alice");
    assert_eq!(gateway.metric("tickets_checked_total"), 1);
}

#[test]
fn two_gateways_never_share_a_port() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let gateway = Gateway::start(first.path(), &[]);
    let data = second.path().to_str().unwrap();
    let output = output(&["--data-dir", data, "--listen", &gateway.tcp, "--admin", "127.0.0.1:0"], &[]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains(&gateway.tcp) && text.contains("in use"), "{text}");
}

#[test]
fn a_second_signal_ends_it_now() {
    let directory = tempfile::tempdir().unwrap();
    for (name, code) in [("TERM", 143), ("INT", 130)] {
        let mut gateway = Gateway::start(directory.path(), &["--drain-s", "600"]);
        gateway.wait_ready();
        // It is given time to read its GoAway, and holds the drain up meanwhile.
        let mut idle = Client::connect(&gateway);
        login(&mut idle, op::login(&token(directory.path(), "alice"), "phone", "ios")).unwrap();
        gateway.signal(name);
        gateway.wait(|| gateway.log().contains("draining"), "draining");
        gateway.signal(name);
        let status = gateway.end();
        assert_eq!(status.code(), Some(code), "{:?}\n{}", status.signal(), gateway.log());
    }
}

#[test]
fn without_io_uring_it_serves_on_epoll_and_says_why() {
    let directory = tempfile::tempdir().unwrap();
    // This test binary, run again, denies io_uring to itself and becomes the gateway: see `becomes_a_gateway` below.
    let denied = || {
        let mut command = command(std::env::current_exe().unwrap());
        command.args(["--exact", "becomes_a_gateway", "--ignored", "--nocapture"]);
        command
    };
    let arguments = |io: &str| {
        let arguments =
            ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--shards", "2", "--capacity", "2000"];
        let mut all: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        all.extend(["--io".to_owned(), io.to_owned(), "--data-dir".to_owned()]);
        all.push(directory.path().to_str().unwrap().to_owned());
        all.join("\n")
    };
    let mut demanded = denied();
    let output = demanded.env("MILLRACE_TEST_ARGUMENTS", arguments("uring")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("io_uring is configured but can't be used here"),
        "{text}"
    );

    let mut auto = denied();
    auto.env("MILLRACE_TEST_ARGUMENTS", arguments("auto"));
    let mut gateway = Gateway::spawn_as_is(auto);
    gateway.wait_ready();
    assert!(gateway.log().contains("I/O: epoll, as io_uring can't be used here"), "{}", gateway.log());
    assert!(gateway.log().contains("links and timers on epoll"), "{}", gateway.log());
    let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(&gateway)).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        let user = format!("user-{index}");
        login(client, op::login(&token(directory.path(), &user), "phone", "ios")).unwrap();
        let id = client.send(op::room_join("lobby"));
        assert!(matches!(client.response(id).outcome, Some(Outcome::Joined(_))));
    }
    let id = clients[0].send(op::send("r:lobby", 7, 1, "hello"));
    assert!(matches!(clients[0].response(id).outcome, Some(Outcome::SendAck(_))));
    for client in &mut clients[1..] {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < PATIENCE);
            if let Got::Notify(notify) = client.next()
                && let Some(notify::Event::Deliver(deliver)) = notify.event
            {
                assert_eq!((&deliver.payload[..], deliver.sender.as_str()), (&b"hello"[..], "user-0"));
                break;
            }
        }
    }
    gateway.signal("TERM");
    assert_eq!(gateway.end().code(), Some(0), "{}", gateway.log());
}

/// Not a test: what `without_io_uring_it_serves_on_epoll_and_says_why` runs as a child.
#[test]
#[ignore = "run by another test, in a process of its own"]
fn becomes_a_gateway() {
    let Ok(arguments) = std::env::var("MILLRACE_TEST_ARGUMENTS") else { return };
    millrace_edge::process::deny_io_uring_for_this_process().unwrap();
    let error = command(env!("CARGO_BIN_EXE_millrace-gateway")).args(arguments.lines()).exec();
    panic!("it did not become a gateway: {error}");
}
