//! `costs`: what messages cost on each store and durability level.
//!
//! For each store a fleet of its own ([`fleet`]) with one gateway shard and one dispatcher shard, and four parts one after
//! the other ([`run`]): direct messages and messages to groups as fast as they are acknowledged ([`flow`]), a device that
//! reads what it missed ([`catch_up`]), and a login with many conversations ([`log_in`]). Clients are on one thread
//! ([`desk`]). The rule: parts differ between stores in nothing but the store.

mod catch_up;
mod desk;
mod fleet;
mod flow;
mod line;
mod log_in;
mod report;
mod run;
mod sender;
pub mod store;
mod table;
mod window;

use std::path::PathBuf;

use millrace_edge::Io;

use self::sender::WINDOW_MAX;
use self::store::{STORES, Store};
use crate::args::{ArgsError, bad, can_be_written};
use crate::payload;

pub use self::report::CostsReport;
pub use self::run::run;

/// Payloads at most: a full window of them is half of what may wait on a connection.
const PAYLOAD_BYTES_MAX: usize = 8_192;

/// Flags of `costs`.
#[derive(Clone, Debug, clap::Args)]
pub struct CostsArgs {
    /// Stores and levels: embedded, embedded-async, redis-async, redis-fsync, redis-replicated [default: all that this
    /// machine has]
    #[arg(long, value_name = "STORE,…", value_delimiter = ',')]
    pub store: Option<Vec<Store>>,
    /// Pairs that send direct messages, one way
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub pairs: u32,
    /// Groups of ten members, of which one sends and two are online
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub groups: u32,
    /// Unacknowledged messages of each sender
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub window: usize,
    /// Bytes of a message's payload
    #[arg(long, visible_alias = "payload", value_name = "BYTES", default_value_t = 128)]
    pub payload_bytes: usize,
    /// How long direct messages, and then messages to groups, are measured
    #[arg(long, value_name = "S", default_value_t = 5.0, allow_negative_numbers = true)]
    pub seconds: f64,
    /// Messages that a device missed
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub missed: u32,
    /// Conversations of the user who logs in
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub conversations: u32,
    /// Devices that read what they missed, and that log in
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub repeat: u32,
    /// Sockets of the clients through auto, uring or epoll
    #[arg(long, value_name = "BACKEND", default_value = "auto")]
    pub io: Io,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as one HTML page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

impl CostsArgs {
    fn check(&self) -> Result<(), ArgsError> {
        for (flag, value, most) in [
            ("pairs", self.pairs, 1_000),
            ("groups", self.groups, 1_000),
            ("missed", self.missed, 1_000_000),
            ("conversations", self.conversations, 1_000),
            ("repeat", self.repeat, 50),
        ] {
            if !(1..=most).contains(&value) {
                return bad(flag, value, format!("1 to {most}"));
            }
        }
        if !(1..=WINDOW_MAX).contains(&self.window) {
            return bad("window", self.window, format!("1 to {WINDOW_MAX}"));
        }
        if !(payload::HEADER_BYTES..=PAYLOAD_BYTES_MAX).contains(&self.payload_bytes) {
            let expected = format!("{} to {PAYLOAD_BYTES_MAX}", payload::HEADER_BYTES);
            return bad("payload-bytes", self.payload_bytes, expected);
        }
        if !(0.1..=300.0).contains(&self.seconds) {
            return bad("seconds", self.seconds, "0.1 to 300");
        }
        for (flag, path) in [("json", &self.json), ("html", &self.html)] {
            if let Some(path) = path.as_deref().filter(|path| !can_be_written(path)) {
                return bad(flag, path.display(), "a file in a directory that exists");
            }
        }
        Ok(())
    }

    /// What is to be run, each once and in the order of the report.
    fn stores(&self) -> Vec<Store> {
        let asked = self.store.as_deref().unwrap_or(&STORES);
        STORES.into_iter().filter(|store| asked.contains(store)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: CostsArgs,
    }

    #[test]
    fn stores_are_run_once_and_in_order() {
        let stores = |flags: &[&str]| Line::parse_from(["costs"].iter().chain(flags)).args.stores();
        assert_eq!(stores(&[]), STORES);
        let asked = stores(&["--store", "redis-fsync,embedded,embedded"]);
        assert_eq!(asked, [Store::Embedded, Store::RedisFsync]);
        assert!(Line::try_parse_from(["costs", "--store", "sqlite"]).is_err());
    }

    #[test]
    fn nonsense_is_refused_by_its_flag() {
        assert!(Line::parse_from(["costs"]).args.check().is_ok());
        for flags in [
            ["--pairs", "0"],
            ["--groups", "1001"],
            ["--window", "65"],
            ["--payload-bytes", "23"],
            ["--payload-bytes", "8193"],
            ["--seconds", "0"],
            ["--seconds", "nan"],
            ["--missed", "0"],
            ["--conversations", "1001"],
            ["--repeat", "51"],
            ["--json", "/no/such/directory/report.json"],
        ] {
            let error =
                Line::parse_from(["costs"].iter().chain(&flags)).args.check().unwrap_err().to_string();
            assert!(error.starts_with(flags[0]), "{error}");
        }
    }
}
