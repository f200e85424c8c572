//! Interned names: each text once, found by a small number, counted.
//!
//! A million sessions name a million users but a handful of devices and platforms, and each name would otherwise be
//! held three times over. An entry also carries one number of its owner's (for a user: its first session).
//! The index is cut into 256 parts that grow one by one, so that no login waits for a rehash of everything.

use std::hash::Hasher;

use rustc_hash::FxHasher;

use super::slab::Slab;

/// No name, no slot.
pub const NONE: u32 = u32::MAX;

const PARTS: usize = 256;

struct Name {
    text: Box<str>,
    count: u32,
    head: u32,
}

/// Open addressing with linear probing; deletion shifts back, so that there are no tombstones.
#[derive(Default)]
struct Part {
    ids: Box<[u32]>,
    used: u32,
}

/// A table of names.
pub struct Names {
    names: Slab<Name>,
    free: Vec<u32>,
    next: u32,
    parts: Box<[Part]>,
    seed: u64,
}

impl Names {
    /// An empty table; `seed` keys its hash.
    pub fn new(seed: u64) -> Self {
        Names {
            names: Slab::default(),
            free: Vec::new(),
            next: 0,
            parts: (0..PARTS).map(|_| Part::default()).collect(),
            seed,
        }
    }

    fn hash(&self, text: &str) -> u64 {
        let mut hasher = FxHasher::default();
        hasher.write_u64(self.seed);
        hasher.write(text.as_bytes());
        let hash = hasher.finish();
        (hash ^ (hash >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Names held.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether no name is held.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The id of a name that is held.
    pub fn find(&self, text: &str) -> Option<u32> {
        let hash = self.hash(text);
        let part = &self.parts[(hash >> 56) as usize];
        if part.ids.is_empty() {
            return None;
        }
        let mask = part.ids.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            match part.ids[at] {
                NONE => return None,
                id if self.text(id) == text => return Some(id),
                _ => at = (at + 1) & mask,
            }
        }
    }

    /// Takes one count of a name, holding it if it is new.
    pub fn take(&mut self, text: &str) -> u32 {
        if let Some(id) = self.find(text) {
            self.entry(id).count += 1;
            return id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.names.insert(id, Name { text: text.into(), count: 1, head: NONE });
        let hash = self.hash(text);
        let at = (hash >> 56) as usize;
        if (self.parts[at].used as usize + 1) * 4 > self.parts[at].ids.len() * 3 {
            self.grow(at);
        }
        self.place(at, hash, id);
        self.parts[at].used += 1;
        id
    }

    fn grow(&mut self, at: usize) {
        let size = (self.parts[at].ids.len() * 2).max(4);
        let old = std::mem::replace(&mut self.parts[at].ids, vec![NONE; size].into_boxed_slice());
        for id in old.into_iter().filter(|id| *id != NONE) {
            let hash = self.hash(self.text(id));
            self.place(at, hash, id);
        }
    }

    fn place(&mut self, part: usize, hash: u64, id: u32) {
        let ids = &mut self.parts[part].ids;
        let mask = ids.len() - 1;
        let mut at = hash as usize & mask;
        while ids[at] != NONE {
            at = (at + 1) & mask;
        }
        ids[at] = id;
    }

    /// Gives back one count; the name is dropped with its last one. Returns whether it was.
    pub fn give(&mut self, id: u32) -> bool {
        let entry = self.entry(id);
        entry.count -= 1;
        if entry.count > 0 {
            return false;
        }
        let hash = self.hash(self.text(id));
        let part = (hash >> 56) as usize;
        let mask = self.parts[part].ids.len() - 1;
        let mut hole = hash as usize & mask;
        while self.parts[part].ids[hole] != id {
            hole = (hole + 1) & mask;
        }
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let moved = self.parts[part].ids[at];
            if moved == NONE {
                break;
            }
            let home = self.hash(self.text(moved)) as usize & mask;
            // An entry may fill the hole unless its home lies between the hole and where it is.
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.parts[part].ids[hole] = moved;
                hole = at;
            }
        }
        self.parts[part].ids[hole] = NONE;
        self.parts[part].used -= 1;
        self.names.remove(id);
        self.free.push(id);
        true
    }

    /// The text of a name.
    ///
    /// # Panics
    /// When nobody holds it.
    pub fn text(&self, id: u32) -> &str {
        &self.names.get(id).expect("a name that is held").text
    }

    /// The number that the owner keeps with a name.
    pub fn head(&self, id: u32) -> u32 {
        self.names.get(id).map_or(NONE, |name| name.head)
    }

    /// Sets it.
    pub fn set_head(&mut self, id: u32, head: u32) {
        self.entry(id).head = head;
    }

    fn entry(&mut self, id: u32) -> &mut Name {
        self.names.get_mut(id).expect("a name that is held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_and_go() {
        let mut names = Names::new(3);
        let texts: Vec<String> = (0..20_000).map(|i| format!("user-{i}")).collect();
        let ids: Vec<u32> = texts.iter().map(|text| names.take(text)).collect();
        for (text, id) in texts.iter().zip(&ids) {
            assert_eq!((names.find(text), names.text(*id)), (Some(*id), text.as_str()));
        }
        assert_eq!(names.take("user-7"), ids[7]);
        assert!(!names.give(ids[7]));
        for (i, id) in ids.iter().enumerate().filter(|(i, _)| i % 3 != 0) {
            assert!(names.give(*id), "{i}");
        }
        for (i, text) in texts.iter().enumerate() {
            assert_eq!(names.find(text).is_some(), i % 3 == 0, "{text}");
        }
        for id in ids.iter().step_by(3) {
            names.give(*id);
        }
        assert!(names.is_empty() && names.parts.iter().all(|part| part.used == 0));
    }
}
