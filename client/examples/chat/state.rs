//! What the chat knows, and what follows from a key, an event or an answer. It draws nothing and asks nothing by itself:
//! [`State::key`], [`State::event`] and [`State::answer`] give [`Effect`]s, which `run` carries out.

use std::collections::{BTreeMap, BTreeSet};

use millrace_client::schema::friend_event;
use millrace_client::{
    ConversationItem, Event, History, Listing, Message, PresenceEvent, PresenceState, SendAck, conversation,
};

use crate::chats::{Chat, Pending, What};
use crate::command::{Arrange, Command, parse};

/// How long "is typing" is shown, ms.
const TYPING_MS: u64 = 5_000;

/// What the network is to do. Each is answered by an [`Answer`], in any order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Effect {
    Send {
        chat: String,
        key: u64,
        text: String,
    },
    Edit {
        chat: String,
        seq: u64,
        text: String,
    },
    Recall {
        chat: String,
        seq: u64,
    },
    React {
        chat: String,
        seq: u64,
        what: String,
        add: bool,
    },
    Read {
        chat: String,
        seq: u64,
    },
    Typing {
        chat: String,
    },
    /// Lines below this seq; `None`: the newest.
    Older {
        chat: String,
        before: Option<u64>,
    },
    Who {
        chat: String,
        seq: u64,
    },
    Arrange(ConversationItem),
    Watch(Vec<String>),
    Presence {
        away: bool,
    },
    JoinRoom(String),
    LeaveRoom(String),
    /// Anything of a group or of people; the answer is words.
    Ask(Command, String),
    Quit,
}

/// What became of an effect.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    Sent {
        chat: String,
        key: u64,
        outcome: Result<SendAck, String>,
    },
    /// An edit, recall or reaction was stored: as it would have come from someone else.
    Changed(Message),
    Older {
        chat: String,
        outcome: Result<History, String>,
    },
    Watched(Vec<PresenceEvent>),
    /// A conversation to open.
    Open(String),
    /// It is gone.
    Gone(String),
    Friends(Vec<String>),
    Words(String),
}

/// A key, as far as it means something here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Char(char),
    Enter,
    Backspace,
    ClearLine,
    Next,
    Previous,
    PageUp,
    PageDown,
    Escape,
    Quit,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) me: String,
    pub(crate) now_ms: u64,
    pub(crate) online: bool,
    pub(crate) chats: BTreeMap<String, Chat>,
    pub(crate) open: String,
    pub(crate) input: String,
    /// The last thing to tell.
    pub(crate) status: String,
    pub(crate) help: bool,
    /// Lines scrolled up from the newest.
    pub(crate) scroll: usize,
    pub(crate) presence: BTreeMap<String, PresenceEvent>,
    pub(crate) friends: BTreeSet<String>,
    pub(crate) ended: Option<String>,
    next_key: u64,
    watched: BTreeSet<String>,
}

impl State {
    pub(crate) fn new(me: &str, now_ms: u64) -> Self {
        State { me: me.into(), now_ms, status: "/help lists the commands".into(), ..State::default() }
    }

    /// Conversations as they are listed: pinned first, then by their newest line.
    pub(crate) fn listed(&self) -> Vec<(&String, &Chat)> {
        let shown = |(id, chat): &(&String, &Chat)| !chat.hidden || **id == self.open || chat.unread > 0;
        let mut listed: Vec<_> = self.chats.iter().filter(shown).collect();
        listed.sort_by_key(|(id, chat)| (!chat.pinned, std::cmp::Reverse(chat.last_ms), (*id).clone()));
        listed
    }

    /// What a conversation is called.
    pub(crate) fn title(&self, chat: &str) -> String {
        match chat.split_once(':') {
            Some(("d", _)) => self.peer(chat).unwrap_or("?").to_owned(),
            Some(("g", group)) => format!("#{group}"),
            Some((_, room)) => format!("~{room}"),
            None => chat.to_owned(),
        }
    }

    /// The other one of a direct conversation.
    pub(crate) fn peer<'a>(&self, chat: &'a str) -> Option<&'a str> {
        let (a, b) = chat.strip_prefix("d:")?.split_once(':')?;
        Some(if a == self.me { b } else { a })
    }

    /// What a user's devices come to.
    pub(crate) fn presence_of(&self, user: &str) -> PresenceState {
        let devices = self.presence.get(user).map_or(&[][..], |event| &event.devices);
        let any = |state: PresenceState| devices.iter().any(|device| device.state() == state);
        match (any(PresenceState::Online), any(PresenceState::Away)) {
            (true, _) => PresenceState::Online,
            (false, true) => PresenceState::Away,
            (false, false) => PresenceState::Offline,
        }
    }

    /// Opens a conversation, which need not exist yet.
    pub(crate) fn open(&mut self, chat: &str) -> Vec<Effect> {
        self.open = chat.into();
        (self.scroll, self.help) = (0, false);
        let mut effects = self.older();
        effects.extend(self.read());
        effects.extend(self.watch());
        effects
    }

    pub(crate) fn key(&mut self, key: Key) -> Vec<Effect> {
        match key {
            Key::Quit => return vec![Effect::Quit],
            Key::Char(char) => {
                self.input.push(char);
                let chat = self.open.clone();
                let says = !self.input.starts_with('/') && !chat.is_empty();
                return says.then_some(Effect::Typing { chat }).into_iter().collect();
            }
            Key::Backspace => drop(self.input.pop()),
            Key::ClearLine => self.input.clear(),
            Key::Escape => self.help = false,
            Key::Enter => {
                let line = std::mem::take(&mut self.input);
                return if line.trim().is_empty() { Vec::new() } else { self.enter(&line) };
            }
            Key::Next => return self.turn(1),
            Key::Previous => return self.turn(-1),
            Key::PageUp => {
                self.scroll += 10;
                return self.older();
            }
            Key::PageDown => {
                self.scroll = self.scroll.saturating_sub(10);
                return self.read();
            }
        }
        Vec::new()
    }

    fn turn(&mut self, by: isize) -> Vec<Effect> {
        let listed: Vec<String> = self.listed().into_iter().map(|(id, _)| id.clone()).collect();
        if listed.is_empty() {
            return Vec::new();
        }
        let at = listed.iter().position(|id| *id == self.open).unwrap_or(0) as isize;
        let next = (at + by).rem_euclid(listed.len() as isize) as usize;
        self.open(&listed[next])
    }

    fn enter(&mut self, line: &str) -> Vec<Effect> {
        match parse(line) {
            Ok(command) => self.command(command),
            Err(usage) => {
                self.status = usage;
                Vec::new()
            }
        }
    }

    fn command(&mut self, command: Command) -> Vec<Effect> {
        let chat = self.open.clone();
        let group = chat.strip_prefix("g:").map(str::to_owned);
        let mine = self.chats.get(&chat).and_then(|chat| chat.last_of(&self.me));
        let newest = self.chats.get(&chat).and_then(|chat| chat.last()).map(|(seq, _)| seq);
        let mut none = |words: &str| {
            self.status = words.into();
            Vec::new()
        };
        match command {
            Command::Quit => vec![Effect::Quit],
            Command::Help => {
                self.help = !self.help;
                Vec::new()
            }
            Command::To(user) => {
                let chat = conversation::direct(&self.me, &user);
                self.open(&chat)
            }
            Command::Room(room) => vec![Effect::JoinRoom(room)],
            Command::Say(_) if chat.is_empty() => none("open a conversation first: /to, /room or /join"),
            Command::Say(text) => self.say(chat, text),
            Command::Edit { seq, text } => match seq.or(mine) {
                Some(seq) => vec![Effect::Edit { chat, seq, text }],
                None => none("nothing of yours is here"),
            },
            Command::Recall { seq } => match seq.or(mine) {
                Some(seq) => vec![Effect::Recall { chat, seq }],
                None => none("nothing of yours is here"),
            },
            Command::React { seq, what, add } => match seq.or(newest) {
                Some(seq) => vec![Effect::React { chat, seq, what, add }],
                None => none("nothing is here"),
            },
            Command::Who { seq } => match seq.or(mine) {
                Some(seq) => vec![Effect::Who { chat, seq }],
                None => none("nothing of yours is here"),
            },
            Command::Arrange(what) => self.arrange(&chat, what),
            Command::Presence { away } => vec![Effect::Presence { away }],
            Command::Leave if chat.starts_with("r:") => vec![Effect::LeaveRoom(chat[2..].into())],
            Command::Invite(_)
            | Command::Kick(_)
            | Command::Members
            | Command::Info
            | Command::Admit { .. }
            | Command::Role { .. }
            | Command::Silence { .. }
            | Command::About(_)
            | Command::Announce(_)
            | Command::Leave
            | Command::Dissolve => match group {
                Some(group) => vec![Effect::Ask(command, group)],
                None => none("that is for groups: open one first"),
            },
            command => vec![Effect::Ask(command, String::new())],
        }
    }

    fn say(&mut self, chat: String, text: String) -> Vec<Effect> {
        self.next_key += 1;
        let key = self.next_key;
        let pending = Pending { key, text: text.clone(), failed: None };
        self.chat(&chat).pending.push(pending);
        self.scroll = 0;
        vec![Effect::Send { chat, key, text }]
    }

    fn arrange(&mut self, chat: &str, what: Arrange) -> Vec<Effect> {
        let id = chat.to_owned();
        let chat = self.chat(chat);
        match what {
            Arrange::Pin => chat.pinned = !chat.pinned,
            Arrange::Mute => chat.muted = !chat.muted,
            Arrange::Hide => chat.hidden = !chat.hidden,
        }
        let (pinned, muted, hidden) = (chat.pinned, chat.muted, chat.hidden);
        vec![Effect::Arrange(ConversationItem { conversation: id, pinned, muted, hidden })]
    }

    /// Something came from the server.
    pub(crate) fn event(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Message(message) => return self.message(message),
            Event::Gap { conversation, from, to } => {
                let text = format!("{} messages are gone ({from} to {to})", to - from + 1);
                self.chat(&conversation).put(to, What::Note, "", 0, text);
            }
            Event::Truncated { conversation, to } => {
                self.chat(&conversation).cut(to.seq);
                self.status = format!("{} lost its newest messages", self.title(&conversation));
            }
            Event::Head { conversation, seq, .. } => {
                let chat = self.chat(&conversation);
                chat.head = chat.head.max(seq);
            }
            Event::Removed { conversation } => {
                self.status = format!("you are no longer in {}", self.title(&conversation));
                self.chats.remove(&conversation);
            }
            Event::Listed(listings) => listings.into_iter().for_each(|listing| self.list(listing)),
            Event::CaughtUp => {
                let mut effects = self.watch();
                effects.extend(self.older());
                return effects;
            }
            Event::Connected { user, again, .. } => {
                (self.me, self.online) = (user, true);
                self.status = if again { "connected again".into() } else { self.status.clone() };
            }
            Event::Disconnected { reason } => {
                (self.online, self.status) = (false, format!("connecting again: {reason}"));
                self.presence.clear();
            }
            Event::Ended { reason } => self.ended = Some(reason.to_string()),
            Event::NotSaved { reason } => self.status = format!("what you read is not remembered: {reason}"),
            Event::Receipt(receipt) if receipt.user == self.me => {
                let chat = self.chat(&receipt.conversation);
                chat.read = chat.read.max(receipt.read);
                if chat.read >= chat.head {
                    chat.unread = 0;
                }
            }
            Event::Receipt(receipt) => {
                let chat = self.chat(&receipt.conversation);
                chat.peer_delivered = chat.peer_delivered.max(receipt.delivered);
                chat.peer_read = chat.peer_read.max(receipt.read);
            }
            Event::GroupReceipt(receipt) => {
                let chat = self.chat(&receipt.conversation);
                chat.group_receipt = Some((receipt.seq, receipt.delivered, receipt.read));
            }
            Event::Typing(typing) => {
                let until_ms = self.now_ms + if typing.what == 0 { 0 } else { TYPING_MS };
                self.chat(&typing.conversation).typing.insert(typing.user, until_ms);
            }
            Event::Presence(event) => drop(self.presence.insert(event.user.clone(), event)),
            Event::Friend(event) => {
                let (user, greeting) = (&event.user, String::from_utf8_lossy(&event.greeting));
                self.status = match event.kind() {
                    friend_event::Kind::Asked => {
                        format!("{user} asks to be friends: {greeting}  /accept {user} or /decline {user}")
                    }
                    friend_event::Kind::Accepted => format!("{user} and you are friends"),
                    friend_event::Kind::Declined => format!("{user} declined"),
                    friend_event::Kind::Ended => format!("{user} ended the friendship"),
                };
                match event.kind() {
                    friend_event::Kind::Accepted => drop(self.friends.insert(event.user)),
                    friend_event::Kind::Ended => drop(self.friends.remove(&event.user)),
                    _ => {}
                }
                return self.watch();
            }
            Event::Fate(fate) => {
                let what = if fate.delivered { "has arrived" } else { "has not arrived yet" };
                self.status = format!("message {} {what}", fate.seq);
            }
            Event::ConversationChanged(item) => self.item(&item),
            Event::GroupAsked(asked) => {
                let group = self.title(&asked.conversation);
                self.status = format!("{} asks to join {group}: /admit or /reject there", asked.user);
            }
        }
        Vec::new()
    }

    fn message(&mut self, message: Message) -> Vec<Effect> {
        let (id, seq, sender) = (message.conversation.clone(), message.seq, message.sender.clone());
        let (is_open, me, at_bottom) = (id == self.open, self.me.clone(), self.scroll == 0);
        let chat = self.chat(&id);
        chat.typing.remove(&sender);
        let new = chat.apply(message);
        if new && sender != me && !(is_open && at_bottom) && seq > chat.read {
            chat.unread += 1;
        }
        if new && !at_bottom && is_open {
            self.scroll += 1;
        }
        let mut effects = if is_open { self.read() } else { Vec::new() };
        effects.extend(self.watch());
        effects
    }

    fn list(&mut self, listing: Listing) {
        self.item(&listing.item);
        let me = self.me.clone();
        let standing = listing.standing;
        let chat = self.chat(&listing.item.conversation);
        chat.unread = standing.unread;
        chat.read = standing.read.map_or(0, |cursor| cursor.seq).max(chat.read);
        chat.head = standing.head.map_or(0, |cursor| cursor.seq).max(chat.head);
        chat.peer_delivered = chat.peer_delivered.max(standing.peer_delivered);
        chat.peer_read = chat.peer_read.max(standing.peer_read);
        let last = standing.last.and_then(|last| match last.event {
            Some(millrace_client::schema::notify::Event::Deliver(deliver)) => Some(Message::from(deliver)),
            _ => None,
        });
        if let Some(last) = last {
            // What will be given as an event comes by itself; this is what is older, or one's own.
            chat.last_ms = chat.last_ms.max(last.server_time_ms);
            if last.sender == me || chat.read >= last.seq {
                chat.apply(last);
            }
        }
    }

    fn item(&mut self, item: &ConversationItem) {
        let chat = self.chat(&item.conversation);
        (chat.pinned, chat.muted, chat.hidden) = (item.pinned, item.muted, item.hidden);
    }

    /// Something that was asked for is there, or is not.
    pub(crate) fn answer(&mut self, answer: Answer) -> Vec<Effect> {
        match answer {
            Answer::Sent { chat, key, outcome } => {
                let (me, now_ms) = (self.me.clone(), self.now_ms);
                let chat = self.chat(&chat);
                let Some(index) = chat.pending.iter().position(|pending| pending.key == key) else {
                    return Vec::new();
                };
                match outcome {
                    Ok(ack) => {
                        let pending = chat.pending.remove(index);
                        let time_ms = if ack.server_time_ms == 0 { now_ms } else { ack.server_time_ms };
                        chat.put(ack.seq, What::Text, &me, time_ms, pending.text);
                    }
                    Err(reason) => chat.pending[index].failed = Some(reason),
                }
            }
            Answer::Changed(message) => {
                let message = Message { sender: self.me.clone(), ..message };
                self.chat(&message.conversation.clone()).apply(message);
            }
            Answer::Older { chat, outcome } => {
                let chat = self.chat(&chat);
                chat.loading = false;
                match outcome {
                    Ok(history) => {
                        chat.whole = !history.more;
                        chat.head = chat.head.max(history.head);
                        for message in history.messages {
                            chat.apply(message);
                        }
                    }
                    Err(reason) => {
                        chat.whole = true;
                        self.status = reason;
                    }
                }
                return self.read();
            }
            Answer::Watched(events) => {
                self.presence = events.into_iter().map(|event| (event.user.clone(), event)).collect();
            }
            Answer::Open(chat) => {
                self.chat(&chat);
                return self.open(&chat);
            }
            Answer::Gone(chat) => {
                self.chats.remove(&chat);
                return self.turn(0);
            }
            Answer::Friends(friends) => {
                self.friends = friends.into_iter().collect();
                return self.watch();
            }
            Answer::Words(words) => self.status = words,
        }
        Vec::new()
    }

    /// Time passed.
    pub(crate) fn tick(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        for chat in self.chats.values_mut() {
            chat.typing.retain(|_, until_ms| *until_ms > now_ms);
        }
    }

    /// What is older than what is here, unless it is being read.
    fn older(&mut self) -> Vec<Effect> {
        let id = self.open.clone();
        let online = self.online;
        if id.is_empty() {
            return Vec::new();
        }
        let scroll = self.scroll;
        let chat = self.chat(&id);
        let enough = chat.lines.len() > scroll + 30;
        if chat.loading || chat.whole || enough || !online {
            return Vec::new();
        }
        chat.loading = true;
        let before = chat.lines.keys().next().copied();
        vec![Effect::Older { chat: id, before }]
    }

    /// The newest line of the open conversation is in view.
    fn read(&mut self) -> Vec<Effect> {
        let (id, me) = (self.open.clone(), self.me.clone());
        if self.scroll > 0 || !self.online {
            return Vec::new();
        }
        let Some(chat) = self.chats.get_mut(&id) else { return Vec::new() };
        chat.unread = 0;
        let Some((seq, line)) = chat.last().filter(|_| !id.starts_with("r:")) else { return Vec::new() };
        let own = line.sender == me;
        if seq <= chat.read || own {
            return Vec::new();
        }
        chat.read = seq;
        vec![Effect::Read { chat: id, seq }]
    }

    /// Whose presence is of interest: friends, and those one talks to.
    fn watch(&mut self) -> Vec<Effect> {
        let peers = self.chats.keys().chain([&self.open]).filter_map(|chat| self.peer(chat));
        let wanted: BTreeSet<String> = peers
            .map(str::to_owned)
            .chain(self.friends.iter().cloned())
            .filter(|user| *user != self.me)
            .collect();
        if wanted == self.watched || !self.online {
            return Vec::new();
        }
        self.watched.clone_from(&wanted);
        vec![Effect::Watch(wanted.into_iter().take(512).collect())]
    }

    fn chat(&mut self, id: &str) -> &mut Chat {
        self.chats.entry(id.to_owned()).or_default()
    }
}
