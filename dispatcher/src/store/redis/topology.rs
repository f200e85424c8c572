//! Where Redis is: one server, one that Sentinels name, or a Cluster; from settings to the client's configuration.
//!
//! The rule that keeps it right: an address is printed without its password.

use std::fmt;

use fred::error::Error;
use fred::types::config::{Config, Server, ServerConfig};

/// How the servers at the given addresses are to be understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Topology {
    /// One server.
    #[default]
    Single,
    /// The addresses are Sentinels, which say where the primary is, also after a failover. They must take the same user
    /// and password as it, or none if it takes none.
    Sentinel {
        /// The name under which they watch it.
        service: String,
    },
    /// The addresses are some nodes of a Redis Cluster. While a slot migrates, its partitions are not available.
    Cluster,
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Topology::Single => f.write_str("single"),
            Topology::Sentinel { service } => write!(f, "sentinel ({service})"),
            Topology::Cluster => f.write_str("cluster"),
        }
    }
}

/// The client's configuration for `redis://[user:password@]host[:port][,host[:port]…][/database]`.
pub(super) fn config(url: &str, topology: &Topology) -> Result<Config, Error> {
    let (head, hosts, tail) = split(url);
    let mut configs = hosts
        .split(',')
        .map(|host| Config::from_url_centralized(&format!("{head}{host}{tail}")))
        .collect::<Result<Vec<_>, _>>()?;
    let mut servers: Vec<Server> = configs.iter().flat_map(|config| config.server.hosts()).collect();
    let mut config = configs.swap_remove(0);
    let of = |what: &'static str| Error::new(fred::error::ErrorKind::Config, what);
    config.server = match topology {
        Topology::Single if servers.len() == 1 => ServerConfig::Centralized { server: servers.remove(0) },
        Topology::Single => return Err(of("one address, unless they are Sentinels or nodes of a cluster")),
        Topology::Sentinel { service } if !service.is_empty() => {
            ServerConfig::Sentinel { hosts: servers, service_name: service.clone() }
        }
        Topology::Sentinel { .. } => return Err(of("the name under which the Sentinels watch the server")),
        Topology::Cluster if config.database.is_some_and(|database| database != 0) => {
            return Err(of("a cluster has no databases"));
        }
        Topology::Cluster => ServerConfig::Clustered { hosts: servers, policy: Default::default() },
    };
    Ok(config)
}

/// Scheme and credentials, hosts, database.
fn split(url: &str) -> (&str, &str, &str) {
    let begin = url.find("://").map_or(0, |at| at + 3);
    let begin = url.rfind('@').map_or(begin, |at| at + 1);
    let end = url[begin..].find('/').map_or(url.len(), |at| begin + at);
    (&url[..begin], &url[begin..end], &url[end..])
}

/// An address as it may be printed.
pub(super) fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}://{}", &url[..scheme], &url[at + 1..]),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_printed() {
        assert_eq!(without_password("redis://me:se@cret@host:1/2"), "redis://host:1/2");
        assert_eq!(without_password("redis://host:1,other:2"), "redis://host:1,other:2");
    }

    #[test]
    fn addresses() {
        let sentinel = Topology::Sentinel { service: "main".into() };
        let hosts = |url, topology: &Topology| -> Result<Vec<String>, String> {
            let config = config(url, topology).map_err(|e| e.details().to_owned())?;
            assert_eq!(config.password.is_some(), url.contains("secret"));
            Ok(config.server.hosts().iter().map(|server| server.to_string()).collect())
        };
        let good: &[(&str, &Topology, &[&str])] = &[
            ("redis://h", &Topology::Single, &["h:6379"]),
            ("redis://me:secret@h:1/2", &Topology::Single, &["h:1"]),
            ("redis://:secret@a:1,b,c:3", &Topology::Cluster, &["a:1", "b:6379", "c:3"]),
            ("redis://a:1,b:2", &sentinel, &["a:1", "b:2"]),
        ];
        for (url, topology, expected) in good {
            let expected = expected.iter().map(|host| (*host).to_owned()).collect();
            assert_eq!(hosts(url, topology), Ok(expected), "{url}");
        }
        for (url, topology) in [
            ("redis://a,b", &Topology::Single),
            ("redis://a/3", &Topology::Cluster),
            ("redis://a", &Topology::Sentinel { service: String::new() }),
            ("", &Topology::Single),
        ] {
            assert!(hosts(url, topology).is_err(), "{url}");
        }
    }
}
