//! `without_io_uring CMD ARGS...` runs a command as a container does whose seccomp profile denies io_uring.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let Some(program) = args.next() else {
        eprintln!("usage: without_io_uring CMD ARGS...");
        return ExitCode::from(2);
    };
    if let Err(error) = millrace_edge::process::deny_io_uring_for_this_process() {
        eprintln!("without_io_uring: the filter was refused: {error}");
        return ExitCode::from(125);
    }
    let error = Command::new(&program).args(args).exec();
    eprintln!("without_io_uring: {}: {error}", program.display());
    ExitCode::from(127)
}
