//! One connection's worth of sending (in a cluster: one to each primary): commands out, their replies in, within a bounded
//! time.
//!
//! What they mean is left to [`super::job`]. The rule that keeps it right: a command is sent once. It is sent again only
//! when the server said that it does not know the script, which is the one answer that says for sure that nothing was
//! done, and nothing was sent after it; every other failure is handed up as it is. One that a cluster would have elsewhere
//! is a failure too: the client then knows better, and whoever wanted it asks again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike, ClusterInterface};
use fred::types::cluster::ClusterRouting;
use fred::types::config::Server;
use fred::types::scripts::Script;
use fred::types::{ClusterHash, CustomCommand, Value};
use tokio::task::JoinSet;

use super::command::{Command, Name, all_scripts};
use crate::store::StoreError;

/// How long a pipeline may take. A server that is silent for longer is treated as gone; what it was asked may have
/// happened all the same.
pub(super) const REPLY_WAIT: Duration = Duration::from_secs(2);

/// Sends commands. Cheap to clone.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) client: Client,
    is_cluster: bool,
    scripts: Arc<[Script]>,
    /// What the connections were named when they were looked at: see [`super::replicas`].
    name: Option<Arc<str>>,
}

impl Session {
    pub(super) fn new(client: Client) -> Self {
        let is_cluster = client.client_config().server.is_clustered();
        Self { client, is_cluster, scripts: all_scripts().into(), name: None }
    }

    /// Over connections of this name: what is sent on any other counts as lost.
    pub(super) fn named(&self, name: &str) -> Self {
        Self { name: Some(name.into()), ..self.clone() }
    }

    /// Whether the keys are spread over several servers.
    pub(super) fn is_cluster(&self) -> bool {
        self.is_cluster
    }

    /// The servers that hold data: the primaries of a cluster, or the one there is, which needs no name.
    pub(super) fn servers(&self) -> Vec<Option<Server>> {
        if !self.is_cluster {
            return vec![None];
        }
        let known = self.client.cached_cluster_state();
        known.map_or_else(Vec::new, |known| known.unique_primary_nodes().into_iter().map(Some).collect())
    }

    /// Which of them holds each of these keys.
    pub(super) fn servers_of<'a>(&self, keys: impl Iterator<Item = &'a str>) -> Vec<Option<Server>> {
        let known = if self.is_cluster { self.client.cached_cluster_state() } else { None };
        let server =
            |key: &str| known.as_ref()?.get_server(ClusterRouting::hash_key(key.as_bytes())).cloned();
        keys.map(server).collect()
    }

    /// One command to one of [`Session::servers`].
    pub(super) async fn ask(
        &self,
        server: Option<&Server>,
        name: &'static str,
        args: Vec<Value>,
    ) -> Result<Value, Error> {
        let command = CustomCommand::new_static(name, ClusterHash::Random, false);
        let reply = async {
            match server {
                Some(server) => self.client.with_cluster_node(server).custom(command, args).await,
                None => self.client.custom(command, args).await,
            }
        };
        let silent = |_| Err(Error::new(ErrorKind::Timeout, "no answer in time"));
        tokio::time::timeout(REPLY_WAIT, reply).await.unwrap_or_else(silent)
    }

    /// Sends the scripts to all servers, so that they can be called by their hashes.
    pub(super) async fn load_scripts(&self) -> Result<(), StoreError> {
        let mut reached = Reached::default();
        for server in self.servers() {
            let loaded = self.load_scripts_of(server.as_ref()).await;
            reached.note(self, loaded)?;
        }
        reached.any()
    }

    async fn load_scripts_of(&self, server: Option<&Server>) -> Result<(), Error> {
        for script in self.scripts.iter() {
            let text = script.lua().cloned().unwrap_or_default();
            self.ask(server, "SCRIPT", vec!["LOAD".into(), Value::from(text)]).await?;
        }
        Ok(())
    }

    /// Sends all commands in one go; one reply each, in order.
    pub(super) async fn run(&self, commands: &[Command]) -> Vec<Result<Value, StoreError>> {
        let mut under_way = self.send(commands.iter());
        under_way.wait().await;
        self.replies(commands, under_way, true).await
    }

    /// What came of commands that were waited for, in order. Where the server did not know a script they are sent again, if
    /// nothing was sent after them.
    pub(super) async fn replies(
        &self,
        commands: &[Command],
        under_way: UnderWay,
        is_last: bool,
    ) -> Vec<Result<Value, StoreError>> {
        let mut replies = under_way.replies;
        let unknown: Vec<usize> = (0..replies.len()).filter(|at| no_script(&replies[*at])).collect();
        if !unknown.is_empty() {
            if let Err(error) = self.load_scripts().await {
                return replies.into_iter().map(|_| Err(error.clone())).collect();
            }
            if is_last {
                let mut again = self.send(unknown.iter().map(|at| &commands[*at]));
                again.wait().await;
                for (at, reply) in unknown.into_iter().zip(again.replies) {
                    replies[at] = reply;
                }
            }
        }
        replies.into_iter().map(|reply| reply.map_err(|e| unavailable(&e))).collect()
    }

    /// Sends commands: behind all that was sent before. In a cluster, a pipeline to each server, all at once: one that is
    /// silent leaves the others their answers.
    pub(super) fn send<'a>(&self, commands: impl ExactSizeIterator<Item = &'a Command>) -> UnderWay {
        let commands: Vec<&Command> = commands.collect();
        let keys = commands.iter().map(|command| command.keys.first().map_or("", String::as_str));
        let mut by_server: BTreeMap<Option<Server>, Vec<usize>> = BTreeMap::new();
        for (at, server) in self.servers_of(keys).into_iter().enumerate() {
            by_server.entry(server).or_default().push(at);
        }
        let mut pipelines = JoinSet::new();
        for places in by_server.into_values() {
            let own: Vec<_> = places.iter().map(|at| self.form(commands[*at])).collect();
            let session = self.clone();
            pipelines.spawn(async move { (places, session.pipeline(own).await) });
        }
        let lost = || Err(Error::new(ErrorKind::Canceled, "its pipeline was lost"));
        let replies = commands.iter().map(|_| lost()).collect();
        UnderWay { pipelines, replies, replaced: false }
    }

    fn form(&self, command: &Command) -> (CustomCommand, Vec<Value>) {
        // The client would look for the key among the arguments and take a script's hash for it.
        let key = command.keys.first().map_or("", String::as_str);
        let slot = ClusterHash::Custom(ClusterRouting::hash_key(key.as_bytes()));
        let keys = command.keys.iter().map(|key| Value::from(key.as_str()));
        match command.name {
            Name::Script(id) => {
                let hash = self.scripts[id as usize].sha1().clone();
                let mut args = vec![Value::from(hash), Value::from(command.keys.len() as i64)];
                args.extend(keys);
                args.extend_from_slice(&command.args);
                (CustomCommand::new_static("EVALSHA", slot, false), args)
            }
            Name::Plain(name) => {
                let mut args: Vec<Value> = keys.collect();
                args.extend_from_slice(&command.args);
                (CustomCommand::new_static(name, slot, false), args)
            }
        }
    }

    /// Ends with a look at the connection's name: it had it all the time, or has none.
    async fn pipeline(&self, mut commands: Vec<(CustomCommand, Vec<Value>)>) -> Replied {
        let asked = commands.len();
        let last = commands.last().filter(|_| self.name.is_some()).map(|(last, _)| last.cluster_hash.clone());
        let is_looked_at = last.is_some();
        commands.extend(
            last.map(|slot| (CustomCommand::new_static("CLIENT", slot, false), vec!["GETNAME".into()])),
        );
        let mut replies = self.send_all(commands).await;
        let name = if is_looked_at { replies.pop() } else { None };
        // A server that does not let its connections be named can't be helped.
        if let Some(Ok(name)) = name
            && self.name.as_deref() != name.as_str().as_deref()
        {
            let replaced = || Err(Error::new(ErrorKind::Canceled, "the connection was replaced"));
            return Replied { replies: (0..asked).map(|_| replaced()).collect(), replaced: true };
        }
        Replied { replies, replaced: false }
    }

    async fn send_all(&self, commands: Vec<(CustomCommand, Vec<Value>)>) -> Vec<Result<Value, Error>> {
        let sent = commands.len();
        if sent == 0 {
            return Vec::new();
        }
        let pipeline = self.client.pipeline();
        for (command, args) in commands {
            let queued: Result<(), Error> = pipeline.custom(command, args).await;
            if let Err(error) = queued {
                return vec![Err(error); sent];
            }
        }
        let replies = match tokio::time::timeout(REPLY_WAIT, pipeline.try_all::<Value>()).await {
            Ok(replies) => replies,
            Err(_) => vec![Err(Error::new(ErrorKind::Timeout, "no answer in time"))],
        };
        if replies.len() == sent {
            return replies;
        }
        // The pipeline failed as a whole: nobody knows how far it came.
        let error = replies.into_iter().find_map(Result::err);
        let error = error.unwrap_or_else(|| Error::new(ErrorKind::Protocol, "replies are missing"));
        vec![Err(error); sent]
    }
}

/// What came of a pipeline's commands.
struct Replied {
    replies: Vec<Result<Value, Error>>,
    /// It went over another connection than the one that was looked at.
    replaced: bool,
}

/// Commands that were sent. They are written in the order in which they were: pipelines are tasks of one thread, which starts
/// them in that order, and each hands its commands to the client before it first waits.
pub(super) struct UnderWay {
    /// With the places of their commands among all.
    pipelines: JoinSet<(Vec<usize>, Replied)>,
    replies: Vec<Result<Value, Error>>,
    replaced: bool,
}

impl UnderWay {
    /// Waits for all replies; may be given up, and begun again.
    pub(super) async fn wait(&mut self) {
        while let Some(done) = self.pipelines.join_next().await {
            let Ok((places, own)) = done else { continue };
            self.replaced |= own.replaced;
            for (at, reply) in places.into_iter().zip(own.replies) {
                self.replies[at] = reply;
            }
        }
    }

    /// Whether some of it went over a connection that was not looked at: of that nothing is known.
    pub(super) fn was_replaced(&self) -> bool {
        self.replaced
    }
}

/// Something that is done on every server. In a cluster, those that can't be reached are left out: they are looked at when
/// they are connected again, and the others serve meanwhile.
#[derive(Debug, Default)]
pub(super) struct Reached {
    any: bool,
    last_error: Option<StoreError>,
}

impl Reached {
    /// Notes what came of it on one server; an error that is not to be left out comes back.
    pub(super) fn note(&mut self, session: &Session, outcome: Result<(), Error>) -> Result<(), StoreError> {
        match outcome {
            Ok(()) => self.any = true,
            Err(error) if session.is_cluster && is_away(&error) => {
                self.last_error = Some(unavailable(&error));
            }
            Err(error) => return Err(unavailable(&error)),
        }
        Ok(())
    }

    /// Whether there was a server that could be reached.
    pub(super) fn any(self) -> Result<(), StoreError> {
        let nobody = || StoreError::Unavailable("no server of the cluster is known".into());
        if self.any { Ok(()) } else { Err(self.last_error.unwrap_or_else(nobody)) }
    }
}

/// Whether a failure is that of a connection, not of a command.
fn is_away(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::IO | ErrorKind::Timeout | ErrorKind::Canceled | ErrorKind::Routing | ErrorKind::Cluster
    )
}

fn no_script(reply: &Result<Value, Error>) -> bool {
    matches!(reply, Err(error) if error.details().starts_with("NOSCRIPT"))
}

pub(super) fn unavailable(error: &Error) -> StoreError {
    StoreError::Unavailable(error.to_string())
}
