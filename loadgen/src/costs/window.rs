//! The messages of one sender to one conversation that wait for their answers. No sockets and no clock.
//!
//! The rule of the protocol: what was refused for now is sent again with the same number, the oldest first and the later
//! ones behind it; so nothing new goes until all that was refused went again.

use std::collections::VecDeque;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Item {
    number: u64,
    /// When it was sent the first time.
    sent_us: u64,
    is_refused: bool,
}

/// A sender's window.
#[derive(Clone, Debug)]
pub(super) struct Window {
    size: usize,
    items: VecDeque<Item>,
    next: u64,
    /// The last that may be sent.
    last: u64,
    /// What was refused may go again then.
    again_us: u64,
}

impl Window {
    /// Messages 1 to `last`, at most `size` at a time.
    pub(super) fn new(size: usize, last: u64) -> Self {
        Window { size, items: VecDeque::new(), next: 1, last, again_us: 0 }
    }

    /// The number of a message to be sent now, until there is none.
    pub(super) fn due(&mut self, now_us: u64) -> Option<u64> {
        let refused = self.items.iter_mut().filter(|item| item.is_refused).count();
        if refused > 0 {
            // Those under way may be refused too, and must not be overtaken: all are waited for.
            let begun = self.again_us == u64::MAX;
            if !begun && (refused < self.items.len() || now_us < self.again_us) {
                return None;
            }
            self.again_us = if refused > 1 { u64::MAX } else { 0 };
            let item = self.items.iter_mut().find(|item| item.is_refused)?;
            item.is_refused = false;
            return Some(item.number);
        }
        if self.items.len() >= self.size || self.next > self.last {
            return None;
        }
        let number = self.next;
        self.next += 1;
        self.items.push_back(Item { number, sent_us: now_us, is_refused: false });
        Some(number)
    }

    /// A message is stored. Returns when it was sent first; `None` when it was not under way.
    pub(super) fn acknowledged(&mut self, number: u64) -> Option<u64> {
        let at = self.items.iter().position(|item| item.number == number && !item.is_refused)?;
        self.items.remove(at).map(|item| item.sent_us)
    }

    /// A message was refused, and may go again at that time.
    pub(super) fn refused(&mut self, number: u64, again_us: u64) {
        if let Some(item) = self.items.iter_mut().find(|item| item.number == number) {
            item.is_refused = true;
            self.again_us = match self.again_us {
                u64::MAX => again_us,
                before => before.max(again_us),
            };
        }
    }

    /// No new ones from now on.
    pub(super) fn stop(&mut self) {
        self.last = self.next - 1;
    }

    /// Whether all that was sent is answered, and nothing more is to be sent.
    pub(super) fn is_done(&self) -> bool {
        self.items.is_empty() && self.next > self.last
    }

    /// Messages without an answer so far.
    pub(super) fn unanswered(&self) -> u64 {
        self.items.len() as u64
    }

    /// Messages that were sent.
    pub(super) fn sent(&self) -> u64 {
        self.next - 1
    }
}

/// What a receiver has of messages 1, 2, 3, ….
#[derive(Clone, Debug, Default)]
pub(super) struct Arrivals {
    /// All up to this one are here.
    pub(super) whole: u64,
    /// And these, which came early.
    ahead: std::collections::BTreeSet<u64>,
    /// Those that came once too often.
    pub(super) repeats: u64,
}

impl Arrivals {
    /// One came. Returns whether it is new.
    pub(super) fn take(&mut self, number: u64) -> bool {
        if number <= self.whole || (number > self.whole + 1 && !self.ahead.insert(number)) {
            self.repeats += 1;
            return false;
        }
        if number == self.whole + 1 {
            self.whole = number;
            while self.ahead.remove(&(self.whole + 1)) {
                self.whole += 1;
            }
        }
        true
    }

    /// How many came.
    pub(super) fn count(&self) -> u64 {
        self.whole + self.ahead.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(window: &mut Window, now_us: u64) -> Vec<u64> {
        std::iter::from_fn(|| window.due(now_us)).collect()
    }

    #[test]
    fn a_window_is_kept_full() {
        let mut window = Window::new(2, 3);
        assert_eq!(due(&mut window, 10), [1, 2]);
        assert_eq!(window.acknowledged(2), Some(10));
        assert_eq!(window.acknowledged(2), None);
        assert_eq!(due(&mut window, 20), [3]);
        assert!(!window.is_done());
        assert_eq!((window.acknowledged(1), window.acknowledged(3)), (Some(10), Some(20)));
        assert!(window.is_done() && window.sent() == 3);
    }

    #[test]
    fn what_was_refused_goes_again_in_order_and_first() {
        let mut window = Window::new(3, 9);
        assert_eq!(due(&mut window, 0), [1, 2, 3]);
        window.refused(1, 50);
        window.refused(2, 40);
        // The third is under way still.
        assert_eq!(due(&mut window, 60), [0; 0]);
        window.refused(3, 0);
        assert_eq!(due(&mut window, 49), [0; 0]);
        assert_eq!(due(&mut window, 50), [1, 2, 3]);
        assert_eq!(window.acknowledged(1), Some(0));
        window.refused(2, 70);
        assert_eq!(window.acknowledged(3), Some(0));
        assert_eq!(due(&mut window, 69), [0; 0]);
        assert_eq!(due(&mut window, 70), [2, 4, 5]);
    }

    #[test]
    fn a_stopped_one_sends_nothing_new() {
        let mut window = Window::new(4, u64::MAX);
        assert_eq!(due(&mut window, 0), [1, 2, 3, 4]);
        window.stop();
        window.acknowledged(1);
        assert_eq!(due(&mut window, 1), [0; 0]);
        assert_eq!((window.sent(), window.unanswered()), (4, 3));
    }

    #[test]
    fn arrivals_are_counted_once() {
        let mut arrivals = Arrivals::default();
        let new: Vec<bool> = [1, 3, 3, 2, 1, 5].into_iter().map(|number| arrivals.take(number)).collect();
        assert_eq!(new, [true, true, false, true, false, true]);
        assert_eq!((arrivals.whole, arrivals.count(), arrivals.repeats), (3, 4, 2));
    }
}
