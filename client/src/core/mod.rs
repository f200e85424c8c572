//! The logic of a client, sans-IO: [`Machine::step`] takes an [`Event`] and the time, and gives [`Action`]s;
//! [`Machine::next_ms`] says when it wants to be stepped again though nothing happens. No socket, thread, clock or
//! randomness is in here: a simulation runs the same code as an application, and the same seed gives the same run.
//!
//! How to drive it, in the order that it needs:
//! 1. Step [`Event::Tick`]; it asks for a token or a connection. Answer with the `conn` that the action named.
//! 2. Carry actions out in order. Requests go out in the order of their actions.
//! 3. Give it one decoded frame at a time, and none while [`Machine::reads`] is false: an application that takes
//!    nothing slows its server, and nothing grows here.
//! 4. Number what the application is told ([`Action::Tell`]) and say what it took ([`Event::Taken`]). Only that moves
//!    cursors, in [`Action::Save`] and in what the server is told.
//!
//! ```
//! use millrace_client::core::{Action, Event, Machine, Settings};
//!
//! let mut machine = Machine::new(Settings::new("gateway:7400", "phone"), 4711, [], 0);
//! assert_eq!(machine.step(0, Event::Tick), [Action::Token { conn: 1 }]);
//! let actions = machine.step(1, Event::Token { conn: 1, token: Ok("a token".into()) });
//! assert_eq!(actions, [Action::Connect { conn: 1, address: "gateway:7400".into() }]);
//! ```
//!
//! `machine` dispatches; `link` is the life of connections; `outbox` and `calls` are what goes out, `fates` what became of
//! it; `inbox` is what comes in, with `place` for one conversation, `sync` for reading logs, `acks` for what the server is
//! told, `told` for what the application has not taken, `walk` for what a login asks, and `plain` for rooms, which have no
//! cursors.

mod acks;
pub mod backoff;
pub mod calls;
mod event;
mod fates;
mod inbox;
mod link;
mod machine;
pub mod outbox;
mod place;
mod plain;
mod random;
pub mod seen;
mod settings;
mod sync;
mod told;
mod typing;
mod walk;

#[cfg(test)]
mod tests;

pub use event::{Action, EPOCHS_MAX, Event, Outgoing, Position, Saved};
pub use machine::Machine;
pub use settings::{Settings, Start};
