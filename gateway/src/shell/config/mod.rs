//! The one place that reads, checks and freezes the configuration of a gateway.
//!
//! A TOML file, then environment variables, then flags; later ones win. Everything wrong is reported at once, each
//! with its name, its place and what was expected, and nothing is started. After that [`Settings`] never change
//! (the keys that SIGHUP reads again are files that they name).

mod keys;
mod layers;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgMatches, Command};
use figment::value::Value;
use millrace_edge::Io;
use millrace_protocol::conversation::is_name;
use millrace_protocol::frame::PAYLOAD_BYTES_MAX;
use millrace_protocol::ids::PARTITIONS_MAX;

use self::layers::Layers;

/// Gateway ids have 12 bits in a session id, and 0 is no gateway.
const GATEWAY_ID_MAX: u64 = 4_095;
/// Events that a partition keeps, at most: more would be a log of their own.
const EVENTS_MAX: u64 = 100_000_000;
/// Shards have 8 bits in a session id.
const SHARDS_MAX: u64 = 255;
/// Slots have 24 bits in a session id, per shard.
const CAPACITY_PER_SHARD_MAX: u64 = 1 << 24;
/// A secret shorter than its MAC is the weakest link.
pub const SECRET_BYTES_MIN: usize = 32;

/// Something wrong in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem(String);

impl Problem {
    fn new(what: impl fmt::Display, expected: &str) -> Self {
        Problem(format!("{what}: expected {expected}"))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A configuration that can't be used: everything wrong with it, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Problem>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(|problem| format!("configuration: {problem}")).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

/// What several sessions of one user on one platform do to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Nothing.
    KeepAll,
    /// The newest login closes the others, with a reason.
    NewestWins,
}

/// How clients prove who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthSettings {
    /// Public keys.
    pub jwks_file: Option<PathBuf>,
    /// Shared secret; set only with `auth.hs256 = true`.
    pub hs256_secret_file: Option<PathBuf>,
    /// Accepted `iss`; empty: any.
    pub issuers: Vec<String>,
    /// Accepted `aud`; empty: only tokens without one.
    pub audiences: Vec<String>,
    /// For exp and nbf.
    pub leeway: Duration,
    /// Longer tokens are refused unread.
    pub token_bytes_max: usize,
    /// Shared in a cluster; standalone makes its own.
    pub ticket_secret_file: Option<PathBuf>,
    /// Of resume tickets.
    pub ticket_lifetime: Duration,
}

/// The whole configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where admin HTTP is served.
    pub admin: SocketAddr,
    /// 1-4095.
    pub gateway_id: u16,
    /// Name that all processes of a cluster share.
    pub cluster: String,
    /// Slices of the key space.
    pub partitions: u16,
    /// `host:port` each; empty: standalone.
    pub dispatchers: Vec<String>,
    /// Connection threads.
    pub shards: u8,
    /// Backend asked for.
    pub io: Io,
    /// Connections over all shards.
    pub capacity: u32,
    /// Told to clients.
    pub heartbeat_interval: Duration,
    /// Begun per second, per shard.
    pub logins_per_s: u32,
    /// Message payload at most.
    pub payload_bytes_max: usize,
    /// Outbox of a connection at most.
    pub outbox_bytes_max: usize,
    /// Platforms with another policy than keeping all.
    pub platforms: HashMap<String, Policy>,
    /// Standalone store and keys.
    pub data_dir: PathBuf,
    /// Standalone: what messages may do.
    pub policies: Option<PathBuf>,
    /// Standalone: events that each partition keeps, about; 0: none.
    pub events_max: u64,
    /// Of the gateway's lease.
    pub lease_ttl: Duration,
    /// Drain deadline.
    pub drain: Duration,
    /// Login.
    pub auth: AuthSettings,
}

impl Settings {
    /// No dispatcher is configured: one runs in this process.
    pub fn is_standalone(&self) -> bool {
        self.dispatchers.is_empty()
    }

    /// Connections of one shard.
    pub fn capacity_per_shard(&self) -> u32 {
        self.capacity.div_ceil(u32::from(self.shards))
    }
}

/// Adds `--config` and a flag for every setting to a command.
pub fn with_flags(command: Command) -> Command {
    layers::flags(command)
}

/// Reads and checks everything.
///
/// # Errors
/// All that is wrong, at once.
pub fn load(
    matches: &ArgMatches,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Settings, ConfigError> {
    let layers = Layers::read(matches, environment).map_err(ConfigError)?;
    let mut reader = Reader { layers: &layers, problems: Vec::new() };
    let settings = reader.settings();
    if reader.problems.is_empty() { Ok(settings) } else { Err(ConfigError(reader.problems)) }
}

/// Takes values out of the layers, and collects what is wrong with them. After a problem it goes on with the default.
struct Reader<'a> {
    layers: &'a Layers,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn settings(&mut self) -> Settings {
        let dispatchers = self.list("dispatchers", "host:port, e.g. \"10.0.0.7:7500\"", is_host_port);
        let shards = self.number("shards", 1..=SHARDS_MAX, default_shards());
        let address = "an address and port, e.g. \"127.0.0.1:7400\" or \"[::]:7400\"";
        let settings = Settings {
            listen: self.parsed("listen", address, "127.0.0.1:7400", |text| text.parse().ok()),
            admin: self.parsed("admin", address, "127.0.0.1:7401", |text| text.parse().ok()),
            gateway_id: self.number("gateway_id", 1..=GATEWAY_ID_MAX, 1) as u16,
            cluster: self.parsed("cluster", "1-64 of A-Z a-z 0-9 . _ - @ +", "millrace", name),
            partitions: self.number("partitions", 1..=u64::from(PARTITIONS_MAX), u64::from(PARTITIONS_MAX))
                as u16,
            shards: shards as u8,
            io: self.parsed("io", "auto, uring or epoll", "auto", |text| text.parse().ok()),
            capacity: self.number("capacity", shards..=shards * CAPACITY_PER_SHARD_MAX, 200_000) as u32,
            heartbeat_interval: self.millis("heartbeat_interval_ms", 100..=3_600_000, 30_000),
            logins_per_s: self.number("logins_per_s", 1..=1_000_000, 20_000) as u32,
            payload_bytes_max: self.number("payload_bytes_max", 1..=PAYLOAD_BYTES_MAX as u64, 64 << 10)
                as usize,
            outbox_bytes_max: self.number("outbox_bytes_max", 16_384..=1 << 30, 256 << 10) as usize,
            platforms: self.platforms(),
            data_dir: self.path("data_dir").unwrap_or_else(default_data_dir),
            policies: self.path("policies"),
            events_max: self.number("events_max", 0..=EVENTS_MAX, 0),
            lease_ttl: self.millis("lease_ttl_ms", 1_000..=600_000, 5_000),
            drain: Duration::from_secs(self.number("drain_s", 1..=3_600, 10)),
            auth: self.auth(),
            dispatchers,
        };
        self.relations(&settings);
        settings
    }

    fn auth(&mut self) -> AuthSettings {
        AuthSettings {
            jwks_file: self.path("auth.jwks_file"),
            hs256_secret_file: self.path("auth.hs256_secret_file"),
            issuers: self.list("auth.issuer", "strings", |text| !text.is_empty()),
            audiences: self.list("auth.audience", "strings", |text| !text.is_empty()),
            leeway: Duration::from_secs(self.number("auth.leeway_s", 0..=3_600, 30)),
            token_bytes_max: self.number("auth.token_bytes_max", 256..=65_536, 8_192) as usize,
            ticket_secret_file: self.path("auth.ticket_secret_file"),
            ticket_lifetime: Duration::from_secs(self.number(
                "auth.ticket_lifetime_s",
                1..=31_536_000,
                86_400,
            )),
        }
    }

    /// What one value alone can't show.
    fn relations(&mut self, settings: &Settings) {
        let hs256 = self.switch("auth.hs256");
        let secret = settings.auth.hs256_secret_file.is_some();
        if hs256 && !secret {
            self.complain("auth.hs256", "auth.hs256_secret_file beside it");
        }
        if secret && !hs256 {
            self.complain(
                "auth.hs256_secret_file",
                "auth.hs256 = true beside it: HS256 is accepted only when asked for, as whoever can check such a \
                 token can make one",
            );
        }
        if settings.outbox_bytes_max < 2 * settings.payload_bytes_max {
            let least = 2 * settings.payload_bytes_max;
            self.complain("outbox_bytes_max", &format!("room for two messages, at least {least}"));
        }
        if !settings.is_standalone() {
            if self.layers.get("gateway_id").is_none() {
                self.complain(
                    "gateway_id",
                    "1-4095, as dispatchers are configured: each gateway of a cluster its own",
                );
            }
            if settings.auth.jwks_file.is_none() && !hs256 {
                self.complain("auth.jwks_file", "a key set (or auth.hs256), as dispatchers are configured");
            }
        }
        if settings.listen == settings.admin && settings.listen.port() != 0 {
            self.complain("admin", "another address than `listen`");
        }
    }

    /// Names a setting, its value and its place.
    fn complain(&mut self, name: &str, expected: &str) {
        let what = match self.layers.get(name) {
            Some((value, place)) => format!("`{name} = {}` in {place}", shown(value)),
            None => format!("`{name}` is not set"),
        };
        self.problems.push(Problem::new(what, expected));
    }

    fn parsed<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        default: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        let given = self.layers.get(name);
        let Some((value, _)) = given else {
            return parse(default).expect("defaults are valid");
        };
        value.as_str().and_then(&parse).unwrap_or_else(|| {
            self.complain(name, expected);
            parse(default).expect("defaults are valid")
        })
    }

    fn number(&mut self, name: &'static str, range: std::ops::RangeInclusive<u64>, default: u64) -> u64 {
        let Some((value, _)) = self.layers.get(name) else {
            return default;
        };
        // TOML's integers are signed, those of variables and flags are not.
        let signed = || value.to_i128().and_then(|number| u64::try_from(number).ok());
        let number = value.to_u128().and_then(|number| u64::try_from(number).ok()).or_else(signed);
        number.filter(|number| range.contains(number)).unwrap_or_else(|| {
            self.complain(name, &format!("a whole number from {} to {}", range.start(), range.end()));
            default
        })
    }

    fn millis(&mut self, name: &'static str, range: std::ops::RangeInclusive<u64>, default: u64) -> Duration {
        Duration::from_millis(self.number(name, range, default))
    }

    fn switch(&mut self, name: &'static str) -> bool {
        let Some((value, _)) = self.layers.get(name) else {
            return false;
        };
        value.to_bool().unwrap_or_else(|| {
            self.complain(name, "true or false");
            false
        })
    }

    fn path(&mut self, name: &'static str) -> Option<PathBuf> {
        let (value, _) = self.layers.get(name)?;
        let path = value.as_str().filter(|text| !text.is_empty()).map(PathBuf::from);
        if path.is_none() {
            self.complain(name, "a path");
        }
        path
    }

    fn list(&mut self, name: &'static str, expected: &str, valid: impl Fn(&str) -> bool) -> Vec<String> {
        let Some((value, _)) = self.layers.get(name) else {
            return Vec::new();
        };
        let texts: Option<Vec<String>> = match value {
            Value::String(_, text) => Some(vec![text.clone()]),
            Value::Array(_, values) => values.iter().map(|value| value.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        texts.filter(|texts| texts.iter().all(|text| valid(text))).unwrap_or_else(|| {
            self.complain(name, &format!("an array of {expected}"));
            Vec::new()
        })
    }

    fn platforms(&mut self) -> HashMap<String, Policy> {
        let Some((value, _)) = self.layers.get("platforms") else {
            return HashMap::new();
        };
        let policies: Option<HashMap<String, Policy>> = value.as_dict().and_then(|dict| {
            dict.iter()
                .map(|(platform, value)| {
                    let policy = match value.as_str()? {
                        "keep_all" => Policy::KeepAll,
                        "newest_wins" => Policy::NewestWins,
                        _ => return None,
                    };
                    is_name(platform).then(|| (platform.clone(), policy))
                })
                .collect()
        });
        policies.unwrap_or_else(|| {
            self.complain(
                "platforms",
                "a table of keep_all or newest_wins by platform, e.g. { ios = \"newest_wins\" }",
            );
            HashMap::new()
        })
    }
}

fn name(text: &str) -> Option<String> {
    is_name(text).then(|| text.to_owned())
}

/// Whether a text is `host:port`, with a host of any form (it is resolved later) and a port that is not 0.
fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && !host.contains(char::is_whitespace)
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

fn default_shards() -> u64 {
    (millrace_edge::affinity::cpu_count() as u64).clamp(1, SHARDS_MAX)
}

/// `millrace` in the XDG state directory; `millrace-data` here for a process without a home.
fn default_data_dir() -> PathBuf {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    match (absolute("XDG_STATE_HOME"), absolute("HOME")) {
        (Some(state), _) => state.join("millrace"),
        (None, Some(home)) => home.join(".local/state/millrace"),
        (None, None) => PathBuf::from("millrace-data"),
    }
}

/// A value as a person would write it.
fn shown(value: &Value) -> String {
    match value {
        Value::String(_, text) => format!("{text:?}"),
        Value::Char(_, char) => format!("{:?}", char.to_string()),
        Value::Bool(_, flag) => flag.to_string(),
        Value::Num(_, number) => match (number.to_u128(), number.to_i128(), number.to_f64()) {
            (Some(number), _, _) => number.to_string(),
            (_, Some(number), _) => number.to_string(),
            (_, _, Some(number)) => number.to_string(),
            _ => "a number".to_owned(),
        },
        Value::Array(_, values) => format!("[{}]", values.iter().map(shown).collect::<Vec<_>>().join(", ")),
        Value::Dict(_, dict) => {
            let pairs: Vec<String> =
                dict.iter().map(|(key, value)| format!("{key} = {}", shown(value))).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        Value::Empty(..) => "nothing".to_owned(),
    }
}
