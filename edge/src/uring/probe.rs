//! Whether this machine's io_uring can carry an edge, and what a ring of an edge may do.
//!
//! A ring starts disabled, gets its restrictions, and is enabled: a seccomp profile does not see what a ring does,
//! so the ring itself refuses everything that the edge never asks for.

use std::io;

use io_uring::{IoUring, Probe, opcode, register::Restriction};

/// Register operations after the ring is enabled (`IORING_UNREGISTER_FILES`, `IORING_REGISTER_FILES_UPDATE`): own
/// connections are put into their slots with the second, and a dropped edge closes all with the first.
const REGISTER_OPS: [u8; 2] = [3, 6];

/// The operations in use, with names for the message that one is missing.
const OPS: [(u8, &str); 8] = [
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::Recv::CODE, "RECV"),
    (opcode::Send::CODE, "SEND"),
    (opcode::Connect::CODE, "CONNECT"),
    (opcode::Accept::CODE, "ACCEPT"),
    (opcode::Shutdown::CODE, "SHUTDOWN"),
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
    (opcode::Close::CODE, "CLOSE"),
];

/// A disabled ring with the flags that the edge needs.
pub(super) fn build(sq_entries: u32, cq_entries: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_cqsize(cq_entries)
        .setup_clamp()
        .setup_r_disabled()
        // One bad entry must not hold up the rest of its batch.
        .setup_submit_all()
        // The thread that turns the edge is the only one to submit, and takes completions when it asks for them.
        .setup_single_issuer()
        .setup_defer_taskrun()
        // The kernel says in shared memory that completions wait: banks without work cost no call.
        .setup_taskrun_flag()
        .build(sq_entries)
}

/// Restricts a disabled ring to the operations in use, and enables it.
pub(super) fn restrict_and_enable(ring: &IoUring) -> io::Result<()> {
    let mut allowed: Vec<Restriction> = OPS.iter().map(|&(code, _)| Restriction::sqe_op(code)).collect();
    allowed.extend(REGISTER_OPS.map(Restriction::register_op));
    // IOSQE_FIXED_FILE and nothing else: no links, no worker threads by request, no provided buffers.
    allowed.push(Restriction::sqe_flags_allowed(io_uring::squeue::Flags::FIXED_FILE.bits()));
    ring.submitter().register_restrictions(&mut allowed)?;
    ring.submitter().register_enable_rings()
}

/// Why io_uring can't be used here, in words; or `Ok`.
pub fn check() -> Result<(), String> {
    let ring = build(8, 16).map_err(|error| explain(&error))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| format!("it can't be probed: {error}"))?;
    for (code, name) in OPS {
        if !probe.is_supported(code) {
            return Err(format!("this kernel has no operation {name}"));
        }
    }
    if !ring.params().is_feature_nodrop() {
        return Err("this kernel drops completions when a queue is full".into());
    }
    ring.submitter()
        .register_files_sparse(1)
        .map_err(|error| format!("direct descriptors are refused: {error}"))?;
    restrict_and_enable(&ring).map_err(|error| format!("restrictions are refused: {error}"))
}

fn explain(error: &io::Error) -> String {
    let cause = match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel has none, or a seccomp profile hides it".to_owned(),
        Some(libc::EPERM | libc::EACCES) => {
            match std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled") {
                Ok(value) if value.trim() != "0" => {
                    format!("sysctl kernel.io_uring_disabled is {}", value.trim())
                }
                _ => "a seccomp profile or a security module forbids it".to_owned(),
            }
        }
        Some(libc::EINVAL) => "the kernel is older than 6.1".to_owned(),
        Some(libc::ENOMEM) => "memory for a ring is refused (on old kernels: RLIMIT_MEMLOCK)".to_owned(),
        Some(libc::EMFILE | libc::ENFILE) => "no file descriptor is left".to_owned(),
        _ => "it can't be set up".to_owned(),
    };
    format!("{cause} ({error})")
}
