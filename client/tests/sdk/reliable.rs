//! Groups and direct conversations: what was missed is given once, whatever happens to the process; and what an
//! application does with messages beside sending them.

use std::path::PathBuf;
use std::time::Duration;

use millrace_client::{
    Action, Client, Code, Config, Cursors, Event, Events, PresenceState, SendError, SendOptions, Window,
};
use tokio::time::{sleep, timeout};

use crate::fake::Gateway;
use crate::{PATIENCE, config, next};

fn fill(gateway: &Gateway, count: usize) {
    let mut state = gateway.state();
    let log = state.groups.entry("g:tea".into()).or_default();
    for _ in 0..count {
        let text = format!("message {}", log.len() + 1);
        log.push(text.into());
    }
}

/// The seqs of the next messages.
async fn seqs(events: &mut Events, count: usize) -> Vec<u64> {
    let mut seqs = Vec::new();
    while seqs.len() < count {
        if let Event::Message(message) = next(events).await {
            assert_eq!(message.payload, format!("message {}", message.seq));
            seqs.push(message.seq);
        }
    }
    seqs
}

struct File(PathBuf);

impl File {
    fn new(name: &str) -> Self {
        File(std::env::temp_dir().join(format!("millrace-{name}-{}.cursors", std::process::id())))
    }

    fn config(&self, gateway: &Gateway) -> Config {
        Config { cursors: Cursors::in_file(&self.0), events_max: 8, ..config(gateway) }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn what_was_missed_is_given_once_also_after_the_process_restarts() {
    let (gateway, file) = (Gateway::start().await, File::new("restart"));
    fill(&gateway, 35);
    let (client, mut events) = Client::connect(file.config(&gateway)).await.unwrap();
    assert_eq!(seqs(&mut events, 20).await, (1..=20).collect::<Vec<_>>());
    // Here it leaves, with events that it has not taken.
    client.logout().await;
    drop(events);
    fill(&gateway, 5);
    // Another process can't use the file while one has it; here both are one process, and the first is going.
    let connect = async {
        loop {
            match Client::connect(file.config(&gateway)).await {
                Ok(connected) => return connected,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let (_client, mut events) = timeout(PATIENCE, connect).await.unwrap();
    assert_eq!(seqs(&mut events, 20).await, (21..=40).collect::<Vec<_>>());
    gateway.deliver_to("g:tea", 1, 41, "bob", "message 41");
    gateway.deliver_to("g:tea", 1, 41, "bob", "message 41");
    // Something is missing in between, and is read.
    fill(&gateway, 3);
    gateway.deliver_to("g:tea", 1, 43, "bob", "message 43");
    assert_eq!(seqs(&mut events, 3).await, [41, 42, 43]);
    let acknowledged = async {
        while gateway.state().acknowledged.get("g:tea") != Some(&43) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, acknowledged).await.expect("acknowledged in time");
}

#[tokio::test]
async fn what_was_not_confirmed_comes_again() {
    let (gateway, file) = (Gateway::start().await, File::new("confirm"));
    fill(&gateway, 5);
    let confirms = || Config { confirms: true, ..file.config(&gateway) };
    let (client, mut events) = Client::connect(confirms()).await.unwrap();
    assert_eq!(seqs(&mut events, 2).await, [1, 2]);
    events.confirm();
    assert_eq!(seqs(&mut events, 1).await, [3]);
    client.logout().await;
    drop(events);
    sleep(Duration::from_millis(100)).await;
    let (_client, mut events) = Client::connect(confirms()).await.unwrap();
    assert_eq!(seqs(&mut events, 3).await, [3, 4, 5]);
}

#[tokio::test]
async fn messages_are_posted_in_order_changed_and_read_back() {
    let gateway = Gateway::start().await;
    fill(&gateway, 30);
    let (client, mut events) = Client::connect(config(&gateway)).await.unwrap();
    let mut posted = Vec::new();
    for index in 0..20 {
        posted.push(client.post("d:alice:bob", format!("{index}"), SendOptions::default()).await.unwrap());
    }
    for (posted, seq) in posted.into_iter().zip(1..) {
        assert_eq!(timeout(PATIENCE, posted.stored()).await.unwrap().unwrap().seq, seq);
    }
    client.edit("d:alice:bob", 7, "better").await.unwrap();
    client.react("d:alice:bob", 7, "+1").await.unwrap();
    client.recall("d:alice:bob", 7).await.unwrap();
    let sent: Vec<(Action, u64, Vec<u8>)> = gateway.state().sent[20..]
        .iter()
        .map(|send| (send.action(), send.refers_to, send.payload.to_vec()))
        .collect();
    assert_eq!(
        sent,
        [
            (Action::Edit, 7, b"better".to_vec()),
            (Action::React, 7, b"+1".to_vec()),
            (Action::Recall, 7, Vec::new()),
        ]
    );
    let history = client.history("g:tea", Window::Before(21), 10).await.unwrap();
    assert_eq!(
        history.messages.iter().map(|message| message.seq).collect::<Vec<_>>(),
        (11..=20).collect::<Vec<_>>()
    );
    assert_eq!((history.head, client.mark_read("g:tea", 20).await), (30, Ok(())));
    client.set_presence(PresenceState::Away, None).await.unwrap();
    client.invite("tea", ["carol"]).await.unwrap();
    assert!(matches!(client.invite("tea", ["no name"]).await, Err(SendError::Invalid(_))));
    assert!(matches!(client.history("nowhere", Window::Newest, 0).await, Err(SendError::Invalid(_))));
    let big = client.send("d:alice:bob", vec![0; 70_000]).await;
    assert!(matches!(big, Err(SendError::Refused { code: Code::PayloadTooLarge, .. })));
    let (listings, more) = client.listings("", 0).await.unwrap();
    assert_eq!((listings.len(), listings[0].standing.head.unwrap().seq, more), (1, 30, false));
    assert_eq!(seqs(&mut events, 30).await.len(), 30);
}
