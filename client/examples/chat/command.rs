//! What can be typed: a line to send, or a command behind a slash. Parsing alone; [`crate::state`] acts on it.

/// What is shown by /help: command, what it does.
pub(crate) const HELP: &[(&str, &str)] = &[
    ("/to USER", "talk to a person"),
    ("/room NAME", "join a room and open it"),
    ("/join GROUP", "join a group, or ask to"),
    ("/group NAME [USER …]", "make a group"),
    ("/invite USER …   /kick USER …", "into the open group, out of it"),
    ("/members   /info", "who is in it, what it is"),
    ("/admit USER   /reject USER", "answer who asks to join"),
    ("/role USER member|admin|owner", "give a role"),
    ("/silence USER|all MINUTES", "nobody hears them; 0: again"),
    ("/about TEXT   /announce TEXT", "what the group shows"),
    ("/leave   /dissolve", "go, or end the group"),
    ("/edit [NUMBER] TEXT", "your last message, or that one"),
    ("/recall [NUMBER]", "take it back"),
    ("/react [NUMBER] WHAT   /unreact …", "to the last message, or that one"),
    ("/who [NUMBER]", "who has read it"),
    ("/friend USER [GREETING]", "ask to be friends"),
    ("/accept USER   /decline USER", "answer who asks"),
    ("/unfriend USER   /friends", "end it; list them"),
    ("/block USER   /unblock USER", "neither can write"),
    ("/pin   /mute   /hide", "arrange the open conversation; again: undo"),
    ("/away   /online", "what others see of you"),
    ("/quit", "leave (also Ctrl-C)"),
    ("Tab, Shift-Tab, Ctrl-N, Ctrl-P", "next and previous conversation"),
    ("PageUp, PageDown", "read back"),
];

/// A line that was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Say(String),
    To(String),
    Room(String),
    Join(String),
    Group { name: String, members: Vec<String> },
    Invite(Vec<String>),
    Kick(Vec<String>),
    Members,
    Info,
    Admit { user: String, accept: bool },
    Role { user: String, role: String },
    Silence { user: Option<String>, minutes: u64 },
    About(String),
    Announce(String),
    Leave,
    Dissolve,
    Edit { seq: Option<u64>, text: String },
    Recall { seq: Option<u64> },
    React { seq: Option<u64>, what: String, add: bool },
    Who { seq: Option<u64> },
    Friend { user: String, greeting: String },
    AnswerFriend { user: String, accept: bool },
    Unfriend(String),
    Friends,
    Block { user: String, block: bool },
    Arrange(Arrange),
    Presence { away: bool },
    Help,
    Quit,
}

/// What is turned on or off of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrange {
    Pin,
    Mute,
    Hide,
}

/// Reads a line. An error says what would have been right.
pub(crate) fn parse(line: &str) -> Result<Command, String> {
    let Some(command) = line.strip_prefix('/') else { return Ok(Command::Say(line.into())) };
    // Two slashes send one.
    if command.starts_with('/') {
        return Ok(Command::Say(command.into()));
    }
    let (name, rest) = command.split_once(' ').unwrap_or((command, ""));
    let rest = rest.trim();
    let words: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
    let one = || match &words[..] {
        [word] => Ok(word.clone()),
        _ => Err(usage(name)),
    };
    let some = || if words.is_empty() { Err(usage(name)) } else { Ok(words.clone()) };
    let text = || if rest.is_empty() { Err(usage(name)) } else { Ok(rest.to_owned()) };
    let none = |command: Command| if words.is_empty() { Ok(command) } else { Err(usage(name)) };
    let seq = || match &words[..] {
        [] => Ok(None),
        [word] => word.parse().map(Some).map_err(|_| usage(name)),
        _ => Err(usage(name)),
    };
    match name {
        "to" => one().map(Command::To),
        "room" => one().map(Command::Room),
        "join" => one().map(Command::Join),
        "group" => {
            let mut words = some()?.into_iter();
            let name = words.next().unwrap_or_default();
            Ok(Command::Group { name, members: words.collect() })
        }
        "invite" => some().map(Command::Invite),
        "kick" => some().map(Command::Kick),
        "members" => none(Command::Members),
        "info" => none(Command::Info),
        "admit" => one().map(|user| Command::Admit { user, accept: true }),
        "reject" => one().map(|user| Command::Admit { user, accept: false }),
        "role" => match &words[..] {
            [user, role] if ["member", "admin", "owner"].contains(&role.as_str()) => {
                Ok(Command::Role { user: user.clone(), role: role.clone() })
            }
            _ => Err(usage(name)),
        },
        "silence" => match &words[..] {
            [user, minutes] => {
                let minutes = minutes.parse().map_err(|_| usage(name))?;
                Ok(Command::Silence { user: (user != "all").then(|| user.clone()), minutes })
            }
            _ => Err(usage(name)),
        },
        "about" => text().map(Command::About),
        "announce" => text().map(Command::Announce),
        "leave" => none(Command::Leave),
        "dissolve" => none(Command::Dissolve),
        "edit" => match numbered(rest) {
            (_, "") => Err(usage(name)),
            (seq, text) => Ok(Command::Edit { seq, text: text.into() }),
        },
        "recall" => Ok(Command::Recall { seq: seq()? }),
        "react" | "unreact" => match numbered(rest) {
            (_, "") => Err(usage(name)),
            (seq, what) => Ok(Command::React { seq, what: what.into(), add: name == "react" }),
        },
        "who" => Ok(Command::Who { seq: seq()? }),
        "friend" => {
            let user = some()?.remove(0);
            let greeting = rest[user.len()..].trim().to_owned();
            Ok(Command::Friend { user, greeting })
        }
        "accept" => one().map(|user| Command::AnswerFriend { user, accept: true }),
        "decline" => one().map(|user| Command::AnswerFriend { user, accept: false }),
        "unfriend" => one().map(Command::Unfriend),
        "friends" => none(Command::Friends),
        "block" => one().map(|user| Command::Block { user, block: true }),
        "unblock" => one().map(|user| Command::Block { user, block: false }),
        "pin" => none(Command::Arrange(Arrange::Pin)),
        "mute" => none(Command::Arrange(Arrange::Mute)),
        "hide" => none(Command::Arrange(Arrange::Hide)),
        "away" => none(Command::Presence { away: true }),
        "online" => none(Command::Presence { away: false }),
        "help" => none(Command::Help),
        "quit" => none(Command::Quit),
        _ => Err(format!("/{name} is no command; /help lists them")),
    }
}

/// A number in front, if there is one with something behind it.
fn numbered(rest: &str) -> (Option<u64>, &str) {
    match rest.split_once(' ') {
        Some((first, behind)) if first.parse::<u64>().is_ok() => (first.parse().ok(), behind.trim()),
        _ => (None, rest),
    }
}

fn usage(name: &str) -> String {
    let of = |help: &&(&str, &str)| {
        help.0.split_whitespace().any(|word| word.strip_prefix('/').is_some_and(|command| command == name))
    };
    HELP.iter().find(of).map_or_else(|| format!("/{name}?"), |(usage, what)| format!("{usage}: {what}"))
}
