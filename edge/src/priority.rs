//! Who goes first where threads share a core.
//!
//! The scheduler gives every thread its share, in slices of some 3 ms: a thread that wakes waits for the end of the slice
//! of whoever runs. A message passes six threads on its way, so under load it waits six times. With short slices a
//! thread gets the same share in smaller pieces, and goes before those with long ones when it wakes (Linux 6.12 and
//! later; earlier ones ignore it).

use std::io;
use std::mem::{size_of, zeroed};

/// Asks for slices of `slice_us` (100 to 100,000) for the calling thread and those that it starts from now on.
///
/// # Errors
/// The kernel refused: the calls of this process are filtered, say. Nothing is lost but the shorter wait.
pub fn short_slices(slice_us: u32) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid sched_attr: the normal policy with its default parameters.
    let mut attributes: libc::sched_attr = unsafe { zeroed() };
    attributes.size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: the out-parameter lives on this stack, and its size is passed.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, attributes.size, 0) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    attributes.sched_runtime = u64::from(slice_us) * 1_000;
    // SAFETY: the parameter lives on this stack and says its own size.
    if unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_slices_are_taken_or_refused_in_words() {
        std::thread::spawn(|| short_slices(500).expect("an unfiltered thread may ask for this"))
            .join()
            .unwrap();
    }
}
