//! What can be read of a group: who is in it, and what it is.
//!
//! The rule that keeps it right: only what is durable is told, and only members are told who is in.

use millrace_protocol::messages::client::{
    Code, GroupMembers, GroupState, JoinPolicy, Members as Page, Role, response,
};
use millrace_protocol::messages::link::Reply;

use super::batch::Owner;
use super::conversation::Conversation;
use super::hub::{Asker, Cx};
use super::limits::MEMBERS_PAGE_MAX;

/// A page of members, for a member.
pub fn members(
    cx: &mut Cx,
    owner: &Owner,
    conversation: &Conversation,
    asker: Asker,
    user: &str,
    ask: &GroupMembers,
) {
    let Some(members) = &conversation.members else {
        return cx.refuse(owner.from, asker, Code::NoSuchGroup, "there is no such group");
    };
    if !members.contains(user) {
        return cx.refuse(owner.from, asker, Code::NotMember, "not a member of this group");
    }
    let limit = match ask.limit {
        0 => MEMBERS_PAGE_MAX,
        limit => limit.min(MEMBERS_PAGE_MAX),
    };
    let mut after = members.after(&ask.after);
    let page: Vec<String> = after.by_ref().take(limit as usize).map(str::to_owned).collect();
    let more = after.next().is_some();
    let info = conversation.group.info();
    let mut roles: Vec<i32> = page.iter().map(|user| info.role(user) as i32).collect();
    if roles.iter().all(|role| *role == Role::Member as i32) {
        roles.clear();
    }
    let page = Page { members: page, more, total: members.count() as u32, roles };
    cx.reply(owner.from, asker, response::Outcome::Members(page), Reply::default());
}

/// What the group is. Who could join without an invitation sees what it shows, and how large it is, but not what it says
/// to its members.
pub fn info(cx: &mut Cx, owner: &Owner, conversation: &Conversation, name: &str, asker: Asker, user: &str) {
    let Some(members) = &conversation.members else {
        return cx.refuse(owner.from, asker, Code::NoSuchGroup, "there is no such group");
    };
    let info = conversation.group.info();
    let is_member = members.contains(user);
    if !is_member && info.join == JoinPolicy::Invite {
        return cx.refuse(owner.from, asker, Code::NotMember, "not a member of this group");
    }
    let mut state = GroupState {
        group: name.split_once(':').map_or(name, |(_, group)| group).to_owned(),
        owner: info.owner.clone(),
        members: members.count() as u32,
        about: info.about.clone(),
        join: info.join as i32,
        ..GroupState::default()
    };
    if is_member {
        state.admins = info.admins.clone();
        state.announcement = info.announcement.clone();
        // Whether it is the asker alone or everyone: who can't send wants to know.
        state.muted = info.mute_all || info.is_muted(user, cx.now.wall_ms);
        state.role = info.role(user) as i32;
        if info.is_admin(user) {
            state.asking = conversation.group.asking.iter().cloned().collect();
        }
    }
    cx.reply(owner.from, asker, response::Outcome::GroupState(state), Reply::default());
}
