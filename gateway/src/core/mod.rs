//! The logic of one gateway shard, sans-IO: [`shard::Shard::step`] takes an [`event::Event`] and the time, and appends
//! [`action::Action`]s.

pub mod action;
pub mod event;
