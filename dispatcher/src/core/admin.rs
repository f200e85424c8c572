//! Who may change what of a group, and what comes of it.
//!
//! Nothing is changed here: a judgement is a plan, which [`super::groups`] carries out in a round. The rule that keeps
//! it right: a plan is judged against what is durable, and nothing else changes the group before it is carried out.

use bytes::Bytes;
use millrace_protocol::conversation::is_name;
use millrace_protocol::messages::client::group_change::Kind as Became;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{Code, GroupChange, GroupCreate, GroupUpdate, JoinPolicy, Role};

use super::group_info::{Group, Info};
use super::limits::{ABOUT_BYTES_MAX, ADMINS_MAX, ASKING_MAX, GROUP_USERS_MAX};
use super::members::Members;
use super::notes::note;

/// What a change of a group is.
#[derive(Debug)]
pub enum Kind {
    /// A new group.
    Create(GroupCreate),
    /// The asker comes in.
    Join,
    /// The asker goes.
    Leave,
    /// These become members.
    Invite(Vec<String>),
    /// Whoever asked to join becomes a member, or not.
    Answer {
        /// Who asked.
        user: String,
        /// Whether it may.
        accept: bool,
    },
    /// These are members no more.
    Remove(Vec<String>),
    /// A member gets another role.
    Role {
        /// Which one.
        user: String,
        /// As it came.
        role: i32,
    },
    /// A member, or all but admins, may not send.
    Mute {
        /// Empty: all.
        user: String,
        /// 0: no more.
        until_ms: u64,
    },
    /// It shows something else, or is joined otherwise.
    Update(GroupUpdate),
    /// It ends.
    Dissolve,
}

impl Kind {
    /// A client's request, if it is one to change a group. It may wait long: nothing of it holds a receive buffer.
    pub fn of(op: Op) -> Option<Kind> {
        let copy = |text: Bytes| Bytes::copy_from_slice(&text);
        Some(match op {
            Op::GroupCreate(ask) => Kind::Create(GroupCreate { about: copy(ask.about), ..ask }),
            Op::GroupJoin(_) => Kind::Join,
            Op::GroupLeave(_) => Kind::Leave,
            Op::GroupInvite(ask) => Kind::Invite(ask.users),
            Op::GroupAnswer(ask) => Kind::Answer { user: ask.user, accept: ask.accept },
            Op::GroupRemove(ask) => Kind::Remove(ask.users),
            Op::GroupRole(ask) => Kind::Role { user: ask.user, role: ask.role },
            Op::GroupMute(ask) => Kind::Mute { user: ask.user, until_ms: ask.until_ms },
            Op::GroupUpdate(ask) => {
                let (about, announcement) = (ask.about.map(copy), ask.announcement.map(copy));
                Kind::Update(GroupUpdate { about, announcement, ..ask })
            }
            Op::GroupDissolve(_) => Kind::Dissolve,
            _ => return None,
        })
    }

    /// Whether it may be judged while others of this sort go before it in the same round.
    pub fn is_coming_or_going(&self) -> bool {
        matches!(self, Kind::Join | Kind::Leave)
    }

    /// Why it can't be asked of any group.
    pub fn fault(&self) -> Option<(Code, &'static str)> {
        let names = |users: &[String]| match users {
            _ if !users.iter().all(|user| is_name(user)) => {
                Some((Code::BadRequest, "a user's name is not valid"))
            }
            _ if users.len() > GROUP_USERS_MAX => Some((Code::LimitReached, "too many users at once")),
            _ => None,
        };
        let text = |text: Option<&Bytes>| match text {
            Some(text) if text.len() > ABOUT_BYTES_MAX => {
                Some((Code::PayloadTooLarge, "about and announcement have at most 4 KiB"))
            }
            _ => None,
        };
        let policy = |join: i32| match JoinPolicy::try_from(join) {
            Ok(_) => None,
            Err(_) => Some((Code::BadRequest, "no such policy")),
        };
        match self {
            Kind::Create(ask) if !ask.members.iter().all(|user| is_name(user)) => {
                Some((Code::BadRequest, "a member's name is not valid"))
            }
            Kind::Create(ask) => text(Some(&ask.about)).or(policy(ask.join)),
            Kind::Update(ask) => {
                text(ask.about.as_ref()).or(text(ask.announcement.as_ref())).or(ask.join.and_then(policy))
            }
            Kind::Invite(users) | Kind::Remove(users) => names(users),
            Kind::Role { role, .. } if Role::try_from(*role).is_err() => {
                Some((Code::BadRequest, "no such role"))
            }
            _ => None,
        }
    }
}

/// What comes of a change.
#[derive(Debug, Default)]
pub struct Plan {
    /// The group begins.
    pub create: bool,
    /// The group ends.
    pub dissolve: bool,
    /// It concerns nothing but the asker's own membership: it may share a round with others of its kind, and its note
    /// is theirs together.
    pub ordinary: bool,
    /// New members.
    pub add: Vec<String>,
    /// Members who go.
    pub remove: Vec<String>,
    /// What is known of the group from then on.
    pub info: Option<Info>,
    /// Who asks to join from then on, and who does no more.
    pub asking: Vec<(String, bool)>,
    /// What the log is told.
    pub notes: Vec<GroupChange>,
    /// The asker only asks to join.
    pub asks: bool,
}

/// A judgement.
#[derive(Debug)]
pub enum Verdict {
    /// It may not be.
    Refused(Code, &'static str),
    /// It is so already.
    Done,
    /// The asker is in already.
    In,
    /// The asker waits for an answer to an earlier join.
    Asks,
    /// It is to be carried out.
    Plan(Box<Plan>),
}

fn planned(plan: Plan) -> Verdict {
    Verdict::Plan(Box::new(plan))
}

/// The group as it is.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    /// `None`: there is no such group, or no more.
    pub members: Option<&'a Members>,
    /// The rest.
    pub group: &'a Group,
    /// Users who come in by the same round.
    pub coming: usize,
    /// Members at most.
    pub members_max: usize,
    /// Wall clock, ms.
    pub wall_ms: u64,
}

const FULL: Verdict = Verdict::Refused(Code::LimitReached, "the group is full");
const ADMINS_ONLY: Verdict = Verdict::Refused(Code::NotAllowed, "only an admin of the group may");
const OWNER_ONLY: Verdict = Verdict::Refused(Code::NotAllowed, "only the owner of the group may");
const NO_MEMBER: Verdict = Verdict::Refused(Code::NotMember, "not a member of this group");

/// Judges what `user` asks.
pub fn judge(standing: Standing, user: &str, kind: &Kind) -> Verdict {
    let Some(members) = standing.members else {
        return match kind {
            Kind::Create(_) if standing.group.info().dissolved => {
                Verdict::Refused(Code::GroupExists, "there was a group of this name")
            }
            Kind::Create(ask) => create(standing, user, ask),
            _ => Verdict::Refused(Code::NoSuchGroup, "there is no such group"),
        };
    };
    let info = standing.group.info();
    match kind {
        Kind::Create(_) => return Verdict::Refused(Code::GroupExists, "the group exists"),
        Kind::Join => return join(standing, members, user),
        _ if !members.contains(user) => return NO_MEMBER,
        _ => {}
    }
    match kind {
        Kind::Create(_) | Kind::Join => NO_MEMBER,
        Kind::Leave => leave(members, info, user),
        Kind::Invite(users) => invite(standing, members, user, users),
        Kind::Dissolve if info.role(user) != Role::Owner => OWNER_ONLY,
        Kind::Dissolve => planned(Plan {
            dissolve: true,
            info: Some(Info { dissolved: true, ..Info::default() }),
            asking: standing.group.asking.iter().map(|user| (user.clone(), false)).collect(),
            notes: vec![note(Became::Dissolved, user, &[])],
            ..Plan::default()
        }),
        Kind::Role { .. } if info.role(user) != Role::Owner => OWNER_ONLY,
        Kind::Role { user: other, role } => role_of(members, info, user, other, *role),
        _ if !info.is_admin(user) => ADMINS_ONLY,
        Kind::Answer { user: other, accept } => answer(standing, members, user, other, *accept),
        Kind::Remove(users) => remove(members, info, user, users),
        Kind::Mute { user: other, until_ms } => mute(standing, members, user, other, *until_ms),
        Kind::Update(ask) => update(info, user, ask),
    }
}

fn create(standing: Standing, user: &str, ask: &GroupCreate) -> Verdict {
    let mut add: Vec<String> = ask.members.iter().cloned().chain([user.to_owned()]).collect();
    add.sort_unstable();
    add.dedup();
    if add.len() > standing.members_max {
        return Verdict::Refused(Code::LimitReached, "too many members");
    }
    let info = Info { owner: user.to_owned(), about: ask.about.clone(), join: ask.join(), ..Info::default() };
    let notes = vec![note(Became::Created, user, &add)];
    planned(Plan { create: true, add, info: Some(info), notes, ..Plan::default() })
}

fn join(standing: Standing, members: &Members, user: &str) -> Verdict {
    if members.contains(user) {
        return Verdict::In;
    }
    let info = standing.group.info();
    let asks = standing.group.asking.contains(user);
    if info.join == JoinPolicy::Invite || info.join == JoinPolicy::Request && members.count() == 0 {
        return Verdict::Refused(Code::NotAllowed, "only who is invited may join");
    }
    if members.count() + standing.coming >= standing.members_max {
        return FULL;
    }
    if info.join == JoinPolicy::Request {
        return match asks {
            true => Verdict::Asks,
            false if standing.group.asking.len() >= ASKING_MAX => {
                Verdict::Refused(Code::LimitReached, "too many wait to be let in")
            }
            false => {
                let asking = vec![(user.to_owned(), true)];
                planned(Plan { asks: true, asking, ..Plan::default() })
            }
        };
    }
    let add = vec![user.to_owned()];
    if members.count() == 0 {
        // Everyone has left: the first to come back has it.
        let info = Info { owner: user.to_owned(), admins: Vec::new(), ..info.clone() };
        let notes = vec![note(Became::Joined, user, &add), to_role(user, user, Role::Owner)];
        return planned(Plan { add, info: Some(info), notes, ..Plan::default() });
    }
    let asking: Vec<_> = asks.then(|| (user.to_owned(), false)).into_iter().collect();
    let ordinary = asking.is_empty();
    let notes = if ordinary { Vec::new() } else { vec![note(Became::Joined, user, &add)] };
    planned(Plan { ordinary, add, asking, notes, ..Plan::default() })
}

/// An owner who leaves is followed by the admin who was made one first, or else by the first member by name.
fn leave(members: &Members, info: &Info, user: &str) -> Verdict {
    let remove = vec![user.to_owned()];
    if !info.is_admin(user) {
        return planned(Plan { ordinary: true, remove, ..Plan::default() });
    }
    let mut notes = vec![note(Became::Left, user, &remove)];
    let mut info = info.clone();
    info.admins.retain(|admin| admin != user);
    if info.owner == user {
        let first = || members.after("").find(|member| *member != user).map(str::to_owned);
        info.owner = match info.admins.is_empty() {
            false => info.admins.remove(0),
            true => first().unwrap_or_default(),
        };
        if !info.owner.is_empty() {
            notes.push(to_role(user, &info.owner, Role::Owner));
        }
    }
    planned(Plan { remove, info: Some(info), notes, ..Plan::default() })
}

fn invite(standing: Standing, members: &Members, user: &str, users: &[String]) -> Verdict {
    let info = standing.group.info();
    if info.join == JoinPolicy::Invite && !info.is_admin(user) {
        return ADMINS_ONLY;
    }
    let mut add: Vec<String> = users.iter().filter(|user| !members.contains(user)).cloned().collect();
    add.sort_unstable();
    add.dedup();
    if add.is_empty() {
        return Verdict::Done;
    }
    if members.count() + add.len() > standing.members_max {
        return FULL;
    }
    let asked = add.iter().filter(|user| standing.group.asking.contains(*user));
    let asking = asked.map(|user| (user.clone(), false)).collect();
    let notes = vec![note(Became::Invited, user, &add)];
    planned(Plan { add, asking, notes, ..Plan::default() })
}

fn answer(standing: Standing, members: &Members, user: &str, other: &str, accept: bool) -> Verdict {
    if !standing.group.asking.contains(other) {
        return match members.contains(other) {
            true => Verdict::Done,
            false => Verdict::Refused(Code::BadRequest, "this user does not ask to join"),
        };
    }
    let asking = vec![(other.to_owned(), false)];
    if !accept {
        return planned(Plan { asking, ..Plan::default() });
    }
    if members.count() >= standing.members_max {
        return FULL;
    }
    let add = vec![other.to_owned()];
    let notes = vec![note(Became::Joined, user, &add)];
    planned(Plan { add, asking, notes, ..Plan::default() })
}

fn remove(members: &Members, info: &Info, user: &str, users: &[String]) -> Verdict {
    let mut remove: Vec<String> = users.iter().filter(|user| members.contains(user)).cloned().collect();
    remove.sort_unstable();
    remove.dedup();
    if remove.iter().any(|other| info.role(other) >= info.role(user)) {
        return Verdict::Refused(Code::NotAllowed, "only members below the asker can be removed");
    }
    if remove.is_empty() {
        return Verdict::Done;
    }
    let goes = |admin: &String| remove.binary_search(admin).is_ok();
    let info = info.admins.iter().any(goes).then(|| {
        let mut info = info.clone();
        info.admins.retain(|admin| !goes(admin));
        info
    });
    let notes = vec![note(Became::Removed, user, &remove)];
    planned(Plan { remove, info, notes, ..Plan::default() })
}

fn to_role(by: &str, user: &str, role: Role) -> GroupChange {
    GroupChange { role: role as i32, ..note(Became::Role, by, &[user.to_owned()]) }
}

/// By the owner.
fn role_of(members: &Members, info: &Info, user: &str, other: &str, role: i32) -> Verdict {
    let role = Role::try_from(role).unwrap_or_default();
    if !members.contains(other) {
        return NO_MEMBER;
    }
    if info.role(other) == role {
        return Verdict::Done;
    }
    if other == user {
        return Verdict::Refused(Code::NotAllowed, "another member must be made the owner first");
    }
    let mut info = info.clone();
    info.admins.retain(|admin| admin != other);
    let becomes_admin = match role {
        Role::Member => None,
        Role::Admin => Some(other.to_owned()),
        Role::Owner => Some(std::mem::replace(&mut info.owner, other.to_owned())),
    };
    info.admins.extend(becomes_admin);
    if info.admins.len() > ADMINS_MAX {
        return Verdict::Refused(Code::LimitReached, "the group has too many admins");
    }
    let notes = vec![to_role(user, other, role)];
    planned(Plan { info: Some(info), notes, ..Plan::default() })
}

/// By an admin.
fn mute(standing: Standing, members: &Members, user: &str, other: &str, until_ms: u64) -> Verdict {
    let mut info = standing.group.info().clone();
    let users = match other {
        "" => {
            let mute_all = until_ms != 0;
            if info.mute_all == mute_all {
                return Verdict::Done;
            }
            info.mute_all = mute_all;
            Vec::new()
        }
        _ if !members.contains(other) => return NO_MEMBER,
        _ if info.is_admin(other) => return Verdict::Refused(Code::NotAllowed, "admins are not muted"),
        _ if !info.mute(other, until_ms, standing.wall_ms) => {
            return Verdict::Refused(Code::LimitReached, "too many members are muted");
        }
        _ => vec![other.to_owned()],
    };
    if info == *standing.group.info() {
        return Verdict::Done;
    }
    let notes = vec![GroupChange { until_ms, ..note(Became::Muted, user, &users) }];
    planned(Plan { info: Some(info), notes, ..Plan::default() })
}

/// By an admin.
fn update(info: &Info, user: &str, ask: &GroupUpdate) -> Verdict {
    let mut changed = info.clone();
    if let Some(about) = &ask.about {
        changed.about = about.clone();
    }
    if let Some(announcement) = &ask.announcement {
        changed.announcement = announcement.clone();
    }
    if ask.join.is_some() {
        changed.join = ask.join();
    }
    if changed == *info {
        return Verdict::Done;
    }
    planned(Plan { info: Some(changed), notes: vec![note(Became::Updated, user, &[])], ..Plan::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ann owns a group of `count` others, full at ten thousand.
    fn check(count: usize, prepare: impl Fn(&mut Group, &mut Info), kind: &Kind, refused: Option<Code>) {
        let others = (0..count).map(|n| format!("u{n}"));
        let members = Members::new(others.chain(["ann".to_owned()]).collect(), 1);
        let (mut group, mut info) = (Group::default(), Info { owner: "ann".into(), ..Info::default() });
        prepare(&mut group, &mut info);
        group.set(info);
        let standing =
            Standing { members: Some(&members), group: &group, coming: 0, members_max: 10_000, wall_ms: 7 };
        let user = if matches!(kind, Kind::Join) { "zoe" } else { "ann" };
        let code = match kind.fault() {
            Some((code, _)) => Some(code),
            None => match judge(standing, user, kind) {
                Verdict::Refused(code, _) => Some(code),
                _ => None,
            },
        };
        assert_eq!(code, refused, "{kind:?}");
    }

    #[test]
    fn every_table_of_a_group_has_an_end() {
        let names = |count: usize| (0..count).map(|n| format!("new-{n}")).collect::<Vec<_>>();
        let full = Some(Code::LimitReached);
        let plain = |_: &mut Group, _: &mut Info| {};
        check(9_998, plain, &Kind::Invite(names(1)), None);
        check(9_998, plain, &Kind::Invite(names(2)), full);
        check(9_999, plain, &Kind::Join, full);
        check(1, plain, &Kind::Invite(names(GROUP_USERS_MAX)), None);
        check(1, plain, &Kind::Invite(names(GROUP_USERS_MAX + 1)), full);
        check(1, plain, &Kind::Remove(names(GROUP_USERS_MAX + 1)), full);
        let with_admins = |count: usize| {
            move |_: &mut Group, info: &mut Info| info.admins = (0..count).map(|n| format!("u{n}")).collect()
        };
        let role = |role: Role| Kind::Role { user: "u99".into(), role: role as i32 };
        check(100, with_admins(ADMINS_MAX - 1), &role(Role::Admin), None);
        check(100, with_admins(ADMINS_MAX), &role(Role::Admin), full);
        check(100, with_admins(ADMINS_MAX), &role(Role::Owner), full);
        let with_asking = |count: usize| {
            move |group: &mut Group, info: &mut Info| {
                info.join = JoinPolicy::Request;
                group.asking = (0..count).map(|n| format!("new-{n}")).collect();
            }
        };
        check(1, with_asking(ASKING_MAX - 1), &Kind::Join, None);
        check(1, with_asking(ASKING_MAX), &Kind::Join, full);
        check(9_999, with_asking(1), &Kind::Answer { user: "new-0".into(), accept: true }, full);
        check(9_999, with_asking(1), &Kind::Answer { user: "new-0".into(), accept: false }, None);
        let text = Bytes::from(vec![0; ABOUT_BYTES_MAX + 1]);
        let update = GroupUpdate { about: Some(text.slice(1..)), ..GroupUpdate::default() };
        check(1, plain, &Kind::Update(update), None);
        let update = GroupUpdate { about: Some(text), ..GroupUpdate::default() };
        check(1, plain, &Kind::Update(update), Some(Code::PayloadTooLarge));
    }
}
