//! One round of one server: start it, bring all subscribers up, rest, send, and take it down again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use millrace_edge::clock::boot_us;
use serde::Serialize;

use super::Plan;
use super::servers::{Found, Running, Server};
use super::swarm::Swarm;
use crate::limits::STRAGGLERS_US;
use crate::measure::Percentiles;
use crate::progress::Progress;
use crate::rig::RunError;

/// From telling to the first message: a floor reads its task in this time.
const LEAD_US: u64 = 300_000;

/// The round ends this long after its last delivery, so that what a server does afterwards (acknowledgements) is in
/// its figure too.
const TRAIL: Duration = Duration::from_millis(300);

/// A server that is behind is waited for as long as deliveries come, but no longer than this after its last message
/// was due. What has not come then is lost.
const BEHIND_MAX_US: u64 = 60_000_000;

/// All subscribers are up within this time, and as much again for each thousand.
const UP_WITHIN: Duration = Duration::from_secs(15);

/// What one round of one server showed.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Memory of its processes without any client, in bytes.
    pub fixed_bytes: u64,
    /// Memory of one idle subscriber: what all of them add, over their number.
    pub user_bytes_per_subscriber: f64,
    /// CPU of its processes for one connect and subscription, in microseconds.
    pub connect_cpu_us: f64,
    /// Subscribers a second as they came up, as fast as they were let.
    pub connects_per_s: f64,
    /// CPU of its processes in silence with all subscribers, in microseconds per second.
    pub idle_cpu_us_per_s: f64,
    /// CPU of its processes while it sent, less what silence costs, over deliveries.
    pub cpu_us_per_delivery: Option<f64>,
    /// The same with what silence costs.
    pub gross_cpu_us_per_delivery: Option<f64>,
    /// All deliveries, from when their message was due.
    pub latency_us: Percentiles,
    /// The last receiver of each message that reached all.
    pub last_receiver_us: Percentiles,
    /// Messages times subscribers.
    pub deliveries_expected: u64,
    /// Those that came.
    pub deliveries: u64,
    /// Those that did not.
    pub lost: u64,
    /// Deliveries that came twice.
    pub duplicates: u64,
    /// Deliveries after a later one.
    pub out_of_order: u64,
    /// Connections that ended by themselves.
    pub disconnects: u64,
    /// Messages that left more than a millisecond after they were due, and the worst of them.
    pub late_sends: u64,
    /// See `late_sends`.
    pub late_us_max: u64,
    /// The first thing that went wrong, in words.
    pub trouble: Option<String>,
    /// All latencies.
    #[serde(skip)]
    pub latency: Histogram<u64>,
    /// The backend of the clients' sockets, with the reason for it.
    #[serde(skip)]
    pub backend: String,
}

struct Round<'a> {
    /// Dropped first: a server that ends in order would wait for its clients to go.
    swarm: Swarm,
    server: Running,
    plan: &'a Plan,
    progress: &'a mut Progress,
    stop: &'a AtomicBool,
}

/// Runs it. The server's log is in the error, where there was an error.
pub(super) fn measure(
    server: Server,
    found: &Found,
    plan: &Plan,
    title: &str,
    progress: &mut Progress,
    stop: &AtomicBool,
) -> Result<Sample, RunError> {
    progress.phase(title, plan.settings.connections.into());
    let settings = &plan.settings;
    let running = Running::start(server, found, settings)?;
    let (io, payload_bytes) = (settings.common.io, settings.common.payload_bytes);
    let swarm = Swarm::open(io, settings.connections, running.target, payload_bytes)?;
    let mut round = Round { swarm, server: running, plan, progress, stop };
    round.run(server).map_err(|error| match error {
        RunError::Stuck(text) => RunError::Stuck(format!("{text}{}", round.server.log_tail())),
        error => error,
    })
}

impl Round<'_> {
    fn until(&mut self, limit: Duration, done: impl Fn(&Swarm) -> bool) -> Result<bool, RunError> {
        let (progress, stop) = (&mut *self.progress, self.stop);
        let look = |swarm: &Swarm, server: &mut Running| {
            if stop.load(Ordering::Relaxed) {
                return Err(RunError::Interrupted);
            }
            server.check()?;
            progress.at(swarm.ready.into(), || format!("{} deliveries", swarm.tally.deliveries));
            Ok(())
        };
        self.swarm.until(&mut self.server, limit, look, done)
    }

    fn rest(&mut self, seconds: f64) -> Result<(), RunError> {
        self.until(Duration::from_secs_f64(seconds), |_| false).map(drop)
    }

    fn stuck(&self, what: String) -> RunError {
        RunError::Stuck(format!("{what}: {}", self.swarm.trouble.as_deref().unwrap_or("no answer")))
    }

    /// Brings members up to `to`.
    fn up(&mut self, to: u32) -> Result<(), RunError> {
        self.swarm.connect_to(to);
        let limit = UP_WITHIN * (1 + to / 1_000);
        self.until(limit, move |swarm| swarm.ready + swarm.gone >= to)?;
        match self.swarm.ready {
            ready if ready < to => Err(self.stuck(format!("only {ready} of {to} subscribers are up"))),
            _ => Ok(()),
        }
    }

    /// Sends `messages` and waits for them until nothing has come for a while. Returns whether all came.
    fn send(&mut self, messages: u32, is_floor: bool) -> Result<bool, RunError> {
        let (start_us, gap_us) = (boot_us() + LEAD_US, self.plan.gap_us);
        self.swarm.expect(messages);
        if is_floor {
            self.server.tell(self.swarm.tally.run(), messages, gap_us, start_us)?;
        } else {
            self.swarm.publish(start_us, gap_us);
        }
        let (last_us, sending_us) =
            (start_us + u64::from(messages - 1) * gap_us, LEAD_US + u64::from(messages) * gap_us);
        let is_whole = |swarm: &Swarm| swarm.tally.deliveries >= swarm.tally.expected();
        self.until(Duration::from_micros(sending_us + BEHIND_MAX_US), |swarm| {
            is_whole(swarm) || boot_us() > swarm.tally.latest_us.max(last_us) + STRAGGLERS_US
        })?;
        Ok(is_whole(&self.swarm))
    }

    fn run(&mut self, server: Server) -> Result<Sample, RunError> {
        let subscribers = self.plan.settings.connections;
        self.rest(self.plan.rest)?;
        let (fixed_bytes, cpu_before_up, start) = (self.server.bytes()?, self.server.cpu_us(), boot_us());
        self.up(subscribers)?;
        let (cpu_up, up_us) = (self.server.cpu_us(), boot_us() - start);
        self.rest(self.plan.settle)?;
        let all_bytes = self.server.bytes()?;

        let (cpu_quiet, start) = (self.server.cpu_us(), boot_us());
        self.rest(self.plan.rest)?;
        let quiet_s = (boot_us() - start) as f64 / 1e6;
        let idle_cpu_us_per_s = match quiet_s {
            s if s > 0.0 => self.server.cpu_us().saturating_sub(cpu_quiet) as f64 / s,
            _ => 0.0,
        };

        if !server.is_floor() {
            self.up(subscribers + 1)?;
        }
        // The first message finds what later ones don't: buffers to be made, code to be read from disk.
        if !self.send(1, server.is_floor())? {
            let came = self.swarm.tally.deliveries;
            return Err(self.stuck(format!("the first message reached {came} of {subscribers}")));
        }
        (self.swarm.late_sends, self.swarm.late_us_max) = (0, 0);
        let (cpu_before, start) = (self.server.cpu_us(), boot_us());
        self.send(self.plan.messages, server.is_floor())?;
        self.until(TRAIL, |_| false)?;
        let elapsed_s = (boot_us() - start) as f64 / 1e6;
        let cpu_us = self.server.cpu_us().saturating_sub(cpu_before) as f64;

        let Swarm { tally, gone, trouble, late_sends, late_us_max, backend, .. } = &self.swarm;
        let subscribers = f64::from(subscribers);
        let sent_us = (cpu_us - idle_cpu_us_per_s * elapsed_s).max(0.0);
        Ok(Sample {
            fixed_bytes,
            user_bytes_per_subscriber: (all_bytes as f64 - fixed_bytes as f64) / subscribers,
            connect_cpu_us: cpu_up.saturating_sub(cpu_before_up) as f64 / subscribers,
            connects_per_s: subscribers / (up_us as f64 / 1e6).max(1e-6),
            idle_cpu_us_per_s,
            cpu_us_per_delivery: (tally.deliveries > 0).then(|| sent_us / tally.deliveries as f64),
            gross_cpu_us_per_delivery: (tally.deliveries > 0).then(|| cpu_us / tally.deliveries as f64),
            latency_us: Percentiles::of(&tally.latency),
            last_receiver_us: Percentiles::of(&tally.last_receivers()),
            deliveries_expected: tally.expected(),
            deliveries: tally.deliveries,
            lost: tally.expected() - tally.deliveries,
            duplicates: tally.duplicates,
            out_of_order: tally.out_of_order,
            disconnects: (*gone).into(),
            late_sends: *late_sends,
            late_us_max: *late_us_max,
            trouble: trouble.clone(),
            latency: tally.latency.clone(),
            backend: backend.clone(),
        })
    }
}
