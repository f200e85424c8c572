//! Which CPUs this process may use, and pinning a shard thread to one of them.

use std::io;
use std::mem::{size_of, zeroed};

fn allowed_set() -> io::Result<libc::cpu_set_t> {
    // SAFETY: all-zero bytes are an empty cpu_set_t.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: the out-parameter lives on this stack, and its size is passed.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(set)
}

/// Numbers of the CPUs that the calling thread may run on, in order. Read it before pinning.
///
/// # Errors
/// What the kernel says (machines with more than 1024 CPUs).
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let set = allowed_set()?;
    // SAFETY: the index is below CPU_SETSIZE.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect())
}

/// How many CPUs the calling thread may run on; at least 1.
pub fn cpu_count() -> usize {
    allowed_cpus().map_or(1, |cpus| cpus.len().max(1))
}

/// Pins the calling thread to one CPU.
///
/// # Errors
/// That CPU does not exist, or is not allowed to this process.
pub fn pin_current_thread(cpu: usize) -> io::Result<()> {
    restrict_current_thread(&[cpu])
}

/// Lets the calling thread, and those that it starts from now on, run on these CPUs only.
///
/// # Errors
/// None of them exists or is allowed to this process, or a number is beyond what the kernel counts to.
pub fn restrict_current_thread(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: all-zero bytes are an empty cpu_set_t.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    for &cpu in cpus {
        if cpu >= libc::CPU_SETSIZE as usize {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: the index is below CPU_SETSIZE, as checked.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the parameter lives on this stack, and its size is passed.
    if unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_has_one_cpu() {
        let cpus = allowed_cpus().unwrap();
        assert_eq!(cpus.len(), cpu_count());
        let last = *cpus.last().unwrap();
        std::thread::spawn(move || {
            pin_current_thread(last).unwrap();
            assert_eq!(allowed_cpus().unwrap(), [last]);
        })
        .join()
        .unwrap();
        assert!(pin_current_thread(1 << 20).is_err());
    }
}
