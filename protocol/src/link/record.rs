//! One record of a link: a fixed header of 32 bytes, then a protobuf body (see proto/link.proto).
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | length of the record, header included |
//! | 4 | 1 | kind |
//! | 5 | 1 | reserved, 0 |
//! | 6 | 2 | partition |
//! | 8 | 8 | number: dense per direction and pair of incarnations; 0 for Hello and Ack, which cost no credit |
//! | 16 | 8 | epoch of the partition's owner (downlink), else 0 |
//! | 24 | 8 | session, or 0 |
//!
//! All little-endian: links join servers of one operator.

use bytes::{BufMut, Bytes, BytesMut};

use crate::ids::{Partition, SessionId};

/// Bytes of a record's header.
pub const HEADER_BYTES: usize = 32;

/// Bytes of a record at most, header included: above any client frame with its envelope, and above a page.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// What a record is about; its body is the message of the same name in proto/link.proto.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Kind {
    Hello = 1,
    Ack = 2,
    // Gateway to dispatcher.
    Register = 10,
    Unregister = 11,
    Subscribe = 12,
    Unsubscribe = 13,
    ClientRequest = 14,
    Fetch = 15,
    NoSession = 16,
    Closed = 17,
    Lease = 18,
    Acks = 19,
    Superseded = 20,
    // Dispatcher to gateway.
    Registered = 40,
    Subscribed = 41,
    Reply = 42,
    FanOut = 43,
    Remove = 44,
    Direct = 45,
    Attach = 46,
    Close = 47,
    Page = 48,
    Gap = 49,
    Announce = 50,
    NotOwner = 51,
    ClusterMap = 52,
    LeaseAnswer = 53,
    Relay = 54,
    DirectGap = 55,
}

impl Kind {
    const ALL: [Kind; 29] = {
        use Kind::*;
        [
            Hello,
            Ack,
            Register,
            Unregister,
            Subscribe,
            Unsubscribe,
            ClientRequest,
            Fetch,
            NoSession,
            Closed,
            Lease,
            Acks,
            Superseded,
            Registered,
            Subscribed,
            Reply,
            FanOut,
            Remove,
            Direct,
            Attach,
            Close,
            Page,
            Gap,
            Announce,
            NotOwner,
            ClusterMap,
            LeaseAnswer,
            Relay,
            DirectGap,
        ]
    };

    /// By its byte: every record that comes in is looked up.
    const BY_BYTE: [Option<Kind>; 256] = {
        let mut table = [None; 256];
        let mut at = 0;
        while at < Kind::ALL.len() {
            table[Kind::ALL[at] as usize] = Some(Kind::ALL[at]);
            at += 1;
        }
        table
    };

    /// Reads a kind byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::BY_BYTE[usize::from(byte)]
    }
}

/// One record, decoded or about to be queued. Its number is given by the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it is about.
    pub kind: Kind,
    /// The partition that must handle it, or that it comes from.
    pub partition: Partition,
    /// The owner's epoch (downlink), else 0.
    pub epoch: u64,
    /// The session that it is about, or none.
    pub session: SessionId,
    /// The protobuf body.
    pub body: Bytes,
}

impl Record {
    /// Bytes on the link, header included: what it costs in credit.
    pub fn size_bytes(&self) -> usize {
        HEADER_BYTES + self.body.len()
    }
}

/// The 32 bytes before each body, as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) length: u32,
    pub(crate) kind: u8,
    pub(crate) partition: Partition,
    pub(crate) number: u64,
    pub(crate) epoch: u64,
    pub(crate) session: u64,
}

impl Header {
    pub(crate) fn of(record: &Record, number: u64) -> Self {
        Header {
            length: record.size_bytes() as u32,
            kind: record.kind as u8,
            partition: record.partition,
            number,
            epoch: record.epoch,
            session: record.session.0,
        }
    }

    /// Reads the first [`HEADER_BYTES`] of `bytes`.
    ///
    /// # Panics
    /// When there are fewer.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let at = |offset| u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"));
        let first = at(0);
        Header {
            length: first as u32,
            kind: (first >> 32) as u8,
            partition: (first >> 48) as u16,
            number: at(8),
            epoch: at(16),
            session: at(24),
        }
    }

    pub(crate) fn write(&self, out: &mut BytesMut) {
        out.reserve(self.length as usize);
        out.put_u64_le(u64::from(self.length) | u64::from(self.kind) << 32 | u64::from(self.partition) << 48);
        out.put_u64_le(self.number);
        out.put_u64_le(self.epoch);
        out.put_u64_le(self.session);
    }

    pub(crate) fn record(&self, kind: Kind, body: Bytes) -> Record {
        Record { kind, partition: self.partition, epoch: self.epoch, session: SessionId(self.session), body }
    }
}

/// The kinds and bodies of a batch's records, for those who look on: the ends of links read with [`super::end`]. Stops at what
/// is no record.
pub fn peek_records(mut batch: &[u8]) -> impl Iterator<Item = (Kind, &[u8])> {
    std::iter::from_fn(move || {
        let header = (batch.len() >= HEADER_BYTES).then(|| Header::read(batch))?;
        let (record, rest) = batch.split_at_checked(header.length as usize)?;
        let kind = Kind::from_byte(header.kind)?;
        batch = rest;
        Some((kind, record.get(HEADER_BYTES..)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_looked_into_up_to_what_is_no_record() {
        let mut batch = BytesMut::new();
        for (kind, body) in [(Kind::Acks, &b"one"[..]), (Kind::Reply, b"")] {
            let body = Bytes::from_static(body);
            let record = Record { kind, partition: 1, epoch: 2, session: SessionId(3), body };
            Header::of(&record, 4).write(&mut batch);
            batch.extend_from_slice(&record.body);
        }
        let whole = batch.len();
        let peeked = |bytes: &[u8]| -> Vec<(Kind, Vec<u8>)> {
            peek_records(bytes).map(|(kind, body)| (kind, body.to_vec())).collect()
        };
        assert_eq!(peeked(&batch), [(Kind::Acks, b"one".to_vec()), (Kind::Reply, Vec::new())]);
        assert_eq!(peeked(&batch[..whole - 1]).len(), 1, "half a header");
        assert_eq!(peeked(&batch[..HEADER_BYTES + 2]).len(), 0, "half a body");
        batch[0] = 1;
        assert_eq!(peeked(&batch).len(), 0, "shorter than a header");
    }

    #[test]
    fn kinds_come_back_from_their_bytes() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_byte(kind as u8), Some(kind));
        }
        assert_eq!((0..=255).filter_map(Kind::from_byte).count(), Kind::ALL.len());
    }

    #[test]
    fn the_header_is_laid_out_as_the_table_says() {
        let record = Record {
            kind: Kind::FanOut,
            partition: 0x0201,
            epoch: 0x1817_1615_1413_1211,
            session: SessionId(0x2827_2625_2423_2221),
            body: Bytes::from_static(b"xy"),
        };
        let mut out = BytesMut::new();
        let header = Header::of(&record, 0x0807_0605_0403_0201);
        header.write(&mut out);
        let expected = [
            &[34, 0, 0, 0, 43, 0, 1, 2][..],
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &[0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18],
            &[0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28],
        ]
        .concat();
        assert_eq!(out, expected);
        assert_eq!(Header::read(&out), header);
        assert_eq!(header.record(Kind::FanOut, record.body.clone()), record);
    }
}
