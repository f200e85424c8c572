//! The hot paths, each defined once and measured twice: in time by criterion (`benches/paths.rs`), in instructions
//! under callgrind (`main.rs`, run by `instructions.sh`).
//!
//! A path is made ready once and then run over and over, each run leaving it as the next one needs it. The rule that
//! keeps instruction counts exact: nothing in a run depends on a clock, on randomness or on another thread.

#![forbid(unsafe_code)]

mod dispatcher;
mod frame;
pub mod gate;
mod gateway;
mod link;
mod login;
mod room;
mod structures;
mod websocket;

/// As the processes have it: what a path allocates is in its figures.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// One run of a path that was made ready.
pub type Run = Box<dyn FnMut()>;

/// A hot path.
#[derive(Clone, Copy)]
pub struct Path {
    /// `part/what`: criterion's group and bench, and its key in the baseline.
    pub name: &'static str,
    /// What one run handles: frames, entries, messages or deliveries.
    pub elements: u64,
    /// Runs that are counted in instructions, after as many that warm up. What happens once in a while (a table
    /// grows, an acknowledgement falls due) must happen several times in them, or not at all.
    pub runs: u32,
    /// Makes it ready.
    pub prepare: fn() -> Run,
}

/// A path of the table of its module.
const fn path(name: &'static str, elements: u64, runs: u32, prepare: fn() -> Run) -> Path {
    Path { name, elements, runs, prepare }
}

/// Every path, by part.
pub fn paths() -> impl Iterator<Item = &'static Path> {
    let parts = [
        frame::PATHS,
        websocket::PATHS,
        link::PATHS,
        structures::PATHS,
        gateway::PATHS,
        dispatcher::PATHS,
        login::PATHS,
    ];
    parts.into_iter().flatten()
}

/// Runs a path so often. Callgrind counts inside this function alone: it finds it by its name, so it is never inlined
/// and nothing else may be called so.
#[inline(never)]
pub fn counted_runs(run: &mut dyn FnMut(), runs: u32) {
    for _ in 0..runs {
        run();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn names_are_a_part_and_a_thing_and_unique() {
        let names: Vec<_> = super::paths().map(|path| path.name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        for name in names {
            let (part, what) = name.split_once('/').expect("a part and a thing");
            let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            assert!(plain(part) && plain(what), "{name}: neither a file name nor a word of the baseline");
        }
    }
}
