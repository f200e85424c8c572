//! The stores and durability levels that are measured, by the names that `--store` takes.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// A store, and what an acknowledgement waits for there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub enum Store {
    /// The embedded store, synced before it answers.
    Embedded,
    /// The same, synced ten times a second.
    EmbeddedAsync,
    /// Redis with `appendfsync everysec`.
    RedisAsync,
    /// Redis with `appendfsync always`.
    RedisFsync,
    /// Redis with `appendfsync everysec`, and one replica that has received it.
    RedisReplicated,
}

/// All of them, in the order of the report.
pub const STORES: [Store; 5] =
    [Store::Embedded, Store::EmbeddedAsync, Store::RedisAsync, Store::RedisFsync, Store::RedisReplicated];

impl Store {
    /// As in `--store`.
    pub fn name(self) -> &'static str {
        match self {
            Store::Embedded => "embedded",
            Store::EmbeddedAsync => "embedded-async",
            Store::RedisAsync => "redis-async",
            Store::RedisFsync => "redis-fsync",
            Store::RedisReplicated => "redis-replicated",
        }
    }

    /// The dispatcher's `--durability`.
    pub fn durability(self) -> &'static str {
        match self {
            Store::Embedded | Store::RedisFsync => "fsync",
            Store::EmbeddedAsync | Store::RedisAsync => "async",
            Store::RedisReplicated => "replicated(1)",
        }
    }

    /// Redis servers that it needs: the primary, and its replicas.
    pub fn redis_servers(self) -> usize {
        match self {
            Store::Embedded | Store::EmbeddedAsync => 0,
            Store::RedisAsync | Store::RedisFsync => 1,
            Store::RedisReplicated => 2,
        }
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<Store> for String {
    fn from(store: Store) -> Self {
        store.name().to_owned()
    }
}

impl FromStr for Store {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        STORES.into_iter().find(|store| store.name() == text).ok_or_else(|| {
            let names: Vec<&str> = STORES.iter().map(|store| store.name()).collect();
            format!("expected some of {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_have_one_name_each() {
        for store in STORES {
            assert_eq!(store.name().parse(), Ok(store));
        }
        let error = "redis".parse::<Store>().unwrap_err();
        assert!(error.contains("redis-replicated"), "{error}");
    }
}
