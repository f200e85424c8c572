//! What devices have and users have read: acknowledgements gathered here, written in batches, told to who wants to know.
//!
//! Cursors lie with the conversation and only ever move forward: they are merged by maximum, here and in the store, so
//! that late, repeated and lost ones do no harm (a lost one means a repeat). The rule that keeps it right: nobody
//! acknowledges what is not durable.

use std::collections::BTreeMap;

use millrace_protocol::conversation::Conversation as Id;
use millrace_protocol::messages::client::{Code, Read};
use millrace_protocol::messages::link::DeviceAck;
use millrace_protocol::planted::{self, Fault};

use super::batch::{Effect, Owner};
use super::conversation::Conversation;
use super::hub::{Asker, Cx, PartitionJob, Pending};
use super::receipts;
use crate::store::{Cursor, Outcome, Work, Write};

/// Cursors of one conversation that moved since they were last written.
#[derive(Debug, Default)]
pub struct Moved {
    /// By user and device (empty: what the user has read).
    map: BTreeMap<(String, String), Cursor>,
}

impl Moved {
    /// Nothing moved.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Notes a cursor. Returns whether it is ahead of the one noted before.
    pub fn note(&mut self, user: &str, device: &str, cursor: Cursor) -> bool {
        let noted = self.map.entry((user.to_owned(), device.to_owned())).or_default();
        let ahead = cursor > *noted;
        if planted::is(Fault::CursorsMergedByLast) {
            *noted = cursor;
            return ahead;
        }
        *noted = cursor.max(*noted);
        ahead
    }

    /// What was noted of a cursor and is not written yet.
    pub fn get(&self, user: &str, device: &str) -> Option<Cursor> {
        self.map.get(&(user.to_owned(), device.to_owned())).copied()
    }

    /// All of them: user, device, cursor.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, Cursor)> {
        self.map.iter().map(|((user, device), cursor)| (user.as_str(), device.as_str(), *cursor))
    }

    /// Puts what moved into the next batch, as far as there is room. Returns whether all of it went.
    pub fn write(&mut self, owner: &mut Owner, conversation: &str) -> bool {
        while owner.has_room()
            && let Some(((user, device), cursor)) = self.map.pop_first()
        {
            let conversation = conversation.to_owned();
            owner.push(Write::Cursor { conversation, user, device, cursor }, Effect::None);
        }
        self.map.is_empty()
    }
}

/// Why a user has no place in a conversation.
pub fn outsider(id: Option<Id<'_>>, conversation: &Conversation, user: &str) -> Option<(Code, &'static str)> {
    match id? {
        Id::Direct(a, b) if a != user && b != user => {
            Some((Code::Forbidden, "the conversation of two other users"))
        }
        Id::Direct(..) | Id::Room(_) => None,
        Id::Group(_) => match &conversation.members {
            None => Some((Code::NoSuchGroup, "there is no such group")),
            Some(members) if !members.contains(user) => Some((Code::NotMember, "not a member of this group")),
            Some(_) => None,
        },
    }
}

/// A device has everything up to here.
pub fn delivered(cx: &mut Cx, owner: &Owner, conversation: &mut Conversation, ack: &DeviceAck) {
    let id = Id::parse(&ack.conversation);
    let valid = ack.seq > 0 && ack.seq <= conversation.durable && ack.epoch <= owner.from.epoch;
    if !valid || matches!(id, Some(Id::Room(_)) | None) || outsider(id, conversation, &ack.user).is_some() {
        cx.hub.stats.acks_refused += 1;
        return;
    }
    cx.hub.stats.acks += 1;
    let cursor = Cursor { epoch: ack.epoch, seq: ack.seq, messages: 0 };
    if conversation.moved.note(&ack.user, &ack.device, cursor) {
        receipts::delivered(cx, owner, conversation, &ack.conversation, &ack.user, ack.seq);
    }
}

/// A user read up to a seq that is not the log's end: the entry there is read for its epoch and its count of messages.
#[derive(Debug)]
pub struct Marking {
    asker: Asker,
    user: String,
    seq: u64,
}

impl Marking {
    /// Who waits.
    pub fn asker(&self) -> Asker {
        self.asker
    }
}

/// A user has read everything up to here.
pub fn read(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    name: &str,
    asker: Asker,
    user: String,
    ask: &Read,
) {
    let id = Id::parse(name);
    if let Some((code, reason)) = outsider(id, conversation, &user) {
        return cx.refuse(owner.from, asker, code, reason);
    }
    if ask.seq == 0 || ask.seq > conversation.durable || matches!(id, Some(Id::Room(_))) {
        return cx.refuse(owner.from, asker, Code::BadRequest, "there is nothing to read there");
    }
    if ask.seq == conversation.durable && conversation.head == conversation.durable {
        let (epoch, messages) = (conversation.durable_epoch, conversation.messages);
        return mark(cx, owner, conversation, name, asker, &user, Cursor { epoch, seq: ask.seq, messages });
    }
    conversation.jobs += 1;
    let work = Work::Read {
        partition: owner.from.partition,
        fence: Some(owner.fence),
        conversation: name.to_owned(),
        after: ask.seq - 1,
        through: ask.seq,
        limit_bytes: usize::MAX,
        entries_max: 1,
        newest_first: false,
    };
    let marking = Box::new(Marking { asker, user, seq: ask.seq });
    let job = PartitionJob::Mark(name.to_owned(), marking);
    cx.store(work, Pending::Partition { partition: owner.from.partition, generation: owner.generation, job });
}

/// The entry that a user has read up to was read; one that is past its retention counts as no message.
pub fn marked(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    name: &str,
    marking: Marking,
    outcome: Outcome,
) {
    let Outcome::Entries { entries, .. } = outcome else { return };
    let entry = entries.first().filter(|entry| entry.seq == marking.seq);
    let (epoch, messages) = entry.map_or((0, 0), |entry| (entry.epoch, entry.messages));
    let cursor = Cursor { epoch, seq: marking.seq, messages };
    mark(cx, owner, conversation, name, marking.asker, &marking.user, cursor);
}

fn mark(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    name: &str,
    asker: Asker,
    user: &str,
    cursor: Cursor,
) {
    cx.hub.stats.reads += 1;
    cx.done(owner.from, asker);
    if conversation.moved.note(user, "", cursor) {
        receipts::read(cx, owner, conversation, name, user, cursor.seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_move_forward_alone() {
        let mut moved = Moved::default();
        let at = |epoch, seq| Cursor { epoch, seq, messages: 0 };
        assert!(moved.note("ann", "phone", at(2, 5)));
        assert!(!moved.note("ann", "phone", at(2, 5)) && !moved.note("ann", "phone", at(1, 9)));
        assert!(moved.note("ann", "phone", at(3, 4)), "a later epoch is ahead");
        assert!(moved.note("ann", "", at(1, 1)));
        assert_eq!(moved.get("ann", "phone"), Some(at(3, 4)));
        assert_eq!(moved.get("ann", "desk"), None);
    }
}
