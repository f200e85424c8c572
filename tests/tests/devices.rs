//! One person on several devices, through a real gateway: everything reaches all of them, their own messages the
//! others, and a platform may allow only its newest session.

use std::time::Duration;

use millrace_client::{Client, Code, Config, Event, Events, Reason, conversation};
use millrace_tests::{Server, gateway_token};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

struct World {
    data: tempfile::TempDir,
    server: Server,
}

impl World {
    fn start() -> World {
        let data = tempfile::tempdir().expect("a directory");
        let dir = data.path().to_str().expect("a path in UTF-8");
        let server = Server::start(
            "millrace-gateway",
            ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--shards", "2", "--data-dir", dir]
                .into_iter()
                .chain(["--platforms", "ios=newest_wins,web=keep_all"]),
        );
        World { data, server }
    }

    async fn connect(&self, user: &str, device: &str, platform: &str) -> (Client, Events) {
        let token = gateway_token(self.data.path(), user);
        let mut config = Config::new([self.server.address("tcp")], token);
        config.device = device.to_owned();
        config.platform = platform.to_owned();
        Client::connect(config).await.expect("a login")
    }
}

/// The next message, as (sender, device, text).
async fn message(events: &mut Events) -> (String, String, String) {
    loop {
        let event = timeout(PATIENCE, events.next()).await.expect("a message in time").expect("not the end");
        if let Event::Message(message) = event {
            let text = String::from_utf8(message.payload.to_vec()).expect("text");
            return (message.sender, message.sender_device, text);
        }
    }
}

fn said(sender: &str, device: &str, text: &str) -> (String, String, String) {
    (sender.to_owned(), device.to_owned(), text.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_devices_hear_and_a_platform_may_keep_only_its_newest_session() {
    let world = World::start();
    let (phone, mut phone_events) = world.connect("alice", "phone", "ios").await;
    let (_laptop, mut laptop_events) = world.connect("alice", "laptop", "web").await;
    let (_tab, mut tab_events) = world.connect("alice", "other-tab", "web").await;
    let (bob, mut bob_events) = world.connect("bob", "phone", "ios").await;
    let pair = conversation::direct("alice", "bob");

    bob.send(&pair, "to all of you").await.expect("stored");
    for events in [&mut phone_events, &mut laptop_events, &mut tab_events] {
        assert_eq!(message(events).await, said("bob", "phone", "to all of you"));
    }
    phone.send(&pair, "from my phone").await.expect("stored");
    for events in [&mut bob_events, &mut laptop_events, &mut tab_events] {
        assert_eq!(message(events).await, said("alice", "phone", "from my phone"));
    }

    // A second iOS device: the first is closed with the reason, and stays away. The web sessions are not touched.
    let (tablet, mut tablet_events) = world.connect("alice", "tablet", "ios").await;
    // It is new: it catches up with what nobody has read.
    assert_eq!(message(&mut tablet_events).await, said("bob", "phone", "to all of you"));
    assert_eq!(message(&mut tablet_events).await, said("alice", "phone", "from my phone"));
    let ended = loop {
        let event = timeout(PATIENCE, phone_events.next()).await.expect("an end in time");
        if let Some(Event::Ended { reason }) = event {
            break reason;
        }
    };
    assert!(matches!(ended, Reason::Server { code: Code::Displaced, .. }), "{ended:?}");
    bob.send(&pair, "who is left?").await.expect("stored");
    for events in [&mut tablet_events, &mut laptop_events, &mut tab_events] {
        assert_eq!(message(events).await, said("bob", "phone", "who is left?"));
    }
    tablet.logout().await;
    assert!(world.server.terminate(Duration::from_secs(20)).success(), "an orderly end");
}
