//! Catching up with a group by pages: no live copies meanwhile, everything after the last page.

use super::*;

/// Logs a session into group tea, subscribed at `head`.
fn member(world: &mut World, slot: u32, user: &str, head: u64) -> Conn {
    let conn = world.accept(slot, 1, ClientSession::tcp());
    world.request(conn, 1, login(user));
    world.registered(&["tea"], u64::from(slot) + 1);
    world.subscribed(0, 10, head);
    assert_eq!(told(&world.seen(conn)), [Told::Head(10, head)]);
    conn
}

/// Asks for a page.
fn ask(world: &mut World, conn: Conn, id: u64) -> (Record, wire::ClientRequest) {
    let sync = Sync { conversation: "g:tea".into(), ..Default::default() };
    world.request(conn, id, request::Op::Sync(sync));
    world.take_one::<wire::ClientRequest>(0, Kind::ClientRequest)
}

/// Answers it: `more` to come, or the last one as of `head`.
fn page(world: &mut World, (record, asked): (Record, wire::ClientRequest), more: bool, head: u64) {
    let id = Request::decode(asked.request).unwrap().id;
    let page = SyncPage { conversation: "g:tea".into(), head, more, ..Default::default() };
    let response = Response { id, outcome: Some(response::Outcome::SyncPage(page)) };
    let name = |set: bool| if set { "g:tea".to_owned() } else { String::new() };
    let reply = wire::Reply {
        token: asked.token,
        response: response.encode_to_vec().into(),
        joined: name(!more),
        joined_head: if more { 0 } else { head },
        syncing: name(more),
        ..Default::default()
    };
    world.say(0, Kind::Reply, record.partition, 10, record.session.0, &reply);
    world.run();
}

fn deliver(world: &mut World, seq: u64) {
    world.fan_out(0, 10, "g:tea", seq, 0);
    world.run();
}

#[test]
fn no_live_copies_until_the_pages_reach_the_head() {
    let mut world = World::ready();
    let [ann, bob] = [(0, "ann"), (1, "bob")].map(|(slot, user)| member(&mut world, slot, user, 4));
    let asked = ask(&mut world, ann, 2);
    deliver(&mut world, 5);
    assert_eq!(told(&world.seen(ann)), [Told::Seq(5)], "it may have been at the head");
    page(&mut world, asked, true, 5);
    deliver(&mut world, 6);
    assert!(told(&world.seen(ann)).is_empty());
    let asked = ask(&mut world, ann, 3);
    deliver(&mut world, 7);
    page(&mut world, asked, false, 7);
    deliver(&mut world, 8);
    assert_eq!(told(&world.seen(ann)), [Told::Seq(8)]);
    assert_eq!(told(&world.seen(bob)), (5..=8).map(Told::Seq).collect::<Vec<_>>());
    // What was taken in after the page was read, before it attached: told as missing.
    let asked = ask(&mut world, ann, 4);
    page(&mut world, asked, true, 8);
    let asked = ask(&mut world, ann, 5);
    deliver(&mut world, 9);
    page(&mut world, asked, false, 8);
    assert_eq!(told(&world.seen(ann)), [Told::Gap(9, 9)]);
    assert_eq!(world.shard.stats().syncing, 2);
    for conn in [ann, bob] {
        world.closed(conn);
    }
    world.run();
    world.assert_empty();
}

#[test]
fn the_only_listener_ends_the_subscription_and_begins_it_again() {
    let mut world = World::ready();
    let ann = member(&mut world, 0, "ann", 4);
    let asked = ask(&mut world, ann, 2);
    page(&mut world, asked, true, 9);
    assert_eq!(world.take(0, Kind::Unsubscribe).len(), 1);
    assert_eq!(world.shard.stats().topics, 0);
    deliver(&mut world, 10);
    world.take(0, Kind::Unsubscribe);
    let asked = ask(&mut world, ann, 3);
    page(&mut world, asked, false, 10);
    deliver(&mut world, 11);
    assert_eq!(told(&world.seen(ann)), [Told::Seq(11)]);
    let again = world.subscribed(0, 10, 11);
    assert_eq!((again.len(), &again[0].users[..]), (1, &["ann".to_owned()][..]));
    deliver(&mut world, 12);
    assert_eq!(told(&world.seen(ann)), [Told::Seq(12)]);
    // It leaves in the middle of the next one: the last page finds nobody.
    let asked = ask(&mut world, ann, 4);
    page(&mut world, asked, true, 12);
    let asked = ask(&mut world, ann, 5);
    world.take(0, Kind::Unsubscribe);
    world.closed(ann);
    world.run();
    page(&mut world, asked, false, 12);
    assert_eq!(world.take(0, Kind::Unsubscribe).len(), 1, "the owner thinks that it listens");
    world.assert_empty();
}

#[test]
fn a_page_right_behind_the_login_does_not_cost_the_head() {
    let mut world = World::ready();
    let ann = world.accept(0, 1, ClientSession::tcp());
    world.request(ann, 1, login("ann"));
    world.registered(&["tea"], 1);
    world.seen(ann);
    let asked = ask(&mut world, ann, 2);
    page(&mut world, asked, true, 9);
    world.seen(ann);
    world.subscribed(0, 10, 9);
    assert_eq!(told(&world.seen(ann)), [Told::Head(10, 9)], "as LoginAck said");
    assert_eq!((world.shard.stats().topics, world.take(0, Kind::Unsubscribe).len()), (0, 1));
    deliver(&mut world, 10);
    assert!(told(&world.seen(ann)).is_empty());
    let asked = ask(&mut world, ann, 3);
    page(&mut world, asked, false, 10);
    deliver(&mut world, 11);
    assert_eq!(told(&world.seen(ann)), [Told::Seq(11)]);
    world.closed(ann);
    world.run();
    world.assert_empty();
}

#[test]
fn late_pages_and_other_conversations_change_nothing() {
    let mut world = World::ready();
    let ann = member(&mut world, 0, "ann", 4);
    let asked = ask(&mut world, ann, 2);
    world.later(11 * SECOND);
    assert_eq!(refused(&world.seen(ann)), Code::Busy);
    page(&mut world, asked, true, 4);
    deliver(&mut world, 5);
    assert_eq!(told(&world.seen(ann)), [Told::Seq(5)], "it listens still");
    // Nobody is attached to a direct conversation or, by a page, to a room.
    for conversation in ["d:ann:bob", "r:hall"] {
        for joined in [false, true] {
            let sync = Sync { conversation: conversation.into(), ..Default::default() };
            world.request(ann, 6, request::Op::Sync(sync));
            let (record, asked) = world.take_one::<wire::ClientRequest>(0, Kind::ClientRequest);
            let (joined, syncing) = if joined { (conversation, "") } else { ("", conversation) };
            let response = Response { id: 6, outcome: Some(response::Outcome::Done(Done {})) };
            let reply = wire::Reply {
                token: asked.token,
                response: response.encode_to_vec().into(),
                joined: joined.into(),
                joined_head: 7,
                syncing: syncing.into(),
                ..Default::default()
            };
            world.say(0, Kind::Reply, record.partition, 10, record.session.0, &reply);
            world.run();
            assert_eq!(world.seen(ann), [Seen::Response(response)]);
        }
    }
    assert_eq!(world.shard.stats().topics, 1);
    world.closed(ann);
    world.run();
    world.assert_empty();
}
