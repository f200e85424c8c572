//! The machine against a server that keeps the rules and fails in every way that they allow.

mod cuts;
mod fates;
mod own;
mod random;
mod scenarios;
mod server;
mod world;
