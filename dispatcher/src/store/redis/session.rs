//! One connection's worth of sending: a pipeline of commands out, their replies in, within a bounded time.
//!
//! What they mean is left to [`super::job`]. The rule that keeps it right: a command is sent once. It is sent again only
//! when the server said that it does not know the script, which is the one answer that says for sure that nothing was
//! done; every other failure is handed up as it is.

use std::time::Duration;

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::scripts::Script;
use fred::types::{ClusterHash, CustomCommand, Value};

use super::command::{Command, Name, all_scripts};
use crate::store::StoreError;

/// How long a pipeline may take. A server that is silent for longer is treated as gone; what it was asked may have
/// happened all the same.
pub(super) const REPLY_WAIT: Duration = Duration::from_secs(2);

/// Sends commands. Cheap to clone.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) client: Client,
    scripts: std::sync::Arc<[Script]>,
}

impl Session {
    pub(super) fn new(client: Client) -> Self {
        Self { client, scripts: all_scripts().into() }
    }

    /// Sends the scripts, so that they can be called by their hashes.
    pub(super) async fn load_scripts(&self) -> Result<(), StoreError> {
        let load = |script: &Script| {
            let text = script.lua().cloned().unwrap_or_default();
            (
                CustomCommand::new_static("SCRIPT", ClusterHash::Random, false),
                vec!["LOAD".into(), Value::from(text)],
            )
        };
        let replies = self.pipeline(self.scripts.iter().map(load)).await;
        replies.into_iter().collect::<Result<Vec<_>, _>>().map_err(|e| unavailable(&e))?;
        Ok(())
    }

    /// Sends all commands in one go; one reply each, in order.
    pub(super) async fn run(&self, commands: &[Command]) -> Vec<Result<Value, StoreError>> {
        let mut replies = self.send(commands.iter()).await;
        let unknown: Vec<usize> = (0..replies.len()).filter(|at| no_script(&replies[*at])).collect();
        if !unknown.is_empty() {
            if let Err(error) = self.load_scripts().await {
                return replies.into_iter().map(|_| Err(error.clone())).collect();
            }
            let again = self.send(unknown.iter().map(|at| &commands[*at])).await;
            for (at, reply) in unknown.into_iter().zip(again) {
                replies[at] = reply;
            }
        }
        replies.into_iter().map(|reply| reply.map_err(|e| unavailable(&e))).collect()
    }

    async fn send(&self, commands: impl ExactSizeIterator<Item = &Command>) -> Vec<Result<Value, Error>> {
        let form = |command: &Command| match command.name {
            Name::Script(id) => {
                let hash = self.scripts[id as usize].sha1().clone();
                let mut args = vec![Value::from(hash), Value::from(command.keys.len() as i64)];
                args.extend(command.keys.iter().map(|key| Value::from(key.as_str())));
                args.extend_from_slice(&command.args);
                // The first key stands behind the hash and the number of keys.
                (CustomCommand::new_static("EVALSHA", ClusterHash::Offset(2), false), args)
            }
            Name::Plain(name) => {
                let mut args: Vec<Value> = command.keys.iter().map(|key| Value::from(key.as_str())).collect();
                args.extend_from_slice(&command.args);
                (CustomCommand::new_static(name, ClusterHash::FirstKey, false), args)
            }
        };
        self.pipeline(commands.map(form)).await
    }

    async fn pipeline(
        &self,
        commands: impl ExactSizeIterator<Item = (CustomCommand, Vec<Value>)>,
    ) -> Vec<Result<Value, Error>> {
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

fn no_script(reply: &Result<Value, Error>) -> bool {
    matches!(reply, Err(error) if error.details().starts_with("NOSCRIPT"))
}

pub(super) fn unavailable(error: &Error) -> StoreError {
    StoreError::Unavailable(error.to_string())
}
