//! A fleet as it is run: two gateways, two dispatchers, one real Redis, and 200 people on TCP and WebSocket. Each part
//! is killed with -9 in turn; service must be back within ten seconds, with nothing to clean by hand.
//!
//! A round sends direct, group and room messages and looks whether everybody got theirs, once, in order and in time.
//! What is sent while a part is down may come too late for its round, so service counts as back with the first complete
//! one. What arrives twice or out of order fails the test always; that nothing is lost is what `millrace-loadgen verify`
//! looks at.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millrace_client::{
    Client, Code, Config, Event, Message, SendError, SendOptions, Transport, conversation,
};
use millrace_tests::{Fleet, Shape, get, wait_until};
use tokio::task::JoinSet;

const PEOPLE: usize = 200;
const GROUPS: usize = 10;
/// The promise: service is back within this time of each fault.
const BACK_WITHIN: Duration = Duration::from_secs(10);
/// A round that is not complete by then is given up, and the next one is tried.
const ROUND: Duration = Duration::from_millis(2500);
const GATEWAY_LEASE_MS: &str = "5000";

/// What one person has received.
#[derive(Default)]
struct Inbox {
    texts: HashSet<String>,
    last: HashMap<String, (u64, u64)>,
    wrong: Vec<String>,
    log: String,
}

impl Inbox {
    fn take(&mut self, message: Message) {
        let text = String::from_utf8_lossy(&message.payload).into_owned();
        let at = (message.epoch, message.seq);
        if let Some(last) = self.last.insert(message.conversation.clone(), at)
            && last >= at
        {
            self.wrong.push(format!("{} {text}: {at:?} after {last:?}", message.conversation));
        }
        if !self.texts.insert(text.clone()) {
            self.wrong.push(format!("{} {text} came twice", message.conversation));
        }
    }
}

struct Person {
    name: String,
    client: Client,
    inbox: Arc<Mutex<Inbox>>,
}

fn fleet() -> Fleet {
    let gateway_args = &["--lease-ttl-ms", GATEWAY_LEASE_MS];
    Fleet::start(Shape { more_dispatchers: 1, gateway_args, ..Shape::default() })
}

async fn connect(fleet: &Fleet, at: usize) -> Person {
    let name = format!("u{at:03}");
    let mut config = Config::new(vec![fleet.address(at % 2), fleet.address(1 - at % 2)], fleet.token(&name));
    config.device = "phone".to_owned();
    config.transport = if at % 4 < 2 { Transport::Tcp } else { Transport::WebSocket };
    config.backoff = (Duration::from_millis(100), Duration::from_secs(1));
    config.events_max = 4096;
    let (client, mut events) = Client::connect(config).await.expect("a login");
    let inbox = Arc::new(Mutex::new(Inbox::default()));
    let filled = Arc::clone(&inbox);
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            let mut inbox = filled.lock().expect("no panic");
            match event {
                // What the server says of groups comes again when they are made again.
                Event::Message(message) if message.sender_device.is_empty() => {}
                Event::Message(message) => inbox.take(message),
                Event::Ended { reason } => inbox.wrong.push(format!("ended: {reason}")),
                other => {
                    let _ = writeln!(inbox.log, "  {other:?}");
                }
            }
        }
    });
    Person { name, client, inbox }
}

/// Members of group `g`: neighbours, so that gateways (odd, even) and transports mix in each.
fn members(g: usize) -> Vec<usize> {
    (g * PEOPLE / GROUPS..(g + 1) * PEOPLE / GROUPS).collect()
}

struct Sent {
    conversation: String,
    text: String,
    receivers: Vec<usize>,
    outcome: Result<(), SendError>,
}

/// Sends one round and returns what went wrong, empty if nobody misses anything.
async fn round(people: &[Person], tag: &str, with_groups: bool) -> Vec<String> {
    let mut sends = JoinSet::new();
    let mut send = |from: usize, conversation: String, text: String, receivers: Vec<usize>| {
        let client = people[from].client.clone();
        sends.spawn(async move {
            let options = SendOptions { deadline: Some(ROUND), ..SendOptions::default() };
            let outcome = client.send_with(&conversation, text.clone(), options).await.map(|_| ());
            Sent { conversation, text, receivers, outcome }
        });
    };
    for from in 0..PEOPLE {
        let to = (from + 1) % PEOPLE;
        let pair = conversation::direct(&people[from].name, &people[to].name);
        send(from, pair, format!("{tag} direct {from}"), vec![to]);
    }
    for g in 0..if with_groups { GROUPS } else { 0 } {
        for from in members(g).into_iter().take(3) {
            let receivers = members(g).into_iter().filter(|m| *m != from).collect();
            send(
                from,
                conversation::group(&format!("team{g}")),
                format!("{tag} group {g} {from}"),
                receivers,
            );
        }
    }
    for from in [0, 67, 134] {
        let receivers = (0..PEOPLE).filter(|m| *m != from).collect();
        send(from, conversation::room("lobby"), format!("{tag} room {from}"), receivers);
    }

    let begun = Instant::now();
    let mut sent = Vec::new();
    while let Some(one) = sends.join_next().await {
        sent.push(one.expect("no panic"));
    }
    loop {
        let mut missing = Vec::new();
        for one in &sent {
            if let Err(error) = &one.outcome {
                missing.push(format!("{} not stored: {error}", one.text));
                continue;
            }
            for receiver in &one.receivers {
                if !people[*receiver].inbox.lock().expect("no panic").texts.contains(&one.text) {
                    missing.push(format!(
                        "{} misses '{}' of {}",
                        people[*receiver].name, one.text, one.conversation
                    ));
                }
            }
        }
        if missing.is_empty() || begun.elapsed() > ROUND {
            return missing;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Rounds until one is complete; panics when none is within the promise. Says how long it took.
async fn back_in_service(people: &[Person], fault: &str, with_groups: bool) {
    let begun = Instant::now();
    let mut last = Vec::new();
    for attempt in 0.. {
        // A round that begins in time may end a little later: what counts is when the service was there.
        let started = begun.elapsed();
        assert!(
            started < BACK_WITHIN,
            "{fault}: no complete round within {BACK_WITHIN:?}; the last one: {} wrong, e.g. {:#?}\n{}",
            last.len(),
            &last[..last.len().min(5)],
            people[0].inbox.lock().expect("no panic").log,
        );
        last = round(people, &format!("{fault} {attempt}"), with_groups).await;
        if last.is_empty() {
            println!("{fault}: complete round begun after {started:.1?}, done after {:.1?}", begun.elapsed());
            break;
        }
    }
    check_inboxes(people, fault);
}

fn check_inboxes(people: &[Person], when: &str) {
    for person in people {
        let inbox = person.inbox.lock().expect("no panic");
        assert!(inbox.wrong.is_empty(), "{when}: {}: {:#?}\n{}", person.name, inbox.wrong, inbox.log);
    }
}

async fn make_groups(people: &[Person]) {
    for g in 0..GROUPS {
        let names: Vec<_> = members(g).into_iter().skip(1).map(|m| people[m].name.clone()).collect();
        let creator = &people[members(g)[0]].client;
        creator.create_group(&format!("team{g}"), names).await.expect("a new group");
    }
}

/// Routes under a gateway that is gone, over all people; the dispatcher's debug page lists what Redis holds.
fn routes_of_gateway(fleet: &Fleet, people: &[Person], gateway: u16) -> usize {
    let admin = fleet.dispatcher_admin(1);
    let session = format!("\"{gateway}/");
    people
        .iter()
        .filter(|person| {
            let (status, body) =
                get(&admin, &format!("/debug/routes/{}", person.name)).expect("the admin port");
            assert_eq!(status, 200, "{body}");
            body.contains(&session)
        })
        .count()
}

/// How many partitions a dispatcher serves.
fn served(fleet: &Fleet, at: usize) -> usize {
    let (_, body) = get(&fleet.dispatcher_admin(at), "/metrics").expect("the admin port");
    let shards = body.lines().filter(|line| line.starts_with("millrace_dispatcher_partitions_served"));
    let values = shards.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum::<f64>() as usize
}

#[test]
fn a_fleet_survives_the_death_of_each_part() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let mut fleet = fleet();
    wait_until("both dispatchers serve their share", Duration::from_secs(15), || {
        let (a, b) = (served(&fleet, 0), served(&fleet, 1));
        (a + b == 1024 && a > 300 && b > 300).then_some(())
    });

    let people = runtime.block_on(async {
        let mut people = Vec::new();
        for at in 0..PEOPLE {
            people.push(connect(&fleet, at).await);
        }
        make_groups(&people).await;
        for person in &people {
            person.client.join_room("lobby").await.expect("the room");
        }
        people
    });
    let rounds = |fault: &str, groups: bool| runtime.block_on(back_in_service(&people, fault, groups));
    rounds("before any fault", true);

    fleet.take_gateway(0).kill();
    rounds("a gateway killed", true);
    wait_until("no route of the dead gateway is left", Duration::from_secs(15), || {
        (routes_of_gateway(&fleet, &people, 1) == 0).then_some(())
    });
    fleet.start_gateway(0);

    fleet.take_dispatcher(0).kill();
    rounds("a dispatcher killed", true);
    assert_eq!(served(&fleet, 1), 1024, "the other one owns everything");
    fleet.start_dispatcher(0);
    wait_until("partitions move to the new dispatcher", Duration::from_secs(30), || {
        let (a, b) = (served(&fleet, 0), served(&fleet, 1));
        (a + b == 1024 && a > 300 && b > 300).then_some(())
    });
    rounds("a dispatcher joined", true);

    fleet.redis.kill();
    fleet.redis.start_again();
    rounds("Redis restarted with its data", true);

    fleet.redis.kill();
    fleet.redis.wipe();
    fleet.redis.start_again();
    rounds("Redis restarted empty", false);
    runtime.block_on(async {
        let gone = people[0].client.send(&conversation::group("team0"), "anybody?").await;
        assert!(
            matches!(&gone, Err(SendError::Refused { code: Code::NoSuchGroup, .. })),
            "groups are gone with the data: {gone:?}"
        );
        make_groups(&people).await;
    });
    rounds("groups made again", true);

    // An orderly end: people are told and go to the other gateway, partitions are handed over.
    let ended = fleet.take_gateway(1).terminate(Duration::from_secs(20));
    assert!(ended.success(), "a drained gateway exits with 0: {ended}");
    rounds("a gateway drained", true);
    let ended = fleet.take_dispatcher(0).terminate(Duration::from_secs(15));
    assert!(ended.success(), "a stopped dispatcher exits with 0: {ended}");
    rounds("a dispatcher stopped", true);
}
