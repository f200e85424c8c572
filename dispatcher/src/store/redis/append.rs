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
    /// Its messages: the place of each in the batch, and its record.
    records: Vec<(u64, Value)>,
    /// The script files by itself what it takes away.
    is_trimmed: bool,
}

impl Plan {
    /// The next message of the log.
    fn add(&mut self, entry: &Entry, place: u64) {
        self.head = entry.seq;
        self.unfiled.add(entry);
        self.records.push((place, bytes(record::encode(entry))));
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
        singles: Vec::new(),
        runs: Vec::new(),
        looks: Vec::new(),
        args: Vec::new(),
        ahead: Vec::new(),
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
    args.append(&mut call.messages());
    args.append(&mut call.args);
    call.events.sort_unstable_by_key(|(place, _)| *place);
    args.extend(call.events.into_iter().flat_map(|(_, event)| event));
    (Command::script(ScriptId::Append, call.names.names, args), looked)
}

/// Messages of one log: its place among the keys, the first seq, and the records, each with its place in the batch.
struct Run {
    log: Value,
    first: u64,
    records: Vec<(u64, Value)>,
}

/// A seq up to which a log must go for what is done with it.
enum Bound {
    Trims(u64),
    Replaces(u64),
}

impl Bound {
    /// What is left of it in a log that goes up to there; there is no entry 0.
    fn within(&self, head: u64) -> u64 {
        match self {
            Bound::Trims(to) => head.min(*to),
            Bound::Replaces(seq) if *seq <= head => *seq,
            Bound::Replaces(_) => 0,
        }
    }
}

/// A call in the making.
struct Call<'a> {
    names: Names<'a>,
    has_events: bool,
    plans: FxHashMap<&'a str, Plan>,
    /// Conversations of `plans`, in order of their first message.
    order: Vec<&'a str>,
    /// Messages that are the only ones of their logs, and those that are not: of each log its place, the first seq and the
    /// records.
    singles: Vec<Run>,
    runs: Vec<Run>,
    /// What must hold before anything is written.
    looks: Vec<Value>,
    /// What is written after the messages.
    args: Vec<Value>,
    /// What is done to logs before their messages in the batch, if they have some, and where its seq stands in `args`.
    ahead: Vec<(&'a str, Bound, usize)>,
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

    /// The messages of the batch as arguments, all of them before anything else: an entry that is replaced, or a log that is
    /// trimmed, may be of the same batch. Notes their events.
    fn messages(&mut self) -> Vec<Value> {
        let (singles, runs) = (std::mem::take(&mut self.singles), std::mem::take(&mut self.runs));
        let mut args = vec![number(singles.len() as u64)];
        let events = &mut self.events;
        let has_events = self.has_events;
        let mut put = |args: &mut Vec<Value>, seq: u64, (place, record): (u64, Value)| {
            args.extend([number(seq), record]);
            if has_events {
                let event = vec![word("M"), number(place), number(args.len() as u64 - 1)];
                events.push((place, event));
            }
        };
        for Run { log, first, records } in singles {
            args.push(log);
            records.into_iter().for_each(|record| put(&mut args, first, record));
        }
        for Run { log, first, records } in runs {
            let mut records = (first..).zip(records).peekable();
            while records.peek().is_some() {
                let some: Vec<_> = records.by_ref().take(TOGETHER_MAX).collect();
                args.extend([word("L"), log.clone(), number(2 * some.len() as u64)]);
                some.into_iter().for_each(|(seq, record)| put(&mut args, seq, record));
            }
        }
        args
    }

    fn put(&mut self, logs: &mut Logs, write: &'a Write, place: u64) {
        let (args, names) = (&mut self.args, &mut self.names);
        match write {
            Write::Message(_) => unreachable!("messages are gathered"),
            Write::Replace(entry) => {
                let Entry { conversation, seq, .. } = entry;
                match self.plans.get(conversation.as_str()) {
                    // It was not there yet.
                    Some(plan) if *seq > plan.head => return,
                    Some(_) => {}
                    None => self.ahead.push((conversation, Bound::Replaces(*seq), args.len() + 2)),
                }
                args.extend([word("R"), names.place(Kind::Log, conversation)]);
                args.extend([number(*seq), bytes(record::encode(entry))]);
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
                let mut to = *first_seq;
                match self.plans.get_mut(conversation.as_str()) {
                    // No further than the log went then.
                    Some(plan) => {
                        plan.is_trimmed = true;
                        to = to.min(plan.head);
                    }
                    None => {
                        // What is filed with it is not known.
                        drop(logs.take(names.partition, conversation));
                        self.ahead.push((conversation, Bound::Trims(to), args.len() + 2));
                    }
                }
                args.extend([word("T"), names.place(Kind::Log, conversation), number(to)]);
            }
            Write::Event { kind, body } => {
                if self.has_events {
                    let event = vec![word("E"), number(place), text(kind), Value::Bytes(body.clone())];
                    self.events.push((place, event));
                }
            }
        }
    }

    /// Gathers the messages, files what is due, remembers what is known, and has the script look at the rest.
    fn finish(&mut self, logs: &mut Logs) -> Vec<Looked> {
        let mut looked = Vec::new();
        for conversation in std::mem::take(&mut self.order) {
            let Some(plan) = self.plans.remove(conversation) else { continue };
            let Plan { known, unfiled, first, head, records, is_trimmed } = plan;
            for (_, bound, at) in self.ahead.iter().filter(|(of, ..)| *of == conversation) {
                self.args[*at] = number(bound.within(first.saturating_sub(1)));
            }
            let log = self.names.place(Kind::Log, conversation);
            let all = if records.len() == 1 { &mut self.singles } else { &mut self.runs };
            all.push(Run { log, first, records });
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
