//! Messages to groups of the given sizes, all sizes with an equal share of the deliveries; beside the floor.

use std::sync::Arc;

use super::demo::half_a_floor;
use super::{Stage, conclude, new_world};
use crate::args::Settings;
use crate::floor::Floor;
use crate::report::Report;
use crate::rig::{Rig, RunError};
use crate::rng::Rng;
use crate::schedule::{Schedule, Stream};
use crate::world::Class;

/// Deliveries a second in all when no rate is given.
const USUAL_DELIVERIES_PER_S: f64 = 30_000.0;

/// How long silence is watched, in s, to know what heartbeats cost.
const IDLE_S: f64 = 2.0;

/// Equal deliveries for each size, `rate` messages a second in all if given.
fn streams(classes: &[Class], rate: Option<f64>) -> Vec<Stream> {
    let usual =
        |class: &Class| USUAL_DELIVERIES_PER_S / classes.len() as f64 / f64::from((class.members - 1).max(1));
    let sum: f64 = classes.iter().map(usual).sum();
    let scale = rate.map_or(1.0, |rate| rate / sum);
    classes.iter().map(|class| Stream { class: *class, per_s: usual(class) * scale }).collect()
}

pub(super) fn run(settings: Settings, mut stage: Stage) -> Result<Report, RunError> {
    let world = new_world(&settings, false, 0);
    let classes = world.classes();
    if classes.is_empty() {
        return Err(crate::args::ArgsError::Bad {
            flag: "groups",
            given: format!("{:?}", settings.groups),
            expected: format!("sizes from 2 to the number of connections ({})", settings.connections),
        }
        .into());
    }
    let streams = streams(&classes, settings.rate);
    let schedule = Arc::new(Schedule::even(&world, &streams, settings.seconds, Rng::from_system().bits())?);
    let rounds_per_s = (USUAL_DELIVERIES_PER_S / f64::from(settings.connections)).clamp(0.5, 10.0);
    let before = half_a_floor(&settings, &mut stage, rounds_per_s)?;

    let Stage { progress, stop } = stage;
    let mut rig = Rig::start(settings.clone(), world, false, progress, Arc::clone(&stop))?;
    let ramp = rig.ramp()?;
    let mut report = Report::new(&settings).with_ramp(&ramp);
    if !rig.is_interrupted() {
        let idle = rig.idle(IDLE_S)?;
        report = report.with_idle(idle);
    }
    if !rig.is_interrupted() {
        let sent = rig.send(&schedule)?;
        report = report.with_sent(&sent);
    }
    let interrupted = rig.is_interrupted();
    let report = conclude(rig, Some(&schedule), report)?;
    let after = if interrupted {
        Floor::default()
    } else {
        let mut stage = Stage { progress: Default::default(), stop };
        half_a_floor(&settings, &mut stage, rounds_per_s)?
    };
    Ok(report.with_floor(before.plus(after)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    #[test]
    fn sizes_share_the_deliveries() {
        let world = World::new(1, 1_000, false, &[10, 1_000], 0);
        let streams = streams(&world.classes(), None);
        let deliveries: Vec<f64> = streams.iter().map(|s| s.per_s * f64::from(s.class.members - 1)).collect();
        assert!((deliveries[0] - deliveries[1]).abs() < 1e-6 && deliveries.len() == 2);
        let sum: f64 = super::streams(&world.classes(), Some(70.0)).iter().map(|s| s.per_s).sum();
        assert!((sum - 70.0).abs() < 1e-9);
    }
}
