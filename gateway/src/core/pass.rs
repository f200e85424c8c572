//! Fan-out of one topic: one pass at a time, going up by slot, each receiver sent all messages of the pass.
//!
//! Messages that arrive during a pass wait and make up the next one, so that order holds for every receiver and a
//! topic under load turns into fewer, larger sends. A session that joins meanwhile is told a head; messages up to it
//! are not for that session, whichever pass carries them.

use std::collections::VecDeque;
use std::rc::Rc;

use millrace_protocol::frame::SharedFrame;
use rustc_hash::FxHashMap;

use super::action::Payload;
use super::limits::{PASS_BYTES_MAX, PASS_MESSAGES_MAX, SEND_BYTES_MAX};
use super::topics::Members;

/// The seq of what is for everybody, whatever they were told at joining under an earlier epoch: the conversation begins again.
/// Who joined under the same epoch, or a later one, was told better: it is sent nothing that lies between the two.
pub const RESTART: u64 = u64::MAX;

/// One thing to tell the listeners of a topic.
#[derive(Debug)]
pub struct Item {
    /// The seq that it brings a receiver to: sessions that joined at or above are not sent it.
    pub seq: u64,
    /// For a Gap, its first missing seq; else 0.
    pub gap_from: u64,
    /// Not to this session; 0: to all.
    pub except: u64,
    /// Of a [`RESTART`], the epoch of the owner that says so; else 0.
    pub epoch: u64,
    /// Encoded once.
    pub frame: SharedFrame,
}

impl Item {
    /// Whether a session is sent it, that was told this head under this epoch when it joined.
    fn is_for(&self, session: u64, told: Option<(u64, u64)>) -> bool {
        let is_news = |(head, epoch): (u64, u64)| match self.seq {
            RESTART => epoch < self.epoch,
            seq => seq > head,
        };
        self.except != session && told.is_none_or(is_news)
    }
}

#[derive(Debug, Default)]
struct Running {
    items: Vec<Item>,
    /// All items in one piece, made when the first receiver wants it: framed TCP, WebSocket.
    together: [Option<Rc<[u8]>>; 2],
    /// Next slot to look at.
    at: u32,
}

/// The fan-out state of one topic.
#[derive(Debug, Default)]
pub struct Fan {
    running: Option<Box<Running>>,
    waiting: VecDeque<Item>,
    waiting_bytes: usize,
    /// Slots that joined lately: the head that they were told, and under which epoch.
    joined: Option<Box<FxHashMap<u32, (u64, u64)>>>,
    /// The turn in which the last pass began.
    turn: u64,
    /// Whether it is in the ring of topics with work.
    pub in_ring: bool,
}

impl Fan {
    /// Whether nothing is to be sent.
    pub fn is_idle(&self) -> bool {
        self.running.is_none() && self.waiting.is_empty()
    }

    /// Messages waiting for the next pass.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether a message of such a size can wait. One always can.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.waiting.is_empty() || self.waiting_bytes + bytes <= PASS_BYTES_MAX
    }

    /// Adds a message to the next pass.
    pub fn push(&mut self, item: Item) {
        self.waiting_bytes += item.frame.bytes().len();
        self.waiting.push_back(item);
    }

    /// The Gap at the end of what waits, so that a further one can be joined to it: (from, to).
    pub fn take_last_gap(&mut self) -> Option<(u64, u64)> {
        let last = self.waiting.back().filter(|item| item.gap_from > 0)?;
        let gap = (last.gap_from, last.seq);
        self.waiting_bytes -= last.frame.bytes().len();
        self.waiting.pop_back();
        Some(gap)
    }

    /// A session joined, and was told this head under this epoch.
    pub fn joined(&mut self, slot: u32, head: u64, epoch: u64) {
        self.joined.get_or_insert_default().insert(slot, (head, epoch));
    }

    /// The head that a slot was told when it joined, and under which epoch, while that matters.
    fn told(&self, slot: u32) -> Option<(u64, u64)> {
        self.joined.as_ref()?.get(&slot).copied()
    }

    /// A slot left: its successor starts afresh.
    pub fn left(&mut self, slot: u32) {
        if let Some(joined) = &mut self.joined {
            joined.remove(&slot);
            if joined.is_empty() {
                self.joined = None;
            }
        }
    }

    /// Whether somebody was told a head above this one at joining, under an epoch before this one, and that matters still.
    pub fn has_told_above(&self, head: u64, epoch: u64) -> bool {
        let above = |(told, of): &(u64, u64)| *told > head && *of < epoch;
        self.joined.as_ref().is_some_and(|joined| joined.values().any(above))
    }

    /// Everybody is being told this head under this epoch: what lies above it is also for those who were told a higher one
    /// at joining, under an earlier epoch.
    pub fn lower_joined(&mut self, head: u64, epoch: u64) {
        let joined = self.joined.iter_mut().flat_map(|joined| joined.values_mut());
        joined.filter(|(_, of)| *of < epoch).for_each(|(told, _)| *told = head.min(*told));
    }

    /// What was told at joining no longer counts: seqs begin again.
    pub fn forget_joined(&mut self) {
        self.joined = None;
    }

    /// The head as of which a listener has everything that it is meant to have, with what is under way left out.
    pub fn delivered_to(&self, slot: u32, last: u64) -> u64 {
        let running = self.running.as_ref().filter(|running| slot >= running.at);
        let under_way = running.into_iter().flat_map(|running| &running.items).chain(&self.waiting);
        let oldest = under_way.into_iter().find(|item| item.seq != RESTART);
        let reached = oldest.map_or(last, |item| {
            let first = if item.gap_from > 0 { item.gap_from } else { item.seq };
            first.saturating_sub(1).min(last)
        });
        reached.max(self.told(slot).map_or(0, |(head, _)| head))
    }

    /// The next receiver of the running pass, or of the next one if that ended; `None` when idle, or when a pass began
    /// in this turn already: a receiver's send can complete only between turns, and passes on top of each other would
    /// fill the outbox of one that reads well. `last` is the highest seq that was taken in.
    pub fn next_receiver(&mut self, members: &Members, last: u64, turn: u64) -> Option<u32> {
        loop {
            if let Some(running) = &mut self.running {
                if let Some(slot) = members.next_from(running.at) {
                    running.at = slot + 1;
                    return Some(slot);
                }
                self.running = None;
            }
            if self.turn == turn {
                return None;
            }
            // What a session was told at joining matters only while older messages are on their way.
            let oldest =
                self.waiting.iter().find(|item| item.seq != RESTART).map_or(last + 1, |item| item.seq);
            if let Some(joined) = &mut self.joined {
                joined.retain(|_, (head, _)| *head >= oldest);
                if joined.is_empty() {
                    self.joined = None;
                }
            }
            let mut items = Vec::new();
            let mut bytes = 0;
            while let Some(item) = self.waiting.front() {
                let size = item.frame.bytes().len();
                if !items.is_empty() && (bytes + size > SEND_BYTES_MAX || items.len() == PASS_MESSAGES_MAX) {
                    break;
                }
                bytes += size;
                items.extend(self.waiting.pop_front());
            }
            self.waiting_bytes -= bytes;
            if items.is_empty() {
                return None;
            }
            self.turn = turn;
            self.running = Some(Box::new(Running { items, together: [None, None], at: 0 }));
        }
    }

    /// The highest message that the running pass has for a receiver.
    pub fn highest_for(&self, slot: u32, session: u64) -> Option<u64> {
        let running = self.running.as_ref()?;
        let told = self.told(slot);
        let message = |item: &&Item| item.gap_from == 0 && item.seq != RESTART;
        let wanted = |item: &&Item| item.is_for(session, told);
        running.items.iter().rev().filter(message).find(wanted).map(|item| item.seq)
    }

    /// What the running pass has for a receiver; `None` when all of it is not for this one.
    pub fn payload_for(&mut self, slot: u32, session: u64, websocket: bool) -> Option<Payload> {
        let told = self.told(slot);
        let running = self.running.as_mut()?;
        let wanted = |item: &&Item| item.is_for(session, told);
        let count = running.items.iter().filter(wanted).count();
        let shared = |frame: &SharedFrame| Payload::Shared {
            bytes: frame.bytes().clone(),
            start: frame.start_for(websocket) as u32,
        };
        if count <= 1 {
            return running.items.iter().find(wanted).map(|item| shared(&item.frame));
        }
        let concat = |items: &mut dyn Iterator<Item = &Item>| {
            let mut all = Vec::new();
            items.for_each(|item| all.extend_from_slice(item.frame.bytes_for(websocket)));
            all
        };
        if count < running.items.len() {
            return Some(Payload::Owned(concat(&mut running.items.iter().filter(wanted))));
        }
        let together = &mut running.together[usize::from(websocket)];
        let bytes = together.get_or_insert_with(|| concat(&mut running.items.iter()).into());
        Some(Payload::Shared { bytes: bytes.clone(), start: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::super::outbox::payload_bytes;
    use super::*;

    fn item(seq: u64, except: u64) -> Item {
        Item { seq, gap_from: 0, except, epoch: 0, frame: SharedFrame::notify(&[seq as u8]) }
    }

    fn drain(fan: &mut Fan, members: &Members, last: u64) -> Vec<(u32, Vec<u8>)> {
        let mut turn = 100;
        std::iter::from_fn(|| {
            turn += 1;
            let slot = fan.next_receiver(members, last, turn)?;
            let payload = fan.payload_for(slot, u64::from(slot), false);
            Some((slot, payload.map_or(Vec::new(), |p| payload_bytes(&p).chunks(5).map(|f| f[4]).collect())))
        })
        .collect()
    }

    #[test]
    fn what_arrives_during_a_pass_joins_the_next() {
        let mut members = Members::default();
        for slot in [3, 5, 9] {
            members.insert(slot, 1000);
        }
        let mut fan = Fan::default();
        fan.push(item(1, 5));
        assert_eq!(fan.next_receiver(&members, 1, 1), Some(3));
        fan.push(item(2, 0));
        fan.push(item(3, 0));
        // Joins during the pass: below and above where it is.
        members.insert(1, 1000);
        members.insert(8, 1000);
        fan.joined(1, 3, 1);
        fan.joined(8, 2, 1);
        let sent = drain(&mut fan, &members, 3);
        let expected: Vec<(u32, Vec<u8>)> = vec![
            (5, vec![]),
            (8, vec![]),
            (9, vec![1]),
            (1, vec![]),
            (3, vec![2, 3]),
            (5, vec![2, 3]),
            (8, vec![3]),
            (9, vec![2, 3]),
        ];
        assert_eq!(sent, expected);
        assert!(fan.is_idle() && fan.joined.is_none() && fan.waiting_bytes == 0);
    }

    #[test]
    fn a_beginning_is_no_place_in_the_log() {
        let mut fan = Fan::default();
        fan.push(Item { epoch: 2, ..item(RESTART, 0) });
        assert_eq!(fan.delivered_to(3, 22), 22);
        fan.push(item(23, 0));
        fan.push(item(24, 0));
        assert_eq!(fan.delivered_to(3, 24), 22, "23 and 24 are not sent yet");
    }

    #[test]
    fn what_is_for_everybody_makes_no_earlier_head_void() {
        let mut members = Members::default();
        [3, 4, 5].into_iter().for_each(|slot| assert!(members.insert(slot, 1000)));
        let mut fan = Fan::default();
        fan.joined(3, 9, 1);
        // Told by the owner that speaks here, or a later one: where it listens from is no other for what is said to the rest.
        fan.joined(4, 9, 2);
        fan.joined(5, 9, 3);
        fan.push(Item { epoch: 2, ..item(RESTART, 0) });
        fan.push(item(8, 0));
        fan.push(item(10, 0));
        let sent = drain(&mut fan, &members, 10);
        assert_eq!(sent, [(3, vec![RESTART as u8, 10]), (4, vec![10]), (5, vec![10])]);
    }

    #[test]
    fn bounded_and_gaps_merge() {
        let mut fan = Fan::default();
        let big = |seq| Item { frame: SharedFrame::notify(&vec![0; PASS_BYTES_MAX / 2]), ..item(seq, 0) };
        assert!(fan.has_room(usize::MAX / 2), "one message always fits");
        fan.push(big(1));
        assert!(fan.has_room(10) && !fan.has_room(PASS_BYTES_MAX));
        assert_eq!(fan.take_last_gap(), None);
        fan.push(Item { gap_from: 2, ..item(4, 0) });
        assert_eq!(fan.take_last_gap(), Some((2, 4)));
        assert_eq!(fan.waiting(), 1);
    }
}
