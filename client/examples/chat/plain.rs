//! Lines in, lines out: the whole of a chat in some thirty lines on the SDK, and for pipes.

use std::error::Error;

use millrace_client::{Client, Config, Event};
use tokio::io::{AsyncBufReadExt, BufReader, stdin};

use crate::chats::words;

/// Writes every line to one conversation, the room "lobby" if none is given, and prints what comes.
pub(crate) async fn run(config: Config, to: Option<String>) -> Result<(), Box<dyn Error>> {
    let (client, mut events) = Client::connect(config).await?;
    let conversation = match to {
        Some(conversation) => conversation,
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
                    println!("{}: {}", message.sender, words(&message.content()));
                }
                Some(Event::Listed(listings)) => println!("  ({} conversations)", listings.len()),
                Some(other) => println!("  ({other:?})"),
                None => break,
            },
        }
    }
    client.logout().await;
    Ok(())
}
