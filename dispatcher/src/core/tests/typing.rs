//! Typing: whom it reaches, how often, and that it never waits.

use bytes::Bytes;
use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{self, Code, response};
use millrace_protocol::messages::link as wire;
use millrace_protocol::prost::Message;

use super::world::{World, direct, session};

fn typing(conversation: &str) -> Op {
    Op::Typing(client::Typing { conversation: conversation.into(), what: 7 })
}

fn event(notify: &Bytes) -> client::TypingEvent {
    match client::Notify::decode(notify.clone()).unwrap().event.unwrap() {
        client::notify::Event::Typing(event) => event,
        other => panic!("{other:?}"),
    }
}

#[test]
fn it_reaches_who_listens_but_not_the_typist() {
    let mut world = World::serving(1, &[1, 2, 3]);
    let ann = session(1, 1);
    let members = vec!["bob".to_owned()];
    let create = client::GroupCreate { group: "x".into(), members, ..Default::default() };
    world.request(0, ann, "ann", Op::GroupCreate(create));
    world.run();
    for conversation in ["g:x", "r:a"] {
        world.subscribe(0, 2, conversation, 1, &[]);
        world.run();
        world.clear();
        let appended = world.stats(0).batches;
        let token = world.request(0, ann, "ann", typing(conversation));
        world.run();
        assert_eq!(world.answer(token).unwrap().1, response::Outcome::Done(client::Done {}));
        let told: Vec<wire::Relay> = world.take(0, 2, Kind::Relay);
        assert_eq!(
            (told.len(), told[0].except_session, told[0].conversation.as_str()),
            (1, ann.0, conversation)
        );
        assert_eq!(event(&told[0].notify).user, "ann");
        assert!(told[0].targets.is_empty() && world.kinds(0, 3).is_empty());
        assert_eq!(world.stats(0).batches, appended, "nothing is stored");
    }
    let token = world.request(0, session(1, 9), "eve", typing("g:x"));
    let none = world.request(0, session(1, 9), "eve", typing("g:none"));
    let others = world.request(0, session(1, 9), "eve", typing(&direct("ann", "bob")));
    world.run();
    assert_eq!(world.refused(token).code, Code::NotMember as i32);
    assert_eq!(world.refused(none).code, Code::NoSuchGroup as i32);
    assert_eq!(world.refused(others).code, Code::Forbidden as i32);
}

#[test]
fn in_a_direct_conversation_it_reaches_the_others_sessions_unless_one_blocks() {
    let mut world = World::serving(1, &[1, 2]);
    world.register(0, session(1, 1), "ann", "phone", "ios");
    world.register(0, session(2, 1), "bob", "phone", "ios");
    world.register(0, session(2, 2), "bob", "laptop", "web");
    world.run();
    world.clear();
    let name = direct("ann", "bob");
    world.request(0, session(1, 1), "ann", typing(&name));
    world.run();
    let told: Vec<wire::Relay> = world.take(0, 2, Kind::Relay);
    assert_eq!((told.len(), told[0].targets.len(), event(&told[0].notify).what), (1, 2, 7));
    assert!(world.take::<wire::Relay>(0, 1, Kind::Relay).is_empty());
    let block = client::Block { user: "ann".into(), block: true };
    world.request(0, session(2, 1), "bob", Op::Block(block));
    world.pass(3_000);
    world.clear();
    let token = world.request(0, session(1, 1), "ann", typing(&name));
    world.run();
    assert_eq!(
        world.answer(token).unwrap().1,
        response::Outcome::Done(client::Done {}),
        "nothing is given away"
    );
    assert!(world.kinds(0, 2).is_empty());
}

#[test]
fn too_often_is_dropped_and_so_is_what_would_wait() {
    let mut world = World::serving(1, &[1, 2]);
    world.subscribe(0, 2, "r:a", 1, &[]);
    world.run();
    for (pause_ms, passed) in [(0, 1), (100, 0), (1_899, 0), (1, 1)] {
        world.pass(pause_ms);
        world.request(0, session(1, 1), "ann", typing("r:a"));
        world.run();
        assert_eq!(world.take::<wire::Relay>(0, 2, Kind::Relay).len(), passed, "after {pause_ms} ms");
    }
    assert_eq!((world.stats(0).typing, world.stats(0).typing_dropped), (2, 2));
    world.end(0, 2).takes = false;
    for n in 1..=200 {
        world.send_to(0, session(1, 1), "ann", "r:a", n, &"x".repeat(60_000));
        world.run();
    }
    let waits = world.stats(0).waiting_for_credit;
    world.request(0, session(1, 1), "bob", typing("r:a"));
    world.run();
    assert_eq!((world.stats(0).relays_dropped, world.stats(0).waiting_for_credit), (1, waits));
}
