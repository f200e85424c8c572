//! Who listens to a topic: a sorted list of slots, or a bitmap.
//!
//! A list costs four bytes a member, a bitmap one bit a slot of the shard: above capacity / 32 members the bitmap is
//! smaller, and a change costs no move. Both are walked upwards by slot, from any point, while members come and go.

/// Topics that a session holds without a box: a room, and a few groups.
const INLINE: usize = 5;

/// Topics of one session: a few inline, more in a box.
#[derive(Debug)]
pub enum TopicList {
    /// Filled from the front, [`super::users::NONE`] after that.
    Inline([u32; INLINE]),
    /// Unsorted.
    Boxed(Box<Vec<u32>>),
}

const NONE: u32 = super::users::NONE;

impl Default for TopicList {
    fn default() -> Self {
        TopicList::Inline([NONE; INLINE])
    }
}

impl TopicList {
    /// The topics, in no order.
    pub fn as_slice(&self) -> &[u32] {
        match self {
            TopicList::Inline(ids) => &ids[..ids.iter().position(|id| *id == NONE).unwrap_or(ids.len())],
            TopicList::Boxed(ids) => ids,
        }
    }

    /// Adds a topic unless it is there. Returns whether it was added.
    pub fn insert(&mut self, topic: u32) -> bool {
        if self.as_slice().contains(&topic) {
            return false;
        }
        match self {
            TopicList::Inline(ids) => match ids.iter_mut().find(|id| **id == NONE) {
                Some(free) => *free = topic,
                None => {
                    let mut all = ids.to_vec();
                    all.push(topic);
                    *self = TopicList::Boxed(Box::new(all));
                }
            },
            TopicList::Boxed(ids) => ids.push(topic),
        }
        true
    }

    /// Takes a topic out. Returns whether it was there.
    pub fn remove(&mut self, topic: u32) -> bool {
        let Some(at) = self.as_slice().iter().position(|id| *id == topic) else { return false };
        match self {
            TopicList::Inline(ids) => {
                ids[at..].rotate_left(1);
                ids[INLINE - 1] = NONE;
            }
            TopicList::Boxed(ids) => {
                ids.swap_remove(at);
                if ids.len() < INLINE {
                    let mut few = [NONE; INLINE];
                    few[..ids.len()].copy_from_slice(ids);
                    *self = TopicList::Inline(few);
                }
            }
        }
        true
    }
}

/// The listeners of one topic.
#[derive(Debug)]
pub enum Members {
    /// Sorted.
    List(Vec<u32>),
    /// One bit per slot.
    Bitmap {
        /// Slot 0 is the lowest bit of the first word.
        words: Vec<u64>,
        /// Bits set.
        count: u32,
    },
}

impl Default for Members {
    fn default() -> Self {
        Members::List(Vec::new())
    }
}

impl Members {
    /// How many listen.
    pub fn len(&self) -> usize {
        match self {
            Members::List(slots) => slots.len(),
            Members::Bitmap { count, .. } => *count as usize,
        }
    }

    /// Whether nobody listens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether this slot listens.
    pub fn contains(&self, slot: u32) -> bool {
        match self {
            Members::List(slots) => slots.binary_search(&slot).is_ok(),
            Members::Bitmap { words, .. } => {
                words.get(slot as usize / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
            }
        }
    }

    /// Adds a slot; `capacity` is the number of slots of the shard. Returns whether it was added.
    pub fn insert(&mut self, slot: u32, capacity: u32) -> bool {
        match self {
            Members::List(slots) => {
                let Err(at) = slots.binary_search(&slot) else { return false };
                slots.insert(at, slot);
                if slots.len() > (capacity / 32).max(64) as usize {
                    let mut words = vec![0u64; (capacity as usize).div_ceil(64)];
                    let count = slots.len() as u32;
                    for slot in slots.iter() {
                        set(&mut words, *slot);
                    }
                    *self = Members::Bitmap { words, count };
                }
                true
            }
            Members::Bitmap { words, count } => {
                let added = set(words, slot);
                *count += u32::from(added);
                added
            }
        }
    }

    /// Takes a slot out. Returns whether it was there. A bitmap turns back at half the size that made it.
    pub fn remove(&mut self, slot: u32, capacity: u32) -> bool {
        match self {
            Members::List(slots) => {
                let Ok(at) = slots.binary_search(&slot) else { return false };
                slots.remove(at);
                if slots.capacity() > 8 && slots.len() * 4 < slots.capacity() {
                    slots.shrink_to(slots.len() * 2);
                }
                true
            }
            Members::Bitmap { words, count } => {
                let Some(word) = words.get_mut(slot as usize / 64) else { return false };
                let bit = 1 << (slot % 64);
                if *word & bit == 0 {
                    return false;
                }
                *word &= !bit;
                *count -= 1;
                if *count < (capacity / 64).max(32) {
                    let mut slots = Vec::with_capacity(*count as usize);
                    let mut at = 0;
                    while let Some(slot) = self.next_from(at) {
                        slots.push(slot);
                        at = slot + 1;
                    }
                    *self = Members::List(slots);
                }
                true
            }
        }
    }

    /// The lowest member at or above `from`.
    pub fn next_from(&self, from: u32) -> Option<u32> {
        match self {
            Members::List(slots) => slots.get(slots.partition_point(|slot| *slot < from)).copied(),
            Members::Bitmap { words, .. } => {
                let first = from as usize / 64;
                let mut word = words.get(first)? & (u64::MAX << (from % 64));
                let mut at = first;
                while word == 0 {
                    at += 1;
                    word = *words.get(at)?;
                }
                Some(at as u32 * 64 + word.trailing_zeros())
            }
        }
    }
}

fn set(words: &mut Vec<u64>, slot: u32) -> bool {
    let at = slot as usize / 64;
    if at >= words.len() {
        words.resize(at + 1, 0);
    }
    let bit = 1 << (slot % 64);
    let added = words[at] & bit == 0;
    words[at] |= bit;
    added
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_big_topic_becomes_a_bitmap_and_back() {
        let (capacity, mut members, mut model) = (8_192, Members::default(), BTreeSet::new());
        let walk = |members: &Members| {
            let (mut slots, mut at) = (Vec::new(), 0);
            while let Some(slot) = members.next_from(at) {
                slots.push(slot);
                at = slot + 1;
            }
            slots
        };
        for i in 0..400u32 {
            let slot = i * 37 % 8_192;
            assert_eq!(members.insert(slot, capacity), model.insert(slot));
            assert!(!members.insert(slot, capacity));
            assert_eq!(matches!(members, Members::Bitmap { .. }), members.len() > 256, "{}", members.len());
        }
        assert!(walk(&members).iter().eq(model.iter()));
        for i in 0..400u32 {
            let slot = i * 37 % 8_192;
            assert_eq!(members.remove(slot, capacity), model.remove(&slot));
            assert!(!members.remove(slot, capacity) && !members.contains(slot));
            assert!(walk(&members).iter().eq(model.iter()), "after {i}");
            assert_eq!(matches!(members, Members::Bitmap { .. }), members.len() >= 128);
        }
        assert!(members.is_empty());
    }

    #[test]
    fn a_session_keeps_a_few_topics_inline() {
        let mut list = TopicList::default();
        for topic in 0..6 {
            assert!(list.insert(topic) && !list.insert(topic));
            assert_eq!(matches!(list, TopicList::Inline(_)), topic < INLINE as u32);
        }
        for topic in [0, 5, 2, 1, 4, 3] {
            assert!(list.remove(topic) && !list.remove(topic), "{topic}");
        }
        assert!(list.as_slice().is_empty() && matches!(list, TopicList::Inline(_)));
        assert_eq!(size_of::<TopicList>(), 24);
    }
}
