//! One device's connection: login, requests, and what comes back. Bytes in, bytes out; sockets are [`super::desk`]'s.
//!
//! Kept cheap, as the clients share the machine with what is measured: of a delivery only what is counted is read. It
//! never comes back by itself: on loopback, with nobody's fault, a connection that ends is one.

use millrace_edge::Conn;
use millrace_protocol::bytes::Bytes;
use millrace_protocol::client_session::{self, ClientSession, Limits, Received, ServerFrame, peek_deliver};
use millrace_protocol::messages::client::notify::Event as Told;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Code, Cursor, DeliverAck, Login};

use crate::payload::Header;

/// The id of the login; parts choose others.
const LOGIN_ID: u64 = u64::MAX;

/// Who logs in.
#[derive(Clone, Debug)]
pub(super) struct Who {
    pub(super) user: String,
    pub(super) device: String,
    pub(super) token: Box<str>,
}

/// When a login was at what, in us since boot.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    /// The connect was begun.
    pub(super) connect_us: u64,
    /// The Login frame was written.
    pub(super) login_us: u64,
    /// Its answer was read.
    pub(super) in_us: u64,
}

/// A message that came live.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) header: Header,
    pub(super) cursor: Cursor,
}

/// What a line heard that concerns a part.
#[derive(Debug)]
pub(super) enum Heard {
    In,
    Answer(u64, Outcome),
    Message(Arrival),
    Told(Told),
}

/// A connection.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) who: Who,
    session: ClientSession,
    pub(super) times: Times,
    pub(super) is_in: bool,
    pub(super) conn: Option<Conn>,
    pub(super) in_flight: bool,
    /// To be sent.
    pub(super) out: Vec<u8>,
}

impl Line {
    pub(super) fn new(who: Who) -> Self {
        Line {
            who,
            session: ClientSession::tcp(),
            times: Times::default(),
            is_in: false,
            conn: None,
            in_flight: false,
            out: Vec::new(),
        }
    }

    /// The connection is up.
    pub(super) fn connected(&mut self, now_us: u64) {
        self.times.login_us = now_us;
        let login = Login {
            token: self.who.token.to_string(),
            device: self.who.device.clone(),
            platform: "costs".to_owned(),
            resume_ticket: Bytes::new(),
            acknowledges: true,
        };
        self.session.request(LOGIN_ID, Op::Login(login), &mut self.out);
    }

    /// Asks.
    pub(super) fn ask(&mut self, id: u64, op: Op) {
        self.session.request(id, op, &mut self.out);
    }

    /// Says what this device has of a conversation.
    pub(super) fn acknowledge(&mut self, conversation: &str, cursor: Cursor) {
        let ack = DeliverAck { conversation: conversation.to_owned(), cursor: Some(cursor) };
        self.session.request(0, Op::DeliverAck(ack), &mut self.out);
    }

    /// Takes in bytes. `Err`: what ends the run.
    pub(super) fn hear(
        &mut self,
        now_us: u64,
        bytes: &mut [u8],
        mut heard: impl FnMut(Heard),
    ) -> Result<(), String> {
        let (mut input, limits) = (Received::new(bytes), Limits::default());
        while let Some(frame) = self.session.next(&mut input, &limits).map_err(|v| v.to_string())? {
            match frame {
                ServerFrame::Ping => self.session.pong(&mut self.out),
                ServerFrame::Pong | ServerFrame::Open | ServerFrame::WsPing(_) => {}
                ServerFrame::WsClose { code, reason } => return Err(format!("closed with {code}: {reason}")),
                ServerFrame::Response(body) => {
                    let response = client_session::decode_response(body).map_err(|v| v.to_string())?;
                    match (response.id, response.outcome) {
                        (LOGIN_ID, Some(Outcome::LoginAck(_))) => {
                            self.is_in = true;
                            self.times.in_us = now_us;
                            heard(Heard::In);
                        }
                        // A refusal of an acknowledgement.
                        (LOGIN_ID | 0, outcome) => return Err(said(outcome.as_ref())),
                        (id, Some(outcome)) => heard(Heard::Answer(id, outcome)),
                        (_, None) => return Err("a response without an outcome".to_owned()),
                    }
                }
                ServerFrame::Notify(body) => match peek_deliver(body) {
                    Some(deliver) => {
                        // What is too short for a header is an entry about a change of a group.
                        let header = Header::decode(deliver.payload);
                        let cursor = Cursor { epoch: deliver.epoch, seq: deliver.seq };
                        header
                            .into_iter()
                            .for_each(|header| heard(Heard::Message(Arrival { header, cursor })));
                    }
                    None => {
                        let notify = client_session::decode_notify(body).map_err(|v| v.to_string())?;
                        match notify.event {
                            Some(Told::GoAway(away)) => {
                                return Err(format!("sent away with {}: {}", away.code, away.reason));
                            }
                            event => event.into_iter().for_each(|event| heard(Heard::Told(event))),
                        }
                    }
                },
            }
        }
        Ok(())
    }
}

/// An answer that is none of those expected, in words.
pub(super) fn said(outcome: Option<&Outcome>) -> String {
    match outcome {
        Some(Outcome::Refused(refused)) => {
            let code = Code::try_from(refused.code).unwrap_or(Code::None);
            format!("refused with {code:?}: {}", refused.reason)
        }
        other => format!("answered with {other:?}"),
    }
}

/// How long to wait before a refused request is repeated, in us; `None`: it is refused for good.
pub(super) fn again_us(code: i32, retry_after_ms: u32) -> Option<u64> {
    /// Where nothing is said.
    const USUAL_MS: u32 = 5;
    match Code::try_from(code) {
        Ok(Code::Busy | Code::Unavailable | Code::OutOfOrder) => {
            Some(u64::from(retry_after_ms.max(USUAL_MS)) * 1_000)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passes_is_repeated() {
        assert_eq!(again_us(Code::Busy as i32, 20), Some(20_000));
        assert_eq!(again_us(Code::OutOfOrder as i32, 0), Some(5_000));
        assert_eq!(again_us(Code::Conflict as i32, 20), None);
    }
}
