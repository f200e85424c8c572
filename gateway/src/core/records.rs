//! What comes over links: nodes that come and go, records to where they belong, and records that found no owner.

use millrace_protocol::bytes::Bytes;
use millrace_protocol::ids::SessionId;
use millrace_protocol::link::end::LinkEvent;
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::link::{
    Announce, ClientRequest, ClusterMap, Fetch, Hello, NotOwner, Register, Subscribe,
};
use millrace_protocol::prost::Message;
use thiserror::Error;

use super::action::Action;
use super::event::{Conn, NodeKey};
use super::limits::*;
use super::partitions::Partitions;
use super::session::*;
use super::shard::Shard;
use super::uplink::{Announced, Unsent};

/// Records that wait for an owner or for credit, looked at in one turn.
const PARKED_PER_TURN: usize = 1024;

/// A record of a kind that gateways are not sent, or with a body that can't be read: counted and passed over.
#[derive(Debug, Error)]
#[error("a record that makes no sense here")]
struct BadRecord;

impl From<millrace_protocol::prost::DecodeError> for BadRecord {
    fn from(_: millrace_protocol::prost::DecodeError) -> Self {
        BadRecord
    }
}

impl Shard {
    pub(super) fn on_link_connected(&mut self, key: NodeKey) {
        if let Some(node) = self.uplink.node(key) {
            node.link.connected();
            node.output = true;
        }
    }

    pub(super) fn on_link_lost(&mut self, key: NodeKey) {
        let now_us = self.now.mono_us;
        if let Some(node) = self.uplink.node(key) {
            node.note_lost(now_us);
            node.link.disconnected();
            node.ack_since_us = None;
        }
    }

    pub(super) fn on_link_bytes(&mut self, key: NodeKey, bytes: Bytes) {
        let Some(node) = self.uplink.node(key) else { return };
        let result = node.link.receive(bytes);
        node.output = true;
        self.poll_link(key);
        if let Err(error) = result {
            self.stats.link_errors += 1;
            self.on_link_lost(key);
            self.out.push(Action::ResetLink { node: key, reason: error.to_string() });
        }
    }

    /// Handles what a link has to say.
    pub(super) fn poll_link(&mut self, key: NodeKey) {
        while let Some(event) = self.uplink.node(key).and_then(|node| node.link.poll()) {
            match event {
                LinkEvent::Up { peer, fresh } => self.on_link_up(key, peer, fresh),
                LinkEvent::Lost(record) => self.on_lost(record),
                LinkEvent::Record(record) => {
                    self.stats.link_records += 1;
                    if self.on_record(key, record).is_err() {
                        self.stats.link_bad_records += 1;
                    }
                }
            }
        }
        let now_us = self.now.mono_us;
        if let Some(node) = self.uplink.node(key).filter(|node| node.link.needs_ack()) {
            node.ack_since_us.get_or_insert(now_us);
        }
    }

    fn on_link_up(&mut self, key: NodeKey, peer: Hello, fresh: bool) {
        let now_us = self.now.mono_us;
        if fresh {
            if self.uplink.node(key).is_some_and(|node| node.may_have_lost(peer.incarnation, now_us)) {
                self.resync.begin(self.sessions.end());
            }
            // It forgot this shard, or this shard it: nothing holds until it announces.
            self.uplink.disown(key);
            self.give_up_sent(&|_, node| node == Some(key));
        }
        if let Some(node) = self.uplink.node(key) {
            node.output = true;
            if !peer.node.is_empty() {
                node.name = peer.node.clone();
            }
        }
        self.renewal.next_us = self.renewal.next_us.min(self.now.mono_us);
        if peer.node.is_empty() {
            return;
        }
        // One node under two addresses: it keeps one link for this shard, and that is bound to the newer connection.
        let twin = self.uplink.nodes().find(|(other, node)| *other != key && node.name == peer.node);
        let Some((other, seed, up)) = twin.map(|(other, node)| (other, node.seed, node.link.is_up())) else {
            return;
        };
        if up || !seed {
            if let Some(node) = self.uplink.node(key) {
                node.seed |= seed;
            }
            self.drop_node(other);
        }
    }

    fn drop_node(&mut self, key: NodeKey) {
        self.give_up_sent(&|_, node| node == Some(key));
        self.uplink.remove(key);
        self.out.push(Action::Disconnect { node: key });
    }

    /// A record that may or may not have been handled, by a peer that is not what it was.
    fn on_lost(&mut self, record: Record) {
        match record.kind {
            Kind::ClientRequest => {
                if let Ok(body) = ClientRequest::decode(record.body) {
                    self.give_up(body.token, false);
                }
            }
            Kind::Register => self.register_again(&record),
            // The next announcement brings every topic to subscribe again, and to ask for what it misses.
            Kind::Subscribe | Kind::Fetch => {}
            // Asked for again by whoever still wants to know; a lease is renewed every second.
            Kind::NoSession | Kind::Closed | Kind::Lease => {}
            _ => self.send_or_park(record),
        }
    }

    fn register_again(&mut self, record: &Record) {
        let conn = Conn { slot: record.session.slot(), generation: record.session.generation() };
        let again = match self.session(conn) {
            Some(session) if session.state == State::Live => {
                session.flags |= REREGISTERING;
                true
            }
            Some(session) => session.state == State::Registering,
            None => false,
        };
        if again {
            self.want_register(conn);
        }
    }

    fn on_record(&mut self, key: NodeKey, record: Record) -> Result<(), BadRecord> {
        use millrace_protocol::messages::link as body;
        let Record { partition, epoch, session, body: bytes, .. } = record;
        match record.kind {
            Kind::Registered => {
                self.on_registered(session, (partition, epoch), body::Registered::decode(bytes)?);
            }
            Kind::Subscribed => self.on_subscribed(partition, epoch, body::Subscribed::decode(bytes)?),
            Kind::Reply => self.on_reply(session, partition, epoch, body::Reply::decode(bytes)?),
            Kind::FanOut => self.on_fan_out(partition, epoch, body::FanOut::decode(bytes)?),
            Kind::Remove => self.on_remove(partition, epoch, body::Remove::decode(bytes)?),
            Kind::Direct => self.on_direct(partition, epoch, body::Direct::decode(bytes)?),
            Kind::DirectGap => self.on_direct_gap(body::DirectGap::decode(bytes)?),
            Kind::Relay => self.on_relay(body::Relay::decode(bytes)?),
            Kind::Attach => self.on_attach(body::Attach::decode(bytes)?),
            Kind::Close => self.on_close(session, body::Close::decode(bytes)?),
            Kind::Page => self.on_page(partition, epoch, body::Page::decode(bytes)?),
            Kind::Gap => self.on_gap(partition, epoch, body::Gap::decode(bytes)?),
            Kind::Announce => self.on_announce(key, Announce::decode(bytes)?),
            Kind::NotOwner => self.on_not_owner(key, session, NotOwner::decode(bytes)?)?,
            Kind::ClusterMap => self.on_cluster_map(ClusterMap::decode(bytes)?),
            Kind::LeaseAnswer => self.on_lease_answer(body::LeaseAnswer::decode(bytes)?),
            _ => return Err(BadRecord),
        }
        Ok(())
    }

    fn on_announce(&mut self, key: NodeKey, body: Announce) {
        let mut changed = Partitions::default();
        for owned in body.owned {
            match self.uplink.announce(key, &owned) {
                Announced::Nothing => continue,
                Announced::Outdated => {
                    self.tell_superseded(key, owned.partition as u16);
                    continue;
                }
                Announced::Owner => {}
                Announced::OwnerOfAnotherCopy(former) => {
                    self.resync.begin_moved(owned.partition as u16, self.sessions.end());
                    if let Some(former) = former {
                        self.tell_superseded(former, owned.partition as u16);
                    }
                }
            }
            changed.insert(owned.partition as u16);
        }
        if changed.is_empty() {
            return;
        }
        // What the former owner was sent it may have done or not; only the new one can tell, when asked again.
        self.give_up_sent(&|partition, node| node != Some(key) && changed.contains(partition));
        self.resubscribe(&|partition| changed.contains(partition));
    }

    /// A node serves a partition, of which a higher epoch is known here. Between two copies of the store that one may be the
    /// one that is given up, and the node the owner in truth: nobody would hear of it then.
    fn tell_superseded(&mut self, key: NodeKey, partition: u16) {
        let epoch = self.uplink.epoch(partition);
        let told =
            Record { kind: Kind::Superseded, partition, epoch, session: SessionId::NONE, body: Bytes::new() };
        // It is told again when it announces again, which it does on a fresh link.
        if self.uplink.send_to(key, told).is_ok() {
            self.stats.superseded += 1;
        }
    }

    fn on_not_owner(&mut self, key: NodeKey, session: SessionId, body: NotOwner) -> Result<(), BadRecord> {
        self.stats.not_owners += 1;
        let Some(kind) = u8::try_from(body.kind).ok().and_then(Kind::from_byte) else {
            return Err(BadRecord);
        };
        if body.partition >= u32::from(self.config.partitions) {
            return Err(BadRecord);
        }
        let partition = body.partition as u16;
        self.uplink.not_owner(body.partition, key);
        let back = Record { kind, partition, epoch: 0, session, body: body.body };
        match kind {
            Kind::ClientRequest => self.reroute_request(back),
            Kind::Register => {
                let register = Register::decode(back.body.clone())?;
                for slot in self.slots_of(&register.user) {
                    let session = self.sessions.get(slot).expect("in the user's chain");
                    let waits = session.state == State::Registering || session.is(REREGISTERING);
                    let conn = session.conn(slot);
                    if waits && self.device_of(session).0 == register.device {
                        self.want_register(conn);
                    }
                }
            }
            Kind::Subscribe => {
                // With an owner known by now it goes there; else that one's announcement finds the topic.
                let subscribe = Subscribe::decode(back.body)?;
                if self.uplink.owner(partition).is_some() {
                    self.resubscribe_one(&subscribe.conversation);
                }
            }
            Kind::Fetch => {
                let fetch = Fetch::decode(back.body)?;
                if self.uplink.owner(partition).is_some() {
                    self.resubscribe_one(&fetch.conversation);
                }
            }
            Kind::Unregister | Kind::Unsubscribe | Kind::NoSession | Kind::Closed | Kind::Acks => {
                self.send_or_park(back);
            }
            _ => return Err(BadRecord),
        }
        Ok(())
    }

    /// Sends a record, or keeps it for a while. Only for records whose loss corrects itself.
    pub(super) fn send_or_park(&mut self, record: Record) {
        let (Err(Unsent::NoOwner(record)) | Err(Unsent::NoCredit(record))) = self.uplink.send(record) else {
            return;
        };
        self.stats.parked += 1;
        if self.uplink.park(self.now.mono_us, record).is_err() {
            self.stats.parked_dropped += 1;
        }
    }

    /// Tries again what waits for an owner or for credit.
    pub(super) fn turn_parked(&mut self) {
        for _ in 0..self.uplink.parked().0.min(PARKED_PER_TURN) {
            let Some((until_us, record)) = self.uplink.unpark() else { break };
            let token = (record.kind == Kind::ClientRequest)
                .then(|| ClientRequest::decode(record.body.clone()).map_or(0, |body| body.token))
                // 0: nobody waits for an answer.
                .filter(|token| *token != 0);
            if until_us <= self.now.mono_us {
                self.stats.parked_dropped += 1;
                if let Some(token) = token {
                    self.give_up(token, false);
                }
                continue;
            }
            if token.is_some_and(|token| !self.pending.contains_key(&token)) {
                // Answered BUSY meanwhile.
                continue;
            }
            match self.uplink.send(record) {
                Ok(node) => {
                    if let Some(pending) = token.and_then(|token| self.pending.get_mut(&token)) {
                        pending.node = Some(node);
                    }
                }
                Err(Unsent::NoOwner(record) | Unsent::NoCredit(record)) => {
                    self.uplink.repark(until_us, record)
                }
            }
        }
    }

    fn on_cluster_map(&mut self, body: ClusterMap) {
        let now_us = self.now.mono_us;
        for wanted in &body.nodes {
            let known = self.uplink.nodes_mut().find(|(_, node)| {
                node.address == wanted.address
                    || (!wanted.name.is_empty() && node.name == wanted.name && node.link.is_up())
            });
            if let Some((_, node)) = known {
                node.absent_since_us = None;
                continue;
            }
            match self.uplink.add(wanted.name.clone(), wanted.address.clone(), false) {
                Some(key) => {
                    self.connects.push(key);
                    if let Some(node) = self.uplink.node(key) {
                        node.note_found(now_us);
                    }
                }
                None => self.stats.nodes_ignored += 1,
            }
        }
        for (_, node) in self.uplink.nodes_mut() {
            let named = body.nodes.iter().any(|it| it.address == node.address || it.name == node.name);
            if !named && !node.seed {
                node.absent_since_us.get_or_insert(now_us);
            }
        }
    }

    /// Forgets nodes that are gone for good.
    pub(super) fn turn_nodes(&mut self) {
        let now_us = self.now.mono_us;
        let gone = |since: u64| now_us >= since + NODE_GONE_US;
        let gone = self
            .uplink
            .nodes()
            .find(|(_, node)| !node.link.is_up() && node.absent_since_us.is_some_and(gone))
            .map(|(key, _)| key);
        if let Some(key) = gone {
            self.drop_node(key);
        }
    }

    /// Acknowledges what was taken in and has waited long enough for data to ride with.
    pub(super) fn turn_acks(&mut self) {
        let now_us = self.now.mono_us;
        for (_, node) in self.uplink.nodes_mut() {
            if !node.link.needs_ack() {
                node.ack_since_us = None;
            } else if node.ack_since_us.is_none_or(|since| now_us >= since + ACK_DELAY_US) {
                node.link.ack_now();
                node.output = true;
                node.ack_since_us = None;
            }
        }
    }
}
