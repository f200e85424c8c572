//! When each message is due, and who sends it where: fixed before the clock starts.
//!
//! The load is open-loop: messages are due at their times whether or not earlier ones have arrived, and latency counts
//! from then. The rule: nothing measured may influence this list.

use crate::limits::MESSAGES_MAX;
use crate::rng::Rng;
use crate::world::{Class, World};

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Microseconds after the start.
    pub at_us: u64,
    /// Where, by number in the world.
    pub conversation: u32,
    /// Which client sends it.
    pub sender: u32,
}

/// Messages in the order of their times. A message's number is its place here.
#[derive(Debug, Default)]
pub struct Schedule {
    /// All of them.
    pub messages: Vec<Due>,
    /// Tells it from the others that the same clients send, one after the other.
    pub nth: u32,
}

/// How often something is said in the conversations of a class.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// Where.
    pub class: Class,
    /// Messages a second, over all of them.
    pub per_s: f64,
}

/// A schedule that can't be.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ScheduleError {
    /// More than memory is planned for.
    #[error("{wanted} messages are more than {MESSAGES_MAX}: lower --rate or --seconds")]
    TooMany {
        /// What the rates ask for.
        wanted: u64,
    },
    /// A rate or a duration that is no number above 0.
    #[error("a rate or duration of {0} makes no schedule")]
    NotPositive(f64),
}

impl Schedule {
    /// Evenly spaced messages on each stream, streams out of phase; conversations in turn, senders at random.
    pub fn even(world: &World, streams: &[Stream], seconds: f64, seed: u64) -> Result<Self, ScheduleError> {
        check(seconds, streams.iter().map(|s| s.per_s))?;
        let mut rng = Rng::new(seed);
        let mut messages = Vec::new();
        for (number, stream) in streams.iter().enumerate() {
            let count = (stream.per_s * seconds).floor().max(1.0) as u64;
            let gap_us = 1e6 / stream.per_s;
            // Streams whose rates divide each other would otherwise be due at the same instants for ever.
            let phase = (number as f64 + 0.5) / streams.len() as f64;
            for nth in 0..count {
                let conversation = stream.class.first + (nth % u64::from(stream.class.count)) as u32;
                let at_us = ((nth as f64 + phase) * gap_us) as u64;
                messages.push(Due { at_us, conversation, sender: any_member(world, conversation, &mut rng) });
            }
        }
        Ok(Self::sorted(messages))
    }

    /// People who think: on each conversation of the class, exponential pauses with this mean, and members in turn.
    pub fn thinking(
        world: &World,
        class: Class,
        think_s: f64,
        seconds: f64,
        seed: u64,
    ) -> Result<Self, ScheduleError> {
        check(seconds, [f64::from(class.count) / think_s])?;
        let mut rng = Rng::new(seed);
        let mut messages = Vec::new();
        for conversation in class.first..class.first + class.count {
            let mut at = rng.exponential(think_s);
            let mut turn = rng.below(2) as u32;
            while at < seconds && messages.len() < MESSAGES_MAX {
                messages.push(Due {
                    at_us: (at * 1e6) as u64,
                    conversation,
                    sender: world.member(conversation, turn),
                });
                turn += 1;
                at += rng.exponential(think_s);
            }
        }
        Ok(Self::sorted(messages))
    }

    /// What its messages say that they belong to.
    pub fn run(&self, world: &World) -> u32 {
        world.run().wrapping_add(self.nth)
    }

    fn sorted(mut messages: Vec<Due>) -> Self {
        messages.sort_by_key(|due| due.at_us);
        Schedule { messages, nth: 0 }
    }
}

fn any_member(world: &World, conversation: u32, rng: &mut Rng) -> u32 {
    world.member(conversation, rng.below(u64::from(world.members(conversation))) as u32)
}

fn check(seconds: f64, rates: impl IntoIterator<Item = f64>) -> Result<(), ScheduleError> {
    let positive = |value: f64| {
        if value > 0.0 && value.is_finite() { Ok(value) } else { Err(ScheduleError::NotPositive(value)) }
    };
    positive(seconds)?;
    let mut wanted = 0.0;
    for rate in rates {
        wanted += positive(rate)? * seconds;
    }
    if wanted > MESSAGES_MAX as f64 {
        return Err(ScheduleError::TooMany { wanted: wanted as u64 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> World {
        World::new(1, 100, true, &[10], 20)
    }

    #[test]
    fn even_streams_keep_their_rates_and_senders_are_members() {
        let world = world();
        let classes = world.classes();
        let streams: Vec<Stream> =
            classes.iter().zip([2.0, 30.0, 11.0]).map(|(&class, per_s)| Stream { class, per_s }).collect();
        let schedule = Schedule::even(&world, &streams, 10.0, 5).unwrap();
        assert_eq!(schedule.messages.len(), 20 + 300 + 110);
        assert!(schedule.messages.is_sorted_by_key(|due| due.at_us));
        for due in &schedule.messages {
            assert!(due.at_us < 10_000_000 && world.is_member(due.conversation, due.sender));
        }
        let room: Vec<u64> =
            schedule.messages.iter().filter(|due| due.conversation == 0).map(|due| due.at_us).collect();
        assert!(room.windows(2).all(|pair| pair[1] - pair[0] == 500_000), "{room:?}");
    }

    #[test]
    fn thinkers_take_turns_at_the_mean_rate() {
        let world = world();
        let class = *world.classes().last().unwrap();
        let schedule = Schedule::thinking(&world, class, 0.5, 60.0, 3).unwrap();
        let expected = 20.0 * 60.0 / 0.5;
        let count = schedule.messages.len() as f64;
        assert!((count - expected).abs() < expected * 0.1, "{count} messages, about {expected} expected");
        let first: Vec<u32> = schedule
            .messages
            .iter()
            .filter(|due| due.conversation == class.first)
            .map(|due| due.sender)
            .collect();
        assert!(first.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn refuses_what_can_not_be() {
        let world = world();
        let class = world.classes()[0];
        let even =
            |per_s, seconds| Schedule::even(&world, &[Stream { class, per_s }], seconds, 1).map(|_| ());
        assert_eq!(even(0.0, 1.0), Err(ScheduleError::NotPositive(0.0)));
        assert_eq!(even(1.0, -1.0), Err(ScheduleError::NotPositive(-1.0)));
        assert_eq!(even(1e6, 10.0), Err(ScheduleError::TooMany { wanted: 10_000_000 }));
    }
}
