//! Accepting while there are slots, and not while the machine is short of something.
//!
//! Listeners are level-triggered: what is not accepted now shows again. So their interest is taken back while nothing
//! can be accepted, and the edge does not spin over a full backlog.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::table::Phase;
use super::{CONNECTION, EpollEdge, LISTENER, LISTENER_TAG, tag};
use crate::limits::ACCEPT_PAUSE_MS;
use crate::{Event, Why, socket};

impl EpollEdge {
    /// Asks for new connections while slots are free, and not while the machine is short of something.
    pub(super) fn update_accepting(&mut self) {
        if self.accept_pause.is_some_and(|until| Instant::now() >= until) {
            self.accept_pause = None;
        }
        let wanted = self.table.free() > 0
            && self.accept_pause.is_none()
            && !self.accepts_held
            && !self.listeners.is_empty();
        if wanted == self.accepting {
            return;
        }
        self.accepting = wanted;
        for (number, listener) in self.listeners.iter().enumerate() {
            let events = if wanted { LISTENER } else { 0 };
            // A registered descriptor can be modified; nothing else is an error here.
            let _ = self.register(
                libc::EPOLL_CTL_MOD,
                listener.as_raw_fd(),
                events,
                LISTENER_TAG | number as u64,
            );
        }
    }

    /// Accepts one connection. Returns whether there may be another.
    pub(super) fn accept(&mut self, number: usize) -> bool {
        if self.table.free() == 0 || self.accept_pause.is_some() || self.accepts_held {
            return false;
        }
        let Some(listener) = self.listeners.get(number) else { return false };
        // SAFETY: all-zero bytes are a valid sockaddr_storage.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        self.stats.enters += 1;
        // SAFETY: both out-parameters live on this stack, and `len` says how large the first is.
        let fd = unsafe {
            libc::accept4(
                listener.as_raw_fd(),
                (&raw mut storage).cast(),
                &mut len,
                libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
            )
        };
        if fd < 0 {
            return match io::Error::last_os_error().raw_os_error() {
                Some(libc::EAGAIN) => false,
                Some(libc::EINTR) => true,
                Some(libc::ECONNABORTED | libc::EPROTO) => {
                    self.stats.accept_failures += 1;
                    true
                }
                _ => {
                    self.stats.accept_failures += 1;
                    self.accept_pause = Some(Instant::now() + Duration::from_millis(ACCEPT_PAUSE_MS));
                    false
                }
            };
        }
        // SAFETY: just made, and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let raw = fd.as_raw_fd();
        let conn = self.table.take(Phase::Open, fd).expect("a slot was free above");
        self.stats.accepted += 1;
        self.stats.open_now += 1;
        self.told.push_back(Event::Accepted { conn, peer: socket::from_raw(&storage) });
        if let Err(error) = self.register(libc::EPOLL_CTL_ADD, raw, CONNECTION, tag(conn)) {
            self.end(conn, Why::Error(error.raw_os_error().unwrap_or(libc::EIO)));
        }
        true
    }
}
