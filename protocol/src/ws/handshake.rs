//! The HTTP/1.1 upgrade to WebSocket, both sides (RFC 6455, section 4), on whole heads.
//!
//! Gathering a head from the stream is done by [`Head`]; it is bounded, and nothing else of HTTP is spoken. Any path
//! is taken: what serves on a port is decided by the port.

use sha1::{Digest, Sha1};

use crate::received::{Received, Violation};
use crate::ws::wrong;

/// Bytes of a request's or response's head at most: browsers with many cookies stay below.
pub const HEAD_BYTES_MAX: usize = 8 << 10;

/// The subprotocol that is echoed if a client offers it.
pub const SUBPROTOCOL: &str = "millrace";

/// Appended to a key before it is hashed (RFC 6455, 1.3).
const ACCEPT_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const END: &[u8] = b"\r\n\r\n";

/// A head that comes in pieces.
#[derive(Debug, Default)]
pub struct Head {
    bytes: Vec<u8>,
}

/// The head is above [`HEAD_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadTooBig;

impl Head {
    /// Takes bytes up to the end of the head; whether it is whole.
    pub fn take(&mut self, input: &mut Received<'_>) -> Result<bool, HeadTooBig> {
        let old = self.bytes.len();
        let room = HEAD_BYTES_MAX - old;
        let piece = input.rest();
        let piece = &piece[..piece.len().min(room)];
        self.bytes.extend_from_slice(piece);
        // The end may have begun in an earlier piece.
        let from = old.saturating_sub(END.len() - 1);
        let end = self.bytes[from..].windows(END.len()).position(|window| window == END);
        let Some(end) = end.map(|at| from + at + END.len()) else {
            input.at += self.bytes.len() - old;
            return if self.bytes.len() == HEAD_BYTES_MAX { Err(HeadTooBig) } else { Ok(false) };
        };
        input.at += end - old;
        self.bytes.truncate(end);
        Ok(true)
    }

    /// What was taken.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of heap held.
    pub fn held_bytes(&self) -> usize {
        self.bytes.capacity()
    }
}

/// Why a request is not answered with 101.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// 400.
    #[error("bad WebSocket request: {0}")]
    Bad(&'static str),
    /// 405: anything but GET.
    #[error("only GET is served here")]
    Method,
    /// 426: not an upgrade to WebSocket version 13.
    #[error("this port serves WebSocket version 13 only")]
    UpgradeRequired,
    /// 431: above [`HEAD_BYTES_MAX`].
    #[error("the request's head is above 8 KiB")]
    HeadTooBig,
}

impl Rejection {
    /// The status and its phrase.
    pub fn status(self) -> &'static str {
        match self {
            Rejection::Bad(_) => "400 Bad Request",
            Rejection::Method => "405 Method Not Allowed",
            Rejection::UpgradeRequired => "426 Upgrade Required",
            Rejection::HeadTooBig => "431 Request Header Fields Too Large",
        }
    }

    /// The whole response; the connection closes after it.
    pub fn response(self) -> Vec<u8> {
        let extra = match self {
            Rejection::Method => "Allow: GET\r\n",
            Rejection::UpgradeRequired => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            _ => "",
        };
        http_error(self.status(), extra, &self.to_string())
    }
}

/// An HTTP response that ends the connection. `extra` is whole header lines.
pub fn http_error(status: &str, extra: &str, text: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\n{extra}Content-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\n\r\n{text}\n",
        text.len() + 1
    )
    .into_bytes()
}

/// Reads a client's request (a whole head) and gives the 101 response.
pub fn accept(head: &[u8]) -> Result<Vec<u8>, Rejection> {
    let text = std::str::from_utf8(head).map_err(|_| Rejection::Bad("it is no text"))?;
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let mut request = lines.next().unwrap_or_default().split(' ');
    let (method, path, version) = (request.next(), request.next(), request.next());
    if request.next().is_some() || path.is_none_or(str::is_empty) {
        return Err(Rejection::Bad("its first line is not `GET <path> HTTP/1.1`"));
    }
    if method != Some("GET") {
        return Err(Rejection::Method);
    }
    if version != Some("HTTP/1.1") {
        return Err(Rejection::Bad("it is not HTTP/1.1"));
    }

    let (mut upgrade, mut connection, mut version_13, mut offered) = (false, false, false, false);
    let mut key = None;
    for line in lines {
        let (name, value) = header_line(line).ok_or(Rejection::Bad("a header line is malformed"))?;
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
        if is("upgrade") {
            upgrade |= has_token(value, "websocket");
        } else if is("connection") {
            connection |= has_token(value, "upgrade");
        } else if is("sec-websocket-version") {
            version_13 = value == "13";
        } else if is("sec-websocket-protocol") {
            offered |= value.split(',').any(|name| name.trim() == SUBPROTOCOL);
        } else if is("sec-websocket-key") && key.replace(value).is_some() {
            return Err(Rejection::Bad("two Sec-WebSocket-Key lines"));
        }
    }
    if !upgrade || !version_13 {
        return Err(Rejection::UpgradeRequired);
    }
    if !connection {
        return Err(Rejection::Bad("`Connection: Upgrade` is missing"));
    }
    let key =
        key.filter(|key| is_key(key)).ok_or(Rejection::Bad("Sec-WebSocket-Key is missing or no 16 bytes"))?;
    let protocol = if offered { "Sec-WebSocket-Protocol: millrace\r\n" } else { "" };
    Ok(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n{protocol}\r\n",
        accept_key(key)
    )
    .into_bytes())
}

/// A client's request, and the Sec-WebSocket-Accept that the response must carry.
pub fn request(host: &str, path: &str, nonce: [u8; 16]) -> (Vec<u8>, String) {
    let key = base64(&nonce);
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
    );
    (request.into_bytes(), accept_key(&key))
}

/// Checks a server's response (a whole head).
pub fn check_response(head: &[u8], expected_accept: &str) -> Result<(), Violation> {
    let text = std::str::from_utf8(head).map_err(|_| wrong("WebSocket: the response is no text"))?;
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let status = lines.next().unwrap_or_default();
    if status != "HTTP/1.1 101" && !status.starts_with("HTTP/1.1 101 ") {
        return Err(wrong("WebSocket: the server does not answer 101"));
    }
    let (mut upgrade, mut connection, mut accepted) = (false, false, false);
    for line in lines {
        let (name, value) = header_line(line).ok_or(wrong("WebSocket: a malformed header line"))?;
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
        if is("upgrade") {
            upgrade |= has_token(value, "websocket");
        } else if is("connection") {
            connection |= has_token(value, "upgrade");
        } else if is("sec-websocket-accept") {
            accepted = value == expected_accept;
        } else if is("sec-websocket-extensions") && !value.is_empty() {
            return Err(wrong("WebSocket: the server chose an extension that was not offered"));
        } else if is("sec-websocket-protocol") && value != SUBPROTOCOL {
            return Err(wrong("WebSocket: the server chose a subprotocol that was not offered"));
        }
    }
    if !upgrade || !connection || !accepted {
        return Err(wrong("WebSocket: the server's response does not accept this upgrade"));
    }
    Ok(())
}

/// An HTTP response that opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal<'a> {
    /// Such as 503.
    pub code: u16,
    /// The code with its phrase.
    pub status: &'a str,
    /// The seconds of Retry-After; 0: it is not there, or a date.
    pub retry_after_s: u32,
}

/// Reads a server's response (a whole head) that is no 101. `None`: it is one, or no response of HTTP.
pub fn refusal(head: &[u8]) -> Option<Refusal<'_>> {
    let text = std::str::from_utf8(head.strip_suffix(END)?).ok()?;
    let mut lines = text.split("\r\n");
    let (version, status) = lines.next()?.split_once(' ')?;
    let code = status.split(' ').next()?.parse().ok()?;
    // Proxies in front may answer in the older version.
    if !version.starts_with("HTTP/1.") || code == 101 {
        return None;
    }
    let mut waits =
        lines.filter_map(header_line).filter(|(name, _)| name.eq_ignore_ascii_case("retry-after"));
    let retry_after_s = waits.next().and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
    Some(Refusal { code, status, retry_after_s })
}

/// Name and trimmed value of a header line; `None` for folded lines, blanks in the name or control characters.
fn header_line(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once(':')?;
    let value = value.trim_matches([' ', '\t']);
    let name_fits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
    let value_fits = value.chars().all(|c| c == '\t' || !c.is_control());
    (name_fits && value_fits).then_some((name, value))
}

fn has_token(value: &str, token: &str) -> bool {
    value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// 16 bytes in base64: 22 digits and two signs of padding.
fn is_key(key: &str) -> bool {
    key.len() == 24
        && key.ends_with("==")
        && key[..22].bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
}

fn accept_key(key: &str) -> String {
    base64(&Sha1::new().chain_update(key).chain_update(ACCEPT_GUID).finalize())
}

/// Standard base64 with padding. Only ever for 16 or 20 bytes, so that no crate is needed.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let [a, b, c] = [group[0], group.get(1).copied().unwrap_or(0), group.get(2).copied().unwrap_or(0)];
        let bits = u32::from_be_bytes([0, a, b, c]);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) & 63;
            out.push(if digit <= group.len() { char::from(DIGITS[index as usize]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6455, 1.3.
    const RFC_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    fn request_with(lines: &str) -> String {
        format!("GET /any?x=1 HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n")
    }

    #[test]
    fn base64_and_accept_as_in_the_rfcs() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(accept_key(RFC_KEY), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn answers_each_kind_of_request() {
        let good = format!(
            "Upgrade: WebSocket\r\nConnection: keep-alive, upgrade\r\nSec-WebSocket-Version: 13\r\nsec-websocket-key: {RFC_KEY}"
        );
        let check = |request: &str, status: &str| {
            let response = accept(request.as_bytes()).unwrap_or_else(|rejection| rejection.response());
            let response = String::from_utf8(response).unwrap();
            assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?} gave {response:?}");
            response
        };
        let response = check(&request_with(&good), "101");
        assert!(response.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
        assert!(!response.contains("Sec-WebSocket-Protocol"));
        let offered = format!("{good}\r\nSec-WebSocket-Protocol: chat, millrace");
        assert!(check(&request_with(&offered), "101").contains("Sec-WebSocket-Protocol: millrace\r\n"));

        check(&request_with("Accept: */*"), "426");
        check(&request_with(&good.replace("13", "8")), "426");
        check(&request_with(&good.replace("upgrade", "close")), "400");
        check(&request_with(&good.replace(RFC_KEY, "short==")), "400");
        check(&request_with(&format!("{good}\r\nSec-WebSocket-Key: {RFC_KEY}")), "400");
        check(&request_with(&format!("{good}\r\n folded: line")), "400");
        check(&request_with(&good).replace("HTTP/1.1", "HTTP/1.0"), "400");
        check(&request_with(&good).replace("GET", "GETS"), "405");
        check("GET  HTTP/1.1\r\n\r\n", "400");
    }

    #[test]
    fn a_client_checks_the_answer_to_its_own_request() {
        let (request, expected) = request("h", "/", [7; 16]);
        let response = accept(&request).unwrap();
        assert_eq!(check_response(&response, &expected), Ok(()));
        assert!(check_response(&response, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=").is_err());
        assert!(check_response(&Rejection::UpgradeRequired.response(), &expected).is_err());
        assert_eq!(refusal(&response), None);
    }

    #[test]
    fn a_client_reads_a_refusal() {
        let check = |head: &str, expected: Option<(u16, &str, u32)>| {
            let found = refusal(head.as_bytes());
            let found = found.map(|it| (it.code, it.status, it.retry_after_s));
            assert_eq!(found, expected, "{head:?}");
        };
        check(
            "HTTP/1.1 503 Service Unavailable\r\nX: y\r\nretry-after: 7\r\n\r\n",
            Some((503, "503 Service Unavailable", 7)),
        );
        check("HTTP/1.0 404 Not Found\r\n\r\n", Some((404, "404 Not Found", 0)));
        check("HTTP/1.1 503\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n\r\n", Some((503, "503", 0)));
        check("HTTP/1.1 101 Switching Protocols\r\n\r\n", None);
        check("HTTP/1.1 503 Service Unavailable\r\n", None);
        check("SSH-2.0-x 503\r\n\r\n", None);
        check("HTTP/1.1 no\r\n\r\n", None);
    }
}
