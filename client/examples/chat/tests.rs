//! What follows from what, and how it looks, without a terminal or a network.

use millrace_client::schema::{Deliver, Notify, notify};
use millrace_client::{
    Action, ConversationItem, Cursor, DevicePresence, Event, History, Listing, Message, PresenceEvent,
    PresenceState, Receipt, SendAck, Standing, TypingEvent,
};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use crate::chats::Ticks;
use crate::command::{Command, HELP, parse};
use crate::state::{Answer, Effect, Key, State};
use crate::view::{draw, wrap};

const CHAT: &str = "d:alice:bob";

fn message(seq: u64, sender: &str, text: &str) -> Message {
    Message {
        conversation: CHAT.into(),
        seq,
        epoch: 1,
        message_id: seq,
        sender: sender.into(),
        sender_device: "phone".into(),
        server_time_ms: 1_000 * seq,
        content_kind: 0,
        payload: text.to_owned().into(),
        action: Action::Message,
        refers_to: 0,
    }
}

fn about(seq: u64, refers_to: u64, action: Action, text: &str) -> Event {
    Event::Message(Message { action, refers_to, ..message(seq, "bob", text) })
}

fn alice() -> State {
    let mut state = State::new("alice", 0);
    state.event(Event::Connected { session: 1, user: "alice".into(), again: false });
    state
}

fn enter(state: &mut State, line: &str) -> Vec<Effect> {
    line.chars().for_each(|char| drop(state.key(Key::Char(char))));
    state.key(Key::Enter)
}

fn screen(state: &State) -> String {
    let mut terminal = Terminal::new(TestBackend::new(100, 20)).unwrap();
    terminal.draw(|frame| draw(frame, state)).unwrap();
    let buffer = terminal.backend().buffer();
    let rows = buffer.content().chunks(usize::from(buffer.area.width));
    rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>() + "\n").collect()
}

#[test]
fn commands_are_read_and_say_what_they_want() {
    for (line, command) in [
        ("hello", Command::Say("hello".into())),
        ("//shrug", Command::Say("/shrug".into())),
        ("/to bob", Command::To("bob".into())),
        (
            "/group tea bob carol",
            Command::Group { name: "tea".into(), members: vec!["bob".into(), "carol".into()] },
        ),
        ("/edit better so", Command::Edit { seq: None, text: "better so".into() }),
        ("/edit 7 better so", Command::Edit { seq: Some(7), text: "better so".into() }),
        ("/react 👍", Command::React { seq: None, what: "👍".into(), add: true }),
        ("/unreact 12 👍", Command::React { seq: Some(12), what: "👍".into(), add: false }),
        ("/recall 3", Command::Recall { seq: Some(3) }),
        ("/silence all 5", Command::Silence { user: None, minutes: 5 }),
        ("/friend bob  it's me ", Command::Friend { user: "bob".into(), greeting: "it's me".into() }),
    ] {
        assert_eq!(parse(line), Ok(command), "{line}");
    }
    assert_eq!(parse("/to"), Err("/to USER: talk to a person".into()));
    assert!(parse("/nonsense").unwrap_err().contains("/help"));
    // Whatever help names is a command.
    let commands =
        HELP.iter().flat_map(|(usage, _)| usage.split_whitespace()).filter(|word| word.starts_with('/'));
    for command in commands {
        let known = parse(command);
        assert!(known.is_ok() || !known.as_ref().unwrap_err().contains("is no command"), "{known:?}");
    }
}

#[test]
fn a_message_is_shown_while_it_is_sent_and_its_ticks_follow() {
    let mut state = alice();
    state.open(CHAT);
    let effects = enter(&mut state, "hello bob");
    let sent = Effect::Send { chat: CHAT.into(), key: 1, text: "hello bob".into() };
    assert!(effects.contains(&sent), "{effects:?}");
    assert!(screen(&state).contains("hello bob  …"));
    let ack = SendAck { seq: 4, server_time_ms: 1_000, ..SendAck::default() };
    state.answer(Answer::Sent { chat: CHAT.into(), key: 1, outcome: Ok(ack) });
    assert!(screen(&state).contains("00:00    4 alice: hello bob ✓ "));
    assert_eq!(state.chats[CHAT].ticks(4), Ticks::Stored);
    let receipt = |delivered, read| {
        Event::Receipt(Receipt { conversation: CHAT.into(), user: "bob".into(), delivered, read })
    };
    state.event(receipt(4, 3));
    assert_eq!(state.chats[CHAT].ticks(4), Ticks::Delivered);
    state.event(receipt(4, 4));
    assert_eq!(state.chats[CHAT].ticks(4), Ticks::Read);
    assert!(screen(&state).contains("✓✓"));
    enter(&mut state, "and another");
    state.answer(Answer::Sent { chat: CHAT.into(), key: 2, outcome: Err("Blocked".into()) });
    assert!(screen(&state).contains("and another  not sent: Blocked"));
}

#[test]
fn what_happens_to_a_message_is_seen_on_it_in_whatever_order_it_comes() {
    let mut state = alice();
    state.open(CHAT);
    // The reaction came live, the message it belongs to from history.
    state.event(about(9, 5, Action::React, "👍"));
    state.event(Event::Message(message(10, "bob", "frist")));
    state.event(about(11, 10, Action::Edit, "first"));
    let history = History {
        messages: vec![message(5, "alice", "tea?"), message(6, "bob", "yes")],
        more: false,
        head: 11,
    };
    state.answer(Answer::Older { chat: CHAT.into(), outcome: Ok(history.clone()) });
    let seen = screen(&state);
    assert!(seen.contains("alice: tea? [👍") && seen.contains("bob: first (edited)"), "{seen}");
    assert!(seen.contains("the beginning"));
    state.event(about(12, 10, Action::Recall, ""));
    state.event(about(13, 5, Action::Unreact, "👍"));
    // History again changes nothing.
    state.answer(Answer::Older { chat: CHAT.into(), outcome: Ok(history) });
    let seen = screen(&state);
    assert!(seen.contains("bob: (taken back)") && !seen.contains("👍") && !seen.contains("first"), "{seen}");
    // Commands mean the newest that fits.
    assert_eq!(enter(&mut state, "/recall"), [Effect::Recall { chat: CHAT.into(), seq: 5 }]);
    let react = Effect::React { chat: CHAT.into(), seq: 10, what: "+1".into(), add: true };
    assert_eq!(enter(&mut state, "/react +1"), [react]);
}

#[test]
fn unread_counts_go_when_a_conversation_is_looked_at() {
    let mut state = alice();
    state.open("g:tea");
    let last = Deliver {
        conversation: CHAT.into(),
        seq: 7,
        sender: "bob".into(),
        server_time_ms: 9,
        ..Deliver::default()
    };
    state.event(Event::Listed(vec![Listing {
        item: ConversationItem { conversation: CHAT.into(), pinned: true, ..ConversationItem::default() },
        standing: Standing {
            conversation: CHAT.into(),
            head: Some(Cursor { epoch: 1, seq: 7 }),
            read: Some(Cursor { epoch: 1, seq: 5 }),
            unread: 2,
            last: Some(Notify { event: Some(notify::Event::Deliver(last)) }),
            ..Standing::default()
        },
    }]));
    assert!(screen(&state).contains("bob ^ (2)"));
    state.event(Event::Message(message(8, "bob", "there?")));
    assert!(screen(&state).contains("bob ^ (3)") && screen(&state).contains("  bob: there?"));
    let effects = state.key(Key::Next);
    assert!(effects.contains(&Effect::Read { chat: CHAT.into(), seq: 8 }), "{effects:?}");
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Older { before: Some(8), .. })));
    assert!(!screen(&state).contains("(3)"));
    // While one reads back, what comes is not read.
    state.key(Key::PageUp);
    assert_eq!(state.event(Event::Message(message(9, "bob", "well"))), []);
    assert_eq!(state.chats[CHAT].unread, 1);
    state.key(Key::PageDown);
    assert_eq!(state.key(Key::PageDown), [Effect::Read { chat: CHAT.into(), seq: 9 }]);
}

#[test]
fn presence_and_typing_come_and_go() {
    let mut state = alice();
    let effects = state.open(CHAT);
    assert!(effects.contains(&Effect::Watch(vec!["bob".into()])));
    assert!(screen(&state).contains("○ bob"));
    let device = DevicePresence { state: PresenceState::Online.into(), ..DevicePresence::default() };
    let online = PresenceEvent { user: "bob".into(), devices: vec![device], last_seen_ms: 0 };
    state.answer(Answer::Watched(vec![online]));
    assert!(screen(&state).contains("● bob"));
    state.event(Event::Typing(TypingEvent { conversation: CHAT.into(), user: "bob".into(), what: 1 }));
    assert!(screen(&state).contains("bob is typing"));
    state.tick(6_000);
    assert!(!screen(&state).contains("bob is typing"));
    let gone = PresenceEvent { user: "bob".into(), devices: Vec::new(), last_seen_ms: 1 };
    state.tick(600_000);
    state.event(Event::Presence(gone));
    assert!(screen(&state).contains("last seen 9 min ago"));
}

#[test]
fn a_log_that_lost_its_end_takes_the_screen_back() {
    let mut state = alice();
    state.open(CHAT);
    for (seq, text) in [(1, "one"), (2, "two"), (3, "three")] {
        state.event(Event::Message(message(seq, "bob", text)));
    }
    state.event(Event::Truncated { conversation: CHAT.into(), to: Cursor { epoch: 1, seq: 1 } });
    state.event(Event::Message(message(2, "bob", "another two")));
    let seen = screen(&state);
    assert!(seen.contains("one") && seen.contains("another two") && !seen.contains("three"), "{seen}");
    state.event(Event::Gap { conversation: CHAT.into(), from: 3, to: 9 });
    assert!(screen(&state).contains("7 messages are gone (3 to 9)"));
}

#[test]
fn help_covers_every_size_and_long_lines_are_broken() {
    let mut state = alice();
    state.open(CHAT);
    state.event(Event::Message(message(1, "bob", &"long words and spaces ".repeat(200))));
    enter(&mut state, "/help");
    assert!(screen(&state).contains("/to USER"));
    for (width, height) in [(1, 1), (10, 3), (31, 7), (60, 10), (200, 60)] {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, &state)).unwrap();
    }
    state.key(Key::Escape);
    assert!(!screen(&state).contains("/to USER"));
    assert_eq!(wrap("one two three", 8), ["one two ", "three"]);
    assert_eq!(wrap("abcdefgh", 3), ["abc", "def", "gh"]);
    assert_eq!(wrap("日本語", 4), ["日本", "語"]);
    assert_eq!(wrap("a\nb\x1b[31m", 10), ["a", "b[31m"]);
}
