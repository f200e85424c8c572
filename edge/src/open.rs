//! Choosing the backend: what was asked for, what this machine allows, and the reason in words for the log.

use std::fmt;
use std::io;
use std::str::FromStr;

use crate::epoll::EpollEdge;
use crate::uring::{self, UringEdge};
use crate::wake::Waker;
use crate::{Edge, limits};

/// Which backend to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Io {
    /// io_uring where it works, epoll elsewhere.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// epoll.
    Epoll,
}

/// A name that is none of the three.
#[derive(Debug, thiserror::Error)]
#[error("unknown I/O backend {0:?}: expected auto, uring or epoll")]
pub struct UnknownIo(pub String);

impl FromStr for Io {
    type Err = UnknownIo;
    fn from_str(name: &str) -> Result<Self, UnknownIo> {
        match name {
            "auto" => Ok(Self::Auto),
            "uring" | "io_uring" => Ok(Self::Uring),
            "epoll" => Ok(Self::Epoll),
            _ => Err(UnknownIo(name.to_owned())),
        }
    }
}

impl fmt::Display for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        })
    }
}

/// What an edge is made of. The sizes have defaults that fit; tests make them small.
#[derive(Clone, Debug)]
pub struct Config {
    /// Connections at most.
    pub capacity: u32,
    /// Wakes the thread that turns the edge.
    pub waker: Waker,
    /// Receive buffers at most, of [`limits::RECV_BUFFER_BYTES`] each.
    pub buffers: u32,
    /// Slots of a bank at most, if fewer than [`limits::BANK_SLOTS_MAX`] and RLIMIT_NOFILE.
    pub bank_slots: Option<u32>,
    /// Submission queue entries of a bank, a power of two.
    pub sq_entries: u32,
    /// Completion queue entries of a bank, a power of two, not below `sq_entries`.
    pub cq_entries: u32,
}

impl Config {
    /// The defaults for `capacity` connections (at least 1).
    pub fn new(capacity: u32, waker: Waker) -> Self {
        Self {
            capacity: capacity.max(1),
            waker,
            buffers: limits::POOL_BUFFERS,
            bank_slots: None,
            sq_entries: limits::SQ_ENTRIES,
            cq_entries: limits::CQ_ENTRIES,
        }
    }
}

/// Opens an edge on the calling thread, which alone may use it, and says why it has the backend it has.
///
/// # Errors
/// With [`Io::Uring`], the reason that io_uring can't be used here; otherwise what the operating system says.
pub fn open(choice: Io, config: Config) -> io::Result<(Box<dyn Edge>, String)> {
    let refused = match choice {
        Io::Epoll => return Ok((Box::new(EpollEdge::new(config)?), "epoll, as configured".to_owned())),
        Io::Auto | Io::Uring => match uring::probe::check() {
            Ok(()) => match UringEdge::new(config.clone()) {
                Ok(edge) => {
                    let why = match choice {
                        Io::Uring => "io_uring, as configured",
                        _ => "io_uring, as this kernel has all it needs",
                    };
                    return Ok((Box::new(edge), why.to_owned()));
                }
                Err(error) => format!("a bank can't be opened: {error}"),
            },
            Err(reason) => reason,
        },
    };
    if choice == Io::Uring {
        let text = format!("io_uring is configured but can't be used here: {refused}; try `auto` or `epoll`");
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    Ok((Box::new(EpollEdge::new(config)?), format!("epoll, as io_uring can't be used here: {refused}")))
}
