//! One device of a user: it sends, receives, acknowledges, syncs after every login, and peeks now and then.
//!
//! What it does in a conversation is in [`super::seat`], how it talks in [`super::line`]; here requests go out and their
//! answers find their way.

use millrace_protocol::messages::client::notify::Event as Told;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{
    Code, DeliverAck, GroupCreate, Peek, PeekItem, Peeked, Send, Sync,
};
use rustc_hash::FxHashMap;

use super::cast::{Cast, Talk};
use super::line::{Heard, Line, Who};
use super::seat::{Counts, Desk, Seat, WINDOW};
use crate::rng::Rng;
use crate::verify::history::{History, Note};

/// Between two acknowledgements of a conversation, in us: what the protocol allows.
const TELL_EVERY_US: u64 = 2_000_000;

/// Between two peeks, in us; drawn up to twice this.
const PEEK_EVERY_US: u64 = 2_000_000;

/// Direct conversations of a peek.
const PEEK_ITEMS: usize = 8;

/// A refused page, or group, is asked for again after this, in us.
const AGAIN_US: u64 = 200_000;

/// One in so many logins of a device follows a reinstall.
const REINSTALL_EVERY: u64 = 8;

/// Entries of a page: few, so that pages follow each other.
const PAGE_ENTRIES: u32 = 40;

const _: () = assert!(WINDOW < 64, "the server keeps the last 64 answers of a stream");

/// What was asked.
#[derive(Debug)]
pub enum Asked {
    /// A message of this seat.
    Send {
        /// By place.
        seat: usize,
        /// See [`Seat`].
        round: u32,
        /// Its stream.
        stream: u64,
        /// Its number.
        client_seq: u64,
    },
    /// A page of this seat.
    Page(usize),
    /// How these seats stand, and which cursor each had.
    Peek(Vec<(usize, u64, u64)>),
    /// To make the group of this seat.
    Found(usize),
}

/// A device.
#[derive(Debug)]
pub struct Device {
    /// By place in the cast.
    pub index: u16,
    /// Its connection.
    pub line: Line<Asked>,
    /// What was counted.
    pub counts: Counts,
    seats: Vec<Seat>,
    by_name: FxHashMap<String, usize>,
    /// Groups that it is to make: by seat, with the other members; and when to try.
    to_found: Vec<(usize, Vec<String>, u64)>,
    peek_at_us: u64,
    /// All groups exist: a conversation that is refused from now on is a fault.
    is_settled: bool,
}

impl Device {
    /// The device at this place of the cast.
    pub fn new(cast: &Cast, index: u16, token: Box<str>, rng: &mut Rng) -> Self {
        let part = &cast.devices[usize::from(index)];
        let user = cast.users[usize::from(part.user)].clone();
        let seats: Vec<Seat> = cast
            .talks_of(part.user)
            .map(|talk| {
                let Talk { name, is_group, .. } = &cast.talks[usize::from(talk)];
                Seat::new(name.clone(), talk, *is_group, index, cast.run, rng)
            })
            .collect();
        let by_name = seats.iter().enumerate().map(|(at, seat)| (seat.name.clone(), at)).collect();
        let is_first = cast.devices.iter().position(|other| other.user == part.user) == Some(index.into());
        let founds = |seat: &Seat| {
            let talk = &cast.talks[usize::from(seat.talk)];
            talk.is_group && is_first && talk.users[0] == part.user
        };
        let to_found = (seats.iter().enumerate().filter(|(_, seat)| founds(seat)))
            .map(|(at, seat)| {
                let others = cast.talks[usize::from(seat.talk)].users[1..].iter();
                (at, others.map(|user| cast.users[usize::from(*user)].clone()).collect(), 0)
            })
            .collect();
        let who = Who { user, device: part.name.to_owned(), token, websocket: part.websocket };
        Device {
            index,
            line: Line::new(who, index.into()),
            counts: Counts::default(),
            seats,
            by_name,
            to_found,
            peek_at_us: 0,
            is_settled: false,
        }
    }

    /// Whether it has made all groups that it is to make.
    pub fn has_founded(&self) -> bool {
        self.to_found.is_empty()
    }

    /// All groups exist now.
    pub fn settle(&mut self) {
        self.is_settled = true;
    }

    /// The conversations it is in, and how far it is in each.
    pub fn standing(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        self.seats.iter().map(|seat| (seat.talk, seat.seq()))
    }

    /// Whether it is logged in, attached everywhere, and no message is without an answer since before `since_us`.
    pub fn is_well(&self, since_us: u64) -> bool {
        let is_well = |seat: &Seat| seat.is_attached() && seat.oldest_us().is_none_or(|us| us >= since_us);
        self.line.is_in() && self.seats.iter().all(is_well)
    }

    /// Why it is not well, in words.
    pub fn complaint(&self, since_us: u64) -> String {
        if !self.line.is_in() {
            return format!("device {} is not logged in: {}", self.index, self.line.trouble);
        }
        let ill = self
            .seats
            .iter()
            .find(|seat| !seat.is_attached() || seat.oldest_us().is_some_and(|us| us < since_us));
        let what = |seat: &Seat| match seat.is_attached() {
            true => format!("waits for an answer in {}", seat.name),
            false => format!("is not attached to {}", seat.name),
        };
        format!("device {} {}", self.index, ill.map_or("is well".to_owned(), what))
    }

    /// Messages without an answer.
    pub fn unanswered(&self) -> impl Iterator<Item = crate::verify::history::Tag> + '_ {
        self.seats.iter().flat_map(Seat::unanswered)
    }

    /// The application sends to a conversation drawn at random. False: too many messages have no answer there.
    pub fn send(&mut self, now_us: u64, history: &mut History, rng: &mut Rng) -> bool {
        let at = rng.below(self.seats.len() as u64) as usize;
        let mut desk = Desk { history, counts: &mut self.counts, now_us };
        self.seats[at].send(&mut desk)
    }

    /// What is due: pages, messages, acknowledgements, peeks.
    pub fn turn(&mut self, now_us: u64, rng: &mut Rng) {
        if !self.line.is_in() {
            return;
        }
        for (at, others, try_us) in &mut self.to_found {
            if *try_us <= now_us {
                // Until it is answered.
                *try_us = u64::MAX;
                let name = &self.seats[*at].name;
                let create = GroupCreate {
                    group: name.trim_start_matches("g:").to_owned(),
                    members: others.clone(),
                    ..GroupCreate::default()
                };
                self.line.ask(now_us, Asked::Found(*at), Op::GroupCreate(create));
            }
        }
        for (at, seat) in self.seats.iter_mut().enumerate() {
            if seat.wants_page(now_us) {
                let sync =
                    Sync { conversation: seat.name.clone(), after: Some(seat.cursor()), limit: PAGE_ENTRIES };
                self.line.ask(now_us, Asked::Page(at), Op::Sync(sync));
            }
            while let Some((round, stream, client_seq, payload)) = seat.next_out(now_us) {
                self.counts.sends += 1;
                let send = Send {
                    conversation: seat.name.clone(),
                    client_seq,
                    stream,
                    payload: payload.into(),
                    ..Send::default()
                };
                let what = Asked::Send { seat: at, round, stream, client_seq };
                self.line.ask(now_us, what, Op::Send(send));
            }
            if let Some(cursor) = seat.take_told(now_us, TELL_EVERY_US) {
                let conversation = seat.name.clone();
                self.line.tell(Op::DeliverAck(DeliverAck { conversation, cursor: Some(cursor) }));
            }
        }
        if now_us >= self.peek_at_us {
            self.peek_at_us = now_us + PEEK_EVERY_US + rng.below(PEEK_EVERY_US);
            self.peek(now_us, rng);
        }
    }

    fn peek(&mut self, now_us: u64, rng: &mut Rng) {
        let from = rng.below(self.seats.len() as u64) as usize;
        let (before, after) = self.seats.split_at(from);
        let seats = (from..).zip(after).chain((0..).zip(before));
        let chosen: Vec<(usize, &Seat)> =
            seats.filter(|(_, seat)| !seat.is_group && seat.is_attached()).take(PEEK_ITEMS).collect();
        if chosen.is_empty() {
            return;
        }
        self.counts.peeks += 1;
        let items = chosen
            .iter()
            .map(|(_, seat)| PeekItem { conversation: seat.name.clone(), cursor: Some(seat.cursor()) });
        let peek = Peek { items: items.collect() };
        let asked = chosen.iter().map(|(at, seat)| (*at, seat.cursor().epoch, seat.cursor().seq)).collect();
        self.line.ask(now_us, Asked::Peek(asked), Op::Peek(peek));
    }

    /// What the line heard.
    pub fn heard(&mut self, now_us: u64, heard: Heard<Asked>, history: &mut History, rng: &mut Rng) {
        let mut desk = Desk { history, counts: &mut self.counts, now_us };
        match heard {
            Heard::In(_) => {
                if rng.below(REINSTALL_EVERY) == 0 {
                    self.seats.iter_mut().for_each(|seat| seat.reinstall(&mut desk, rng));
                }
                // Conversations are asked about soon after, and not all devices at once.
                self.peek_at_us = now_us + rng.below(PEEK_EVERY_US);
            }
            Heard::Answer(Asked::Send { seat, round, stream, client_seq }, outcome) => match outcome {
                Outcome::SendAck(ack) => self.seats[seat].acked(&mut desk, stream, client_seq, ack),
                Outcome::Refused(refused) => self.seats[seat].refused(&mut desk, round, &refused, rng),
                other => desk.history.odd.push(format!("a message was answered with {other:?}")),
            },
            Heard::Answer(Asked::Page(seat), outcome) => {
                let seat = &mut self.seats[seat];
                match outcome {
                    Outcome::SyncPage(page) => seat.page(&mut desk, &page),
                    Outcome::Refused(refused) => {
                        let code = Code::try_from(refused.code).unwrap_or(Code::None);
                        if self.is_settled && !matches!(code, Code::Busy | Code::Unavailable) {
                            let (name, reason) = (&seat.name, &refused.reason);
                            let text = format!("{name}: a page was refused with {code:?}: {reason}");
                            desk.history.odd.push(text);
                        }
                        seat.page_refused(now_us + AGAIN_US.max(u64::from(refused.retry_after_ms) * 1_000));
                    }
                    other => desk.history.odd.push(format!("a Sync was answered with {other:?}")),
                }
            }
            Heard::Answer(Asked::Peek(asked), outcome) => {
                if let Outcome::Peeked(peeked) = outcome {
                    self.peeked(now_us, &asked, &peeked, history);
                }
            }
            Heard::Answer(Asked::Found(seat), outcome) => {
                let exists = match &outcome {
                    Outcome::Joined(_) => true,
                    Outcome::Refused(refused) => refused.code == Code::GroupExists as i32,
                    _ => false,
                };
                if exists {
                    self.to_found.retain(|(at, ..)| *at != seat);
                }
                self.to_found.iter_mut().filter(|(at, ..)| *at == seat).for_each(|(.., at_us)| {
                    *at_us = now_us + AGAIN_US;
                });
            }
            Heard::Told(event) => self.told(now_us, event, history),
        }
    }

    fn told(&mut self, now_us: u64, event: Told, history: &mut History) {
        let mut desk = Desk { history, counts: &mut self.counts, now_us };
        let (by_name, seats) = (&self.by_name, &mut self.seats);
        let of = |name: &str| by_name.get(name).copied();
        match event {
            Told::Deliver(deliver) => match of(&deliver.conversation) {
                Some(at) => seats[at].deliver(&mut desk, &deliver),
                None => desk.history.odd.push(format!("a message of {}", deliver.conversation)),
            },
            Told::Head(head) => {
                if let Some(at) = of(&head.conversation).filter(|at| seats[*at].seq() != head.seq) {
                    seats[at].want_sync(now_us);
                }
            }
            Told::Gap(gap) => {
                desk.counts.gaps += 1;
                if let Some(at) = of(&gap.conversation) {
                    seats[at].want_sync(now_us);
                }
            }
            Told::Truncated(truncated) => {
                if let (Some(at), Some(to)) = (of(&truncated.conversation), truncated.to)
                    && to.seq < seats[at].seq()
                {
                    // Asked again, it is told the same by the log itself.
                    seats[at].want_sync(now_us);
                }
            }
            Told::Resync(resync) => {
                desk.counts.resyncs += 1;
                for name in &resync.conversations {
                    if let Some(at) = of(name) {
                        seats[at].want_sync(now_us);
                    }
                }
            }
            // While groups are founded, a list may name one whose founding its owner did not live to store.
            Told::Removed(removed) if self.is_settled => {
                desk.history.odd.push(format!("removed from {} at {now_us} us", removed.conversation));
            }
            _ => {}
        }
    }

    fn peeked(&mut self, now_us: u64, asked: &[(usize, u64, u64)], peeked: &Peeked, history: &mut History) {
        for standing in &peeked.standings {
            let Some(&at) = self.by_name.get(&standing.conversation) else { continue };
            let Some(&(_, epoch, seq)) = asked.iter().find(|(seat, ..)| *seat == at) else { continue };
            let Some(head) = standing.head.filter(|_| standing.code() == Code::None) else { continue };
            if head.seq < seq && head.epoch <= epoch {
                // Read under the fence, a head can't be older than what was delivered before it was asked.
                let (device, conversation) = (self.index, self.seats[at].talk);
                history.note(now_us, Note::Stale { device, conversation, seq, head: head.seq });
            }
            if standing.news || head.seq > self.seats[at].seq() || head.seq < seq {
                self.counts.peeks_with_news += 1;
                self.seats[at].want_sync(now_us);
            }
        }
    }

    /// The connection is gone.
    pub fn lost(&mut self) {
        self.seats.iter_mut().for_each(Seat::lost);
        self.to_found.iter_mut().for_each(|(.., at_us)| *at_us = 0);
    }
}
