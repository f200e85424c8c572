//! Asks the Sentinels who the primary is, and leaves one that is none any more.
//!
//! A primary that was replaced while it was away, or behind a cut, does not know it: until a Sentinel reaches it, which can
//! take ten seconds, it takes writes that are thrown away then. The rule that keeps it right: what a majority of the
//! Sentinels says counts; silent ones change nothing, but nothing is claimed without a majority.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::config::{Config, Server, ServerConfig};
use fred::types::{ClusterHash, CustomCommand, Value};
use tokio::task::JoinSet;

/// Between two questions.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// A Sentinel has so long for its answer.
const ANSWER_WAIT: Duration = Duration::from_millis(400);

/// What they say counts for so long: two questions and an answer.
const AGREED_FOR: Duration = Duration::from_millis(1_500);

/// Which primary a majority of the Sentinels named last, and when.
#[derive(Debug, Default)]
pub(super) struct Agreement(Mutex<Option<((String, u16), Instant)>>);

impl Agreement {
    /// Whether they named, a moment ago, the server that this client is connected to. Nothing is claimed from another one: a
    /// claim there is no later than those that its successor grants, and gateways take the later for the owner.
    pub(super) fn is_on(&self, client: &Client) -> bool {
        let agreed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        agreed.as_ref().is_some_and(|(primary, at)| {
            at.elapsed() < AGREED_FOR
                && client.active_connections().iter().any(|server| is_at(server, primary))
        })
    }

    fn note(&self, primary: (String, u16)) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((primary, Instant::now()));
    }
}

fn is_at(server: &Server, (host, port): &(String, u16)) -> bool {
    server.host == host.as_str() && server.port == *port
}

/// The Sentinels of a configuration.
pub(super) struct Sentinels {
    clients: Vec<Client>,
    count: usize,
    service: String,
    agreement: Arc<Agreement>,
}

impl Sentinels {
    /// `None` where there are none. `connect` makes a client.
    pub(super) fn of(config: &Config, connect: impl Fn(Config) -> Option<Client>) -> Option<Self> {
        let ServerConfig::Sentinel { hosts, service_name } = &config.server else { return None };
        let clients: Vec<Client> = hosts
            .iter()
            .filter_map(|host| {
                let server = ServerConfig::Centralized { server: host.clone() };
                connect(Config { server, database: None, ..config.clone() })
            })
            .collect();
        for client in &clients {
            client.connect();
        }
        let agreement = Arc::default();
        Some(Sentinels { clients, count: hosts.len(), service: service_name.clone(), agreement })
    }

    /// What they said last.
    pub(super) fn agreement(&self) -> Arc<Agreement> {
        Arc::clone(&self.agreement)
    }

    /// Asks all of them. What a majority says is noted.
    pub(super) async fn ask(&self) -> Option<(String, u16)> {
        let mut asked = JoinSet::new();
        for client in &self.clients {
            asked.spawn(ask(client.clone(), self.service.clone()));
        }
        let said: Vec<(String, u16)> = asked.join_all().await.into_iter().flatten().collect();
        let primary = majority(&said, self.count)?.clone();
        self.agreement.note(primary.clone());
        Some(primary)
    }

    /// Watches as long as it is polled: a client of a primary that is none any more connects again.
    pub(super) async fn watch(&self, client: Client) {
        let mut left = 0u32;
        loop {
            tokio::time::sleep(ASK_EVERY).await;
            let Some(primary) = self.ask().await else { continue };
            let present = client.active_connections();
            if present.is_empty() || present.iter().any(|server| is_at(server, &primary)) {
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
