//! What the suite of stores runs on: a store with a mailbox, and a Redis of its own.

pub mod cases;
pub mod kept;
pub mod model;
pub mod redis;
pub mod world;
