//! The gateway: client connections on shards, forwarded over links to dispatchers.
//!
//! [`core`] decides, without sockets, threads, clocks or randomness; [`shell`] carries bytes between the core and the
//! world. Only `main.rs` (and loadgen's) joins a gateway with an in-process dispatcher.

#![forbid(unsafe_code)]

pub mod core;
pub mod shell;
