//! The SDK against a gateway that fails in every way that it must survive.

mod fake;
mod reliable;

use std::time::{Duration, Instant};

use millrace_client::{
    Client, Code, Config, ConnectError, Event, Events, Reason, SendError, SendOptions, Transport,
};
use millrace_protocol::transport::{self as server, Limits, Received};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use fake::{Gateway, Order, refused};

const PATIENCE: Duration = Duration::from_secs(15);

fn config(gateway: &Gateway) -> Config {
    Config {
        backoff: (Duration::from_millis(10), Duration::from_millis(50)),
        ..Config::new([gateway.address.to_string()], "token")
    }
}

/// The next event, but for the one that says that nothing is missing.
async fn next(events: &mut Events) -> Event {
    loop {
        let next =
            timeout(PATIENCE, events.next()).await.expect("an event in time").expect("the client lives");
        if next != Event::CaughtUp {
            return next;
        }
    }
}

/// Skips to the first event that `pick` takes.
async fn find<T>(events: &mut Events, pick: impl Fn(Event) -> Option<T>) -> T {
    loop {
        if let Some(found) = pick(next(events).await) {
            return found;
        }
    }
}

async fn connected(events: &mut Events) -> bool {
    find(events, |event| if let Event::Connected { again, .. } = event { Some(again) } else { None }).await
}

#[tokio::test]
async fn messages_go_and_come_once_over_both_transports() {
    for transport in [Transport::Tcp, Transport::WebSocket] {
        let gateway = Gateway::start().await;
        let (client, mut events) = Client::connect(Config { transport, ..config(&gateway) }).await.unwrap();
        assert!(!connected(&mut events).await);
        assert_eq!(client.join_room("lobby").await.unwrap().head, 7);
        let ack = client.send("r:lobby", "hello").await.unwrap();
        assert_eq!(ack.seq, 1);
        for (epoch, seq) in [(1, 8), (1, 9), (1, 8), (1, 10), (1, 10)] {
            gateway.deliver(epoch, seq, "bob", format!("number {seq}"));
        }
        gateway.head("g:team");
        let mut seqs = Vec::new();
        let end = loop {
            match next(&mut events).await {
                Event::Message(message) => {
                    assert_eq!(message.payload, format!("number {}", message.seq));
                    seqs.push(message.seq);
                }
                other => break other,
            }
        };
        assert_eq!(seqs, [8, 9, 10], "{transport:?}");
        assert_eq!(end, Event::Head { conversation: "g:team".into(), epoch: 1, seq: 5 });
        let group = client.create_group("team", ["bob"]).await;
        assert!(matches!(group, Err(SendError::Refused { code: Code::GroupExists, .. })));
        assert!(matches!(client.send("nowhere", "x").await, Err(SendError::Invalid(_))));
    }
}

#[tokio::test]
async fn what_a_broken_connection_left_unanswered_is_stored_once_and_in_order() {
    let gateway = Gateway::start().await;
    let (client, mut events) = Client::connect(config(&gateway)).await.unwrap();
    gateway.state().drop_after = Some(7);
    gateway.state().busy = 3;
    let sends: Vec<_> = (0..100)
        .map(|index| {
            let client = client.clone();
            // Polled in this order: the order of the calls.
            Box::pin(async move { client.send("d:alice:bob", format!("message {index}")).await })
        })
        .collect();
    let mut running = tokio::task::JoinSet::new();
    for send in sends {
        running.spawn(send);
    }
    timeout(PATIENCE, running.join_all())
        .await
        .unwrap()
        .into_iter()
        .for_each(|ack| assert!(ack.is_ok(), "{ack:?}"));
    assert!(!connected(&mut events).await);
    assert!(matches!(next(&mut events).await, Event::Disconnected { .. }));
    assert!(connected(&mut events).await, "it says that it is a return");
    let state = gateway.state();
    let log: Vec<String> =
        state.log.iter().map(|(_, payload)| String::from_utf8(payload.to_vec()).unwrap()).collect();
    assert_eq!(log, (0..100).map(|index| format!("message {index}")).collect::<Vec<_>>());
    assert_eq!(state.logins.len(), 2);
    assert_eq!((&state.logins[0].1.token[..], &state.logins[0].1.resume_ticket[..]), ("token", &b""[..]));
    assert_eq!((&state.logins[1].1.token[..], &state.logins[1].1.resume_ticket[..]), ("", &b"ticket 1"[..]));
}

#[tokio::test]
async fn a_server_that_asks_for_time_gets_it_and_a_refused_ticket_is_replaced_by_the_token() {
    let gateway = Gateway::start().await;
    gateway.state().refuse_logins = vec![refused(Code::Busy, 300)];
    let (_client, mut events) = Client::connect(config(&gateway)).await.unwrap();
    {
        let logins = &gateway.state().logins;
        assert_eq!(logins.len(), 2);
        assert!(logins[1].0 - logins[0].0 >= Duration::from_millis(300));
    }
    connected(&mut events).await;
    gateway.state().refuse_logins = vec![refused(Code::BadToken, 0)];
    gateway.go_away(Code::GoingAway, 400);
    let left = Instant::now();
    let reason =
        find(
            &mut events,
            |event| {
                if let Event::Disconnected { reason } = event { Some(reason) } else { None }
            },
        );
    assert!(matches!(reason.await, Reason::Server { code: Code::GoingAway, .. }));
    connected(&mut events).await;
    assert!(left.elapsed() >= Duration::from_millis(400), "it came back after {:?}", left.elapsed());
    let logins = &gateway.state().logins;
    assert_eq!(logins.len(), 4);
    assert!(!logins[2].1.resume_ticket.is_empty());
    assert_eq!(logins[3].1.token, "token");
}

#[tokio::test]
async fn a_server_that_asks_for_time_before_the_websocket_is_open_gets_it() {
    let gateway = Gateway::start().await;
    let leaving = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = leaving.local_addr().unwrap().to_string();
    // It leaves when it has heard the first bytes of the handshake.
    let refuses = async || {
        let (mut stream, _) = leaving.accept().await.unwrap();
        let (mut transport, mut begun, mut rest) = (server::Transport::new(), [0; 16], Vec::new());
        stream.read_exact(&mut begun).await.unwrap();
        assert_eq!(transport.next(&mut Received::new(&mut begun), &Limits::default()), Ok(None));
        stream
            .write_all(&transport.close_bytes(Code::GoingAway, "the gateway goes down", 700))
            .await
            .unwrap();
        stream.shutdown().await.unwrap();
        stream.read_to_end(&mut rest).await.unwrap();
        Instant::now()
    };
    let config = Config { transport: Transport::WebSocket, ..config(&gateway) };
    let patient = Config { addresses: vec![address.clone()], ..config.clone() };
    let connecting = tokio::spawn(Client::connect(patient));
    let told = timeout(PATIENCE, refuses()).await.unwrap();
    let again = timeout(PATIENCE, refuses()).await.unwrap();
    assert!(again - told >= Duration::from_secs(1), "it came back after {:?}", again - told);
    connecting.abort();

    let hasty = Config { addresses: vec![address], connect_deadline: Duration::from_millis(500), ..config };
    let (refusal, _) =
        timeout(PATIENCE, async { tokio::join!(Client::connect(hasty), refuses()) }).await.unwrap();
    let refusal = refusal.unwrap_err();
    let expected = |reason: &Reason| matches!(reason, Reason::Server { code: Code::Unavailable, .. });
    assert!(matches!(&refusal, ConnectError::Deadline(reason) if expected(reason)), "{refusal:?}");
}

#[tokio::test]
async fn rooms_are_joined_again_before_anything_is_sent_to_them() {
    let gateway = Gateway::start().await;
    let (client, mut events) = Client::connect(config(&gateway)).await.unwrap();
    client.join_room("lobby").await.unwrap();
    client.join_room("attic").await.unwrap();
    client.leave_room("attic").await.unwrap();
    connected(&mut events).await;
    gateway.state().asked.clear();
    gateway.order(Order::Drop);
    find(&mut events, |event| matches!(event, Event::Disconnected { .. }).then_some(())).await;
    client.send("r:lobby", "back").await.unwrap();
    assert_eq!(gateway.state().asked, ["join r:lobby", "send r:lobby"]);
    let head = find(&mut events, |event| if let Event::Head { seq, .. } = event { Some(seq) } else { None });
    assert_eq!(head.await, 7);
}

#[tokio::test]
async fn a_session_that_lost_to_another_stays_away() {
    let gateway = Gateway::start().await;
    let (client, mut events) = Client::connect(config(&gateway)).await.unwrap();
    connected(&mut events).await;
    gateway.go_away(Code::Displaced, 0);
    let ended = next(&mut events).await;
    assert!(
        matches!(ended, Event::Ended { reason: Reason::Server { code: Code::Displaced, .. } }),
        "{ended:?}"
    );
    assert_eq!(timeout(PATIENCE, events.next()).await.unwrap(), None);
    assert_eq!(client.send("r:lobby", "x").await, Err(SendError::Ended));
    assert_eq!(gateway.state().logins.len(), 1);

    // Also for one whose application takes no events.
    let gateway = Gateway::start().await;
    let (client, events) = Client::connect(Config { events_max: 1, ..config(&gateway) }).await.unwrap();
    for seq in 1..10 {
        gateway.deliver(1, seq, "bob", "unread");
    }
    gateway.go_away(Code::Displaced, 0);
    let options = SendOptions { deadline: Some(Duration::from_millis(500)), ..SendOptions::default() };
    let outcome = timeout(PATIENCE, client.send_with("r:lobby", "x", options)).await.unwrap();
    assert!(outcome.is_ok() || outcome == Err(SendError::Deadline) || outcome == Err(SendError::Ended));
    drop(events);
    timeout(PATIENCE, async { while client.send("r:lobby", "x").await != Err(SendError::Ended) {} })
        .await
        .unwrap();

    let gateway = Gateway::start().await;
    gateway.state().refuse_logins = vec![refused(Code::BadToken, 0)];
    let refusal = Client::connect(config(&gateway)).await.unwrap_err();
    assert!(
        matches!(refusal, ConnectError::Final(Reason::Server { code: Code::BadToken, .. })),
        "{refusal:?}"
    );
}

#[tokio::test]
async fn a_slow_application_slows_its_server_and_loses_nothing() {
    const MESSAGES: u64 = 40_000;
    let gateway = Gateway::start().await;
    let (_client, mut events) = Client::connect(Config { events_max: 4, ..config(&gateway) }).await.unwrap();
    let payload = bytes::Bytes::from(vec![7; 2_000]);
    for seq in 1..=MESSAGES {
        gateway.deliver(1, seq, "bob", payload.clone());
    }
    // 80 MB are far more than the sockets hold: the server must come to a stop.
    let mut written = 0;
    let stopped = async {
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = gateway.state().written;
            if now == written && now > 0 {
                return now;
            }
            written = now;
        }
    };
    let stopped = timeout(PATIENCE, stopped).await.unwrap();
    assert!(stopped < MESSAGES, "everything was taken");
    for seq in 1..=MESSAGES {
        let got =
            find(
                &mut events,
                |event| if let Event::Message(message) = event { Some(message.seq) } else { None },
            );
        assert_eq!(got.await, seq);
    }
}

#[tokio::test]
async fn heartbeats_go_out_and_a_silent_server_is_left() {
    let gateway = Gateway::start().await;
    gateway.state().heartbeat_ms = 100;
    let (_client, mut events) = Client::connect(config(&gateway)).await.unwrap();
    connected(&mut events).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(gateway.state().pings >= 4, "{} heartbeats in 1.5 s at 100 ms", gateway.state().pings);
    assert_eq!(gateway.state().logins.len(), 1, "a server that answers is not silent");
    gateway.state().mute = true;
    let reason =
        find(
            &mut events,
            |event| {
                if let Event::Disconnected { reason } = event { Some(reason) } else { None }
            },
        );
    assert!(matches!(reason.await, Reason::Silent(_)));
}

#[tokio::test]
async fn deadlines_hold_and_the_next_gateway_is_tried() {
    let gateway = Gateway::start().await;
    // Nobody listens at the first address.
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let addresses = vec![dead.to_string(), gateway.address.to_string()];
    let (client, _events) = Client::connect(Config { addresses, ..config(&gateway) }).await.unwrap();
    gateway.state().mute = true;
    let options = SendOptions { deadline: Some(Duration::from_millis(200)), ..SendOptions::default() };
    let began = Instant::now();
    assert_eq!(client.send_with("r:lobby", "x", options).await, Err(SendError::Deadline));
    // Deadlines are kept in whole milliseconds, and a busy machine is late.
    assert!((199..10_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());

    let nowhere = Config {
        addresses: vec![dead.to_string()],
        connect_deadline: Duration::from_millis(300),
        ..config(&gateway)
    };
    let refusal = timeout(PATIENCE, Client::connect(nowhere)).await.unwrap().unwrap_err();
    assert!(matches!(refusal, ConnectError::Deadline(Reason::Network(_))), "{refusal:?}");
}

#[tokio::test]
async fn logout_is_told_to_the_server_and_ends_the_client() {
    let gateway = Gateway::start().await;
    let (client, mut events) = Client::connect(config(&gateway)).await.unwrap();
    connected(&mut events).await;
    timeout(PATIENCE, client.logout()).await.unwrap();
    assert_eq!(gateway.state().asked, ["logout"]);
    assert_eq!(next(&mut events).await, Event::Ended { reason: Reason::Left });

    // Dropping all handles ends it too.
    let (client, mut events) = Client::connect(config(&gateway)).await.unwrap();
    connected(&mut events).await;
    drop(client);
    assert_eq!(next(&mut events).await, Event::Ended { reason: Reason::Left });
}
