//! Reads link records off a stream for traces: kinds, numbers and epochs, where a batch begins at a record.

use bytes::Bytes;
use millrace_protocol::link::Kind;
use millrace_protocol::link::record::{HEADER_BYTES, RECORD_BYTES_MAX};

/// What is in these bytes, if they begin with a record.
pub fn brief(bytes: &Bytes) -> String {
    let mut rest = &bytes[..];
    let mut text = format!("{} bytes", bytes.len());
    let number = |bytes: &[u8], at: usize| {
        bytes[at..at + 8].iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    while rest.len() >= HEADER_BYTES {
        let first = number(rest, 0);
        let length = first as u32 as usize;
        let Some(kind) = Kind::from_byte((first >> 32) as u8) else { break };
        if !(HEADER_BYTES..=RECORD_BYTES_MAX).contains(&length) {
            break;
        }
        let (partition, epoch) = ((first >> 48) as u16, number(rest, 16));
        text += &format!(" {kind:?}#{}/p{partition}/e{epoch}", number(rest, 8));
        if rest.len() < length {
            break;
        }
        rest = &rest[length..];
    }
    text
}
