//! Probes: pairs that write to each other at a fixed rate, whatever else goes on. Their latency shows how the others
//! fare.
//!
//! They have a load thread of their own, so that a client that is busy reading a fan-out does not delay the reading of
//! a probe. The rule: a probe's latency counts from when it was due.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use millrace_edge::clock::boot_us;
use serde::Serialize;

use super::Settings;
use crate::clients::{Crew, Manner, Order, Setup};
use crate::ledger::{Ledger, Span};
use crate::limits::STRAGGLERS_US;
use crate::measure::{Percentiles, histogram};
use crate::rig::RunError;
use crate::rng::Rng;
use crate::schedule::{Schedule, Stream};
use crate::tokens::Signer;
use crate::watch::{LOOK, Watch};
use crate::world::World;

/// Pairs among whom the messages go in turn.
pub(super) const PAIRS: u32 = 100;

/// All probes are logged in within this time.
const UP_WITHIN: Duration = Duration::from_secs(30);

/// Clients that write to each other through one gateway.
pub(super) struct Probe {
    crew: Crew,
    world: Arc<World>,
    rate: f64,
    /// Schedules so far.
    schedules: u32,
}

/// A schedule of direct messages under way.
pub(super) struct Flight {
    schedule: Arc<Schedule>,
    end_us: u64,
}

/// What became of direct messages.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Direct {
    /// Messages that were due.
    pub messages: u64,
    /// Of these, acknowledged.
    pub acknowledged: u64,
    /// Of these, delivered.
    pub delivered: u64,
    /// Of the acknowledged, not delivered.
    pub lost: u64,
    /// Deliveries that came once too often, and those after a later one.
    pub duplicates: u64,
    /// See `duplicates`.
    pub out_of_order: u64,
    /// Of the deliveries, from due, in microseconds.
    pub latency_us: Percentiles,
    /// All of them.
    #[serde(skip)]
    pub histogram: Option<Histogram<u64>>,
    /// When each that arrived was due, and when it did.
    #[serde(skip)]
    pub spans: Vec<Span>,
}

impl Direct {
    /// Latency of those that were due while one of `others` was under way, in microseconds.
    pub(super) fn during(&self, others: &[Span]) -> Histogram<u64> {
        let mut latency = histogram();
        for span in &self.spans {
            if others.iter().any(|other| (other.due_us..=other.last_us).contains(&span.due_us)) {
                latency.saturating_record(span.last_us.saturating_sub(span.due_us));
            }
        }
        latency
    }
}

impl Probe {
    /// Logs all of them in at the gateway.
    pub(super) fn start(
        settings: &Settings,
        signer: &Signer,
        target: SocketAddr,
        watch: &mut Watch,
    ) -> Result<Self, RunError> {
        let world = Arc::new(World::new(Rng::from_system().bits() as u32, 2 * PAIRS, false, &[], PAIRS));
        let crew = Crew::start(Setup {
            world: Arc::clone(&world),
            tokens: signer.sign_all(&world, |_| {})?,
            targets: vec![target],
            transport: settings.transport,
            manner: Manner::Session,
            io: settings.io,
            clients: world.clients(),
            threads: 1,
            cpus: Vec::new(),
            payload_bytes: settings.payload_bytes,
            tickets: true,
            founded: true,
            niceness: 0,
        })?;
        crew.order(|| Order::Up { to: world.clients(), per_s: 0.0 })?;
        let all = u64::from(world.clients());
        watch.until(&crew, [], UP_WITHIN, |t| t.inside, |_| String::new(), |t| t.inside == all)?;
        if crew.totals().inside < all && !watch.is_interrupted() {
            let why = crew.first_trouble().unwrap_or_default();
            return Err(RunError::Stuck(format!("the probes are not logged in: {why}")));
        }
        Ok(Probe { crew, world, rate: settings.probe_rate, schedules: 0 })
    }

    /// Has messages sent for so many seconds from now.
    pub(super) fn send(&mut self, seconds: f64) -> Result<Flight, RunError> {
        let streams: Vec<Stream> =
            self.world.classes().iter().map(|&class| Stream { class, per_s: self.rate }).collect();
        let mut schedule = Schedule::even(&self.world, &streams, seconds, Rng::from_system().bits())?;
        schedule.nth = self.schedules;
        self.schedules += 1;
        let schedule = Arc::new(schedule);
        let start_us = boot_us() + 100_000;
        self.crew.order(|| Order::Send { schedule: Arc::clone(&schedule), start_us })?;
        Ok(Flight { schedule, end_us: start_us + (seconds * 1e6) as u64 })
    }

    /// No more than what is due already.
    pub(super) fn cut_short(&self, flight: &mut Flight) -> Result<(), RunError> {
        flight.end_us = boot_us();
        Ok(self.crew.order(|| Order::StopSending)?)
    }

    /// Waits for the end of a flight and the last of its messages, and adds up.
    pub(super) fn collect(&self, flight: &mut Flight, watch: &Watch) -> Result<Direct, RunError> {
        let arrived = || {
            let t = self.crew.totals();
            t.due == t.planned && t.answered == t.due && t.deliveries >= t.expected
        };
        // The thread takes orders in turn, so what it has planned is this flight's, once it has begun.
        while boot_us() < flight.end_us + STRAGGLERS_US && !(arrived() && boot_us() > flight.end_us) {
            if watch.is_interrupted() {
                self.cut_short(flight)?;
                break;
            }
            std::thread::sleep(LOOK);
        }
        let books = self.crew.books()?.ok_or(RunError::NoBooks)?;
        Ok(self.add_up(&flight.schedule, books))
    }

    fn add_up(&self, schedule: &Schedule, books: Ledger) -> Direct {
        let account = books.account(&self.world, schedule);
        let count = schedule.messages.len() as u32;
        Direct {
            messages: account.sent,
            acknowledged: account.expected,
            delivered: account.deliveries,
            lost: account.lost,
            duplicates: books.duplicates,
            out_of_order: books.out_of_order,
            latency_us: Percentiles::of(&books.latency),
            spans: (0..count).filter_map(|number| books.span(&self.world, schedule, number)).collect(),
            histogram: Some(books.latency),
        }
    }

    /// Takes the probes down.
    pub(super) fn finish(self) -> Result<(), RunError> {
        self.crew.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_due_meanwhile_counts() {
        let span = |due_us, last_us| Span { due_us, first_us: last_us, last_us };
        let direct = Direct { spans: vec![span(10, 15), span(20, 29), span(40, 90)], ..Direct::default() };
        let latency = direct.during(&[span(18, 25), span(100, 200)]);
        assert_eq!((latency.len(), latency.max()), (1, 9));
    }
}
