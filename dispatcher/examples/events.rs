//! A consumer of what the business behind wants to know: every message, group change, login, logout and receipt, as one line
//! of JSON each, at least once.
//!
//! ```sh
//! # A fleet: the dispatchers run with `events_max` above 0.
//! cargo run --example events -- --redis redis://127.0.0.1:6379 --group crm --consumer crm-1
//! # A standalone gateway: millrace-gateway --events-max 10000
//! cargo run --example events -- --admin 127.0.0.1:7401 --state crm.json
//! ```
//!
//! In Redis each partition has a stream, and a consumer group remembers what was handed out: several consumers of one group
//! share the work, what one of them did not confirm is given to another after a minute. A standalone gateway remembers
//! nothing of its consumers: this one keeps how far it is in a file. Either way an event counts as done only after its line
//! was written, so a consumer that dies is told some events again: tell them apart by partition and id.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::error::Error;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use fred::bytes::Bytes;
use fred::prelude::*;
use fred::types::streams::XReadResponse;
use millrace_dispatcher::shell::feed;
use millrace_dispatcher::store::Event;
use serde_json::{Value, json};

/// Nothing was there: looked again after this time.
const IDLE: Duration = Duration::from_millis(200);
/// What another consumer did not confirm for this long is taken over, ms.
const TAKE_OVER_MS: u64 = 60_000;
/// Events that are asked for at once.
const COUNT: u64 = 256;

type Failure = Box<dyn Error>;
/// What Redis says, as it is.
type Reply = fred::types::Value;

fn main() -> Result<(), Failure> {
    let arg = |name: &'static str, help: &'static str| Arg::new(name).long(name).help(help);
    let args = Command::new("events")
        .about("Prints events, one line of JSON each")
        .arg(arg("redis", "Of a fleet: redis://host:port").required_unless_present("admin"))
        .arg(arg("admin", "Of a standalone gateway: host:port of its admin port").conflicts_with("redis"))
        .arg(arg("cluster", "The fleet's name").default_value("millrace"))
        .arg(arg("partitions", "The fleet's partitions").default_value("1024"))
        .arg(arg("group", "Consumers of one group share the events").default_value("example"))
        .arg(arg("consumer", "Unique in its group").default_value("one"))
        .arg(arg("state", "With --admin: where to keep how far it is").default_value("events.json"))
        .arg(arg("once", "Ends when there is nothing more").action(ArgAction::SetTrue))
        .get_matches();
    match args.get_one::<String>("admin") {
        Some(admin) => poll(admin, Path::new(text(&args, "state")), args.get_flag("once")),
        None => tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(read(&args)),
    }
}

fn text<'a>(args: &'a ArgMatches, name: &str) -> &'a str {
    args.get_one::<String>(name).map_or("", String::as_str)
}

fn print(partition: u16, mut event: Value) -> io::Result<()> {
    event["partition"] = json!(partition);
    writeln!(io::stdout(), "{event}")
}

// ---- a fleet: streams in Redis ----

async fn read(args: &ArgMatches) -> Result<(), Failure> {
    let client = Builder::from_config(Config::from_url(text(args, "redis"))?).build()?;
    client.init().await?;
    let partitions: u16 = text(args, "partitions").parse()?;
    let (group, consumer) = (text(args, "group"), text(args, "consumer"));
    // What this consumer was given before it died comes first: "0" instead of ">".
    let mut streams: BTreeMap<u16, &str> = BTreeMap::new();
    loop {
        let mut idle = true;
        for partition in 0..partitions {
            let key = format!("{{mr:{}:p{partition}}}:ev", text(args, "cluster"));
            if let Entry::Vacant(stream) = streams.entry(partition) {
                if client.exists::<u64, _>(&key).await? == 0 {
                    continue;
                }
                // From the first event that is still there. It may exist already.
                let made: Result<(), _> = client.xgroup_create(&key, group, "0", false).await;
                if let Err(error) = made
                    && !error.details().starts_with("BUSYGROUP")
                {
                    return Err(error.into());
                }
                stream.insert("0");
            }
            let from = streams[&partition];
            let found: Reply =
                client.xreadgroup(group, consumer, Some(COUNT), None, false, &key, from).await?;
            let found: XReadResponse<String, String, String, Bytes> = match found {
                Reply::Null => XReadResponse::default(),
                found => found.into_xread_response()?,
            };
            let events = found.into_values().flatten();
            let events: Vec<(String, _)> = events.collect();
            if events.is_empty() {
                // Then what is new, or what others left.
                let left = from == ">" && take_over(&client, &key, group, consumer).await?;
                idle &= from == ">" && !left;
                streams.insert(partition, if left { "0" } else { ">" });
                continue;
            }
            idle = false;
            let ids: Vec<String> = events.iter().map(|(id, _)| id.clone()).collect();
            for (id, fields) in events {
                let id = id.split('-').next().and_then(|id| id.parse().ok()).unwrap_or(0);
                let kind = fields.get("k").map(|kind| String::from_utf8_lossy(kind).into_owned());
                let body = fields.get("b").cloned().unwrap_or_default();
                print(partition, feed::shown(&Event { id, kind: kind.unwrap_or_default(), body }))?;
            }
            io::stdout().flush()?;
            let _: u64 = client.xack(&key, group, ids).await?;
        }
        if idle {
            if args.get_flag("once") {
                return Ok(());
            }
            tokio::time::sleep(IDLE).await;
        }
    }
}

/// Makes this consumer's own what others did not confirm; it comes with the next reading from "0". Returns whether there was
/// some.
async fn take_over(client: &Client, key: &str, group: &str, consumer: &str) -> Result<bool, Failure> {
    let claimed: Reply =
        client.xautoclaim(key, group, consumer, TAKE_OVER_MS, "0", Some(COUNT), true).await?;
    // The next cursor, ids, and ids of events that are gone.
    let Reply::Array(parts) = claimed else { return Ok(false) };
    Ok(matches!(parts.get(1), Some(Reply::Array(ids)) if !ids.is_empty()))
}

// ---- a standalone gateway: its admin port ----

fn poll(admin: &str, state: &Path, once: bool) -> Result<(), Failure> {
    let mut done: BTreeMap<u16, u64> = match std::fs::read(state) {
        Ok(text) => serde_json::from_slice(&text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
        Err(error) => return Err(error.into()),
    };
    loop {
        let heads = get(admin, "/events")?;
        let heads = heads["heads"].as_object().ok_or("an answer without heads")?;
        let mut idle = true;
        for (partition, head) in heads {
            let (partition, head): (u16, u64) = (partition.parse()?, number(head)?);
            let after = done.get(&partition).copied().unwrap_or(0);
            if head <= after {
                continue;
            }
            let page = get(admin, &format!("/events/{partition}/{after}"))?;
            for event in page["events"].as_array().ok_or("an answer without events")? {
                print(partition, event.clone())?;
                done.insert(partition, number(&event["id"])?);
                idle = false;
            }
        }
        if !idle {
            io::stdout().flush()?;
            keep(state, &done)?;
        } else if once {
            return Ok(());
        } else {
            std::thread::sleep(IDLE);
        }
    }
}

fn number(text: &Value) -> Result<u64, Failure> {
    Ok(text.as_str().ok_or("an id that is no string")?.parse()?)
}

/// The old file stays until the new one is whole.
fn keep(state: &Path, done: &BTreeMap<u16, u64>) -> Result<(), Failure> {
    let new = state.with_extension("new");
    std::fs::write(&new, serde_json::to_vec(done)?)?;
    std::fs::rename(new, state)?;
    Ok(())
}

fn get(address: &str, path: &str) -> Result<Value, Failure> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("an answer without a head")?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(format!("{address}{path}: {} {body}", head.lines().next().unwrap_or_default()).into());
    }
    Ok(serde_json::from_str(body)?)
}
