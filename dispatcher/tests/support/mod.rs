//! What the suites of stores run on: a store with a mailbox, and a Redis of its own.

// Each suite is a program of its own, and none of them uses all of it.
#![allow(dead_code)]

pub mod cases;
pub mod kept;
pub mod model;
pub mod random;
pub mod redis;
pub mod world;
