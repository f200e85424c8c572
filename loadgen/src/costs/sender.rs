//! One sender to one conversation, and a part in which some send a fixed number of messages and are done.

use millrace_protocol::client_session::op;
use millrace_protocol::messages::client::response::Outcome;

use super::desk::{Desk, Part};
use super::fleet::Fleet;
use super::line::{Heard, Who, again_us, said};
use super::window::Window;
use crate::payload::Header;
use crate::rig::RunError;

/// Messages of one sender that may be unacknowledged in a conversation: the protocol's limit.
pub(super) const WINDOW_MAX: usize = 64;

/// Who sends what.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) conversation: String,
    /// `run` tells the messages from those of other parts, `conversation` is a number that the part chose.
    header: Header,
    payload_bytes: usize,
    pub(super) window: Window,
}

impl Sender {
    pub(super) fn new(
        conversation: String,
        run: u32,
        number: usize,
        payload_bytes: usize,
        window: Window,
    ) -> Self {
        let header = Header { run, message: 0, conversation: number as u32, sender: 0, due_us: 0 };
        Sender { conversation, header, payload_bytes, window }
    }

    /// Sends what the window lets, through this line.
    pub(super) fn send(&mut self, desk: &mut Desk, line: usize, now_us: u64) {
        while let Some(number) = self.window.due(now_us) {
            let header = Header { message: number as u32, ..self.header };
            // A stream of each part: its counter begins with 1.
            let stream = u64::from(self.header.run) | 1 << 32;
            let payload = header.encode(self.payload_bytes);
            desk.say(line).ask(number, op::send(&self.conversation, stream, number, payload));
        }
    }

    /// An answer came. Returns when the message was sent first, if it is stored now.
    pub(super) fn answered(
        &mut self,
        now_us: u64,
        number: u64,
        outcome: &Outcome,
    ) -> Result<Option<u64>, String> {
        match outcome {
            Outcome::SendAck(_) => match self.window.acknowledged(number) {
                Some(sent_us) => Ok(Some(sent_us)),
                None => Err(format!("message {number} was acknowledged, but is not under way")),
            },
            Outcome::Refused(refused) => match again_us(refused.code, refused.retry_after_ms) {
                Some(wait_us) => {
                    self.window.refused(number, now_us + wait_us);
                    Ok(None)
                }
                None => Err(format!("message {number} was {}", said(Some(outcome)))),
            },
            other => Err(format!("message {number} was {}", said(Some(other)))),
        }
    }
}

/// Messages that are there before something is measured. The desk is its own, from the first client on.
pub(super) struct Seed {
    senders: Vec<Sender>,
}

impl Seed {
    /// Each of these sends messages 1 to `count` to one conversation.
    pub(super) fn new(
        desk: &mut Desk,
        all: impl IntoIterator<Item = (Who, String)>,
        run: u32,
        count: u64,
        payload_bytes: usize,
    ) -> Self {
        let senders = all.into_iter().map(|(who, conversation)| {
            let number = desk.add(who);
            Sender::new(conversation, run, number, payload_bytes, Window::new(WINDOW_MAX, count))
        });
        Seed { senders: senders.collect() }
    }
}

impl Part for Seed {
    fn heard(&mut self, _: &mut Desk, now_us: u64, line: usize, heard: Heard) -> Result<(), String> {
        match heard {
            Heard::Answer(number, outcome) => self.senders[line].answered(now_us, number, &outcome).map(drop),
            _ => Ok(()),
        }
    }

    fn turn(&mut self, desk: &mut Desk, _: &Fleet, now_us: u64) -> Result<(), RunError> {
        for (line, sender) in self.senders.iter_mut().enumerate() {
            if desk.line(line).is_in {
                sender.send(desk, line, now_us);
            }
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.senders.iter().all(|sender| sender.window.is_done())
    }

    fn state(&self) -> String {
        let done = self.senders.iter().filter(|sender| sender.window.is_done()).count();
        format!("{done} of {} senders are through with what is to be read", self.senders.len())
    }
}
