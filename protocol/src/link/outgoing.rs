//! Records on their way to the peer: encoded once into batches, kept until acknowledged, transmitted again after a
//! reconnect. When that is due is decided by [`super::end`].
//!
//! The rule: batches are cut at record boundaries and hold numbered records only, so that an acknowledgement can let
//! go of whole records from the front, and a resend is the same bytes again.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use crate::link::end::LinkError;
use crate::link::record::{HEADER_BYTES, Header, Kind, Record};
use crate::planted::{self, Fault};

/// Records towards the peer. Numbers acknowledged + 1 ..= last are kept: first `batches`, then `pending`.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    last: u64,
    acknowledged: u64,
    /// The highest number that was ever given to a transport.
    transmitted: u64,
    /// Of each kept record.
    sizes: VecDeque<u32>,
    kept_bytes: u64,
    /// Closed batches with their last number; acknowledged records are cut off the first.
    batches: VecDeque<(u64, Bytes)>,
    /// Batches before this one were transmitted on the present connection.
    next_batch: usize,
    pending: BytesMut,
}

impl Outgoing {
    /// Bytes of records queued or sent and not yet acknowledged.
    pub(super) fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }

    /// Records queued or sent and not yet acknowledged.
    pub(super) fn kept(&self) -> usize {
        self.sizes.len()
    }

    /// Bytes in the batch that is not closed yet.
    pub(super) fn pending_bytes(&self) -> usize {
        self.pending.len()
    }

    /// Where something that is not kept may be added behind the records, just before the batch is closed.
    pub(super) fn pending(&mut self) -> &mut BytesMut {
        &mut self.pending
    }

    /// A new connection: everything kept is to be transmitted again.
    pub(super) fn rewind(&mut self) {
        if !planted::is(Fault::ResendSkipped) {
            self.next_batch = 0;
        }
    }

    /// Numbers a record and encodes it into the pending batch; one that would grow above the limit is closed first.
    pub(super) fn push(&mut self, record: &Record, batch_bytes_max: usize) {
        let size = record.size_bytes();
        if !self.pending.is_empty() && self.pending.len() + size > batch_bytes_max {
            let batch = self.pending.split().freeze();
            self.batches.push_back((self.last, batch));
        }
        self.last += 1;
        Header::of(record, self.last).write(&mut self.pending);
        self.pending.extend_from_slice(&record.body);
        self.sizes.push_back(size as u32);
        self.kept_bytes += size as u64;
    }

    /// A closed batch that this connection has not transmitted.
    pub(super) fn next_closed_batch(&mut self) -> Option<Bytes> {
        let (last, batch) = self.batches.get(self.next_batch)?;
        self.next_batch += 1;
        self.transmitted = self.transmitted.max(*last);
        Some(batch.clone())
    }

    /// Closes the pending batch, whose first `records_bytes` bytes are records to be kept.
    pub(super) fn close_batch(&mut self, records_bytes: usize) -> Option<Bytes> {
        if self.pending.is_empty() {
            return None;
        }
        let batch = self.pending.split().freeze();
        if records_bytes > 0 {
            self.batches.push_back((self.last, batch.slice(..records_bytes)));
            self.next_batch = self.batches.len();
            self.transmitted = self.last;
        }
        Some(batch)
    }

    /// Lets go of everything up to `number`.
    pub(super) fn acknowledge(&mut self, number: u64) -> Result<(), LinkError> {
        if number > self.transmitted {
            return Err(LinkError::Acknowledged { acknowledged: number, sent: self.transmitted });
        }
        while self.acknowledged < number {
            self.acknowledged += 1;
            let size = self.sizes.pop_front().expect("one size per kept record");
            self.kept_bytes -= u64::from(size);
            let (_, batch) = self.batches.front_mut().expect("what was transmitted is in a batch");
            batch.advance(size as usize);
            if batch.is_empty() {
                self.batches.pop_front();
                self.next_batch = self.next_batch.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// All kept records, oldest first; as new afterwards.
    pub(super) fn drain(&mut self) -> Vec<Record> {
        let gone = std::mem::take(self);
        let mut records = Vec::with_capacity(gone.sizes.len());
        for mut batch in gone.batches.into_iter().map(|(_, batch)| batch).chain([gone.pending.freeze()]) {
            while !batch.is_empty() {
                let header = Header::read(&batch);
                let record = batch.split_to(header.length as usize);
                let kind = Kind::from_byte(header.kind).expect("encoded here");
                records.push(header.record(kind, record.slice(HEADER_BYTES..)));
            }
        }
        records
    }
}
