//! A ramp of connects with login: each step offers twice the rate of the one before, open-loop, for an equal share of
//! the time, and ends with all of its clients dropped. Latency counts from when a connect was due.

use std::time::Duration;

use super::{Stage, conclude, new_world};
use crate::args::Settings;
use crate::clients::{Order, Totals};
use crate::measure::{Percentiles, histogram};
use crate::report::{RampStep, Report};
use crate::rig::{Rig, RunError};
use crate::watch::Ended;

/// Steps of the ramp; the last offers the whole rate.
const STEPS: i32 = 5;

/// Logins a second at the top when none is given: above what two cores take.
const TOP_PER_S: f64 = 16_000.0;

/// Time after a step's last connect was due in which late ones still count, in s.
const GRACE_S: f64 = 10.0;

/// Time for dropped connections to be gone.
const DROP_WITHIN: Duration = Duration::from_secs(30);

pub(super) fn run(mut settings: Settings, stage: Stage) -> Result<Report, RunError> {
    settings.groups.clear();
    let top = settings.rate.unwrap_or(TOP_PER_S);
    let step_s = settings.seconds / f64::from(STEPS);
    let world = new_world(&settings, false, 0);
    let mut rig = Rig::start(settings.clone(), world, false, stage.progress, stage.stop)?;
    let mut report = Report::new(&settings);
    let mut all = histogram();
    for step in 0..STEPS {
        let offered = top / f64::from(1 << (STEPS - 1 - step));
        let count = ((offered * step_s) as u32).clamp(1, settings.connections);
        let (before, cpu_before) = (rig.crew.totals(), rig.gateway_cpu_us());
        let start = millrace_edge::clock::boot_us();
        rig.watch.progress.phase(&format!("offering {offered:.0}/s"), count.into());
        rig.crew.order(|| Order::Up { to: count, per_s: offered })?;
        let limit = Duration::from_secs_f64(f64::from(count) / offered + GRACE_S);
        let wanted = u64::from(count);
        let lost_since = move |t: &Totals| t.given_up + t.disconnects - before.given_up - before.disconnects;
        let done = |t: &Totals| t.inside + lost_since(t) >= wanted;
        let ended = rig.until(limit, |t| t.inside, |_| String::new(), done)?;
        let seconds = (millrace_edge::clock::boot_us() - start) as f64 / 1e6;
        let after = rig.crew.totals();
        let logins = after.logins - before.logins;
        let times = rig.crew.login_times()?;
        all.add(&times).expect("histograms of the same shape");
        report.ramp.push(RampStep {
            offered_per_s: offered,
            achieved_per_s: logins as f64 / seconds,
            logins,
            failures: after.login_failures + after.connect_failures
                - before.login_failures
                - before.connect_failures,
            cpu_us_per_login: cpu_before
                .zip(rig.gateway_cpu_us())
                .map(|(before, after)| (after - before) as f64 / (logins as f64).max(1.0)),
            login_us: Percentiles::of(&times),
        });
        if ended == Ended::Interrupted {
            break;
        }
        rig.watch.progress.phase("dropping", wanted);
        rig.crew.order(|| Order::Drop { back: false })?;
        rig.until(DROP_WITHIN, |t| t.inside, |_| String::new(), |t| t.inside == 0)?;
        // What the last step left behind in the kernel is not the next one's business.
        rig.pause(Duration::from_millis(500))?;
    }
    report.connects_per_s = report.ramp.iter().map(|step| step.achieved_per_s).fold(0.0, f64::max);
    report.login_us = Percentiles::of(&all);
    conclude(rig, None, report)
}
