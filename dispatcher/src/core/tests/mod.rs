//! Scenarios: a shard or several, with gateways on real link ends and a store in memory.

mod catching_up;
mod events;
mod groups;
mod lists;
mod messages;
mod outstanding;
mod owners;
mod pairs;
mod plan;
mod presence;
mod random;
mod random_changes;
mod receipts;
mod refers;
mod roles;
mod sessions;
mod typing;
mod world;
