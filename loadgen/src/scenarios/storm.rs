//! All connections are dropped at one moment, and everyone comes back: with full-jitter backoff, obeying what the
//! server says about when, with resume tickets. Then messages must flow as if nothing had been.

use std::sync::Arc;
use std::time::Duration;

use millrace_edge::clock::boot_us;

use super::{Stage, conclude, new_world};
use crate::args::Settings;
use crate::clients::Order;
use crate::measure::Percentiles;
use crate::report::{Report, Storm};
use crate::rig::{Rig, RunError};
use crate::rng::Rng;
use crate::schedule::{Schedule, Stream};
use crate::watch::Ended;
use crate::world::{Class, Kind};

/// All must be back within this time, plus a millisecond each, in s.
const BACK_WITHIN_S: u64 = 60;

/// What is said afterwards when no rate is given: some to everyone, more to groups and pairs.
fn usual_rate(class: &Class) -> f64 {
    match class.kind {
        Kind::Room => (10_000.0 / f64::from(class.members)).min(1.0),
        Kind::Group => (5_000.0 / f64::from(class.members)).min(50.0),
        Kind::Direct => 50.0,
    }
}

pub(super) fn run(settings: Settings, stage: Stage) -> Result<Report, RunError> {
    let world = new_world(&settings, true, 1_000);
    let classes = world.classes();
    let usual: f64 = classes.iter().map(usual_rate).sum();
    let scale = settings.rate.map_or(1.0, |rate| rate / usual);
    let streams: Vec<Stream> =
        classes.iter().map(|&class| Stream { class, per_s: usual_rate(&class) * scale }).collect();
    let schedule = Arc::new(Schedule::even(&world, &streams, settings.seconds, Rng::from_system().bits())?);
    let all = u64::from(settings.connections);

    let mut rig = Rig::start(settings.clone(), world, true, stage.progress, stage.stop)?;
    let ramp = rig.ramp()?;
    let mut report = Report::new(&settings).with_ramp(&ramp);
    if rig.is_interrupted() {
        return conclude(rig, None, report);
    }
    rig.crew.login_times()?;

    let (before, cpu_before, start) = (rig.crew.totals(), rig.gateway_cpu_us(), boot_us());
    let limit = Duration::from_secs(BACK_WITHIN_S) + Duration::from_millis(all);
    rig.watch.progress.phase("storm: coming back", all);
    rig.crew.order(|| Order::Drop { back: true })?;
    let dropped = before.dropped + all;
    let in_again = rig.until(
        limit,
        |t| t.inside,
        |_| "logged in".to_owned(),
        |t| t.dropped >= dropped && t.inside == all,
    )?;
    let logged_in_s = (boot_us() - start) as f64 / 1e6;
    let ended = rig.until(
        limit,
        |t| t.ready,
        |_| "in their conversations".to_owned(),
        |t| t.dropped >= dropped && t.ready == all,
    )?;
    let all_back_s = (boot_us() - start) as f64 / 1e6;
    let after = rig.crew.totals();
    let logins = after.logins - before.logins;
    report.storm = Some(Storm {
        logged_in_s: (in_again == Ended::Done).then_some(logged_in_s),
        all_back_s: (ended == Ended::Done).then_some(all_back_s),
        logins,
        failures: after.login_failures + after.connect_failures
            - before.login_failures
            - before.connect_failures,
        cpu_us_per_login: cpu_before
            .zip(rig.gateway_cpu_us())
            .map(|(before, after)| (after - before) as f64 / (logins as f64).max(1.0)),
        login_us: Percentiles::of(&rig.crew.login_times()?),
    });
    if ended == Ended::Done {
        let sent = rig.send(&schedule)?;
        report = report.with_sent(&sent);
    }
    conclude(rig, Some(&schedule), report)
}
