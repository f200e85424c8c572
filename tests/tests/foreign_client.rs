//! A client that shares no code with this repository: Python, somebody else's WebSocket library, docs/PROTOCOL.md.

use std::process::Command;

use millrace_tests::{Server, gateway_token};

#[test]
fn python_websockets_logs_in_sends_and_receives() {
    let python = std::env::var("MILLRACE_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let data = tempfile::tempdir().expect("a directory");
    let dir = data.path().to_str().expect("a path in UTF-8");
    let gateway = Server::start(
        "millrace-gateway",
        ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir", dir],
    );
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/client.py");
    let ran = Command::new(python)
        .arg(script)
        .arg(format!("ws://{}/", gateway.address("tcp")))
        .args([gateway_token(data.path(), "alice"), gateway_token(data.path(), "bob")])
        .output()
        .expect("Python runs (tests/run installs it)");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success() && said.ends_with("all good\n"),
        "{said}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}
