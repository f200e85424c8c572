//! Reading a Deliver in place: what loadgen does for every message, without the allocations of a full decode.
//!
//! It follows protobuf's rules: unknown fields are skipped, of a repeated field the last counts, and two Delivers
//! in one Notify are merged.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

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
            (DELIVER, Value::Bytes(bytes)) => deliver.get_or_insert_with(DeliverRef::default).merge(bytes)?,
            // Another event of the oneof: it is the last that counts, and that is no Deliver.
            (2..=5, Value::Bytes(_)) => deliver = None,
            _ => {}
        }
    }
    deliver
}

impl<'a> DeliverRef<'a> {
    fn merge(&mut self, bytes: &'a [u8]) -> Option<()> {
        let mut fields = Fields(bytes);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (1, Value::Bytes(bytes)) => self.conversation = std::str::from_utf8(bytes).ok()?,
                (2, Value::Varint(value)) => self.seq = value,
                (3, Value::Varint(value)) => self.message_id = value,
                (4, Value::Bytes(bytes)) => self.sender = std::str::from_utf8(bytes).ok()?,
                (5, Value::Bytes(bytes)) => self.sender_device = std::str::from_utf8(bytes).ok()?,
                (6, Value::Varint(value)) => self.server_time_ms = value,
                (7, Value::Varint(value)) => self.epoch = value,
                (8, Value::Bytes(bytes)) => self.payload = bytes,
                (9, Value::Varint(value)) => self.content_kind = value as u32,
                (1..=9, _) => return None,
                _ => {}
            }
        }
        Some(())
    }
}

enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Of a fixed width, or a group: in no field read here.
    Other,
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// `None` when unreadable, `Some(None)` at the end.
    fn next(&mut self) -> Option<Option<(u32, Value<'a>)>> {
        if self.0.is_empty() {
            return Some(None);
        }
        let (number, wire_type) = decode_key(&mut self.0).ok()?;
        let value = match wire_type {
            WireType::Varint => Value::Varint(decode_varint(&mut self.0).ok()?),
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut self.0).ok()?).ok()?;
                let (bytes, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Value::Bytes(bytes)
            }
            _ => {
                skip_field(wire_type, number, &mut self.0, DecodeContext::default()).ok()?;
                Value::Other
            }
        };
        Some(Some((number, value)))
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
            ..Deliver::default()
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

    #[test]
    fn unknown_fields_of_every_kind_are_skipped() {
        // Field 100: a varint, eight bytes, three bytes, a group that holds a varint, four bytes.
        let unknown: &[u8] =
            b"\xa0\x06\x07\xa1\x0612345678\xa2\x06\x03abc\xa3\x06\x08\x01\xa4\x06\xa5\x061234";
        let deliver = [&b"\x0a\x03r:a"[..], unknown, b"\x10\x09"].concat();
        let body = [unknown, &[0x0a, deliver.len() as u8][..], &deliver[..], unknown].concat();
        let found = peek_deliver(&body).unwrap();
        assert_eq!((found.conversation, found.seq), ("r:a", 9));
    }

    #[test]
    fn two_delivers_are_merged() {
        let found = peek_deliver(b"\x0a\x05\x0a\x03r:a\x0a\x02\x10\x09").unwrap();
        assert_eq!((found.conversation, found.seq), ("r:a", 9));
        assert_eq!(peek_deliver(b"\x0a\x02\x10\x09\x0a\x01\xff"), None, "the second is unreadable");
    }
}
