//! What retention dropped, through a real gateway: a device that was away is told which messages are gone, and gets the rest.

use std::time::Duration;

use millrace_client::{Client, Config, Event, Events, conversation};
use millrace_tests::{Server, gateway_token};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

async fn next(events: &mut Events) -> Event {
    timeout(PATIENCE, events.next()).await.expect("an event in time").expect("not the end")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_below_what_is_kept_is_told_a_gap() {
    let dir = tempfile::tempdir().expect("a directory");
    let (data, policies) = (dir.path().join("data"), dir.path().join("policies.toml"));
    std::fs::write(&policies, "[retention]\nbytes = 4000\n").expect("a file");
    let gateway = Server::standalone(&data, &["--policies", policies.to_str().expect("UTF-8")]);
    let login = async |user: &str| {
        let token = gateway_token(&data, user);
        let mut config = Config::new([gateway.address("tcp")], token);
        config.device = "phone".to_owned();
        Client::connect(config).await.expect("a login")
    };
    let pair = conversation::direct("ann", "bob");
    let (ann, mut ann_events) = login("ann").await;
    let (bob, mut events) = login("bob").await;
    ann.send(&pair, "first").await.expect("stored");
    while !matches!(next(&mut events).await, Event::Message(_)) {}
    // The server has bob's cursor when it tells of it.
    while !matches!(next(&mut ann_events).await, Event::Receipt(_)) {}
    bob.logout().await;

    for _ in 0..200 {
        ann.send(&pair, vec![b'x'; 100]).await.expect("stored");
    }
    let (_bob, mut events) = login("bob").await;
    let (from, to) = loop {
        match next(&mut events).await {
            Event::Gap { from, to, .. } => break (from, to),
            Event::Message(message) => panic!("{} without a gap", message.seq),
            _ => {}
        }
    };
    assert_eq!(from, 2, "behind what bob took");
    // 4,000 bytes, and what came since they were counted: once in 64 messages.
    assert!((201 - 110..201).contains(&to), "{to}");
    for expected in to + 1..=201 {
        let seq = loop {
            if let Event::Message(message) = next(&mut events).await {
                break message.seq;
            }
        };
        assert_eq!(seq, expected);
    }
}
