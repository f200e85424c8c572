//! From Login to LoginAck: a credential checked by the shell, a route registered by the user's partition.
//!
//! The rule: no session is acknowledged before its route is durable, and none while the gateway's lease is over,
//! since the route would count for nothing. A new incarnation voids all routes: every session is then registered
//! again, at a bounded rate and under its old number, and told to look at what it may have missed until then.

use millrace_protocol::conversation::is_name;
use millrace_protocol::ids::{Partition, SessionId, user_partition};
use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::{
    self, Code, LoginAck, Refused, Removed, Response, notify, response,
};
use millrace_protocol::messages::link::{Close, Closed, LeaseAnswer, Register, Registered, Unregister};
use millrace_protocol::planted::{self, Fault};

use super::action::{Action, Credential};
use super::event::{Conn, Identity, Lease, Refusal};
use super::limits::*;
use super::session::*;
use super::shard::Shard;
use super::subscriptions::group_id;
use super::uplink::{Unsent, record};
use super::users::NONE;

/// Registers looked at in one turn.
const REGISTERS_PER_TURN: usize = 1024;

impl Shard {
    pub(super) fn on_login(&mut self, slot: u32, request: u64, login: client::Login) {
        self.stats.logins += 1;
        let now_us = self.now.mono_us;
        if self.drain.is_some() {
            let reason = "the gateway goes down; log in at another one";
            return self.refuse_login(slot, request, Code::GoingAway, reason, RETRY_AFTER_UNAVAILABLE_MS);
        }
        if !is_name(&login.device) || !is_name(&login.platform) {
            let reason = "device and platform are 1-64 of A-Z a-z 0-9 . _ - @ +";
            return self.refuse_login(slot, request, Code::BadRequest, reason, 0);
        }
        if !self.may_log_in() {
            self.stats.login_without_lease += 1;
            let reason = "the gateway has no lease at present";
            return self.refuse_login(slot, request, Code::Unavailable, reason, RETRY_AFTER_UNAVAILABLE_MS);
        }
        if !self.admission.login(now_us) {
            self.stats.login_rate_limited += 1;
            let reason = "too many logins at once";
            return self.refuse_login(slot, request, Code::Busy, reason, RETRY_AFTER_UNAVAILABLE_MS);
        }
        let Some(session) = self.sessions.get_mut(slot) else { return };
        session.state = State::Verifying;
        if login.acknowledges {
            session.flags |= ACKNOWLEDGES;
        }
        let (device, platform) = (login.device, login.platform);
        let credential = if login.resume_ticket.is_empty() {
            Credential::Token(login.token)
        } else {
            let ticket = login.resume_ticket.to_vec();
            Credential::Ticket { ticket, device: device.clone(), platform: platform.clone() }
        };
        let login =
            Login { request, device, platform, expires_wall_ms: 0, groups: Vec::new(), early: Vec::new() };
        session.aside = Some(Box::new(Aside::Login(Box::new(login))));
        let conn = session.conn(slot);
        self.admission.begin_login();
        self.out.push(Action::Verify { conn, credential });
    }

    fn may_log_in(&self) -> bool {
        self.lease_is_live() || planted::is(Fault::LoginWithoutLease)
    }

    /// Refuses a login, and closes.
    pub(super) fn refuse_login(
        &mut self,
        slot: u32,
        request: u64,
        code: Code,
        reason: &str,
        retry_after_ms: u32,
    ) {
        self.stats.login_refused += 1;
        let refused = Refused { code: code.into(), reason: reason.into(), retry_after_ms, expected: 0 };
        let response = Response { id: request, outcome: Some(response::Outcome::Refused(refused)) };
        self.doom_after(slot, response, code, reason.to_owned(), retry_after_ms);
    }

    pub(super) fn on_verified(&mut self, conn: Conn, verdict: Result<Identity, Refusal>) {
        let Some(session) = self.session(conn).filter(|session| session.state == State::Verifying) else {
            return;
        };
        let Some(login) = session.login_mut() else { return };
        let request = login.request;
        let identity = match verdict {
            Ok(identity) if is_name(&identity.user) => identity,
            Ok(_) => {
                let reason = "the token's sub is no name: 1-64 of A-Z a-z 0-9 . _ - @ +";
                return self.refuse_login(conn.slot, request, Code::BadToken, reason, 0);
            }
            Err(refusal) => {
                let Refusal { code, reason, retry_after_ms } = refusal;
                return self.refuse_login(conn.slot, request, code, &reason, retry_after_ms);
            }
        };
        login.expires_wall_ms = identity.expires_wall_ms;
        let device = format!("{}/{}", login.device, login.platform);
        session.login_number = identity.login_number;
        session.state = State::Registering;
        let user = self.users.take(&identity.user);
        let device = self.devices.take(&device);
        let next = self.users.head(user);
        self.users.set_head(user, conn.slot);
        let session = self.sessions.get_mut(conn.slot).expect("found above");
        (session.user, session.device, session.user_next) = (user, device, next);
        self.want_register(conn);
        if planted::is(Fault::RouteAfterLoginAck) {
            self.sessions.get_mut(conn.slot).expect("found above").flags |= REREGISTERING;
            self.logged_in(conn.slot, Vec::new());
        }
    }

    /// Queues a Register, once.
    pub(super) fn want_register(&mut self, conn: Conn) {
        if let Some(session) = self.session(conn).filter(|session| !session.is(TO_REGISTER)) {
            session.flags |= TO_REGISTER;
            self.registers.push_back(conn);
        }
    }

    /// Device and platform of a session whose user is known.
    pub(super) fn device_of(&self, session: &Session) -> (&str, &str) {
        let text = self.devices.text(session.device);
        text.split_once('/').unwrap_or((text, ""))
    }

    /// Takes a session out of its user's chain.
    pub(super) fn unname(&mut self, slot: u32) {
        let Some(session) = self.sessions.get_mut(slot).filter(|session| session.is_named()) else { return };
        let (user, device, next) = (session.user, session.device, session.user_next);
        (session.user, session.device, session.user_next) = (NONE, NONE, NONE);
        let mut at = self.users.head(user);
        if at == slot {
            self.users.set_head(user, next);
        }
        while let Some(session) = self.sessions.get_mut(at).filter(|_| at != NONE && at != slot) {
            if session.user_next == slot {
                session.user_next = next;
                break;
            }
            at = session.user_next;
        }
        self.users.give(user);
        self.devices.give(device);
    }

    /// Sends the Registers that wait, as far as owners and credit allow.
    pub(super) fn turn_registers(&mut self) {
        self.turn_reregister();
        while let Some((at, conn, incarnation)) = self.registering.front().copied() {
            if at > self.now.mono_us {
                break;
            }
            self.registering.pop_front();
            let waits =
                |session: &&mut Session| session.state == State::Registering || session.is(REREGISTERING);
            // One that was sent under a former incarnation has been sent again since, or will be.
            if incarnation == self.lease.incarnation && self.session(conn).filter(waits).is_some() {
                self.want_register(conn);
            }
        }
        for _ in 0..self.registers.len().min(REGISTERS_PER_TURN) {
            let Some(conn) = self.registers.pop_front() else { break };
            let Some(session) = self.session(conn) else { continue };
            session.flags &= !TO_REGISTER;
            match self.register(conn) {
                Ok(()) => {}
                Err(Unsent::NoOwner(_)) => self.want_register(conn),
                Err(Unsent::NoCredit(_)) => {
                    self.want_register(conn);
                    break;
                }
            }
        }
    }

    fn register(&mut self, conn: Conn) -> Result<(), Unsent> {
        let Some(session) = self.sessions.get(conn.slot) else { return Ok(()) };
        let wanted = session.state == State::Registering || session.is(REREGISTERING);
        if session.generation != conn.generation || !wanted || !session.is_named() {
            return Ok(());
        }
        let (device, platform) = self.device_of(session);
        let user = self.users.text(session.user);
        let partition = user_partition(user, self.config.partitions);
        let body = Register {
            user: user.into(),
            device: device.into(),
            platform: platform.into(),
            login_number: session.login_number,
            gateway: self.config.gateway.into(),
            gateway_incarnation: self.lease.incarnation,
            newest_wins: self.config.newest_wins_platforms.iter().any(|one| one == platform),
            acknowledges: session.is(ACKNOWLEDGES),
        };
        let id = session.id(&self.config, conn.slot);
        self.uplink.send(record(Kind::Register, partition, id, &body))?;
        self.stats.registers += 1;
        self.sessions.get_mut(conn.slot).expect("found above").flags |= REGISTERED;
        self.registering.push_back((self.now.mono_us + RETRY_US, conn, self.lease.incarnation));
        Ok(())
    }

    /// Asks for the route of a session to be removed, if it may have one.
    pub(super) fn unregister(&mut self, slot: u32) {
        let Some(session) = self.sessions.get_mut(slot).filter(|session| session.is(REGISTERED)) else {
            return;
        };
        session.flags &= !(REGISTERED | REREGISTERING);
        let (user, login_number, generation) = (session.user, session.login_number, session.generation);
        let session = self.sessions.get(slot).expect("found above");
        let (user, device) = (self.users.text(user).to_owned(), self.device_of(session).0.to_owned());
        let id = SessionId::new(self.config.gateway, self.config.shard, slot, generation);
        // A route under a former incarnation is void, and the Register that may be under way is answered.
        let gateway_incarnation = self.lease.incarnation;
        let body = Unregister { user, device, login_number, gateway_incarnation };
        self.send_unregister(id, &body);
    }

    fn send_unregister(&mut self, session: SessionId, body: &Unregister) {
        let partition = user_partition(&body.user, self.config.partitions);
        self.send_or_park(record(Kind::Unregister, partition, session, body));
    }

    /// The slot of a session of this shard, if it is still that one.
    pub(super) fn slot_of(&mut self, id: SessionId) -> Option<u32> {
        if id.gateway() != self.config.gateway || id.shard() != self.config.shard {
            return None;
        }
        self.session(Conn { slot: id.slot(), generation: id.generation() })
            .filter(|session| session.is_open())
            .map(|_| id.slot())
    }

    pub(super) fn on_registered(&mut self, id: SessionId, owner: (Partition, u64), body: Registered) {
        let here = self.slot_of(id).filter(|slot| {
            let session = &self.sessions.get(*slot).expect("found above");
            session.is_named()
                && self.users.text(session.user) == body.user
                && self.device_of(session).0 == body.device
        });
        let Some(slot) = here else {
            // It left meanwhile; its Unregister did not know the number.
            if body.refused == 0 {
                let Registered { user, device, login_number, gateway_incarnation, .. } = body;
                self.send_unregister(id, &Unregister { user, device, login_number, gateway_incarnation });
            }
            return;
        };
        let session = self.sessions.get_mut(slot).expect("found above");
        if !self.uplink.witness(owner.0, owner.1) {
            // What a former owner wrote may be lost with its copy of the store.
            self.stats.stale_epochs += 1;
            if session.state == State::Registering || session.is(REREGISTERING) {
                let conn = session.conn(slot);
                self.want_register(conn);
            }
            return;
        }
        if body.refused != 0 {
            let code = Code::try_from(body.refused as i32).unwrap_or(Code::Unavailable);
            if session.state == State::Live && matches!(code, Code::Busy | Code::Unavailable) {
                // No reason to close a session that works: its Register is sent again.
                return;
            }
            session.flags &= !REREGISTERING;
            session.flags &= !REGISTERED;
            return match session.state {
                State::Registering => {
                    let request = session.login().map_or(0, |login| login.request);
                    self.refuse_login(slot, request, code, &body.reason, body.retry_after_ms);
                }
                _ => {
                    self.stats.displaced += 1;
                    self.doom(slot, code, body.reason, body.retry_after_ms);
                }
            };
        }
        if body.gateway_incarnation != self.lease.incarnation {
            // That route is void, and no answer to the Register under the present incarnation; but it took the place of the
            // route that the session had, if that Register came first.
            match session.state {
                State::Live => self.register_live(slot),
                State::Registering => {
                    let conn = session.conn(slot);
                    self.want_register(conn);
                }
                _ => {}
            }
            return;
        }
        let again = session.is(REREGISTERING);
        session.flags &= !REREGISTERING;
        session.login_number = body.login_number;
        match session.state {
            State::Registering => self.logged_in(slot, body.groups),
            State::Live => {
                // Registered again: what it became a member of meanwhile is attached as well.
                for group in body.groups {
                    self.attach_group(slot, &group);
                }
                // And nobody found its route meanwhile.
                if again {
                    self.look_at_directs(slot);
                }
            }
            _ => {}
        }
    }

    fn logged_in(&mut self, slot: u32, groups: Vec<String>) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        let Some(login) = session.take_login() else { return };
        let crowded = self.admission.logging_in() > CORK_LOGINS;
        self.admission.end_login();
        if !self.may_log_in() {
            self.stats.login_without_lease += 1;
            let reason = "the gateway lost its lease";
            let retry = RETRY_AFTER_UNAVAILABLE_MS;
            return self.refuse_login(slot, login.request, Code::Unavailable, reason, retry);
        }
        let tick = self.wheel().tick(self.now.mono_us);
        let dead = tick + self.dead_ticks() + 1;
        let session = self.sessions.get_mut(slot).expect("found above");
        session.state = State::Live;
        session.tick = tick;
        session.flags &= !UNAUTHENTICATED;
        // What is armed is the deadline of the login; short heartbeats are over sooner.
        if dead < session.armed {
            self.arm(slot, dead);
        }
        self.admission.settle();
        self.stats.login_acks += 1;
        let session = self.sessions.get(slot).expect("found above");
        let user = self.users.text(session.user).to_owned();
        let mut groups = groups;
        groups.extend(login.groups);
        groups = groups.iter().filter_map(|group| group_id(group)).collect();
        groups.sort_unstable();
        groups.dedup();
        let room = self.config.topics_per_session_max as usize;
        self.stats.topic_limit += groups.len().saturating_sub(room) as u64;
        groups.truncate(room);
        let ack = LoginAck {
            session: session.id(&self.config, slot).0,
            resume_ticket: self
                .config
                .ticket_mint
                .mint(&user, &login.device, &login.platform, session.login_number, login.expires_wall_ms)
                .into(),
            user,
            heartbeat_interval_ms: self.config.heartbeat_interval_ms,
            server_time_ms: self.now.wall_ms,
            groups: groups.len() as u32,
        };
        if crowded && !(groups.is_empty() && login.early.is_empty()) {
            self.cork(slot);
        }
        self.send_first(
            slot,
            &Response { id: login.request, outcome: Some(response::Outcome::LoginAck(ack)) },
        );
        for group in groups {
            self.attach_group(slot, &group);
        }
        for request in login.early {
            if !self.sessions.get(slot).is_some_and(Session::is_open) {
                break;
            }
            self.on_request(slot, request);
        }
    }

    /// A session lost to a newer one: closed with the reason, and answered whether it was here or not. Found by its id: one
    /// that resumed it may be here too, under the same number.
    pub(super) fn on_close(&mut self, id: SessionId, body: Close) {
        let code = Code::try_from(body.code as i32).ok().filter(|code| *code != Code::None);
        let code = code.unwrap_or(Code::Displaced);
        let here = self.slot_of(id).filter(|slot| {
            let session = self.sessions.get(*slot).expect("found above");
            session.is_named()
                && self.users.text(session.user) == body.user
                && self.device_of(session).0 == body.device
        });
        if let Some(slot) = here {
            self.stats.displaced += 1;
            // Its route is gone already: that is why it is closed.
            self.sessions.get_mut(slot).expect("found above").flags &= !REGISTERED;
            self.doom(slot, code, body.reason, 0);
        }
        let partition = user_partition(&body.user, self.config.partitions);
        let Close { user, device, login_number, .. } = body;
        let closed = Closed { user, device, login_number };
        self.send_or_park(record(Kind::Closed, partition, id, &closed));
    }

    /// Slots of all sessions of a user.
    pub(super) fn slots_of(&self, user: &str) -> Vec<u32> {
        let mut slots = Vec::new();
        let mut slot = self.users.find(user).map_or(NONE, |id| self.users.head(id));
        while let Some(session) = self.sessions.get(slot).filter(|_| slot != NONE) {
            slots.push(slot);
            slot = session.user_next;
        }
        slots
    }

    pub(super) fn on_lease(&mut self, lease: Lease) {
        let before = std::mem::replace(&mut self.lease, lease);
        if before.incarnation == lease.incarnation {
            return;
        }
        self.renewal.replaces = before.incarnation;
        self.stats.incarnations += 1;
        self.uplink.set_incarnation(lease.incarnation);
        self.reregister_at = (!planted::is(Fault::NotRegisteredAgain)).then_some(0);
        // Every link starts afresh: partitions are announced again, and their topics subscribed then.
        for key in self.uplink.nodes().map(|(key, _)| key).collect::<Vec<_>>() {
            self.uplink.disown(key);
            self.poll_link(key);
        }
    }

    fn turn_reregister(&mut self) {
        let Some(mut at) = self.reregister_at.take() else { return };
        if !self.lease_is_live() {
            self.reregister_at = Some(at);
            return;
        }
        while self.reregister_rate.take(self.now.mono_us) {
            let Some(slot) = self.sessions.next_used(at) else { return };
            at = slot + 1;
            self.register_live(slot);
        }
        self.reregister_at = Some(at);
    }

    /// A session that is logged in is registered again.
    pub(super) fn register_live(&mut self, slot: u32) {
        let Some(session) = self.sessions.get_mut(slot).filter(|it| it.state == State::Live) else { return };
        session.flags |= REREGISTERING;
        self.stats.reregisters += 1;
        let conn = session.conn(slot);
        self.want_register(conn);
    }

    /// Renews the gateway's lease, by another node when the last one did not answer.
    pub(super) fn turn_lease(&mut self) {
        if self.config.shard != 0 || self.now.mono_us < self.renewal.next_us {
            return;
        }
        let up: Vec<_> =
            self.uplink.nodes().filter(|(_, node)| node.link.is_up()).map(|(key, _)| key).collect();
        if self.renewal.unanswered {
            self.renewal.node += 1;
        }
        let Some(key) = up.iter().copied().find(|key| key.0 >= self.renewal.node).or(up.first().copied())
        else {
            return;
        };
        self.renewal.node = key.0;
        self.renewal.next_us = self.now.mono_us + u64::from(self.config.lease_renew_ms) * 1_000;
        self.renewal.unanswered = true;
        let body = millrace_protocol::messages::link::Lease {
            gateway: self.config.gateway.into(),
            incarnation: self.lease.incarnation,
            sent_us: self.now.mono_us,
            ttl_ms: self.config.lease_ttl_ms,
            replaces: self.renewal.replaces,
            grant: self.lease.grant,
        };
        if self.uplink.send_to(key, record(Kind::Lease, 0, SessionId::NONE, &body)).is_ok() {
            self.stats.lease_renewals += 1;
        }
    }

    pub(super) fn on_lease_answer(&mut self, body: LeaseAnswer) {
        if body.gateway != u32::from(self.config.gateway) || body.incarnation != self.lease.incarnation {
            return;
        }
        self.renewal.unanswered = false;
        self.out.push(Action::LeaseAnswer {
            grant: body.grant,
            incarnation: body.incarnation,
            sent_us: if planted::is(Fault::LeaseFromAnswer) { self.now.mono_us } else { body.sent_us },
            reason: body.reason,
        });
    }

    /// Tells a session that it is no member.
    pub(super) fn notify_removed(&mut self, slot: u32, conversation: &str) {
        self.notify(slot, notify::Event::Removed(Removed { conversation: conversation.into() }));
    }
}
