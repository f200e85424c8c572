//! What happened in one schedule, as its clients saw it: every send, answer and delivery, in the order of one clock.
//!
//! It only records; [`super::check`] judges. The rule: a note is written when the application of a device would know of
//! it, not when bytes arrived, so that the history says what people were shown.

use std::fmt;

/// Bytes of a tag in a payload.
const TAG_BYTES: usize = 16;

/// What tells payloads of these clients from anything else.
const MAGIC: u32 = 0x6d72_7666;

/// Which message: payloads say it, so that whoever gets one knows what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag {
    /// The sender, by its place in the cast.
    pub device: u16,
    /// The conversation, by its place in the cast.
    pub conversation: u16,
    /// 1, 2, 3, … of this device in this conversation, whatever the stream.
    pub serial: u32,
    /// Which schedule: a message of another one is nobody's.
    pub run: u32,
}

impl Tag {
    /// The payload: the tag, and filler that follows from it.
    pub fn payload(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.payload_bytes());
        bytes.extend_from_slice(&MAGIC.to_be_bytes());
        bytes.extend_from_slice(&self.run.to_be_bytes());
        bytes.extend_from_slice(&self.device.to_be_bytes());
        bytes.extend_from_slice(&self.conversation.to_be_bytes());
        bytes.extend_from_slice(&self.serial.to_be_bytes());
        bytes.extend((TAG_BYTES..self.payload_bytes()).map(|at| self.filler(at)));
        bytes
    }

    /// Reads a payload; `None` when it is none of ours, or not as it was sent.
    pub fn parse(payload: &[u8]) -> Option<Tag> {
        let (head, filler) = payload.split_at_checked(TAG_BYTES)?;
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let half = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let tag = Tag { run: word(4), device: half(8), conversation: half(10), serial: word(12) };
        let is_whole = word(0) == MAGIC
            && payload.len() == tag.payload_bytes()
            && filler.iter().enumerate().all(|(at, byte)| *byte == tag.filler(TAG_BYTES + at));
        is_whole.then_some(tag)
    }

    /// From 16 to 399: some fit beside others in a record, some don't.
    fn payload_bytes(self) -> usize {
        let mixed = (self.serial ^ u32::from(self.device) << 7).wrapping_mul(0x9e37_79b9) >> 16;
        TAG_BYTES + mixed as usize % 384
    }

    fn filler(self, at: usize) -> u8 {
        (self.serial as usize + at) as u8
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message {} of device {}", self.serial, self.device)
    }
}

/// Where a message is in its conversation's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Of the owner that wrote it.
    pub epoch: u64,
    /// Its number.
    pub seq: u64,
    /// Its name among all messages.
    pub id: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seq {} (epoch {}, id {:x})", self.seq, self.epoch, self.id)
    }
}

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Note {
    /// The application sent a message: once, however often it goes over the wire.
    Sent { tag: Tag },
    /// The server stored it.
    Acked { tag: Tag, place: Place },
    /// A device has this entry now: it was shown, or is its own and acknowledged. `tag` is `None` for entries that
    /// the server makes.
    Shown { device: u16, conversation: u16, place: Place, tag: Option<Tag> },
    /// A device was told to drop everything above `seq`.
    Truncated { device: u16, conversation: u16, seq: u64 },
    /// A sender saw another entry in the place of its acknowledged message, before the log had come that far here.
    Rescinded { tag: Tag },
    /// A device that has `seq` was told, to a question asked after, that the log ends at `head`.
    Stale { device: u16, conversation: u16, seq: u64, head: u64 },
    /// A device was told that the log no longer has these, both included.
    Missed { device: u16, conversation: u16, from: u64, to: u64 },
}

/// An entry of a conversation's log as it was read back at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub place: Place,
    /// What it is.
    pub content: Content,
}

/// What an entry of the log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A message.
    Message(Tag),
    /// Made by the server.
    System,
    /// Nothing that these clients could have sent.
    Unknown,
}

/// A conversation, and who is in it.
#[derive(Clone, Debug, Default)]
pub struct Members {
    /// Its id.
    pub name: String,
    /// All devices of all its users.
    pub devices: Vec<u16>,
}

/// The whole of a schedule.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Which schedule.
    pub run: u32,
    /// The conversations.
    pub conversations: Vec<Members>,
    /// What happened, and when (us of one clock), in that order.
    pub notes: Vec<(u64, Note)>,
    /// Things that must not be, as a device saw them.
    pub odd: Vec<String>,
    /// The logs as they were read at the end, by conversation; `None`: it could not be read.
    pub logs: Vec<Option<Vec<Entry>>>,
    /// Devices that were online at the end: they must have everything.
    pub online: Vec<bool>,
    /// Messages that had no answer at the end.
    pub unanswered: Vec<Tag>,
}

impl History {
    /// Writes a note.
    pub fn note(&mut self, now_us: u64, note: Note) {
        self.notes.push((now_us, note));
    }

    /// All of it, a line for each note and entry, for a person who looks for a cause.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let start_us = self.notes.first().map_or(0, |(at_us, _)| *at_us);
        for (at, members) in self.conversations.iter().enumerate() {
            text.push_str(&format!(
                "conversation {at} is {}, of devices {:?}\n",
                members.name, members.devices
            ));
        }
        for (at_us, note) in &self.notes {
            let at_s = (at_us - start_us) as f64 / 1e6;
            text.push_str(&format!("{at_s:.6} (boot {:.3}) {note:?}\n", *at_us as f64 / 1e6));
        }
        for (at, log) in self.logs.iter().enumerate() {
            for entry in log.iter().flatten() {
                text.push_str(&format!("log {at} {entry:?}\n"));
            }
        }
        for odd in &self.odd {
            text.push_str(&format!("odd: {odd}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_say_which_message_they_are() {
        for serial in 1..500 {
            let tag = Tag { device: 700, conversation: 3, serial, run: 9 };
            let mut payload = tag.payload();
            assert_eq!(Tag::parse(&payload), Some(tag));
            *payload.last_mut().unwrap() ^= 1;
            assert_ne!(Tag::parse(&payload), Some(tag));
            payload.pop();
            assert_eq!(Tag::parse(&payload), None, "cut short");
        }
        assert_eq!(Tag::parse(b"hello"), None);
    }
}
