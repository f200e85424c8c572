//! A chat in the terminal, over a gateway that runs with its defaults:
//!
//! ```sh
//! cargo run --example chat -- --user alice
//! cargo run --example chat -- --user bob
//! ```
//!
//! Both are in the room "lobby"; `/help` says what else there is. With `--plain`, or when it is not run in a terminal,
//! it reads lines and prints lines.
//!
//! `state` decides what happens and knows neither terminal nor network; `view` draws it; `run` carries out what it wants.

mod chats;
mod command;
mod kept;
mod plain;
mod run;
mod state;
#[cfg(test)]
mod tests;
mod view;

use std::error::Error;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Parser;
use millrace_client::{Config, Cursors, Transport, conversation};

/// A chat in the terminal.
#[derive(Parser)]
struct Args {
    /// Who you are
    #[arg(long)]
    user: String,
    /// Whom to write to; the room "lobby" if not given
    #[arg(long)]
    to: Option<String>,
    /// The gateway
    #[arg(long, default_value = "127.0.0.1:7400")]
    gateway: String,
    /// A token; asked of the gateway's own command if not given
    #[arg(long)]
    token: Option<String>,
    /// Names this installation among those of the user
    #[arg(long, default_value = "default")]
    device: String,
    /// Speak WebSocket
    #[arg(long)]
    websocket: bool,
    /// Lines in, lines out
    #[arg(long)]
    plain: bool,
    /// A directory for what is remembered: what was read of which conversation, and which rooms were joined
    #[arg(long)]
    state: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let token = match &args.token {
        Some(token) => token.clone(),
        None => token_of_the_gateway(&args.user)?,
    };
    let mut config = Config { device: args.device.clone(), ..Config::new([args.gateway.clone()], token) };
    if args.websocket {
        config.transport = Transport::WebSocket;
    }
    let mut kept = kept::Kept::default();
    if let Some(directory) = &args.state {
        std::fs::create_dir_all(directory)?;
        config.cursors = Cursors::in_file(directory.join(format!("{}.cursors", args.user)));
        kept = kept::Kept::load(directory.join(format!("{}.rooms", args.user)))?;
    }
    let open = args.to.as_ref().map(|other| conversation::direct(&args.user, other));
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if args.plain || !terminal {
        return plain::run(config, open).await;
    }
    run::run(config, &args.user, open, kept).await
}

/// A gateway that makes its own key signs tokens for those who may read it.
fn token_of_the_gateway(user: &str) -> Result<String, Box<dyn Error>> {
    let mut command = std::process::Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--bin", "millrace-gateway"]);
    // The build that is there already, instead of minutes for another one.
    command.args((!cfg!(debug_assertions)).then_some("--release"));
    command.args(["--", "token", "--user", user]);
    let output = command.stderr(std::process::Stdio::inherit()).output()?;
    let token = String::from_utf8(output.stdout)?.trim().to_string();
    if output.status.success() { Ok(token) } else { Err("the gateway gave no token; use --token".into()) }
}
