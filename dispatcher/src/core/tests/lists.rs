//! Users' lists: pages, what is set for a conversation, people.

use bytes::Bytes;
use millrace_protocol::link::Kind;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{self, Code, ConversationItem, PeopleList, response};
use millrace_protocol::messages::link as wire;
use millrace_protocol::prost::Message;

use super::world::{World, direct, session};
use crate::store::List;

fn put(world: &mut World, user: &str, list: List, item: &str) {
    world.store.lists.entry((user.to_owned(), list)).or_default().insert(item.to_owned(), Bytes::new());
}

fn answer(world: &mut World, user: &str, op: Op) -> response::Outcome {
    let token = world.request(0, session(1, 1), user, op);
    world.run();
    world.answer(token).expect("an answer").1
}

fn page(world: &mut World, after: &str, limit: u32) -> client::ConversationPage {
    match answer(world, "ann", Op::Conversations(client::Conversations { after: after.into(), limit })) {
        response::Outcome::ConversationPage(page) => page,
        other => panic!("{other:?}"),
    }
}

fn set(item: ConversationItem) -> Op {
    Op::ConversationSet(client::ConversationSet { item: Some(item) })
}

#[test]
fn conversations_come_in_pages_direct_ones_first() {
    let mut world = World::serving(2, &[1]);
    assert_eq!(page(&mut world, "", 0), client::ConversationPage::default());
    let directs: Vec<String> = (0..5).map(|n| direct("ann", &format!("u{n}"))).collect();
    let groups: Vec<String> = (0..4).map(|n| format!("g:x{n}")).collect();
    for (list, items) in [(List::Directs, &directs), (List::Groups, &groups)] {
        for item in items {
            put(&mut world, "ann", list, item);
        }
    }
    let all: Vec<String> = directs.into_iter().chain(groups).collect();
    for limit in 1..=10 {
        let mut names: Vec<String> = Vec::new();
        loop {
            let after = names.last().cloned().unwrap_or_default();
            let page = page(&mut world, &after, limit);
            assert!(page.items.len() <= limit as usize);
            names.extend(page.items.into_iter().map(|item| item.conversation));
            if !page.more {
                break;
            }
        }
        assert_eq!(names, all, "pages of {limit}");
    }
}

#[test]
fn what_one_device_sets_the_others_hear_of() {
    let mut world = World::serving(1, &[1, 2]);
    world.register(0, session(1, 1), "ann", "phone", "ios");
    world.register(0, session(2, 1), "ann", "laptop", "web");
    world.run();
    put(&mut world, "ann", List::Groups, "g:tea");
    put(&mut world, "ann", List::Groups, "g:te");
    world.clear();
    let item = ConversationItem { conversation: "g:tea".into(), pinned: true, muted: true, hidden: false };
    assert_eq!(answer(&mut world, "ann", set(item.clone())), response::Outcome::Done(client::Done {}));
    assert!(world.take::<wire::Relay>(0, 1, Kind::Relay).is_empty(), "who set it knows");
    let told: Vec<wire::Relay> = world.take(0, 2, Kind::Relay);
    let notify = client::Notify::decode(told[0].notify.clone()).unwrap();
    let changed = client::ConversationChanged { item: Some(item.clone()) };
    assert_eq!(notify.event, Some(client::notify::Event::ConversationChanged(changed)));
    let items = page(&mut world, "", 0).items;
    assert_eq!(items[1], item);
    assert_eq!(items[0], ConversationItem { conversation: "g:te".into(), ..Default::default() });
    // Members' lists are Added to: what is set stays.
    let gone = ConversationItem { conversation: "g:tea".into(), ..Default::default() };
    answer(&mut world, "ann", set(gone.clone()));
    assert_eq!(page(&mut world, "", 0).items[1], gone);
    for (conversation, code) in [
        ("g:none", Code::NotMember),
        ("d:ann:bob", Code::NotMember),
        ("r:tea", Code::BadRequest),
        ("", Code::BadRequest),
    ] {
        let item = ConversationItem { conversation: conversation.into(), ..Default::default() };
        let outcome = answer(&mut world, "ann", set(item));
        let refused = matches!(outcome, response::Outcome::Refused(refused) if refused.code == code as i32);
        assert!(refused, "{conversation}");
    }
    assert_eq!(world.store.lists[&("ann".into(), List::Groups)].len(), 2, "nothing was listed by it");
}

#[test]
fn people_come_in_pages_of_their_list() {
    let mut world = World::serving(1, &[1]);
    for n in 0..200 {
        put(&mut world, "ann", List::Friends, &format!("friend-{n:03}"));
    }
    let greeting = Bytes::from_static(b"hello");
    let requests = world.store.lists.entry(("ann".into(), List::FriendRequests)).or_default();
    requests.insert("bob".into(), greeting.clone());
    let mut people = |list: PeopleList, after: &str| {
        let ask = client::People { list: list as i32, after: after.into(), limit: 0 };
        match answer(&mut world, "ann", Op::People(ask)) {
            response::Outcome::PeoplePage(page) => page,
            other => panic!("{other:?}"),
        }
    };
    let first = people(PeopleList::FriendList, "");
    let last = people(PeopleList::FriendList, &first.people.last().unwrap().user);
    assert_eq!((first.people.len(), first.more, last.people.len(), last.more), (128, true, 72, false));
    assert_eq!(people(PeopleList::RequestList, "").people, [client::Person { user: "bob".into(), greeting }]);
    assert!(people(PeopleList::BlockList, "").people.is_empty());
}
