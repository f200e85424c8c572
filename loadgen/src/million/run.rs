//! The run itself, phase by phase. Each phase measures one thing while nothing else is asked of the machine.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use millrace_edge::clock::boot_us;

use super::fleet::Fleet;
use super::probe::{PAIRS, Probe};
use super::report::{Cpu, Idle, Memory, MemoryPoint, MillionReport, Rate};
use super::{MillionArgs, Settings, disk, fan_out, kernel, storm};
use crate::clients::{Crew, Manner, Order, Setup, Totals};
use crate::floor::{self, Plan as FloorPlan};
use crate::limits::STRAGGLERS_US;
use crate::measure::{Percentiles, cpu_us, pss_bytes};
use crate::progress::Progress;
use crate::report::curve;
use crate::rig::RunError;
use crate::rng::Rng;
use crate::tokens::Signer;
use crate::watch::{Ended, Watch};
use crate::world::{Kind, World};

/// Shares of the sessions at which memory is read. What servers make once, with their first clients, is in the first.
const STEPS: [f64; 5] = [0.2, 0.4, 0.6, 0.8, 1.0];

/// Quiet before memory is read: allocators give pages back a moment later.
const SETTLE: Duration = Duration::from_secs(2);

/// A message reaches its last receiver within this time for each of them, in us, beyond [`STRAGGLERS_US`].
const PATIENCE_US: u64 = 100;

/// Rounds of the bare send loop, and the time between them for each socket, in us.
const FLOOR_ROUNDS: u32 = 2;
const FLOOR_GAP_US: u64 = 25;

/// Share of the time that idle sessions are watched, that is spent on each size of groups.
const FAN_OUT_SHARE: f64 = 2.0 / 3.0;

/// What is added to the niceness of threads that hold the sessions' other ends: they stand for devices elsewhere, whose
/// work must not keep the servers waiting. Those that measure direct messages are as urgent as the servers.
pub(super) const NICENESS: u8 = 10;

/// A run under way.
struct Stage {
    settings: Settings,
    world: Arc<World>,
    watch: Watch,
    fleet: Fleet,
    crew: Crew,
}

/// Runs it to its report.
///
/// # Errors
/// There is nothing to report: servers that don't start, clients that don't come in.
pub fn run(args: &MillionArgs, progress: Progress, stop: Arc<AtomicBool>) -> Result<MillionReport, RunError> {
    let settings = Settings::new(args)?;
    let mut watch = Watch { progress, stop };
    let mut report = MillionReport::new(&settings);
    if settings.floor {
        report.floor = Some(measure_floor(&settings, &mut watch)?);
        // Sockets of the floor's clients are gone a moment after it.
        std::thread::sleep(SETTLE);
    }
    if watch.is_interrupted() {
        return Err(RunError::Interrupted);
    }
    let world = World::new(Rng::from_system().bits() as u32, settings.sessions, true, &settings.groups, 0);
    let (signer, jwks) = Signer::generate()?;
    watch.progress.phase("signing tokens", settings.sessions.into());
    let tokens = signer.sign_all(&world, |_| {})?;
    watch.progress.phase("starting servers", 3);
    let fleet = Fleet::start(&settings, &jwks)?;
    let world = Arc::new(world);
    let crew = Crew::start(Setup {
        world: Arc::clone(&world),
        tokens,
        targets: vec![fleet.first_address()],
        transport: settings.transport,
        manner: Manner::Session,
        io: settings.io,
        clients: settings.sessions,
        threads: settings.threads,
        cpus: Vec::new(),
        payload_bytes: settings.payload_bytes,
        tickets: true,
        founded: false,
        niceness: NICENESS,
    })?;
    report.store_sync_us = disk::sync_us(fleet.directory()).ok();
    report.client_backend = crew.backend().to_owned();
    let mut stage = Stage { settings, world, watch, fleet, crew };
    stage.phases(&signer, &mut report)?;
    stage.finish(&mut report)?;
    Ok(report)
}

fn measure_floor(settings: &Settings, watch: &mut Watch) -> Result<floor::Floor, RunError> {
    let plan = FloorPlan {
        connections: settings.sessions,
        payload_bytes: settings.payload_bytes,
        io: settings.io,
        server_cpus: Vec::new(),
        load_cpus: Vec::new(),
        threads: settings.threads,
        connect_rate: 0.0,
        patience_us: STRAGGLERS_US + u64::from(settings.sessions) * PATIENCE_US,
        heartbeat_ms: settings.heartbeat_ms,
        niceness: NICENESS,
    };
    let gap_us = (u64::from(settings.sessions) * FLOOR_GAP_US).max(100_000);
    let rounds = if settings.sessions > 100_000 { FLOOR_ROUNDS } else { 15 * FLOOR_ROUNDS };
    floor::measure(&plan, rounds, gap_us, &mut watch.progress, &watch.stop)
}

impl Stage {
    /// All phases, until Ctrl-C.
    fn phases(&mut self, signer: &Signer, report: &mut MillionReport) -> Result<(), RunError> {
        self.ramp(report)?;
        if self.is_over(report) {
            return Ok(());
        }
        self.idle(report)?;
        let mut through_first =
            Probe::start(&self.settings, signer, self.fleet.first_address(), &mut self.watch)?;
        let calm = self.direct(&mut through_first, report)?;
        let mut classes = self.world.classes();
        classes.sort_by_key(|class| class.members);
        for class in classes {
            if self.is_over(report) {
                return Ok(());
            }
            self.fan_out(class, &mut through_first, calm, report)?;
        }
        through_first.finish()?;
        if self.is_over(report) || !self.settings.storm {
            return Ok(());
        }
        let second = self.fleet.second_address()?;
        let mut through_second = Probe::start(&self.settings, signer, second, &mut self.watch)?;
        let (fleet, crew) = (&mut self.fleet, &self.crew);
        let storm = storm::run(fleet, crew, &mut through_second, self.settings.sessions, &mut self.watch)?;
        report.storm = Some(storm);
        through_second.finish()?;
        self.is_over(report);
        Ok(())
    }

    fn is_over(&self, report: &mut MillionReport) -> bool {
        report.interrupted |= self.watch.is_interrupted();
        report.interrupted
    }

    fn cpu(&self) -> Result<Cpu, RunError> {
        Ok(Cpu {
            gateway_us: cpu_us(self.fleet.first.pid())?,
            dispatcher_us: cpu_us(self.fleet.dispatcher.pid())?,
            client_us: cpu_us(std::process::id())?,
        })
    }

    fn memory(&self, sessions: u32) -> Result<MemoryPoint, RunError> {
        Ok(MemoryPoint {
            sessions,
            gateway_bytes: pss_bytes(self.fleet.first.pid())?,
            dispatcher_bytes: pss_bytes(self.fleet.dispatcher.pid())?,
            client_bytes: pss_bytes(std::process::id())?,
            kernel_bytes: kernel::bytes(),
            tcp_bytes: kernel::tcp_bytes(),
            disk_bytes: disk::bytes(&self.fleet.store()),
        })
    }

    /// Connects, logs in, and goes into all conversations, in steps with a rest after each to read memory.
    fn ramp(&mut self, report: &mut MillionReport) -> Result<(), RunError> {
        let all = self.settings.sessions;
        let mut memory = vec![self.memory(0)?];
        let (mut entry, mut joining) = (Rate::default(), Rate::default());
        for share in STEPS {
            let to = ((f64::from(all) * share) as u32).max(1);
            let wanted = u64::from(to);
            let (start, cpu, before) = (boot_us(), self.cpu()?, self.crew.totals());
            self.watch.progress.phase(&format!("logging in up to {to}"), all.into());
            self.crew.order(|| Order::Up { to, per_s: 0.0 })?;
            let rate = move |totals: &Totals| {
                let seconds = (boot_us() - start) as f64 / 1e6;
                format!("{:.0} logins/s", (totals.logins - before.logins) as f64 / seconds.max(1e-3))
            };
            // A thousand a second is slower than any machine that should try.
            let patience = Duration::from_secs(60) + Duration::from_millis(wanted);
            let (crew, fleet) = (&self.crew, &mut self.fleet);
            let gone = |t: &Totals| t.given_up + t.disconnects;
            let done = |t: &Totals| t.inside + gone(t) >= wanted;
            self.watch.until(crew, fleet.servers(), patience, |t| t.inside, rate, done)?;
            self.watch.progress.done();
            let logins = self.crew.totals().logins - before.logins;
            entry.add(logins, boot_us() - start, self.cpu()?.since(cpu));

            let (start, cpu) = (boot_us(), self.cpu()?);
            self.watch.progress.phase(&format!("joining up to {to}"), all.into());
            self.crew.order(|| Order::Join)?;
            let (crew, fleet) = (&self.crew, &mut self.fleet);
            let done = |t: &Totals| t.ready + t.join_failures + gone(t) >= wanted;
            let ended = self.watch.until(
                crew,
                fleet.servers(),
                patience * 3,
                |t| t.ready,
                |_| String::new(),
                done,
            )?;
            self.watch.progress.done();
            let joined = self.crew.totals().ready - before.ready;
            let joins = joined * self.topics();
            joining.add(joins, boot_us() - start, self.cpu()?.since(cpu));
            let totals = self.crew.totals();
            if ended == Ended::Interrupted {
                report.interrupted = true;
                break;
            }
            if totals.ready < wanted {
                let why = self.crew.first_trouble().unwrap_or_else(|| "no answer".to_owned());
                let (ready, inside) = (totals.ready, totals.inside);
                return Err(RunError::Stuck(format!(
                    "only {ready} of {to} clients are in their conversations ({inside} logged in): {why}"
                )));
            }
            std::thread::sleep(SETTLE);
            memory.push(self.memory(to)?);
        }
        report.login_us = Percentiles::of(&self.crew.login_times()?);
        report.available_bytes = kernel::available_bytes();
        report.memory = Memory::of(memory);
        report.logins = entry;
        report.joins = joining;
        Ok(())
    }

    /// Conversations that each session is in.
    fn topics(&self) -> u64 {
        1 + self.settings.groups.len() as u64
    }

    fn idle(&mut self, report: &mut MillionReport) -> Result<(), RunError> {
        // Beats that were put off while the machine was busy are over.
        self.watch.progress.phase("settling", 1);
        let settle = Duration::from_millis(self.settings.heartbeat_ms.min(10_000));
        let never = |_: &Totals| false;
        let silent = |_: &Totals| String::new();
        self.watch.until(&self.crew, self.fleet.servers(), settle, |_| 0, silent, never)?;
        let (start, cpu) = (boot_us(), self.cpu()?);
        self.watch.progress.phase("heartbeating", (self.settings.seconds * 1e3) as u64);
        let at = move |_: &Totals| (boot_us() - start) / 1_000;
        let length = Duration::from_secs_f64(self.settings.seconds);
        self.watch.until(&self.crew, self.fleet.servers(), length, at, silent, never)?;
        let (used, seconds) = (self.cpu()?.since(cpu), (boot_us() - start) as f64 / 1e6);
        let each = |us: u64| us as f64 / seconds / f64::from(self.settings.sessions);
        report.idle = Some(Idle {
            seconds,
            heartbeat_s: self.settings.heartbeat_ms as f64 / 1e3,
            gateway_cpu_us_per_session_s: each(used.gateway_us),
            dispatcher_cpu_us_per_session_s: each(used.dispatcher_us),
            client_cpu_us_per_session_s: each(used.client_us),
        });
        Ok(())
    }

    /// Direct messages and nothing else. Returns the CPU that this takes, in microseconds a second: what a fan-out
    /// takes is told less this.
    fn direct(&mut self, probe: &mut Probe, report: &mut MillionReport) -> Result<[f64; 2], RunError> {
        let count = (self.settings.seconds * self.settings.probe_rate) as u64;
        self.watch.progress.phase("direct messages", count);
        let (start, cpu) = (boot_us(), self.cpu()?);
        let mut flight = probe.send(self.settings.seconds)?;
        let direct = probe.collect(&mut flight, &self.watch)?;
        let (used, seconds) = (self.cpu()?.since(cpu), (boot_us() - start) as f64 / 1e6);
        if let Some(latency) = &direct.histogram {
            report.curves.push(("direct, all others idle".to_owned(), curve(latency)));
        }
        report.direct = Some(direct);
        report.probe_pairs = PAIRS;
        Ok([used.gateway_us as f64 / seconds, used.dispatcher_us as f64 / seconds])
    }

    fn fan_out(
        &mut self,
        class: crate::world::Class,
        probe: &mut Probe,
        calm: [f64; 2],
        report: &mut MillionReport,
    ) -> Result<(), RunError> {
        let nth = report.fan_outs.len() as u32;
        // To everyone as the floor does it: what it took for one is the pause before the next.
        let floor = report.floor.filter(|floor| class.kind == Kind::Room && floor.deliveries > 0);
        let back_to_back_s = floor.map(|floor| floor.last_receiver_us.p50 as f64 / 1e6);
        let length_s = self.settings.seconds * FAN_OUT_SHARE;
        let (schedule, seconds) = fan_out::plan(&self.world, class, nth, length_s, back_to_back_s);
        let patience_us = STRAGGLERS_US + u64::from(class.members) * PATIENCE_US;
        let (start, cpu) = (boot_us(), self.cpu()?);
        let mut flight = probe.send(seconds + patience_us as f64 / 1e6)?;
        self.watch.send(&self.crew, self.fleet.servers(), &schedule, patience_us)?;
        self.watch.progress.done();
        let (used, took_us) = (self.cpu()?.since(cpu), (boot_us() - start) as f64);
        probe.cut_short(&mut flight)?;
        let direct = probe.collect(&mut flight, &self.watch)?;
        let books = self.crew.books()?.ok_or(RunError::NoBooks)?;
        let mut entry = fan_out::add_up(&self.world, class, &schedule, books, &direct);
        let beyond = |used: u64, calm: f64| (used as f64 - calm * took_us / 1e6).max(0.0);
        if entry.deliveries > 0 {
            entry.gateway_gross_cpu_us_per_delivery = Some(used.gateway_us as f64 / entry.deliveries as f64);
            let gateway = beyond(used.gateway_us, calm[0]);
            entry.gateway_cpu_us_per_delivery = Some(gateway / entry.deliveries as f64);
            let dispatcher = beyond(used.dispatcher_us, calm[1]);
            entry.dispatcher_cpu_us_per_message = Some(dispatcher / entry.messages.max(1) as f64);
        }
        let name = match class.kind {
            Kind::Room => format!("room of all {}", class.members),
            _ => format!("group of {}", class.members),
        };
        if let Some(latency) = &entry.latency {
            report.curves.push((name, curve(latency)));
        }
        report.direct_meanwhile.add(&direct);
        report.fan_outs.push(entry);
        Ok(())
    }

    /// Takes everything down, and adds up what went wrong.
    fn finish(self, report: &mut MillionReport) -> Result<(), RunError> {
        let Stage { crew, fleet, mut watch, .. } = self;
        report.with_totals(&crew.totals(), crew.first_trouble());
        watch.progress.phase("closing", 1);
        // The gateway first: clients that close a million connections in order take longer than the kernel does.
        fleet.stop();
        crew.finish()?;
        watch.progress.done();
        Ok(())
    }
}
