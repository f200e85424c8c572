//! Load, measurement and reports for millrace gateways.
//!
//! `main.rs` assembles: it alone knows gateways from the inside, to run one as a child process. Everything here talks
//! to them as any client does. The measuring is open-loop: latency counts from when a message was due.

#![forbid(unsafe_code)]

pub mod args;
pub mod child;
pub mod clients;
pub mod compare;
pub mod costs;
pub mod floor;
pub mod ledger;
pub mod limits;
pub mod measure;
pub mod million;
pub mod payload;
pub mod progress;
pub mod report;
pub mod rig;
pub mod rng;
pub mod scenarios;
pub mod schedule;
pub mod tokens;
pub mod verify;
pub mod watch;
pub mod world;
