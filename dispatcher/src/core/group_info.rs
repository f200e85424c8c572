//! What is known of a group besides its members: who owns and who runs it, who is muted, how one joins, what it shows.
//!
//! One record of the group's state holds it; who asked to join has an item each, as they come and go one by one. What
//! may be changed by whom is left to [`super::admin`]. The rule that keeps it right: owner and admins are members; who
//! leaves is none of them any more.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes};
use millrace_protocol::messages::client::{JoinPolicy, Role};

use super::limits::MUTED_MAX;
use super::members::Members;

/// The item of the state that holds an [`Info`].
pub const INFO_KEY: &str = "info";

/// Before the name of a user who asked to join.
const ASKING_PREFIX: &str = "j:";

/// The layout of [`Info::encode`]:
/// ```text
/// version u8 | flags u8 | join u8 | owner | admins u8, each a name | muted u16, each a name and until u64
/// | about u16 and bytes | announcement u16 and bytes          (a name: length u8 and text; integers big-endian)
/// ```
const VERSION: u8 = 1;
const DISSOLVED: u8 = 1;
const MUTE_ALL: u8 = 2;

/// The record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Empty: nobody, as in a group that everyone has left.
    pub owner: String,
    /// In the order in which they were made admins. The owner is not among them.
    pub admins: Vec<String>,
    /// In order of names, with the wall clock in ms until which it lasts. Changed by [`Info::mute`].
    pub muted: Vec<(String, u64)>,
    /// All but admins are muted.
    pub mute_all: bool,
    /// How one becomes a member.
    pub join: JoinPolicy,
    /// The application's.
    pub about: Bytes,
    /// The application's.
    pub announcement: Bytes,
    /// Nobody can use the group, and its name is never free again.
    pub dissolved: bool,
}

impl Info {
    /// Nothing was ever said of it.
    const NONE: Info = Info {
        owner: String::new(),
        admins: Vec::new(),
        muted: Vec::new(),
        mute_all: false,
        join: JoinPolicy::Open,
        about: Bytes::new(),
        announcement: Bytes::new(),
        dissolved: false,
    };

    /// What a user is, if it is a member at all.
    pub fn role(&self, user: &str) -> Role {
        match user {
            _ if !self.owner.is_empty() && self.owner == user => Role::Owner,
            _ if self.admins.iter().any(|admin| admin == user) => Role::Admin,
            _ => Role::Member,
        }
    }

    /// Whether a user may run the group: its owner and its admins.
    pub fn is_admin(&self, user: &str) -> bool {
        self.role(user) != Role::Member
    }

    /// Whether a user may not send now.
    pub fn is_muted(&self, user: &str, wall_ms: u64) -> bool {
        let until_ms = self.muted.binary_search_by(|(name, _)| name.as_str().cmp(user));
        let muted = self.mute_all || until_ms.is_ok_and(|at| self.muted[at].1 > wall_ms);
        muted && !self.is_admin(user)
    }

    /// Mutes a user until then, or no more (0, or a time that is over). `false`: too many are muted.
    pub fn mute(&mut self, user: &str, until_ms: u64, wall_ms: u64) -> bool {
        self.muted.retain(|(name, until_ms)| *until_ms > wall_ms && name != user);
        if until_ms <= wall_ms {
            return true;
        }
        if self.muted.len() >= MUTED_MAX {
            return false;
        }
        let at = self.muted.partition_point(|(name, _)| name.as_str() < user);
        self.muted.insert(at, (user.to_owned(), until_ms));
        true
    }

    /// The record as it is stored.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        out.put_u8(VERSION);
        out.put_u8(if self.dissolved { DISSOLVED } else { 0 } | if self.mute_all { MUTE_ALL } else { 0 });
        out.put_u8(self.join as u8);
        put_name(&mut out, &self.owner);
        out.put_u8(self.admins.len() as u8);
        for admin in &self.admins {
            put_name(&mut out, admin);
        }
        out.put_u16(self.muted.len() as u16);
        for (user, until_ms) in &self.muted {
            put_name(&mut out, user);
            out.put_u64(*until_ms);
        }
        for text in [&self.about, &self.announcement] {
            out.put_u16(text.len() as u16);
            out.put_slice(text);
        }
        out.into()
    }

    /// Reads it back; `None`: it can't be read.
    pub fn decode(mut record: Bytes) -> Option<Info> {
        if record.try_get_u8().ok()? != VERSION {
            return None;
        }
        let flags = record.try_get_u8().ok()?;
        let join = JoinPolicy::try_from(i32::from(record.try_get_u8().ok()?)).ok()?;
        let owner = name(&mut record)?;
        let admins = record.try_get_u8().ok()?;
        let admins = (0..admins).map(|_| name(&mut record)).collect::<Option<_>>()?;
        let muted = record.try_get_u16().ok()?;
        let muted = (0..muted).map(|_| Some((name(&mut record)?, record.try_get_u64().ok()?)));
        let muted = muted.collect::<Option<_>>()?;
        let (about, announcement) = (text(&mut record)?, text(&mut record)?);
        let (mute_all, dissolved) = (flags & MUTE_ALL != 0, flags & DISSOLVED != 0);
        Some(Info { owner, admins, muted, mute_all, join, about, announcement, dissolved })
    }
}

impl Default for Info {
    fn default() -> Self {
        Info::NONE
    }
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    out.put_u8(u8::try_from(name.len()).expect("names are at most 64 bytes"));
    out.put_slice(name.as_bytes());
}

fn name(record: &mut Bytes) -> Option<String> {
    let length = usize::from(record.try_get_u8().ok()?);
    (record.len() >= length).then(|| String::from_utf8(record.split_to(length).to_vec()).ok()).flatten()
}

fn text(record: &mut Bytes) -> Option<Bytes> {
    let length = usize::from(record.try_get_u16().ok()?);
    // A copy: a slice would hold the whole record.
    (record.len() >= length).then(|| Bytes::copy_from_slice(&record.split_to(length)))
}

/// What a conversation that is a group has in memory besides its members.
#[derive(Debug, Default)]
pub struct Group {
    /// As the store has it. Boxed, as most conversations are no groups.
    info: Option<Box<Info>>,
    /// Who asked to join.
    pub asking: BTreeSet<String>,
    /// Dissolved: members whose lists still name it, and who are still stored.
    pub leftover: Option<Members>,
}

impl Group {
    /// Takes a group's items out of a conversation's state.
    pub fn take(state: &mut BTreeMap<String, Bytes>, members: &mut Option<Members>) -> Self {
        let mut group = Group::default();
        if let Some(record) = state.remove(INFO_KEY) {
            // One that can't be read closes the group to changes: then nobody runs it, and nothing is written over it.
            let closed = || Info { join: JoinPolicy::Invite, ..Info::default() };
            group.set(Info::decode(record).unwrap_or_else(closed));
        }
        let asking: Vec<String> =
            state.keys().filter(|key| key.starts_with(ASKING_PREFIX)).cloned().collect();
        for key in asking {
            state.remove(&key);
            group.asking.insert(key[ASKING_PREFIX.len()..].to_owned());
        }
        if group.info().dissolved {
            group.leftover = members.take();
        }
        group
    }

    /// What is known of it.
    pub fn info(&self) -> &Info {
        static NONE: Info = Info::NONE;
        self.info.as_deref().unwrap_or(&NONE)
    }

    /// What is known of it from now on.
    pub fn set(&mut self, info: Info) {
        self.info = Some(Box::new(info));
    }
}

/// The item of the state that says that a user asked to join.
pub fn asking_key(user: &str) -> String {
    format!("{ASKING_PREFIX}{user}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> Info {
        let mut info = Info {
            owner: "ann".into(),
            admins: vec!["eve".into(), "bob".into()],
            join: JoinPolicy::Request,
            about: Bytes::from_static(b"tea"),
            announcement: Bytes::from(vec![7; 4_096]),
            mute_all: true,
            ..Info::default()
        };
        assert!(info.mute("zoe", 9, 1) && info.mute("cid", 8, 1));
        info
    }

    #[test]
    fn it_is_read_back_and_damage_is_no_panic() {
        let record = info().encode();
        assert_eq!(Info::decode(record.clone()), Some(info()));
        let dissolved = Info { dissolved: true, ..Info::default() };
        assert_eq!(Info::decode(dissolved.encode()), Some(dissolved));
        for cut in 0..record.len() {
            assert_eq!(Info::decode(record.slice(..cut)), None, "cut at {cut}");
        }
        let mut other = record.to_vec();
        other[0] += 1;
        assert_eq!(Info::decode(other.into()), None);
    }

    #[test]
    fn the_state_becomes_a_group_and_one_that_is_unreadable_is_closed() {
        let mut state = BTreeMap::from([
            (INFO_KEY.to_owned(), info().encode()),
            (asking_key("dan"), Bytes::new()),
            ("k".to_owned(), Bytes::new()),
        ]);
        let mut members = Some(Members::default());
        let group = Group::take(&mut state, &mut members);
        assert_eq!((group.info(), group.asking.len(), members.is_some()), (&info(), 1, true));
        assert_eq!(state.into_keys().collect::<Vec<_>>(), ["k"]);
        let mut state = BTreeMap::from([(INFO_KEY.to_owned(), Bytes::from_static(b"?"))]);
        let group = Group::take(&mut state, &mut members);
        assert_eq!((group.info().join, group.info().owner.as_str()), (JoinPolicy::Invite, ""));
    }

    #[test]
    fn mutes_end_by_themselves_and_never_hold_an_admin() {
        let mut info = Info { owner: "ann".into(), admins: vec!["bob".into()], ..Info::default() };
        for user in ["ann", "bob", "cid"] {
            assert!(info.mute(user, 50, 10));
        }
        let muted = |info: &Info, wall_ms| ["ann", "bob", "cid", "dan"].map(|it| info.is_muted(it, wall_ms));
        assert_eq!(muted(&info, 49), [false, false, true, false]);
        assert_eq!(muted(&info, 50), [false; 4]);
        info.mute_all = true;
        assert_eq!(muted(&info, 50), [false, false, true, true]);
        for n in 0..MUTED_MAX {
            assert!(info.mute(&format!("u{n}"), 100, 60), "what is over makes room");
        }
        assert!(!info.mute("one-more", 100, 60) && info.mute("u1", 0, 60) && info.mute("one-more", 100, 60));
    }
}
