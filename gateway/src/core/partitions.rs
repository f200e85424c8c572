//! Sets of partitions, a bit each.

use millrace_protocol::ids::{PARTITIONS_MAX, Partition};

/// A set of partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Partitions([u64; PARTITIONS_MAX as usize / 64]);

impl Partitions {
    pub(super) fn insert(&mut self, partition: Partition) {
        self.0[usize::from(partition) / 64] |= 1 << (partition % 64);
    }

    pub(super) fn contains(&self, partition: Partition) -> bool {
        self.0[usize::from(partition) / 64] >> (partition % 64) & 1 == 1
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Partitions::default()
    }
}
