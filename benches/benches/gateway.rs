//! The gateway core's own hot paths.

fn main() {}
