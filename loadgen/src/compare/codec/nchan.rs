//! nginx with nchan: subscribers over WebSocket, the publisher with HTTP posts on a connection that stays.

use millrace_protocol::received::Received;

use super::carry::{Carry, line, number};
use super::ws::{Heard, Ws};
use super::{Codec, CodecError, Told};

/// Where the configuration that we give to nginx has the two ends.
pub const SUBSCRIBE_PATH: &str = "/sub";
/// See [`SUBSCRIBE_PATH`].
pub const PUBLISH_PATH: &str = "/pub";

/// One WebSocket that gets messages.
#[derive(Debug)]
pub struct NchanSubscriber {
    ws: Ws,
    request: Vec<u8>,
}

impl NchanSubscriber {
    /// Not connected yet. `nonce` is random.
    pub fn new(nonce: [u8; 16]) -> Self {
        let (ws, request) = Ws::new(SUBSCRIBE_PATH, nonce);
        NchanSubscriber { ws, request }
    }
}

impl Codec for NchanSubscriber {
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
        let mut input = Received::new(bytes);
        while let Some(heard) = self.ws.next(&mut input)? {
            match heard {
                // It answers when the subscriber is on its channel.
                Heard::Open => told(Told::Ready),
                Heard::Message(payload) => told(Told::Message(payload)),
                Heard::Ping(payload) => self.ws.pong(&payload, out),
                Heard::Pong => {}
            }
        }
        Ok(())
    }

    fn publish(&mut self, _payload: &[u8], _out: &mut Vec<u8>) {}
}

/// One HTTP connection that posts messages.
#[derive(Debug, Default)]
pub struct NchanPublisher {
    carry: Carry,
}

/// An HTTP response with a body of known length: its status line, and its bytes.
fn response(rest: &[u8]) -> Result<Option<(&[u8], usize)>, CodecError> {
    let Some((status, mut at)) = line(rest) else { return Ok(None) };
    let mut body_bytes = 0;
    loop {
        let Some((header, bytes)) = line(&rest[at..]) else { return Ok(None) };
        at += bytes;
        if header.is_empty() {
            let whole = at.saturating_add(body_bytes);
            return Ok((rest.len() >= whole).then_some((status, whole)));
        }
        let Some(colon) = header.iter().position(|byte| *byte == b':') else {
            return Err(nonsense(header));
        };
        let (name, value) = (&header[..colon], &header[colon + 1..]);
        if name.eq_ignore_ascii_case(b"content-length") {
            body_bytes = number(value).ok_or_else(|| nonsense(header))?;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            return Err(nonsense(header));
        }
    }
}

fn nonsense(line: &[u8]) -> CodecError {
    CodecError::Nonsense("HTTP", String::from_utf8_lossy(&line[..line.len().min(60)]).into_owned())
}

impl Codec for NchanPublisher {
    fn hello(&mut self, _out: &mut Vec<u8>) -> bool {
        true
    }

    fn hear(
        &mut self,
        bytes: &mut [u8],
        _out: &mut Vec<u8>,
        _told: &mut dyn FnMut(Told<'_>),
    ) -> Result<(), CodecError> {
        self.carry.feed(bytes, |rest| {
            let Some((status, used)) = response(rest)? else { return Ok(None) };
            if !status.starts_with(b"HTTP/1.1 2") {
                return Err(CodecError::Refused(String::from_utf8_lossy(status).into_owned()));
            }
            Ok(Some(used))
        })
    }

    fn publish(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        // Other types are sent on as text, which must be UTF-8.
        let head = format!(
            "POST {PUBLISH_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n\
             Content-Length: {}\r\n\r\n",
            payload.len()
        );
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(payload);
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::ws::Opcode;

    use super::super::tests::{Owned, check, feed, refuses};
    use super::super::ws::tests::server;
    use super::*;

    #[test]
    fn subscribes_hears_and_answers_pings() {
        let frames = [(Opcode::Binary, &[9; 200][..]), (Opcode::Ping, b"p"), (Opcode::Text, b"hi")];
        let told = [Owned::Ready, Owned::Message(vec![9; 200]), Owned::Message(b"hi".to_vec())];
        let pong = [0x8a, 0x81, 3, 3, 3, 3, b'p' ^ 3];
        check(|| Box::new(NchanSubscriber::new([3; 16])), &server([3; 16], &frames), &told, &pong);
        let mut out = Vec::new();
        assert!(!NchanSubscriber::new([3; 16]).hello(&mut out));
        let request = String::from_utf8(out).unwrap();
        assert!(request.starts_with("GET /sub HTTP/1.1\r\n") && request.ends_with("\r\n\r\n"));
        assert!(!request.contains("millrace"), "{request}");
    }

    #[test]
    fn a_close_or_another_answer_ends_it() {
        let mut codec = NchanSubscriber::new([3; 16]);
        let close = server([3; 16], &[(Opcode::Close, &[0x03, 0xf4])]);
        assert!(feed(&mut codec, &close, &[]).unwrap_err().to_string().contains("1012"));
        refuses(
            || Box::new(NchanSubscriber::new([3; 16])),
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
        );
    }

    #[test]
    fn posts_and_reads_the_answers() {
        let mut out = Vec::new();
        NchanPublisher::default().publish(b"hi", &mut out);
        assert!(out.starts_with(b"POST /pub HTTP/1.1\r\n") && out.ends_with(b"Content-Length: 2\r\n\r\nhi"));
        let answers =
            b"HTTP/1.1 202 Accepted\r\nContent-Length: 4\r\n\r\nbodyHTTP/1.1 201 Created\r\nX: 1\r\n\r\n";
        check(|| Box::new(NchanPublisher::default()), answers, &[], b"");
        for no in [&b"HTTP/1.1 500 No\r\n\r\n"[..], b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]
        {
            refuses(|| Box::new(NchanPublisher::default()), no);
        }
    }
}
