//! Every setting there is: its name, what it takes, and a sentence for `--help`.
//!
//! The environment variable and the flag of a setting follow from its name (`auth.jwks_file`,
//! `MILLRACE_AUTH_JWKS_FILE`, `--auth-jwks-file`), so that one table is all there is to keep right.

/// What a setting takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A string.
    Text,
    /// A whole number.
    Number,
    /// `true` or `false`.
    Switch,
    /// An array of strings; separated by commas in variables and flags.
    List,
    /// A table of strings; `key=value` pairs separated by commas in variables and flags.
    Table,
}

/// One setting.
#[derive(Debug)]
pub(super) struct Key {
    /// As in the file, tables joined by a dot.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// For `--help`: what it is, unit and default.
    pub(super) help: &'static str,
}

impl Key {
    /// `MILLRACE_AUTH_JWKS_FILE`
    pub(super) fn variable(&self) -> String {
        format!("{ENV_PREFIX}{}", self.name.replace('.', "_").to_ascii_uppercase())
    }

    /// `auth-jwks-file`
    pub(super) fn flag(&self) -> String {
        self.name.replace(['.', '_'], "-")
    }
}

/// What the environment variables begin with.
pub(super) const ENV_PREFIX: &str = "MILLRACE_";

/// Variables of the other programs of the house begin with these, and are not looked at.
pub(super) const ENV_OTHERS: [&str; 4] =
    ["MILLRACE_DISPATCHER_", "MILLRACE_LOADGEN_", "MILLRACE_TEST_", ENV_FAILPOINTS];

/// Where there are none, a variable that asks for some is refused: nothing would come of it.
const ENV_FAILPOINTS: &str =
    if cfg!(feature = "failpoints") { "MILLRACE_FAILPOINTS" } else { "MILLRACE_TEST_" };

const fn key(name: &'static str, kind: Kind, help: &'static str) -> Key {
    Key { name, kind, help }
}

/// All of them, in the order of `--help`.
pub(super) const KEYS: &[Key] = &[
    key("listen", Kind::Text, "Where clients connect: framed TCP and WebSocket [default: 127.0.0.1:7400]"),
    key(
        "admin",
        Kind::Text,
        "Where /metrics, /healthz, /readyz, /debug and /events are served [default: 127.0.0.1:7401]",
    ),
    key("gateway_id", Kind::Number, "1-4095, unique in the cluster; required with dispatchers [default: 1]"),
    key("cluster", Kind::Text, "Name that gateways and dispatchers must share [default: millrace]"),
    key("partitions", Kind::Number, "1-1024, fixed when a cluster is created [default: 1024]"),
    key("dispatchers", Kind::List, "host:port of dispatchers to begin with; none: standalone"),
    key("shards", Kind::Number, "Threads that hold connections, 1-255 [default: the CPUs allowed]"),
    key("io", Kind::Text, "auto, uring or epoll [default: auto]"),
    key("capacity", Kind::Number, "Connections in all, divided over the shards [default: 200000]"),
    key("heartbeat_interval_ms", Kind::Number, "Told to clients at login [default: 30000]"),
    key("logins_per_s", Kind::Number, "Logins that a shard begins per second at most [default: 20000]"),
    key("payload_bytes_max", Kind::Number, "Payload of a message at most [default: 65536]"),
    key("outbox_bytes_max", Kind::Number, "Waiting for one slow client at most [default: 262144]"),
    key(
        "platforms",
        Kind::Table,
        "Per platform keep_all or newest_wins, e.g. ios=newest_wins [default: keep_all]",
    ),
    key(
        "data_dir",
        Kind::Text,
        "Standalone: its store and keys [default: millrace in the XDG state directory]",
    ),
    key(
        "policies",
        Kind::Text,
        "Standalone: a file that says what messages may do and how long they are kept",
    ),
    key(
        "events_max",
        Kind::Number,
        "Standalone: events that each partition keeps for /events, about; 0: none [default: 0]",
    ),
    key("lease_ttl_ms", Kind::Number, "Lease of this gateway's routes [default: 5000]"),
    key("drain_s", Kind::Number, "Time that a drain takes at most, in seconds [default: 10]"),
    key(
        "auth.jwks_file",
        Kind::Text,
        "JSON Web Key Set with the public keys of tokens; read again on SIGHUP",
    ),
    key(
        "auth.hs256",
        Kind::Switch,
        "Accept HS256 tokens: whoever checks them can make them [default: false]",
    ),
    key("auth.hs256_secret_file", Kind::Text, "Secret of HS256 tokens, at least 32 bytes"),
    key("auth.issuer", Kind::List, "Accepted values of `iss` [default: any]"),
    key("auth.audience", Kind::List, "Accepted values of `aud` [default: only tokens without one]"),
    key("auth.leeway_s", Kind::Number, "Clock difference allowed for exp and nbf, in seconds [default: 30]"),
    key("auth.token_bytes_max", Kind::Number, "Length of a token at most [default: 8192]"),
    key(
        "auth.ticket_secret_file",
        Kind::Text,
        "Secret of resume tickets, at least 32 bytes, the same in a cluster",
    ),
    key(
        "auth.ticket_lifetime_s",
        Kind::Number,
        "Resume tickets last so long, never beyond their token [default: 86400]",
    ),
];
