//! The small records that both stores keep: answers, cursors, and what may not have been fanned out.
//!
//! Where they are stored is left to the stores. The rule that keeps it right: each has one length or says its own, and
//! one that is cut short is no record; integers are big-endian, so that cursors compare as bytes.

use bytes::{Buf, BufMut};
use millrace_protocol::ids::MessageId;

use super::{Answer, Cursor};

/// client_seq | payload hash | seq | message id | epoch.
pub(super) const ANSWER_BYTES: usize = 40;

/// The record of an answer.
pub(super) fn answer(answer: &Answer) -> [u8; ANSWER_BYTES] {
    let Answer { client_seq, payload_hash, seq, message_id, epoch } = *answer;
    words([client_seq, payload_hash, seq, message_id.0, epoch])
}

/// Reads it back.
pub(super) fn to_answer(record: &[u8]) -> Option<Answer> {
    let [client_seq, payload_hash, seq, message_id, epoch] = to_words(record)?;
    Some(Answer { client_seq, payload_hash, seq, message_id: MessageId(message_id), epoch })
}

/// epoch | seq | messages.
pub(super) const CURSOR_BYTES: usize = 24;

/// The record of a cursor. Two of them compare as their cursors do.
pub(super) fn cursor(cursor: &Cursor) -> [u8; CURSOR_BYTES] {
    words([cursor.epoch, cursor.seq, cursor.messages])
}

/// Reads it back.
pub(super) fn to_cursor(record: &[u8]) -> Option<Cursor> {
    let [epoch, seq, messages] = to_words(record)?;
    Some(Cursor { epoch, seq, messages })
}

/// The record of a batch's messages that are to be fanned out: seq u64 | conversation u16 + text, for each.
pub(super) fn outstanding(messages: &[(String, u64)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(messages.iter().map(|(name, _)| 10 + name.len()).sum());
    for (conversation, seq) in messages {
        out.put_u64(*seq);
        out.put_u16(conversation.len() as u16);
        out.put_slice(conversation.as_bytes());
    }
    out
}

/// Reads it back.
pub(super) fn to_outstanding(mut record: &[u8]) -> Option<Vec<(String, u64)>> {
    let mut messages = Vec::new();
    while record.has_remaining() {
        let seq = record.try_get_u64().ok()?;
        let length = usize::from(record.try_get_u16().ok()?);
        let (name, rest) = record.split_at_checked(length)?;
        messages.push((String::from_utf8(name.to_vec()).ok()?, seq));
        record = rest;
    }
    Some(messages)
}

fn words<const WORDS: usize, const BYTES: usize>(words: [u64; WORDS]) -> [u8; BYTES] {
    const { assert!(WORDS * 8 == BYTES) }
    let mut out = [0; BYTES];
    for (place, word) in out.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_be_bytes());
    }
    out
}

fn to_words<const WORDS: usize>(mut record: &[u8]) -> Option<[u64; WORDS]> {
    if record.len() != WORDS * 8 {
        return None;
    }
    Some(std::array::from_fn(|_| record.get_u64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_come_back_as_they_were() {
        let one = Answer {
            client_seq: 1,
            payload_hash: u64::MAX,
            seq: 3,
            message_id: MessageId(1 << 63),
            epoch: 5,
        };
        assert_eq!(to_answer(&answer(&one)), Some(one));
        assert_eq!(to_answer(&answer(&one)[1..]), None, "cut short");
        let at = Cursor { epoch: 300, seq: 2, messages: 1 };
        assert_eq!(to_cursor(&cursor(&at)), Some(at));
        let messages = vec![("g:tea".to_owned(), 7), ("d:a:b".to_owned(), u64::MAX)];
        let record = outstanding(&messages);
        assert_eq!(to_outstanding(&record), Some(messages));
        assert_eq!(to_outstanding(&record[..record.len() - 1]), None, "cut short");
        assert_eq!(to_outstanding(&[]), Some(vec![]));
    }

    #[test]
    fn cursors_compare_as_bytes() {
        let at = |epoch, seq| Cursor { epoch, seq, messages: 0 };
        for (low, high) in [(at(1, 9), at(2, 1)), (at(1, 255), at(1, 256)), (at(0, 1 << 40), at(1, 0))] {
            assert!(low < high && cursor(&low) < cursor(&high));
        }
    }
}
