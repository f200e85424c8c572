//! Clocks that the rest of the workspace needs without unsafe: time since boot, and CPU time used.

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the out-parameter lives on this stack.
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(result, 0, "the clocks used here exist on every Linux that runs this");
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

/// Microseconds since boot, suspended time included (CLOCK_BOOTTIME). Leases count by it: a machine that slept has
/// lost them. It never goes back.
pub fn boot_us() -> u64 {
    read(libc::CLOCK_BOOTTIME)
}

/// CPU time that this process has used, user and system, in microseconds.
pub fn process_cpu_us() -> u64 {
    read(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// CPU time that the calling thread has used, user and system, in microseconds.
pub fn thread_cpu_us() -> u64 {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_used_by_working_not_by_sleeping() {
        let (boot, thread, process) = (boot_us(), thread_cpu_us(), process_cpu_us());
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert!(boot_us() - boot >= 30_000);
        assert!(thread_cpu_us() - thread < 20_000);
        while thread_cpu_us() - thread < 20_000 {
            std::hint::black_box(0);
        }
        assert!(process_cpu_us() - process >= 20_000);
    }
}
