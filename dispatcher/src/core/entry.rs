//! What a message, or a change of a group, becomes in the log: its seq, its id, the body that receivers get.
//!
//! The rule that keeps it right: everything is fixed here, once, when the entry goes into a batch; nothing of it
//! depends on what happens later.

use bytes::Bytes;
use millrace_protocol::messages::client::{Action, Deliver, Notify, notify};
use millrace_protocol::prost::Message;

use super::batch::Owner;
use super::conversation::Conversation;
use crate::store::Entry;

/// What an entry says, and what its sender chose.
#[derive(Debug, Default)]
pub struct Draft {
    /// Who sends it.
    pub sender: String,
    /// From which device; empty: the server made it.
    pub device: String,
    /// The sender's stream; 0: the server made it.
    pub stream: u64,
    /// The number there.
    pub client_seq: u64,
    /// Tells a repeat from another message under the same number.
    pub payload_hash: u64,
    /// What it says.
    pub payload: Bytes,
    /// The application's own.
    pub content_kind: u32,
    /// What it is.
    pub action: Action,
    /// The seq that it is about, or 0.
    pub refers_to: u64,
}

/// The next entry of a conversation, at the time that is given to it (ms since 1970).
pub fn next(
    owner: &mut Owner,
    conversation: &mut Conversation,
    name: &str,
    given_ms: u64,
    draft: Draft,
) -> Entry {
    let epoch = owner.from.epoch;
    let message_id = owner.next_message_id(given_ms);
    conversation.head += 1;
    let seq = conversation.head;
    let Draft { sender, device, stream, client_seq, payload_hash, payload, content_kind, action, refers_to } =
        draft;
    let deliver = Deliver {
        conversation: name.to_owned(),
        seq,
        message_id: message_id.0,
        sender: sender.clone(),
        sender_device: device.clone(),
        server_time_ms: message_id.wall_ms(),
        epoch,
        payload,
        content_kind,
        action: action as i32,
        refers_to,
    };
    let notify: Bytes = Notify { event: Some(notify::Event::Deliver(deliver)) }.encode_to_vec().into();
    conversation.messages += u64::from(action == Action::Message);
    conversation.bytes += notify.len() as u64;
    Entry {
        conversation: name.to_owned(),
        seq,
        message_id,
        epoch,
        action: action as u8,
        messages: conversation.messages,
        bytes: conversation.bytes,
        sender,
        device,
        stream,
        client_seq,
        payload_hash,
        notify,
    }
}
