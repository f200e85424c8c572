//! Subscriptions of gateway shards to conversations, rooms' comings and goings, and the messages that a shard missed.
//!
//! The rule that keeps it right: a link listens from the head that it is told; the answer is queued before anything
//! later is fanned out on it.

use millrace_protocol::conversation::Conversation as Id;
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::client::{Left, response};
use millrace_protocol::messages::link::{FanOut, Fetch, Page, Reply, Subscribe, Subscribed, Unsubscribe};
use millrace_protocol::planted::{self, Fault};

use super::batch::Owner;
use super::conversation::Conversation;
use super::event::LinkKey;
use super::hub::{Asker, Cx, From, PartitionJob, Pending};
use super::limits::{FETCHES_MAX, PAGE_BYTES_MAX};
use crate::store::{Entry, Outcome, StoreError, Work};

/// A Subscribe record.
pub fn subscribe(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    link: LinkKey,
    record: &Record,
    ask: Subscribe,
) {
    let mut answer = Subscribed {
        conversation: ask.conversation,
        version: ask.version,
        head: if planted::is(Fault::HeadBeforeDurable) { conversation.head } else { conversation.durable },
        base: conversation.base.0,
        base_epoch: conversation.base.1,
        ..Subscribed::default()
    };
    if matches!(Id::parse(&answer.conversation), Some(Id::Group(_))) {
        match &conversation.members {
            None => answer.gone = true,
            Some(members) => {
                answer.members_version = members.version;
                answer.recheck = ask.members_version != 0 && ask.members_version != members.version;
                answer.refused = ask.users.into_iter().filter(|user| !members.contains(user)).collect();
            }
        }
    }
    if !answer.gone {
        let version = conversation.subscribers.entry(link).or_insert(0);
        *version = (*version).max(answer.version);
    }
    cx.send(link, owner.from.record(Kind::Subscribed, record.session, &answer));
}

/// An Unsubscribe record: one that is older than the subscription is void.
pub fn unsubscribe(conversation: &mut Conversation, link: LinkKey, ask: &Unsubscribe) {
    if conversation.subscribers.get(&link).is_some_and(|version| *version <= ask.version) {
        conversation.subscribers.remove(&link);
    }
}

/// A client leaves a room. Only its gateway knows whether others there stay, and unsubscribes when none do.
pub fn room_leave(cx: &mut Cx, owner: &Owner, name: &str, asker: Asker, user: String) {
    let left = Left { conversation: name.to_owned() };
    let reply = Reply { left: name.to_owned(), user, ..Reply::default() };
    cx.reply(owner.from, asker, response::Outcome::Left(left), reply);
}

/// A fetch under way.
#[derive(Debug)]
pub struct Fetching {
    link: LinkKey,
    from: From,
    /// As it came, to be given back when the partition stops.
    record: Record,
    conversation: String,
    after: u64,
    through: u64,
    head: u64,
}

/// A Fetch record.
pub fn fetch(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &Conversation,
    link: LinkKey,
    record: Record,
    ask: Fetch,
) -> Result<(), Record> {
    let head = conversation.durable;
    let fetching = Fetching {
        link,
        from: owner.from,
        record,
        conversation: ask.conversation,
        after: ask.after_seq,
        through: ask.through_seq.min(head),
        head,
    };
    if fetching.after >= fetching.through {
        page(cx, &fetching, Vec::new(), 1);
        return Ok(());
    }
    if cx.hub.fetches >= FETCHES_MAX {
        return Err(fetching.record);
    }
    cx.hub.fetches += 1;
    read(cx, owner.generation, fetching);
    Ok(())
}

fn read(cx: &mut Cx, generation: u64, fetching: Fetching) {
    let partition = fetching.from.partition;
    let work = Work::Read {
        partition,
        conversation: fetching.conversation.clone(),
        after: fetching.after,
        through: fetching.through,
        limit_bytes: PAGE_BYTES_MAX,
        entries_max: usize::MAX,
        fence: None,
        newest_first: false,
    };
    let job = PartitionJob::Read(Box::new(fetching));
    cx.store(work, Pending::Partition { partition, generation, job });
}

/// Entries were read. The fetch is given back if that failed, or if the partition is no longer served under the epoch
/// that the page would carry: gateways drop pages of an older one.
pub fn entries(
    cx: &mut Cx,
    generation: u64,
    is_current: bool,
    mut fetching: Fetching,
    outcome: Result<Outcome, StoreError>,
) -> Option<(LinkKey, Record)> {
    let (entries, first_seq) = match outcome {
        Ok(Outcome::Entries { entries, first_seq, .. }) if is_current => (entries, first_seq),
        _ => {
            cx.hub.fetches -= 1;
            return Some((fetching.link, fetching.record));
        }
    };
    let last = entries.last().map(|entry| entry.seq);
    page(cx, &fetching, entries, first_seq);
    match last {
        Some(last) if last < fetching.through && last > fetching.after => {
            fetching.after = last;
            read(cx, generation, fetching);
        }
        _ => cx.hub.fetches -= 1,
    }
    None
}

fn page(cx: &mut Cx, fetching: &Fetching, entries: Vec<Entry>, first_seq: u64) {
    let messages = entries
        .into_iter()
        .map(|entry| FanOut {
            conversation: entry.conversation,
            seq: entry.seq,
            except_session: 0,
            notify: entry.notify,
        })
        .collect();
    let page = Page { conversation: fetching.conversation.clone(), messages, first_seq, head: fetching.head };
    cx.send(fetching.link, fetching.from.record(Kind::Page, fetching.record.session, &page));
}
