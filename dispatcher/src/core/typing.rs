//! Typing: told to whoever listens, never stored, dropped before anything else.
//!
//! The rule that keeps it right: it costs no job of the store in groups and rooms, and one lookup of routes in direct
//! conversations, at most once in a while for each user and conversation.

use millrace_protocol::conversation::Conversation as Id;
use millrace_protocol::ids::SessionId;
use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::{Notify, Typing as Request, TypingEvent, notify};
use millrace_protocol::messages::link::Relay;
use millrace_protocol::prost::Message;

use super::batch::Owner;
use super::conversation::Conversation;
use super::delivery::{Ask, What};
use super::hub::{Asker, Cx};
use super::limits::{TYPING_EVERY_US, TYPING_USERS_MAX};
use super::send;

/// Who typed in a conversation lately, and when (us).
#[derive(Debug, Default)]
pub struct Typing {
    lately: Vec<(String, u64)>,
}

impl Typing {
    /// Whether a user's typing is passed on now.
    fn admits(&mut self, user: &str, now_us: u64) -> bool {
        self.lately.retain(|(_, at_us)| now_us < at_us + TYPING_EVERY_US);
        if self.lately.len() >= TYPING_USERS_MAX || self.lately.iter().any(|(known, _)| known == user) {
            return false;
        }
        self.lately.push((user.to_owned(), now_us));
        true
    }
}

/// A Typing of `user`.
pub fn typing(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    asker: Asker,
    user: String,
    ask: Request,
) {
    let id = Id::parse(&ask.conversation);
    if let Some((code, reason)) = send::forbidden(id, conversation, &user) {
        return cx.refuse(owner.from, asker, code, reason);
    }
    cx.done(owner.from, asker);
    // Who may not write is not told so by this, and neither is the other.
    let silenced = send::silenced(cx, id, conversation, &user).is_some();
    if silenced || !conversation.typing.admits(&user, cx.now.mono_us) {
        cx.hub.stats.typing_dropped += 1;
        return;
    }
    cx.hub.stats.typing += 1;
    let peer = id.and_then(|id| id.peer_of(&user)).map(str::to_owned);
    let conversation_id = ask.conversation.clone();
    let event = TypingEvent { conversation: ask.conversation, user, what: ask.what };
    let notify = Notify { event: Some(notify::Event::Typing(event)) }.encode_to_vec().into();
    if let Some(peer) = peer {
        let what = What::Relay { conversation: conversation_id, notify };
        return cx.tell_softly(Ask {
            users: vec![peer],
            except: vec![asker.session],
            from: owner.from,
            what,
        });
    }
    let relay =
        Relay { targets: Vec::new(), conversation: conversation_id, except_session: asker.session.0, notify };
    let record = owner.from.record(Kind::Relay, SessionId::NONE, &relay);
    for link in conversation.listeners() {
        cx.send(link, record.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_in_a_while_and_in_bounds() {
        let mut typing = Typing::default();
        for (user, at_us, admitted) in [
            ("ann", 0, true),
            ("ann", TYPING_EVERY_US - 1, false),
            ("bob", TYPING_EVERY_US - 1, true),
            ("ann", TYPING_EVERY_US, true),
            ("ann", TYPING_EVERY_US + 1, false),
        ] {
            assert_eq!(typing.admits(user, at_us), admitted, "{user} {at_us}");
        }
        let later_us = 10 * TYPING_EVERY_US;
        let admitted = (0..2 * TYPING_USERS_MAX).filter(|n| typing.admits(&n.to_string(), later_us));
        assert_eq!(admitted.count(), TYPING_USERS_MAX);
    }
}
