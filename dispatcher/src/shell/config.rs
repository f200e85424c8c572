//! The settings of a dispatcher: TOML file, then environment, then flags, each over the one before.
//!
//! One place parses, checks the whole and freezes it: [`load`] gives a [`Settings`] that everything else may trust, or
//! an error that names the key, where it was set, and what was expected there.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use figment::Figment;
use figment::error::Kind;
use figment::providers::{Env, Format, Serialized, Toml};
use millrace_protocol::conversation::is_name;
use millrace_protocol::ids::PARTITIONS_MAX;
use serde::{Deserialize, Serialize};

use super::limits;
use crate::core::limits::Limits;

/// Environment variables are this and a key in capitals: `MILLRACE_DISPATCHER_LISTEN`. A gateway on the same machine has
/// a prefix of its own, so that neither takes the other's settings.
pub const ENV_PREFIX: &str = "MILLRACE_DISPATCHER_";

/// Where logs, groups, routes and leases are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// A Redis that all nodes of the cluster share.
    Redis,
    /// Files of this node alone: a cluster of one.
    Embedded,
}

/// Everything that can be set. The names are the keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where gateways connect. Port 0 picks a free one.
    pub listen: SocketAddr,
    /// Where admin HTTP listens. Port 0 picks a free one.
    pub admin: SocketAddr,
    /// This node's name, unique in the cluster and kept over restarts. Default: host name and port.
    pub name: Option<String>,
    /// `host:port` under which gateways reach this node. Default: the listening address, or the host name and port
    /// when that is unspecified (0.0.0.0).
    pub advertise: Option<String>,
    /// Gateways and nodes of another cluster are refused.
    pub cluster: String,
    /// Slices of the key space, fixed when a cluster is created.
    pub partitions: u16,
    /// Which store.
    pub store: StoreKind,
    /// Where Redis is: `redis://[user:password@]host:port`. Required with `store = "redis"`.
    pub redis: Option<String>,
    /// Directory of the embedded store. Required with `store = "embedded"`.
    pub data_dir: Option<PathBuf>,
    /// Shard threads. Default: one per CPU that this process may use.
    pub shards: Option<usize>,
    /// Length of this node's lease, in ms: how long its partitions wait when it dies.
    pub lease_ttl_ms: u32,
    /// Time between renewals, in ms.
    pub lease_renew_ms: u32,
    /// Bytes of unacknowledged records that each gateway shard may have towards this node, and the other way.
    pub link_window_bytes: u64,
    /// Messages that wait between two shards of this process, each way.
    pub sibling_queue: usize,
    /// Members of a group.
    pub group_members_max: usize,
    /// A TOML file that says what messages may do and how long they are kept; the same on every node.
    pub policies: Option<PathBuf>,
    /// Time for handing over and flushing after SIGTERM, in ms.
    pub stop_deadline_ms: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            listen: SocketAddr::from(([127, 0, 0, 1], 7500)),
            admin: SocketAddr::from(([127, 0, 0, 1], 7501)),
            name: None,
            advertise: None,
            cluster: "millrace".into(),
            partitions: PARTITIONS_MAX,
            store: StoreKind::Redis,
            redis: None,
            data_dir: None,
            shards: None,
            lease_ttl_ms: limits::LEASE_TTL_MS,
            lease_renew_ms: limits::LEASE_RENEW_MS,
            link_window_bytes: limits::LINK_WINDOW_BYTES,
            sibling_queue: limits::SIBLING_QUEUE,
            group_members_max: Limits::default().group_members_max,
            policies: None,
            stop_deadline_ms: limits::STOP_DEADLINE_MS,
        }
    }
}

/// What is wrong with the settings, one line for each fault.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// `--help` or `--version` was asked for, or a flag is wrong; clap has the words and the exit code.
    #[error("{0}")]
    Flags(clap::Error),
    /// The file named by `--config` can't be read.
    #[error("{file}: {error}")]
    File {
        /// As given.
        file: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Keys that don't exist or values that can't be.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
}

/// millrace-dispatcher: orders, stores and routes messages for gateways
#[derive(Debug, Default, Parser, Serialize)]
#[command(name = "millrace-dispatcher", version)]
struct Flags {
    /// A TOML file with settings
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Where gateways connect [default: 127.0.0.1:7500]
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<String>,
    /// Where admin HTTP listens [default: 127.0.0.1:7501]
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    admin: Option<String>,
    /// This node's name, unique in the cluster [default: host name and port]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// host:port under which gateways reach this node [default: from --listen]
    #[arg(long, value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    advertise: Option<String>,
    /// Name of the cluster [default: millrace]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    /// Slices of the key space, fixed when a cluster is created [default: 1024]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    partitions: Option<u16>,
    /// Which store [default: redis]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<StoreKind>,
    /// Where Redis is: redis://[user:password@]host:port
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<String>,
    /// Directory of the embedded store
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<PathBuf>,
    /// Shard threads [default: the CPUs that may be used]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    shards: Option<usize>,
    /// Length of this node's lease [default: 3000]
    #[arg(long, value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_ttl_ms: Option<u32>,
    /// Time between renewals of the lease [default: 1000]
    #[arg(long, value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_renew_ms: Option<u32>,
    /// Unacknowledged bytes per gateway shard and direction [default: 8388608]
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    link_window_bytes: Option<u64>,
    /// Messages that wait between two shards [default: 4096]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    sibling_queue: Option<usize>,
    /// Members of a group at most [default: 100000]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    group_members_max: Option<usize>,
    /// A TOML file: what messages may do, and how long they are kept
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    policies: Option<PathBuf>,
    /// Time for handing over after SIGTERM [default: 8000]
    #[arg(long, value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_deadline_ms: Option<u32>,
}

/// Reads the settings: defaults, then the file of `--config`, then the environment, then the flags in `args` (the
/// program's name first).
pub fn load(args: impl IntoIterator<Item = OsString>) -> Result<Settings, ConfigError> {
    let flags = Flags::try_parse_from(args).map_err(ConfigError::Flags)?;
    let mut figment = Figment::from(Serialized::defaults(Settings::default()));
    if let Some(file) = &flags.config {
        // figment takes a missing file for an empty one; a file that was asked for must be there.
        std::fs::metadata(file).map_err(|error| ConfigError::File { file: file.clone(), error })?;
        figment = figment.merge(Toml::file_exact(file));
    }
    figment = figment.merge(Env::prefixed(ENV_PREFIX)).merge(Serialized::defaults(&flags));
    let settings: Settings = figment
        .extract()
        .map_err(|error| ConfigError::Refused(error.into_iter().map(|error| explain(&error)).collect()))?;
    let wrong: Vec<String> = check(&settings)
        .into_iter()
        .map(|(key, expected)| {
            let place = figment.find_metadata(key).map_or("the defaults".into(), place);
            format!("{key} (set by {place}): expected {expected}")
        })
        .collect();
    if wrong.is_empty() { Ok(settings) } else { Err(ConfigError::Refused(wrong)) }
}

/// One fault as figment found it: key, place, what was expected.
fn explain(error: &figment::Error) -> String {
    let place = error.metadata.as_ref().map_or("the settings".into(), place);
    let key = error.path.join(".");
    match &error.kind {
        Kind::UnknownField(field, expected) => {
            format!("{field} (set by {place}): no such key; expected one of {}", expected.join(", "))
        }
        Kind::UnknownVariant(found, expected) => {
            format!("{key} (set by {place}): found {found:?}, expected one of {}", expected.join(", "))
        }
        kind if key.is_empty() => format!("{place}: {kind}"),
        kind => format!("{key} (set by {place}): {kind}"),
    }
}

/// Where a value came from, in a user's words.
fn place(metadata: &figment::Metadata) -> String {
    match &metadata.source {
        Some(figment::Source::File(file)) => file.display().to_string(),
        _ if metadata.name.contains("environment") => format!("the environment, {ENV_PREFIX}…"),
        _ if metadata.name.contains("Flags") => "a flag".into(),
        _ => "the defaults".into(),
    }
}

/// What types can't say: the key at fault, and what was expected.
fn check(settings: &Settings) -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    let mut expect = |good: bool, key, expected: String| {
        if !good {
            wrong.push((key, expected));
        }
    };
    let text = "1 to 255 printable characters without spaces".to_string();
    let is_text = |text: &Option<String>| {
        text.as_ref().is_none_or(|t| t.len() < 256 && is_printable(t) && !t.is_empty())
    };
    expect(is_cluster_name(&settings.cluster), "cluster", "1 to 64 of A-Z a-z 0-9 . _ -".into());
    expect(is_text(&settings.name), "name", text);
    expect(
        settings.advertise.as_ref().is_none_or(|a| is_host_and_port(a)),
        "advertise",
        "host:port with a port from 1 to 65535".into(),
    );
    expect(
        (1..=PARTITIONS_MAX).contains(&settings.partitions),
        "partitions",
        format!("1 to {PARTITIONS_MAX}"),
    );
    let shards = settings.shards.unwrap_or(1);
    expect((1..=limits::SHARDS_MAX).contains(&shards), "shards", format!("1 to {}", limits::SHARDS_MAX));
    expect(
        settings.store != StoreKind::Redis || settings.redis.as_ref().is_some_and(|url| is_redis_url(url)),
        "redis",
        "redis://[user:password@]host:port of the cluster's Redis (or store = \"embedded\" with a data_dir, for a \
         single node)"
            .into(),
    );
    expect(
        settings.store != StoreKind::Embedded || settings.data_dir.is_some(),
        "data_dir",
        "a directory for the embedded store".into(),
    );
    expect((500..=60_000).contains(&settings.lease_ttl_ms), "lease_ttl_ms", "500 to 60000".into());
    expect(
        settings.lease_renew_ms >= 100 && settings.lease_renew_ms <= settings.lease_ttl_ms / 2,
        "lease_renew_ms",
        "100 or more, and at most half of lease_ttl_ms, so that one renewal may be late".into(),
    );
    let (low, high) = limits::LINK_WINDOW_BYTES_RANGE;
    expect(
        (low..=high).contains(&settings.link_window_bytes),
        "link_window_bytes",
        format!("{low} to {high}"),
    );
    expect((16..=1 << 20).contains(&settings.sibling_queue), "sibling_queue", "16 to 1048576".into());
    let (low, high) = limits::GROUP_MEMBERS_MAX_RANGE;
    expect(
        (low..=high).contains(&settings.group_members_max),
        "group_members_max",
        format!("{low} to {high}"),
    );
    expect((100..=600_000).contains(&settings.stop_deadline_ms), "stop_deadline_ms", "100 to 600000".into());
    wrong
}

fn is_printable(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic())
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && is_printable(host) && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

fn is_redis_url(text: &str) -> bool {
    text.strip_prefix("redis://").is_some_and(|rest| !rest.is_empty())
}

/// It becomes part of every key in the store.
fn is_cluster_name(text: &str) -> bool {
    is_name(text) && !text.contains(['@', '+'])
}

/// The host's name, for the default node name.
pub(crate) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_string())
        .ok()
        .filter(|name| !name.is_empty() && is_printable(name))
        .unwrap_or_else(|| "localhost".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_with(toml: &str, flags: &[&str]) -> Result<Settings, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("dispatcher.toml");
        std::fs::write(&file, toml).unwrap();
        let args = ["millrace-dispatcher", "--config", file.to_str().unwrap()];
        load(args.iter().chain(flags).map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_win_over_the_file_and_the_rest_are_defaults() {
        let settings =
            load_with("redis = \"redis://h:1\"\nshards = 3\ncluster = \"a\"", &["--shards", "5"]).unwrap();
        assert_eq!(settings.shards, Some(5));
        assert_eq!(settings.cluster, "a");
        assert_eq!(settings.partitions, 1024);
        assert_eq!(settings.group_members_max, 100_000);
        let settings = load_with("redis = \"redis://h:1\"\ngroup_members_max = 7", &[]).unwrap();
        assert_eq!(settings.group_members_max, 7);
        let settings = load_with("", &["--store", "embedded", "--data-dir", "/tmp/x"]).unwrap();
        assert_eq!(settings.store, StoreKind::Embedded);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place_and_what_was_expected() {
        let redis = "redis = \"redis://h:1\"\n";
        let table: &[(&str, &[&str], &[&str])] = &[
            ("shardz = 3", &[], &["shardz", "dispatcher.toml", "no such key", "shards"]),
            ("shards = \"many\"", &[], &["shards", "dispatcher.toml", "many"]),
            ("listen = \"nowhere\"", &[], &["listen", "dispatcher.toml", "socket address"]),
            ("store = \"mongo\"", &[], &["store", "dispatcher.toml", "mongo", "redis, embedded"]),
            ("partitions = 70000", &[], &["partitions", "dispatcher.toml", "u16"]),
            ("partitions = 1025", &[], &["partitions", "dispatcher.toml", "1 to 1024"]),
            ("lease_renew_ms = 2000", &[], &["lease_renew_ms", "dispatcher.toml", "half of lease_ttl_ms"]),
            ("cluster = \"a b\"", &[], &["cluster", "dispatcher.toml", "A-Z"]),
            ("shards = [", &[], &["dispatcher.toml"]),
            ("", &["--shards", "0"], &["shards", "a flag", "1 to"]),
            ("", &["--advertise", "host"], &["advertise", "a flag", "host:port"]),
            ("", &["--redis", "host:6379"], &["redis", "a flag", "redis://"]),
            ("", &["--store", "embedded"], &["data_dir", "the defaults", "directory"]),
            ("", &["--listen", "here"], &["listen", "a flag", "socket address"]),
            ("", &["--group-members-max", "0"], &["group_members_max", "a flag", "1 to"]),
            ("", &["--shards", "x"], &["--shards", "x"]),
        ];
        for (toml, flags, words) in table {
            let message =
                load_with(&format!("{redis}{toml}"), flags).expect_err(&format!("{toml:?} {flags:?}"));
            for word in *words {
                assert!(message.contains(word), "{toml:?} {flags:?}: {word:?} is not in {message:?}");
            }
        }
        let missing = load(["x", "--config", "/nowhere.toml"].map(OsString::from)).unwrap_err().to_string();
        assert!(missing.contains("/nowhere.toml"), "{missing}");
        let no_redis = load(["x"].map(OsString::from)).unwrap_err().to_string();
        assert!(no_redis.contains("redis (set by the defaults)"), "{no_redis}");
    }
}
