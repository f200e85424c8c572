//! A table indexed by slot numbers that somebody else gives out, grown in chunks.
//!
//! It never moves an entry and never doubles: growing by one chunk costs one allocation of bounded size, so that no
//! accept waits for a copy of the whole table. A chunk that became empty is given back.

/// Entries of a chunk: 128 of 96 bytes are 12 KiB.
const CHUNK: usize = 128;

struct Chunk<T> {
    entries: Box<[Option<T>]>,
    used: u32,
}

/// The table.
pub struct Slab<T> {
    chunks: Vec<Option<Chunk<T>>>,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { chunks: Vec::new(), len: 0 }
    }
}

impl<T> Slab<T> {
    /// Entries in use.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no entry is in use.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One above the highest slot that can be in use.
    pub fn end(&self) -> u32 {
        (self.chunks.len() * CHUNK) as u32
    }

    /// The entry of a slot.
    pub fn get(&self, slot: u32) -> Option<&T> {
        let chunk = self.chunks.get(slot as usize / CHUNK)?.as_ref()?;
        chunk.entries[slot as usize % CHUNK].as_ref()
    }

    /// The entry of a slot.
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        let chunk = self.chunks.get_mut(slot as usize / CHUNK)?.as_mut()?;
        chunk.entries[slot as usize % CHUNK].as_mut()
    }

    /// Fills a slot; what was there comes back.
    pub fn insert(&mut self, slot: u32, value: T) -> Option<T> {
        let at = slot as usize / CHUNK;
        if at >= self.chunks.len() {
            self.chunks.resize_with(at + 1, || None);
        }
        let chunk = self.chunks[at]
            .get_or_insert_with(|| Chunk { entries: (0..CHUNK).map(|_| None).collect(), used: 0 });
        let old = chunk.entries[slot as usize % CHUNK].replace(value);
        if old.is_none() {
            chunk.used += 1;
            self.len += 1;
        }
        old
    }

    /// Empties a slot.
    pub fn remove(&mut self, slot: u32) -> Option<T> {
        let place = self.chunks.get_mut(slot as usize / CHUNK)?;
        let chunk = place.as_mut()?;
        let old = chunk.entries[slot as usize % CHUNK].take()?;
        chunk.used -= 1;
        self.len -= 1;
        if chunk.used == 0 {
            *place = None;
        }
        Some(old)
    }

    /// The first used slot at or above `from`.
    pub fn next_used(&self, from: u32) -> Option<u32> {
        let mut at = from as usize;
        while let Some(chunk) = self.chunks.get(at / CHUNK) {
            let Some(chunk) = chunk else {
                at = (at / CHUNK + 1) * CHUNK;
                continue;
            };
            if chunk.entries[at % CHUNK].is_some() {
                return Some(at as u32);
            }
            at += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_walks_and_gives_chunks_back() {
        let mut slab = Slab::default();
        for slot in [0, 5, 127, 128, 1000] {
            assert!(slab.insert(slot, slot).is_none());
        }
        assert_eq!(slab.insert(5, 6), Some(5));
        let mut walked = Vec::new();
        let mut at = 0;
        while let Some(slot) = slab.next_used(at) {
            walked.push(slot);
            at = slot + 1;
        }
        assert_eq!(walked, [0, 5, 127, 128, 1000]);
        for slot in walked {
            assert!(slab.remove(slot).is_some());
            assert!(slab.remove(slot).is_none());
        }
        assert!(slab.is_empty() && slab.chunks.iter().all(Option::is_none));
        assert!(slab.get(1 << 30).is_none() && slab.remove(1 << 30).is_none());
    }
}
