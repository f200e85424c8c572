//! Requests that concern several partitions: cut into parts, whose answers are joined.
//!
//! A Peek is cut by conversation, a PresenceSubscribe by the partition of those who are watched. The whole counts as one
//! request of its session, its parts count like requests of the shard. The rule: the client is answered once, when every
//! part was answered or given up; for a Peek a part without an answer becomes a Standing that says so, for a
//! PresenceSubscribe the whole is refused, because half of it would look like people who are not there.

use std::collections::BTreeMap;

use millrace_protocol::bytes::Bytes;
use millrace_protocol::conversation::is_name;
use millrace_protocol::frame::FRAME_BODY_BYTES_MAX;
use millrace_protocol::ids::{Partition, partition_of, user_partition};
use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{
    Code, Peek, Peeked, PresenceEvent, PresencePage, PresenceSubscribe, Request, Response, Standing, response,
};
use millrace_protocol::messages::link::ClientRequest;
use millrace_protocol::prost::Message;
use rustc_hash::FxHashMap;

use super::checks::BAD_NAME;
use super::event::Conn;
use super::limits::*;
use super::requests::Refuse;
use super::shard::Shard;
use super::uplink::record;

/// Which part of which request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    whole: u32,
    index: u16,
}

/// A request that was cut.
pub(super) struct Whole {
    conn: Conn,
    id: u64,
    /// Parts without an answer.
    waiting: usize,
    answer: Answer,
}

/// Where a session watches who comes and goes.
pub(super) struct Watching {
    partitions: Vec<Partition>,
    /// The PresenceSubscribe that said so.
    whole: u32,
}

enum Answer {
    Peek {
        standings: Vec<Standing>,
        /// Bytes that are left for newest messages.
        room_bytes: usize,
    },
    Presence {
        /// As the client asked.
        asked: Vec<String>,
        users: Vec<PresenceEvent>,
        bytes: usize,
        /// Where they are watched.
        partitions: Vec<Partition>,
        failed: bool,
    },
}

/// The body of a part.
fn part_of(id: u64, op: Op) -> Bytes {
    Request { id, op: Some(op) }.encode_to_vec().into()
}

impl Shard {
    pub(super) fn on_peek(&mut self, slot: u32, id: u64, ask: Peek) {
        if !(1..=PEEK_ITEMS_MAX).contains(&ask.items.len()) {
            let reason = "a Peek is about 1-256 conversations";
            return self.refuse(slot, id, Refuse(Code::BadRequest, reason, 0));
        }
        let refused =
            ask.items.iter().find_map(|item| self.check_conversation(slot, &item.conversation).err());
        if let Some(refuse) = refused {
            return self.refuse(slot, id, refuse);
        }
        let standing =
            |conversation: &String| Standing { conversation: conversation.clone(), ..Default::default() };
        let standings: Vec<Standing> = ask.items.iter().map(|item| standing(&item.conversation)).collect();
        let reserved: usize = standings.iter().map(|it| it.conversation.len() + STANDING_BYTES).sum();
        let parts: Vec<(Partition, Bytes)> = ask
            .items
            .into_iter()
            .map(|item| {
                let partition = partition_of(&item.conversation, self.config.partitions);
                (partition, part_of(id, Op::Peek(Peek { items: vec![item] })))
            })
            .collect();
        let answer = Answer::Peek { standings, room_bytes: FRAME_BODY_BYTES_MAX.saturating_sub(reserved) };
        self.cut(slot, id, answer, parts);
    }

    pub(super) fn on_presence_subscribe(&mut self, slot: u32, id: u64, ask: PresenceSubscribe) {
        let refuse = if ask.users.len() > WATCHED_USERS_MAX {
            Some(Refuse(Code::BadRequest, "at most 512 users are watched", 0))
        } else if !ask.users.iter().all(|user| is_name(user)) {
            Some(BAD_NAME)
        } else {
            None
        };
        if let Some(refuse) = refuse {
            return self.refuse(slot, id, refuse);
        }
        let mut by_partition: BTreeMap<Partition, Vec<String>> = BTreeMap::new();
        for user in &ask.users {
            let users = by_partition.entry(user_partition(user, self.config.partitions)).or_default();
            users.push(user.clone());
        }
        let partitions: Vec<Partition> = by_partition.keys().copied().collect();
        // Where nobody is watched any more, that must be known as well.
        for partition in self.watching.get(&slot).iter().flat_map(|watching| &watching.partitions) {
            by_partition.entry(*partition).or_default();
        }
        let part = |(partition, mut users): (Partition, Vec<String>)| {
            users.sort_unstable();
            users.dedup();
            (partition, part_of(id, Op::PresenceSubscribe(PresenceSubscribe { users })))
        };
        let watched: Vec<Partition> = by_partition.keys().copied().collect();
        let parts = by_partition.into_iter().map(part).collect();
        let answer =
            Answer::Presence { asked: ask.users, users: Vec::new(), bytes: 0, partitions, failed: false };
        let whole = self.next_whole;
        if self.cut(slot, id, answer, parts) && !watched.is_empty() {
            // All of them, until every part is answered: any may have been taken.
            self.watching.insert(slot, Watching { partitions: watched, whole });
        }
    }

    /// Sends the parts of a request. Returns whether it was admitted.
    fn cut(&mut self, slot: u32, id: u64, answer: Answer, parts: Vec<(Partition, Bytes)>) -> bool {
        let bytes = parts.iter().map(|(_, request)| request.len() + PART_ENVELOPE_BYTES).sum();
        if !self.admit(slot, id, parts.len(), bytes) {
            return false;
        }
        let Some(session) = self.sessions.get(slot) else { return false };
        let conn = session.conn(slot);
        let whole = self.next_whole;
        self.next_whole = self.next_whole.wrapping_add(1);
        // One more than there are, so that it is not complete before all are sent.
        self.wholes.insert(whole, Whole { conn, id, waiting: parts.len() + 1, answer });
        self.stats.requests_cut += 1;
        for (index, (partition, request)) in parts.into_iter().enumerate() {
            let part = Part { whole, index: index as u16 };
            let bytes = request.len() + PART_ENVELOPE_BYTES;
            if self.ask_owner(slot, id, partition, request, bytes, Some(part)).is_err() {
                self.on_part(part, None);
            }
        }
        self.part_done(whole);
        true
    }

    /// A part was answered, or `None`: it will not be.
    pub(super) fn on_part(&mut self, part: Part, response: Option<Bytes>) {
        let Some(whole) = self.wholes.get_mut(&part.whole) else { return };
        let outcome = response.and_then(|response| Response::decode(response).ok()?.outcome);
        let taken = match &mut whole.answer {
            Answer::Peek { standings, room_bytes } => {
                let place = &mut standings[usize::from(part.index)];
                peeked(place, outcome, room_bytes)
            }
            Answer::Presence { users, bytes, failed, .. } => match outcome {
                Some(response::Outcome::PresencePage(page)) => {
                    *bytes += page.encoded_len();
                    if *bytes <= FRAME_BODY_BYTES_MAX {
                        users.extend(page.users);
                    }
                    Taken::Whole
                }
                _ => {
                    *failed = true;
                    Taken::Failed
                }
            },
        };
        match taken {
            Taken::Whole => {}
            Taken::Trimmed => self.stats.peeks_trimmed += 1,
            Taken::Failed => self.stats.parts_failed += 1,
        }
        self.part_done(part.whole);
    }

    fn part_done(&mut self, key: u32) {
        let Some(whole) = self.wholes.get_mut(&key) else { return };
        whole.waiting -= 1;
        if whole.waiting > 0 {
            return;
        }
        let Whole { conn, id, answer, .. } = self.wholes.remove(&key).expect("found above");
        self.settle(conn);
        if self.session(conn).is_none_or(|session| !session.is_open()) {
            return;
        }
        match answer {
            Answer::Peek { standings, .. } => {
                self.respond(conn.slot, id, response::Outcome::Peeked(Peeked { standings }));
            }
            Answer::Presence { failed: true, .. } => {
                self.busy(conn.slot, id, "not all of it was answered; send it again");
            }
            Answer::Presence { bytes, .. } if bytes > FRAME_BODY_BYTES_MAX => {
                let refuse = Refuse(Code::LimitReached, "the answer is too large; watch fewer users", 0);
                self.refuse(conn.slot, id, refuse);
            }
            Answer::Presence { asked, mut users, partitions, .. } => {
                let order: FxHashMap<&str, usize> =
                    asked.iter().enumerate().rev().map(|(at, user)| (user.as_str(), at)).collect();
                users.sort_by_key(|event| order.get(event.user.as_str()).copied());
                self.watched(conn.slot, key, partitions);
                self.respond(conn.slot, id, response::Outcome::PresencePage(PresencePage { users }));
            }
        }
    }

    /// A PresenceSubscribe was answered: people are watched in these partitions, unless it has been replaced meanwhile.
    fn watched(&mut self, slot: u32, whole: u32, partitions: Vec<Partition>) {
        let Some(watching) = self.watching.get_mut(&slot).filter(|watching| watching.whole == whole) else {
            return;
        };
        watching.partitions = partitions;
        if watching.partitions.is_empty() {
            self.watching.remove(&slot);
        }
    }

    /// A session ends: nobody needs to tell it who comes and goes.
    pub(super) fn stop_watching(&mut self, slot: u32) {
        let Some(watching) = self.watching.remove(&slot) else { return };
        let Some(session) = self.sessions.get(slot).filter(|session| session.is_named()) else { return };
        let header = session.id(&self.config, slot);
        let body = ClientRequest {
            token: 0,
            user: self.users.text(session.user).into(),
            device: self.device_of(session).0.into(),
            request: part_of(0, Op::PresenceSubscribe(PresenceSubscribe::default())),
        };
        for partition in watching.partitions {
            self.send_or_park(record(Kind::ClientRequest, partition, header, &body));
        }
    }
}

enum Taken {
    Whole,
    /// Without the newest message: the answer would be too large.
    Trimmed,
    Failed,
}

/// Puts the answer about one conversation in its place.
fn peeked(place: &mut Standing, outcome: Option<response::Outcome>, room_bytes: &mut usize) -> Taken {
    let found = match outcome {
        Some(response::Outcome::Peeked(peeked)) => peeked.standings.into_iter().next(),
        Some(response::Outcome::Refused(refused)) => {
            place.code = refused.code;
            return Taken::Failed;
        }
        _ => None,
    };
    let Some(standing) = found else {
        place.code = Code::Busy.into();
        return Taken::Failed;
    };
    let conversation = std::mem::take(&mut place.conversation);
    *place = Standing { conversation, ..standing };
    let last_bytes = place.last.as_ref().map_or(0, |last| last.encoded_len() + 8);
    if last_bytes > *room_bytes {
        place.last = None;
        return Taken::Trimmed;
    }
    *room_bytes -= last_bytes;
    Taken::Whole
}
