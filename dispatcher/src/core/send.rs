//! Sending: from a client's Send to its ack, the fan-out and the direct deliveries.
//!
//! The rule that keeps it right: everything about a message (seq, id, the body that receivers get) is fixed when it
//! enters the batch, and nobody hears of it before the batch is durable.

use bytes::Bytes;
use millrace_protocol::conversation::Conversation as Id;
use millrace_protocol::ids::{MessageId, SessionId};
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::client::{Code, Deliver, Notify, Refused, Send, SendAck, notify, response};
use millrace_protocol::messages::link::{FanOut, Reply};
use millrace_protocol::prost::Message;

use super::batch::{Effect, Owner};
use super::conversation::Conversation;
use super::delivery::{Ask, What};
use super::hub::{Asker, Cx};
use super::limits::REPEATS_MAX;
use super::streams::{Answer, Check, StreamKey};
use crate::store::{Entry, Write};

/// A Send of `user` on `device`.
pub fn send(
    cx: &mut Cx,
    owner: &mut Owner,
    conversation: &mut Conversation,
    asker: Asker,
    (user, device): (String, String),
    ask: Send,
) {
    let from = owner.from;
    let id = Id::parse(&ask.conversation);
    if let Some((code, reason)) = forbidden(id, conversation, &user) {
        return cx.refuse(from, asker, code, reason);
    }
    if ask.payload.len() > cx.hub.config.limits.payload_bytes_max {
        return cx.refuse(from, asker, Code::PayloadTooLarge, "the payload is too large");
    }
    let key = StreamKey { user, device, stream: ask.stream };
    let payload_hash = payload_hash(&ask.payload);
    match conversation.streams.check(&key, ask.client_seq, payload_hash) {
        Check::New => {}
        Check::Repeat(answer) => return repeat(cx, owner, conversation, asker, answer),
        Check::Conflict => {
            cx.hub.stats.conflicts += 1;
            let reason = "this client_seq was sent before with another payload";
            return cx.refuse(from, asker, Code::Conflict, reason);
        }
        Check::OutOfOrder { expected } => {
            cx.hub.stats.out_of_order += 1;
            let reason = format!("client_seq {} where {expected} is due", ask.client_seq);
            let code = Code::OutOfOrder as i32;
            return cx.refuse_with(from, asker, Refused { code, reason, retry_after_ms: 0, expected });
        }
    }
    if !owner.has_room() {
        return cx.busy(from, asker, "too much is waiting for the store");
    }
    if matches!(id, Some(Id::Direct(..))) && cx.hub.delivery.is_full() {
        return cx.busy(from, asker, "too much is waiting for delivery");
    }
    append(cx, owner, conversation, asker, key, payload_hash, ask);
}

/// Why a user may not send there.
fn forbidden(id: Option<Id<'_>>, conversation: &Conversation, user: &str) -> Option<(Code, &'static str)> {
    match id? {
        Id::Direct(a, b) if a != user && b != user => {
            Some((Code::Forbidden, "the conversation of two other users"))
        }
        Id::Direct(..) | Id::Room(_) => None,
        Id::Group(_) => match &conversation.members {
            None => Some((Code::NoSuchGroup, "there is no such group")),
            Some(members) if !members.contains(user) || conversation.rounds.is_leaving(user) => {
                Some((Code::NotMember, "not a member of this group"))
            }
            Some(_) => None,
        },
    }
}

fn append(
    cx: &mut Cx,
    owner: &mut Owner,
    conversation: &mut Conversation,
    asker: Asker,
    key: StreamKey,
    payload_hash: u64,
    ask: Send,
) {
    let epoch = owner.from.epoch;
    let message_id = owner.last_message_id.next(cx.now.wall_ms, owner.from.partition);
    owner.last_message_id = message_id;
    conversation.head += 1;
    let seq = conversation.head;
    let deliver = Deliver {
        conversation: ask.conversation.clone(),
        seq,
        message_id: message_id.0,
        sender: key.user.clone(),
        sender_device: key.device.clone(),
        server_time_ms: message_id.wall_ms(),
        epoch,
        payload: ask.payload,
        content_kind: ask.content_kind,
    };
    let notify: Bytes = Notify { event: Some(notify::Event::Deliver(deliver)) }.encode_to_vec().into();
    let entry = Entry {
        conversation: ask.conversation.clone(),
        seq,
        message_id,
        epoch,
        sender: key.user.clone(),
        device: key.device.clone(),
        stream: key.stream,
        client_seq: ask.client_seq,
        payload_hash,
        notify: notify.clone(),
    };
    let effect = Effect::Sent { conversation: ask.conversation, seq, message_id, asker, notify };
    owner.push(Write::Message(entry), effect);
    cx.hub.ready.push(owner.from.partition);
    let answer = Answer { client_seq: ask.client_seq, payload_hash, seq, message_id, epoch };
    if conversation.streams.insert(key, answer) {
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

/// A message is durable: its sender hears of it, then all others.
pub fn sent(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    name: String,
    (seq, message_id): (u64, MessageId),
    asker: Asker,
    notify: Bytes,
) {
    debug_assert_eq!(seq, conversation.durable + 1, "{name}: effects out of order");
    conversation.durable = seq;
    cx.hub.stats.messages += 1;
    acknowledge(cx, owner, asker, seq, message_id, owner.from.epoch);
    for (_, asker) in conversation.repeats.extract_if(.., |(waits_for, _)| *waits_for == seq) {
        cx.hub.stats.repeats += 1;
        acknowledge(cx, owner, asker, seq, message_id, owner.from.epoch);
    }
    if let Some(Id::Direct(a, b)) = Id::parse(&name) {
        let mut users = vec![a.to_owned()];
        if b != a {
            users.push(b.to_owned());
        }
        let what = What::Message(notify);
        cx.hub.delivery.ask(Ask { users, except: vec![asker.session], from: owner.from, what });
        return;
    }
    if conversation.subscribers.is_empty() {
        return;
    }
    let fan_out = FanOut { conversation: name, seq, except_session: asker.session.0, notify };
    let record: Record = owner.from.record(Kind::FanOut, SessionId::NONE, &fan_out);
    for link in conversation.listeners() {
        cx.send(link, record.clone());
    }
}

/// FNV-1a over the payload: the same on every node and in every release, as it is stored.
fn payload_hash(payload: &[u8]) -> u64 {
    payload.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
