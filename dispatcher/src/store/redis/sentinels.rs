//! Asks the Sentinels who the primary is, and leaves one that is none any more.
//!
//! A primary that was replaced while it was away, or behind a cut, does not know it: until a Sentinel reaches it, which can
//! take ten seconds, it takes writes that are thrown away then. The rule that keeps it right: what a majority of the
//! Sentinels says counts; silent ones change nothing.

use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::config::{Config, Server, ServerConfig};
use fred::types::{ClusterHash, CustomCommand, Value};
use tokio::task::JoinSet;

/// Between two questions.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// A Sentinel has so long for its answer.
const ANSWER_WAIT: Duration = Duration::from_millis(400);

/// Watches as long as it is polled; ends at once where there are no Sentinels. `connect` makes a client.
pub(super) async fn watch(client: Client, connect: impl Fn(Config) -> Option<Client>) {
    let config = client.client_config();
    let ServerConfig::Sentinel { hosts, service_name } = &config.server else { return };
    let sentinels: Vec<Client> = hosts
        .iter()
        .filter_map(|host| {
            let server = ServerConfig::Centralized { server: host.clone() };
            connect(Config { server, database: None, ..config.clone() })
        })
        .collect();
    for sentinel in &sentinels {
        sentinel.connect();
    }
    let mut left = 0u32;
    loop {
        tokio::time::sleep(ASK_EVERY).await;
        let mut asked = JoinSet::new();
        for sentinel in &sentinels {
            asked.spawn(ask(sentinel.clone(), service_name.clone()));
        }
        let said: Vec<(String, u16)> = asked.join_all().await.into_iter().flatten().collect();
        let Some((host, port)) = majority(&said, hosts.len()) else { continue };
        let present = client.active_connections();
        let is_there = |server: &Server| server.host == host.as_str() && server.port == *port;
        if present.is_empty() || present.iter().any(is_there) {
            left = 0;
            continue;
        }
        // The client asks the Sentinels as it connects; the first of them may not know yet.
        left += 1;
        if left == 1 || left.is_multiple_of(4) {
            let _ = client.force_reconnection().await;
        }
    }
}

async fn ask(sentinel: Client, service: String) -> Option<(String, u16)> {
    let command = CustomCommand::new_static("SENTINEL", ClusterHash::Random, false);
    let args: Vec<Value> = vec!["GET-MASTER-ADDR-BY-NAME".into(), service.into()];
    let reply = tokio::time::timeout(ANSWER_WAIT, sentinel.custom::<Vec<String>, _>(command, args)).await;
    let [host, port] = reply.ok()?.ok()?.try_into().ok()?;
    Some((host, port.parse().ok()?))
}

/// What more than half of all Sentinels say.
fn majority(said: &[(String, u16)], sentinels: usize) -> Option<&(String, u16)> {
    said.iter().find(|one| said.iter().filter(|other| other == one).count() > sentinels / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_of_all_counts() {
        let at = |port| ("h".to_owned(), port);
        assert_eq!(majority(&[], 1), None);
        assert_eq!(majority(&[at(1)], 1), Some(&at(1)));
        assert_eq!(majority(&[at(1), at(2)], 3), None);
        assert_eq!(majority(&[at(2)], 3), None);
        assert_eq!(majority(&[at(1), at(2), at(2)], 3), Some(&at(2)));
        assert_eq!(majority(&[at(1), at(1)], 4), None);
    }
}
