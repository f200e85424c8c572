//! One connection of a device, read through the production codec.
//!
//! What the frames mean to the device is left to [`crate::device`].

use std::collections::{BTreeMap, VecDeque};

use millrace_client::Reason;
use millrace_protocol::client_session::{
    ClientSession, Limits, Received, ServerFrame, Violation, decode_notify, decode_response,
};
use millrace_protocol::messages::client::{Code, GoAway, Notify, Response};

use crate::answers::Asked;
use crate::network::ConnId;

/// What the server sent.
#[derive(Debug)]
pub enum Incoming {
    Response(Response),
    Notify(Notify),
    Closed(Reason),
}

/// Open, or on its way there.
pub struct Wire {
    pub id: ConnId,
    /// As the machine calls it.
    pub conn: u64,
    pub speaks: ClientSession,
    pub open: bool,
    pub incoming: VecDeque<Incoming>,
    /// Messages whose answers are due on it, by request.
    pub asked: BTreeMap<u64, Asked>,
}

/// What there was beside [`Wire::incoming`].
pub struct Heard {
    pub opened: bool,
    pub ping: bool,
}

/// Why there is no more to be read.
pub enum Unread {
    /// The gateway said before the WebSocket was open that it closes.
    SentAway(GoAway),
    Broken(Violation),
}

impl Wire {
    pub fn new(id: ConnId, conn: u64) -> Self {
        let (speaks, incoming) = (ClientSession::tcp(), VecDeque::new());
        Wire { id, conn, speaks, open: false, incoming, asked: BTreeMap::new() }
    }

    /// Takes the frames out of what arrived.
    pub fn decode(&mut self, mut bytes: Vec<u8>) -> Result<Heard, Unread> {
        let mut input = Received::new(&mut bytes);
        let limits = Limits::default();
        let mut heard = Heard { opened: false, ping: false };
        loop {
            let frame = match self.speaks.next(&mut input, &limits) {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(heard),
                Err(violation) => {
                    return Err(self.speaks.sent_away().map_or(Unread::Broken(violation), Unread::SentAway));
                }
            };
            match frame {
                ServerFrame::Open => (self.open, heard.opened) = (true, true),
                ServerFrame::Response(body) => {
                    let response = decode_response(body).map_err(Unread::Broken)?;
                    self.incoming.push_back(Incoming::Response(response));
                }
                ServerFrame::Notify(body) => {
                    let notify = decode_notify(body).map_err(Unread::Broken)?;
                    self.incoming.push_back(Incoming::Notify(notify));
                }
                ServerFrame::Ping => heard.ping = true,
                ServerFrame::Pong | ServerFrame::WsPing(_) => {}
                ServerFrame::WsClose { code, reason } => {
                    let reason = match Code::try_from(i32::from(code)) {
                        Ok(code) if code != Code::None => Reason::Server { code, reason: reason.into() },
                        _ => Reason::Network(reason.into()),
                    };
                    self.incoming.push_back(Incoming::Closed(reason));
                }
            }
        }
    }
}
