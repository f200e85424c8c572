//! millrace: a login with a token, one room of everybody, heartbeats; framed TCP or WebSocket.

use std::collections::VecDeque;
use std::sync::Arc;

use millrace_protocol::client_session::{
    ClientSession, ServerFrame, decode_notify, decode_response, op, peek_deliver,
};
use millrace_protocol::messages::client::notify::Event;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Code, Notify, Response};
use millrace_protocol::received::{Limits, Received};

use super::{Codec, CodecError, Role, Told};
use crate::clients::Transport;

const LOGIN_ID: u64 = 1;
const JOIN_ID: u64 = 2;
const MESSAGE_ID: u64 = 3;

/// Messages that wait for the answer to the one before at most: a publisher that far behind has failed.
const WAITING_MAX: usize = 1_024;

/// Where everybody is.
#[derive(Debug)]
pub struct Room {
    /// As it is joined.
    pub short_name: String,
    /// As it is sent to.
    pub name: String,
    /// Tells this run's messages from those of others, for the server.
    pub stream: u64,
}

/// One session.
#[derive(Debug)]
pub struct Millrace {
    session: ClientSession,
    role: Role,
    room: Arc<Room>,
    /// The upgrade request; empty over TCP.
    request: Vec<u8>,
    token: Box<str>,
    is_in: bool,
    heartbeat_us: u64,
    /// Where between two heartbeats of others its own are: ten thousand that logged in together do not beat together.
    phase: u64,
    /// The last message that was answered, and those that were not: the first of them is under way.
    answered: u64,
    waiting: VecDeque<Vec<u8>>,
    /// To be asked again, as the server asked to wait.
    again: Option<u64>,
}

impl Millrace {
    /// Not connected yet. `nonce` is random.
    pub fn new(role: Role, transport: Transport, room: Arc<Room>, token: &str, nonce: [u8; 16]) -> Self {
        let (session, request) = match transport {
            Transport::Tcp => (ClientSession::tcp(), Vec::new()),
            Transport::Ws => ClientSession::websocket("localhost", "/", nonce),
        };
        let [.., a, b, c, d] = nonce;
        Millrace {
            session,
            role,
            room,
            request,
            token: token.into(),
            is_in: false,
            heartbeat_us: 0,
            phase: u64::from(u32::from_le_bytes([a, b, c, d])),
            answered: 0,
            waiting: VecDeque::new(),
            again: None,
        }
    }

    fn ask(&mut self, id: u64, out: &mut Vec<u8>) {
        let request = match id {
            LOGIN_ID => op::login(&self.token, "d", "loadgen"),
            JOIN_ID => op::room_join(&self.room.short_name),
            _ => {
                let Some(payload) = self.waiting.front() else { return };
                op::send(&self.room.name, self.room.stream, self.answered + 1, payload.clone())
            }
        };
        self.session.request(id, request, out);
    }

    fn answer(
        &mut self,
        response: Response,
        out: &mut Vec<u8>,
        told: &mut dyn FnMut(Told<'_>),
    ) -> Result<(), CodecError> {
        match (response.id, response.outcome) {
            (LOGIN_ID, Some(Outcome::LoginAck(ack))) => {
                self.heartbeat_us = u64::from(ack.heartbeat_interval_ms.max(100)) * 1_000;
                // Nobody needs it any more.
                self.token = Box::default();
                told(Told::WakeIn(self.phase % self.heartbeat_us));
                self.ask(JOIN_ID, out);
            }
            (JOIN_ID, Some(Outcome::Joined(_))) if !self.is_in => {
                self.is_in = true;
                told(Told::Ready);
            }
            (MESSAGE_ID, Some(Outcome::SendAck(_))) => {
                self.answered += 1;
                self.waiting.pop_front();
                self.ask(MESSAGE_ID, out);
            }
            (id, Some(Outcome::Refused(refused))) if refused.retry_after_ms > 0 => {
                self.again = Some(id);
                told(Told::WakeIn(u64::from(refused.retry_after_ms) * 1_000));
            }
            (_, Some(Outcome::Refused(refused))) => {
                let code = Code::try_from(refused.code).unwrap_or(Code::None);
                return Err(CodecError::Refused(format!("{code:?} {}", refused.reason)));
            }
            _ => {}
        }
        Ok(())
    }
}

/// What was heard, when it needs more than what it was lent from.
enum Heard {
    Open,
    Response(Response),
    Notify(Notify),
    Ping,
    WsPing(Vec<u8>),
}

impl Codec for Millrace {
    fn hello(&mut self, out: &mut Vec<u8>) -> bool {
        if self.request.is_empty() {
            self.ask(LOGIN_ID, out);
        } else {
            out.append(&mut self.request);
            self.request = Vec::new();
        }
        false
    }

    fn hear(
        &mut self,
        bytes: &mut [u8],
        out: &mut Vec<u8>,
        told: &mut dyn FnMut(Told<'_>),
    ) -> Result<(), CodecError> {
        let mut input = Received::new(bytes);
        loop {
            let heard = match self.session.next(&mut input, &Limits::default())? {
                None => return Ok(()),
                Some(ServerFrame::Notify(body)) => match peek_deliver(body) {
                    Some(deliver) => {
                        told(Told::Message(deliver.payload));
                        continue;
                    }
                    None => Heard::Notify(decode_notify(body)?),
                },
                Some(ServerFrame::Response(body)) => Heard::Response(decode_response(body)?),
                Some(ServerFrame::Open) => Heard::Open,
                Some(ServerFrame::Pong) => continue,
                Some(ServerFrame::Ping) => Heard::Ping,
                Some(ServerFrame::WsPing(payload)) => Heard::WsPing(payload.to_vec()),
                Some(ServerFrame::WsClose { code, reason }) => {
                    return Err(CodecError::Refused(format!("closed with {code} {reason}")));
                }
            };
            match heard {
                Heard::Open => self.ask(LOGIN_ID, out),
                Heard::Response(response) => self.answer(response, out, told)?,
                Heard::Ping => self.session.pong(out),
                Heard::WsPing(payload) => self.session.ws_pong(&payload, out),
                Heard::Notify(notify) => match notify.event {
                    Some(Event::GoAway(away)) => {
                        let code = Code::try_from(away.code).unwrap_or(Code::None);
                        return Err(CodecError::Refused(format!("go away: {code:?} {}", away.reason)));
                    }
                    Some(Event::Gap(gap)) => {
                        let text = format!("a gap was announced, {} to {}", gap.from, gap.to);
                        return Err(CodecError::Refused(text));
                    }
                    _ => {}
                },
            }
        }
    }

    /// A sender numbers its messages, and the server takes them in that order: one waits for the answer to the one
    /// before it.
    fn publish(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        debug_assert!(self.role == Role::Publisher);
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back(payload.to_vec());
        }
        if self.waiting.len() == 1 {
            self.ask(MESSAGE_ID, out);
        }
    }

    fn wake(&mut self, out: &mut Vec<u8>) -> Option<u64> {
        if let Some(id) = self.again.take() {
            self.ask(id, out);
            // Of the two timers that run now, the other one goes on with the heartbeats.
            return None;
        }
        self.session.ping(out);
        Some(self.heartbeat_us)
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::frame::FrameKind;
    use millrace_protocol::messages::client::{
        Deliver, GoAway, Joined, LoginAck, Refused, SendAck, notify, response,
    };
    use millrace_protocol::prost::Message;
    use millrace_protocol::ws::Opcode;

    use super::super::tests::{Owned, check, feed, refuses};
    use super::super::ws::tests::server;
    use super::*;

    fn room() -> Arc<Room> {
        Arc::new(Room { short_name: "x".to_owned(), name: "r:x".to_owned(), stream: 9 })
    }

    fn frame(kind: FrameKind, message: &impl Message) -> Vec<u8> {
        let body = message.encode_to_vec();
        [&millrace_protocol::frame::encode_header(kind, body.len())[..], &body].concat()
    }

    fn response(id: u64, outcome: response::Outcome) -> Vec<u8> {
        frame(FrameKind::Response, &Response { id, outcome: Some(outcome) })
    }

    fn notify(event: notify::Event) -> Vec<u8> {
        frame(FrameKind::Notify, &Notify { event: Some(event) })
    }

    fn login_ack() -> Vec<u8> {
        let ack = LoginAck { heartbeat_interval_ms: 30_000, ..LoginAck::default() };
        response(LOGIN_ID, Outcome::LoginAck(ack))
    }

    fn codec(role: Role, transport: Transport) -> Millrace {
        Millrace::new(role, transport, room(), "token", [1; 16])
    }

    #[test]
    fn logs_in_joins_and_hears_over_both_transports() {
        let deliver = Deliver {
            conversation: "r:x".to_owned(),
            seq: 1,
            payload: b"hi".to_vec().into(),
            ..Deliver::default()
        };
        let frames = [
            login_ack(),
            response(JOIN_ID, Outcome::Joined(Joined::default())),
            notify(notify::Event::Deliver(deliver)),
        ];
        let phase = u64::from(u32::from_le_bytes([1; 4])) % 30_000_000;
        let told = [Owned::WakeIn(phase), Owned::Ready, Owned::Message(b"hi".to_vec())];
        let mut join = Vec::new();
        ClientSession::tcp().request(JOIN_ID, op::room_join("x"), &mut join);
        let make = || Box::new(codec(Role::Subscriber, Transport::Tcp)) as Box<dyn Codec>;
        check(make, &frames.concat(), &told, &join);

        let messages: Vec<(Opcode, &[u8])> =
            frames.iter().map(|frame| (Opcode::Binary, frame.as_slice())).collect();
        let (mut session, _) = ClientSession::websocket("localhost", "/", [1; 16]);
        let mut answers = Vec::new();
        session.request(LOGIN_ID, op::login("token", "d", "loadgen"), &mut answers);
        session.request(JOIN_ID, op::room_join("x"), &mut answers);
        let make = || Box::new(codec(Role::Subscriber, Transport::Ws)) as Box<dyn Codec>;
        check(make, &server([1; 16], &messages), &told, &answers);
    }

    #[test]
    fn one_message_waits_for_the_answer_to_the_one_before() {
        let mut publisher = codec(Role::Publisher, Transport::Tcp);
        let mut out = Vec::new();
        publisher.publish(b"a", &mut out);
        let first = out.len();
        publisher.publish(b"b", &mut out);
        assert_eq!(out.len(), first);
        let ack = response(MESSAGE_ID, Outcome::SendAck(SendAck::default()));
        let (_, answers) = feed(&mut publisher, &ack, &[]).unwrap();
        let mut second = Vec::new();
        ClientSession::tcp().request(MESSAGE_ID, op::send("r:x", 9, 2, b"b".to_vec()), &mut second);
        assert_eq!(answers, second);
        let (_, answers) = feed(&mut publisher, &ack, &[]).unwrap();
        assert!(answers.is_empty());
    }

    #[test]
    fn asks_again_when_told_to_wait_and_ends_when_told_to_go() {
        let refused = |retry_after_ms| {
            let refused = Refused { code: Code::Busy as i32, retry_after_ms, ..Refused::default() };
            response(JOIN_ID, Outcome::Refused(refused))
        };
        let mut client = codec(Role::Subscriber, Transport::Tcp);
        let (told, _) = feed(&mut client, &refused(20), &[]).unwrap();
        assert_eq!(told, [Owned::WakeIn(20_000)]);
        let mut out = Vec::new();
        assert_eq!(client.wake(&mut out), None);
        assert!(!out.is_empty());
        let make = || Box::new(codec(Role::Subscriber, Transport::Tcp)) as Box<dyn Codec>;
        refuses(make, &refused(0));
        refuses(make, &notify(notify::Event::GoAway(GoAway::default())));
    }
}
