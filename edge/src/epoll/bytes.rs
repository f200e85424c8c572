//! Sending and receiving on sockets that never block.
//!
//! A send goes as far as the socket takes it and continues when there is room. A receive takes one buffer, and puts
//! the connection where it belongs afterwards: behind the other readable ones, among those that wait for a buffer,
//! or nowhere, as the kernel will tell when more comes.

use std::io;

use super::EpollEdge;
use super::table::flag;
use crate::limits::RECV_BUFFER_BYTES;
use crate::{Conn, Event, Why};

impl EpollEdge {
    pub(super) fn want_write(&mut self, conn: Conn) {
        let Some(slot) = self.table.live(conn) else { return };
        if slot.flags & flag::SEND != 0 && slot.flags & flag::WRITING == 0 {
            slot.flags |= flag::WRITING;
            self.writing.push_back(conn);
        }
    }

    /// Sends what the socket takes.
    pub(super) fn write(&mut self, conn: Conn) {
        let Some(slot) = self.table.live(conn) else { return };
        slot.flags &= !flag::WRITING;
        if slot.flags & flag::SEND == 0 {
            return;
        }
        let (fd, index) = (slot.raw_fd(), slot.send);
        let outgoing = self.sends.get_mut(index).expect("a send in flight has its payload");
        loop {
            let rest = &outgoing.payload.as_slice()[outgoing.sent..];
            self.stats.enters += 1;
            // SAFETY: `rest` is borrowed for the call.
            let sent = unsafe { libc::send(fd, rest.as_ptr().cast(), rest.len(), libc::MSG_NOSIGNAL) };
            if sent < 0 {
                let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
                match errno {
                    libc::EINTR => continue,
                    // Continued when the socket has room: that is an edge, and comes.
                    libc::EAGAIN => return,
                    _ => return self.end(conn, Why::Error(errno)),
                }
            }
            self.stats.bytes_sent += sent as u64;
            outgoing.sent += sent as usize;
            if outgoing.sent == outgoing.payload.as_slice().len() {
                break;
            }
        }
        drop(self.sends.remove(index));
        self.stats.sends += 1;
        self.told.push_back(Event::Sent { conn });
        let Some(slot) = self.table.live(conn) else { return };
        slot.flags &= !flag::SEND;
        if slot.flags & flag::SHUT_WANTED != 0 {
            self.half_close(conn);
        }
    }

    pub(super) fn half_close(&mut self, conn: Conn) {
        let Some(slot) = self.table.live(conn) else { return };
        slot.flags = (slot.flags & !flag::SHUT_WANTED) | flag::SHUT;
        // SAFETY: no pointers. ENOTCONN means that the peer has reset, which the socket reports by itself.
        let _ = unsafe { libc::shutdown(slot.raw_fd(), libc::SHUT_WR) };
    }

    /// Receives one buffer, and puts the connection where it belongs afterwards.
    pub(super) fn read(&mut self, conn: Conn) {
        let Some(slot) = self.table.live(conn) else { return };
        slot.flags &= !(flag::READABLE | flag::WAITING);
        let Some(mut buf) = self.pool.lend() else {
            slot.flags |= flag::WAITING;
            self.stats.buffer_waits += 1;
            self.pool.note_starved();
            self.waiting.push_back(conn);
            return;
        };
        self.stats.enters += 1;
        // SAFETY: the buffer has RECV_BUFFER_BYTES, and is lent to this call alone.
        let received = unsafe { libc::recv(slot.raw_fd(), buf.start().cast(), RECV_BUFFER_BYTES, 0) };
        let again = match received {
            0 => return self.end(conn, Why::Eof),
            bytes if bytes > 0 => {
                buf.set_len(bytes as usize);
                self.stats.bytes_received += bytes as u64;
                if slot.flags & (flag::SHUT | flag::SHUT_WANTED) == 0 {
                    self.told.push_back(Event::Received { conn, bytes: buf });
                }
                bytes as usize == RECV_BUFFER_BYTES || slot.flags & flag::HUP != 0
            }
            _ => match io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) {
                libc::EAGAIN => false,
                libc::EINTR => true,
                errno => return self.end(conn, Why::Error(errno)),
            },
        };
        if again {
            slot.flags |= flag::READABLE;
            self.readable.push_back(conn);
        }
    }
}
