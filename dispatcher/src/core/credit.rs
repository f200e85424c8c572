//! What waits for credit on one link: records in order, and gap marks instead of messages.
//!
//! It leaves the deciding who gets what to others. The rule that keeps it right: a gap mark stands where the first
//! message that it replaces would have stood, and grows only until something is queued behind it that changes who
//! listens to its conversation; then the next message gets a mark of its own behind that.

use std::collections::VecDeque;

use bytes::Bytes;
use millrace_protocol::ids::SessionId;
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::client::{Notify, notify};
use millrace_protocol::messages::link::{Attach, Direct, DirectGap, FanOut, Gap, Remove, Reply, Subscribed};
use millrace_protocol::planted::{self, Fault};
use millrace_protocol::prost::Message;
use rustc_hash::FxHashMap;

use super::limits::LINK_WAITING_MAX;

/// The queue of one link without credit.
#[derive(Debug, Default)]
pub struct Waiting {
    queue: VecDeque<Item>,
    bytes: usize,
    /// Items ever taken from the front: item `n` is at `n - taken`.
    taken: u64,
    /// The mark that grows, per conversation.
    open: FxHashMap<String, u64>,
}

#[derive(Debug)]
enum Item {
    Record(Record),
    Gap { mark: Record, conversation: String, head: u64 },
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It waits.
    Waits,
    /// It became, or joined, a gap mark.
    Marked,
    /// It was dropped: the log holds it.
    Dropped,
    /// It was dropped: nobody needs it later.
    Forgotten,
    /// There is no room: the link's state must be dropped.
    Overflow,
}

impl Waiting {
    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Records and marks that wait.
    pub fn count(&self) -> usize {
        self.queue.len()
    }

    /// Takes a record for which there is no credit, or before which others wait.
    pub fn push(&mut self, record: Record, bytes_max: usize) -> Kept {
        match record.kind {
            Kind::FanOut if planted::is(Fault::GapMarkLost) => Kept::Marked,
            Kind::Direct if planted::is(Fault::DirectGapMarkLost) => Kept::Dropped,
            Kind::FanOut => match FanOut::decode(&record.body[..]) {
                Ok(message) => self.mark(record, message),
                Err(_) => Kept::Dropped,
            },
            Kind::Direct => self.direct_mark(record, bytes_max),
            Kind::Relay => Kept::Forgotten,
            _ => {
                if let Some(conversation) = changes_listeners(&record) {
                    self.open.remove(&conversation);
                }
                self.bytes += record.size_bytes();
                self.append(Item::Record(record), bytes_max)
            }
        }
    }

    /// In the place of a direct message its sessions are told that they missed something.
    fn direct_mark(&mut self, record: Record, bytes_max: usize) -> Kept {
        let Ok(Direct { targets, notify }) = Direct::decode(&record.body[..]) else { return Kept::Dropped };
        let event = Notify::decode(notify).ok().and_then(|notify| notify.event);
        let Some(notify::Event::Deliver(deliver)) = event else { return Kept::Dropped };
        let gap = DirectGap { targets, conversation: deliver.conversation, head: deliver.seq };
        let mark = Record { kind: Kind::DirectGap, body: gap.encode_to_vec().into(), ..record };
        self.bytes += mark.size_bytes();
        match self.append(Item::Record(mark), bytes_max) {
            Kept::Overflow => Kept::Overflow,
            _ => Kept::Dropped,
        }
    }

    fn mark(&mut self, record: Record, message: FanOut) -> Kept {
        if let Some(number) = self.open.get(&message.conversation) {
            let index = (number - self.taken) as usize;
            if let Item::Gap { mark, head, .. } = &mut self.queue[index] {
                mark.epoch = mark.epoch.max(record.epoch);
                *head = (*head).max(message.seq);
            }
            return Kept::Marked;
        }
        self.open.insert(message.conversation.clone(), self.taken + self.queue.len() as u64);
        self.bytes += record_bytes(&message.conversation);
        let mark = Record { kind: Kind::Gap, session: SessionId::NONE, body: Bytes::new(), ..record };
        let item = Item::Gap { mark, conversation: message.conversation, head: message.seq };
        match self.append(item, usize::MAX) {
            Kept::Overflow => Kept::Overflow,
            _ => Kept::Marked,
        }
    }

    fn append(&mut self, item: Item, bytes_max: usize) -> Kept {
        if self.queue.len() >= LINK_WAITING_MAX || self.bytes > bytes_max {
            return Kept::Overflow;
        }
        self.queue.push_back(item);
        Kept::Waits
    }

    /// The next record to queue on the link, a mark made into its Gap.
    pub fn pop(&mut self) -> Option<Record> {
        let item = self.queue.pop_front()?;
        let number = self.taken;
        self.taken += 1;
        match item {
            Item::Record(record) => {
                self.bytes -= record.size_bytes();
                Some(record)
            }
            Item::Gap { mark, conversation, head } => {
                self.bytes -= record_bytes(&conversation);
                if self.open.get(&conversation) == Some(&number) {
                    self.open.remove(&conversation);
                }
                Some(Record { body: Gap { conversation, head }.encode_to_vec().into(), ..mark })
            }
        }
    }

    /// Puts back what [`Waiting::pop`] gave: there is no credit after all. A gap put back no longer grows.
    pub fn put_back(&mut self, record: Record) {
        self.bytes += record.size_bytes();
        self.taken -= 1;
        self.queue.push_front(Item::Record(record));
    }
}

/// What a mark is counted as.
fn record_bytes(conversation: &str) -> usize {
    64 + conversation.len()
}

/// The conversation whose listeners change at the gateway when it gets this record.
fn changes_listeners(record: &Record) -> Option<String> {
    let body = &record.body[..];
    let conversation = match record.kind {
        Kind::Remove => Remove::decode(body).ok()?.conversation,
        Kind::Attach => Attach::decode(body).ok()?.conversation,
        Kind::Subscribed => Subscribed::decode(body).ok()?.conversation,
        Kind::Reply => {
            let reply = Reply::decode(body).ok()?;
            if reply.joined.is_empty() { reply.left } else { reply.joined }
        }
        _ => return None,
    };
    (!conversation.is_empty()).then_some(conversation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: Kind, message: &impl Message) -> Record {
        Record {
            kind,
            partition: 3,
            epoch: 9,
            session: SessionId::NONE,
            body: message.encode_to_vec().into(),
        }
    }

    fn fan_out(conversation: &str, seq: u64) -> Record {
        record(Kind::FanOut, &FanOut { conversation: conversation.into(), seq, ..Default::default() })
    }

    fn drain(waiting: &mut Waiting) -> Vec<String> {
        std::iter::from_fn(|| waiting.pop())
            .map(|record| match record.kind {
                Kind::Gap => {
                    let gap = Gap::decode(record.body).unwrap();
                    format!("{}<={}", gap.conversation, gap.head)
                }
                kind => format!("{kind:?}"),
            })
            .collect()
    }

    #[test]
    fn messages_become_one_mark_per_conversation() {
        let mut waiting = Waiting::default();
        for (conversation, seq) in [("g:a", 4), ("g:b", 1), ("g:a", 5), ("g:a", 6)] {
            assert_eq!(waiting.push(fan_out(conversation, seq), 1 << 20), Kept::Marked);
        }
        assert_eq!(drain(&mut waiting), ["g:a<=6", "g:b<=1"]);
        assert_eq!((waiting.bytes, waiting.open.len()), (0, 0));
    }

    #[test]
    fn a_removal_closes_the_mark_before_it() {
        let mut waiting = Waiting::default();
        waiting.push(fan_out("g:a", 4), 1 << 20);
        let remove = Remove { conversation: "g:a".into(), ..Default::default() };
        assert_eq!(waiting.push(record(Kind::Remove, &remove), 1 << 20), Kept::Waits);
        waiting.push(fan_out("g:a", 5), 1 << 20);
        let ack = Reply { token: 1, ..Default::default() };
        waiting.push(record(Kind::Reply, &ack), 1 << 20);
        waiting.push(fan_out("g:a", 6), 1 << 20);
        assert_eq!(drain(&mut waiting), ["g:a<=4", "Remove", "g:a<=6", "Reply"]);
    }

    #[test]
    fn what_is_put_back_comes_first_and_marks_stay_found() {
        let mut waiting = Waiting::default();
        waiting.push(fan_out("g:a", 4), 1 << 20);
        waiting.push(fan_out("g:b", 1), 1 << 20);
        let first = waiting.pop().unwrap();
        waiting.put_back(first);
        waiting.push(fan_out("g:b", 2), 1 << 20);
        waiting.push(fan_out("g:a", 5), 1 << 20);
        assert_eq!(drain(&mut waiting), ["g:a<=4", "g:b<=2", "g:a<=5"]);
        assert_eq!(waiting.bytes, 0);
    }

    #[test]
    fn bounded_in_bytes_and_directs_are_dropped() {
        let mut waiting = Waiting::default();
        assert_eq!(waiting.push(record(Kind::Direct, &Reply::default()), 1 << 20), Kept::Dropped);
        assert_eq!(waiting.push(record(Kind::Relay, &Reply::default()), 1 << 20), Kept::Forgotten);
        let reply = Reply { response: Bytes::from(vec![0; 600]), ..Default::default() };
        assert_eq!(waiting.push(record(Kind::Reply, &reply), 1_000), Kept::Waits);
        assert_eq!(waiting.push(record(Kind::Reply, &reply), 1_000), Kept::Overflow);
    }
}
