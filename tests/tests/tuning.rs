//! What tuning/ promises: check.sh names the limit that is hit first, every kernel setting says why it is there, and
//! the servers work under the seccomp profile while nothing that it does not name gets through.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use millrace_client::{Client, Config, Event, conversation};
use millrace_tests::{Redis, Server, free_port, gateway_token, get};

fn tuning(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("tuning").join(file)
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

/// A machine that is not there: a directory with what check.sh reads below /proc and /sys.
struct Machine(tempfile::TempDir);

impl Machine {
    /// One that holds a million sessions with both ends: 8 CPUs, 64 GiB, and the settings as advised.
    fn fit() -> Machine {
        let machine = Machine(tempfile::tempdir().expect("a directory"));
        machine.set("proc/meminfo", "MemTotal: 67108864 kB\nMemAvailable: 62914560 kB\n");
        machine.limits("20000", "unlimited");
        machine.set("proc/self/status", "CapEff:\t0000000000000000\nCpus_allowed_list:\t0-3,8-11\n");
        machine.set("proc/self/cgroup", "0::/app/gateway\n");
        machine.set("proc/sys/kernel/osrelease", "6.8.0-31-generic\n");
        machine.set("proc/sys/fs/file-nr", "1000\t0\t9223372036854775807\n");
        let settings = fs::read_to_string(tuning("99-millrace.sysctl.conf")).expect("the settings");
        for line in settings.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, value)) = line.split_once('=') {
                machine.set(&format!("proc/sys/{}", name.trim().replace('.', "/")), value.trim());
            }
        }
        machine.set("proc/sys/fs/file-max", "9223372036854775807\n");
        machine
    }

    fn set(&self, file: &str, content: &str) {
        let path = self.0.path().join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, content).expect("a file");
    }

    fn limits(&self, files: &str, locked: &str) {
        let line = |name: &str, value: &str| format!("{name:<25} {value:<20} {value:<20} units\n");
        let lines = [line("Max open files", files), line("Max locked memory", locked)];
        self.set("proc/self/limits", &lines.concat());
    }

    fn check(&self, args: &[&str]) -> Output {
        Command::new(tuning("check.sh"))
            .args(args)
            .env("MILLRACE_CHECK_ROOT", self.0.path())
            .output()
            .expect("bash runs check.sh")
    }

    /// Exit status, and the limit that is said to be hit first.
    fn first_limit(&self, sessions: &str, role: &str) -> (Option<i32>, String) {
        let output = self.check(&["--sessions", sessions, "--role", role]);
        assert!(output.stderr.is_empty(), "{}", text(&output));
        let said = String::from_utf8_lossy(&output.stdout);
        let verdict = said.lines().last().expect("a verdict");
        let (_, first) = verdict.split_once(": ").expect("a limit in the verdict");
        let (name, _) = first.rsplit_once(", at ").expect("how many it holds");
        (output.status.code(), name.to_owned())
    }
}

/// How a machine differs from a fit one.
type Change = fn(&Machine);

const MILLION: &str = "1000000";

#[test]
fn a_machine_with_all_as_advised_holds_a_million() {
    let machine = Machine::fit();
    assert_eq!(machine.first_limit(MILLION, "server").0, Some(0));
    assert_eq!(machine.first_limit(MILLION, "both").0, Some(0));
    assert_eq!(machine.first_limit("100000000", "server").0, Some(1));
    let output = machine.check(&[]);
    assert!(output.status.success() && text(&output).contains("All as advised."), "{}", text(&output));
}

#[test]
fn the_limit_that_is_hit_first_is_named() {
    let cases: &[(&str, Change, &str, &str)] = &[
        (
            "8 GiB",
            |m| m.set("proc/meminfo", "MemAvailable: 8388608 kB\n"),
            "server",
            "memory, a message to all",
        ),
        (
            "a cgroup above allows 6 GiB, and 5 are used of which 4 are cache",
            |m| {
                m.set("sys/fs/cgroup/app/memory.max", "6442450944\n");
                m.set("sys/fs/cgroup/app/memory.current", "5368709120\n");
                m.set("sys/fs/cgroup/app/memory.stat", "anon 1\ninactive_file 4294967296\n");
                m.set("sys/fs/cgroup/app/gateway/memory.max", "max\n");
            },
            "server",
            "cgroup memory, a message to all",
        ),
        (
            "the same under version 1",
            |m| {
                m.set("proc/self/cgroup", "4:memory:/app\n1:cpu:/\n0::/\n");
                m.set("sys/fs/cgroup/memory/app/memory.limit_in_bytes", "4294967296\n");
                m.set("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
            },
            "server",
            "cgroup memory, a message to all",
        ),
        (
            "tcp_mem of a small machine",
            |m| m.set("proc/sys/net/ipv4/tcp_mem", "190000\t253000\t380000\n"),
            "server",
            "net.ipv4.tcp_mem",
        ),
        (
            "1,000 descriptors: small rings, and too few",
            |m| m.limits("1000", "unlimited"),
            "server",
            "open files (io_uring)",
        ),
        (
            "no io_uring: a descriptor for each client",
            |m| m.set("proc/sys/kernel/io_uring_disabled", "2\n"),
            "server",
            "open files (epoll)",
        ),
        (
            "a kernel without deferred task running",
            |m| m.set("proc/sys/kernel/osrelease", "5.15.0\n"),
            "server",
            "open files (epoll)",
        ),
        ("8 MiB may be locked", |m| m.limits("20000", "8388608"), "server", "locked memory (RLIMIT_MEMLOCK)"),
        (
            "half as many rings with both ends",
            |m| m.limits("20000", "18874368"),
            "both",
            "locked memory (RLIMIT_MEMLOCK)",
        ),
        ("files of the machine", |m| m.set("proc/sys/fs/file-max", "1800000\n"), "both", "fs.file-max"),
        (
            "conntrack at work",
            |m| {
                m.set("proc/sys/net/netfilter/nf_conntrack_max", "262144\n");
                m.set("proc/sys/net/netfilter/nf_conntrack_count", "17\n");
            },
            "server",
            "nf_conntrack_max",
        ),
        (
            "few ports",
            |m| m.set("proc/sys/net/ipv4/ip_local_port_range", "60000\t65535\n"),
            "both",
            "ip_local_port_range",
        ),
        ("one CPU for both ends", |m| m.set("proc/self/status", "Cpus_allowed_list:\t3\n"), "both", "cores"),
        (
            "a quota of half a CPU",
            |m| m.set("sys/fs/cgroup/app/cpu.max", "50000 100000\n"),
            "server",
            "cores",
        ),
    ];
    for (what, change, role, first) in cases {
        let machine = Machine::fit();
        change(&machine);
        assert_eq!(machine.first_limit(MILLION, role), (Some(1), (*first).to_owned()), "{what}");
        assert_eq!(machine.first_limit("1000", role).0, Some(0), "{what}: a thousand still fit");
    }
}

#[test]
fn what_does_not_count_is_not_counted() {
    let cases: &[(&str, Change)] = &[
        ("ports of others' machines", |m| {
            m.set("proc/sys/net/ipv4/ip_local_port_range", "60000\t65535\n");
        }),
        ("conntrack that tracks nothing", |m| {
            m.set("proc/sys/net/netfilter/nf_conntrack_max", "262144\n");
            m.set("proc/sys/net/netfilter/nf_conntrack_count", "0\n");
        }),
        ("locked memory of root", |m| {
            m.limits("20000", "8388608");
            m.set("proc/self/status", "CapEff:\t000001ffffffffff\nCpus_allowed_list:\t0-7\n");
        }),
        ("orphans of a storm", |m| m.set("proc/sys/net/ipv4/tcp_max_orphans", "8192\n")),
    ];
    for (what, change) in cases {
        let machine = Machine::fit();
        change(&machine);
        assert_eq!(machine.first_limit(MILLION, "server").0, Some(0), "{what}");
    }
}

#[test]
fn a_machine_that_shows_nothing_is_no_error() {
    let machine = Machine(tempfile::tempdir().expect("a directory"));
    // One CPU and no io_uring are assumed, and nothing else is known.
    assert_eq!(machine.first_limit(MILLION, "both"), (Some(1), "cores".to_owned()));
    assert!(text(&machine.check(&["--sessions", MILLION])).contains("open files (epoll)"));
    assert_eq!(machine.check(&[]).status.code(), Some(1));
}

#[test]
fn settings_that_differ_are_named_with_their_cost() {
    let machine = Machine::fit();
    machine.set("proc/sys/net/core/somaxconn", "128\n");
    machine.set("proc/sys/net/ipv4/ip_local_port_range", "1024 65535\n");
    machine.set("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304\n");
    machine.limits("1024", "8388608");
    let output = machine.check(&[]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let parts = [
        "LOW   net.core.somaxconn = 128, advised 65535",
        "SYN",
        "port 7400 = inside 1024-65535",
        "HIGH  net.ipv4.tcp_wmem = 4096 16384 4194304, advised 4096 16384 1048576",
        "LOW   ulimit -Hn (nofile) = 1024",
        "LOW   ulimit -Hl (memlock) = 8192 KiB",
        "8 setting(s) are not as advised",
    ];
    for part in parts {
        assert!(said.contains(part), "no '{part}' in\n{said}");
    }
}

#[test]
fn arguments_that_cannot_be_are_refused() {
    let machine = Machine::fit();
    let cases: &[&[&str]] = &[
        &["--sessions"],
        &["--sessions", "0"],
        &["--sessions", "many"],
        &["--sessions", "1e6"],
        &["--role", "server"],
        &["--sessions", "5", "--role", "client"],
        &["million"],
    ];
    for args in cases {
        let output = machine.check(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output));
        assert!(output.stdout.is_empty() && text(&output).contains("usage"), "{args:?}: {}", text(&output));
    }
}

#[test]
fn every_kernel_setting_says_why_and_is_in_the_guide() {
    let settings = fs::read_to_string(tuning("99-millrace.sysctl.conf")).expect("the settings");
    let guide = fs::read_to_string(tuning("README.md")).expect("the guide");
    let mut names = Vec::new();
    for block in settings.split("\n\n").skip(1) {
        let (reason, set): (Vec<_>, Vec<_>) = block.lines().partition(|line| line.starts_with('#'));
        assert_eq!(set.len(), 1, "one setting for each reason: {block}");
        let name = set[0].split_once('=').expect("name = value").0.trim();
        assert!(reason.concat().len() > 60, "{name} has no reason above it");
        assert!(guide.contains(&format!("`{name}`")), "tuning/README.md does not say what {name} moves");
        names.push(name);
    }
    let lines = settings.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count();
    assert_eq!(names.len(), lines, "a setting stands outside a block");
    let total = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), total, "a setting is there twice");
}

// ---- the seccomp profile ----

fn python() -> String {
    let asked = std::env::var("MILLRACE_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(asked).args(["-c", "import sys; print(sys.executable)"]).output();
    let found = found.expect("python3 (tests/run installs it)");
    String::from_utf8(found.stdout).expect("a path").trim().to_owned()
}

/// Whether this machine can load a filter; where it has no libseccomp, the tests of the profile say so and end.
fn filters() -> bool {
    let ran = Command::new(python()).arg(tuning("seccomp-run.py")).args(["--strict", "true"]).output();
    let ran = ran.expect("Python runs");
    let missing = text(&ran).contains("libseccomp.so.2: cannot open");
    assert!(ran.status.success() || missing, "{}", text(&ran));
    if missing {
        eprintln!("no libseccomp.so.2 here: the profile is not tried");
    }
    !missing
}

/// A server under the profile. Strictly: any call that the profile does not name ends it with SIGSYS, so that it
/// can't work with a call refused unseen. The runner turns into the server, under the same process id.
fn confined(name: &str, options: &[&str], args: &[&str]) -> Server {
    let server = millrace_tests::binary(name);
    let runner = tuning("seccomp-run.py");
    let mut all = vec![runner.to_str().expect("UTF-8"), "--strict"];
    all.extend(options);
    all.push(server.to_str().expect("UTF-8"));
    all.extend(args);
    // An absolute path is taken as it is.
    Server::start(&python(), all)
}

/// Two people log in, one writes to the other, and it arrives.
async fn talk(address: &str, tokens: [String; 2]) {
    let [first, second] = tokens;
    let (alice, _events) = Client::connect(Config::new([address], first)).await.expect("a login");
    let (bob, mut events) = Client::connect(Config::new([address], second)).await.expect("a login");
    alice.send(&conversation::direct("alice", "bob"), "through the filter").await.expect("stored");
    let heard = async {
        loop {
            if let Some(Event::Message(message)) = events.next().await {
                break message.payload;
            }
        }
    };
    let heard = tokio::time::timeout(Duration::from_secs(10), heard).await.expect("a message in time");
    assert_eq!(&heard[..], b"through the filter");
    alice.logout().await;
    bob.logout().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_gateway_works_under_the_profile() {
    if !filters() {
        return;
    }
    for io in ["uring", "epoll"] {
        let data = tempfile::tempdir().expect("a directory");
        let dir = data.path().to_str().expect("UTF-8");
        let args = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--shards", "2", "--data-dir", dir];
        let server = confined("millrace-gateway", &[], &[&args[..], &["--io", io]].concat());
        let tokens = ["alice", "bob"].map(|user| gateway_token(data.path(), user));
        talk(&server.address("tcp"), tokens).await;
        assert_eq!(get(&server.address("admin"), "/metrics").expect("metrics").0, 200);
        server.signal("HUP");
        assert!(server.terminate(Duration::from_secs(20)).success(), "{io}: an orderly end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_works_under_the_profile() {
    if !filters() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let secret = |name: &str| {
        let path = dir.path().join(name);
        fs::write(&path, name.repeat(48)).expect("a secret");
        path.to_str().expect("UTF-8").to_owned()
    };
    let (keys, tickets) = (secret("h"), secret("t"));
    let redis = Redis::start();
    let address = format!("127.0.0.1:{}", free_port());
    let url = redis.url();
    let dispatcher = confined(
        "millrace-dispatcher",
        &[],
        &["--listen", &address, "--admin", "127.0.0.1:0", "--name", "d", "--redis", &url, "--shards", "1"],
    );
    // By name, so that the name lookup runs under the filter too.
    let by_name = address.replace("127.0.0.1", "localhost");
    let keys =
        ["--auth-hs256", "true", "--auth-hs256-secret-file", &keys, "--auth-ticket-secret-file", &tickets];
    let listen = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--gateway-id", "1", "--shards", "1"];
    let args = [&listen[..], &["--dispatchers", &by_name, "--io", "uring"], &keys].concat();
    let gateway = confined("millrace-gateway", &[], &args);
    gateway.wait_ready();
    let tokens = ["alice", "bob"].map(|user| {
        let made = Command::new(millrace_tests::binary("millrace-gateway"))
            .args(["token", "--user", user])
            .args(keys)
            .output()
            .expect("millrace-gateway runs");
        assert!(made.status.success(), "{}", text(&made));
        text(&made).trim().to_owned()
    });
    talk(&gateway.address("tcp"), tokens).await;
    assert!(gateway.terminate(Duration::from_secs(20)).success(), "the gateway's orderly end");
    assert!(dispatcher.terminate(Duration::from_secs(20)).success(), "the dispatcher's orderly end");
}

#[test]
fn the_profile_refuses_what_it_does_not_name() {
    if !filters() {
        return;
    }
    let run = |options: &[&str], code: &str| {
        let runner = tuning("seccomp-run.py");
        let ran = Command::new(python()).arg(runner).args(options).args([&python(), "-c", code]).output();
        ran.expect("Python runs")
    };
    let opens_a_namespace = "import ctypes; c = ctypes.CDLL(None, use_errno=True); print(c.unshare(0x10000000), ctypes.get_errno())";
    assert_eq!(text(&run(&[], opens_a_namespace)), "-1 1\n", "EPERM");
    assert!(run(&["--strict"], opens_a_namespace).status.code().is_none(), "ended by SIGSYS");
    // Sockets: IPv4 is fine, packet sockets (17) are not.
    let opens =
        "import socket; socket.socket(socket.AF_INET); print('tcp'); socket.socket(17, socket.SOCK_RAW)";
    let ran = run(&[], opens);
    assert!(!ran.status.success() && text(&ran).contains("tcp\n"), "{}", text(&ran));
    assert!(text(&ran).contains("PermissionError"), "{}", text(&ran));
}

#[test]
fn without_io_uring_in_the_profile_a_gateway_uses_epoll() {
    if !filters() {
        return;
    }
    let data = tempfile::tempdir().expect("a directory");
    let dir = data.path().to_str().expect("UTF-8");
    let args = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--shards", "1", "--data-dir", dir];
    // As the default profiles of container runtimes have it.
    let default_profile = ["--without", "io_uring_setup,io_uring_enter,io_uring_register"];
    let server = confined("millrace-gateway", &default_profile, &args);
    assert!(server.terminate(Duration::from_secs(20)).success(), "an orderly end");
    let refused = Command::new(python())
        .arg(tuning("seccomp-run.py"))
        .args(default_profile)
        .arg(millrace_tests::binary("millrace-gateway"))
        .args(args)
        .args(["--io", "uring"])
        .output()
        .expect("Python runs");
    assert!(!refused.status.success() && text(&refused).contains("seccomp"), "{}", text(&refused));
}
