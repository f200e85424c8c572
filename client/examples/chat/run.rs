//! The chat with its terminal and its network: keys, events and answers go into the state, what it wants is carried out,
//! and it is drawn when something has changed.

use std::error::Error;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millrace_client::{
    Action, Client, Config, GroupChanges, Message, PeopleList, PresenceState, Role, SendAck, SendError,
    SendOptions, Window, conversation,
};
use ratatui::crossterm::event::{self, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

use crate::command::Command;
use crate::kept::Kept;
use crate::state::{Answer, Effect, Key, State};
use crate::view;

/// Lines of history that are read at once.
const PAGE_LINES: u32 = 50;

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Runs until the user leaves.
pub(crate) async fn run(
    config: Config,
    user: &str,
    open: Option<String>,
    mut kept: Kept,
) -> Result<(), Box<dyn Error>> {
    let device = config.device.clone();
    let (client, mut events) = Client::connect(config).await?;
    let mut state = State::new(user, wall_ms());
    let (answers, mut answered) = mpsc::unbounded_channel();
    let worker = Worker::new(client.clone(), device, answers);
    if kept.rooms.is_empty() && open.is_none() {
        kept.rooms.insert("lobby".into());
    }
    for room in &kept.rooms {
        worker.start(Effect::JoinRoom(room.clone()));
    }
    worker.start(Effect::Ask(Command::Friends, "quietly".into()));
    if let Some(open) = open {
        state.open(&open).into_iter().for_each(|effect| worker.start(effect));
    }
    let mut keys = keys();
    let mut terminal = ratatui::init();
    let mut ticks = tokio::time::interval(Duration::from_millis(500));
    let outcome = loop {
        if let Err(error) = terminal.draw(|frame| view::draw(frame, &state)) {
            break Err(error.into());
        }
        let effects = tokio::select! {
            key = keys.recv() => match key {
                Some(key) => state.key(key),
                None => break Ok(()),
            },
            event = events.next() => match event {
                Some(event) => state.event(event),
                None => break Err(state.ended.clone().unwrap_or_default().into()),
            },
            Some(answer) = answered.recv() => {
                if let Answer::Open(room) | Answer::Gone(room) = &answer
                    && let Some(room) = room.strip_prefix("r:")
                {
                    match &answer {
                        Answer::Open(_) => kept.rooms.insert(room.into()),
                        _ => kept.rooms.remove(room),
                    };
                    if let Err(error) = kept.save() {
                        state.status = format!("rooms are not remembered: {error}");
                    }
                }
                state.answer(answer)
            }
            _ = ticks.tick() => Vec::new(),
        };
        state.tick(wall_ms());
        if effects.contains(&Effect::Quit) {
            break Ok(());
        }
        effects.into_iter().for_each(|effect| worker.start(effect));
    };
    ratatui::restore();
    drop(worker);
    client.logout().await;
    outcome
}

/// Reads keys on a thread of its own, as a terminal can only be waited for.
fn keys() -> mpsc::UnboundedReceiver<Key> {
    let (sender, receiver) = mpsc::unbounded_channel();
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            let event::Event::Key(key) = event else { continue };
            if let Some(key) = key_of(key).filter(|_| key.kind != KeyEventKind::Release)
                && sender.send(key).is_err()
            {
                return;
            }
        }
    });
    receiver
}

fn key_of(key: KeyEvent) -> Option<Key> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    Some(match key.code {
        KeyCode::Char('c' | 'd') if control => Key::Quit,
        KeyCode::Char('n') if control => Key::Next,
        KeyCode::Char('p') if control => Key::Previous,
        KeyCode::Char('u') if control => Key::ClearLine,
        KeyCode::Char(char) if !control => Key::Char(char),
        KeyCode::Enter => Key::Enter,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Tab => Key::Next,
        KeyCode::BackTab => Key::Previous,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Esc => Key::Escape,
        _ => return None,
    })
}

/// A message to be sent: its conversation, key and text.
type Outgoing = (String, u64, String);

/// Carries out effects, each in a task of its own; but messages are put into the outbox one after the other.
struct Worker {
    client: Client,
    device: String,
    answers: mpsc::UnboundedSender<Answer>,
    messages: mpsc::UnboundedSender<Outgoing>,
}

impl Worker {
    fn new(client: Client, device: String, answers: mpsc::UnboundedSender<Answer>) -> Self {
        let (messages, queue) = mpsc::unbounded_channel();
        tokio::spawn(post(client.clone(), queue, answers.clone()));
        Worker { client, device, answers, messages }
    }

    fn start(&self, effect: Effect) {
        // The receivers of both channels live as long as the chat.
        if let Effect::Send { chat, key, text } = effect {
            return drop(self.messages.send((chat, key, text)));
        }
        let (client, answers, device) = (self.client.clone(), self.answers.clone(), self.device.clone());
        tokio::spawn(async move {
            if let Some(answer) = carry_out(&client, &device, effect).await {
                let _ = answers.send(answer);
            }
        });
    }
}

async fn post(
    client: Client,
    mut queue: mpsc::UnboundedReceiver<Outgoing>,
    answers: mpsc::UnboundedSender<Answer>,
) {
    while let Some((chat, key, text)) = queue.recv().await {
        let posted = client.post(&chat, text, SendOptions::default()).await;
        let answers = answers.clone();
        tokio::spawn(async move {
            let outcome = match posted {
                Ok(posted) => posted.stored().await,
                Err(error) => Err(error),
            };
            let outcome = outcome.map_err(|error| error.to_string());
            let _ = answers.send(Answer::Sent { chat, key, outcome });
        });
    }
}

fn words(outcome: Result<(), SendError>, done: &str) -> Answer {
    Answer::Words(outcome.map_or_else(|error| error.to_string(), |()| done.to_owned()))
}

async fn carry_out(client: &Client, device: &str, effect: Effect) -> Option<Answer> {
    Some(match effect {
        Effect::Edit { chat, seq, text } => {
            let outcome = client.edit(&chat, seq, text.clone()).await;
            changed(device, &chat, seq, Action::Edit, text, outcome)
        }
        Effect::Recall { chat, seq } => {
            let outcome = client.recall(&chat, seq).await;
            changed(device, &chat, seq, Action::Recall, String::new(), outcome)
        }
        Effect::React { chat, seq, what, add: true } => {
            let outcome = client.react(&chat, seq, &what).await;
            changed(device, &chat, seq, Action::React, what, outcome)
        }
        Effect::React { chat, seq, what, add: false } => {
            let outcome = client.unreact(&chat, seq, &what).await;
            changed(device, &chat, seq, Action::Unreact, what, outcome)
        }
        Effect::Read { chat, seq } => {
            return client.mark_read(&chat, seq).await.err().map(|error| Answer::Words(error.to_string()));
        }
        Effect::Typing { chat } => {
            return client.typing(&chat, 1).await.err().map(|error| Answer::Words(error.to_string()));
        }
        Effect::Older { chat, before } => {
            let window = before.map_or(Window::Newest, Window::Before);
            let outcome = client.history(&chat, window, PAGE_LINES).await.map_err(|error| error.to_string());
            Answer::Older { chat, outcome }
        }
        Effect::Who { chat, seq } => match client.receipts(&chat, seq, "", 0).await {
            Ok(page) => {
                let more = if page.more { " …" } else { "" };
                let (read, got) = (page.read_by.join(", "), page.delivered_to.join(", "));
                Answer::Words(format!(
                    "{seq}: read by {} ({read}{more}); has arrived at {} ({got}{more})",
                    page.read, page.delivered
                ))
            }
            Err(error) => Answer::Words(error.to_string()),
        },
        Effect::Arrange(item) => words(client.arrange(item).await, "arranged"),
        Effect::Watch(users) => match client.watch(users).await {
            Ok(events) => Answer::Watched(events),
            Err(error) => Answer::Words(error.to_string()),
        },
        Effect::Presence { away } => {
            let state = if away { PresenceState::Away } else { PresenceState::Online };
            words(
                client.set_presence(state, None).await,
                if away { "you are away" } else { "you are online" },
            )
        }
        Effect::JoinRoom(room) => match client.join_room(&room).await {
            Ok(joined) => Answer::Open(joined.conversation),
            Err(error) => Answer::Words(error.to_string()),
        },
        Effect::LeaveRoom(room) => match client.leave_room(&room).await {
            Ok(()) => Answer::Gone(conversation::room(&room)),
            Err(error) => Answer::Words(error.to_string()),
        },
        Effect::Ask(command, group) => match ask(client, command, &group).await {
            Ok(answer) => answer,
            Err(error) => Answer::Words(error.to_string()),
        },
        // Messages have their own queue.
        Effect::Send { .. } | Effect::Quit => return None,
    })
}

/// What others get as an entry of the log, for the screen of who made it.
fn changed(
    device: &str,
    chat: &str,
    refers_to: u64,
    action: Action,
    text: String,
    outcome: Result<SendAck, SendError>,
) -> Answer {
    match outcome {
        Ok(ack) => Answer::Changed(Message {
            conversation: chat.into(),
            seq: ack.seq,
            epoch: ack.epoch,
            message_id: ack.message_id,
            sender: String::new(),
            sender_device: device.into(),
            server_time_ms: ack.server_time_ms,
            content_kind: 0,
            payload: text.into(),
            action,
            refers_to,
        }),
        Err(error) => Answer::Words(error.to_string()),
    }
}

/// What is asked of groups and of people.
async fn ask(client: &Client, command: Command, group: &str) -> Result<Answer, SendError> {
    let done = |text: &str| Ok(Answer::Words(text.into()));
    match command {
        Command::Join(group) => {
            client.join_group(&group).await.map(|joined| Answer::Open(joined.conversation))
        }
        Command::Group { name, members } => {
            client.create_group(&name, members).await.map(|joined| Answer::Open(joined.conversation))
        }
        Command::Invite(users) => client.invite(group, users).await.and(done("invited")),
        Command::Kick(users) => client.remove_members(group, users).await.and(done("removed")),
        Command::Members => client.members(group, "", 0).await.map(|page| {
            let more = if page.more { " …" } else { "" };
            Answer::Words(format!("{} members: {}{more}", page.total, page.members.join(", ")))
        }),
        Command::Info => client.group(group).await.map(|group| {
            let about = String::from_utf8_lossy(&group.about);
            let asking = match group.asking.is_empty() {
                true => String::new(),
                false => format!("; asking to join: {}", group.asking.join(", ")),
            };
            Answer::Words(format!("{about} – owner {}, {} members{asking}", group.owner, group.members))
        }),
        Command::Admit { user, accept } => {
            client.answer_join(group, &user, accept).await.and(done("answered"))
        }
        Command::Role { user, role } => {
            let role = match role.as_str() {
                "owner" => Role::Owner,
                "admin" => Role::Admin,
                _ => Role::Member,
            };
            client.set_role(group, &user, role).await.and(done("done"))
        }
        Command::Silence { user, minutes } => {
            let until_ms = if minutes == 0 { 0 } else { wall_ms() + minutes * 60_000 };
            client.mute(group, user.as_deref(), until_ms).await.and(done("done"))
        }
        Command::About(text) => {
            let changes = GroupChanges { about: Some(text.into()), ..GroupChanges::default() };
            client.update_group(group, changes).await.and(done("changed"))
        }
        Command::Announce(text) => {
            let changes = GroupChanges { announcement: Some(text.into()), ..GroupChanges::default() };
            client.update_group(group, changes).await.and(done("announced"))
        }
        Command::Leave => client.leave_group(group).await.map(|()| Answer::Gone(conversation::group(group))),
        Command::Dissolve => {
            client.dissolve_group(group).await.map(|()| Answer::Gone(conversation::group(group)))
        }
        Command::Friend { user, greeting } => client.ask_friend(&user, greeting).await.and(done("asked")),
        Command::AnswerFriend { user, accept } => {
            client.answer_friend(&user, accept).await?;
            friends(client).await
        }
        Command::Unfriend(user) => {
            client.remove_friend(&user).await?;
            friends(client).await
        }
        Command::Friends => friends(client).await,
        Command::Block { user, block } => {
            client.block(&user, block).await.and(done(if block { "blocked" } else { "unblocked" }))
        }
        other => Ok(Answer::Words(format!("{other:?}?"))),
    }
}

async fn friends(client: &Client) -> Result<Answer, SendError> {
    let mut friends: Vec<String> = Vec::new();
    loop {
        let after = friends.last().cloned().unwrap_or_default();
        let page = client.people(PeopleList::FriendList, &after, 0).await?;
        friends.extend(page.people.into_iter().map(|person| person.user));
        if !page.more || friends.last() == Some(&after) {
            return Ok(Answer::Friends(friends));
        }
    }
}
