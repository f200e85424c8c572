//! Who may import whom. The rule is in docs/ARCHITECTURE.md; this test reads the sources and enforces it.

use std::fs;
use std::path::{Path, PathBuf};

/// (place, crates of the workspace that it may name, sources of the outside world that it may not name)
struct Rule {
    place: &'static str,
    may: &'static [&'static str],
    /// Files that assemble across, and may name anything.
    except: &'static [&'static str],
    pure: bool,
}

const RULES: &[Rule] = &[
    Rule { place: "protocol/src", may: &[], except: &[], pure: true },
    Rule { place: "edge/src", may: &[], except: &[], pure: false },
    Rule { place: "gateway/src/core", may: &["protocol"], except: &[], pure: true },
    Rule { place: "gateway/src", may: &["gateway", "protocol", "edge"], except: &["main.rs"], pure: false },
    Rule { place: "dispatcher/src/core", may: &["protocol"], except: &[], pure: true },
    Rule {
        place: "dispatcher/src",
        may: &["dispatcher", "protocol", "edge"],
        except: &["main.rs"],
        pure: false,
    },
    Rule { place: "client/src", may: &["protocol"], except: &[], pure: false },
    // The simulation plays the shells' part: the cores, what the shells decide by, and nothing of the outside world.
    Rule {
        place: "sim/src",
        may: &["sim", "protocol", "gateway", "dispatcher", "client"],
        except: &["main.rs", "run.rs", "planted.rs"],
        pure: true,
    },
    Rule { place: "loadgen/src", may: &["loadgen", "protocol", "edge"], except: &["main.rs"], pure: false },
];

const CRATES: &[&str] =
    &["protocol", "edge", "gateway", "dispatcher", "client", "loadgen", "sim", "benches", "tests"];

/// What a sans-IO part may not touch: sockets, threads, clocks, randomness, files, runtimes.
const IMPURE: &[&str] = &[
    "std::net::Tcp",
    "std::net::Udp",
    "std::os::",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "Instant::now",
    "SystemTime::now",
    "std::fs",
    "std::env",
    "std::process",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "monoio",
    "tokio",
    "fred::",
    "fjall",
    "getrandom",
    "rand::",
    "crossbeam",
    "dashmap",
    "libc::",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// The code of a file up to its tests, without comments. Tests may import what they like.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a source file");
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn is_test_file(path: &Path) -> bool {
    let name = path.file_stem().and_then(|n| n.to_str()).unwrap_or_default();
    name == "tests" || name.ends_with("_tests") || path.components().any(|c| c.as_os_str() == "tests")
}

fn names_crate(code: &str, name: &str) -> bool {
    let wanted = format!("millrace_{name}");
    code.match_indices(&wanted).any(|(at, _)| {
        let after = code[at + wanted.len()..].chars().next();
        !after.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

#[test]
fn imports_follow_the_architecture() {
    let mut wrong = Vec::new();
    for rule in RULES {
        let mut files = Vec::new();
        let dir = root().join(rule.place);
        sources(&dir, &mut files);
        assert!(!files.is_empty(), "{} holds no source: the rule is out of date", rule.place);
        for file in files {
            let shown = file.strip_prefix(root()).expect("below the root").display().to_string();
            // The shells' tests beside the code and `tests` modules may look further.
            let relative = file.strip_prefix(&dir).expect("below the place").display().to_string();
            if rule.except.contains(&relative.as_str()) || is_test_file(file.strip_prefix(&dir).unwrap()) {
                continue;
            }
            let code = code(&file);
            for name in CRATES {
                if names_crate(&code, name) && !rule.may.contains(name) {
                    wrong.push(format!("{shown} names millrace_{name}"));
                }
            }
            if rule.pure {
                for outside in IMPURE.iter().filter(|outside| code.contains(**outside)) {
                    wrong.push(format!("{shown} is sans-IO but names {outside}"));
                }
            }
            if rule.place.ends_with("/core") && code.contains("crate::shell") {
                wrong.push(format!("{shown}: a core names its shell"));
            }
        }
    }
    assert!(wrong.is_empty(), "imports against docs/ARCHITECTURE.md:\n  {}", wrong.join("\n  "));
}

#[test]
fn a_planted_import_is_found() {
    assert!(names_crate("use millrace_gateway::core;", "gateway"));
    assert!(names_crate("millrace_edge", "edge"));
    assert!(!names_crate("use millrace_gateway_extra::x;", "gateway"));
}

#[test]
fn unsafe_stays_in_the_edge() {
    let mut wrong = Vec::new();
    for name in CRATES.iter().filter(|name| **name != "edge") {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).expect("a manifest");
        if !manifest.contains("[lints]\nworkspace = true") {
            wrong.push(format!("{name}/Cargo.toml does not take the workspace's lints"));
        }
        let mut files = Vec::new();
        sources(&root().join(name), &mut files);
        for file in files {
            let text = fs::read_to_string(&file).expect("a source file");
            if text.contains(&format!("allow({}", "unsafe")) {
                wrong.push(format!("{} allows unsafe code", file.display()));
            }
        }
    }
    let workspace = fs::read_to_string(root().join("Cargo.toml")).expect("the manifest");
    assert!(workspace.contains("unsafe_code = \"forbid\""), "the workspace no longer forbids unsafe code");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nobody_imports_benches() {
    for name in CRATES.iter().filter(|name| **name != "benches") {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).expect("a manifest");
        assert!(!manifest.contains("millrace-benches"), "{name} depends on benches");
    }
}
