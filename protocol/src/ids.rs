//! Identities that cross processes: sessions, partitions, message ids, and the time that cores are given.

use std::fmt;

/// What a core knows of time; its shell reads the clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// CLOCK_BOOTTIME in microseconds: deadlines, intervals, leases. Never goes back.
    pub mono_us: u64,
    /// Wall clock in milliseconds since 1970: message ids, epochs, token expiry. May jump.
    pub wall_ms: u64,
}

/// One authenticated connection, packed in 64 bits: gateway 12, shard 8, slot 24, generation 20.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

impl SessionId {
    /// No session.
    pub const NONE: SessionId = SessionId(0);

    /// Packs the parts. Gateway ids start at 1, so that no session packs to 0.
    pub fn new(gateway: u16, shard: u8, slot: u32, generation: u32) -> Self {
        debug_assert!((1..4096).contains(&gateway) && slot < 1 << 24 && generation < 1 << 20);
        SessionId(
            u64::from(gateway) << 52 | u64::from(shard) << 44 | u64::from(slot) << 20 | u64::from(generation),
        )
    }

    /// Gateway id, 1-4095.
    pub fn gateway(self) -> u16 {
        (self.0 >> 52) as u16
    }

    /// Shard of that gateway.
    pub fn shard(self) -> u8 {
        (self.0 >> 44) as u8
    }

    /// Slot on that shard.
    pub fn slot(self) -> u32 {
        (self.0 >> 20) as u32 & 0xff_ffff
    }

    /// How often that slot had been used before, modulo 2^20.
    pub fn generation(self) -> u32 {
        self.0 as u32 & 0xf_ffff
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}#{}", self.gateway(), self.shard(), self.slot(), self.generation())
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Partitions at most: a message id has 10 bits for its partition.
pub const PARTITIONS_MAX: u16 = 1024;

/// One slice of the key space.
pub type Partition = u16;

/// The partition of a key ("u:<user>", or a conversation id): FNV-1a over its bytes, finished with a mixing step,
/// modulo `partitions`. Fixed for ever: stored data is found by it.
pub fn partition_of(key: &str, partitions: u16) -> Partition {
    partition_of_parts(&[key.as_bytes()], partitions)
}

/// The partition where a user's routes and list of groups live: that of the key "u:<user>".
pub fn user_partition(user: &str, partitions: u16) -> Partition {
    partition_of_parts(&[b"u:", user.as_bytes()], partitions)
}

fn partition_of_parts(parts: &[&[u8]], partitions: u16) -> Partition {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parts.iter().flat_map(|part| part.iter()) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    // FNV's low bits mix poorly for short keys: fold the high half in.
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^= hash >> 32;
    (hash % u64::from(partitions.max(1))) as u16
}

/// A time-ordered message id: 41 bits of milliseconds since 2024-01-01, 10 of partition, 12 of counter (the top bit
/// stays 0, so that it fits a signed integer).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub u64);

/// 2024-01-01T00:00:00Z in milliseconds: where message ids begin.
pub const MESSAGE_ID_EPOCH_MS: u64 = 1_704_067_200_000;

impl MessageId {
    /// The smallest id of this millisecond and partition.
    pub fn first_at(wall_ms: u64, partition: Partition) -> Self {
        let ms = wall_ms.saturating_sub(MESSAGE_ID_EPOCH_MS) & ((1 << 41) - 1);
        MessageId(ms << 22 | u64::from(partition & 0x3ff) << 12)
    }

    /// The next id of a partition: greater than `self` whatever the clock says, and not behind the clock. A full
    /// counter borrows from the next millisecond.
    pub fn next(self, wall_ms: u64, partition: Partition) -> Self {
        let now = Self::first_at(wall_ms, partition);
        if now > self {
            return now;
        }
        if self.0 & 0xfff < 0xfff {
            return MessageId(self.0 + 1);
        }
        MessageId(((self.0 >> 22) + 1) << 22 | u64::from(partition & 0x3ff) << 12)
    }

    /// When it was given, in milliseconds since 1970.
    pub fn wall_ms(self) -> u64 {
        (self.0 >> 22) + MESSAGE_ID_EPOCH_MS
    }

    /// Who gave it.
    pub fn partition(self) -> Partition {
        (self.0 >> 12) as u16 & 0x3ff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed by another program: key, partition of 1024, of 16.
    const VECTORS: [(&str, u16, u16); 8] = [
        ("u:alice", 149, 5),
        ("u:bob", 627, 3),
        ("u:", 842, 10),
        ("d:alice:bob", 91, 11),
        ("g:team", 476, 12),
        ("r:town", 93, 13),
        ("r:xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", 420, 4),
        ("", 639, 15),
    ];

    #[test]
    fn sessions_unpack_to_what_was_packed() {
        for (gateway, shard, slot, generation) in
            [(1, 0, 0, 0), (4095, 255, (1 << 24) - 1, (1 << 20) - 1), (2, 3, 70_000, 5)]
        {
            let id = SessionId::new(gateway, shard, slot, generation);
            assert_eq!(
                (id.gateway(), id.shard(), id.slot(), id.generation()),
                (gateway, shard, slot, generation)
            );
            assert_ne!(id, SessionId::NONE);
        }
        assert_eq!(SessionId::new(2, 3, 70_000, 5).to_string(), "2/3/70000#5");
    }

    /// Stored data is found by these: a change here loses it.
    #[test]
    fn partitions_are_fixed_for_ever() {
        for (key, of_1024, of_16) in VECTORS {
            assert_eq!((partition_of(key, 1024), partition_of(key, 16)), (of_1024, of_16), "{key}");
        }
        assert_eq!(user_partition("alice", 1024), partition_of("u:alice", 1024));
        assert_eq!(partition_of("g:team", 1), 0);
    }

    #[test]
    fn partitions_are_even() {
        let mut counts = [0u32; 64];
        for user in 0..64_000 {
            counts[usize::from(user_partition(&format!("user{user}"), 64))] += 1;
        }
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*least > 850 && *most < 1150, "1000 are due: {least} to {most}");
    }

    #[test]
    fn message_ids_grow_whatever_the_clock_does() {
        let start = MESSAGE_ID_EPOCH_MS + 1_000_000;
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let (mut clock, mut last) = (start, MessageId::default());
        for _ in 0..100_000 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            // Mostly standing still, sometimes ahead, sometimes back, also to before the epoch of ids.
            clock = match seed % 1000 {
                0 => start + seed % 1_000_000,
                1 => start.saturating_sub(seed % 3_600_000),
                2 => seed % 1000,
                3..=100 => clock + 1,
                _ => clock,
            };
            let next = last.next(clock, 777);
            assert!(next > last && next.partition() == 777, "{last:?} then {next:?} at {clock}");
            assert!(next.wall_ms() >= clock, "not behind the clock");
            last = next;
        }
        assert_eq!(last.0 >> 63, 0);
    }

    #[test]
    fn a_full_counter_borrows_from_the_next_millisecond() {
        let now = MESSAGE_ID_EPOCH_MS + 5;
        let mut id = MessageId::first_at(now, 9);
        for _ in 0..4095 {
            id = id.next(now, 9);
        }
        assert_eq!((id.wall_ms(), id.0 & 0xfff), (now, 4095));
        let next = id.next(now, 9);
        assert_eq!((next.wall_ms(), next.partition(), next.0 & 0xfff), (now + 1, 9, 0));
        // Back on the clock as soon as it is ahead.
        assert_eq!(next.next(now + 2, 9), MessageId::first_at(now + 2, 9));
    }
}
