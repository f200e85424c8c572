//! Requests that are cut into parts, requests by their owner, and requests without an answer.

use super::super::limits::{PEEK_ITEMS_MAX, WATCHED_USERS_MAX};
use super::*;

fn peek(conversations: &[&str]) -> request::Op {
    let item = |id: &&str| PeekItem { conversation: (*id).into(), cursor: None };
    request::Op::Peek(Peek { items: conversations.iter().map(item).collect() })
}

fn watch(users: &[String]) -> request::Op {
    request::Op::PresenceSubscribe(PresenceSubscribe { users: users.to_vec() })
}

/// What was asked of node 0: the record, its token, the operation.
fn asked(world: &mut World) -> Vec<(Record, u64, request::Op)> {
    let records = world.take(0, Kind::ClientRequest);
    let one = |record: Record| {
        let body = wire::ClientRequest::decode(record.body.clone()).unwrap();
        (record, body.token, Request::decode(body.request).unwrap().op.unwrap())
    };
    records.into_iter().map(one).collect()
}

fn reply(world: &mut World, record: &Record, token: u64, outcome: response::Outcome) {
    let response = Response { id: 9, outcome: Some(outcome) }.encode_to_vec().into();
    let reply = wire::Reply { token, response, ..Default::default() };
    world.say(0, Kind::Reply, record.partition, 10, record.session.0, &reply);
    world.run();
}

fn busy() -> response::Outcome {
    response::Outcome::Refused(Refused { code: Code::NotMember.into(), ..Default::default() })
}

#[test]
fn a_peek_is_joined_in_the_order_asked() {
    let mut world = World::ready();
    let conn = world.session(0, "ann");
    let ids = ["g:tea", "d:ann:bob", "g:cup", "g:not-mine"];
    world.request(conn, 5, peek(&ids));
    let mut parts = asked(&mut world);
    assert_eq!(
        (parts.len(), world.shard.sessions_of("ann")[0].requests),
        (4, 1),
        "one request of its session"
    );
    parts.reverse();
    for (at, (record, token, op)) in parts.iter().enumerate() {
        assert!(world.seen(conn).is_empty(), "not before all are answered");
        let request::Op::Peek(Peek { items }) = op else { panic!("{op:?}") };
        assert_eq!(record.partition, partition_of(&items[0].conversation, PARTITIONS));
        let standing = Standing {
            conversation: items[0].conversation.clone(),
            unread: at as u32,
            head: Some(Cursor { epoch: 10, seq: 7 }),
            ..Default::default()
        };
        match items[0].conversation.as_str() {
            "g:not-mine" => reply(&mut world, record, *token, busy()),
            // The server behind is silent about one.
            "g:cup" => {}
            _ => {
                let standings = vec![standing];
                reply(&mut world, record, *token, response::Outcome::Peeked(Peeked { standings }));
            }
        }
    }
    world.later(11 * SECOND);
    let response::Outcome::Peeked(Peeked { standings }) = response(&world.seen(conn)) else { panic!() };
    let got: Vec<_> = standings.iter().map(|it| (it.conversation.as_str(), it.code(), it.unread)).collect();
    let none = Code::None;
    assert_eq!(
        got,
        [(ids[0], none, 3), (ids[1], none, 2), (ids[2], Code::Busy, 0), (ids[3], Code::NotMember, 0)]
    );
    let stats = world.shard.stats();
    assert_eq!((stats.requests_cut, stats.parts_failed, stats.requests_in_parts), (1, 2, 0));
    assert_eq!(world.shard.sessions_of("ann")[0].requests, 0);
    // It leaves before it is answered.
    world.request(conn, 6, peek(&ids));
    world.closed(conn);
    world.run();
    world.assert_empty();
    assert_eq!(world.shard.stats().requests_in_parts, 0);
}

#[test]
fn a_peek_fits_into_a_frame() {
    let mut world = World::ready();
    let conn = world.session(0, "ann");
    let ids: Vec<String> = (0..PEEK_ITEMS_MAX).map(|i| format!("g:{i:0>64}")).collect();
    world.request(conn, 5, peek(&ids.iter().map(String::as_str).collect::<Vec<_>>()));
    let payload = vec![1; 2_000];
    for (record, token, _) in asked(&mut world) {
        let deliver = Deliver { payload: payload.clone().into(), ..Default::default() };
        let cursor = Some(Cursor { epoch: u64::MAX, seq: u64::MAX });
        let standing = Standing {
            head: cursor,
            delivered: cursor,
            read: cursor,
            unread: u32::MAX,
            peer_read: u64::MAX,
            last: Some(Notify { event: Some(notify::Event::Deliver(deliver)) }),
            news: true,
            ..Default::default()
        };
        let standings = vec![standing];
        reply(&mut world, &record, token, response::Outcome::Peeked(Peeked { standings }));
    }
    // The client reads with the usual limits, or this would have panicked.
    let response::Outcome::Peeked(Peeked { standings }) = response(&world.seen(conn)) else { panic!() };
    let whole = standings.iter().filter(|standing| standing.last.is_some()).count();
    assert!(standings.len() == PEEK_ITEMS_MAX && whole >= 3, "{whole}");
    assert_eq!(world.shard.stats().peeks_trimmed, (PEEK_ITEMS_MAX - whole) as u64);
}

#[test]
fn presence_is_asked_of_each_partition_and_taken_back() {
    let mut world = World::ready();
    let conn = world.session(0, "ann");
    let users: Vec<String> = [5, 1, 3].map(user_in).to_vec();
    let page = |op: &request::Op| {
        let request::Op::PresenceSubscribe(ask) = op else { panic!("{op:?}") };
        let event = |user: &String| PresenceEvent { user: user.clone(), ..Default::default() };
        response::Outcome::PresencePage(PresencePage { users: ask.users.iter().map(event).collect() })
    };
    let answer = |world: &mut World| {
        let parts = asked(world);
        for (record, token, op) in &parts {
            reply(world, record, *token, page(op));
        }
        parts.into_iter().map(|(record, ..)| record.partition).collect::<Vec<_>>()
    };
    world.request(conn, 5, watch(&users));
    assert_eq!(answer(&mut world), [1, 3, 5]);
    let of = |seen: &[Seen]| match response(seen) {
        response::Outcome::PresencePage(page) => page.users.into_iter().map(|it| it.user).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(of(&world.seen(conn)), users);
    // Others in their place: where nobody is watched any more hears so too.
    world.request(conn, 6, watch(&users[..1]));
    assert_eq!(answer(&mut world), [1, 3, 5]);
    assert_eq!(of(&world.seen(conn)), users[..1]);
    world.request(conn, 7, watch(&users[1..2]));
    assert_eq!(answer(&mut world), [1, 5]);
    world.seen(conn);
    // A part that fails fails the whole.
    world.request(conn, 8, watch(&users));
    let parts = asked(&mut world);
    for (at, (record, token, op)) in parts.iter().enumerate() {
        reply(&mut world, record, *token, if at == 1 { busy() } else { page(op) });
    }
    assert_eq!(refused(&world.seen(conn)), Code::Busy);
    assert_eq!(world.shard.stats().watching, 1);
    world.closed(conn);
    world.run();
    let ends = asked(&mut world);
    assert!(ends.iter().all(|(_, token, op)| *token == 0 && *op == watch(&[])));
    assert_eq!(ends.iter().map(|(record, ..)| record.partition).collect::<Vec<_>>(), [1, 3, 5]);
    assert_eq!(world.shard.stats().watching, 0);
    world.assert_empty();
}

#[test]
fn what_is_malformed_is_refused_here() {
    let mut world = World::ready();
    let conn = world.session(0, "ann");
    let many = vec!["g:a"; PEEK_ITEMS_MAX + 1];
    let crowd = vec!["bob".to_owned(); WATCHED_USERS_MAX + 1];
    let history = |id: &str| request::Op::History(History { conversation: id.into(), ..Default::default() });
    let typing = |id: &str| request::Op::Typing(Typing { conversation: id.into(), what: 1 });
    let invite = GroupInvite { group: "tea".into(), users: vec!["no name".into()] };
    for (op, code) in [
        (peek(&[]), Code::BadRequest),
        (peek(&many), Code::BadRequest),
        (peek(&["g:a", "nothing"]), Code::BadRequest),
        (peek(&["g:a", "d:bob:carl"]), Code::Forbidden),
        (watch(&crowd), Code::BadRequest),
        (watch(&["no name".into()]), Code::BadRequest),
        (history("tea"), Code::BadRequest),
        (history("d:bob:carl"), Code::Forbidden),
        (typing("r:hall"), Code::NotJoined),
        (request::Op::ConversationSet(ConversationSet { item: None }), Code::BadRequest),
        (request::Op::GroupInvite(invite), Code::BadRequest),
        (request::Op::Block(Block { user: "".into(), block: true }), Code::BadRequest),
    ] {
        world.request(conn, 5, op.clone());
        assert_eq!(refused(&world.seen(conn)), code, "{op:?}");
    }
    assert!(asked(&mut world).is_empty());
    let stats = world.shard.stats();
    assert_eq!((stats.requests_pending, stats.request_bytes, stats.requests_in_parts), (0, 0, 0));
    // Nobody watched and nobody to be watched: nobody is asked.
    world.request(conn, 6, watch(&[]));
    assert_eq!(response(&world.seen(conn)), response::Outcome::PresencePage(PresencePage::default()));
}

#[test]
fn requests_go_to_their_owner() {
    let mut world = World::ready();
    let conn = world.session(0, "ann");
    let of = |id: &str| partition_of(id, PARTITIONS);
    let user = user_partition("ann", PARTITIONS);
    for (op, partition) in [
        (request::Op::People(People::default()), user),
        (request::Op::Conversations(Conversations::default()), user),
        (request::Op::Block(Block { user: "bob".into(), block: true }), of("d:ann:bob")),
        (request::Op::GroupInfo(GroupInfo { group: "tea".into() }), of("g:tea")),
        (request::Op::Read(Read { conversation: "g:cup".into(), seq: 4 }), of("g:cup")),
    ] {
        world.request(conn, 5, op.clone());
        let mut parts = asked(&mut world);
        assert_eq!(parts.len(), 1);
        let (record, _, sent) = parts.remove(0);
        assert_eq!((record.partition, sent), (partition, op));
    }
}

#[test]
fn requests_without_an_id_are_answered_when_they_are_refused() {
    let mut world = World::ready();
    let conn = world.session(0, "ann");
    let read = || request::Op::Read(Read { conversation: "g:cup".into(), seq: 4 });
    for (outcome, seen) in [(response::Outcome::Done(Done {}), 0), (busy(), 1)] {
        world.request(conn, 0, read());
        let (record, token, _) = asked(&mut world).remove(0);
        reply(&mut world, &record, token, outcome);
        let answers = world.seen(conn);
        assert_eq!(answers.len(), seen);
        assert!(answers.iter().all(|seen| matches!(seen, Seen::Response(Response { id: 0, .. }))));
    }
    world.request(conn, 0, read());
    world.later(11 * SECOND);
    assert_eq!(refused(&world.seen(conn)), Code::Busy);
    world.closed(conn);
    world.run();
    world.assert_empty();
}
