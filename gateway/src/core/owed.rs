//! What a session was sent and has not acknowledged, and the clock that asks for it.
//!
//! Only of clients that acknowledge, and only what was delivered live in groups and direct conversations: of each the
//! highest seq. The rule: the clock starts when the send completes (before that the client can't know), and any
//! acknowledgement starts it again. When it runs out the client is told to Resync, and after a few times without an
//! answer it is closed: it resumes from its cursors. Nothing is kept of the messages themselves.
//!
//! A session owes in a box that is made with the first delivery and dropped when its clock comes round and finds nothing
//! owed, so that a busy session costs one box and one entry in a wheel, not one per message.

use millrace_protocol::messages::client::{Code, Resync, notify};
use millrace_protocol::planted::{self, Fault};

use super::limits::*;
use super::session::*;
use super::shard::Shard;
use super::wheel::Wheel;

/// What a delivery belongs to.
#[derive(Clone, Copy, Debug)]
pub enum Of<'a> {
    /// A group, by its topic.
    Group(u32),
    /// A direct conversation, by its id.
    Direct(&'a str),
}

#[derive(Debug)]
enum Kept {
    Group(u32),
    Direct(Box<str>),
}

impl Kept {
    fn is(&self, of: Of<'_>) -> bool {
        match (self, of) {
            (Kept::Group(kept), Of::Group(topic)) => *kept == topic,
            (Kept::Direct(kept), Of::Direct(id)) => **kept == *id,
            _ => false,
        }
    }
}

/// What one session owes an acknowledgement for.
#[derive(Debug)]
pub struct Owed {
    /// Conversations, and the highest seq sent in each.
    entries: Vec<(Kept, u64)>,
    /// When the clock started; 0 while what it waits for has not been sent.
    since_us: u64,
    /// Bytes behind the send in flight, up to and with what the clock waits for.
    unsent_bytes: u32,
    /// The tick of its valid entry in the wheel.
    armed: u32,
    tries: u8,
}

impl Owed {
    fn new(armed: u32) -> Self {
        Owed { entries: Vec::with_capacity(1), since_us: 0, unsent_bytes: 0, armed, tries: 0 }
    }

    /// Something was sent, or queued as the last of so many bytes. Returns whether it is kept track of.
    fn sent(&mut self, of: Of<'_>, seq: u64, queued_bytes: u32) -> bool {
        if self.entries.is_empty() {
            self.wait_for(queued_bytes);
        }
        if let Some((_, highest)) = self.entries.iter_mut().find(|(kept, _)| kept.is(of)) {
            *highest = seq.max(*highest);
            return true;
        }
        if self.entries.len() >= OWED_CONVERSATIONS_MAX {
            return false;
        }
        let kept = match of {
            Of::Group(topic) => Kept::Group(topic),
            Of::Direct(id) => Kept::Direct(id.into()),
        };
        self.entries.push((kept, seq));
        true
    }

    /// The clock starts when so many bytes behind the send in flight are with the client.
    fn wait_for(&mut self, queued_bytes: u32) {
        (self.since_us, self.unsent_bytes) = (0, queued_bytes);
    }

    /// A send completed, and so many bytes that waited make up the next one.
    fn completed(&mut self, next_bytes: u32, now_us: u64) {
        if self.since_us > 0 || self.entries.is_empty() {
            return;
        }
        if self.unsent_bytes == 0 {
            self.since_us = now_us;
        }
        self.unsent_bytes = self.unsent_bytes.saturating_sub(next_bytes);
    }

    /// An acknowledgement up to `seq`.
    fn acknowledged(&mut self, of: Option<Of<'_>>, seq: u64, now_us: u64) {
        self.tries = 0;
        if self.since_us > 0 {
            self.since_us = now_us;
        }
        if let Some(of) = of {
            self.entries.retain(|(kept, highest)| *highest > seq || !kept.is(of));
        }
    }

    /// The session no longer listens to a topic, whose number another one may get.
    fn forget(&mut self, topic: u32) {
        self.entries.retain(|(kept, _)| !kept.is(Of::Group(topic)));
    }
}

impl Shard {
    /// A session that acknowledges was just sent something that it is to acknowledge.
    pub(super) fn owe(&mut self, slot: u32, of: Of<'_>, seq: u64) {
        let Some(session) = self.sessions.get_mut(slot).filter(|session| session.state == State::Live) else {
            return;
        };
        let queued_bytes = session.queue.bytes();
        if session.aside.is_none() {
            let armed = arm(&mut self.owing, slot, self.now.mono_us);
            session.aside = Some(Box::new(Aside::Owed(Owed::new(armed))));
            self.owing_sessions += 1;
        }
        let kept = session.owed_mut().is_some_and(|owed| owed.sent(of, seq, queued_bytes));
        self.stats.owed_overflowed += u64::from(!kept);
    }

    /// A send to a session that acknowledges completed: the next one goes, and the clock may start.
    #[inline(never)]
    pub(super) fn on_sent_owing(&mut self, slot: u32) {
        let now_us = self.now.mono_us;
        let waiting_bytes = self.sessions.get(slot).map_or(0, |session| session.queue.bytes());
        self.send_queued(slot);
        let Some(session) = self.sessions.get_mut(slot) else { return };
        let next_bytes = waiting_bytes.saturating_sub(session.queue.bytes());
        if let Some(owed) = session.owed_mut() {
            owed.completed(next_bytes, now_us);
        }
    }

    /// A session acknowledged a conversation up to `seq`.
    pub(super) fn owed_acknowledged(&mut self, slot: u32, conversation: &str, seq: u64) {
        let now_us = self.now.mono_us;
        let Some(owed) = self.sessions.get_mut(slot).and_then(Session::owed_mut) else { return };
        let of = if conversation.starts_with("d:") {
            Some(Of::Direct(conversation))
        } else {
            self.conversations.find(conversation).map(Of::Group)
        };
        owed.acknowledged(of, seq, now_us);
    }

    /// A session no longer listens to a topic.
    pub(super) fn owed_forget(&mut self, slot: u32, topic: u32) {
        let session = self.sessions.get_mut(slot).filter(|session| session.is(ACKNOWLEDGES));
        if let Some(owed) = session.and_then(Session::owed_mut) {
            owed.forget(topic);
        }
    }

    /// Looks at the sessions whose clocks come round. Returns whether there are more.
    pub(super) fn turn_owed(&mut self) -> bool {
        if planted::is(Fault::NoResyncClock) {
            return false;
        }
        let Some(wheel) = &mut self.owing else { return false };
        let mut due = std::mem::take(&mut self.due);
        let more = wheel.advance(self.now.mono_us, OWED_LOOKS_PER_TURN, &mut due);
        for (slot, tick) in due.drain(..) {
            self.look_at_owed(slot, tick);
        }
        self.due = due;
        more
    }

    fn look_at_owed(&mut self, slot: u32, tick: u32) {
        let now_us = self.now.mono_us;
        let live = self.sessions.get_mut(slot).filter(|session| session.state == State::Live);
        let Some(session) = live else { return };
        let Some(owed) = session.owed_mut().filter(|owed| owed.armed == tick) else { return };
        // A conversation that began again below what was sent (its store was emptied) is owed nothing of before.
        owed.entries.retain(|(kept, seq)| match kept {
            Kept::Group(topic) => self.topics.get(*topic).is_some_and(|it| *seq <= it.last),
            Kept::Direct(_) => true,
        });
        if owed.entries.is_empty() {
            session.aside = None;
            self.owing_sessions -= 1;
            return;
        }
        // Not running: it starts later, and is looked at when it could be over at the earliest.
        let since_us = if owed.since_us > 0 { owed.since_us } else { now_us };
        if now_us < since_us + OWED_RETRY_US {
            owed.armed = arm(&mut self.owing, slot, since_us);
            return;
        }
        if owed.tries >= OWED_TRIES_MAX {
            self.stats.not_acknowledged += 1;
            let reason = "deliveries were not acknowledged, though asked for again and again";
            return self.doom(slot, Code::NotAcknowledged, reason, 0);
        }
        owed.tries += 1;
        if !planted::is(Fault::ResyncOnce) {
            owed.armed = arm(&mut self.owing, slot, now_us);
        }
        let text = |kept: &Kept| match kept {
            Kept::Group(topic) => self.conversations.text(*topic).to_owned(),
            Kept::Direct(id) => id.to_string(),
        };
        let conversations = owed.entries.iter().map(|(kept, _)| text(kept)).collect();
        self.stats.resyncs += 1;
        self.notify(slot, notify::Event::Resync(Resync { conversations }));
        let Some(session) = self.sessions.get_mut(slot) else { return };
        let queued_bytes = session.queue.bytes();
        if let Some(owed) = session.owed_mut() {
            owed.wait_for(queued_bytes);
        }
    }
}

/// Makes the wheel look at a session's clock when it may have run out. The wheel is made with the first.
fn arm(wheel: &mut Option<Wheel>, slot: u32, since_us: u64) -> u32 {
    let wheel = wheel.get_or_insert_with(|| Wheel::new(since_us));
    wheel.arm(slot, wheel.tick_after(since_us + OWED_RETRY_US))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_starts_when_what_it_waits_for_is_sent() {
        let mut owed = Owed::new(1);
        // Behind 70 bytes that wait behind a send in flight, sent in two pieces.
        assert!(owed.sent(Of::Group(3), 9, 100));
        assert!(owed.sent(Of::Direct("d:a:b"), 1, 120));
        owed.completed(60, 10);
        owed.completed(60, 20);
        assert_eq!(owed.since_us, 0);
        owed.completed(0, 30);
        assert_eq!(owed.since_us, 30);
        owed.completed(0, 40);
        assert_eq!(owed.since_us, 30, "later sends don't start it again");
        owed.acknowledged(Some(Of::Group(3)), 8, 50);
        assert_eq!((owed.since_us, owed.entries.len()), (50, 2), "an acknowledgement does");
        owed.acknowledged(Some(Of::Group(3)), 9, 60);
        owed.acknowledged(Some(Of::Direct("d:a:b")), 7, 70);
        assert!(owed.entries.is_empty());
        assert!(owed.sent(Of::Group(3), 10, 0));
        owed.completed(0, 80);
        assert_eq!(owed.since_us, 80);
        owed.forget(3);
        assert!(owed.entries.is_empty());
    }

    #[test]
    fn conversations_are_bounded() {
        let mut owed = Owed::new(1);
        assert!((0..OWED_CONVERSATIONS_MAX as u32).all(|topic| owed.sent(Of::Group(topic), 1, 0)));
        assert!(!owed.sent(Of::Group(u32::MAX), 1, 0));
        assert!(owed.sent(Of::Group(0), 2, 0));
        assert!(size_of::<Aside>() <= 56, "{}", size_of::<Aside>());
    }
}
