//! From a job to its commands, and from their replies to its outcome. Batches are [`super::append`]'s; claims take more
//! than one step: [`super::claim`].
//!
//! The rule that keeps it right: a job's commands can be sent in one pipeline with all others', because none of them
//! needs another's reply; and each of them touches keys of one partition only, so that a cluster can be served.

use bytes::Bytes;
use fred::types::Value;
use millrace_protocol::ids::{Partition, SessionId};

use super::command::{Command, ScriptId, fixed, list, number, text, to_number, to_text, word};
use super::keys::Keys;
use super::reply;
use crate::store::policy::ROUTES_PER_USER_MAX;
use crate::store::{
    Change, CursorsOf, Fence, List, Outcome, Registration, Route, StoreError, StreamKey, UserItem, Work,
};

/// How the replies of a job are read.
#[derive(Debug)]
pub(super) enum Reading {
    Release { partition: Partition, fence: Fence },
    Load { partition: Partition, fence: Fence, conversation: String, stream: Option<StreamKey> },
    Read { partition: Partition, conversation: String },
    Answers { partition: Partition, conversation: String, stream: StreamKey },
    Cursors { partition: Partition, conversation: String },
    UserItems { partition: Partition },
    UserList { limit: usize },
    Register { partition: Partition },
    Unregister,
    ForgetLosers,
    Routes,
    Leave { node: String },
    GatewayLease,
}

pub(super) fn release(
    keys: &Keys,
    partition: Partition,
    fence: Fence,
) -> Result<(Vec<Command>, Reading), StoreError> {
    let nonce = draw_nonce()?;
    let args = vec![number(fence.epoch), number(fence.nonce), number(nonce)];
    let command = Command::script(ScriptId::Release, vec![keys.fence(partition)], args);
    Ok((vec![command], Reading::Release { partition, fence }))
}

/// What tells two holders of one epoch apart.
pub(super) fn draw_nonce() -> Result<u64, StoreError> {
    getrandom::u64().map_err(|e| StoreError::Unavailable(format!("no randomness for a nonce: {e}")))
}

pub(super) fn load(
    keys: &Keys,
    partition: Partition,
    fence: Fence,
    conversation: String,
    stream: Option<StreamKey>,
) -> (Vec<Command>, Reading) {
    let names = vec![
        keys.fence(partition),
        keys.log(partition, &conversation),
        keys.members(partition, &conversation),
        keys.state(partition, &conversation),
    ];
    let mut commands = vec![Command::script(ScriptId::Load, names, shown(fence))];
    commands.extend(stream.as_ref().map(|stream| ask_answers(keys, partition, fence, &conversation, stream)));
    (commands, Reading::Load { partition, fence, conversation, stream })
}

pub(super) fn answers(
    keys: &Keys,
    partition: Partition,
    fence: Fence,
    conversation: String,
    stream: StreamKey,
) -> (Vec<Command>, Reading) {
    let command = ask_answers(keys, partition, fence, &conversation, &stream);
    (vec![command], Reading::Answers { partition, conversation, stream })
}

fn ask_answers(
    keys: &Keys,
    partition: Partition,
    fence: Fence,
    conversation: &str,
    stream: &StreamKey,
) -> Command {
    let names = vec![
        keys.fence(partition),
        keys.log(partition, conversation),
        keys.answers(partition, conversation, stream),
    ];
    let mut args = shown(fence);
    args.push(Value::Bytes(Bytes::copy_from_slice(&stream.stream.to_be_bytes())));
    Command::script(ScriptId::Answers, names, args)
}

pub(super) fn cursors(
    keys: &Keys,
    partition: Partition,
    fence: Fence,
    conversation: String,
    of: &CursorsOf,
) -> (Vec<Command>, Reading) {
    // Names have no byte as low as 0 or 1.
    let (from, to, limit) = match of {
        CursorsOf::User(user) => (format!("[{user}\0"), format!("({user}\x01"), None),
        CursorsOf::All { after: (user, device), limit } => {
            let begin = user.is_empty() && device.is_empty();
            let from = if begin { "-".into() } else { format!("({user}\0{device}\x01") };
            (from, "+".to_owned(), Some(*limit))
        }
    };
    let mut args = shown(fence);
    args.extend([text(&from), text(&to), at_most(limit)]);
    let names = vec![keys.fence(partition), keys.cursors(partition, &conversation)];
    (vec![Command::script(ScriptId::Cursors, names, args)], Reading::Cursors { partition, conversation })
}

/// The command of a [`Work::Read`].
pub(super) fn read(keys: &Keys, work: Work) -> (Vec<Command>, Reading) {
    let Work::Read { partition, fence, conversation, after, through, limit_bytes, entries_max, newest_first } =
        work
    else {
        unreachable!("called for reads alone");
    };
    let mut names = vec![keys.log(partition, &conversation)];
    let mut args = vec![
        number(after.saturating_add(1)),
        number(through),
        number(limit_bytes as u64),
        number(entries_max as u64),
        number(u64::from(newest_first)),
    ];
    if let Some(fence) = fence {
        names.push(keys.fence(partition));
        args.extend(shown(fence));
    }
    (vec![Command::script(ScriptId::Read, names, args)], Reading::Read { partition, conversation })
}

/// One call for all items of a user's list that follow one another. In a cluster a script takes keys of one slot: there the
/// claim is compared where the list is in its partition.
pub(super) fn user_items(
    keys: &Keys,
    items: &[UserItem],
    claim: Option<(Partition, Fence)>,
    is_cluster: bool,
) -> (Vec<Command>, Reading) {
    let of_one_list = |a: &UserItem, b: &UserItem| (&a.user, a.list) == (&b.user, b.list);
    let call = |items: &[UserItem]| {
        let home = keys.home(&items[0].user);
        let claim = claim.filter(|(partition, _)| !is_cluster || *partition == home);
        let names = vec![keys.list(&items[0].user, items[0].list)];
        let names = names.into_iter().chain(claim.map(|(partition, _)| keys.fence(partition))).collect();
        let args = claim.into_iter().flat_map(|(_, fence)| shown(fence));
        let arg = |it: &UserItem| {
            let (change, value) = match &it.change {
                Change::Put(value) => ("p", Value::Bytes(value.clone())),
                Change::Add(value) => ("a", Value::Bytes(value.clone())),
                Change::Remove => ("r", word("")),
            };
            [text(change), text(&it.item), value]
        };
        Command::script(ScriptId::Items, names, args.chain(items.iter().flat_map(arg)).collect())
    };
    let partition = claim.map_or(0, |(partition, _)| partition);
    (items.chunk_by(of_one_list).map(call).collect(), Reading::UserItems { partition })
}

pub(super) fn user_list(
    keys: &Keys,
    user: &str,
    list: List,
    after: &str,
    limit: usize,
) -> (Vec<Command>, Reading) {
    // Items have no byte as low as 0 or 1.
    let from = if after.is_empty() { "-".to_owned() } else { format!("({after}\x01") };
    let limits = [word("LIMIT"), number(0), at_most(Some(limit.saturating_add(1)))];
    let args = [text(&from), word("+")].into_iter().chain(limits).collect();
    (vec![Command::plain("ZRANGEBYLEX", keys.list(user, list), args)], Reading::UserList { limit })
}

/// A fence as scripts compare it.
fn shown(fence: Fence) -> Vec<Value> {
    vec![number(fence.epoch), number(fence.nonce)]
}

/// A session as routes name it.
fn hex(session: SessionId) -> Value {
    text(&format!("{:016x}", session.0))
}

/// A count as Redis takes it, where -1 means all.
fn at_most(limit: Option<usize>) -> Value {
    match limit {
        Some(limit) => number(limit.min(i64::MAX as usize) as u64),
        None => word("-1"),
    }
}

pub(super) fn register(keys: &Keys, registration: &Registration) -> (Vec<Command>, Reading) {
    let user = registration.user.as_str();
    let mut args = vec![
        text(&registration.device),
        text(&registration.platform),
        hex(registration.session),
        number(registration.incarnation),
        number(registration.login_number),
        number(registration.wall_ms),
        number(u64::from(registration.newest_wins)),
        number(ROUTES_PER_USER_MAX as u64),
    ];
    let mut names = vec![keys.routes(user), keys.list(user, List::Groups), keys.logins(user)];
    if let Some((partition, fence)) = registration.claim {
        names.extend([keys.fence(partition), keys.lost(partition)]);
        args.extend(shown(fence));
        args.push(text(user));
    }
    let partition = registration.claim.map_or(0, |(partition, _)| partition);
    (vec![Command::script(ScriptId::Register, names, args)], Reading::Register { partition })
}

pub(super) fn unregister(
    keys: &Keys,
    user: &str,
    device: &str,
    session: SessionId,
    login_number: u64,
    incarnation: u64,
) -> (Vec<Command>, Reading) {
    let args = vec![text(device), number(login_number), number(incarnation), hex(session)];
    (vec![Command::script(ScriptId::Unregister, vec![keys.routes(user)], args)], Reading::Unregister)
}

pub(super) fn forget_losers(
    keys: &Keys,
    partition: Partition,
    losers: &[(String, Route)],
) -> (Vec<Command>, Reading) {
    let members = losers.iter().map(|(user, route)| {
        let Route { device, platform, session, incarnation, login_number } = route;
        text(&format!("{user}\0{device}\0{login_number}:{incarnation}:{:016x}:{platform}", session.0))
    });
    (vec![Command::plain("ZREM", keys.lost(partition), members.collect())], Reading::ForgetLosers)
}

pub(super) fn routes(keys: &Keys, users: &[String]) -> (Vec<Command>, Reading) {
    let command = |user: &String| Command::plain("HGETALL", keys.routes(user), Vec::new());
    (users.iter().map(command).collect(), Reading::Routes)
}

pub(super) fn leave(keys: &Keys, node: String, incarnation: u64) -> (Vec<Command>, Reading) {
    let args = vec![text(&node), number(incarnation)];
    let command = Command::script(ScriptId::Leave, vec![keys.node(&node), keys.names()], args);
    (vec![command], Reading::Leave { node })
}

pub(super) fn gateway_lease(
    keys: &Keys,
    gateway: u16,
    incarnation: u64,
    replaces: u64,
    grant: u64,
    ttl_ms: u32,
) -> (Vec<Command>, Reading) {
    let ttl_ms = u64::from(ttl_ms.max(1));
    let args = [u64::from(gateway), incarnation, ttl_ms, replaces, grant].map(number).to_vec();
    let names = vec![keys.gateway(&gateway.to_string()), keys.lives()];
    (vec![Command::script(ScriptId::Gateway, names, args)], Reading::GatewayLease)
}

impl Reading {
    /// Whether what it wrote or read must be on replicas before it is answered, where that is asked for. Routes and leases
    /// are made again by those who hold them.
    pub(super) fn waits(&self) -> bool {
        match self {
            Reading::Release { .. }
            | Reading::Load { .. }
            | Reading::Read { .. }
            | Reading::Answers { .. }
            | Reading::Cursors { .. }
            | Reading::UserItems { .. }
            | Reading::UserList { .. } => true,
            Reading::Register { .. }
            | Reading::Unregister
            | Reading::ForgetLosers
            | Reading::Routes
            | Reading::Leave { .. }
            | Reading::GatewayLease => false,
        }
    }

    /// What came of the job; `replies` are those of its commands, in order.
    pub(super) fn outcome(&self, replies: Vec<Value>) -> Result<Outcome, StoreError> {
        let mut replies = replies.into_iter();
        let mut one =
            || replies.next().ok_or_else(|| StoreError::Corrupted("a command without a reply".into()));
        Ok(match self {
            Reading::Release { partition, .. } => {
                reply::refusal(*partition, 0, one()?)?;
                Outcome::Released
            }
            Reading::Load { partition, conversation, stream, .. } => {
                let mut loaded = reply::loaded(conversation, reply::refusal(*partition, 0, one()?)?)?;
                if let Some(stream) = stream {
                    loaded.answers =
                        reply::answers(conversation, stream, reply::refusal(*partition, 0, one()?)?)?;
                }
                Outcome::Loaded(loaded)
            }
            Reading::Read { partition, conversation } => {
                let [first_seq, head, found] = fixed(Value::Array(reply::refusal(*partition, 0, one()?)?))?;
                Outcome::Entries {
                    entries: reply::entries(conversation, found)?,
                    first_seq: to_number(first_seq)?,
                    head: to_number(head)?,
                }
            }
            Reading::Answers { partition, conversation, stream } => Outcome::Answers(reply::answers(
                conversation,
                stream,
                reply::refusal(*partition, 0, one()?)?,
            )?),
            Reading::Cursors { partition, conversation } => {
                let [cursors] = fixed(Value::Array(reply::refusal(*partition, 0, one()?)?))?;
                Outcome::Cursors(reply::cursors(conversation, cursors)?)
            }
            Reading::UserItems { partition } => {
                replies.try_for_each(|reply| reply::refusal(*partition, 0, reply).map(drop))?;
                Outcome::UserItemsDone
            }
            Reading::UserList { limit } => {
                let mut items = reply::items(one()?)?;
                let more = items.len() > *limit;
                items.truncate(*limit);
                Outcome::UserList { items, more }
            }
            Reading::Register { partition } => {
                let found = Value::Array(reply::refusal(*partition, 0, one()?)?);
                let [login_number, lost, losers, groups] = fixed(found)?;
                let mut losers = reply::routes(losers)?;
                losers.sort_by_key(|route| route.login_number);
                Outcome::Registered {
                    login_number: to_number(login_number)?,
                    lost: to_number(lost)? == 1,
                    losers,
                    groups: list(groups)?.into_iter().map(to_text).collect::<Result<_, _>>()?,
                }
            }
            Reading::Unregister => Outcome::Unregistered,
            Reading::ForgetLosers => Outcome::LosersForgotten,
            Reading::Routes => Outcome::Routes(replies.map(reply::routes).collect::<Result<_, _>>()?),
            Reading::Leave { .. } => Outcome::Left,
            Reading::GatewayLease => Outcome::GatewayLease { grant: to_number(one()?)? },
        })
    }
}
