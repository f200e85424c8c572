//! Sending: from a client's Send to its ack, the fan-out and the direct deliveries.
//!
//! The rule that keeps it right: everything about a message (seq, id, the body that receivers get) is fixed when it
//! enters the batch, and nobody hears of it before the batch is durable.

use bytes::Bytes;
use millrace_protocol::conversation::Conversation as Id;
use millrace_protocol::ids::{MessageId, SessionId};
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::client::{Action, Code, Refused, Send, SendAck, response};
use millrace_protocol::messages::link::{FanOut, Reply};
use millrace_protocol::planted::{self, Fault};

use super::batch::{Effect, Owner};
use super::conversation::Conversation;
use super::delivery::{Ask, What};
use super::entry::{self, Draft};
use super::holds::Need;
use super::hub::{Asker, Cx};
use super::limits::REPEATS_MAX;
use super::refer::{self, Judged};
use super::streams::{Check, stream_of};
use super::{fates, retention};
use crate::store::{Answer, Change, Entry, List, StreamKey, UserItem, Work, Write};

/// What a message waits for, by its stream; `None`: behind another message of its stream.
pub type Held = (StreamKey, Option<Need>);

/// A Send of `user` on `device`.
///
/// # Errors
/// When something must be read before it can be judged: it comes again then.
pub fn send(
    cx: &mut Cx,
    owner: &mut Owner,
    conversation: &mut Conversation,
    asker: Asker,
    (user, device): (String, String),
    ask: Send,
) -> Result<(), Held> {
    let from = owner.from;
    let id = Id::parse(&ask.conversation);
    if let Some((code, reason)) = forbidden(id, conversation, &user) {
        cx.refuse(from, asker, code, reason);
        return Ok(());
    }
    if ask.payload.len() > cx.hub.config.limits.payload_bytes_max {
        let reason = format!("the payload is above {} bytes", cx.hub.config.limits.payload_bytes_max);
        cx.refuse(from, asker, Code::PayloadTooLarge, &reason);
        return Ok(());
    }
    let key = stream_of(user, device, ask.stream);
    if conversation.holds.holds(&key) {
        return Err((key, None));
    }
    let payload_hash = payload_hash(&ask);
    match conversation.streams.check(&key, ask.client_seq, payload_hash, conversation.durable) {
        Check::New => {}
        Check::Crowded => {
            cx.hub.stats.crowded += 1;
            cx.busy(from, asker, "64 messages of this stream are not answered yet");
            return Ok(());
        }
        Check::Unknown => return Err((key, Some(Need::Answers))),
        Check::Repeat(answer) => {
            repeat(cx, owner, conversation, asker, answer);
            return Ok(());
        }
        Check::Conflict => {
            cx.hub.stats.conflicts += 1;
            let reason = "this client_seq was sent before with another payload";
            cx.refuse(from, asker, Code::Conflict, reason);
            return Ok(());
        }
        Check::OutOfOrder { expected } => {
            cx.hub.stats.out_of_order += 1;
            let reason = format!("client_seq {} where {expected} is due", ask.client_seq);
            let code = Code::OutOfOrder as i32;
            cx.refuse_with(from, asker, Refused { code, reason, retry_after_ms: 0, expected });
            return Ok(());
        }
    }
    if let Some((code, reason)) = silenced(cx, id, conversation, &key.user) {
        cx.refuse(from, asker, code, reason);
        return Ok(());
    }
    let refers = match refer::judge(cx, conversation, &key.user, &ask) {
        Ok(refers) => refers,
        Err(Judged::Needs(seq)) => return Err((key, Some(Need::Entry(seq)))),
        Err(Judged::Refused(code, reason)) => {
            cx.refuse(from, asker, code, reason);
            return Ok(());
        }
    };
    if !owner.has_room() {
        cx.busy(from, asker, "too much is waiting for the store");
        return Ok(());
    }
    if matches!(id, Some(Id::Direct(..))) {
        if cx.hub.delivery.is_full() {
            cx.busy(from, asker, "too much is waiting for delivery");
            return Ok(());
        }
        if !conversation.listed && !planted::is(Fault::DirectNotListed) {
            return Err((key, Some(Need::Listed)));
        }
    }
    append(cx, owner, conversation, asker, key, payload_hash, ask, refers);
    Ok(())
}

/// Puts a direct conversation into both users' lists: done before its first message, so that a recipient who is away can
/// find it.
pub fn list_direct(name: &str) -> Work {
    let users: Vec<&str> = match Id::parse(name) {
        Some(Id::Direct(a, b)) if a == b => vec![a],
        Some(Id::Direct(a, b)) => vec![a, b],
        _ => Vec::new(),
    };
    let item = |user: &str| UserItem {
        user: user.to_owned(),
        list: List::Directs,
        item: name.to_owned(),
        change: Change::Add(Bytes::new()),
    };
    Work::UserItems { items: users.into_iter().map(item).collect(), claim: None }
}

/// Why a user may not send there.
pub fn forbidden(
    id: Option<Id<'_>>,
    conversation: &Conversation,
    user: &str,
) -> Option<(Code, &'static str)> {
    match id? {
        Id::Direct(a, b) if a != user && b != user => {
            Some((Code::Forbidden, "the conversation of two other users"))
        }
        Id::Direct(..) | Id::Room(_) => None,
        Id::Group(_) => match &conversation.members {
            None => Some((Code::NoSuchGroup, "there is no such group")),
            Some(_) if planted::is(Fault::LeavingMaySend) && conversation.rounds.is_leaving(user) => None,
            Some(members) if !members.contains(user) || conversation.rounds.is_leaving(user) => {
                Some((Code::NotMember, "not a member of this group"))
            }
            Some(_) => None,
        },
    }
}

/// Why a new message of a user who may send there is refused all the same. Repeats are not: they were taken before.
pub fn silenced(
    cx: &Cx,
    id: Option<Id<'_>>,
    conversation: &Conversation,
    user: &str,
) -> Option<(Code, &'static str)> {
    match id? {
        Id::Group(_) if conversation.info_ahead().is_muted(user, cx.now.wall_ms) => {
            Some((Code::Muted, "muted in this group"))
        }
        Id::Direct(a, b) if a != b => conversation.pair.forbids(cx.hub.config.limits.strangers_may_write),
        _ => None,
    }
}

#[expect(clippy::too_many_arguments, reason = "everything that is fixed when a message enters its batch")]
fn append(
    cx: &mut Cx,
    owner: &mut Owner,
    conversation: &mut Conversation,
    asker: Asker,
    key: StreamKey,
    payload_hash: u64,
    ask: Send,
    refers: Option<Entry>,
) {
    let direct = matches!(Id::parse(&ask.conversation), Some(Id::Direct(..)));
    let is_message = ask.action == Action::Message as i32;
    let draft = Draft {
        sender: key.user.clone(),
        device: key.device.clone(),
        stream: key.stream,
        client_seq: ask.client_seq,
        payload_hash,
        payload: ask.payload,
        content_kind: ask.content_kind,
        // Judged before: it is one that is known.
        action: Action::try_from(ask.action).unwrap_or_default(),
        refers_to: ask.refers_to,
    };
    let given_ms = cx.hub.clocks.given_ms(cx.now);
    let entry = entry::next(owner, conversation, &ask.conversation, given_ms, draft);
    let Entry { seq, message_id, epoch, .. } = entry;
    let notify = entry.notify.clone();
    if planted::is(Fault::AckBeforeDurable) {
        acknowledge(cx, owner, asker, seq, message_id, epoch);
    }
    if planted::is(Fault::FanOutBeforeDurable) {
        fan_out(cx, owner, conversation, ask.conversation.clone(), seq, asker.session, notify.clone());
    }
    if direct {
        owner.outstanding(&ask.conversation, seq);
    }
    let fate_within_ms = if direct { ask.fate_within_ms } else { 0 };
    let sent = Sent { seq, message_id, is_message, asker, user: key.user.clone(), fate_within_ms };
    let effect = Effect::Sent { conversation: ask.conversation.clone(), sent, notify };
    owner.push(Write::Message(entry), effect);
    if let Some(entry) = refers {
        conversation.refer(entry.seq, Some(entry.clone()));
        owner.push(Write::Replace(entry), Effect::None);
    }
    cx.hub.ready.push(owner.from.partition);
    let answer = Answer { client_seq: ask.client_seq, payload_hash, seq, message_id, epoch };
    if conversation.streams.insert(key, answer, conversation.durable) {
        cx.hub.stats.streams_forgotten += 1;
    }
}

/// The same message once more: the first answer, when it is durable.
fn repeat(cx: &mut Cx, owner: &Owner, conversation: &mut Conversation, asker: Asker, answer: Answer) {
    if answer.seq > conversation.durable {
        if conversation.repeats.len() >= REPEATS_MAX {
            return cx.busy(owner.from, asker, "the message is being stored");
        }
        conversation.repeats.push((answer.seq, asker));
        return;
    }
    cx.hub.stats.repeats += 1;
    acknowledge(cx, owner, asker, answer.seq, answer.message_id, answer.epoch);
}

fn acknowledge(cx: &mut Cx, owner: &Owner, asker: Asker, seq: u64, message_id: MessageId, epoch: u64) {
    let server_time_ms = message_id.wall_ms();
    let ack = SendAck { seq, message_id: message_id.0, server_time_ms, epoch };
    cx.reply(owner.from, asker, response::Outcome::SendAck(ack), Reply::default());
}

/// A message of a batch: what is needed once it is durable.
#[derive(Debug)]
pub struct Sent {
    /// Its number in the conversation.
    pub seq: u64,
    /// Its id.
    pub message_id: MessageId,
    /// It is a message, not something about one.
    pub is_message: bool,
    /// Who waits for the SendAck.
    pub asker: Asker,
    /// Who sent it.
    pub user: String,
    /// Its sender wants to know what becomes of it within this time; 0: does not.
    pub fate_within_ms: u32,
}

/// A message is durable: its sender hears of it, then all others.
pub fn sent(
    cx: &mut Cx,
    owner: &mut Owner,
    conversation: &mut Conversation,
    name: String,
    sent: Sent,
    notify: Bytes,
) {
    let Sent { seq, message_id, asker, .. } = sent;
    became_durable(owner, conversation, &name, seq);
    cx.hub.stats.messages += 1;
    acknowledge(cx, owner, asker, seq, message_id, owner.from.epoch);
    if sent.fate_within_ms > 0 {
        fates::awaits(cx, owner, conversation, &name, (seq, &sent.user), asker, sent.fate_within_ms);
    }
    if sent.is_message {
        conversation.last = Some(notify.clone());
        conversation.positions.sent(seq, sent.user);
    }
    for (_, asker) in conversation.repeats.extract_if(.., |(waits_for, _)| *waits_for == seq) {
        cx.hub.stats.repeats += 1;
        acknowledge(cx, owner, asker, seq, message_id, owner.from.epoch);
    }
    retention::appended(cx, owner, conversation, &name);
    fan_out(cx, owner, conversation, name, seq, asker.session, notify);
}

/// The log has one entry more that everyone may hear of.
pub fn became_durable(owner: &Owner, conversation: &mut Conversation, name: &str, seq: u64) {
    debug_assert_eq!(seq, conversation.durable + 1, "{name}: effects out of order");
    conversation.durable = seq;
    conversation.durable_epoch = owner.from.epoch;
}

/// Hands an entry to everyone who listens, except one session.
pub fn fan_out(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &Conversation,
    name: String,
    seq: u64,
    except: SessionId,
    notify: Bytes,
) {
    if let Some(Id::Direct(a, b)) = Id::parse(&name) {
        let mut users = vec![a.to_owned()];
        if b != a {
            users.push(b.to_owned());
        }
        let what = What::Message { conversation: name, seq, notify };
        cx.hub.delivery.ask(Ask { users, except: vec![except], from: owner.from, what });
        return;
    }
    if conversation.subscribers.is_empty() {
        return;
    }
    let fan_out = FanOut { conversation: name, seq, except_session: except.0, notify };
    let record: Record = owner.from.record(Kind::FanOut, SessionId::NONE, &fan_out);
    for link in conversation.listeners() {
        cx.send(link, record.clone());
    }
}

/// FNV-1a over everything that the sender chose: the same on every node and in every release, as it is stored.
fn payload_hash(ask: &Send) -> u64 {
    let numbers = [u64::from(ask.content_kind), ask.action as u64, ask.refers_to];
    let numbers = numbers.into_iter().filter(|number| *number != 0).flat_map(u64::to_be_bytes);
    ask.payload.iter().copied().chain(numbers).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
