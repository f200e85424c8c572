//! Records for a conversation or a user, read.
//!
//! The rule that keeps it right: nothing in a record is trusted to be well formed; what can't be read is `None`.

use millrace_protocol::conversation::Conversation as Id;
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::client::{GroupMembers, Request, Send, request};
use millrace_protocol::messages::link::{ClientRequest, Fetch, Register, Subscribe, Unsubscribe};
use millrace_protocol::prost::Message;

use super::event::LinkKey;
use super::groups::ChangeKind;
use super::hub::Asker;

/// What a record asks of its partition's owner.
#[derive(Debug)]
pub enum Ask {
    /// A session registers.
    Register(Register),
    /// A shard listens.
    Subscribe(Subscribe),
    /// A shard listens no more.
    Unsubscribe(Unsubscribe),
    /// A shard missed messages.
    Fetch(Fetch),
    /// A client's request.
    Client(Client),
}

/// A client's request.
#[derive(Debug)]
pub struct Client {
    token: u64,
    request_id: u64,
    conversation: String,
    /// Who asks.
    pub user: String,
    /// On which device.
    pub device: String,
    /// What for.
    pub op: Op,
}

/// What a client wants of a conversation.
#[derive(Debug)]
pub enum Op {
    /// To send.
    Send(Send),
    /// To change a group's members.
    Change(ChangeKind),
    /// To see who is in.
    Members(GroupMembers),
    /// To listen to a room.
    RoomJoin,
    /// To listen no more.
    RoomLeave,
}

impl Ask {
    /// Reads a record; `None` if it can't be read or is nothing for an owner.
    pub fn read(record: &Record) -> Option<Self> {
        let body = record.body.clone();
        let ask = match record.kind {
            Kind::Register => Ask::Register(Register::decode(body).ok()?),
            Kind::Subscribe => Ask::Subscribe(Subscribe::decode(body).ok()?),
            Kind::Unsubscribe => Ask::Unsubscribe(Unsubscribe::decode(body).ok()?),
            Kind::Fetch => Ask::Fetch(Fetch::decode(body).ok()?),
            Kind::ClientRequest => Ask::Client(Client::read(ClientRequest::decode(body).ok()?)?),
            _ => return None,
        };
        match &ask {
            Ask::Register(_) => Some(ask),
            ask_of if Id::parse(ask_of.name()).is_some() => Some(ask),
            _ => None,
        }
    }

    fn name(&self) -> &str {
        match self {
            Ask::Register(ask) => &ask.user,
            Ask::Subscribe(ask) => &ask.conversation,
            Ask::Unsubscribe(ask) => &ask.conversation,
            Ask::Fetch(ask) => &ask.conversation,
            Ask::Client(ask) => &ask.conversation,
        }
    }

    /// The conversation that it is about.
    pub fn conversation(&self) -> String {
        self.name().to_owned()
    }
}

impl Client {
    fn read(envelope: ClientRequest) -> Option<Self> {
        let request = Request::decode(envelope.request).ok()?;
        let (conversation, op) = match request.op? {
            request::Op::Send(ask) => (ask.conversation.clone(), Op::Send(ask)),
            request::Op::GroupCreate(ask) => {
                (format!("g:{}", ask.group), Op::Change(ChangeKind::Create(ask.members)))
            }
            request::Op::GroupJoin(ask) => (format!("g:{}", ask.group), Op::Change(ChangeKind::Join)),
            request::Op::GroupLeave(ask) => (format!("g:{}", ask.group), Op::Change(ChangeKind::Leave)),
            request::Op::GroupMembers(ask) => (format!("g:{}", ask.group), Op::Members(ask)),
            request::Op::RoomJoin(ask) => (format!("r:{}", ask.room), Op::RoomJoin),
            request::Op::RoomLeave(ask) => (format!("r:{}", ask.room), Op::RoomLeave),
            request::Op::Login(_) | request::Op::Logout(_) => return None,
        };
        let ClientRequest { token, user, device, .. } = envelope;
        Some(Client { token, request_id: request.id, conversation, user, device, op })
    }

    /// Who waits for the answer.
    pub fn asker(&self, link: LinkKey, record: &Record) -> Asker {
        Asker { link, session: record.session, token: self.token, request_id: self.request_id }
    }
}

/// Who waits for the answer to a ClientRequest, however little of the rest can be read.
pub fn asker_of(link: LinkKey, record: &Record) -> Option<Asker> {
    if record.kind != Kind::ClientRequest {
        return None;
    }
    let envelope = ClientRequest::decode(record.body.clone()).ok()?;
    let request_id = Request::decode(envelope.request).map_or(0, |request| request.id);
    Some(Asker { link, session: record.session, token: envelope.token, request_id })
}
