//! The scenarios: what each brings up, sends, and reports.

mod chat;
mod connect;
mod demo;
mod fanout;
mod idle;
mod storm;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::args::{Defaults, Scenario, Settings};
use crate::compare;
use crate::costs;
use crate::million;
use crate::progress::Progress;
use crate::report::{Report, Shown};
use crate::rig::{Rig, RunError};
use crate::schedule::Schedule;
use crate::verify;
use crate::world::World;

/// What a scenario needs from the process it runs in.
pub struct Stage {
    /// The display.
    pub progress: Progress,
    /// Set by Ctrl-C: end early with what was measured.
    pub stop: Arc<AtomicBool>,
}

/// Runs a scenario to its report.
///
/// # Errors
/// There was nothing to measure: a gateway that does not start, clients that do not come in.
pub fn run(scenario: &Scenario, stage: Stage) -> Result<Box<dyn Shown>, RunError> {
    let defaults = |connections, seconds, groups| Defaults { connections, seconds, groups };
    let report = match scenario {
        Scenario::Million(args) => {
            return Ok(Box::new(million::run(args, stage.progress, stage.stop)?));
        }
        Scenario::Compare(args) => {
            return Ok(Box::new(compare::run(args, stage.progress, &stage.stop)?));
        }
        Scenario::Costs(args) => {
            return Ok(Box::new(costs::run(args, stage.progress, &stage.stop)?));
        }
        Scenario::Verify(args) => {
            return Ok(Box::new(verify::run(args, stage.progress, stage.stop)?));
        }
        Scenario::Failover(args) => {
            return Ok(Box::new(verify::failover::run(args, stage.progress, stage.stop)?));
        }
        Scenario::Demo(common) => {
            let defaults = defaults(10_000, 10.0, &[10, 100, 1_000]);
            demo::run(Settings::new("demo", common.clone(), defaults)?, stage)
        }
        Scenario::Connect(common) => {
            connect::run(Settings::new("connect", common.clone(), defaults(20_000, 10.0, &[]))?, stage)
        }
        Scenario::Idle(common) => {
            idle::run(Settings::new("idle", common.clone(), defaults(10_000, 30.0, &[100]))?, stage)
        }
        Scenario::Chat { common, think } => {
            chat::run(Settings::new("chat", common.clone(), defaults(2_000, 10.0, &[]))?, *think, stage)
        }
        Scenario::Fanout(common) => {
            let defaults = defaults(10_000, 10.0, &[100, 1_000, 10_000]);
            fanout::run(Settings::new("fanout", common.clone(), defaults)?, stage)
        }
        Scenario::Storm(common) => {
            storm::run(Settings::new("storm", common.clone(), defaults(10_000, 5.0, &[100]))?, stage)
        }
    };
    Ok(Box::new(report?))
}

fn new_world(settings: &Settings, room: bool, pairs: u32) -> World {
    let run = crate::rng::Rng::from_system().bits() as u32;
    World::new(run, settings.connections, room, &settings.groups, pairs)
}

/// Ends a run in which `schedule` was (or was not) sent: takes all down and adds all up.
fn conclude(rig: Rig, schedule: Option<&Arc<Schedule>>, report: Report) -> Result<Report, RunError> {
    let interrupted = rig.is_interrupted();
    let world = Arc::clone(&rig.world);
    let backend = rig.crew.backend().to_owned();
    let (totals, books, trouble) = rig.finish()?;
    let mut report = report.with_totals(&totals, trouble);
    report.interrupted = interrupted;
    report.client_backend = backend;
    if let (Some(books), Some(schedule)) = (books, schedule) {
        report = report.with_books(&books, &books.account(&world, schedule));
    }
    Ok(report)
}
