//! The links that are at home on this shard: one [`LinkEnd`] each, what waits for their credit, and when their state
//! ends.
//!
//! It leaves records' meaning to the shard. The rule that keeps it right: what is sent on a link leaves in the order
//! of the calls, messages made into gap marks included; state that would have to break that is dropped whole, and
//! the gateway's next hello finds a fresh link.
//!
//! A gateway finds a node that has just started a little later than that node finds its sessions' routes. What nobody asks
//! for again (messages and attachments for single sessions) therefore waits for a link that was never up, as for one that
//! is away: as long, and no longer. A gateway that is later than that tells its sessions to look.

use bytes::Bytes;
use millrace_protocol::ids::Now;
use millrace_protocol::link::Record;
use millrace_protocol::link::end::{LinkEnd, LinkEvent, LinkLimits, NoCredit};
use millrace_protocol::link::record::{Kind, RECORD_BYTES_MAX};
use millrace_protocol::messages::link::Hello;
use rustc_hash::FxHashMap;

use super::credit::{Kept, Waiting};
use super::event::LinkKey;
use super::limits::{ACK_DELAY_US, LINK_RESUME_BYTES, LINKS_MAX};
use super::stats::Stats;

/// All links of a shard.
#[derive(Debug)]
pub struct Links {
    identity: Hello,
    limits: LinkLimits,
    waiting_bytes_max: usize,
    away_us: u64,
    map: FxHashMap<LinkKey, Link>,
    /// Links that may have something to transmit, each once.
    output: Vec<LinkKey>,
    /// Links whose state must be dropped at the end of the step.
    overflowed: Vec<LinkKey>,
    /// Links that have something waiting, in no order.
    blocked: Vec<LinkKey>,
    born: u64,
}

#[derive(Debug)]
struct Link {
    end: LinkEnd,
    waiting: Waiting,
    connected: bool,
    /// Whether the gateway ever said hello.
    known: bool,
    /// When the transport was lost; its state is dropped some time after.
    lost_at_us: u64,
    /// In `output`.
    listed: bool,
    overflowed: bool,
    blocked: bool,
    /// Tells apart the states that one key had.
    born: u64,
    /// Records taken for sending, those that wait included.
    accepted: u64,
    /// When records taken in are acknowledged though there is nothing to send; 0: nothing is due.
    ack_due_us: u64,
}

impl Links {
    /// No links yet. `identity` is this shard's hello.
    pub fn new(identity: Hello, limits: LinkLimits, waiting_bytes_max: usize, away_us: u64) -> Self {
        Links {
            identity,
            limits,
            waiting_bytes_max,
            away_us,
            map: FxHashMap::default(),
            output: Vec::new(),
            overflowed: Vec::new(),
            blocked: Vec::new(),
            born: 0,
        }
    }

    /// How many records each link took so far.
    pub fn accepted(&self) -> Vec<(LinkKey, u64, u64)> {
        self.map.iter().map(|(key, link)| (*key, link.born, link.accepted)).collect()
    }

    /// Forgets those links that have acknowledged as much, or are gone. Returns whether none are left.
    pub fn settled(&self, sent: &mut Vec<(LinkKey, u64, u64)>) -> bool {
        sent.retain(|(key, born, accepted)| {
            self.map.get(key).filter(|link| link.born == *born).is_some_and(|link| {
                let open = link.end.unacknowledged() + link.waiting.count();
                link.accepted - (open as u64).min(link.accepted) < *accepted
            })
        });
        sent.is_empty()
    }

    /// A transport of this link is up. `false`: there are too many links.
    pub fn connected(&mut self, key: LinkKey) -> bool {
        if !self.map.contains_key(&key) && self.map.len() >= LINKS_MAX {
            return false;
        }
        if !self.map.contains_key(&key) {
            self.make(key, 0);
        }
        if let Some(link) = self.map.get_mut(&key) {
            link.end.connected();
            link.connected = true;
            list(&mut self.output, key, link);
        }
        true
    }

    /// Makes the state of a link that has none.
    fn make(&mut self, key: LinkKey, lost_at_us: u64) {
        self.born += 1;
        let link = Link {
            end: LinkEnd::new(self.identity.clone(), self.limits),
            waiting: Waiting::default(),
            connected: false,
            known: false,
            lost_at_us,
            listed: false,
            overflowed: false,
            blocked: false,
            ack_due_us: 0,
            born: self.born,
            accepted: 0,
        };
        self.map.insert(key, link);
    }

    /// Bytes of a link: what came of them, in order, or why the transport must be dropped.
    pub fn receive(&mut self, key: LinkKey, bytes: Bytes) -> (Vec<LinkEvent>, Option<String>) {
        let Some(link) = self.map.get_mut(&key).filter(|link| link.connected) else {
            return (Vec::new(), None);
        };
        let error = link.end.receive(bytes).err().map(|error| error.to_string());
        let events = std::iter::from_fn(|| link.end.poll()).collect();
        // A hello, or credit that came back.
        list(&mut self.output, key, link);
        (events, error)
    }

    /// The transport is gone.
    pub fn lost(&mut self, key: LinkKey, now: Now) {
        if let Some(link) = self.map.get_mut(&key)
            && link.connected
        {
            link.end.disconnected();
            link.connected = false;
            link.lost_at_us = now.mono_us;
        }
    }

    /// Drops a link's state.
    pub fn remove(&mut self, key: LinkKey) {
        self.map.remove(&key);
    }

    /// The gateway said hello anew. It lost its state, so what waits means nothing to it; unless it waited for the first
    /// hello.
    pub fn began(&mut self, key: LinkKey, stats: &mut Stats) {
        if let Some(link) = self.map.get_mut(&key)
            && std::mem::replace(&mut link.known, true)
        {
            stats.lost += link.waiting.count() as u64;
            link.waiting = Waiting::default();
        }
    }

    /// Whether the peer said hello on the present transport.
    pub fn is_up(&self, key: LinkKey) -> bool {
        self.map.get(&key).is_some_and(|link| link.end.is_up())
    }

    /// All links that have state.
    pub fn keys(&self) -> Vec<LinkKey> {
        let mut keys: Vec<_> = self.map.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    /// Sends a record, connected or not, after everything sent before it.
    pub fn send(&mut self, key: LinkKey, record: Record, now: Now, stats: &mut Stats) {
        if record.size_bytes() > RECORD_BYTES_MAX {
            stats.oversize += 1;
            return;
        }
        let Some(link) = self.map.get_mut(&key) else {
            let waits = matches!(record.kind, Kind::Direct | Kind::Attach);
            if !waits || self.map.len() >= LINKS_MAX {
                stats.no_link += 1;
                return;
            }
            self.make(key, now.mono_us);
            return self.send(key, record, now, stats);
        };
        if link.overflowed {
            stats.no_link += 1;
            return;
        }
        let kind = record.kind;
        link.accepted += 1;
        let refused = match link.waiting.is_empty() {
            true => link.end.queue(record).err().map(|NoCredit(record)| record),
            false => Some(record),
        };
        list(&mut self.output, key, link);
        let Some(record) = refused else {
            count(kind, stats);
            return;
        };
        match link.waiting.push(record, self.waiting_bytes_max) {
            Kept::Waits => {}
            Kept::Marked => stats.gap_marked += 1,
            Kept::Dropped => stats.directs_dropped += 1,
            Kept::Forgotten => stats.relays_dropped += 1,
            Kept::Overflow => {
                link.overflowed = true;
                stats.links_overflowed += 1;
                self.overflowed.push(key);
            }
        }
        if !link.blocked && !link.waiting.is_empty() {
            link.blocked = true;
            self.blocked.push(key);
        }
    }

    /// Links whose state must be dropped because too much waited for credit, each once.
    pub fn take_overflowed(&mut self) -> Vec<LinkKey> {
        std::mem::take(&mut self.overflowed)
    }

    /// Queues what waits as far as there is credit, and asks for late acknowledgements. At the end of a turn.
    pub fn turn(&mut self, now: Now, stats: &mut Stats) {
        for key in std::mem::take(&mut self.blocked) {
            let Some(link) = self.map.get_mut(&key) else { continue };
            let resumes =
                link.end.credit_bytes() >= LINK_RESUME_BYTES || link.end.unacknowledged_bytes() == 0;
            while resumes && let Some(record) = link.waiting.pop() {
                let kind = record.kind;
                if let Err(NoCredit(record)) = link.end.queue(record) {
                    link.waiting.put_back(record);
                    break;
                }
                list(&mut self.output, key, link);
                count(kind, stats);
            }
            link.blocked = !link.waiting.is_empty();
            if link.blocked {
                self.blocked.push(key);
            }
        }
        for (key, link) in &mut self.map {
            if !link.end.needs_ack() {
                link.ack_due_us = 0;
            } else if link.ack_due_us == 0 {
                link.ack_due_us = now.mono_us + ACK_DELAY_US;
            } else if link.ack_due_us <= now.mono_us {
                link.end.ack_now();
                link.ack_due_us = 0;
                list(&mut self.output, *key, link);
            }
        }
    }

    /// Links that stayed away too long.
    pub fn expired(&self, now: Now) -> Vec<LinkKey> {
        let mut gone: Vec<_> = self
            .map
            .iter()
            .filter(|(_, link)| !link.connected && link.lost_at_us + self.away_us <= now.mono_us)
            .map(|(key, _)| *key)
            .collect();
        gone.sort_unstable();
        gone
    }

    /// When the next acknowledgement or expiry is due.
    pub fn deadline_us(&self) -> Option<u64> {
        self.map
            .values()
            .filter_map(|link| match (link.connected, link.ack_due_us) {
                (false, _) => Some(link.lost_at_us + self.away_us),
                (true, 0) => None,
                (true, due) => Some(due),
            })
            .min()
    }

    /// Links that may have something to transmit, each once, in the order in which it came up.
    pub fn with_output(&self) -> &[LinkKey] {
        &self.output
    }

    /// The next batch of a link. `None`: nothing more until the next turn.
    pub fn transmit(&mut self, key: LinkKey) -> Option<Bytes> {
        let link = self.map.get_mut(&key);
        let batch = link.and_then(|link| {
            let batch = link.end.transmit();
            if batch.is_none() {
                link.listed = false;
            }
            batch
        });
        if batch.is_none() {
            self.output.retain(|listed| *listed != key);
        }
        batch
    }

    /// Fills in the gauges.
    pub fn gauges(&self, stats: &mut Stats) {
        stats.links = self.map.len() as u64;
        stats.links_up = self.map.values().filter(|link| link.end.is_up()).count() as u64;
        stats.waiting_for_credit = self.map.values().map(|link| link.waiting.count() as u64).sum();
    }
}

fn list(output: &mut Vec<LinkKey>, key: LinkKey, link: &mut Link) {
    if link.connected && !link.listed {
        link.listed = true;
        output.push(key);
    }
}

fn count(kind: Kind, stats: &mut Stats) {
    stats.records_out += 1;
    match kind {
        Kind::FanOut => stats.fan_outs += 1,
        Kind::Direct => stats.directs += 1,
        Kind::Relay => stats.relays += 1,
        Kind::Gap => stats.gaps += 1,
        _ => {}
    }
}
