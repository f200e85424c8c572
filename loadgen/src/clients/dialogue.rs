//! What a client says and how it takes what it hears: handshake, login, joining, messages, refusals.
//!
//! The rule: a refusal with a time is tried again after it, one without is counted and given up.

use std::cmp::Reverse;

use millrace_edge::clock::boot_us;
use millrace_protocol::bytes::Bytes;
use millrace_protocol::client_session::{self, ClientSession, ServerFrame, op, peek_deliver};
use millrace_protocol::messages::client::notify::Event as Told;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Code, Login, Notify, Refused, Response};
use millrace_protocol::received::Received;

use super::client::State;
use super::worker::{Timer, Worker};
use super::{Manner, Transport};
use crate::ledger::{Delivery, Fate};
use crate::limits::{CREATE_MEMBERS_MAX, RETRY_US, TRIES_MAX};
use crate::payload::Header;
use crate::schedule::Due;
use crate::world::Kind;

/// Request ids: the login, then joins by their place, then messages by their number.
const LOGIN_ID: u64 = 1;
const JOIN_ID: u64 = 0x1_0000;
const MESSAGE_ID: u64 = 1 << 32;

/// What all clients call their device and platform.
const DEVICE: &str = "d";
const PLATFORM: &str = "loadgen";

/// What was heard, when it needs more than the client's own fields.
enum Heard {
    Open,
    Response(Response),
    Notify(Notify),
    Pushed,
    Ended(String),
}

impl Worker {
    /// The connection is up.
    pub(super) fn greet(&mut self, local: u32) {
        if let Manner::Listener { heartbeat_ms } = self.setup.manner {
            self.clients[local as usize].session = ClientSession::tcp();
            self.enter(local);
            self.clients[local as usize].state = State::Ready;
            self.board.ready.add(1);
            if heartbeat_ms > 0 {
                self.heartbeat_us = heartbeat_ms * 1_000;
                self.start_beating(local);
            }
            return;
        }
        match self.setup.transport {
            Transport::Tcp => {
                self.clients[local as usize].session = ClientSession::tcp();
                self.log_in(local);
            }
            Transport::Ws => {
                let mut nonce = [0; 16];
                nonce[..8].copy_from_slice(&self.rng.bits().to_le_bytes());
                nonce[8..].copy_from_slice(&self.rng.bits().to_le_bytes());
                let (session, hello) = ClientSession::websocket("localhost", "/", nonce);
                let client = &mut self.clients[local as usize];
                client.session = session;
                client.state = State::Opening;
                client.out.extend_from_slice(&hello);
                self.push(local);
            }
        }
    }

    fn log_in(&mut self, local: u32) {
        let global = self.global(local) as usize;
        let token = self.setup.tokens.get(global).map_or("", |token| &**token);
        let client = &mut self.clients[local as usize];
        client.state = State::LoggingIn;
        let login = match &client.ticket {
            // Kept until another one comes, or this one is refused: an attempt that ends early must not cost the next
            // one a signature check.
            Some(ticket) => Op::Login(Login {
                token: String::new(),
                device: DEVICE.into(),
                platform: PLATFORM.into(),
                resume_ticket: Bytes::copy_from_slice(ticket),
                acknowledges: false,
            }),
            None => op::login(token, DEVICE, PLATFORM),
        };
        client.session.request(LOGIN_ID, login, &mut client.out);
        if self.is_returning && client.is_member {
            let world = &self.setup.world;
            client.skip_groups(world, global as u32);
            if let Some(room) = world.joins(global as u32, client.nth_join.into()) {
                let request = op::room_join(world.short_name(room));
                client.session.request(JOIN_ID + u64::from(client.nth_join), request, &mut client.out);
                client.asked_early = true;
            }
        }
        self.push(local);
    }

    /// Counts a client as in.
    fn enter(&mut self, local: u32) {
        let client = &mut self.clients[local as usize];
        client.state = State::Inside;
        client.tries = 0;
        let took_us = boot_us().saturating_sub(client.due_us);
        self.logins.saturating_record(took_us);
        self.arriving -= 1;
        self.board.logins.add(1);
        self.board.inside.add(1);
    }

    /// Starts the heartbeat of a client that has just logged in.
    fn start_beating(&mut self, local: u32) {
        let (now, interval_us) = (boot_us(), self.heartbeat_us);
        // Spread: ten thousand that logged in together must not beat together. Those who come back do so over some time,
        // and beat when they have been silent for an interval, as clients should.
        let at = match self.is_returning {
            true => now + interval_us - self.rng.below(interval_us / 8 + 1),
            false => now + self.rng.below(interval_us),
        };
        let client = &mut self.clients[local as usize];
        client.beat_at_us = at;
        if !client.beats {
            client.beats = true;
            self.timers.push(Reverse((at, local, Timer::Beat)));
        }
    }

    /// Takes in received bytes.
    pub(super) fn read(&mut self, local: u32, bytes: &mut [u8]) {
        let now_us = boot_us();
        let mut input = Received::new(bytes);
        loop {
            if self.clients[local as usize].state < State::Opening
                || self.clients[local as usize].state == State::Closing
            {
                return;
            }
            let global = self.global(local);
            let client = &mut self.clients[local as usize];
            let heard = match client.session.next(&mut input, &self.limits) {
                Ok(None) => return,
                Ok(Some(ServerFrame::Notify(body))) => match peek_deliver(body) {
                    Some(deliver) => {
                        let Some(sending) = &mut self.sending else { continue };
                        let delivery = Delivery {
                            conversation: deliver.conversation,
                            seq: deliver.seq,
                            payload: deliver.payload,
                            now_us,
                        };
                        let counts =
                            sending.ledger.delivered(&self.setup.world, &mut client.tracks, global, delivery);
                        self.board.deliveries.add(u64::from(counts));
                        continue;
                    }
                    None => match client_session::decode_notify(body) {
                        Ok(notify) => Heard::Notify(notify),
                        Err(violation) => Heard::Ended(violation.to_string()),
                    },
                },
                Ok(Some(ServerFrame::Response(body))) => match client_session::decode_response(body) {
                    Ok(response) => Heard::Response(response),
                    Err(violation) => Heard::Ended(violation.to_string()),
                },
                Ok(Some(ServerFrame::Open)) => Heard::Open,
                Ok(Some(ServerFrame::Pong)) => continue,
                Ok(Some(ServerFrame::Ping)) => {
                    client.session.pong(&mut client.out);
                    Heard::Pushed
                }
                Ok(Some(ServerFrame::WsPing(payload))) => {
                    // The payload borrows the session, which makes the answer.
                    let payload = payload.to_vec();
                    client.session.ws_pong(&payload, &mut client.out);
                    Heard::Pushed
                }
                Ok(Some(ServerFrame::WsClose { code, reason })) => {
                    Heard::Ended(format!("the server closed with {code}: {reason}"))
                }
                Err(violation) => Heard::Ended(violation.to_string()),
            };
            match heard {
                Heard::Open => self.log_in(local),
                Heard::Response(response) => self.answer(local, response),
                Heard::Notify(notify) => self.told(local, notify),
                Heard::Pushed => self.push(local),
                Heard::Ended(what) => {
                    self.ended(local, &what);
                    return;
                }
            }
        }
    }

    /// The server broke off, or said what it may not.
    fn ended(&mut self, local: u32, what: &str) {
        let state = self.clients[local as usize].state;
        self.board.trouble(|| format!("{what} (while {state:?})"));
        if state.is_arriving() {
            self.login_failed(local);
        } else {
            self.board.disconnects.add(1);
        }
        self.close(local);
    }

    /// Counts a login that was answered with no. Without a time to come again, it was the last of this client, unless
    /// all are on their way back.
    fn login_failed(&mut self, local: u32) {
        self.board.login_failures.add(1);
        if self.clients[local as usize].retry_after_ms == 0 && !self.is_returning {
            self.board.given_up.add(1);
        }
    }

    fn answer(&mut self, local: u32, response: Response) {
        let Some(outcome) = response.outcome else { return };
        match response.id {
            LOGIN_ID => self.login_answered(local, outcome),
            id if id >= MESSAGE_ID => self.message_answered((id - MESSAGE_ID) as u32, outcome),
            id if id >= JOIN_ID => self.join_answered(local, (id - JOIN_ID) as u16, outcome),
            _ => {}
        }
    }

    fn login_answered(&mut self, local: u32, outcome: Outcome) {
        if self.clients[local as usize].state != State::LoggingIn {
            return;
        }
        match outcome {
            Outcome::LoginAck(ack) => {
                self.heartbeat_us = u64::from(ack.heartbeat_interval_ms.max(100)) * 1_000;
                self.enter(local);
                let client = &mut self.clients[local as usize];
                client.heads = ack.groups;
                if self.setup.tickets && !ack.resume_ticket.is_empty() {
                    client.ticket = Some(ack.resume_ticket.to_vec().into_boxed_slice());
                }
                self.start_beating(local);
                if self.is_returning {
                    self.start_joining(local);
                }
            }
            Outcome::Refused(refused) => {
                let client = &mut self.clients[local as usize];
                client.retry_after_ms = refused.retry_after_ms;
                if matches!(Code::try_from(refused.code), Ok(Code::BadToken | Code::TokenExpired))
                    && client.ticket.take().is_some()
                {
                    // The token may still do.
                    client.retry_after_ms = client.retry_after_ms.max(1);
                }
                self.login_failed(local);
                self.board.trouble(|| format!("a login was refused: {}", said(&refused)));
                self.close(local);
            }
            _ => {}
        }
    }

    /// A logged in client goes into its conversations.
    pub(super) fn start_joining(&mut self, local: u32) {
        let client = &mut self.clients[local as usize];
        client.state = State::Joining;
        client.tries = 0;
        self.joining += 1;
        if !client.asked_early {
            client.nth_join = 0;
            self.ask_to_join(local);
        }
    }

    /// Asks for the next conversation; after the last, and when all heads of its groups are here, it is ready.
    pub(super) fn ask_to_join(&mut self, local: u32) {
        let global = self.global(local);
        let world = self.setup.world.clone();
        let client = &mut self.clients[local as usize];
        if client.is_member {
            client.skip_groups(&world, global);
        }
        let Some(conversation) = world.joins(global, client.nth_join.into()) else {
            if client.heads == 0 {
                client.state = State::Ready;
                client.is_member = true;
                self.joining -= 1;
                self.board.ready.add(1);
            }
            return;
        };
        let name = world.short_name(conversation);
        let request = match world.kind(conversation) {
            Kind::Room => op::room_join(name),
            // After a refusal its maker asks to join, then to make it again: the first try may have been taken.
            _ if !self.setup.founded
                && world.creates(global, conversation)
                && client.tries.is_multiple_of(2) =>
            {
                // With all its members, if they fit. Each of them still joins, and is answered when it listens.
                match world.members(conversation) <= CREATE_MEMBERS_MAX {
                    true => op::group_create(name, world.others(global, conversation)),
                    false => op::group_create(name, std::iter::empty::<String>()),
                }
            }
            _ => op::group_join(name),
        };
        client.session.request(JOIN_ID + u64::from(client.nth_join), request, &mut client.out);
        self.push(local);
    }

    fn join_answered(&mut self, local: u32, nth: u16, outcome: Outcome) {
        let client = &mut self.clients[local as usize];
        if client.state != State::Joining || client.nth_join != nth {
            return;
        }
        match outcome {
            Outcome::Joined(_) => {
                client.nth_join += 1;
                client.tries = 0;
                self.ask_to_join(local);
            }
            Outcome::Refused(refused) => {
                let code = Code::try_from(refused.code).unwrap_or(Code::None);
                let passing = refused.retry_after_ms > 0
                    || matches!(code, Code::NoSuchGroup | Code::GroupExists | Code::Busy);
                client.tries += 1;
                if passing && client.tries <= TRIES_MAX {
                    self.board.put_off.add(1);
                    let wait_us = (u64::from(refused.retry_after_ms) * 1_000).max(RETRY_US);
                    let at = boot_us() + wait_us + self.rng.below(RETRY_US);
                    self.timers.push(Reverse((at, local, Timer::Join)));
                } else {
                    self.board.join_failures.add(1);
                    self.board.trouble(|| format!("a join was refused: {}", said(&refused)));
                    self.close(local);
                }
            }
            _ => {}
        }
    }

    fn told(&mut self, local: u32, notify: Notify) {
        match notify.event {
            Some(Told::Head(_)) => {
                let client = &mut self.clients[local as usize];
                client.heads = client.heads.saturating_sub(1);
                let state = client.state;
                if state == State::Joining && self.clients[local as usize].heads == 0 {
                    let (global, nth) = (self.global(local), self.clients[local as usize].nth_join);
                    // Only the heads were missing; otherwise an answer is on its way and goes on from there.
                    if self.setup.world.joins(global, nth.into()).is_none() {
                        self.ask_to_join(local);
                    }
                }
            }
            Some(Told::GoAway(away)) => {
                let client = &mut self.clients[local as usize];
                client.retry_after_ms = away.retry_after_ms;
                let code = Code::try_from(away.code).unwrap_or(Code::None);
                self.board.went_away(code.as_str_name());
                self.board.trouble(|| format!("a client was told to go away: {code:?} {}", away.reason));
            }
            Some(Told::Gap(gap)) => {
                self.board.trouble(|| {
                    format!("a gap was announced in {}: {} to {}", gap.conversation, gap.from, gap.to)
                });
            }
            // Removals, deliveries, and what only clients that acknowledge or subscribe are told.
            _ => {}
        }
    }

    /// Encodes the message on its way to the wire.
    pub(super) fn write_message(&mut self, local: u32, number: u32, due: Due) {
        let Some(sending) = &mut self.sending else { return };
        let due_us = sending.start_us + due.at_us;
        let header = Header {
            run: sending.schedule.run(&self.setup.world),
            message: number,
            conversation: due.conversation,
            sender: due.sender,
            due_us,
        };
        let payload = header.encode(self.setup.payload_bytes);
        let name = self.setup.world.name(due.conversation).unwrap_or_default();
        let request = op::send(name, self.stream, sending.client_seq(number), payload);
        let client = &mut self.clients[local as usize];
        client.session.request(MESSAGE_ID + u64::from(number), request, &mut client.out);
        if sending.ledger.fate(number) == Fate::Unsent {
            sending.ledger.sent(number, boot_us().saturating_sub(due_us));
            self.board.sent.add(1);
        }
    }

    fn message_answered(&mut self, number: u32, outcome: Outcome) {
        let Some(sending) = &self.sending else { return };
        let Some(&due) = sending.message(number) else { return };
        match outcome {
            Outcome::SendAck(_) => {
                self.board.answered.add(1);
                self.board.expected.add(u64::from(self.setup.world.members(due.conversation) - 1));
                self.settle(number, Fate::Acked);
            }
            Outcome::Refused(refused) if refused.retry_after_ms > 0 => {
                self.board.put_off.add(1);
                let local = due.sender / self.setup.threads as u32;
                let at = boot_us() + u64::from(refused.retry_after_ms) * 1_000;
                self.timers.push(Reverse((at, local, Timer::Resend(number))));
            }
            Outcome::Refused(refused) => {
                self.board.answered.add(1);
                self.board.trouble(|| format!("a message was refused: {}", said(&refused)));
                self.settle(number, Fate::Refused);
            }
            _ => {}
        }
    }

    /// A message has its final answer; the next of its lane goes.
    pub(super) fn settle(&mut self, number: u32, fate: Fate) {
        let Some(sending) = &mut self.sending else { return };
        sending.ledger.answered(number, fate);
        if let Some(next) = sending.settle(number, fate == Fate::Acked) {
            self.transmit(next);
        }
    }
}

fn said(refused: &Refused) -> String {
    let code = Code::try_from(refused.code).unwrap_or(Code::None);
    format!("{code:?} {} (retry after {} ms)", refused.reason, refused.retry_after_ms)
}
