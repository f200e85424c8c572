//! One connection: a socket, the protocol's codec, and what was decoded or waits to be written. It knows frames, and
//! nothing of what they mean.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use millrace_protocol::client_session::{
    ClientSession, Limits, Received, ServerFrame, decode_notify, decode_response,
};
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{Code, GoAway, Notify, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::{Config, Transport};
use crate::error::Reason;

/// Bytes read at once.
const READ_BYTES: usize = 16 << 10;

/// What the server sent.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// WebSocket is open.
    Open,
    Response(Response),
    Notify(Notify),
    /// The server ended the WebSocket connection with this code.
    Closed(Reason),
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) struct NotOpened {
    pub(crate) reason: Reason,
    /// What the server said to it.
    pub(crate) away: Option<GoAway>,
}

impl From<Reason> for NotOpened {
    fn from(reason: Reason) -> Self {
        NotOpened { reason, away: None }
    }
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    session: ClientSession,
    buffer: Box<[u8]>,
    /// Decoded and not looked at yet: at most what one read holds.
    pub(crate) incoming: VecDeque<Incoming>,
    out: Vec<u8>,
    written: usize,
    write_failed: bool,
}

fn network(what: &str) -> impl FnOnce(io::Error) -> Reason {
    move |error| Reason::Network(format!("{what}: {error}"))
}

impl Wire {
    /// Connects, and opens the transport.
    pub(crate) async fn open(address: &str, config: &Config) -> Result<Wire, NotOpened> {
        let stream = TcpStream::connect(address).await.map_err(network(address))?;
        stream.set_nodelay(true).map_err(network(address))?;
        let (session, out) = match config.transport {
            Transport::Tcp => (ClientSession::tcp(), Vec::new()),
            Transport::WebSocket => {
                let mut nonce = [0; 16];
                getrandom::fill(&mut nonce).map_err(|error| Reason::Network(error.to_string()))?;
                ClientSession::websocket(address, &config.path, nonce)
            }
        };
        let incoming = VecDeque::new();
        let buffer = vec![0; READ_BYTES].into();
        let mut wire = Wire { stream, session, buffer, incoming, out, written: 0, write_failed: false };
        if wire.session.is_websocket() {
            let opened = wire.next().await;
            match opened.map_err(|reason| NotOpened { reason, away: wire.session.sent_away() })? {
                Incoming::Open => {}
                Incoming::Closed(reason) => return Err(reason.into()),
                other => {
                    return Err(Reason::Network(format!("before the WebSocket was open: {other:?}")).into());
                }
            }
        }
        Ok(wire)
    }

    /// Writes what waits and reads until something is decoded.
    async fn next(&mut self) -> Result<Incoming, Reason> {
        loop {
            self.stream.write_all(&self.out[self.written..]).await.map_err(network("write"))?;
            self.out.clear();
            self.written = 0;
            if let Some(incoming) = self.incoming.pop_front() {
                return Ok(incoming);
            }
            let count = self.stream.read(&mut self.buffer).await.map_err(network("read"))?;
            self.decode(count)?;
        }
    }

    /// Waits until there is something to read.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.stream.readable().await
    }

    /// Reads what there is. Returns whether anything came.
    pub(crate) fn read(&mut self) -> Result<bool, Reason> {
        match self.stream.try_read(&mut self.buffer) {
            Ok(count) => self.decode(count).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(network("read")(error)),
        }
    }

    /// Waits until there is room to write.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.stream.writable().await
    }

    /// Writes what the socket takes. After an error nothing is written any more: what the server said before it closed
    /// is still to be read, and reading finds the end.
    pub(crate) fn write(&mut self) {
        match self.stream.try_write(&self.out[self.written..]) {
            Ok(count) => self.written += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => self.write_failed = true,
        }
        if self.written == self.out.len() || self.write_failed {
            self.out.clear();
            self.written = 0;
        }
    }

    fn decode(&mut self, count: usize) -> Result<(), Reason> {
        if count == 0 {
            return Err(Reason::Network("the server closed the connection".into()));
        }
        let mut input = Received::new(&mut self.buffer[..count]);
        let limits = Limits::default();
        let (mut ping, mut ws_pings) = (false, Vec::new());
        let violated = |violation| Reason::Network(format!("the server broke the protocol: {violation}"));
        while let Some(frame) = self.session.next(&mut input, &limits).map_err(violated)? {
            match frame {
                ServerFrame::Open => self.incoming.push_back(Incoming::Open),
                ServerFrame::Response(body) => {
                    self.incoming.push_back(Incoming::Response(decode_response(body).map_err(violated)?));
                }
                ServerFrame::Notify(body) => {
                    self.incoming.push_back(Incoming::Notify(decode_notify(body).map_err(violated)?));
                }
                ServerFrame::Ping => ping = true,
                ServerFrame::Pong => {}
                ServerFrame::WsPing(payload) => ws_pings.push(payload.to_vec()),
                ServerFrame::WsClose { code, reason } => {
                    self.incoming.push_back(Incoming::Closed(closed(code, reason)));
                }
            }
        }
        // However many there were, one answer says that this side lives.
        if ping {
            self.session.pong(&mut self.out);
        }
        if let Some(payload) = ws_pings.pop() {
            self.session.ws_pong(&payload, &mut self.out);
        }
        Ok(())
    }

    /// Appends a request to what waits.
    pub(crate) fn request(&mut self, id: u64, op: Op) {
        if !self.write_failed {
            self.session.request(id, op, &mut self.out);
        }
    }

    /// Appends a heartbeat to what waits.
    pub(crate) fn ping(&mut self) {
        if !self.write_failed {
            self.session.ping(&mut self.out);
        }
    }

    /// Whether something waits to be written.
    pub(crate) fn has_output(&self) -> bool {
        !self.write_failed && self.written < self.out.len()
    }

    /// Ends the connection politely, without waiting for long.
    pub(crate) async fn close(mut self) {
        self.session.close(1000, "bye", &mut self.out);
        let farewell = async {
            // It ends either way.
            let _ = self.stream.write_all(&self.out[self.written..]).await;
            let _ = self.stream.shutdown().await;
        };
        let _ = tokio::time::timeout(Duration::from_millis(200), farewell).await;
    }
}

fn closed(code: u16, reason: &str) -> Reason {
    match Code::try_from(i32::from(code)) {
        Ok(code) if code != Code::None => Reason::Server { code, reason: reason.into() },
        _ => Reason::Network(format!("the server closed the WebSocket ({code}): {reason}")),
    }
}
