//! What a subscriber and the publisher say to each server, sans-IO: bytes in, bytes and [`Told`] out.
//!
//! One codec is one connection. Sockets, times of messages and books are the swarm's, the same for all protocols, so
//! that servers are compared and not clients. The rule: a codec decodes no more than it needs to find a payload, and
//! holds memory only for what is partial.

mod carry;
mod centrifugo;
mod floor;
mod millrace;
mod mqtt;
mod nats;
mod nchan;
mod resp;
mod ws;

use millrace_protocol::received::Violation;

pub use self::centrifugo::Centrifugo;
pub use self::floor::Floor;
pub use self::millrace::{Millrace, Room};
pub use self::mqtt::{Mqtt, Qos};
pub use self::nats::Nats;
pub use self::nchan::{NchanPublisher, NchanSubscriber};
pub use self::resp::Resp;

/// The one topic that everybody is on.
pub const TOPIC: &str = "fan";

/// Which end of the fan-out a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Gets every message.
    Subscriber,
    /// Sends them, and gets none.
    Publisher,
}

/// What a codec has to say about received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told<'a> {
    /// Subscribed, as the server confirmed (or, for a publisher, ready to publish).
    Ready,
    /// A message's payload.
    Message(&'a [u8]),
    /// [`Codec::wake`] is to be called in so many microseconds.
    WakeIn(u64),
}

/// A connection that has to end.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CodecError {
    /// The server said no, in its own words.
    #[error("the server refused: {0}")]
    Refused(String),
    /// What came is not of this protocol.
    #[error("the server sent what {0} does not allow: {1}")]
    Nonsense(&'static str, String),
    /// Something partial grew above its bound.
    #[error("the server sent something of more than {0} bytes")]
    TooBig(usize),
    /// The WebSocket or millrace layer refused it.
    #[error(transparent)]
    Violation(#[from] Violation),
}

/// One connection's protocol.
pub trait Codec {
    /// Appends what is said first to `out`. Whether the connection is ready at once, as nothing is answered.
    fn hello(&mut self, out: &mut Vec<u8>) -> bool;
    /// Takes in received bytes (which may be unmasked in place), and appends answers to `out`.
    fn hear(
        &mut self,
        bytes: &mut [u8],
        out: &mut Vec<u8>,
        told: &mut dyn FnMut(Told<'_>),
    ) -> Result<(), CodecError>;
    /// Appends a message to `out`, on a publisher.
    fn publish(&mut self, payload: &[u8], out: &mut Vec<u8>);
    /// The time of a [`Told::WakeIn`] is up. Returns when to wake next, in microseconds.
    fn wake(&mut self, _out: &mut Vec<u8>) -> Option<u64> {
        None
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What a codec told, owned.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) enum Owned {
        Ready,
        Message(Vec<u8>),
        WakeIn(u64),
    }

    /// Feeds `bytes` in pieces that end at each of `cuts`.
    pub(crate) fn feed(
        codec: &mut dyn Codec,
        bytes: &[u8],
        cuts: &[usize],
    ) -> Result<(Vec<Owned>, Vec<u8>), CodecError> {
        let (mut told, mut out) = (Vec::new(), Vec::new());
        let mut from = 0;
        for &to in cuts.iter().chain([&bytes.len()]) {
            let mut piece = bytes[from..to].to_vec();
            codec.hear(&mut piece, &mut out, &mut |what| {
                told.push(match what {
                    Told::Ready => Owned::Ready,
                    Told::Message(payload) => Owned::Message(payload.to_vec()),
                    Told::WakeIn(us) => Owned::WakeIn(us),
                });
            })?;
            from = to;
        }
        Ok((told, out))
    }

    /// A server's words give the same whole, cut at every byte, and byte by byte.
    pub(crate) fn check(make: impl Fn() -> Box<dyn Codec>, server: &[u8], told: &[Owned], answers: &[u8]) {
        let whole = feed(&mut *make(), server, &[]).unwrap();
        assert_eq!((whole.0.as_slice(), whole.1.as_slice()), (told, answers), "whole");
        for cut in 1..server.len() {
            assert_eq!(feed(&mut *make(), server, &[cut]).unwrap(), whole, "cut at {cut}");
        }
        let every: Vec<usize> = (1..server.len()).collect();
        assert_eq!(feed(&mut *make(), server, &every).unwrap(), whole, "byte by byte");
    }

    /// A server's words end the connection, wherever they are cut.
    pub(crate) fn refuses(make: impl Fn() -> Box<dyn Codec>, server: &[u8]) {
        for cut in 1..=server.len() {
            let cuts = if cut == server.len() { vec![] } else { vec![cut] };
            assert!(feed(&mut *make(), server, &cuts).is_err(), "cut at {cut} of {server:?}");
        }
    }
}
