//! The limit on open files: reading it, and raising it as far as this process may.

use std::io;

/// RLIMIT_NOFILE, in descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nofile {
    /// What holds now.
    pub soft: u64,
    /// How far it may be raised.
    pub hard: u64,
}

/// Reads the limit.
///
/// # Errors
/// None that the kernel is known to give for this process itself.
pub fn nofile() -> io::Result<Nofile> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the out-parameter lives on this stack.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Nofile { soft: limit.rlim_cur, hard: limit.rlim_max })
}

/// Raises the soft limit to the hard one, and returns what holds then.
///
/// # Errors
/// What the kernel says; the old limit holds then.
pub fn raise_nofile() -> io::Result<Nofile> {
    let now = nofile()?;
    set_nofile(now.hard)?;
    nofile()
}

/// Sets the soft limit, at most to the hard one.
///
/// # Errors
/// What the kernel says; the old limit holds then.
pub fn set_nofile(soft: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: nofile()?.hard };
    // SAFETY: the parameter lives on this stack.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn raises_to_the_hard_limit() {
        let raised = super::raise_nofile().unwrap();
        assert_eq!(raised.soft, raised.hard);
        assert!(raised.soft > 0);
    }
}
