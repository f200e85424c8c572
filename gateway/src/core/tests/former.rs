//! Former owners: what they say late, and what they knew that the present one does not.

use super::owners::{member, two_nodes};
use super::*;

#[test]
fn a_join_of_long_ago_is_asked_about() {
    let mut world = two_nodes();
    let conn = world.session(0, "alice");
    let partition = partition_of("g:g1", PARTITIONS);
    let join = request::Op::GroupJoin(GroupJoin { group: "g1".into() });
    world.request(conn, 2, join);
    let (record, asked) = world.take_one::<wire::ClientRequest>(0, Kind::ClientRequest);
    world.announce(1, 0..PARTITIONS, 11);
    assert_eq!(refused(&world.seen(conn)), Code::Busy, "what the old owner was sent");
    // It had done it, and the user was removed by the new one since.
    let joined = wire::Reply {
        token: asked.token,
        joined: "g:g1".into(),
        joined_head: 4,
        members_version: 7,
        ..wire::Reply::default()
    };
    world.say(0, Kind::Reply, partition, 10, record.session.0, &joined);
    world.run();
    assert_eq!(told(&world.seen(conn)), [], "nobody is attached yet");
    let (_, ask) = world.take_one::<wire::Subscribe>(1, Kind::Subscribe);
    assert_eq!((ask.conversation.as_str(), &ask.users[..]), ("g:g1", &["alice".to_owned()][..]));
    let refused = wire::Subscribed {
        conversation: ask.conversation,
        version: ask.version,
        head: 9,
        refused: ask.users,
        ..wire::Subscribed::default()
    };
    world.say(1, Kind::Subscribed, partition, 11, 0, &refused);
    world.fan_out(1, 11, "g:g1", 10, 0);
    world.run();
    assert_eq!(told(&world.seen(conn)), [Told::Removed]);
    world.closed(conn);
    world.run();
    world.assert_empty();
}

#[test]
fn an_owner_is_subscribed_to_again_though_it_answered_before_it_announced() {
    let (mut world, conn) = member();
    world.subscribed(0, 10, 4);
    world.seen(conn);
    // It claimed again, and its first words under the new epoch are others.
    world.fan_out(0, 11, "g:g1", 5, 0);
    world.run();
    assert_eq!(told(&world.seen(conn)), [], "it is not known how it goes on");
    world.announce(0, 0..PARTITIONS, 11);
    world.subscribed(0, 11, 4);
    world.fan_out(0, 11, "g:g1", 5, 0);
    world.run();
    assert_eq!(told(&world.seen(conn)), [Told::Seq(5)]);
    world.closed(conn);
    world.run();
    world.assert_empty();
}

#[test]
fn a_join_that_a_former_owner_answers_is_asked_for_again() {
    let mut world = two_nodes();
    let conn = world.session(0, "alice");
    let partition = partition_of("g:g1", PARTITIONS);
    world.request(conn, 2, request::Op::GroupJoin(GroupJoin { group: "g1".into() }));
    let (record, asked) = world.take_one::<wire::ClientRequest>(0, Kind::ClientRequest);
    // The new owner hands on what was outstanding, and has not announced yet.
    world.say(1, Kind::Direct, partition, 11, 0, &wire::Direct::default());
    world.run();
    let joined = Joined { conversation: "g:g1".into(), epoch: 10, head: 4, members: 2 };
    let response = Response { id: 2, outcome: Some(response::Outcome::Joined(joined)) };
    let joined = wire::Reply {
        token: asked.token,
        joined: "g:g1".into(),
        joined_head: 4,
        response: response.encode_to_vec().into(),
        ..wire::Reply::default()
    };
    world.say(0, Kind::Reply, partition, 10, record.session.0, &joined);
    world.run();
    assert_eq!(refused(&world.seen(conn)), Code::Busy, "nobody listens there yet");
    world.announce(1, 0..PARTITIONS, 11);
    world.subscribed(1, 11, 6);
    world.run();
    assert_eq!(told(&world.seen(conn)), [Told::Head(11, 6)]);
    world.closed(conn);
    world.run();
    world.assert_empty();
}

#[test]
fn who_is_told_late_that_it_left_is_sent_nothing_before_it_is_told_that_it_is_back() {
    for is_back in [true, false] {
        let (mut world, conn) = member();
        world.subscribed(0, 10, 4);
        world.seen(conn);
        let partition = partition_of("g:g1", PARTITIONS);
        world.request(conn, 2, request::Op::GroupLeave(GroupLeave { group: "g1".into() }));
        let (record, asked) = world.take_one::<wire::ClientRequest>(0, Kind::ClientRequest);
        // The new owner hands on what was outstanding, and has not announced yet.
        world.say(1, Kind::Direct, partition, 11, 0, &wire::Direct::default());
        world.run();
        let left = response::Outcome::Left(Left { conversation: "g:g1".into() });
        let left = wire::Reply {
            token: asked.token,
            left: "g:g1".into(),
            response: Response { id: 2, outcome: Some(left) }.encode_to_vec().into(),
            ..wire::Reply::default()
        };
        world.say(0, Kind::Reply, partition, 10, record.session.0, &left);
        world.run();
        let seen = world.seen(conn);
        assert!(matches!(response(&seen), response::Outcome::Left(_)) && seen.len() == 1, "{seen:?}");
        world.announce(1, 0..PARTITIONS, 11);
        world.fan_out(1, 11, "g:g1", 5, 0);
        world.run();
        let (record, body) = world.take_one::<wire::Subscribe>(1, Kind::Subscribe);
        assert_eq!(body.users, ["alice"]);
        let answer = wire::Subscribed {
            conversation: body.conversation,
            version: body.version,
            head: 5,
            base: 4,
            refused: if is_back { Vec::new() } else { body.users },
            ..Default::default()
        };
        world.say(1, Kind::Subscribed, record.partition, 11, 0, &answer);
        world.run();
        world.fan_out(1, 11, "g:g1", 6, 0);
        world.run();
        let expected = if is_back { vec![Told::Head(11, 5), Told::Seq(6)] } else { vec![Told::Removed] };
        assert_eq!(told(&world.seen(conn)), expected);
        world.closed(conn);
        world.run();
        world.assert_empty();
    }
}

/// The second dispatcher answers a subscription.
fn answer(world: &mut World, epoch: u64, head: u64, base: (u64, u64)) {
    let (record, body) = world.take_one::<wire::Subscribe>(1, Kind::Subscribe);
    let answer = wire::Subscribed {
        conversation: body.conversation,
        version: body.version,
        head,
        base: base.0,
        base_epoch: base.1,
        ..Default::default()
    };
    world.say(1, Kind::Subscribed, record.partition, epoch, 0, &answer);
    world.run();
}

#[test]
fn a_log_that_lost_its_end_and_grew_again_is_told() {
    let (mut world, conn) = member();
    world.subscribed(0, 10, 4);
    world.fan_out(0, 10, "g:g1", 5, 0);
    world.run();
    world.seen(conn);
    let partition = partition_of("g:g1", PARTITIONS);
    // The new owner found less than was fanned out here. Meanwhile the log is as long as it was, and longer.
    world.announce(1, 0..PARTITIONS, 11);
    world.fan_out(1, 11, "g:g1", 6, 0);
    world.run();
    assert_eq!(told(&world.seen(conn)), [], "it is not known yet how the new owner goes on from 5");
    answer(&mut world, 11, 8, (3, 10));
    assert_eq!(told(&world.seen(conn)), [Told::Head(11, 8)]);
    world.fan_out(1, 11, "g:g1", 9, 0);
    world.run();
    assert_eq!(told(&world.seen(conn)), [Told::Seq(9)]);
    // The next one found more, of an owner that this shard never heard: that may have begun anywhere.
    world.announce(1, 0..PARTITIONS, 14);
    answer(&mut world, 14, 11, (11, 13));
    assert_eq!(told(&world.seen(conn)), [Told::Head(14, 9)]);
    let (_, fetch) = world.take_one::<wire::Fetch>(1, Kind::Fetch);
    assert_eq!((fetch.after_seq, fetch.through_seq), (9, 11));
    let messages = || (10..=11).map(|seq| fan_out("g:g1", seq, 14, 0, 1)).collect();
    let page = wire::Page { conversation: "g:g1".into(), messages: messages(), first_seq: 1, head: 11 };
    world.say(1, Kind::Page, partition, 14, 0, &page);
    world.run();
    assert_eq!(told(&world.seen(conn)), [Told::Seq(10), Told::Seq(11)]);
    world.closed(conn);
    world.run();
    world.assert_empty();
}

#[test]
fn a_log_of_another_copy_of_the_store_is_told_though_it_is_as_long_or_longer() {
    let (mut world, conn) = member();
    world.subscribed(0, 10, 4);
    world.seen(conn);
    // One that goes on: what its last owner appended, or nothing.
    world.fan_out(0, 10, "g:g1", 5, 0);
    world.announce(1, 0..PARTITIONS, 11);
    answer(&mut world, 11, 5, (5, 10));
    world.announce(1, 0..PARTITIONS, 12);
    answer(&mut world, 12, 5, (5, 10));
    assert_eq!(told(&world.seen(conn)), [Told::Seq(5)]);
    // Another entry there, and after that more entries of an owner that was before the one that had fewer.
    world.announce(1, 0..PARTITIONS, 15);
    answer(&mut world, 15, 5, (5, 9));
    assert_eq!(told(&world.seen(conn)), [Told::Head(15, 5)]);
    world.announce(1, 0..PARTITIONS, 18);
    answer(&mut world, 18, 6, (6, 14));
    assert_eq!(told(&world.seen(conn)), [Told::Head(18, 5)]);
    // And one that is shorter again, but not than what was passed on.
    world.announce(1, 0..PARTITIONS, 20);
    answer(&mut world, 20, 5, (5, 9));
    assert_eq!(told(&world.seen(conn)), [Told::Head(20, 5)]);
    world.closed(conn);
    world.run();
    world.assert_empty();
}

#[test]
fn a_removal_of_long_ago_takes_nobody_out() {
    let (mut world, conn) = member();
    world.seen(conn);
    let partition = partition_of("g:g1", PARTITIONS);
    let remove =
        wire::Remove { conversation: "g:g1".into(), users: vec!["alice".into()], ..Default::default() };
    // Said before the owner saw the Subscribe that this session waits for.
    world.say(0, Kind::Remove, partition, 10, 0, &remove);
    let left =
        wire::Reply { token: 999, left: "g:g1".into(), user: "alice".into(), ..wire::Reply::default() };
    world.say(0, Kind::Reply, partition, 10, world.id(conn), &left);
    world.run();
    world.subscribed(0, 10, 4);
    assert_eq!(told(&world.seen(conn)), [Told::Head(10, 4)], "the answer to it decides");
    // Said by a former owner.
    world.announce(1, 0..PARTITIONS, 11);
    world.subscribed(1, 11, 4);
    world.say(0, Kind::Remove, partition, 10, 0, &remove);
    world.say(0, Kind::Reply, partition, 10, world.id(conn), &left);
    world.run();
    assert_eq!(told(&world.seen(conn)), []);
    world.say(1, Kind::Remove, partition, 11, 0, &remove);
    world.run();
    assert_eq!(told(&world.seen(conn)), [Told::Removed]);
    world.closed(conn);
    world.run();
    world.assert_empty();
}

#[test]
fn who_is_refused_though_listed_is_asked_for_again_at_the_next_owner() {
    let mut world = two_nodes();
    let conn = world.accept(0, 1, ClientSession::tcp());
    world.request(conn, 1, login("alice"));
    world.registered(&["g:g1"], 1);
    let answer = |version, head, refused: &[&str]| wire::Subscribed {
        conversation: "g:g1".into(),
        version,
        head,
        base: head,
        refused: refused.iter().map(|user| (*user).into()).collect(),
        ..Default::default()
    };
    let (record, asked) = world.take_one::<wire::Subscribe>(0, Kind::Subscribe);
    world.say(0, Kind::Subscribed, record.partition, 10, 0, &answer(asked.version, 4, &["alice"]));
    world.run();
    assert_eq!(told(&world.seen(conn)), [Told::Removed]);
    world.announce(0, 0..PARTITIONS, 10);
    assert!(world.take(0, Kind::Subscribe).is_empty(), "the same owner knows nothing else");
    // The store fell back to before alice left: the next owner finds her.
    world.announce(1, 0..PARTITIONS, 11);
    let (record, asked) = world.take_one::<wire::Subscribe>(1, Kind::Subscribe);
    assert_eq!(asked.users, ["alice"]);
    world.say(1, Kind::Subscribed, record.partition, 11, 0, &answer(asked.version, 2, &[]));
    world.run();
    assert_eq!(told(&world.seen(conn)), [Told::Head(11, 2)]);
    world.announce(0, 0..PARTITIONS, 12);
    let (_, asked) = world.take_one::<wire::Subscribe>(0, Kind::Subscribe);
    assert_eq!(asked.users, ["alice"], "once");
}

#[test]
fn an_owner_is_told_of_a_higher_epoch_than_its_own() {
    let mut world = two_nodes();
    world.announce_from(0, 0..PARTITIONS, 11, 2);
    let told = |world: &mut World, node| -> Vec<(u16, u64)> {
        let records = world.take(node, Kind::Superseded);
        records.into_iter().map(|record| (record.partition, record.epoch)).collect()
    };
    assert_eq!(told(&mut world, 0), [], "itself");
    world.announce_from(1, 0..1, 12, 2);
    assert_eq!(told(&mut world, 0), [], "of the same copy of the store: its fence is void");
    world.announce_from(1, 1..3, 12, 1);
    assert_eq!(
        told(&mut world, 0),
        [(1, 12), (2, 12)],
        "another copy: either may be the one that is given up"
    );
    world.announce_from(0, 2..4, 11, 2);
    assert_eq!(told(&mut world, 0), [(2, 12)], "each time that it announces");
    assert_eq!((told(&mut world, 1), world.shard.stats().superseded), (vec![], 3));
}
