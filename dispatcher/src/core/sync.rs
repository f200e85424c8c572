//! Pages of a conversation's log: for devices that catch up (Sync), and for reading back (History).
//!
//! A page is read under the fence, so that a paused owner can't answer with an old head. The rules that keep it right:
//! a cursor counts only if the log still has that entry from that epoch, else the client is told where the log it knows
//! ends; and a session listens again only from a page that reaches the head, as everything later follows it on its link.

use bytes::Bytes;
use millrace_protocol::conversation::Conversation as Id;
use millrace_protocol::messages::client::{self, Code, Gap, History, Notify, Sync, SyncPage, response};
use millrace_protocol::messages::link::Reply;
use millrace_protocol::planted::{self, Fault};
use millrace_protocol::prost::Message;

use super::batch::Owner;
use super::conversation::Conversation;
use super::cursors::outsider;
use super::hub::{Asker, Cx, PartitionJob, Pending};
use super::limits::{FETCHES_MAX, SYNC_ENTRIES_MAX, SYNC_PAGE_BYTES, TRUNCATION_STEP};
use crate::store::{Cursor, CursorsOf, Entry, Outcome, Work};

/// A page on its way.
#[derive(Debug)]
pub struct Paging {
    /// Who waits.
    pub asker: Asker,
    user: String,
    device: String,
    limit: usize,
    want: Want,
    /// What was durable when the store was asked.
    durable: u64,
}

#[derive(Debug)]
enum Want {
    /// The server's own cursor of the device, to go on from.
    OwnCursor,
    /// Entries after the cursor.
    After(Cursor),
    /// The last entry that the cursor's epoch knows: the log ends below the cursor, or goes on differently.
    End(Cursor),
    /// Below (newest first) or above a seq, for reading back.
    Below(u64),
    Above(u64),
}

/// A Sync.
#[expect(clippy::too_many_arguments, reason = "who asks, where, and for what")]
pub fn sync(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    name: &str,
    asker: Asker,
    user: String,
    device: String,
    ask: Sync,
) {
    let want = match ask.after {
        Some(client::Cursor { epoch, seq }) => Want::After(Cursor { epoch, seq, messages: 0 }),
        None => Want::OwnCursor,
    };
    let limit = limit(ask.limit);
    start(cx, owner, conversation, name, Paging { asker, user, device, limit, want, durable: 0 });
}

/// A History.
pub fn history(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    name: &str,
    asker: Asker,
    user: String,
    ask: &History,
) {
    let want = match (ask.before, ask.after) {
        (0, 0) => Want::Below(u64::MAX),
        (before, 0) => Want::Below(before),
        (0, after) => Want::Above(after),
        _ => return cx.refuse(owner.from, asker, Code::BadRequest, "either before or after"),
    };
    let device = String::new();
    let limit = limit(ask.limit);
    start(cx, owner, conversation, name, Paging { asker, user, device, limit, want, durable: 0 });
}

fn limit(asked: u32) -> usize {
    match asked as usize {
        0 => SYNC_ENTRIES_MAX,
        asked => asked.min(SYNC_ENTRIES_MAX),
    }
}

fn start(cx: &mut Cx, owner: &Owner, conversation: &mut Conversation, name: &str, paging: Paging) {
    if let Some((code, reason)) = outsider(Id::parse(name), conversation, &paging.user) {
        return cx.refuse(owner.from, paging.asker, code, reason);
    }
    if cx.hub.fetches >= FETCHES_MAX {
        return cx.busy(owner.from, paging.asker, "too many pages are being read");
    }
    cx.hub.fetches += 1;
    conversation.jobs += 1;
    ask(cx, owner, name, conversation.durable, paging);
}

/// Hands the next job of a page to the store. Nothing above `durable` is read: what the store has there already may be
/// short of its durability level, and membership may have changed with it.
fn ask(cx: &mut Cx, owner: &Owner, name: &str, durable: u64, mut paging: Paging) {
    let durable = if planted::is(Fault::PageAboveDurable) { u64::MAX } else { durable };
    paging.durable = durable;
    let (partition, fence, conversation) = (owner.from.partition, owner.fence, name.to_owned());
    let read = |after: u64, through: u64, entries_max: usize, newest_first: bool| Work::Read {
        partition,
        fence: (!planted::is(Fault::PagesByAnybody)).then_some(fence),
        conversation: conversation.clone(),
        after,
        through,
        limit_bytes: SYNC_PAGE_BYTES,
        entries_max,
        newest_first,
    };
    let work = match &paging.want {
        Want::OwnCursor => {
            let of = CursorsOf::User(paging.user.clone());
            Work::Cursors { partition, fence, conversation: conversation.clone(), of }
        }
        // With the cursor's own entry, whose epoch is compared.
        Want::After(cursor) => read(cursor.seq.saturating_sub(1), durable, paging.limit + 1, false),
        Want::End(cursor) => read(0, cursor.seq, TRUNCATION_STEP, true),
        Want::Below(before) => read(0, durable.min(before.saturating_sub(1)), paging.limit, true),
        Want::Above(after) => read(*after, durable, paging.limit, false),
    };
    let job = PartitionJob::Page(conversation, Box::new(paging));
    cx.store(work, Pending::Partition { partition, generation: owner.generation, job });
}

/// The store answered a job of a page. `Some`: there is another one to do.
pub fn answered(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    name: &str,
    mut paging: Paging,
    outcome: Outcome,
) {
    let more = match (&paging.want, outcome) {
        (Want::OwnCursor, Outcome::Cursors(cursors)) => {
            let known = |device: &str| {
                let stored = cursors.iter().find(|(_, at, _)| at == device).map(|(.., cursor)| *cursor);
                stored.max(conversation.moved.get(&paging.user, device))
            };
            // A device that is new here goes on from what its user has read on others.
            let cursor = known(&paging.device).or_else(|| known("")).unwrap_or_default();
            paging.want = Want::After(cursor);
            true
        }
        (Want::After(cursor), Outcome::Entries { entries, first_seq, head }) => {
            // What the store has above is not read: a cursor there is not of this log.
            let head = head.min(paging.durable);
            // The log has another entry in its place: what its device knows in common with the log lies below.
            let differs = entries.first().is_some_and(|entry| entry.seq == cursor.seq);
            match after(*cursor, entries, first_seq, head) {
                Some(Following { mut entries, gap }) => {
                    entries.truncate(paging.limit);
                    let end = entries.last().map_or(head.min(cursor.seq), |last| last.seq);
                    synced(cx, owner, conversation, name, &paging, entries, gap, end);
                    false
                }
                None => {
                    let seq = (cursor.seq - u64::from(differs)).min(head);
                    paging.want = Want::End(Cursor { seq, ..*cursor });
                    true
                }
            }
        }
        (Want::End(cursor), Outcome::Entries { entries, first_seq, .. }) => {
            let known = entries.iter().find(|entry| entry.epoch <= cursor.epoch);
            let lowest = entries.last().map_or(0, |entry| entry.seq);
            match known {
                Some(entry) => {
                    truncated(cx, owner, name, &paging, entry.epoch, entry.seq);
                    false
                }
                None if lowest > first_seq => {
                    paging.want = Want::End(Cursor { seq: lowest - 1, ..*cursor });
                    true
                }
                // Nothing that the cursor knows is left.
                None => {
                    truncated(cx, owner, name, &paging, 0, 0);
                    false
                }
            }
        }
        (Want::Below(before), Outcome::Entries { entries, first_seq, .. }) => {
            let lowest = entries.last().map_or(*before, |entry| entry.seq);
            let page =
                SyncPage { more: lowest > first_seq && !entries.is_empty(), ..page(name, conversation) };
            answer(cx, owner, &paging, SyncPage { entries: bodies(&entries), ..page }, Reply::default());
            false
        }
        (Want::Above(after), Outcome::Entries { entries, first_seq, .. }) => {
            let end = entries.last().map_or(*after, |entry| entry.seq);
            let gap = (after + 1 < first_seq).then(|| gap(name, after + 1, first_seq - 1));
            let page = SyncPage { more: end < conversation.durable, gap, ..page(name, conversation) };
            answer(cx, owner, &paging, SyncPage { entries: bodies(&entries), ..page }, Reply::default());
            false
        }
        _ => {
            cx.busy(owner.from, paging.asker, "the page can't be read now");
            false
        }
    };
    if more {
        conversation.jobs += 1;
        return ask(cx, owner, name, conversation.durable, paging);
    }
    cx.hub.fetches -= 1;
}

/// What follows a cursor.
struct Following {
    entries: Vec<Entry>,
    /// Seqs between the cursor and the first entry that the log no longer has.
    gap: Option<(u64, u64)>,
}

/// What follows a cursor in what was read from its own entry on. `None`: the log does not have that entry.
fn after(cursor: Cursor, mut entries: Vec<Entry>, first_seq: u64, head: u64) -> Option<Following> {
    if planted::is(Fault::TruncationNotTold) {
        entries.retain(|entry| entry.seq > cursor.seq);
        return Some(Following { entries, gap: None });
    }
    if cursor.seq > head {
        return None;
    }
    if cursor.seq > 0 && entries.first().is_some_and(|entry| entry.seq == cursor.seq) {
        if entries[0].epoch != cursor.epoch {
            return None;
        }
        entries.remove(0);
        return Some(Following { entries, gap: None });
    }
    // Its entry is past its retention; one of an earlier epoch can't follow it.
    if entries.first().is_some_and(|entry| entry.epoch < cursor.epoch) {
        return None;
    }
    let gap = (cursor.seq + 1 < first_seq).then(|| (cursor.seq + 1, first_seq - 1));
    Some(Following { entries, gap })
}

#[expect(clippy::too_many_arguments, reason = "everything that a page says")]
fn synced(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &mut Conversation,
    name: &str,
    paging: &Paging,
    entries: Vec<Entry>,
    missing: Option<(u64, u64)>,
    end: u64,
) {
    let end = missing.map_or(end, |(_, to)| end.max(to));
    let more = end < conversation.durable && !planted::is(Fault::PageShortOfHead);
    let mut reply = Reply::default();
    // Membership may have changed while the page was read.
    let member = conversation.members.as_ref().is_some_and(|members| members.contains(&paging.user));
    if member && more {
        reply.syncing = name.to_owned();
    } else if member {
        conversation.subscribers.entry(paging.asker.link).or_insert(0);
        reply.joined = name.to_owned();
        reply.joined_head = conversation.durable;
        reply.members_version = conversation.members.as_ref().map_or(0, |members| members.version);
    } else if conversation.members.is_some() {
        return cx.refuse(owner.from, paging.asker, Code::NotMember, "not a member of this group");
    }
    let gap = missing.map(|(from, to)| gap(name, from, to));
    let page = SyncPage { entries: bodies(&entries), more, gap, ..page(name, conversation) };
    answer(cx, owner, paging, page, reply);
}

fn truncated(cx: &mut Cx, owner: &Owner, name: &str, paging: &Paging, epoch: u64, seq: u64) {
    cx.hub.stats.truncated += 1;
    let to = client::Cursor { epoch, seq };
    let page =
        SyncPage { conversation: name.to_owned(), truncated: Some(to), more: true, ..SyncPage::default() };
    answer(cx, owner, paging, page, Reply::default());
}

fn page(name: &str, conversation: &Conversation) -> SyncPage {
    SyncPage {
        conversation: name.to_owned(),
        epoch: conversation.durable_epoch,
        head: conversation.durable,
        ..SyncPage::default()
    }
}

fn gap(name: &str, from: u64, to: u64) -> Gap {
    Gap { conversation: name.to_owned(), from, to }
}

fn bodies(entries: &[Entry]) -> Vec<Notify> {
    let read = |body: &Bytes| Notify::decode(body.clone()).unwrap_or_default();
    entries.iter().map(|entry| read(&entry.notify)).collect()
}

fn answer(cx: &mut Cx, owner: &Owner, paging: &Paging, page: SyncPage, reply: Reply) {
    cx.hub.stats.pages += 1;
    cx.reply(owner.from, paging.asker, response::Outcome::SyncPage(page), reply);
}

#[cfg(test)]
mod tests {
    use millrace_protocol::ids::MessageId;

    use super::*;

    fn entry(seq: u64, epoch: u64) -> Entry {
        Entry {
            conversation: "g:a".into(),
            seq,
            message_id: MessageId(seq),
            epoch,
            action: 0,
            messages: seq,
            bytes: seq,
            sender: "ann".into(),
            device: "phone".into(),
            stream: 1,
            client_seq: seq,
            payload_hash: 0,
            notify: Bytes::new(),
        }
    }

    #[test]
    fn a_cursor_counts_only_if_the_log_has_its_entry() {
        // The log: 3..=6, of which 5 and 6 are of epoch 9.
        let log = [entry(3, 2), entry(4, 2), entry(5, 9), entry(6, 9)];
        type Expected = Option<(Vec<u64>, Option<(u64, u64)>)>;
        let cases: [(u64, u64, Expected); 8] = [
            (2, 4, Some((vec![5, 6], None))),
            (9, 6, Some((vec![], None))),
            (2, 5, None),
            (9, 4, None),
            (9, 7, None),
            (0, 0, Some((vec![3, 4, 5, 6], Some((1, 2))))),
            (2, 1, Some((vec![3, 4, 5, 6], Some((2, 2))))),
            (9, 1, None),
        ];
        for (epoch, seq, expected) in cases {
            let read = log.iter().filter(|entry| entry.seq >= seq.max(1)).cloned().collect();
            let found = after(Cursor { epoch, seq, messages: 0 }, read, 3, 6);
            let found = found.map(|Following { entries, gap }| {
                (entries.iter().map(|entry| entry.seq).collect::<Vec<_>>(), gap)
            });
            assert_eq!(found, expected, "({epoch}, {seq})");
        }
    }
}
