//! The wire, sans-IO: what is said between clients and gateways and between gateways and dispatchers.
//!
//! Everything here turns bytes into values and values into bytes. No socket, thread, clock or randomness: `now` and
//! seeds come in as arguments, so that the same code runs in production, in loadgen and in simulation.

pub mod client_session;
pub mod conversation;
pub mod deframe;
pub mod frame;
pub mod ids;
pub mod link;
pub mod messages;
pub mod peek;
pub mod planted;
pub mod received;
pub mod request;
pub mod transport;
pub mod ws;

pub use bytes;
pub use prost;
