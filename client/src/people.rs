//! Other people: friends, who is blocked, who is there.

use bytes::Bytes;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{
    Block, FriendAnswer, FriendRemove, FriendRequest, People, PeopleList, PeoplePage, PresenceEvent,
    PresenceSet, PresenceState, PresenceSubscribe, Visibility,
};

use crate::client::{Client, answer, check_name};
use crate::error::SendError;

impl Client {
    /// Asks a user to be a friend, with a greeting of at most 256 bytes.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn ask_friend(&self, user: &str, greeting: impl Into<Bytes>) -> Result<(), SendError> {
        check_name(user)?;
        let ask = FriendRequest { user: user.into(), greeting: greeting.into() };
        answer!(self.call(Op::FriendRequest(ask)), Done).map(drop)
    }

    /// Answers a user who asked.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn answer_friend(&self, user: &str, accept: bool) -> Result<(), SendError> {
        check_name(user)?;
        let ask = FriendAnswer { user: user.into(), accept };
        answer!(self.call(Op::FriendAnswer(ask)), Done).map(drop)
    }

    /// Ends a friendship.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn remove_friend(&self, user: &str) -> Result<(), SendError> {
        check_name(user)?;
        answer!(self.call(Op::FriendRemove(FriendRemove { user: user.into() })), Done).map(drop)
    }

    /// Blocks a user, or no longer: while one blocks, neither can send to the other.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn block(&self, user: &str, block: bool) -> Result<(), SendError> {
        check_name(user)?;
        answer!(self.call(Op::Block(Block { user: user.into(), block })), Done).map(drop)
    }

    /// A page of friends, of those who ask to be one, or of those blocked: those after `after` in byte order.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn people(&self, list: PeopleList, after: &str, limit: u32) -> Result<PeoplePage, SendError> {
        let ask = People { list: list.into(), after: after.into(), limit };
        answer!(self.call(Op::People(ask)), PeoplePage)
    }

    /// Sets this device's state, and (`Some`) who may see the user's. Set again after a reconnect.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn set_presence(
        &self,
        state: PresenceState,
        visibility: Option<Visibility>,
    ) -> Result<(), SendError> {
        let ask = PresenceSet { state: state.into(), visibility: visibility.map(Into::into) };
        answer!(self.call(Op::PresenceSet(ask)), Done).map(drop)
    }

    /// Watches these users (at most 512) in place of those watched before, also after a reconnect. Returns how they are
    /// now; changes come as [`Event::Presence`](crate::Event::Presence).
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn watch(
        &self,
        users: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Vec<PresenceEvent>, SendError> {
        let users: Vec<String> = users.into_iter().map(Into::into).collect();
        users.iter().try_for_each(|user| check_name(user))?;
        let page = answer!(self.call(Op::PresenceSubscribe(PresenceSubscribe { users })), PresencePage)?;
        Ok(page.users)
    }
}
