//! Names of connections and operations, and the slab that side data waits in.
//!
//! A slot's generation grows by one when the slot is freed. An operation's user data carries the slot, its
//! generation and an index into the side table of its kind, so that a completion says everything about itself.
//! What a slot's state is, each backend decides.

use crate::limits::{BANK_SLOTS_MAX, GENERATION_BITS, INDEX_BITS, SLAB_CHUNK, SLAB_CHUNKS_KEPT};

const SLOT_BITS: u32 = BANK_SLOTS_MAX.trailing_zeros();

/// The generation after `generation`, modulo 2^20.
pub(crate) fn next_generation(generation: u32) -> u32 {
    (generation + 1) & ((1 << GENERATION_BITS) - 1)
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Poll = 1,
    Recv = 2,
    Send = 3,
    Connect = 4,
    Accept = 5,
    Shutdown = 6,
    Cancel = 7,
    Close = 8,
}

/// The 64 bits that travel with an operation: kind (4) | index (26) | generation (20) | slot in the bank (14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Op {
    pub kind: Kind,
    /// Buffer of a receive, payload of a send, address of a connect or an accept; 0 for the rest.
    pub index: u32,
    pub generation: u32,
    /// Slot within its bank.
    pub local: u32,
}

impl Op {
    pub fn pack(self) -> u64 {
        debug_assert!(self.index < 1 << INDEX_BITS && self.local < BANK_SLOTS_MAX);
        (self.kind as u64) << 60
            | u64::from(self.index) << (GENERATION_BITS + SLOT_BITS)
            | u64::from(self.generation) << SLOT_BITS
            | u64::from(self.local)
    }

    /// The operation of a user data, or `None` for bits that `pack` never made.
    pub fn unpack(bits: u64) -> Option<Self> {
        let kind = match bits >> 60 {
            1 => Kind::Poll,
            2 => Kind::Recv,
            3 => Kind::Send,
            4 => Kind::Connect,
            5 => Kind::Accept,
            6 => Kind::Shutdown,
            7 => Kind::Cancel,
            8 => Kind::Close,
            _ => return None,
        };
        Some(Self {
            kind,
            index: (bits >> (GENERATION_BITS + SLOT_BITS)) as u32 & ((1 << INDEX_BITS) - 1),
            generation: (bits >> SLOT_BITS) as u32 & ((1 << GENERATION_BITS) - 1),
            local: bits as u32 & (BANK_SLOTS_MAX - 1),
        })
    }
}

enum Entry<T> {
    Free { next: u32 },
    Full(T),
}

const NONE: u32 = u32::MAX;

/// A slab that grows by chunks, reuses the last freed entry first, and gives the memory of a burst back when empty.
pub(crate) struct Slab<T> {
    chunks: Vec<Box<[Entry<T>]>>,
    first_free: u32,
    live: u32,
}

impl<T> Slab<T> {
    pub fn new() -> Self {
        Self { chunks: Vec::new(), first_free: NONE, live: 0 }
    }

    /// Stores a value, or hands it back when the index would not fit an operation's user data.
    pub fn insert(&mut self, value: T) -> Result<u32, T> {
        if self.first_free == NONE && !self.grow() {
            return Err(value);
        }
        let index = self.first_free;
        let entry = self.entry(index);
        let Entry::Free { next } = *entry else { unreachable!("the free list holds free entries only") };
        *entry = Entry::Full(value);
        self.first_free = next;
        self.live += 1;
        Ok(index)
    }

    pub fn get(&self, index: u32) -> Option<&T> {
        match self.chunks.get(index as usize / SLAB_CHUNK)?.get(index as usize % SLAB_CHUNK)? {
            Entry::Full(value) => Some(value),
            Entry::Free { .. } => None,
        }
    }

    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        match self.chunks.get_mut(index as usize / SLAB_CHUNK)?.get_mut(index as usize % SLAB_CHUNK)? {
            Entry::Full(value) => Some(value),
            Entry::Free { .. } => None,
        }
    }

    pub fn remove(&mut self, index: u32) -> Option<T> {
        self.get(index)?;
        let next = self.first_free;
        let Entry::Full(value) = std::mem::replace(self.entry(index), Entry::Free { next }) else {
            unreachable!("looked at above")
        };
        self.first_free = index;
        self.live -= 1;
        if self.live == 0 && self.chunks.len() > SLAB_CHUNKS_KEPT {
            *self = Self::new();
        }
        Some(value)
    }

    pub fn len(&self) -> u32 {
        self.live
    }

    fn entry(&mut self, index: u32) -> &mut Entry<T> {
        &mut self.chunks[index as usize / SLAB_CHUNK][index as usize % SLAB_CHUNK]
    }

    fn grow(&mut self) -> bool {
        let start = self.chunks.len() * SLAB_CHUNK;
        if start + SLAB_CHUNK > 1 << INDEX_BITS {
            return false;
        }
        let start = start as u32;
        let last = start + SLAB_CHUNK as u32 - 1;
        self.chunks.push(
            (start..=last).map(|i| Entry::Free { next: if i == last { NONE } else { i + 1 } }).collect(),
        );
        self.first_free = start;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_round_trips() {
        for kind in [Kind::Poll, Kind::Recv, Kind::Send, Kind::Connect, Kind::Accept, Kind::Close] {
            for (index, generation, local) in [
                (0, 0, 0),
                ((1 << INDEX_BITS) - 1, (1 << GENERATION_BITS) - 1, BANK_SLOTS_MAX - 1),
                (7, 1, 9),
            ] {
                let op = Op { kind, index, generation, local };
                assert_eq!(Op::unpack(op.pack()), Some(op));
            }
        }
        assert_eq!(Op::unpack(0), None);
        assert_eq!(Op::unpack(u64::MAX), None);
    }

    #[test]
    fn generations_wrap() {
        assert_eq!(next_generation(0), 1);
        assert_eq!(next_generation((1 << GENERATION_BITS) - 1), 0);
    }

    #[test]
    fn slab_reuses_and_shrinks() {
        let mut slab = Slab::new();
        let many = SLAB_CHUNK * (SLAB_CHUNKS_KEPT + 2);
        let indices: Vec<u32> = (0..many).map(|i| slab.insert(i).unwrap()).collect();
        assert_eq!(slab.remove(indices[5]), Some(5));
        assert_eq!(slab.remove(indices[5]), None);
        assert_eq!(slab.insert(77).unwrap(), indices[5], "the last freed is reused first");
        assert_eq!(slab.get(indices[5]), Some(&77));
        for index in indices {
            assert!(slab.remove(index).is_some());
        }
        assert_eq!((slab.len(), slab.chunks.len()), (0, 0));
        assert_eq!(slab.insert(1).unwrap(), 0);
    }
}
