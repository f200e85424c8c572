//! What may be lost: typing, presence, receipts. To sessions that are named, or to all listeners of a conversation.
//!
//! The rule: nobody's messages wait for it. A session that has something waiting behind its send in flight does not get
//! it; relays to a conversation wait in a ring of their own, which has what fan-out left of a turn's sends, and what
//! waits there too long is dropped. They are no part of a conversation's order: nothing is fetched or told as missing.

use millrace_protocol::frame::SharedFrame;
use millrace_protocol::ids::SessionId;
use millrace_protocol::messages::link::Relay;

use super::action::Payload;
use super::limits::*;
use super::session::*;
use super::shard::Shard;

/// A relay on its way to the listeners of a conversation.
pub(super) struct Relaying {
    /// By its id, since topics come and go meanwhile.
    conversation: String,
    frame: SharedFrame,
    except: SessionId,
    /// The next slot to look at.
    at: u32,
    until_us: u64,
}

impl Shard {
    pub(super) fn on_relay(&mut self, body: Relay) {
        if body.notify.len() > RELAY_BYTES_MAX {
            self.stats.relays_dropped += 1;
            return;
        }
        let frame = SharedFrame::notify(&body.notify);
        for target in &body.targets {
            match self.target_here(target) {
                Some(slot) => self.relay(slot, &frame),
                None => self.stats.relays_dropped += 1,
            }
        }
        if !body.targets.is_empty() || self.conversations.find(&body.conversation).is_none() {
            return;
        }
        if self.relays.len() >= RELAYS_MAX {
            self.stats.relays_dropped += 1;
            return;
        }
        self.relays.push_back(Relaying {
            conversation: body.conversation,
            frame,
            except: SessionId(body.except_session),
            at: 0,
            until_us: self.now.mono_us + RELAY_WAIT_US,
        });
    }

    fn relay(&mut self, slot: u32, frame: &SharedFrame) {
        let Some(session) = self.sessions.get(slot) else { return };
        if session.state != State::Live || session.queue.bytes() > RELAY_QUEUE_BYTES_MAX {
            self.stats.relays_dropped += 1;
            return;
        }
        let start = frame.start_for(session.is(WEBSOCKET)) as u32;
        self.stats.relays += 1;
        self.send(slot, Payload::Shared { bytes: frame.bytes().clone(), start });
    }

    /// Relays to listeners, a few of each in turn; `looks` listeners are looked at. Returns whether there are more.
    pub(super) fn turn_relays(&mut self, looks: usize) -> bool {
        let mut left = looks;
        while let Some(relaying) = self.relays.pop_front() {
            if relaying.until_us <= self.now.mono_us {
                self.stats.relays_dropped += 1;
                continue;
            }
            if left == 0 {
                self.relays.push_front(relaying);
                return true;
            }
            let looked = FAN_OUT_QUANTUM.min(left);
            left -= looked;
            if let Some(rest) = self.relay_to_some(relaying, looked) {
                self.relays.push_back(rest);
            }
        }
        false
    }

    /// Relays to so many listeners. What is left comes back.
    fn relay_to_some(&mut self, mut relaying: Relaying, looks: usize) -> Option<Relaying> {
        let topic = self.conversations.find(&relaying.conversation)?;
        for _ in 0..looks {
            let slot = self.topics.get(topic)?.members.next_from(relaying.at)?;
            relaying.at = slot + 1;
            if self.sessions.get(slot).is_some_and(|it| it.id(&self.config, slot) != relaying.except) {
                self.relay(slot, &relaying.frame);
            }
        }
        Some(relaying)
    }
}
