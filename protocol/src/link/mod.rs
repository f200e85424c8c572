//! Links: the persistent pipeline between one gateway shard and one dispatcher node.
//!
//! [`record`] is one numbered record; [`end`] is one end of a link, without sockets: it says hello, numbers, batches,
//! keeps what is unacknowledged for a resend, and grants and spends credit.

pub mod end;
mod outgoing;
pub mod record;

pub use record::{Kind, Record};
