//! Copies of a client's process: a profile that was opened twice, a backup that was started beside the original.
//!
//! A copy keeps the connection that the original had, and does no more than to keep it up. The original connects again,
//! under the same device: of the two sessions the newer one stays, and the other one is to be closed soon.

use millrace_protocol::client_session::{ClientSession, Limits, Received, ServerFrame};

use crate::network::{ConnId, Item};
use crate::outside::Outside;

struct Copy {
    id: ConnId,
    speaks: ClientSession,
    ping_at_us: u64,
}

/// Those of one device that nobody has closed yet.
pub struct Copies {
    all: Vec<Copy>,
    /// They ping so often, us.
    every_us: u64,
}

impl Copies {
    /// None yet; they will ping so often.
    pub fn new(every_us: u64) -> Self {
        Copies { all: Vec::new(), every_us }
    }

    /// One takes over a connection that is logged in.
    pub fn add(&mut self, now_us: u64, id: ConnId, speaks: ClientSession) {
        self.all.push(Copy { id, speaks, ping_at_us: now_us + self.every_us });
    }

    /// All of them are closed.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// When the next one pings.
    pub fn next_us(&self) -> u64 {
        self.all.iter().map(|copy| copy.ping_at_us).min().unwrap_or(u64::MAX)
    }

    /// They ping.
    pub fn turn(&mut self, out: &mut Outside) {
        let now_us = out.now_us;
        for copy in self.all.iter_mut().filter(|copy| copy.ping_at_us <= now_us) {
            copy.ping_at_us = now_us + self.every_us;
            let mut bytes = Vec::new();
            copy.speaks.ping(&mut bytes);
            out.send(copy.id, 0, bytes.into());
        }
    }

    /// Something arrived. Returns whether it was for one of them.
    pub fn hear(&mut self, out: &mut Outside, id: ConnId, item: &Item) -> bool {
        let Some(at) = self.all.iter().position(|copy| copy.id == id) else { return false };
        let stays = match item {
            Item::Accepted => true,
            Item::Bytes(bytes) => self.all[at].hear(out, bytes.to_vec()),
            Item::Closed => false,
        };
        if !stays {
            self.all.remove(at);
            out.close(id, 0);
        }
        true
    }
}

impl Copy {
    /// Returns whether it goes on: it was not told to close.
    fn hear(&mut self, out: &mut Outside, mut bytes: Vec<u8>) -> bool {
        let mut input = Received::new(&mut bytes);
        let mut answer = Vec::new();
        loop {
            match self.speaks.next(&mut input, &Limits::default()) {
                Ok(None) => break,
                Ok(Some(ServerFrame::Ping)) => self.speaks.pong(&mut answer),
                Ok(Some(ServerFrame::WsClose { .. })) | Err(_) => return false,
                Ok(Some(_)) => {}
            }
        }
        if !answer.is_empty() {
            out.send(self.id, 0, answer.into());
        }
        true
    }
}
