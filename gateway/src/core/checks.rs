//! What is refused for what it says, before anybody is asked.
//!
//! Only what this shard can tell by itself: forms and sizes, other users' conversations, rooms that the session is not
//! in. Membership, blocks and roles are the owner's to check, in the order of the log.

use millrace_protocol::conversation::{Conversation, is_name};
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{Code, Send};

use super::requests::Refuse;
use super::shard::Shard;

/// A name that is none.
pub(super) const BAD_NAME: Refuse = Refuse(Code::BadRequest, "names are 1-64 of A-Z a-z 0-9 . _ - @ +", 0);

impl Shard {
    /// Whether a request may go on to its owner.
    pub(super) fn check(&self, slot: u32, op: &Op) -> Result<(), Refuse> {
        let names = |names: &[String]| names.iter().all(|name| is_name(name)).then_some(()).ok_or(BAD_NAME);
        let name = |name: &String| is_name(name).then_some(()).ok_or(BAD_NAME);
        match op {
            Op::Send(ask) => self.check_send(slot, ask),
            Op::Sync(ask) => self.check_conversation(slot, &ask.conversation).map(drop),
            Op::History(ask) => self.check_conversation(slot, &ask.conversation).map(drop),
            Op::Read(ask) => self.check_conversation(slot, &ask.conversation).map(drop),
            Op::Receipts(ask) => self.check_conversation(slot, &ask.conversation).map(drop),
            Op::Typing(ask) => {
                let conversation = self.check_conversation(slot, &ask.conversation)?;
                self.check_in_room(slot, &ask.conversation, conversation)
            }
            Op::ConversationSet(ask) => {
                let id = ask.item.as_ref().map_or("", |item| &item.conversation);
                self.check_conversation(slot, id).map(drop)
            }
            Op::GroupCreate(ask) => names(&ask.members),
            Op::GroupInvite(ask) => names(&ask.users),
            Op::GroupRemove(ask) => names(&ask.users),
            Op::GroupAnswer(ask) => name(&ask.user),
            Op::GroupRole(ask) => name(&ask.user),
            // Empty: all but admins.
            Op::GroupMute(ask) if !ask.user.is_empty() => name(&ask.user),
            // The names that say where they go are checked as that is found out.
            _ => Ok(()),
        }
    }

    fn check_send(&self, slot: u32, send: &Send) -> Result<(), Refuse> {
        let Some(conversation) = Conversation::parse(&send.conversation) else {
            return Err(Refuse(Code::BadRequest, "no such form of conversation id", 0));
        };
        if send.client_seq == 0 || send.stream == 0 {
            return Err(Refuse(Code::BadRequest, "client_seq and stream are never 0", 0));
        }
        if send.payload.len() > self.config.payload_bytes_max {
            return Err(Refuse(Code::PayloadTooLarge, "the payload is above the limit", 0));
        }
        self.check_own(slot, conversation)?;
        self.check_in_room(slot, &send.conversation, conversation)
    }

    /// The conversation of this id, which is well-formed and not one of other users.
    pub(super) fn check_conversation<'a>(&self, slot: u32, id: &'a str) -> Result<Conversation<'a>, Refuse> {
        let Some(conversation) = Conversation::parse(id) else {
            return Err(Refuse(Code::BadRequest, "no such form of conversation id", 0));
        };
        self.check_own(slot, conversation).map(|()| conversation)
    }

    fn check_own(&self, slot: u32, conversation: Conversation<'_>) -> Result<(), Refuse> {
        let session = self.sessions.get(slot).expect("the asker");
        let others = matches!(conversation, Conversation::Direct(..))
            && conversation.peer_of(self.users.text(session.user)).is_none();
        if others {
            return Err(Refuse(Code::Forbidden, "a direct conversation of other users", 0));
        }
        Ok(())
    }

    fn check_in_room(&self, slot: u32, id: &str, conversation: Conversation<'_>) -> Result<(), Refuse> {
        if matches!(conversation, Conversation::Room(_)) && !self.listens(slot, id) {
            return Err(Refuse(Code::NotJoined, "join the room first", 0));
        }
        Ok(())
    }
}
