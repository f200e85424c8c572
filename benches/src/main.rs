//! The instruction-count gate: runs every hot path under callgrind and holds the counts against `instructions.txt`.
//!
//! Each path is measured in a process of its own, so that none moves another's figures. Making it ready and warming it
//! up are not counted: callgrind collects inside [`counted_runs`] alone. `instructions.sh` builds this and starts it.

use std::collections::VecDeque;
use std::path::Path as FilePath;
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};

use millrace_benches::gate::{Counts, Measured, judge};
use millrace_benches::{Path, counted_runs, paths};

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.txt");

const USAGE: &str = "\
usage: benches/instructions.sh             counts, and compares with the baseline
       benches/instructions.sh --accept    counts, and writes a new baseline
       benches/instructions.sh FILTER      counts and compares paths whose name holds FILTER";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["run", name] => run(name).map(|()| true),
        [] => check(""),
        ["--accept"] => accept().map(|()| true),
        [filter] if !filter.starts_with('-') => check(filter),
        _ => Err(USAGE.to_owned()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// What callgrind watches.
fn run(name: &str) -> Result<(), String> {
    let path = paths().find(|path| path.name == name).ok_or_else(|| format!("there is no path {name}"))?;
    let mut run = (path.prepare)();
    for _ in 0..path.runs {
        run();
    }
    counted_runs(&mut *run, path.runs);
    Ok(())
}

/// Compares; whether all is well.
fn check(filter: &str) -> Result<bool, String> {
    let chosen = |name: &str| name.contains(filter);
    let text = std::fs::read_to_string(BASELINE).map_err(|error| format!("{BASELINE}: {error}"))?;
    let mut baseline = Measured::read(&text).map_err(|error| format!("{BASELINE}: {error}"))?;
    baseline.counts.retain(|name, _| chosen(name));
    let measured = measure(paths().filter(|path| chosen(path.name)))?;
    if measured.counts.is_empty() && baseline.counts.is_empty() {
        return Err(format!("no path's name holds {filter:?}"));
    }
    let Some(judgement) = judge(&baseline, &measured) else {
        println!("instruction counts: the baseline is for {}, nothing is compared", baseline.architecture);
        return Ok(true);
    };
    print!("{}", judgement.report());
    Ok(!judgement.fails())
}

fn accept() -> Result<(), String> {
    let measured = measure(paths())?;
    std::fs::write(BASELINE, measured.write()).map_err(|error| format!("{BASELINE}: {error}"))?;
    println!("instruction counts: {} paths are the new baseline", measured.counts.len());
    Ok(())
}

fn measure(paths: impl Iterator<Item = &'static Path>) -> Result<Measured, String> {
    if cfg!(debug_assertions) {
        return Err("only the release build's instructions mean anything: benches/instructions.sh".to_owned());
    }
    let made_with = made_with()?;
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let waiting: Mutex<VecDeque<_>> = Mutex::new(paths.collect());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || {
        let mut counts = Counts::new();
        while let Some(path) = next() {
            counts.insert(path.name.to_owned(), count(path, directory.path())?);
        }
        Ok(counts)
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let parts: Result<Vec<Counts>, String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let counts = parts?.into_iter().flatten().collect();
    Ok(Measured { architecture: std::env::consts::ARCH.to_owned(), made_with, counts })
}

/// Instructions of one run of a path.
fn count(path: &Path, directory: &FilePath) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let out = directory.join(path.name.replace('/', "-"));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet", "--toggle-collect=*counted_runs*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(["run", path.name])
        // Giving memory back to the system goes by the clock.
        .env("MIMALLOC_PURGE_DELAY", "-1")
        .output()
        .map_err(|error| format!("valgrind can't be started ({error}): install the package valgrind"))?;
    let failed = |why: &str| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!("{}: {why} under callgrind, which said:\n{said}", path.name)
    };
    if !output.status.success() {
        return Err(failed("the run failed"));
    }
    let text = std::fs::read_to_string(&out).map_err(|error| failed(&error.to_string()))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")).unwrap_or_default();
    match total.trim().parse::<u64>() {
        Ok(total) if total > 0 => Ok(total / u64::from(path.runs)),
        _ => Err(failed("nothing was counted: is the symbol `counted_runs` still there?")),
    }
}

/// What else decides over the counts: compiler, C library, instruction set.
fn made_with() -> Result<String, String> {
    let said = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let rustc = said("rustc", "--version").ok_or("rustc does not say its version")?;
    let libc = said("getconf", "GNU_LIBC_VERSION").unwrap_or_else(|| "another libc than glibc".to_owned());
    #[cfg(target_arch = "x86_64")]
    let set = if std::is_x86_feature_detected!("avx2") { "AVX2" } else { "no AVX2" };
    #[cfg(not(target_arch = "x86_64"))]
    let set = "any instruction set";
    Ok(format!("{rustc}, {libc}, {set}"))
}
