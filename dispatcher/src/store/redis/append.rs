//! A batch as one call of one script.
//!
//! What the script does with it is in `scripts/append.lua`. The rules that keep it right: a batch is one call, so that its
//! messages, which say what they were answered, and its events are there together or not at all; and what is remembered of a
//! log is what the owner's batches made of it, so that it is forgotten with every claim and every batch that failed.

use std::time::Duration;

use fred::types::Value;
use millrace_protocol::ids::Partition;
use rustc_hash::FxHashMap;

use super::command::{Command, ScriptId, bytes, number, text, word};
use super::keys::{Keys, stream_name};
use crate::store::remembered::{self, Unfiled};
use crate::store::{
    ANSWERS_DAYS, ANSWERS_MAX, Batch, Entry, STREAMS_PER_DEVICE_MAX, StreamKey, UNFILED_MAX, Write, pack,
    record,
};

/// How long answers are kept after the last one.
const ANSWERS_KEPT: Duration = Duration::from_secs(ANSWERS_DAYS * 24 * 3_600);
/// Records that are written by one command. Lua hands a command some thousands of arguments at most.
const TOGETHER_MAX: usize = 1_000;

/// What is known of a log without asking.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    head: u64,
    /// Answers of entries up to here are filed.
    filed: u64,
}

pub(super) type Logs = remembered::Logs<Known>;

/// A log that was not known, and what the batch adds to it. The script says how much of it is filed.
#[derive(Debug)]
pub(super) struct Looked {
    conversation: String,
    /// Where it ended before the batch, and ends after it.
    was: u64,
    head: u64,
    added: Unfiled,
}

impl Looked {
    /// The log is known from now on, if that is the whole of what is not filed.
    pub(super) fn learn(self, logs: &mut Logs, partition: Partition, filed: u64) {
        let Looked { conversation, was, head, added } = self;
        let unfiled = match filed {
            _ if filed == head => Some(Unfiled::default()),
            _ if filed == was => Some(added),
            _ => None,
        };
        if unfiled.is_some() {
            logs.remember(partition, &conversation, Known { head, filed }, unfiled);
        }
    }
}

/// The keys of a call: each once, pointed at by its place.
struct Names<'a> {
    keys: &'a Keys,
    partition: Partition,
    names: Vec<String>,
    places: FxHashMap<(Kind, &'a str), usize>,
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

    /// Of a device's streams.
    fn streams(&mut self, conversation: &str, key: &StreamKey) -> Value {
        self.names.push(self.keys.streams(self.partition, conversation, &key.user, &key.device));
        number(self.names.len() as u64)
    }
}

/// What a batch does with one log.
#[derive(Default)]
struct Plan {
    /// As it was remembered, and fits.
    known: Option<Known>,
    unfiled: Unfiled,
    /// The seq of the first message, and of the last.
    first: u64,
    head: u64,
    /// Messages that are not among the arguments yet: seq and record, and the place of each in the batch.
    fields: Vec<Value>,
    places: Vec<u64>,
    /// The script files by itself what it takes away.
    is_trimmed: bool,
}

impl Plan {
    /// The next message of the log.
    fn add(&mut self, entry: &Entry, place: u64) {
        self.head = entry.seq;
        self.unfiled.add(entry);
        self.fields.extend([number(entry.seq), bytes(record::encode(entry))]);
        self.places.push(place);
    }
}

/// The call, and the logs that it looks at. Events are kept up to about `events_max`; 0: none.
pub(super) fn append(keys: &Keys, batch: &Batch, events_max: u64, logs: &mut Logs) -> (Command, Vec<Looked>) {
    let partition = batch.partition;
    let mut call = Call {
        names: Names {
            keys,
            partition,
            names: vec![keys.fence(partition), keys.outstanding(partition), keys.events(partition)],
            places: FxHashMap::default(),
        },
        has_events: events_max > 0,
        plans: FxHashMap::default(),
        order: Vec::new(),
        looks: Vec::new(),
        args: Vec::new(),
        events: Vec::new(),
    };
    for (place, write) in (0..).zip(&batch.writes) {
        match write {
            Write::Message(entry) => call.message(logs, entry, place),
            write => call.put(logs, write, place),
        }
    }
    let looked = call.finish(logs);
    let newest = batch.writes.iter().filter_map(|write| match write {
        Write::Message(entry) => Some(entry.message_id),
        _ => None,
    });
    let highest = newest.max().map_or_else(String::new, |id| format!("{:020}", id.0));
    let mut args = vec![
        number(batch.fence.epoch),
        number(batch.fence.nonce),
        number(batch.position),
        number(batch.position + batch.writes.len() as u64),
        text(&highest),
        number(batch.fanned_out),
        bytes(pack::outstanding(&batch.outstanding)),
        number(events_max),
        number((ANSWERS_MAX * pack::ANSWER_BYTES) as u64),
        number(ANSWERS_KEPT.as_millis() as u64),
        number(STREAMS_PER_DEVICE_MAX as u64),
        number(UNFILED_MAX),
    ];
    args.append(&mut call.looks);
    args.append(&mut call.args);
    call.events.sort_unstable_by_key(|(place, _)| *place);
    args.extend(call.events.into_iter().flat_map(|(_, event)| event));
    (Command::script(ScriptId::Append, call.names.names, args), looked)
}

/// A call in the making.
struct Call<'a> {
    names: Names<'a>,
    has_events: bool,
    plans: FxHashMap<&'a str, Plan>,
    /// Conversations of `plans`, in order of their first message.
    order: Vec<&'a str>,
    /// What must hold before anything is written.
    looks: Vec<Value>,
    args: Vec<Value>,
    /// Each with its place in the batch.
    events: Vec<(u64, Vec<Value>)>,
}

impl<'a> Call<'a> {
    fn message(&mut self, logs: &mut Logs, entry: &'a Entry, place: u64) {
        let conversation = entry.conversation.as_str();
        let plan = self.plans.entry(conversation).or_insert_with(|| {
            self.order.push(conversation);
            let mut plan = Plan { first: entry.seq, head: entry.seq.saturating_sub(1), ..Plan::default() };
            if let Some((known, Some(unfiled))) = logs.take(self.names.partition, conversation)
                && known.head == plan.head
            {
                (plan.known, plan.unfiled) = (Some(known), unfiled);
            }
            plan
        });
        if entry.seq != plan.head + 1 {
            // It leaves a seq out, or says one twice: no log ends so that the script would not refuse that.
            plan.known = None;
            let log = self.names.place(Kind::Log, conversation);
            self.looks.extend([word("D"), log, word("-"), number(entry.seq)]);
        }
        plan.add(entry, place);
    }

    /// What was gathered of a log goes before what comes now.
    fn flush(&mut self, conversation: &'a str) {
        let Some(plan) = self.plans.get_mut(conversation) else { return };
        let mut places = std::mem::take(&mut plan.places).into_iter();
        let mut fields = std::mem::take(&mut plan.fields).into_iter().peekable();
        while fields.peek().is_some() {
            let log = self.names.place(Kind::Log, conversation);
            let some: Vec<Value> = fields.by_ref().take(2 * TOGETHER_MAX).collect();
            let head = some[some.len() - 2].clone();
            let is_one = some.len() == 2;
            match is_one {
                true => self.args.extend([word("1"), log]),
                false => self.args.extend([word("L"), log, number(some.len() as u64 + 2)]),
            }
            if self.has_events {
                let records = (self.args.len() + 1..).step_by(2);
                let own = places.by_ref().take(some.len() / 2);
                let event = |(place, record)| (place, vec![word("M"), number(place), number(record as u64)]);
                self.events.extend(own.zip(records).map(event));
            }
            self.args.extend(some);
            if !is_one {
                self.args.extend([word("h"), head]);
            }
        }
    }

    fn put(&mut self, logs: &mut Logs, write: &'a Write, place: u64) {
        if let Write::Replace(Entry { conversation, .. }) | Write::Trim { conversation, .. } = write {
            self.flush(conversation);
            let trims = matches!(write, Write::Trim { .. });
            match self.plans.get_mut(conversation.as_str()) {
                Some(plan) => plan.is_trimmed |= trims,
                // What is filed with it is not known.
                None if trims => drop(logs.take(self.names.partition, conversation)),
                None => {}
            }
        }
        let (args, names) = (&mut self.args, &mut self.names);
        match write {
            Write::Message(_) => unreachable!("messages are gathered"),
            Write::Replace(entry) => {
                args.extend([word("R"), names.place(Kind::Log, &entry.conversation)]);
                args.extend([number(entry.seq), bytes(record::encode(entry))]);
            }
            Write::GroupCreate { conversation, members, version } => {
                put_members(args, names.place(Kind::Members, conversation), *version, members, &[]);
            }
            Write::Members { conversation, add, remove, version } => {
                put_members(args, names.place(Kind::Members, conversation), *version, add, remove);
            }
            Write::State { conversation, key, value } => {
                args.extend([word("S"), names.place(Kind::State, conversation), text(key)]);
                match value {
                    Some(value) => args.extend([number(1), Value::Bytes(value.clone())]),
                    None => args.extend([number(0), word("")]),
                }
            }
            Write::Cursor { conversation, user, device, cursor } => {
                args.extend([word("C"), names.place(Kind::Cursors, conversation)]);
                args.push(text(&format!("{user}\0{device}\0")));
                args.push(bytes(pack::cursor(cursor).to_vec()));
            }
            Write::Trim { conversation, first_seq } => {
                args.extend([word("T"), names.place(Kind::Log, conversation), number(*first_seq)]);
            }
            Write::Event { kind, body } => {
                if self.has_events {
                    let event = vec![word("E"), number(place), text(kind), Value::Bytes(body.clone())];
                    self.events.push((place, event));
                }
            }
        }
    }

    /// Writes what is gathered, files what is due, remembers what is known, and has the script look at the rest.
    fn finish(&mut self, logs: &mut Logs) -> Vec<Looked> {
        let mut looked = Vec::new();
        for conversation in std::mem::take(&mut self.order) {
            self.flush(conversation);
            let Some(plan) = self.plans.remove(conversation) else { continue };
            let Plan { known, unfiled, first, head, is_trimmed, .. } = plan;
            match known.filter(|_| !is_trimmed) {
                Some(Known { filed, .. }) if head < filed + UNFILED_MAX => {
                    logs.remember(self.names.partition, conversation, Known { head, filed }, Some(unfiled));
                }
                Some(_) => {
                    self.file(conversation, &unfiled, head);
                    let known = Known { head, filed: head };
                    logs.remember(self.names.partition, conversation, known, Some(Unfiled::default()));
                }
                None => {
                    let was = first.saturating_sub(1);
                    let log = self.names.place(Kind::Log, conversation);
                    self.looks.extend([word("D"), log, number(was), number(head)]);
                    looked.push(Looked { conversation: conversation.to_owned(), was, head, added: unfiled });
                }
            }
        }
        looked
    }

    /// Gives the answers in a log lists of their own.
    fn file(&mut self, conversation: &'a str, unfiled: &Unfiled, to: u64) {
        for (key, answers) in &unfiled.streams {
            let streams = self.names.streams(conversation, key);
            let newest = &answers[answers.len().saturating_sub(ANSWERS_MAX)..];
            let packed: Vec<u8> = newest.iter().flat_map(pack::answer).collect();
            self.args.extend([word("A"), streams, text(&stream_name(key.stream)), bytes(packed)]);
        }
        let log = self.names.place(Kind::Log, conversation);
        self.args.extend([word("F"), log, number(to)]);
    }
}

fn put_members(args: &mut Vec<Value>, place: Value, version: u64, add: &[String], remove: &[String]) {
    args.extend([word("G"), place, number(version)]);
    for names in [add, remove] {
        args.push(number(names.len() as u64));
        args.extend(names.iter().map(|name| text(name)));
    }
}
