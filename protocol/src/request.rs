//! Where a client's request is served: by the owner of which partition.
//!
//! Gateways route by it and dispatchers check by it, so that both always agree. What a request means is left to them.

use crate::conversation::{direct, is_name};
use crate::ids::{Partition, partition_of, user_partition};
use crate::messages::client::request::Op;

/// Whose owner serves a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// That of a conversation, by its id (which may still be malformed).
    Conversation(String),
    /// That of the asking user.
    User,
    /// Several owners, each its part: the gateway splits the request and joins the answers.
    Many,
    /// The gateway itself.
    Gateway,
}

impl Key {
    /// Where `user`'s request goes; `None`: a name in it is not valid.
    pub fn of(op: &Op, user: &str) -> Option<Key> {
        let group = |name: &str| is_name(name).then(|| Key::Conversation(format!("g:{name}")));
        let pair = |other: &str| is_name(other).then(|| Key::Conversation(direct(user, other)));
        let conversation = |id: &str| Some(Key::Conversation(id.to_owned()));
        match op {
            Op::Login(_) | Op::Logout(_) => Some(Key::Gateway),
            Op::Peek(_) | Op::PresenceSubscribe(_) => Some(Key::Many),
            Op::Conversations(_) | Op::ConversationSet(_) | Op::People(_) | Op::PresenceSet(_) => {
                Some(Key::User)
            }
            Op::Send(ask) => conversation(&ask.conversation),
            Op::DeliverAck(ask) => conversation(&ask.conversation),
            Op::Sync(ask) => conversation(&ask.conversation),
            Op::History(ask) => conversation(&ask.conversation),
            Op::Read(ask) => conversation(&ask.conversation),
            Op::Typing(ask) => conversation(&ask.conversation),
            Op::Receipts(ask) => conversation(&ask.conversation),
            Op::GroupCreate(ask) => group(&ask.group),
            Op::GroupJoin(ask) => group(&ask.group),
            Op::GroupLeave(ask) => group(&ask.group),
            Op::GroupMembers(ask) => group(&ask.group),
            Op::GroupInvite(ask) => group(&ask.group),
            Op::GroupAnswer(ask) => group(&ask.group),
            Op::GroupRemove(ask) => group(&ask.group),
            Op::GroupRole(ask) => group(&ask.group),
            Op::GroupMute(ask) => group(&ask.group),
            Op::GroupUpdate(ask) => group(&ask.group),
            Op::GroupDissolve(ask) => group(&ask.group),
            Op::GroupInfo(ask) => group(&ask.group),
            Op::RoomJoin(ask) => is_name(&ask.room).then(|| Key::Conversation(format!("r:{}", ask.room))),
            Op::RoomLeave(ask) => is_name(&ask.room).then(|| Key::Conversation(format!("r:{}", ask.room))),
            Op::FriendRequest(ask) => pair(&ask.user),
            Op::FriendAnswer(ask) => pair(&ask.user),
            Op::FriendRemove(ask) => pair(&ask.user),
            Op::Block(ask) => pair(&ask.user),
        }
    }

    /// The partition, if it is one.
    pub fn partition(&self, user: &str, partitions: u16) -> Option<Partition> {
        match self {
            Key::Conversation(id) => Some(partition_of(id, partitions)),
            Key::User => Some(user_partition(user, partitions)),
            Key::Many | Key::Gateway => None,
        }
    }
}

/// Whether a request may come with id 0, unanswered.
pub fn may_be_silent(op: &Op) -> bool {
    matches!(op, Op::DeliverAck(_) | Op::Read(_) | Op::Typing(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::client::{Block, GroupRole, Peek, People, Typing};

    #[test]
    fn requests_go_to_the_owner_of_what_they_are_about() {
        let typing = |conversation: &str| Op::Typing(Typing { conversation: conversation.into(), what: 1 });
        let block = |user: &str| Op::Block(Block { user: user.into(), block: true });
        let role = |group: &str| Op::GroupRole(GroupRole { group: group.into(), ..GroupRole::default() });
        let conversation = |id: &str| Some(Key::Conversation(id.into()));
        for (op, key) in [
            (typing("g:tea"), conversation("g:tea")),
            (block("bob"), conversation("d:ann:bob")),
            (block("aaa"), conversation("d:aaa:ann")),
            (block("no name"), None),
            (role("tea"), conversation("g:tea")),
            (role(""), None),
            (Op::People(People::default()), Some(Key::User)),
            (Op::Peek(Peek::default()), Some(Key::Many)),
        ] {
            assert_eq!(Key::of(&op, "ann"), key, "{op:?}");
        }
        assert_eq!(Key::User.partition("bob", 1024), Some(user_partition("bob", 1024)));
        assert_eq!(Key::Many.partition("bob", 1024), None);
        assert!(may_be_silent(&typing("g:tea")) && !may_be_silent(&block("bob")));
    }
}
