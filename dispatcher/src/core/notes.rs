//! Entries of a group's log about changes of the group.
//!
//! They are entries like any other, in the order of the messages, so that whoever was away learns of both alike. The rule
//! that keeps it right: a note goes into the batch that makes its change durable, and nobody hears of it before. One that
//! brings new members is outstanding until their sessions were told, so that the next owner attaches them otherwise.

use bytes::Bytes;
use millrace_protocol::ids::SessionId;
use millrace_protocol::messages::client::group_change::Kind;
use millrace_protocol::messages::client::{Action, GroupChange, Notify, notify};
use millrace_protocol::prost::Message;

use super::batch::{Effect, Owner};
use super::conversation::Conversation;
use super::entry::{self, Draft};
use super::hub::Cx;
use super::limits::{NOTED_MEMBERS_MAX, NOTED_USERS_MAX};
use super::members::Members;
use super::send;
use crate::store::Write;

/// What is told of a change of these users by one.
pub fn note(kind: Kind, by: &str, users: &[String]) -> GroupChange {
    let count = if users.len() > NOTED_USERS_MAX { users.len() as u32 } else { 0 };
    let users = users.iter().take(NOTED_USERS_MAX).cloned().collect();
    GroupChange { kind: kind as i32, by: by.to_owned(), users, count, ..GroupChange::default() }
}

/// What is told of ordinary members who came and went together.
pub fn of_round(conversation: &Conversation, add: &[String], remove: &[String]) -> Vec<GroupChange> {
    let before = conversation.members.as_ref().map_or(0, Members::count);
    if before + add.len() > NOTED_MEMBERS_MAX {
        return Vec::new();
    }
    let kinds = [(Kind::Joined, add), (Kind::Left, remove)];
    let some = kinds.into_iter().filter(|(_, users)| !users.is_empty());
    some.map(|(kind, users)| note(kind, &users[0], users)).collect()
}

/// Whether these notes name everyone who came, or went.
pub fn name_all(notes: &[GroupChange], users: &[String]) -> bool {
    let says = |user| {
        let mut of_members = notes.iter().filter(|note| note.kind() != Kind::Role);
        of_members.any(|note| note.users.contains(user))
    };
    users.iter().all(says)
}

/// Puts notes into the batch.
pub fn append(
    cx: &mut Cx,
    owner: &mut Owner,
    conversation: &mut Conversation,
    name: &str,
    notes: Vec<GroupChange>,
) {
    for note in notes {
        let draft = Draft {
            // Of several who came together: the first one.
            sender: note.by.clone(),
            payload: note.encode_to_vec().into(),
            action: Action::System,
            ..Draft::default()
        };
        let entry = entry::next(owner, conversation, name, cx.hub.clocks.given_ms(cx.now), draft);
        if brings_users(note.kind()) {
            owner.outstanding(name, entry.seq);
        }
        let (seq, notify) = (entry.seq, entry.notify.clone());
        owner.push(Write::Message(entry), Effect::Noted { conversation: name.to_owned(), seq, notify });
    }
}

fn brings_users(kind: Kind) -> bool {
    matches!(kind, Kind::Created | Kind::Joined | Kind::Invited)
}

/// Who became a member by an entry.
#[derive(Debug, PartialEq, Eq)]
pub enum Newcomers {
    /// These; perhaps nobody.
    Named(Vec<String>),
    /// More than the entry names.
    TooMany,
}

/// Who became a member by this entry, whose sessions are to be attached.
pub fn newcomers(body: Bytes) -> Newcomers {
    let change = Notify::decode(body).ok().and_then(|notify| match notify.event {
        Some(notify::Event::Deliver(deliver)) if deliver.action() == Action::System => {
            GroupChange::decode(deliver.payload).ok()
        }
        _ => None,
    });
    match change.filter(|change| brings_users(change.kind())) {
        None => Newcomers::Named(Vec::new()),
        Some(change) if change.count > 0 => Newcomers::TooMany,
        Some(change) => Newcomers::Named(change.users),
    }
}

/// A note is durable: everyone who listens hears of it.
pub fn noted(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    name: String,
    seq: u64,
    notify: Bytes,
) {
    cx.hub.stats.notes += 1;
    send::became_durable(owner, conversation, &name, seq);
    conversation.last = Some(notify.clone());
    send::fan_out(cx, owner, conversation, name, seq, SessionId::NONE, notify);
}
