//! From a job to its commands, and from their replies to its outcome. Claims take more than one step: [`super::claim`].
//!
//! The rule that keeps it right: a job's commands can be sent in one pipeline with all others', because none of them
//! needs another's reply.

use std::collections::HashMap;

use bytes::Bytes;
use fred::types::Value;
use millrace_protocol::ids::{Partition, SessionId};

use super::command::{Command, ScriptId, fixed, list, number, pairs, text, to_bytes, to_number, to_text};
use super::keys::Keys;
use crate::store::policy::ROUTES_PER_USER_MAX;
use crate::store::{
    Batch, Change, Entry, Fence, Loaded, Outcome, Registration, Route, StoreError, UserItem, Write, record,
};

/// How the replies of a job are read.
#[derive(Debug)]
pub(super) enum Reading {
    Append { partition: Partition, fence: Fence, position: u64 },
    Release { partition: Partition, fence: Fence },
    Load { partition: Partition, fence: Fence, conversation: String },
    Read { conversation: String },
    UserItems,
    Register,
    Unregister,
    Routes,
    Leave { node: String },
    GatewayLease,
}

pub(super) fn append(keys: &Keys, batch: &Batch) -> (Vec<Command>, Reading) {
    let partition = batch.partition;
    let mut names = vec![keys.fence(partition)];
    let mut index: HashMap<(char, &str), usize> = HashMap::new();
    let mut key = |kind: char, conversation| {
        *index.entry((kind, conversation)).or_insert_with(|| {
            names.push(match kind {
                'M' => keys.log(partition, conversation),
                _ => keys.members(partition, conversation),
            });
            names.len()
        }) as u64
    };
    let newest = batch.writes.iter().filter_map(|write| match write {
        Write::Message(entry) => Some(entry.message_id),
        _ => None,
    });
    let highest = newest.max().map_or_else(String::new, |id| format!("{:020}", id.0));
    let mut args =
        vec![number(batch.fence.epoch), number(batch.fence.nonce), number(batch.position), text(&highest)];
    for write in &batch.writes {
        match write {
            Write::Message(entry) => {
                let key = key('M', &entry.conversation);
                let record = Value::Bytes(record::encode(entry).into());
                args.extend([text("M"), number(key), number(entry.seq), record]);
            }
            Write::GroupCreate { conversation, members, version } => {
                members_args(&mut args, key('G', conversation), *version, members, &[]);
            }
            Write::Members { conversation, add, remove, version } => {
                members_args(&mut args, key('G', conversation), *version, add, remove);
            }
            _ => {}
        }
    }
    let reading = Reading::Append { partition, fence: batch.fence, position: batch.position };
    (vec![Command::script(ScriptId::Append, names, args)], reading)
}

fn members_args(args: &mut Vec<Value>, key: u64, version: u64, add: &[String], remove: &[String]) {
    args.extend([text("G"), number(key), number(version)]);
    for names in [add, remove] {
        args.push(number(names.len() as u64));
        args.extend(names.iter().map(|name| text(name)));
    }
}

pub(super) fn release(keys: &Keys, partition: Partition, fence: Fence) -> (Vec<Command>, Reading) {
    let args = vec![number(fence.epoch), number(fence.nonce)];
    let command = Command::script(ScriptId::Release, vec![keys.fence(partition)], args);
    (vec![command], Reading::Release { partition, fence })
}

pub(super) fn load(
    keys: &Keys,
    partition: Partition,
    fence: Fence,
    conversation: String,
) -> (Vec<Command>, Reading) {
    let names = vec![
        keys.fence(partition),
        keys.log(partition, &conversation),
        keys.members(partition, &conversation),
    ];
    let args = vec![number(fence.epoch), number(fence.nonce), number(1)];
    let command = Command::script(ScriptId::Load, names, args);
    (vec![command], Reading::Load { partition, fence, conversation })
}

pub(super) fn read(
    keys: &Keys,
    partition: Partition,
    conversation: String,
    after: u64,
    through: u64,
    limit_bytes: usize,
) -> (Vec<Command>, Reading) {
    let args = vec![number(after.saturating_add(1)), number(through), number(limit_bytes as u64)];
    let command = Command::script(ScriptId::Read, vec![keys.log(partition, &conversation)], args);
    (vec![command], Reading::Read { conversation })
}

pub(super) fn user_items(keys: &Keys, items: &[UserItem]) -> (Vec<Command>, Reading) {
    let command = |it: &UserItem| {
        let name = if it.change == Change::Remove { "SREM" } else { "SADD" };
        Command::plain(name, keys.groups(&it.user), vec![text(&it.item)])
    };
    (items.iter().map(command).collect(), Reading::UserItems)
}

pub(super) fn register(keys: &Keys, registration: &Registration) -> (Vec<Command>, Reading) {
    let user = registration.user.as_str();
    let args = vec![
        text(&registration.device),
        text(&registration.platform),
        text(&format!("{:016x}", registration.session.0)),
        number(registration.incarnation),
        number(registration.login_number),
        number(registration.wall_ms),
        number(u64::from(registration.newest_wins)),
        number(ROUTES_PER_USER_MAX as u64),
    ];
    let names = vec![keys.routes(user), keys.groups(user), keys.logins(user)];
    (vec![Command::script(ScriptId::Register, names, args)], Reading::Register)
}

pub(super) fn unregister(
    keys: &Keys,
    user: &str,
    device: &str,
    login_number: u64,
    incarnation: u64,
) -> (Vec<Command>, Reading) {
    let args = vec![text(device), number(login_number), number(incarnation)];
    (vec![Command::script(ScriptId::Unregister, vec![keys.routes(user)], args)], Reading::Unregister)
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
    ttl_ms: u32,
) -> (Vec<Command>, Reading) {
    let ttl_ms = u64::from(ttl_ms.max(1));
    let args = vec![number(u64::from(gateway)), number(incarnation), number(ttl_ms), number(replaces)];
    let names = vec![keys.gateway(&gateway.to_string()), keys.lives()];
    (vec![Command::script(ScriptId::Gateway, names, args)], Reading::GatewayLease)
}

impl Reading {
    /// What came of the job; `replies` are those of its commands, in order.
    pub(super) fn outcome(&self, replies: Vec<Value>) -> Result<Outcome, StoreError> {
        let mut replies = replies.into_iter();
        let mut one =
            || replies.next().ok_or_else(|| StoreError::Corrupted("a command without a reply".into()));
        Ok(match self {
            Reading::Append { partition, position, .. } => {
                refusal(*partition, *position, list(one()?)?)?;
                Outcome::Appended
            }
            Reading::Release { partition, .. } => {
                refusal(*partition, 0, list(one()?)?)?;
                Outcome::Released
            }
            Reading::Load { partition, conversation, .. } => {
                let reply = refusal(*partition, 0, list(one()?)?)?;
                Outcome::Loaded(loaded(conversation, reply)?)
            }
            Reading::Read { conversation } => {
                let [first, found] = fixed(one()?)?;
                let entries = list(found)?
                    .into_iter()
                    .map(|e| entry(conversation, e))
                    .collect::<Result<Vec<_>, _>>()?;
                Outcome::Entries { entries, first_seq: seq(&to_text(first)?).unwrap_or(1), head: 0 }
            }
            Reading::UserItems => Outcome::UserItemsDone,
            Reading::Register => {
                let [login_number, lost, losers, groups] = fixed(one()?)?;
                let mut losers = to_routes(losers)?;
                losers.sort_by_key(|route| route.login_number);
                Outcome::Registered {
                    login_number: to_number(login_number)?,
                    lost: to_number(lost)? == 1,
                    losers,
                    groups: list(groups)?.into_iter().map(to_text).collect::<Result<_, _>>()?,
                }
            }
            Reading::Unregister => Outcome::Unregistered,
            Reading::Routes => Outcome::Routes(replies.map(to_routes).collect::<Result<_, _>>()?),
            Reading::Leave { .. } => Outcome::Left,
            Reading::GatewayLease => {
                let [granted, was_missing] = fixed(one()?)?;
                Outcome::GatewayLease {
                    granted: to_number(granted)? == 1,
                    was_missing: to_number(was_missing)? == 1,
                }
            }
        })
    }
}

/// Reads the first word of a fenced script's reply and hands on the rest if it is 'ok'.
fn refusal(partition: Partition, given: u64, reply: Vec<Value>) -> Result<Vec<Value>, StoreError> {
    let mut rest = reply.into_iter();
    let word = to_text(rest.next().unwrap_or(Value::Null))?;
    match word.as_str() {
        "ok" => Ok(rest.collect()),
        "fenced" => Err(StoreError::Fenced { partition }),
        "position" => {
            let expected = to_number(rest.next().unwrap_or(Value::Null))?;
            Err(StoreError::Position { partition, expected, given })
        }
        "dense" => {
            let rest = rest.map(to_text).collect::<Result<Vec<_>, _>>()?;
            Err(StoreError::Corrupted(format!("log, its end and what was to follow: {}", rest.join(", "))))
        }
        other => Err(StoreError::Corrupted(format!("a script answered «{other}»"))),
    }
}

fn loaded(conversation: &str, reply: Vec<Value>) -> Result<Loaded, StoreError> {
    let [members, recent] = fixed(Value::Array(reply))?;
    let mut version = None;
    let mut names = Vec::new();
    for (member, value) in pairs(members)? {
        match to_text(member)? {
            member if member.is_empty() => version = Some(to_number(value)?),
            member => names.push(member),
        }
    }
    let members = match version {
        None if !names.is_empty() => {
            return Err(StoreError::Corrupted(format!("the members of {conversation}")));
        }
        version => version.map(|version| {
            names.sort_unstable();
            (names, version)
        }),
    };
    let mut recent =
        list(recent)?.into_iter().map(|e| entry(conversation, e)).collect::<Result<Vec<_>, _>>()?;
    let newest = recent.pop();
    let of = |it: fn(&Entry) -> u64| newest.as_ref().map_or(0, it);
    Ok(Loaded {
        head: of(|newest| newest.seq),
        head_epoch: of(|newest| newest.epoch),
        messages: of(|newest| newest.messages),
        bytes: of(|newest| newest.bytes),
        first_seq: 1,
        members,
        state: Vec::new(),
        answers: Vec::new(),
    })
}

/// One element of a stream: [id, [field, record]].
fn entry(conversation: &str, element: Value) -> Result<Entry, StoreError> {
    let [id, fields] = fixed(element)?;
    let id = to_text(id)?;
    let named = |what: String| StoreError::Corrupted(format!("log of {conversation}, id {id}: {what}"));
    let bytes: Bytes = match list(fields)?.into_iter().nth(1) {
        Some(record) => to_bytes(record)?,
        None => return Err(named("no record".into())),
    };
    let entry = record::decode(conversation, bytes).map_err(|e| named(e.to_string()))?;
    if seq(&id) != Some(entry.seq) {
        return Err(named(format!("it holds seq {}", entry.seq)));
    }
    Ok(entry)
}

/// The seq in a stream id `<seq>-0`.
fn seq(id: &str) -> Option<u64> {
    id.strip_suffix("-0")?.parse().ok()
}

fn to_routes(value: Value) -> Result<Vec<Route>, StoreError> {
    let mut routes = pairs(value)?
        .into_iter()
        .map(|(device, packed)| {
            let (device, packed) = (to_text(device)?, to_text(packed)?);
            route(&device, &packed)
                .ok_or_else(|| StoreError::Corrupted(format!("the route «{packed}» of device {device}")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    routes.sort_by_key(|route| route.login_number);
    Ok(routes)
}

fn route(device: &str, packed: &str) -> Option<Route> {
    let mut parts = packed.splitn(4, ':');
    Some(Route {
        device: device.to_owned(),
        login_number: parts.next()?.parse().ok()?,
        incarnation: parts.next()?.parse().ok()?,
        session: SessionId(u64::from_str_radix(parts.next()?, 16).ok()?),
        platform: parts.next()?.to_owned(),
    })
}
