//! Commands and scripts as values, and how their replies are taken apart.
//!
//! When they are sent is left to [`super::session`]. The rule that keeps it right: a reply that is not of the expected
//! form is an error with the reply's name, never a default.

use bytes::Bytes;
use fred::types::Value;
use fred::types::scripts::Script;

use crate::store::StoreError;

/// Something to send: a script by its hash, or a plain command.
#[derive(Clone, Debug)]
pub(super) struct Command {
    pub(super) name: Name,
    pub(super) keys: Vec<String>,
    pub(super) args: Vec<Value>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Name {
    Script(ScriptId),
    /// Keys come before the arguments.
    Plain(&'static str),
}

macro_rules! scripts {
    ($($id:ident = $file:literal,)*) => {
        /// The scripts, by name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum ScriptId { $($id,)* }

        /// Their texts, in the order of [`ScriptId`].
        const TEXTS: &[&str] = &[$(include_str!(concat!("scripts/", $file)),)*];
    };
}

scripts! {
    Append = "append.lua",
    Claim = "claim.lua",
    Release = "release.lua",
    Load = "load.lua",
    Answers = "answers.lua",
    Cursors = "cursors.lua",
    Read = "read.lua",
    Items = "items.lua",
    Register = "register.lua",
    Unregister = "unregister.lua",
    Sweep = "sweep.lua",
    Beat = "beat.lua",
    Leave = "leave.lua",
    Gateway = "gateway.lua",
    Hint = "hint.lua",
}

/// What stands before the scripts that use it, and how they call it.
const SHARED: &[(&str, &[&str])] = &[
    (include_str!("scripts/copy.lua"), &["copy()", "is_void("]),
    (include_str!("scripts/log.lua"), &["log_of("]),
];

/// All scripts with their hashes, indexed by [`ScriptId`].
pub(super) fn all_scripts() -> Vec<Script> {
    let whole = |text: &&str| {
        let used = SHARED.iter().filter(|(_, calls)| calls.iter().any(|call| text.contains(call)));
        Script::from_lua(used.map(|(shared, _)| *shared).chain([*text]).collect::<String>())
    };
    TEXTS.iter().map(whole).collect()
}

impl Command {
    pub(super) fn script(id: ScriptId, keys: Vec<String>, args: Vec<Value>) -> Self {
        Self { name: Name::Script(id), keys, args }
    }

    pub(super) fn plain(name: &'static str, key: String, args: Vec<Value>) -> Self {
        Self { name: Name::Plain(name), keys: vec![key], args }
    }
}

/// A text argument.
pub(super) fn text(text: &str) -> Value {
    Value::Bytes(Bytes::copy_from_slice(text.as_bytes()))
}

/// A word of a script's own.
pub(super) fn word(word: &'static str) -> Value {
    Value::Bytes(Bytes::from_static(word.as_bytes()))
}

/// A record as an argument.
pub(super) fn bytes(record: Vec<u8>) -> Value {
    Value::Bytes(record.into())
}

/// A number as text: Redis takes arguments as text, and its own integers are signed.
pub(super) fn number(number: u64) -> Value {
    Value::Bytes(number.to_string().into())
}

/// Takes a list apart.
pub(super) fn list(value: Value) -> Result<Vec<Value>, StoreError> {
    match value {
        Value::Array(values) => Ok(values),
        other => Err(odd("a list", &other)),
    }
}

/// Takes a list of exactly `N` apart.
pub(super) fn fixed<const N: usize>(value: Value) -> Result<[Value; N], StoreError> {
    list(value)?.try_into().map_err(|values: Vec<Value>| {
        StoreError::Corrupted(format!("a reply of {} parts, not {N}", values.len()))
    })
}

/// Takes a flat list of pairs apart; a map is one already.
pub(super) fn pairs(value: Value) -> Result<Vec<(Value, Value)>, StoreError> {
    let mut pairs = Vec::new();
    let mut values = list(value)?.into_iter();
    while let Some(first) = values.next() {
        let second = values.next().ok_or_else(|| StoreError::Corrupted("a pair without its half".into()))?;
        pairs.push((first, second));
    }
    Ok(pairs)
}

pub(super) fn to_bytes(value: Value) -> Result<Bytes, StoreError> {
    match value {
        Value::Bytes(_) | Value::String(_) => {
            value.into_bytes().ok_or_else(|| StoreError::Corrupted("a text that is none".into()))
        }
        other => Err(odd("bytes", &other)),
    }
}

pub(super) fn to_text(value: Value) -> Result<String, StoreError> {
    match value {
        Value::Null => Ok(String::new()),
        value => String::from_utf8(to_bytes(value)?.to_vec())
            .map_err(|_| StoreError::Corrupted("a name that is not text".into())),
    }
}

/// A number, as an integer or as text; nothing and '' are 0.
pub(super) fn to_number(value: Value) -> Result<u64, StoreError> {
    match value {
        Value::Integer(integer) => {
            u64::try_from(integer).map_err(|_| StoreError::Corrupted(format!("the number {integer}")))
        }
        value => {
            let text = to_text(value)?;
            if text.is_empty() {
                return Ok(0);
            }
            text.parse().map_err(|_| StoreError::Corrupted(format!("«{text}» where a number should be")))
        }
    }
}

fn odd(wanted: &str, found: &Value) -> StoreError {
    StoreError::Corrupted(format!("a reply of kind {} where {wanted} should be", found.kind()))
}
