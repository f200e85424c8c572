//! What a run showed: one structure, which is the JSON, and the arithmetic of its figures.
//!
//! The rule: what could not be measured is absent, never 0; a message that was lost or came twice fails the run.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::fleet::Counters;
use super::store::Store;
use crate::measure::{Machine, Percentiles};

/// CPU of each process, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Cpu {
    /// Of the gateway.
    pub gateway_us: u64,
    /// Of the dispatcher, the embedded store in it included.
    pub dispatcher_us: u64,
    /// Of Redis and its replica; 0 where there is none.
    pub redis_us: u64,
}

impl Cpu {
    pub(super) fn since(self, before: Cpu) -> Cpu {
        Cpu {
            gateway_us: self.gateway_us.saturating_sub(before.gateway_us),
            dispatcher_us: self.dispatcher_us.saturating_sub(before.dispatcher_us),
            redis_us: self.redis_us.saturating_sub(before.redis_us),
        }
    }

    pub(super) fn plus(self, other: Cpu) -> Cpu {
        Cpu {
            gateway_us: self.gateway_us + other.gateway_us,
            dispatcher_us: self.dispatcher_us + other.dispatcher_us,
            redis_us: self.redis_us + other.redis_us,
        }
    }

    /// CPU seconds for a thousand of `count`.
    fn per_1000(self, count: u64) -> PerThousand {
        let each = |us: u64| us as f64 / 1e6 / (count as f64).max(1.0) * 1e3;
        PerThousand {
            gateway_s: each(self.gateway_us),
            dispatcher_s: each(self.dispatcher_us),
            redis_s: each(self.redis_us),
        }
    }
}

/// CPU seconds of each process for a thousand messages.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct PerThousand {
    pub gateway_s: f64,
    pub dispatcher_s: f64,
    pub redis_s: f64,
}

/// What was counted while senders kept their windows full.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) acknowledged: u64,
    pub(super) took_us: u64,
    pub(super) ack_us: Histogram<u64>,
    pub(super) cpu: Cpu,
    pub(super) before: Counters,
    pub(super) after: Counters,
    pub(super) deliveries: Deliveries,
}

/// What became of all messages of a part, those before and after the measured time included.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Deliveries {
    /// Messages that were sent, once for each who listens.
    pub expected: u64,
    /// That came.
    pub came: u64,
    /// That came once too often.
    pub repeated: u64,
    /// Gaps that were announced.
    pub gaps: u64,
    /// Messages without an answer at the end.
    pub unanswered: u64,
}

impl Deliveries {
    /// Those that did not come.
    pub fn lost(&self) -> u64 {
        self.expected.saturating_sub(self.came)
    }

    fn faults(&self, part: &str, faults: &mut Vec<String>) {
        if self.lost() > 0 {
            faults.push(format!("{part}: {} of {} deliveries lost", self.lost(), self.expected));
        }
        if self.repeated > 0 {
            faults.push(format!("{part}: {} deliveries came twice", self.repeated));
        }
        if self.gaps > 0 {
            faults.push(format!("{part}: {} gaps were announced", self.gaps));
        }
        if self.unanswered > 0 {
            faults.push(format!("{part}: {} messages were not answered", self.unanswered));
        }
    }
}

/// Messages sent as fast as they are acknowledged.
#[derive(Clone, Debug, Serialize)]
pub struct Flow {
    /// In the measured time.
    pub acknowledged: u64,
    /// That time.
    pub seconds: f64,
    /// In all.
    pub acknowledged_per_s: f64,
    /// For each second of CPU that gateway and dispatcher used together; Redis has its own.
    pub acknowledged_per_s_per_core: Option<f64>,
    /// From the first sending of a message to its acknowledgement, in microseconds.
    pub ack_us: Percentiles,
    /// Messages in each batch that the dispatcher's core handed to its store.
    pub messages_per_batch: Option<f64>,
    /// Messages in each round of the store: what is written, and synced, at once.
    pub messages_per_round: Option<f64>,
    /// CPU of that time.
    pub cpu: Cpu,
    /// The same for a thousand messages.
    pub cpu_per_1000: PerThousand,
    /// Of the whole part.
    pub deliveries: Deliveries,
}

impl Flow {
    pub(super) fn of(counted: &Counted) -> Flow {
        let seconds = counted.took_us as f64 / 1e6;
        let servers_s = (counted.cpu.gateway_us + counted.cpu.dispatcher_us) as f64 / 1e6;
        let messages = counted.after.messages.saturating_sub(counted.before.messages);
        let in_each = |after: u64, before: u64| {
            let count = after.saturating_sub(before);
            (count > 0).then(|| messages as f64 / count as f64)
        };
        Flow {
            acknowledged: counted.acknowledged,
            seconds,
            acknowledged_per_s: counted.acknowledged as f64 / seconds.max(1e-6),
            acknowledged_per_s_per_core: (servers_s > 0.0).then(|| counted.acknowledged as f64 / servers_s),
            ack_us: Percentiles::of(&counted.ack_us),
            messages_per_batch: in_each(counted.after.batches, counted.before.batches),
            messages_per_round: in_each(counted.after.rounds, counted.before.rounds),
            cpu: counted.cpu,
            cpu_per_1000: counted.cpu.per_1000(counted.acknowledged),
            deliveries: counted.deliveries,
        }
    }
}

/// Times of some repeats, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Spread {
    pub median: u64,
    pub max: u64,
}

impl Spread {
    pub(super) fn of(mut us: Vec<u64>) -> Spread {
        us.sort_unstable();
        let at = |index: usize| us.get(index).copied().unwrap_or(0);
        Spread { median: at(us.len().saturating_sub(1) / 2), max: at(us.len().saturating_sub(1)) }
    }
}

/// A device reads what it missed.
#[derive(Clone, Debug, Serialize)]
pub struct CatchUp {
    /// That were missed.
    pub messages: u64,
    /// Devices that did so, one after the other.
    pub repeats: u64,
    /// From the first Sync to the last page.
    pub wall_us: Spread,
    /// By the median.
    pub messages_per_s: f64,
    /// CPU for a thousand messages, over all repeats.
    pub cpu_per_1000: PerThousand,
    /// Of all repeats.
    pub deliveries: Deliveries,
}

impl CatchUp {
    pub(super) fn of(messages: u64, walls_us: Vec<u64>, cpu: Cpu, deliveries: Deliveries) -> CatchUp {
        let (repeats, wall_us) = (walls_us.len() as u64, Spread::of(walls_us));
        CatchUp {
            messages,
            repeats,
            wall_us,
            messages_per_s: messages as f64 / (wall_us.median as f64 / 1e6).max(1e-6),
            cpu_per_1000: cpu.per_1000(messages * repeats),
            deliveries,
        }
    }
}

/// A user with many conversations logs in on a new device.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LogIn {
    /// All with news.
    pub conversations: u64,
    /// Unread, in each.
    pub messages_each: u64,
    /// Logins, one after the other.
    pub repeats: u64,
    /// From the begin of the connect to LoginAck.
    pub from_connect_us: Spread,
    /// From the Login frame to LoginAck.
    pub login_us: Spread,
    /// From the Login frame until the list is there, with last message and unread count of all.
    pub listed_us: Spread,
    /// From the Login frame until all news are read.
    pub read_us: Spread,
    /// CPU seconds for a thousand such logins, news read.
    pub cpu_per_1000: PerThousand,
    /// Of all repeats.
    pub deliveries: Deliveries,
}

/// One login.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OneLogIn {
    pub(super) from_connect_us: u64,
    pub(super) login_us: u64,
    pub(super) listed_us: u64,
    pub(super) read_us: u64,
}

impl LogIn {
    pub(super) fn of(
        conversations: u64,
        messages_each: u64,
        all: &[OneLogIn],
        cpu: Cpu,
        deliveries: Deliveries,
    ) -> LogIn {
        let spread = |of: fn(&OneLogIn) -> u64| Spread::of(all.iter().map(of).collect());
        LogIn {
            conversations,
            messages_each,
            repeats: all.len() as u64,
            from_connect_us: spread(|one| one.from_connect_us),
            login_us: spread(|one| one.login_us),
            listed_us: spread(|one| one.listed_us),
            read_us: spread(|one| one.read_us),
            cpu_per_1000: cpu.per_1000(all.len() as u64),
            deliveries,
        }
    }
}

/// All parts on one store; those that did not come to an end are absent.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct OfStore {
    pub store: Store,
    pub durability: &'static str,
    pub direct: Option<Flow>,
    pub group: Option<Flow>,
    pub catch_up: Option<CatchUp>,
    pub log_in: Option<LogIn>,
    /// Why the rest is absent.
    pub trouble: Option<String>,
}

/// What a run showed.
#[derive(Clone, Debug, Serialize)]
pub struct CostsReport {
    /// As it is called.
    pub scenario: &'static str,
    /// The command, for who wants to see it again.
    pub command: String,
    /// The software.
    pub version: &'static str,
    /// What it ran on.
    pub machine: Machine,
    /// Pairs of the direct part.
    pub pairs: u32,
    /// Groups of the group part, of ten members each.
    pub groups: u32,
    /// Messages that each sender has under way.
    pub window: usize,
    /// Bytes of a message's payload.
    pub payload_bytes: usize,
    /// In the order of their run.
    pub stores: Vec<OfStore>,
    /// Stores that this machine can't run, and why.
    pub left_out: BTreeMap<Store, String>,
    /// By Ctrl-C.
    pub interrupted: bool,
}

impl CostsReport {
    /// What was wrong with the run, in words; empty: nothing.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.stores.is_empty() {
            faults.push("this machine has none of the stores".to_owned());
        }
        for of in &self.stores {
            let store = of.store;
            let parts = [
                ("direct", of.direct.as_ref().map(|flow| flow.deliveries)),
                ("group", of.group.as_ref().map(|flow| flow.deliveries)),
                ("sync", of.catch_up.as_ref().map(|catch_up| catch_up.deliveries)),
                ("login", of.log_in.as_ref().map(|log_in| log_in.deliveries)),
            ];
            for (part, deliveries) in parts {
                deliveries.inspect(|all| all.faults(&format!("{store}, {part}"), &mut faults));
            }
            faults.extend(of.trouble.iter().map(|trouble| format!("{store}: {trouble}")));
        }
        faults
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::measure::histogram;

    pub(in crate::costs) fn counted() -> Counted {
        let mut ack_us = histogram();
        ack_us.saturating_record(1_500);
        Counted {
            acknowledged: 3_000,
            took_us: 2_000_000,
            ack_us,
            cpu: Cpu { gateway_us: 200_000, dispatcher_us: 400_000, redis_us: 900_000 },
            before: Counters { messages: 100, batches: 10, rounds: 10 },
            after: Counters { messages: 3_100, batches: 760, rounds: 310 },
            deliveries: Deliveries { expected: 3_500, came: 3_500, ..Deliveries::default() },
        }
    }

    #[test]
    fn a_core_is_a_second_of_gateway_and_dispatcher() {
        let flow = Flow::of(&counted());
        let near = |figure: f64, expected: f64| assert!((figure - expected).abs() < 1e-9, "{figure}");
        near(flow.acknowledged_per_s, 1_500.0);
        near(flow.acknowledged_per_s_per_core.unwrap(), 5_000.0);
        near(flow.messages_per_batch.unwrap(), 4.0);
        near(flow.messages_per_round.unwrap(), 10.0);
        near(flow.cpu_per_1000.redis_s, 0.3);
        let idle = Counted { cpu: Cpu::default(), after: counted().before, ..counted() };
        let flow = Flow::of(&idle);
        assert!(flow.acknowledged_per_s_per_core.is_none() && flow.messages_per_batch.is_none());
    }

    #[test]
    fn the_lower_of_two_is_the_median() {
        assert_eq!(Spread::of(vec![9, 1]), Spread { median: 1, max: 9 });
        assert_eq!(Spread::of(vec![9, 1, 5]), Spread { median: 5, max: 9 });
        assert_eq!(Spread::of(Vec::new()), Spread::default());
        let catch_up =
            CatchUp::of(10_000, vec![500_000, 400_000, 900_000], Cpu::default(), Deliveries::default());
        assert!((catch_up.messages_per_s - 20_000.0).abs() < 1e-6);
    }

    #[test]
    fn what_is_lost_or_repeated_is_a_fault() {
        let mut faults = Vec::new();
        Deliveries { expected: 5, came: 5, ..Deliveries::default() }.faults("x", &mut faults);
        assert_eq!(faults.len(), 0);
        Deliveries { expected: 5, came: 4, repeated: 1, gaps: 1, unanswered: 1 }.faults("x", &mut faults);
        assert_eq!(faults.len(), 4);
    }
}
