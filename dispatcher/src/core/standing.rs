//! How a conversation stands for one user and device: what a client asks of all its conversations when it comes back.
//!
//! The rule that keeps it right: cursors and head are read under the fence; what moved and is not written yet counts.

use bytes::Bytes;
use millrace_protocol::conversation::Conversation as Id;
use millrace_protocol::messages::client::{self, Action, Notify, PeekItem, Peeked, Standing, response};
use millrace_protocol::messages::link::Reply;
use millrace_protocol::prost::Message;

use super::batch::Owner;
use super::conversation::Conversation;
use super::cursors::outsider;
use super::hub::{Asker, Cx, PartitionJob, Pending};
use super::limits::{FETCHES_MAX, NEWEST_LOOKED_AT, PAIR_CURSORS_MAX, SYNC_PAGE_BYTES};
use crate::store::{Cursor, CursorsOf, Outcome, Work};

/// A standing on its way.
#[derive(Debug)]
pub struct Peeking {
    /// Who waits.
    pub asker: Asker,
    user: String,
    device: String,
    has: Option<client::Cursor>,
    /// Once they were read.
    cursors: Option<Vec<(String, String, Cursor)>>,
}

/// A Peek of one conversation.
#[expect(clippy::too_many_arguments, reason = "who asks, where, and for what")]
pub fn peek(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    name: &str,
    asker: Asker,
    user: String,
    device: String,
    item: Option<PeekItem>,
) {
    if let Some((code, _)) = outsider(Id::parse(name), conversation, &user) {
        let standing = Standing { conversation: name.to_owned(), code: code as i32, ..Standing::default() };
        return answer(cx, owner, asker, standing);
    }
    if cx.hub.fetches >= FETCHES_MAX {
        return cx.busy(owner.from, asker, "too many pages are being read");
    }
    cx.hub.fetches += 1;
    conversation.jobs += 1;
    let of = match Id::parse(name) {
        // Both sides' few devices.
        Some(Id::Direct(..)) => {
            CursorsOf::All { after: (String::new(), String::new()), limit: PAIR_CURSORS_MAX }
        }
        _ => CursorsOf::User(user.clone()),
    };
    let (partition, fence) = (owner.from.partition, owner.fence);
    let work = Work::Cursors { partition, fence, conversation: name.to_owned(), of };
    let has = item.and_then(|item| item.cursor);
    let peeking = Peeking { asker, user, device, has, cursors: None };
    let job = PartitionJob::Peek(name.to_owned(), Box::new(peeking));
    cx.store(work, Pending::Partition { partition, generation: owner.generation, job });
}

/// The store answered.
pub fn answered(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    name: &str,
    mut peeking: Peeking,
    outcome: Outcome,
) {
    match outcome {
        Outcome::Cursors(cursors) => peeking.cursors = Some(cursors),
        Outcome::Entries { entries, .. } => {
            let is_message = |action| [Action::Message as u8, Action::System as u8].contains(&action);
            let newest = entries.iter().find(|entry| is_message(entry.action)).or(entries.first());
            conversation.last.get_or_insert_with(|| newest.map_or_else(Bytes::new, |it| it.notify.clone()));
        }
        _ => {}
    }
    if conversation.last.is_none() && conversation.durable > 0 {
        let (partition, generation) = (owner.from.partition, owner.generation);
        let work = Work::Read {
            partition,
            fence: Some(owner.fence),
            conversation: name.to_owned(),
            after: 0,
            through: conversation.durable,
            limit_bytes: SYNC_PAGE_BYTES,
            entries_max: NEWEST_LOOKED_AT,
            newest_first: true,
        };
        conversation.jobs += 1;
        let job = PartitionJob::Peek(name.to_owned(), Box::new(peeking));
        return cx.store(work, Pending::Partition { partition, generation, job });
    }
    cx.hub.fetches -= 1;
    let standing = standing(conversation, name, &peeking);
    answer(cx, owner, peeking.asker, standing);
}

fn standing(conversation: &Conversation, name: &str, peeking: &Peeking) -> Standing {
    let cursors = peeking.cursors.as_deref().unwrap_or_default();
    let stored = |user: &str, device: &str| {
        let stored = cursors.iter().find(|(of, at, _)| of == user && at == device);
        let moved = conversation.moved.get(user, device).unwrap_or_default();
        stored.map(|(.., cursor)| *cursor).unwrap_or_default().max(moved)
    };
    let own = stored(&peeking.user, &peeking.device);
    let read = stored(&peeking.user, "");
    let (head, epoch) = (conversation.durable, conversation.durable_epoch);
    let news = match peeking.has {
        Some(has) => (has.epoch, has.seq) != (epoch, head) && head + has.seq > 0,
        None => (own.epoch, own.seq) != (epoch, head) && head > 0,
    };
    let (mut peer_delivered, mut peer_read) = (0, 0);
    if let Some(peer) = Id::parse(name).and_then(|id| id.peer_of(&peeking.user)) {
        let moved = conversation.moved.iter().filter(|(user, ..)| *user == peer);
        let stored = cursors.iter().filter(|(user, ..)| user == peer);
        let all = stored.map(|(_, device, cursor)| (device.as_str(), *cursor));
        for (device, cursor) in all.chain(moved.map(|(_, device, cursor)| (device, cursor))) {
            let position = if device.is_empty() { &mut peer_read } else { &mut peer_delivered };
            *position = cursor.seq.max(*position);
        }
    }
    let wire = |cursor: Cursor| Some(client::Cursor { epoch: cursor.epoch, seq: cursor.seq });
    Standing {
        conversation: name.to_owned(),
        code: 0,
        head: Some(client::Cursor { epoch, seq: head }),
        delivered: wire(own),
        read: wire(read),
        unread: conversation.messages.saturating_sub(read.messages) as u32,
        last: conversation.last.clone().and_then(|body| Notify::decode(body).ok()),
        news,
        peer_delivered: peer_delivered.max(peer_read),
        peer_read,
    }
}

fn answer(cx: &mut Cx, owner: &Owner, asker: Asker, standing: Standing) {
    cx.hub.stats.peeks += 1;
    let peeked = Peeked { standings: vec![standing] };
    cx.reply(owner.from, asker, response::Outcome::Peeked(peeked), Reply::default());
}
