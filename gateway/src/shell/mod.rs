//! Threads, sockets, clocks, configuration: what carries bytes between the core and the world.
//!
//! [`run`] starts everything. One thread per shard ([`shard`]: the edge, the core, and its [`link`]s), and one control
//! thread ([`control`]: signals, the [`lease`], keys, [`admin`]). They share nothing but immutable settings and keys,
//! and talk over bounded queues ([`talk`]).

pub mod admin;
pub mod auth;
pub mod config;
pub mod control;
pub mod lease;
pub mod link;
pub mod log;
pub mod logins;
pub mod metrics;
mod nap;
pub mod readable;
mod run;
pub mod shard;
pub mod signing;
pub mod talk;
pub mod ticket;

pub use run::{LocalDispatcher, LocalProbe, StandaloneSettings, run};
