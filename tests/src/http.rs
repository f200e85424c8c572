//! One HTTP GET, enough for the admin ports.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Status and body of `http://address/path`; an error text when nobody answers within two seconds.
pub fn get(address: &str, path: &str) -> Result<(u16, String), String> {
    let limit = Some(Duration::from_secs(2));
    let fault = |e: std::io::Error| format!("GET {address}{path}: {e}");
    let mut stream = TcpStream::connect(address).map_err(fault)?;
    stream.set_read_timeout(limit).map_err(fault)?;
    stream.set_write_timeout(limit).map_err(fault)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").map_err(fault)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(fault)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("an answer without a head")?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("an answer without a status")?;
    Ok((status, body.to_owned()))
}
