//! One device of a user: the production client machine, and the shell around it. Its process runs, crashes and starts
//! again; what it has saved by then is on its disk.
//!
//! It does what the SDK's driver does, in the same order, and decides nothing: bytes through the production codec, one
//! frame at a time while the machine reads, actions in order. What its application is told is [`crate::application`]'s;
//! what is promised about it is judged by the ledger.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use millrace_client::Reason;
use millrace_client::core::{Action, Event, Machine, Outgoing, Settings};
use millrace_protocol::client_session::ClientSession;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Code, GoAway, Notify, Read, notify};

use crate::agenda::{Due, Seat, Who};
use crate::application::Application;
use crate::clock::{MS, SECOND};
use crate::copy::Copies;
use crate::disk::Disk;
use crate::ledger::Invariant;
use crate::network::{ConnId, End, Item};
use crate::outside::Outside;
use crate::plan::Plan;
use crate::random::Random;
use crate::wire::{Heard, Incoming, Unread, Wire};

/// Nothing that the application asks is given up.
const NO_DEADLINE_MS: u64 = u64::MAX;

/// Who waits for an outcome.
enum Waiter {
    /// A message, by its number in the ledger.
    Message(u64),
    Call(Op),
}

/// One device.
pub struct Device {
    /// Its index.
    pub index: usize,
    /// Whose.
    pub user: String,
    /// Its name.
    pub name: String,
    websocket: bool,
    settings: Settings,
    /// `None`: its process does not run.
    machine: Option<Machine>,
    wire: Option<Wire>,
    waiters: BTreeMap<u64, Waiter>,
    application: Application,
    disk: Disk,
    next_key: u64,
    start_at_us: u64,
    wake_at_us: Option<u64>,
    online: bool,
    /// Since when it is logged in, or was last.
    online_at_us: u64,
    /// It loses messages, and what it is asked about them, until then.
    deaf_until_us: u64,
    /// Processes that were copied from it and are not closed yet.
    copies: Copies,
    /// Groups that it believes to be in.
    pub groups: BTreeSet<String>,
    /// Rooms that it wants to be in.
    pub rooms: BTreeSet<String>,
    /// How far its application was shown each conversation.
    shown: BTreeMap<String, u64>,
    gateways: usize,
    gateway_shards: usize,
    random: Random,
    messages: u64,
}

impl Device {
    /// A device that starts soon.
    pub fn new(index: usize, user: String, name: String, plan: &Plan, mut random: Random) -> Self {
        // On phones the newest session of a user wins: a user has one.
        let platform = if name == "device0" { "phone" } else { "desktop" };
        let mut settings = Settings::new("", &name);
        settings.addresses = (0..plan.gateways).map(address).collect();
        settings.platform = platform.into();
        settings.events_max = random.pick(&[2, 16, 1_024]);
        settings.connect_deadline_ms = 6_000;
        settings.backoff_ms = (50, 2_000);
        let (websocket, start_at_us) = (random.chance(400), random.below(300 * MS));
        Device {
            index,
            user,
            name,
            websocket,
            settings,
            machine: None,
            wire: None,
            waiters: BTreeMap::new(),
            application: Application::new(random.pick(&[0, 0, 0, 20 * MS, 300 * MS])),
            disk: Disk::new(random.pick(&[MS, 20 * MS, 500 * MS])),
            next_key: 1,
            start_at_us,
            wake_at_us: None,
            online: false,
            online_at_us: 0,
            deaf_until_us: 0,
            copies: Copies::new(u64::from(plan.heartbeat_ms) * MS / 2),
            groups: BTreeSet::new(),
            rooms: BTreeSet::new(),
            shown: BTreeMap::new(),
            gateways: plan.gateways,
            gateway_shards: plan.gateway_shards,
            random,
            messages: 0,
        }
    }

    /// Whether it is logged in, and its application has taken what it was told.
    pub fn is_online(&self) -> bool {
        self.online && self.application.is_idle()
    }

    // ---- what the user wants ----

    /// Sends a message.
    pub fn say(&mut self, out: &mut Outside, conversation: &str, filler: usize) {
        if self.machine.is_none() {
            return;
        }
        self.messages += 1;
        let text = format!("{}/{}#{};{}", self.user, self.name, self.messages, ".".repeat(filler));
        let payload = Bytes::from(text);
        let number = out.ledger.sends(self.index, conversation, payload.clone());
        let key = self.wait(Waiter::Message(number));
        let message = Outgoing { payload, ..Outgoing::default() };
        let conversation = conversation.to_owned();
        self.step(out, Event::Send { key, conversation, message, deadline_ms: NO_DEADLINE_MS });
    }

    /// Asks for something else.
    pub fn call(&mut self, out: &mut Outside, op: Op) {
        if self.machine.is_some() && self.waiters.len() < 64 {
            let key = self.wait(Waiter::Call(op.clone()));
            self.step(out, Event::Call { key, op, deadline_ms: NO_DEADLINE_MS });
        }
    }

    /// Marks something as read up to what it was shown last.
    pub fn mark_read(&mut self, out: &mut Outside, random: &mut Random) {
        let Some((conversation, seq)) = self.shown.iter().nth(random.index(self.shown.len())) else { return };
        let read = Read { conversation: conversation.clone(), seq: *seq };
        out.ledger.reads(&self.user, &read);
        self.call(out, Op::Read(read));
    }

    fn wait(&mut self, waiter: Waiter) -> u64 {
        self.next_key += 1;
        self.waiters.insert(self.next_key, waiter);
        self.next_key
    }

    /// Its network changes: the connection is lost on its side, and closed or left to die.
    pub fn change_network(&mut self, out: &mut Outside, silently: bool) {
        let Some(wire) = self.wire.take() else { return };
        if silently {
            out.network.vanish(&mut out.agenda, out.now_us, wire.id, 0, 3 * SECOND);
        } else {
            out.close(wire.id, 0);
        }
        self.step(out, Event::Lost { conn: wire.conn, reason: Reason::Network("it changed".into()) });
    }

    /// Its application is slow no more: however much it was told, it is through with it soon.
    pub fn hurry(&mut self, out: &mut Outside) {
        self.application.hurry(out.now_us);
        self.wake(out);
    }

    /// Its application takes nothing for a while.
    pub fn be_busy(&mut self, out: &mut Outside, for_us: u64) {
        self.application.be_busy(out.now_us + for_us);
    }

    /// It loses messages, and what it is asked about them, for a while.
    pub fn be_deaf(&mut self, until_us: u64) {
        self.deaf_until_us = self.deaf_until_us.max(until_us);
    }

    /// Its process is copied: the copy keeps the connection, and this one connects again.
    pub fn be_copied(&mut self, out: &mut Outside) {
        let is_over = |wire: &Wire| wire.incoming.iter().any(|it| matches!(it, Incoming::Closed(_)));
        let Some(wire) = self.wire.take_if(|wire| self.online && !is_over(wire)) else { return };
        out.trace.say(out.now_us, |text| *text += &format!("**** {}/{} is copied", self.user, self.name));
        let reason = Reason::Network("its process was copied".into());
        let conn = wire.conn;
        self.copies.add(out.now_us, wire.id, wire.speaks);
        self.step(out, Event::Lost { conn, reason });
    }

    /// Since when a copy is to be gone, if there is one: this device is logged in anew.
    pub fn is_doubled_since_us(&self) -> Option<u64> {
        (!self.copies.is_empty()).then_some(if self.online { self.online_at_us } else { u64::MAX })
    }

    /// Its process ends in the middle of whatever it does, and starts again after a while.
    pub fn crash(&mut self, out: &mut Outside, down_us: u64, silently: bool) {
        out.trace.say(out.now_us, |text| *text += &format!("**** {}/{} crashes", self.user, self.name));
        self.disk.crash(out.now_us, &mut self.random);
        if let Some(wire) = self.wire.take() {
            match silently {
                true => out.network.vanish(&mut out.agenda, out.now_us, wire.id, 0, 3 * SECOND),
                false => out.close(wire.id, 0),
            }
        }
        self.over(out, down_us);
    }

    /// The process is gone, whatever way.
    fn over(&mut self, out: &mut Outside, down_us: u64) {
        self.machine = None;
        self.online = false;
        self.application.forget();
        for waiter in std::mem::take(&mut self.waiters).into_values() {
            if let Waiter::Message(number) = waiter {
                out.ledger.abandoned(number);
            }
        }
        self.groups.clear();
        self.rooms.clear();
        self.shown.clear();
        self.start_at_us = out.now_us + down_us;
        self.wake(out);
    }

    fn start(&mut self, out: &mut Outside) {
        let kept = self.disk.load();
        out.ledger.device_starts(self.index, &kept);
        let seed = self.random.nonzero();
        self.machine = Some(Machine::new(self.settings.clone(), seed, kept, out.now_us / MS));
        self.step(out, Event::Tick);
    }

    // ---- time ----

    /// Asks to be woken when something is due.
    fn wake(&mut self, out: &mut Outside) {
        let now_us = out.now_us;
        let next_us = match &self.machine {
            None => self.start_at_us,
            Some(machine) => {
                let machine_us = machine.next_ms().map(|ms| ms.saturating_mul(MS));
                let due = [machine_us, self.application.next_us(), self.disk.next_us()];
                due.into_iter().flatten().min().unwrap_or(u64::MAX)
            }
        };
        let at_us = next_us.min(self.copies.next_us()).max(now_us + 1);
        if at_us < u64::MAX && self.wake_at_us.is_none_or(|noted| noted > at_us || noted <= now_us) {
            self.wake_at_us = Some(at_us);
            out.agenda.at(at_us, Due::Device(self.index));
        }
    }

    /// The time that it asked for, or an earlier wish of it.
    pub fn woken(&mut self, out: &mut Outside) {
        if self.wake_at_us.is_some_and(|at_us| at_us <= out.now_us) {
            self.wake_at_us = None;
        }
        self.copies.turn(out);
        if self.machine.is_none() && self.start_at_us <= out.now_us {
            return self.start(out);
        }
        self.disk.turn(out.now_us);
        self.take(out);
        if self.machine.is_some() {
            self.step(out, Event::Tick);
        }
        self.wake(out);
    }

    /// The application takes what it has time for.
    fn take(&mut self, out: &mut Outside) {
        while let Some((number, event)) = self.application.next(out.now_us) {
            out.trace.say(out.now_us, |text| {
                *text += &format!("{}/{} takes {number}: {event:?}", self.user, self.name);
            });
            if let millrace_client::Event::Message(message) = &event
                && !message.conversation.starts_with("r:")
            {
                self.shown.insert(message.conversation.clone(), message.seq);
            }
            out.ledger.shown(out.now_us, self.index, event);
            self.step(out, Event::Taken { number });
        }
    }

    // ---- the machine ----

    fn step(&mut self, out: &mut Outside, event: Event) {
        self.hear(out, event);
        self.read(out);
        self.wake(out);
    }

    fn hear(&mut self, out: &mut Outside, event: Event) {
        let Some(machine) = &mut self.machine else { return };
        for action in machine.step(out.now_us / MS, event) {
            self.carry_out(out, action);
            // It ended: what it would tell besides, by its own numbers, is not for the process that comes after it.
            if self.machine.is_none() {
                break;
            }
        }
    }

    /// Gives the machine what was received, while it reads.
    fn read(&mut self, out: &mut Outside) {
        while let Some(machine) = self.machine.as_ref().filter(|machine| machine.reads())
            && let Some(wire) = self.wire.as_mut()
            && let Some(incoming) = wire.incoming.pop_front()
        {
            let conn = wire.conn;
            match incoming {
                Incoming::Response(response) => {
                    out.trace.say(out.now_us, |text| {
                        *text += &format!("{}/{} < {response:?}", self.user, self.name);
                    });
                    if let Some(asked) = wire.asked.remove(&response.id)
                        && let Some(outcome) = &response.outcome
                    {
                        out.ledger.answers(out.now_us, &asked, outcome);
                    }
                    let begun = |conversation: &str| machine.cursor(conversation).is_some();
                    out.ledger.answered(out.now_us, self.index, &response, begun);
                    self.hear(out, Event::Response { conn, response });
                }
                Incoming::Notify(notify) => {
                    out.trace.say(out.now_us, |text| {
                        *text += &format!("{}/{} < {notify:?}", self.user, self.name);
                    });
                    out.ledger.notified(out.now_us, self.index, &notify);
                    if out.now_us < self.deaf_until_us && can_be_lost(&notify) {
                        continue;
                    }
                    self.hear(out, Event::Notify { conn, notify });
                }
                Incoming::Closed(reason) => {
                    if let Some(wire) = self.wire.take() {
                        out.close(wire.id, 0);
                    }
                    self.hear(out, Event::Lost { conn, reason });
                }
            }
        }
    }

    fn carry_out(&mut self, out: &mut Outside, action: Action) {
        match action {
            // The sim's gateways take a user's name for a token.
            Action::Token { conn } => {
                let token = Ok(self.user.clone());
                self.hear(out, Event::Token { conn, token });
            }
            Action::Connect { conn, address } => self.dial(out, conn, &address),
            Action::Request { id, op } => {
                out.trace.say(out.now_us, |text| {
                    *text += &format!("{}/{} > {id} {op:?}", self.user, self.name);
                });
                if let (Op::Send(send), Some(wire)) = (&op, &mut self.wire) {
                    wire.asked.insert(id, out.ledger.asks((&self.user, &self.name), send));
                }
                self.write(out, |speaks, bytes| speaks.request(id, op, bytes));
            }
            Action::Ping => self.write(out, |speaks, bytes| speaks.ping(bytes)),
            Action::Close => {
                if let Some(wire) = self.wire.take() {
                    out.close(wire.id, 0);
                }
            }
            Action::Tell { number, event } => self.told(out, number, event),
            Action::Settle { key, outcome } => match self.waiters.remove(&key) {
                Some(Waiter::Message(number)) => match outcome {
                    Ok(Outcome::SendAck(ack)) => out.ledger.acked(out.now_us, number, &ack),
                    _ => out.ledger.refused(number),
                },
                Some(Waiter::Call(op)) => self.called(out, &op, outcome.ok()),
                None => {}
            },
            Action::Save(batch) => {
                out.ledger.saved(out.now_us, self.index, &batch);
                self.disk.save(out.now_us, batch, &mut self.random);
            }
            Action::First(_) => {}
            Action::End(reason) => {
                if matches!(&reason, Reason::Server { code: Code::Displaced, .. }) {
                    out.ledger.counts.displaced += 1;
                }
                // What was told is not taken any more; what was taken is saved. Its user starts it again.
                self.disk.finish();
                let down_us = self.random.between(50 * MS, SECOND);
                self.over(out, down_us);
            }
        }
    }

    fn told(&mut self, out: &mut Outside, number: u64, event: millrace_client::Event) {
        use millrace_client::Event as Notice;
        match &event {
            Notice::Connected { .. } => {
                (self.online, self.online_at_us) = (true, out.now_us);
                out.ledger.counts.logins += 1;
            }
            Notice::Disconnected { .. } | Notice::Ended { .. } => self.online = false,
            Notice::Head { conversation, .. } if conversation.starts_with("g:") => {
                self.groups.insert(conversation.clone());
            }
            Notice::Listed(listings) => {
                let groups = listings.iter().filter(|it| it.standing.code() == Code::None);
                let names = groups.map(|it| it.item.conversation.clone());
                self.groups.extend(names.filter(|name| name.starts_with("g:")));
            }
            Notice::Removed { conversation } => {
                self.groups.remove(conversation);
                self.rooms.remove(conversation);
            }
            _ => {}
        }
        out.ledger.told(out.now_us, self.index, &event);
        self.application.told(out.now_us, number, event, &mut self.random);
    }

    fn called(&mut self, out: &mut Outside, op: &Op, outcome: Option<Outcome>) {
        match (op, outcome) {
            (Op::RoomJoin(_), Some(Outcome::Joined(joined))) => {
                let at = (joined.epoch, joined.head);
                out.ledger.in_room(self.index, &joined.conversation, at);
                self.rooms.insert(joined.conversation);
            }
            (Op::RoomLeave(ask), _) => {
                let room = format!("r:{}", ask.room);
                out.ledger.out_of_room(self.index, &room);
                self.rooms.remove(&room);
            }
            (Op::GroupCreate(_) | Op::GroupJoin(_), Some(Outcome::Joined(joined))) => {
                self.groups.insert(joined.conversation);
            }
            (Op::GroupLeave(ask), Some(Outcome::Left(_))) => {
                self.groups.remove(&format!("g:{}", ask.group));
            }
            _ => {}
        }
    }

    // ---- bytes ----

    fn dial(&mut self, out: &mut Outside, conn: u64, address: &str) {
        let gateway = (0..self.gateways).find(|gateway| self::address(*gateway) == address).unwrap_or(0);
        // Whichever shard the kernel gives it to.
        let thread = self.random.index(self.gateway_shards);
        let to = End::GatewayClient(Seat { who: Who::Gateway(gateway), life: out.lives[gateway], thread });
        let id = out.network.connect(&mut out.agenda, out.now_us, End::Device(self.index), to);
        self.wire = Some(Wire::new(id, conn));
    }

    fn write(&mut self, out: &mut Outside, make: impl FnOnce(&mut ClientSession, &mut Vec<u8>)) {
        let Some(wire) = self.wire.as_mut() else { return };
        let mut bytes = Vec::new();
        make(&mut wire.speaks, &mut bytes);
        if !bytes.is_empty() {
            out.send(wire.id, 0, bytes.into());
        }
    }

    /// Something arrived on a connection of this device, perhaps on one that it gave up.
    pub fn arrived(&mut self, out: &mut Outside, id: ConnId, item: Item) {
        if self.copies.hear(out, id, &item) {
            return;
        }
        let Some(wire) = self.wire.as_mut().filter(|wire| wire.id == id) else {
            if matches!(item, Item::Accepted) {
                out.close(id, 0);
            }
            return;
        };
        let conn = wire.conn;
        match item {
            Item::Accepted if self.websocket => {
                let mut nonce = [0; 16];
                nonce[..8].copy_from_slice(&self.random.nonzero().to_le_bytes());
                nonce[8..].copy_from_slice(&self.random.nonzero().to_le_bytes());
                let (speaks, bytes) = ClientSession::websocket("sim", "/", nonce);
                wire.speaks = speaks;
                out.send(id, 0, bytes.into());
            }
            Item::Accepted => {
                wire.open = true;
                out.ledger.connected(self.index);
                self.step(out, Event::Opened { conn });
            }
            Item::Bytes(bytes) => self.decode(out, bytes.to_vec()),
            Item::Closed => {
                let reason = Reason::Network("the server closed the connection".into());
                if wire.open {
                    wire.incoming.push_back(Incoming::Closed(reason));
                    self.read(out);
                } else {
                    self.wire = None;
                    out.close(id, 0);
                    self.step(out, Event::Lost { conn, reason });
                }
                self.wake(out);
            }
        }
    }

    fn decode(&mut self, out: &mut Outside, bytes: Vec<u8>) {
        let Some(wire) = self.wire.as_mut() else { return };
        let conn = wire.conn;
        let Heard { opened, ping } = match wire.decode(bytes) {
            Ok(heard) => heard,
            Err(Unread::SentAway(away)) => return self.sent_away(out, away),
            Err(Unread::Broken(violation)) => {
                let (user, name) = (&self.user, &self.name);
                let detail = format!("{user}/{name} can't read what the gateway sent: {violation}");
                return out.ledger.broken(Invariant::NoPanic, out.now_us, detail);
            }
        };
        if ping {
            self.write(out, |speaks, bytes| speaks.pong(bytes));
        }
        if opened {
            out.ledger.connected(self.index);
            self.hear(out, Event::Opened { conn });
        }
        self.step(out, Event::Heard { conn });
    }

    /// The gateway said before the WebSocket was open that it closes.
    fn sent_away(&mut self, out: &mut Outside, away: GoAway) {
        let Some(wire) = self.wire.take() else { return };
        out.close(wire.id, 0);
        let conn = wire.conn;
        let reason = Reason::Network(away.reason.clone());
        self.step(out, Event::Notify { conn, notify: Notify { event: Some(notify::Event::GoAway(away)) } });
        self.step(out, Event::Lost { conn, reason });
    }
}

/// What a deaf client loses: messages that it is to acknowledge, and the question where its acknowledgement is.
fn can_be_lost(notify: &Notify) -> bool {
    match &notify.event {
        Some(notify::Event::Deliver(deliver)) => !deliver.conversation.starts_with("r:"),
        Some(notify::Event::Resync(_)) => true,
        _ => false,
    }
}

/// Where a gateway listens.
fn address(gateway: usize) -> String {
    format!("gateway-{gateway}:1")
}
