//! The floors: millrace's frames without a login. Nothing is ever said to them.

use millrace_protocol::client_session::{ClientSession, ServerFrame, peek_deliver};
use millrace_protocol::received::{Limits, Received};

use super::{Codec, CodecError, Told};

/// One connection to a floor.
#[derive(Debug)]
pub struct Floor(ClientSession);

impl Floor {
    /// Not connected yet.
    pub fn new() -> Self {
        Floor(ClientSession::tcp())
    }
}

impl Default for Floor {
    fn default() -> Self {
        Self::new()
    }
}

impl Codec for Floor {
    fn hello(&mut self, _out: &mut Vec<u8>) -> bool {
        true
    }

    fn hear(
        &mut self,
        bytes: &mut [u8],
        _out: &mut Vec<u8>,
        told: &mut dyn FnMut(Told<'_>),
    ) -> Result<(), CodecError> {
        let mut input = Received::new(bytes);
        while let Some(frame) = self.0.next(&mut input, &Limits::default())? {
            if let ServerFrame::Notify(body) = frame
                && let Some(deliver) = peek_deliver(body)
            {
                told(Told::Message(deliver.payload));
            }
        }
        Ok(())
    }

    fn publish(&mut self, _payload: &[u8], _out: &mut Vec<u8>) {}
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Owned, check, refuses};
    use super::*;

    #[test]
    fn hears_what_the_floor_sends() {
        let header = |message| crate::payload::Header {
            run: 7,
            message,
            conversation: 0,
            sender: u32::MAX,
            due_us: 1 << 40,
        };
        let frame = |message| crate::floor::frame(7, message, 1 << 40, 40);
        let (first, second) = (frame(0), frame(1));
        let bytes =
            |frame: &millrace_protocol::frame::SharedFrame| frame.bytes()[frame.tcp_start()..].to_vec();
        let server = [bytes(&first), bytes(&second)].concat();
        let told = [0, 1].map(|message| Owned::Message(header(message).encode(40)));
        check(|| Box::new(Floor::new()), &server, &told, b"");
        refuses(|| Box::new(Floor::new()), b"GET / HTTP/1.1\r\n");
    }
}
