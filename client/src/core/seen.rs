//! Which messages the application was given already. Delivery is at least once on the wire; what is shown twice is
//! stopped here.
//!
//! Per conversation: the epoch and seq of the newest message, and a bit for each of the [`WINDOW`] below it. Messages
//! of a direct conversation may come out of order by a little, so "not above the newest" alone would lose some. An
//! epoch above the known one with a lower seq means that the log began anew (an emptied store): everything is new.

use std::collections::HashMap;

/// Seqs below the newest that are told apart. What is older than that counts as seen.
pub const WINDOW: u64 = 256;

/// Conversations remembered; above, the half that was silent longest is forgotten.
const CONVERSATIONS_MAX: usize = 8_192;

#[derive(Clone, Debug)]
struct Mark {
    epoch: u64,
    newest: u64,
    /// Bit i of the whole: newest - i was seen.
    bits: [u64; (WINDOW / 64) as usize],
    used: u64,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Seen {
    marks: HashMap<String, Mark>,
    clock: u64,
}

impl Seen {
    /// Notes a message. Returns whether it is new.
    pub fn note(&mut self, conversation: &str, epoch: u64, seq: u64) -> bool {
        self.clock += 1;
        let Some(mark) = self.marks.get_mut(conversation) else {
            self.make_room();
            let mark = Mark { epoch, newest: seq, bits: [1, 0, 0, 0], used: self.clock };
            self.marks.insert(conversation.into(), mark);
            return true;
        };
        mark.used = self.clock;
        if epoch > mark.epoch && seq <= mark.newest {
            *mark = Mark { epoch, newest: seq, bits: [1, 0, 0, 0], used: self.clock };
            return true;
        }
        if seq > mark.newest {
            shift(&mut mark.bits, seq - mark.newest);
            mark.bits[0] |= 1;
            (mark.newest, mark.epoch) = (seq, mark.epoch.max(epoch));
            return true;
        }
        let back = mark.newest - seq;
        if back >= WINDOW {
            return false;
        }
        let (word, bit) = ((back / 64) as usize, 1 << (back % 64));
        let new = mark.bits[word] & bit == 0;
        mark.bits[word] |= bit;
        new
    }

    fn make_room(&mut self) {
        if self.marks.len() < CONVERSATIONS_MAX {
            return;
        }
        let mut uses: Vec<u64> = self.marks.values().map(|mark| mark.used).collect();
        let middle = uses.len() / 2;
        let (_, median, _) = uses.select_nth_unstable(middle);
        let median = *median;
        self.marks.retain(|_, mark| mark.used >= median);
    }
}

/// Moves all bits up by `by`.
fn shift(bits: &mut [u64; 4], by: u64) {
    let old = *bits;
    *bits = [0; 4];
    if by >= WINDOW {
        return;
    }
    let (words, rest) = ((by / 64) as usize, by % 64);
    for (index, word) in old.iter().enumerate() {
        if index + words < 4 {
            bits[index + words] |= word << rest;
        }
        if rest > 0 && index + words + 1 < 4 {
            bits[index + words + 1] |= word >> (64 - rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn any_order_within_the_window_is_told_apart_exactly() {
        // A small generator is enough to mix orders; its seed is here.
        let mut state = 0x1234_5678_9abc_def1_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let (mut seen, mut model) = (Seen::default(), BTreeSet::new());
        let mut newest = 1_000;
        for _ in 0..20_000 {
            let seq = newest + 3 - random() % 200;
            newest = newest.max(seq);
            assert_eq!(seen.note("r:a", 5, seq), model.insert(seq), "seq {seq}");
        }
    }

    #[test]
    fn what_is_below_the_window_counts_as_seen() {
        let mut seen = Seen::default();
        assert!(seen.note("g:a", 1, 1_000));
        assert!(seen.note("g:a", 1, 1_000 - WINDOW + 1));
        assert!(!seen.note("g:a", 1, 1_000 - WINDOW));
        assert!(seen.note("g:b", 1, 1), "conversations are apart");
    }

    #[test]
    fn a_log_that_began_anew_is_new() {
        let mut seen = Seen::default();
        assert!(seen.note("g:a", 5, 10));
        assert!(seen.note("g:a", 6, 11), "a takeover goes on");
        assert!(!seen.note("g:a", 5, 10), "and sends again what its fan-out may have lost");
        assert!(seen.note("g:a", 7, 1), "an emptied store begins at 1");
        assert!(seen.note("g:a", 7, 2));
        assert!(!seen.note("g:a", 7, 2));
    }

    #[test]
    fn silent_conversations_are_forgotten_first() {
        let mut seen = Seen::default();
        for index in 0..CONVERSATIONS_MAX {
            seen.note(&format!("r:{index}"), 1, 1);
        }
        seen.note("r:0", 1, 2);
        seen.note("r:one-more", 1, 1);
        assert!(seen.marks.len() <= CONVERSATIONS_MAX);
        assert!(!seen.note("r:0", 1, 2), "the busy one is remembered");
    }
}
