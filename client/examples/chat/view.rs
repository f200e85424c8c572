//! Draws the state: conversations on the left, the open one on the right, the line being typed below it.

use std::time::Duration;

use millrace_client::PresenceState;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line as Row, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph};

use crate::chats::{Chat, Line, Ticks, What};
use crate::command::HELP;
use crate::state::State;

const LIST_WIDTH: u16 = 30;

const DIM: Style = Style::new().fg(Color::DarkGray);

/// Draws everything.
pub(crate) fn draw(frame: &mut Frame, state: &State) {
    let [list, chat] =
        Layout::horizontal([Constraint::Length(LIST_WIDTH), Constraint::Min(20)]).areas(frame.area());
    let [title, lines, input, status] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(1),
        Constraint::Length(3),
        Constraint::Length(1),
    ])
    .areas(chat);
    draw_list(frame, list, state);
    draw_title(frame, title, state);
    draw_lines(frame, lines, state);
    draw_input(frame, input, state);
    let style = if state.online { DIM } else { Style::new().fg(Color::Yellow) };
    frame.render_widget(Paragraph::new(state.status.as_str()).style(style), status);
    if state.help {
        draw_help(frame, state);
    }
}

fn draw_list(frame: &mut Frame, area: Rect, state: &State) {
    let block = Block::new().borders(Borders::RIGHT).title(format!(" {} ", state.me));
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let mut rows = Vec::new();
    for (id, chat) in state.listed() {
        let style = match (*id == state.open, chat.unread > 0) {
            (true, _) => Style::new().add_modifier(Modifier::REVERSED),
            (false, true) => Style::new().add_modifier(Modifier::BOLD),
            (false, false) => Style::new(),
        };
        let mut name = vec![dot(state, id), Span::raw(" "), Span::styled(state.title(id), style)];
        if chat.pinned {
            name.push(Span::styled(" ^", DIM));
        }
        if chat.muted {
            name.push(Span::styled(" muted", DIM));
        }
        if chat.unread > 0 {
            let colour = if chat.muted { Color::DarkGray } else { Color::Green };
            name.push(Span::styled(format!(" ({})", chat.unread), Style::new().fg(colour)));
        }
        rows.push(Row::from(name));
        rows.push(Row::from(Span::styled(last_of(chat, inner.width), DIM)));
    }
    frame.render_widget(Paragraph::new(rows), inner);
}

/// The last line of a conversation, as it fits.
fn last_of(chat: &Chat, width: u16) -> String {
    let text = chat.last().map_or(String::new(), |(_, line)| match (&line.what, line.recalled) {
        (What::Text, false) => format!("{}: {}", line.sender, line.text),
        (What::Text, true) => format!("{}: (taken back)", line.sender),
        (What::Note, _) => line.text.clone(),
    });
    let text = text.replace('\n', " ");
    wrap(&text, usize::from(width.saturating_sub(3)))
        .first()
        .map(|row| format!("  {row}"))
        .unwrap_or_default()
}

/// Whether the other one is there.
fn dot(state: &State, chat: &str) -> Span<'static> {
    let Some(peer) = state.peer(chat) else { return Span::raw(" ") };
    match state.presence_of(peer) {
        PresenceState::Online => Span::styled("●", Style::new().fg(Color::Green)),
        PresenceState::Away => Span::styled("●", Style::new().fg(Color::Yellow)),
        PresenceState::Offline => Span::styled("○", DIM),
    }
}

fn draw_title(frame: &mut Frame, area: Rect, state: &State) {
    let mut spans = Vec::new();
    if !state.open.is_empty() {
        spans.push(dot(state, &state.open));
        let bold = Style::new().add_modifier(Modifier::BOLD);
        spans.push(Span::styled(format!(" {}", state.title(&state.open)), bold));
    }
    if let Some(event) = state.peer(&state.open).and_then(|peer| state.presence.get(peer))
        && event.devices.is_empty()
        && event.last_seen_ms > 0
    {
        spans.push(Span::styled(format!("  last seen {}", ago(state.now_ms, event.last_seen_ms)), DIM));
    }
    if let Some(chat) = state.chats.get(&state.open)
        && !chat.typing.is_empty()
    {
        let who: Vec<&str> = chat.typing.keys().map(String::as_str).collect();
        spans.push(Span::styled(format!("  {} is typing …", who.join(", ")), Style::new().fg(Color::Cyan)));
    }
    let block = Block::new().borders(Borders::BOTTOM);
    frame.render_widget(Paragraph::new(Row::from(spans)).block(block), area);
}

fn draw_lines(frame: &mut Frame, area: Rect, state: &State) {
    let Some(chat) = state.chats.get(&state.open) else { return };
    let height = usize::from(area.height);
    // From the newest up, until the window is full.
    let mut rows: Vec<Row> = Vec::new();
    for pending in chat.pending.iter().rev() {
        let (mark, style) = match &pending.failed {
            Some(reason) => (format!("not sent: {reason}"), Style::new().fg(Color::Red)),
            None => ("…".to_owned(), DIM),
        };
        let text = format!("{}  {mark}", pending.text);
        rows.extend(
            wrap(&text, usize::from(area.width)).into_iter().rev().map(|row| Row::styled(row, style)),
        );
    }
    for (seq, line) in chat.lines.iter().rev() {
        if rows.len() >= height + state.scroll {
            break;
        }
        rows.extend(rows_of(state, chat, *seq, line, area.width).into_iter().rev());
    }
    if chat.whole && rows.len() < height + state.scroll {
        rows.push(Row::styled("– the beginning –", DIM));
    }
    // At the very top nothing is scrolled away further.
    let scroll = state.scroll.min(rows.len().saturating_sub(height));
    let mut shown: Vec<Row> = rows.into_iter().skip(scroll).take(height).collect();
    shown.reverse();
    let above = height - shown.len();
    let area = Rect { y: area.y + above as u16, height: shown.len() as u16, ..area };
    frame.render_widget(Paragraph::new(shown), area);
}

/// One message as rows: who, when, what; its number; and what happened to it.
fn rows_of(state: &State, chat: &Chat, seq: u64, line: &Line, width: u16) -> Vec<Row<'static>> {
    let width = usize::from(width);
    if line.what == What::Note {
        return wrap(&format!("– {} –", line.text), width)
            .into_iter()
            .map(|row| Row::styled(row, DIM))
            .collect();
    }
    let own = line.sender == state.me;
    let text = if line.recalled { "(taken back)".to_owned() } else { line.text.clone() };
    let mut marks = String::new();
    if line.edited && !line.recalled {
        marks.push_str(" (edited)");
    }
    for (reaction, users) in &line.reactions {
        marks.push_str(&format!(" [{reaction} {}]", users.len()));
    }
    let head = format!("{} {seq:>4} ", clock(line.time_ms));
    let name = format!("{}: ", line.sender);
    let indent = head.chars().count() + name.chars().count();
    let (ticks, ticks_style) = match chat.ticks(seq) {
        _ if !own => ("", DIM),
        Ticks::Stored => (" ✓", DIM),
        Ticks::Delivered => (" ✓✓", DIM),
        Ticks::Read => (" ✓✓", Style::new().fg(Color::Cyan)),
    };
    let body = wrap(&text, width.saturating_sub(indent + 4).max(10));
    let style = if line.recalled { DIM } else { Style::new() };
    let last = body.len().saturating_sub(1);
    let mut rows = Vec::new();
    for (index, row) in body.into_iter().enumerate() {
        let mut spans = match index {
            0 => vec![Span::styled(head.clone(), DIM), Span::styled(name.clone(), colour_of(&line.sender))],
            _ => vec![Span::raw(" ".repeat(indent))],
        };
        spans.push(Span::styled(row, style));
        if index == last {
            spans.push(Span::styled(marks.clone(), DIM));
            spans.push(Span::styled(ticks, ticks_style));
        }
        rows.push(Row::from(spans));
    }
    rows
}

fn draw_input(frame: &mut Frame, area: Rect, state: &State) {
    let block = Block::bordered();
    let inner = block.inner(area);
    // The end of what is typed is what one looks at.
    let rows = wrap(&state.input, usize::from(inner.width.saturating_sub(1)));
    let row = rows.last().cloned().unwrap_or_default();
    let column = inner.x + Span::raw(row.as_str()).width() as u16;
    frame.render_widget(Paragraph::new(row).block(block), area);
    frame.set_cursor_position((column.min(inner.right()), inner.y));
}

fn draw_help(frame: &mut Frame, state: &State) {
    let area = frame.area();
    let wide = HELP.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    let rows: Vec<Row> = HELP
        .iter()
        .map(|(command, what)| {
            let command = Span::styled(format!("{command:<wide$}  "), Style::new().fg(Color::Cyan));
            Row::from(vec![command, Span::raw(*what)])
        })
        .collect();
    let height = (rows.len() as u16 + 2).min(area.height);
    let width = 84.min(area.width);
    let area = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    let title = format!(" {}: Esc closes this ", state.me);
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(rows).block(Block::bordered().title(title)), area);
}

/// One of a few colours for each name.
fn colour_of(name: &str) -> Style {
    const COLOURS: [Color; 6] =
        [Color::Green, Color::Blue, Color::Magenta, Color::Cyan, Color::Yellow, Color::LightRed];
    let sum: usize = name.bytes().map(usize::from).sum();
    Style::new().fg(COLOURS[sum % COLOURS.len()])
}

/// Hours and minutes, UTC.
fn clock(ms: u64) -> String {
    let minutes = ms / 60_000;
    format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60)
}

fn ago(now_ms: u64, then_ms: u64) -> String {
    let seconds = Duration::from_millis(now_ms.saturating_sub(then_ms)).as_secs();
    match seconds {
        0..60 => "just now".into(),
        60..3_600 => format!("{} min ago", seconds / 60),
        3_600..86_400 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// Breaks text into rows of at most `width` columns, at spaces where there are any. At least one row.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut rows = Vec::new();
    for line in text.split('\n') {
        let (mut row, mut columns) = (String::new(), 0);
        for word in line.split_inclusive(' ') {
            let wide = columns_of(word.trim_end());
            if columns > 0 && columns + wide > width {
                rows.push(std::mem::take(&mut row));
                columns = 0;
            }
            // A word that is wider than a row is cut.
            for char in word.chars() {
                let wide = columns_of(char.encode_utf8(&mut [0; 4]));
                if columns + wide > width && char != ' ' && columns > 0 {
                    rows.push(std::mem::take(&mut row));
                    columns = 0;
                }
                // Control characters would move the terminal's cursor.
                if !char.is_control() {
                    row.push(char);
                    columns += wide;
                }
            }
        }
        rows.push(row);
    }
    rows
}

fn columns_of(text: &str) -> usize {
    Span::raw(text).width()
}
