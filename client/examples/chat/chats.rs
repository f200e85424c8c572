//! One conversation as it is shown: its lines by seq, what happened to them since, and who has them.

use std::collections::{BTreeMap, BTreeSet};

use millrace_client::schema::group_change::Kind;
use millrace_client::{Action, Content, Message, Reference, Role};

/// What is shown for a seq.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Text,
    /// Told by the server, or about the log.
    Note,
}

/// One line of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) what: What,
    pub(crate) sender: String,
    pub(crate) time_ms: u64,
    pub(crate) text: String,
    pub(crate) edited: bool,
    pub(crate) recalled: bool,
    /// Who reacted, by reaction.
    pub(crate) reactions: BTreeMap<String, BTreeSet<String>>,
}

/// A message on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) key: u64,
    pub(crate) text: String,
    pub(crate) failed: Option<String>,
}

/// How far an own message has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ticks {
    Stored,
    Delivered,
    Read,
}

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chat {
    pub(crate) lines: BTreeMap<u64, Line>,
    pub(crate) pending: Vec<Pending>,
    /// Edits, recalls and reactions whose message is not here (yet).
    early: BTreeMap<u64, Vec<Message>>,
    /// Entries that were applied already: history and live overlap.
    applied: BTreeSet<u64>,
    pub(crate) head: u64,
    pub(crate) last_ms: u64,
    pub(crate) unread: u32,
    /// Own read position.
    pub(crate) read: u64,
    pub(crate) peer_delivered: u64,
    pub(crate) peer_read: u64,
    /// Of the newest own message: its seq, how many have it, how many have read it.
    pub(crate) group_receipt: Option<(u64, u32, u32)>,
    /// Who is typing, until when.
    pub(crate) typing: BTreeMap<String, u64>,
    pub(crate) pinned: bool,
    pub(crate) muted: bool,
    pub(crate) hidden: bool,
    /// Older lines are being read, or there are none.
    pub(crate) loading: bool,
    pub(crate) whole: bool,
}

impl Chat {
    /// Takes an entry of the log, live or from history. Returns whether it is a new line.
    pub(crate) fn apply(&mut self, message: Message) -> bool {
        if !self.applied.insert(message.seq) {
            return false;
        }
        self.head = self.head.max(message.seq);
        self.last_ms = self.last_ms.max(message.server_time_ms);
        match message.action {
            Action::Message => {
                let text = words(&message.content());
                // The server empties what was recalled.
                let recalled = text.is_empty();
                self.put(message.seq, What::Text, &message.sender, message.server_time_ms, text);
                if let Some(line) = self.lines.get_mut(&message.seq) {
                    line.recalled = recalled;
                }
                for later in self.early.remove(&message.seq).unwrap_or_default() {
                    self.refer(later);
                }
                true
            }
            Action::System => {
                let text = describe(&message);
                self.put(message.seq, What::Note, "", message.server_time_ms, text);
                true
            }
            Action::Edit | Action::Recall | Action::React | Action::Unreact => {
                self.refer(message);
                false
            }
        }
    }

    pub(crate) fn put(&mut self, seq: u64, what: What, sender: &str, time_ms: u64, text: String) {
        let line = Line {
            what,
            sender: sender.into(),
            time_ms,
            text,
            edited: false,
            recalled: false,
            reactions: BTreeMap::new(),
        };
        self.lines.insert(seq, line);
        self.applied.insert(seq);
        self.head = self.head.max(seq);
        self.last_ms = self.last_ms.max(time_ms);
    }

    /// What happened to an earlier message.
    fn refer(&mut self, message: Message) {
        let Some(line) = self.lines.get_mut(&message.refers_to) else {
            return self.early.entry(message.refers_to).or_default().push(message);
        };
        let text = String::from_utf8_lossy(&message.payload).into_owned();
        match message.action {
            Action::Edit => (line.text, line.edited) = (text, true),
            Action::Recall => (line.text, line.recalled) = (String::new(), true),
            Action::React => drop(line.reactions.entry(text).or_default().insert(message.sender)),
            Action::Unreact => {
                if let Some(users) = line.reactions.get_mut(&text) {
                    users.remove(&message.sender);
                }
                line.reactions.retain(|_, users| !users.is_empty());
            }
            Action::Message | Action::System => {}
        }
    }

    /// The log has nothing above `to` any more.
    pub(crate) fn cut(&mut self, to: u64) {
        self.lines.retain(|seq, _| *seq <= to);
        self.applied.retain(|seq| *seq <= to);
        self.head = to;
    }

    pub(crate) fn ticks(&self, seq: u64) -> Ticks {
        let group = self.group_receipt.filter(|(at, ..)| *at >= seq);
        if self.peer_read >= seq || group.is_some_and(|(_, _, read)| read > 0) {
            Ticks::Read
        } else if self.peer_delivered >= seq || group.is_some_and(|(_, delivered, _)| delivered > 0) {
            Ticks::Delivered
        } else {
            Ticks::Stored
        }
    }

    /// The newest line of a user.
    pub(crate) fn last_of(&self, user: &str) -> Option<u64> {
        let of = |(_, line): &(&u64, &Line)| line.sender == user && !line.recalled;
        self.lines.iter().rev().find(of).map(|(seq, _)| *seq)
    }

    /// The newest line that says something.
    pub(crate) fn last(&self) -> Option<(u64, &Line)> {
        self.lines.iter().next_back().map(|(seq, line)| (*seq, line))
    }
}

/// What became of a group, in words.
fn describe(message: &Message) -> String {
    let Some(change) = message.change() else { return "the group changed".into() };
    let by = &change.by;
    let mut who = change.users.join(", ");
    let more = (change.count as usize).saturating_sub(change.users.len());
    if more > 0 {
        who = format!("{who} and {more} more");
    }
    match change.kind() {
        Kind::Created => format!("{by} made this group"),
        Kind::Joined => format!("{} joined", if who.is_empty() { by } else { &who }),
        Kind::Left => format!("{} left", if who.is_empty() { by } else { &who }),
        Kind::Invited => format!("{by} invited {who}"),
        Kind::Removed => format!("{by} removed {who}"),
        Kind::Role => {
            let role = match change.role() {
                Role::Member => "a member",
                Role::Admin => "an admin",
                Role::Owner => "the owner",
            };
            format!("{by} made {who} {role}")
        }
        Kind::Muted if change.until_ms == 0 => {
            format!("{by} lets {} write again", if who.is_empty() { "everyone" } else { &who })
        }
        Kind::Muted => format!("{by} muted {}", if who.is_empty() { "everyone" } else { &who }),
        Kind::Updated => format!("{by} changed what the group shows"),
        Kind::Dissolved => format!("{by} ended this group"),
    }
}

/// A message as a line of text.
pub(crate) fn words(content: &Content) -> String {
    let shown = |what: &str, it: &Reference| format!("[{what} {} {}]", it.name, it.url);
    match content {
        Content::Text(text) => text.clone(),
        Content::Image(image) => shown("image", image),
        Content::File(file) => shown("file", file),
        Content::Custom(_, payload) if payload.is_empty() => String::new(),
        Content::Custom(kind, payload) => format!("[{} bytes of kind {kind}]", payload.len()),
    }
}
