//! The books: for every message who should have got it and who did, how late, how often, in which order.
//!
//! Each load thread keeps a ledger of its own; they are merged at the end. Memory is bounded by the schedule (24 B a
//! message) and by the conversations of a client (24 B each). The rule: only what the server acknowledged is expected,
//! and each receiver counts a message once.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::measure::histogram;
use crate::payload::Header;
use crate::schedule::Schedule;
use crate::world::World;

/// What became of a message at its sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Not sent (yet), or by another load thread.
    #[default]
    Unsent,
    /// Sent, no answer so far.
    Sent,
    /// The server refused it for good.
    Refused,
    /// The server took it.
    Acked,
}

/// What a receiver remembers of one conversation: the highest seq, and which of the 64 before it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Track {
    conversation: u32,
    /// Which of `last - 1 ..= last - 64` have come.
    before: u64,
    last: u64,
}

/// How a seq stands to those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    InOrder,
    Late,
    Again,
}

impl Track {
    fn arrive(&mut self, seq: u64) -> Arrival {
        if seq > self.last {
            let step = seq - self.last;
            self.before = if step > 64 { 0 } else { (self.before << (step - 1) << 1) | 1 << (step - 1) };
            self.last = seq;
            return Arrival::InOrder;
        }
        let back = self.last - seq;
        if back == 0 {
            return Arrival::Again;
        }
        if back > 64 {
            // Too long ago to tell whether it came; out of order either way.
            return Arrival::Late;
        }
        let bit = 1 << (back - 1);
        if self.before & bit != 0 {
            return Arrival::Again;
        }
        self.before |= bit;
        Arrival::Late
    }
}

/// The books of one load thread, or of all when merged.
#[derive(Debug)]
pub struct Ledger {
    /// What the schedule's messages say that they belong to.
    run: u32,
    fates: Vec<Fate>,
    received: Vec<u32>,
    /// When the first receiver got it, in microseconds since boot; `u64::MAX`: nobody did.
    first_us: Vec<u64>,
    /// When the last receiver so far got it, in microseconds since boot.
    last_us: Vec<u64>,
    /// Its number in its conversation, by the first delivery; 0: none so far.
    seqs: Vec<u64>,
    /// Where 0 is on the schedule's clock, in microseconds since boot.
    start_us: u64,
    /// All deliveries, from when they were due, in microseconds.
    pub latency: Histogram<u64>,
    /// The same, by members of the conversation.
    pub by_size: BTreeMap<u32, Histogram<u64>>,
    /// Deliveries that came once too often.
    pub duplicates: u64,
    /// Deliveries after a later one of their conversation.
    pub out_of_order: u64,
    /// Deliveries to a client that should not have got them.
    pub misrouted: u64,
    /// Deliveries of other runs.
    pub foreign: u64,
    /// Messages that left more than [`crate::limits::LATE_US`] after they were due.
    pub late_sends: u64,
    /// The latest of them, in microseconds.
    pub late_us_max: u64,
}

/// The sum of a run.
#[derive(Debug)]
pub struct Account {
    /// Messages that left.
    pub sent: u64,
    /// Messages of the schedule that never did.
    pub unsent: u64,
    /// Of these, without any answer.
    pub unacknowledged: u64,
    /// Of these, refused.
    pub refused: u64,
    /// Receivers of all acknowledged messages.
    pub expected: u64,
    /// Those that got them.
    pub deliveries: u64,
    /// Those that did not.
    pub lost: u64,
    /// Time to the last receiver in microseconds, by members; only messages that reached all.
    pub last_receiver: BTreeMap<u32, Histogram<u64>>,
}

/// A message that reached everyone, in microseconds since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// When it should have been sent.
    pub due_us: u64,
    /// Its first receiver got it.
    pub first_us: u64,
    /// Its last receiver got it.
    pub last_us: u64,
}

/// One message as it arrived at a client.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// Conversation id in it.
    pub conversation: &'a str,
    /// Its number there.
    pub seq: u64,
    /// See [`Header`].
    pub payload: &'a [u8],
    /// When, in microseconds since boot.
    pub now_us: u64,
}

impl Ledger {
    /// For the messages of `schedule`, which starts at `start_us` since boot.
    pub fn new(world: &World, schedule: &Schedule, start_us: u64) -> Self {
        let count = schedule.messages.len();
        Ledger {
            run: schedule.run(world),
            first_us: vec![u64::MAX; count],
            fates: vec![Fate::Unsent; count],
            received: vec![0; count],
            last_us: vec![0; count],
            seqs: vec![0; count],
            start_us,
            latency: histogram(),
            by_size: BTreeMap::new(),
            duplicates: 0,
            out_of_order: 0,
            misrouted: 0,
            foreign: 0,
            late_sends: 0,
            late_us_max: 0,
        }
    }

    /// A message left `late_us` after it was due.
    pub fn sent(&mut self, message: u32, late_us: u64) {
        self.fates[message as usize] = Fate::Sent;
        self.late_us_max = self.late_us_max.max(late_us);
        if late_us > crate::limits::LATE_US {
            self.late_sends += 1;
        }
    }

    /// What became of a message so far, as this thread knows.
    pub fn fate(&self, message: u32) -> Fate {
        self.fates[message as usize]
    }

    /// The server answered.
    pub fn answered(&mut self, message: u32, fate: Fate) {
        self.fates[message as usize] = fate;
    }

    /// A delivery arrived at `client`. Returns whether it is one that the message's senders wait for.
    pub fn delivered(
        &mut self,
        world: &World,
        tracks: &mut Vec<Track>,
        client: u32,
        delivery: Delivery<'_>,
    ) -> bool {
        let Delivery { conversation, seq, payload, now_us } = delivery;
        let Some(header) = Header::decode(payload) else {
            self.foreign += 1;
            return false;
        };
        let message = header.message as usize;
        if header.run != self.run || message >= self.received.len() {
            self.foreign += 1;
            return false;
        }
        let rightly = world.name(header.conversation) == Some(conversation)
            && world.is_member(header.conversation, client)
            && header.sender != client;
        if !rightly {
            self.misrouted += 1;
            return false;
        }
        let track = match tracks.iter_mut().position(|t| t.conversation == header.conversation) {
            Some(at) => &mut tracks[at],
            None => {
                tracks.reserve_exact(1);
                tracks.push(Track { conversation: header.conversation, before: 0, last: 0 });
                let at = tracks.len() - 1;
                &mut tracks[at]
            }
        };
        match track.arrive(seq) {
            Arrival::Again => {
                self.duplicates += 1;
                return false;
            }
            Arrival::Late => self.out_of_order += 1,
            Arrival::InOrder => {}
        }
        if self.seqs[message] == 0 {
            self.seqs[message] = seq;
        } else if self.seqs[message] != seq {
            // The server took it twice. Counted as a delivery, it would hide a loss elsewhere.
            self.duplicates += 1;
            return false;
        }
        self.received[message] += 1;
        self.first_us[message] = self.first_us[message].min(now_us);
        self.last_us[message] = self.last_us[message].max(now_us);
        let latency_us = now_us.saturating_sub(header.due_us);
        self.latency.saturating_record(latency_us);
        let members = world.members(header.conversation);
        self.by_size.entry(members).or_insert_with(histogram).saturating_record(latency_us);
        true
    }

    /// Takes in the books of another load thread of the same run.
    pub fn merge(&mut self, other: &Ledger) {
        for (mine, theirs) in self.fates.iter_mut().zip(&other.fates) {
            *mine = (*mine).max(*theirs);
        }
        for (mine, theirs) in self.received.iter_mut().zip(&other.received) {
            *mine += theirs;
        }
        for (mine, theirs) in self.first_us.iter_mut().zip(&other.first_us) {
            *mine = (*mine).min(*theirs);
        }
        for (mine, theirs) in self.last_us.iter_mut().zip(&other.last_us) {
            *mine = (*mine).max(*theirs);
        }
        for (mine, theirs) in self.seqs.iter_mut().zip(&other.seqs) {
            self.duplicates += u64::from(*mine != 0 && *theirs != 0 && *mine != *theirs);
            *mine = (*mine).max(*theirs);
        }
        self.latency.add(&other.latency).expect("histograms of the same shape");
        for (members, latency) in &other.by_size {
            let mine = self.by_size.entry(*members).or_insert_with(histogram);
            mine.add(latency).expect("histograms of the same shape");
        }
        self.duplicates += other.duplicates;
        self.out_of_order += other.out_of_order;
        self.misrouted += other.misrouted;
        self.foreign += other.foreign;
        self.late_sends += other.late_sends;
        self.late_us_max = self.late_us_max.max(other.late_us_max);
    }

    /// When a message was due, and when its first and last receivers got it, in microseconds since boot; `None` when
    /// not all of them did. Call on merged books.
    pub fn span(&self, world: &World, schedule: &Schedule, message: u32) -> Option<Span> {
        let number = message as usize;
        let due = schedule.messages.get(number)?;
        let reached = self.fates[number] == Fate::Acked
            && self.received[number] == world.members(due.conversation).saturating_sub(1);
        reached.then(|| Span {
            due_us: self.start_us + due.at_us,
            first_us: self.first_us[number],
            last_us: self.last_us[number],
        })
    }

    /// Adds it all up. Call on merged books.
    pub fn account(&self, world: &World, schedule: &Schedule) -> Account {
        let mut account = Account {
            sent: 0,
            unsent: 0,
            unacknowledged: 0,
            refused: 0,
            expected: 0,
            deliveries: 0,
            lost: 0,
            last_receiver: BTreeMap::new(),
        };
        for (number, due) in schedule.messages.iter().enumerate() {
            match self.fates[number] {
                Fate::Unsent => {
                    account.unsent += 1;
                    continue;
                }
                Fate::Sent => account.unacknowledged += 1,
                Fate::Refused => account.refused += 1,
                Fate::Acked => {}
            }
            account.sent += 1;
            if self.fates[number] != Fate::Acked {
                continue;
            }
            let members = world.members(due.conversation);
            let expected = u64::from(members - 1);
            let received = u64::from(self.received[number]);
            account.expected += expected;
            account.deliveries += received;
            account.lost += expected.saturating_sub(received);
            if received == expected {
                let took = self.last_us[number].saturating_sub(self.start_us + due.at_us);
                account.last_receiver.entry(members).or_insert_with(histogram).saturating_record(took);
            }
        }
        account
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Due;

    #[test]
    fn a_track_tells_order_repeats_and_gaps_apart() {
        use Arrival::*;
        let mut track = Track { conversation: 0, before: 0, last: 0 };
        for (seq, expected) in [
            (5, InOrder),
            (6, InOrder),
            (6, Again),
            (5, Again),
            (9, InOrder),
            (7, Late),
            (7, Again),
            (8, Late),
            (73, InOrder),
            (9, Again),
            (138, InOrder),
            (73, Late),
            (74, Late),
            (74, Again),
        ] {
            assert_eq!(track.arrive(seq), expected, "seq {seq}");
        }
    }

    fn run(deliveries: &[(u32, u64)]) -> (Ledger, Account) {
        let numbered: Vec<_> = deliveries.iter().map(|&(client, now_us)| (client, 1, now_us)).collect();
        run_numbered(&numbered)
    }

    fn run_numbered(deliveries: &[(u32, u64, u64)]) -> (Ledger, Account) {
        // One room of four, one message from client 0, due at 100 us after 1,000.
        let world = World::new(3, 4, true, &[], 0);
        let schedule = Schedule { messages: vec![Due { at_us: 100, conversation: 0, sender: 0 }], nth: 0 };
        let mut ledger = Ledger::new(&world, &schedule, 1_000);
        ledger.sent(0, 5_000);
        ledger.answered(0, Fate::Acked);
        let payload = Header { run: 3, message: 0, conversation: 0, sender: 0, due_us: 1_100 }.encode(64);
        let mut tracks = vec![Vec::new(); 5];
        for &(client, seq, now_us) in deliveries {
            let tracks = &mut tracks[client as usize];
            let delivery = Delivery { conversation: "r:00000003", seq, payload: &payload, now_us };
            ledger.delivered(&world, tracks, client, delivery);
        }
        let account = ledger.account(&world, &schedule);
        (ledger, account)
    }

    #[test]
    fn everyone_once_is_clean() {
        let (ledger, account) = run(&[(1, 1_200), (2, 1_400), (3, 1_300)]);
        assert_eq!((account.expected, account.deliveries, account.lost), (3, 3, 0));
        assert_eq!((ledger.duplicates, ledger.out_of_order, ledger.misrouted), (0, 0, 0));
        assert_eq!((ledger.latency.max(), account.last_receiver[&4].max()), (300, 300));
        assert_eq!((ledger.late_sends, ledger.late_us_max), (1, 5_000));
    }

    #[test]
    fn losses_repeats_and_strays_are_seen() {
        // Client 2 gets it twice, client 3 never; the sender and a stranger get it too.
        let (ledger, account) = run(&[(1, 1_200), (2, 1_400), (2, 1_500), (0, 1_300), (4, 1_300)]);
        assert_eq!((account.expected, account.deliveries, account.lost), (3, 2, 1));
        assert_eq!((ledger.duplicates, ledger.misrouted), (1, 2));
        assert!(account.last_receiver.is_empty(), "it has not reached its last receiver");
    }

    #[test]
    fn a_message_that_was_taken_twice_hides_no_loss() {
        let (ledger, account) = run_numbered(&[(1, 1, 1_200), (1, 2, 1_300), (2, 1, 1_200), (2, 2, 1_300)]);
        assert_eq!((account.deliveries, account.lost, ledger.duplicates), (2, 1, 2));
    }

    #[test]
    fn what_never_left_is_told() {
        let world = World::new(3, 4, true, &[], 0);
        let due = |at_us| Due { at_us, conversation: 0, sender: 0 };
        let schedule = Schedule { messages: vec![due(100), due(200)], nth: 0 };
        let mut ledger = Ledger::new(&world, &schedule, 1_000);
        ledger.sent(0, 0);
        let account = ledger.account(&world, &schedule);
        assert_eq!((account.sent, account.unsent, account.unacknowledged), (1, 1, 1));
    }

    #[test]
    fn books_of_threads_add_up() {
        let (mut one, _) = run(&[(1, 1_200)]);
        let (two, _) = run(&[(2, 1_900), (3, 1_300)]);
        one.merge(&two);
        let world = World::new(3, 4, true, &[], 0);
        let schedule = Schedule { messages: vec![Due { at_us: 100, conversation: 0, sender: 0 }], nth: 0 };
        let account = one.account(&world, &schedule);
        assert_eq!((account.deliveries, account.lost, account.last_receiver[&4].max()), (3, 0, 800));
        let span = Span { due_us: 1_100, first_us: 1_200, last_us: 1_900 };
        assert_eq!(one.span(&world, &schedule, 0), Some(span));
        assert_eq!(two.span(&world, &schedule, 0), None, "client 1 is missing there");
    }
}
