//! Redis pub/sub: RESP2 arrays in, inline-free commands out.

use super::carry::{Carry, line, number};
use super::{Codec, CodecError, Role, TOPIC, Told};

/// One connection to Redis.
#[derive(Debug)]
pub struct Resp {
    role: Role,
    carry: Carry,
}

/// Elements of an array at most: a message has three.
const ELEMENTS_MAX: usize = 4;

impl Resp {
    /// Not connected yet.
    pub fn new(role: Role) -> Self {
        Resp { role, carry: Carry::default() }
    }
}

/// One reply.
enum Reply<'a> {
    /// `+`, `:`, or a bulk string by itself.
    Other,
    /// The bulk strings of an array; numbers in it are empty.
    Array([&'a [u8]; ELEMENTS_MAX], usize),
    Error(&'a [u8]),
}

fn nonsense(bytes: &[u8]) -> CodecError {
    CodecError::Nonsense("RESP", String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned())
}

/// A bulk string behind its head line.
fn bulk<'a>(head: &[u8], after: &'a [u8]) -> Result<Option<(&'a [u8], usize)>, CodecError> {
    let bytes = number(head).ok_or_else(|| nonsense(head))?;
    let whole = bytes.saturating_add(2);
    Ok(after.get(..whole).map(|found| (&found[..bytes], whole)))
}

/// The reply that `rest` begins with, and its bytes.
fn reply(rest: &[u8]) -> Result<Option<(Reply<'_>, usize)>, CodecError> {
    let Some((head, head_bytes)) = line(rest) else { return Ok(None) };
    let after = &rest[head_bytes..];
    let (&kind, words) = head.split_first().ok_or_else(|| nonsense(rest))?;
    Ok(match kind {
        b'+' | b':' => Some((Reply::Other, head_bytes)),
        b'-' => Some((Reply::Error(words), head_bytes)),
        b'$' => bulk(words, after)?.map(|(_, bytes)| (Reply::Other, head_bytes + bytes)),
        b'*' => {
            let count = number(words).filter(|count| *count <= ELEMENTS_MAX).ok_or_else(|| nonsense(head))?;
            let (mut found, mut at) = ([&[][..]; ELEMENTS_MAX], head_bytes);
            for element in &mut found[..count] {
                let Some((head, head_bytes)) = line(&rest[at..]) else { return Ok(None) };
                at += head_bytes;
                match head.split_first() {
                    Some((b':', _)) => {}
                    Some((b'$', words)) => {
                        let Some((text, bytes)) = bulk(words, &rest[at..])? else { return Ok(None) };
                        *element = text;
                        at += bytes;
                    }
                    _ => return Err(nonsense(head)),
                }
            }
            Some((Reply::Array(found, count), at))
        }
        _ => return Err(nonsense(head)),
    })
}

fn command(words: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

impl Codec for Resp {
    fn hello(&mut self, out: &mut Vec<u8>) -> bool {
        match self.role {
            Role::Subscriber => {
                command(&[b"SUBSCRIBE", TOPIC.as_bytes()], out);
                false
            }
            Role::Publisher => true,
        }
    }

    fn hear(
        &mut self,
        bytes: &mut [u8],
        _out: &mut Vec<u8>,
        told: &mut dyn FnMut(Told<'_>),
    ) -> Result<(), CodecError> {
        self.carry.feed(bytes, |rest| {
            let Some((reply, used)) = reply(rest)? else { return Ok(None) };
            match reply {
                Reply::Error(words) => {
                    return Err(CodecError::Refused(String::from_utf8_lossy(words).into_owned()));
                }
                Reply::Array([b"message", _, payload, _], 3) => told(Told::Message(payload)),
                Reply::Array([b"subscribe", ..], 3) => told(Told::Ready),
                Reply::Array(..) | Reply::Other => {}
            }
            Ok(Some(used))
        })
    }

    fn publish(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        command(&[b"PUBLISH", TOPIC.as_bytes(), payload], out);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Owned, check, refuses};
    use super::*;

    #[test]
    fn subscribes_and_hears() {
        let server = b"*3\r\n$9\r\nsubscribe\r\n$3\r\nfan\r\n:1\r\n\
            *3\r\n$7\r\nmessage\r\n$3\r\nfan\r\n$5\r\na\r\n\0b\r\n*3\r\n$7\r\nmessage\r\n$3\r\nfan\r\n$0\r\n\r\n";
        let told = [Owned::Ready, Owned::Message(b"a\r\n\0b".to_vec()), Owned::Message(Vec::new())];
        check(|| Box::new(Resp::new(Role::Subscriber)), server, &told, b"");
        let mut out = Vec::new();
        assert!(!Resp::new(Role::Subscriber).hello(&mut out));
        assert_eq!(out, b"*2\r\n$9\r\nSUBSCRIBE\r\n$3\r\nfan\r\n");
    }

    #[test]
    fn publishes_and_takes_no_for_an_answer() {
        let mut out = Vec::new();
        let mut publisher = Resp::new(Role::Publisher);
        assert!(publisher.hello(&mut out));
        publisher.publish(b"x\r\n", &mut out);
        assert_eq!(out, b"*3\r\n$7\r\nPUBLISH\r\n$3\r\nfan\r\n$3\r\nx\r\n\r\n");
        check(|| Box::new(Resp::new(Role::Publisher)), b":50\r\n+OK\r\n", &[], b"");
        for no in [&b"-ERR max number of clients reached\r\n"[..], b"?\r\n", b"*9\r\n", b"$x\r\n"] {
            refuses(|| Box::new(Resp::new(Role::Subscriber)), no);
        }
    }
}
