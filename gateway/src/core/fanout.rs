//! Messages of subscribed conversations: taken in without holes, sent in slices.
//!
//! The rule: a topic takes in last + 1 or nothing. What comes twice is dropped; above a hole, what comes is held
//! (within bounds) until the hole's Page, and where there is no Page to be had (rooms, trimmed logs, three tries) the
//! listeners are told of a Gap in its place.

use std::collections::BTreeMap;

use millrace_protocol::bytes::Bytes;
use millrace_protocol::frame::SharedFrame;
use millrace_protocol::ids::{Partition, SessionId};
use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::{Gap, Notify, notify};
use millrace_protocol::messages::link::{self, FanOut, Fetch, Page};
use millrace_protocol::planted::{self, Fault};
use millrace_protocol::prost::Message;

use super::action::Payload;
use super::limits::*;
use super::owed::Of;
use super::pass::Item;
use super::session::*;
use super::shard::Shard;
use super::uplink::record;

/// What is missing of a topic, and what came after it.
#[derive(Default)]
pub(super) struct Hole {
    /// Highest seq known to be missing.
    through: u64,
    /// A Fetch is out.
    pub asked: bool,
    serial: u32,
    tries: u8,
    /// seq -> (except, body).
    held: BTreeMap<u64, (u64, Bytes)>,
    pub held_bytes: usize,
}

impl Shard {
    pub(super) fn enter_ring(&mut self, topic: u32) {
        if let Some(it) = self.topics.get_mut(topic).filter(|it| !it.fan.in_ring) {
            it.fan.in_ring = true;
            self.ring.push_back(topic);
        }
    }

    pub(super) fn on_fan_out(&mut self, partition: Partition, epoch: u64, body: FanOut) {
        if !self.uplink.witness(partition, epoch) {
            self.stats.stale_epochs += 1;
            return;
        }
        let topic = self.conversations.find(&body.conversation);
        let Some((topic, it)) = topic.and_then(|topic| Some((topic, self.topics.get(topic)?))) else {
            self.stats.fan_outs_unwanted += 1;
            return self.unsubscribe(&body.conversation);
        };
        // Of an owner that has not answered the subscription yet, it is not known how it goes on from here, nor for whom.
        if it.partition != partition || !it.known || epoch != it.epoch || it.unsure {
            self.stats.fan_outs_unwanted += 1;
            return;
        }
        if body.seq <= it.last {
            self.stats.duplicates += 1;
            return;
        }
        if planted::is(Fault::HoleNotFetched) {
            self.skip_to(topic, body.seq - 1);
        }
        let Some(it) = self.topics.get(topic) else { return };
        if body.seq == it.last + 1 && it.hole.is_none() {
            if self.take_in(topic, body.seq, body.except_session, &body.notify) {
                return;
            }
            self.stats.fan_outs_overflowed += 1;
            return self.missed(topic, body.seq);
        }
        if it.room {
            self.missed(topic, body.seq - 1);
            if !self.take_in(topic, body.seq, body.except_session, &body.notify) {
                self.stats.fan_outs_overflowed += 1;
                self.missed(topic, body.seq);
            }
            return;
        }
        self.hold(topic, body);
    }

    /// Keeps a message that is above a hole.
    fn hold(&mut self, topic: u32, body: FanOut) {
        let Some(it) = self.topics.get_mut(topic) else { return };
        let bytes = body.notify.len() + 64;
        let hole = it.hole.get_or_insert_default();
        if hole.held.contains_key(&body.seq) {
            self.stats.duplicates += 1;
            return;
        }
        let below = hole.held.keys().next().copied().unwrap_or(body.seq).min(body.seq);
        if self.held_bytes + bytes > HELD_BYTES_MAX {
            self.stats.fan_outs_overflowed += 1;
            hole.through = hole.through.max(body.seq);
        } else {
            self.held_bytes += bytes;
            hole.held_bytes += bytes;
            hole.held.insert(body.seq, (body.except_session, body.notify));
            hole.through = hole.through.max(below - 1);
        }
        self.ask(topic);
    }

    /// Messages up to `head` will not come by themselves: asked for, or told to the listeners of a room.
    pub(super) fn missed(&mut self, topic: u32, head: u64) {
        let Some(it) = self.topics.get_mut(topic) else { return };
        if head <= it.last {
            return;
        }
        if planted::is(Fault::HoleNotFetched) {
            return self.skip_to(topic, head);
        }
        if it.room {
            return self.tell_gap(topic, head);
        }
        let hole = it.hole.get_or_insert_default();
        hole.through = hole.through.max(head);
        self.ask(topic);
    }

    /// As if nothing were missing: see `planted`.
    fn skip_to(&mut self, topic: u32, to: u64) {
        if let Some(it) = self.topics.get_mut(topic) {
            it.last = it.last.max(to);
        }
    }

    /// Tells the listeners that everything up to `to` is missing, in its place among the messages.
    fn tell_gap(&mut self, topic: u32, to: u64) {
        let conversation = self.conversations.text(topic).to_owned();
        let Some(it) = self.topics.get_mut(topic) else { return };
        // What is held already is not missing.
        let held = it.hole.as_ref().and_then(|hole| hole.held.range(it.last + 1..).next());
        let to = held.map_or(to, |(seq, _)| to.min(*seq - 1));
        if to <= it.last {
            return;
        }
        if planted::is(Fault::OverflowWithoutGap) {
            return self.skip_to(topic, to);
        }
        let mut from = it.last + 1;
        if let Some((earlier, _)) = it.fan.take_last_gap() {
            from = earlier;
        } else {
            self.stats.gaps += 1;
        }
        it.last = to;
        let event = notify::Event::Gap(Gap { conversation, from, to });
        let body = Notify { event: Some(event) }.encode_to_vec();
        it.fan.push(Item { seq: to, gap_from: from, except: 0, epoch: 0, frame: SharedFrame::notify(&body) });
        self.enter_ring(topic);
    }

    /// Takes in last + 1, if there is room for it.
    fn take_in(&mut self, topic: u32, seq: u64, except: u64, notify: &[u8]) -> bool {
        let Some(it) = self.topics.get_mut(topic) else { return false };
        debug_assert_eq!(seq, it.last + 1, "a topic takes in no hole");
        if !it.fan.has_room(notify.len()) {
            return false;
        }
        it.last = seq;
        it.fan.push(Item { seq, gap_from: 0, except, epoch: 0, frame: SharedFrame::notify(notify) });
        self.stats.fan_outs += 1;
        self.enter_ring(topic);
        true
    }

    /// Asks for what is missing, unless that is under way or the passes are behind as it is.
    fn ask(&mut self, topic: u32) {
        let Some(it) = self.topics.get_mut(topic) else { return };
        let Some(hole) = &mut it.hole else { return };
        if hole.asked || it.unsure || it.fan.waiting() > 0 {
            return;
        }
        self.next_serial = self.next_serial.wrapping_add(1);
        hole.asked = true;
        hole.serial = self.next_serial;
        let body = Fetch {
            conversation: self.conversations.text(topic).to_owned(),
            after_seq: it.last,
            through_seq: hole.through,
        };
        self.fetches.push_back((self.now.mono_us + RETRY_US, topic, hole.serial));
        self.stats.fetches += 1;
        // Not sent for want of an owner or credit, it is tried again like one that was not answered.
        let _ = self.uplink.send(record(Kind::Fetch, it.partition, SessionId::NONE, &body));
    }

    pub(super) fn turn_fetches(&mut self) {
        while let Some((_, topic, serial)) =
            self.fetches.front().copied().filter(|(at, ..)| *at <= self.now.mono_us)
        {
            self.fetches.pop_front();
            let Some(it) = self.topics.get_mut(topic) else { continue };
            let Some(hole) = it.hole.as_mut().filter(|hole| hole.asked && hole.serial == serial) else {
                continue;
            };
            hole.asked = false;
            hole.tries += 1;
            if hole.tries >= FETCH_TRIES_MAX && self.uplink.owner(it.partition).is_some() {
                let through = hole.through;
                self.tell_gap(topic, through);
                self.resume(topic);
            } else {
                // Without an owner there is nobody to have given up: tries begin with the next one.
                if self.uplink.owner(it.partition).is_none() {
                    hole.tries = 0;
                }
                self.ask(topic);
            }
        }
    }

    pub(super) fn on_page(&mut self, partition: Partition, epoch: u64, body: Page) {
        if !self.uplink.witness(partition, epoch) {
            self.stats.stale_epochs += 1;
            return;
        }
        let Some(topic) = self.conversations.find(&body.conversation) else { return };
        let Some(it) = self.topics.get_mut(topic).filter(|it| it.epoch == epoch) else { return };
        let Some(hole) = it.hole.as_mut().filter(|hole| hole.asked) else { return };
        hole.asked = false;
        hole.tries = 0;
        let through = hole.through;
        let before = it.last;
        if body.first_seq > it.last + 1 {
            self.tell_gap(topic, (body.first_seq - 1).min(through));
        }
        let mut full = false;
        for message in body.messages {
            let Some(it) = self.topics.get(topic) else { return };
            if message.seq == it.last + 1 {
                full = !self.take_in(topic, message.seq, message.except_session, &message.notify);
                if full {
                    break;
                }
            }
        }
        let Some(it) = self.topics.get(topic) else { return };
        if !full && it.last == before && it.last < through {
            // The log does not have it: nobody will.
            self.tell_gap(topic, through);
        }
        self.resume(topic);
    }

    /// Goes on with what was held, up to the next hole.
    fn resume(&mut self, topic: u32) {
        while let Some(it) = self.topics.get_mut(topic) {
            let Some(hole) = &mut it.hole else { return };
            while let Some(entry) = hole.held.first_entry().filter(|entry| *entry.key() <= it.last) {
                let bytes = entry.remove().1.len() + 64;
                hole.held_bytes -= bytes;
                self.held_bytes -= bytes;
            }
            let Some((seq, (except, notify))) = hole.held.first_key_value() else {
                if hole.through <= it.last {
                    it.hole = None;
                    return;
                }
                break;
            };
            if *seq != it.last + 1 {
                hole.through = hole.through.max(*seq - 1);
                break;
            }
            let (seq, except, notify) = (*seq, *except, notify.clone());
            if !self.take_in(topic, seq, except, &notify) {
                break;
            }
        }
        self.ask(topic);
    }

    pub(super) fn on_gap(&mut self, partition: Partition, epoch: u64, body: link::Gap) {
        if !self.uplink.witness(partition, epoch) {
            self.stats.stale_epochs += 1;
            return;
        }
        let topic = self.conversations.find(&body.conversation);
        if let Some(topic) = topic.filter(|topic| self.topics.get(*topic).is_some_and(|it| it.known)) {
            self.missed(topic, body.head);
        }
    }

    /// Sends of passes, a few of each in turn. Returns how many of the sends are left.
    pub(super) fn turn_fan_out(&mut self, sends: usize) -> usize {
        let mut left = sends;
        self.turns += 1;
        let mut done = Vec::new();
        while left > 0 {
            let Some(topic) = self.ring.pop_front() else { break };
            let Some(it) = self.topics.get_mut(topic).filter(|it| it.fan.in_ring) else { continue };
            it.fan.in_ring = false;
            let mut idle = false;
            for _ in 0..FAN_OUT_QUANTUM.min(left) {
                if !self.serve_next(topic) {
                    idle = true;
                    break;
                }
                left -= 1;
            }
            if idle {
                // Perhaps passes caught up: what was not taken in for want of room can be asked for.
                self.resume(topic);
            }
            match self.topics.get_mut(topic) {
                Some(it) if it.fan.is_idle() => {}
                // It has had its pass: what is left is for the next turn, when sends may have completed.
                Some(it) if idle => {
                    it.fan.in_ring = true;
                    done.push(topic);
                }
                _ => self.enter_ring(topic),
            }
        }
        self.ring.extend(done);
        left
    }

    /// Serves one receiver of a topic. Returns whether there was one.
    fn serve_next(&mut self, topic: u32) -> bool {
        let Some(it) = self.topics.get_mut(topic) else { return false };
        let Some(slot) = it.fan.next_receiver(&it.members, it.last, self.turns) else { return false };
        let Some(session) = self.sessions.get(slot).filter(|session| session.state == State::Live) else {
            return true;
        };
        let id = session.id(&self.config, slot).0;
        if let Some(payload) = it.fan.payload_for(slot, id, session.is(WEBSOCKET)) {
            self.stats.deliveries += 1;
            if session.is(ACKNOWLEDGES) {
                self.send_owed(topic, slot, id, payload);
            } else {
                self.send(slot, payload);
            }
        }
        true
    }

    /// Sends to a session that acknowledges; rooms are not acknowledged.
    #[inline(never)]
    fn send_owed(&mut self, topic: u32, slot: u32, session: u64, payload: Payload) {
        self.send(slot, payload);
        let it = self.topics.get(topic).filter(|it| !it.room);
        if let Some(seq) = it.and_then(|it| it.fan.highest_for(slot, session)) {
            self.owe(slot, Of::Group(topic), seq);
        }
    }
}
