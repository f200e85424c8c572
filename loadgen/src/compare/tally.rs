//! The books of one fan-out: who got what, how late.
//!
//! Memory is bounded by the number of messages (12 B each) and one number a subscriber, which its owner keeps. The
//! rule: a delivery counts once for each subscriber and message.

use hdrhistogram::Histogram;

use crate::measure::histogram;
use crate::payload::Header;

/// Counts deliveries of the messages of one run.
#[derive(Debug)]
pub struct Tally {
    run: u32,
    subscribers: u32,
    received: Vec<u32>,
    last_us: Vec<u64>,
    due_us: Vec<u64>,
    /// Deliveries that counted.
    pub deliveries: u64,
    /// When the latest of them came, in microseconds since boot; 0: none did.
    pub latest_us: u64,
    /// All of them, from when they were due, in microseconds.
    pub latency: Histogram<u64>,
    /// Deliveries of what the subscriber had already.
    pub duplicates: u64,
    /// Deliveries after a later one.
    pub out_of_order: u64,
    /// Payloads that are not of this run.
    pub foreign: u64,
}

impl Tally {
    /// For `messages` messages to `subscribers`. They carry `run`.
    pub fn new(run: u32, messages: u32, subscribers: u32) -> Self {
        let count = messages as usize;
        Tally {
            run,
            subscribers,
            received: vec![0; count],
            last_us: vec![0; count],
            due_us: vec![0; count],
            deliveries: 0,
            latest_us: 0,
            latency: histogram(),
            duplicates: 0,
            out_of_order: 0,
            foreign: 0,
        }
    }

    /// The run that messages carry.
    pub fn run(&self) -> u32 {
        self.run
    }

    /// How many messages it is for.
    pub fn messages(&self) -> u32 {
        self.received.len() as u32
    }

    /// Deliveries if nothing is lost.
    pub fn expected(&self) -> u64 {
        u64::from(self.messages()) * u64::from(self.subscribers)
    }

    /// A payload arrived at a subscriber, whose highest message so far (and 1) is `next`.
    pub fn delivered(&mut self, next: &mut u32, payload: &[u8], now_us: u64) {
        let ours = |header: &Header| header.run == self.run && header.message < self.messages();
        let Some(header) = Header::decode(payload).filter(ours) else {
            self.foreign += 1;
            return;
        };
        if header.message < *next {
            // Servers keep the order of one connection, so this is nearly always one that came before.
            if header.message + 1 == *next {
                self.duplicates += 1;
            } else {
                self.out_of_order += 1;
            }
            return;
        }
        *next = header.message + 1;
        let message = header.message as usize;
        self.received[message] += 1;
        self.deliveries += 1;
        self.latest_us = now_us;
        self.due_us[message] = header.due_us;
        self.last_us[message] = self.last_us[message].max(now_us);
        self.latency.saturating_record(now_us.saturating_sub(header.due_us));
    }

    /// Time from due to the last receiver in microseconds, of the messages that reached all.
    pub fn last_receivers(&self) -> Histogram<u64> {
        let mut times = histogram();
        for (message, &received) in self.received.iter().enumerate() {
            if received >= self.subscribers {
                times.saturating_record(self.last_us[message].saturating_sub(self.due_us[message]));
            }
        }
        times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_each_delivery_once_and_finds_the_last_receiver() {
        let mut tally = Tally::new(7, 2, 2);
        let payload =
            |run, message, due_us| Header { run, message, conversation: 0, sender: 0, due_us }.encode(40);
        let (mut first, mut second) = (0, 0);
        tally.delivered(&mut first, &payload(7, 0, 100), 150);
        tally.delivered(&mut second, &payload(7, 0, 100), 190);
        tally.delivered(&mut first, &payload(7, 1, 200), 230);
        tally.delivered(&mut first, &payload(7, 1, 200), 240);
        tally.delivered(&mut first, &payload(7, 0, 100), 250);
        tally.delivered(&mut first, &payload(6, 0, 100), 260);
        tally.delivered(&mut first, &payload(7, 2, 100), 260);
        tally.delivered(&mut first, b"short", 260);
        assert_eq!((tally.deliveries, tally.expected(), tally.latest_us), (3, 4, 230));
        assert_eq!((tally.duplicates, tally.out_of_order, tally.foreign), (1, 1, 3));
        let last = tally.last_receivers();
        assert_eq!((last.len(), last.max()), (1, 90));
        assert_eq!(tally.latency.max(), 90);
    }
}
