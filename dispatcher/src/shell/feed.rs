//! Events for the business behind, read from the embedded store and shown as JSON over the admin port.
//!
//! A consumer asks for the [`heads`], reads the [`page`]s of partitions whose head is above what it has, and keeps how far
//! it is itself: at least once. The rule that keeps it right: ids grow within a partition and are never given twice, so
//! that "after the last one that I have" misses nothing that is still kept. examples/events.rs is such a consumer, of
//! this and of the streams in Redis.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use millrace_edge::mailbox::mailbox;
use millrace_edge::wake::Waker;
use millrace_protocol::ids::Partition;
use millrace_protocol::messages::client::{Notify, notify};
use millrace_protocol::prost::Message;
use serde_json::{Map, Value, json};

use crate::store::{Event, EventId, Job, Outcome, Store, StoreError, Work};

/// Events of one page.
const PAGE_EVENTS_MAX: usize = 256;
/// The store has so long for an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// `{"heads": {"<partition>": "<id>", …}}`: the newest event of each partition that has some.
///
/// # Errors
/// The store does not answer, or has no events to be read this way.
pub fn heads(store: &dyn Store) -> Result<Value, StoreError> {
    let Outcome::EventHeads(heads) = ask(store, Work::EventHeads)? else { return Err(no_answer()) };
    let heads: Map<String, Value> =
        heads.into_iter().map(|(partition, id)| (partition.to_string(), json!(id.to_string()))).collect();
    Ok(json!({ "heads": heads }))
}

/// `{"partition": …, "events": […]}`: the events after an id, oldest first, at most 256.
///
/// # Errors
/// As for [`heads`].
pub fn page(store: &dyn Store, partition: Partition, after: EventId) -> Result<Value, StoreError> {
    let work = Work::Events { partition, after, limit: PAGE_EVENTS_MAX };
    let Outcome::Events(events) = ask(store, work)? else { return Err(no_answer()) };
    let events: Vec<Value> = events.iter().map(shown).collect();
    Ok(json!({ "partition": partition, "events": events }))
}

/// An event as JSON. Numbers of 64 bits that most readers of JSON would round are strings, a payload is in base64.
pub fn shown(event: &Event) -> Value {
    let id = event.id.to_string();
    let kind = &event.kind;
    if kind != "message" {
        let body = serde_json::from_slice(&event.body).unwrap_or(Value::Null);
        return json!({ "id": id, "kind": kind, "body": body });
    }
    let event = Notify::decode(event.body.clone()).ok().and_then(|notify| notify.event);
    let Some(notify::Event::Deliver(deliver)) = event else {
        return json!({ "id": id, "kind": kind, "body": null });
    };
    let body = json!({
        "conversation": deliver.conversation,
        "seq": deliver.seq,
        "message_id": deliver.message_id.to_string(),
        "epoch": deliver.epoch,
        "sender": deliver.sender,
        "device": deliver.sender_device,
        "server_time_ms": deliver.server_time_ms,
        "action": deliver.action().as_str_name(),
        "refers_to": deliver.refers_to,
        "content_kind": deliver.content_kind,
        "payload": STANDARD.encode(&deliver.payload),
    });
    json!({ "id": id, "kind": kind, "body": body })
}

/// Asks, and waits: for threads that may.
fn ask(store: &dyn Store, work: Work) -> Result<Outcome, StoreError> {
    let waker = Waker::new().map_err(|error| StoreError::Unavailable(error.to_string()))?;
    let (replies, answers) = mailbox(1, waker);
    store.submit(vec![Job { ticket: 0, work }], &replies);
    let end = Instant::now() + ANSWER_WAIT;
    while Instant::now() < end {
        if let Some(done) = answers.recv().and_then(|mut done| done.pop()) {
            return done.outcome;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Err(no_answer())
}

fn no_answer() -> StoreError {
    StoreError::Unavailable("the store does not answer".into())
}
