//! Judges a history: whether what was promised held, whatever was done to the servers.
//!
//! Each note, entry and message is looked at a fixed number of times, with hash maps in between, so that a million
//! messages take seconds. The rule: a promise that is broken is named with the message and device that show it; what
//! may be lost at the chosen durability is counted, and must have been told to everyone who had it.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};
use serde::Serialize;

use super::history::{Content, Entry, History, Note, Place, Tag};

/// Examples that are kept of each kind of violation; all are counted.
const EXAMPLES_MAX: usize = 8;

/// A promise that can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Broken {
    /// An acknowledged message is not in the log, where nothing may be lost.
    Lost,
    /// An acknowledged message was lost, as it may be, and its sender was not told.
    LossUntold,
    /// A message stands elsewhere in the log than its acknowledgement said.
    Moved,
    /// Two acknowledgements of one message differ.
    AnsweredTwice,
    /// A message is in the log more than once.
    StoredTwice,
    /// The log has a number twice, or leaves some out.
    LogHole,
    /// Ids or epochs of a log go down.
    LogOrder,
    /// A sender's messages are not in the log in the order in which they were sent.
    SenderOrder,
    /// A message that was acknowledged before another one was sent comes after it.
    TimeOrder,
    /// The log has something that nobody sent there.
    Foreign,
    /// A device was shown a message again.
    ShownTwice,
    /// A device was shown a message after a later one.
    ShownLate,
    /// A device was shown a message without those before it, and was not told of a gap.
    Skipped,
    /// A device was shown, and still has, what is not in the log.
    ShownOther,
    /// A device that is online never got a message.
    NotShown,
    /// A device was told to drop messages, where nothing may be lost.
    FalseTruncation,
    /// A device was told of a head below what it has, where nothing may be lost.
    StaleHead,
    /// A device was told that the log no longer has what it has.
    FalseGap,
    /// A message was never answered.
    Unanswered,
    /// A log could not be read at the end.
    LogUnread,
    /// Something else that must not be, as a client saw it.
    Odd,
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    /// How often each promise was broken. Empty: none was.
    pub broken: BTreeMap<Broken, u64>,
    /// Some of them in words.
    pub examples: Vec<String>,
    /// Messages that applications sent.
    pub sent: u64,
    /// Messages that were acknowledged.
    pub acknowledged: u64,
    /// Entries that devices were shown, or had acknowledged as their own.
    pub shown: u64,
    /// Entries of all logs at the end.
    pub logged: u64,
    /// Acknowledged messages that the log does not have where they were acknowledged, as the durability allows.
    pub losses: u64,
    /// Entries that devices were told to drop.
    pub dropped: u64,
    /// Entries that devices were told they would not get.
    pub missed: u64,
}

impl Verdict {
    /// Whether every promise held.
    pub fn is_clean(&self) -> bool {
        self.broken.is_empty()
    }

    fn add(&mut self, broken: Broken, what: impl FnOnce() -> String) {
        let count = self.broken.entry(broken).or_default();
        *count += 1;
        if *count as usize <= EXAMPLES_MAX {
            self.examples.push(format!("{broken:?}: {}", what()));
        }
    }
}

/// What a device has of a conversation.
#[derive(Default)]
struct Held {
    entries: Vec<(Place, Option<Tag>)>,
    /// Told gaps, both ends included, ascending.
    missed: Vec<(u64, u64)>,
    /// The highest seq that was shown or is named by a gap.
    last: u64,
}

/// What the notes say, once read.
struct Read {
    sent: FxHashMap<Tag, u64>,
    acked: FxHashMap<Tag, (u64, Place)>,
    held: FxHashMap<(u16, u16), Held>,
    /// Messages that devices dropped because they were told to, and losses that senders concluded.
    told: FxHashSet<(u16, Tag)>,
}

/// Judges a history. `losses_allowed`: acknowledged messages may be lost, if that is told.
pub fn check(history: &History, losses_allowed: bool) -> Verdict {
    let mut verdict = Verdict::default();
    for what in &history.odd {
        verdict.add(Broken::Odd, || what.clone());
    }
    for tag in &history.unanswered {
        verdict.add(Broken::Unanswered, || format!("{tag} in {}", name(history, tag.conversation)));
    }
    let read = read_notes(history, losses_allowed, &mut verdict);
    let stored = read_logs(history, &read, &mut verdict);
    for (tag, (_, acked)) in &read.acked {
        let conversation = name(history, tag.conversation);
        match stored.get(tag) {
            Some(place) if place == acked => {}
            // Where it was acknowledged it was lost, and it was sent again before that was known.
            Some(_) if losses_allowed && read.told.contains(&(tag.device, *tag)) => verdict.losses += 1,
            Some(place) => {
                verdict.add(Broken::Moved, || {
                    format!("{tag} in {conversation}: acknowledged as {acked}, stored as {place}")
                });
            }
            // A log that could not be read says nothing; that is a violation of its own.
            None if log_of(history, tag.conversation).is_none() => {}
            None if !losses_allowed => {
                verdict.add(Broken::Lost, || format!("{tag} in {conversation}, acknowledged as {acked}"));
            }
            None => {
                verdict.losses += 1;
                if !read.told.contains(&(tag.device, *tag)) {
                    let what = || format!("{tag} in {conversation}, acknowledged as {acked}");
                    verdict.add(Broken::LossUntold, what);
                }
            }
        }
    }
    for (&(device, conversation), held) in &read.held {
        if let Some(log) = log_of(history, conversation) {
            compare(history, (device, conversation), held, log, &mut verdict);
        }
    }
    // Those that were shown nothing at all.
    for (conversation, members) in history.conversations.iter().enumerate() {
        let Some(log) = log_of(history, conversation as u16) else { continue };
        for &device in &members.devices {
            if !read.held.contains_key(&(device, conversation as u16)) {
                let nothing = Held::default();
                compare(history, (device, conversation as u16), &nothing, log, &mut verdict);
            }
        }
    }
    verdict
}

fn name(history: &History, conversation: u16) -> &str {
    history.conversations.get(usize::from(conversation)).map_or("?", |members| &members.name)
}

fn log_of(history: &History, conversation: u16) -> Option<&[Entry]> {
    history.logs.get(usize::from(conversation))?.as_deref()
}

fn read_notes(history: &History, losses_allowed: bool, verdict: &mut Verdict) -> Read {
    let mut read = Read {
        sent: FxHashMap::default(),
        acked: FxHashMap::default(),
        held: FxHashMap::default(),
        told: FxHashSet::default(),
    };
    let mut shown: FxHashSet<(u16, Tag)> = FxHashSet::default();
    for &(at_us, note) in &history.notes {
        match note {
            Note::Sent { tag } => {
                verdict.sent += 1;
                read.sent.insert(tag, at_us);
            }
            Note::Acked { tag, place } => match read.acked.get(&tag) {
                None => {
                    verdict.acknowledged += 1;
                    read.acked.insert(tag, (at_us, place));
                }
                Some((_, before)) if *before == place => {}
                Some((_, before)) => verdict
                    .add(Broken::AnsweredTwice, || format!("{tag}: first as {before}, then as {place}")),
            },
            Note::Shown { device, conversation, place, tag } => {
                verdict.shown += 1;
                let held = read.held.entry((device, conversation)).or_default();
                let what = || {
                    let conversation = name(history, conversation);
                    format!("device {device}, {conversation}: {place} after seq {}", held.last)
                };
                if tag.is_some_and(|tag| !shown.insert((device, tag))) {
                    verdict.add(Broken::ShownTwice, what);
                } else if place.seq <= held.last {
                    verdict.add(Broken::ShownLate, what);
                } else if place.seq > held.last + 1 {
                    verdict.add(Broken::Skipped, what);
                }
                held.last = held.last.max(place.seq);
                held.entries.push((place, tag));
            }
            Note::Truncated { device, conversation, seq } => {
                let held = read.held.entry((device, conversation)).or_default();
                let before = verdict.dropped;
                while let Some((_, tag)) = held.entries.pop_if(|(place, _)| place.seq > seq) {
                    verdict.dropped += 1;
                    if let Some(tag) = tag {
                        shown.remove(&(device, tag));
                        read.told.insert((device, tag));
                    }
                }
                held.missed.retain_mut(|(from, to)| {
                    *to = (*to).min(seq);
                    from <= to
                });
                held.last = held.last.min(seq);
                if verdict.dropped > before && !losses_allowed {
                    verdict.add(Broken::FalseTruncation, || {
                        format!("device {device}, {}: everything above {seq}", name(history, conversation))
                    });
                }
            }
            Note::Rescinded { tag } => {
                read.told.insert((tag.device, tag));
                if !losses_allowed {
                    verdict.add(Broken::FalseTruncation, || {
                        format!("{tag} in {} was taken back", name(history, tag.conversation))
                    });
                }
            }
            // Where messages may be lost, this is how a device learns that it must ask.
            Note::Stale { .. } if losses_allowed => {}
            Note::Stale { device, conversation, seq, head } => verdict.add(Broken::StaleHead, || {
                format!("device {device}, {}: has {seq}, the head {head}", name(history, conversation))
            }),
            Note::Missed { device, conversation, from, to } => {
                verdict.missed += to.saturating_sub(from) + 1;
                let held = read.held.entry((device, conversation)).or_default();
                held.missed.push((from, to));
                held.last = held.last.max(to);
            }
        }
    }
    read
}

/// Looks at each log by itself, and returns where every message is.
fn read_logs(history: &History, read: &Read, verdict: &mut Verdict) -> FxHashMap<Tag, Place> {
    let mut stored: FxHashMap<Tag, Place> = FxHashMap::default();
    for (conversation, members) in history.conversations.iter().enumerate() {
        let (conversation, name) = (conversation as u16, members.name.as_str());
        let Some(log) = log_of(history, conversation) else {
            verdict.add(Broken::LogUnread, || name.to_owned());
            continue;
        };
        verdict.logged += log.len() as u64;
        let mut before = Place { epoch: 0, seq: 0, id: 0 };
        let mut serials: FxHashMap<u16, u32> = FxHashMap::default();
        for entry in log {
            let place = entry.place;
            if place.seq != before.seq + 1 {
                verdict.add(Broken::LogHole, || format!("{name}: {place} after {before}"));
            }
            if place.id <= before.id || place.epoch < before.epoch {
                verdict.add(Broken::LogOrder, || format!("{name}: {place} after {before}"));
            }
            before = place;
            let tag = match entry.content {
                Content::Message(tag) => tag,
                Content::System => continue,
                Content::Unknown => {
                    verdict.add(Broken::Foreign, || format!("{name}: {place} can't be read"));
                    continue;
                }
            };
            if tag.conversation != conversation || !read.sent.contains_key(&tag) {
                verdict.add(Broken::Foreign, || format!("{name}: {place} is {tag} of run {}", tag.run));
            }
            if let Some(first) = stored.insert(tag, place) {
                verdict.add(Broken::StoredTwice, || format!("{name}: {tag} as {first} and as {place}"));
            }
            let last = serials.entry(tag.device).or_default();
            if tag.serial <= *last {
                verdict.add(Broken::SenderOrder, || format!("{name}: {tag} ({place}) after its {last}"));
            }
            *last = tag.serial;
        }
        time_order(name, log, read, verdict);
    }
    stored
}

/// Whoever sends after an acknowledgement comes after the acknowledged: from the end of the log back, no message may
/// have been sent later than the earliest acknowledgement of those behind it.
fn time_order(name: &str, log: &[Entry], read: &Read, verdict: &mut Verdict) {
    let mut earliest: Option<(u64, Tag)> = None;
    for entry in log.iter().rev() {
        let Content::Message(tag) = entry.content else { continue };
        if let (Some((acked_us, later)), Some(&sent_us)) = (earliest, read.sent.get(&tag))
            && acked_us < sent_us
        {
            verdict.add(Broken::TimeOrder, || {
                format!("{name}: {tag} was sent after {later} was acknowledged, and stands before it")
            });
        }
        if let Some(&(acked_us, _)) = read.acked.get(&tag)
            && earliest.is_none_or(|(us, _)| acked_us < us)
        {
            earliest = Some((acked_us, tag));
        }
    }
}

/// What a device has against the log: the order of all is the log's, so it is the same for all.
fn compare(
    history: &History,
    (device, conversation): (u16, u16),
    held: &Held,
    log: &[Entry],
    verdict: &mut Verdict,
) {
    let who = || format!("device {device}, {}", name(history, conversation));
    let first = log.first().map_or(1, |entry| entry.place.seq);
    let entry_at = |seq: u64| log.get(usize::try_from(seq.checked_sub(first)?).ok()?);
    let mut has = vec![false; log.len()];
    for (place, tag) in &held.entries {
        let content = tag.map_or(Content::System, Content::Message);
        match entry_at(place.seq) {
            Some(entry) => {
                // One that has something else there is told apart from one that has nothing.
                has[(place.seq - first) as usize] = true;
                if entry.place != *place || entry.content != content {
                    let there = entry.place;
                    verdict.add(Broken::ShownOther, || format!("{}: has {place}, the log {there}", who()));
                }
            }
            None => verdict.add(Broken::ShownOther, || format!("{}: {place} is beyond the log", who())),
        }
    }
    for &(from, to) in &held.missed {
        let is_there = |seq: u64| entry_at(seq).is_some();
        if is_there(from) || is_there(to) {
            verdict.add(Broken::FalseGap, || format!("{}: {from} to {to} are in the log", who()));
        }
        for seq in from.max(first)..=to.min(first + log.len() as u64) {
            if let Some(slot) = has.get_mut((seq - first) as usize) {
                *slot = true;
            }
        }
    }
    if history.online.get(usize::from(device)).copied().unwrap_or(false) {
        for (entry, _) in log.iter().zip(&has).filter(|(_, has)| !**has) {
            verdict.add(Broken::NotShown, || format!("{}: {}", who(), entry.place));
        }
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
