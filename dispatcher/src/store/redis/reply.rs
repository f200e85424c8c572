//! What scripts and commands answer, as the types of the trait.
//!
//! The rule that keeps it right: whatever can't be read is named by what it is, never skipped.

use bytes::Bytes;
use fred::types::Value;
use millrace_protocol::ids::{Partition, SessionId};

use super::command::{fixed, list, pairs, to_bytes, to_number, to_text};
use crate::store::{ANSWERS_MAX, Answer, Cursor, Entry, Loaded, Route, StoreError, StreamKey, pack, record};

/// Reads the first word of a fenced script's reply and hands on the rest if it is 'ok'.
pub(super) fn refusal(partition: Partition, given: u64, reply: Value) -> Result<Vec<Value>, StoreError> {
    let mut rest = list(reply)?.into_iter();
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
        "damaged" => {
            let rest = rest.map(to_text).collect::<Result<Vec<_>, _>>()?;
            let what = "log, and how many records it has, which are not those up to there";
            Err(StoreError::Corrupted(format!("{what}: {}", rest.join(", "))))
        }
        other => Err(StoreError::Corrupted(format!("a script answered «{other}»"))),
    }
}

/// The reply of `append.lua`: up to where the logs are filed that it looked at, in order.
pub(super) fn appended(partition: Partition, position: u64, reply: Value) -> Result<Vec<u64>, StoreError> {
    let [filed] = fixed(Value::Array(refusal(partition, position, reply)?))?;
    list(filed)?.into_iter().map(to_number).collect()
}

/// The reply of `load.lua`, behind its first word.
pub(super) fn loaded(conversation: &str, reply: Vec<Value>) -> Result<Loaded, StoreError> {
    let [head, first_seq, newest, members, state] = fixed(Value::Array(reply))?;
    let mut loaded = Loaded {
        head: to_number(head)?,
        first_seq: to_number(first_seq)?,
        members: to_members(conversation, members)?,
        ..Loaded::default()
    };
    for (key, value) in pairs(state)? {
        loaded.state.push((to_text(key)?, to_bytes(value)?));
    }
    loaded.state.sort_unstable();
    if loaded.head > 0 {
        let newest = entry(conversation, loaded.head, to_bytes(newest)?)?;
        loaded.head_epoch = newest.epoch;
        loaded.messages = newest.messages;
        loaded.bytes = newest.bytes;
    }
    Ok(loaded)
}

fn to_members(conversation: &str, members: Value) -> Result<Option<(Vec<String>, u64)>, StoreError> {
    let mut version = None;
    let mut names = Vec::new();
    for (member, value) in pairs(members)? {
        match to_text(member)? {
            member if member.is_empty() => version = Some(to_number(value)?),
            member => names.push(member),
        }
    }
    names.sort_unstable();
    match version {
        Some(version) => Ok(Some((names, version))),
        None if names.is_empty() => Ok(None),
        None => Err(StoreError::Corrupted(format!("the members of {conversation}"))),
    }
}

/// A flat list of seqs and records.
pub(super) fn entries(conversation: &str, found: Value) -> Result<Vec<Entry>, StoreError> {
    pairs(found)?
        .into_iter()
        .map(|(seq, record)| entry(conversation, to_number(seq)?, to_bytes(record)?))
        .collect()
}

fn entry(conversation: &str, seq: u64, record: Bytes) -> Result<Entry, StoreError> {
    let named = |what: String| StoreError::Corrupted(format!("log of {conversation}, seq {seq}: {what}"));
    if record.is_empty() {
        return Err(named("it is missing".into()));
    }
    let entry = record::decode(conversation, record).map_err(|e| named(e.to_string()))?;
    if entry.seq != seq {
        return Err(named(format!("it holds seq {}", entry.seq)));
    }
    Ok(entry)
}

/// The reply of `answers.lua`, behind its first word: answers; a flat list of seqs and records.
pub(super) fn answers(
    conversation: &str,
    stream: &StreamKey,
    reply: Vec<Value>,
) -> Result<Vec<Answer>, StoreError> {
    let [filed, unfiled] = fixed(Value::Array(reply))?;
    let damaged = || {
        let StreamKey { user, device, stream } = stream;
        StoreError::Corrupted(format!("answers in {conversation} to {user}, {device}, {stream:x}"))
    };
    let filed = to_bytes(filed)?;
    let (records, []) = filed.as_chunks::<{ pack::ANSWER_BYTES }>() else { return Err(damaged()) };
    let filed = records.iter().map(|record| pack::to_answer(record).ok_or_else(damaged));
    let mut answers = filed.collect::<Result<Vec<_>, _>>()?;
    let unfiled = entries(conversation, unfiled)?;
    answers.extend(unfiled.iter().filter(|entry| stream.is_of(entry)).map(Answer::of));
    answers.drain(..answers.len().saturating_sub(ANSWERS_MAX));
    Ok(answers)
}

/// A list of user \0 device \0 cursor.
pub(super) fn cursors(conversation: &str, reply: Value) -> Result<Vec<(String, String, Cursor)>, StoreError> {
    let one = |member| {
        let member = to_bytes(member)?;
        let parse = || {
            let (names, cursor) = member.split_at_checked(member.len().checked_sub(pack::CURSOR_BYTES)?)?;
            let (user, device) = std::str::from_utf8(names).ok()?.strip_suffix('\0')?.split_once('\0')?;
            Some((user.to_owned(), device.to_owned(), pack::to_cursor(cursor)?))
        };
        parse().ok_or_else(|| StoreError::Corrupted(format!("the cursors of {conversation}")))
    };
    list(reply)?.into_iter().map(one).collect()
}

/// A list of item \0 value.
pub(super) fn items(reply: Value) -> Result<Vec<(String, Bytes)>, StoreError> {
    let one = |member| {
        let member = to_bytes(member)?;
        let damaged = || StoreError::Corrupted("an item of a user's list".into());
        let end = member.iter().position(|byte| *byte == 0).ok_or_else(damaged)?;
        let item = std::str::from_utf8(&member[..end]).map_err(|_| damaged())?;
        Ok((item.to_owned(), member.slice(end + 1..)))
    };
    list(reply)?.into_iter().map(one).collect()
}

/// What batches named as to be fanned out, oldest first: position ':' record.
pub(super) fn outstanding(reply: Value) -> Result<Vec<(String, u64)>, StoreError> {
    let mut messages = Vec::new();
    for batch in list(reply)? {
        let batch = to_bytes(batch)?;
        let parse = || pack::to_outstanding(&batch[batch.iter().position(|byte| *byte == b':')? + 1..]);
        messages.extend(parse().ok_or_else(|| StoreError::Corrupted("what is to be fanned out".into()))?);
    }
    Ok(messages)
}

/// A user's routes, by login number.
pub(super) fn routes(value: Value) -> Result<Vec<Route>, StoreError> {
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

/// Sessions that lost their place: user \0 device \0 packed route.
pub(super) fn losers(reply: Value) -> Result<Vec<(String, Route)>, StoreError> {
    let one = |member| {
        let member = to_text(member)?;
        let parse = || {
            let (user, rest) = member.split_once('\0')?;
            let (device, packed) = rest.split_once('\0')?;
            Some((user.to_owned(), route(device, packed)?))
        };
        parse().ok_or_else(|| StoreError::Corrupted(format!("the session «{member}» that lost its place")))
    };
    list(reply)?.into_iter().map(one).collect()
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
