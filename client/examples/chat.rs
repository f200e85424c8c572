//! Two people chat in two terminals, over a gateway that runs with its defaults:
//!
//! ```sh
//! cargo run --example chat -- --user alice
//! cargo run --example chat -- --user bob
//! ```

use clap::Parser;
use millrace_client::{Client, Config, Event, conversation};
use tokio::io::{AsyncBufReadExt, BufReader, stdin};

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
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let token = match args.token {
        Some(token) => token,
        None => token_of_the_gateway(&args.user)?,
    };
    let (client, mut events) = Client::connect(Config::new([args.gateway], token)).await?;
    let conversation = match &args.to {
        Some(other) => conversation::direct(&args.user, other),
        None => client.join_room("lobby").await.map(|joined| joined.conversation)?,
    };
    println!("connected; type a line and press Enter");
    let mut lines = BufReader::new(stdin()).lines();
    loop {
        tokio::select! {
            line = lines.next_line() => match line? {
                Some(line) => println!("  (number {})", client.send(&conversation, line).await?.seq),
                None => break,
            },
            event = events.next() => match event {
                Some(Event::Message(message)) => {
                    println!("{}: {}", message.sender, String::from_utf8_lossy(&message.payload));
                }
                Some(other) => println!("  ({other:?})"),
                None => break,
            },
        }
    }
    client.logout().await;
    Ok(())
}

/// A gateway that makes its own key signs tokens for those who may read it.
fn token_of_the_gateway(user: &str) -> Result<String, Box<dyn std::error::Error>> {
    let mut command = std::process::Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--bin", "millrace-gateway"]);
    // The build that is there already, instead of minutes for another one.
    command.args((!cfg!(debug_assertions)).then_some("--release"));
    command.args(["--", "token", "--user", user]);
    let output = command.stderr(std::process::Stdio::inherit()).output()?;
    let token = String::from_utf8(output.stdout)?.trim().to_string();
    if output.status.success() { Ok(token) } else { Err("the gateway gave no token; use --token".into()) }
}
