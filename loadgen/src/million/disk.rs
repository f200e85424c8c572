//! The disk below the store: what it holds, and how long it takes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::measure::{Percentiles, histogram};

/// Synced writes that are timed, the bytes of each, and the pause between them.
const SYNCS: u32 = 300;
const SYNC_BYTES: usize = 512;
const PAUSE: Duration = Duration::from_millis(3);

/// How long a small write takes until the disk has it, in microseconds.
pub(super) fn sync_us(directory: &Path) -> io::Result<Percentiles> {
    let path = directory.join("sync-probe");
    let mut file = File::create(&path)?;
    let mut times = histogram();
    for _ in 0..SYNCS {
        let start = Instant::now();
        file.write_all(&[7; SYNC_BYTES])?;
        file.sync_data()?;
        times.saturating_record(start.elapsed().as_micros() as u64);
        std::thread::sleep(PAUSE);
    }
    fs::remove_file(&path)?;
    Ok(Percentiles::of(&times))
}

/// Bytes of all files below a directory.
pub(super) fn bytes(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes(&entry.path()),
            // Blocks, not lengths: journals are preallocated.
            Ok(meta) => std::os::unix::fs::MetadataExt::blocks(&meta) * 512,
            Err(_) => 0,
        })
        .sum()
}
