//! Groups: making them, who is in them, who may do what.

use bytes::Bytes;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{
    GroupAnswer, GroupCreate, GroupDissolve, GroupInfo, GroupInvite, GroupJoin, GroupLeave, GroupMembers,
    GroupMute, GroupRemove, GroupRole, GroupState, GroupUpdate, JoinPolicy, Joined, Members, Role,
};

use crate::client::{Client, answer, check_name};
use crate::error::SendError;

/// What a group is made with, beside its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewGroup {
    /// Besides the user who creates it.
    pub members: Vec<String>,
    /// Anything that the application shows of it, at most 4 KiB.
    pub about: Bytes,
    /// Who may join.
    pub join: JoinPolicy,
}

/// What to change of a group; `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupChanges {
    /// Anything that the application shows of it, at most 4 KiB.
    pub about: Option<Bytes>,
    /// Who may join.
    pub join: Option<JoinPolicy>,
    /// What members are to know.
    pub announcement: Option<Bytes>,
}

fn check_names(names: Vec<String>) -> Result<Vec<String>, SendError> {
    names.iter().try_for_each(|name| check_name(name))?;
    Ok(names)
}

fn collect(names: impl IntoIterator<Item = impl Into<String>>) -> Result<Vec<String>, SendError> {
    check_names(names.into_iter().map(Into::into).collect())
}

impl Client {
    /// Creates a group of this user and `members`, that anyone may join. After a reconnect, GROUP_EXISTS may be the
    /// answer to this call's own first try.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn create_group(
        &self,
        group: &str,
        members: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Joined, SendError> {
        let members = members.into_iter().map(Into::into).collect();
        self.create_group_with(group, NewGroup { members, ..NewGroup::default() }).await
    }

    /// Creates a group. As [`Client::create_group`].
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn create_group_with(&self, group: &str, new: NewGroup) -> Result<Joined, SendError> {
        check_name(group)?;
        let members = check_names(new.members)?;
        let ask = GroupCreate { group: group.into(), members, about: new.about, join: new.join.into() };
        answer!(self.call(Op::GroupCreate(ask)), Joined)
    }

    /// Becomes a member of a group. JOIN_PENDING: its admins are asked, and a
    /// [`Event::Head`](crate::Event::Head) says when they have agreed.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn join_group(&self, group: &str) -> Result<Joined, SendError> {
        check_name(group)?;
        answer!(self.call(Op::GroupJoin(GroupJoin { group: group.into() })), Joined)
    }

    /// Is no longer a member of a group.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn leave_group(&self, group: &str) -> Result<(), SendError> {
        check_name(group)?;
        answer!(self.call(Op::GroupLeave(GroupLeave { group: group.into() })), Left).map(drop)
    }

    /// A page of a group's members: those after `after` in byte order, at most `limit` (0: as many as the server gives).
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn members(&self, group: &str, after: &str, limit: u32) -> Result<Members, SendError> {
        check_name(group)?;
        let ask = GroupMembers { group: group.into(), after: after.into(), limit };
        answer!(self.call(Op::GroupMembers(ask)), Members)
    }

    /// Makes these users members, if this one may.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn invite(
        &self,
        group: &str,
        users: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<(), SendError> {
        check_name(group)?;
        let ask = GroupInvite { group: group.into(), users: collect(users)? };
        answer!(self.call(Op::GroupInvite(ask)), Done).map(drop)
    }

    /// As an admin: lets a user in who asked, or does not.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn answer_join(&self, group: &str, user: &str, accept: bool) -> Result<(), SendError> {
        check_name(group)?;
        check_name(user)?;
        let ask = GroupAnswer { group: group.into(), user: user.into(), accept };
        answer!(self.call(Op::GroupAnswer(ask)), Done).map(drop)
    }

    /// As an admin: these users are members no longer.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn remove_members(
        &self,
        group: &str,
        users: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<(), SendError> {
        check_name(group)?;
        let ask = GroupRemove { group: group.into(), users: collect(users)? };
        answer!(self.call(Op::GroupRemove(ask)), Done).map(drop)
    }

    /// As the owner: gives a member another role. Making one OWNER makes this user an ADMIN.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn set_role(&self, group: &str, user: &str, role: Role) -> Result<(), SendError> {
        check_name(group)?;
        check_name(user)?;
        let ask = GroupRole { group: group.into(), user: user.into(), role: role.into() };
        answer!(self.call(Op::GroupRole(ask)), Done).map(drop)
    }

    /// As an admin: a member, or (`None`) everyone but admins, can't write until then (ms since 1970; 0: they can again).
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn mute(&self, group: &str, user: Option<&str>, until_ms: u64) -> Result<(), SendError> {
        check_name(group)?;
        user.map_or(Ok(()), check_name)?;
        let ask = GroupMute { group: group.into(), user: user.unwrap_or_default().into(), until_ms };
        answer!(self.call(Op::GroupMute(ask)), Done).map(drop)
    }

    /// As an admin: changes what the group shows, and who may join.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn update_group(&self, group: &str, changes: GroupChanges) -> Result<(), SendError> {
        check_name(group)?;
        let ask = GroupUpdate {
            group: group.into(),
            about: changes.about,
            join: changes.join.map(Into::into),
            announcement: changes.announcement,
        };
        answer!(self.call(Op::GroupUpdate(ask)), Done).map(drop)
    }

    /// As the owner: ends the group. Its name is never free again.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn dissolve_group(&self, group: &str) -> Result<(), SendError> {
        check_name(group)?;
        answer!(self.call(Op::GroupDissolve(GroupDissolve { group: group.into() })), Done).map(drop)
    }

    /// What a group is, and who runs it.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn group(&self, group: &str) -> Result<GroupState, SendError> {
        check_name(group)?;
        answer!(self.call(Op::GroupInfo(GroupInfo { group: group.into() })), GroupState)
    }
}
