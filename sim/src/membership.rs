//! Who is a member of which group, and what of its log a user may be shown: seen from outside, by what the store accepted.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use millrace_dispatcher::store::model::ModelStore;

use crate::ledger::{Kept, head_of};

type Members = Rc<BTreeSet<String>>;
type Log = BTreeMap<u64, Kept>;
/// A group and a user.
type Place = (String, String);

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Membership {
    groups: BTreeMap<String, Members>,
    /// The head of the log when the user became a member.
    joined_at: BTreeMap<Place, u64>,
    /// The ids of what was there when the user was last a member, in each copy of the store. It may have read that.
    could_read: BTreeMap<Place, BTreeSet<u64>>,
    /// Who became a member in a copy of the store that was given up.
    in_vain: BTreeSet<Place>,
}

fn place(group: &str, user: &str) -> Place {
    (group.to_owned(), user.to_owned())
}

impl Membership {
    /// The members of a group that is there.
    pub(crate) fn of(&self, group: &str) -> Option<&Members> {
        self.groups.get(group)
    }

    /// The groups of a user.
    pub(crate) fn groups_of<'a>(&'a self, user: &'a str) -> impl Iterator<Item = &'a String> {
        self.groups.iter().filter(move |(_, members)| members.contains(user)).map(|(group, _)| group)
    }

    /// Where the log ended when a user, who is a member, became one.
    pub(crate) fn joined_at(&self, group: &str, user: &str) -> Option<u64> {
        self.joined_at.get(&place(group, user)).copied()
    }

    /// Users come and go, behind what is in the log.
    pub(crate) fn change(&mut self, group: &str, add: &[String], remove: &[String], log: Option<&Log>) {
        let head = head_of(log);
        let mut members = self.groups.get(group).map_or_else(BTreeSet::new, |before| (**before).clone());
        for user in add.iter().filter(|user| members.insert((*user).clone())) {
            self.joined_at.insert(place(group, user), head);
        }
        for user in remove.iter().filter(|user| members.remove(*user)) {
            self.joined_at.remove(&place(group, user));
            self.leaves(group, user, log);
        }
        self.groups.insert(group.to_owned(), Rc::new(members));
    }

    /// They come in a copy of the store that was given up.
    pub(crate) fn change_in_vain(&mut self, group: &str, add: &[String]) {
        self.in_vain.extend(add.iter().map(|user| place(group, user)));
    }

    /// A user is no member any more, or not for sure: what is there now it could read up, and is shown it however late.
    fn leaves(&mut self, group: &str, user: &str, log: Option<&Log>) {
        let ids = log.into_iter().flat_map(BTreeMap::values).map(|kept| kept.deliver.message_id);
        self.could_read.entry(place(group, user)).or_default().extend(ids);
    }

    /// This copy of the store is about to be given up, with these logs.
    pub(crate) fn gives_up(&mut self, logs: &BTreeMap<String, Log>) {
        // What of them is lost now may be back some time, when these are no members.
        for (group, members) in self.groups.clone() {
            members.iter().for_each(|user| self.leaves(&group, user, logs.get(&group)));
        }
    }

    /// Another copy of the store counts now. Who is a member there became it at some time before.
    pub(crate) fn fell_back(&mut self, model: &ModelStore, head: impl Fn(&str) -> u64) {
        let members = |(name, (members, _)): (&String, &(BTreeSet<String>, u64))| {
            (name.clone(), Rc::new(members.clone()))
        };
        self.groups = model.groups.iter().map(members).collect();
        let before = std::mem::take(&mut self.joined_at);
        for (group, members) in &self.groups {
            for user in members.iter() {
                let key = place(group, user);
                let at = before.get(&key).map_or(head(group), |at| head(group).min(*at));
                self.joined_at.insert(key, at);
            }
        }
    }

    /// Whether a user may be shown something of a group.
    pub(crate) fn may_be_shown(&self, user: &str, kept: &Kept) -> bool {
        let group = &kept.deliver.conversation;
        let key = place(group, user);
        let was_in = kept.members.as_ref().is_none_or(|members| members.contains(user));
        // A member again may be shown what was said while it was away: it could read that up as well.
        let is_in = self.of(group).is_some_and(|members| members.contains(user));
        let could_read =
            || self.could_read.get(&key).is_some_and(|ids| ids.contains(&kept.deliver.message_id));
        was_in || is_in || could_read() || self.in_vain.contains(&key)
    }
}

#[cfg(test)]
mod tests {
    use millrace_dispatcher::store::Write;
    use millrace_dispatcher::store::model::Log;

    use super::*;
    use crate::fixtures::{GROUP, append, deliver, entry, members};
    use crate::ledger::{Invariant, Ledger};

    /// A copy of the store with this log, in which ann is no member.
    fn copy(log: &[(u64, u64, u64)]) -> ModelStore {
        let mut model = ModelStore::default();
        let entries = log.iter().copied().map(entry).collect();
        model.logs.insert(GROUP.into(), Log { trimmed: 0, entries });
        model.groups.insert(GROUP.into(), (BTreeSet::from(["bob".to_owned()]), 1));
        model
    }

    /// Ann became a member after 2, and read up what was said before. The store falls back to before 2 and her, goes on with
    /// another 2, and then the former copy comes back, where she left (in vain, then); it goes on as well.
    #[test]
    fn what_a_member_could_read_it_is_shown_late_whatever_was_lost_and_came_back() {
        let judge = |comes_back: bool, (epoch, seq, id): (u64, u64, u64)| {
            let mut ledger = Ledger::default();
            ledger.add_device("ann", "phone");
            let message = |of| Write::Message(entry(of));
            let mut writes = vec![members(&["bob"], 1), message((1, 1, 11)), message((1, 2, 12))];
            writes.extend([members(&["ann"], 2), message((1, 3, 13))]);
            append(&mut ledger, 1, writes);
            ledger.fell_back(&copy(&[(1, 1, 11)]));
            append(&mut ledger, 2, vec![message((2, 2, 22))]);
            if comes_back {
                ledger.fell_back(&copy(&[(1, 1, 11), (1, 2, 12), (1, 3, 13)]));
                append(&mut ledger, 3, vec![message((3, 4, 34))]);
            }
            assert_eq!(ledger.violation, None);
            ledger.judge(0, 0, &deliver((epoch, seq, id)));
            ledger.violation.map(|violation| violation.invariant)
        };
        for comes_back in [false, true] {
            for at in [(1, 1, 11), (1, 2, 12), (1, 3, 13)] {
                assert_eq!(judge(comes_back, at), None, "{at:?}, {comes_back}");
            }
        }
        let outside = Some(Invariant::MembersOnly);
        assert_eq!(judge(false, (2, 2, 22)), outside, "said where she never was a member");
        assert_eq!(judge(true, (3, 4, 34)), outside, "said after she left");
    }
}
