//! Connections that do nothing but beat: memory and CPU of each.

use super::{Stage, conclude, new_world};
use crate::args::Settings;
use crate::report::Report;
use crate::rig::{Rig, RunError};

pub(super) fn run(settings: Settings, stage: Stage) -> Result<Report, RunError> {
    let world = new_world(&settings, true, 0);
    let mut rig = Rig::start(settings.clone(), world, false, stage.progress, stage.stop)?;
    let ramp = rig.ramp()?;
    let mut report = Report::new(&settings).with_ramp(&ramp);
    if !rig.is_interrupted() {
        let idle = rig.idle(settings.seconds)?;
        report = report.with_idle(idle);
    }
    conclude(rig, None, report)
}
