//! Centrifugo: its protobuf protocol over WebSocket, replies and commands behind their lengths in binary messages.

use millrace_protocol::prost::Message;
use millrace_protocol::received::Received;

use super::ws::{Heard, Ws};
use super::{Codec, CodecError, Role, TOPIC, Told};

/// Where its WebSocket is, in the protocol that costs it least.
const PATH: &str = "/connection/websocket?cf_protocol=protobuf";

/// What we ask: only the parts of the schema that are used here, as in all messages below.
#[derive(Clone, PartialEq, Message)]
#[prost(prost_path = "millrace_protocol::prost")]
struct Command {
    #[prost(uint32, tag = "1")]
    id: u32,
    #[prost(message, optional, tag = "4")]
    connect: Option<Empty>,
    #[prost(message, optional, tag = "5")]
    subscribe: Option<Subscribe>,
    #[prost(message, optional, tag = "7")]
    publish: Option<Publish>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(prost_path = "millrace_protocol::prost")]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
#[prost(prost_path = "millrace_protocol::prost")]
struct Subscribe {
    #[prost(string, tag = "1")]
    channel: String,
}

#[derive(Clone, PartialEq, Message)]
#[prost(prost_path = "millrace_protocol::prost")]
struct Publish {
    #[prost(string, tag = "1")]
    channel: String,
    #[prost(bytes = "vec", tag = "2")]
    data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(prost_path = "millrace_protocol::prost")]
struct Reply {
    #[prost(uint32, tag = "1")]
    id: u32,
    #[prost(message, optional, tag = "2")]
    error: Option<Refusal>,
    #[prost(message, optional, tag = "4")]
    push: Option<Push>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(prost_path = "millrace_protocol::prost")]
struct Refusal {
    #[prost(uint32, tag = "1")]
    code: u32,
    #[prost(string, tag = "2")]
    message: String,
}

#[derive(Clone, PartialEq, Message)]
#[prost(prost_path = "millrace_protocol::prost")]
struct Push {
    #[prost(message, optional, tag = "4")]
    publication: Option<Publication>,
    #[prost(message, optional, tag = "11")]
    disconnect: Option<Refusal>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(prost_path = "millrace_protocol::prost")]
struct Publication {
    #[prost(bytes = "vec", tag = "4")]
    data: Vec<u8>,
}

const CONNECT_ID: u32 = 1;
const SUBSCRIBE_ID: u32 = 2;
const PUBLISH_ID: u32 = 3;

/// One connection to Centrifugo.
#[derive(Debug)]
pub struct Centrifugo {
    role: Role,
    ws: Ws,
    request: Vec<u8>,
}

impl Centrifugo {
    /// Not connected yet. `nonce` is random.
    pub fn new(role: Role, nonce: [u8; 16]) -> Self {
        let (ws, request) = Ws::new(PATH, nonce);
        Centrifugo { role, ws, request }
    }
}

fn refused(refusal: &Refusal) -> CodecError {
    CodecError::Refused(format!("{} {}", refusal.code, refusal.message))
}

/// What to do about one reply, when what was lent for it is given back.
enum Next {
    Nothing,
    Send(Command),
    /// An empty command answers an empty reply, which is a ping.
    Pong,
}

impl Codec for Centrifugo {
    fn hello(&mut self, out: &mut Vec<u8>) -> bool {
        out.append(&mut self.request);
        self.request = Vec::new();
        false
    }

    fn hear(
        &mut self,
        bytes: &mut [u8],
        out: &mut Vec<u8>,
        told: &mut dyn FnMut(Told<'_>),
    ) -> Result<(), CodecError> {
        let role = self.role;
        let mut input = Received::new(bytes);
        loop {
            let mut next = Vec::new();
            match self.ws.next(&mut input)? {
                None => return Ok(()),
                Some(Heard::Open) => {
                    let connect = Some(Empty {});
                    next.push(Next::Send(Command { id: CONNECT_ID, connect, ..Command::default() }));
                }
                Some(Heard::Ping(payload)) => self.ws.pong(&payload, out),
                Some(Heard::Pong) => {}
                Some(Heard::Message(mut replies)) => {
                    while !replies.is_empty() {
                        let reply = Reply::decode_length_delimited(&mut replies)
                            .map_err(|error| CodecError::Nonsense("Centrifugo", error.to_string()))?;
                        match answer(&reply, role, told)? {
                            Next::Nothing => {}
                            what => next.push(what),
                        }
                    }
                }
            }
            for what in next {
                match what {
                    Next::Nothing => {}
                    Next::Send(command) => self.ws.send(&command.encode_length_delimited_to_vec(), out),
                    Next::Pong => self.ws.send(&[0], out),
                }
            }
        }
    }

    fn publish(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        let publish = Some(Publish { channel: TOPIC.to_owned(), data: payload.to_vec() });
        let command = Command { id: PUBLISH_ID, publish, ..Command::default() };
        self.ws.send(&command.encode_length_delimited_to_vec(), out);
    }
}

fn answer(reply: &Reply, role: Role, told: &mut dyn FnMut(Told<'_>)) -> Result<Next, CodecError> {
    if let Some(error) = &reply.error {
        return Err(refused(error));
    }
    match (reply.id, &reply.push) {
        (0, None) => return Ok(Next::Pong),
        (0, Some(push)) => {
            if let Some(disconnect) = &push.disconnect {
                return Err(refused(disconnect));
            }
            if let Some(publication) = &push.publication {
                told(Told::Message(&publication.data));
            }
        }
        (CONNECT_ID, _) if role == Role::Subscriber => {
            let subscribe = Some(Subscribe { channel: TOPIC.to_owned() });
            return Ok(Next::Send(Command { id: SUBSCRIBE_ID, subscribe, ..Command::default() }));
        }
        (CONNECT_ID | SUBSCRIBE_ID, _) => told(Told::Ready),
        _ => {}
    }
    Ok(Next::Nothing)
}

#[cfg(test)]
mod tests {
    use millrace_protocol::ws::Opcode;

    use super::super::tests::{Owned, check, refuses};
    use super::super::ws::tests::server;
    use super::*;

    fn reply(id: u32) -> Vec<u8> {
        Reply { id, ..Reply::default() }.encode_length_delimited_to_vec()
    }

    fn publication(data: &[u8]) -> Vec<u8> {
        let push = Push { publication: Some(Publication { data: data.to_vec() }), disconnect: None };
        Reply { push: Some(push), ..Reply::default() }.encode_length_delimited_to_vec()
    }

    #[test]
    fn subscribes_hears_and_answers_pings() {
        let two = [publication(b"\0hi"), publication(b"")].concat();
        let frames = [
            (Opcode::Binary, &reply(CONNECT_ID)[..]),
            (Opcode::Binary, &reply(SUBSCRIBE_ID)),
            (Opcode::Binary, &two),
            (Opcode::Binary, &[0]),
        ];
        let told = [Owned::Ready, Owned::Message(b"\0hi".to_vec()), Owned::Message(Vec::new())];
        let mut answers = Vec::new();
        let (ws, _) = Ws::new(PATH, [5; 16]);
        let connect = Command { id: 1, connect: Some(Empty {}), ..Command::default() };
        let subscribe = Some(Subscribe { channel: "fan".to_owned() });
        let subscribe = Command { id: 2, subscribe, ..Command::default() };
        ws.send(&connect.encode_length_delimited_to_vec(), &mut answers);
        ws.send(&subscribe.encode_length_delimited_to_vec(), &mut answers);
        ws.send(&[0], &mut answers);
        let make = || Box::new(Centrifugo::new(Role::Subscriber, [5; 16])) as Box<dyn Codec>;
        check(make, &server([5; 16], &frames), &told, &answers);
    }

    #[test]
    fn takes_no_for_an_answer() {
        let error = Some(Refusal { code: 103, message: "permission denied".to_owned() });
        let error = Reply { id: 2, error, push: None }.encode_length_delimited_to_vec();
        let disconnect = Some(Refusal { code: 3000, message: "connection closed".to_owned() });
        let push = Some(Push { publication: None, disconnect });
        let disconnect = Reply { id: 0, error: None, push }.encode_length_delimited_to_vec();
        for no in [&error[..], &disconnect, b"\x05\xff"] {
            let make = || Box::new(Centrifugo::new(Role::Publisher, [5; 16])) as Box<dyn Codec>;
            refuses(make, &server([5; 16], &[(Opcode::Binary, no)]));
        }
    }
}
