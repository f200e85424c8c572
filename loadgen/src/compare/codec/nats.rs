//! NATS: lines of text, payloads behind their length.

use super::carry::{Carry, line, number};
use super::{Codec, CodecError, Role, TOPIC, Told};

/// One connection to nats-server.
#[derive(Debug)]
pub struct Nats {
    role: Role,
    is_ready: bool,
    carry: Carry,
}

impl Nats {
    /// Not connected yet.
    pub fn new(role: Role) -> Self {
        Nats { role, is_ready: false, carry: Carry::default() }
    }
}

impl Codec for Nats {
    fn hello(&mut self, out: &mut Vec<u8>) -> bool {
        out.extend_from_slice(b"CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"rust\"}\r\n");
        if self.role == Role::Subscriber {
            out.extend_from_slice(format!("SUB {TOPIC} 1\r\n").as_bytes());
        }
        // Its answer comes after the subscription was taken.
        out.extend_from_slice(b"PING\r\n");
        false
    }

    fn hear(
        &mut self,
        bytes: &mut [u8],
        out: &mut Vec<u8>,
        told: &mut dyn FnMut(Told<'_>),
    ) -> Result<(), CodecError> {
        let is_ready = &mut self.is_ready;
        self.carry.feed(bytes, |rest| {
            let Some((head, head_bytes)) = line(rest) else { return Ok(None) };
            let word = head.split(|byte| *byte == b' ').next().unwrap_or_default();
            match word {
                b"MSG" => {
                    let last = head.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
                    let bytes = number(last).ok_or_else(|| nonsense(head))?;
                    let Some(payload) = rest[head_bytes..].get(..bytes.saturating_add(2)) else {
                        return Ok(None);
                    };
                    told(Told::Message(&payload[..bytes]));
                    return Ok(Some(head_bytes + bytes + 2));
                }
                b"PING" => out.extend_from_slice(b"PONG\r\n"),
                b"PONG" if !*is_ready => {
                    *is_ready = true;
                    told(Told::Ready);
                }
                b"-ERR" => return Err(CodecError::Refused(String::from_utf8_lossy(head).into_owned())),
                b"INFO" | b"+OK" | b"PONG" => {}
                _ => return Err(nonsense(head)),
            }
            Ok(Some(head_bytes))
        })
    }

    fn publish(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(format!("PUB {TOPIC} {}\r\n", payload.len()).as_bytes());
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }
}

fn nonsense(head: &[u8]) -> CodecError {
    CodecError::Nonsense("NATS", String::from_utf8_lossy(&head[..head.len().min(60)]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Owned, check, refuses};
    use super::*;

    #[test]
    fn subscribes_hears_and_answers_pings() {
        let server =
            b"INFO {\"max_payload\":1}\r\nPONG\r\nMSG fan 1 4\r\n\r\n\r\n\r\nPING\r\nMSG fan 1 0\r\n\r\nPONG\r\n";
        let told = [Owned::Ready, Owned::Message(b"\r\n\r\n".to_vec()), Owned::Message(Vec::new())];
        check(|| Box::new(Nats::new(Role::Subscriber)), server, &told, b"PONG\r\n");
        let mut out = Vec::new();
        Nats::new(Role::Subscriber).hello(&mut out);
        assert!(out.ends_with(b"\r\nSUB fan 1\r\nPING\r\n"));
    }

    #[test]
    fn publishes_and_takes_no_for_an_answer() {
        let mut out = Vec::new();
        Nats::new(Role::Publisher).publish(b"hi", &mut out);
        assert_eq!(out, b"PUB fan 2\r\nhi\r\n");
        for no in [&b"-ERR 'maximum connections exceeded'\r\n"[..], b"HTTP/1.1 400\r\n", b"MSG fan 1 x\r\n"] {
            refuses(|| Box::new(Nats::new(Role::Subscriber)), no);
        }
    }
}
