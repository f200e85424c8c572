//! How the kernel backs this process's memory.
//!
//! Allocators reserve arenas of many megabytes and ask for transparent huge pages there: one touched byte then costs
//! 2 MiB. A gateway touches its memory thinly and in many places, so that small pages halve its fixed part, and memory
//! per connection can be told from noise.

use std::io;

/// From here on, no huge pages are given to this process (nor to what it starts). What it has, it keeps: call it
/// first.
///
/// # Errors
/// The kernel knows no such switch; nothing was changed.
pub fn use_small_pages() -> io::Result<()> {
    // SAFETY: no pointers; it sets a flag of this process's address space.
    let result = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
