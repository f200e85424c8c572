//! The clients of a schedule: sans-IO machines ([`line`], [`device`], [`auditor`]), and the thread's loop that carries
//! their bytes ([`crowd`]).

pub mod auditor;
pub mod cast;
pub mod crowd;
pub mod device;
pub mod line;
mod seat;

pub use self::seat::Counts;
