//! Who goes first where threads share a core.

use std::io;

/// The niceness of the calling thread: the higher, the more others go before it.
pub fn niceness() -> i32 {
    // SAFETY: no memory is passed; 0 is the calling thread.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// Sets the niceness of the calling thread (-20 to 19), and of those that it starts from now on.
///
/// # Errors
/// The kernel refused: less than before needs CAP_SYS_NICE. Nothing is lost but the order.
pub fn set_niceness(niceness: i32) -> io::Result<()> {
    // SAFETY: no memory is passed; 0 is the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_gives_way_and_others_do_not() {
        let before = niceness();
        let theirs = std::thread::spawn(|| {
            set_niceness(19).expect("an unfiltered thread may give way");
            niceness()
        });
        assert_eq!((theirs.join().unwrap(), niceness()), (19, before));
    }
}
