//! The logic of one gateway shard, sans-IO: [`shard::Shard::step`] takes an [`event::Event`] and the time, and appends
//! [`action::Action`]s; [`shard::Shard::turn`] does what is due or waiting, in bounded slices.
//!
//! `shard` dispatches and leaves the work to its neighbours: `login`, `requests` (with `checks`, `pending`, `parts`,
//! `rooms` and `acks`) and `closing` face the clients, `records` and `uplink` the dispatchers, `subscriptions`, `catchup`,
//! `fanout`, `direct`, `owed` and `relay` join the two. The others are plain data structures that know neither.

mod acks;
pub mod action;
mod admission;
mod catchup;
mod checks;
mod closing;
mod direct;
pub mod event;
mod fanout;
pub mod limits;
mod listeners;
mod login;
pub mod outbox;
mod owed;
mod partitions;
mod parts;
pub mod pass;
mod pending;
mod records;
mod relay;
mod requests;
mod resync;
mod rooms;
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
