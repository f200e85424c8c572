//! What tests over several processes share: finding the binaries, starting servers and ending them by their pid.
//!
//! Every server is a child that is killed when its handle is dropped, also when a test panics.

mod fleet;
mod http;
mod redis;
mod server;

pub use fleet::{Fleet, Shape, key_args, user_token, write_keys};
pub use http::get;
pub use redis::Redis;
pub use server::{Server, binary, free_port, gateway_token, wait_ready, wait_until};
