//! What the kernel holds for sockets, from /proc: user memory is in [`crate::measure`].

use std::fs;

/// Kernel memory that grows with connections, in bytes: slabs (sockets, inodes, dentries, files, armed requests), page
/// tables, stacks and per-CPU parts. The page cache is not in it.
pub(super) fn bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    ["Slab:", "KernelStack:", "PageTables:", "Percpu:"]
        .iter()
        .filter_map(|key| kilobytes(&text, key))
        .sum::<u64>()
        * 1024
}

/// Memory that processes could still get, in bytes.
pub(super) fn available_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    kilobytes(&text, "MemAvailable:").unwrap_or(0) * 1024
}

/// Memory in TCP's buffers, in bytes.
pub(super) fn tcp_bytes() -> u64 {
    let text = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let tcp = text.lines().find(|line| line.starts_with("TCP:")).unwrap_or_default();
    let mut words = tcp.split_whitespace().skip_while(|word| *word != "mem").skip(1);
    words.next().and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_by_their_key() {
        let text = "MemTotal: 9 kB\nSlab:      1234 kB\nSlabs: 1\n";
        assert_eq!(kilobytes(text, "Slab:"), Some(1234));
        assert_eq!(kilobytes(text, "KernelStack:"), None);
        assert!(bytes() > 1 << 20 && available_bytes() > 1 << 20);
        assert!(tcp_bytes() < 1 << 50);
    }
}
