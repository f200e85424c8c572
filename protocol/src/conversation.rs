//! Conversation ids: `d:<a>:<b>` for a direct pair (users sorted by bytes), `g:<group>`, `r:<room>`.
//!
//! They travel and are stored as text; [`Conversation::parse`] is the one place that says which texts are valid.

/// Bytes of a user, device, group or room name at most. Names are `A-Z a-z 0-9 . _ - @ +`, at least one.
pub const NAME_BYTES_MAX: usize = 64;

/// A parsed conversation id, borrowing from its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conversation<'a> {
    /// Two users, or one user with itself.
    Direct(&'a str, &'a str),
    /// Durable membership.
    Group(&'a str),
    /// No membership: subscribe and leave at will.
    Room(&'a str),
}

impl<'a> Conversation<'a> {
    /// Reads an id; `None` if it is not in its one canonical form.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        match kind {
            "d" => {
                let (a, b) = rest.split_once(':')?;
                (is_name(a) && is_name(b) && a <= b).then_some(Conversation::Direct(a, b))
            }
            "g" => is_name(rest).then_some(Conversation::Group(rest)),
            "r" => is_name(rest).then_some(Conversation::Room(rest)),
            _ => None,
        }
    }

    /// The other user of a direct conversation; `None` if `user` is not in it, or it is none.
    pub fn peer_of(self, user: &str) -> Option<&'a str> {
        match self {
            Conversation::Direct(a, b) if a == user => Some(b),
            Conversation::Direct(a, b) if b == user => Some(a),
            _ => None,
        }
    }
}

/// The id of the direct conversation of two users.
pub fn direct(a: &str, b: &str) -> String {
    let (low, high) = if a <= b { (a, b) } else { (b, a) };
    format!("d:{low}:{high}")
}

/// Whether `text` can name a user, device, platform, group or room.
pub fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-@+".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_per_conversation() {
        let longest = "n".repeat(NAME_BYTES_MAX);
        let too_long = "n".repeat(NAME_BYTES_MAX + 1);
        let group = |name: &str| format!("g:{name}");
        for (text, parsed) in [
            ("d:alice:bob", Some(Conversation::Direct("alice", "bob"))),
            ("d:alice:alice", Some(Conversation::Direct("alice", "alice"))),
            ("d:Zoe:alice", Some(Conversation::Direct("Zoe", "alice"))),
            ("d:bob:alice", None),
            ("d:alice", None),
            ("d:a:b:c", None),
            ("d::b", None),
            ("g:team.one_2-x@y+z", Some(Conversation::Group("team.one_2-x@y+z"))),
            ("r:town", Some(Conversation::Room("town"))),
            (&group(&longest), Some(Conversation::Group(&longest))),
            (&group(&too_long), None),
            ("g:", None),
            ("g:a b", None),
            ("g:ä", None),
            ("g:a:b", None),
            ("x:a", None),
            ("g", None),
            ("", None),
        ] {
            assert_eq!(Conversation::parse(text), parsed, "{text:?}");
        }
    }

    #[test]
    fn direct_ids_are_canonical_and_name_the_peer() {
        for (a, b) in [("alice", "bob"), ("bob", "alice"), ("a", "B"), ("same", "same")] {
            let id = direct(a, b);
            assert_eq!(id, direct(b, a));
            let parsed = Conversation::parse(&id).expect("canonical");
            assert_eq!((parsed.peer_of(a), parsed.peer_of(b)), (Some(b), Some(a)));
            assert_eq!(parsed.peer_of("eve"), None);
        }
        assert_eq!(Conversation::Room("alice").peer_of("alice"), None);
    }
}
