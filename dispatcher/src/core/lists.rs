//! Users' lists: their conversations, with what they set for each, and the people they know.
//!
//! Lists are read and written by the store alone, nothing of them is kept here, so any owner can answer. The rule that
//! keeps it right: an item is set only where it is there already, because lists say where a user belongs, and other
//! parts write them.

use bytes::Bytes;
use millrace_protocol::conversation::Conversation as Id;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::{
    Code, ConversationChanged, ConversationItem, ConversationPage, Notify, PeopleList, PeoplePage, Person,
    notify, response,
};
use millrace_protocol::messages::link::Reply;
use millrace_protocol::prost::Message;

use super::delivery::{Ask, What};
use super::hub::{Asker, Cx, From, Pending};
use super::limits::{CONVERSATIONS_PAGE_MAX, LISTS_MAX, PEOPLE_PAGE_MAX};
use crate::store::{Change, List, Outcome, StoreError, UserItem, Work};

/// A request about a list, while its list is with the store.
#[derive(Debug)]
pub struct Reading {
    from: From,
    asker: Asker,
    user: String,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// A page of direct conversations, then of groups.
    Directs {
        items: Vec<ConversationItem>,
        limit: usize,
    },
    Groups {
        items: Vec<ConversationItem>,
    },
    /// Whether a conversation is there, then what is set for it.
    Find(ConversationItem),
    Set(ConversationItem),
    /// A page of people.
    People,
}

/// What is set for a conversation, in one byte; none: nothing.
const PINNED: u8 = 1;
const MUTED: u8 = 2;
const HIDDEN: u8 = 4;

/// A request of `user` about its lists.
pub fn ask(cx: &mut Cx, from: From, asker: Asker, user: String, op: Op) {
    if cx.hub.lists >= LISTS_MAX {
        return cx.busy(from, asker, "too many lists are being read");
    }
    let (step, work) = match op {
        Op::Conversations(ask) => {
            let limit = limit(ask.limit, CONVERSATIONS_PAGE_MAX);
            // Their ids go on in this order: d:…, g:….
            let items = Vec::new();
            let (step, list) = match ask.after.as_str() < "g:" {
                true => (Step::Directs { items, limit }, List::Directs),
                false => (Step::Groups { items }, List::Groups),
            };
            (step, page(&user, list, ask.after, limit))
        }
        Op::ConversationSet(ask) => {
            let item = ask.item.unwrap_or_default();
            let Some(list) = list_of(&item.conversation) else {
                return cx.refuse(from, asker, Code::BadRequest, "neither a direct conversation nor a group");
            };
            let work = page(&user, list, just_before(&item.conversation), 1);
            (Step::Find(item), work)
        }
        Op::People(ask) => {
            let list = match ask.list() {
                PeopleList::FriendList => List::Friends,
                PeopleList::RequestList => List::FriendRequests,
                PeopleList::BlockList => List::Blocks,
            };
            (Step::People, page(&user, list, ask.after, limit(ask.limit, PEOPLE_PAGE_MAX)))
        }
        _ => return cx.refuse(from, asker, Code::BadRequest, "nothing about lists"),
    };
    cx.hub.lists += 1;
    cx.store(work, Pending::Lists(Box::new(Reading { from, asker, user, step })));
}

fn limit(asked: u32, max: usize) -> usize {
    match asked as usize {
        0 => max,
        asked => asked.min(max),
    }
}

fn page(user: &str, list: List, after: String, limit: usize) -> Work {
    Work::UserList { user: user.to_owned(), list, after, limit }
}

/// The list that names a conversation.
fn list_of(conversation: &str) -> Option<List> {
    match Id::parse(conversation)? {
        Id::Direct(..) => Some(List::Directs),
        Id::Group(_) => Some(List::Groups),
        Id::Room(_) => None,
    }
}

/// A text below `name` and above every name and id below it: a page of one after it holds `name`, or it is not there.
pub fn just_before(name: &str) -> String {
    // Names and ids are printable ASCII: less than DEL, and their last character has one before it.
    let mut before = name.to_owned();
    let last = before.pop().map_or('\0', |last| char::from((last as u8).saturating_sub(1)));
    before.extend([last, '\x7f']);
    before
}

/// The store's answer.
pub fn answered(cx: &mut Cx, reading: Reading, outcome: Result<Outcome, StoreError>) {
    cx.hub.lists -= 1;
    let Reading { from, asker, user, step } = reading;
    match (step, outcome) {
        (_, Err(_)) => cx.busy(from, asker, "the store is not available"),
        (Step::Directs { mut items, limit }, Ok(Outcome::UserList { items: found, more })) => {
            items.extend(found.into_iter().map(conversation_item));
            if more || items.len() >= limit {
                // At the end of the direct ones there may be groups: the next page tells.
                return conversations(cx, from, asker, items, true);
            }
            let work = page(&user, List::Groups, String::new(), limit - items.len());
            go_on(cx, Reading { from, asker, user, step: Step::Groups { items } }, work);
        }
        (Step::Groups { mut items }, Ok(Outcome::UserList { items: found, more })) => {
            items.extend(found.into_iter().map(conversation_item));
            conversations(cx, from, asker, items, more);
        }
        (Step::Find(item), Ok(Outcome::UserList { items: found, .. })) => {
            let list = list_of(&item.conversation)
                .filter(|_| found.first().is_some_and(|(name, _)| *name == item.conversation));
            let Some(list) = list else {
                return cx.refuse(from, asker, Code::NotMember, "not a conversation of this user");
            };
            let change = Change::Put(flags(&item));
            let name = item.conversation.clone();
            let items = vec![UserItem { user: user.clone(), list, item: name, change }];
            let work = Work::UserItems { items, claim: None };
            go_on(cx, Reading { from, asker, user, step: Step::Set(item) }, work);
        }
        (Step::Set(item), Ok(_)) => {
            cx.done(from, asker);
            let conversation = item.conversation.clone();
            let changed = ConversationChanged { item: Some(item) };
            let event = notify::Event::ConversationChanged(changed);
            let notify = Notify { event: Some(event) }.encode_to_vec().into();
            let what = What::Relay { conversation, notify };
            cx.tell_softly(Ask { users: vec![user], except: vec![asker.session], from, what });
        }
        (Step::People, Ok(Outcome::UserList { items, more })) => {
            let people = items.into_iter().map(|(user, greeting)| Person { user, greeting }).collect();
            let page = PeoplePage { people, more };
            cx.reply(from, asker, response::Outcome::PeoplePage(page), Reply::default());
        }
        (_, Ok(other)) => {
            debug_assert!(false, "no list: {other:?}");
            cx.busy(from, asker, "the store is not available");
        }
    }
}

fn go_on(cx: &mut Cx, reading: Reading, work: Work) {
    cx.hub.lists += 1;
    cx.store(work, Pending::Lists(Box::new(reading)));
}

fn conversations(cx: &mut Cx, from: From, asker: Asker, items: Vec<ConversationItem>, more: bool) {
    let page = ConversationPage { items, more };
    cx.reply(from, asker, response::Outcome::ConversationPage(page), Reply::default());
}

fn flags(item: &ConversationItem) -> Bytes {
    let bit = |set: bool, bit: u8| if set { bit } else { 0 };
    match bit(item.pinned, PINNED) | bit(item.muted, MUTED) | bit(item.hidden, HIDDEN) {
        0 => Bytes::new(),
        flags => Bytes::copy_from_slice(&[flags]),
    }
}

fn conversation_item((conversation, value): (String, Bytes)) -> ConversationItem {
    let flags = value.first().copied().unwrap_or(0);
    let (pinned, muted, hidden) = (flags & PINNED != 0, flags & MUTED != 0, flags & HIDDEN != 0);
    ConversationItem { conversation, pinned, muted, hidden }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_can_be_named_lies_just_before_a_name() {
        let others =
            ["g:te", "g:td", "g:tdzzz", "g:te@", "g:teZ", "+", "d:ann:boa", "d:ann:boazz", "@x8", "@x8z"];
        for name in ["g:tea", "g:te", "a", "+", "d:ann:bob", "-", "@x9"] {
            let before = just_before(name);
            assert!(before.as_str() < name, "{name}");
            for other in others {
                assert!(
                    other <= before.as_str() || other >= name,
                    "{other} is between {before:?} and {name}"
                );
            }
        }
    }

    #[test]
    fn what_is_set_fits_in_a_byte() {
        for bits in 0..8 {
            let item = ConversationItem {
                conversation: "g:tea".into(),
                pinned: bits & 1 != 0,
                muted: bits & 2 != 0,
                hidden: bits & 4 != 0,
            };
            assert_eq!(conversation_item(("g:tea".into(), flags(&item))), item);
        }
    }
}
