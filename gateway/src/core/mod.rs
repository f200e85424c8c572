//! The logic of one gateway shard, sans-IO: [`shard::Shard::step`] takes an [`event::Event`] and the time, and appends
//! [`action::Action`]s; [`shard::Shard::turn`] does what is due or waiting, in bounded slices.
//!
//! `shard` dispatches and leaves the work to its neighbours: `login`, `requests` and `closing` face the clients,
//! `records` and `uplink` the dispatchers, `subscriptions` and `fanout` join the two. The others are plain data
//! structures that know neither.

pub mod action;
mod admission;
mod closing;
pub mod event;
mod fanout;
pub mod limits;
mod login;
pub mod outbox;
pub mod pass;
mod records;
mod requests;
mod session;
pub mod shard;
pub mod slab;
pub mod stats;
mod subscriptions;
pub mod topics;
mod uplink;
pub mod users;
pub mod wheel;

#[cfg(test)]
mod tests;
