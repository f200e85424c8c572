//! Who goes first where threads share a core.

use std::io;

/// Lets other threads go before the calling one: its niceness becomes `niceness` (19 at most). Threads that it starts
/// from now on inherit it.
///
/// # Errors
/// The kernel refused: less niceness than before needs CAP_SYS_NICE. Nothing is lost but the order.
pub fn give_way(niceness: u8) -> io::Result<()> {
    // SAFETY: no memory is passed; 0 is the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness.min(19).into()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_gives_way_and_others_do_not() {
        // SAFETY: no memory is passed; 0 is the calling thread.
        let mine = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let before = mine();
        let theirs = std::thread::spawn(move || {
            give_way(200).expect("an unfiltered thread may give way");
            mine()
        });
        assert_eq!((theirs.join().unwrap(), mine()), (19, before));
    }
}
