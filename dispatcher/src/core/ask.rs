//! Records for a conversation or a user, read.
//!
//! The rule that keeps it right: nothing in a record is trusted to be well formed; what can't be read is `None`.

use millrace_protocol::conversation::Conversation as Id;
use millrace_protocol::link::{Kind, Record};
use millrace_protocol::messages::client::Request;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::link::{Acks, ClientRequest, Fetch, Register, Subscribe, Unsubscribe};
use millrace_protocol::prost::Message;
use millrace_protocol::request::Key;

use super::event::LinkKey;
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
    /// Sessions acknowledge what they were sent.
    Acks(Acks),
    /// A client's request.
    Client(Client),
}

/// A client's request.
#[derive(Debug)]
pub struct Client {
    token: u64,
    request_id: u64,
    /// Whose owner serves it: a conversation or the user.
    pub key: Key,
    /// Who asks.
    pub user: String,
    /// On which device.
    pub device: String,
    /// What for.
    pub op: Op,
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
            Kind::Acks => Ask::Acks(Acks::decode(body).ok()?),
            Kind::ClientRequest => Ask::Client(Client::read(ClientRequest::decode(body).ok()?)?),
            _ => return None,
        };
        let valid = match &ask {
            Ask::Register(_) | Ask::Acks(_) => true,
            Ask::Client(client) => match &client.key {
                Key::Conversation(id) => Id::parse(id).is_some(),
                Key::User => true,
                Key::Many | Key::Gateway => false,
            },
            Ask::Subscribe(Subscribe { conversation, .. })
            | Ask::Unsubscribe(Unsubscribe { conversation, .. })
            | Ask::Fetch(Fetch { conversation, .. }) => Id::parse(conversation).is_some(),
        };
        valid.then_some(ask)
    }

    /// The conversation that it is about; empty: it is about users.
    pub fn conversation(&self) -> &str {
        match self {
            Ask::Register(_) | Ask::Acks(_) => "",
            Ask::Subscribe(ask) => &ask.conversation,
            Ask::Unsubscribe(ask) => &ask.conversation,
            Ask::Fetch(ask) => &ask.conversation,
            Ask::Client(ask) => match &ask.key {
                Key::Conversation(id) => id,
                _ => "",
            },
        }
    }
}

impl Client {
    fn read(envelope: ClientRequest) -> Option<Self> {
        let request = Request::decode(envelope.request).ok()?;
        let op = request.op?;
        let ClientRequest { token, user, device, .. } = envelope;
        let key = match &op {
            // Gateways split it: one conversation in each.
            Op::Peek(ask) => Key::Conversation(ask.items.first()?.conversation.clone()),
            // Likewise: users of this partition.
            Op::PresenceSubscribe(_) => Key::User,
            op => Key::of(op, &user)?,
        };
        Some(Client { token, request_id: request.id, key, user, device, op })
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
