//! Messages to groups of one size and to the room of all, one at a time with a pause between, while probes write.

use std::sync::Arc;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::probe::Direct;
use crate::ledger::{Ledger, Span};
use crate::measure::{Percentiles, histogram};
use crate::rng::Rng;
use crate::schedule::{Due, Schedule};
use crate::world::{Class, World};

/// Deliveries a second that the pauses are made for, when nobody beats: two cores hold it with half of their time to
/// spare. Heartbeats take their part of it: half at [`HALF_AT_SESSIONS`].
const DELIVERIES_PER_S: f64 = 40_000.0;

/// See [`DELIVERIES_PER_S`].
const HALF_AT_SESSIONS: f64 = 400_000.0;

/// Shortest pause between two messages, in s.
const GAP_MIN_S: f64 = 0.1;

/// Messages that are sent to a size at least and at most, whatever the time.
const MESSAGES: (f64, f64) = (2.0, 100.0);

/// What messages to groups of one size showed.
#[derive(Clone, Debug, Serialize)]
pub struct FanOut {
    /// Members of each group, the sender included.
    pub members: u32,
    /// Messages sent.
    pub messages: u64,
    /// Deliveries expected and seen.
    pub expected: u64,
    /// See `expected`.
    pub deliveries: u64,
    /// Messages that did not reach all, refused or never sent ones included.
    pub incomplete: u64,
    /// Deliveries that came once too often, after a later one, or to the wrong client.
    pub misdelivered: u64,
    /// From due to the first receiver, in microseconds, over messages.
    pub first_us: Percentiles,
    /// From due to a receiver, over all deliveries.
    pub receiver_us: Percentiles,
    /// From due to the last receiver, over messages.
    pub last_us: Percentiles,
    /// CPU of the gateway for one delivery, in microseconds, heartbeats of the same time and all else included.
    pub gateway_gross_cpu_us_per_delivery: Option<f64>,
    /// The same less what the time took without the fan-out. Flatters, as wakes of heartbeats are saved while much is
    /// sent; the floor that it is compared with has the same subtracted.
    pub gateway_cpu_us_per_delivery: Option<f64>,
    /// The same of the dispatcher, for one message.
    pub dispatcher_cpu_us_per_message: Option<f64>,
    /// Direct messages that were due while one was under way: how many, and from due.
    pub direct_messages: u64,
    /// See `direct_messages`.
    pub direct_us: Percentiles,
    /// All deliveries.
    #[serde(skip)]
    pub latency: Option<Histogram<u64>>,
}

/// When messages to this class are due over some `length_s`, and how long it really takes, in s. `back_to_back_s` is the
/// time that one takes, if they are to follow each other without a pause.
pub(super) fn plan(
    world: &World,
    class: Class,
    nth: u32,
    length_s: f64,
    back_to_back_s: Option<f64>,
) -> (Arc<Schedule>, f64) {
    let per_s = DELIVERIES_PER_S / (1.0 + f64::from(world.clients()) / HALF_AT_SESSIONS);
    let gap_s = back_to_back_s.unwrap_or(f64::from(class.members) / per_s).max(GAP_MIN_S);
    let count = (length_s / gap_s).clamp(MESSAGES.0, MESSAGES.1) as u32;
    let mut rng = Rng::from_system();
    let messages = (0..count).map(|number| {
        let conversation = class.first + number % class.count;
        let sender = world.member(conversation, rng.below(u64::from(class.members)) as u32);
        Due { at_us: (f64::from(number) * gap_s * 1e6) as u64, conversation, sender }
    });
    (Arc::new(Schedule { messages: messages.collect(), nth }), f64::from(count) * gap_s)
}

/// Adds up one size.
pub(super) fn add_up(
    world: &World,
    class: Class,
    schedule: &Schedule,
    books: Ledger,
    direct: &Direct,
) -> FanOut {
    let account = books.account(world, schedule);
    let spans: Vec<Span> = (0..schedule.messages.len() as u32)
        .filter_map(|number| books.span(world, schedule, number))
        .collect();
    let over = |time: fn(&Span) -> u64| {
        let mut times = histogram();
        spans.iter().for_each(|span| times.saturating_record(time(span).saturating_sub(span.due_us)));
        Percentiles::of(&times)
    };
    let meanwhile = direct.during(&spans);
    FanOut {
        members: class.members,
        messages: account.sent,
        expected: account.expected,
        deliveries: account.deliveries,
        incomplete: (schedule.messages.len() - spans.len()) as u64,
        misdelivered: books.duplicates + books.out_of_order + books.misrouted,
        first_us: over(|span| span.first_us),
        receiver_us: Percentiles::of(&books.latency),
        last_us: over(|span| span.last_us),
        gateway_gross_cpu_us_per_delivery: None,
        gateway_cpu_us_per_delivery: None,
        dispatcher_cpu_us_per_message: None,
        direct_messages: meanwhile.len(),
        direct_us: Percentiles::of(&meanwhile),
        latency: Some(books.latency),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Kind;

    #[test]
    fn pauses_leave_half_of_the_time_and_senders_are_members() {
        let world = World::new(1, 1_000_000, true, &[1_000, 100_000], 0);
        for class in world.classes() {
            let (schedule, seconds) = plan(&world, class, 3, 20.0, None);
            let count = schedule.messages.len();
            assert!((2..=100).contains(&count), "{count}");
            let rate = f64::from(class.members) * count as f64 / seconds;
            let most = DELIVERIES_PER_S / (1.0 + 1e6 / HALF_AT_SESSIONS);
            assert!(rate <= most * 1.01, "{rate}");
            assert!(schedule.messages.iter().all(|due| world.is_member(due.conversation, due.sender)));
            assert_eq!(class.kind == Kind::Room, class.members == 1_000_000);
        }
    }
}
