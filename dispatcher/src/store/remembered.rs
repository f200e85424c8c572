//! What the thread of a store remembers of logs, so that an append need not read it.
//!
//! Whether it is still true is left to the store: whoever else may have written is reason to [`Logs::forget`]. The rule that
//! keeps it right: what is not filed is remembered whole or not at all.

use millrace_protocol::ids::Partition;
use rustc_hash::FxHashMap;

use super::{Answer, Entry, StreamKey};

/// Logs that are remembered, at about 120 B each; past that all are forgotten and read again.
const LOGS_MAX: usize = 131_072;
/// Answers that are remembered until they are filed, at 40 to 200 B each; past that they are read when they are filed.
const UNFILED_HELD_MAX: usize = 65_536;

/// Logs by partition and conversation. `B`: what is known of where one begins and ends.
#[derive(Debug)]
pub(super) struct Logs<B> {
    logs: FxHashMap<Partition, FxHashMap<Box<str>, Kept<B>>>,
    held: usize,
    unfiled_held: usize,
}

#[derive(Debug)]
struct Kept<B> {
    bounds: B,
    /// `None`: it is not remembered.
    unfiled: Option<Unfiled>,
}

impl<B> Default for Logs<B> {
    fn default() -> Self {
        Logs { logs: FxHashMap::default(), held: 0, unfiled_held: 0 }
    }
}

impl<B: Copy> Logs<B> {
    /// A log that is remembered. What is not filed of it is handed back with [`Logs::remember`].
    pub(super) fn take(&mut self, partition: Partition, conversation: &str) -> Option<(B, Option<Unfiled>)> {
        let kept = self.logs.get_mut(&partition)?.get_mut(conversation)?;
        let unfiled = kept.unfiled.take();
        self.unfiled_held -= count(&unfiled);
        Some((kept.bounds, unfiled))
    }

    pub(super) fn remember(
        &mut self,
        partition: Partition,
        conversation: &str,
        bounds: B,
        unfiled: Option<Unfiled>,
    ) {
        if self.held >= LOGS_MAX {
            *self = Self::default();
        }
        let unfiled = unfiled.filter(|unfiled| self.unfiled_held + unfiled.count <= UNFILED_HELD_MAX);
        self.unfiled_held += count(&unfiled);
        let kept = Kept { bounds, unfiled };
        let of_partition = self.logs.entry(partition).or_default();
        match of_partition.get_mut(conversation) {
            Some(known) => {
                self.unfiled_held -= count(&known.unfiled);
                *known = kept;
            }
            None => {
                of_partition.insert(conversation.into(), kept);
                self.held += 1;
            }
        }
    }

    /// Somebody else may have written to this partition.
    pub(super) fn forget(&mut self, partition: Partition) {
        let gone = self.logs.remove(&partition).unwrap_or_default();
        self.held -= gone.len();
        self.unfiled_held -= gone.values().map(|kept| count(&kept.unfiled)).sum::<usize>();
    }
}

fn count(unfiled: &Option<Unfiled>) -> usize {
    unfiled.as_ref().map_or(0, |unfiled| unfiled.count)
}

/// What senders were answered of the entries of a log that are not filed.
#[derive(Debug, Default)]
pub(super) struct Unfiled {
    /// In order of their first message here.
    pub(super) streams: Vec<(StreamKey, Vec<Answer>)>,
    /// Where each is, once they are many.
    places: FxHashMap<StreamKey, usize>,
    /// Answers of all of them.
    count: usize,
}

/// Streams that are looked through one by one.
const STREAMS_FEW: usize = 16;

impl Unfiled {
    /// The next entry of the log.
    pub(super) fn add(&mut self, entry: &Entry) {
        if entry.stream == 0 {
            return;
        }
        self.count += 1;
        let answer = Answer::of(entry);
        match self.place(entry) {
            Some(place) => self.streams[place].1.push(answer),
            None => self.streams.push((StreamKey::of(entry), vec![answer])),
        }
    }

    fn place(&mut self, entry: &Entry) -> Option<usize> {
        if self.streams.len() < STREAMS_FEW {
            // Who spoke last speaks again.
            return self.streams.iter().rposition(|(key, _)| key.is_of(entry));
        }
        for place in self.places.len()..self.streams.len() {
            self.places.insert(self.streams[place].0.clone(), place);
        }
        self.places.get(&StreamKey::of(entry)).copied()
    }
}

impl<'a> Extend<&'a Entry> for Unfiled {
    fn extend<T: IntoIterator<Item = &'a Entry>>(&mut self, entries: T) {
        entries.into_iter().for_each(|entry| self.add(entry));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use millrace_protocol::ids::MessageId;

    use super::*;

    fn entry(seq: u64) -> Entry {
        Entry {
            conversation: "g:tea".into(),
            seq,
            message_id: MessageId(seq),
            epoch: 1,
            action: 0,
            messages: seq,
            bytes: 0,
            sender: "alice".into(),
            device: if seq.is_multiple_of(2) { "phone" } else { "pad" }.into(),
            stream: 7,
            client_seq: seq,
            payload_hash: seq,
            notify: Bytes::new(),
        }
    }

    fn unfiled(count: u64) -> Option<Unfiled> {
        let entries: Vec<Entry> = (1..=count).map(entry).collect();
        let mut unfiled = Unfiled::default();
        unfiled.extend(&entries);
        Some(unfiled)
    }

    #[test]
    fn a_stream_s_answers_are_together_however_many_there_are() {
        let Some(two) = unfiled(50) else { unreachable!() };
        assert_eq!(two.streams.iter().map(|(_, answers)| answers.len()).collect::<Vec<_>>(), [25, 25]);
        let mut many = Unfiled::default();
        for seq in 0..600 {
            let mut entry = entry(seq);
            entry.stream = 1 + seq % 60;
            many.add(&entry);
        }
        assert_eq!((many.streams.len(), many.count), (60, 600));
        for (place, (key, answers)) in (0..).zip(&many.streams) {
            let seqs: Vec<u64> = answers.iter().map(|answer| answer.seq).collect();
            // Odd and even numbers come from two devices; 60 is even, so that a stream is of one.
            assert_eq!(key.stream, 1 + place);
            assert_eq!(seqs, (0..10).map(|n| place + 60 * n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_remembered_is_counted_and_bounded() {
        let mut logs = Logs::default();
        logs.remember(1, "g:tea", 10, unfiled(10));
        logs.remember(1, "g:tea", 20, unfiled(20));
        logs.remember(2, "g:tea", 5, unfiled(5));
        assert_eq!((logs.held, logs.unfiled_held), (2, 25));
        let (bounds, taken) = logs.take(1, "g:tea").unwrap();
        let taken = taken.unwrap();
        assert_eq!((bounds, taken.streams.len(), taken.count, logs.unfiled_held), (20, 2, 20, 5));
        assert!(logs.take(1, "g:tea").unwrap().1.is_none(), "who took it has not handed it back");
        logs.remember(1, "g:tea", 30, unfiled(UNFILED_HELD_MAX as u64));
        assert!(logs.take(1, "g:tea").unwrap().1.is_none(), "there is no room for it");
        logs.forget(2);
        assert!(logs.take(2, "g:tea").is_none());
        assert_eq!((logs.held, logs.unfiled_held), (1, 0));
        for n in 0..LOGS_MAX {
            logs.remember(3, &n.to_string(), n, None);
        }
        assert!(logs.held <= LOGS_MAX);
        assert!(logs.take(1, "g:tea").is_none(), "with room for no more, all were forgotten");
    }
}
