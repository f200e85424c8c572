//! What became of a direct message, for senders who asked: a device of the other side has it, or not in time.
//!
//! The rule that keeps it right: every sender who asked is told once, unless its session or the owner is gone, or its link
//! has no credit. An owner that stops says nothing: the time of who waits is not over, and the message may be delivered
//! within it. So clients count the time too.

use millrace_protocol::conversation::Conversation as Id;
use millrace_protocol::ids::SessionId;
use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::{Fate, Notify, notify};
use millrace_protocol::messages::link::{Relay, Target};
use millrace_protocol::prost::Message;

use super::batch::Owner;
use super::conversation::Conversation;
use super::hub::{Asker, Cx};
use super::limits::{FATE_WITHIN_MS_MAX, FATES_MAX};

/// A message whose sender wants to know.
#[derive(Debug)]
pub struct Awaited {
    seq: u64,
    user: String,
    asker: Asker,
    until_us: u64,
}

/// A message was sent whose sender wants to know within so many ms.
pub fn awaits(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    name: &str,
    (seq, user): (u64, &str),
    asker: Asker,
    within_ms: u32,
) {
    let until_us = cx.now.mono_us + u64::from(within_ms.min(FATE_WITHIN_MS_MAX)) * 1_000;
    let awaited = Awaited { seq, user: user.to_owned(), asker, until_us };
    if conversation.fates.len() >= FATES_MAX {
        cx.hub.stats.fates_unwatched += 1;
        return tell(cx, owner, name, &awaited, false);
    }
    conversation.fates.push(awaited);
    cx.touched(owner, name);
}

/// The other side has everything up to a seq.
pub fn delivered(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    name: &str,
    user: &str,
    through: u64,
) {
    if !matches!(Id::parse(name), Some(Id::Direct(..))) {
        return;
    }
    let met = |awaited: &Awaited| awaited.seq <= through && awaited.user != user;
    let told: Vec<Awaited> = conversation.fates.extract_if(.., |awaited| met(awaited)).collect();
    for awaited in told {
        tell(cx, owner, name, &awaited, true);
    }
}

/// Tells those whose time is over. Returns whether others still wait.
pub fn expire(cx: &mut Cx, owner: &Owner, conversation: &mut Conversation, name: &str) -> bool {
    let now_us = cx.now.mono_us;
    let over: Vec<Awaited> =
        conversation.fates.extract_if(.., |awaited| awaited.until_us <= now_us).collect();
    for awaited in over {
        tell(cx, owner, name, &awaited, false);
    }
    !conversation.fates.is_empty()
}

fn tell(cx: &mut Cx, owner: &Owner, name: &str, awaited: &Awaited, delivered: bool) {
    cx.hub.stats.fates += 1;
    let event = notify::Event::Fate(Fate { conversation: name.to_owned(), seq: awaited.seq, delivered });
    let target = Target { session: awaited.asker.session.0, user: awaited.user.clone(), ..Target::default() };
    let relay = Relay {
        targets: vec![target],
        conversation: name.to_owned(),
        except_session: 0,
        notify: Notify { event: Some(event) }.encode_to_vec().into(),
    };
    let record = owner.from.record(Kind::Relay, SessionId::NONE, &relay);
    cx.send(awaited.asker.link, record);
}
