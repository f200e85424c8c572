//! A run: one store after the other, each with a fleet of its own and all parts on it.
//!
//! The rule: a store that fails is told with its reason, and the next one is run all the same; Ctrl-C ends the run with
//! what was measured so far.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_protocol::conversation::direct;

use super::CostsArgs;
use super::catch_up::CatchUp;
use super::desk::Desk;
use super::fleet::Fleet;
use super::flow::{Flow, Pace, Talk};
use super::line::Who;
use super::log_in::LogIn;
use super::report::{self, CostsReport, OfStore};
use super::sender::Seed;
use crate::measure::Machine;
use crate::progress::Progress;
use crate::rig::RunError;
use crate::rng::Rng;
use crate::tokens::Signer;
use crate::verify::redis;

/// Messages flow so long before they are measured, in us.
const WARM_UP_US: u64 = 1_000_000;

/// Members of a group, and those of them who are online beside the sender.
const MEMBERS: u32 = 10;
const LISTENERS: u32 = 2;

/// Unread messages in each conversation of who logs in.
const UNREAD: u64 = 3;

/// A part is over within this time, beyond what it measures.
const PART_WITHIN: Duration = Duration::from_secs(120);

/// Messages a second that the slowest store takes of one sender, for the bound of a seed.
const SEED_PER_S: u64 = 200;

/// Runs all stores.
///
/// # Errors
/// A flag that can't be, or Ctrl-C before anything was measured.
pub fn run(
    args: &CostsArgs,
    mut progress: Progress,
    stop: &Arc<AtomicBool>,
) -> Result<CostsReport, RunError> {
    args.check()?;
    let mut left_out = BTreeMap::new();
    let mut stores = Vec::new();
    for store in args.stores() {
        if store.redis_servers() > 0 && redis::server().is_none() {
            let why = "redis-server is missing (Debian package redis-server)".to_owned();
            left_out.insert(store, why);
            continue;
        }
        let of = OfStore {
            store,
            durability: store.durability(),
            direct: None,
            group: None,
            catch_up: None,
            log_in: None,
            trouble: None,
        };
        let mut run = Run { args, progress: &mut progress, stop, of };
        match run.all() {
            Ok(()) | Err(RunError::Interrupted) => {}
            Err(error) => run.of.trouble = Some(error.to_string()),
        }
        let of = run.of;
        if of.direct.is_some() || of.trouble.is_some() {
            stores.push(of);
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    progress.done();
    let interrupted = stop.load(Ordering::Relaxed);
    if interrupted && stores.is_empty() {
        return Err(RunError::Interrupted);
    }
    Ok(CostsReport {
        scenario: "costs",
        command: std::env::args().collect::<Vec<_>>().join(" "),
        version: env!("CARGO_PKG_VERSION"),
        machine: Machine::here(),
        pairs: args.pairs,
        groups: args.groups,
        window: args.window,
        payload_bytes: args.payload_bytes,
        stores,
        left_out,
        interrupted,
    })
}

struct Run<'a> {
    args: &'a CostsArgs,
    progress: &'a mut Progress,
    stop: &'a Arc<AtomicBool>,
    of: OfStore,
}

/// The clients and servers of a store.
struct Stage {
    fleet: Fleet,
    desk: Desk,
    signer: Signer,
    /// Tells the messages of the parts apart.
    run: u32,
}

impl Stage {
    fn who(&self, user: &str, device: &str) -> Result<Who, RunError> {
        let token = self.signer.sign_one(user)?;
        Ok(Who { user: user.to_owned(), device: device.to_owned(), token })
    }

    /// New devices of a user.
    fn devices(&self, user: &str, count: u32) -> Result<Vec<Who>, RunError> {
        (0..count).map(|nth| self.who(user, &format!("d{nth}"))).collect()
    }

    /// For one more part, with nobody connected.
    fn next_part(&mut self) -> u32 {
        self.desk.dismiss();
        self.run += 1;
        self.run
    }
}

impl Run<'_> {
    fn all(&mut self) -> Result<(), RunError> {
        self.say("starting", 1);
        let (signer, jwks) = Signer::generate()?;
        let fleet = Fleet::start(self.of.store, &jwks, self.stop)?;
        let desk = Desk::open(self.args.io, fleet.address()?)?;
        let run = Rng::from_system().bits() as u32 >> 8;
        let mut stage = Stage { fleet, desk, signer, run };
        self.say("direct messages", self.args.pairs.into());
        self.of.direct = Some(self.direct(&mut stage)?);
        self.say("messages to groups", self.args.groups.into());
        self.of.group = Some(self.group(&mut stage)?);
        self.say("reading what was missed", self.args.missed.into());
        self.of.catch_up = Some(self.catch_up(&mut stage)?);
        self.say("logging in", self.args.conversations.into());
        self.of.log_in = Some(self.log_in(&mut stage)?);
        Ok(())
    }

    fn say(&mut self, what: &str, total: u64) {
        self.progress.phase(&format!("{}: {what}", self.of.store), total);
    }

    fn direct(&self, stage: &mut Stage) -> Result<report::Flow, RunError> {
        let talks = (0..self.args.pairs).map(|pair| {
            let (from, to) = (format!("from{pair}"), format!("to{pair}"));
            Ok(Talk {
                conversation: direct(&from, &to),
                group: None,
                sender: stage.who(&from, "d")?,
                listeners: vec![stage.who(&to, "d")?],
                members: Vec::new(),
            })
        });
        let talks = talks.collect::<Result<_, RunError>>()?;
        self.flow(stage, talks)
    }

    fn group(&self, stage: &mut Stage) -> Result<report::Flow, RunError> {
        let talks = (0..self.args.groups).map(|group| {
            let name = format!("group{group}");
            let user = |nth: u32| format!("{name}-{nth}");
            Ok(Talk {
                conversation: format!("g:{name}"),
                sender: stage.who(&user(0), "d")?,
                listeners: (1..=LISTENERS).map(|nth| stage.who(&user(nth), "d")).collect::<Result<_, _>>()?,
                members: (1..MEMBERS).map(user).collect(),
                group: Some(name),
            })
        });
        let talks = talks.collect::<Result<_, RunError>>()?;
        self.flow(stage, talks)
    }

    fn flow(&self, stage: &mut Stage, talks: Vec<Talk>) -> Result<report::Flow, RunError> {
        let pace = Pace {
            run: stage.next_part(),
            window: self.args.window,
            payload_bytes: self.args.payload_bytes,
            warm_up_us: WARM_UP_US,
            measured_us: (self.args.seconds * 1e6) as u64,
        };
        let mut part = Flow::new(&mut stage.desk, talks, pace);
        let within = PART_WITHIN + Duration::from_secs_f64(self.args.seconds);
        stage.desk.run(&mut part, &mut stage.fleet, within)?;
        Ok(report::Flow::of(&part.finish()))
    }

    fn catch_up(&self, stage: &mut Stage) -> Result<report::CatchUp, RunError> {
        let conversation = direct("away", "friend");
        let count = u64::from(self.args.missed);
        let run = stage.next_part();
        let senders = vec![(stage.who("friend", "d")?, conversation.clone())];
        self.seed(stage, senders, run, count)?;
        let devices = stage.devices("away", self.args.repeat)?;
        stage.desk.dismiss();
        let mut part = CatchUp::new(&mut stage.desk, devices, conversation, run, count);
        stage.desk.run(&mut part, &mut stage.fleet, self.repeated())?;
        Ok(part.finish())
    }

    fn log_in(&self, stage: &mut Stage) -> Result<report::LogIn, RunError> {
        let run = stage.next_part();
        let peers = (0..self.args.conversations).map(|nth| {
            let peer = format!("peer{nth}");
            Ok((stage.who(&peer, "d")?, direct("popular", &peer)))
        });
        let peers: Vec<(Who, String)> = peers.collect::<Result<_, RunError>>()?;
        let conversations = peers.iter().map(|(_, conversation)| conversation.clone()).collect();
        self.seed(stage, peers, run, UNREAD)?;
        let devices = stage.devices("popular", self.args.repeat)?;
        stage.desk.dismiss();
        let mut part = LogIn::new(devices, conversations, run, UNREAD);
        stage.desk.run(&mut part, &mut stage.fleet, self.repeated())?;
        Ok(part.finish())
    }

    fn seed(
        &self,
        stage: &mut Stage,
        senders: Vec<(Who, String)>,
        run: u32,
        count: u64,
    ) -> Result<(), RunError> {
        let mut seed = Seed::new(&mut stage.desk, senders, run, count, self.args.payload_bytes);
        let within = PART_WITHIN + Duration::from_secs(count / SEED_PER_S);
        stage.desk.run(&mut seed, &mut stage.fleet, within)
    }

    /// The bound of a part that is repeated.
    fn repeated(&self) -> Duration {
        PART_WITHIN + Duration::from_secs(20) * self.args.repeat
    }
}
