//! What a measured message carries, so that any receiver can say which it is and how old.
//!
//! `run: u32 | message: u32 | conversation: u32 | sender: u32 | due_us: u64`, little-endian, then zeros up to the
//! payload size. Times are CLOCK_BOOTTIME, which all processes of a machine share.

/// Bytes that the header takes; payloads are at least so long.
pub const HEADER_BYTES: usize = 24;

/// The header of a measured message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Tells this run's messages from those of others.
    pub run: u32,
    /// Number in the schedule.
    pub message: u32,
    /// Number in the world.
    pub conversation: u32,
    /// Number of the sending client.
    pub sender: u32,
    /// When it should have been sent, in microseconds since boot.
    pub due_us: u64,
}

impl Header {
    /// A payload of `bytes` (at least [`HEADER_BYTES`]) that begins with this header.
    pub fn encode(&self, bytes: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.max(HEADER_BYTES));
        for part in [self.run, self.message, self.conversation, self.sender] {
            out.extend_from_slice(&part.to_le_bytes());
        }
        out.extend_from_slice(&self.due_us.to_le_bytes());
        out.resize(bytes.max(HEADER_BYTES), 0);
        out
    }

    /// Reads it back; `None` when the payload is too short to be one of ours.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(payload.get(at..at + 4)?.try_into().ok()?));
        Some(Header {
            run: word(0)?,
            message: word(4)?,
            conversation: word(8)?,
            sender: word(12)?,
            due_us: u64::from_le_bytes(payload.get(16..24)?.try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_pads() {
        let header = Header { run: 1, message: 2, conversation: 3, sender: 4, due_us: 5 << 40 };
        let bytes = header.encode(128);
        assert_eq!(bytes.len(), 128);
        assert_eq!(Header::decode(&bytes), Some(header));
        assert_eq!(header.encode(0).len(), HEADER_BYTES);
        assert_eq!(Header::decode(&bytes[..23]), None);
    }
}
