//! Redis and Sentinel as the fleet runs them, and the few words that are said to them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Durability;
use super::net::find;

/// What Sentinel calls the primary.
pub(super) const MASTER: &str = "millrace";

/// Sentinel takes a primary for dead after this time, in ms. A replica that was cut off for ten times this is no
/// candidate any more.
pub(super) const DOWN_AFTER_MS: u64 = 2_000;

/// Sentinel tries a failover again after this time, in ms.
const FAILOVER_TIMEOUT_MS: u64 = 6_000;

/// Redis answers within this time, or counts as away.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// Where redis-server is, if it is installed.
pub(crate) fn server() -> Option<PathBuf> {
    find("redis-server")
}

/// The command line of a Redis.
pub(crate) fn line(
    at: SocketAddr,
    dir: &Path,
    replica_of: Option<SocketAddr>,
    durability: Durability,
) -> Vec<String> {
    let fsync = if durability == Durability::Async { "everysec" } else { "always" };
    let mut line: Vec<String> = [
        ("port", at.port().to_string()),
        ("bind", at.ip().to_string()),
        ("dir", dir.display().to_string()),
        ("save", String::new()),
        ("appendonly", "yes".to_owned()),
        ("appendfsync", fsync.to_owned()),
        ("maxmemory-policy", "noeviction".to_owned()),
        ("protected-mode", "no".to_owned()),
        // A cut is noticed, and mended, within the time of a schedule.
        ("repl-timeout", "6".to_owned()),
        ("repl-ping-replica-period", "1".to_owned()),
        ("repl-diskless-sync-delay", "0".to_owned()),
        ("repl-backlog-size", "16mb".to_owned()),
    ]
    .into_iter()
    .flat_map(|(name, value)| [format!("--{name}"), value])
    .collect();
    if let Some(primary) = replica_of {
        line.extend(["--replicaof".to_owned(), primary.ip().to_string(), primary.port().to_string()]);
    }
    line
}

/// The configuration of a Sentinel, which it rewrites itself.
pub(super) fn sentinel_file(at: SocketAddr, primary: SocketAddr, dir: &Path) -> String {
    let (ip, port, dir) = (at.ip(), at.port(), dir.display());
    let (primary_ip, primary_port) = (primary.ip(), primary.port());
    format!(
        "port {port}\nbind {ip}\ndir {dir}\nprotected-mode no\n\
         sentinel monitor {MASTER} {primary_ip} {primary_port} 2\n\
         sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}\n\
         sentinel failover-timeout {MASTER} {FAILOVER_TIMEOUT_MS}\n\
         sentinel parallel-syncs {MASTER} 1\n"
    )
}

/// Sends one command, and returns the lines of the answer; `None` when there is none in time.
pub(super) fn ask(at: SocketAddr, words: &[&str]) -> Option<Vec<String>> {
    let mut stream = TcpStream::connect_timeout(&at, ANSWER_WITHIN).ok()?;
    stream.set_read_timeout(Some(ANSWER_WITHIN)).ok()?;
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = vec![0; 16 << 10];
    let length = stream.read(&mut answer).ok()?;
    let text = String::from_utf8_lossy(&answer[..length]).into_owned();
    let lines = text.split("\r\n").filter(|line| !line.is_empty() && !line.starts_with(['*', '$']));
    Some(lines.map(str::to_owned).collect())
}

/// Where a Sentinel says the primary is.
pub(super) fn primary(sentinel: SocketAddr) -> Option<SocketAddr> {
    let answer = ask(sentinel, &["SENTINEL", "get-master-addr-by-name", MASTER])?;
    let [ip, port] = answer.as_slice() else { return None };
    Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?))
}

/// A field of INFO.
fn info(at: SocketAddr, section: &str, field: &str) -> Option<String> {
    let answer = ask(at, &["INFO", section])?;
    let prefix = format!("{field}:");
    answer.iter().find_map(|line| line.strip_prefix(&prefix)).map(str::to_owned)
}

/// Whether it is a replica whose link to the primary is up.
pub(crate) fn is_in_step(at: SocketAddr) -> bool {
    info(at, "replication", "master_link_status").as_deref() == Some("up")
}

/// Whether it says that it is a primary.
pub(super) fn is_primary(at: SocketAddr) -> bool {
    info(at, "replication", "role").as_deref() == Some("master")
}
