//! One process has a directory: a lock that ends with it, whatever ends it.
//!
//! The rule that keeps it right: the file is never removed, so that nobody can lock another one of the same name.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use super::OpenError;

/// The lock's file; it holds the process id of its holder.
const LOCK_FILE: &str = "millrace.lock";
/// How long a lock is waited for at a start.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Locks a directory for as long as the answer lives.
pub(super) fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK_FILE);
    let io = |error| OpenError::Io { path: path.clone(), error };
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
    let mut locked = file.try_lock();
    // A former owner that ends, or a child that it has forked and that has not yet begun its own program, holds the lock
    // a moment longer.
    let end = Instant::now() + LOCK_PATIENCE;
    while matches!(locked, Err(TryLockError::WouldBlock)) && Instant::now() < end {
        std::thread::sleep(LOCK_PATIENCE / 20);
        locked = file.try_lock();
    }
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let pid = if pid.is_empty() { "unknown".to_owned() } else { pid };
            return Err(OpenError::Locked { path: dir.to_owned(), pid });
        }
        Err(TryLockError::Error(error)) => return Err(io(error)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
    write!(file, "{}", std::process::id()).map_err(io)?;
    Ok(file)
}
