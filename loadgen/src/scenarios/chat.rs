//! Pairs who talk directly, each thinking for a while before the next message. Open-loop all the same: when each
//! speaks was drawn before the start.

use std::sync::Arc;

use super::{Stage, conclude, new_world};
use crate::args::{ArgsError, Settings};
use crate::report::Report;
use crate::rig::{Rig, RunError};
use crate::rng::Rng;
use crate::schedule::Schedule;

/// Messages a second when neither a rate nor a thinking time is given.
const USUAL_PER_S: f64 = 1_000.0;

/// How long silence is watched, in s, to know what heartbeats cost.
const IDLE_S: f64 = 2.0;

pub(super) fn run(mut settings: Settings, think: Option<f64>, stage: Stage) -> Result<Report, RunError> {
    settings.groups.clear();
    let world = new_world(&settings, false, u32::MAX);
    let class = *world.classes().last().expect("two clients are a pair");
    let pairs = f64::from(class.count);
    if let Some(think) = think.filter(|think| !(*think > 0.0 && think.is_finite())) {
        return Err(ArgsError::Bad {
            flag: "think",
            given: think.to_string(),
            expected: "more than 0".into(),
        }
        .into());
    }
    let think_s = think.unwrap_or_else(|| pairs / settings.rate.unwrap_or(USUAL_PER_S.min(pairs)));
    let seed = Rng::from_system().bits();
    let schedule = Arc::new(Schedule::thinking(&world, class, think_s, settings.seconds, seed)?);

    let mut rig = Rig::start(settings.clone(), world, false, stage.progress, stage.stop)?;
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
    conclude(rig, Some(&schedule), report)
}
