//! Room on the disk: what makes the store grow is refused while there is room left to put in order what is there.
//!
//! An engine that finds the disk full in the middle of a write is not to be believed any more; refusing early costs nothing
//! but the message that is sent again. The rule that keeps it right: what makes room (trims, removals) and what changes
//! owners may use what is kept back, but for its last bytes: a start on a disk that others have filled waits for room
//! instead of ending, again and again, in the middle of its claims.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::store::{Batch, Change, StoreError, UserItem, Write};

/// How long a look at the file system holds good: a store takes in some ten megabytes in that time.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// With less than this nothing at all is written, bytes: what claims of all partitions take, or the sweep of a trim.
const LAST_BYTES: u64 = 1 << 20;

/// See above.
#[derive(Debug)]
pub(super) struct Room {
    dir: PathBuf,
    reserve_bytes: u64,
    last: Mutex<Option<(Instant, u64)>>,
}

impl Room {
    pub(super) fn new(dir: PathBuf, reserve_bytes: u64) -> Self {
        Self { dir, reserve_bytes, last: Mutex::new(None) }
    }

    /// What is wrong, if there is too little.
    pub(super) fn shortage(&self) -> Option<String> {
        let free_bytes = self.free_bytes()?;
        (free_bytes < self.reserve_bytes).then(|| {
            format!(
                "the disk of {} is nearly full: {} MiB are left, and {} are kept back; nothing new is taken in",
                self.dir.display(),
                free_bytes >> 20,
                self.reserve_bytes >> 20
            )
        })
    }

    /// Refuses a batch that would make the store grow, if there is too little.
    pub(super) fn admit(&self, batch: &Batch) -> Result<(), StoreError> {
        let grows = |write: &Write| !matches!(write, Write::Trim { .. } | Write::State { value: None, .. });
        self.check(batch.writes.iter().any(grows))
    }

    /// The same of changes to users' lists.
    pub(super) fn admit_items(&self, items: &[UserItem]) -> Result<(), StoreError> {
        self.check(items.iter().any(|item| item.change != Change::Remove))
    }

    /// The same of claims and releases.
    pub(super) fn admit_owner(&self) -> Result<(), StoreError> {
        self.check(false)
    }

    fn check(&self, grows: bool) -> Result<(), StoreError> {
        let needs_bytes = needs_bytes(self.reserve_bytes, grows);
        match self.shortage() {
            Some(shortage) if self.free_bytes().is_some_and(|free_bytes| free_bytes < needs_bytes) => {
                Err(StoreError::Unavailable(shortage))
            }
            _ => Ok(()),
        }
    }

    /// `None`: the file system does not say.
    fn free_bytes(&self) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((looked, free_bytes)) = *last
            && looked.elapsed() < LOOK_EVERY
        {
            return Some(free_bytes);
        }
        let found = rustix::fs::statvfs(&self.dir).ok()?;
        let free_bytes = found.f_bavail.saturating_mul(found.f_frsize);
        *last = Some((Instant::now(), free_bytes));
        Some(free_bytes)
    }
}

/// What must be left for a write.
fn needs_bytes(reserve_bytes: u64, grows: bool) -> u64 {
    if grows { reserve_bytes } else { reserve_bytes.min(LAST_BYTES) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_back_is_for_what_makes_room_but_for_its_last_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let kept = 256 << 20;
        for (free_bytes, may_grow, may_change_owner) in [
            (kept, true, true),
            (kept - 1, false, true),
            (LAST_BYTES, false, true),
            (LAST_BYTES - 1, false, false),
        ] {
            let room = Room::new(dir.path().to_owned(), kept);
            // Looked at in a minute at the earliest, as far as this test goes.
            *room.last.lock().unwrap() = Some((Instant::now() + Duration::from_secs(60), free_bytes));
            assert_eq!(room.check(true).is_ok(), may_grow, "{free_bytes}");
            assert_eq!(room.admit_owner().is_ok(), may_change_owner, "{free_bytes}");
        }
        assert_eq!(
            (needs_bytes(0, true), needs_bytes(0, false)),
            (0, 0),
            "nothing is kept back, nothing refused"
        );
    }
}
