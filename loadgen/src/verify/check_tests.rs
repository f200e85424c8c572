//! Every promise is broken once, in a history that is otherwise sound, and must be found; nothing else may be.

use super::*;
use crate::verify::history::Members;

const RUN: u32 = 5;

fn tag(device: u16, serial: u32) -> Tag {
    Tag { device, conversation: 0, serial, run: RUN }
}

fn place(seq: u64) -> Place {
    Place { epoch: 1, seq, id: 100 + seq }
}

fn sent(tag: Tag) -> Note {
    Note::Sent { tag }
}

fn acked(tag: Tag, seq: u64) -> Note {
    Note::Acked { tag, place: place(seq) }
}

fn shown(device: u16, seq: u64, tag: Tag) -> Note {
    Note::Shown { device, conversation: 0, place: place(seq), tag: Some(tag) }
}

/// Device 0 sent two messages, device 1 one between them; both have all three.
fn sound() -> History {
    let (a1, b1, a2) = (tag(0, 1), tag(1, 1), tag(0, 2));
    let mut notes = vec![sent(a1), acked(a1, 1), sent(b1), acked(b1, 2), sent(a2), acked(a2, 3)];
    for device in 0..2 {
        notes.extend([shown(device, 1, a1), shown(device, 2, b1), shown(device, 3, a2)]);
    }
    let log = [a1, b1, a2].iter().zip(1..).map(|(tag, seq)| entry(seq, *tag)).collect();
    History {
        run: RUN,
        conversations: vec![Members { name: "g:team".to_owned(), devices: vec![0, 1] }],
        notes: notes.into_iter().zip(1..).map(|(note, at)| (at, note)).collect(),
        odd: Vec::new(),
        logs: vec![Some(log)],
        online: vec![true, true],
        unanswered: Vec::new(),
    }
}

fn entry(seq: u64, tag: Tag) -> Entry {
    Entry { place: place(seq), content: Content::Message(tag) }
}

fn log(history: &mut History) -> &mut Vec<Entry> {
    history.logs[0].as_mut().expect("a log")
}

/// Notes in place of those from `at` on.
fn cut(history: &mut History, at: usize, notes: &[Note]) {
    history.notes.truncate(at);
    let from = history.notes.len() as u64 + 1;
    history.notes.extend(notes.iter().copied().zip(from..).map(|(note, at)| (at, note)));
}

fn found(history: &History, losses_allowed: bool) -> Vec<Broken> {
    check(history, losses_allowed).broken.into_keys().collect()
}

#[test]
fn a_sound_history_is_clean_and_counted() {
    let verdict = check(&sound(), false);
    assert!(verdict.is_clean(), "{:?}", verdict.examples);
    let counts = (verdict.sent, verdict.acknowledged, verdict.shown, verdict.logged, verdict.losses);
    assert_eq!(counts, (3, 3, 6, 3, 0));
}

#[test]
fn each_broken_promise_is_found() {
    type Break = fn(&mut History);
    let cases: &[(Break, &[Broken])] = &[
        // The last message is gone from the log, but devices have it.
        (|h| log(h).truncate(2), &[Broken::Lost, Broken::ShownOther]),
        (|h| log(h)[2].place.id += 1, &[Broken::Moved, Broken::ShownOther]),
        (|h| h.notes.push((99, acked(tag(0, 2), 4))), &[Broken::AnsweredTwice]),
        (
            |h| {
                log(h).push(entry(4, tag(1, 1)));
                h.online = vec![false, false];
            },
            &[Broken::Moved, Broken::StoredTwice, Broken::SenderOrder, Broken::TimeOrder],
        ),
        (
            |h| {
                log(h).remove(1);
                h.notes.retain(|(_, note)| !matches!(note, Note::Acked { tag, .. } if tag.device == 1));
            },
            &[Broken::LogHole, Broken::ShownOther],
        ),
        (|h| log(h)[0].place.epoch = 9, &[Broken::Moved, Broken::LogOrder, Broken::ShownOther]),
        (
            |h| {
                // The sender's second message stands before its first, for everyone.
                *h = sound();
                for (_, note) in &mut h.notes {
                    match note {
                        Note::Acked { tag, place: at } | Note::Shown { tag: Some(tag), place: at, .. } => {
                            let at_device_0 = tag.device == 0;
                            if at_device_0 {
                                *at = place(if tag.serial == 1 { 3 } else { 1 });
                            }
                        }
                        _ => {}
                    }
                }
                log(h)[0] = entry(1, tag(0, 2));
                log(h)[2] = entry(3, tag(0, 1));
                h.notes.retain(|(_, note)| !matches!(note, Note::Shown { .. }));
                h.online = vec![false, false];
            },
            &[Broken::SenderOrder, Broken::TimeOrder],
        ),
        (|h| h.notes.retain(|(_, note)| *note != sent(tag(1, 1))), &[Broken::Foreign]),
        (
            |h| {
                log(h).push(Entry { place: place(4), content: Content::Unknown });
                h.online = vec![false, false];
            },
            &[Broken::Foreign],
        ),
        (|h| h.notes.push((99, shown(1, 4, tag(0, 2)))), &[Broken::ShownTwice, Broken::ShownOther]),
        (
            |h| {
                let last = h.notes.len();
                h.notes.swap(last - 1, last - 2);
            },
            &[Broken::ShownLate, Broken::Skipped],
        ),
        (
            |h| {
                h.notes.remove(10);
            },
            &[Broken::Skipped, Broken::NotShown],
        ),
        (|h| h.notes.truncate(11), &[Broken::NotShown]),
        (|h| h.notes.truncate(9), &[Broken::NotShown]),
        (
            |h| h.notes.push((99, Note::Truncated { device: 1, conversation: 0, seq: 2 })),
            &[Broken::NotShown, Broken::FalseTruncation],
        ),
        (|h| h.notes.push((99, Note::Rescinded { tag: tag(0, 2) })), &[Broken::FalseTruncation]),
        (
            |h| {
                h.notes.pop();
                h.notes.push((99, Note::Missed { device: 1, conversation: 0, from: 3, to: 3 }));
            },
            &[Broken::FalseGap],
        ),
        (
            |h| h.notes.push((99, Note::Stale { device: 1, conversation: 0, seq: 3, head: 2 })),
            &[Broken::StaleHead],
        ),
        (|h| h.unanswered.push(tag(0, 3)), &[Broken::Unanswered]),
        (|h| h.logs[0] = None, &[Broken::LogUnread]),
        (|h| h.odd.push("a head went down".to_owned()), &[Broken::Odd]),
    ];
    for (number, (break_it, expected)) in cases.iter().enumerate() {
        let mut history = sound();
        break_it(&mut history);
        assert_eq!(found(&history, false), *expected, "case {number}");
    }
}

#[test]
fn a_loss_that_was_told_is_counted_and_one_that_was_not_is_found() {
    let mut history = sound();
    log(&mut history).pop();
    let told = |device| Note::Truncated { device, conversation: 0, seq: 2 };
    history.notes.extend([(50, told(0)), (51, told(1))]);
    let verdict = check(&history, true);
    assert!(verdict.is_clean(), "{:?}", verdict.examples);
    assert_eq!((verdict.losses, verdict.dropped), (1, 2));
    // Where nothing may be lost, the same is a violation.
    assert_eq!(found(&history, false), [Broken::Lost, Broken::FalseTruncation]);
    // The other device was not told: it still has what is gone.
    history.notes.pop();
    assert_eq!(found(&history, true), [Broken::ShownOther]);
    // Nobody was.
    history.notes.pop();
    assert_eq!(found(&history, true), [Broken::LossUntold, Broken::ShownOther]);
}

#[test]
fn what_took_the_place_of_a_lost_message_may_be_shown_after_it() {
    let mut history = sound();
    let b2 = tag(1, 2);
    let new = Place { epoch: 2, seq: 3, id: 900 };
    *log(&mut history).last_mut().unwrap() = Entry { place: new, content: Content::Message(b2) };
    let rest: Vec<Note> = (0..2)
        .flat_map(|device| {
            let told = Note::Truncated { device, conversation: 0, seq: 2 };
            [told, Note::Shown { device, conversation: 0, place: new, tag: Some(b2) }]
        })
        .collect();
    let length = history.notes.len();
    cut(&mut history, length, &[sent(b2), Note::Acked { tag: b2, place: new }]);
    let length = history.notes.len();
    cut(&mut history, length, &rest);
    let verdict = check(&history, true);
    assert!(verdict.is_clean(), "{:?}", verdict.examples);
    assert_eq!(verdict.losses, 1);
}

#[test]
fn a_message_that_was_sent_again_before_its_loss_was_known_may_stand_elsewhere() {
    let mut history = sound();
    let new = Place { epoch: 2, seq: 3, id: 900 };
    let again = Entry { place: new, content: Content::Message(tag(0, 2)) };
    *log(&mut history).last_mut().unwrap() = again;
    let rest = (0..2).flat_map(|device| {
        let told = Note::Truncated { device, conversation: 0, seq: 2 };
        [told, Note::Shown { device, conversation: 0, place: new, tag: Some(tag(0, 2)) }]
    });
    let rest: Vec<Note> = rest.collect();
    let length = history.notes.len();
    cut(&mut history, length, &rest);
    let verdict = check(&history, true);
    assert!(verdict.is_clean(), "{:?}", verdict.examples);
    assert_eq!(verdict.losses, 1, "of what was acknowledged");
    // The sender was not told.
    history.notes.remove(length);
    assert!(found(&history, true).contains(&Broken::Moved));
    assert!(found(&history, false).contains(&Broken::Moved), "where nothing may be lost");
}

#[test]
fn a_million_notes_take_seconds() {
    let mut history = sound();
    history.notes.clear();
    let entries = 100_000;
    for serial in 1..=entries {
        let (tag, at) = (tag(0, serial), u64::from(serial));
        history.notes.push((at * 2, sent(tag)));
        history.notes.push((at * 2 + 1, acked(tag, at)));
        history.notes.extend((0..8).map(|device| (at * 2 + 1, shown(device, at, tag))));
    }
    history.conversations[0].devices = (0..8).collect();
    history.online = vec![true; 8];
    history.logs[0] = Some((1..=entries).map(|n| entry(n.into(), tag(0, n))).collect());
    let start = std::time::Instant::now();
    let verdict = check(&history, false);
    assert!(verdict.is_clean(), "{:?}", verdict.examples);
    assert!(start.elapsed() < std::time::Duration::from_secs(20), "{:?}", start.elapsed());
}
