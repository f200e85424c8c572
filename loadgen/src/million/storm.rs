//! The storm: the gateway that holds all sessions is killed and started again, and everyone comes back.
//!
//! Its parts are told apart, from the kill on: when the kernel was through with the process, when the last client had
//! noticed, when all had a connection again, when all were logged in, and when all were in their conversations.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

use millrace_edge::clock::boot_us;
use serde::Serialize;

use super::fleet::Fleet;
use super::probe::{Direct, Probe};
use crate::clients::{Crew, Order, Totals};
use crate::measure::{Percentiles, cpu_us};
use crate::rig::RunError;
use crate::watch::Watch;

/// All must be back within this time, plus a millisecond each, in s.
const BACK_WITHIN_S: u64 = 60;

/// What the storm showed. Times count from the kill, in seconds; null: not in time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Storm {
    /// The kernel had taken the process apart.
    pub process_gone_s: f64,
    /// The gateway took logins again.
    pub gateway_ready_s: Option<f64>,
    /// The last client had noticed.
    pub all_noticed_s: Option<f64>,
    /// As many connections were made as had been lost.
    pub all_connected_s: Option<f64>,
    /// All were logged in.
    pub all_logged_in_s: Option<f64>,
    /// 99 % were in their conversations, and 99.9 %.
    pub back_99_s: Option<f64>,
    /// See `back_99_s`.
    pub back_999_s: Option<f64>,
    /// All were. A client whose end of stream was lost on the way notices with its next heartbeat only.
    pub all_back_s: Option<f64>,
    /// Connects that were refused or dropped on the way.
    pub connect_failures: u64,
    /// Logins that were refused, or ended with the connection.
    pub login_failures: u64,
    /// Clients that gave up.
    pub given_up: u64,
    /// Sessions that ended once more on the way. A login that the gateway gave up may still be registered behind the
    /// next one of the same client, which is displaced then, and comes again.
    pub ended_again: u64,
    /// GoAways that clients were told meanwhile, by their code.
    pub went_away: BTreeMap<&'static str, u64>,
    /// From when a connect that succeeded was begun, in microseconds.
    pub login_us: Percentiles,
    /// CPU for each login, in microseconds: of the new gateway, the dispatcher, and this process.
    pub gateway_cpu_us_per_login: Option<f64>,
    /// See `gateway_cpu_us_per_login`.
    pub dispatcher_cpu_us_per_login: Option<f64>,
    /// See `gateway_cpu_us_per_login`.
    pub client_cpu_us_per_login: Option<f64>,
    /// Direct messages through the second gateway meanwhile.
    pub direct: Direct,
}

/// Runs it.
pub(super) fn run(
    fleet: &mut Fleet,
    crew: &Crew,
    through_second: &mut Probe,
    sessions: u32,
    watch: &mut Watch,
) -> Result<Storm, RunError> {
    let all = u64::from(sessions);
    let limit_s = BACK_WITHIN_S + all / 1_000;
    let limit = Duration::from_secs(limit_s);
    let own = std::process::id();
    let mut storm = Storm::default();
    crew.login_times()?;
    crew.order(|| Order::ComeBack)?;
    let (before, went_away) = (crew.totals(), crew.went_away());
    let (own_cpu, dispatcher_cpu) = (cpu_us(own).ok(), cpu_us(fleet.dispatcher.pid()).ok());
    let mut flight = through_second.send(limit_s as f64)?;
    // Some calm before it.
    std::thread::sleep(Duration::from_millis(500));

    let start = boot_us();
    let since = move || (boot_us() - start) as f64 / 1e6;
    storm.process_gone_s = fleet.kill_first()?;
    if fleet.first.await_ready(limit) {
        storm.gateway_ready_s = Some(since());
    }
    let reached: [Cell<Option<f64>>; 6] = Default::default();
    let share = |share: f64| (all as f64 * share).ceil() as u64;
    let look = |t: &Totals| {
        let noticed = t.disconnects - before.disconnects;
        let connected = t.connections - before.connections;
        // None of them counts before all had lost their connection, or almost: they were all in before.
        let gone = noticed >= share(0.99);
        let parts = [
            noticed >= all,
            gone && connected >= all,
            gone && t.inside >= all,
            gone && t.ready >= share(0.99),
            gone && t.ready >= share(0.999),
            gone && noticed >= all && t.ready >= all,
        ];
        for (cell, is_reached) in reached.iter().zip(parts) {
            if is_reached && cell.get().is_none() {
                cell.set(Some(since()));
            }
        }
        reached[5].get().is_some()
    };
    let words =
        |t: &Totals| format!("back; noticed {}, logged in {}", t.disconnects - before.disconnects, t.inside);
    watch.progress.phase("storm", all);
    watch.until(crew, fleet.servers(), limit, |t| t.ready, words, look)?;
    watch.progress.done();
    [
        &mut storm.all_noticed_s,
        &mut storm.all_connected_s,
        &mut storm.all_logged_in_s,
        &mut storm.back_99_s,
        &mut storm.back_999_s,
        &mut storm.all_back_s,
    ]
    .into_iter()
    .zip(&reached)
    .for_each(|(part, cell)| *part = cell.get());

    let after = crew.totals();
    storm.connect_failures = after.connect_failures - before.connect_failures;
    storm.login_failures = after.login_failures - before.login_failures;
    storm.given_up = after.given_up - before.given_up;
    storm.ended_again = (after.disconnects - before.disconnects).saturating_sub(all);
    storm.went_away = crew.went_away();
    for (code, count) in went_away {
        storm.went_away.entry(code).and_modify(|sum| *sum -= count);
    }
    storm.went_away.retain(|_, count| *count > 0);
    storm.login_us = Percentiles::of(&crew.login_times()?);
    let logins = (after.logins - before.logins).max(1) as f64;
    let each = |before: Option<u64>, pid| Some((cpu_us(pid).ok()?.saturating_sub(before?)) as f64 / logins);
    storm.gateway_cpu_us_per_login = each(Some(0), fleet.first.pid());
    storm.dispatcher_cpu_us_per_login = each(dispatcher_cpu, fleet.dispatcher.pid());
    storm.client_cpu_us_per_login = each(own_cpu, own);
    through_second.cut_short(&mut flight)?;
    storm.direct = through_second.collect(&mut flight, watch)?;
    Ok(storm)
}
