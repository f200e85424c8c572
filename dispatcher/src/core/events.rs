//! Events for the business behind: logins, logouts, receipts and members whom no entry names, as JSON, in the partition's
//! batches.
//!
//! Messages and most changes of groups need none: their entries are events, written in the same step as the log. The rules
//! that keep it right: an event goes into a fenced batch of its partition, so that a paused owner writes none. One about
//! members is in the batch that changes them, and never dropped; any other is dropped and counted when there is no
//! room, never waited for.

use bytes::Bytes;
use millrace_protocol::ids::Partition;

use super::admin::Plan;
use super::batch::{Effect, Owner};
use super::hub::Cx;
use super::limits::EVENT_USERS_MAX;
use super::notes;
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

/// Who comes into a group and goes, all of them, if the change's entries leave some out: they name a few, and in a large
/// group there are none. For the batch that makes the change. What a dissolved group's members were is not told again.
pub fn members(cx: &Cx, conversation: &str, plan: &Plan) -> Vec<Write> {
    let Plan { notes, add, remove, .. } = plan;
    if !cx.hub.config.limits.events || notes::name_all(notes, add) && notes::name_all(notes, remove) {
        return Vec::new();
    }
    let at_ms = cx.now.wall_ms;
    let event = |(joined, left): (&[String], &[String])| {
        let (joined, left) = (list(joined), list(left));
        let body = format!(
            r#"{{"event":"members","conversation":"{conversation}","joined":[{joined}],"left":[{left}],"at_ms":{at_ms}}}"#
        );
        Write::Event { kind: "members", body: body.into() }
    };
    let joined = add.chunks(EVENT_USERS_MAX).map(|users| (users, &[][..]));
    let left = remove.chunks(EVENT_USERS_MAX).map(|users| (&[][..], users));
    joined.chain(left).map(event).collect()
}

fn list(users: &[String]) -> String {
    let quoted: Vec<String> = users.iter().map(|user| format!(r#""{user}""#)).collect();
    quoted.join(",")
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
