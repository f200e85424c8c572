//! Conversations as a whole: which there are, where they stand, what was said before, who has read what.

use std::collections::BTreeMap;

use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{
    self, ConversationItem, ConversationPage, Conversations, Joined, Peek, PeekItem, Read, ReceiptPage,
    Receipts, RoomJoin, RoomLeave, Standing, SyncPage, notify,
};

use crate::client::{Client, answer, check_conversation, check_name};
use crate::driver::Command;
use crate::error::SendError;
use crate::event::{Listing, Message};

/// Conversations of one Peek: the protocol's limit.
const PEEK_MAX: usize = 256;

/// Which part of a conversation to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The newest messages.
    Newest,
    /// Those right below this seq.
    Before(u64),
    /// Those right above this seq.
    After(u64),
}

/// A part of a conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Oldest first.
    pub messages: Vec<Message>,
    /// Whether there is more in the direction of reading.
    pub more: bool,
    /// The newest seq of the conversation.
    pub head: u64,
}

impl From<SyncPage> for History {
    fn from(page: SyncPage) -> Self {
        let mut messages: Vec<Message> = page
            .entries
            .into_iter()
            .filter_map(|entry| match entry.event {
                Some(notify::Event::Deliver(mut deliver)) => {
                    deliver.conversation.clone_from(&page.conversation);
                    Some(Message::from(deliver))
                }
                _ => None,
            })
            .collect();
        messages.sort_by_key(|message| message.seq);
        History { messages, more: page.more, head: page.head }
    }
}

impl Client {
    /// Reads what was said, at most `limit` messages (0: as many as the server gives). Moves no cursor.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn history(
        &self,
        conversation: &str,
        window: Window,
        limit: u32,
    ) -> Result<History, SendError> {
        check_conversation(conversation)?;
        let (before, after) = match window {
            Window::Newest => (0, 0),
            Window::Before(seq) => (seq, 0),
            Window::After(seq) => (0, seq),
        };
        let conversation = conversation.to_string();
        let ask = client::History { conversation, before, after, limit };
        let mut page = answer!(self.call(Op::History(ask.clone())), SyncPage)?;
        page.conversation = ask.conversation;
        Ok(page.into())
    }

    /// The user has read everything up to `seq`, on all devices.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn mark_read(&self, conversation: &str, seq: u64) -> Result<(), SendError> {
        check_conversation(conversation)?;
        let conversation = conversation.to_string();
        answer!(self.call(Op::Read(Read { conversation, seq })), Done).map(drop)
    }

    /// The user is typing, or what else the application means by `what`. Sent at most every two seconds, and not at all
    /// without a connection.
    ///
    /// # Errors
    /// The id is no conversation's, or the client has ended.
    pub async fn typing(&self, conversation: &str, what: u32) -> Result<(), SendError> {
        check_conversation(conversation)?;
        self.command(Command::Typing { conversation: conversation.into(), what }).await
    }

    /// Who has read a message, and who only received it: a page of names after `after`.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn receipts(
        &self,
        conversation: &str,
        seq: u64,
        after: &str,
        limit: u32,
    ) -> Result<ReceiptPage, SendError> {
        check_conversation(conversation)?;
        let ask = Receipts { conversation: conversation.into(), seq, after: after.into(), limit };
        answer!(self.call(Op::Receipts(ask)), ReceiptPage)
    }

    /// A page of the user's conversations after `after` in byte order. They also come by themselves, as
    /// [`Event::Listed`](crate::Event::Listed).
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn conversations(&self, after: &str, limit: u32) -> Result<ConversationPage, SendError> {
        let ask = Conversations { after: after.into(), limit };
        answer!(self.call(Op::Conversations(ask)), ConversationPage)
    }

    /// Where conversations stand: their end, their newest message, what is unread.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn standings(
        &self,
        conversations: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Vec<Standing>, SendError> {
        let items: Vec<PeekItem> = conversations
            .into_iter()
            .map(|conversation| PeekItem { conversation: conversation.into(), cursor: None })
            .collect();
        let mut standings = Vec::new();
        for items in items.chunks(PEEK_MAX) {
            let ask = Peek { items: items.to_vec() };
            standings.extend(answer!(self.call(Op::Peek(ask)), Peeked)?.standings);
        }
        Ok(standings)
    }

    /// A page of the user's conversations, with where they stand; and whether another follows.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn listings(&self, after: &str, limit: u32) -> Result<(Vec<Listing>, bool), SendError> {
        let page = self.conversations(after, limit).await?;
        let standings = self.standings(page.items.iter().map(|item| &item.conversation)).await?;
        let mut standings: BTreeMap<String, Standing> =
            standings.into_iter().map(|standing| (standing.conversation.clone(), standing)).collect();
        let listings = page
            .items
            .into_iter()
            .map(|item| Listing { standing: standings.remove(&item.conversation).unwrap_or_default(), item })
            .collect();
        Ok((listings, page.more))
    }

    /// Pins, mutes or hides a conversation, or takes that back: sets all three.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn arrange(&self, item: ConversationItem) -> Result<(), SendError> {
        check_conversation(&item.conversation)?;
        let ask = client::ConversationSet { item: Some(item) };
        answer!(self.call(Op::ConversationSet(ask)), Done).map(drop)
    }

    /// Listens to a room, also after reconnects, until [`Client::leave_room`].
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn join_room(&self, room: &str) -> Result<Joined, SendError> {
        check_name(room)?;
        answer!(self.call(Op::RoomJoin(RoomJoin { room: room.into() })), Joined)
    }

    /// Listens to a room no longer.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn leave_room(&self, room: &str) -> Result<(), SendError> {
        check_name(room)?;
        answer!(self.call(Op::RoomLeave(RoomLeave { room: room.into() })), Left).map(drop)
    }
}
