//! What becomes of the records for a partition: which are served, which wait, which go back; and which part serves what.
//!
//! The partition's life is in [`super::partition`]. The rule that keeps it right: a record is handled whole, or it waits
//! whole, or it goes back whole.

use millrace_protocol::conversation::Conversation as Id;
use millrace_protocol::ids::{partition_of, user_partition};
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{self, Code};
use millrace_protocol::messages::link::{self as wire, Acks, DeviceAck};
use millrace_protocol::planted::{self, Fault};
use millrace_protocol::prost::Message;
use millrace_protocol::request::Key;

use super::ask::{Ask, Client, asker_of};
use super::batch::Owner;
use super::conversation::{Conversation, Wait};
use super::event::LinkKey;
use super::groups::{self, Change};
use super::holds::Need;
use super::hub::{Asker, Cx, From, PartitionJob};
use super::limits::{CLAIM_WAITING_MAX, REANNOUNCE_US};
use super::partition::{Partition, Phase, Serving};
use super::streams::stream_of;
use super::{
    admin, cursors, group_members, lists, pair, presence, receipts, register, send, standing, subscribe,
    sync, typing,
};
use crate::store::{Outcome, StoreError, StreamKey, Work};

impl Partition {
    /// A record for this partition.
    pub fn handle(&mut self, cx: &mut Cx, link: LinkKey, record: Record) {
        if record.kind == Kind::Superseded {
            return self.superseded(cx, record.epoch);
        }
        match &mut self.phase {
            Phase::Serving(_)
                if cx.now.mono_us >= cx.hub.cluster.lease_until_us
                    && !planted::is(Fault::LeaseNotChecked)
                    && !planted::is(Fault::PagesByAnybody) =>
            {
                cx.hub.stats.lease_lapsed += 1;
                self.give_back(cx, link, record);
            }
            Phase::Serving(serving) if serving.recovering == 0 => self.serve(cx, link, record),
            Phase::Serving(_) | Phase::Claiming { .. } => {
                if let Err(record) = self.waiting.push(link, record, CLAIM_WAITING_MAX) {
                    self.not_owner(cx, link, record);
                }
            }
            Phase::Unowned | Phase::Releasing { .. } => self.not_owner(cx, link, record),
        }
    }

    fn serve(&mut self, cx: &mut Cx, link: LinkKey, record: Record) {
        let Some(ask) = Ask::read(&record).filter(|ask| self.belongs(cx, ask)) else {
            cx.hub.stats.malformed += 1;
            return self.refuse_malformed(cx, link, &record);
        };
        let from = self.from();
        let Phase::Serving(serving) = &mut self.phase else { return };
        let Serving { owner, table, .. } = &mut **serving;
        let name = match ask {
            Ask::Register(ask) => return register::register(cx, link, owner, record.session, ask),
            Ask::Acks(acks) => return self.acks(cx, link, &record, acks),
            Ask::Client(ask) if ask.key == Key::User => {
                let asker = ask.asker(link, &record);
                return user_request(cx, from, asker, ask);
            }
            ref ask => ask.conversation().to_owned(),
        };
        let Some(conversation) = table.ready(&name) else {
            if let Ask::Unsubscribe(_) = ask {
                return;
            }
            let count_max = cx.hub.config.limits.conversations_per_partition_max;
            match table.wait(&name, link, record, count_max) {
                Wait::Waits => {}
                Wait::Load => {
                    let fence = owner.fence;
                    let stream = stream_of_ask(&ask);
                    let (conversation, asked) = (name.clone(), stream.clone());
                    let work = Work::Load { partition: self.id, fence, conversation, stream };
                    self.store(cx, work, PartitionJob::Load(name, asked));
                }
                Wait::Full(record) => {
                    cx.hub.stats.evicted += table.evict(count_max / 2);
                    self.give_back(cx, link, record);
                }
            }
            return;
        };
        match ask {
            Ask::Subscribe(ask) => subscribe::subscribe(cx, owner, conversation, link, &record, ask),
            Ask::Unsubscribe(ask) => subscribe::unsubscribe(conversation, link, &ask),
            Ask::Fetch(ask) => {
                if let Err(record) = subscribe::fetch(cx, owner, conversation, link, record, ask) {
                    self.give_back(cx, link, record);
                }
            }
            Ask::Client(ask) => {
                if let Err((stream, need)) = client(cx, owner, conversation, &name, link, &record, ask) {
                    self.hold(cx, &name, stream, need, link, record);
                }
            }
            Ask::Register(_) | Ask::Acks(_) => {}
        }
    }

    /// Acknowledgements: each for itself, so that those of conversations in memory don't wait for others.
    fn acks(&mut self, cx: &mut Cx, link: LinkKey, record: &Record, acks: Acks) {
        for ack in acks.acks {
            let Phase::Serving(serving) = &mut self.phase else { return };
            let Serving { owner, table, .. } = &mut **serving;
            let name = ack.conversation.clone();
            if let Some(conversation) = table.ready(&name) {
                cursors::delivered(cx, owner, conversation, &ack);
                continue;
            }
            if Id::parse(&name).is_none() {
                cx.hub.stats.acks_refused += 1;
                continue;
            }
            let body = Acks { acks: vec![ack] }.encode_to_vec().into();
            let count_max = cx.hub.config.limits.conversations_per_partition_max;
            match table.wait(&name, link, Record { body, ..record.clone() }, count_max) {
                Wait::Waits => {}
                Wait::Load => {
                    let (partition, fence, conversation) = (self.id, owner.fence, name.clone());
                    let work = Work::Load { partition, fence, conversation, stream: None };
                    self.store(cx, work, PartitionJob::Load(name, None));
                }
                // Losing it means a repeat.
                Wait::Full(_) => cx.hub.stats.acks_refused += 1,
            }
        }
    }

    /// Whether an ask came to its partition.
    fn belongs(&self, cx: &Cx, ask: &Ask) -> bool {
        let partitions = cx.hub.config.partitions;
        match ask {
            Ask::Register(ask) => user_partition(&ask.user, partitions) == self.id,
            Ask::Acks(acks) => {
                acks.acks.iter().all(|ack| partition_of(&ack.conversation, partitions) == self.id)
            }
            // Those watched are of this partition, not who watches.
            Ask::Client(Client { key: Key::User, op: Op::PresenceSubscribe(ask), .. }) => {
                ask.users.iter().all(|user| user_partition(user, partitions) == self.id)
            }
            Ask::Client(Client { key: Key::User, user, .. }) => user_partition(user, partitions) == self.id,
            ask => partition_of(ask.conversation(), partitions) == self.id,
        }
    }

    /// A message that can't be judged yet waits, and its stream behind it.
    fn hold(
        &mut self,
        cx: &mut Cx,
        name: &str,
        stream: StreamKey,
        need: Option<Need>,
        link: LinkKey,
        record: Record,
    ) {
        let Phase::Serving(serving) = &mut self.phase else { return };
        let Serving { owner, table, .. } = &mut **serving;
        let Some(conversation) = table.ready(name) else { return };
        if let Err(record) = conversation.holds.push(stream.clone(), link, record) {
            return self.give_back(cx, link, record);
        }
        // Without a need of its own it waits behind another message, whose need is being met.
        let Some(need) = need else { return };
        let (partition, fence, conversation) = (self.id, owner.fence, name.to_owned());
        let work = match &need {
            Need::Answers => Work::Answers { partition, fence, conversation, stream: stream.clone() },
            Need::Entry(seq) => Work::Read {
                partition,
                fence: Some(fence),
                conversation,
                after: seq.saturating_sub(1),
                through: *seq,
                limit_bytes: usize::MAX,
                entries_max: 1,
                newest_first: false,
            },
            Need::Listed => send::list_direct(name),
        };
        self.store(cx, work, PartitionJob::Held(name.to_owned(), stream, need));
    }

    /// What a stream's messages waited for was read, or not.
    pub(super) fn read_for(
        &mut self,
        cx: &mut Cx,
        name: &str,
        stream: &StreamKey,
        need: Need,
        outcome: Result<Outcome, StoreError>,
    ) {
        let Phase::Serving(serving) = &mut self.phase else { return };
        let Some(conversation) = serving.table.ready(name) else { return };
        let mut failed = false;
        match (need, outcome) {
            (Need::Answers, Ok(Outcome::Answers(mut answers))) => {
                if planted::is(Fault::AnswersNotStored) {
                    answers.clear();
                }
                let forgotten = conversation.streams.loaded(stream.clone(), answers, conversation.durable);
                cx.hub.stats.streams_forgotten += u64::from(forgotten);
            }
            (Need::Entry(seq), Ok(Outcome::Entries { entries, .. })) => {
                conversation.refer(seq, entries.into_iter().find(|entry| entry.seq == seq));
            }
            (Need::Listed, Ok(_)) => conversation.listed = true,
            (_, Err(error @ StoreError::Fenced { .. })) => return self.stop(cx, &error.to_string()),
            _ => failed = true,
        }
        for (link, record) in conversation.holds.take(stream) {
            match failed {
                true => self.give_back(cx, link, record),
                false => self.handle(cx, link, record),
            }
        }
    }

    /// A record that can't be read, or has no business here.
    fn refuse_malformed(&self, cx: &mut Cx, link: LinkKey, record: &Record) {
        if let Some(asker) = asker_of(link, record) {
            cx.refuse(self.from(), asker, Code::BadRequest, "this request can't be served");
        }
    }

    /// Not now, but soon and here: clients and logins are told when to come again, gateways ask again.
    pub(super) fn give_back(&self, cx: &mut Cx, link: LinkKey, record: Record) {
        match record.kind {
            Kind::ClientRequest => {
                if let Some(asker) = asker_of(link, &record) {
                    cx.busy(self.from(), asker, "the partition is not ready");
                }
            }
            Kind::Register => {
                if let Ok(ask) = wire::Register::decode(record.body) {
                    register::refuse_busy(cx, link, self.from(), record.session, ask);
                }
            }
            // Losing them means repeats.
            Kind::Acks => cx.hub.stats.acks_refused += 1,
            _ => self.not_owner(cx, link, record),
        }
    }

    /// The record goes back whole, with what is known of the owner.
    pub(super) fn not_owner(&self, cx: &mut Cx, link: LinkKey, record: Record) {
        // Nothing is lost with it: subscriptions end with their owner's memory.
        if record.kind == Kind::Unsubscribe {
            return;
        }
        cx.hub.stats.not_owner += 1;
        if self.is_serving() {
            if cx.hub.denied.is_empty() {
                cx.hub.denied_due_us = cx.now.mono_us + REANNOUNCE_US;
            }
            cx.hub.denied.insert((link, self.id));
        }
        let (hint, epoch) = cx.hub.cluster.owner(self.id, &cx.hub.config.node);
        let answer = wire::NotOwner {
            partition: u32::from(self.id),
            epoch,
            hint,
            kind: record.kind as u32,
            body: record.body,
        };
        cx.send(link, From { partition: self.id, epoch: 0 }.record(Kind::NotOwner, record.session, &answer));
    }
}

/// A client's request about a conversation. A message that can't be judged yet comes back with its stream, and what it
/// needs if that is not on its way.
fn client(
    cx: &mut Cx,
    owner: &mut Owner,
    conversation: &mut Conversation,
    name: &str,
    link: LinkKey,
    record: &Record,
    ask: Client,
) -> Result<(), (StreamKey, Option<Need>)> {
    let asker = ask.asker(link, record);
    let Client { user, device, op, .. } = ask;
    match op {
        Op::Send(ask) => return send::send(cx, owner, conversation, asker, (user, device), ask),
        Op::GroupMembers(ask) => group_members::members(cx, owner, conversation, asker, &user, &ask),
        Op::GroupInfo(_) => group_members::info(cx, owner, conversation, name, asker, &user),
        Op::RoomJoin(_) => groups::joined(cx, owner, conversation, name, asker),
        Op::RoomLeave(_) => subscribe::room_leave(cx, owner, name, asker, user),
        Op::Sync(ask) => sync::sync(cx, owner, conversation, name, asker, user, device, ask),
        Op::History(ask) => sync::history(cx, owner, conversation, name, asker, user, &ask),
        Op::Peek(ask) => {
            let item = ask.items.into_iter().next();
            standing::peek(cx, owner, conversation, name, asker, user, device, item);
        }
        Op::Read(ask) => cursors::read(cx, owner, conversation, name, asker, user, &ask),
        Op::Receipts(ask) => receipts::list(cx, owner, conversation, name, asker, user, ask),
        Op::DeliverAck(ask) => {
            let client::Cursor { epoch, seq } = ask.cursor.unwrap_or_default();
            let conversation_id = name.to_owned();
            let ack = DeviceAck { conversation: conversation_id, user, device, epoch, seq };
            cursors::delivered(cx, owner, conversation, &ack);
            cx.done(owner.from, asker);
        }
        Op::FriendRequest(_) | Op::FriendAnswer(_) | Op::FriendRemove(_) | Op::Block(_) => {
            pair::change(cx, owner, conversation, name, asker, user, op);
        }
        Op::Typing(ask) => typing::typing(cx, owner, conversation, asker, user, ask),
        op => match admin::Kind::of(op) {
            Some(kind) => groups::change(cx, owner, conversation, name, Change { asker, user, kind }),
            // Gateways pass on none of these.
            None => cx.refuse(owner.from, asker, Code::BadRequest, "this request can't be served"),
        },
    }
    Ok(())
}

/// A client's request about its user, or about users whom it watches.
fn user_request(cx: &mut Cx, from: From, asker: Asker, ask: Client) {
    let Client { user, device, op, .. } = ask;
    match op {
        Op::PresenceSet(ask) => presence::set(cx, from, asker, (user, device), ask),
        Op::PresenceSubscribe(ask) => presence::subscribe(cx, from, asker, (user, device), ask.users),
        op => lists::ask(cx, from, asker, user, op),
    }
}

/// The stream of a message, so that its answers are loaded with its conversation.
fn stream_of_ask(ask: &Ask) -> Option<StreamKey> {
    match ask {
        Ask::Client(Client { user, device, op: Op::Send(ask), .. }) => {
            Some(stream_of(user.clone(), device.clone(), ask.stream))
        }
        _ => None,
    }
}
