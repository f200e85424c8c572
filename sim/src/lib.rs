//! The simulation: gateways, dispatchers and clients, their production cores, in one world that is played from a seed.
//!
//! | file | its idea |
//! |---|---|
//! | [`world`] | hands out what is due; when a run is over |
//! | [`plan`], [`schedule`], `strikes` | what a world looks like; what happens to it, and is done |
//! | [`agenda`], [`clock`], [`random`] | order, time and chance |
//! | [`network`], [`store`] | what lies between the processes, and fails |
//! | [`thread`], [`gateway`], [`dispatcher`] | processes: what their shells do |
//! | [`device`], [`copy`], [`disk`], [`application`] | clients: their shell, its copies, what they saved, what they take |
//! | [`stray`] | a client that breaks its promises |
//! | [`work`] | what their users do |
//! | [`ledger`], [`answers`], `membership`, [`listening`], [`shelf`], [`witness`] | what was promised, and whether it is kept |
//! | [`outside`], [`trace`], [`wiretap`] | what is handed around; what is told |
//! | [`run`], [`shrink`], [`report`], [`record`] | many seeds; fewer faults; what is printed; what is kept |
//! | `planted`, `findings` | rules switched off in the cores, and whether that is noticed |
//!
//! The same seed plays the same way, always and everywhere: nothing here reads a clock, a file or a random number, and
//! no map is walked in an order of its own.

#![forbid(unsafe_code)]

pub mod agenda;
pub mod answers;
pub mod application;
pub mod clock;
pub mod copy;
pub mod cuts;
pub mod device;
pub mod disk;
pub mod dispatcher;
#[cfg(feature = "planted")]
pub mod findings;
#[cfg(test)]
mod fixtures;
pub mod gateway;
pub mod ledger;
pub mod listening;
mod membership;
pub mod network;
pub mod outside;
pub mod plan;
#[cfg(feature = "planted")]
pub mod planted;
pub mod random;
pub mod record;
pub mod report;
pub mod run;
pub mod schedule;
pub mod shelf;
pub mod shrink;
pub mod store;
pub mod stray;
mod strikes;
pub mod thread;
pub mod trace;
mod wire;
pub mod wiretap;
pub mod witness;
pub mod work;
pub mod world;
