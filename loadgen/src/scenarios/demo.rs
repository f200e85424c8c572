//! Everything at once, and what it cost: the run behind the promises in the README.

use std::sync::Arc;

use super::{Stage, conclude, new_world};
use crate::args::Settings;
use crate::floor::{self, Floor};
use crate::report::Report;
use crate::rig::{Rig, RunError};
use crate::rng::Rng;
use crate::schedule::{Schedule, Stream};
use crate::world::{Class, Kind};

/// Messages a second to the room where nothing else is said, and the deliveries a second that this is bounded by:
/// two cores hold it with half of their time to spare.
const ROOM_PER_S: f64 = 2.0;
const ROOM_DELIVERIES_PER_S: f64 = 20_000.0;

/// The same for all groups of one size.
const GROUPS_PER_S: f64 = 50.0;
const GROUPS_DELIVERIES_PER_S: f64 = 5_000.0;

/// Direct messages a second, and pairs among whom they go.
const DIRECT_PER_S: f64 = 50.0;
const PAIRS: u32 = 1_000;

/// How long the silent room is watched, in s, to know what heartbeats cost.
const IDLE_S: f64 = 3.0;

/// The floor's share of the run's length, before the load and after it.
const FLOOR_SHARE: f64 = 0.4;

/// What is sent where when nobody says otherwise.
fn usual_rate(class: &Class) -> f64 {
    match class.kind {
        Kind::Room => ROOM_PER_S.min(ROOM_DELIVERIES_PER_S / f64::from(class.members)),
        Kind::Group => GROUPS_PER_S.min(GROUPS_DELIVERIES_PER_S / f64::from(class.members)),
        Kind::Direct => DIRECT_PER_S,
    }
}

/// The usual mix, scaled to `rate` messages a second in all if given.
fn streams(classes: &[Class], rate: Option<f64>) -> Vec<Stream> {
    let usual: f64 = classes.iter().map(usual_rate).sum();
    let scale = rate.map_or(1.0, |rate| rate / usual);
    classes.iter().map(|&class| Stream { class, per_s: usual_rate(&class) * scale }).collect()
}

/// Half of the floor: as many rounds as fit into the share, at the room's own rate.
pub(super) fn half_a_floor(
    settings: &Settings,
    stage: &mut Stage,
    rounds_per_s: f64,
) -> Result<Floor, RunError> {
    if settings.common.no_floor {
        return Ok(Floor::default());
    }
    let rounds = (settings.seconds * FLOOR_SHARE * rounds_per_s).ceil().clamp(3.0, 100.0) as u32;
    let gap_us = (1e6 / rounds_per_s) as u64;
    floor::measure(&floor::Plan::of(settings), rounds, gap_us.max(1), &mut stage.progress, &stage.stop)
}

pub(super) fn run(settings: Settings, mut stage: Stage) -> Result<Report, RunError> {
    let world = new_world(&settings, true, PAIRS);
    let streams = streams(&world.classes(), settings.rate);
    let schedule = Arc::new(Schedule::even(&world, &streams, settings.seconds, Rng::from_system().bits())?);
    let room_rate = streams.first().map_or(1.0, |stream| stream.per_s).clamp(0.5, 10.0);
    let before = half_a_floor(&settings, &mut stage, room_rate)?;

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
        half_a_floor(&settings, &mut stage, room_rate)?
    };
    Ok(report.with_floor(before.plus(after)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    #[test]
    fn the_usual_mix_is_mostly_fan_out_and_scales() {
        let world = World::new(1, 10_000, true, &[10, 100, 1_000], PAIRS);
        let classes = world.classes();
        let deliveries = |streams: &[Stream]| -> f64 {
            streams.iter().map(|s| s.per_s * f64::from(s.class.members - 1)).sum()
        };
        let usual = streams(&classes, None);
        let total = deliveries(&usual);
        assert!((25_000.0..40_000.0).contains(&total), "{total} deliveries a second");
        let messages: f64 = usual.iter().map(|s| s.per_s).sum();
        let doubled = streams(&classes, Some(messages * 2.0));
        assert!((deliveries(&doubled) / total - 2.0).abs() < 1e-9);
        let million = World::new(1, 1_000_000, true, &[], 0);
        assert!(deliveries(&streams(&million.classes(), None)) <= ROOM_DELIVERIES_PER_S);
    }
}
