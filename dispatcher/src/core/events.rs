//! Events for the business behind: logins, logouts and receipts, as JSON, in the partition's batches.
//!
//! Messages and group changes need none: their entries are events, written in the same step as the log. The rule that
//! keeps it right: an event goes into a fenced batch of its partition, so that a paused owner writes none; when there is
//! no room it is dropped and counted, never waited for.

use bytes::Bytes;
use millrace_protocol::ids::Partition;

use super::batch::{Effect, Owner};
use super::hub::Cx;
use crate::store::Write;

/// An event that waits for its partition's next batch.
#[derive(Debug)]
pub struct Waiting {
    /// Where it goes.
    pub partition: Partition,
    kind: &'static str,
    body: Bytes,
}

/// A session of a user began or ended, as its partition heard. Names are of a few safe characters: nothing to escape.
pub fn session(cx: &mut Cx, partition: Partition, kind: &'static str, user: &str, device: &str, number: u64) {
    if !cx.hub.config.limits.events {
        return;
    }
    let at_ms = cx.now.wall_ms;
    let body = format!(
        r#"{{"event":"{kind}","user":"{user}","device":"{device}","login_number":{number},"at_ms":{at_ms}}}"#
    );
    cx.hub.events.push(Waiting { partition, kind, body: body.into() });
}

/// A user's positions in a conversation moved.
pub fn receipt(cx: &mut Cx, partition: Partition, conversation: &str, user: &str, delivered: u64, read: u64) {
    if !cx.hub.config.limits.events {
        return;
    }
    let at_ms = cx.now.wall_ms;
    let body = format!(
        r#"{{"event":"receipt","conversation":"{conversation}","user":"{user}","delivered":{delivered},"read":{read},"at_ms":{at_ms}}}"#
    );
    cx.hub.events.push(Waiting { partition, kind: "receipt", body: body.into() });
}

/// Puts an event into the next batch; `None`: the partition is not served here.
pub fn write(cx: &mut Cx, owner: Option<&mut Owner>, event: Waiting) {
    match owner.filter(|owner| owner.has_room()) {
        Some(owner) => {
            owner.push(Write::Event { kind: event.kind, body: event.body }, Effect::None);
            cx.hub.ready.push(event.partition);
        }
        None => cx.hub.stats.events_dropped += 1,
    }
}
