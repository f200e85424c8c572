//! When an append counts as done, and what can be lost all the same.
//!
//! How a level is met is left to the stores. The rule that keeps it right: nothing is answered before its level is met,
//! and one that was not met is answered Unavailable: its outcome is unknown, its owner claims again and finds out.

use std::fmt;
use std::str::FromStr;

/// What an answer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Embedded: the round was handed to the kernel; it is synced to disk every [`ASYNC_SYNC_MS`] at the latest. The death
    /// of the process loses nothing. The death of the machine loses what was answered since the last sync: about a tenth
    /// of a second and the length of one sync, always the newest, and no batch in part.
    ///
    /// Redis: the script was carried out, in memory; the rest is Redis's own persistence. With `appendfsync everysec` the
    /// death of its machine loses about a second, or two when its disk is slow; without `appendonly`, everything since
    /// its last snapshot. A failover loses what the promoted replica lacked.
    Async,
    /// Embedded: the round was synced (fdatasync). Nothing answered is lost by the death of the process, the kernel or
    /// power, as long as the disk keeps what it says it has synced.
    ///
    /// Redis: the script was carried out by a server with `appendonly yes` and `appendfsync always`, which syncs before
    /// it answers. Nothing answered is lost by the death of Redis or its machine, when it is started again with its
    /// disk. A failover loses what the promoted replica lacked. The server's settings are read when it is connected to,
    /// and whatever else is found there is said in [`super::Store::trouble`]; so is that they can't be read.
    Fsync,
    /// Redis alone: the script was carried out, and so many replicas had received it (WAIT), in memory. Nothing answered
    /// is lost by the loss of a primary for ever, when one of those replicas is promoted: with as many as there are, it is;
    /// with fewer, Sentinel and Cluster prefer the one that is furthest, but a partition of the network may leave them
    /// another. What is synced to which disk is each server's own `appendfsync`, as with [`Durability::Async`].
    ///
    /// A claim waits too, so that whatever its owner reads is on as many replicas. Reads without a fence, by whoever does
    /// not own the partition, don't: they may show an entry a moment before it is answered.
    Replicated(u32),
}

/// Longest time between two syncs of the embedded store under [`Durability::Async`], but for the sync itself.
pub const ASYNC_SYNC_MS: u64 = 100;

/// Replicas that can be asked for at most.
pub const REPLICAS_MAX: u32 = 16;

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Durability::Async => f.write_str("async"),
            Durability::Fsync => f.write_str("fsync"),
            Durability::Replicated(replicas) => write!(f, "replicated({replicas})"),
        }
    }
}

impl FromStr for Durability {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let replicas =
            || -> Option<u32> { text.strip_prefix("replicated(")?.strip_suffix(')')?.parse().ok() };
        match text {
            "async" => Ok(Durability::Async),
            "fsync" => Ok(Durability::Fsync),
            _ => match replicas() {
                Some(replicas @ 1..=REPLICAS_MAX) => Ok(Durability::Replicated(replicas)),
                _ => Err("async, fsync or replicated(1) to replicated(16)"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_one_name_each() {
        for level in [Durability::Async, Durability::Fsync, Durability::Replicated(2)] {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        for text in ["", "sync", "replicated", "replicated(0)", "replicated(17)", "replicated(-1)", "Fsync"] {
            assert!(text.parse::<Durability>().is_err(), "{text:?}");
        }
    }
}
