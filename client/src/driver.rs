//! The task behind a client: a thin shell around [`Machine`]. It owns the socket, the clock and the channels, carries
//! out what the machine wants, and decides nothing.
//!
//! The rule that keeps it right: nothing is read from the socket, and no frame given to the machine, while the machine
//! says that enough waits for the application.

use std::collections::HashMap;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Notify, SendAck, notify};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::config::Config;
use crate::core::{Action, Event, Machine, Outgoing, Position};
use crate::error::{ConnectError, Reason, SendError};
use crate::event::Event as Notice;
use crate::saver::Saver;
use crate::taken::Taken;
use crate::wire::{Incoming, NotOpened, Wire};

/// What handles ask for.
#[derive(Debug)]
pub(crate) enum Command {
    Send { conversation: String, message: Outgoing, deadline: Instant, done: Acknowledge },
    Call { op: Op, deadline: Instant, done: Answer },
    Typing { conversation: String, what: u32 },
    Logout { done: oneshot::Sender<()> },
}

/// Who waits for a message's acknowledgement.
pub(crate) type Acknowledge = oneshot::Sender<Result<SendAck, SendError>>;

/// Who waits for a request's answer.
pub(crate) type Answer = oneshot::Sender<Result<Outcome, SendError>>;

/// Who waits, by the key that the machine was given.
#[derive(Debug)]
enum Waiter {
    Message(Acknowledge),
    Call(Answer),
    Logout(oneshot::Sender<()>),
}

/// What is done beside everything else: getting a token, connecting.
type Work = Pin<Box<dyn Future<Output = Made> + Send>>;

enum Made {
    Token(u64, Result<String, String>),
    Wire(u64, Box<Result<Wire, NotOpened>>),
}

/// Why the task woke.
enum Wake {
    Made(Made),
    Readable,
    Writable,
    Broken(Reason),
    Command(Option<Command>),
    Taken,
    NotSaved(String),
    Tick,
}

/// See the module's head.
pub(crate) struct Driver {
    config: Arc<Config>,
    machine: Machine,
    commands: mpsc::Receiver<Command>,
    events: mpsc::UnboundedSender<(u64, Notice)>,
    taken: Arc<Taken>,
    saver: Saver,
    first: Option<oneshot::Sender<Result<(), ConnectError>>>,
    waiters: HashMap<u64, Waiter>,
    next_key: u64,
    conn: u64,
    work: Option<Work>,
    wire: Option<Wire>,
    start: Instant,
    deaf: bool,
    ended: bool,
}

fn random() -> u64 {
    // Numbers only spread load and tell streams apart. Without a source of them (no kernel here lacks one), the clock.
    getrandom::u64().unwrap_or_else(|_| {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |since| since.as_nanos() as u64)
    })
}

impl Driver {
    pub(crate) fn new(
        config: Config,
        kept: Vec<(String, Position)>,
        commands: mpsc::Receiver<Command>,
        events: mpsc::UnboundedSender<(u64, Notice)>,
        taken: Arc<Taken>,
        first: oneshot::Sender<Result<(), ConnectError>>,
    ) -> Self {
        Driver {
            machine: Machine::new(config.settings(), random(), kept, 0),
            saver: Saver::new(config.cursors.clone()),
            config: Arc::new(config),
            commands,
            events,
            taken,
            first: Some(first),
            waiters: HashMap::new(),
            next_key: 0,
            conn: 0,
            work: None,
            wire: None,
            start: Instant::now(),
            deaf: false,
            ended: false,
        }
    }

    /// Runs until the client is at its end.
    pub(crate) async fn run(mut self) {
        self.step(Event::Tick);
        while !self.ended {
            if let Some(incoming) = self.next_frame() {
                let conn = self.conn;
                self.step(match incoming {
                    Incoming::Open => continue,
                    Incoming::Response(response) => Event::Response { conn, response },
                    Incoming::Notify(notify) => Event::Notify { conn, notify },
                    Incoming::Closed(reason) => Event::Lost { conn, reason },
                });
                continue;
            }
            if let Some(wire) = self.wire.as_mut().filter(|wire| wire.has_output()) {
                wire.write();
            }
            let wake = self.sleep().await;
            self.woken(wake);
        }
        self.finish().await;
    }

    fn next_frame(&mut self) -> Option<Incoming> {
        self.wire.as_mut().filter(|_| self.machine.reads())?.incoming.pop_front()
    }

    /// Waits for anything to happen.
    async fn sleep(&mut self) -> Wake {
        let next_ms = self.machine.next_ms().unwrap_or_else(|| self.now_ms() + 3_600_000);
        let next = self.start + Duration::from_millis(next_ms);
        let reads = self.machine.reads();
        let (work, wire) = (&mut self.work, &self.wire);
        let made = async {
            match work {
                Some(work) => work.await,
                None => pending().await,
            }
        };
        let readable = async {
            match wire {
                Some(wire) if reads => wire.readable().await,
                _ => pending().await,
            }
        };
        let writable = async {
            match wire {
                Some(wire) if wire.has_output() => wire.writable().await,
                _ => pending().await,
            }
        };
        let broken = |error: std::io::Error| Wake::Broken(Reason::Network(error.to_string()));
        tokio::select! {
            made = made => Wake::Made(made),
            ready = readable => ready.map_or_else(broken, |()| Wake::Readable),
            ready = writable => ready.map_or_else(broken, |()| Wake::Writable),
            command = self.commands.recv() => Wake::Command(command),
            () = self.taken.moved() => Wake::Taken,
            error = self.saver.run() => Wake::NotSaved(error),
            () = sleep_until(next) => Wake::Tick,
        }
    }

    fn woken(&mut self, wake: Wake) {
        match wake {
            Wake::Made(made) => {
                self.work = None;
                match made {
                    Made::Token(conn, token) => self.step(Event::Token { conn, token }),
                    Made::Wire(conn, wire) => match *wire {
                        Ok(wire) => {
                            (self.conn, self.wire) = (conn, Some(wire));
                            self.step(Event::Opened { conn });
                        }
                        Err(NotOpened { reason, away }) => {
                            if let Some(away) = away {
                                let notify = Notify { event: Some(notify::Event::GoAway(away)) };
                                self.step(Event::Notify { conn, notify });
                            }
                            self.step(Event::Lost { conn, reason });
                        }
                    },
                }
            }
            Wake::Readable => match self.wire.as_mut().map_or(Ok(false), Wire::read) {
                Ok(true) => self.step(Event::Heard { conn: self.conn }),
                Ok(false) => {}
                Err(reason) => self.broken(reason),
            },
            Wake::Writable => {}
            Wake::Broken(reason) => self.broken(reason),
            Wake::Command(command) => self.command(command),
            Wake::Taken => self.take(),
            Wake::NotSaved(reason) => {
                // Numbered as nothing that the machine counts: it does not hold back anything.
                let number = self.taken.number();
                let _ = self.events.send((number, Notice::NotSaved { reason }));
            }
            Wake::Tick => self.step(Event::Tick),
        }
    }

    fn take(&mut self) {
        if self.taken.has_left() && !self.deaf {
            self.deaf = true;
            self.step(Event::Deaf);
        }
        let number = self.taken.number();
        self.step(Event::Taken { number });
    }

    fn broken(&mut self, reason: Reason) {
        self.wire = None;
        self.step(Event::Lost { conn: self.conn, reason });
    }

    fn command(&mut self, command: Option<Command>) {
        let start = self.start;
        let ms = |deadline: Instant| deadline.saturating_duration_since(start).as_millis() as u64;
        let key = self.next_key;
        self.next_key += 1;
        if matches!(command, None | Some(Command::Logout { .. })) {
            // What was taken before it left is still acknowledged.
            self.take();
        }
        let (waiter, event) = match command {
            None => return self.step(Event::Leave),
            Some(Command::Typing { conversation, what }) => {
                return self.step(Event::Typing { conversation, what });
            }
            Some(Command::Send { conversation, message, deadline, done }) => {
                let deadline_ms = ms(deadline);
                (Waiter::Message(done), Event::Send { key, conversation, message, deadline_ms })
            }
            Some(Command::Call { op, deadline, done }) => {
                (Waiter::Call(done), Event::Call { key, op, deadline_ms: ms(deadline) })
            }
            Some(Command::Logout { done }) => (Waiter::Logout(done), Event::Logout { key }),
        };
        self.waiters.insert(key, waiter);
        self.step(event);
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn step(&mut self, event: Event) {
        for action in self.machine.step(self.now_ms(), event) {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Token { conn } => {
                let config = Arc::clone(&self.config);
                self.work = Some(Box::pin(async move { Made::Token(conn, config.token.get().await) }));
            }
            Action::Connect { conn, address } => {
                let config = Arc::clone(&self.config);
                self.work =
                    Some(Box::pin(
                        async move { Made::Wire(conn, Box::new(Wire::open(&address, &config).await)) },
                    ));
            }
            Action::Request { id, op } => {
                if let Some(wire) = &mut self.wire {
                    wire.request(id, op);
                }
            }
            Action::Ping => {
                if let Some(wire) = &mut self.wire {
                    wire.ping();
                }
            }
            Action::Close => {
                self.work = None;
                if let Some(wire) = self.wire.take() {
                    // What was asked last still goes out; nobody waits for it.
                    tokio::spawn(wire.close());
                }
            }
            // Whoever waited for one of these may have gone.
            Action::Tell { number, event } => drop(self.events.send((number, event))),
            Action::Settle { key, outcome } => self.settle(key, outcome),
            Action::Save(batch) => self.saver.push(batch),
            Action::First(outcome) => {
                if let Some(first) = self.first.take() {
                    let _ = first.send(outcome);
                }
            }
            Action::End(_) => self.ended = true,
        }
    }

    fn settle(&mut self, key: u64, outcome: Result<Outcome, SendError>) {
        match self.waiters.remove(&key) {
            Some(Waiter::Message(done)) => {
                let ack = outcome.and_then(|outcome| match outcome {
                    Outcome::SendAck(ack) => Ok(ack),
                    other => Err(SendError::Invalid(format!("no answer to a message: {other:?}"))),
                });
                let _ = done.send(ack);
            }
            Some(Waiter::Call(done)) => drop(done.send(outcome)),
            // Told when the last cursor is saved.
            Some(waiter @ Waiter::Logout(_)) => drop(self.waiters.insert(key, waiter)),
            None => {}
        }
    }

    /// At the end: handles learn it at once, also while the application takes no events; and what the application takes
    /// late is saved.
    async fn finish(mut self) {
        self.commands.close();
        // What is dropped is answered "ended".
        while self.commands.try_recv().is_ok() {}
        self.take();
        self.saver.flush().await;
        for (_, waiter) in self.waiters.drain() {
            if let Waiter::Logout(done) = waiter {
                let _ = done.send(());
            }
        }
        let Driver { mut machine, taken, mut saver, events, start, .. } = self;
        drop(events);
        while machine.has_untaken() && !taken.has_left() {
            taken.moved().await;
            let now_ms = start.elapsed().as_millis() as u64;
            for action in machine.step(now_ms, Event::Taken { number: taken.number() }) {
                if let Action::Save(batch) = action {
                    saver.push(batch);
                }
            }
            saver.flush().await;
        }
    }
}
