//! How clients come in: at the offered rate, through a window, from addresses with free ports; and back after a loss.
//!
//! The rule: a connect counts from when it was due, however late the window let it go.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use millrace_edge::Refused;
use millrace_edge::clock::boot_us;

use super::client::State;
use super::worker::{NOBODY, Timer, Worker};
use crate::limits::{
    BACKOFF_FIRST_US, BACKOFF_MAX_US, CONNECTIONS_PER_SOURCE, JOIN_WINDOW, LOGIN_WINDOW, RETRY_US, TRIES_MAX,
};

/// Connections that are opened between two turns, so that events are handled in between.
const CONNECTS_PER_TURN: u32 = 64;

impl Worker {
    /// When the next client is to be brought up; `None`: none, or the window is full.
    pub(super) fn next_up_at(&self) -> Option<u64> {
        if self.next_up >= self.end_up || self.arriving >= LOGIN_WINDOW {
            return None;
        }
        let (since, count) = self.pace;
        Some(if self.per_s > 0.0 { since + (count as f64 * 1e6 / self.per_s) as u64 } else { 0 })
    }

    pub(super) fn bring_up(&mut self) {
        let now = boot_us();
        for _ in 0..CONNECTS_PER_TURN {
            let Some(at) = self.next_up_at().filter(|&at| at <= now) else { return };
            let local = self.next_up;
            self.next_up += 1;
            self.pace.1 += 1;
            if self.clients[local as usize].state == State::Away {
                self.clients[local as usize].due_us = if self.per_s > 0.0 { at } else { now };
                self.clients[local as usize].tries = 0;
                self.connect(local);
            }
        }
    }

    pub(super) fn bring_together(&mut self) {
        while self.join_wanted && self.joining < JOIN_WINDOW && self.next_join < self.clients.len() {
            let local = self.next_join as u32;
            self.next_join += 1;
            if self.clients[local as usize].state == State::Inside {
                self.start_joining(local);
            }
        }
        self.join_wanted &= self.next_join < self.clients.len();
    }

    pub(super) fn connect(&mut self, local: u32) {
        let global = self.global(local);
        let to = self.setup.targets[global as usize % self.setup.targets.len()];
        let from = source(to, global, self.setup.clients);
        match self.edge.connect(to, from) {
            Ok(conn) => {
                let slot = conn.slot as usize;
                if slot >= self.by_slot.len() {
                    self.by_slot.resize(slot + 1, NOBODY);
                }
                self.by_slot[slot] = local;
                let client = &mut self.clients[local as usize];
                client.reset();
                client.conn = conn;
                client.state = State::Connecting;
                self.arriving += 1;
            }
            Err(Refused::Full { .. }) => {
                // Slots that are being closed come free in a moment.
                self.clients[local as usize].state = State::Waiting;
                self.timers.push(Reverse((boot_us() + RETRY_US, local, Timer::Connect)));
            }
            Err(refused) => {
                self.board.connect_failures.add(1);
                self.board.trouble(|| format!("connecting to {to}: {refused}"));
                self.come_back_later(local);
            }
        }
    }

    /// Draws the pause before the next attempt: full jitter, and not before the server said.
    pub(super) fn come_back_later(&mut self, local: u32) {
        let client = &mut self.clients[local as usize];
        client.tries += 1;
        if client.tries > TRIES_MAX {
            client.state = State::Away;
            self.board.given_up.add(1);
            return;
        }
        let doublings = u32::from(client.tries - 1).min(16);
        let ceiling = (BACKOFF_FIRST_US << doublings).min(BACKOFF_MAX_US);
        let wait_us = u64::from(client.retry_after_ms) * 1_000 + self.rng.below(ceiling);
        client.retry_after_ms = 0;
        client.state = State::Waiting;
        self.timers.push(Reverse((boot_us() + wait_us, local, Timer::Connect)));
    }
}

/// The source address of a client. One address has too few ports for many connections to one target; on loopback
/// there are millions of addresses, and one holds [`CONNECTIONS_PER_SOURCE`].
pub(crate) fn source(to: SocketAddr, client: u32, clients: u32) -> Option<IpAddr> {
    if clients <= CONNECTIONS_PER_SOURCE || !to.is_ipv4() || !to.ip().is_loopback() {
        return None;
    }
    let offset = client / CONNECTIONS_PER_SOURCE;
    Some(IpAddr::V4(Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + offset)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_clients_have_many_sources_on_loopback_only() {
        let local: SocketAddr = "127.0.0.1:1".parse().unwrap();
        assert_eq!(source(local, 5, CONNECTIONS_PER_SOURCE), None);
        assert_eq!(source(local, 5, 100_000), Some("127.0.0.1".parse().unwrap()));
        assert_eq!(source(local, 25_000, 100_000), Some("127.0.0.3".parse().unwrap()));
        assert_eq!(source(local, 999_999, 1_000_000), Some("127.0.0.100".parse().unwrap()));
        assert_eq!(source("10.0.0.1:1".parse().unwrap(), 45_000, 100_000), None);
        assert_eq!(source("[::1]:1".parse().unwrap(), 45_000, 100_000), None);
    }
}
