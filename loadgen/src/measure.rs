//! Reading what a process costs from /proc, and small arithmetic over what was read.

use std::fs;
use std::io;

use hdrhistogram::Histogram;
use serde::Serialize;

/// A histogram of microseconds up to ten minutes, with three significant digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("bounds that the library takes")
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Percentiles {
    pub p50: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

impl Percentiles {
    /// Of a histogram; all 0 when it is empty.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        Percentiles {
            p50: histogram.value_at_quantile(0.5),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        }
    }
}

/// CPU time that a process has used, user and kernel, over all its threads that live, in microseconds. Kernel workers
/// of its rings count, as they are threads of the process.
///
/// # Errors
/// The process is gone.
pub fn cpu_us(pid: u32) -> io::Result<u64> {
    let mut sum_ns = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and the read; what it used is small then.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        sum_ns += text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum_ns / 1_000)
}

/// All processes that this one started, and that those did, while they live.
pub fn descendants(pid: u32) -> Vec<u32> {
    let parent = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Behind the name, which may hold anything: the state, then the parent.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parents: Vec<(u32, u32)> = pids.filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let (mut found, mut next) = (vec![pid], 0);
    while let Some(&of) = found.get(next) {
        next += 1;
        found.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
    }
    found.split_off(1)
}

/// Memory of a process in bytes, pages that it shares counted by its share (PSS).
///
/// # Errors
/// The process is gone, or belongs to someone else.
pub fn pss_bytes(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    parse_pss(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no Pss in smaps_rollup"))
}

fn parse_pss(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// The line through points with the least squares: (slope, value at 0). `None` with fewer than two different x.
pub fn fit(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let count = points.len() as f64;
    let (sum_x, sum_y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    let (mean_x, mean_y) = (sum_x / count, sum_y / count);
    let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    if points.len() < 2 || spread == 0.0 {
        return None;
    }
    let slope = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>() / spread;
    Some((slope, mean_y - slope * mean_x))
}

/// What a run was measured on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Cores that this process may use.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// The processor, as the kernel names it.
    pub cpu: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let after = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
            line.split_once(':').map_or_else(String::new, |(_, value)| value.trim().to_owned())
        };
        let memory = after(&read("/proc/meminfo"), "MemTotal");
        Machine {
            cores: millrace_edge::affinity::cpu_count(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: after(&read("/proc/cpuinfo"), "model name"),
            memory_bytes: memory.split_whitespace().next().and_then(|kb| kb.parse().ok()).unwrap_or(0) * 1024,
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let gigabytes = self.memory_bytes as f64 / 1e9;
        write!(out, "{} cores, {}, Linux {}, {gigabytes:.0} GB", self.cores, self.cpu, self.kernel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_a_line() {
        let (slope, at_0) = fit(&[(0.0, 5.0), (10.0, 25.0), (20.0, 45.0)]).unwrap();
        assert!((slope - 2.0).abs() < 1e-9 && (at_0 - 5.0).abs() < 1e-9);
        assert_eq!(fit(&[(1.0, 2.0)]), None);
        assert_eq!(fit(&[(1.0, 2.0), (1.0, 3.0)]), None);
        assert_eq!(fit(&[]), None);
    }

    #[test]
    fn reads_this_process() {
        let pid = std::process::id();
        let before = cpu_us(pid).unwrap();
        let start = millrace_edge::clock::boot_us();
        while millrace_edge::clock::boot_us() < start + 50_000 {
            std::hint::black_box(0);
        }
        assert!(cpu_us(pid).unwrap() > before);
        assert!(pss_bytes(pid).unwrap() > 100 << 10);
        assert_eq!(parse_pss("Rss: 9 kB\nPss:      12 kB\nPss_Anon: 3 kB\n"), Some(12 << 10));
    }

    #[test]
    fn finds_what_a_process_started() {
        let line = "sleep 30 & echo; wait";
        let mut shell = std::process::Command::new("/bin/sh")
            .args(["-c", line])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        io::Read::read_exact(&mut shell.stdout.take().unwrap(), &mut [0]).unwrap();
        assert!(descendants(std::process::id()).contains(&shell.id()));
        let started = descendants(shell.id());
        assert_eq!(started.len(), 1);
        let kill = std::process::Command::new("kill").arg(started[0].to_string()).status().unwrap();
        assert!(kill.success());
        shell.wait().unwrap();
        assert!(descendants(shell.id()).is_empty());
    }

    #[test]
    fn percentiles_of_nothing_are_zero() {
        assert_eq!(Percentiles::of(&histogram()), Percentiles::default());
    }
}
