//! Messages to single sessions: those of direct conversations, by routes that the owner read.
//!
//! The rule: a route that leads to no session, or to somebody else's, is answered NoSession, so that it is corrected.

use millrace_protocol::frame::SharedFrame;
use millrace_protocol::ids::{Partition, SessionId, user_partition};
use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::{Code, Notify, Resync, notify};
use millrace_protocol::messages::link::{Direct, DirectGap, NoSession, Target};
use millrace_protocol::peek::peek_deliver;
use millrace_protocol::planted::{self, Fault};
use millrace_protocol::prost::Message;

use super::action::Payload;
use super::owed::Of;
use super::session::*;
use super::shard::Shard;
use super::uplink::record;

impl Shard {
    pub(super) fn on_direct(&mut self, partition: Partition, epoch: u64, body: Direct) {
        // Of a former owner: only the present one knows whether the log has it.
        if !self.uplink.witness(partition, epoch)
            && let Some(deliver) = peek_deliver(&body.notify)
        {
            self.stats.stale_epochs += 1;
            let (conversation, head) = (deliver.conversation.into(), deliver.seq);
            let gap = DirectGap { conversation, head, targets: body.targets };
            return self.on_direct_gap(gap);
        }
        let frame = SharedFrame::notify(&body.notify);
        // Read only when somebody here acknowledges.
        let mut deliver = None;
        for target in body.targets {
            let Some(slot) = self.target_here(&target) else {
                self.no_session(target);
                continue;
            };
            self.stats.directs += 1;
            if !self.send_to_named(slot, &frame) {
                continue;
            }
            let deliver = deliver.get_or_insert_with(|| peek_deliver(&body.notify));
            if let Some(deliver) = deliver {
                self.owe(slot, Of::Direct(deliver.conversation), deliver.seq);
            }
        }
    }

    /// Direct messages may have been skipped. What a client has of them only itself knows, so it is told to ask.
    pub(super) fn on_direct_gap(&mut self, body: DirectGap) {
        let event = notify::Event::Resync(Resync { conversations: vec![body.conversation] });
        let frame = SharedFrame::notify(&Notify { event: Some(event) }.encode_to_vec());
        for target in body.targets {
            match self.target_here(&target) {
                Some(slot) => {
                    self.stats.direct_gaps += 1;
                    self.send_to_named(slot, &frame);
                }
                None => self.no_session(target),
            }
        }
    }

    /// Sends to a session whose route is known, behind its LoginAck at the earliest. Returns whether it is to
    /// acknowledge that.
    fn send_to_named(&mut self, slot: u32, frame: &SharedFrame) -> bool {
        let session = self.sessions.get_mut(slot).expect("here");
        let start = frame.start_for(session.is(WEBSOCKET)) as u32;
        let payload = Payload::Shared { bytes: frame.bytes().clone(), start };
        if session.state != State::Registering || planted::is(Fault::SentBeforeLoginAck) {
            let acknowledges = session.is(ACKNOWLEDGES);
            self.send(slot, payload);
            return acknowledges;
        }
        if !self.pool.push(&mut session.queue, payload, self.config.outbox_bytes_max) {
            // Its route is known before its LoginAck is out: this waits behind it.
            self.stats.slow_consumers += 1;
            self.doom(slot, Code::SlowConsumer, "messages came faster than they were read", 0);
        }
        false
    }

    /// The slot of a target, if its session is here and still the same user's.
    pub(super) fn target_here(&mut self, target: &Target) -> Option<u32> {
        let slot = self.slot_of(SessionId(target.session))?;
        let session = self.sessions.get(slot)?;
        (session.is_named() && self.users.text(session.user) == target.user).then_some(slot)
    }

    /// Corrects a route that points to no session: the one that was used, and none that was written since.
    pub(super) fn no_session(&mut self, target: Target) {
        self.stats.no_sessions += 1;
        let partition = user_partition(&target.user, self.config.partitions);
        let Target { session, user, device, login_number, gateway_incarnation } = target;
        let body = NoSession { user, device, login_number, session, gateway_incarnation };
        self.send_or_park(record(Kind::NoSession, partition, SessionId(session), &body));
    }
}
