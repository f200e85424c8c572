//! The floor: what a delivery costs when a server does nothing but send. CPU per delivery is told as a ratio to it.
//!
//! A child process with the same edge, on the same cores, with as many connections and armed polls, sends the same
//! frame to all of them, so many at a time as a gateway shard does. The clients read and count as they do under load.
//! It has no sessions, topics, queues or store. Where the gateway's clients heartbeat meanwhile, the floor's do too, and
//! are answered. The rule: whatever else is different from a gateway is a mistake here.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use millrace_edge::clock::boot_us;
use millrace_edge::mailbox::{self, Receiver};
use millrace_edge::wait::wait;
use millrace_edge::wake::Waker;
use millrace_edge::{Budget, Config, Conn, Edge, Event, Io, Payload, Refused, affinity, memory, rlimit};
use millrace_protocol::frame::{FrameKind, SharedFrame, encode_body};
use millrace_protocol::messages::client::{Deliver, Notify, notify};
use millrace_protocol::prost::Message;
use serde::Serialize;

use crate::args::Settings;
use crate::child::{self, Child, Scratch};
use crate::clients::{Crew, Manner, Order, Setup, Transport};
use crate::limits::{FLOOR_BATCH, STRAGGLERS_US, TURN_COMPLETIONS};
use crate::measure::{Percentiles, cpu_us};
use crate::payload::Header;
use crate::progress::Progress;
use crate::rig::RunError;
use crate::schedule::{Due, Schedule};
use crate::world::World;

/// So long heartbeats are watched before anything is sent, in microseconds.
const CALM_US: u64 = 8_000_000;

/// What the floor took.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Floor {
    /// Frames sent and read.
    pub deliveries: u64,
    /// CPU of the sending process, kernel included, in microseconds, less what heartbeats alone take in that time.
    pub cpu_us: u64,
    /// The same with nothing subtracted.
    pub gross_cpu_us: u64,
    /// Time from due to the last receiver, in microseconds (of the last measurement).
    pub last_receiver_us: Percentiles,
}

impl Floor {
    /// Two measurements as one.
    pub fn plus(self, later: Floor) -> Floor {
        Floor {
            deliveries: self.deliveries + later.deliveries,
            cpu_us: self.cpu_us + later.cpu_us,
            gross_cpu_us: self.gross_cpu_us + later.gross_cpu_us,
            last_receiver_us: later.last_receiver_us,
        }
    }

    /// CPU of one delivery in microseconds.
    pub fn cpu_us_per_delivery(&self) -> Option<f64> {
        (self.deliveries > 0).then(|| self.cpu_us as f64 / self.deliveries as f64)
    }

    /// The same with nothing subtracted.
    pub fn gross_cpu_us_per_delivery(&self) -> Option<f64> {
        (self.deliveries > 0).then(|| self.gross_cpu_us as f64 / self.deliveries as f64)
    }
}

/// Over which sockets.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many.
    pub connections: u32,
    /// Of each frame's payload.
    pub payload_bytes: usize,
    /// Sockets through.
    pub io: Io,
    /// The first one is the sender's; none: where it likes.
    pub server_cpus: Vec<usize>,
    /// One for each load thread; none: where they like.
    pub load_cpus: Vec<usize>,
    /// Load threads.
    pub threads: usize,
    /// Connects offered a second; 0: as fast as they go.
    pub connect_rate: f64,
    /// The last round may take so long, in microseconds.
    pub patience_us: u64,
    /// Each client sends a heartbeat so often, in milliseconds, and gets its answer; 0: none does.
    pub heartbeat_ms: u64,
    /// Of the load threads.
    pub niceness: u8,
}

impl Plan {
    /// As the scenario's own gateway and clients have it.
    pub fn of(settings: &Settings) -> Self {
        Plan {
            connections: settings.connections,
            payload_bytes: settings.common.payload_bytes,
            io: settings.common.io,
            server_cpus: settings.cores.server.clone(),
            load_cpus: settings.cores.load.clone(),
            threads: settings.threads,
            connect_rate: settings.common.connect_rate,
            patience_us: STRAGGLERS_US,
            heartbeat_ms: 0,
            niceness: 0,
        }
    }
}

/// Measures `rounds` sends to all connections, `gap_us` apart.
pub fn measure(
    plan: &Plan,
    rounds: u32,
    gap_us: u64,
    progress: &mut Progress,
    stop: &AtomicBool,
) -> Result<Floor, RunError> {
    let connections = plan.connections;
    let mut child = start(plan, false)?;
    let target = child.address("tcp").ok_or(RunError::NoAddress("the floor"))?;
    // One more user than connections: the one who sends.
    let world =
        Arc::new(World::new(crate::rng::Rng::from_system().bits() as u32, connections + 1, true, &[], 0));
    let crew = Crew::start(Setup {
        world: Arc::clone(&world),
        tokens: Vec::new(),
        targets: vec![target],
        transport: Transport::Tcp,
        manner: Manner::Listener { heartbeat_ms: plan.heartbeat_ms },
        io: plan.io,
        clients: connections,
        threads: plan.threads,
        cpus: plan.load_cpus.clone(),
        payload_bytes: plan.payload_bytes,
        tickets: false,
        founded: true,
        niceness: plan.niceness,
    })?;
    progress.phase("floor: connecting", connections.into());
    crew.order(|| Order::Up { to: connections, per_s: plan.connect_rate })?;
    let until = |child: &mut Child, done: &mut dyn FnMut() -> bool, limit_us: u64| {
        let end = boot_us() + limit_us;
        while !done() {
            child.check()?;
            if boot_us() >= end || stop.load(Ordering::Relaxed) || crew.has_failed() {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok::<_, RunError>(true)
    };
    let arrived = until(
        &mut child,
        &mut || {
            let ready = crew.totals().ready;
            progress.at(ready, String::new);
            ready == u64::from(connections)
        },
        30_000_000 + u64::from(connections) * 1_000,
    )?;
    if stop.load(Ordering::Relaxed) {
        return Ok(Floor::default());
    }
    if !arrived {
        let why = crew.first_trouble().unwrap_or_default();
        return Err(RunError::Stuck(format!("the floor's connections are not up: {why}")));
    }

    // What heartbeats alone take, in microseconds a second.
    let mut calm = 0.0;
    if plan.heartbeat_ms > 0 {
        let settle_us = (plan.heartbeat_ms * 1_000).min(CALM_US);
        progress.phase("floor: heartbeating", 1);
        until(&mut child, &mut || false, settle_us)?;
        let (start, before) = (boot_us(), cpu_us(child.pid())?);
        until(&mut child, &mut || false, CALM_US)?;
        calm = (cpu_us(child.pid())? - before) as f64 * 1e6 / (boot_us() - start) as f64;
    }
    let start_us = boot_us() + 300_000;
    let messages = (0..u64::from(rounds)).map(|round| Due {
        at_us: round * gap_us,
        conversation: 0,
        sender: connections,
    });
    let schedule = Arc::new(Schedule { messages: messages.collect(), nth: 0 });
    crew.order(|| Order::Send { schedule: Arc::clone(&schedule), start_us })?;
    let (begun, before) = (boot_us(), cpu_us(child.pid())?);
    child.tell(&format!("{} {rounds} {gap_us} {start_us}", world.run()))?;
    let wanted = u64::from(rounds) * u64::from(connections);
    progress.phase("floor: sending", wanted);
    until(
        &mut child,
        &mut || {
            let deliveries = crew.totals().deliveries;
            progress.at(deliveries, String::new);
            deliveries >= wanted
        },
        u64::from(rounds) * gap_us + plan.patience_us,
    )?;
    let used = cpu_us(child.pid())? - before;
    let beats = (calm * boot_us().saturating_sub(begun) as f64 / 1e6) as u64;
    let books = crew.finish()?.ok_or(RunError::NoBooks)?;
    child.stop();
    let account = books.account(&world, &schedule);
    let last = account.last_receiver.values().next().map(Percentiles::of).unwrap_or_default();
    Ok(Floor {
        deliveries: account.deliveries,
        cpu_us: used.saturating_sub(beats),
        gross_cpu_us: used,
        last_receiver_us: last,
    })
}

/// Starts a floor; if `bare`, the one that has no io_uring.
pub(crate) fn start(plan: &Plan, bare: bool) -> Result<Child, RunError> {
    let scratch = Scratch::new()?;
    let mut args = vec![
        "floor".to_owned(),
        format!("--connections={}", plan.connections),
        format!("--payload-bytes={}", plan.payload_bytes),
        format!("--io={}", plan.io),
        format!("--cpus={}", list(&plan.server_cpus)),
        format!("--scratch={}", scratch.path().display()),
    ];
    if bare {
        args.push("--bare".to_owned());
    }
    Ok(Child::start("the floor", args.iter().map(Into::into).collect(), scratch)?)
}

pub(crate) fn list(cpus: &[usize]) -> String {
    cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

/// Flags of the hidden subcommand `floor`.
#[derive(Debug, Parser)]
pub struct FloorArgs {
    #[arg(long)]
    connections: u32,
    #[arg(long)]
    pub(crate) payload_bytes: usize,
    #[arg(long)]
    io: Io,
    /// A loop of send(2) instead of an edge.
    #[arg(long)]
    bare: bool,
    /// The first one is taken; none: where it likes.
    #[arg(long, value_delimiter = ',')]
    pub(crate) cpus: Vec<String>,
    /// A directory to remove at the end, should the parent be gone by then.
    #[arg(long)]
    pub(crate) scratch: PathBuf,
}

/// One measurement, as the parent asks for it on stdin.
pub(crate) struct Task {
    pub(crate) run: u32,
    pub(crate) rounds: u32,
    pub(crate) gap_us: u64,
    pub(crate) start_us: u64,
}

pub(crate) fn parse(line: &str) -> Option<Task> {
    let mut words = line.split_whitespace();
    let task = Task {
        run: words.next()?.parse().ok()?,
        rounds: words.next()?.parse().ok()?,
        gap_us: words.next()?.parse().ok()?,
        start_us: words.next()?.parse().ok()?,
    };
    Some(task)
}

struct Loop {
    edge: Box<dyn Edge>,
    waker: Waker,
    /// By slot, as a pass goes.
    conns: Vec<Option<Conn>>,
    events: Vec<Event>,
    /// The answer to a heartbeat, and those who wait for it behind a send in flight.
    pong: Rc<[u8]>,
    owed: Vec<Conn>,
}

/// The server: accepts, and sends when told to. Ends with its parent.
pub fn serve(args: FloorArgs) -> io::Result<()> {
    if args.bare {
        return crate::compare::bare::serve(args);
    }
    // As gateways do.
    let _ = memory::use_small_pages();
    // One sending thread: the figure is CPU per send, whatever the number of shards.
    if let Some(cpu) = args.cpus.first().and_then(|cpu| cpu.parse().ok()) {
        affinity::pin_current_thread(cpu)?;
    }
    rlimit::raise_nofile()?;
    let waker = Waker::new()?;
    let (tasks, inbox) = mailbox::mailbox(4, waker.clone());
    let capacity = crate::rig::capacity(args.connections);
    let (mut edge, _) = millrace_edge::open(args.io, Config::new(capacity, waker.clone()))?;
    let address: SocketAddr = edge.listen(([127, 0, 0, 1], 0).into())?;
    let heard = move |line: String| {
        if let Some(task) = parse(&line) {
            // A parent that does not wait for the end of one before the next gets fewer.
            let _ = tasks.send(task);
        }
    };
    let scratch = args.scratch;
    child::end_with_parent(heard, move |_| {
        // There is no log but for the parent to read, and it has stopped reading.
        let _ = std::fs::remove_dir_all(&scratch);
    });
    println!("listening tcp={address}");
    let (pong, owed) = (encode_body(FrameKind::Pong, &[]).into(), Vec::new());
    let mut looping = Loop { edge, waker, conns: Vec::new(), events: Vec::new(), pong, owed };
    looping.run(&inbox, args.payload_bytes)
}

impl Loop {
    fn run(&mut self, inbox: &Receiver<Task>, payload_bytes: usize) -> io::Result<()> {
        loop {
            self.turn(Duration::from_millis(100))?;
            while let Some(task) = inbox.recv() {
                for round in 0..task.rounds {
                    self.round(&task, round, payload_bytes)?;
                }
            }
        }
    }

    /// One turn, asleep before it for at most `patience` if there is nothing to do.
    fn turn(&mut self, patience: Duration) -> io::Result<()> {
        let turn = self.edge.turn(Budget { completions: TURN_COMPLETIONS }, &mut self.events)?;
        for event in self.events.drain(..) {
            match event {
                Event::Accepted { conn, .. } => {
                    let slot = conn.slot as usize;
                    if slot >= self.conns.len() {
                        self.conns.resize(slot + 1, None);
                    }
                    self.conns[slot] = Some(conn);
                }
                Event::Closed { conn, .. } => {
                    if let Some(entry) = self.conns.get_mut(conn.slot as usize) {
                        *entry = None;
                    }
                }
                // Floor clients say nothing but heartbeats.
                Event::Received { conn, .. } => self.owed.push(conn),
                Event::Connected { .. } | Event::Sent { .. } => {}
            }
        }
        self.owed.retain(|conn| {
            let pong = Payload::Shared { bytes: Rc::clone(&self.pong), start: 0 };
            matches!(self.edge.send(*conn, pong), Err(Refused::InFlight(_)))
        });
        if !turn.more && turn.completions == 0 && !patience.is_zero() {
            wait(&*self.edge, &self.waker, patience);
        }
        Ok(())
    }

    fn round(&mut self, task: &Task, round: u32, payload_bytes: usize) -> io::Result<()> {
        let due_us = task.start_us + u64::from(round) * task.gap_us;
        loop {
            let left = due_us.saturating_sub(boot_us());
            if left == 0 {
                break;
            }
            self.turn(Duration::from_micros(left))?;
        }
        let frame = frame(task.run, round, due_us, payload_bytes);
        let start = frame.tcp_start() as u32;
        let mut batch = 0;
        for slot in 0..self.conns.len() {
            let Some(conn) = self.conns[slot] else { continue };
            loop {
                let payload = Payload::Shared { bytes: frame.bytes().clone(), start };
                match self.edge.send(conn, payload) {
                    Ok(()) => break,
                    // The round before it is still under way there.
                    Err(Refused::InFlight(_)) => self.turn(Duration::from_millis(1))?,
                    Err(_) => break,
                }
            }
            batch += 1;
            if batch == FLOOR_BATCH {
                batch = 0;
                self.turn(Duration::ZERO)?;
            }
        }
        Ok(())
    }
}

/// A frame like a room's, of the same length on the wire but for a digit of its sender's number.
pub(crate) fn frame(run: u32, message: u32, due_us: u64, payload_bytes: usize) -> SharedFrame {
    let header = Header { run, message, conversation: 0, sender: u32::MAX, due_us };
    let deliver = Deliver {
        conversation: format!("r:{run:08x}"),
        seq: u64::from(message) + 1,
        message_id: due_us << 20,
        sender: format!("u{run:08x}-{message:04}"),
        sender_device: "d".to_owned(),
        server_time_ms: due_us,
        epoch: due_us,
        payload: header.encode(payload_bytes).into(),
        content_kind: 0,
        action: 0,
        refers_to: 0,
    };
    SharedFrame::notify(&Notify { event: Some(notify::Event::Deliver(deliver)) }.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_read_and_nonsense_is_not() {
        let task = parse("7 10 500000 123456789").unwrap();
        assert_eq!((task.run, task.rounds, task.gap_us, task.start_us), (7, 10, 500_000, 123_456_789));
        assert!(parse("7 10 x 1").is_none() && parse("").is_none());
    }

    #[test]
    fn the_floor_sends_what_a_room_would() {
        let frame = frame(5, 3, 1 << 40, 128);
        let body = frame.body();
        let deliver = millrace_protocol::client_session::peek_deliver(body).expect("a Deliver");
        assert_eq!((deliver.conversation, deliver.seq, deliver.payload.len()), ("r:00000005", 4, 128));
        assert!(Header::decode(deliver.payload).is_some());
    }
}
