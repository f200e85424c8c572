//! Edits, recalls and reactions.

use millrace_protocol::messages::client::{self, Action, Code, Notify, notify, request};
use millrace_protocol::prost::Message;

use super::world::{World, direct, session};

fn about(
    world: &mut World,
    user: &str,
    client_seq: u64,
    action: Action,
    refers_to: u64,
    payload: &str,
) -> u64 {
    let ask = client::Send {
        conversation: direct("ann", "bob"),
        client_seq,
        stream: 1,
        payload: payload.to_owned().into(),
        action: action as i32,
        refers_to,
        ..Default::default()
    };
    let slot = if user == "ann" { 1 } else { 2 };
    let token = world.request(0, session(1, slot), user, request::Op::Send(ask));
    world.run();
    token
}

fn stored(world: &World, seq: usize) -> client::Deliver {
    let entry = &world.store.logs[&direct("ann", "bob")].entries[seq - 1];
    match Notify::decode(entry.notify.clone()).unwrap().event {
        Some(notify::Event::Deliver(deliver)) => deliver,
        other => panic!("no entry: {other:?}"),
    }
}

#[test]
fn who_may_say_what_of_a_message() {
    let mut world = World::serving(1, &[1]);
    about(&mut world, "ann", 1, Action::Message, 0, "hello");
    about(&mut world, "bob", 1, Action::React, 1, "+1");
    let cases = [
        ("bob", Action::Edit, 1, "mine", Code::NotAllowed),
        ("bob", Action::Recall, 1, "", Code::NotAllowed),
        ("ann", Action::Recall, 1, "why", Code::BadRequest),
        ("ann", Action::Edit, 2, "of a reaction", Code::NoSuchMessage),
        ("ann", Action::Edit, 9, "of nothing", Code::NoSuchMessage),
        ("ann", Action::React, 0, "+1", Code::NoSuchMessage),
        ("ann", Action::System, 1, "", Code::BadRequest),
        ("ann", Action::React, 1, &"x".repeat(65), Code::PayloadTooLarge),
    ];
    for (user, action, refers_to, payload, code) in cases {
        let token = about(&mut world, user, 2, action, refers_to, payload);
        assert_eq!(world.refused(token).code(), code, "{user} {action:?} {refers_to}");
    }
    let token = about(&mut world, "ann", 2, Action::Edit, 1, "hello, bob");
    assert_eq!(world.ack(token).seq, 3);
    let edit = stored(&world, 3);
    assert_eq!((edit.action(), edit.refers_to, &edit.payload[..]), (Action::Edit, 1, &b"hello, bob"[..]));
}

#[test]
fn a_recall_takes_the_payload_out_of_the_log() {
    let mut world = World::serving(1, &[1]);
    about(&mut world, "ann", 1, Action::Message, 0, "secret");
    let token = about(&mut world, "ann", 2, Action::Recall, 1, "");
    assert_eq!(world.ack(token).seq, 2);
    let recalled = stored(&world, 1);
    assert!(recalled.payload.is_empty());
    assert_eq!((recalled.seq, recalled.sender.as_str()), (1, "ann"));
    let token = about(&mut world, "ann", 3, Action::Edit, 1, "again");
    assert_eq!(world.refused(token).code(), Code::NoSuchMessage);
    let token = about(&mut world, "ann", 2, Action::Recall, 1, "");
    assert_eq!(world.ack(token).seq, 2, "a repeat");
}

#[test]
fn windows_end() {
    let mut world = World::serving(1, &[1]);
    about(&mut world, "ann", 1, Action::Message, 0, "old");
    world.now.wall_ms += 3_600_001;
    let token = about(&mut world, "ann", 2, Action::Recall, 1, "");
    assert_eq!(world.refused(token).code(), Code::TooLate);
    let token = about(&mut world, "ann", 2, Action::Edit, 1, "newer");
    assert_eq!(world.ack(token).seq, 2);
    world.now.wall_ms += 24 * 3_600_000;
    let token = about(&mut world, "ann", 3, Action::Edit, 1, "newest");
    assert_eq!(world.refused(token).code(), Code::TooLate);
}
