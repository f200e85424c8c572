//! Scenarios: a shard or several, with gateways on real link ends and a store in memory.

mod catching_up;
mod groups;
mod messages;
mod outstanding;
mod owners;
mod plan;
mod random;
mod receipts;
mod refers;
mod roles;
mod sessions;
mod world;
