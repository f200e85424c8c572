//! Entries that refer to an earlier message: edits, recalls, reactions. Who may, and what becomes of the message.
//!
//! They are entries of the log like any other, so that devices that were away learn of them in order. A recall also
//! takes the payload out of the log. The rule that keeps it right: the message that is referred to is read before the
//! entry is judged.

use bytes::Bytes;
use millrace_protocol::messages::client::{Action, Code, Notify, Send, notify};
use millrace_protocol::prost::Message;

use super::conversation::Conversation;
use super::hub::Cx;
use crate::store::Entry;

/// Why an entry can't go into the log (yet).
#[derive(Debug)]
pub enum Judged {
    /// The entry with this seq must be read first.
    Needs(u64),
    /// It may not.
    Refused(Code, &'static str),
}

/// Bytes of a reaction's name at most.
const REACTION_BYTES_MAX: usize = 64;

/// Judges what a message says of another one. Returns the record that takes the other's place, if it is recalled.
///
/// # Errors
/// See [`Judged`].
pub fn judge(cx: &Cx, conversation: &Conversation, user: &str, ask: &Send) -> Result<Option<Entry>, Judged> {
    let refused = |code, reason| Err(Judged::Refused(code, reason));
    let action = match Action::try_from(ask.action) {
        Ok(Action::Message) => return Ok(None),
        Ok(Action::System) | Err(_) => return refused(Code::BadRequest, "this action is not for clients"),
        Ok(action) => action,
    };
    if ask.refers_to == 0 || ask.refers_to > conversation.durable {
        return refused(Code::NoSuchMessage, "there is no such message");
    }
    let Some(entry) = conversation.referred(ask.refers_to) else { return Err(Judged::Needs(ask.refers_to)) };
    let Some(entry) = entry.filter(|entry| entry.action == Action::Message as u8) else {
        return refused(Code::NoSuchMessage, "there is no such message");
    };
    let limits = &cx.hub.config.limits;
    let age_ms = cx.now.wall_ms.saturating_sub(entry.message_id.wall_ms());
    let own = entry.sender == user;
    match action {
        Action::React | Action::Unreact if ask.payload.len() > REACTION_BYTES_MAX => {
            refused(Code::PayloadTooLarge, "a reaction has at most 64 bytes")
        }
        Action::React | Action::Unreact => Ok(None),
        Action::Edit if !own => refused(Code::NotAllowed, "the message of another user"),
        Action::Edit if is_recalled(entry) => refused(Code::NoSuchMessage, "the message was recalled"),
        Action::Edit if age_ms > limits.edit_window_ms => {
            refused(Code::TooLate, "the time for edits is over")
        }
        Action::Edit => Ok(None),
        _ if !ask.payload.is_empty() => refused(Code::BadRequest, "a recall has no payload"),
        _ if conversation.is_admin(user) => Ok(Some(recalled(entry))),
        _ if !own => refused(Code::NotAllowed, "the message of another user"),
        _ if age_ms > limits.recall_window_ms => refused(Code::TooLate, "the time for recalls is over"),
        _ => Ok(Some(recalled(entry))),
    }
}

/// Content kind of a message whose payload was taken out.
pub const RECALLED_KIND: u32 = u32::MAX;

fn is_recalled(entry: &Entry) -> bool {
    let deliver = Notify::decode(&entry.notify[..]).ok().and_then(|notify| notify.event);
    matches!(deliver, Some(notify::Event::Deliver(deliver)) if deliver.content_kind == RECALLED_KIND)
}

/// The entry without its payload.
fn recalled(entry: &Entry) -> Entry {
    let mut notify = Notify::decode(&entry.notify[..]).unwrap_or_default();
    if let Some(notify::Event::Deliver(deliver)) = &mut notify.event {
        deliver.payload = Bytes::new();
        deliver.content_kind = RECALLED_KIND;
    }
    Entry { notify: notify.encode_to_vec().into(), ..entry.clone() }
}
