//! Reading a Deliver in place: what loadgen does for every message, without the allocations of a full decode.
//!
//! It follows protobuf's rules: unknown fields are skipped, the last of a repeated field counts.

/// A Deliver, borrowed from the body of a Notify.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DeliverRef<'a> {
    pub conversation: &'a str,
    pub seq: u64,
    pub message_id: u64,
    pub sender: &'a str,
    pub sender_device: &'a str,
    pub server_time_ms: u64,
    pub epoch: u64,
    pub payload: &'a [u8],
    pub content_kind: u32,
}

/// Field of Notify that holds a Deliver.
const DELIVER: u32 = 1;

/// Reads the body of a Notify without allocating; `None` when it is no Deliver, or unreadable.
pub fn peek_deliver(notify: &[u8]) -> Option<DeliverRef<'_>> {
    let mut fields = Fields(notify);
    let mut deliver = None;
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (DELIVER, Value::Bytes(bytes)) => deliver = Some(bytes),
            // Another event of the oneof: it is the last that counts, and that is no Deliver.
            (2..=5, Value::Bytes(_)) => deliver = None,
            _ => {}
        }
    }
    let mut fields = Fields(deliver?);
    let mut found = DeliverRef::default();
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Bytes(bytes)) => found.conversation = std::str::from_utf8(bytes).ok()?,
            (2, Value::Varint(value)) => found.seq = value,
            (3, Value::Varint(value)) => found.message_id = value,
            (4, Value::Bytes(bytes)) => found.sender = std::str::from_utf8(bytes).ok()?,
            (5, Value::Bytes(bytes)) => found.sender_device = std::str::from_utf8(bytes).ok()?,
            (6, Value::Varint(value)) => found.server_time_ms = value,
            (7, Value::Varint(value)) => found.epoch = value,
            (8, Value::Bytes(bytes)) => found.payload = bytes,
            (9, Value::Varint(value)) => found.content_kind = value as u32,
            (1..=9, _) => return None,
            _ => {}
        }
    }
    Some(found)
}

enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Of a fixed width: in no field read here.
    Other,
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// `None` when unreadable, `Some(None)` at the end.
    fn next(&mut self) -> Option<Option<(u32, Value<'a>)>> {
        if self.0.is_empty() {
            return Some(None);
        }
        let tag = u32::try_from(self.varint()?).ok()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.split(8).map(|_| Value::Other)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.split(length)?)
            }
            5 => self.split(4).map(|_| Value::Other)?,
            _ => return None,
        };
        Some(Some((tag >> 3, value)))
    }

    fn split(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for (at, byte) in self.0.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                self.0 = &self.0[at + 1..];
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::messages::client::{Deliver, Gap, Notify, notify::Event};

    #[test]
    fn reads_what_prost_wrote() {
        let deliver = Deliver {
            conversation: "r:town".into(),
            seq: 7,
            message_id: u64::MAX,
            sender: "alice".into(),
            sender_device: "phone".into(),
            server_time_ms: 1_800_000_000_000,
            epoch: 3,
            payload: "hello".into(),
            content_kind: 9,
        };
        let body = Notify { event: Some(Event::Deliver(deliver)) }.encode_to_vec();
        let expected = DeliverRef {
            conversation: "r:town",
            seq: 7,
            message_id: u64::MAX,
            sender: "alice",
            sender_device: "phone",
            server_time_ms: 1_800_000_000_000,
            epoch: 3,
            payload: b"hello",
            content_kind: 9,
        };
        assert_eq!(peek_deliver(&body), Some(expected));
        for cut in 1..body.len() {
            assert_eq!(peek_deliver(&body[..cut]), None, "cut at {cut}");
        }
        let gap = Notify { event: Some(Event::Gap(Gap::default())) }.encode_to_vec();
        assert_eq!(peek_deliver(&gap), None);
        assert_eq!(peek_deliver(&[&body[..], &gap].concat()), None, "of a oneof, the last counts");
        assert_eq!(peek_deliver(&[&gap[..], &body].concat()), Some(expected));
        assert_eq!(peek_deliver(&[]), None);
    }
}
