//! How an [`Entry`] is stored, in both stores: one versioned, checksummed record.
//!
//! Where it is stored (conversation and seq make the key) is left to the stores. The rule that keeps it right: the
//! checksum covers the record *and* its conversation, so that a damaged record, and one that lies under another
//! conversation's key, is found out when it is read.
//!
//! ```text
//! version u8 | xxh3 u64 | notify bytes u32 | seq u64 | message id u64 | epoch u64 | stream u64 | client_seq u64
//! | payload hash u64 | messages u64 | bytes u64 | action u8 | sender u16 + text | device u16 + text | notify …            (integers big-endian)
//! ```
//! The length of the notify body stands at a fixed place: the script that reads a range counts it.

use bytes::{Buf, BufMut, Bytes};
use millrace_protocol::ids::MessageId;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::Entry;

/// The layout above.
const VERSION: u8 = 2;
/// Version and checksum: what the checksum does not cover.
const SEAL_BYTES: usize = 9;
/// Everything before the texts.
const FIXED_BYTES: usize = SEAL_BYTES + 4 + 8 * 8 + 1;

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    #[error("version {0} is unknown")]
    Version(u8),
    #[error("it is cut short")]
    Short,
    #[error("the checksum does not match")]
    Checksum,
    #[error("a name is not text")]
    Text,
}

/// The record of an entry.
pub(super) fn encode(entry: &Entry) -> Vec<u8> {
    let mut out =
        Vec::with_capacity(FIXED_BYTES + 4 + entry.sender.len() + entry.device.len() + entry.notify.len());
    out.put_u8(VERSION);
    out.put_u64(0);
    out.put_u32(entry.notify.len() as u32);
    for number in [
        entry.seq,
        entry.message_id.0,
        entry.epoch,
        entry.stream,
        entry.client_seq,
        entry.payload_hash,
        entry.messages,
        entry.bytes,
    ] {
        out.put_u64(number);
    }
    out.put_u8(entry.action);
    for text in [&entry.sender, &entry.device] {
        debug_assert!(text.len() <= usize::from(u16::MAX), "names are bounded by the protocol");
        out.put_u16(text.len() as u16);
        out.put_slice(text.as_bytes());
    }
    out.put_slice(&entry.notify);
    let sum = checksum(&entry.conversation, &out[SEAL_BYTES..]);
    out[1..SEAL_BYTES].copy_from_slice(&sum.to_be_bytes());
    out
}

/// Reads a record back; the body shares `record`'s memory.
pub(super) fn decode(conversation: &str, mut record: Bytes) -> Result<Entry, RecordError> {
    let version = *record.first().ok_or(RecordError::Short)?;
    if version != VERSION {
        return Err(RecordError::Version(version));
    }
    if record.len() < FIXED_BYTES {
        return Err(RecordError::Short);
    }
    record.advance(1);
    let sum = record.get_u64();
    if sum != checksum(conversation, &record) {
        return Err(RecordError::Checksum);
    }
    let notify_bytes = record.get_u32() as usize;
    let seq = record.get_u64();
    let message_id = MessageId(record.get_u64());
    let epoch = record.get_u64();
    let stream = record.get_u64();
    let client_seq = record.get_u64();
    let payload_hash = record.get_u64();
    let messages = record.get_u64();
    let bytes = record.get_u64();
    let action = record.get_u8();
    let sender = text(&mut record)?;
    let device = text(&mut record)?;
    if record.len() != notify_bytes {
        return Err(RecordError::Short);
    }
    Ok(Entry {
        conversation: conversation.to_owned(),
        seq,
        message_id,
        epoch,
        action,
        messages,
        bytes,
        sender,
        device,
        stream,
        client_seq,
        payload_hash,
        notify: record,
    })
}

fn text(record: &mut Bytes) -> Result<String, RecordError> {
    let length = record.try_get_u16().map_err(|_| RecordError::Short)? as usize;
    if record.len() < length {
        return Err(RecordError::Short);
    }
    String::from_utf8(record.split_to(length).to_vec()).map_err(|_| RecordError::Text)
}

fn checksum(conversation: &str, covered: &[u8]) -> u64 {
    xxh3_64_with_seed(covered, xxh3_64(conversation.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            conversation: "g:tea".into(),
            seq: 7,
            message_id: MessageId(0x7766_5544_3322_1100),
            epoch: 1_700_000_000_123,
            action: 3,
            messages: 5,
            bytes: 77,
            sender: "alice".into(),
            device: "phone".into(),
            stream: 9,
            client_seq: 3,
            payload_hash: u64::MAX,
            notify: Bytes::from_static(b"body"),
        }
    }

    #[test]
    fn round_trip() {
        let record = encode(&entry());
        assert_eq!(record[9..13], 4u32.to_be_bytes(), "where the range script looks for the body's length");
        assert_eq!(decode("g:tea", record.into()), Ok(entry()));
    }

    #[test]
    fn any_damage_is_found() {
        let record = encode(&entry());
        for at in 0..record.len() {
            let mut damaged = record.clone();
            damaged[at] ^= 0x10;
            assert!(decode("g:tea", damaged.into()).is_err(), "byte {at}");
            assert!(decode("g:tea", Bytes::copy_from_slice(&record[..at])).is_err(), "cut at {at}");
        }
        assert_eq!(decode("g:coffee", record.into()), Err(RecordError::Checksum), "another's record");
    }
}
