//! A group's members: names in byte order, packed into pieces, so that a group of a hundred thousand costs little more
//! than its names and a change moves one piece.
//!
//! A piece holds entries `length u8 | name`, some dozens of them, and is searched from its front; pieces are found by
//! their first names. The rule that keeps it right: no piece is empty, names ascend within a piece and from each piece
//! to the next, and none is there twice.

/// Bytes of a piece at most; one that would grow above is cut in two. Searching it reads half of it on average, about
/// as much as a tree of strings touches in cache lines; smaller ones would add more than a byte to each name.
const PIECE_BYTES_MAX: usize = 1_024;

/// A group's members.
#[derive(Debug, Default)]
pub struct Members {
    pieces: Vec<Vec<u8>>,
    count: usize,
    /// Grows with every change.
    pub version: u64,
}

impl Members {
    /// A group with these members, in any order and each as often as you like.
    pub fn new(mut users: Vec<String>, version: u64) -> Self {
        // The stores give them in order; then this costs one comparison each.
        users.sort_unstable();
        users.dedup();
        let mut members = Members { pieces: Vec::new(), count: users.len(), version };
        let mut piece = Vec::new();
        for user in &users {
            if piece.len() + 1 + user.len() > PIECE_BYTES_MAX {
                members.pieces.push(std::mem::take(&mut piece));
            }
            let end = piece.len();
            put(&mut piece, end, user);
        }
        if !piece.is_empty() {
            members.pieces.push(piece);
        }
        members.pieces.iter_mut().for_each(Vec::shrink_to_fit);
        members
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether a user is in.
    pub fn contains(&self, user: &str) -> bool {
        self.find(user).is_some_and(|(piece, at)| name_at(&self.pieces[piece], at) == Some(user.as_bytes()))
    }

    /// Takes a user in. Returns whether that is new.
    ///
    /// # Panics
    /// When the name is longer than 255 bytes; names were checked where they came in.
    pub fn insert(&mut self, user: &str) -> bool {
        let Some((index, at)) = self.find(user) else {
            let mut piece = Vec::new();
            put(&mut piece, 0, user);
            self.pieces.push(piece);
            self.count = 1;
            return true;
        };
        let piece = &mut self.pieces[index];
        if name_at(piece, at) == Some(user.as_bytes()) {
            return false;
        }
        put(piece, at, user);
        self.count += 1;
        if piece.len() > PIECE_BYTES_MAX {
            let cut = entries(piece).map(|(at, _)| at).find(|at| *at >= piece.len() / 2);
            if let Some(cut) = cut.filter(|cut| *cut > 0) {
                let mut upper = piece.split_off(cut);
                piece.shrink_to_fit();
                upper.shrink_to_fit();
                self.pieces.insert(index + 1, upper);
            }
        }
        true
    }

    /// Takes a user out. Returns whether it was in.
    pub fn remove(&mut self, user: &str) -> bool {
        let Some((index, at)) = self.find(user) else { return false };
        let piece = &mut self.pieces[index];
        if name_at(piece, at) != Some(user.as_bytes()) {
            return false;
        }
        piece.drain(at..=at + user.len());
        self.count -= 1;
        if piece.is_empty() {
            self.pieces.remove(index);
        } else if let Some(next) = self.pieces.get(index + 1)
            && self.pieces[index].len() + next.len() <= PIECE_BYTES_MAX / 2
        {
            // What many left is put together again, well below the size at which it would be cut.
            let next = self.pieces.remove(index + 1);
            self.pieces[index].reserve_exact(next.len());
            self.pieces[index].extend(next);
        }
        true
    }

    /// Members after this name, in order.
    pub fn after<'a>(&'a self, user: &'a str) -> impl Iterator<Item = &'a str> {
        let first = self.find(user).map_or(0, |(piece, _)| piece);
        let names = self.pieces[first..].iter().flat_map(|piece| entries(piece).map(|(_, name)| name));
        let after = names.skip_while(|name| *name <= user.as_bytes());
        after.map(|name| std::str::from_utf8(name).expect("put in as text"))
    }

    /// Where a name is, or where it belongs: the piece, and the place of the first entry there that is not below it.
    /// `None`: there are no members.
    fn find(&self, user: &str) -> Option<(usize, usize)> {
        let user = user.as_bytes();
        let above = self.pieces.partition_point(|piece| name_at(piece, 0).is_some_and(|first| first <= user));
        let index = above.saturating_sub(1);
        let piece = self.pieces.get(index)?;
        let at = entries(piece).find(|(_, name)| *name >= user).map_or(piece.len(), |(at, _)| at);
        Some((index, at))
    }
}

/// The entries of a piece with their places.
fn entries(piece: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let name = name_at(piece, at)?;
        let entry = (at, name);
        at += 1 + name.len();
        Some(entry)
    })
}

/// The name of the entry at a place; `None` at the end.
fn name_at(piece: &[u8], at: usize) -> Option<&[u8]> {
    let length = usize::from(*piece.get(at)?);
    Some(&piece[at + 1..=at + length])
}

/// Puts an entry in at a place.
fn put(piece: &mut Vec<u8>, at: usize, user: &str) {
    let length = u8::try_from(user.len()).expect("names are at most 64 bytes");
    piece.reserve_exact(1 + user.len());
    piece.splice(at..at, std::iter::once(length).chain(user.bytes()));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn check(members: &Members, model: &BTreeSet<String>) {
        assert_eq!(members.count(), model.len());
        assert_eq!(members.after("").collect::<Vec<_>>(), model.iter().collect::<Vec<_>>());
        for piece in &members.pieces {
            assert!(!piece.is_empty() && piece.len() <= PIECE_BYTES_MAX);
        }
    }

    /// Short, usual and longest names.
    fn user() -> impl Strategy<Value = String> {
        (0..400_u16).prop_map(|number| match number % 3 {
            0 => format!("{number:x}"),
            1 => format!("user-{number}"),
            _ => format!("{number:z>64}"),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn it_is_a_set_in_order(
            begin in prop::collection::vec(user(), 0..200),
            changes in prop::collection::vec((any::<bool>(), user()), 0..200),
        ) {
            let mut model: BTreeSet<String> = begin.iter().cloned().collect();
            let mut members = Members::new(begin, 7);
            check(&members, &model);
            for (add, user) in changes {
                prop_assert_eq!(members.contains(&user), model.contains(&user));
                match add {
                    true => prop_assert_eq!(members.insert(&user), model.insert(user.clone())),
                    false => prop_assert_eq!(members.remove(&user), model.remove(&user)),
                }
                let after: Vec<&str> = members.after(&user).take(3).collect();
                let range = model.range::<String, _>((std::ops::Bound::Excluded(&user), std::ops::Bound::Unbounded));
                prop_assert_eq!(after, range.take(3).map(String::as_str).collect::<Vec<_>>());
            }
            check(&members, &model);
        }
    }

    #[test]
    fn a_large_group_takes_little_more_than_its_names() {
        let mut grown = Members::default();
        for user in 0..100_000_u64 {
            // Not in order; 100,003 is prime.
            assert!(grown.insert(&format!("user-{}", user * 40_503 % 100_003)));
        }
        let names: usize = grown.after("").map(str::len).sum();
        let held = |members: &Members| -> usize {
            let pieces = members.pieces.iter().map(|piece| piece.capacity() + size_of::<Vec<u8>>());
            pieces.sum()
        };
        assert!(held(&grown) < names + 2 * grown.count(), "{} B for names of {names} B", held(&grown));
        let loaded = Members::new(grown.after("").map(str::to_owned).collect(), 1);
        assert!(held(&loaded) < names + 2 * loaded.count());
        for user in grown.after("").step_by(2).map(str::to_owned).collect::<Vec<_>>() {
            assert!(grown.remove(&user));
        }
        assert_eq!(grown.count(), 50_000);
    }
}
