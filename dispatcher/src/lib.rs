//! The dispatcher: partitions that order, store and route messages.
//!
//! [`core`] decides, without sockets, threads, clocks or randomness; [`store`] keeps logs, groups, routes and leases;
//! [`shell`] carries bytes and jobs between them and the world.

#![forbid(unsafe_code)]

pub mod core;
pub mod shell;
pub mod store;
