//! How soon a connection between servers is given up when its peer says nothing: for links.
//!
//! TCP alone waits for hours on a silent connection, and a quarter of an hour for an acknowledgement: a switch that drops
//! one direction, or a machine that lost its power, would keep a link that nobody can use. Client connections have
//! heartbeats and need none of this.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// Between the last byte and the first probe.
const IDLE: Duration = Duration::from_secs(3);
/// Between two probes.
const INTERVAL: Duration = Duration::from_secs(2);
/// Probes without an answer: with the time before them as long as [`SILENCE_MAX`], nearly.
const PROBES: u32 = 3;

/// Sent data that is not acknowledged for so long ends the connection, and so does a peer that takes none: as long as
/// dispatchers keep the state of a link that is away.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Bounds the silence of a connection.
///
/// # Errors
/// What the system says; for a TCP socket there is nothing that it could.
pub fn bound_silence(socket: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: the descriptor is open while `socket` is borrowed, which outlives this function; monoio's streams offer no
    // `AsFd`. Nothing keeps it or closes it.
    let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    let socket = SockRef::from(&fd);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(IDLE).with_interval(INTERVAL).with_retries(PROBES),
    )?;
    socket.set_tcp_user_timeout(Some(SILENCE_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_given_up_after_a_bounded_silence() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        bound_silence(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(SILENCE_MAX));
        assert_eq!(socket.tcp_keepalive_time().unwrap(), IDLE);
        assert!(IDLE + INTERVAL * PROBES <= SILENCE_MAX);
    }
}
