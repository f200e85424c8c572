//! The dispatcher's process.

#![forbid(unsafe_code)]

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const _: () =
    assert!(!millrace_protocol::planted::ON, "faults for the simulation have no place in this binary");

fn main() -> ExitCode {
    millrace_dispatcher::shell::run(std::env::args_os())
}
