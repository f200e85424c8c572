//! The listener for gateways: reads the first record of a connection, the hello, to learn whose link it is, and hands
//! the socket to the shard where that link is at home.
//!
//! A peer that belongs elsewhere is told who answered, so that its own log can say what is wrong, and is closed: it
//! must not replace the link of one of our gateways. Number, time and bytes of a hello are bounded.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace_protocol::link::Kind;
use millrace_protocol::link::end::{LINK_VERSION, LinkEnd, LinkLimits};
use millrace_protocol::link::record::HEADER_BYTES;
use millrace_protocol::messages::link::Hello;
use millrace_protocol::prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::limits::{FAREWELL_MS, HELLO_BYTES_MAX, HELLO_TIMEOUT_MS, HELLOS_MAX};
use super::log;
use super::node::Shards;
use super::shard::Command;
use crate::core::event::LinkKey;

/// Pause after an accept that failed for want of descriptors or memory, so that it does not become a loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a connection is not a link.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("it did not say hello within {HELLO_TIMEOUT_MS} ms")]
    Late,
    #[error("it closed before its hello was whole")]
    Closed,
    #[error("its first record is of kind {0}, not a hello")]
    NotHello(u8),
    #[error("a hello of {0} bytes; {HEADER_BYTES} to {HELLO_BYTES_MAX} are allowed")]
    Length(usize),
    #[error("its hello cannot be read")]
    Unreadable,
    #[error("role {0:?} is not a gateway's")]
    Role(String),
    #[error("gateway id {0} or shard {1} is out of range (1 to 4095, 0 to 255)")]
    Key(u32, u32),
    #[error("it is of cluster {theirs:?}, this node of {ours:?}: check both configurations")]
    Cluster { ours: String, theirs: String },
    #[error("it speaks link version {theirs}, this node {ours}: run the same release on both")]
    Version { ours: u32, theirs: u32 },
    #[error("it counts {theirs} partitions, this node {ours}: the number is fixed when a cluster is created")]
    Partitions { ours: u32, theirs: u32 },
}

/// Whose link this is, if it may be one of ours.
fn link_of(hello: &Hello, ours: &Hello) -> Result<LinkKey, Refused> {
    if hello.version != LINK_VERSION {
        return Err(Refused::Version { ours: LINK_VERSION, theirs: hello.version });
    }
    if hello.cluster != ours.cluster {
        return Err(Refused::Cluster { ours: ours.cluster.clone(), theirs: hello.cluster.clone() });
    }
    if hello.partitions != ours.partitions {
        return Err(Refused::Partitions { ours: ours.partitions, theirs: hello.partitions });
    }
    if hello.role != "gateway" {
        return Err(Refused::Role(hello.role.clone()));
    }
    match (u16::try_from(hello.gateway), u8::try_from(hello.shard)) {
        (Ok(gateway @ 1..=4095), Ok(shard)) => Ok(LinkKey { gateway, shard }),
        _ => Err(Refused::Key(hello.gateway, hello.shard)),
    }
}

/// Length of the whole first record, from its header.
fn hello_length(header: &[u8; HEADER_BYTES]) -> Result<usize, Refused> {
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    if header[4] != Kind::Hello as u8 {
        return Err(Refused::NotHello(header[4]));
    }
    if !(HEADER_BYTES..=HELLO_BYTES_MAX).contains(&length) {
        return Err(Refused::Length(length));
    }
    Ok(length)
}

/// Reads exactly the first record, and nothing beyond it.
async fn read_hello(stream: &mut TcpStream) -> Result<(Hello, Bytes), Refused> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await.map_err(|_| Refused::Closed)?;
    let mut record = vec![0; hello_length(&header)?];
    record[..HEADER_BYTES].copy_from_slice(&header);
    stream.read_exact(&mut record[HEADER_BYTES..]).await.map_err(|_| Refused::Closed)?;
    let record = Bytes::from(record);
    let hello = Hello::decode(record.slice(HEADER_BYTES..)).map_err(|_| Refused::Unreadable)?;
    Ok((hello, record))
}

impl Refused {
    /// Whether it spoke as a link does: it will understand who answers.
    fn said_hello(&self) -> bool {
        match self {
            Refused::Late | Refused::Closed | Refused::NotHello(_) => false,
            Refused::Length(_) | Refused::Unreadable => false,
            Refused::Version { .. } | Refused::Cluster { .. } | Refused::Partitions { .. } => true,
            Refused::Role(_) | Refused::Key(..) => true,
        }
    }
}

/// Says who this is to a peer that will not be served, and gives it the time to hang up.
async fn introduce(stream: &mut TcpStream, ours: &Hello) {
    let mut end = LinkEnd::new(ours.clone(), LinkLimits::default());
    end.connected();
    while let Some(bytes) = end.transmit() {
        // It may be gone; the close that follows says the rest.
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
    let mut rest = [0; 512];
    while stream.read(&mut rest).await.is_ok_and(|count| count > 0) {}
}

async fn admit(mut stream: TcpStream, peer: SocketAddr, shards: &Shards, ours: &Hello) {
    let wait = Duration::from_millis(HELLO_TIMEOUT_MS);
    let answer = match timeout(wait, read_hello(&mut stream)).await {
        Err(_) => Err(Refused::Late),
        Ok(Err(refused)) => Err(refused),
        Ok(Ok((hello, first))) => link_of(&hello, ours).map(|link| (link, first)),
    };
    let (link, first) = match answer {
        Ok(link) => link,
        Err(refused) => {
            log::warn(format_args!("connection from {peer} refused: {refused}"));
            if refused.said_hello() {
                let _ = timeout(Duration::from_millis(FAREWELL_MS), introduce(&mut stream, ours)).await;
            }
            return;
        }
    };
    match stream.into_std() {
        Ok(socket) => {
            // A full queue drops the socket: the gateway tries again, with backoff.
            if shards.home(link).send(Command::Socket { link, socket, first }).is_err() {
                log::warn(format_args!("link of gateway {}/{}: its shard is busy", link.gateway, link.shard));
            }
        }
        Err(error) => log::warn(format_args!("connection from {peer}: {error}")),
    }
}

/// Accepts until the task is dropped.
pub(crate) async fn run(listener: TcpListener, shards: Arc<Shards>, ours: Hello) {
    let hellos = Arc::new(Semaphore::new(HELLOS_MAX));
    let ours = Arc::new(ours);
    loop {
        let Ok(turn) = Arc::clone(&hellos).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (shards, ours) = (Arc::clone(&shards), Arc::clone(&ours));
                tokio::spawn(async move {
                    admit(stream, peer, &shards, &ours).await;
                    drop(turn);
                });
            }
            Err(error) => {
                log::warn(format_args!("accept: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Hello {
        Hello { version: LINK_VERSION, cluster: "c".into(), partitions: 64, ..Default::default() }
    }

    #[test]
    fn only_our_own_gateways_become_links() {
        let good = Hello { role: "gateway".into(), gateway: 7, shard: 3, ..ours() };
        assert_eq!(link_of(&good, &ours()), Ok(LinkKey { gateway: 7, shard: 3 }));
        let table = [
            (Hello { version: 99, ..good.clone() }, Refused::Version { ours: LINK_VERSION, theirs: 99 }),
            (
                Hello { cluster: "d".into(), ..good.clone() },
                Refused::Cluster { ours: "c".into(), theirs: "d".into() },
            ),
            (Hello { partitions: 65, ..good.clone() }, Refused::Partitions { ours: 64, theirs: 65 }),
            (Hello { role: "client".into(), ..good.clone() }, Refused::Role("client".into())),
            (Hello { gateway: 0, ..good.clone() }, Refused::Key(0, 3)),
            (Hello { gateway: 4096, ..good.clone() }, Refused::Key(4096, 3)),
            (Hello { shard: 256, ..good.clone() }, Refused::Key(7, 256)),
        ];
        for (hello, refused) in table {
            assert_eq!(link_of(&hello, &ours()), Err(refused));
        }
    }

    #[test]
    fn a_first_record_that_is_no_hello_is_refused_by_its_header() {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&100u32.to_le_bytes());
        header[4] = Kind::Hello as u8;
        assert_eq!(hello_length(&header), Ok(100));
        header[..4].copy_from_slice(&31u32.to_le_bytes());
        assert_eq!(hello_length(&header), Err(Refused::Length(31)));
        header[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(hello_length(&header), Err(Refused::Length(u32::MAX as usize)));
        header[4] = b'G';
        assert_eq!(hello_length(&header), Err(Refused::NotHello(b'G')));
    }
}
