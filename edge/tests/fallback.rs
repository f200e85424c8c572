//! Where io_uring is denied, `auto` serves over epoll and says why, and `uring` is a clear error.

use std::path::PathBuf;
use std::process::Command;

use millrace_edge::wake::Waker;
use millrace_edge::{Config, Io, open};

/// Cargo builds examples beside the tests.
fn without_io_uring() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join("examples/without_io_uring")
}

/// Runs as the child of the test below; on its own it only repeats what every machine must do.
#[test]
fn child_opens_what_it_may() {
    let denied = std::env::var_os("MILLRACE_EDGE_TEST_DENIED").is_some();
    let config = || Config::new(8, Waker::new().unwrap());
    let (edge, why) = open(Io::Auto, config()).unwrap();
    println!("auto: {why}");
    if denied {
        assert_eq!(edge.shape().backend, "epoll");
        assert!(why.contains("seccomp"), "{why}");
        let error = open(Io::Uring, config()).err().expect("io_uring is denied").to_string();
        assert!(error.contains("can't be used here") && error.contains("seccomp"), "{error}");
    } else {
        assert_eq!(open(Io::Epoll, config()).unwrap().0.shape().backend, "epoll");
    }
}

#[test]
fn a_process_without_io_uring_serves_over_epoll() {
    let output = Command::new(without_io_uring())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child_opens_what_it_may", "--nocapture"])
        .env("MILLRACE_EDGE_TEST_DENIED", "1")
        .output()
        .expect("the example is built with the tests");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("auto: epoll, as io_uring can't be used here"), "{text}");
}
