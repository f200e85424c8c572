//! Connections between processes and devices: byte streams, cut anywhere, in order, sometimes slow, cut or dropped.
//!
//! A connection has two sides, 0 who connected and 1 who was connected to, and a pipe from each. It knows neither links
//! nor clients: what arrives is handed to the owner of that side. Bytes on a pipe keep their order and come once; a cut
//! pipe swallows everything until the kernel gives the connection up; a stalled one keeps everything for a while.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use millrace_gateway::core::event::NodeKey;

use crate::agenda::{Agenda, Due, Seat};
use crate::clock::MS;
use crate::random::Random;

/// A connection; later ones have higher numbers.
pub type ConnId = u64;

/// Bytes in flight on a pipe beyond which the sender waits, as for a full socket buffer.
const PIPE_BYTES_MAX: usize = 48 << 10;

/// Whose side of a connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A gateway shard's link to a node, as that shard calls it.
    GatewayLink(Seat, NodeKey),
    /// A node's listener, for the link of this gateway (id, shard, life).
    NodeLink(usize, (u16, u8)),
    /// A client's connection at a gateway's shard.
    GatewayClient(Seat),
    /// A device.
    Device(usize),
    /// A client that is not the SDK.
    Stray(usize),
}

/// What arrives.
#[derive(Clone, Debug)]
pub enum Item {
    /// The other side took the connection.
    Accepted,
    /// Bytes.
    Bytes(Bytes),
    /// No more will come: closed or reset.
    Closed,
}

#[derive(Debug, Default)]
struct Pipe {
    queue: VecDeque<(u64, Item)>,
    bytes: usize,
    last_us: u64,
    stalled_until_us: u64,
    cut: bool,
    scheduled: bool,
    /// The sender waits for room.
    wanted: bool,
}

/// One connection.
#[derive(Debug)]
struct Connection {
    ends: [End; 2],
    open: [bool; 2],
    pipes: [Pipe; 2],
}

/// What a pipe's front brought.
#[derive(Debug)]
pub struct Arrival {
    /// To whom.
    pub end: End,
    /// What.
    pub item: Item,
    /// The sender waited for room, and has it now.
    pub room: Option<End>,
}

/// All connections.
#[derive(Debug)]
pub struct Network {
    connections: BTreeMap<ConnId, Connection>,
    next: ConnId,
    random: Random,
    /// Longest delay of a piece, us; most are much faster.
    pub delay_us_max: u64,
}

impl Network {
    /// No connections.
    pub fn new(random: Random) -> Self {
        Network { connections: BTreeMap::new(), next: 1, random, delay_us_max: 3 * MS }
    }

    fn delay_us(&mut self) -> u64 {
        match self.random.below(16) {
            0 => self.random.between(50, self.delay_us_max),
            1..4 => self.random.between(50, 600),
            _ => self.random.between(40, 150),
        }
    }

    /// A new connection on its way to its target.
    pub fn connect(&mut self, agenda: &mut Agenda, now_us: u64, from: End, to: End) -> ConnId {
        let id = self.next;
        self.next += 1;
        let connection =
            Connection { ends: [from, to], open: [true, false], pipes: [Pipe::default(), Pipe::default()] };
        self.connections.insert(id, connection);
        let at_us = now_us + self.delay_us();
        agenda.at(at_us, Due::Syn(id));
        id
    }

    /// Who is connected to, if somebody still wants it.
    pub fn target(&self, id: ConnId) -> Option<End> {
        self.connections.get(&id).filter(|it| it.open[0]).map(|it| it.ends[1])
    }

    /// The target took the connection, or there is nobody.
    pub fn answer_syn(&mut self, agenda: &mut Agenda, now_us: u64, id: ConnId, taken: bool) {
        if let Some(it) = self.connections.get_mut(&id) {
            it.open[1] = taken;
            let item = if taken { Item::Accepted } else { Item::Closed };
            self.push(agenda, now_us, id, 1, item);
        }
    }

    fn push(&mut self, agenda: &mut Agenda, now_us: u64, id: ConnId, side: usize, item: Item) {
        let delay_us = self.delay_us();
        let Some(it) = self.connections.get_mut(&id) else { return };
        let pipe = &mut it.pipes[side];
        if pipe.cut {
            return;
        }
        let at_us = (now_us + delay_us).max(pipe.last_us);
        pipe.last_us = at_us;
        if let Item::Bytes(bytes) = &item {
            pipe.bytes += bytes.len();
        }
        pipe.queue.push_back((at_us, item));
        if !pipe.scheduled {
            pipe.scheduled = true;
            agenda.at(at_us, Due::Pipe(id, side));
        }
    }

    /// Bytes from one side, cut into pieces.
    pub fn send(&mut self, agenda: &mut Agenda, now_us: u64, id: ConnId, side: usize, mut bytes: Bytes) {
        if !self.connections.get(&id).is_some_and(|it| it.open[side]) {
            return;
        }
        while !bytes.is_empty() {
            let whole = self.random.below(3) > 0;
            let length = if whole { bytes.len() } else { 1 + self.random.index(bytes.len()) };
            let piece = bytes.split_to(length);
            self.push(agenda, now_us, id, side, Item::Bytes(piece));
        }
    }

    /// Whether the socket takes more at once; if not, the sender is told when it does.
    pub fn has_room(&mut self, id: ConnId, side: usize) -> bool {
        let Some(it) = self.connections.get_mut(&id) else { return true };
        let pipe = &mut it.pipes[side];
        pipe.wanted = pipe.bytes > PIPE_BYTES_MAX;
        !pipe.wanted
    }

    /// The front of a pipe is due.
    pub fn arrive(&mut self, agenda: &mut Agenda, now_us: u64, id: ConnId, side: usize) -> Option<Arrival> {
        let it = self.connections.get_mut(&id)?;
        let pipe = &mut it.pipes[side];
        pipe.scheduled = false;
        if pipe.cut {
            pipe.queue.clear();
            return None;
        }
        let (at_us, _) = pipe.queue.front()?;
        let at_us = (*at_us).max(pipe.stalled_until_us);
        if at_us > now_us {
            pipe.scheduled = true;
            agenda.at(at_us, Due::Pipe(id, side));
            return None;
        }
        let (_, item) = pipe.queue.pop_front()?;
        if let Item::Bytes(bytes) = &item {
            pipe.bytes -= bytes.len();
        }
        if let Some((next_us, _)) = pipe.queue.front() {
            pipe.scheduled = true;
            agenda.at((*next_us).max(now_us), Due::Pipe(id, side));
        }
        let room = (pipe.wanted && pipe.bytes <= PIPE_BYTES_MAX && it.open[side]).then(|| {
            pipe.wanted = false;
            it.ends[side]
        });
        let to = 1 - side;
        if !it.open[to] {
            return room.map(|room| Arrival {
                end: it.ends[to],
                item: Item::Bytes(Bytes::new()),
                room: Some(room),
            });
        }
        let end = it.ends[to];
        if matches!(item, Item::Closed) {
            it.open[to] = false;
            self.forget_if_over(id);
        }
        Some(Arrival { end, item, room })
    }

    fn forget_if_over(&mut self, id: ConnId) {
        if self
            .connections
            .get(&id)
            .is_some_and(|it| it.open == [false; 2] && it.pipes.iter().all(|p| p.queue.is_empty()))
        {
            self.connections.remove(&id);
        }
    }

    /// One side closes: the other one hears of it after what was sent before.
    pub fn close(&mut self, agenda: &mut Agenda, now_us: u64, id: ConnId, side: usize) {
        let Some(it) = self.connections.get_mut(&id).filter(|it| it.open[side]) else { return };
        it.open[side] = false;
        self.push(agenda, now_us, id, side, Item::Closed);
    }

    /// One side says that it will send no more, and goes on reading.
    pub fn finish(&mut self, agenda: &mut Agenda, now_us: u64, id: ConnId, side: usize) {
        if self.connections.get(&id).is_some_and(|it| it.open[side]) {
            self.push(agenda, now_us, id, side, Item::Closed);
        }
    }

    /// One side is gone without a word: the other one's kernel finds out within this time.
    pub fn vanish(&mut self, agenda: &mut Agenda, now_us: u64, id: ConnId, side: usize, within_us: u64) {
        let Some(it) = self.connections.get_mut(&id).filter(|it| it.open[side]) else { return };
        it.open[side] = false;
        let at_us = now_us + self.random.below(within_us);
        agenda.at(at_us, Due::Broken(id, 1 - side));
    }

    /// The kernel of one side gives the connection up.
    pub fn broken(&mut self, id: ConnId, side: usize) -> Option<End> {
        let it = self.connections.get_mut(&id).filter(|it| it.open[side])?;
        it.open[side] = false;
        let end = it.ends[side];
        self.forget_if_over(id);
        Some(end)
    }

    /// Drops a connection in the middle of whatever it carries; each side learns it at its own time.
    pub fn drop_now(&mut self, agenda: &mut Agenda, now_us: u64, id: ConnId, within_us: u64) {
        let Some(it) = self.connections.get_mut(&id) else { return };
        for pipe in &mut it.pipes {
            pipe.cut = true;
            pipe.queue.clear();
            pipe.bytes = 0;
        }
        for side in 0..2 {
            let at_us = now_us + self.random.below(within_us);
            agenda.at(at_us, Due::Broken(id, side));
        }
    }

    /// Everything from one side vanishes from now on. `within_us`: the kernels give it up by then.
    pub fn cut(&mut self, agenda: &mut Agenda, now_us: u64, id: ConnId, side: usize, within_us: u64) {
        let Some(it) = self.connections.get_mut(&id) else { return };
        it.pipes[side].cut = true;
        it.pipes[side].queue.clear();
        it.pipes[side].bytes = 0;
        for side in 0..2 {
            let at_us = now_us + self.random.between(within_us / 2, within_us);
            agenda.at(at_us, Due::Broken(id, side));
        }
    }

    /// Nothing from one side arrives for a while.
    pub fn stall(&mut self, now_us: u64, id: ConnId, side: usize, for_us: u64) {
        if let Some(it) = self.connections.get_mut(&id) {
            it.pipes[side].stalled_until_us = now_us + for_us;
        }
    }

    /// Sides that belong to somebody.
    pub fn sides_of(&self, owner: impl Fn(End) -> bool) -> Vec<(ConnId, usize)> {
        let mut sides = Vec::new();
        for (id, it) in &self.connections {
            sides.extend(
                (0..2).filter(|side| it.open[*side] && owner(it.ends[*side])).map(|side| (*id, side)),
            );
        }
        sides
    }

    /// Connections of a kind.
    pub fn of_kind(&self, links: bool) -> Vec<ConnId> {
        let is_link = |end: End| matches!(end, End::GatewayLink(..));
        self.connections.iter().filter(|(_, it)| is_link(it.ends[0]) == links).map(|(id, _)| *id).collect()
    }
}
