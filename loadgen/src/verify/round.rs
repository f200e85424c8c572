//! One schedule: everyone comes, talks while faults happen, falls quiet, is read back and judged.
//!
//! The rule: each phase is bounded, and what a phase did not reach in its time is judged as it stands.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use millrace_edge::clock::boot_us;

use super::Run;
use super::check::{Verdict, check};
use super::clients::Counts;
use super::clients::auditor::Auditor;
use super::clients::cast::Cast;
use super::clients::crowd::{Crowd, LineCounts};
use super::clients::line::Who;
use super::faults::Strike;
use super::fleet::Fleet;
use super::history::History;
use super::strike::{self, Struck, Told};
use super::watch::Watch;
use crate::rig::RunError;
use crate::rng::Rng;

/// Everyone is in, and all groups are made, within this time.
const COME_WITHIN: Duration = Duration::from_secs(45);

/// After the last fault everything is answered and delivered within this time: the longest lease, an election, a link's
/// retry, and clients' pauses, with room.
const QUIET_WITHIN: Duration = Duration::from_secs(45);

/// Everything is read back within this time.
const AUDIT_WITHIN: Duration = Duration::from_secs(60);

/// Everyone was told what a failover lost within this time, in us: a gateway's lease of five seconds, which its own earlier
/// life may hold, and three for claims, registering and looking. Until then nobody is judged.
const TOLD_WITHIN_US: u64 = 8_000_000;

/// Logs are read back so often at most: again when a failover came meanwhile.
const AUDITS_MAX: u32 = 3;

/// Clients must be well for so long to count as well again, in us: they are looked at with a second's patience.
const WELL_FOR_US: u64 = 1_200_000;

/// A schedule that is stuck in its faults is given up after its length and this.
const OVERTIME: Duration = Duration::from_secs(60);

/// What a schedule is.
pub(super) struct Spec {
    pub(super) number: u32,
    pub(super) seed: u64,
    pub(super) users: u16,
    pub(super) strikes: Vec<Strike>,
    pub(super) length_ms: u64,
    pub(super) messages: u64,
    /// Acknowledged messages may be lost if another Redis became the primary.
    pub(super) may_lose: bool,
}

/// What came of it.
pub(super) struct Round {
    pub(super) seed: u64,
    pub(super) verdict: Verdict,
    pub(super) counts: Counts,
    pub(super) lines: LineCounts,
    pub(super) struck: Vec<Struck>,
    pub(super) ended: Vec<String>,
    pub(super) crashes: u64,
    pub(super) full_ends: u64,
    pub(super) promotions: u64,
    /// From the last fault's end until everything was answered and delivered, in s; `None`: not in time.
    pub(super) quiet_s: Option<f64>,
    /// Why it was not.
    pub(super) complaint: Option<String>,
    pub(super) seconds: f64,
    pub(super) history: History,
}

impl Round {
    pub(super) fn is_clean(&self) -> bool {
        self.verdict.is_clean() && self.ended.is_empty()
    }
}

/// Runs a schedule.
pub(super) fn run(
    run: &mut Run,
    fleet: &mut Fleet,
    crowd: &mut Crowd,
    spec: &Spec,
) -> Result<Round, RunError> {
    let mut rng = Rng::new(spec.seed ^ 0x5eed);
    let name = spec.seed as u32;
    let cast = Cast::new(name, spec.users, &mut rng);
    let tokens = cast.users.iter().map(|user| run.signer.sign_one(user)).collect::<Result<Vec<_>, _>>()?;
    let stop = std::sync::Arc::clone(&run.stop);
    let is_stopped = || stop.load(std::sync::atomic::Ordering::Relaxed);
    let told = Mutex::new(Told::default());
    let mut watch = Watch::default();
    fleet.await_ready(&is_stopped, &mut |fleet| {
        watch.look(fleet, &told);
        watch.outcome()
    })?;

    run.progress.phase(&format!("schedule {}: coming in", spec.number + 1), u64::from(spec.users));
    crowd.begin(&cast, &tokens, rng);
    let came = crowd.until(COME_WITHIN, |crowd| {
        watch.look(fleet, &told) || (crowd.has_founded() && crowd.is_well()) || is_stopped()
    })?;
    watch.outcome()?;
    if is_stopped() {
        return Err(RunError::Interrupted);
    }
    if !came {
        let why = crowd.complaint().unwrap_or_else(|| "groups are not made".to_owned());
        return Err(RunError::Stuck(format!("seed {}: not everyone came in: {why}", spec.seed)));
    }
    crowd.settle();

    let start_us = boot_us();
    let seconds = spec.length_ms as f64 / 1e3;
    run.progress.phase(&format!("schedule {}: faults", spec.number + 1), spec.length_ms);
    // A little faster than needed: nothing is sent where too much has no answer.
    crowd.start_sending(spec.messages, spec.messages as f64 / seconds * 1.1);
    let mut wellness = Wellness { look_us: start_us, unwell_us: 0 };
    let end_us = start_us + spec.length_ms * 1_000;
    let (progress, stop_flag): (_, &AtomicBool) = (&mut run.progress, &stop);
    std::thread::scope(|scope| {
        let hand = scope.spawn(|| strike::carry_out(fleet, &spec.strikes, &mut watch, &told, stop_flag));
        let limit = Duration::from_millis(spec.length_ms) + OVERTIME;
        let gone = crowd.until(limit, |crowd| {
            wellness.look(crowd, &told);
            progress.at((boot_us() - start_us) / 1_000, || format!("ms, {} notes", crowd.progress()));
            hand.is_finished() && (boot_us() > end_us || is_stopped())
        });
        let done = hand.join().map_err(|_| RunError::Stuck("the thread of the faults panicked".into()))?;
        done.and(gone.map_err(RunError::from))
    })?;
    run.progress.phase(&format!("schedule {}: falling quiet", spec.number + 1), 1);
    crowd.stop_sending();
    let quiet_us = boot_us();
    let is_quiet = crowd.until(QUIET_WITHIN, |crowd| {
        wellness.look(crowd, &told);
        watch.look(fleet, &told) || crowd.is_quiet() || is_stopped()
    })?;
    let last_us = told.lock().expect("not poisoned").struck.iter().filter_map(|s| s.ended_us).max();
    let quiet_s = is_quiet.then(|| (boot_us() - last_us.unwrap_or(quiet_us)) as f64 / 1e6);
    let complaint = if is_quiet { None } else { crowd.complaint() };
    // Until the last fault's recovery is known for certain.
    crowd.until(Duration::from_micros(2 * WELL_FOR_US), |crowd| {
        wellness.look(crowd, &told);
        told.lock().expect("not poisoned").struck.iter().all(|struck| struck.well_us.is_some())
    })?;

    run.progress.phase(&format!("schedule {}: reading back", spec.number + 1), 1);
    let promoted_us = || told.lock().expect("not poisoned").promoted_us;
    for audit in 0..AUDITS_MAX {
        let was_told = |crowd: &mut Crowd| boot_us() > promoted_us() + TOLD_WITHIN_US && crowd.is_quiet();
        crowd.until(QUIET_WITHIN, |crowd| watch.look(fleet, &told) || was_told(crowd) || is_stopped())?;
        let before_us = promoted_us();
        match audit {
            0 => crowd.audit(auditors(&cast, &tokens)),
            _ => crowd.audit_again(),
        }
        let is_done = crowd
            .until(AUDIT_WITHIN, |crowd| watch.look(fleet, &told) || crowd.is_audited() || is_stopped())?;
        if !is_done || promoted_us() == before_us {
            break;
        }
    }
    watch.outcome()?;
    if is_stopped() {
        return Err(RunError::Interrupted);
    }
    let (history, counts, lines) = crowd.finish();
    let Told { struck, ended, crashes, full_ends, promotions, .. } = told.into_inner().expect("not poisoned");
    let verdict = check(&history, spec.may_lose && promotions > 0);
    let seconds = (boot_us() - start_us) as f64 / 1e6;
    Ok(Round {
        seed: spec.seed,
        verdict,
        counts,
        lines,
        struck,
        ended,
        crashes,
        full_ends,
        promotions,
        quiet_s,
        complaint,
        seconds,
        history,
    })
}

/// A new device of the first member of each conversation reads it back.
fn auditors(cast: &Cast, tokens: &[Box<str>]) -> Vec<Auditor> {
    let mut by_user: Vec<Vec<(u16, String)>> = vec![Vec::new(); cast.users.len()];
    for (at, talk) in (0..).zip(&cast.talks) {
        by_user[usize::from(talk.users[0])].push((at, talk.name.clone()));
    }
    let readers = by_user.into_iter().enumerate().filter(|(_, talks)| !talks.is_empty());
    readers
        .map(|(user, talks)| {
            let (name, token) = (cast.users[user].clone(), tokens[user].clone());
            let who = Who { user: name, device: "audit".to_owned(), token, websocket: user % 2 == 0 };
            Auditor::new(who, user, talks)
        })
        .collect()
}

/// Who is well, against the faults.
struct Wellness {
    look_us: u64,
    /// When somebody was last not well.
    unwell_us: u64,
}

impl Wellness {
    fn look(&mut self, crowd: &mut Crowd, told: &Mutex<Told>) {
        let now_us = boot_us();
        let since_us = now_us - self.look_us;
        self.look_us = now_us;
        let is_well = crowd.is_well();
        if !is_well {
            self.unwell_us = now_us;
        }
        let mut told = told.lock().expect("not poisoned");
        for struck in told.struck.iter_mut().filter(|struck| struck.well_us.is_none()) {
            if !is_well {
                struck.unwell_us += since_us;
            }
            if let Some(ended_us) = struck.ended_us {
                let since_us = self.unwell_us.max(ended_us);
                if now_us > since_us + WELL_FOR_US {
                    struck.well_us = Some(since_us);
                }
            }
        }
    }
}
