//! The example consumer of events, beside a standalone gateway and beside a fleet with Redis: it prints every message, login
//! and change of a group once, also when it is started anew.

use std::collections::BTreeSet;
use std::process::Command;

use millrace_client::{Client, Config, Events, conversation};
use millrace_tests::{Fleet, Server, Shape, binary, gateway_token};

/// Lines of JSON that the consumer printed, without parsing more of them than what is asked for.
fn consume(args: &[&str]) -> Vec<String> {
    let example = binary("examples/events");
    let output = Command::new(example).args(args).arg("--once").output().expect("the example runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

fn of_kind<'a>(lines: &'a [String], kind: &str) -> Vec<&'a String> {
    let kind = format!("\"kind\":\"{kind}\"");
    lines.iter().filter(|line| line.contains(&kind)).collect()
}

async fn login(address: &str, token: String) -> (Client, Events) {
    let mut config = Config::new(vec![address.to_owned()], token);
    config.device = "phone".to_owned();
    Client::connect(config).await.expect("a login")
}

async fn say(address: &str, token: String, texts: &[&str]) {
    let (client, _events) = login(address, token).await;
    let conversation = conversation::direct("ann", "bob");
    for text in texts {
        client.send(&conversation, text.as_bytes().to_vec()).await.expect("an acknowledgement");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standalone_gateway_tells_over_its_admin_port() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let policies = dir.path().join("policies.toml");
    std::fs::write(&policies, "events = true\n").expect("a file");
    let policies = policies.to_str().expect("UTF-8");
    let gateway = Server::standalone(&data, &["--events-max", "1000", "--policies", policies]);
    let state = dir.path().join("state.json");
    let admin = gateway.address("admin");
    let args = ["--admin", &admin, "--state", state.to_str().expect("UTF-8")];
    let token = || gateway_token(&data, "ann");
    assert_eq!(of_kind(&consume(&args), "message").len(), 0);

    say(&gateway.address("tcp"), token(), &["one", "two"]).await;
    let lines = consume(&args);
    assert_eq!(of_kind(&lines, "message").len(), 2, "{lines:?}");
    // "one" in base64.
    assert!(lines.iter().any(|line| line.contains("\"payload\":\"b25l\"")), "{lines:?}");
    assert_eq!(of_kind(&lines, "login").len(), 1, "{lines:?}");

    say(&gateway.address("tcp"), token(), &["three"]).await;
    let lines = consume(&args);
    assert_eq!(of_kind(&lines, "message").len(), 1, "only what is new: {lines:?}");

    // A small group's log tells of its changes; of a large one the members are told beside it.
    let (ann, _events) = login(&gateway.address("tcp"), token()).await;
    let (bob, _bob_events) = login(&gateway.address("tcp"), gateway_token(&data, "bob")).await;
    ann.create_group("tea", ["cid"]).await.expect("a group");
    bob.join_group("tea").await.expect("in");
    let lines = consume(&args);
    let entries = of_kind(&lines, "message");
    assert_eq!(entries.len(), 2, "created, joined: {lines:?}");
    assert!(entries.iter().all(|line| line.contains("\"g:tea\"") && line.contains("SYSTEM")), "{entries:?}");
    assert_eq!(of_kind(&lines, "members").len(), 0, "{lines:?}");
    ann.create_group("town", (0..600).map(|n| format!("user-{n:03}"))).await.expect("a group");
    bob.join_group("town").await.expect("in");
    bob.leave_group("town").await.expect("out");
    let lines = consume(&args);
    let members = of_kind(&lines, "members");
    assert_eq!(members.len(), 4, "601 in two, and bob twice: {members:?}");
    assert!((0..600).all(|n| members.iter().any(|line| line.contains(&format!("\"user-{n:03}\"")))));
    assert!(members[2].contains("\"joined\":[\"bob\"]") && members[3].contains("\"left\":[\"bob\"]"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_tells_through_streams() {
    let fleet = Fleet::start(Shape { dispatcher_args: &["--events-max", "1000"], ..Shape::default() });
    let url = fleet.redis.url();
    let args = |consumer| ["--redis", &url, "--group", "crm", "--consumer", consumer];
    say(&fleet.address(0), fleet.token("ann"), &["one", "two", "three"]).await;
    let first = consume(&args("a"));
    assert_eq!(of_kind(&first, "message").len(), 3, "{first:?}");
    say(&fleet.address(1), fleet.token("ann"), &["four"]).await;
    // Another consumer of the group gets what nobody got.
    let second = consume(&args("b"));
    assert_eq!(of_kind(&second, "message").len(), 1, "{second:?}");
    assert!(second[0].contains("\"payload\":\"Zm91cg==\""), "{second:?}");
    // Another group gets all.
    let other = ["--redis", &url, "--group", "audit", "--consumer", "a"];
    let all: BTreeSet<String> = consume(&other).into_iter().collect();
    assert!(first.iter().chain(&second).all(|line| all.contains(line)), "{all:?}");
    // Groups: their creation, and who joins.
    let (ann, _events) = login(&fleet.address(0), fleet.token("ann")).await;
    let (bob, _bob_events) = login(&fleet.address(1), fleet.token("bob")).await;
    ann.create_group("tea", ["cid"]).await.expect("a group");
    bob.join_group("tea").await.expect("in");
    let lines = consume(&args("a"));
    let entries = of_kind(&lines, "message");
    assert_eq!(entries.len(), 2, "{lines:?}");
    assert!(entries.iter().all(|line| line.contains("\"g:tea\"") && line.contains("SYSTEM")), "{entries:?}");
}
