//! Threads, sockets, clocks, configuration: what carries bytes between the core and the world.

pub mod auth;
pub mod config;
pub mod log;
pub mod logins;
pub mod signing;
pub mod ticket;
