//! A batch as one call of one script.
//!
//! What the script does with it is in `scripts/append.lua`. The rule that keeps it right: a batch is one call, so that its
//! messages, which say what they were answered, and its events are there together or not at all.

use std::collections::HashMap;
use std::time::Duration;

use fred::types::Value;
use millrace_protocol::ids::Partition;

use super::command::{Command, ScriptId, bytes, number, text};
use super::job::Reading;
use super::keys::Keys;
use crate::store::{
    ANSWERS_DAYS, ANSWERS_MAX, Batch, STREAMS_PER_DEVICE_MAX, UNFILED_MAX, Write, pack, record,
};

/// How long answers are kept after the last one.
const ANSWERS_KEPT: Duration = Duration::from_secs(ANSWERS_DAYS * 24 * 3_600);

/// The keys of a call: each once, pointed at by its place.
struct Names<'a> {
    keys: &'a Keys,
    partition: Partition,
    names: Vec<String>,
    places: HashMap<(Kind, &'a str), usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Log,
    Members,
    State,
    Cursors,
}

impl<'a> Names<'a> {
    fn place(&mut self, kind: Kind, conversation: &'a str) -> Value {
        let (keys, partition, names) = (self.keys, self.partition, &mut self.names);
        let place = self.places.entry((kind, conversation)).or_insert_with(|| {
            names.push(match kind {
                Kind::Log => keys.log(partition, conversation),
                Kind::Members => keys.members(partition, conversation),
                Kind::State => keys.state(partition, conversation),
                Kind::Cursors => keys.cursors(partition, conversation),
            });
            names.len()
        });
        number(*place as u64)
    }
}

/// The call. Events are kept up to about `events_max`; 0: none.
pub(super) fn append(keys: &Keys, batch: &Batch, events_max: u64) -> (Vec<Command>, Reading) {
    let partition = batch.partition;
    let mut names = Names {
        keys,
        partition,
        names: vec![keys.fence(partition), keys.outstanding(partition), keys.events(partition)],
        places: HashMap::new(),
    };
    let newest = batch.writes.iter().filter_map(|write| match write {
        Write::Message(entry) => Some(entry.message_id),
        _ => None,
    });
    let highest = newest.max().map_or_else(String::new, |id| format!("{:020}", id.0));
    let mut args = vec![
        number(batch.fence.epoch),
        number(batch.fence.nonce),
        number(batch.position),
        text(&highest),
        number(batch.fanned_out),
        bytes(pack::outstanding(&batch.outstanding)),
        number(events_max),
        number(ANSWERS_MAX as u64),
        number(ANSWERS_KEPT.as_millis() as u64),
        number(STREAMS_PER_DEVICE_MAX as u64),
        number(UNFILED_MAX),
    ];
    for write in &batch.writes {
        put(&mut args, &mut names, write);
    }
    let reading = Reading::Append { partition, fence: batch.fence, position: batch.position };
    (vec![Command::script(ScriptId::Append, names.names, args)], reading)
}

fn put<'a>(args: &mut Vec<Value>, names: &mut Names<'a>, write: &'a Write) {
    match write {
        Write::Message(entry) => {
            args.extend([text("M"), names.place(Kind::Log, &entry.conversation)]);
            args.extend([number(entry.seq), bytes(record::encode(entry))]);
        }
        Write::Replace(entry) => {
            args.extend([text("R"), names.place(Kind::Log, &entry.conversation)]);
            args.extend([number(entry.seq), bytes(record::encode(entry))]);
        }
        Write::GroupCreate { conversation, members, version } => {
            put_members(args, names.place(Kind::Members, conversation), *version, members, &[]);
        }
        Write::Members { conversation, add, remove, version } => {
            put_members(args, names.place(Kind::Members, conversation), *version, add, remove);
        }
        Write::State { conversation, key, value } => {
            args.extend([text("S"), names.place(Kind::State, conversation), text(key)]);
            match value {
                Some(value) => args.extend([number(1), Value::Bytes(value.clone())]),
                None => args.extend([number(0), text("")]),
            }
        }
        Write::Cursor { conversation, user, device, cursor } => {
            args.extend([text("C"), names.place(Kind::Cursors, conversation)]);
            args.push(text(&format!("{user}\0{device}\0")));
            args.push(bytes(pack::cursor(cursor).to_vec()));
        }
        Write::Trim { conversation, first_seq } => {
            args.extend([text("T"), names.place(Kind::Log, conversation), number(*first_seq)]);
        }
        Write::Event { kind, body } => args.extend([text("E"), text(kind), Value::Bytes(body.clone())]),
    }
}

fn put_members(args: &mut Vec<Value>, place: Value, version: u64, add: &[String], remove: &[String]) {
    args.extend([text("G"), place, number(version)]);
    for names in [add, remove] {
        args.push(number(names.len() as u64));
        args.extend(names.iter().map(|name| text(name)));
    }
}
